"""Score a finished run again from its folder alone, or predict on new images.

python test.py RUN                       the same metrics again; exit code 1 if they differ from the recorded ones
python test.py RUN --verify              all that the run recorded against its data of now; exit code 1 for a difference
python test.py RUN --anomaly_map MODE    the run scored with another anomaly map, in a run folder of its own
python test.py RUN --intervals           and how far the metrics could be off with other test images
python test.py RUN --images PATH...      a CSV of scores, an overlay of every image; exit code 3 if some cannot be read
"""

from __future__ import annotations

from commandline import Parser, boolean, exit_code  # before anything slow: Ctrl-C is one line from here on

# isort: split

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dataset import ImageSet, Sample
from detector import Detector
from experiment import Experiment, save_maps, score
from model.precision import PRECISIONS
from readers.base import list_images
from readers.headers import readable_headers, unlike_training
from readers.image_io import limit_pixels
from report.intervals import render_intervals
from report.overlays import OverlayWriter
from run_files import CONFIG, MAPS, METRICS, Progress, Run, score_columns
from run_files.csv_files import csv_line
from scoring.anomaly_map import MAP_MODES
from scoring.intervals import Bootstrap
from scoring.normalization import Normalizer
from utils import (
    format_table,
    keep_freed_memory,
    printable,
    set_determinism,
    sweep_partials,
    walk_folders,
    write_atomically,
)
from verification import environment_differences, verify

UNREAD = 3  # the exit code of a prediction that could not read some image


def main(argv: Sequence[str] | None = None) -> int:
    """Score again, or predict. Returns the exit code: 0, or 1 where metrics differ from the recorded ones."""
    options = _parser().parse_args(argv)
    if not options.images and (options.precision is not None or options.compile is not None):
        raise ValueError("--precision and --compile go with --images: a finished run is scored again as it was scored")
    if options.out is not None and not options.images:
        raise ValueError("--out goes with --images")
    if options.save_maps and (options.images or options.verify):
        raise ValueError("--save_maps goes with the run's test images: not with --images or --verify")
    if options.images and options.anomaly_map is not None:
        raise ValueError(
            "--anomaly_map goes with the run's test images: score the run again with it, then use that run"
        )
    if options.intervals is not None:
        Bootstrap(options.intervals)  # shows a level without sense now
        if options.images or options.anomaly_map is not None:
            raise ValueError("--intervals goes with the run's own metrics: not with --images or --anomaly_map")
    names = ("data_path", "weights", "device", "workers", "precision", "compile")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.verify:
        if options.images or options.intervals is not None or options.anomaly_map is not None or options.vis:
            raise ValueError("--verify stands alone: it compares a run with its own data")
        return verify_run(options.run, changes)
    detector = Detector.load(options.run, **changes)
    set_determinism(detector.config.deterministic)
    if detector.config.fast:
        keep_freed_memory()
    if options.images:
        return predict_images(detector, options.run, options.images, options.out or options.run / "images")
    if options.anomaly_map is not None:
        return score_with(detector, options.run, options.anomaly_map, options.vis, options.save_maps)
    return score_again(detector, options.run, options.vis, options.intervals, options.save_maps)


def score_again(detector: Detector, run: Path, vis: bool, level: float | None = None, with_maps: bool = False) -> int:
    """Print the metrics of a second scoring beside the recorded ones, and their intervals where a level is given."""
    config = detector.config
    experiment = Experiment(config, detector.device)
    experiment.check_data(with_training=False)
    images = experiment.test_images
    evaluation = detector.evaluate(images, keep_maps=vis or with_maps or level is not None)
    metrics, recorded = evaluation.report.defined(), Run(run).read(METRICS)["metrics"]
    print(_beside({"now": metrics, "recorded": recorded}, config.title, digits=6))
    if level is not None:
        intervals = evaluation.intervals(config.seed_key, level)
        print(f"\n{render_intervals(evaluation.report, evaluation.labels, intervals, level)}\n")
    if vis and evaluation.maps is not None and detector.color_scale is not None:
        in_place = run.resolve() == config.run_folder.resolve()
        folder = config.overlay_folder if in_place else run / "overlays"  # a copy keeps its overlays to itself
        writer = OverlayWriter(folder, images.samples, detector.color_scale)
        writer.write(0, evaluation.maps, evaluation.scores)
        print(f"overlays in {folder}")
    if with_maps:
        save_maps(Run(run), detector, evaluation)
        print(f"maps in {run / MAPS}")
    if metrics == recorded:
        print("identical to the recorded metrics")
        return 0
    data = Run(run).data_differences(experiment.read_data(store=None))
    elsewhere = environment_differences(Run(run).read(METRICS))
    causes = [f"the data: {data}"] * bool(data) + [f"the environment: {'; '.join(elsewhere)}"] * bool(elsewhere)
    print(f"DIFFERENT from the recorded metrics; {' and '.join(causes) or 'data and environment are the same'}")
    print(f"python test.py {run} --verify compares everything else")
    return 1


def verify_run(run: Path, changes: Mapping[str, Any]) -> int:
    """Print what of the run is as recorded, and what is not."""
    checks = verify(run, **changes)
    print("\n".join(map(str, checks)))
    different = [check.name for check in checks if check.ok is False]
    print(f"DIFFERENT: {', '.join(different)}" if different else "verified: the run is as recorded")
    return 1 if different else 0


def score_with(detector: Detector, run: Path, mode: str, vis: bool, with_maps: bool = False) -> int:
    """Score the run with another anomaly map, into a run folder beside it; print the metrics of both.

    Raises ValueError for the map that the run has already, and where the run does not lie at
    .../<benchmark>/<name>/<class>/seed<k>.
    """
    run, config = run.resolve(), detector.config
    if mode == config.scoring.anomaly_map:
        raise ValueError(f"--anomaly_map {mode}: {run} is scored with it already")
    name, own = run.parent.parent.name, config.run_folder.parts[-4:]
    if run.parts[-4:] != (own[0], name, *own[2:]):
        raise ValueError(
            f"--anomaly_map writes beside the run, which must lie at .../{own[0]}/<name>/{own[2]}/{own[3]}"
        )
    recorded, state = Run(run).read(METRICS), Run(run).load_finished()
    outputs: dict[str, Any] = {"vis": vis or config.vis, "save_maps": with_maps or config.save_maps}
    config = replace(config, anomaly_map=mode, name=f"{name}-{mode}", save_path=run.parents[3], **outputs)
    experiment = Experiment(config, detector.device)
    experiment.distiller = detector.distiller  # trained, in place of a new one
    experiment.train_images, experiment.test_images  # noqa: B018 - missing images show before a folder is made
    identity = Run(run).read(CONFIG)["identity"]  # of the files that were used, wherever they are now
    files = {key: identity[key] for key in ("teacher_weights", "precision", "checkpoint") if key in identity}
    if differences := Run(run).data_differences(experiment.data):
        raise ValueError(f"--anomaly_map: the images are not those of {run}: {differences}")
    folder = Run(config.run_folder)
    progress = Progress(**state["progress"])
    progress.evaluations.clear()  # they were made with the other map
    if "optimizer" in state:
        experiment.optimizer.load_state_dict(state["optimizer"])
    with folder.lock():
        identity = config.identity() | files | {"data": experiment.data.digests()}
        folder.open(config.to_json(), identity, experiment.data)
        if not folder.finished:
            score(experiment, folder, progress, scored_from=str(run))
    found = folder.read(METRICS)["metrics"]
    print(_beside({mode: found, detector.config.scoring.anomaly_map: recorded["metrics"]}, config.title, digits=4))
    print(f"scored with --anomaly_map {mode}: {folder}")
    return 0


def predict_images(detector: Detector, run: Path, paths: Sequence[Path], out: Path) -> int:
    """Write `out`/scores.csv and `out`/overlays for images and folders of images, batch by batch.

    The columns are path and score; after a run with --normalize also the normalized score and the decision, by the
    run's threshold; last `error`: why an image could not be read, which then has no score. Returns the exit code: 0, or
    3 where there is such an image. scores.csv is replaced when all images are done.
    """
    files = [image for path in paths for image in find_images(path)]
    samples = [Sample(path, anomalous=False, defect=path.parent.name, upright=True) for path in files]
    images = ReadableImages(samples, detector.config.image_size)
    record = Run(run).read(METRICS)
    limit_pixels(detector.config.max_pixels)
    if "training_images" in record:  # earlier versions have none
        headers = readable_headers([(sample.image, sample.upright) for sample in samples], detector.config.workers)
        for warning in unlike_training(headers, record["training_images"]):
            print(f"warning: {warning}")
    normalized = record.get("normalized")
    normalizer = Normalizer(**normalized["image"]) if normalized else None
    assert detector.color_scale is not None, "every finished run has one"
    overlays = OverlayWriter(out / "overlays", images.samples, detector.color_scale)

    def write(file: BinaryIO) -> None:
        columns = ["path", *score_columns(0.0, normalizer), "error"]
        file.write(csv_line(columns).encode())
        number = 0
        for scores, maps in detector.predict(images):
            for image_score, anomaly_map in zip(scores, maps, strict=True):
                row: dict[str, Any] = {"path": files[number], "error": images.errors.get(number)}
                if number not in images.errors:
                    row |= score_columns(image_score, normalizer)
                    overlays.write(number, anomaly_map[None], image_score[None])
                file.write(csv_line(row.get(column) for column in columns).encode(errors="surrogateescape"))
                number += 1

    sweep_partials(out)
    write_atomically(out / "scores.csv", write)
    print(printable(f"{len(files)} images: scores in {out / 'scores.csv'}, overlays in {out / 'overlays'}"))
    if images.errors:
        example = next(iter(images.errors.values()))
        print(printable(f"{len(images.errors)} of them could not be read (column error), e.g. {example}"))
        return UNREAD
    return 0


class ReadableImages(ImageSet):
    """Images of which some may be unreadable: they count as black, and `errors` says in one line what is wrong.

    `errors` has the numbers of the images that were read so far and could not be.
    """

    def __init__(self, samples: Sequence[Sample], size: int) -> None:
        super().__init__(samples, size)
        self.errors: dict[int, str] = {}

    def image(self, index: int) -> np.ndarray:
        """(3, size, size) in 0..255."""
        try:
            return super().image(index)
        except (ValueError, OSError, MemoryError) as problem:
            self.errors[index] = printable(str(problem)) or f"{self.samples[index].image}: {type(problem).__name__}"
            return np.zeros((3, self.size, self.size), np.uint8)


def find_images(path: Path) -> list[Path]:
    """An image itself, or all images below a folder, by name. Raises FileNotFoundError where there is none."""
    if path.is_dir():
        found = sorted(image for folder in walk_folders(path) for image in list_images(folder))
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise FileNotFoundError(f"--images {path}: no image there")
    return found


def _beside(columns: Mapping[str, Mapping[str, float | None]], title: str, digits: int) -> str:
    """A table of metrics, one column per scoring."""
    names = list(next(iter(columns.values())))
    rows = [[name, *(_cell(column.get(name), digits) for column in columns.values())] for name in names]
    return format_table([title, *columns], rows)


def _cell(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="test.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag: dict[str, Any] = {"type": boolean, "nargs": "?", "const": True, "metavar": "0|1"}
    parser.add_argument("run", type=Path, help="a run folder, .../<class>/seed<k>")
    parser.add_argument("--images", type=Path, nargs="+", help="images or folders to predict on, not the test set")
    parser.add_argument("--out", type=Path, help="where scores.csv and overlays go (default: RUN/images)")
    parser.add_argument("--anomaly_map", choices=MAP_MODES, help="score the run anew with this map")
    parser.add_argument(
        "--intervals", type=float, nargs="?", const=Bootstrap().level, metavar="LEVEL",
        help="bootstrap intervals of the metrics over the test images, of this level (0.95)",
    )  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="compare all that the run recorded with its data of now")
    parser.add_argument("--vis", default=False, help="save overlays", **flag)
    parser.add_argument("--save_maps", default=False, help="save the anomaly maps of the test images, maps.npz", **flag)
    parser.add_argument("--data_path", type=Path, help="where the benchmark lies now")
    parser.add_argument("--weights", help="the teacher's weights file, where it has moved")
    parser.add_argument("--device", help="auto, cpu, cuda, ... (default: the run's)")
    parser.add_argument("--workers", type=int, help="threads that read images ahead")
    parser.add_argument("--precision", choices=PRECISIONS, help="with --images: in place of the run's")
    parser.add_argument("--compile", help="with --images: compile the network", **flag)
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
