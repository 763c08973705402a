"""What is faster is the same: folded batch norms, layouts; bf16 is near, and losses stay in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import CPU, MakeTree, random_images, randomize_batch_norms

from config import Config
from engine import compute_losses, train_one_epoch
from experiment import Experiment
from methods import VARIANTS, TeacherFeatures, build_distiller
from model import Distiller, build_teacher
from model.fold_batch_norm import fold_batch_norms
from model.precision import resolve_precision
from run_files.csv_files import read_csv


def close(found: torch.Tensor, wanted: torch.Tensor, share: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=share * float(wanted.abs().max()))


@pytest.mark.parametrize("net", ["res18", "res50", "efficientnet_lite0"])
def test_a_teacher_optimized_for_inference_gives_the_same(net: str) -> None:
    teacher = build_teacher(net, "random")
    randomize_batch_norms(teacher)
    before = teacher(random_images())
    fast = teacher.optimize_for_inference("fp32")
    for ours, theirs in zip(fast(random_images()), before, strict=True):
        close(ours, theirs, 1e-5)
        assert ours.is_contiguous(memory_format=torch.channels_last)
    if net != "efficientnet_lite0":  # timm's norms have their activation inside
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("net", ["res18", "efficientnet_lite0"])
def test_the_network_that_scores_makes_the_same_and_is_a_copy(net: str, variant: str) -> None:
    distiller = build_distiller(VARIANTS[variant], build_teacher(net, "random")).eval()
    randomize_batch_norms(distiller.bottleneck)
    randomize_batch_norms(distiller.student)
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    scorer = distiller.to_inference()
    with torch.no_grad():
        for (_, ours), (_, theirs) in zip(scorer(random_images()), distiller(random_images()), strict=True):
            close(ours, theirs, 1e-5)
    assert scorer.teacher is distiller.teacher
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    assert not any(parameter.requires_grad for parameter in scorer.parameters())


def test_only_a_norm_that_follows_its_convolution_is_folded() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.BatchNorm2d(4), torch.nn.ConvTranspose2d(4, 5, 2, stride=2),
        torch.nn.BatchNorm2d(5),
    ).eval()  # fmt: skip
    randomize_batch_norms(network)
    images = torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        before = network(images)
        fold_batch_norms(network)
        close(network(images), before, 1e-5)
    assert [type(part).__name__ for part in network][2:] == ["BatchNorm2d", "ConvTranspose2d", "Identity"]


def half_step(distiller: Distiller, recipe: Any, precision: str) -> dict[str, torch.Tensor]:
    """One step's terms and the gradient of everything, from corrupted images where the recipe wants them."""
    distiller.teacher.precision = precision
    images = random_images() / 255
    clean = distiller.teacher(images)
    corruption_map = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    features = TeacherFeatures(clean, clean, corruption_map) if recipe.corruption else TeacherFeatures(clean)
    torch.manual_seed(3)
    distiller.zero_grad()
    terms = compute_losses(distiller.train(), features, recipe)
    terms["loss"].backward()
    return terms | {"level": clean[0]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_computes_near_fp32_and_keeps_losses_and_gradients_in_fp32(variant: str) -> None:
    recipe = VARIANTS[variant]
    distiller = build_distiller(recipe, build_teacher("res18", "random"))
    exact, near = half_step(distiller, recipe, "fp32"), half_step(distiller, recipe, "bf16")
    assert near["level"].dtype == torch.bfloat16 and exact["level"].dtype == torch.float32
    for name in exact:
        if name != "level":
            assert near[name].dtype == torch.float32
            assert near[name].item() == pytest.approx(exact[name].item(), rel=0.1, abs=0.02)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in distiller.bottleneck.parameters())


def test_auto_precision_is_bf16_only_where_it_is_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [resolve_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    for there, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert resolve_precision("auto", CPU) == wanted


def test_a_run_in_bf16_with_features_in_a_file_is_scored_again_identically(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Callable[..., int]
) -> None:
    import test as test_command

    flags = ["--data_path", mvtec_tree(), "--class", "bottle", "--save_path", tmp_path / "runs", "--variant", "drd"]
    flags += ["--epochs", 1, "--precision", "bf16", "--cache", "file", "--cache_dir", tmp_path / "features"]
    assert train_command(*flags) == 0
    assert list((tmp_path / "features").iterdir())
    run = tmp_path / "runs/mvtec/drd/bottle/seed111"
    assert test_command.main([str(run), "--device", "cpu"]) == 0
    with pytest.raises(ValueError, match="--precision and --compile go with --images"):
        test_command.main([str(run), "--precision", "fp32"])
    good = tmp_path / "mvtec/bottle/test/good"
    scores = []
    for precision in ("bf16", "fp32"):
        assert test_command.main([str(run), "--images", str(good), "--device", "cpu", "--precision", precision]) == 0
        scores.append([float(row["score"]) for row in read_csv(run / "images/predictions.csv")])
    assert scores[0] == pytest.approx(scores[1], rel=0.25) and scores[0] != scores[1]


def test_fast_0_leaves_out_the_tricks_and_gives_the_same(mvtec_tree: MakeTree) -> None:
    """Layout, gradients and allocator are for speed alone: the losses of an epoch are equal up to rounding."""
    losses = {}
    for fast in (True, False):
        config = Config(data_path=mvtec_tree(), classes=("bottle",), image_size=64, net="res18", weights="random")
        experiment = Experiment(replace(config, fast=fast, batch_size=4), CPU)
        (batch, *_) = experiment.features.batches(range(8), 4)
        layouts = {level.is_contiguous(memory_format=torch.channels_last) for level in batch.clean}
        own = any(part.__module__ == "model.fast_convolution" for part in map(type, experiment.distiller.modules()))
        network = experiment.detector().network
        weights = [p for p in network.student.parameters() if p.dim() == 4 and p.shape[-1] > 1 and p.shape[1] > 1]
        assert layouts == {fast} and own == fast
        assert all(weight.is_contiguous(memory_format=torch.channels_last) == fast for weight in weights)
        training = experiment.config.training
        batches = experiment.features.batches(range(8), training.batch_size)
        losses[fast] = train_one_epoch(experiment.distiller, batches, experiment.optimizer, experiment.config.recipe)
    for name, value in losses[True].items():
        assert losses[False][name] == pytest.approx(value, rel=1e-3)
