"""Train reverse distillation on one class at a time, score it once, leave a run folder behind.

python main.py --dataset demo --net efficientnet_lite0 --epochs 10        every flag: python main.py --help
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from tqdm import tqdm

import parts
import summary
from commandline import exit_code
from config import Config
from dataset import ImageSet
from engine import evaluate, held_out_loss, ready_to_score, train_one_epoch
from flags import parse
from model import Distiller
from overlays import overlay_names, write_overlays
from runs import Progress, Run, machine
from utils import code_revision, keep_freed_memory, seed_everything


def main(argv: Sequence[str] | None = None) -> int:
    """Run every class and seed that is not finished yet, then print and save the table over all of them."""
    config = parse(argv)
    device = parts.choose_device(config.device)
    parts.set_determinism(config.deterministic)
    keep_freed_memory()
    for class_name in parts.classes_of(config):
        for seed in config.seeds:
            run(config.of_run(class_name, seed), device)
    results = summary.collect([config.sweep_folder])
    print(f"\n{summary.write_tables(config.sweep_folder, results, oracle=config.print_max)}")
    print(f"\ntables and runs: {config.sweep_folder}")
    return 0


def run(config: Config, device: torch.device) -> None:
    """Train on one class with one seed and score it once; a finished run stays as it is, an unfinished one goes on."""
    teacher = parts.teacher_of(config, device)
    folder = Run(config.run_folder)
    folder.open(config.to_json(), parts.facts_of(config, teacher), fresh=config.fresh, resume=config.resume)
    if folder.finished:
        print(f"{config.title}: finished already, in {folder}")
        return
    normal_images, test_images = parts.images_of(config, "train"), parts.images_of(config, "test")
    train_images, held_out = parts.split_held_out(config, normal_images)
    seed_everything(config.title)
    distiller = parts.distiller_of(config, teacher)
    progress = train(config, distiller, train_images, held_out, test_images, folder, device)

    started = time.perf_counter()
    scorer = parts.scorer_of(config, distiller)
    scoring = ready_to_score(scorer, train_images, device, parts.scoring_of(config))
    result = evaluate(scorer, test_images, device, scoring, config.seg, config.vis or config.normalise)
    seconds = time.perf_counter() - started
    fitted = parts.normalisers_of(result) if config.normalise else {}
    folder.write_predictions(test_images.samples, result.scores, fitted.get("image"))
    progress.evaluated(progress.epoch, result.report.values)
    folder.write_progress(progress)
    if config.print_scores:
        for sample, score in zip(test_images.samples, result.scores, strict=True):
            print(f"{config.title}: {int(sample.anomalous)} {score:.4f} {sample.image}")
    if test_images.vanished:
        count, example = len(test_images.vanished), test_images.vanished[0]
        print(f"{config.title}: {count} masks are below half a pixel at this size, e.g. that of {example}")
    scale = parts.normal_scale(scorer, train_images, device, scoring)
    if config.vis and result.maps is not None:
        names = overlay_names(test_images.samples)
        write_overlays(config.overlay_folder, test_images.samples, names, result.maps, result.scores, scale)
        print(f"{config.title}: overlays in {config.overlay_folder}")
    folder.save_checkpoint(
        {
            "trained": distiller.trained_state(),
            "normality": vars(scoring.normality) if scoring.normality else None,
            "colour_scale": scale,
            "progress": asdict(progress),
        }
    )
    folder.finish(
        {
            "class_name": config.classes[0],
            "seed": config.seeds[0],
            "benchmark": config.dataset,
            "variant": config.variant,
            "name": config.folder_name,
            "net": config.net,
            "teacher_weights": teacher.weights,
            "image_size": config.image_size,
            "precision": teacher.precision,
            "batch_size": config.training.batch_size,
            "epochs": config.training.epochs,
            "epochs_trained": progress.epoch,
            "figures": result.figures(),
            "reasons": result.report.reasons,
            "oracle": progress.oracle(),
            "normalised": parts.normalised_figures(fitted, test_images, result),
            "n_train": len(train_images),
            "n_held_out": len(held_out or ()),
            "n_test": len(test_images),
            "n_anomalous": int(test_images.labels.sum()),
            "train_seconds": round(progress.seconds, 2),
            "score_seconds": round(seconds, 2),
            "revision": code_revision(),
            **machine(),
        }
    )


def train(
    config: Config,
    distiller: Distiller,
    train_images: ImageSet,
    held_out: ImageSet | None,
    test_images: ImageSet,
    folder: Run,
    device: torch.device,
) -> Progress:
    """All epochs still to be done. Each is seeded by itself, so a resumed run goes the way of an undisturbed one.

    With held-out images training ends early once their loss has not fallen for --patience epochs. Raises ValueError
    when the loss stops being finite; the last resume point stays.
    """
    training, recipe = config.training, config.recipe
    optimiser = parts.optimiser_of(config, distiller, device)
    progress = folder.restore(distiller, optimiser)
    if progress.epoch >= training.epochs or progress.stale(training.patience):
        return progress
    targets = parts.targets_of(config, distiller.teacher, train_images, device)
    controls = parts.targets_of(config, distiller.teacher, held_out, device) if held_out else None
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
        seed_everything(config.title, epoch)
        order = torch.randperm(len(train_images)).tolist()
        losses = train_one_epoch(
            distiller, targets.batches(order, training.batch_size), optimiser, recipe, training.accumulate
        )
        if controls is not None:
            seed_everything(config.title, "held out")  # the same damage and noise in every epoch
            batches = controls.batches(range(len(controls.images)), training.batch_size)
            losses["held_out"] = held_out_loss(distiller, batches, recipe)
        seconds = time.perf_counter() - started
        if not math.isfinite(losses["loss"]):
            raise ValueError(
                f"{config.title}: the loss became {losses['loss']} in epoch {epoch}; a smaller --learning_rate may "
                f"help. {folder} keeps the last resume point"
            )
        progress.add(epoch, losses, len(train_images), seconds)
        stop = progress.stale(training.patience)
        if config.print_epoch and epoch % config.print_epoch == 0 and epoch < training.epochs and not stop:
            scoring = ready_to_score(distiller, train_images, device, parts.scoring_of(config))
            report = evaluate(distiller, test_images, device, scoring, config.seg).report
            progress.evaluated(epoch, report.values)
            epochs.write(f"{config.title}: epoch {epoch}: {one_line(report.values)}")
        folder.record(progress, distiller, optimiser, config.checkpoint_seconds)
        epochs.set_postfix(loss=f"{losses['loss']:.4f}")
        if config.print_loss and epochs.disable:
            speed = len(train_images) / seconds
            print(
                f"{config.title}: epoch {epoch}/{training.epochs} loss {losses['loss']:.4f} {speed:.0f} images/s",
                flush=True,
            )
        if stop:
            epochs.write(
                f"{config.title}: stopped after epoch {epoch}: the loss on {len(held_out or ())} held-out images has "
                f"not fallen for {training.patience} epochs"
            )
            break
    return progress


def one_line(figures: dict[str, float]) -> str:
    """The figures that are defined, by their titles."""
    return ", ".join(f"{summary.FIGURES[name]} {value:.4f}" for name, value in figures.items() if not math.isnan(value))


if __name__ == "__main__":
    sys.exit(exit_code(main))
