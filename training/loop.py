"""The training of one run, epoch by epoch."""

from __future__ import annotations

import math
import time

import torch

from engine import Steps, held_out_loss, train_one_epoch
from experiment import Experiment
from report import one_line
from run_files import Progress, Run
from training.terminal import Lines, roughly
from utils import seed_everything

NOTHING_CACHED = (
    "neither the windows nor their features are kept, so every window decodes its whole image anew in every epoch: "
    "give --cache_dir, a folder for files, or more --cache_gb"
)
WORTH_SAYING = 10  # seconds that a run takes after its first epoch, from which on a line says so


def train(experiment: Experiment, folder: Run, progress: Progress, lines: Lines) -> None:
    """All epochs that `progress` lacks, recorded there and in the folder.

    Each is seeded by itself, so a resumed run gives the numbers of an undisturbed one. With held-out images training
    ends early once their loss has not fallen for --patience epochs. Raises ValueError when the loss stops being finite;
    the last resume point stays.
    """
    config, training = experiment.config, experiment.training
    images = experiment.train_images.training_samples
    held_out = experiment.held_out_images
    if progress.is_complete(training):
        return
    what = "reading" if config.cache in ("images", "none") else "extracting teacher features of"
    with lines.timed(f"{what} {count_samples(experiment)}"):
        experiment.features, experiment.held_out_features  # noqa: B018 - computed now, outside the first epoch's time
    if config.tiles is not None and experiment.features.kind == "none":
        lines.say(f"warning: {NOTHING_CACHED}")
    first = progress.epoch + 1
    with lines.bar(range(first, training.epochs + 1)) as epochs:
        prints_loss = config.print_loss if config.print_loss is not None else epochs.disable
        for epoch in epochs:
            started = time.perf_counter()
            losses = train_epoch(experiment, epoch)
            seconds = time.perf_counter() - started
            if not math.isfinite(losses["loss"]):
                raise ValueError(
                    f"{config.title}: the loss became {losses['loss']} in epoch {epoch}; a smaller --learning_rate may "
                    f"help. {folder} keeps the last resume point"
                )
            progress.add(epoch, losses, len(images), seconds)
            stop = progress.should_stop(training.patience)
            if config.print_epoch and epoch % config.print_epoch == 0 and epoch < training.epochs and not stop:
                metrics = experiment.detector().evaluate(experiment.test_images).report.values
                progress.evaluated(epoch, metrics)
                lines.say(f"epoch {epoch}: {one_line(metrics)}")
            interval = 0 if progress.is_complete(training) else config.checkpoint_seconds
            folder.record(progress, experiment.distiller, experiment.optimizer, interval, experiment.average)
            epochs.set_postfix(loss=f"{losses['loss']:.4f}")
            if prints_loss:
                text = (
                    f"epoch {epoch}/{training.epochs}  loss {losses['loss']:.4f}  {len(images) / seconds:.0f} images/s"
                )
                left = (training.epochs - epoch) * seconds
                if epoch == first and left > WORTH_SAYING:
                    text += f"  this run: about {roughly(left)} left"
                lines.say(text)
            if stop:
                on = f"on {len(held_out or ())} held-out images"
                lines.say(f"stopped after epoch {epoch}: the loss {on} has not fallen for {training.patience} epochs")
                break


def count_samples(experiment: Experiment) -> str:
    """20 images; of large ones: 180 windows of 20 images."""
    sets = [found for found in (experiment.train_images, experiment.held_out_images) if found is not None]
    images, samples = sum(map(len, sets)), sum(len(found.training_samples) for found in sets)
    return f"{images} images" if experiment.config.tiles is None else f"{samples} windows of {images} images"


def train_epoch(experiment: Experiment, epoch: int) -> dict[str, float]:
    """One seeded epoch: the mean losses by name, `held_out` among them where images are held out."""
    config, training, recipe = experiment.config, experiment.training, experiment.config.recipe
    seed_everything(config.seed_key, epoch)
    order = torch.randperm(len(experiment.features.images)).tolist()
    batches = experiment.features.batches(order, training.batch_size)
    per_epoch = training.steps_per_epoch(len(order))
    steps = Steps((epoch - 1) * per_epoch, training.epochs * per_epoch)
    network, optimizer, average = experiment.distiller, experiment.optimizer, experiment.average
    losses = train_one_epoch(network, batches, optimizer, recipe, training.accumulate, steps, average)
    if experiment.held_out_features is not None:
        seed_everything(config.seed_key, "held out")  # the same corruption and noise in every epoch
        everything = range(len(experiment.held_out_features.images))
        batches = experiment.held_out_features.batches(everything, training.batch_size)
        losses["held_out"] = held_out_loss(experiment.scored_distiller, batches, recipe)
    return losses
