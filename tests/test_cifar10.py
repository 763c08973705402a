"""CIFAR-10 read from files of its own format, small: the md5 sums of torchvision's tables are replaced by theirs."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import re
import struct
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from dataset import BENCHMARKS, ImageSet, Source, find_classes, load_image, locate
from report.overlays import overlay_names
from readers import cifar10
from readers.image_io import open_image, read_orientation, read_rgb, read_size
from scripts import check_data

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
TRAIN_FILES, TEST_FILE, META = [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta"
ROWS = 20  # per file, two per class
CAT = NAMES.index("cat")


def python2_pickle(labels: list[int], data: np.ndarray) -> bytes:
    """{"labels": list, "data": (n, 3072) uint8} as Python 2 and NumPy 1 wrote it: byte strings, align given as 0."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    pixels = data.tobytes()
    shape = b"".join(b"M" + struct.pack("<H", side) for side in data.shape) + b"\x86"
    array = empty + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", len(pixels)) + pixels + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"labels") + numbers + text(b"data") + array + b"u."


def rows_of(number: int) -> tuple[list[int], np.ndarray]:
    """Labels in no order, two of each, and noise: the content of the fake batch with that number."""
    rng = np.random.default_rng(number)
    return rng.permutation(np.arange(ROWS) % 10).tolist(), rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a small copy, which torchvision's tables are made to expect."""
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for number, name in enumerate([*TRAIN_FILES, TEST_FILE, META]):
        content = pickle.dumps({"label_names": NAMES}, 2) if name == META else python2_pickle(*rows_of(number))
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN_FILES])
    monkeypatch.setattr(CIFAR10, "test_list", [[TEST_FILE, sums[TEST_FILE]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[META]})
    return folder.parent


def test_torchvision_reads_the_fake_files_as_the_original() -> None:
    """The tables that the fixture replaces are as it takes them to be."""
    assert [name for name, _ in CIFAR10.train_list] == TRAIN_FILES
    assert [name for name, _ in CIFAR10.test_list] == [TEST_FILE]
    assert (CIFAR10.base_folder, CIFAR10.meta["filename"], CIFAR10.meta["key"]) == (
        "cifar-10-batches-py",
        META,
        "label_names",
    )


def test_samples_are_torchvisions_images(cifar: Path) -> None:
    """Same images, same labels, same order; the channels of a row are red, green, blue, each row by row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = CIFAR10(cifar, train=False)
    samples = cifar10.read_cifar10(Source(cifar), "cat", "test")
    assert len(samples) == len(wanted) == ROWS
    for sample, (picture, label) in zip(samples, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(read_rgb(sample.image)), np.asarray(picture))
        assert sample.defect == ("good" if NAMES[label] == "cat" else NAMES[label])
    _, data = rows_of(5)
    pixels = np.asarray(read_rgb(samples[7].image))
    for y, x, channel in [(0, 0, 0), (0, 31, 1), (5, 9, 2), (31, 31, 2)]:
        assert pixels[y, x, channel] == data[7, 1024 * channel + 32 * y + x]


def test_one_class_is_normal_the_nine_others_are_not(cifar: Path) -> None:
    for name in NAMES:
        train, test = (cifar10.read_cifar10(Source(cifar), name, split) for split in ("train", "test"))
        places = [
            (file, row)
            for number, file in enumerate(TRAIN_FILES)
            for row, label in enumerate(rows_of(number)[0])
            if NAMES[label] == name
        ]
        assert [(s.image.parent.name, int(s.image.name)) for s in train] == places
        assert {(s.anomalous, s.defect, s.mask) for s in train} == {(False, "good", None)}
        assert Counter(s.defect for s in test) == {"good": 2, **{other: 2 for other in NAMES if other != name}}
        assert all(s.anomalous == (s.defect != "good") and s.mask is None for s in test)
        assert sum(s.anomalous for s in test) == 18


def test_names_are_readable_sorted_and_unique(cifar: Path) -> None:
    for split in ("train", "test"):
        samples = cifar10.read_cifar10(Source(cifar), "cat", split)
        images = [s.image for s in samples]
        assert images == sorted(set(images))
    names = overlay_names(samples)
    assert names[:2] == [f"{samples[0].defect}_00000", f"{samples[1].defect}_00001"]
    assert len({*names}) == ROWS
    assert images[7] == cifar / "cifar-10-batches-py/test_batch/00007"


def test_an_image_is_resized_as_any_other(cifar: Path, tmp_path: Path) -> None:
    samples = cifar10.read_cifar10(Source(cifar), "cat", "test")
    read_rgb(samples[3].image).save(tmp_path / "3.png")
    for size in (32, 64):
        loaded = ImageSet(samples, size).image(3)
        assert (loaded.shape, loaded.dtype) == ((3, size, size), np.uint8)
        np.testing.assert_array_equal(loaded, load_image(tmp_path / "3.png", size))
    np.testing.assert_array_equal(ImageSet(samples, 32).image(3).ravel(), rows_of(5)[1][3])
    assert not ImageSet(samples, 32).has_masks
    assert (read_size(samples[3].image), read_orientation(samples[3].image)) == ((32, 32), 1)


def test_threads_load_a_batch_once(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [cifar / f"cifar-10-batches-py/{file}/{row:05}" for file in TRAIN_FILES for row in range(ROWS)]
    opened = []
    load = pickle.load

    def slowly(file: BinaryIO, encoding: str) -> dict[str, Any]:
        opened.append(Path(file.name).name)
        time.sleep(0.02)  # long enough for other threads to ask for the same file
        return load(file, encoding=encoding)

    monkeypatch.setattr(pickle, "load", slowly)
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(open_image, images))
    assert sorted(opened) == TRAIN_FILES
    for number in range(5):
        stacked = np.stack([np.asarray(p) for p in pictures[number * ROWS : (number + 1) * ROWS]])
        np.testing.assert_array_equal(stacked.transpose(0, 3, 1, 2).reshape(ROWS, 3072), rows_of(number)[1])


def test_numpys_warning_of_old_types_is_not_passed_on(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy 2.4.0 to 2.4.4 give it for the files as published; other warnings are nobody's to hide."""
    load = pickle.load

    def warn(file: BinaryIO, encoding: str) -> dict[str, Any]:
        warnings.warn("dtype(): align should be passed as Python or NumPy boolean but got `align=0`", stacklevel=2)
        return load(file, encoding=encoding)

    monkeypatch.setattr(pickle, "load", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cifar10.read_cifar10(Source(cifar), "cat", "test")


def test_sums_are_taken_once_for_all_classes(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    summed = []
    take = utils.calculate_md5

    def counted(path: Path) -> str:
        summed.append(path.name)
        return take(path)

    monkeypatch.setattr(utils, "calculate_md5", counted)
    for name in NAMES:
        for split in ("train", "test"):
            cifar10.read_cifar10(Source(cifar), name, split)
    assert sorted(summed) == sorted([*TRAIN_FILES, TEST_FILE, META])


@pytest.mark.parametrize("place", ["data", "data/cifar-10-batches-py", "."])
def test_the_folder_is_found_at_below_and_above_the_root(cifar: Path, tmp_path: Path, place: str) -> None:
    benchmark = BENCHMARKS["cifar10"]
    source = locate(benchmark, Source(tmp_path / place))
    assert find_classes(benchmark, source) == benchmark.classes == tuple(NAMES)
    (first, *_) = benchmark.read(source, "dog", "test")
    assert first.image.parent.resolve() == cifar.resolve() / "cifar-10-batches-py/test_batch"


def test_wrong_places_say_what_to_do(cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data_path"):
        locate(BENCHMARKS["cifar10"], Source(None))
    with pytest.raises(FileNotFoundError, match=r"--data_path .*nowhere: no such folder"):
        locate(BENCHMARKS["cifar10"], Source(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        cifar10.read_cifar10(Source(tmp_path / "empty"), "cat", "train")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(tmp_path / "empty/cifar-10-batches-py"))
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, [META, CIFAR10.meta["md5"]]]:
        assert f"{name} (wanted md5 {md5}, found no such file)" in text
    assert all(fact in text for fact in (CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5))


@pytest.mark.parametrize("name", ["data_batch_3", TEST_FILE, META])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_or_damaged_file_is_named(cifar: Path, name: str, split: str) -> None:
    """Nothing of a damaged file is unpickled, and once mended it is read: errors are not kept."""
    path = cifar / "cifar-10-batches-py" / name
    whole = path.read_bytes()
    wanted = hashlib.md5(whole).hexdigest()
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"damaged: {name} (wanted md5 {wanted}, found no such file);")
    ):
        cifar10.read_cifar10(Source(cifar), "cat", split)
    path.write_bytes(b"cos\nabort\n(tR.")
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"damaged: {name} (wanted md5 {wanted}, found md5 {found});")
    ):
        cifar10.read_cifar10(Source(cifar), "cat", split)
    with pytest.raises(FileNotFoundError, match=name):
        open_image(path / "00000")
    path.write_bytes(whole)
    assert cifar10.read_cifar10(Source(cifar), "cat", split)


def test_unknown_classes_and_rows_say_what_there_is(cifar: Path) -> None:
    with pytest.raises(
        ValueError, match=r"unknown class 'lion' of cifar10: choose from airplane, automobile, .*truck$"
    ):
        cifar10.read_cifar10(Source(cifar), "lion", "train")
    batches = cifar / "cifar-10-batches-py"
    with pytest.raises(FileNotFoundError, match=r"00020: no such row, the file has 20"):
        open_image(batches / TEST_FILE / "00020")
    with pytest.raises(FileNotFoundError, match=r"00000: no such file"):
        open_image(batches / "other_batch/00000")


def test_a_number_is_still_a_name_of_a_picture(tmp_path: Path) -> None:
    """Only a number below a file is a row: pictures without a suffix stay pictures."""
    (tmp_path / "test_batch").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "test_batch/00001", format="PNG")
    assert open_image(tmp_path / "test_batch/00001").size == (5, 4)


def test_other_benchmarks_do_not_wait_for_torchvision() -> None:
    code = "import sys, dataset; dataset.BENCHMARKS['cifar10']; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(cifar10.__file__).parents[1]).returncode == 0


def test_the_data_doctor_finds_nothing_wrong(cifar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dataset", "cifar10", "--data_path", str(cifar), "--class", "cat", "--workers", "2"]
    assert check_data.main(arguments) == 0
    assert capsys.readouterr().out == "errors: 0, warnings: 0; looked at 30 images of 1 classes\n"
    (cifar / "cifar-10-batches-py/test_batch").unlink()
    assert check_data.main(arguments) == 1


def test_main_trains_on_cats(cifar: Path, tmp_path: Path, train_command: Callable[..., int]) -> None:
    runs = tmp_path / "runs"
    arguments = ["--dataset", "cifar10", "--data_path", cifar, "--class", "cat", "--epochs", 1, "--save_path", runs]
    assert train_command(*arguments, "--variant", "rd4ad", "--vis", 1, "--workers", 2) == 0
    folder = runs / "cifar10/rd4ad/cat/seed111"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["n_train"], metrics["n_test"], metrics["n_anomalous"]) == (10, 20, 18)
    assert metrics["figures"]["image_auroc"] is not None
    assert metrics["figures"]["pixel_auroc"] is None
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == [f"{row:05}" for row in range(ROWS)]
    assert [int(row["anomalous"]) for row in rows] == [label != CAT for label in rows_of(5)[0]]
    pictures = {path.name for path in runs.rglob("*.png")}
    assert {f"{row['defect']}_{Path(row['path']).name}.png" for row in rows} <= pictures
