"""Options of training: each does what it says, and an interrupted run ends as an undisturbed one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import (
    CPU,
    SQUARE,
    TINY,
    Command,
    MakeTree,
    make_pairs,
    random_images,
    record_of,
    rows_of,
    score_again,
    train_with_a_break,
)

from config import Config
from detector import Detector
from engine import Steps, compute_losses, train_one_epoch
from experiment import Experiment
from export import build_graph
from feature_cache import FeatureCache
from flags import parse
from methods import Recipe, StepFeatures, Training
from methods.losses import LOSSES, cosine_hard_loss, cosine_loss, easy_share
from model import Distiller
from model.averaging import WeightAverage
from scoring.anomaly_map import anomaly_map
from training import loop
from training.loop import train_epoch
from verification import verify

OPTIONS = {
    "cosine": "--schedule cosine --final_rate 0.1",
    "average": "--average 0.9",
    "dropout": "--dropout 0.2",
    "hard": "--loss cosine_hard",
    "recenter": "--recenter",
    "projection": "--variant rdpp --schedule cosine --average 0.9",  # two step sizes, a step for two batches
    "steps": "--steps 7 --schedule cosine",  # two an epoch
    "patience": "--schedule cosine --average 0.9 --patience 9",
}
PLAIN = ("--preset", "published", "--anomaly_map", "standardized")  # of the options none but those that a test gives


@pytest.fixture
def experiment(mvtec_tree: MakeTree) -> Iterator[Any]:
    """A function that makes an untrained run of seven images with these flags."""
    root = mvtec_tree(train=7)

    def make(flags: str = "") -> Experiment:
        run = "--class bottle --variant rd4ad --weights random --data_path"
        words = [*TINY, *PLAIN, *run.split(), str(root)]
        return Experiment(parse([*words, *flags.split()]).of_run("bottle", 1), CPU)

    yield make


def flags_of(tree: Path, options: str, *more: Any) -> list[Any]:
    words = options.split()
    variant = [] if "--variant" in words else ["--variant", "rd4ad"]
    return ["--data_path", tree, "--class", "bottle", "--checkpoint_seconds", 0, *PLAIN, *variant, *words, *more]


def run_below(folder: Path) -> Path:
    return next(folder.rglob("seed111"))


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    options: str, mvtec_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = flags_of(mvtec_tree(), options, *(() if "--steps" in options else ("--epochs", 4)))
    _, cut = train_with_a_break(common, tmp_path, monkeypatch)
    assert len(rows_of(cut / "train.csv")) == 4
    assert score_again(cut, "--device", "cpu", "--workers", 0) == 0


def test_options_that_are_off_are_no_part_of_a_run_s_identity() -> None:
    flags = "--schedule constant --average 0 --dropout 0 --recenter 0"
    assert parse(flags.split()).identity() == Config().identity()


# --- step sizes ---


def test_a_cosine_schedule_goes_from_the_step_size_to_its_last_share() -> None:
    training = Training(schedule="cosine", final_rate=0.2)
    factors = [training.rate_factor(step, 8) for step in range(8)]
    assert factors[0] == 1 and factors == sorted(factors, reverse=True) and factors[-1] > 0.2
    assert factors[4] == pytest.approx(0.6)
    assert training.rate_factor(8, 8) == pytest.approx(0.2)
    assert Training().rate_factor(5, 8) == 1


def test_the_steps_of_an_epoch_are_those_that_are_made(distiller: Distiller, images: Any) -> None:
    """Each step has the step size of its number, of both groups; afterwards the optimizer has its own again."""

    class Recording(torch.optim.SGD):
        rates: list[list[float]] = []

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            self.rates.append([group["lr"] for group in self.param_groups])

    first, *rest = distiller.trainable()
    batches = list(FeatureCache(distiller.teacher, images).batches(range(7), 2))
    for accumulate in (1, 2, 3):
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": [first], "lr": 2.0}]
        optimizer = Recording(groups, lr=1.0)
        optimizer.rates = []
        training = Training(batch_size=2, accumulate=accumulate, schedule="cosine", final_rate=0.0)
        count = training.steps_per_epoch(7)
        train_one_epoch(distiller, batches, optimizer, Recipe(training=training), accumulate, Steps(count, 3 * count))
        wanted = [(1 + math.cos(math.pi * step / (3 * count))) / 2 for step in range(count, 2 * count)]
        assert optimizer.rates == [pytest.approx([factor, 2 * factor]) for factor in wanted]
        assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]


def test_a_training_passes_through_the_whole_schedule(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Steps] = []

    def recorded(*arguments: Any) -> dict[str, float]:
        seen.append(arguments[5])
        return {"loss": 0.0}

    monkeypatch.setattr(loop, "train_one_epoch", recorded)
    one = experiment("--epochs 3")
    for epoch in (1, 2, 3):
        train_epoch(one, epoch)
    assert seen == [Steps(0, 6), Steps(2, 6), Steps(4, 6)]  # seven images in batches of four


@pytest.mark.slow
def test_more_epochs_are_another_run_with_a_schedule_and_the_same_run_with_an_average(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = mvtec_tree()
    scheduled = flags_of(tree, "--schedule cosine", "--save_path", tmp_path / "scheduled", "--epochs")
    assert train_command(*scheduled, 1) == 0
    assert train_command(*scheduled, 2) == 2
    assert "epochs is 1 there, 2 here. Give another --save_path or --name" in capsys.readouterr().err
    averaged = flags_of(tree, "--average 0.9", "--save_path")
    assert train_command(*averaged, tmp_path / "later", "--epochs", 1) == 0
    assert train_command(*averaged, tmp_path / "later", "--epochs", 2) == 0
    assert train_command(*averaged, tmp_path / "once", "--epochs", 2) == 0
    later, once = (run_below(tmp_path / name) for name in ("later", "once"))
    assert (later / "predictions.csv").read_text() == (once / "predictions.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--final_rate 0.1", "--final_rate: the step sizes stay as they are here; add --schedule cosine"),
        ("--schedule linear", "unknown --schedule 'linear': choose from constant, cosine"),
        ("--dropout 1", "--dropout 1.0: must be at least 0 and below 1"),
        ("--average 1", "--average 1.0: must be at least 0 and below 1"),
    ],
)
def test_what_makes_no_sense_is_a_line(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(flags.split())
    assert "\n" not in str(caught.value)


# --- the average of the weights ---


def test_the_average_is_that_of_the_weights_and_statistics_after_each_step(distiller: Distiller) -> None:
    average = WeightAverage(distiller, decay=0.4)
    kept = {name: tensor.double() for name, tensor in distiller.bottleneck.state_dict().items()}
    for step in range(6):
        with torch.no_grad():
            for tensor in distiller.state_dict().values():
                tensor.add_(1 + step) if tensor.dtype == torch.int64 else tensor.mul_(1 + 0.1 * step).add_(0.01)
        average.update(distiller, step)
        decay = min(0.4, (1 + step) / (10 + step))
        for name, tensor in distiller.bottleneck.state_dict().items():
            counter = tensor.dtype == torch.int64
            kept[name] = tensor if counter else decay * kept[name] + (1 - decay) * tensor.double()
    found = average.distiller.bottleneck.state_dict()
    assert {"running_var", "num_batches_tracked"} <= {name.rpartition(".")[2] for name in found}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), kept[name].double(), rtol=1e-5, atol=1e-6)


def test_the_averaged_network_is_scored_and_held_out_and_the_other_one_is_trained(experiment: Any) -> None:
    one, plain = experiment("--average 0.9 --patience 5"), experiment("--patience 5")
    for epoch in (1, 2):
        losses, expected = train_epoch(one, epoch), train_epoch(plain, epoch)
        assert losses["loss"] == expected["loss"] and losses["held_out"] != expected["held_out"]
    for name, tensor in plain.distiller.state_dict().items():
        assert torch.equal(tensor, one.distiller.state_dict()[name])
    assert one.detector().distiller is one.average.distiller and plain.average is None
    assert one.average.distiller.teacher is one.teacher
    assert not any(parameter.requires_grad for parameter in one.average.distiller.parameters())


@pytest.mark.slow
def test_a_checkpoint_has_the_averaged_weights_and_what_goes_on_from_there(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    common = flags_of(mvtec_tree(), "--average 0.9", "--save_path", tmp_path / "runs", "--epochs", 1)
    for keeps in (0, 1):
        assert train_command(*common, "--keep_optimizer", keeps, "--fresh") == 0
        run = run_below(tmp_path / "runs")
        state = torch.load(run / "checkpoint.pt", weights_only=True)
        assert ("raw" in state) == ("optimizer" in state) == bool(keeps)
        trained = Detector.load(run, device="cpu").distiller.trained_state()
        for part, tensors in state["trained"].items():
            assert all(torch.equal(tensor, trained[part][name]) for name, tensor in tensors.items())
            if keeps:
                assert any((tensor != state["raw"][part][name]).any() for name, tensor in tensors.items())
    del state["raw"]
    torch.save(state, run / "checkpoint.pt")
    (run / "metrics.json").unlink()
    assert train_command(*common) == 2
    assert "checkpoint.pt: raw is missing: with --average" in capsys.readouterr().err


# --- dropout in the bottleneck ---


def test_dropout_sets_single_values_of_the_fused_features_to_zero_while_training_alone(experiment: Any) -> None:
    one, plain = experiment("--dropout 0.3"), experiment()
    found: list[torch.Tensor] = []
    one.distiller.bottleneck.embed.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    features = next(one.features.batches(range(7), 7)).clean
    plain.distiller.load_trained_state(one.distiller.trained_state())
    fused = plain.distiller.bottleneck.fusion
    expected = fused.train()(features)
    torch.manual_seed(0)
    one.distiller.train().bottleneck(features)
    dropped = found[-1] == 0
    assert (dropped & (expected != 0)).sum() / (expected != 0).sum() == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(found[-1][~dropped], (expected / 0.7)[~dropped])
    assert dropped[:, -112:].any(dim=1).all() and not dropped[:, -112:].all(dim=(2, 3)).any()  # no whole channel
    plain.distiller.load_trained_state(one.distiller.trained_state())
    ours, theirs = (run.distiller.eval().student_features(features) for run in (one, plain))
    assert all(map(torch.equal, ours, theirs))


def test_dropout_is_drawn_by_the_epoch_and_not_in_the_held_out_loss(experiment: Any) -> None:
    losses = []
    for _ in range(2):
        one = experiment("--dropout 0.5 --patience 3")
        losses.append([train_epoch(one, epoch) for epoch in (1, 2)])
        seen = [module for module in one.distiller.modules() if isinstance(module, torch.nn.Dropout)]
        assert [module.training for module in seen] == [False], "as the held-out loss leaves it"
    assert losses[0] == losses[1]
    assert losses[0][0]["loss"] != train_epoch(experiment("--patience 3"), 1)["loss"]


# --- hard places ---


def test_the_share_of_easy_places_rises_in_a_thousand_steps() -> None:
    shares = [easy_share(step) for step in (None, 0, 500, 1000, 5000)]
    assert shares == pytest.approx([0, 0, 0.45, 0.9, 0.9])


@pytest.mark.parametrize("step", [None, 0, 400, 2000])
def test_hard_mining_changes_no_value_and_a_tenth_is_left_of_the_gradient_at_easy_places(step: int | None) -> None:
    pairs = make_pairs(SQUARE)
    students = [student for _, student in pairs]
    loss, plain = cosine_hard_loss(pairs, step), cosine_loss(pairs)
    assert torch.equal(loss, plain)
    found, whole = (torch.autograd.grad(value, students) for value in (loss, plain))
    for (teacher, student), gradient, full in zip(pairs, found, whole, strict=True):
        distance = 1 - torch.cosine_similarity(teacher, student, dim=1)
        hard = int(distance.numel() * (1 - (0 if step is None else min(0.9 * step / 1000, 0.9))))
        least = distance.flatten().topk(hard).values[-1]
        weights = torch.where(distance < least, 0.1, 1.0)[:, None]
        torch.testing.assert_close(gradient, full * weights)
        assert (weights < 1).sum() == distance.numel() - hard


def test_the_loss_of_hard_places_gets_the_step_s_number(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int | None] = []

    def recorded(pairs: Any, step: int | None = None) -> torch.Tensor:
        steps.append(step)
        return cosine_loss(pairs)

    monkeypatch.setitem(LOSSES, "cosine_hard", recorded)
    one = experiment("--loss cosine_hard --patience 3 --batch_size 2")  # six images in batches of two, one held out
    for epoch in (1, 2):
        losses = train_epoch(one, epoch)
        assert {"loss", "cosine_hard", "held_out"} == set(losses)
    assert steps == [0, 1, 2, None, 3, 4, 5, None]


# --- steps in place of epochs ---


@pytest.mark.parametrize(
    ("images", "batch_size", "accumulate", "steps", "epochs"),
    [(8, 4, 1, 5, 3), (8, 4, 1, 4, 2), (7, 4, 1, 4, 2), (9, 4, 2, 4, 2), (1000, 4, 1, 5, 1), (0, 4, 1, 5, 0)],
)
def test_steps_are_rounded_up_to_whole_epochs(
    images: int, batch_size: int, accumulate: int, steps: int, epochs: int
) -> None:
    training = Training(batch_size=batch_size, accumulate=accumulate, steps=steps)
    assert training.epochs_for(images) == epochs
    assert Training(epochs=12).epochs_for(images) == 12


def test_epochs_and_steps_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="--epochs and --steps: each says how long to train; leave one out"):
        parse("--epochs 3 --steps 10".split())


@pytest.mark.slow
def test_a_run_by_steps_is_one_of_as_many_epochs_and_is_known_again(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = mvtec_tree(train=7)
    mvtec_tree(classes=("cable",), train=9, root="more")
    (tmp_path / "more/cable").rename(tree / "cable")
    options = "--schedule cosine --average 0.9 --loss cosine_hard"
    by_steps = flags_of(tree, options, "--save_path", tmp_path / "steps", "--class", "bottle", "cable", "--steps")
    assert train_command(*by_steps, 5) == 0
    assert train_command(*flags_of(tree, options, "--save_path", tmp_path / "epochs", "--epochs", 3)) == 0
    bottle, epochs = tmp_path / "steps/mvtec/rd4ad/bottle/seed111", run_below(tmp_path / "epochs")
    cable = tmp_path / "steps/mvtec/rd4ad/cable/seed111"
    assert [record_of(run)["epochs"] for run in (bottle, cable)] == [3, 2], "two and three steps an epoch"
    assert [record_of(run)["steps"] for run in (bottle, cable)] == [5, 5] and "steps" not in record_of(epochs)
    assert (bottle / "predictions.csv").read_text() == (epochs / "predictions.csv").read_text()
    printed = capsys.readouterr().out
    assert "differ in epochs" not in printed and "epoch 3/3" in printed
    assert train_command(*by_steps, 5) == 0
    assert "2 runs, 2 finished" in capsys.readouterr().out
    assert all(check.ok is not False for check in verify(bottle, device="cpu", workers=0))
    assert train_command(*by_steps, 7) == 1
    assert "steps is 5 there, 7 here" in capsys.readouterr().err


@pytest.mark.slow
def test_more_steps_go_on(
    mvtec_tree: MakeTree, tmp_path: Path, train_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = mvtec_tree()
    for place, counts in (("later", (2, 5)), ("once", (5,))):
        for steps in counts:
            assert (
                train_command(*flags_of(tree, "--average 0.5", "--save_path", tmp_path / place, "--steps", steps)) == 0
            )
    assert "resumed after epoch 1" in capsys.readouterr().out
    later, once = (run_below(tmp_path / name) for name in ("later", "once"))
    assert (later / "predictions.csv").read_text() == (once / "predictions.csv").read_text()
    assert record_of(later)["epochs"] == record_of(once)["epochs_trained"] == 3
    assert train_command(*flags_of(tree, "--average 0.5", "--save_path", tmp_path / "later", "--epochs", 9)) == 2
    assert "steps is 5 there, the default here" in capsys.readouterr().err


# --- features less their means ---


@pytest.mark.parametrize("variant", ["rd4ad", "drd", "rdpp"])
def test_what_all_positions_have_in_common_is_not_compared(variant: str, experiment: Any) -> None:
    one = experiment(f"--variant {variant} --recenter")
    recipe, network = one.config.recipe, one.distiller
    for teacher, student in network.eval()(random_images()):
        assert max(levels.mean(dim=(2, 3)).abs().max() for levels in (teacher, student)) < 1e-5
    features = next(one.features.batches(range(7), 7))
    plain, names = [], [term.label for term in recipe.losses]
    step = StepFeatures(network, features, recipe.train_levels)
    for target, found in step.pair(features.clean, step.student):
        assert found.mean(dim=(2, 3)).abs().max() < 1e-5
        shifted = network.pair(target + 3, found - 5)
        torch.testing.assert_close(shifted, (target, found), rtol=0, atol=1e-5)
        plain.append((target, found))
    losses = compute_losses(network, features, recipe)
    assert names == [name for name in losses if name != "loss"]
    torch.testing.assert_close(losses[names[0]], LOSSES[recipe.losses[0].name](plain))


def test_the_map_and_the_exported_graph_compare_features_less_their_means(experiment: Any) -> None:
    one, plain = experiment("--recenter --anomaly_map add"), experiment("--anomaly_map add")
    detector, images = one.detector(), one.test_images
    ((scores, maps),) = detector.score_batches(images)
    ((others, _),) = plain.detector().score_batches(images)
    assert (scores != others).all()
    pixels = torch.from_numpy(np.stack([images.image(i) for i in range(len(images))]))
    found = build_graph(detector)(pixels)
    np.testing.assert_allclose(found[0].numpy(), scores, rtol=1e-4)
    np.testing.assert_allclose(found[1].numpy(), maps, atol=1e-4)
    pairs = [(t - t.mean((2, 3), True), s - s.mean((2, 3), True)) for t, s in plain.distiller.eval()(pixels)]
    np.testing.assert_allclose(anomaly_map(pairs, 64).detach().numpy(), maps, atol=1e-4)
