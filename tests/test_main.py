"""The commands end to end: the published line, every benchmark, kills at any moment, scoring again, new images."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import ROOT, TINY, Command, MakeTree, make_mvtec, paint, published_state, record_of, score_again

import detector
from commandline import exit_code
from dataset import BENCHMARKS
from flags import parse
from main import main
from model.teacher import TEACHERS

PUBLISHED = (
    "--epochs 200 --res 3 --learning_rate 0.005 --batch_size 16 --seed 111 --class all --seg 1 --print_epoch 10 "
    "--data_path {D} --save_path {S} --print_loss 1 --net wide_res50 --L2 0"
)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 15])
def test_the_published_command_runs_all_classes(
    mvtec_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, res10: str, count: int
) -> None:
    """Word for word, then fewer epochs, smaller images, and random weights since ImageNet's are a download.

    One class is there for WideResNet-50-2 itself; all of them get a narrow teacher of its name, since their checkpoints
    are 27 GB.
    """
    classes = BENCHMARKS["mvtec"].classes[:count]
    assert len(classes) == count
    if count > 1:
        monkeypatch.setitem(TEACHERS, "wide_res50", TEACHERS[res10])
        # what is cached under this name may be the wide one
        monkeypatch.setattr("detector._frozen_teacher", detector._frozen_teacher.__wrapped__)
    root = mvtec_tree(classes=classes, train=2, good=1, bad=1)
    command = PUBLISHED.format(D=root, S=tmp_path / "runs").split()
    small = ["--epochs", "1", "--image_size", "32", "--weights", "random", "--workers", "0", "--keep_optimizer", "0"]
    assert main([*command, *small]) == 0
    for name in classes:
        record = record_of(tmp_path / f"runs/mvtec/sk_rd4ad/{name}/seed111")
        assert record["net"] == "wide_res50"
        assert (record["n_train"], record["n_test"], record["n_anomalous"]) == (2, 2, 1)
        assert [metric for metric, value in record["metrics"].items() if value is None] == ["aupimo"], "too few pixels"
    table = (tmp_path / "runs/mvtec/sk_rd4ad/summary.md").read_text()
    assert all(name in table for name in (*classes, *(["mean"] if count > 1 else [])))


def visa_raw(root: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = ["object,split,label,image,mask"]
    for i in range(6):
        image = f"candle/Data/Images/Normal/{i:04}.JPG"
        paint(root / image, rng, defect=False)
        rows.append(f"candle,{'train' if i < 4 else 'test'},normal,{image},")
    for i in range(2):
        image, mask_path = f"candle/Data/Images/Anomaly/{i:03}.JPG", f"candle/Data/Masks/Anomaly/{i:03}.png"
        mask = paint(root / image, rng, defect=True)
        (root / mask_path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 3).save(root / mask_path)  # a defect's number, as in the release
        rows.append(f"candle,test,anomaly,{image},{mask_path}")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def visa_1cls(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(4):
        paint(root / f"1cls/candle/train/good/{i:04}.JPG", rng, defect=False)
    for i in range(2):
        paint(root / f"1cls/candle/test/good/{i:04}.JPG", rng, defect=False)
        mask = paint(root / f"1cls/candle/test/bad/{i:03}.JPG", rng, defect=True)
        target = root / f"1cls/candle/ground_truth/bad/{i:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(target)
    return root


def vad(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(4):
        paint(root / f"train/good/{i}.png", rng, defect=False)
        paint(root / f"train/bad/{i}.png", rng, defect=True)
    for i in range(2):
        paint(root / f"test/good/{i}.png", rng, defect=False)
        paint(root / f"test/bad/{i}.png", rng, defect=True)
        paint(root / f"test/bad_unseen_defects/{i}.png", rng, defect=True)
    return root


@pytest.mark.parametrize("layout", [visa_raw, visa_1cls])
def test_visa_runs_on_both_layouts(layout: Callable[[Path], Path], tmp_path: Path, train_command: Command) -> None:
    root = layout(tmp_path / "visa")
    assert train_command("--dataset", "visa", "--data_path", root, "--save_path", tmp_path / "runs", "--epochs", 1) == 0
    record = record_of(tmp_path / "runs/visa/sk_rd4ad/candle/seed111")
    assert (record["n_train"], record["n_test"], record["n_anomalous"]) == (4, 4, 2)
    assert record["metrics"]["aupro"] is not None


def test_vad_learns_from_good_images_alone_and_leaves_train_bad_untouched(
    tmp_path: Path, train_command: Command
) -> None:
    root = vad(tmp_path / "vad")
    for path in (root / "train/bad").iterdir():
        path.write_bytes(b"no image: whoever opens this file fails")
    assert train_command("--dataset", "vad", "--data_path", root, "--save_path", tmp_path / "runs", "--epochs", 1) == 0
    record = record_of(tmp_path / "runs/vad/sk_rd4ad/vad/seed111")
    assert (record["n_train"], record["n_test"], record["n_anomalous"]) == (4, 6, 4)
    assert record["metrics"]["image_auroc"] is not None
    assert record["metrics"]["aupro"] is None
    assert "mask" in record["reasons"]["aupro"]


def test_own_images_without_test_images_train_and_then_predict(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mvtec_tree()
    train = root / "bottle/train/good"
    assert (
        train_command("--dataset", "folder", "--train_dir", train, "--save_path", tmp_path / "runs", "--epochs", 2) == 0
    )
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("metrics.json"))
    assert set(record_of(run)["metrics"].values()) == {None}
    assert score_again(run, "--images", root / "bottle/test", train / "000.png", "--out", tmp_path / "out") in (0, 1)
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open()))
    assert len(rows) == 7
    assert len(list((tmp_path / "out/overlays").glob("*.png"))) == 7
    assert all(float(row["score"]) > 0 for row in rows)
    assert score_again(run, "--images", tmp_path / "nowhere") == 2
    assert "--images" in capsys.readouterr().err


def test_a_run_leaves_its_folder_and_the_same_command_trains_nothing(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--data_path",
        mvtec_tree(),
        "--save_path",
        tmp_path / "runs",
        "--epochs",
        2,
        "--vis",
        "--print_epoch",
        1,
    ]
    assert train_command(*arguments) == 0
    run = tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111"
    names = {
        "data.csv",
        "config.json",
        "train.csv",
        "evaluations.csv",
        "checkpoint.pt",
        "predictions.csv",
        "metrics.json",
        "attempts.csv",
        "log.txt",
        "overlays",
    }
    assert {path.name for path in run.iterdir()} == names
    assert len(list((run / "overlays").glob("*.png"))) == 6
    assert [row["epoch"] for row in csv.DictReader((run / "train.csv").open())] == ["1", "2"]
    assert [row["epoch"] for row in csv.DictReader((run / "evaluations.csv").open())] == ["1", "2"]
    oracle, metrics = record_of(run)["oracle"], record_of(run)["metrics"]
    assert oracle["epoch"] in (1, 2) and oracle["rule"] == "mean of pixel_auroc, aupro_per_image"
    chosen_by = ("pixel_auroc", "aupro_per_image")
    assert sum(oracle["metrics"][name] for name in chosen_by) >= sum(metrics[name] for name in chosen_by)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert train_command(*arguments) == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert train_command(*arguments, "--fresh") == 0
    assert record_of(run)["metrics"] == metrics


def test_another_configuration_is_refused_by_field_and_harms_nothing(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data_path", mvtec_tree(), "--save_path", tmp_path / "runs"]
    assert train_command(*arguments, "--epochs", 2) == 0
    assert train_command(*arguments, "--epochs", 1) == 2
    error = capsys.readouterr().err
    assert "epochs is 2 there, 1 here" in error
    assert error.count("\n") == 1
    assert record_of(tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111")["epochs"] == 2
    assert train_command(*arguments, "--epochs", 1, "--name", "shorter") == 0
    assert record_of(tmp_path / "runs/mvtec/shorter/bottle/seed111")["epochs"] == 1


def test_scoring_again_gives_identical_metrics_and_notices_others(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mvtec_tree()
    assert train_command("--data_path", root, "--save_path", tmp_path / "runs", "--epochs", 1) == 0
    run = tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111"
    capsys.readouterr()
    assert score_again(run) == 0
    output = capsys.readouterr().out
    assert "identical" in output and "warning" not in output
    shutil.move(root, tmp_path / "elsewhere")
    assert score_again(run) == 2  # the data are gone from where the run saw them
    assert score_again(run, "--data_path", tmp_path / "elsewhere") == 0
    paint(tmp_path / "elsewhere/bottle/test/good/000.png", np.random.default_rng(9), defect=True)
    assert score_again(run, "--data_path", tmp_path / "elsewhere") == 1
    assert "DIFFERENT" in capsys.readouterr().out


@pytest.mark.parametrize("scoring", ["--anomaly_map multiply", "--anomaly_map standardized --levels 1 2", "--seg 0"])
def test_a_run_remembers_how_it_is_scored(
    scoring: str, mvtec_tree: MakeTree, tmp_path: Path, train_command: Command
) -> None:
    root = mvtec_tree()
    assert train_command("--data_path", root, "--save_path", tmp_path / "runs", "--epochs", 1, *scoring.split()) == 0
    run = tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111"
    assert (record_of(run)["metrics"]["aupro"] is None) == (scoring == "--seg 0")
    shutil.rmtree(root / "bottle/train")  # nothing of the training images is needed again
    assert score_again(run) == 0


@pytest.mark.slow
def test_a_published_checkpoint_is_scored_as_it_is(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command
) -> None:
    torch.save(published_state("res18"), tmp_path / "published.pth")
    arguments = ["--data_path", mvtec_tree(), "--net", "res18", "--weights", "random", "--epochs", 0]
    scored = []
    for name, extra in (("as_it_is", ["--checkpoint", tmp_path / "published.pth"]), ("untrained", [])):
        assert train_command(*arguments, "--save_path", tmp_path / "runs", "--name", name, *extra) == 0
        run = tmp_path / f"runs/mvtec/{name}/bottle/seed111"
        assert score_again(run) == 0
        scored.append((run / "predictions.csv").read_text())
    assert scored[0] != scored[1]


@pytest.mark.parametrize(
    ("variant", "skips", "other"), [("rd4ad", "none", "sk_rd4ad"), ("sk_rd4ad", "E3, E2", "rd4ad")]
)
def test_a_checkpoint_is_never_read_silently_without_its_skips(
    variant: str,
    skips: str,
    other: str,
    mvtec_tree: MakeTree,
    tmp_path: Path,
    train_command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """RD4AD's and SK-RD4AD's files have the same names: the variant that was assumed is said."""
    torch.save(published_state("res18"), tmp_path / "published.pth")
    flags = ["--data_path", mvtec_tree(), "--net", "res18", "--weights", "random", "--epochs", 0, "--variant", variant]
    flags += ["--save_path", tmp_path / "runs", "--checkpoint", tmp_path / "published.pth"]
    assert train_command(*flags) == 0
    said = capsys.readouterr().out
    assert f"read as --variant {variant} (skips: {skips})" in said and f"use --variant {other}" in said


@pytest.mark.slow
def test_a_class_result_does_not_depend_on_the_classes_before_it(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command
) -> None:
    root = mvtec_tree(classes=("bottle", "cable"))
    arguments = ["--data_path", root, "--epochs", 1, "--save_path"]
    assert train_command(*arguments, tmp_path / "all", "--class", "all", "--seeds", 1, 2) == 0
    assert train_command(*arguments, tmp_path / "one", "--class", "cable", "--seeds", 2) == 0
    first, second = (record_of(tmp_path / f"{name}/mvtec/sk_rd4ad/cable/seed2") for name in ("all", "one"))
    assert first["metrics"] == second["metrics"]
    other = record_of(tmp_path / "all/mvtec/sk_rd4ad/cable/seed1")
    assert first["metrics"] != other["metrics"]


def test_a_loss_that_is_not_finite_stops_the_run_with_a_message(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data_path", mvtec_tree(), "--save_path", tmp_path / "runs", "--epochs", 3]
    assert train_command(*arguments, "--learning_rate", 1e30) == 2
    error = capsys.readouterr().err
    assert "loss became nan in epoch" in error
    assert "--learning_rate" in error
    assert not list((tmp_path / "runs").rglob("metrics.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--class", "botle"], ["--class botle", "bottle"]),
        (["--data_path", "/nowhere"], ["--data_path", "/nowhere"]),
        (["--device", "cuda:77"], ["--device cuda:77"]),
        (["--checkpoint", "/nowhere.pth"], ["/nowhere.pth"]),
        (["--weights", "/nowhere.pth"], ["/nowhere.pth"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    mvtec_tree: MakeTree,
    tmp_path: Path,
    train_command: Command,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    root = mvtec_tree(train=2, good=1, bad=1)
    assert train_command("--data_path", root, "--save_path", tmp_path / "runs", "--epochs", 1, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words)


def test_teacher_weights_missing_says_file_address_hash_and_place(
    mvtec_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse_download)
    command = [*PUBLISHED.format(D=mvtec_tree(), S=tmp_path / "runs").split(), "--device", "cpu"]
    assert exit_code(lambda: main(command)) == 2
    error = capsys.readouterr().err
    for word in ("wide_resnet50_2-95faca4d.pth", "https://", "95faca4d", str(tmp_path / "home"), "--weights"):
        assert word in error


def refuse_download(*_: object, **__: object) -> None:
    raise OSError("no network")


# --- kills ---


def start(arguments: list[str], program: str = "main.py") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, program, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def files_of(run: Path) -> dict[str, Any]:
    """What two runs of one configuration must share to the last digit."""
    return {"metrics": record_of(run)["metrics"], "predictions": (run / "predictions.csv").read_text()}


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, Any]]:
    """A command without its --save_path, and what it leaves undisturbed."""
    root = tmp_path_factory.mktemp("killable")
    data = make_mvtec(root / "mvtec", train=16)
    arguments = [*TINY, "--epochs", "6", "--checkpoint_seconds", "0", "--data_path", str(data)]
    assert start([*arguments, "--save_path", str(root / "whole")]).wait() == 0
    return arguments, files_of(root / "whole/mvtec/sk_rd4ad/bottle/seed111")


@pytest.mark.slow
def test_kill_in_the_middle_of_an_epoch(killable: tuple[list[str], dict[str, Any]], tmp_path: Path) -> None:
    arguments, undisturbed = killable
    arguments = [*arguments, "--save_path", str(tmp_path / "killed")]
    run = tmp_path / "killed/mvtec/sk_rd4ad/bottle/seed111"
    process = start(arguments)
    deadline = time.monotonic() + 120
    while not (run / "train.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len((run / "train.csv").read_text().splitlines()) - 1
    assert 1 <= done < 6
    assert not (run / "metrics.json").exists()
    assert start(arguments).wait() == 0
    assert files_of(run) == undisturbed
    assert len((run / "train.csv").read_text().splitlines()) == 7


# Half of one file is written, as a crash would leave it, and the process kills itself.
DIES_WRITING = """
import os, signal, sys
import utils
from main import main

name, own = sys.argv[1], os.fsync

def die_before_the_rename(descriptor):
    if f".{name}." in os.readlink(f"/proc/self/fd/{descriptor}"):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    own(descriptor)

os.fsync = die_before_the_rename
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictions.csv", "metrics.json", "config.json"])
def test_kill_in_the_middle_of_writing_results(
    name: str, killable: tuple[list[str], dict[str, Any]], tmp_path: Path
) -> None:
    arguments, undisturbed = killable
    arguments = [*arguments, "--save_path", str(tmp_path / "killed")]
    run = tmp_path / "killed/mvtec/sk_rd4ad/bottle/seed111"
    script = tmp_path / "dies.py"
    script.write_text(DIES_WRITING)
    assert start([name, *arguments], str(script)).wait() == -signal.SIGKILL
    assert not (run / name).exists()
    assert start(arguments).wait() == 0
    assert files_of(run) == undisturbed
    assert not list(run.glob(".*.partial"))


def test_the_prescribed_names_resolve_here() -> None:
    """test.py shadows the standard library's `test`; main, utils and model are names that others use too."""
    names = ["main", "test", "utils", "dataset", "model"]
    code = f"from importlib.util import find_spec; print(*(find_spec(name).origin for name in {names}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(found.split()) == 5
    assert all(Path(path).is_relative_to(ROOT) for path in found.split())


@pytest.mark.slow
def test_commands_answer_help_outside_their_folder(tmp_path: Path) -> None:
    for program in ("main.py", "test.py"):
        done = subprocess.run([sys.executable, ROOT / program, "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0
        assert "usage" in done.stdout


def test_parse_reads_what_a_run_saved(mvtec_tree: MakeTree, tmp_path: Path, train_command: Command) -> None:
    assert train_command("--data_path", mvtec_tree(), "--save_path", tmp_path / "runs", "--epochs", 1) == 0
    saved = tmp_path / "runs/mvtec/sk_rd4ad/bottle/seed111/config.json"
    config = parse(["--config", str(saved), "--epochs", "2"])
    assert (config.epochs, config.classes, config.net) == (2, ("bottle",), "efficientnet_lite0")
