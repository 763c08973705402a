"""Run files before use: each error names file and field; what was not written by this project is not taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import published_state, record_of, score_again, train

from config import Config
from methods import Training
from model import build_teacher, load_published
from model.checkpoints import check_integrity, load_checked, read_torch_file
from report.results import collect
from run_files import CHECKPOINT, CONFIG, METRICS, Run, checkpoints, checks
from scripts import damaged_files
from scripts.damaged_files import changed, checkpoint_state, config_record, metrics_record, small_network


def put(folder: Path, name: str, content: Any) -> Path:
    """A run's file with this content; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if name == CHECKPOINT:
        torch.save(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refusal(path: Path, use: Callable[[], object]) -> str:
    """The error of using a run's file: one line, which begins with the path and names --fresh as the user's choice."""
    with pytest.raises(ValueError) as problem:
        use()
    text = str(problem.value)
    assert text.startswith(str(path)) and text.endswith(checks.REMEDY) and "--fresh" in text
    assert "\n" not in text
    return text


def test_what_was_written_is_taken(tmp_path: Path) -> None:
    assert checks.read_config(put(tmp_path, CONFIG, config_record())) == config_record()
    assert checkpoints.load_checkpoint(put(tmp_path, CHECKPOINT, checkpoint_state()))["color_scale"] == (0.25, 0.75)
    assert collect([put(tmp_path, METRICS, metrics_record()).parent]) == [metrics_record()]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("metrics.aupro", 1.5, "metrics must be a table of metrics, which are fractions in 0..1 or null"),
        ("metrics.aupro", True, "metrics must be"),
        ("metrics.aupro", 0.5, "metrics.aupro must be null where reasons.aupro says why"),
        ("metrics.image_auroc", None, "metrics.image_auroc must be null where reasons"),
        ("seed", 1.0, "seed must be a whole number of at most 64 bits, found 1.0"),
        ("seed", 10**60, "seed must be a whole number of at most 64 bits, found a number of more than 40 digits"),
        ("benchmark", "", "benchmark must be a text that is not empty, found ''"),
        ("name", 3, "name must be a text that is not empty or null, found 3"),
        ("oracle.epoch", True, "oracle.epoch must be a whole number, at least 0, found True"),
        ("oracle.metrics.image_auroc", -0.1, "oracle.metrics must be"),
        ("epochs_trained", 3, "epochs_trained is 3, more than epochs, 2"),
        ("n_anomalous", 7, "n_anomalous is 7, more than n_test, 6"),
        ("train_seconds", -1, "train_seconds must be a finite number, at least 0, found -1"),
        ("normalized.image.low", "x", "normalized.image.low must be a finite number, found 'x'"),
        ("normalized.pixel.low", 2, "normalized.pixel must be threshold, low, high, low <= high"),
        ("normalized.image_f1", 2, "normalized.image_f1 must be a fraction in 0..1 or null, found 2"),
        ("normalized.image", None, "normalized.image must be a table by name, found None"),
        ("versions.torch", 2, "versions must be a table of texts by name"),
    ],
)
def test_a_wrong_value_in_metrics_json_names_its_field(field: str, value: Any, says: str, tmp_path: Path) -> None:
    path = put(tmp_path, METRICS, changed(metrics_record(), tuple(field.split(".")), lambda _: value))
    assert says in refusal(path, lambda: collect([tmp_path]))
    assert says in refusal(path, lambda: Run(tmp_path).read(METRICS))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("config.epochs", "3", "epochs must be a whole number, found '3'"),
        ("config.epochs", -1, "--epochs -1: must be at least 0"),
        ("config.color", "red", "fields this version does not know: color"),
        ("config", [], "config must be a table by name, found []"),
        ("identity", None, "identity must be a table by name, found None"),
        ("identity.teacher_weights", 5, "identity.teacher_weights must be a text"),
        ("hardware", 5, "hardware must be a text"),
    ],
)
def test_a_wrong_value_in_config_json_names_its_field(field: str, value: Any, says: str, tmp_path: Path) -> None:
    record = config_record()
    record["config"]["color"] = None
    if field != "config.color":
        del record["config"]["color"]
    path = put(tmp_path, CONFIG, changed(record, tuple(field.split(".")), lambda _: value))
    assert says in refusal(path, lambda: Run(tmp_path).read(CONFIG))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"[]", "the content must be a table by name, found []"),
        (b'{"seed": NaN}', "the number NaN is not finite"),
        (b'{"seed": -Infinity}', "the number -Infinity is not finite"),
        (b'{"seed": 1e999}', "the number 1e999 is not finite"),
        (b'{"seed": 1, "seed": 2}', "the key 'seed' occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"name": "\xff"}', "not UTF-8 at byte 10"),
    ],
)
def test_what_is_no_json_of_ours_is_a_line(content: bytes, says: str, tmp_path: Path) -> None:
    for name in (CONFIG, METRICS):
        path = put(tmp_path, name, content)
        assert says in refusal(path, lambda name=name: Run(tmp_path).read(name))  # type: ignore[misc]


def test_a_folder_in_place_of_a_file_is_a_line(tmp_path: Path) -> None:
    for name in (CONFIG, METRICS):
        (tmp_path / name).mkdir()
        with pytest.raises(FileNotFoundError, match=name):
            Run(tmp_path).read(name)


# --- checkpoint.pt ---


def restore(folder: Path) -> None:
    Run(folder).restore(*small_network(), Training(epochs=3))


WEIGHT, MOMENT = ("trained", "student", "0.weight"), ("optimizer", "state", 0, "exp_avg")


@pytest.mark.parametrize(
    ("place", "change", "says"),
    [
        (WEIGHT, lambda t: t.double(), "the checkpoint's student does not fit: it has 0.weight of torch.float64 for"),
        (WEIGHT, lambda t: t.to_sparse(), "0.weight of torch.sparse_coo for torch.float32"),
        (WEIGHT, lambda t: t.index_fill(0, torch.tensor([1]), torch.nan), "0.weight with NaN or infinite values"),
        (WEIGHT, lambda t: t[:2], "0.weight (2, 3, 3, 3) for (4, 3, 3, 3)"),
        (WEIGHT, lambda t: t.to("meta"), "0.weight without values"),
        (WEIGHT, lambda t: t.tolist(), "trained.student must be a table of tensors by name"),
        (WEIGHT, None, "it lacks 0.weight"),
        (("raw", *WEIGHT[1:]), lambda t: t.tolist(), "raw.student must be a table of tensors by name"),
        (("raw",), lambda _: 5, "raw must be a table"),
        (("trained", "student", "1.running_var"), lambda t: -t, "1.running_var with negative values"),
        (("trained", "student"), None, "the checkpoint holds ['bottleneck'], but this model has"),
        (("trained",), None, "trained is missing"),
        (("progress",), None, "progress is missing"),
        (("progress", "epoch"), lambda _: True, "progress.epoch must be a whole number, at least 0, found True"),
        (("progress", "epoch"), lambda _: 3, "progress.history must have a finite row for each of the 3 epochs"),
        (("progress", "history", 1, "loss"), lambda _: float("nan"), "progress.history must have a finite row"),
        (("progress", "history", 1), lambda _: 5, "progress.history must be a list of tables of numbers"),
        (("progress", "evaluations", 0, "epoch"), lambda _: 9, "progress.evaluations must hold metrics in 0..1"),
        (("progress", "evaluations", 0, "image_auroc"), lambda _: 7.0, "progress.evaluations must hold metrics in"),
        (("progress", "seconds"), lambda _: float("inf"), "progress.seconds must be a finite number"),
        (("color_scale",), lambda _: (0.5, float("nan")), "color_scale must be None or two finite numbers"),
        (("color_scale",), lambda _: (0.5, 0.5), "color_scale must be None or two finite numbers, the lower one first"),
        (("map_statistics", "mean"), lambda t: t.half(), "map_statistics.mean must be finite, float32, (levels, S, S)"),
        (("map_statistics", "spread"), lambda t: -t, "map_statistics.spread must be finite"),
        (("map_statistics", "spread"), None, "map_statistics must be None or the tensors mean, spread"),
        (
            ("optimizer", "param_groups", 0, "lr"),
            lambda _: 0.1,
            "optimizer.param_groups[0].lr must be 0.005, found 0.1",
        ),
        (("optimizer", "param_groups", 0, "betas"), lambda _: (0.9, 0.999), "param_groups[0].betas must be (0.5, 0.99"),
        (("optimizer", "param_groups", 0, "params"), lambda _: [0], "optimizer.param_groups[0].params must be"),
        (("optimizer", "param_groups"), lambda _: [], "optimizer.param_groups must be a list of 1 tables, found []"),
        (MOMENT, lambda t: t.double(), "optimizer.state[0].exp_avg: of torch.float64 for torch.float32"),
        (MOMENT, lambda t: t[:1], "optimizer.state[0].exp_avg: (1, 3, 3, 3) for (4, 3, 3, 3)"),
        (MOMENT, lambda t: t * torch.inf, "optimizer.state[0].exp_avg: with NaN or infinite values"),
        ((*MOMENT[:3], "exp_avg_sq"), lambda t: -t, "optimizer.state[0].exp_avg_sq: with negative values"),
        (MOMENT, None, "optimizer.state[0] must be the tensors step, exp_avg, exp_avg_sq"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_wrong_value_in_a_checkpoint_names_its_field(
    place: tuple[Any, ...], change: Callable[[Any], Any] | None, says: str, tmp_path: Path
) -> None:
    path = put(tmp_path, CHECKPOINT, changed(checkpoint_state(), place, change))
    assert says in refusal(path, lambda: restore(tmp_path))


def test_a_whole_checkpoint_is_restored_to_the_bit(tmp_path: Path) -> None:
    state = checkpoint_state()
    put(tmp_path, CHECKPOINT, state)
    torch.manual_seed(5)
    distiller, optimizer = small_network()
    for parameter in distiller.parameters():
        torch.nn.init.normal_(parameter)
    Run(tmp_path).restore(distiller, optimizer, Training(epochs=3))
    fingerprint = damaged_files.fingerprint
    assert fingerprint(distiller.trained_state()) == fingerprint(state["trained"])
    assert fingerprint(optimizer.state_dict()) == fingerprint(state["optimizer"])


def test_any_flipped_bit_of_the_weights_is_noticed(tmp_path: Path) -> None:
    path = put(tmp_path, CHECKPOINT, {"weight": torch.zeros(1000)})
    data = path.read_bytes()
    check_integrity(path)
    start = data.index(bytes(4000))
    for offset in range(0, 4000, 97):
        path.write_bytes(data[: start + offset] + b"\x01" + data[start + offset + 1 :])
        with pytest.raises(ValueError, match="the checksum of .* does not hold"):
            check_integrity(path)


def test_a_damaged_index_of_a_checkpoint_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """Every bit of the index. Some make torch.load leave a weight out, some point before the file's beginning."""
    weight = torch.rand(4)
    path = put(tmp_path, CHECKPOINT, {"weight": weight})
    data = path.read_bytes()
    taken = 0
    for position in range(data.index(b"PK\x01\x02"), len(data)):
        for bit in range(8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            try:
                found = read_torch_file(path, "--weights")["weight"]
            except ValueError:
                continue
            assert torch.equal(found, weight), (position, bit)
            taken += 1
    assert taken, "dates and the like carry nothing"


def test_a_checkpoint_of_training_is_none_of_a_finished_run(tmp_path: Path) -> None:
    state = checkpoint_state()
    del state["color_scale"]
    path = put(tmp_path, CHECKPOINT, state)
    put(tmp_path, METRICS, metrics_record())
    assert "color_scale is missing" in refusal(path, Run(tmp_path).load_finished)


@pytest.mark.parametrize(
    ("mode", "shape", "says"),
    [
        ("add", (3, 64, 64), "with the anomaly map standardized only; found the map add"),
        ("standardized", None, "with the anomaly map standardized only; found the map standardized"),
        ("standardized", (2, 64, 64), r"map_statistics must be \(3, 64, 64\), found \(2, 64, 64\)"),
        ("standardized", (3, 32, 32), r"map_statistics must be \(3, 64, 64\)"),
        ("standardized", (3, 64, 64), None),
        ("add", None, None),
    ],
)
def test_map_statistics_are_those_that_the_settings_need(
    mode: str, shape: tuple[int, ...] | None, says: str | None
) -> None:
    config = Config(anomaly_map=mode, image_size=64)
    state = {"map_statistics": None if shape is None else {"mean": torch.rand(shape), "spread": torch.rand(shape)}}
    if says is None:
        checkpoints.check_for_config(state, config)
        return
    with pytest.raises(ValueError, match=says):
        checkpoints.check_for_config(state, config)


# --- weights of others ---


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "is not a table of tensors by name but a list"),
        ({1: torch.ones(1)}, "is not a table of tensors by name: 1 names a Tensor"),
        ({"conv1.weight": "x"}, "is not a table of tensors by name: 'conv1.weight' names a str"),
        ({"conv1.weight": torch.ones(1)}, "does not fit: it lacks bn1.weight"),
    ],
)
@pytest.mark.parametrize("net", ["res18", "efficientnet_lite0"])
def test_a_file_without_a_teachers_weights_is_a_line(content: Any, says: str, net: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError) as problem:
        build_teacher(net, tmp_path / "weights.pth")
    text = str(problem.value)
    assert "\n" not in text and str(tmp_path / "weights.pth") in text
    assert says in text or (net != "res18" and "does not fit: it lacks" in text)


@pytest.mark.parametrize("net", ["res18", "timm/resnet18"])
def test_a_teachers_weights_are_finite_and_whole(net: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    path = tmp_path / "weights.pth"
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "flipped.pth").write_bytes(data)
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"layer2\.0\.conv1\.weight") as problem:
        build_teacher(net, path)
    assert "NaN or infinite" in str(problem.value)
    with pytest.raises(ValueError, match=r"cannot read .*flipped\.pth, which --weights names.* checksum"):
        build_teacher(net, tmp_path / "flipped.pth")


def test_a_timm_file_of_anything_else_is_a_line(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    for content in ([1], {"state_dict": 3}, 7, {"a": {1: 2}}, None):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=r"weights\.pth as weights of timm/resnet18 does not fit") as problem:
            build_teacher("timm/resnet18", tmp_path / "weights.pth")
        assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t * torch.nan, "the decoder of .* with NaN or infinite values"),
        (lambda t: t.half(), "the decoder of .* of torch.float16 for torch.float32"),
        (lambda t: t.flatten(), "the decoder of .* for "),
    ],
)
def test_a_published_checkpoint_has_finite_tensors_of_our_types(change: Any, says: str, tmp_path: Path) -> None:
    from methods import VARIANTS, build_distiller

    state = published_state("res18")
    name = next(name for name in state["decoder"] if name.endswith("conv1.weight"))
    state["decoder"][name] = change(state["decoder"][name])
    torch.save(state, tmp_path / "published.pth")
    distiller = build_distiller(VARIANTS["rd4ad"], build_teacher("res18", "random"))
    with pytest.raises(ValueError, match=says):
        load_published(tmp_path / "published.pth", distiller)


def test_files_of_old_versions_of_torch_are_read_without_checksums(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_torch_file(tmp_path / "old.pth", "--weights")["a"], torch.ones(2))


def test_a_network_stays_as_it_was_where_a_state_does_not_fit() -> None:
    module = torch.nn.BatchNorm2d(2)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state["weight"] += 1
    state["bias"] *= torch.nan
    with pytest.raises(ValueError, match="bias with NaN"):
        load_checked(module, state, "it")
    assert torch.equal(module.weight, torch.ones(2))


# --- the commands ---


def test_a_flipped_weight_is_scored_by_nobody(
    mvtec_tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mvtec_tree()
    flags = ["--data_path", root, "--class", "bottle", "--epochs", 1, "--save_path", tmp_path / "runs"]
    assert train(*flags, "--image_size", 32, "--batch_size", 4) == 0
    (run,) = (path.parent for path in (tmp_path / "runs").rglob(METRICS))
    path, before = run / CHECKPOINT, record_of(run)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    capsys.readouterr()
    assert score_again(run) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and "SHA-256 differs" in error
    assert record_of(run) == before and path.read_bytes() == bytes(data), "nothing of the user's is removed"


def test_a_last_batch_of_one_at_32_pixels_is_refused_before_the_first_epoch(
    mvtec_tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data_path", mvtec_tree(train=9), "--class", "bottle", "--epochs", 1, "--save_path", tmp_path / "runs"]
    assert train(*flags, "--image_size", 32, "--batch_size", 4) == 2
    output, error = capsys.readouterr()
    assert "epoch" not in output
    assert "last batch of 9 training images" in error and error.count("\n") == 1


# --- generated cases, the short form ---


@pytest.mark.parametrize("name", damaged_files.CASES)
@pytest.mark.filterwarnings("ignore")
def test_generated_cases_end_in_a_result_or_in_a_line(name: str) -> None:
    counts, failures = damaged_files.run_cases(name, count=80, seed=10_000)
    assert not failures
    assert min(counts["taken"], counts["refused"]) >= 2


def test_generated_cases_notice_what_goes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "check_integrity", lambda path: None)
    assert damaged_files.run_cases("checkpoint.pt, bytes", count=40, seed=0)[1]
    monkeypatch.setattr(checks, "METRICS_FIELDS", {})
    assert damaged_files.run_cases("metrics.json", count=40, seed=0)[1]
