"""One run: everything that training and scoring it takes, built on first use from the Config."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from calibration import (
    NormalSet,
    calibrate,
    findings_of,
    read_normal_folder,
    refuse_used,
    render_threshold,
    without_trained,
)
from config import Config
from dataset import BENCHMARKS, ImageSet, MeasuredImages, Sample, find_classes, locate
from detector import Detector, Evaluation, frozen_teacher
from feature_cache import CachePolicy, FeatureCache
from methods import Training, build_distiller
from methods.synthetic_anomalies import Corruption, build_corruption
from model import Distiller, Teacher, load_published
from model.averaging import WeightAverage
from readers.base import VALIDATION
from readers.checks import check_data
from readers.headers import read_headers, summarize
from readers.image_io import limit_pixels
from report.intervals import record_intervals, render_intervals
from report.overlays import OverlayWriter
from run_files import CHECKPOINT, DataRecord, Progress, Run, SavedMaps
from run_files.checkpoints import training_state
from scoring.groups import record_groups
from scoring.normalization import Normalizer, f1_metrics
from scoring.predictions import Rule
from scoring.thresholds import Threshold, choose_k
from utils import file_sha256, seed_everything

SAMPLE = 64  # training images, at most, from which color scale and brightness are taken


class Experiment:
    """The objects of one run, each made when it is first asked for.

    It is no trainer: the loop stays in main.py. `config` is that of one run (`Config.of_run`): one seed, and one class
    or one model over all classes, whose images are those of each class in the benchmark's order.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device

    @cached_property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return frozen_teacher(self.config, self.device)

    @cached_property
    def distiller(self) -> Distiller:
        """Teacher, bottleneck and student as the recipe says, from a published checkpoint if one is given.

        The random state is set here, just before the parts are built: what was done before cannot change them.
        """
        teacher = self.teacher
        seed_everything(self.config.seed_key)
        distiller = build_distiller(self.config.recipe, teacher)
        if self.config.checkpoint is not None:
            load_published(self.config.checkpoint, distiller)
            print(f"{self.config.title}: {self._checkpoint_note()}")
        distiller = distiller.to(self.device)
        return distiller.use_fast_gradients() if self.config.fast else distiller

    def _checkpoint_note(self) -> str:
        """What was assumed of a published checkpoint: its names do not tell RD4AD from SK-RD4AD."""
        config = self.config
        skips = ", ".join(f"E{skip.source + 1}" for skip in config.recipe.skips) or "none"
        other = "rd4ad" if config.recipe.skips else "sk_rd4ad"
        note = f"{config.checkpoint} was read as --variant {config.variant} (skips: {skips})"
        if config.recipe.projection:
            return note
        return (
            f"{note}; files of RD4AD and SK-RD4AD have the same names: if it is the other kind, use --variant {other}"
        )

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Adam as published, over everything that is trainable; fused where torch has that, for speed alone.

        A projection has its own step size, as RD++'s second optimizer.
        """
        training, distiller = self.config.training, self.distiller
        projection = [] if distiller.projection is None else list(distiller.projection.parameters())
        apart = {id(parameter) for parameter in projection}
        groups: list[dict[str, Any]] = [{"params": [p for p in distiller.trainable() if id(p) not in apart]}]
        if projection:
            groups.append({"params": projection, "lr": training.projection_rate})
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.Adam(
            groups, lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay, fused=fused
        )

    @cached_property
    def average(self) -> WeightAverage | None:
        """The average of the weights with --average; it begins with those of now."""
        decay = self.config.training.average
        return WeightAverage(self.distiller, decay) if decay else None

    @property
    def scored_distiller(self) -> Distiller:
        """The network that is the result: with --average that of the averaged weights."""
        return self.distiller if self.average is None else self.average.distiller

    @property
    def training(self) -> Training:
        """How the run is trained, with the epochs that its images give it."""
        training = self.config.training
        return replace(training, epochs=training.epochs_for(len(self.train_images.training_samples)))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes whose images the run has: one, or all of the benchmark."""
        if not self.config.unified:
            (class_name,) = self.config.classes
            return (class_name,)
        benchmark = BENCHMARKS[self.config.dataset]
        return find_classes(benchmark, locate(benchmark, self.config.source))

    @cached_property
    def normal_images(self) -> ImageSet:
        """The benchmark's training images of the run's classes, all normal."""
        return self.images("train")

    @cached_property
    def test_images(self) -> ImageSet:
        """The benchmark's test images of the run's classes."""
        return self.images("test")

    @property
    def train_images(self) -> ImageSet:
        """The images to train on: the normal images less those that are held out, or --shots of them."""
        return self._split.train

    @property
    def held_out_images(self) -> ImageSet | None:
        """The normal images held out for early stopping; None without --patience."""
        return self._split.held_out

    @cached_property
    def normals(self) -> NormalSet | None:
        """Normal images that are not trained on, for the threshold; None where there are none.

        Those of --calibrate, or that --holdout holds out, or the benchmark's validation set. Raises ValueError where
        they are too few for --false_alarm, or were trained on or are tested.
        """
        found = self._normals()
        if found is not None or self.config.false_alarm is not None:
            choose_k(0 if found is None else len(found.images), self.config.false_alarm)
        return found

    def _normals(self) -> NormalSet | None:
        config, benchmark = self.config, BENCHMARKS[self.config.dataset]
        if config.calibrate is not None:
            samples = read_normal_folder(config.calibrate)
            refuse_used(samples, (row.sha256 for row in self.data.rows), config.workers)
            return NormalSet("calibrate", ImageSet(samples, config.image_size, tiling=config.tiling))
        if self._split.calibration is not None:
            kept = without_trained(self._split.calibration, self.train_images, config.workers)
            return NormalSet("holdout", kept) if len(kept) else None
        if benchmark.validation and len(images := self.images(VALIDATION)):
            return NormalSet("validation", images)
        return None

    def images(self, split: str) -> ImageSet:
        """The benchmark's images of the run's classes and a split, train or test."""
        benchmark = BENCHMARKS[self.config.dataset]
        limit_pixels(self.config.max_pixels)
        source, samples = locate(benchmark, self.config.source), []
        for name in self.class_names:
            own = benchmark.read(source, name, split)
            samples += [replace(sample, class_name=name) for sample in own] if self.config.unified else own
        return ImageSet(samples, self.config.image_size, benchmark.mask_threshold, self.config.tiling)

    def check_data(self, with_training: bool = True) -> None:
        """Look at the files of both splits and print a line for each warning. Raises ValueError as `check_data`.

        With training also at the normal images of the threshold, which are needed at the end.
        """
        if with_training:
            self.check_split()
            calibration = () if self.normals is None else self.normals.images.samples
            read_headers([(sample.image, sample.upright) for sample in calibration], self.config.workers)
        train, test = self._by_class(self.normal_images) if with_training else {}, self._by_class(self.test_images)
        listed = BENCHMARKS[self.config.dataset].listed
        for name in self.class_names:
            own = train.get(name, ()), test.get(name, ())
            for warning in check_data(*own, self.test_images.mask_threshold, self.config.workers, listed):
                print(f"{name}: warning: {warning}")

    def _by_class(self, images: ImageSet) -> dict[str, tuple[Sample, ...]]:
        """{class: its samples}, of all classes of the run that have any."""
        if not self.config.unified:
            return {self.class_names[0]: images.samples}
        return {name: part.samples for name, part in images.by_class.items()}

    def check_split(self) -> None:
        """Raises ValueError where the training images are too few for these settings, or their parts are."""
        self.config.check_last_batch(len(self.train_images.training_samples))
        self.normals  # noqa: B018 - made now, since it raises

    @cached_property
    def corruption(self) -> Corruption | None:
        """What paints synthetic anomalies on training images, where the recipe has any."""
        name, (class_name,), (seed,) = self.config.recipe.corruption, self.config.classes, self.config.seeds
        return None if name is None else build_corruption(name, seed, self.config.image_size, class_name)

    @cached_property
    def features(self) -> FeatureCache:
        """The teacher's features of the training images, cached as --cache says."""
        return self.cache_features(self.train_images)

    @cached_property
    def held_out_features(self) -> FeatureCache | None:
        """Those of the held-out images; None where there are none."""
        return None if self.held_out_images is None else self.cache_features(self.held_out_images)

    def cache_features(self, images: ImageSet) -> FeatureCache:
        """A cache over some of the normal images, or their windows, filled anew."""
        config = self.config
        policy = CachePolicy(config.cache, config.cache_gb, config.cache_dir)
        batch_size, workers = config.training.batch_size, config.workers
        return FeatureCache(self.teacher, images.training_samples, policy, batch_size, workers, self.corruption)

    def detector(self) -> Detector:
        """The network in its present state, with what scoring needs to know of the training images."""
        detector = Detector(self.config, self.scored_distiller)
        detector.fit_map_statistics(self.train_images)
        return detector

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that makes the run the run it is: two runs with equal identities give equal numbers."""
        identity = self.config.identity()
        identity |= {"teacher_weights": self.teacher.weights, "precision": self.teacher.precision}
        if self.config.checkpoint is not None:
            identity["checkpoint"] = file_sha256(self.config.checkpoint)
        identity["data"] = self.data.digests()
        return identity

    @cached_property
    def data(self) -> DataRecord:
        """Names, labels and contents of all images of the class, as they were first looked at."""
        return self.read_data(self.config.content_hashes)

    def check_unchanged(self) -> None:
        """Raises ValueError where the images are no longer those that `data` has seen. Unchanged files cost a stamp."""
        if differences := self.data.differences(self.read_data(self.config.content_hashes)):
            raise ValueError(
                f"{self.config.title}: its images changed while they were in use: {'; '.join(differences)}. "
                "No metrics are written; --fresh runs it again on the images of now"
            )

    def read_data(self, store: Path | None) -> DataRecord:
        """The record of the images as they are now; `store` is that of `readers.contents.content_hashes`."""
        splits = {"train": self.normal_images.samples, "test": self.test_images.samples}
        return DataRecord.of(splits, store, self.config.workers)

    @property
    def facts(self) -> dict[str, Any]:
        """What metrics.json records about the run beside its settings and its results."""
        files = [(sample.image, sample.upright) for sample in self.normal_images.samples]
        training = summarize(read_headers(files, self.config.workers))
        return {
            "teacher_weights": self.teacher.weights,
            "precision": self.teacher.precision,
            **self.counts,
            "training_images": training,
        }

    @property
    def sampled_images(self) -> MeasuredImages:
        """At most SAMPLE training images, spread evenly over them."""
        images = self.train_images
        return MeasuredImages(images.samples[:: -(-len(images) // SAMPLE)], images.size, tiling=images.tiling)

    @property
    def counts(self) -> dict[str, int]:
        """How many images there are of each kind; --shots, and --steps with their epochs, if they were asked for."""
        shots, training = self.config.shots, self.training
        return {
            "n_train": len(self.train_images),
            "n_held_out": len(self.held_out_images or ()),
            **({} if self.config.tiles is None else {"n_windows": len(self.train_images.training_samples)}),
            **({} if self.normals is None else {"n_calibration": len(self.normals.images)}),
            "n_test": len(self.test_images),
            "n_anomalous": int(self.test_images.labels.sum()),
            **({} if shots is None else {"shots": shots}),
            **({"steps": training.steps, "epochs": training.epochs} if training.steps else {}),
        }

    def counts_of(self, class_name: str) -> dict[str, int]:
        """`counts` of one class of several; normal images of --calibrate belong to no class."""

        def own(images: ImageSet | None) -> Sequence[Sample]:
            return () if images is None else self._by_class(images).get(class_name, ())

        normals, test = None if self.normals is None else self.normals.images, own(self.test_images)
        return {
            "n_train": len(own(self.train_images)),
            "n_held_out": len(own(self.held_out_images)),
            **({"n_calibration": len(own(normals))} if normals is not None and normals.by_class else {}),
            "n_test": len(test),
            "n_anomalous": sum(sample.anomalous for sample in test),
        }

    @cached_property
    def _split(self) -> Split:
        """The normal images by what they are for, class by class. Raises ValueError for too few images."""
        train: list[Sample] = []
        held_out: list[Sample] = []
        calibration: list[Sample] = []
        for name, samples in self._by_class(self.normal_images).items():
            kept, own_last = self._last(samples)
            kept, own_held_out = self._drawn(name, kept)
            train += self._few(name, kept)
            held_out += own_held_out
            calibration += own_last
        trained, stopping_on, last = map(self.normal_images.like, (train, held_out, calibration))
        self.config.check_last_batch(len(trained.training_samples))
        return Split(trained, stopping_on if self.config.training.patience else None, last if calibration else None)

    def _last(self, samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """(kept, held out for the threshold): the last by name, at least one of each."""
        share = self.config.held_out_share
        count = min(len(samples) - 1, max(1, round(share * len(samples)))) if share else 0
        return (samples[:-count], samples[-count:]) if count > 0 else (samples, ())

    def _drawn(self, class_name: str, samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """(kept, held out for early stopping): drawn by class and seed, at least one of each."""
        config = self.config
        if not config.training.patience:
            return samples, ()
        if len(samples) < 2:
            raise ValueError(
                f"--patience needs training images to hold out; found {len(samples)}. Add images or use --patience 0"
            )
        count = min(len(samples) - 1, max(1, round(config.patience_holdout * len(samples))))
        draw = random.Random(f"{class_name} seed {config.seeds[0]} held out")
        chosen = set(draw.sample(range(len(samples)), count))
        return [s for i, s in enumerate(samples) if i not in chosen], [samples[i] for i in sorted(chosen)]

    def _few(self, class_name: str, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The --shots of a class, in order: drawn by class and seed, more of them on top of fewer; all without."""
        shots = self.config.shots
        if shots is None:
            return samples
        if shots > len(samples):
            raise ValueError(
                f"--shots {shots}: {class_name} has {len(samples)} training images that are not held out; give at most "
                f"{len(samples)}"
            )
        order = list(range(len(samples)))
        random.Random(f"{class_name} seed {self.config.seeds[0]} shots").shuffle(order)
        return [samples[i] for i in sorted(order[:shots])]


class Split(NamedTuple):
    """The normal images of a run: to train on, held out for early stopping, held out for the threshold."""

    train: ImageSet
    held_out: ImageSet | None
    calibration: ImageSet | None


def experiments(config: Config, device: torch.device) -> Iterator[Experiment]:
    """The runs of a sweep, class by class and seed by seed, classes in the benchmark's order.

    Raises ValueError on a class that the benchmark does not have, before the first one.
    """
    for run in config.runs():
        yield Experiment(run, device)


def score(experiment: Experiment, folder: Run, progress: Progress, **facts: Any) -> None:
    """Score the trained experiment once and finish its run folder; `facts` are recorded in metrics.json beside it."""
    config, images = experiment.config, experiment.test_images
    started = time.perf_counter()
    detector = experiment.detector()
    keep_maps = config.vis or config.save_maps or config.anomalib_scores or config.intervals
    evaluation = detector.evaluate(images, keep_maps or experiment.normals is not None, by_group=True)
    facts = experiment.facts | {"score_seconds": round(time.perf_counter() - started, 2)} | facts
    facts |= record_groups(evaluation.groups)
    if evaluation.classes:
        facts["classes"] = {name: class_record(experiment, evaluation, name) for name in evaluation.classes}
    sampled = experiment.sampled_images
    detector.fit_color_scale(sampled)
    facts["training_images"]["brightness"] = sampled.brightness_range
    progress.evaluated(progress.epoch, evaluation.report.values)

    fitted = evaluation.normalizers() if config.anomalib_scores else {}
    facts["normalized"] = normalized_record(fitted, evaluation) if fitted else None
    if config.intervals:
        for name, part in evaluation.parts(config.classes[0]).items():
            key = f"{name} seed {config.seeds[0]}"
            intervals = part.intervals(key)
            (facts["classes"][name] if evaluation.classes else facts)["intervals"] = record_intervals(intervals)
            print(f"{key}:\n{render_intervals(part.report, part.labels, intervals)}")
    folder.write_predictions(images.samples, evaluation.scores, fitted.get("image"), evaluation.aupimo)
    if config.print_scores:
        for sample, value in zip(images.samples, evaluation.scores, strict=True):
            print(f"{config.title}: {int(sample.anomalous)} {value:.4f} {sample.image}")
    if images.vanished:
        print(
            f"{config.title}: {len(images.vanished)} masks would vanish at this resolution; their most covered pixels "
            f"were kept, e.g. of {images.vanished[0]}"
        )
    folder.write_progress(progress)
    state = {**detector.state(), "progress": asdict(progress)}
    if config.keep_optimizer and (experiment.optimizer.state or not progress.epoch):
        state |= training_state(experiment.distiller, experiment.optimizer, experiment.average)
    folder.save_checkpoint(state)
    if config.save_maps:
        save_maps(folder, detector, evaluation)
    experiment.check_unchanged()
    threshold = set_threshold(experiment, detector, folder, evaluation)
    if config.vis and evaluation.maps is not None and detector.color_scale is not None:
        rule, place = Rule.of(threshold), config.overlay_folder
        writer = OverlayWriter(place, images.samples, detector.color_scale, rule, folder.check)
        writer.write(0, evaluation.maps, evaluation.scores)
        print(f"{config.title}: overlays in {config.overlay_folder}")
    folder.finish(config, evaluation.report, progress, facts)


def class_record(experiment: Experiment, evaluation: Evaluation, class_name: str) -> dict[str, Any]:
    """What metrics.json holds of one class of several: its metrics, why some are undefined, how many images, groups."""
    part = evaluation.classes[class_name]
    record = {"metrics": part.report.defined(), "reasons": part.report.reasons, **experiment.counts_of(class_name)}
    return record | record_groups(part.groups)


def set_threshold(experiment: Experiment, detector: Detector, folder: Run, evaluation: Evaluation) -> Threshold | None:
    """The run's threshold, written and explained, where normal images were kept apart for it; else None."""
    normals, title = experiment.normals, experiment.config.title
    if normals is None:
        return None
    checkpoint = file_sha256(folder.folder / CHECKPOINT)
    threshold = calibrate(detector, normals, experiment.config.calibration, checkpoint)
    found = findings_of(threshold, evaluation)
    folder.write_threshold(threshold, found)
    trained, everything = len(experiment.train_images), len(experiment.normal_images)
    lines = render_threshold(threshold, found, trained, {} if evaluation.classes else evaluation.report.defined())
    if normals.source == "holdout":
        each = " of each class" if evaluation.classes else ""
        lines.insert(0, f"trained on {trained} of {everything} normal images; the last by name{each} are held out")
    for line in lines:
        print(f"{title}: {line}")
    return threshold


def save_maps(folder: Run, detector: Detector, evaluation: Evaluation) -> None:
    """Write the run's maps.npz beside its checkpoint; nothing without test images."""
    assert evaluation.maps is not None and detector.color_scale is not None, "evaluate with keep_maps=True"
    if not len(evaluation.labels):
        return
    sha256 = file_sha256(folder.folder / CHECKPOINT)
    classes = [name for name, part in evaluation.classes.items() for _ in part.labels]
    saved = SavedMaps.of(evaluation.maps, evaluation.masks, evaluation.labels, detector.color_scale, sha256, classes)
    saved.write(folder.folder, folder.check)


def normalized_record(fitted: dict[str, Normalizer], evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json keeps of --anomalib_scores: thresholds, ranges, and F1 at the thresholds."""
    assert evaluation.maps is not None, "evaluate with keep_maps=True"
    f1 = f1_metrics(fitted, evaluation.labels, evaluation.scores, evaluation.maps, evaluation.masks)
    return {
        "chosen_on": "the test set",
        **{name: asdict(normalizer) for name, normalizer in fitted.items()},
        **{name: None if value != value else value for name, value in f1.items()},
    }
