"""scripts.score_maps in-process, and once as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import ROOT

from commandline import exit_code
from scoring.metrics import METRIC_NAMES, compute_metrics, pixel_metrics
from scripts.score_maps import main

EXACT = METRIC_NAMES[:7]


@pytest.fixture
def toy() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 20, 30), np.uint8)
    masks[::2, 3:9, 4:12] = 255
    return rng.standard_normal(masks.shape, dtype=np.float32) + masks / np.float32(255), masks


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def write(**arrays: Any) -> str:
        np.savez(tmp_path / "maps.npz", **arrays)
        return str(tmp_path / "maps.npz")

    return write


def metrics(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, float | None]:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_the_exact_metrics(toy: Any, save: Any, capsys: pytest.CaptureFixture[str]) -> None:
    maps, masks = toy
    found = metrics(capsys, save(maps=maps, masks=masks), "--fpr_limit", "1", "0.05")
    expected = compute_metrics([1, 0] * 3, maps.max(axis=(1, 2)), maps, masks, (1, 0.05), per_image=False).values
    assert found == expected
    assert list(found) == [*EXACT, "aupro_1", "aupro_0.05"]


def test_text_has_one_line_per_metric(toy: Any, save: Any, capsys: pytest.CaptureFixture[str]) -> None:
    maps, masks = toy
    assert main([save(maps=maps, masks=masks)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert tuple(name for name, _ in lines) == EXACT
    assert float(dict(lines)["aupro"]) == pytest.approx(pixel_metrics(maps, masks).values["aupro"], abs=1e-6)


def test_dashes_and_underscores_are_alike(toy: Any, save: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(maps=toy[0], masks=toy[1])
    assert metrics(capsys, file, "--fpr-limit", "0.1") == metrics(capsys, file, "--fpr_limit", "0.1", "0.3")


def test_numbered_arrays_of_any_sizes(save: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve of them: the numbers are read as numbers, 10 after 9."""
    rng = np.random.default_rng(1)
    maps = [rng.random((5 + i, 9)) for i in range(12)]
    masks = [rng.random(scores.shape) < 0.1 * (i % 2) for i, scores in enumerate(maps)]
    file = save(**{f"map_{i}": m for i, m in enumerate(maps)}, **{f"mask_{i}": m for i, m in enumerate(masks)})
    labels = [mask.any() for mask in masks]
    expected = compute_metrics(labels, [scores.max() for scores in maps], maps, masks, (0.3,), per_image=False).values
    assert metrics(capsys, file) == expected
    maps[10][0, 0] = np.nan
    file = save(**{f"map_{i}": m for i, m in enumerate(maps)}, labels=labels)
    with pytest.raises(ValueError, match="image 10"):
        main([file])


def test_labels_come_before_masks(toy: Any, save: Any, capsys: pytest.CaptureFixture[str]) -> None:
    maps, masks = toy
    masks[0] = 0  # anomalous by its folder, but the mask vanished
    labels = np.array([1, 0] * 3)
    given = metrics(capsys, save(maps=maps, masks=masks, labels=labels))
    found = metrics(capsys, save(maps=maps, masks=masks))
    expected = compute_metrics(labels, maps.max(axis=(1, 2)), maps, masks, (0.3,), per_image=False).values
    assert given == expected
    assert given["image_auroc"] != found["image_auroc"]
    assert given["aupro"] == found["aupro"]


def test_undefined_metrics(toy: Any, save: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(maps=toy[0], labels=np.array([1, 0] * 3))
    found = metrics(capsys, file, "--fpr_limit", "0.3", "1")
    assert [name for name, value in found.items() if value is None] == [*EXACT[3:], "aupro_1"]
    assert main([file]) == 0
    assert "aupro        n/a (no masks)" in capsys.readouterr().out.splitlines()
    assert main([save(maps=toy[0], masks=np.zeros_like(toy[1]))]) == 0
    assert "image_auroc  n/a (no anomalous image in the test set)" in capsys.readouterr().out


MAP, MASK = np.zeros((2, 2)), np.zeros((2, 2), bool)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"masks": MASK[None]}, "no maps: it must hold `maps`"),
        ({"maps": MAP[None]}, "neither masks nor labels"),
        ({"maps": MAP, "masks": MASK}, "maps must be (N, H, W): found (2, 2)"),
        ({"maps": MAP[None], "masks": MASK[None, 1:]}, "image 0: its mask is (1, 2), its map (2, 2)"),
        ({"maps": np.stack([MAP] * 3), "masks": np.stack([MASK] * 2)}, "3 maps but 2 masks: map 2 has no mask"),
        ({"map_0": MAP, "map_1": MAP, "mask_0": MASK}, "2 maps but 1 masks: map 1 has no mask"),
        ({"map_0": MAP, "mask_0": MASK, "mask_1": MASK}, "1 maps but 2 masks: mask 1 has no map"),
        ({"map_0": MAP, "mask_0": MASK, "map_2": MAP, "mask_2": MASK}, "map_1 is missing"),
        ({"map_1": MAP, "mask_1": MASK}, "map_0 is missing"),
        ({"map_0": MAP, "map_00": MAP, "labels": np.array([0])}, "map_1 is missing"),
        ({"maps": MAP[None], "map_0": MAP, "labels": np.array([0])}, "both maps and map_0"),
        ({"maps": MAP[None], "masks": MASK[None] + np.uint8(7)}, "image 0: a mask holds 0 and 1, or 0 and 255"),
        ({"maps": MAP[None] * np.nan, "masks": MASK[None]}, "image 0: its map holds 4 NaN"),
        ({"maps": MAP[None, :0], "labels": np.array([0])}, "image 0: its map must be (H, W)"),
        ({"maps": MAP[None], "masks": MASK[None], "labels": np.array([0, 1])}, "labels must be (1,)"),
        ({"maps": MAP[None], "masks": MASK[None], "labels": np.array([3])}, "image 0: label 3"),
        ({"maps": np.array([{}, []], object), "masks": MASK[None]}, "arrays of Python objects are not read"),
    ],
)
def test_bad_arrays_give_one_line_and_exit_code_2(
    arrays: dict[str, np.ndarray], message: str, save: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(**arrays)
    assert exit_code(lambda: main([file])) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"", b"maps", b"PK\x03\x04 but cut off", "npy", "cut", "damaged"])
def test_bad_files_give_one_line_and_exit_code_2(
    content: bytes | str | None, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given.npz"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "npy":
        with file.open("wb") as handle:
            np.save(handle, toy[0])
    elif content:
        np.savez_compressed(file, maps=toy[0], masks=toy[1])
        whole = file.read_bytes()
        file.write_bytes(whole[:-50] if content == "cut" else whole[:200] + bytes(1000) + whole[1200:])
    assert exit_code(lambda: main([str(file)])) == 2
    err = capsys.readouterr().err
    assert str(file) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("limit", ["0", "-0.5", "1.01", "nan", "much"])
def test_bad_limits_give_one_line_and_exit_code_2(
    limit: str, toy: Any, save: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(maps=toy[0], masks=toy[1])
    try:
        code: Any = exit_code(lambda: main([file, "--fpr_limit", "0.3", limit]))
    except SystemExit as stop:  # argparse refuses what is no number
        code = stop.code
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert "--fpr_limit" in err


def test_as_a_user_starts_it(toy: Any, save: Any) -> None:
    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.score_maps", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    good = start(save(maps=toy[0], masks=toy[1]), "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["aupro"] == pixel_metrics(*toy).values["aupro"]
    bad = start("missing.npz")
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "error: missing.npz: no such file\n")
