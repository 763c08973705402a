"""Write the development split of ELPV, on which settings are chosen, as a folder in the MVTec layout.

    python -m scripts.development_split --out data/elpv_dev
    python main.py --dataset mvtec --data_path data/elpv_dev --class mono

The split lies inside the training blocks of --dataset elpv: it trains on one half of them and tests on the other, so
no cell of the test blocks takes part in a choice. Images are symbolic links into the data set, or copies where the
file system has no links.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from commandline import Parser, exit_code
from dataset import BENCHMARKS, Source, locate
from readers.base import make_folder
from readers.elpv import ELPV_CLASSES, read_cells, select_cells

PARTS = {"train": 0, "test": 1}  # of the blocks' three parts; part 2 holds the test blocks of --dataset elpv
README = """ELPV, development split in the MVTec layout: <class>/train/good, <class>/test/good, <class>/test/defect

Written by scripts.development_split from the training blocks of elpv-dataset (images CC BY-NC-SA 4.0).
This folder may be deleted: the command writes it again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or FileNotFoundError on user errors."""
    parser = Parser(prog="scripts.development_split", description="Write ELPV's development split in the MVTec layout")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--data_path", metavar="PATH", type=Path, help="the folder of labels.csv (default: the installed package's)"
    )
    given = parser.parse_args(argv)
    root = locate(BENCHMARKS["elpv"], Source(given.data_path)).root
    assert root is not None, "locate fills it in"
    images = list_images_of_split(root)
    write_split(given.out, images)
    print(
        f"{len(images)} images in {given.out}: --dataset mvtec --data_path {given.out} --class {' '.join(ELPV_CLASSES)}"
    )
    return 0


def list_images_of_split(root: Path) -> dict[Path, Path]:
    """The split as {path in the MVTec layout: image file}.

    Raises FileNotFoundError or ValueError as `read_cells`, and where there are no images or some are missing.
    """
    cells = read_cells(root)
    images = {
        Path(kind) / split / sample.defect / sample.image.name: sample.image
        for kind in ELPV_CLASSES
        for split, part in PARTS.items()
        for sample in select_cells(cells, kind, split, [part])
    }
    missing = [image for image in images.values() if not image.is_file()]
    if missing or not images:
        found = f"{len(missing)} images are missing, the first {missing[0]}" if missing else "no labeled cell"
        raise FileNotFoundError(f"--data_path {root}: {found}; install elpv-dataset again")
    return images


def write_split(out: Path, images: Mapping[Path, Path]) -> None:
    """Make the folder `out` whole or not at all, in place of an earlier one.

    Raises ValueError where `out` is a file, cannot be written, or holds anything that this command does not write.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: a file: name a new folder")
    own = {out / "readme.txt", *(out / path for path in images)}
    others = [path for path in sorted(out.rglob("*")) if path not in own and (path.is_symlink() or not path.is_dir())]
    if others:
        raise ValueError(f"--out {out} holds something else, e.g. {others[0].relative_to(out)}: name a new folder")
    try:
        make_folder(out, partial(write_images, images), is_ours=Path.is_dir, is_whole=lambda _: False)
    except OSError as problem:
        raise ValueError(f"--out {out} cannot be written: {problem.strerror or problem}") from None


def write_images(images: Mapping[Path, Path], folder: Path) -> None:
    """Link or copy every image to its place below `folder`, and write readme.txt."""
    for path, image in images.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.symlink_to(image.resolve())
        except OSError:
            shutil.copyfile(image, target)
    (folder / "readme.txt").write_text(README, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_code(main))
