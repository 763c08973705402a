"""What a finished run is good for: another anomaly map, a Detector in Python, a compiled network."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import files_below, make_mvtec, published_state, record_of, rows_of, score_again, train

from commandline import exit_code
from dataset import ImageSet
from detector import Detector
from experiment import Experiment
from model import Distiller
from report.overlays import OverlayWriter
from run_files import ATTEMPTS, LOG, Progress, Run
from run_files.csv_files import read_csv
from scripts import summarize
from training import loop
from utils import file_sha256

# what two equal runs may differ in
OWN = {"name", "train_seconds", "score_seconds", "checkpoint_sha256", "scored_from", "oracle"}


@dataclass
class Trained:
    """A finished run of RD4AD below `root`/runs, and the flags that trained it, less --save_path."""

    root: Path
    flags: list[Any]

    @property
    def run(self) -> Path:
        return self.root / "runs/mvtec/rd4ad/bottle/seed111"

    def copy(self, root: Path) -> Trained:
        shutil.copytree(self.root / "runs", root / "runs")
        return Trained(root, self.flags)

    def train(self, *arguments: object) -> int:
        return train(*self.flags, "--save_path", self.root / "runs", *arguments)


@pytest.fixture(scope="module", params=["add", "standardized"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Shared by the tests of this file, which must leave it as it is."""
    root = tmp_path_factory.mktemp("finished")
    flags = ["--data_path", make_mvtec(root / "mvtec"), "--class", "bottle", "--variant", "rd4ad", "--epochs", 2]
    found = Trained(root, [*flags, "--anomaly_map", request.param, "--anomalib_scores"])
    assert found.train("--print_epoch", 1, "--vis") == 0
    return found


@pytest.fixture
def trained(finished: Trained, tmp_path: Path) -> Trained:
    """A copy of it for one test."""
    return finished.copy(tmp_path)


def other_mode(trained: Trained) -> str:
    """The standardized map, which needs statistics of the training images, or one that must not use them."""
    return "multiply" if "standardized" in trained.flags else "standardized"


def trained_parts(run: Path) -> dict[str, torch.Tensor]:
    state = Run(run).load_checkpoint()
    assert state is not None
    return {f"{part}.{name}": value for part, values in state["trained"].items() for name, value in values.items()}


# --- another anomaly map ---


def test_a_run_scored_with_another_map_is_the_run_that_training_with_it_gives(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mode, before = other_mode(trained), files_below(trained.run)
    assert score_again(trained.run, "--anomaly_map", mode) == 0
    assert f"scored with --anomaly_map {mode}" in capsys.readouterr().out
    assert files_below(trained.run) == before, "the run itself is left alone"
    made = trained.root / f"runs/mvtec/rd4ad-{mode}/bottle/seed111"
    assert train(*trained.flags, "--anomaly_map", mode, "--vis", "--save_path", tmp_path / "scratch") == 0
    scratch = tmp_path / "scratch/mvtec/rd4ad/bottle/seed111"

    of_training = {ATTEMPTS, LOG}
    assert {path.name for path in made.iterdir()} == {path.name for path in scratch.iterdir()} - of_training
    parts, wanted, own = map(trained_parts, (made, scratch, trained.run))
    assert parts.keys() == wanted.keys() == own.keys()
    assert all(torch.equal(value, wanted[name]) and torch.equal(value, own[name]) for name, value in parts.items())
    ours, theirs = record_of(made), record_of(scratch)
    assert ours["metrics"] == theirs["metrics"] != record_of(trained.run)["metrics"]
    assert {name: value for name, value in ours.items() if name not in OWN} == {
        name: value for name, value in theirs.items() if name not in OWN
    }
    assert (ours["name"], ours["scored_from"]) == (f"rd4ad-{mode}", str(trained.run))
    for name in ("predictions.csv", "evaluations.csv"):
        assert (made / name).read_text() == (scratch / name).read_text() != (trained.run / name).read_text()
    assert (made / "train.csv").read_text() == (trained.run / "train.csv").read_text()
    assert files_below(made / "overlays") == files_below(scratch / "overlays") != files_below(trained.run / "overlays")


def test_a_run_scored_with_another_map_is_complete_and_is_made_once(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mode = other_mode(trained)
    monkeypatch.setattr(loop, "train_one_epoch", None)  # whoever trains fails
    assert score_again(trained.run, "--anomaly_map", mode) == 0
    table = capsys.readouterr().out
    made = trained.root / f"runs/mvtec/rd4ad-{mode}/bottle/seed111"
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}

    assert score_again(trained.run, "--anomaly_map", mode) == 0
    assert table.endswith(capsys.readouterr().out)
    assert score_again(made) == 0
    assert "identical to the recorded metrics" in capsys.readouterr().out
    assert trained.train("--anomaly_map", mode, "--name", f"rd4ad-{mode}") == 0
    assert "finished already" in capsys.readouterr().out, "main.py takes it for its own"
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before

    folders = [str(trained.root / "runs/mvtec" / name) for name in ("rd4ad", f"rd4ad-{mode}")]
    assert exit_code(lambda: summarize.main([*folders, "--compare"])) == 0
    compared = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("rd4ad")]
    assert compared == ["rd4ad", f"rd4ad-{mode}"]

    metrics = record_of(made)["metrics"]
    (made / "metrics.json").unlink()  # as if the process had died at the very end
    assert score_again(trained.run, "--anomaly_map", mode) == 0
    assert record_of(made)["metrics"] == metrics


def test_another_map_goes_with_the_runs_test_images_alone(
    finished: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished.root / "mvtec/bottle/test/good"
    assert score_again(finished.run, "--anomaly_map", "mean", "--images", folder) == 2
    assert "--anomaly_map goes with the run's test images" in capsys.readouterr().err


def test_the_map_that_the_run_has_is_refused(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    own = trained.flags[trained.flags.index("--anomaly_map") + 1]
    before = files_below(trained.root / "runs")
    assert score_again(trained.run, "--anomaly_map", own) == 2
    assert "is scored with it already" in capsys.readouterr().err
    assert score_again(trained.run, "--out", trained.root / "out") == 2
    assert capsys.readouterr().err == "error: --out goes with --images\n"
    assert files_below(trained.root / "runs") == before


def test_another_run_in_its_place_is_refused(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    mode = other_mode(trained)
    made = trained.root / f"runs/mvtec/rd4ad-{mode}/bottle/seed111"
    shutil.copytree(trained.run, made)
    before = files_below(made)
    assert score_again(trained.run, "--anomaly_map", mode) == 2
    assert "holds a run of another configuration: anomaly_map is" in capsys.readouterr().err
    assert files_below(made) == before


def test_overlays_of_another_map_are_written_where_vis_asks_for_them(trained: Trained) -> None:
    mode = other_mode(trained)
    plain = Trained(trained.root / "plain", trained.flags)
    assert plain.train() == 0
    assert score_again(plain.run, "--anomaly_map", mode, "--vis") == 0
    made = plain.root / f"runs/mvtec/rd4ad-{mode}/bottle/seed111"
    assert len(list((made / "overlays").iterdir())) == 6


def test_another_map_lands_beside_a_renamed_run_and_a_folder_elsewhere_is_refused(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    mode, sweeps = other_mode(trained), trained.root / "runs/mvtec"
    shutil.copytree(sweeps / "rd4ad", sweeps / "renamed")
    assert score_again(sweeps / "renamed/bottle/seed111", "--anomaly_map", mode) == 0
    assert (sweeps / f"renamed-{mode}/bottle/seed111/metrics.json").is_file()
    capsys.readouterr()
    for place in ("copy", "some/other/place/of/mine"):
        shutil.copytree(trained.run, trained.root / place)
        before = sorted(trained.root.rglob("*"))
        assert score_again(trained.root / place, "--anomaly_map", mode) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert sorted(trained.root.rglob("*")) == before


def test_another_map_needs_no_published_checkpoint_again(tmp_path: Path) -> None:
    torch.save(published_state("res18"), tmp_path / "published.pth")
    flags = ["--data_path", make_mvtec(tmp_path / "mvtec"), "--variant", "rd4ad", "--net", "res18", "--epochs", 0]
    flags += ["--weights", "random", "--checkpoint", tmp_path / "published.pth", "--save_path", tmp_path / "runs"]
    assert train(*flags) == 0
    (tmp_path / "published.pth").rename(tmp_path / "moved.pth")
    run = tmp_path / "runs/mvtec/rd4ad/bottle/seed111"
    assert score_again(run, "--anomaly_map", "mean") == 0
    identities = [
        Run(folder).read("config.json")["identity"]
        for folder in (run, run.parents[1].parent / "rd4ad-mean/bottle/seed111")
    ]
    assert identities[0] | {"anomaly_map": "mean"} == identities[1]


def test_without_the_training_images_another_map_leaves_no_folder_behind(trained: Trained) -> None:
    assert score_again(trained.run, "--anomaly_map", other_mode(trained), "--data_path", trained.root) == 2
    folders = [folder.name for folder in (trained.root / "runs/mvtec").iterdir() if folder.is_dir()]
    assert [name for name in folders if not name.startswith(".")] == ["rd4ad"]


# --- overlays and intervals of a finished run ---


def test_a_copys_overlays_lie_in_the_copy(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(trained.run / "overlays")
    before = files_below(trained.root / "runs")
    shutil.copytree(trained.run, trained.root / "copy")
    assert score_again(trained.root / "copy", "--vis") == 0
    assert f"overlays in {trained.root / 'copy/overlays'}" in capsys.readouterr().out
    assert len(list((trained.root / "copy/overlays").iterdir())) == 6
    assert files_below(trained.root / "runs") == before


def test_vis_and_intervals_of_a_finished_run_name_their_command(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained.train("--vis") == 0
    assert "--vis of a finished run" not in capsys.readouterr().out, "its overlays are there"
    shutil.rmtree(trained.run / "overlays")
    assert trained.train("--vis", "--intervals") == 0
    wanted = f"--vis and --intervals of a finished run: python test.py {trained.run} --vis --intervals\n"
    assert wanted in capsys.readouterr().out
    assert trained.train() == 0
    assert "of a finished run" not in capsys.readouterr().out


def test_intervals_are_printed_and_change_no_file(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(trained.root / "runs")
    assert score_again(trained.run, "--intervals", 0.9) == 0
    out = capsys.readouterr().out
    assert "identical to the recorded metrics" in out and "90 % intervals" in out
    said = " ".join(out.split())
    assert "like these (3 normal, 3 anomalous)" in said and "only 3 normal images" in said
    table = out[out.index("\nmetric") :].splitlines()
    assert max(map(len, table)) <= 80
    metrics = record_of(trained.run)["metrics"]
    title, value, low, high, n = re.split(r"  +", next(line for line in table if line.startswith("AUPRO")))
    assert float(value) == pytest.approx(metrics["aupro"], abs=5e-5) and n == "6"
    assert 0 <= float(low) <= float(value) + 1e-3 <= float(high) + 2e-3
    assert files_below(trained.root / "runs") == before


@pytest.mark.parametrize("wrong", [["--intervals", 95], ["--intervals", "--images", "x"]])
def test_intervals_without_sense_are_refused(
    finished: Trained, wrong: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert score_again(finished.run, *wrong) == 2
    error = capsys.readouterr().err
    assert ("level" in error or "--intervals" in error) and error.count("\n") == 1


def test_training_with_intervals_records_them_and_is_the_same_run(
    finished: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*finished.flags, "--save_path", tmp_path, "--intervals") == 0
    out = capsys.readouterr().out
    assert "95 % intervals" in out
    run = tmp_path / "mvtec/rd4ad/bottle/seed111"
    record, without = record_of(run), record_of(finished.run)
    found = record["intervals"]
    assert (found["level"], found["replicates"]) == (0.95, 2000) and "intervals" not in without
    assert set(found["metrics"]) == set(record["metrics"]) - {"aupro_per_image", "aupimo"}
    assert record["metrics"] == without["metrics"]
    assert Run(run).read("config.json")["identity"] == Run(finished.run).read("config.json")["identity"]
    assert score_again(run, "--intervals") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pixel AP"))
    assert [f"{end:.4f}" for end in found["metrics"]["pixel_ap"]] == line.split()[3:5], "drawn from the run's seed"


# --- new images ---


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two images of one stem, one with a number, one behind a linked folder, and two that cannot be read."""
    folder, elsewhere = tmp_path / "new", tmp_path / "elsewhere/deep"
    folder.mkdir()
    elsewhere.mkdir(parents=True)
    for number, path in enumerate(("new/x.png", "new/x.bmp", "new/x_2.png", "elsewhere/deep/y.png", "new/=1+1.png")):
        Image.new("RGB", (64, 64), (40 * number, 90, 120)).save(tmp_path / path)
    (folder / "empty.png").touch()
    (folder / "half.png").write_bytes((folder / "x.png").read_bytes()[:60])
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    return folder


def test_images_that_cannot_be_read_are_rows_and_the_others_are_predicted(
    finished: Trained, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths are written as they were given
    out = tmp_path / "out"
    assert score_again(finished.run, "--images", "new", "--out", out) == 3
    rows = {row["path"]: row for row in rows_of(out / "predictions.csv")}
    assert sorted(rows) == ["new/=1+1.png", "new/empty.png", "new/half.png", "new/linked/deep/y.png", "new/x.bmp",
                            "new/x.png", "new/x_2.png"]  # fmt: skip
    bad = {path for path, row in rows.items() if row["problem"]}
    assert bad == {"new/empty.png", "new/half.png"}
    assert all((row["score"] == "") == (path in bad) for path, row in rows.items())
    assert "is empty (0 bytes)" in rows["new/empty.png"]["problem"]
    printed = capsys.readouterr().out
    assert "7 images: 2 not read." in printed and "no threshold: python test.py RUN --calibrate" in printed
    assert len(printed.splitlines()) == 8 and printed.count("\n??         -  p     -  ") + printed.startswith("??") == 2
    assert len(list((out / "overlays").iterdir())) == 5, "one for each image that was read"

    assert score_again(finished.run, "--images", "new/x.png", "--out", tmp_path / "alone") == 0
    (alone,) = rows_of(tmp_path / "alone/predictions.csv")
    assert float(alone["score"]) == pytest.approx(float(rows["new/x.png"]["score"]), rel=1e-4), "unmoved by the others"
    assert alone["problem"] == ""


def test_a_prediction_that_dies_leaves_the_earlier_scores(
    finished: Trained, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert score_again(finished.run, "--images", mixed / "x.png", "--out", out) == 0
    before = (out / "predictions.csv").read_bytes()
    (out / ".predictions.csv.4194305.partial").touch()  # of a process that died earlier
    monkeypatch.setattr(OverlayWriter, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert score_again(finished.run, "--images", mixed, "--out", out) == 130
    assert (out / "predictions.csv").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["overlays", "predictions.csv"]


def test_a_formula_and_a_name_that_is_not_utf_8_can_be_read_back(
    finished: Trained, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mixed)
    odd = Path(os.fsdecode(b"caf\xe9.png"))
    shutil.copy("x.png", odd)
    assert score_again(finished.run, "--images", odd, "=1+1.png", "--out", tmp_path / "out") == 0
    paths = [row["path"] for row in read_csv(tmp_path / "out/predictions.csv")]
    assert paths == [str(odd), "./=1+1.png"] and all(Path(path).is_file() for path in paths)


# --- from Python ---


def test_a_loaded_detector_gives_the_scores_of_predictions_csv(finished: Trained) -> None:
    detector = Detector.load(finished.run)
    images = Experiment(detector.config, detector.device).test_images
    scores = np.concatenate([scores for scores, _ in detector.score_batches(images)])
    rows = rows_of(finished.run / "predictions.csv")
    assert [row["path"] for row in rows] == [str(sample.image) for sample in images.samples]
    assert scores.tolist() == [np.float32(row["score"]) for row in rows]
    assert detector.evaluate(images).report.defined() == record_of(finished.run)["metrics"]
    # whatever else is in the set
    some = ImageSet(images.samples[1:3], images.size)
    ((two, _),) = detector.score_batches(some)
    assert two.tolist() == pytest.approx(scores[1:3].tolist(), rel=1e-5)


def save_state(run: Path, detector: Detector) -> None:
    """Put a detector's state in the place of a finished run's checkpoint."""
    replace_checkpoint(run, {**detector.state(), "progress": asdict(Progress())})


def replace_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Put a state in the place of a finished run's checkpoint, as the one that was scored."""
    Run(run).save_checkpoint(state)
    record = record_of(run) | {"checkpoint_sha256": file_sha256(run / "checkpoint.pt")}
    (run / "metrics.json").write_text(json.dumps(record))


def test_a_detectors_state_is_all_that_its_scores_depend_on(trained: Trained) -> None:
    detector = Detector.load(trained.run)
    saved = Run(trained.run).load_checkpoint()
    assert saved is not None
    assert (detector.map_statistics is not None) == ("standardized" in trained.flags)
    images = Experiment(detector.config, detector.device).test_images
    ((scores, maps),) = detector.score_batches(images)
    save_state(trained.run, detector)
    again = Detector.load(trained.run)
    ((same_scores, same_maps),) = again.score_batches(images)
    assert np.array_equal(scores, same_scores) and np.array_equal(maps, same_maps)
    assert again.color_scale == detector.color_scale == saved["color_scale"]
    with torch.no_grad():
        next(iter(again.distiller.student.parameters())).add_(0.5)
    save_state(trained.run, again)
    ((changed, _),) = Detector.load(trained.run).score_batches(images)
    assert not np.allclose(changed, scores), "the state is that of the distiller"


def test_another_teachers_weights_are_refused(finished: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = record_of(finished.run)["teacher_weights"]
    with pytest.raises(ValueError, match=f"with teacher weights {recorded}, found random:111; give --weights FILE"):
        Detector.load(finished.run, weights="random")
    assert score_again(finished.run, "--weights", "random") == 2
    error = capsys.readouterr().err
    assert "--weights" in error and error.count("\n") == 1


def test_what_is_no_finished_run_is_named(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no finished run"):
        Detector.load(tmp_path / "nowhere")
    (trained.run / "checkpoint.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint\.pt; main\.py with --fresh"):
        Detector.load(trained.run)
    (trained.run / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no finished run \(no metrics\.json\)"):
        Detector.load(str(trained.run))


# --- compiled ---


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))), reason="needs a C++ compiler"
)
def test_a_compiled_network_gives_the_scores_of_an_eager_one(
    tmp_path: Path, res10: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config as inductor_config

    monkeypatch.setattr(inductor_config, "freezing", inductor_config.freezing)  # put back at the end
    compiled: list[Distiller] = []

    compiles = Distiller.compile

    def compile_and_note(network: Distiller) -> None:
        compiled.append(network)
        compiles(network)

    monkeypatch.setattr(Distiller, "compile", compile_and_note)
    root = make_mvtec(tmp_path / "mvtec", train=4, good=2, bad=2)
    flags = ["--data_path", root, "--variant", "rd4ad", "--net", res10, "--weights", "random", "--epochs", 1]
    assert train(*flags, "--save_path", tmp_path / "runs") == 0
    run, scores = tmp_path / "runs/mvtec/rd4ad/bottle/seed111", []
    for wanted in (0, 1):
        out = tmp_path / f"out{wanted}"
        assert score_again(run, "--images", root / "bottle/test", "--out", out, "--compile", wanted) == 0
        assert len(compiled) == wanted
        rows = rows_of(out / "predictions.csv")
        assert len(rows) == 4
        scores.append([float(row["score"]) for row in rows])
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    assert np.ptp(scores[0]) > 1e-3 * max(scores[0]), "they are not all alike"


def test_map_statistics_of_another_map_are_refused(trained: Trained) -> None:
    """They would be used, or be missing, without a word."""
    saved = Run(trained.run).load_checkpoint()
    assert saved is not None
    statistics = {"mean": torch.zeros(3, 64, 64), "spread": torch.ones(3, 64, 64)}
    saved["map_statistics"] = None if saved["map_statistics"] else statistics
    replace_checkpoint(trained.run, saved)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: map_statistics must be there with the anomaly map standard"):
        Detector.load(trained.run)
