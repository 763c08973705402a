"""What real copies of the benchmarks do to a loader: sixteen traps, and one test per layout on disk."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dataset import (
    BENCHMARKS,
    ImageSet,
    Sample,
    Source,
    find_classes,
    load_image,
    load_mask,
    locate,
    resize_mask,
)
from readers.folder import read_folder
from readers.image_io import open_image, read_mask, read_oriented_mask, read_rgb
from readers.mvtec import read_mvtec, read_normals
from readers.vad import read_vad
from readers.visa import read_visa
from scripts.validate_data import main as validate_data

WIDE = (16, 12)  # (width, height): not square, so that swapped sides show
BLOCK = np.zeros((12, 16), dtype=bool)
BLOCK[2:6, 3:8] = True


def draw_image(path: Path, size: tuple[int, int] = WIDE) -> Path:
    """Noise, another image for every path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def drawn_mask(path: Path, marked: np.ndarray = BLOCK, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(marked.astype(np.uint8) * value).save(path)
    return path


def small_class(folder: Path, defects: tuple[str, ...] = ("cut",), good: str = "good", suffix: str = ".png") -> Path:
    """A class in the MVTec layout: two normal images per split, two images with masks per defect."""
    for name in ("000", "001"):
        draw_image(folder / "train" / good / f"{name}{suffix}")
        draw_image(folder / "test" / good / f"{name}{suffix}")
        for defect in defects:
            draw_image(folder / "test" / defect / f"{name}{suffix}")
            drawn_mask(folder / "ground_truth" / defect / f"{name}_mask.png")
    return folder


def below(samples: list[Sample], folder: Path) -> list[str]:
    return [s.image.relative_to(folder).as_posix() for s in samples]


def masks_below(samples: list[Sample], folder: Path) -> dict[str, str]:
    return {
        s.image.relative_to(folder).as_posix(): s.mask.relative_to(folder).as_posix()
        for s in samples
        if s.mask is not None
    }


# ------------------------------------------------------------------------------------------------ the sixteen traps


def test_a_good_image_that_is_not_square_gets_a_mask_of_zeros(tmp_path: Path) -> None:
    """Trap 1: good images have no mask file; theirs is empty and has the size of every other."""
    small_class(tmp_path / "nut")
    images = ImageSet(read_mvtec(Source(tmp_path), "nut", "test"), 8)
    masks = [images.mask(i) for i in range(len(images))]
    assert all(mask is not None and mask.shape == (8, 8) and mask.dtype == bool for mask in masks)
    assert [bool(mask.any()) for mask in masks if mask is not None] == images.labels.tolist()
    assert sorted(images.labels) == [False, False, True, True]


def test_masks_are_paired_by_stem_so_that_a_stray_file_shifts_none(tmp_path: Path) -> None:
    """Trap 2: a mask without an image, or an image added in the middle, must not move the masks after it."""
    folder = small_class(tmp_path / "nut")
    for stray in ("000a_mask.png", "0_mask.png"):
        drawn_mask(folder / "ground_truth/cut" / stray)
    draw_image(folder / "test/cut/0005.png")
    drawn_mask(folder / "ground_truth/cut/0005.png")
    assert masks_below(read_mvtec(Source(tmp_path), "nut", "test"), folder) == {
        f"test/cut/{stem}.png": f"ground_truth/cut/{mask}"
        for stem, mask in (("000", "000_mask.png"), ("0005", "0005.png"), ("001", "001_mask.png"))
    }


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("000.png", "000_mask.png"),
        ("000.JPG", "000.png"),
        ("000.bmp", "000_mask.BMP"),
        ("IMG_7.png", "img_7_MASK.tif"),
        ("img_7.png", "IMG_7.PNG"),
    ],
)
def test_a_mask_may_have_another_case_and_extension(tmp_path: Path, image: str, mask: str) -> None:
    """Trap 2: `<stem>_mask.*` and `<stem>.*` in any case and extension."""
    folder = small_class(tmp_path / "nut", defects=())
    draw_image(folder / "test/cut" / image)
    drawn_mask(folder / "ground_truth/cut" / mask)
    assert masks_below(read_mvtec(Source(tmp_path), "nut", "test"), folder) == {
        f"test/cut/{image}": f"ground_truth/cut/{mask}"
    }


def test_of_two_masks_the_one_called_mask_wins(tmp_path: Path) -> None:
    """Trap 2: `<stem>_mask.*` comes before `<stem>.*`."""
    folder = small_class(tmp_path / "nut")
    drawn_mask(folder / "ground_truth/cut/000.png")
    assert masks_below(read_mvtec(Source(tmp_path), "nut", "test"), folder)["test/cut/000.png"].endswith("000_mask.png")


def test_a_missing_mask_is_one_error_line_and_no_masks_at_all_are_image_level_only(tmp_path: Path) -> None:
    """Trap 2: an anomalous test image without a mask is an error, unless the whole mask folder is away."""
    folder = small_class(tmp_path / "nut", defects=("cut", "dent"))
    (folder / "ground_truth/dent/001_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask for 1 of 2 images, the first .*dent.001\.png") as problem:
        read_mvtec(Source(tmp_path), "nut", "test")
    assert "\n" not in str(problem.value)
    (folder / "ground_truth").rename(folder / "away")
    images = ImageSet(read_mvtec(Source(tmp_path), "nut", "test"), 8)
    assert not images.has_masks
    assert [images.mask(i) is None for i in range(len(images))] == images.labels.tolist()


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".JPG", ".jpeg", ".bmp", ".BMP", ".tif", ".tiff"])
def test_extensions_are_compared_lower_cased(tmp_path: Path, suffix: str) -> None:
    """Trap 3: every extension that a benchmark uses, in either case."""
    folder = small_class(tmp_path / "nut", suffix=suffix)
    assert len(read_mvtec(Source(tmp_path), "nut", "train")) == 2
    test = read_mvtec(Source(tmp_path), "nut", "test")
    assert below(test, folder) == [f"test/{kind}/{name}{suffix}" for kind in ("cut", "good") for name in ("000", "001")]
    assert load_image(test[0].image, 8).shape == (3, 8, 8)


PALETTES = {
    "P": [0, 0, 0, 255, 255, 255],
    "P white first": [255, 255, 255, 0, 0, 0],
    "P ids": [0, 0, 0, 128, 0, 0],
    "P black": [0] * 6,  # no color tells anything: the index counts
}


def stored(mode: str) -> Image.Image:
    """BLOCK in a way of storing it that some reader has got wrong."""
    ids = BLOCK.astype(np.uint8)
    zeros, full = np.zeros_like(ids), np.full_like(ids, 255)
    if mode in PALETTES:  # the color counts, not the index
        indexed = Image.new("P", WIDE)
        indexed.putpalette(PALETTES[mode])
        indexed.putdata((1 - ids if mode == "P white first" else ids).ravel().tolist())
        return indexed
    arrays = {
        "ids": ids * (1 + np.arange(16, dtype=np.uint8) % 3),
        "L": ids * 255,
        "1": BLOCK,
        "LA": np.dstack([ids * 255, full]),
        "RGB": np.dstack([zeros, zeros, ids]),
        "RGBA": np.dstack([ids * 255, zeros, zeros, full]),
        "I;16": BLOCK.astype(np.uint16),
        "I": BLOCK.astype(np.int32) * 300,
    }
    return Image.fromarray(arrays[mode])


@pytest.mark.parametrize("mode", ["ids", "L", *PALETTES, "1", "LA", "RGB", "RGBA", "I;16", "I"])
def test_a_mask_is_whatever_is_not_zero_in_any_mode(tmp_path: Path, mode: str) -> None:
    """Trap 4: `> 0` on the stored numbers; palettes, three channels and 16 bits are not turned gray first."""
    path = tmp_path / ("mask.tif" if mode == "I" else "mask.png")
    stored(mode).save(path)
    assert open_image(path).mode == ("L" if mode == "ids" else mode.split()[0])
    np.testing.assert_array_equal(read_mask(path), BLOCK)


def test_a_gray_mask_is_cut_at_the_threshold_that_is_asked_for(tmp_path: Path) -> None:
    """Trap 4: masks that went through JPEG are gray everywhere (MTD); 127 parts them."""
    image, mask = draw_image(tmp_path / "000.png"), tmp_path / "000_mask.png"
    Image.fromarray(np.where(BLOCK, 180, 20).astype(np.uint8)).save(mask)
    sample = Sample(image, anomalous=True, defect="cut", mask=mask)
    assert read_mask(mask).all()
    np.testing.assert_array_equal(read_mask(mask, threshold=127), BLOCK)
    by_set = ImageSet([sample], 8, mask_threshold=127).mask(0)
    by_function = load_mask(sample, 8, threshold=127)
    assert by_set is not None and by_function is not None
    assert 0 < by_set.sum() < 64
    np.testing.assert_array_equal(by_set, by_function)


def test_a_defect_of_one_pixel_survives_resizing_and_is_reported(tmp_path: Path) -> None:
    """Trap 5: bilinear and one half would empty it, nearest may step over it."""
    marked = np.zeros((64, 64), dtype=bool)
    marked[37, 21] = True
    samples = [
        Sample(draw_image(tmp_path / "000.png", (64, 64)), True, "cut", drawn_mask(tmp_path / "0.png", marked)),
        Sample(draw_image(tmp_path / "001.png", (64, 64)), True, "cut", drawn_mask(tmp_path / "1.png", marked | True)),
    ]
    images = ImageSet(samples, 8)
    kept = images.mask(0)
    images.mask(1)
    assert kept is not None
    assert np.argwhere(kept).tolist() == [[4, 2]]
    assert images.vanished == (samples[0].image,)


def test_a_defect_below_a_255th_of_a_pixel_survives_as_well() -> None:
    """Trap 5: so thin that eight bits round its coverage to nothing."""
    marked = np.zeros((320, 320), dtype=bool)
    marked[100, 100] = True
    resized, vanished = resize_mask(marked, 8)
    assert vanished
    assert resized[2, 2] and resized.sum() == 1


def test_a_mask_that_survives_is_cut_at_one_half_and_not_reported() -> None:
    """Trap 5: what need not be rescued stays as published."""
    marked = np.zeros((16, 16), dtype=bool)
    marked[4:8, 4:12] = True
    resized, vanished = resize_mask(marked, 8)
    assert not vanished
    assert np.argwhere(resized).tolist() == [[y, x] for y in (2, 3) for x in (2, 3, 4, 5)]


def test_a_mask_of_another_size_than_its_image_covers_the_same_part(tmp_path: Path) -> None:
    """Trap 6: the image is 32x24, its mask 16x12."""
    image = draw_image(tmp_path / "000.png", (32, 24))
    small, large = drawn_mask(tmp_path / "s.png"), drawn_mask(tmp_path / "l.png", BLOCK.repeat(2, 0).repeat(2, 1))
    one, other = (load_mask(Sample(image, True, "cut", mask), 12) for mask in (small, large))
    assert one is not None and other is not None and one.any()
    np.testing.assert_array_equal(one, other)


def palette_image() -> Image.Image:
    indexed = Image.new("P", WIDE, 3)
    indexed.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 10, 200, 30])
    return indexed


@pytest.mark.parametrize(
    ("made", "rgb"),
    [
        (Image.new("L", WIDE, 100), (100, 100, 100)),
        (Image.new("LA", WIDE, (100, 255)), (100, 100, 100)),
        (Image.new("1", WIDE, 1), (255, 255, 255)),
        (palette_image(), (10, 200, 30)),
        (Image.new("RGB", WIDE, (10, 200, 30)), (10, 200, 30)),
        (Image.new("RGBA", WIDE, (10, 200, 30, 255)), (10, 200, 30)),
        (Image.new("RGBA", WIDE, (10, 200, 30, 0)), (0, 0, 0)),  # cut away: black, whatever is stored under it
        (Image.new("CMYK", WIDE, (0, 255, 255, 0)), (255, 0, 0)),
        (Image.fromarray(np.full((12, 16), 100 * 257, dtype=np.uint16)), (100, 100, 100)),
    ],
    ids=["L", "LA", "1", "P", "RGB", "RGBA", "transparent", "CMYK", "I;16"],
)
def test_images_of_any_mode_become_rgb_on_purpose(tmp_path: Path, made: Image.Image, rgb: tuple[int, ...]) -> None:
    """Trap 7: gray is repeated, palettes are looked up, 16 bits are scaled instead of clipped."""
    path = tmp_path / "000.tif"
    made.save(path)
    assert open_image(path).mode == made.mode
    loaded = load_image(path, 8)
    assert loaded.shape == (3, 8, 8) and loaded.dtype == np.uint8
    assert np.unique(loaded.reshape(3, -1), axis=1).ravel().tolist() == list(rgb)


def test_a_floating_point_image_is_refused_in_one_line(tmp_path: Path) -> None:
    """Trap 7: nothing tells the range of its numbers."""
    path = tmp_path / "000.tif"
    Image.fromarray(np.zeros((12, 16), np.float32)).save(path)
    with pytest.raises(ValueError, match=r"000\.tif: .*convert it to 8 or 16 bits"):
        load_image(path, 8)


def with_orientation(path: Path, orientation: int) -> Path:
    """The same noise under any tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_exif_tag_does_not_turn_the_image_nor_a_mask_that_fits(tmp_path: Path, orientation: int) -> None:
    """Trap 8: images are read as stored, and a mask of the stored shape is taken as drawn on that."""
    plain, tagged = (with_orientation(tmp_path / f"{n}.jpg", n) for n in (1, orientation))
    np.testing.assert_array_equal(load_image(tagged, 8), load_image(plain, 8))
    np.testing.assert_array_equal(read_oriented_mask(tagged, drawn_mask(tmp_path / "mask.png")), BLOCK)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_that_fits_only_the_exif_turned_image_is_turned_back(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    """Trap 8: it lies on the stored image again, with a warning."""
    image = with_orientation(tmp_path / f"000{suffix}", orientation)
    shown = Image.fromarray(BLOCK.astype(np.uint8) * 255)
    shown.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(shown)
    assert turned.size == (12, 16)
    turned.save(tmp_path / "000_mask.png")
    with pytest.warns(UserWarning, match="before or after its EXIF rotation"):
        mask = read_oriented_mask(image, tmp_path / "000_mask.png")
    np.testing.assert_array_equal(mask, BLOCK)


def test_what_systems_and_archivers_leave_behind_is_ignored(tmp_path: Path) -> None:
    """Trap 9: hidden files, Thumbs.db, __MACOSX, licence texts, at every level."""
    folder = small_class(tmp_path / "nut")
    classes = find_classes(BENCHMARKS["folder"], Source(tmp_path))
    before = [read_mvtec(Source(tmp_path), "nut", split) for split in ("train", "test")]
    places = [tmp_path, folder, *(p for p in folder.rglob("*") if p.is_dir())]
    for place in places:
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "license.txt", "._000.png"):
            (place / name).write_bytes(b"junk")
        (place / ".ipynb_checkpoints").mkdir()
        for deep in (".ipynb_checkpoints/000.png", "__MACOSX/._000.png"):
            (place / deep).parent.mkdir(exist_ok=True)
            (place / deep).write_bytes(b"junk")
    small_class(tmp_path / "__MACOSX" / "ghost")
    assert [read_mvtec(Source(tmp_path), "nut", split) for split in ("train", "test")] == before
    assert find_classes(BENCHMARKS["folder"], Source(tmp_path)) == classes == ("nut",)


@pytest.mark.parametrize("name", ["000 (copy)", "000 (1)", "with space", "dotted.name", "naïve"])
def test_odd_file_names_keep_their_masks(tmp_path: Path, name: str) -> None:
    """Trap 9: blanks, copies, dots within the stem."""
    folder = small_class(tmp_path / "nut", defects=("bent lead",))
    draw_image(folder / f"test/bent lead/{name}.png")
    drawn_mask(folder / f"ground_truth/bent lead/{name}_mask.png")
    test = read_mvtec(Source(tmp_path), "nut", "test")
    assert masks_below(test, folder)[f"test/bent lead/{name}.png"] == f"ground_truth/bent lead/{name}_mask.png"
    assert {s.defect for s in test} == {"good", "bent lead"}


@pytest.mark.parametrize("good", ["good", "ok", "OK", "Normal", "Good"])
def test_normal_folders_may_be_called_otherwise(tmp_path: Path, good: str) -> None:
    """Trap 9: such a folder is no defect, and its images need no mask."""
    small_class(tmp_path / "nut", good=good)
    assert len(read_mvtec(Source(tmp_path), "nut", "train")) == 2
    defects = [(s.defect, s.anomalous) for s in read_mvtec(Source(tmp_path), "nut", "test")]
    assert sorted(defects) == [("cut", True)] * 2 + [("good", False)] * 2


@pytest.mark.parametrize("benchmark", ["mvtec", "vad", "folder"])
def test_bad_training_images_are_never_learnt_as_normal(tmp_path: Path, benchmark: str) -> None:
    """Trap 10: an ImageFolder(train) takes train/bad as normal too."""
    folder = small_class(tmp_path / "vad")
    for extra in ("train/bad/000.png", "train/bad/good/000.png", "low_shot_train/10/bad/000.png"):
        draw_image(folder / extra)
    train = BENCHMARKS[benchmark].read(Source(tmp_path), "vad", "train")
    assert below(train, folder) == ["train/good/000.png", "train/good/001.png"]
    own = read_folder(Source(None, train_dir=folder / "train"), "vad", "train")
    assert below(own, folder) == ["train/good/000.png", "train/good/001.png"]


def own_train_dir(root: Path, split: str) -> list[Sample]:
    return read_folder(Source(None, train_dir=root / "nut/train"), "nut", split)


LAYOUTS: dict[str, Callable[[Path, str], list[Sample]]] = {
    **{
        name: lambda root, split, name=name: BENCHMARKS[name].read(Source(root), "nut", split)  # type: ignore[misc]
        for name in ("mvtec", "btad", "mpdd", "visa", "vad", "folder")
    },
    "read_normals": lambda root, split: read_normals(root / "nut" / split),
    "--train_dir": own_train_dir,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normal", ["good", "ok", "OK", "Normal"])
def test_of_the_folders_under_train_only_normal_ones_are_read(tmp_path: Path, layout: str, normal: str) -> None:
    """Trap 10, for every layout that has a folder train/: whatever else lies there is no normal image."""
    folder = small_class(tmp_path / "nut", good=normal)
    for other in ("bad", "anomaly", "ng", "not_good", "goods", "abnormal", "rejects", "test", "ground_truth"):
        draw_image(folder / "train" / other / "000.png")
        draw_image(folder / "train" / other / normal / "000.png")
    train = LAYOUTS[layout](tmp_path, "train")
    assert below(train, folder) == [f"train/{normal}/000.png", f"train/{normal}/001.png"]
    assert {(sample.anomalous, sample.defect) for sample in train} == {(False, "good")}


def test_equal_file_names_in_several_folders_keep_their_own_masks(tmp_path: Path) -> None:
    """Trap 11: 000.png is in every folder."""
    folder = small_class(tmp_path / "nut", defects=("cut", "dent", "scratch"))
    test = read_mvtec(Source(tmp_path), "nut", "test")
    assert len({s.image for s in test}) == len(test) == 8
    assert masks_below(test, folder) == {
        f"test/{defect}/{name}.png": f"ground_truth/{defect}/{name}_mask.png"
        for defect in ("cut", "dent", "scratch")
        for name in ("000", "001")
    }


@pytest.mark.parametrize("nest", ["", "mvtec_anomaly_detection", "download/mvtec_anomaly_detection"])
def test_a_nested_root_and_a_doubled_class_folder_are_found(tmp_path: Path, nest: str) -> None:
    """Trap 12: archives unpack into one folder more, or a class into itself."""
    small_class(tmp_path / nest / "bottle")
    screw = small_class(tmp_path / nest / "screw/screw")
    benchmark = BENCHMARKS["mvtec"]
    assert find_classes(benchmark, locate(benchmark, Source(tmp_path))) == ("bottle", "screw")
    assert below(benchmark.read(Source(tmp_path), "screw", "train"), screw) == [
        "train/good/000.png",
        "train/good/001.png",
    ]
    assert len(masks_below(benchmark.read(Source(tmp_path), "screw", "test"), screw)) == 2


def test_the_order_in_which_a_disk_lists_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 13: classes, folders, images and masks come sorted."""
    for name in ("nut", "cable", "pill"):
        small_class(tmp_path / name, defects=("dent", "cut"))
    source, scandir = Source(tmp_path), os.scandir

    @contextlib.contextmanager
    def backwards(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    with monkeypatch.context() as patch:
        patch.setattr("readers.base.os.scandir", backwards)
        assert find_classes(BENCHMARKS["folder"], source) == ("cable", "nut", "pill")
        test = read_mvtec(source, "nut", "test")
    kinds = ("cut", "dent", "good")
    assert below(test, tmp_path / "nut") == [f"test/{kind}/{name}.png" for kind in kinds for name in ("000", "001")]
    assert test == read_mvtec(source, "nut", "test")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda whole: whole[: len(whole) // 2], "cannot be decoded"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (lambda whole: b"", "is empty"),
        (lambda whole: b"<html>404</html>", "is not an image"),
    ],
    ids=["truncated", "lfs", "zero", "html"],
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_damaged_file_is_one_line_that_names_it(
    tmp_path: Path, suffix: str, spoil: Callable[[bytes], bytes], says: str
) -> None:
    """Trap 14: truncated files and Git-LFS pointers."""
    path = draw_image(tmp_path / f"000{suffix}")
    path.write_bytes(spoil(path.read_bytes()))
    for read in (read_rgb, read_mask, lambda p: load_image(p, 8)):
        with pytest.raises(ValueError, match=says) as problem:
            read(path)
        assert str(problem.value).startswith(f"{path}: ")
        assert "\n" not in str(problem.value)


def test_an_all_black_mask_of_a_bad_image_stays_empty_and_the_image_stays_bad(tmp_path: Path) -> None:
    """Trap 15: the label comes from the folder; nothing is rescued where nothing was drawn."""
    mask = drawn_mask(tmp_path / "000_mask.png", np.zeros_like(BLOCK))
    images = ImageSet([Sample(draw_image(tmp_path / "000.png"), True, "cut", mask)], 8)
    loaded = images.mask(0)
    assert loaded is not None and not loaded.any()
    assert images.labels.tolist() == [True]
    assert images.vanished == ()
    assert images.has_masks


def test_a_mask_file_of_no_bytes_is_an_error_not_an_empty_mask(tmp_path: Path) -> None:
    """Trap 15: an empty file is a damaged one."""
    (tmp_path / "000_mask.png").write_bytes(b"")
    sample = Sample(draw_image(tmp_path / "000.png"), True, "cut", tmp_path / "000_mask.png")
    with pytest.raises(ValueError, match=r"000_mask\.png: is empty \(0 bytes\)"):
        load_mask(sample, 8)


def test_near_duplicates_between_train_and_test_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trap 16: a test image that is a training image but for a gray level here and there."""
    folder = small_class(tmp_path / "nut")
    close = np.asarray(Image.open(folder / "train/good/001.png")).copy()
    close[3, 3] ^= 1
    Image.fromarray(close).save(folder / "test/good/002.png")
    assert validate_data(["--dataset", "folder", "--data_path", str(tmp_path), "--workers", "0"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "near-duplicates" in line)
    assert line.startswith(
        f"warning: nut: {folder / 'test/good/002.png'}: nearly equals {folder / 'train/good/001.png'}"
    )


# ------------------------------------------------------------------------------------------------------ the layouts


def test_mvtec_layout(tmp_path: Path) -> None:
    folder = small_class(tmp_path / "bottle", defects=("broken_large", "contamination"))
    source = Source(tmp_path)
    assert read_mvtec(source, "bottle", "train") == [
        Sample(folder / f"train/good/{n}.png", False, "good") for n in ("000", "001")
    ]
    kinds = [s.defect for s in read_mvtec(source, "bottle", "test")]
    assert kinds == ["broken_large"] * 2 + ["contamination"] * 2 + ["good"] * 2
    with pytest.raises(FileNotFoundError, match="no training images under .*cable.*found bottle"):
        read_mvtec(source, "cable", "train")


def visa_raw(root: Path) -> Path:
    """The raw release: names start again in Normal and Anomaly, masks hold ids, a file tells the split."""
    rows = []
    for name in ("capsules", "candle"):
        for number, split in ((0, "train"), (1, "train"), (2, "test")):
            rows.append((name, split, "normal", f"{name}/Data/Images/Normal/{number:03}.JPG", ""))
        for number in (0, 2):
            mask = f"{name}/Data/Masks/Anomaly/{number:03}.png"
            rows.append((name, "test", "anomaly", f"{name}/Data/Images/Anomaly/{number:03}.JPG", mask))
            drawn_mask(root / mask, value=2)
    for row in rows:
        draw_image(root / row[3])
    (root / "split_csv").mkdir()
    with (root / "split_csv/1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])
    return root


@pytest.mark.parametrize("nest", ["", "VisA_20220922"])
def test_visa_raw_layout_with_equal_stems_in_normal_and_anomaly(tmp_path: Path, nest: str) -> None:
    root = visa_raw(tmp_path / nest)
    source = Source(tmp_path)
    assert find_classes(BENCHMARKS["visa"], source) == ("candle", "capsules")
    train = read_visa(source, "candle", "train")
    assert below(train, root / "candle/Data/Images") == ["Normal/000.JPG", "Normal/001.JPG"]
    test = read_visa(source, "candle", "test")
    assert [(s.image.relative_to(root / "candle/Data/Images").as_posix(), s.defect) for s in test] == [
        ("Normal/002.JPG", "good"),
        ("Anomaly/000.JPG", "anomaly"),
        ("Anomaly/002.JPG", "anomaly"),
    ]
    assert test[0].mask is None
    assert test[2].mask == root / "candle/Data/Masks/Anomaly/002.png"
    np.testing.assert_array_equal(read_oriented_mask(test[2].image, test[2].mask), BLOCK)


def test_visa_raw_says_what_is_missing_or_wrong_in_one_line(tmp_path: Path) -> None:
    root = visa_raw(tmp_path)
    (root / "candle/Data/Masks/Anomaly/002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 files of .*1cls\.csv are missing, the first .*Anomaly.002\.png"):
        read_visa(Source(root), "candle", "test")
    split_file = root / "split_csv/1cls.csv"
    text = split_file.read_text()
    split_file.write_text(text.replace("test,anomaly", "train,anomaly"))
    with pytest.raises(ValueError, match="not the one-class split file"):
        read_visa(Source(root), "candle", "train")
    split_file.write_text(text.replace("label", "kind", 1))
    with pytest.raises(ValueError, match="wanted the columns object, split, label"):
        read_visa(Source(root), "candle", "train")


@pytest.mark.parametrize(
    ("level", "good", "bad", "channels"),
    [("1cls", "good", "bad", 1), ("visa_pytorch", "good", "bad", 3), ("", "good", "bad", 3), ("", "ok", "ko", 1)],
    ids=["1cls", "visa_pytorch", "bare", "ok-ko"],
)
def test_visa_prepared_layouts(tmp_path: Path, level: str, good: str, bad: str, channels: int) -> None:
    """Masks without `_mask`, of another extension than their image, sometimes of three channels."""
    folder = tmp_path / level / "candle"
    for split in ("train", "test"):
        draw_image(folder / split / good / "000.JPG")
    draw_image(folder / "test" / bad / "000.JPG")
    mask = folder / "ground_truth" / bad / "000.png"
    mask.parent.mkdir(parents=True)
    gray = BLOCK.astype(np.uint8) * 255
    Image.fromarray(gray if channels == 1 else np.dstack([gray] * 3)).save(mask)
    source = Source(tmp_path)
    assert find_classes(BENCHMARKS["visa"], source) == ("candle",)
    assert below(read_visa(source, "candle", "train"), folder) == [f"train/{good}/000.JPG"]
    test = read_visa(source, "candle", "test")
    (anomalous,) = (s for s in test if s.anomalous)
    assert len(test) == 2 and anomalous.mask == mask
    np.testing.assert_array_equal(read_oriented_mask(anomalous.image, mask), BLOCK)


def test_a_prepared_copy_beside_the_raw_release_is_preferred(tmp_path: Path) -> None:
    root = visa_raw(tmp_path)
    small_class(root / "1cls/candle", defects=("bad",), suffix=".JPG")
    assert below(read_visa(Source(root), "candle", "train"), root)[0] == "1cls/candle/train/good/000.JPG"
    assert below(read_visa(Source(root), "capsules", "train"), root)[0] == "capsules/Data/Images/Normal/000.JPG"


@pytest.mark.parametrize("nest", ["", "vad", "unpacked/vad"])
def test_vad_scores_unseen_defects_and_has_no_masks(tmp_path: Path, nest: str) -> None:
    folder = tmp_path / nest
    for name in ("train/good", "train/bad", "test/good", "test/bad", "test/bad_unseen_defects"):
        draw_image(folder / name / "000.png")
    source = Source(tmp_path)
    assert find_classes(BENCHMARKS["vad"], source) == ("vad",)
    assert below(read_vad(source, "vad", "train"), folder) == ["train/good/000.png"]
    test = read_vad(source, "vad", "test")
    assert [(s.defect, s.anomalous, s.mask) for s in test] == [
        ("bad", True, None),
        ("bad_unseen_defects", True, None),
        ("good", False, None),
    ]


def test_btad_layout_with_bmp_masks(tmp_path: Path) -> None:
    """01: bmp images and png masks; 03: bmp and bmp; the mask has the image's stem, normal images lie in ok."""
    root = tmp_path / "BTech_Dataset_transformed"
    for name, image, mask in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        for place in ("train/ok", "test/ok", "test/ko"):
            draw_image(root / name / place / f"0001.{image}")
        drawn_mask(root / name / f"ground_truth/ko/0001.{mask}")
    benchmark, source = BENCHMARKS["btad"], Source(tmp_path)
    assert find_classes(benchmark, source) == ("01", "02", "03")
    for name, mask in (("01", "png"), ("02", "png"), ("03", "bmp")):
        assert [s.defect for s in benchmark.read(source, name, "train")] == ["good"]
        bad, good = benchmark.read(source, name, "test")
        assert (bad.defect, good.defect, good.anomalous) == ("ko", "good", False)
        assert bad.mask == root / name / f"ground_truth/ko/0001.{mask}"
        np.testing.assert_array_equal(read_oriented_mask(bad.image, bad.mask), BLOCK)


def test_mpdd_classes(tmp_path: Path) -> None:
    benchmark, source = BENCHMARKS["mpdd"], Source(tmp_path)
    assert benchmark.classes == (
        "bracket_black",
        "bracket_brown",
        "bracket_white",
        "connector",
        "metal_plate",
        "tubes",
    )
    for name in ("tubes", "connector"):
        small_class(tmp_path / "MPDD" / name)
    assert find_classes(benchmark, source) == ("connector", "tubes")
    assert len(benchmark.read(source, "tubes", "test")) == 4


def elpv(class_name: str, split: str) -> list[Sample]:
    benchmark = BENCHMARKS["elpv"]
    return benchmark.read(locate(benchmark, Source(None)), class_name, split)


def blocks(samples: list[Sample]) -> set[int]:
    """Numbers of the blocks of 30 neighboring cells, from the file names."""
    return {(int(s.image.stem.removeprefix("cell")) - 1) // 30 for s in samples}


@pytest.mark.parametrize("class_name", ["mono", "poly"])
def test_elpv_blocks_of_train_and_test_are_disjoint(class_name: str) -> None:
    train, test = (elpv(class_name, split) for split in ("train", "test"))
    assert {block % 3 for block in blocks(train)} == {0, 1}
    assert {block % 3 for block in blocks(test)} == {2}
    assert not any(s.anomalous for s in train)
    assert {s.anomalous for s in test} == {True, False}
    assert all(s.mask is None for s in test)


def test_elpv_leaves_out_what_is_unsure() -> None:
    samples = [s for name in ("mono", "poly") for split in ("train", "test") for s in elpv(name, split)]
    labels = {}
    for line in (samples[0].image.parent.parent / "labels.csv").read_text().splitlines():
        path, probability, kind = line.split()
        labels[Path(path).name] = (float(probability), kind)
    assert len(labels) == 2624
    assert {labels[s.image.name][0] for s in samples} == {0.0, 1.0}
    assert all(s.anomalous == (labels[s.image.name][0] == 1.0) for s in samples)
    # in test blocks every sure cell is used, in train blocks every normal one
    wanted = {
        name
        for name, (probability, _) in labels.items()
        if probability == 0 or (probability == 1 and (int(name[4:8]) - 1) // 30 % 3 == 2)
    }
    assert sorted(s.image.name for s in samples) == sorted(wanted)
    assert load_image(samples[0].image, 16).shape == (3, 16, 16)


def test_elpv_beside_the_package_and_its_errors(tmp_path: Path) -> None:
    read = BENCHMARKS["elpv"].read
    with pytest.raises(FileNotFoundError, match=r"no labels\.csv under"):
        read(Source(tmp_path), "mono", "train")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/labels.csv").write_text("images/cell0001.png 0.0 mono\n\nimages/cell0061.png 1.0 mono\n")
    assert below(read(Source(tmp_path), "mono", "train"), tmp_path) == ["data/images/cell0001.png"]
    assert below(read(Source(tmp_path), "mono", "test"), tmp_path) == ["data/images/cell0061.png"]
    with pytest.raises(ValueError, match="unknown class 'poly' of elpv: choose from mono"):
        read(Source(tmp_path), "poly", "train")
    (tmp_path / "data/labels.csv").write_text("images/cell0001.png 0.0\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 1: wanted"):
        read(Source(tmp_path), "mono", "train")


def test_folder_reads_own_folders(tmp_path: Path) -> None:
    train, test, masks = tmp_path / "pump/train", tmp_path / "taken", tmp_path / "drawn"
    for path in (train / "a.png", train / "b.JPG", train / "rejects/c.png", test / "ok/d.png", test / "crack/e.png"):
        draw_image(path)
    drawn_mask(masks / "crack/e_mask.png")
    benchmark = BENCHMARKS["folder"]
    source = locate(benchmark, Source(None, train, test, masks))
    assert find_classes(benchmark, source) == ("pump",)
    assert below(read_folder(source, "pump", "train"), train) == ["a.png", "b.JPG"]
    assert read_folder(source, "pump", "test") == [
        Sample(test / "crack/e.png", True, "crack", masks / "crack/e_mask.png", upright=True),
        Sample(test / "ok/d.png", False, "good", upright=True),
    ]
    without_masks = read_folder(Source(None, train, test), "pump", "test")
    assert [s.mask for s in without_masks] == [None, None]
    assert read_folder(Source(None, train), "pump", "test") == []


def test_folder_errors_name_the_flag(tmp_path: Path) -> None:
    train, test = tmp_path / "train", tmp_path / "test"
    benchmark = BENCHMARKS["folder"]
    draw_image(train / "rejects/c.png")
    draw_image(test / "loose.png")
    with pytest.raises(FileNotFoundError, match="no training images under --train_dir"):
        read_folder(Source(None, train), "pump", "train")
    with pytest.raises(FileNotFoundError, match=r"under --test_dir .*\(1 lie directly inside\)"):
        read_folder(Source(None, train, test), "pump", "test")
    with pytest.raises(FileNotFoundError, match="--mask_dir .*no such folder"):
        read_folder(Source(None, train, test, tmp_path / "none"), "pump", "test")
    with pytest.raises(FileNotFoundError, match="--train_dir .*no such folder"):
        read_folder(Source(None, tmp_path / "none"), "pump", "train")
    for source, says in (
        (Source(None), "needs --data_path.*or --train_dir"),
        (Source(None, None, test), "--test_dir and --bad go with --train_dir"),
        (Source(tmp_path, None, None, test), "--mask_dir goes with --test_dir"),
    ):
        with pytest.raises(ValueError, match=says):
            locate(benchmark, source)
    with pytest.raises(ValueError, match="are for --dataset folder"):
        locate(BENCHMARKS["mvtec"], Source(tmp_path, train))
