"""From a Config to the parts of a run: device, teacher, distiller, images, scoring. The commands build through here."""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._inductor import config as inductor_config

from config import Config
from damage import Painter, painter
from dataset import BENCHMARKS, ImageSet, Source, find_classes, locate
from engine import Evaluation, Scoring, predict
from model import Distiller, Teacher, build_distiller, build_teacher, load_published
from model.precision import resolve
from normalising import Normaliser, f1_figures, normalisers
from overlays import colour_scale
from targets import Cache, Targets

SCORED_PIXELS = 16 * 256**2  # in a batch that is scored: memory does not grow with the image size


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU. Raises ValueError where the device asked for is not to be had."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise ValueError(f"--device {name}: not to be had on this machine ({reason}); use auto or cpu") from None
    return device


def set_determinism(wanted: bool) -> None:
    """Allow only operations that repeat to the bit, or let the libraries choose the fastest.

    On a GPU fp32 means fp32 either way: TF32, which torch allows for convolutions, is off. bf16 is there for speed.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


def source_of(config: Config) -> Source:
    """Where the benchmark lies, its data made if it makes its own. Raises ValueError, FileNotFoundError."""
    source = Source(config.data_path, config.train_dir, config.test_dir, config.mask_dir)
    return locate(BENCHMARKS[config.dataset], source)


def classes_of(config: Config) -> tuple[str, ...]:
    """The classes that a sweep runs, in the benchmark's order. Raises ValueError on a name it does not have."""
    known = find_classes(BENCHMARKS[config.dataset], source_of(config))
    if config.classes == ("all",):
        return known
    unknown = [name for name in config.classes if name not in known]
    if unknown:
        raise ValueError(f"unknown --class {', '.join(unknown)}: {config.dataset} has {', '.join(known) or 'none'}")
    return config.classes


def images_of(config: Config, split: str) -> ImageSet:
    """The training or test images of a run's one class."""
    (class_name,) = config.classes
    benchmark = BENCHMARKS[config.dataset]
    return ImageSet(benchmark.read(source_of(config), class_name, split), config.image_size, benchmark.mask_threshold)


@functools.lru_cache(maxsize=1)
def _teacher(net: str, weights: str, seed: int, device: torch.device, precision: str) -> Teacher:
    return build_teacher(net, weights, seed).to(device).made_fast(precision)


def teacher_of(config: Config, device: torch.device) -> Teacher:
    """The frozen teacher; a sweep shares one, except that random weights are drawn anew from each run's seed."""
    seed = config.seeds[0] if config.weights == "random" else 0
    return _teacher(config.net, config.weights, seed, device, resolve(config.precision, device))


def distiller_of(config: Config, teacher: Teacher) -> Distiller:
    """Bottleneck and student as the run's recipe wants them, from a published checkpoint where one is given."""
    distiller = build_distiller(config.recipe, teacher)
    if config.checkpoint is not None:
        load_published(config.checkpoint, distiller)
    return distiller.to(next(teacher.buffers()).device).made_fast()


def scorer_of(config: Config, distiller: Distiller) -> Distiller:
    """The network as it scores: batch norms folded, compiled where the run wants that."""
    scorer = distiller.for_scoring()
    if config.compile:
        inductor_config.freezing = True  # weights become constants: half of what compiling gains
        scorer.compile()
    return scorer


def optimiser_of(config: Config, distiller: Distiller, device: torch.device) -> torch.optim.Optimizer:
    """Adam as published, over everything that is trainable; fused where torch has that, for speed alone.

    A projection has its own step size, as RD++'s second optimiser.
    """
    training = config.training
    projection = [] if distiller.projection is None else list(distiller.projection.parameters())
    apart = {id(parameter) for parameter in projection}
    groups: list[dict[str, Any]] = [{"params": [p for p in distiller.trainable() if id(p) not in apart]}]
    if projection:
        groups.append({"params": projection, "lr": training.projection_rate})
    fused = device.type in ("cpu", "cuda")
    return torch.optim.Adam(
        groups, lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay, fused=fused
    )


def painter_of(config: Config) -> Painter | None:
    """What makes the synthetic anomalies in the training images, by the run's class, where the recipe wants any."""
    damage = config.recipe.damage
    return None if damage is None else painter(damage, config.seeds[0], config.image_size, config.classes[0])


def targets_of(config: Config, teacher: Teacher, images: ImageSet, device: torch.device) -> Targets:
    """What the teacher sees of some of the training images, cached as the run wants it."""
    cache = Cache(config.cache, config.cache_gb, config.cache_dir)
    return Targets(teacher, images, device, cache, config.training.batch_size, config.workers, painter_of(config))


def split_held_out(config: Config, images: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on and those held out for early stopping, None without --patience.

    Drawn by class and seed, at least one of each. Raises ValueError for a single image.
    """
    if not config.training.patience:
        return images, None
    if len(images) < 2:
        raise ValueError(
            f"--patience wants training images to hold out; found {len(images)}. Add images or --patience 0"
        )
    count = min(len(images) - 1, max(1, round(config.holdout * len(images))))
    chosen = set(random.Random(f"{config.title} held out").sample(range(len(images)), count))
    parts = ([s for i, s in enumerate(images.samples) if (i in chosen) == held] for held in (False, True))
    train, held_out = (ImageSet(samples, images.size, images.mask_threshold) for samples in parts)
    return train, held_out


def scoring_of(config: Config) -> Scoring:
    """How the run's maps and scores are made."""
    recipe, batch_size = config.recipe, max(1, min(64, SCORED_PIXELS // config.image_size**2))
    return Scoring(
        config.levels, recipe.anomaly_map, config.score_num, batch_size, config.workers, refine=recipe.refine
    )


def normal_scale(
    distiller: Distiller, train_images: ImageSet, device: torch.device, scoring: Scoring
) -> tuple[float, float]:
    """The colour scale of a run's overlays, from the maps of at most 64 of its training images, evenly spread."""
    step = max(1, -(-len(train_images) // 64))
    some = ImageSet(train_images.samples[::step], train_images.size)
    return colour_scale(np.concatenate([maps for _, maps in predict(distiller, some, device, scoring)]))


def normalisers_of(result: Evaluation) -> dict[str, Normaliser]:
    """The normalisers of image scores and of pixels, chosen on what was scored."""
    assert result.maps is not None, "keep the maps"
    return normalisers(result.report.thresholds, result.scores, result.maps)


def normalised_figures(fitted: Mapping[str, Normaliser], images: ImageSet, result: Evaluation) -> dict[str, Any] | None:
    """What metrics.json keeps of --normalise: thresholds, ranges, and F1 at the thresholds; None without it."""
    if not fitted:
        return None
    assert result.maps is not None, "keep the maps"
    figures = f1_figures(fitted, images.labels, result.scores, result.maps, result.masks)
    return {
        "chosen_on": "the test set",
        **{name: asdict(normaliser) for name, normaliser in fitted.items()},
        **{name: None if value != value else value for name, value in figures.items()},
    }


def normaliser_in(metrics: Mapping[str, Any]) -> Normaliser | None:
    """The normaliser of image scores that a finished run has chosen; None where it was not asked for."""
    return Normaliser(**metrics["normalised"]["image"]) if metrics.get("normalised") else None


def facts_of(config: Config, teacher: Teacher) -> dict[str, Any]:
    """What decides the run's numbers: two runs with equal facts are the same run."""
    facts = config.deciding() | {"teacher_weights": teacher.weights, "precision": teacher.precision}
    if config.checkpoint is not None:
        facts["checkpoint"] = sha256(config.checkpoint)
    return facts


def sha256(path: Path) -> str:
    """The hash of a file's content. Raises FileNotFoundError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return hashlib.sha256(path.read_bytes()).hexdigest()
