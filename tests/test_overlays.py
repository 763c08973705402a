"""Overlays: heat where scores rise above the scale, a contour where they cross the threshold, the mask, the verdict."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset import Sample
from report.drawing import DARK, contours, one_line, shorten, text_width
from report.overlays import (
    ALARM,
    BAR,
    CAPTION,
    HEIGHTS,
    WIDTH,
    OverlayWriter,
    caption,
    color_bar,
    overlay,
    overlay_names,
)
from report.panels import COLORS, GAP, MASK, PURPLE, WHITE, YELLOW, ScoredImage
from scoring.predictions import Rule
from scoring.thresholds import Threshold

SCALE = (1.0, 3.0)
THRESHOLD = Rule.of(Threshold(2.0, 2.0, "max", (1.0, 1.5, 2.0), 1, "holdout", "0" * 64))
SIZE = (WIDTH, WIDTH)  # of a square image's panel


def random_image(height: int = WIDTH) -> np.ndarray:
    """As wide as a panel: nothing is resized."""
    return np.random.default_rng(0).integers(0, 256, (height, WIDTH, 3), dtype=np.uint8)


def gray_of(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def panels(scored: ScoredImage, threshold: Rule | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The image and the heat panel, without what is beside and below them."""
    drawn = overlay(scored, SCALE, threshold)
    assert drawn.shape[1:] == (2 * WIDTH + GAP + BAR, 3) and drawn.dtype == np.uint8
    above = drawn[:-CAPTION]
    return above[:, :WIDTH], above[:, WIDTH + GAP : 2 * WIDTH + GAP]


def like(pixels: np.ndarray, color: tuple[int, int, int], tolerance: int = 60) -> np.ndarray:
    """(h, w), True where a pixel has nearly this color."""
    return np.all(np.abs(pixels.astype(int) - color) <= tolerance, axis=-1)


def bump(row: int, column: int, size: int = WIDTH) -> np.ndarray:
    """A map that is 4 at a pixel and falls by 1 each 10 pixels: above 2.0 within 20 pixels of it."""
    rows, columns = np.mgrid[:size, :size]
    return 4 - np.hypot(rows - row, columns - column) / 10


def square_mask(size: int = WIDTH) -> np.ndarray:
    """True on rows 100 to 149 and columns 80 to 179 of WIDTH, or what is of them on a smaller grid."""
    mask = np.zeros((size, size), bool)
    rows, columns = (slice(a * size // WIDTH, b * size // WIDTH) for a, b in ((100, 150), (80, 180)))
    mask[rows, columns] = True
    return mask


# --- the heat ---


def test_below_the_scale_the_heat_panel_is_the_gray_image_and_the_other_the_image() -> None:
    image = random_image()
    for value in (SCALE[0], 0.0, -5.0):
        left, right = panels(ScoredImage(image, np.full(SIZE, value), 0.0))
        assert np.array_equal(left, image)
        assert np.array_equal(right, gray_of(image))


def test_above_the_scale_the_top_color_covers_the_gray_image_to_65_percent() -> None:
    image = random_image()
    (top,) = cv2.applyColorMap(np.full((1, 1), YELLOW, np.uint8), COLORS)[0, :, ::-1]
    for value in (SCALE[1], 99.0):
        left, right = panels(ScoredImage(image, np.full(SIZE, value), 0.0))
        assert np.array_equal(left, image)
        np.testing.assert_allclose(right, 0.35 * gray_of(image) + 0.65 * top, atol=0.51)


def test_the_higher_a_score_the_less_of_the_image_is_left() -> None:
    """Two images under the same map differ by what their pixels weigh."""
    ramp = np.tile(np.linspace(*SCALE, WIDTH), (WIDTH, 1))
    dark, bright = (
        panels(ScoredImage(np.full((*SIZE, 3), value, np.uint8), ramp, 0.0))[1].astype(float) for value in (0, 200)
    )
    weights = (bright - dark)[0, :, 0] / 200
    assert weights[0] == 1 and weights[-1] == 0.35
    assert (np.diff(weights) <= 1 / 200).all(), "up to rounding"
    expected = 1 - np.clip(2 * np.linspace(0, 1, WIDTH), 0, 0.65)
    np.testing.assert_allclose(weights, expected, atol=1.01 / 200)


def test_a_map_is_stretched_over_an_image_of_any_shape() -> None:
    image = random_image(height=200)
    anomaly_map = np.zeros((64, 64))
    anomaly_map[:, 40:] = 9.0  # the right part, three eighths
    left, right = panels(ScoredImage(image, anomaly_map, 9.0))
    assert np.array_equal(left, image)
    changed = (right != gray_of(image)).any(axis=2).mean(axis=0)
    border = WIDTH * 5 // 8
    assert (changed[: border - 8] == 0).all() and (changed[border + 8 :] > 0.9).all()


def test_the_color_map_grows_lighter_so_that_every_eye_sees_its_order() -> None:
    levels = np.arange(PURPLE, YELLOW + 1, dtype=np.uint8)[:, None]
    lightness = cv2.cvtColor(cv2.applyColorMap(levels, COLORS), cv2.COLOR_BGR2LAB)[:, 0, 0].astype(int)
    assert (np.diff(lightness) >= -1).all() and lightness[-1] - lightness[0] > 100


# --- the contour of what lies above the pixel threshold ---


def test_a_contour_lies_between_the_pixels_where_the_map_crosses_the_threshold() -> None:
    (circle,) = contours(bump(90, 120), 2.0)
    np.testing.assert_allclose(np.hypot(circle[:, 0] - 90, circle[:, 1] - 120), 20, atol=0.05)
    assert not contours(bump(90, 120), 4.5), "nothing lies above"
    assert not contours(np.full((8, 8), 2.0), 2.0), "above, not at, the threshold"


def test_at_the_border_a_contour_follows_the_border() -> None:
    (frame,) = contours(np.full((8, 8), 5.0), 2.0)
    np.testing.assert_allclose([frame.min(axis=0), frame.max(axis=0)], [(0, 0), (7, 7)], atol=0.01)
    (half,) = contours(np.tile(np.where(np.arange(8) < 4, 0.0, 4.0), (8, 1)), 2.0)
    assert half[:, 1].min() == 3.5 and half[:, 0].max() == 7 and half[:, 1].max() == 7


@pytest.mark.parametrize("brightness", [0, 128, 255])
@pytest.mark.parametrize("size", [WIDTH, 64])
def test_the_contour_is_white_with_a_dark_edge_on_dark_and_bright_images(brightness: int, size: int) -> None:
    image, scale = np.full((*SIZE, 3), brightness, np.uint8), WIDTH / size
    row, column = round(140 / scale), round(120 / scale)
    rows, columns = np.mgrid[:WIDTH, :WIDTH]
    distance = np.hypot(rows - (row + 0.5) * scale + 0.5, columns - (column + 0.5) * scale + 0.5)
    off_line = np.abs(distance - 20 * scale)
    left, right = panels(ScoredImage(image, bump(row, column, size), 1.0), THRESHOLD)
    changed = (left != brightness).any(axis=2)
    assert changed[off_line < 1].mean() > 0.9 and not changed[off_line > 3.5].any(), "it lies where the map crosses it"
    for panel in (left, right):
        light = panel.mean(axis=2)
        assert np.median(light[off_line < 0.5]) > 180, "a white line"
        if brightness == 255:
            assert np.median(light[np.abs(off_line - 1.5) < 0.25]) < 100, "its dark edge"


def test_without_a_threshold_there_is_no_contour() -> None:
    image = random_image()
    left, _ = panels(ScoredImage(image, bump(140, 120), 9.0))
    assert np.array_equal(left, image)


# --- the mask ---


def test_the_masks_outline_lies_on_its_edge_and_its_inside_is_left_alone() -> None:
    image = np.full((*SIZE, 3), 120, np.uint8)
    for panel in panels(ScoredImage(image, np.zeros(SIZE), 0.0, square_mask())):
        changed = (panel != 120).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert 96 <= rows[0] <= 99 and 150 <= rows[-1] <= 153 and 76 <= columns[0] <= 79 and 180 <= columns[-1] <= 183
        assert not changed[104:146, 84:176].any(), "the inside"
        assert (
            like(panel[98:102, 90:170], MASK).any(axis=0).all() and like(panel[110:140, 78:82], MASK).any(axis=1).all()
        )
    for panel in panels(ScoredImage(image, np.zeros(SIZE), 0.0, np.zeros(SIZE, bool))):
        assert (panel == 120).all(), "no defect, no outline"


def test_a_hole_of_the_mask_has_an_outline_and_the_contour_hides_none() -> None:
    image, mask = np.full((*SIZE, 3), 120, np.uint8), square_mask()
    mask[120:130, 120:140] = False
    left, _ = panels(ScoredImage(image, np.zeros(SIZE), 0.0, mask))
    assert like(left[117:122, 125:135], MASK).any(axis=0).all()
    same = np.where(square_mask(), 9.0, 0.0)  # its contour lies on the mask's outline, almost
    left, _ = panels(ScoredImage(image, same, 0.0, square_mask()), THRESHOLD)
    assert like(left[97:103, 90:170], MASK).any(axis=0).all()


# --- one width ---


@pytest.mark.parametrize(("height", "width"), [(1, 2000), (2000, 1), (1, 60_000), (64, 1000), (1000, 100), (90, 160)])
def test_an_image_of_any_aspect_makes_an_overlay_of_one_width_and_bounded_height(height: int, width: int) -> None:
    scored = ScoredImage(np.full((height, width, 3), 200, np.uint8), np.zeros((64, 64)), 0.0)
    left, _ = panels(scored)
    assert HEIGHTS[0] <= len(left) <= HEIGHTS[1]
    shown = (left == 200).all(axis=2)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "the whole image, and nothing else"
    fitted = len(columns) / len(rows)
    assert fitted == pytest.approx(width / height, rel=0.05) or 1 in (len(columns), len(rows))
    assert len(columns) == WIDTH or len(rows) == HEIGHTS[1]
    assert (left[~shown] == DARK).all()
    marked = ScoredImage(scored.image, bump(0, 0, 64), 9.0, np.eye(64, dtype=bool)[::-1])
    assert overlay(marked, SCALE, THRESHOLD).shape == overlay(scored, SCALE).shape


# --- the verdict and the place ---


def drawn_caption(
    score: float,
    threshold: Rule | None,
    anomaly_map: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    anomaly_map = np.zeros(SIZE) if anomaly_map is None else anomaly_map
    return caption(ScoredImage(random_image(), anomaly_map, score, mask, "x"), threshold, 600)


def test_the_caption_has_the_verdict_only_with_a_threshold() -> None:
    normal, anomalous, neither = (
        drawn_caption(2.0, THRESHOLD),
        drawn_caption(2.001, THRESHOLD),
        drawn_caption(2.0, None),
    )
    assert like(anomalous, ALARM, 5).sum() > 200 and not like(normal, ALARM, 5).any(), "above, not at, the threshold"
    assert not like(neither, ALARM, 5).any()
    ink = [np.flatnonzero((image[:26] != DARK).any(axis=(0, 2))).max() for image in (normal, neither)]
    assert ink[1] < ink[0] / 2, "the score alone"


def test_the_caption_shows_score_threshold_and_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def note(image: np.ndarray, text: str, *where: object) -> int:
        written.append(text)
        return 0

    monkeypatch.setattr("report.overlays.draw_text", note)
    drawn_caption(2.5, THRESHOLD)
    assert written[:2] == ["NG", "score 2.500   threshold 2.000   p 0.250"]
    written.clear()
    drawn_caption(1.2, THRESHOLD)
    assert written[:2] == ["OK", "score 1.200   threshold 2.000   p 0.750"]
    written.clear()
    drawn_caption(1.2, None, mask=square_mask())
    assert written == ["score 1.200", "mask", "x"]


def test_a_hit_for_the_wrong_reason_is_marked_at_the_highest_pixel() -> None:
    image = np.full((*SIZE, 3), 120, np.uint8)
    away = ScoredImage(image, bump(220, 60), 9.0, square_mask())
    assert away.hit_in_wrong_place(THRESHOLD)
    assert like(drawn_caption(9.0, THRESHOLD, anomaly_map=away.anomaly_map, mask=away.mask)[:, 300:], ALARM, 5).any()
    for panel in panels(away, THRESHOLD):
        assert like(panel[218:223, 58:63], WHITE, 5).sum() > 8
        assert (like(panel[214:227, 54:67], WHITE, 90) == like(panel[214:227, 54:67], WHITE, 90)[:, ::-1]).mean() > 0.9


@pytest.mark.parametrize(
    ("scored", "threshold"),
    [
        (ScoredImage(random_image(), bump(120, 100), 9.0, square_mask()), THRESHOLD),  # in the mask
        (ScoredImage(random_image(), bump(220, 60), 1.0, square_mask()), THRESHOLD),  # decided OK
        (ScoredImage(random_image(), bump(220, 60), 9.0, square_mask()), None),
        (ScoredImage(random_image(), bump(220, 60), 9.0, np.zeros(SIZE, bool)), THRESHOLD),  # no defect
        (ScoredImage(random_image(), bump(220, 60), 9.0), THRESHOLD),  # no mask
    ],
)
def test_other_images_have_no_such_mark(scored: ScoredImage, threshold: Rule | None) -> None:
    assert not scored.hit_in_wrong_place(threshold)


def test_the_color_bar_has_its_tick_at_the_pixel_threshold() -> None:
    plain = color_bar(300, SCALE, None)
    for pixel, row in ((1.2, 264), (2.0, 149.5), (2.8, 35)):
        ticked = color_bar(300, SCALE, pixel)
        rows = np.flatnonzero((ticked != plain)[:, :24].any(axis=(1, 2)))
        assert abs(rows.mean() - row) <= 0.6 and len(rows) == 3
    assert np.array_equal(color_bar(300, SCALE, 3.5), plain), "beyond the scale"
    assert color_bar(HEIGHTS[0], (-0.001, 1e-5), 0.0).shape == (HEIGHTS[0], BAR, 3)


def test_the_numbers_of_the_color_bar_fit_beside_it() -> None:
    for scale in ((0.0, 1.0), (-0.0449, 10.5), (-123456.0, 654321.0), (1.2345e-7, 9.8765e-5), (0.0, 1e-6)):
        bar = color_bar(200, scale, None)
        assert (bar[:, -1] == DARK).all(), scale


# --- text ---


def test_long_names_are_cut_in_the_middle_by_an_ellipsis() -> None:
    name = "Kratzer_zurück größer " + "x" * 300 + "_0153"
    for width in (60, 200, 400):
        short = shorten(name, width)
        assert width - 15 < text_width(short) <= width
        first, last = short.split("…")
        assert name.startswith(first) and name.endswith(last) and abs(len(first) - len(last)) <= 1
    assert shorten("good_001", 400) == "good_001"
    assert one_line("u\u0308") == "ü" and one_line("a\nb") == "a\\nb"


def test_umlauts_have_letters_of_their_own() -> None:
    def drawn(letter: str) -> bytes:
        return caption(ScoredImage(random_image(), np.zeros(SIZE), 0.0, name=letter), None, 600).tobytes()

    letters = "äöüÄÖÜßaouAOU?"
    assert len({drawn(letter) for letter in letters}) == len(letters)


# --- files ---


@pytest.mark.parametrize("threshold", [None, THRESHOLD])
def test_each_image_gets_its_own_map_mask_and_name(threshold: Rule | None, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(square_mask(64)).save(mask)
    samples = []
    for number, defect in enumerate(("good", "cut", "cut")):
        path = tmp_path / f"{number}/000.png"
        path.parent.mkdir()
        Image.new("RGB", (64, 64 + number), (50 * number, 0, 100)).save(path)
        samples.append(Sample(path, defect != "good", defect, mask if number == 2 else None))
    writer = OverlayWriter(tmp_path / "overlays", samples, SCALE, threshold)
    maps = np.stack([np.full((64, 64), value) for value in (0.0, 2.0, 9.0)])
    scores = maps.max(axis=(1, 2))
    writer.write(0, maps[:2], scores[:2])
    writer.write(2, maps[2:], scores[2:])
    assert sorted(p.name for p in (tmp_path / "overlays").iterdir()) == ["cut_000.png", "cut_000_2.png", "good_000.png"]
    for number, name in enumerate(("good_000", "cut_000", "cut_000_2")):
        drawn = np.asarray(Image.open(tmp_path / f"overlays/{name}.png"))
        image = np.asarray(Image.open(samples[number].image))
        own_mask = square_mask(64) if number == 2 else None
        scored = ScoredImage(image, maps[number], float(scores[number]), own_mask, name)
        assert np.array_equal(drawn, overlay(scored, SCALE, threshold))


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
