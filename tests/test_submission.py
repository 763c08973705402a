"""Submissions to MVTec AD 2's server: float16, the checker's lines, and an archive that is made from runs."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from toys import files_below, make_mvtec_ad_2, train

from commandline import exit_code
from dataset import ImageSet, Sample
from detector import Detector
from scripts import submission as command
from submission import layout
from submission import writer as writing
from submission.checker import check_submission
from submission.layout import encode_map, encode_mask, float16_factor, member_name, sets_of_images, to_float16
from submission.writer import choose_runs

CLASSES, PRIVATE = ("can", "vial"), 3
SIZE = (20, 12)  # (width, height)


@pytest.fixture(autouse=True)
def toy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes of three private images each, as if that were published."""
    monkeypatch.setattr(layout, "published_counts", lambda name: {c: {"private": PRIVATE} for c in CLASSES})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole submission, not packed."""
    rng = np.random.default_rng(0)
    for name, split, stems in sets_of_images():
        for stem in stems:
            values = rng.random(SIZE[::-1]).astype(np.float16)
            for kind, content in ((layout.MAPS, encode_map(values)), (layout.THRESHOLDED, encode_mask(values > 0.5))):
                path = tmp_path / "made" / member_name(kind, name, split, stem)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return tmp_path / "made"


def packed(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(folder, arcname=".")
    return folder.with_suffix(".tar.gz")


# --- float16 ---


@pytest.mark.parametrize("level", [1e-12, 0.001, 0.05, 0.5, 1, 3.7, 200, 4000, 1e7, -1e5, 0, -0.4])
def test_float16_keeps_the_order_around_the_threshold_whatever_its_size(level: float) -> None:
    factor = float16_factor(level)
    assert np.frexp(factor)[0] == 0.5 and (factor == 1 or not 2.0**-4 <= abs(level) < 2.0**8)
    size = abs(level) or 1.0
    values = (size * np.geomspace(1e-3, 100, 1500)).astype(np.float32)[None]
    kept, cut = to_float16(values, factor)
    assert cut == 0 and np.isfinite(kept).all() and (np.diff(kept.astype(np.float64)) >= 0).all()
    np.testing.assert_allclose(kept.astype(np.float64) / factor, values, rtol=2.0**-11)
    assert (np.diff(kept[0].astype(np.float64)) > 0).mean() > 0.9  # steps of 0.7 percent stay apart


def test_what_float16_cannot_hold_is_cut_counted_and_finite() -> None:
    kept, cut = to_float16(np.array([[1e30, -1e30, 65504, 70000, 1e-30]], np.float32), 1.0)
    assert kept.tolist() == [[65504, -65504, 65504, 65504, 0]] and (cut, kept.dtype) == (3, np.float16)


# --- the checker ---


def change(name: str, content: bytes | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    return spoil


def tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)  # type: ignore[arg-type]
    return file.getvalue()


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def link(folder: Path) -> None:
    path = folder / "anomaly_images/can/test_private/000_regular.tiff"
    path.rename(folder.parent / "elsewhere.tiff")
    path.symlink_to(folder.parent / "elsewhere.tiff")


def lose_class(folder: Path) -> None:
    for kind in layout.SUFFIXES:
        shutil.rmtree(folder / kind / "vial")


ONES = np.ones(SIZE[::-1])
MAP = "anomaly_images/can/test_private/000_regular.tiff"
MASK = "anomaly_images_thresholded/can/test_private_mixed/001_mixed.png"
SPOILT: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "float32": (change(MAP, tiff(ONES.astype(np.float32))), [f"{MAP}: is float32, wanted float16"]),
    "channels": (change(MAP, tiff(np.ones((12, 20, 3), np.float16), photometric="rgb")), [f"{MAP}: has "]),
    "pages": (
        change(MAP, tiff(np.ones((2, 12, 20), np.float16), photometric="minisblack")),
        [f"{MAP}: has 2 pages of 2 dimensions, wanted one of two: (height, width)"],
    ),
    "NaN": (change(MAP, encode_map(np.full((12, 20), np.nan, np.float16))), [f"{MAP}: holds values that are not fin"]),
    "inf": (change(MAP, encode_map(np.full((12, 20), np.inf, np.float16))), [f"{MAP}: holds values that are not fin"]),
    "no TIFF": (change(MAP, b"no image"), [f"{MAP}: is no TIFF file that can be read"]),
    "gray": (change(MASK, png(np.full((12, 20), 128, np.uint8))), [f"{MASK}: holds other values than 0 and 255"]),
    "0 and 1": (change(MASK, png(np.ones((12, 20), np.uint8))), [f"{MASK}: holds other values than 0 and 255"]),
    "RGB": (change(MASK, png(np.zeros((12, 20, 3), np.uint8))), [f"{MASK}: has the mode RGB, wanted L"]),
    "1 bit": (change(MASK, png(np.zeros((12, 20), np.uint8), "1")), [f"{MASK}: has the mode 1, wanted L"]),
    "16 bits": (change(MASK, png(np.zeros((12, 20), np.uint16))), [f"{MASK}: has the mode I;16, wanted L"]),
    "no PNG": (change(MASK, tiff(ONES.astype(np.float16))), [f"{MASK}: is no PNG file that can be read"]),
    "no map": (
        change(MAP, None),
        ["anomaly_images/can/test_private: 1 of 3 images are missing, the first 000_regular.tiff"],
    ),
    "a class": (
        lose_class,
        [
            f"{kind}/vial/{split}: 3 of 3 images are missing, the first 000_{light}.{suffix}"
            for split, light in (("test_private", "regular"), ("test_private_mixed", "mixed"))
            for kind, suffix in (("anomaly_images", "tiff"), ("anomaly_images_thresholded", "png"))
        ],
    ),
    "one more": (
        change("anomaly_images/can/test_private/003_regular.tiff", encode_map(ONES.astype(np.float16))),
        ["anomaly_images/can/test_private/003_regular.tiff: is none of the 3 images of can test_private, 000_reg"],
    ),
    "the other light": (
        change("anomaly_images/can/test_private/000_mixed.tiff", b""),
        ["anomaly_images/can/test_private/000_mixed.tiff: is none of the 3 images of can test_private"],
    ),
    "no class": (
        change("anomaly_images/nut/test_private/000_regular.tiff", b""),
        ["anomaly_images/nut/test_private/000_regular.tiff: is of no class and split of the benchmark: wanted one of"],
    ),
    "public": (
        change("anomaly_images/can/test_public/000_regular.tiff", b""),
        ["anomaly_images/can/test_public/000_regular.tiff: is of no class and split"],
    ),
    "a readme": (change("readme.txt", b""), ["readme.txt: is no part of a submission: wanted anomaly_images/CLASS/"]),
    "a .png": (change(MAP.replace(".tiff", ".png"), b""), [f"{MAP.replace('.tiff', '.png')}: is no part of a"]),
    "a link": (
        link,
        [f"{MAP}: is a link, wanted plain files", "anomaly_images/can/test_private: 1 of 3 images are missing"],
    ),
    "sizes": (
        change(MASK, png(np.zeros((20, 12), np.uint8))),
        ["can/test_private_mixed/001_mixed: its map is 20x12, thresholded 12x20: both have the size of the im"],
    ),
}  # fmt: skip


def test_a_whole_submission_has_no_problem(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folder, packed(folder)):
        assert check_submission(path, {}) == []
        assert exit_code(lambda: command.main(["--check", str(path)])) == 0  # noqa: B023
        assert capsys.readouterr().out == "a whole submission: 12 images of 2 classes\n"


@pytest.mark.parametrize("name", SPOILT)
def test_each_problem_is_a_line_in_a_folder_and_in_an_archive(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, wanted = SPOILT[name]
    spoil(folder)
    for path in (folder, packed(folder)):
        lines = check_submission(path, {})
        assert len(lines) == len(wanted) and all(map(str.startswith, lines, wanted)), lines
        assert not any("\n" in line for line in lines)
        assert exit_code(lambda: command.main(["--check", str(path)])) == 1  # noqa: B023
        assert capsys.readouterr().out.splitlines() == [*lines, f"problems: {len(lines)}"]


def test_many_files_with_one_problem_are_one_line(folder: Path) -> None:
    for path in (folder / "anomaly_images").rglob("*.tiff"):
        path.write_bytes(tiff(ONES.astype(np.float64)))
    (line,) = check_submission(folder, {})
    assert line == f"{MAP}: is float64, wanted float16 (12 files)"


MEMBERS: dict[str, Callable[[], tarfile.TarInfo]] = {
    "../outside.tiff: leads out of the folder": lambda: tarfile.TarInfo("../outside.tiff"),
    "/etc/outside.tiff: leads out of the folder": lambda: tarfile.TarInfo("/etc/outside.tiff"),
    "anomaly_images/../../x: leads out of the folder": lambda: tarfile.TarInfo("anomaly_images/../../x"),
    "../outside: is no file|leads out": lambda: directory("../outside"),
    f"{MAP}: is there twice": lambda: tarfile.TarInfo(MAP),
    "x\\ny: is no part of a submission": lambda: tarfile.TarInfo("x\ny"),
    "device: is no file, wanted plain files": lambda: special("device", tarfile.CHRTYPE),
    "hard: is a link, wanted plain files": lambda: special("hard", tarfile.LNKTYPE),
}


def directory(name: str) -> tarfile.TarInfo:
    return special(name, tarfile.DIRTYPE)


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = MAP
    return info


@pytest.mark.parametrize("says", MEMBERS)
def test_members_that_no_submission_has_are_named_and_nothing_is_unpacked(folder: Path, says: str) -> None:
    path, before = folder.parent / "other.tar.gz", files_below(folder.parent)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=".")
        archive.addfile(MEMBERS[says]())
    (line,) = check_submission(path, {})
    name, _, texts = says.partition(": ")
    assert line.startswith(f"{name}: ") and any(text in line for text in texts.split("|"))
    path.unlink()
    assert files_below(folder.parent) == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_archive_is_no_submission(folder: Path, share: float) -> None:
    path = packed(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "not a whole .tar.gz archive" in check_submission(path, {})[-1]
    path.write_bytes(gzip.decompress(content))
    assert "not a whole .tar.gz archive" in check_submission(path, {})[-1]


def test_sizes_are_compared_with_the_images_where_there_are_data(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name, split, stems in sets_of_images():
        (root / name / split).mkdir(parents=True)
        (root / name / "train/good").mkdir(parents=True, exist_ok=True)
        for stem in stems:
            Image.new("RGB", SIZE).save(root / name / split / f"{stem}.png")
    roots = dict.fromkeys(CLASSES, root)
    assert check_submission(folder, roots) == []
    Image.new("RGB", (21, 12)).save(root / "can/test_private/000_regular.png")
    (line,) = check_submission(folder, roots)
    assert line == f"{MAP}: is 20x12, its image 21x12: maps have the size of their image (1 of 3 images)"
    (root / "vial/test_private/002_regular.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 images are missing, the first 002_regular.png"):
        check_submission(folder, roots)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "give RUNS and --out FILE, or --check PATH"),
        ("RUNS", "give RUNS and --out FILE"),
        ("RUNS --check x", "--check goes with --data_path alone"),
        ("--check x --seed 3", "--check goes with --data_path alone"),
        ("--check nowhere", "--check nowhere: no such file or folder"),
        ("nowhere --out x.tar.gz", "nowhere: no such folder"),
    ],
)
def test_a_wrong_command_is_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = exit_code(lambda: command.main(words.split()))
    except SystemExit as ended:
        code = int(ended.code or 0)
    error = capsys.readouterr().err
    assert code == 2 and says in error and error.count("\n") == 1


# --- the writer ---


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `data`, whose images have several sizes, and finished `runs` of two classes and of both at once."""
    with pytest.MonkeyPatch.context() as patch:
        from model.specs import ResNetSpec, TeacherSpec
        from model.teacher import TEACHERS

        patch.setitem(TEACHERS, "res10", TeacherSpec("", "", ResNetSpec("basic", (1, 1, 1, 1))))
        root = tmp_path_factory.mktemp("submission")
        data = make_mvtec_ad_2(root / "data", CLASSES, private=PRIVATE)
        Image.open(data / "can/test_private/001_regular.png").resize((90, 70)).save(
            data / "can/test_private/001_regular.png"
        )
        flags = ["--dataset", "mvtec_ad_2", "--data_path", data, "--variant", "rd4ad", "--epochs", 1, "--net", "res10"]
        flags += ["--weights", "random", "--pixel_threshold", "percentile:95x1"]
        assert train(*flags, "--class", "all", "unified", "--save_path", root / "runs") == 0
        yield root


def arguments(*words: object) -> list[str]:
    return [*map(str, words), "--device", "cpu", "--workers", "0"]


@pytest.mark.slow
def test_runs_become_an_archive_that_the_checker_finds_whole(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    singles, out = [made / "runs/mvtec_ad_2/rd4ad" / name for name in CLASSES], tmp_path / "sub/submission.tar.gz"
    assert exit_code(lambda: command.main(arguments(*singles, "--out", out))) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("can test_private: 3 images, ") and said[-1].startswith(
        f"{out}: 12 images of 2 classes, "
    )
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert check_submission(out, dict.fromkeys(CLASSES, made / "data")) == []
    with tarfile.open(out) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in 3.10.0, 3.11.0
        archive.extractall(tmp_path / "unpacked", **safely)  # type: ignore[arg-type]
    detector = Detector.load(singles[0] / "seed111", device="cpu")
    path = made / "data/can/test_private/001_regular.png"
    ((_, maps),) = detector.score_batches(ImageSet([Sample(path, False, "")], 64))
    values = tifffile.imread(tmp_path / "unpacked/anomaly_images/can/test_private/001_regular.tiff")
    assert values.shape == (70, 90) and values.dtype == np.float16
    assert values.max() <= maps.max() * (1 + 2.0**-11) and abs(float(values.mean()) - maps.mean()) < 0.02 * maps.mean()
    mask = np.asarray(Image.open(tmp_path / "unpacked/anomaly_images_thresholded/can/test_private/001_regular.png"))
    assert detector.threshold is not None and detector.threshold.source == "validation"
    above = values.astype(np.float32) > detector.threshold.pixel
    assert set(np.unique(mask)) == {0, 255} and ((mask == 255) == above).mean() > 0.99

    before = out.read_bytes()
    out.unlink()
    assert exit_code(lambda: command.main(arguments(*singles, "--out", out))) == 0
    assert out.read_bytes() == before, "the same runs make the same archive"

    def fail(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "encode_mask", fail)
    assert exit_code(lambda: command.main(arguments(*singles, "--out", out))) == 2
    assert out.read_bytes() == before and len(list(out.parent.iterdir())) == 1
    monkeypatch.setattr(writing, "encode_mask", lambda mask: encode_mask(mask)[:20])
    assert exit_code(lambda: command.main(arguments(*singles, "--out", out))) == 70  # our own mistake
    assert out.read_bytes() == before and len(list(out.parent.iterdir())) == 1


@pytest.mark.slow
def test_one_model_over_all_classes_is_the_run_of_each(made: Path, tmp_path: Path) -> None:
    root = made / "runs/mvtec_ad_2/rd4ad"
    assert choose_runs([root / "unified"]) == dict.fromkeys(CLASSES, root / "unified/seed111")
    out = tmp_path / "submission.tar.gz"
    assert exit_code(lambda: command.main(arguments(root / "unified", "--out", out))) == 0
    assert check_submission(out, {}) == []


@pytest.mark.slow
def test_what_runs_lack_is_a_line_before_anything_is_predicted(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Path(shutil.copytree(made / "runs", tmp_path / "runs")) / "mvtec_ad_2/rd4ad"
    out = tmp_path / "submission.tar.gz"

    def lines(*words: object) -> list[str]:
        assert exit_code(lambda: command.main(arguments(*words, "--out", out))) == 2
        assert not out.exists()
        return capsys.readouterr().err.splitlines()

    (line,) = lines(runs / "can")
    assert f"no finished run of mvtec_ad_2 under {runs / 'can'} for vial" in line
    (line,) = lines(runs / "can", runs / "vial", "--seed", 7)
    assert "no finished run of seed 7 of mvtec_ad_2" in line and "for can, vial" in line
    two = lines(runs)
    assert len(two) == 2 and two[0].startswith("error: can: 2 finished runs (") and "--seed" in two[0]
    (runs / "can/seed111/threshold.json").unlink()
    (line,) = lines(runs / "can", runs / "vial")
    assert line.startswith(f"error: {runs / 'can/seed111'}: has no threshold: python test.py RUN --calibrate FOLDER")
    out = tmp_path / "submission.zip"
    (line,) = lines(runs / "unified")
    assert "must end in .tar.gz" in line
    out = tmp_path / "submission.tar.gz"
    data = Path(shutil.copytree(made / "data", tmp_path / "data"))
    os.rename(data / "vial/test_private/002_regular.png", data / "vial/test_private/003_regular.png")
    (line,) = lines(runs / "unified", "--data_path", data)
    assert "1 of 3 images are missing, the first 002_regular.png" in line
