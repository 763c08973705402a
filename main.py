"""Train reverse distillation on one class at a time, score it once, leave a run folder behind.

python main.py --dataset demo --net efficientnet_lite0 --epochs 10        every flag: python main.py --help
"""

from __future__ import annotations

from commandline import exit_code  # before anything slow: Ctrl-C is one line from here on

# isort: split

import math
import shlex
import sys
import time
from collections.abc import Sequence

import torch
from tqdm import tqdm

import report
from config import Config
from engine import held_out_loss, train_one_epoch
from experiment import Experiment, experiments, score
from flags import parse
from run_files import MAPS, METRICS, Busy, Progress, Run
from utils import choose_device, keep_freed_memory, seed_everything, set_determinism


def main(argv: Sequence[str] | None = None) -> int:
    """Run every class and seed that is not finished yet, then print and save the table over all of them."""
    config = parse(argv)
    device = choose_device(config.device)
    set_determinism(config.deterministic)
    if config.fast:
        keep_freed_memory()
    left = [experiment for experiment in experiments(config, device) if not run(experiment)]
    print(f"\n{report.update_tables(config.sweep_folder, oracle=config.print_max)}")
    print(f"\ntables and runs: {config.sweep_folder}")
    if left:
        print(f"{len(left)} runs are not in the tables, since other processes write them: run the command again later")
    return 1 if left else 0


def run(experiment: Experiment) -> bool:
    """Train on one class with one seed and score it once; a finished run stays as it is, an unfinished one goes on.

    Returns False, having done nothing, where another process writes the run.
    """
    config, folder = experiment.config, Run(experiment.config.run_folder)
    identity, data = experiment.identity, experiment.data
    if not config.fresh and folder.holds(identity, data):
        folder.tidy()
        print(f"{config.title}: finished already, in {folder}")
        name_late_flags(config, folder)
        return True
    experiment.check_data()
    try:
        with folder.lock():
            folder.open(config.to_json(), identity, data, fresh=config.fresh, resume=config.resume)
            if not folder.finished:  # another process may have finished it just now
                score(experiment, folder, train(experiment, folder))
    except Busy as problem:
        print(f"{config.title}: left out: {problem}")
        return False
    return True


def name_late_flags(config: Config, folder: Run) -> None:
    """Say how a finished run gets what the flags ask for and only a run that is being scored leaves behind."""
    late = ["--vis"] * (config.vis and not config.overlay_folder.is_dir())
    late += ["--save_maps"] * (config.save_maps and not (folder.folder / MAPS).is_file())
    late += ["--intervals"] * (config.intervals and "intervals" not in folder.read(METRICS))
    if late:
        command = f"python test.py {shlex.quote(str(folder))} {' '.join(late)}"
        print(f"{config.title}: {' and '.join(late)} of a finished run: {command}")


def train(experiment: Experiment, folder: Run) -> Progress:
    """All epochs still to be done. Each is seeded by itself, so a resumed run gives the numbers of an undisturbed one.

    With held-out images training ends early once their loss has not fallen for --patience epochs. Raises ValueError
    when the loss stops being finite; the last resume point stays.
    """
    config, training = experiment.config, experiment.config.training
    images, held_out = experiment.train_images, experiment.held_out_images
    progress = folder.restore(experiment.distiller, experiment.optimizer, training)
    if progress.is_complete(training):
        return progress
    experiment.features, experiment.held_out_features  # noqa: B018 - computed now, outside the first epoch's time
    epochs = tqdm(
        range(progress.epoch + 1, training.epochs + 1),
        desc=config.title,
        initial=progress.epoch,
        total=training.epochs,
        disable=not sys.stderr.isatty(),
        leave=False,
    )
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
            epochs.write(f"{config.title}: epoch {epoch}: {report.one_line(metrics)}")
        interval = 0 if progress.is_complete(training) else config.checkpoint_seconds
        folder.record(progress, experiment.distiller, experiment.optimizer, interval)
        epochs.set_postfix(loss=f"{losses['loss']:.4f}")
        if config.print_loss and epochs.disable:
            speed = f"{len(images) / seconds:.0f} images/s"
            print(f"{config.title}: epoch {epoch}/{training.epochs} loss {losses['loss']:.4f} {speed}", flush=True)
        if stop:
            epochs.write(
                f"{config.title}: stopped after epoch {epoch}: the loss on {len(held_out or ())} held-out images has "
                f"not fallen for {training.patience} epochs"
            )
            break
    return progress


def train_epoch(experiment: Experiment, epoch: int) -> dict[str, float]:
    """One seeded epoch: the mean losses by name, `held_out` among them where images are held out."""
    config, training, recipe = experiment.config, experiment.config.training, experiment.config.recipe
    seed_everything(config.seed_key, epoch)
    order = torch.randperm(len(experiment.train_images)).tolist()
    batches = experiment.features.batches(order, training.batch_size)
    losses = train_one_epoch(experiment.distiller, batches, experiment.optimizer, recipe, training.accumulate)
    if experiment.held_out_features is not None:
        seed_everything(config.seed_key, "held out")  # the same corruption and noise in every epoch
        everything = range(len(experiment.held_out_features.images))
        batches = experiment.held_out_features.batches(everything, training.batch_size)
        losses["held_out"] = held_out_loss(experiment.distiller, batches, recipe)
    return losses


if __name__ == "__main__":
    sys.exit(exit_code(main, resumes=True))
