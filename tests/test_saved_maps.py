"""maps.npz: the maps that the metrics were computed from, written by main.py and test.py, checked when read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toys import Command, MakeTree, record_of, score_again

from run_files import Run, SavedMaps
from scripts import report, score_maps


def saved() -> SavedMaps:
    labels = np.array([False, True])
    maps = np.arange(2 * 16, dtype=np.float32).reshape(2, 4, 4)
    return SavedMaps(maps, maps > 29, labels, (1.0, 2.0), "a" * 64)


def test_metrics_of_saved_maps_are_those_of_the_run(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data_path", mvtec_tree(), "--epochs", 1, "--save_path", tmp_path / "runs"]
    assert train_command(*arguments, "--save_maps") == 0
    run = tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111"
    first = SavedMaps.read(run, 6)
    assert first.checkpoint_sha256 == record_of(run)["checkpoint_sha256"]
    capsys.readouterr()
    assert score_maps.main([str(run / "maps.npz"), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics == {name: record_of(run)["metrics"][name] for name in metrics}

    assert report.main([str(run)]) == 0
    assert "ROC of pixels" in (run / "report.html").read_text()

    (run / "maps.npz").unlink()
    assert train_command(*arguments, "--save_maps") == 0
    assert f"python test.py {run} --save_maps" in capsys.readouterr().out
    assert score_again(run, "--save_maps") == 0
    np.testing.assert_array_equal(SavedMaps.read(run, 6).maps, first.maps)
    assert score_again(run, "--save_maps", "--images", run) == 2
    assert score_again(run, "--save_maps", "--verify") == 2
    Run(run).discard()
    assert not (run / "maps.npz").exists()


def test_maps_are_read_as_they_were_written(tmp_path: Path) -> None:
    for maps in (saved(), replace(saved(), masks=None)):
        maps.write(tmp_path)
        read = SavedMaps.read(tmp_path, 2)
        np.testing.assert_equal(vars(read), vars(maps))
    assert [path.name for path in tmp_path.iterdir()] == ["maps.npz"]


def test_what_is_no_file_of_the_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="maps.npz: no such file; python test.py RUN --save_maps"):
        SavedMaps.read(tmp_path, 2)
    saved().write(tmp_path)
    with pytest.raises(ValueError, match=r"maps must be \(3, H, W\), finite .*: found \(2, 4, 4\) float32"):
        SavedMaps.read(tmp_path, 3)
    whole = (tmp_path / "maps.npz").read_bytes()
    (tmp_path / "maps.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"maps.npz: a damaged \.npz file"):
        SavedMaps.read(tmp_path, 2)
    np.savez(tmp_path / "maps.npz", maps=saved().maps, labels=np.zeros(2))
    with pytest.raises(ValueError, match=r"labels must be \(2,\): found \(2,\) float64"):
        SavedMaps.read(tmp_path, 2)
    replace(saved(), maps=np.full((2, 4, 4), np.nan, np.float32)).write(tmp_path)
    with pytest.raises(ValueError, match="finite"):
        SavedMaps.read(tmp_path, 2)
