"""CIFAR-10 unpacked from small files of its own format: the md5 sums in torchvision's tables are replaced by theirs."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10
from toys import files_below

from dataset import BENCHMARKS, ImageSet, Source, find_classes, load_image, locate
from readers import cifar10
from readers.base import Sample
from readers.contents import file_stamp
from readers.image_io import open_image, read_orientation, read_rgb, read_size
from report.overlays import overlay_names
from scripts import validate_data

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


def read(root: Path, class_name: str, split: str) -> list[Sample]:
    """The samples as the commands get them: unpacked first where that is not done."""
    benchmark = BENCHMARKS["cifar10"]
    return benchmark.read(locate(benchmark, Source(root)), class_name, split)


@pytest.fixture
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)


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
    samples = read(cifar, "cat", "test")
    assert len(samples) == len(wanted) == ROWS
    for sample, (image, label) in zip(samples, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(read_rgb(sample.image)), np.asarray(image))
        assert sample.defect == ("good" if NAMES[label] == "cat" else NAMES[label])
    _, data = rows_of(5)
    pixels = np.asarray(read_rgb(samples[7].image))
    for y, x, channel in [(0, 0, 0), (0, 31, 1), (5, 9, 2), (31, 31, 2)]:
        assert pixels[y, x, channel] == data[7, 1024 * channel + 32 * y + x]


def test_one_class_is_normal_the_nine_others_are_not(cifar: Path) -> None:
    every_row = [
        (f"{ROWS * number + row:05}", label)
        for number in range(len(TRAIN_FILES))
        for row, label in enumerate(rows_of(number)[0])
    ]
    for name in NAMES:
        train, test = (read(cifar, name, split) for split in ("train", "test"))
        wanted = [index for index, label in every_row if NAMES[label] == name]
        assert [s.image.stem for s in train] == wanted and len(wanted) == 10
        assert {s.image.parent for s in train} == {cifar / "cifar-10-images/train" / name}
        assert {(s.anomalous, s.defect, s.mask) for s in train} == {(False, "good", None)}
        assert Counter(s.defect for s in test) == {"good": 2, **{other: 2 for other in NAMES if other != name}}
        assert all(s.anomalous == (s.defect != "good") and s.mask is None for s in test)
        assert sum(s.anomalous for s in test) == 18


def test_every_training_image_has_its_batchs_pixels(cifar: Path) -> None:
    read(cifar, "cat", "train")
    images = {path.stem: path for path in (cifar / "cifar-10-images/train").rglob("*.png")}
    assert len(images) == len(TRAIN_FILES) * ROWS
    for number in range(len(TRAIN_FILES)):
        labels, data = rows_of(number)
        for row in range(ROWS):
            path = images[f"{ROWS * number + row:05}"]
            assert path.parent.name == NAMES[labels[row]]
            np.testing.assert_array_equal(np.asarray(open_image(path)).transpose(2, 0, 1).ravel(), data[row])


def test_names_are_readable_in_the_files_order_and_unique(cifar: Path) -> None:
    for split in ("train", "test"):
        samples = read(cifar, "cat", split)
        images = [s.image for s in samples]
        assert [p.name for p in images] == sorted({p.name for p in images})
    names = overlay_names(samples)
    assert names[:2] == [f"{samples[0].defect}_00000", f"{samples[1].defect}_00001"]
    assert len({*names}) == ROWS
    assert images[7] == cifar / f"cifar-10-images/test/{NAMES[rows_of(5)[0][7]]}/00007.png"


def test_an_image_is_resized_as_any_other(cifar: Path, tmp_path: Path) -> None:
    samples = read(cifar, "cat", "test")
    read_rgb(samples[3].image).save(tmp_path / "3.png")
    for size in (32, 64):
        loaded = ImageSet(samples, size).image(3)
        assert (loaded.shape, loaded.dtype) == ((3, size, size), np.uint8)
        np.testing.assert_array_equal(loaded, load_image(tmp_path / "3.png", size))
    np.testing.assert_array_equal(ImageSet(samples, 32).image(3).ravel(), rows_of(5)[1][3])
    assert not ImageSet(samples, 32).has_masks
    assert (read_size(samples[3].image), read_orientation(samples[3].image)) == ((32, 32), 1)


def test_each_file_is_unpickled_once_and_said_so_in_one_line(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = []
    load = pickle.loads

    def counted(content: bytes, encoding: str) -> dict[str, Any]:
        contents.append(content)
        return load(content, encoding=encoding)

    monkeypatch.setattr(pickle, "loads", counted)
    for name in NAMES:
        for split in ("train", "test"):
            assert read(cifar, name, split)
    batches = cifar / "cifar-10-batches-py"
    assert sorted(contents) == sorted(path.read_bytes() for path in batches.iterdir())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"unpacking CIFAR-10 once, from {batches} to PNG files in {cifar / 'cifar-10-images'}\n"


@pytest.mark.usefixtures("no_unpickling")
def test_the_guard_of_the_tests_below_works(cifar: Path) -> None:
    with pytest.raises(AssertionError, match="unpickled"):
        read(cifar, "cat", "test")


def test_unpacked_images_need_no_batches_and_are_not_made_again(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before = read(cifar, "cat", "test")
    written = {p: p.stat().st_mtime_ns for p in cifar.rglob("*.png")}
    request.getfixturevalue("no_unpickling")
    assert read(cifar, "cat", "test") == before
    shutil.rmtree(cifar / "cifar-10-batches-py")
    monkeypatch.setattr(cifar10, "_torchvision", None)  # it costs seconds to import
    assert read(cifar, "cat", "test") == before
    assert {p: p.stat().st_mtime_ns for p in cifar.rglob("*.png")} == written
    for root in (tmp_path, cifar / "cifar-10-images"):  # above, and the folder itself
        assert read(root, "cat", "test") == before


def test_an_interruption_leaves_nothing(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = cifar10.write_image, iter(range(1000))

    def stop_after_three(row: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        write(row)

    monkeypatch.setattr(cifar10, "write_image", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        read(cifar, "cat", "test")
    assert [p.name for p in cifar.iterdir()] == ["cifar-10-batches-py"]
    monkeypatch.setattr(cifar10, "write_image", write)
    assert len(read(cifar, "cat", "test")) == ROWS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is a fork of this one")
@pytest.mark.parametrize("at", [30, 119])  # among the training images, and at the last of all
def test_what_a_killed_process_leaves_is_not_taken_for_whole(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    write, calls = cifar10.write_image, iter(range(1000))

    def die(row: Any) -> None:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        write(row)

    with monkeypatch.context() as patch:
        patch.setattr(cifar10, "write_image", die)
        process = multiprocessing.get_context("fork").Process(target=read, args=(cifar, "cat", "test"))
        process.start()
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = [p for p in cifar.iterdir() if p.name != "cifar-10-batches-py"]
    assert left.name.startswith(".cifar-10-images.making-")
    assert list(left.rglob("*.png"))
    with pytest.raises(FileNotFoundError, match=r"no cifar-10-images under --data_path .*: CIFAR-10 is not unpacked"):
        cifar10.read_cifar10(Source(cifar), "cat", "test")
    os.utime(left, (time.time() - 7200,) * 2)  # a young one may belong to a process that is at work
    assert len(read(cifar, "cat", "test")) == ROWS
    assert len(list(cifar.rglob("*.png"))) == 6 * ROWS
    assert not left.exists()


def test_two_processes_may_unpack_at_once(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = cifar10.write_image

    def be_overtaken(row: Any) -> None:
        monkeypatch.setattr(cifar10, "write_image", write)
        cifar10.prepare_cifar10(cifar)
        write(row)

    monkeypatch.setattr(os, "cpu_count", lambda: 0)  # one after the other, so that only the first is overtaken
    monkeypatch.setattr(cifar10, "write_image", be_overtaken)
    assert len(read(cifar, "cat", "test")) == ROWS
    assert sorted(p.name for p in cifar.iterdir()) == ["cifar-10-batches-py", "cifar-10-images"]


@pytest.mark.parametrize("loss", ["image", "class", "readme", "version", "extra"])
def test_images_that_are_no_longer_whole_are_made_again_or_refused(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    images = cifar / "cifar-10-images"
    samples = read(cifar, "cat", "test")
    if loss == "image":
        samples[3].image.unlink()
    elif loss == "class":
        shutil.rmtree(images / "train/dog")
    elif loss == "version":
        monkeypatch.setattr(cifar10, "VERSION", cifar10.VERSION + 1)
    elif loss == "extra":
        shutil.copy(samples[3].image, images / "test/cat/99999.PNG")
    else:
        (images / "readme.txt").unlink()
        with pytest.raises(ValueError, match=r"--data_path .*cifar-10-images, which holds something else"):
            read(cifar, "cat", "test")
        return
    there = files_below(images)
    (cifar / "cifar-10-batches-py").rename(cifar / ".away")  # hidden: not looked into
    with pytest.raises(FileNotFoundError, match=r"cifar-10-images no longer holds .* cannot be made again: ") as no:
        read(cifar, "cat", "test")
    assert "\n" not in str(no.value) and "--data_path" in str(no.value)
    assert files_below(images) == there
    (cifar / ".away").rename(cifar / "cifar-10-batches-py")
    assert read(cifar, "cat", "test") == samples
    assert len(list(images.rglob("*.[pP][nN][gG]"))) == 6 * ROWS
    assert cifar10.is_whole(images) and not (images / "replaced").exists()


def test_a_folder_of_somebody_else_is_refused(cifar: Path) -> None:
    mine = cifar / "cifar-10-images"
    mine.mkdir()
    (mine / "0001.jpg").write_bytes(b"years of work")
    with pytest.raises(ValueError, match=r"--data_path .*cifar-10-images, which holds something else: rename"):
        read(cifar, "cat", "test")
    assert files_below(mine) == {"0001.jpg": b"years of work"}
    (mine / "0001.jpg").unlink()  # an empty folder is welcome
    assert len(read(cifar, "cat", "test")) == ROWS


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_where_nothing_can_be_written_one_line_says_so(cifar: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    make = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if ".making-" in path.name:
            raise OSError(code, os.strerror(code), str(path))
        make(path, *arguments, **options)

    def run_out(row: Any) -> None:
        raise OSError(code, os.strerror(code), str(row[0]))

    if code == errno.EACCES:
        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        monkeypatch.setattr(cifar10, "write_image", run_out)
    with pytest.raises(ValueError) as caught:
        read(cifar, "cat", "test")
    text = str(caught.value)
    assert text.startswith(f"--data_path {cifar}: ") and "\n" not in text
    assert str(cifar / "cifar-10-images") in text and os.strerror(code) in text
    assert [p.name for p in cifar.iterdir()] == ["cifar-10-batches-py"]


def test_numpys_warning_of_old_types_is_not_passed_on(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy 2.4.0 to 2.4.4 give it for the files as published; other warnings are nobody's to hide."""
    load = pickle.loads

    def warn(content: bytes, encoding: str) -> dict[str, Any]:
        warnings.warn("dtype(): align should be passed as Python or NumPy boolean but got `align=0`", stacklevel=2)
        return load(content, encoding=encoding)

    monkeypatch.setattr(pickle, "loads", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(cifar, "cat", "test")


@pytest.mark.parametrize(
    ("place", "images"),
    [
        ("data", "data/cifar-10-images"),
        ("data/cifar-10-batches-py", "data/cifar-10-batches-py/cifar-10-images"),  # never outside of what was named
        (".", "data/cifar-10-images"),
    ],
)
def test_the_folder_is_found_at_below_and_above_the_root(cifar: Path, tmp_path: Path, place: str, images: str) -> None:
    benchmark = BENCHMARKS["cifar10"]
    source = locate(benchmark, Source(tmp_path / place))
    assert find_classes(benchmark, source) == benchmark.classes == tuple(NAMES)
    (first, *_) = benchmark.read(source, "dog", "test")
    assert first.image.parent.parent.resolve() == (tmp_path / images / "test").resolve()
    # and found again from another root, without a second copy
    assert len(read(cifar, "dog", "test")) == ROWS
    assert len(list(tmp_path.rglob("*.png"))) == 6 * ROWS


def test_wrong_places_say_what_to_do(cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data_path"):
        locate(BENCHMARKS["cifar10"], Source(None))
    with pytest.raises(FileNotFoundError, match=r"--data_path .*nowhere: no such folder"):
        locate(BENCHMARKS["cifar10"], Source(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path / "empty", "cat", "train")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(tmp_path / "empty/cifar-10-batches-py"))
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, [META, CIFAR10.meta["md5"]]]:
        assert f"{name} (wanted md5 {md5}, found no such file)" in text
    assert all(fact in text for fact in (CIFAR10.url, CIFAR10.filename, CIFAR10.tgz_md5))


@pytest.mark.usefixtures("no_unpickling")
@pytest.mark.parametrize("name", ["data_batch_3", TEST_FILE, META])
def test_a_missing_or_damaged_file_is_named_and_nothing_unpickled(
    cifar: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cifar / "cifar-10-batches-py" / name
    wanted = hashlib.md5(path.read_bytes()).hexdigest()
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"damaged: {name} (wanted md5 {wanted}, found no such file);")
    ):
        read(cifar, "cat", "test")
    path.write_bytes(b"cos\nabort\n(tR.")
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"damaged: {name} (wanted md5 {wanted}, found md5 {found});")
    ):
        read(cifar, "cat", "test")
    path.unlink()
    path.mkdir()
    with pytest.raises(FileNotFoundError, match=rf"damaged: {name} \(wanted md5 {wanted}, found a file that cannot be"):
        read(cifar, "cat", "test")
    assert [p.name for p in cifar.iterdir()] == ["cifar-10-batches-py"]
    assert capsys.readouterr().err == ""


def test_what_is_hashed_is_what_is_unpickled(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is exchanged after it was read, and before it is unpickled, is not read again."""
    read_bytes = Path.read_bytes

    def read_then_exchange(path: Path) -> bytes:
        content = read_bytes(path)
        path.write_bytes(b"cos\nabort\n(tR.")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_then_exchange)
    assert len(read(cifar, "cat", "test")) == ROWS


def test_a_mended_file_is_read(cifar: Path) -> None:
    path = cifar / "cifar-10-batches-py" / TEST_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(FileNotFoundError, match=TEST_FILE):
        read(cifar, "cat", "test")
    path.write_bytes(whole)
    assert len(read(cifar, "cat", "test")) == ROWS


def test_unknown_classes_say_what_there_is(cifar: Path) -> None:
    with pytest.raises(
        ValueError, match=r"unknown class 'lion' of cifar10: choose from airplane, automobile, .*truck$"
    ):
        read(cifar, "lion", "train")


@pytest.mark.parametrize("name", ["00001", "00001.png"])
def test_a_number_below_a_file_is_no_image(tmp_path: Path, name: str) -> None:
    """Paths name files and nothing else; an image without a suffix stays one."""
    (tmp_path / "batches").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "batches" / name, format="PNG")
    assert open_image(tmp_path / "batches" / name).size == (5, 4)
    (tmp_path / "test_batch").write_bytes(b"anything")
    with pytest.raises((FileNotFoundError, ValueError), match=f"{name}: "):
        open_image(tmp_path / "test_batch" / name)
    with pytest.raises(OSError, match=name):
        file_stamp(tmp_path / "test_batch" / name)


@pytest.mark.slow
def test_other_benchmarks_do_not_wait_for_torchvision() -> None:
    code = "import sys, dataset; dataset.BENCHMARKS['cifar10']; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(cifar10.__file__).parents[1]).returncode == 0


def test_the_data_doctor_finds_nothing_wrong(cifar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dataset", "cifar10", "--data_path", str(cifar), "--class", "cat", "--workers", "2"]
    assert validate_data.main(arguments) == 0
    assert capsys.readouterr().out == "errors: 0, warnings: 0; checked 30 images of 1 classes\n"
    (cifar / "cifar-10-images/test/cat" / os.listdir(cifar / "cifar-10-images/test/cat")[0]).write_bytes(b"")
    assert validate_data.main(arguments) == 1
    assert "is empty (0 bytes)" in capsys.readouterr().out


@pytest.mark.slow
def test_main_trains_on_cats(cifar: Path, tmp_path: Path, train_command: Callable[..., int]) -> None:
    runs = tmp_path / "runs"
    arguments = ["--dataset", "cifar10", "--data_path", cifar, "--class", "cat", "--epochs", 1, "--save_path", runs]
    assert train_command(*arguments, "--variant", "rd4ad", "--vis", 1, "--workers", 2) == 0
    folder = runs / "cifar10/rd4ad/cat/seed111"
    record = json.loads((folder / "metrics.json").read_text())
    assert (record["n_train"], record["n_test"], record["n_anomalous"]) == (10, 20, 18)
    assert record["metrics"]["image_auroc"] is not None
    assert record["metrics"]["pixel_auroc"] is None
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == [f"{row:05}.png" for row in range(ROWS)]
    assert [int(row["anomalous"]) for row in rows] == [label != CAT for label in rows_of(5)[0]]
    images = {path.name for path in runs.rglob("*.png")}
    assert {f"{row['defect']}_{Path(row['path']).name}" for row in rows} <= images
