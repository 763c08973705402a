"""A run knows its data: other images are refused by what differs, whatever else is equal; one process writes a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import ROOT, Command, MakeTree, paint, record_of, rows_of, score_again, train

from dataset import Sample
from readers import contents
from readers.contents import content_hashes, file_stamp
from run_files import Busy, DataRecord, FolderLock, Run, read_predictions
from run_files.data import ImageRecord
from scripts import summarize
from training import attempt, loop
from utils import file_sha256

RUN = "runs/mvtec/rd4ad/bottle/seed111"


@pytest.fixture
def flags(mvtec_tree: MakeTree, tmp_path: Path) -> list[Any]:
    return ["--data_path", mvtec_tree(), "--variant", "rd4ad", "--save_path", tmp_path / "runs", "--epochs", 1]


def exchange(path: Path, content: bytes) -> None:
    """Other content of the same size and mtime under the same name, as `cp -p` leaves it."""
    before = path.stat()
    path.with_suffix(".new").write_bytes(content.ljust(before.st_size, b"\0")[: before.st_size])
    path.with_suffix(".new").replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- hashes ---


def test_hashes_are_those_of_the_files_and_an_exchange_under_size_and_mtime_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_known", {})
    monkeypatch.setattr(contents, "RACY_NS", -(10**12))  # as if the files had been there for long
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(files):
        path.write_bytes(b"image %d" % i)
    store = tmp_path / "hashes.json"
    assert content_hashes(files, store) == {path: file_sha256(path) for path in files}
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr(contents, "file_sha256", counted)
    content_hashes(files, store)
    assert not read  # known to this process
    monkeypatch.setattr(contents, "_known", {})
    content_hashes(files, store)
    assert not read  # known to the store
    exchange(files[3], b"image 7")
    assert content_hashes(files, store)[files[3]] == file_sha256(files[3])
    assert read == [files[3]]


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_known", {})
    (tmp_path / "a.png").write_bytes(b"1")
    content_hashes([tmp_path / "a.png"])
    assert not contents._known


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"version": 1, "files": {"a": [1]}}', '{"version": 1, "files": 3}']
)
def test_a_damaged_store_counts_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(contents, "_known", {})
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "store.json").write_text(content)
    assert content_hashes([tmp_path / "a.png"], tmp_path / "store.json")[tmp_path / "a.png"] == file_sha256(
        tmp_path / "a.png"
    )


def test_only_regular_files_have_a_stamp(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", tmp_path):
        with pytest.raises(ValueError, match="wanted an image file"):
            file_stamp(path)


# --- records ---


def record(tmp_path: Path, contents: dict[str, str], defect: str = "good") -> DataRecord:
    samples = []
    for name, content in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        samples.append(Sample(path, defect != "good", defect))
    return DataRecord.of({"train": samples})


def test_a_record_tells_new_gone_changed_and_relabeled_images(tmp_path: Path) -> None:
    before = record(tmp_path / "a", {"0.png": "0", "1.png": "1", "2.png": "2"})
    assert before.differences(record(tmp_path / "b", {"0.png": "0", "1.png": "1", "2.png": "2"})) == []
    assert before.differences(record(tmp_path / "c", {"0.png": "0", "1.png": "x", "3.png": "3", "4.png": "4"})) == [
        "train: 3 images, 4 are there now: 2 new, 1 gone, 1 changed (e.g. 1.png)"
    ]
    (line,) = before.differences(record(tmp_path / "d", {"0.png": "0", "1.png": "1", "2.png": "2"}, "hole"))
    assert "3 with another mask or label" in line


def test_a_record_survives_its_csv_with_any_name(tmp_path: Path) -> None:
    names = {"a,b.png": "0", 'c"d\ne.png': "1", os.fsdecode(b"\xff.png"): "2"}
    before = record(tmp_path / "a", names)
    path = tmp_path / "data.csv"
    path.write_bytes(before.to_csv().encode("utf-8", "surrogateescape"))
    assert DataRecord.read(path).rows == before.rows
    assert DataRecord.read(path).digests() == before.digests()


def test_group_and_object_of_an_image_are_part_of_what_a_run_knows(tmp_path: Path) -> None:
    rows = [ImageRecord("test", f"{i}.png", "good", "0", "a" * 64, "", "", *own) for i, own in enumerate(GROUPS)]
    record = DataRecord(rows)
    (tmp_path / "data.csv").write_text(record.to_csv())
    assert DataRecord.read(tmp_path / "data.csv").rows == record.rows
    assert record.to_csv().splitlines()[0].endswith(",mask_sha256,class_name,group,unit")
    plain = DataRecord([replace(row, group="", unit="") for row in rows])
    others = [
        DataRecord([replace(rows[0], group="night"), *rows[1:]]),
        DataRecord([*rows[:2], replace(rows[2], unit="b")]),
    ]
    swapped = DataRecord([replace(rows[0], group="", unit="day"), *rows[1:]])
    digests = [found.digests()["test"]["sha256"] for found in (record, plain, *others, swapped)]
    assert len(set(digests)) == 5
    (line,) = record.differences(others[0])
    assert "1 with another mask or label (e.g. 0.png)" in line
    assert plain.to_csv().splitlines()[0] == "split,path,defect,anomalous,sha256,mask_sha256"


GROUPS = (("day", ""), ("", ""), ("", "object 1"), ("day", "object 1"))

# --- commands ---


def other_root(root: Path) -> Path:
    shutil.copytree(root, root.with_name("other"))
    for number, path in enumerate(sorted((root.with_name("other") / "bottle/train/good").iterdir())):
        paint(path, np.random.default_rng(100 + number), defect=False)
    return root.with_name("other")


def more_images(root: Path) -> Path:
    paint(root / "bottle/train/good/900.png", np.random.default_rng(900), defect=False)
    return root


def other_test_image(root: Path) -> Path:
    exchange(root / "bottle/test/good/000.png", (root / "bottle/test/good/001.png").read_bytes())
    return root


def other_mask(root: Path) -> Path:
    masks = sorted((root / "bottle/ground_truth").rglob("*.png"))
    masks[0].write_bytes(masks[1].read_bytes())
    return root


CHANGES: dict[Callable[[Path], Path], str] = {
    other_root: "train: 8 images, 8 are there now: 0 new, 0 gone, 8 changed",
    more_images: "train: 8 images, 9 are there now: 1 new, 0 gone, 0 changed",
    other_test_image: "test: 6 images, 6 are there now: 0 new, 0 gone, 1 changed",
    other_mask: "1 with another mask or label",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused_by_what_differs(
    change: Callable[[Path], Path], flags: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags) == 0
    before = record_of(tmp_path / RUN)
    flags[1] = change(flags[1])
    capsys.readouterr()
    assert train(*flags) == 2
    error = capsys.readouterr().err
    assert CHANGES[change] in error and "--name" in error and "--fresh" in error and error.count("\n") == 1
    assert record_of(tmp_path / RUN) == before
    assert train(*flags, "--name", "other") == 0
    assert train(*flags, "--fresh") == 0


def test_the_same_data_elsewhere_are_the_same_run(
    flags: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags) == 0
    shutil.copytree(flags[1], tmp_path / "deep/er/copy")
    flags[1] = tmp_path / "deep"
    assert train(*flags) == 0
    assert "finished already" in capsys.readouterr().out


def test_an_interrupted_run_never_goes_on_with_other_data(
    flags: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(attempt, "score", stop)
        assert train(*flags) == 130
    flags[1] = more_images(flags[1])
    assert train(*flags) == 2
    assert "1 new" in capsys.readouterr().err
    assert not (tmp_path / RUN / "metrics.json").exists()


def test_images_that_change_while_a_run_is_made_give_no_metrics(
    flags: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = attempt.train

    def train_and_change(*arguments: Any) -> None:
        own(*arguments)
        other_test_image(flags[1])

    monkeypatch.setattr(attempt, "train", train_and_change)
    assert train(*flags) == 2
    assert "changed while they were in use" in capsys.readouterr().err
    assert not (tmp_path / RUN / "metrics.json").exists()


def test_a_folder_without_a_resume_point_is_taken_over(
    flags: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("before the first epoch")

    with monkeypatch.context() as patched:
        patched.setattr(attempt, "train", fail)
        assert train(*flags, "--batch_size", 3) == 2
    assert (tmp_path / RUN / "config.json").exists()
    assert train(*flags, "--batch_size", 4) == 0
    assert record_of(tmp_path / RUN)["batch_size"] == 4


@pytest.mark.parametrize("gone", ["config.json", "data.csv"])
def test_a_run_with_a_file_missing_is_not_trained_anew(
    gone: str, flags: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags) == 0
    (tmp_path / RUN / gone).unlink()
    before = {path: path.read_bytes() for path in (tmp_path / RUN).iterdir()}
    capsys.readouterr()
    code = train(*flags)
    captured = capsys.readouterr()
    if gone == "config.json":
        assert code == 2 and "without config.json" in captured.err and captured.err.count("\n") == 1
    else:
        assert code == 0 and "finished already" in captured.out
    assert {path: path.read_bytes() for path in (tmp_path / RUN).iterdir()} == before


def test_more_epochs_go_on_and_end_as_if_they_had_been_asked_for_at_once(flags: list[Any], tmp_path: Path) -> None:
    assert train(*flags) == 0
    assert train(*flags, "--epochs", 3) == 0
    assert train(*flags, "--epochs", 3, "--save_path", tmp_path / "at_once") == 0
    longer, at_once = (record_of(tmp_path / name / "mvtec/rd4ad/bottle/seed111") for name in ("runs", "at_once"))
    assert longer["epochs_trained"] == 3 and longer["metrics"] == at_once["metrics"]
    files = (tmp_path / name / "mvtec/rd4ad/bottle/seed111/predictions.csv" for name in ("runs", "at_once"))
    assert len({path.read_bytes() for path in files}) == 1


def test_without_the_optimizer_more_epochs_are_refused(
    flags: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags, "--keep_optimizer", 0) == 0
    small = (tmp_path / RUN / "checkpoint.pt").stat().st_size
    assert train(*flags, "--epochs", 2) == 2
    assert "--keep_optimizer 0" in capsys.readouterr().err
    assert record_of(tmp_path / RUN)["epochs_trained"] == 1  # it is still there
    assert train(*flags, "--fresh") == 0
    assert (tmp_path / RUN / "checkpoint.pt").stat().st_size > 2 * small


def test_a_folder_that_is_removed_meanwhile_is_made_again(
    flags: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = loop.train_epoch

    def remove_and_train(*arguments: Any) -> dict[str, float]:
        shutil.rmtree(tmp_path / "runs")
        return own(*arguments)

    monkeypatch.setattr(loop, "train_epoch", remove_and_train)
    assert train(*flags) == 0
    assert train(*flags) == 0
    assert score_again(tmp_path / RUN, "--verify") == 0


# --- one writer ---

HOLD = """
import sys
from pathlib import Path
from run_files.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_says_who_writes_and_leaves_the_run_alone(
    flags: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / RUN)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        assert train(*flags, "--wait", 0) == 1
        output = capsys.readouterr().out
        assert f"process {other.pid} on " in output and "1 run is not in the tables" in output
        assert train(*flags, "--fresh", "--wait", 0) == 1
        assert [path.name for path in (tmp_path / RUN).iterdir()] == [".lock"]
        other.kill()  # a lock ends with its process
    assert train(*flags) == 0
    assert not (tmp_path / RUN / ".lock").exists()


def test_a_lock_has_one_owner_and_leaves_no_file(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "run"):
        with pytest.raises(Busy, match=f"process {os.getpid()} on "), FolderLock(tmp_path / "run"):
            pass
        assert (tmp_path / "run/.lock").exists()
    assert not list((tmp_path / "run").iterdir())


# --- verification ---


def edit(name: str, *keys: str, value: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        content = json.loads((run / name).read_text())
        place = content
        for key in keys[:-1]:
            place = place[key]
        assert place[keys[-1]] != value
        place[keys[-1]] = value
        (run / name).write_text(json.dumps(content))

    return change


def drop(key: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        content = json.loads((run / "metrics.json").read_text())
        del content[key]
        (run / "metrics.json").write_text(json.dumps(content))

    return change


def edit_scores(change: Callable[[str], str]) -> Callable[[Path], None]:
    def edited(run: Path) -> None:
        rows = (run / "predictions.csv").read_text().splitlines()
        path, defect, anomalous, score, *rest = rows[2].split(",")
        rows[2] = ",".join([path, defect, anomalous, change(score), *rest])
        (run / "predictions.csv").write_text("\n".join(rows) + "\n")

    return edited


def drop_a_line(run: Path) -> None:
    rows = (run / "predictions.csv").read_text().splitlines()
    (run / "predictions.csv").write_text("\n".join(rows[:-1]) + "\n")


EDITS: list[tuple[str, Callable[[Path], None]]] = [
    ("image metrics", edit("metrics.json", "metrics", "image_auroc", value=0.123)),
    ("metrics", edit("metrics.json", "metrics", "pixel_auroc", value=0.5)),
    ("metrics", edit("metrics.json", "metrics", "aupro", value=0.99)),
    ("settings and counts", edit("metrics.json", "n_test", value=600)),
    ("settings and counts", edit("metrics.json", "n_train", value=1)),
    ("metrics.json", edit("metrics.json", "epochs_trained", value=200)),
    ("metrics.json", edit("metrics.json", "n_test", value="many")),
    ("settings and counts", edit("metrics.json", "net", value="wide_res50")),
    ("settings and counts", edit("metrics.json", "seed", value=7)),
    ("settings and counts", edit("metrics.json", "image_size", value=512)),
    ("oracle", edit("metrics.json", "oracle", value={"epoch": 1, "rule": "mine", "metrics": {}})),
    ("config.json", edit("metrics.json", "identity_sha256", value="0" * 64)),
    ("settings and counts", drop("n_train")),
    ("metrics.json", drop("oracle")),
    ("metrics.json", drop("metrics")),
    ("predictions.csv", edit_scores(lambda score: f"{float(score) * 1.5:.9g}")),
    ("scores", edit_scores(lambda score: "nan")),
    ("scores", edit_scores(lambda score: "high")),
    ("scores", edit_scores(lambda score: f"{score},x,y")),
    ("scores", lambda run: (run / "predictions.csv").unlink()),
    ("scores", drop_a_line),
]


def test_verification_finds_every_edit_and_confirms_an_untouched_run(
    flags: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags) == 0
    capsys.readouterr()
    assert score_again(tmp_path / RUN, "--verify") == 0
    assert capsys.readouterr().out.endswith("verified: the run is as recorded\n")
    for number, (name, change) in enumerate(EDITS):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / RUN, copy)
        change(copy)
        code = score_again(copy, "--verify")
        captured = capsys.readouterr()
        if "identity_sha256" in (copy / "metrics.json").read_text() and name == "config.json":
            assert code == 2 and "no finished run" in captured.err  # the two files do not fit
        else:
            assert code == 1, name
            assert name in captured.out.splitlines()[-1].removeprefix("DIFFERENT: ").split(", ")


def test_verification_says_whether_data_or_model_changed(
    flags: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags) == 0
    checkpoint = tmp_path / RUN / "checkpoint.pt"
    content = checkpoint.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    checkpoint.write_bytes(changed)
    assert score_again(tmp_path / RUN, "--verify") == 1
    assert "checkpoint.pt" in capsys.readouterr().out.splitlines()[-1]
    assert score_again(tmp_path / RUN) == 2  # never scored without a word
    checkpoint.write_bytes(content)
    paint(flags[1] / "bottle/test/good/000.png", np.random.default_rng(9), defect=True)
    assert score_again(tmp_path / RUN, "--verify") == 1
    output = capsys.readouterr().out
    assert "data: test: 6 images, 6 are there now: 0 new, 0 gone, 1 changed" in output
    assert score_again(tmp_path / RUN) == 1
    assert "DIFFERENT from the recorded metrics; the data: test: 6 images" in capsys.readouterr().out
    shutil.rmtree(flags[1] / "bottle/train")
    assert score_again(tmp_path / RUN) == 1
    assert "the training images cannot be compared" in capsys.readouterr().out


def test_a_sweep_is_verified_run_by_run(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data_path", mvtec_tree(), "--variant", "rd4ad", "--save_path", tmp_path / "runs", "--epochs", 1]
    assert train_command(*flags, "--seeds", 1, 2) == 0
    assert summarize.main([str(tmp_path / "runs"), "--verify"]) == 0
    edit("metrics.json", "n_test", value=600)(tmp_path / "runs/mvtec/rd4ad/bottle/seed2")
    capsys.readouterr()
    assert summarize.main([str(tmp_path / "runs"), "--verify"]) == 1
    output = capsys.readouterr().out
    assert "1 of 2 runs verified" in output and "seed2" in output and "settings and counts" in output


def test_prediction_warns_of_images_that_training_never_saw(
    flags: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags) == 0
    images = flags[1] / "bottle/test/good"
    capsys.readouterr()
    assert score_again(tmp_path / RUN, "--images", images) == 0
    assert "warning" not in capsys.readouterr().err
    Image.fromarray(np.full((64, 200), 90, np.uint8)).save(tmp_path / "wide.png")
    assert score_again(tmp_path / RUN, "--images", images, tmp_path / "wide.png") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 4 and all("1 of 4 images" in line and "wide.png" in line for line in warnings)
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(tmp_path / "bright.png")
    assert score_again(tmp_path / RUN, "--images", images, tmp_path / "bright.png") == 0
    error = capsys.readouterr().err
    assert "1 of 4 images have a mean brightness that no training image had" in error and "bright.png: 255" in error


def test_predictions_are_read_back(flags: list[Any], tmp_path: Path) -> None:
    assert train(*flags) == 0
    path = tmp_path / RUN / "predictions.csv"
    assert [str(row.path) for row in read_predictions(path)] == [row["path"] for row in rows_of(path)]
    assert Run(tmp_path / RUN).finished
