"""Overlays: the map is visible exactly where scores rise above the scale's lower end, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset import Sample
from report.overlays import BANNER, DARK, HEIGHT, WIDTHS, OverlayWriter, overlay, overlay_names

SCALE = (1.0, 3.0)


def random_image(width: int = HEIGHT) -> np.ndarray:
    """As high as a panel: nothing is resized."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, width, 3), dtype=np.uint8)


def gray_of(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def panels(image: np.ndarray, anomaly_map: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The image and the heat panel, without the banner below them."""
    drawn = overlay(image, anomaly_map, SCALE, mask, "caption")
    assert drawn.shape == (HEIGHT + BANNER, 2 * image.shape[1], 3) and drawn.dtype == np.uint8
    left, right = np.split(drawn[:HEIGHT], 2, axis=1)
    return left, right


def test_below_the_scale_the_heat_panel_is_the_gray_image_and_the_other_the_image() -> None:
    image = random_image()
    for value in (SCALE[0], 0.0, -5.0):
        left, right = panels(image, np.full((HEIGHT, HEIGHT), value))
        assert np.array_equal(left, image)
        assert np.array_equal(right, gray_of(image))


def test_above_the_scale_the_top_color_covers_the_gray_image_to_65_percent() -> None:
    image = random_image()
    (top,) = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_TURBO)[0, :, ::-1]
    for value in (SCALE[1], 99.0):
        left, right = panels(image, np.full((HEIGHT, HEIGHT), value))
        assert np.array_equal(left, image)
        np.testing.assert_allclose(right, 0.35 * gray_of(image) + 0.65 * top, atol=0.51)


def test_the_higher_a_score_the_less_of_the_image_is_left() -> None:
    """Two images under the same map differ by what their pixels weigh."""
    ramp = np.tile(np.linspace(*SCALE, HEIGHT), (HEIGHT, 1))
    dark, bright = (panels(np.full((HEIGHT, HEIGHT, 3), value, np.uint8), ramp)[1] for value in (0, 200))
    weights = (bright.astype(float) - dark)[0, :, 0] / 200
    assert weights[0] == 1 and weights[-1] == 0.35
    assert (np.diff(weights) <= 1 / 200).all(), "up to rounding"
    expected = 1 - np.clip(2 * np.linspace(0, 1, HEIGHT), 0, 0.65)
    np.testing.assert_allclose(weights, expected, atol=1.01 / 200)


def test_a_map_is_stretched_over_an_image_of_any_shape() -> None:
    image = random_image(width=400)
    anomaly_map = np.zeros((64, 64))
    anomaly_map[:, 40:] = 9.0  # the right part, three eighths
    left, right = panels(image, anomaly_map)
    assert np.array_equal(left, image)
    changed = (right != gray_of(image)).any(axis=2).mean(axis=0)
    assert (changed[:240] == 0).all() and (changed[260:] > 0.9).all()


def test_the_masks_outline_is_white_on_both_panels_and_its_inside_is_left_alone() -> None:
    image = np.full((HEIGHT, HEIGHT, 3), 120, np.uint8)
    mask = np.zeros((HEIGHT, HEIGHT), bool)
    mask[100:150, 80:180] = True
    for panel in panels(image, np.zeros((HEIGHT, HEIGHT)), mask):
        assert (panel[100, 82:178] > 200).all() and (panel[102:148, 80] > 200).all()
        assert (panel[110:140, 90:170] == 120).all() and (panel[:90] == 120).all()
    for panel in panels(image, np.zeros((HEIGHT, HEIGHT)), np.zeros_like(mask)):
        assert (panel == 120).all(), "no defect, no outline"


def test_each_image_gets_its_own_map_mask_and_name(tmp_path: Path) -> None:
    samples = []
    for number, defect in enumerate(("good", "cut", "cut")):
        path = tmp_path / f"{number}/000.png"
        path.parent.mkdir()
        Image.new("RGB", (HEIGHT, HEIGHT), (50 * number, 0, 100)).save(path)
        samples.append(Sample(path, defect != "good", defect))
    writer = OverlayWriter(tmp_path / "overlays", samples, SCALE)
    maps = np.stack([np.full((64, 64), value) for value in (0.0, 2.0, 9.0)])
    writer.write(0, maps[:2], maps[:2].max(axis=(1, 2)))
    writer.write(2, maps[2:], maps[2:].max(axis=(1, 2)))
    assert sorted(p.name for p in (tmp_path / "overlays").iterdir()) == ["cut_000.png", "cut_000_2.png", "good_000.png"]
    for name, number in (("good_000", 0), ("cut_000", 1), ("cut_000_2", 2)):
        drawn = np.asarray(Image.open(tmp_path / f"overlays/{name}.png"))
        image = np.asarray(Image.open(samples[number].image))
        caption = f"{name}   score {maps[number].max():.3f}"
        assert np.array_equal(drawn, overlay(image, maps[number], SCALE, None, caption))
        assert (drawn[HEIGHT:] != DARK).any(), "the caption is written"


@pytest.mark.parametrize(("height", "width"), [(1, 2000), (2000, 1), (1, 60_000), (64, 1000)])
def test_an_image_of_any_aspect_makes_a_panel_of_bounded_size(height: int, width: int) -> None:
    image = np.full((height, width, 3), 200, np.uint8)
    drawn = overlay(image, np.zeros((64, 64)), SCALE, np.ones((64, 64), bool), "caption")
    assert drawn.shape[0] == HEIGHT + BANNER and 2 * WIDTHS[0] <= drawn.shape[1] <= 2 * WIDTHS[1]
    left = overlay(image, np.zeros((64, 64)), SCALE, None, "")[:HEIGHT, : drawn.shape[1] // 2]
    shown = (left == 200).all(axis=2)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "the whole image, and nothing else"
    fitted = len(columns) / len(rows)
    assert fitted == pytest.approx(width / height, rel=0.05) or 1 in (len(columns), len(rows))
    assert (left[~shown] == DARK).all()


def test_the_widest_and_the_narrowest_panel_have_no_bars() -> None:
    for width in WIDTHS:
        left, _ = panels(random_image(width), np.zeros((64, 64)))
        assert np.array_equal(left, random_image(width))


def names_of(*files: str, defect: str = "good") -> list[str]:
    return overlay_names([Sample(Path(file), False, defect) for file in files])


def test_no_two_overlays_have_one_name() -> None:
    assert names_of("x.png", "x.jpg", "x_2.png") == ["good_x", "good_x_3", "good_x_2"]
    assert names_of("x_2.png", "x.jpg", "x.png", "x.bmp") == ["good_x_2", "good_x", "good_x_3", "good_x_4"]
    assert names_of("x.png", "x_2.jpg", "x_2.png", "x.jpg") == ["good_x", "good_x_2", "good_x_2_2", "good_x_3"]
    assert names_of("x.png", "x.bmp", "X_2.png") == ["good_x", "good_x_3", "good_X_2"], "disks may ignore case"
    names = names_of("X.png", "x.png", "é" * 120 + "1.png", "é" * 120 + "2.png")
    assert len({name.casefold() for name in names}) == 4
    assert all(len(f"{name}.png".encode()) < 255 for name in names)
    assert names_of("x.png", defect="../up") == [".._up_x"]


def test_a_name_that_is_not_utf_8_gets_an_overlay_and_strays_are_swept(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (64, 64)).save(path)
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays/.a.png.4194305.partial").touch()  # no process has such a number
    writer = OverlayWriter(tmp_path / "overlays", [Sample(path, False, "good")], SCALE)
    writer.write(0, np.zeros((1, 64, 64)), np.zeros(1))
    assert [os.fsencode(p.name) for p in (tmp_path / "overlays").iterdir()] == [b"good_caf\xe9.png"]
