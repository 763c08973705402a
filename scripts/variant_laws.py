"""The laws that every row of VARIANTS keeps, each a function that raises where its law is broken."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from config import Config
from dataset import ImageSet
from detector import Detector
from engine import compute_losses, train_one_epoch
from experiment import Experiment
from methods import PUBLISHED, TeacherFeatures
from model.precision import resolve_precision
from run_files import Progress, Run
from run_files.checkpoints import load_training_state, training_state
from scoring.anomaly_map import level_maps
from training.loop import train_epoch
from utils import seed_everything

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SIZE, TRAIN_IMAGES, TEST_IMAGES, BATCH = 64, 8, 3, 4
EPOCHS = 2  # of a training that is compared with another one
STEPS = 10  # on one batch that is learned
LEARNED = 0.8  # the loss of that batch ends below this share of its first value
SAME = 1e-4  # greatest difference of two maps that are equal up to rounding, as a share of the largest pixel
NEAR = 0.1  # greatest difference of bf16 from fp32, as a share


class LawBroken(Exception):
    """A law does not hold; the text is what was found."""


class NotChecked(Exception):
    """A law cannot be checked here; the text is the reason."""


@dataclass(frozen=True)
class Trial:
    """A variant around a teacher with random weights, and a folder for its images and resume points."""

    variant: str
    net: str
    folder: Path

    @cached_property
    def config(self) -> Config:
        """Few small images, one thread reading; what the variant itself says of network, loss and scoring."""
        for name, count in (("train", TRAIN_IMAGES), ("test/good", TEST_IMAGES)):
            _make_images(self.folder / name, count)
        return Config(
            dataset="folder",
            classes=("images",),
            train_dir=self.folder / "train",
            test_dir=self.folder / "test",
            variant=self.variant,
            net=self.net,
            preset=PUBLISHED,
            weights="random",
            image_size=SIZE,
            batch_size=BATCH,
            patience=0,
            holdout=0.0,
            precision="fp32",
            device="cpu",
            workers=0,
        )

    def experiment(self, precision: str = "fp32") -> Experiment:
        """A new, untrained one, the same every time, with a teacher of its own: no law sees what another has done."""
        experiment = Experiment(replace(self.config, precision=precision), CPU)
        experiment.teacher = copy.deepcopy(experiment.teacher)
        return experiment

    @cached_property
    def trained(self) -> Experiment:
        """One that was trained without an interruption; not to be changed."""
        experiment = self.experiment()
        train_epochs(experiment, range(1, EPOCHS + 1))
        return experiment


def train_epochs(experiment: Experiment, epochs: range) -> None:
    """Train as main.py does; the epochs count from 1."""
    for epoch in epochs:
        train_epoch(experiment, epoch)


def check_shapes(trial: Trial) -> None:
    """One student level for each teacher level, of its shape and finite, in training and in scoring."""
    distiller = trial.experiment().distiller
    for mode, count in ((True, 2), (False, 1)):
        images = torch.zeros(count, 3, SIZE, SIZE)
        teacher, student = distiller.teacher(images), distiller.train(mode).student_features(distiller.teacher(images))
        wanted, found = ([tuple(level.shape) for level in levels] for levels in (teacher, student))
        if wanted != found:
            raise LawBroken(f"teacher {wanted}, student {found}")
        if bad := [k for k, level in enumerate(student) if not level.isfinite().all()]:
            raise LawBroken(f"NaN or infinity in level {bad[0]} of the student")


def check_teacher(trial: Trial) -> None:
    """The teacher does not change by a bit, gets no gradient and stays in evaluation mode."""
    experiment = trial.experiment()
    teacher = experiment.teacher
    before = copy.deepcopy(_tensors(teacher))
    train_epochs(experiment, range(1, 2))
    if touched := [name for name, p in teacher.named_parameters() if p.requires_grad or p.grad is not None]:
        raise LawBroken(f"a gradient reaches {_first(touched)} of the teacher")
    if changed := _different(before, _tensors(teacher)):
        raise LawBroken(f"training changes {_first(changed)} of the teacher")
    if training := [name for name, part in teacher.named_modules() if part.training]:
        raise LawBroken(f"{_first(training) or 'the teacher'} is in training mode")


def check_gradients(trial: Trial) -> None:
    """Every trainable parameter gets a gradient that is not zero, and an epoch of training moves it."""
    experiment = trial.experiment()
    distiller = experiment.distiller.train()
    named = {name: p for name, p in distiller.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in named.items()}
    reached: set[str] = set()
    seed_everything("gradients")
    for features in _batches(experiment):
        compute_losses(distiller, features, experiment.config.recipe)["loss"].backward()
        reached |= {name for name, p in named.items() if p.grad is not None and p.grad.any()}
    if silent := sorted(set(named) - reached - _without_effect(distiller)):
        raise LawBroken(f"no gradient in {_first(silent)}")
    train_epochs(experiment, range(1, 2))
    if still := [name for name in sorted(reached) if torch.equal(before[name], named[name])]:
        raise LawBroken(f"a gradient, but no step in {_first(still)}")


def check_learning(trial: Trial) -> None:
    """A batch that is shown again and again is learned."""
    experiment = trial.experiment()
    distiller, recipe = experiment.distiller, experiment.config.recipe
    seed_everything("one batch")
    batch = next(_batches(experiment))
    losses = []
    for _ in range(STEPS):
        seed_everything("one step")  # the same noise and hidden cells every time
        losses.append(train_one_epoch(distiller, [batch], experiment.optimizer, recipe)["loss"])
    if not 0 <= losses[-1] < LEARNED * losses[0]:
        raise LawBroken(f"the loss of one batch goes from {losses[0]:.4g} to {losses[-1]:.4g} in {STEPS} steps")


def check_zero_map(trial: Trial) -> None:
    """Where the student equals the teacher, the anomaly map is 0."""
    experiment = trial.experiment()
    detector = experiment.detector()
    detector.network = _Equal(detector.distiller.teacher)  # type: ignore[assignment]
    if detector.map_statistics is None:
        values = torch.from_numpy(_scores_and_maps(detector, experiment.test_images)[1])
    else:  # a standardized map is about 0 for normal images instead; the levels' maps before are distances
        values = level_maps(detector.network(torch.zeros(1, 3, SIZE, SIZE)), SIZE)
    if not values.abs().max() < SAME:
        raise LawBroken(f"the map of equal features reaches {values.abs().max():.3g}")


def check_batch(trial: Trial) -> None:
    """An image's score and map are the same alone, in a batch, and a second time."""
    detector, test = trial.trained.detector(), trial.trained.test_images
    scores, maps = _scores_and_maps(detector, test)
    singles = [ImageSet([sample], test.size) for sample in reversed(test.samples)]
    alone = [next(iter(detector.score_batches(one))) for one in singles][::-1]
    again = _scores_and_maps(detector, test)
    if (again[0] != scores).any() or (again[1] != maps).any():
        raise LawBroken("the same images get other scores a second time")
    for name, together, single in (
        ("score", scores, np.concatenate([one[0] for one in alone])),
        ("map", maps, np.concatenate([one[1] for one in alone])),
    ):
        difference = float(np.abs(together - single).max())
        if not difference <= SAME * float(np.abs(together).max()):
            raise LawBroken(f"alone, an image's {name} differs by {difference:.3g} from its {name} in a batch")


def check_resume(trial: Trial) -> None:
    """A training that stops after an epoch, is saved, loaded elsewhere and goes on ends bit-equal."""
    first, second, run = trial.experiment(), trial.experiment(), Run(trial.folder / "run")
    train_epochs(first, range(1, EPOCHS))
    state = training_state(first.distiller, first.optimizer, first.average)
    run.save_checkpoint({**state, "progress": asdict(Progress())})
    loaded = run.load_checkpoint()
    assert loaded is not None
    load_training_state(loaded, second.distiller, second.optimizer, second.average)
    if lost := _different(_tensors(first.distiller), _tensors(second.distiller)):
        raise LawBroken(f"after loading, other values in {_first(lost)}")
    train_epochs(second, range(EPOCHS, EPOCHS + 1))
    _check_equal(trial, second, "a resumed training")


def check_determinism(trial: Trial) -> None:
    """The same training twice gives the same network and scores, bit for bit."""
    second = trial.experiment()
    train_epochs(second, range(1, EPOCHS + 1))
    _check_equal(trial, second, "a second training")


def check_bf16(trial: Trial) -> None:
    """In bf16 the student's levels and the loss are near those of fp32, and every term of the loss is fp32."""
    if resolve_precision("auto", CPU) != "bf16":
        raise NotChecked("no bf16 here")
    levels, losses = {}, {}
    for precision in ("fp32", "bf16"):
        experiment = trial.experiment(precision)
        experiment.distiller.load_trained_state(trial.trained.distiller.trained_state())
        seed_everything("bf16")
        batch = next(_batches(experiment))
        losses[precision] = compute_losses(experiment.distiller.train(), batch, experiment.config.recipe)
        with torch.no_grad():
            levels[precision] = experiment.distiller.eval().student_features(batch.clean)
    for k, (exact, near) in enumerate(zip(levels["fp32"], levels["bf16"], strict=True)):
        if not (difference := float((near.float() - exact).norm() / exact.norm())) <= NEAR:
            raise LawBroken(f"level {k} of the student differs by {difference:.1%}")
    if low := [name for name, loss in losses["bf16"].items() if loss.dtype != torch.float32]:
        raise LawBroken(f"{low[-1]} is computed in {losses['bf16'][low[-1]].dtype}")
    wanted, found = (losses[precision]["loss"].item() for precision in ("fp32", "bf16"))
    if not abs(found - wanted) <= NEAR * abs(wanted):
        raise LawBroken(f"the loss is {found:.4g}, {wanted:.4g} in fp32")


@dataclass(frozen=True)
class Law:
    """A law: what holds, the function that raises LawBroken where it does not, and what to look at then."""

    title: str
    check: Callable[[Trial], None]
    look_at: str


LAWS = {
    "shapes": Law("pairs have the shapes of the teacher's levels", check_shapes, "the student's stages and its skips"),
    "teacher": Law(
        "the teacher stays as it is", check_teacher, "parts that hold the teacher, or features computed with a graph"
    ),
    "gradients": Law(
        "every trainable parameter gets a gradient and moves",
        check_gradients,
        "parts that forward() leaves out, a detach() or no_grad(), pairs that no loss compares",
    ),
    "learning": Law(
        "one batch can be learned", check_learning, "the signs and weights of the losses, the learning rate"
    ),
    "zero map": Law("equal features give a zero map", check_zero_map, "the scoring of the row"),
    "batch": Law(
        "scores do not depend on the batch",
        check_batch,
        "batch statistics or random draws in evaluation mode, layers that ignore eval()",
    ),
    "resume": Law(
        "saved, loaded and resumed, a training ends bit-equal",
        check_resume,
        "parts that trained_state() leaves out, tensors that are no buffers, random generators of a part's own",
    ),
    "determinism": Law(
        "two trainings are bit-equal", check_determinism, "random draws that no seed sets, global state that is kept"
    ),
    "bf16": Law("bf16 is near fp32", check_bf16, "sums, norms and divisions that bf16 is too coarse for"),
}


def verdict(law: Law, trial: Trial) -> str:
    """`ok`, `FAILED: found; look at ...` or `not checked: reason`; an error inside the variant is a failure too."""
    try:
        law.check(trial)
    except NotChecked as reason:
        return f"not checked: {reason}"
    except LawBroken as found:
        return f"FAILED: {found}; look at {law.look_at}"
    except Exception as error:
        return f"FAILED: {_one_line(error)}"
    return "ok"


class _Equal(nn.Module):
    """A network whose student equals the teacher."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(level, level.clone()) for level in self.teacher(images)]


def _make_images(folder: Path, count: int) -> None:
    """PNG files of colored tiles with noise, the same every time."""
    rng = np.random.default_rng(count)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        tiles = np.kron(rng.integers(40, 216, (8, 8, 3)), np.ones((SIZE // 8, SIZE // 8, 1)))
        noisy = tiles + rng.integers(-40, 41, (SIZE, SIZE, 3))
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i}.png")


def _batches(experiment: Experiment) -> Iterator[TeacherFeatures]:
    return experiment.features.batches(range(TRAIN_IMAGES), BATCH)


def _scores_and_maps(detector: Detector, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) and maps (N, S, S) of the images, all in one batch."""
    found = list(detector.score_batches(images))
    return np.concatenate([scores for scores, _ in found]), np.concatenate([maps for _, maps in found])


def _check_equal(trial: Trial, other: Experiment, what: str) -> None:
    if changed := _different(_tensors(trial.trained.distiller), _tensors(other.distiller)):
        raise LawBroken(f"{what} gives other values in {_first(changed)}")
    ours, theirs = (_scores_and_maps(e.detector(), e.test_images) for e in (trial.trained, other))
    if any((a != b).any() for a, b in zip(ours, theirs, strict=True)):
        raise LawBroken(f"{what} gives equal parameters but other scores")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, also those that no state holds."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _different(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """The names of the tensors that are not equal bit for bit, or are on one side alone."""
    both = {name for name in before if name in after and torch.equal(before[name], after[name])}
    return sorted({*before, *after} - both)


def _without_effect(module: nn.Module) -> set[str]:
    """The biases that an instance norm right behind them takes away, such as RD++'s, built as published."""
    names = set()
    for name, part in module.named_modules():
        if isinstance(part, nn.Sequential):
            for (place, layer), after in zip(part.named_children(), list(part)[1:], strict=False):
                if isinstance(after, nn.InstanceNorm2d) and getattr(layer, "bias", None) is not None:
                    names.add(f"{name}.{place}.bias")
    return names


def _first(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _one_line(error: Exception) -> str:
    """The error, and the last line of this project that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if ROOT in Path(f.filename).parents and "site-packages" not in f.filename]
    text = str(error).splitlines()[0] if str(error) else "no reason given"
    return f"{type(error).__name__}: {text}; look at {Path(own[-1].filename).relative_to(ROOT)}, line {own[-1].lineno}"
