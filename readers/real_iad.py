"""Real-IAD: objects seen by five cameras, 30 classes; the splits stand in JSON files beside the images.

    D/realiad_256/<class>/{OK,NG/<defect>}/SNNNN/<class>_NNNN_..._C1_<time>.jpg    and _512, _1024, _raw: one of them is
                                                                                the root; masks lie beside, as .png
    D/realiad_jsons/<class>.json            or D/realiad_jsons/realiad_jsons/<class>.json
        {"meta": {"prefix": "<class>/", "normal_class": "OK"}, "train": [...], "test": [...]}, each entry with
        "category", "anomaly_class", "image_path", "mask_path"; paths are relative to the prefix below the root

An image is normal if its anomaly_class is OK, and if it has no mask: the defect of its object is on another side (as in
the code published with the data). The view is the group of a sample, and the folder of the object its unit: OK/S0001
and NG/AK/S0001 are two objects. Wang et al., "Real-IAD: A Real-World Multi-View Dataset for Benchmarking Versatile
Industrial Anomaly Detection", CVPR 2024.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path, PurePosixPath

from readers.base import PathsBelow, Sample, Source, check_split, list_folders, require_folder
from readers.contents import Stamp, file_stamp
from utils import printable, read_json

SIZES = "realiad_"  # the beginning of the folders of images: realiad_256, realiad_512, realiad_1024, realiad_raw
JSONS = "realiad_jsons"
ENTRY = ("anomaly_class", "image_path", "mask_path")
VIEW = re.compile(r"_(C[1-5])_")
REAL_IAD_CLASSES = (
    "audiojack bottle_cap button_battery end_cap eraser fire_hood mint mounts pcb phone_battery plastic_nut "
    "plastic_plug porcelain_doll regulator rolled_strip_base sim_card_set switch tape terminalblock toothbrush toy "
    "toy_brick transistor1 u_block usb usb_adaptor vcpill wooden_beads woodstick zipper"
)


def read_real_iad(source: Source, class_name: str, split: str) -> list[Sample]:
    """Samples of one class as its JSON file says, sorted by path.

    Raises FileNotFoundError for a class without a file and for images and masks that are missing, and ValueError naming
    the file and the entry for what has another form, for an anomaly in train and for a path that leads out of the root.
    """
    check_split(split)
    root = find_real_iad(require_folder(source.root, "--data_path"))
    file = _split_files(root).get(class_name)
    if file is None:
        raise FileNotFoundError(f"no {JSONS}/{class_name}.json beside {root}: unpack realiad_jsons.zip there")
    samples = list(_read_split(root, file, file_stamp(file), class_name, split))
    missing = [p for s in samples for p in (s.image, s.mask) if p is not None and not os.path.exists(p)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files of {file}, {split}, are missing, the first {printable(missing[0])}: unpack the "
            f"images of {class_name} again"
        )
    return samples


def find_real_iad_classes(root: Path) -> tuple[str, ...]:
    """The sorted classes that have a folder of images and a JSON file."""
    folders = {folder.name for folder in list_folders(find_real_iad(root))}
    return tuple(sorted(folders & _split_files(find_real_iad(root)).keys()))


def find_real_iad(path: Path) -> Path:
    """The folder of images that `path` is, or the one that it holds. Raises FileNotFoundError, ValueError."""
    if not path.is_dir():
        raise FileNotFoundError(f"--data_path {path}: no such folder")
    if not _split_files(path):
        raise FileNotFoundError(
            f"--data_path {path}: no {JSONS}/<class>.json in it or beside it: name the folder of one size, such as "
            "D/realiad_256, where D/realiad_jsons holds the splits"
        )
    found = [folder for folder in list_folders(path) if folder.name.startswith(SIZES) and JSONS not in folder.name]
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise ValueError(f"--data_path {path}: holds images of {len(found)} sizes: name one of {names}")
    return found[0] if found else path


def _split_files(root: Path) -> dict[str, Path]:
    """{class: its JSON file}, beside the folder of images or in it."""
    for base in (root.parent, root):
        for folder in (base / JSONS / JSONS, base / JSONS):
            found = {path.stem: path for path in folder.glob("*.json")} if folder.is_dir() else {}
            if found:
                return found
    return {}


@functools.lru_cache(maxsize=4)
def _read_split(root: Path, file: Path, _: Stamp, class_name: str, split: str) -> tuple[Sample, ...]:
    """The samples of a split, whether their files are there or not."""
    content = read_json(file)
    meta = content.get("meta") if isinstance(content, dict) else None
    entries = content.get(split) if isinstance(content, dict) else None
    if not isinstance(meta, dict) or not isinstance(entries, list) or not entries:
        raise ValueError(f"{file}: wanted a table with meta, train and test, lists of images; copy the file again")
    prefix, normal_class = meta.get("prefix", f"{class_name}/"), meta.get("normal_class", "OK")
    if not isinstance(prefix, str) or not isinstance(normal_class, str):
        raise ValueError(f"{file}: meta.prefix and meta.normal_class must be texts; copy the file again")
    below, samples = PathsBelow(root), []
    for number, entry in enumerate(entries, start=1):
        where = f"{file}, {split} {number}"
        kind, image, mask = (entry.get(name) if isinstance(entry, dict) else None for name in ENTRY)
        if not isinstance(kind, str) or not isinstance(image, str) or not isinstance(mask, str | None):
            raise ValueError(f"{where}: wanted the texts {', '.join(ENTRY)}, the last may be null; copy the file again")
        if split == "train" and kind != normal_class:
            raise ValueError(f"{where}: {printable(image)} is an anomaly in train: this is not the one-class split")
        view = VIEW.search(PurePosixPath(image).name)
        if view is None:
            raise ValueError(f"{where}: {printable(image)} names no view, _C1_ to _C5_: is it an image of Real-IAD?")
        seen = mask if kind != normal_class else None
        unit = f"{class_name}/{PurePosixPath(image).parent.as_posix()}"
        path = below(str(PurePosixPath(prefix) / image), where)
        mask_path = below(str(PurePosixPath(prefix) / seen), where) if seen else None
        samples.append(Sample(path, bool(seen), kind if seen else "good", mask_path, group=view[1], unit=unit))
    return tuple(sorted(samples, key=lambda sample: str(sample.image)))
