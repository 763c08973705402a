"""What is faster is the same: folded batch norms, layouts, features in files; bf16 is near, and losses stay in fp32."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import MakeTree

from dataset import ImageSet
from engine import compute_losses
from experiment import images_of
from feature_cache import KEY, CachePolicy, FeatureCache, stored_levels
from flags import parse
from methods import VARIANTS, TeacherFeatures, build_distiller
from methods.synthetic_anomalies import painter
from model import Distiller, Teacher, build_teacher
from model.fold_batch_norm import fold_batch_norms
from model.precision import resolve

CPU = torch.device("cpu")


def images(batch: int = 2, side: int = 64) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, side, side), generator=draw, dtype=torch.uint8)


def close(found: torch.Tensor, wanted: torch.Tensor, share: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=share * float(wanted.abs().max()))


def settle(network: torch.nn.Module) -> None:
    """Running means and variances as after some training: folding has something to fold."""
    draw = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=draw) - 0.5)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=draw) + 0.5)


@pytest.mark.parametrize("net", ["res18", "res50", "efficientnet_lite0"])
def test_a_teacher_made_fast_sees_the_same(net: str) -> None:
    teacher = build_teacher(net, "random")
    settle(teacher)
    before = teacher(images())
    fast = teacher.optimize_for_inference("fp32")
    for ours, theirs in zip(fast(images()), before, strict=True):
        close(ours, theirs, 1e-5)
        assert ours.is_contiguous(memory_format=torch.channels_last)
    if net != "efficientnet_lite0":  # timm's norms have their activation inside
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("net", ["res18", "efficientnet_lite0"])
def test_the_network_that_scores_makes_the_same_and_is_a_copy(net: str, variant: str) -> None:
    distiller = build_distiller(VARIANTS[variant], build_teacher(net, "random")).eval()
    settle(distiller.bottleneck)
    settle(distiller.student)
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    scorer = distiller.to_inference()
    with torch.no_grad():
        for (_, ours), (_, theirs) in zip(scorer(images()), distiller(images()), strict=True):
            close(ours, theirs, 1e-5)
    assert scorer.teacher is distiller.teacher
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    assert not any(parameter.requires_grad for parameter in scorer.parameters())


def test_only_a_norm_that_follows_its_convolution_is_folded() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.BatchNorm2d(4), torch.nn.ConvTranspose2d(4, 5, 2, stride=2),
        torch.nn.BatchNorm2d(5),
    ).eval()  # fmt: skip
    settle(network)
    images = torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        before = network(images)
        fold_batch_norms(network)
        close(network(images), before, 1e-5)
    assert [type(part).__name__ for part in network][2:] == ["BatchNorm2d", "ConvTranspose2d", "Identity"]


@pytest.fixture
def images(mvtec_tree: MakeTree) -> ImageSet:
    root = mvtec_tree(train=5)
    return images_of(parse(["--data_path", str(root), "--class", "bottle", "--image_size", "64"]), "train")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return build_teacher("efficientnet_lite0", "random")


def counted(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that the teacher looks at from now on."""
    looked: list[int] = []
    plain = Teacher.forward

    def counting(self: Teacher, pixels: torch.Tensor) -> list[torch.Tensor]:
        looked.append(len(pixels))
        return plain(self, pixels)

    monkeypatch.setattr(Teacher, "forward", counting)
    return looked


def levels_of(targets: FeatureCache) -> list[list[torch.Tensor]]:
    return [seen.clean for seen in targets.batches([4, 0, 2, 1, 3], 2)]


def test_features_in_files_are_those_in_memory_and_are_made_once(
    teacher: Teacher, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CachePolicy("file", folder=tmp_path / "features")
    first, memory = (
        FeatureCache(teacher, images, cache, batch_size=3),
        FeatureCache(teacher, images, CachePolicy("features")),
    )
    looked = counted(teacher, monkeypatch)
    again = FeatureCache(teacher, images, cache)
    assert looked == [1]  # one image, to know the shapes
    for expected, *found in zip(levels_of(memory), levels_of(first), levels_of(again), strict=True):
        for level, *others in zip(expected, *found, strict=True):
            assert level.is_contiguous(memory_format=torch.channels_last)
            assert all(other.is_contiguous(memory_format=torch.channels_last) for other in others)
            torch.testing.assert_close(others[0], level, rtol=1e-5, atol=1e-5)
            assert torch.equal(*others)
    (folder,) = (tmp_path / "features").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [KEY, "level0", "level1", "level2"]


@pytest.mark.parametrize("change", ["touched image", "another teacher", "cut file", "another key", "half made"])
def test_features_that_are_not_these_are_made_again(
    teacher: Teacher, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    root = tmp_path / "features"
    cache = CachePolicy("file", folder=root)
    expected = levels_of(FeatureCache(teacher, images, cache))
    (folder,) = root.iterdir()
    if change == "touched image":
        os.utime(images.samples[2].image, (1, 1))
    elif change == "another teacher":
        teacher = build_teacher("efficientnet_lite0", "random", seed=5)
    elif change == "cut file":
        os.truncate(folder / "level1", 100)
    elif change == "another key":
        (folder / KEY).write_text("{}")
    else:
        (folder / KEY).unlink()
    looked = counted(teacher, monkeypatch)
    found = levels_of(FeatureCache(teacher, images, cache))
    assert sum(looked) == 1 + 5
    same = all(
        torch.equal(a, b) for one, two in zip(expected, found, strict=True) for a, b in zip(one, two, strict=True)
    )
    assert same == (change != "another teacher")
    assert not list(tmp_path.glob(".*"))


def test_a_fill_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(levels: list[torch.Tensor]) -> None:
        levels[0][0] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored_levels(tmp_path, {"a": 1}, 2, [torch.zeros(1, 3, 4, 4)], fails)
    assert not list(tmp_path.iterdir())


def test_auto_goes_to_files_where_memory_is_too_small_and_a_folder_is_named(tmp_path: Path) -> None:
    gib = 2**30
    assert CachePolicy("auto", 4).choose(4 * gib, gib, False) == "features"
    assert CachePolicy("auto", 4).choose(4 * gib, gib, True) == "images"
    assert CachePolicy("auto", 4, tmp_path / "not" / "yet").choose(5 * gib, gib, True) == "file"
    assert CachePolicy("auto", 4, tmp_path).choose(2**60, gib, False) == "images"
    assert CachePolicy("auto", 4, tmp_path).choose(2**60, 5 * gib, False) == "none"
    with pytest.raises(ValueError, match="--cache file: wants --cache_dir"):
        parse(["--cache", "file"])


def half_step(distiller: Distiller, recipe: Any, precision: str) -> dict[str, torch.Tensor]:
    """One step's terms and the gradient of everything, from damaged images where the recipe wants them."""
    distiller.teacher.precision = precision
    images = images() / 255
    clean = distiller.teacher(images)
    damage = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    seen = TeacherFeatures(clean, clean, damage) if recipe.corruption_map else TeacherFeatures(clean)
    torch.manual_seed(3)
    distiller.zero_grad()
    terms = compute_losses(distiller.train(), seen, recipe)
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
    assert [resolve(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    for there, wanted in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert resolve("auto", CPU) == wanted


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
        scores.append([float(line.split(",")[1]) for line in (run / "images/scores.csv").read_text().split()[1:]])
    assert scores[0] == pytest.approx(scores[1], rel=0.1) and scores[0] != scores[1]


def test_painted_damage_goes_with_features_in_files(teacher: Teacher, images: ImageSet, tmp_path: Path) -> None:
    targets = FeatureCache(teacher, images, CachePolicy("file", folder=tmp_path), corrupt=painter("copy_paste", 0, 64))
    (seen, *_) = targets.batches([0, 1, 2], 2)
    assert seen.corrupted is not None and len(seen.corrupted[0]) == 2
