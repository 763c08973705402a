"""The benchmark compares like with like, runs from end to end, and fails where a ratio is below its floor."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.resnet import BasicBlock, ResNet
from toys import CPU

from benchmarks import plain, run, sections, sweep, tables
from benchmarks.data import CLASS_NAME, write_images
from benchmarks.implementations import (
    Settings,
    ThisProject,
    WithoutChannelsLast,
    WithoutFastGradients,
    published,
)
from benchmarks.timing import Quartiles, alternate, count_gflop
from commandline import exit_code
from engine import train_one_epoch
from feature_cache import CachePolicy, FeatureCache
from model.teacher import TEACHERS, ResNetSpec, TeacherSpec

SIZE, IMAGES = 64, 16
TINY = "--net res18 --image_size 64 --batch_size 2 --images 2 --repeats 1 --threads 1".split()


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def res10(monkeypatch: pytest.MonkeyPatch) -> str:
    """ResNet-18 without every other block, since convolutions in float64 are slow."""
    monkeypatch.setitem(TEACHERS, "res10", TeacherSpec("", "", ResNetSpec(BasicBlock, (1, 1, 1, 1))))
    monkeypatch.setitem(plain.TEACHERS, "res10", lambda weights: ResNet(BasicBlock, [1, 1, 1, 1]))
    return "res10"


def both_implementations(root: Path, net: str = "res18") -> tuple[plain.Plain, ThisProject]:
    write_images(root / CLASS_NAME, (IMAGES, IMAGES // 2, IMAGES // 2), 2 * SIZE)
    torch.save(plain.random_teacher(net).state_dict(), root / "teacher.pth")
    settings = Settings(net, SIZE, 4, IMAGES, 1, CPU, root)
    return published(settings)[0], ThisProject(settings)


def test_both_implementations_take_the_same_20_steps(tmp_path: Path, in_float64: None, res10: str) -> None:
    network, ours = both_implementations(tmp_path, res10)
    start = copy.deepcopy(ours.distiller.student.state_dict())
    optimizer, samples = plain.build_optimizer(network), ours.train_images.samples
    order = [index % IMAGES for index in range(20 * 2)]
    expected = plain.train(network, optimizer, samples, order, SIZE, 2)

    features = FeatureCache(ours.teacher, ours.train_images, CachePolicy("none"))
    recipe = ours.config.recipe
    found = [
        train_one_epoch(ours.distiller, [batch], ours.optimizer, recipe)["loss"] for batch in features.batches(order, 2)
    ]
    assert len(found) == 20
    assert found[-1] < 0.8 * found[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    for name, value in network.student.state_dict().items():
        assert torch.allclose(value, ours.distiller.student.state_dict()[name], atol=1e-6), name
        assert not value.is_floating_point() or not torch.equal(value, start[name])


def test_the_published_step_does_what_it_is_timed_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four terms of which two are used, a teacher in the graph, its last stage unused, and no frozen weight."""
    network, ours = both_implementations(tmp_path)
    optimizer = plain.build_optimizer(network)
    (images,) = plain.decoded_batches(ours.train_images.samples, range(4), SIZE, 4)
    network.train()
    before = network.teacher.conv1.weight.clone()
    calls: list[int] = []
    compute_losses = plain.compute_losses

    def counted(*levels: Any) -> Any:
        calls.append(1)
        return compute_losses(*levels)

    monkeypatch.setattr(plain, "compute_losses", counted)
    losses = [plain.train_step(network, optimizer, images) for _ in range(2)]
    assert len(calls) == 4
    assert losses[1] != losses[0]
    assert network.teacher.conv1.weight.grad is not None
    assert torch.equal(network.teacher.conv1.weight, before)
    assert all(parameter.grad is None for parameter in network.teacher.layer4.parameters())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for part in (network.bottleneck, network.student) for p in part.parameters()}


def test_both_implementations_find_the_same_metrics(tmp_path: Path) -> None:
    network, ours = both_implementations(tmp_path)
    expected = plain.evaluate(network, ours.test_images.samples, SIZE, ours.device)
    result = ours.detector().evaluate(ours.test_images, keep_maps=True)
    found = result.report.values
    assert set(expected) == {"image_auroc", "pixel_auroc", "aupro_per_image"}
    assert found["image_auroc"] == pytest.approx(expected["image_auroc"], abs=1e-5)
    assert found["pixel_auroc"] == pytest.approx(expected["pixel_auroc"], abs=1e-5)
    # 200 thresholds in a range of 0.2: a pixel that lies on one falls to either side by rounding, worth 1e-5 each;
    # below, on the very same maps, it is the same metric
    assert found["aupro_per_image"] == pytest.approx(expected["aupro_per_image"], abs=5e-4)
    assert result.maps is not None and result.masks is not None
    masks = np.array(result.masks)
    areas = [plain.aupro(masks[[i]], result.maps[[i]]) for i in np.flatnonzero(masks.any(axis=(1, 2)))]
    assert found["aupro_per_image"] == pytest.approx(np.mean(areas), abs=1e-9)


def test_the_plain_aupro_of_a_map_that_is_the_mask_counts_regions_alike() -> None:
    """Two regions of 1 and 8 pixels: every threshold finds the first, none with FPR < 0.3 finds the second."""
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 0, 0] = mask[0, 6, :] = True
    scores = np.linspace(0.5, 0.9, 64).reshape(1, 8, 8)
    scores[0, 0, 0], scores[0, 6, :] = 1.0, 0.0
    assert plain.aupro(mask, scores) == pytest.approx(0.5, abs=1e-9)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the rows that compile, which takes a minute each."""
    configurations = sections.configurations
    monkeypatch.setattr(sections, "configurations", lambda settings, compiled=False: configurations(settings))


def test_a_run_writes_all_sections(tmp_path: Path, capsys: pytest.CaptureFixture[str], uncompiled: None) -> None:
    out = tmp_path / "speed.json"
    command = [*TINY, "--images", "8", "--sections", *sections.SECTIONS, "--one_process", "--out", str(out)]
    assert run.main(command) == 0
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    left_out = set() if find_spec("anomalib") else {"anomalib"}
    assert {row["section"] for row in record["rows"]} == set(sections.SECTIONS) - left_out
    assert {"torch", "numpy", "torchvision"} <= set(record["versions"])
    assert set(record["peaks"]["fp32"]) == {"matrix product", "convolution"}
    assert record["settings"]["image_size"] == 64
    for row in record["rows"]:
        assert f"{row['section']}: {row['name']}" in printed
        assert row["peak_gib"] is None, "in one process, no peak is an implementation's own"
        assert row["seconds"]["low"] == row["seconds"]["median"] == row["seconds"]["high"] > 0
        assert (row["gflop"] is None) == (row["of_peak"] is None)
        assert (row["ratio"] is None) == (row["against"] == "")
    rows = {(row["section"], row["name"]): row for row in record["rows"]}
    step, published = rows["step", "ours fp32"], rows["step", "plain"]
    for row in record["rows"]:
        assert row["section"] != "tricks" or row["difference"] is None or row["difference"] < 1e-5, (
            "the same first loss"
        )
    assert step["ratio"]["median"] == pytest.approx(published["seconds"]["median"] / step["seconds"]["median"])
    assert 0 < step["gflop"] < published["gflop"]  # the teacher's features are cached: less is computed
    assert step["difference"] < 1e-5, "the same first loss"
    assert rows["evaluation", "ours fp32"]["difference"] < 1e-2, "200 thresholds, and few pixels at this size"
    assert rows["inference", "ours fp32, 2 images"]["difference"] < 1e-4
    page = tmp_path / "speed.md"
    page.write_text("before\n<!-- table:speed -->\n<!-- /table:speed -->\nafter\n")
    assert tables.main([str(out), "--into", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(record["rows"]) + 2
    assert "step: ours fp32 against plain (one process)" in page.read_text()
    assert record["revision"] in page.read_text() and lines[0] == "before" and lines[-1] == "after"
    known = {key[:2] for key in run.FLOORS if key[2] != "adeval"}
    optional = {key for key in known if any(word in key[1] for word in ("compiled", "16 images"))}
    assert known - optional <= set(rows), "every floor has its row"


def test_implementations_in_processes_of_their_own_measure_their_memory(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    assert run.main([*TINY, "--sections", "step", "--out", str(out)]) == 0
    found, ours, *_ = json.loads(out.read_text())["rows"]  # bf16 too, where it is in hardware
    assert ours["difference"] < 1e-5
    assert 0.2 < ours["peak_gib"] < 3 and 0.2 < found["peak_gib"] < 3


def test_the_tricks_of_fast_are_left_out_one_by_one(tmp_path: Path) -> None:
    """Each implementation has the layout and the convolutions that its row names; all of them take the same step."""
    write_images(tmp_path / CLASS_NAME, (4, 2, 2), 2 * SIZE)
    torch.save(plain.random_teacher("res18").state_dict(), tmp_path / "teacher.pth")
    settings = Settings("res18", SIZE, 4, 4, 1, CPU, tmp_path)
    projects: dict[tuple[bool, bool], ThisProject] = {
        (True, True): ThisProject(settings),
        (False, True): WithoutFastGradients(settings),
        (True, False): WithoutChannelsLast(settings),
    }
    losses = []
    for (fast_gradients, channels_last), project in projects.items():
        layout = torch.channels_last if channels_last else torch.contiguous_format
        features = next(project.features.batches(range(4), 4)).clean
        for level in (*features, *project.distiller.student_features(features)):
            assert level.is_contiguous(memory_format=layout)
        parts = (project.distiller.bottleneck, project.distiller.student)
        layers = {type(module).__module__ for part in parts for module in part.modules()}
        assert ("model.fast_convolution" in layers) == fast_gradients
        losses.append([project.train(range(4))["loss"] for _ in range(2)])
    np.testing.assert_allclose(losses, losses[:1] * 3, rtol=1e-4)


def test_the_tricks_are_timed_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[dict[str, sections.Implementation]] = []

    def compare(section: str, compared: dict[str, sections.Implementation], settings: Settings) -> list[sections.Row]:
        pairs.append(compared)
        return []

    monkeypatch.setattr(sections, "compare", compare)
    sections.tricks(Settings("res18", SIZE, 2, 2, 1, CPU, Path()))
    keeps_memory = {name: implementation.keeps_memory for pair in pairs for name, implementation in pair.items()}
    assert all(list(pair)[1:] == ["ours fp32"] for pair in pairs) and len(pairs) == 4
    assert [name for name, keeps in keeps_memory.items() if not keeps] == [
        "ours fp32, --fast 0",
        "ours fp32, default allocator",
    ]


def test_without_anomalib_its_section_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sections, "find_spec", lambda name: None)
    assert run.main([*TINY, "--sections", "anomalib"]) == 0
    printed = capsys.readouterr().out
    assert "pip install 'anomalib==2.7.*'" in printed and "speed-up" not in printed


@pytest.mark.skipif(find_spec("anomalib") is None, reason="anomalib is not installed")
def test_anomalib_does_the_same_work(tmp_path: Path) -> None:
    """The same network: without a feature cache, a step and a forward pass of ours cost what anomalib's do."""
    out = tmp_path / "speed.json"
    assert run.main([*TINY, "--sections", "anomalib", "--one_process", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    gflop = {row["name"]: row["gflop"] for row in record["rows"]}
    assert gflop["step, ours fp32, no features cached"] == pytest.approx(gflop["step, anomalib"], rel=0.2)
    assert gflop["step, ours fp32, features cached"] < gflop["step, anomalib"]
    assert gflop["inference, ours fp32"] == pytest.approx(gflop["inference, anomalib"], rel=0.02)
    assert record["versions"]["anomalib"] in tables.conditions(record)


def test_an_error_in_a_process_of_its_own_comes_back(tmp_path: Path) -> None:
    missing = Settings("res18", SIZE, 2, 2, 1, CPU, tmp_path)
    with pytest.raises(FileNotFoundError, match="teacher.pth"):
        sections.step(missing)


def test_a_small_sweep_over_all_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep.json"
    flags = "--net res18 --image_size 64 --batch_size 2 --epochs 1 --scale 0.01 --device cpu --precision fp32".split()
    assert sweep.main([*flags, "--out", str(out)]) == 0
    assert "15 classes, 1 epochs, fp32, scored: " in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert len(record["images"]) == 15 and record["images"]["hazelnut"] == [4, 1, 1]
    assert sum(counts[0] for counts in sweep.MVTEC.values()) == 3629
    assert sum(sum(counts[1:]) for counts in sweep.MVTEC.values()) == 1725
    assert 0 < record["share of the peak"] < 1


def test_a_ratio_below_its_floor_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uncompiled: None
) -> None:
    command = [*TINY, "--sections", "inference", "--one_process", "--check"]
    assert exit_code(lambda: run.main(command)) == 2
    assert "--image_size 256" in capsys.readouterr().err, "floors are for their own sizes"
    same = {"net": "res18", "image_size": 64, "batch_size": 2, "images": 2, "device": "cpu"}
    monkeypatch.setattr(run, "SIZES", same)
    key = ("inference", "ours fp32", "plain")
    for floor, code, verdict in ((1e9, 1, "BELOW: inference, ours fp32"), (1e-9, 0, "ok: inference, ours fp32")):
        monkeypatch.setattr(run, "FLOORS", {key: floor})
        assert run.main(command) == code
        assert verdict in capsys.readouterr().out
    assert run.check([]) == 1, "nothing checked is no success"


def test_calls_alternate_and_arithmetic_is_counted() -> None:
    made: list[str] = []

    def taking(name: str, seconds: float) -> Callable[[], float]:
        return lambda: made.append(name) or seconds  # type: ignore[func-returns-value]

    taken = alternate({"a": taking("a", 1.0), "b": taking("b", 2.0)}, 3)
    assert made == list("abbaab")
    assert {name: seconds.tolist() for name, seconds in taken.items()} == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert Quartiles.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Quartiles(2.0, 3.0, 4.0)
    gflop, product = count_gflop(lambda: torch.ones(10, 20) @ torch.ones(20, 30))
    assert gflop == pytest.approx(2 * 10 * 20 * 30 / 1e9)
    assert product.shape == (10, 30)


def test_implementations_start_from_equal_weights(tmp_path: Path) -> None:
    network, ours = both_implementations(tmp_path)
    for part in ("bottleneck", "student"):
        wanted = getattr(network, part).state_dict()
        state = getattr(ours.distiller, part).state_dict()
        assert wanted.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in wanted.items())
    layers = {type(module) for part in (network.bottleneck, network.student) for module in part.modules()}
    assert not any(layer.__module__ == "model.fast_convolution" for layer in layers), (
        "the published loop uses torch's own"
    )
