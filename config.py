"""Every choice of a run: one frozen dataclass, from which flags.py makes the command line.

The fields are the truth. A field's help text, group, choices and further names stand beside it. A `runtime_field` may
change between two parts of one run without changing its numbers: where things lie, how many threads read them, what is
printed. (Weights and checkpoints are files: the run folder compares their contents by hash, not their places.) A field
that is None stands for the variant's setting: `recipe`, `training` and `scoring` have the value that holds.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from commandline import did_you_mean
from dataset import BENCHMARKS, UNIFIED, Source, find_classes, locate
from methods import (
    CONSISTENCY_WEIGHT,
    NARROW,
    PRESETS,
    PUBLISHED,
    SCHEDULES,
    SKIPS,
    VARIANTS,
    Recipe,
    Scoring,
    Term,
    Training,
)
from model import TEACHERS, is_resnet
from model.specs import PRECISIONS
from readers.base import name_problem
from readers.image_io import MAX_PIXELS
from scoring.modes import MAP_MODES, MAP_SIZES, RESIZED
from scoring.thresholds import MAXIMUM, PIXEL_RULES, CalibrationSettings, check_pixel_rule
from scoring.tiles import Tiling
from utils import printable, read_json

GROUPS = DATA, METHOD, TRAINING, SCORING, OUTPUT, MACHINE, SWEEP = (
    "what to train on",
    "method",
    "training",
    "scoring",
    "output",
    "machine",
    "many runs",
)
DISTILLATION_LOSSES = {
    "cosine": (("cosine", 1.0),),
    "cosine_pixel": (("cosine_pixel", 1.0),),
    "cosine_channel": (("cosine_channel", 1.0),),
    "cosine_hard": (("cosine_hard", 1.0),),
    "mse": (("mse", 1.0),),
    "mse+cosine": (("mse", 0.5), ("cosine", 0.5)),
}

OWN_HOLDOUT = 0.2  # of one's own images: the share that the threshold comes from
FINITE = sys.float_info.max


class Range(NamedTuple):
    """The numbers that a field may have, or each of its numbers; an open end is itself left out."""

    low: float
    high: float = FINITE
    open_low: bool = False
    open_high: bool = False

    def problem(self, value: float) -> str | None:
        """What is wrong with a number; None where it is within."""
        above = value > self.low or (value == self.low and not self.open_low)
        below = value < self.high or (value == self.high and not self.open_high)
        if above and below:  # neither for NaN
            return None
        low = f"must be {'above' if self.open_low else 'at least'} {self.low}"
        high = "finite" if self.high == FINITE else f"{'below' if self.open_high else 'at most'} {self.high}"
        return low if below else f"{low} and {high}"


LARGEST = 2**31 - 1  # what every library takes as a count
COUNT, POSITIVE, NOT_NEGATIVE = Range(0, LARGEST), Range(1, LARGEST), Range(0)
RANGES = {
    "shots": POSITIVE,
    "image_size": Range(32, 16384),
    "tiles": Range(0, 1, open_low=True),
    "tile_overlap": Range(0, 0.9),
    "max_pixels": Range(1, 2**63 - 1),
    "student_width": Range(1, 2**16),
    "student_blocks": Range(1, 1000),
    "rate": NOT_NEGATIVE,
    "mask_rate": Range(0, 1, open_high=True),
    "dropout": Range(0, 1, open_high=True),
    "epochs": COUNT,
    "steps": POSITIVE,
    "batch_size": POSITIVE,
    "learning_rate": Range(0, open_low=True),
    "weight_decay": NOT_NEGATIVE,
    "final_rate": Range(0, 1),
    "average": Range(0, 1, open_high=True),
    "patience": COUNT,
    "patience_holdout": Range(0, 1, open_low=True, open_high=True),
    "holdout": Range(0, 1, open_high=True),
    "false_alarm": Range(0, 1, open_low=True, open_high=True),
    "seeds": Range(-(2**63), 2**63 - 1),
    "score_num": POSITIVE,
    "print_epoch": COUNT,
    "workers": Range(0, 1024),
    "cache_gb": NOT_NEGATIVE,
    "checkpoint_seconds": NOT_NEGATIVE,
    "jobs": Range(1, 1024),
    "lock_seconds": Range(1),
    "gpus_per_run": Range(0, 1024),
}


def field(default: Any, group: str, text: str, **facts: Any) -> Any:
    """A Config field with what its flag needs.

    choices          the values that it may have, where they are names
    names            further spellings of the flag, the published ones first
    affects_results  whether it decides a run's numbers; see `runtime_field`
    common           whether the flag is in `--help`; `--help all` has all flags
    """
    defaults: dict[str, Any] = {"choices": (), "names": (), "affects_results": True, "common": False}
    assert facts.keys() <= defaults.keys()
    metadata = defaults | facts | {"group": group, "help": text, "choices": tuple(facts.get("choices", ()))}
    return dataclasses.field(default=default, metadata=metadata)


runtime_field = functools.partial(field, affects_results=False)


@dataclass(frozen=True)
class Config:
    """Everything a user can choose. Defaults reproduce SK-RD4AD's published protocol; ranges are checked on creation.

    Raises ValueError with all problems at once, one per line.
    """

    dataset: str = field("mvtec", DATA, "benchmark", choices=BENCHMARKS, common=True)
    classes: tuple[str, ...] = field(
        ("all",),
        DATA,
        "classes of the benchmark; all: each by itself; unified: one model over all of them, scored class by class",
        names=("class", "class_"),
        common=True,
    )
    shots: int | None = field(
        None, DATA, "so many training images of each class, drawn by class and seed (default: all)"
    )
    data_path: Path | None = runtime_field(
        None, DATA, "the benchmark's root; with --dataset csv the file (demo and elpv have a default)", common=True
    )
    train_dir: Path | None = runtime_field(None, DATA, "--dataset folder: normal images to learn from", common=True)
    test_dir: Path | None = runtime_field(
        None, DATA, "--dataset folder: test images, good/ and one folder per kind of defect", common=True
    )
    bad: Path | None = runtime_field(
        None, DATA, "--dataset folder: images with defects, to say how many of them are found", common=True
    )
    mask_dir: Path | None = runtime_field(None, DATA, "--dataset folder: masks, laid out as --test_dir is")
    image_size: int = field(256, DATA, "images are resized to a square of so many pixels; a multiple of 32")
    tiles: float | None = field(
        None,
        DATA,
        "for large images: train on and score overlapping windows of --image_size pixels, cut from the images at this "
        "share of their own size, as 0.5 (default: the whole image in one square)",
    )
    tile_overlap: float = field(0.25, DATA, "--tiles: share of their side that neighboring windows have in common")
    max_pixels: int = runtime_field(
        MAX_PIXELS, DATA, "images and masks of more pixels are refused before they are decoded"
    )

    variant: str = field("sk_rd4ad", METHOD, "member of the family", choices=VARIANTS, common=True)
    variants: tuple[str, ...] | None = runtime_field(
        None, METHOD, "several members of the family, in one command and one table; in place of --variant"
    )
    net: str = field("wide_res50", METHOD, f"teacher: {', '.join(TEACHERS)}, or timm/NAME", common=True)
    weights: str = runtime_field(
        "auto", METHOD, "the teacher's weights: auto (cache or download), random, or a file's path"
    )
    preset: str | None = field(
        None,
        METHOD,
        "the variant's settings: published, or narrow, for teachers of few channels (default: published with a ResNet, "
        "narrow with any other teacher)",
        choices=PRESETS,
    )
    skips: str | None = field(
        None, METHOD, "teacher levels that are added to the student's (default: the variant's)", choices=SKIPS
    )
    student_width: tuple[int, ...] | None = field(
        None, METHOD, "widths inside the student, finest level first, for teachers other than ResNets"
    )
    student_blocks: int | None = field(
        None, METHOD, "residual blocks of each student stage, for teachers other than ResNets"
    )
    loss: str | None = field(
        None,
        METHOD,
        "distillation loss; mse+cosine = half mse, half cosine (default: the variant's; narrow: cosine_hard)",
        choices=DISTILLATION_LOSSES,
    )
    layerloss: bool | None = field(None, METHOD, "inter-level consistency loss on or off (default: the variant's)")
    rate: float | None = field(None, METHOD, f"weight of the consistency loss (default: {CONSISTENCY_WEIGHT})")
    train_levels: tuple[int, ...] = field((0, 1, 2), METHOD, "levels that the losses compare; 0 is the finest")
    scconv: bool | None = field(None, METHOD, "SCConv in the bottleneck (default: the variant's)")
    simam: bool | None = field(None, METHOD, "SimAM in the bottleneck (default: the variant's)")
    fmm: bool | None = field(
        None, METHOD, "hide a share of the features and generate them anew (default: the variant's)"
    )
    mask_rate: float | None = field(None, METHOD, "share of the cells that --fmm hides (default: 0.2)")
    dropout: float | None = field(
        None,
        METHOD,
        "share of the values in the bottleneck that are set to 0 while training, as 0.2 (default: 0; narrow 0.2)",
    )
    recenter: bool | None = field(
        None,
        METHOD,
        "compare features less their means over the positions, in training and in scoring (default: the variant's, 0)",
    )
    checkpoint: Path | None = runtime_field(
        None, METHOD, "start from a published checkpoint {'bn', 'decoder'}; --epochs 0 scores it without training"
    )

    epochs: int | None = field(
        None,
        TRAINING,
        "passes over the training images; the last is the result (default: the variant's, often 200; narrow: --steps)",
        common=True,
    )
    steps: int | None = field(
        None,
        TRAINING,
        "train for so many steps of the optimizer, rounded up to whole epochs; in place of --epochs (narrow: 500)",
    )
    batch_size: int | None = field(
        None, TRAINING, "images per step (default: the variant's; drd 4, others 16; narrow: at most 8)"
    )
    learning_rate: float | None = field(
        None, TRAINING, "Adam's step size (default: the variant's; masked 0.001, others 0.005)", names=("lr",)
    )
    weight_decay: float | None = field(None, TRAINING, "L2 penalty added to the gradient (default: the variant's)")
    schedule: str | None = field(
        None,
        TRAINING,
        "step sizes over the training; cosine: falling as half a cosine (default: the variant's, constant)",
        choices=SCHEDULES,
    )
    final_rate: float | None = field(
        None, TRAINING, "--schedule cosine: what the step sizes end at, as a share of their start (default: 0.01)"
    )
    average: float | None = field(
        None,
        TRAINING,
        "the result has the moving average of the weights, of which so much is kept in each step, as 0.999; 0: the "
        "last weights (default: 0; narrow 0.999)",
    )
    patience: int | None = field(
        None,
        TRAINING,
        "stop after so many epochs without a lower loss on held-out training images; 0: never (default: the variant's)",
    )
    patience_holdout: float = field(0.1, TRAINING, "share of the training images that --patience holds out")
    seeds: tuple[int, ...] = field((111,), TRAINING, "one run per class and seed", names=("seed",), common=True)
    deterministic: bool = field(False, TRAINING, "use only operations that repeat to the bit (slower on a GPU)")

    levels: tuple[int, ...] = field((0, 1, 2), SCORING, "levels that make the anomaly map; 0 is the finest")
    anomaly_map: str | None = field(
        None,
        SCORING,
        "how the levels' maps are combined; standardized: each in units of its spread over the training images, then "
        "added (default: the variant's)",
        choices=MAP_MODES,
    )
    map_size: str = field(
        RESIZED,
        SCORING,
        "pixel metrics are computed at the size that images are resized to; own: at each image's own size, to which "
        "its map is enlarged; image scores are the same",
        choices=MAP_SIZES,
    )
    refine: bool | None = field(
        None, SCORING, "multiply image scores by DRD's refinement factor (default: the variant's)"
    )
    anomalib_scores: bool = field(
        False,
        SCORING,
        "for comparison with anomalib: also write scores in 0..1 and decisions by the threshold that is F1-optimal on "
        "the test set",
        names=("normalize", "normalise"),
    )
    holdout: float | None = field(
        None,
        SCORING,
        "share of the training images, the last by name, that are not trained on: the threshold comes from them "
        "(default: 0.2 with --dataset folder; 0 for benchmarks, whose protocol trains on all)",
        common=True,
    )
    calibrate: Path | None = runtime_field(
        None,
        SCORING,
        "folder of further normal images, best of another day: the threshold comes from them",
        common=True,
    )
    false_alarm: float | None = runtime_field(
        None,
        SCORING,
        "share of normal images that may be above the threshold (default: as few as the images can promise)",
        common=True,
    )
    pixel_threshold: str = runtime_field(
        MAXIMUM, SCORING, f"rule for pixels, from the same normal images: {PIXEL_RULES}"
    )
    score_num: int = field(1, SCORING, "image score = mean of so many largest pixels of the map; 1 = its maximum")
    seg: bool = field(True, SCORING, "1: pixel metrics and AUPRO beside the image metrics; 0: image metrics only")
    intervals: bool = runtime_field(
        False, SCORING, "also record 95 % intervals of the metrics, by a bootstrap over the test images"
    )
    print_epoch: int = runtime_field(
        0, SCORING, "also evaluate after every so many epochs, for the log and `oracle` only; 0 = at the end only"
    )

    save_path: Path = runtime_field(Path("runs"), OUTPUT, "root of the run folders", common=True)
    name: str | None = runtime_field(None, OUTPUT, "folder name in place of the variant's, for ablations", common=True)
    resume: bool = runtime_field(True, OUTPUT, "1: finish an unfinished run; 0: start it again from epoch 1")
    fresh: bool = runtime_field(False, OUTPUT, "discard these runs, finished or not, and run them again", common=True)
    keep_optimizer: bool = runtime_field(
        True, OUTPUT, "1: a finished run can be given more --epochs later; 0: its checkpoint takes a third of the space"
    )
    vis: bool = runtime_field(False, OUTPUT, "save an overlay of every test image", common=True)
    save_maps: bool = runtime_field(
        False, OUTPUT, "save the anomaly maps and masks of the test images in maps.npz: the report's pixel curves"
    )
    img_path: Path | None = runtime_field(None, OUTPUT, "where overlays go (default: the run folder)")
    print_loss: bool | None = runtime_field(
        None,
        OUTPUT,
        "print a line per epoch; 0: never (default: where no terminal shows a bar)",
    )
    print_scores: bool = runtime_field(
        False, OUTPUT, "print every test image's label and score", names=("print_canshu",)
    )
    print_max: bool = runtime_field(
        False, OUTPUT, "also print the metrics of the epoch that is best on the test set (`oracle`: not a result)"
    )

    device: str = runtime_field("auto", MACHINE, "auto (a GPU where there is one), cpu, cuda, cuda:1, mps", common=True)
    precision: str = field(
        "fp32",
        MACHINE,
        "what the networks compute with; auto: bf16 where processor or GPU has it in hardware",
        choices=PRECISIONS,
    )
    fast: bool = field(
        True,
        MACHINE,
        "channels-last layout; on a processor also an allocator that keeps freed memory and, without AVX-512, weight "
        "gradients by matrix products; results are equal up to rounding",
    )
    compile: bool = field(False, MACHINE, "compile the network that scores, which takes a minute or two once")
    workers: int = runtime_field(min(8, os.cpu_count() or 1), MACHINE, "threads that read and resize images ahead")
    cache: str = runtime_field(
        "auto",
        MACHINE,
        "kept across epochs: the teacher's features in memory or in files of --cache_dir, the images, or nothing",
        choices=("auto", "features", "file", "images", "none"),
    )
    cache_gb: float = runtime_field(4.0, MACHINE, "most memory for --cache auto, in GiB")
    cache_dir: Path | None = runtime_field(
        None, MACHINE, "folder of features in files, shared by runs with the same images and teacher"
    )
    checkpoint_seconds: float = runtime_field(
        60.0, MACHINE, "least time between two resume points; 0 = one after every epoch"
    )

    stop_on_error: bool = runtime_field(
        False, SWEEP, "end at the first run that fails; 0: list it, go on with the others, exit code 1 at the end"
    )
    devices: tuple[str, ...] | None = runtime_field(
        None, SWEEP, "devices of this machine that share the runs, as cuda:0 cuda:1; in place of --device"
    )
    jobs: int = runtime_field(
        1,
        SWEEP,
        "runs side by side on each device, each in a process of its own; the processor's cores are divided among them",
        names=("jobs_per_device",),
    )
    ray: str | None = runtime_field(
        None, SWEEP, "local, or the address of a Ray cluster whose hosts share these folders: each run is a task there"
    )
    gpus_per_run: float | None = runtime_field(
        None, SWEEP, "--ray: GPUs that a run takes, or the part of one (default: 1 where the cluster has GPUs, else 0)"
    )
    shard: str | None = runtime_field(
        None, SWEEP, "I/N: every N-th run, from the I-th; auto: as Slurm's array or RANK and WORLD_SIZE say"
    )
    wait: bool = runtime_field(
        True, SWEEP, "1: wait for runs that other processes have, and do what they leave; 0: leave them out"
    )
    lock_seconds: float = runtime_field(
        600.0, SWEEP, "a run whose process shows no sign of life for so long is taken over by another process"
    )

    def __post_init__(self) -> None:
        for name, hint in field_types().items():  # lists from the command line, text from JSON and from callers
            object.__setattr__(self, name, _typed(getattr(self, name), hint))
        problems = [*self._misfits()]
        if problems:  # what follows relies on the types
            raise ValueError("\n".join(problems))
        if self.variants:
            object.__setattr__(self, "variant", self.variants[0])
        if self.preset is None:  # config.json records it, since another version may have another default
            object.__setattr__(self, "preset", PUBLISHED if is_resnet(self.net) else NARROW)
        problems = [
            f"unknown --{f.name} {getattr(self, f.name)!r}: choose from {', '.join(f.metadata['choices'])}"
            f"{did_you_mean([getattr(self, f.name)], f.metadata['choices'])}"
            for f in dataclasses.fields(self)
            if f.metadata["choices"] and getattr(self, f.name) not in (None, *f.metadata["choices"])
        ]
        if self.net not in TEACHERS and not self.net.startswith("timm/"):
            hint = did_you_mean([self.net], TEACHERS)
            problems.append(f"unknown --net {self.net!r}: choose from {', '.join(TEACHERS)}, or timm/NAME{hint}")
        problems += self._out_of_range()
        if self.image_size % 32:
            problems.append(f"--image_size {self.image_size}: must be a multiple of 32")
        if self.score_num > self.image_size**2:
            problems.append(
                f"--score_num {self.score_num}: a map of --image_size {self.image_size} has {self.image_size**2} pixels"
            )
        if self.tiles is None and self.tile_overlap != Config.tile_overlap:
            problems.append(f"--tile_overlap {self.tile_overlap}: belongs to --tiles, the share of their own size")
        if not set(self.levels) <= {0, 1, 2}:
            problems.append(f"--levels {' '.join(map(str, self.levels))}: choose from 0, 1, 2")
        if self.variants is not None:
            if unknown := [name for name in self.variants if name not in VARIANTS]:
                hint = did_you_mean(unknown, VARIANTS)
                problems.append(f"unknown --variants {' '.join(unknown)}: choose from {', '.join(VARIANTS)}{hint}")
            if self.name is not None:
                problems.append("--name: several --variants have folders of their own; give another --save_path")
        for name in ("seeds", "classes", "levels", "variants", "devices"):
            values = getattr(self, name)
            if values is None:
                continue
            if not values or len(set(values)) < len(values):
                problems.append(f"--{name} {' '.join(map(str, values))}: give one or more, each once")
        if self.student_width is not None and len(self.student_width) != 3:
            widths = " ".join(map(str, self.student_width))
            problems.append(f"--student_width {widths}: give three widths, finest level first")
        try:
            check_pixel_rule(self.pixel_threshold)
        except ValueError as wrong:
            problems.append(str(wrong))
        if self.anomalib_scores and UNIFIED in self.classes:
            problems.append(
                f"--anomalib_scores: its threshold is chosen on the test set of one class; leave out --class {UNIFIED}"
            )
        if self.calibrate is not None and self.holdout:
            problems.append("--calibrate and --holdout: the threshold comes from one of them; leave one out")
        for flag in ("train_dir", "test_dir", "bad", "mask_dir"):
            if getattr(self, flag) is not None and self.dataset != "folder":
                problems.append(f"--{flag}: belongs to --dataset folder, found --dataset {self.dataset}")
        if self.dataset == "folder" and self.train_dir is None and self.data_path is None:
            problems.append("--dataset folder: needs --train_dir, a folder of normal images (or --data_path)")
        if self.epochs is not None and self.steps is not None:
            problems.append("--epochs and --steps: each says how long to train; leave one out")
        if self.cache == "file" and self.cache_dir is None:
            problems.append("--cache file: needs --cache_dir, the folder for the teacher's features")
        folders = [("class", name) for name in self.classes] + ([] if self.name is None else [("name", self.name)])
        for flag, name in folders:
            if problem := name_problem(name):
                problems.append(f"--{flag} '{printable(name[:80])}': must be a plain folder name, but it {problem}")
        if self.name is not None and self.name.endswith(f", {UNIFIED}"):
            problems.append(f"--name '{printable(self.name[:80])}': tables call one model over all classes so")
        if self.variant in VARIANTS and self.rate is not None and not self.consistency:
            problems.append("--rate: weighs the consistency loss, which is off here; add --layerloss 1")
        if not problems:
            recipe = self.recipe  # raises what cannot be
            if self.final_rate is not None and recipe.training.schedule == "constant":
                problems.append("--final_rate: the step sizes stay as they are here; add --schedule cosine")
            if self.mask_rate is not None and not recipe.fmm:
                problems.append("--mask_rate: no features are hidden here; add --fmm 1")
        if problems:
            raise ValueError("\n".join(problems))

    def _misfits(self) -> Iterator[str]:
        """A line for each field whose value has another type, and for empty texts."""
        for name, hint in field_types().items():
            value = getattr(self, name)
            if not _fits(value, hint):
                yield f"--{name}: must be {_words_of(hint)}, found {value!r}"
                continue
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, (str, Path)) and (not str(text) or "\0" in str(text)):
                    yield f"--{name} {str(text)!r}: must not be empty, nor hold a null character"

    def _out_of_range(self) -> Iterator[str]:
        for name, within in RANGES.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else () if value is None else (value,):
                if problem := within.problem(number):
                    yield f"--{name} {number}: {problem}"

    def check_last_batch(self, images: int) -> None:
        """Raises ValueError where training on so many images would end in a batch that is too small for batch norm.

        At 32 pixels the embedding has one place an image, and batch norm needs two values a channel.
        """
        size = self.training.batch_size
        if self.image_size > 32 or not images or not self.training.epochs or (images % size or size) > 1:
            return
        larger = next((b for b in range(max(2, size), images + size) if images % b != 1), None)
        remedy = "--image_size 64" + (f" or --batch_size {larger}" if larger is not None and images > 1 else "")
        raise ValueError(
            f"--image_size {self.image_size}: the last batch of {images} training images holds a single one "
            f"(--batch_size {size}), too few for batch norm at this size; give {remedy}"
        )

    @property
    def consistency(self) -> bool:
        """Whether the consistency loss takes part."""
        own = any(term.name == "consistency" for term in self._row.losses)
        return own if self.layerloss is None else self.layerloss

    @property
    def recipe(self) -> Recipe:
        """The variant's recipe with this run's changes. Raises ValueError where they do not go together."""
        recipe = self._row
        changes: dict[str, Any] = {"losses": self._losses(recipe), "train_levels": self.train_levels}
        if self.skips is not None:
            changes["skips"] = SKIPS[self.skips]
        changes |= self._given(
            "student_width", "student_blocks", "scconv", "simam", "fmm", "mask_rate", "dropout", "recenter"
        )
        return replace(recipe, training=self.training, scoring=self.scoring, **changes)

    def _losses(self, recipe: Recipe) -> tuple[Term, ...]:
        """The recipe's terms; --loss takes the place of those that distil, over the first term's pairs."""
        consistency = [term for term in recipe.losses if term.name == "consistency"]
        terms = [term for term in recipe.losses if term.name != "consistency"]
        if self.loss is not None:
            pairs = recipe.losses[0].pairs
            distilling = [Term(name, weight, pairs) for name, weight in DISTILLATION_LOSSES[self.loss]]
            terms = [*distilling, *(term for term in terms if term.pairs != pairs)]
        if self.consistency:
            term = consistency[0] if consistency else Term("consistency", CONSISTENCY_WEIGHT, recipe.losses[0].pairs)
            terms.append(term if self.rate is None else term._replace(weight=self.rate))
        return tuple(terms)

    @property
    def training(self) -> Training:
        """How this run is trained: the variant's settings, those of its one class included, with this run's changes.

        With --steps its epochs depend on the images: `Experiment.training` has them.
        """
        training = self._row.training
        own = training.epochs_of.get(self.classes[0], training.epochs) if len(self.classes) == 1 else training.epochs
        changes = self._given("epochs", "batch_size", "learning_rate", "weight_decay", "patience")
        changes |= self._given("steps", "schedule", "final_rate", "average")
        if self.epochs is not None:
            changes["steps"] = 0
        return replace(training, **{"epochs": own, "epochs_of": {}, **changes})

    @property
    def scoring(self) -> Scoring:
        """How this run is scored: the variant's settings with this run's changes."""
        return replace(self._row.scoring, **self._given("levels", "anomaly_map", "score_num", "refine"))

    @property
    def _row(self) -> Recipe:
        """The variant's recipe as the preset has it, without this run's changes."""
        assert self.preset is not None, "settled on creation"
        return PRESETS[self.preset](VARIANTS[self.variant])

    def _given(self, *names: str) -> dict[str, Any]:
        """The fields of these names that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def tiling(self) -> Tiling | None:
        """How large images are cut into windows; None where each image is one square."""
        return None if self.tiles is None else Tiling(self.tiles, self.tile_overlap)

    @property
    def unified(self) -> bool:
        """Whether this run is one model over all classes."""
        return self.classes == (UNIFIED,)

    @property
    def source(self) -> Source:
        """Where the benchmark's files lie."""
        return Source(self.data_path, self.train_dir, self.test_dir, self.mask_dir, self.bad)

    @property
    def held_out_share(self) -> float:
        """The share of the training images that the threshold comes from."""
        if self.holdout is not None:
            return self.holdout
        return OWN_HOLDOUT if self.dataset == "folder" and self.calibrate is None else 0.0

    @property
    def calibration(self) -> CalibrationSettings:
        """What decides the threshold beside the scores of normal images."""
        return CalibrationSettings(self.false_alarm, self.pixel_threshold)

    @property
    def folder_name(self) -> str:
        """The variant's folder: its name, or --name."""
        return self.name or self.variant

    @property
    def sweep_folder(self) -> Path:
        """Where all classes and seeds of this sweep lie."""
        return self.save_path / self.dataset / self.folder_name

    @property
    def run_folder(self) -> Path:
        """Where a run of one class, or of one model over all, and one seed lies."""
        (class_name,), (seed,) = self.classes, self.seeds
        return _below(self.save_path, self.sweep_folder / class_name / f"seed{seed}", depth=4)

    @property
    def overlay_folder(self) -> Path:
        """Where a run's overlays go."""
        own = self.run_folder.relative_to(self.save_path)
        return self.img_path / own if self.img_path is not None else self.run_folder / "overlays"

    @property
    def content_hashes(self) -> Path:
        """Where the hashes of a class's files are kept for the next process."""
        return _below(self.save_path, self.save_path / self.dataset / ".hashes" / f"{self.classes[0]}.json", depth=3)

    @property
    def title(self) -> str:
        """A run's name in messages."""
        return f"{' '.join(self.classes)} seed {' '.join(map(str, self.seeds))}"

    @property
    def seed_key(self) -> str:
        """What a run's random state is seeded from: class and seed, nothing else. Another text gives other results."""
        return f"{' '.join(self.classes)} seed {' '.join(map(str, self.seeds))}"

    def runs(self) -> list[Config]:
        """The runs of a sweep: variant by variant, class by class, seed by seed, classes in the benchmark's order.

        The benchmark's own data are made where they are missing. Raises ValueError for a class that it does not have,
        and where one model over all classes cannot be; FileNotFoundError where there is nothing to read.
        """
        if self.variants is not None:
            return [run for name in self.variants for run in self.of_variant(name).runs()]
        benchmark = BENCHMARKS[self.dataset]
        known = find_classes(benchmark, locate(benchmark, self.source))
        names = self.classes
        if set(names) <= {"all", UNIFIED}:
            names = tuple(name for given in names for name in (known if given == "all" else (given,)))
        if unknown := [name for name in names if name not in (*known, UNIFIED)]:
            raise ValueError(
                f"unknown --class {', '.join(unknown)}: {self.dataset} has {', '.join(known) or 'none'}"
                f"{did_you_mean(unknown, known)}"
            )
        if UNIFIED in names:
            self._check_unified(known)
        return [self.of_run(class_name, seed) for class_name in names for seed in self.seeds]

    def _check_unified(self, known: Sequence[str]) -> None:
        """Raises ValueError where one model over the classes makes no sense, or its name is taken."""
        flag = f"--class {UNIFIED}"
        if UNIFIED in known:
            raise ValueError(f"{flag}: stands for one model over all classes; rename the class of that name")
        if len(known) < 2:
            raise ValueError(f"{flag}: needs two classes or more; {self.dataset} has {', '.join(known)} alone")
        if BENCHMARKS[self.dataset].exclusive:
            raise ValueError(
                f"{flag}: in {self.dataset} the normal images of one class are anomalies of the others; give classes"
            )

    def of_variant(self, name: str) -> Config:
        """The part of a sweep that is of one of its variants. Raises ValueError for flags that it does not have."""
        try:
            return replace(self, variant=name, variants=None)
        except ValueError as problem:
            lines = str(problem).splitlines()
            raise ValueError("\n".join(f"--variants {name}: {line}" for line in lines)) from None

    def of_run(self, class_name: str, seed: int) -> Config:
        """The part of a sweep that trains one class, or one model over all classes, with one seed."""
        return replace(self, classes=(class_name,), seeds=(seed,), variants=None, shard=None)

    def settings(self) -> dict[str, Any]:
        """All that decides a run's numbers, as plain JSON values, with what the variant settles filled in."""
        return _settings(self, self.recipe, self.training, self.scoring)

    def identity(self) -> dict[str, Any]:
        """The settings that differ from their defaults: two runs with equal identities are the same run.

        A setting that a later version adds changes no identity while it has its default.
        """
        defaults = _settings(Config(), Recipe(), Training(), Scoring())
        return {name: value for name, value in self.settings().items() if value != defaults[name]}

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {f.name: self.plain(f.name) for f in dataclasses.fields(self)}

    def plain(self, name: str) -> Any:
        value = getattr(self, name)
        return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """Saved plain values -> typed field values. Raises ValueError on names this version does not know, on types."""
        hints, saved = field_types(), _renamed(saved)
        unknown = sorted(set(saved) - set(hints))
        if unknown:
            raise ValueError(f"the saved configuration has fields this version does not know: {', '.join(unknown)}")
        found = {name: _typed(value, hints[name]) for name, value in saved.items()}
        wrong = [name for name, value in found.items() if not _fits(value, hints[name])]
        if wrong:
            raise ValueError("; ".join(f"{n} must be {_words_of(hints[n])}, found {saved[n]!r}" for n in wrong))
        return found

    @classmethod
    def load(cls, path: Path) -> dict[str, Any]:
        """Typed field values from a run's config.json. Raises FileNotFoundError, ValueError."""
        if not path.is_file():
            raise FileNotFoundError(f"--config {path}: no such file; give the config.json of a run folder")
        record = read_json(path)
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise ValueError(f"--config {path}: not a run's config.json, which has a table 'config'")
        try:
            return cls.from_json(record["config"])
        except ValueError as problem:
            raise ValueError(f"--config {path}: {problem}") from None


def _settings(config: Config, *parts: Recipe | Training | Scoring) -> dict[str, Any]:
    """The Config's own fields that affect results, then those of the recipe's parts, which settle the others."""
    left_out = {"training", "scoring", "epochs_of"}
    settled = {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}
    # a field that may be None stands for one of the recipe's; the others are the Config's own
    fields = [f for f in dataclasses.fields(config) if f.metadata["affects_results"] and f.default is not None]
    found = {f.name: config.plain(f.name) for f in fields} | settled
    found |= {"holdout": config.held_out_share, "shots": config.shots, "tiles": config.tiles}
    plain = json.dumps({k: v for k, v in found.items() if k not in left_out}, default=dataclasses.asdict)
    return json.loads(plain)


def _renamed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved fields of an earlier version by their names of now, and what its defaults were.

    Before presets all was as published, but for the map of teachers other than ResNets. Before thresholds --holdout was
    that of --patience.
    """
    saved = dict(saved)
    if saved and "preset" not in saved:
        saved["preset"] = PUBLISHED
        if saved.get("anomaly_map") is None and not is_resnet(str(saved.get("net", Config.net))):
            saved["anomaly_map"] = "standardized"
    if "patience_holdout" in saved or "holdout" not in saved:
        return saved
    names = {"holdout": "patience_holdout", "normalize": "anomalib_scores"}
    return {names.get(name, name): value for name, value in saved.items()} | {"holdout": 0.0}


def _below(root: Path, path: Path, depth: int) -> Path:
    """`path`, which lies `depth` levels below `root`. Raises ValueError for one that leaves it, as a name with `..`."""
    if len(path.parts) != len(root.parts) + depth or ".." in path.parts[len(root.parts) :]:
        raise ValueError(f"{path}: must lie {depth} levels below --save_path {root}; a name there holds / or ..")
    return path


def _typed(value: Any, hint: Any) -> Any:
    """A plain value as a value of the field's type, where it can be one: text as a path, a list as a tuple."""
    kind = kind_of(hint)
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    return tuple(value) if typing.get_origin(kind) is tuple and isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the field's type; true is no number."""
    kind = kind_of(hint)
    if value is None:
        return kind is not hint
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(kind)[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words_of(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    kind = kind_of(hint)
    return f"a list, each {words[typing.get_args(kind)[0]]}" if typing.get_origin(kind) is tuple else words[kind]


def kind_of(hint: Any) -> Any:
    """The type in `X | None`, or the type itself."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    return options[0] if isinstance(hint, types.UnionType) else hint


@functools.cache
def field_types() -> dict[str, Any]:
    """The annotated type of each field of the Config."""
    return typing.get_type_hints(Config)
