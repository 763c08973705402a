"""Files that come from others: what is decoded, what is refused in one line, what is warned of before training."""

from __future__ import annotations

import ast
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import ROOT, make_mvtec, rows_of, score_again

from config import Config
from dataset import BENCHMARKS, ImageSet, Source, find_classes
from readers import image_io
from readers.base import Sample, check_name, path_below
from readers.checks import check_data, check_masks
from readers.elpv import read_elpv
from readers.headers import Header, read_header, read_headers, summarize, unlike_training
from readers.image_io import limit_pixels, open_image, read_mask, read_oriented_mask, read_rgb, read_size
from readers.visa import find_visa_classes, read_visa
from utils import printable

WIDE = (16, 12)
NOISE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = NOISE, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def sample_with_mask(folder: Path, mask: Image.Image, name: str = "0_mask.png", **options: object) -> Sample:
    mask.save(folder / name, **options)  # type: ignore[arg-type]
    return Sample(save(folder / "0.png"), True, "cut", folder / name)


def one_line(problem: pytest.ExceptionInfo[Exception], path: Path) -> str:
    text = str(problem.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


# ---------------------------------------------------------------------------------------------------------- formats


def encoded(kind: str, folder: Path) -> bytes:
    if kind == "EPS":  # Pillow's decoder starts Ghostscript
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 12\n%%EndComments\n%%EOF\n"
    Image.fromarray(NOISE).save(folder / f"x.{kind.lower()}")
    return (folder / f"x.{kind.lower()}").read_bytes()


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PPM", "ICO", "TGA", "PDF", "JP2"])
def test_other_formats_are_refused_by_content_whatever_the_file_is_called(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(kind, tmp_path))
    with pytest.raises(ValueError, match="not an image of a format that is read") as problem:
        read_rgb(path)
    assert "PNG, JPEG, BMP, TIFF or WebP" in one_line(problem, path)


def test_no_program_is_started_for_a_postscript_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "x.png").write_bytes(encoded("EPS", tmp_path))
    with pytest.raises(ValueError):
        open_image(tmp_path / "x.png")
    assert not started.exists()


def test_a_bmp_that_pillow_decodes_wrongly_is_refused(tmp_path: Path) -> None:
    """Eight bits a pixel and a palette of black and white: Pillow reads eight pixels from each byte."""
    drawn = np.arange(64).reshape(8, 8) % 3 == 0
    image = Image.fromarray(drawn.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(path := tmp_path / "x.bmp")
    with pytest.raises(ValueError, match="8 bits with a palette of black and white") as problem:
        read_mask(path)
    assert "save it as PNG" in one_line(problem, path)
    Image.fromarray(drawn).save(path)
    assert np.array_equal(read_mask(path), drawn)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "webp"])
def test_the_formats_of_the_suffixes_are_read_under_any_suffix(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / f"x.{kind}")
    path.rename(tmp_path / "y.jpeg")
    assert read_rgb(tmp_path / "y.jpeg").size == WIDE


def test_only_one_module_opens_images() -> None:
    """So that no file is decoded without its checks."""
    folders = [
        path for path in ROOT.iterdir() if path.is_dir() and path.name != "tests" and not path.name.startswith(".")
    ]
    for path in [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]:
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        openers = calls & {"Image.open", "PIL.Image.open", "cv2.imread", "imageio.imread", "skimage.io.imread"}
        allowed = {ROOT / "readers/image_io.py", ROOT / "export/predict_template.py"}  # the latter stands alone
        assert openers == ({"Image.open"} if path in allowed else set()), path


# ------------------------------------------------------------------------------------------- files, pixels, headers


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has 108 bytes at most
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_fifo, "is a FIFO"),
        (make_socket, "is a socket"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to(path.name), "cannot be opened"),
    ],
    ids=["FIFO", "socket", "folder", "device", "loop"],
)
def test_what_is_no_regular_file_is_refused_without_opening_it(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "x.png"
    make(path)
    for read in (read_rgb, read_header, read_size):
        with pytest.raises(ValueError, match=says) as problem:
            read(path)
        one_line(problem, path)


def test_a_link_to_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match="a link to a file that does not exist"):
        read_rgb(tmp_path / "x.png")


def huge_png(path: Path, side: int) -> Path:
    """The header of a PNG of side x side pixels, without any pixel."""
    save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "_pixel_limit", image_io.MAX_PIXELS)
    path = huge_png(tmp_path / "x.png", 13_300)
    with pytest.raises(
        ValueError, match="13300 x 13300 = 176890000 pixels, more than --max_pixels 100000000"
    ) as problem:
        read_rgb(path)
    one_line(problem, path)
    limit_pixels(200_000_000)
    assert read_header(huge_png(tmp_path / "y.png", 14_000)).size == (14_000, 14_000)  # Pillow's own limit is below
    limit_pixels(100)
    with pytest.raises(ValueError, match="16 x 12 = 192 pixels, more than --max_pixels 100:"):
        read_rgb(save(tmp_path / "small.png"))


def test_headers_tell_size_mode_and_depth(tmp_path: Path) -> None:
    deep = NOISE[..., 0].astype(np.uint16) * 257
    found: dict[str, np.ndarray] = {
        "gray16.png": deep,
        "gray16.tif": deep,
        "gray32.tif": deep.astype(np.int32),
        "rgb.jpg": NOISE,
        "gray.webp": NOISE,
        "one.png": NOISE[..., 0] > 127,
    }
    headers = {name: read_header(save(tmp_path / name, pixels)) for name, pixels in found.items()}
    assert {name: (h.kind, h.size) for name, h in headers.items()} == {
        "gray16.png": ("16-bit I", WIDE),
        "gray16.tif": ("16-bit I", WIDE),
        "gray32.tif": ("32-bit I", WIDE),
        "rgb.jpg": ("8-bit RGB", WIDE),
        "gray.webp": ("8-bit RGB", WIDE),
        "one.png": ("1-bit 1", WIDE),
    }


def test_all_bad_files_are_counted_in_one_line(tmp_path: Path) -> None:
    files = [(save(tmp_path / f"{i}.png"), False) for i in range(6)]
    assert [header.path for header in read_headers(files, workers=2)] == [path for path, _ in files]
    for path, _ in files[1:]:
        path.write_bytes(b"")
    with pytest.raises(ValueError) as problem:
        read_headers(files, workers=2)
    assert one_line(problem, files[1][0]).count("is empty (0 bytes)") == 3
    assert str(problem.value).endswith("; and 2 more files")


def test_a_summary_of_training_images_tells_which_new_ones_are_unlike_them() -> None:
    def header(size: tuple[int, int], mode: str = "RGB", bits: int = 8) -> Header:
        return Header(Path(f"{size[0]}.png"), "PNG", size, mode, bits)

    summary = summarize([header((640, 480)), header((1280, 960))])
    assert unlike_training([header((1000, 750))], summary) == []
    assert unlike_training([header((480, 640))], summary) == [
        "1 of 1 images have a size that no training image had (width 640 to 1280, height 480 to 960), the first "
        "480.png: 480 x 640, 8-bit RGB",
        "1 of 1 images have an aspect that no training image had (width by height 1.3333 to 1.3333), the first "
        "480.png: 480 x 640, 8-bit RGB",
    ]
    (line,) = unlike_training([header((640, 480)), header((800, 600), "L"), header((800, 600), "I;16", 16)], summary)
    assert line.startswith("2 of 3 images have a kind that no training image had (8-bit RGB), the first 800.png")


# ----------------------------------------------------------------------------------------------------------- EXIF


def tagged(path: Path, orientation: int, pixels: np.ndarray = NOISE) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, pixels, exif=exif)


def shown(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as EXIF says that they are to be shown, from the standard's table of first row and first column."""
    rows, columns = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]  # where the stored first row and first column lie in the shown image
    if rows in ("left", "right"):
        pixels = pixels.swapaxes(0, 1)
        rows, columns = columns, rows
    pixels = pixels[::-1] if rows == "bottom" else pixels
    return pixels[:, ::-1] if columns == "right" else pixels


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_own_images_are_upright_and_benchmarks_as_stored_in_every_format(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tagged(tmp_path / f"x.{suffix}", orientation)
    plain = save(tmp_path / f"plain.{suffix}")
    pixels = np.asarray(read_rgb(plain))
    for upright, wanted in ((False, pixels), (True, shown(pixels, orientation))):
        np.testing.assert_array_equal(np.asarray(read_rgb(path, upright)), wanted)
        assert read_size(path, upright) == read_header(path, upright).size == wanted.shape[1::-1]


def test_the_reader_of_own_images_makes_them_upright(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path)
    for name, upright in (("mvtec", False), ("folder", True)):
        for split in ("train", "test"):
            assert {s.upright for s in BENCHMARKS[name].read(Source(root), "bottle", split)} == {upright}
    path = tagged(tmp_path / "x.jpg", 6)
    save(tmp_path / "m.png", BLOCK)
    for read in (ImageSet.image, ImageSet.mask):
        sets = [ImageSet([Sample(path, True, "cut", tmp_path / "m.png", upright=u)], 12) for u in (False, True)]
        stored, rotated = (np.asarray(read(images, 0)) for images in sets)
        assert not np.array_equal(stored, rotated)


@pytest.mark.slow
def test_a_run_on_rotated_files_is_a_run_on_upright_ones(tmp_path: Path, train_command: Callable[..., int]) -> None:
    """Training, scoring, overlays and prediction; features in files of the benchmark's reading are not taken."""
    upright = make_mvtec(tmp_path / "upright", train=4, good=1, bad=1)
    sideways = tmp_path / "sideways"
    for path in upright.rglob("*.png"):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        copy = sideways / path.relative_to(upright)
        if "ground_truth" in path.parts:
            save(copy, pixels)
        else:
            tagged(copy, 6, np.ascontiguousarray(np.rot90(pixels)))  # to be shown a quarter turn clockwise
    flags = ("--epochs", 1, "--vis", 1, "--cache", "file", "--cache_dir", tmp_path / "cache")
    own = ("--dataset", "folder", "--class", "bottle")
    assert train_command("--data_path", sideways, *flags, "--save_path", tmp_path / "a", "--class", "bottle") == 0
    for root in (sideways, upright):
        assert train_command("--data_path", root, *flags, "--save_path", root / "runs", *own) == 0
        run = root / "runs/folder/sk_rd4ad/bottle/seed111"
        assert score_again(run, "--images", root / "bottle/test", "--device", "cpu") in (0, 1)
    found, wanted = (root / "runs/folder/sk_rd4ad/bottle/seed111" for root in (sideways, upright))
    for file in ("predictions.csv", "images/predictions.csv"):
        assert [row["score"] for row in rows_of(found / file)] == [row["score"] for row in rows_of(wanted / file)]
    for overlay in (wanted / "overlays").iterdir():
        assert (found / "overlays" / overlay.name).read_bytes() == overlay.read_bytes()


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("drawn_upright", [False, True])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_a_mask_lies_on_its_image_however_both_are_stored(
    tmp_path: Path, suffix: str, upright: bool, drawn_upright: bool
) -> None:
    image = tagged(tmp_path / f"x.{suffix}", 6)
    block = np.zeros((12, 16), bool)
    block[2:6, 3:8] = True
    save(tmp_path / "m.png", (shown(block, 6) if drawn_upright else block).astype(np.uint8))
    sample = Sample(image, True, "cut", tmp_path / "m.png", upright)
    assert list(check_masks([sample])) == []
    if upright != drawn_upright:
        with pytest.warns(UserWarning, match="EXIF rotation"):
            found = read_oriented_mask(image, tmp_path / "m.png", upright=upright)
    else:
        found = read_oriented_mask(image, tmp_path / "m.png", upright=upright)
    np.testing.assert_array_equal(found, shown(block, 6) if upright else block)


# ---------------------------------------------------------------------------------------------------------- masks

BLOCK = np.zeros((12, 16), np.uint8)
BLOCK[2:6, 3:8] = 255
CLEAR = Image.fromarray(np.full_like(BLOCK, 255))


@pytest.mark.parametrize(
    ("mask", "name", "says"),
    [
        (Image.fromarray(BLOCK), "0.jpg", "is a JPEG file"),
        (Image.fromarray(np.where(BLOCK > 0, np.arange(100, 116, dtype=np.uint8), 0)), "0_mask.png", "more than two"),
        (Image.merge("LA", (CLEAR, Image.fromarray(BLOCK))), "0_mask.png", "has transparency that varies"),
        (Image.fromarray(BLOCK * 0), "0_mask.png", "is empty though its image is anomalous"),
        (CLEAR, "0_mask.png", "covers nearly all of its image"),
        (Image.fromarray(BLOCK).resize((12, 12), 0), "0_mask.png", "has another aspect than its image"),
    ],
    ids=["jpeg", "gray", "alpha", "empty", "full", "aspect"],
)
def test_a_mask_that_is_not_what_it_seems_is_told_before_training(
    tmp_path: Path, mask: Image.Image, name: str, says: str
) -> None:
    lines = list(check_masks([sample_with_mask(tmp_path, mask, name)] * 3))
    assert any(says in line and line.startswith(f"{tmp_path / name}: ") for line in lines), lines
    assert all(line.endswith("(3 masks)") for line in lines)


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(BLOCK),
        Image.fromarray(BLOCK // 255 * (1 + np.arange(16, dtype=np.uint8) % 3)),  # ids, as VisA has them
        Image.fromarray(BLOCK > 0),
        Image.fromarray(np.dstack([BLOCK] * 3)),
        Image.merge("LA", (Image.fromarray(BLOCK), CLEAR)),
        Image.fromarray(BLOCK).resize((32, 24), Image.Resampling.NEAREST),
        Image.fromarray(BLOCK.astype(np.uint16)),
    ],
    ids=["L", "ids", "1", "RGB", "opaque", "twice the size", "16 bits"],
)
def test_masks_as_the_benchmarks_have_them_give_no_warning(tmp_path: Path, mask: Image.Image) -> None:
    assert list(check_masks([sample_with_mask(tmp_path, mask)])) == []


def test_a_transposed_mask_is_an_error(tmp_path: Path) -> None:
    sample = sample_with_mask(tmp_path, Image.fromarray(BLOCK.T.copy()))
    with pytest.raises(ValueError, match="has the sides of its image swapped") as problem:
        list(check_masks([sample]))
    assert sample.mask is not None
    one_line(problem, sample.mask)


# ------------------------------------------------------------------------------------------------ a class as a whole


def normal(path: Path) -> Sample:
    return Sample(path, False, "good")


@pytest.mark.parametrize(
    ("pixels", "suffix", "says"),
    [
        (NOISE[..., 0].astype(np.uint16) * 16, "png", r"in the files 4064 \(12 bits\), and the files have 16 bits"),
        (NOISE[..., 0].astype(np.int32), "tif", r"brighter than 1 of 255, in the files 254 \(8 bits\), .* 32 bits"),
    ],
    ids=["12 in 16", "8 in 32"],
)
def test_training_images_whose_bits_are_not_used_are_refused(
    tmp_path: Path, pixels: np.ndarray, suffix: str, says: str
) -> None:
    train = [normal(save(tmp_path / f"{i}.{suffix}", pixels)) for i in range(2)]
    with pytest.raises(ValueError, match=says) as problem:
        check_data(train, [])
    one_line(problem, tmp_path)
    bright = normal(save(tmp_path / f"2.{suffix}", np.full_like(pixels, 20_000)))
    assert check_data([*train, bright], []) == []


def test_dark_images_of_eight_bits_are_a_warning(tmp_path: Path) -> None:
    (line,) = check_data([normal(save(tmp_path / "0.png", NOISE // 10))], [])
    assert "brighter than 25 of 255: images this dark tell little" in line


def test_values_beyond_sixteen_bits_are_refused_instead_of_clipped(tmp_path: Path) -> None:
    path = save(tmp_path / "0.tif", NOISE[..., 0].astype(np.int32) * 1000)
    with pytest.raises(ValueError, match="holds values from 0 to 254000, wanted 0 to 65535") as problem:
        read_rgb(path)
    one_line(problem, path)


def test_test_images_of_another_depth_or_mode_are_a_warning(tmp_path: Path) -> None:
    train = [normal(save(tmp_path / "a/0.png"))]
    test = [
        normal(save(tmp_path / "b/0.png")),
        normal(save(tmp_path / "b/1.png", NOISE[..., 0].astype(np.uint16) * 257)),
    ]
    (line,) = check_data(train, test)
    assert line.startswith("1 of 2 images have a kind that no training image had (8-bit RGB), the first")


def test_very_narrow_images_and_many_pages_are_a_warning(tmp_path: Path) -> None:
    pages = tmp_path / "0.tif"
    Image.fromarray(NOISE).save(pages, save_all=True, append_images=[Image.fromarray(NOISE)])
    train = [normal(pages), normal(save(tmp_path / "1.png", np.full((1, 2000, 3), 99, np.uint8)))]
    narrow, many = check_data(train, [])
    assert "1 of 2 images have a side more than 10 times the other" in narrow and "2000 x 1" in narrow
    assert "hold several pages or frames" in many


def test_what_looks_like_an_image_and_is_left_out_is_one_line(tmp_path: Path) -> None:
    train = [normal(save(tmp_path / "train/good/0.png"))]
    test = [normal(save(tmp_path / "test/good/0.png"))]
    assert check_data(train, test) == []
    (tmp_path / "train/good/x.png").mkdir()
    (tmp_path / "test/cut").mkdir()  # a whole kind of defect in another format
    for path in ("train/good/notes.txt", "test/cut/1.GIF", "test/cut/2.heic"):
        (tmp_path / path).write_bytes(b"x")
    (line,) = check_data(train, test)
    assert (
        line == f"left out: {tmp_path / 'test/cut/1.GIF'} (a format that is not read, save as JPEG or PNG) and 2 more"
    )


def test_main_names_a_bad_test_image_before_the_first_epoch(
    tmp_path: Path, train_command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(tmp_path / "data")
    os.mkfifo(root / "bottle/test/good/009.png")
    assert train_command("--data_path", root, "--class", "bottle", "--epochs", 9, "--save_path", tmp_path) == 2
    printed = capsys.readouterr()
    assert (
        printed.err
        == f"error: {root / 'bottle/test/good/009.png'}: is a FIFO, wanted an image file: remove or rename it\n"
    )
    assert "epoch" not in printed.out


def test_mains_flag_limits_the_pixels(
    tmp_path: Path, train_command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--class", "bottle", "--epochs", 1, "--save_path", tmp_path, "--max_pixels", 4095)
    try:
        assert train_command("--data_path", make_mvtec(tmp_path / "data"), *flags) == 2
    finally:
        limit_pixels(image_io.MAX_PIXELS)
    assert "64 x 64 = 4096 pixels, more than --max_pixels 4095" in capsys.readouterr().err


@pytest.mark.slow
def test_main_prints_warnings_once_before_training(
    tmp_path: Path, train_command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(tmp_path / "data")
    for mask in (root / "bottle/ground_truth/disc").iterdir():
        Image.new("L", (64, 64)).save(mask)
    assert train_command("--data_path", root, "--seeds", 1, 2, "--epochs", 1, "--save_path", tmp_path) == 0
    _, warning, *others = capsys.readouterr().out.splitlines()
    assert warning.startswith("bottle: warning: ") and warning.endswith("(3 masks)")
    assert others[0].startswith("[1/2] bottle seed 1 ") and not any(": warning: " in line for line in others)


# ---------------------------------------------------------------------------------------------------------- names

BAD_NAMES = [
    "",
    ".",
    "..",
    "../../../victim",
    "/victim",
    "a/b",
    "a\\b",
    ".hidden",
    "a\nb",
    "a\0",
    "\udcff",
    "\x7f",
    "x" * 256,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_one_component_of_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="^the file: the class name") as problem:
        check_name(name, "the file")
    assert "\n" not in str(problem.value)
    for flags in ({"name": name}, {"classes": (name,)}):
        with pytest.raises(ValueError, match="must be a plain folder name|must not be empty"):
            Config(data_path=Path("D"), **flags)


@pytest.mark.parametrize("name", ["bottle", "01", "metal nut", "Flansch_ä", "a..b", "x" * 255, "-1", "ナット"])
def test_ordinary_names_stay_names(name: str) -> None:
    assert check_name(name, "") == name
    assert Config(data_path=Path("D"), name=name, classes=(name,)).name == name


def visa_split(root: Path, name: str = "candle", image: str = "candle/0.JPG", mask: str = "candle/m.png") -> Path:
    save(root / "candle/0.JPG")
    save(root / "candle/m.png", BLOCK)
    (root / "split_csv").mkdir()
    rows = f"object,split,label,image,mask\n{name},train,normal,{image},\n{name},test,anomaly,{image},{mask}\n"
    (root / "split_csv/1cls.csv").write_text(rows)
    return root


@pytest.mark.parametrize("name", ["../../../victim", "/tmp/victim", "..", ".x"])
def test_a_class_name_in_visas_split_file_is_checked(tmp_path: Path, name: str) -> None:
    root = visa_split(tmp_path, name)
    with pytest.raises(ValueError, match=r"1cls\.csv: the class name"):
        find_visa_classes(root)
    with pytest.raises(ValueError, match=r"1cls\.csv: the class name"):
        find_classes(BENCHMARKS["visa"], Source(root))


@pytest.mark.parametrize("written", ["../outside.png", "candle/../../outside.png", "{}/outside.png", "candle/link.png"])
@pytest.mark.parametrize("column", ["image", "mask"])
def test_paths_in_visas_split_file_stay_below_the_root(tmp_path: Path, written: str, column: str) -> None:
    outside = save(tmp_path / "outside.png")
    root = visa_split(tmp_path / "visa", **{column: written.format(tmp_path)})
    (root / "candle/link.png").symlink_to(outside)
    with pytest.raises(ValueError, match=r"1cls\.csv: the path .* leads out of") as problem:
        read_visa(Source(root), "candle", "test")
    assert "\n" not in str(problem.value)


def test_the_root_may_be_a_link_and_folders_may_hold_links(tmp_path: Path) -> None:
    visa_split(tmp_path / "visa")
    (tmp_path / "link").symlink_to(tmp_path / "visa")
    assert len(read_visa(Source(tmp_path / "link"), "candle", "test")) == 1
    root = make_mvtec(tmp_path / "mvtec")
    (root / "bottle/train/good/link.png").symlink_to(save(tmp_path / "elsewhere.png"))
    assert len(BENCHMARKS["mvtec"].read(Source(root), "bottle", "train")) == 9


def test_a_path_in_elpvs_labels_stays_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("../cell0001.png 0.0 mono\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 1: the path '\.\./cell0001\.png' leads out of"):
        read_elpv(Source(tmp_path), "mono", "train")


@pytest.mark.parametrize(
    "text", ["object,split,label,image,mask\ncandle,train\n", 'object,split,label,image,mask\n"' + "x" * 140_000]
)
def test_a_split_file_with_short_lines_or_no_csv_is_one_line(tmp_path: Path, text: str) -> None:
    root = visa_split(tmp_path)
    (root / "split_csv/1cls.csv").write_text(text)
    with pytest.raises(ValueError, match=r"1cls\.csv") as problem:
        read_visa(Source(root), "candle", "train")
    assert "\n" not in str(problem.value)


def test_a_path_is_printed_as_one_line_of_valid_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/a\xff\nb.png"))
    path.write_bytes(b"")
    assert printable(path) == f"{tmp_path}/a\\xff\\nb.png"
    with pytest.raises(ValueError) as problem:
        read_rgb(path)
    assert (
        str(problem.value).encode()
        == f"{tmp_path}/a\\xff\\nb.png: is empty (0 bytes): copy it again or remove it".encode()
    )
    assert path_below(tmp_path, path.name, "") == path
