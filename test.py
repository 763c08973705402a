"""Score a finished run again from its folder alone, or predict on new images.

python test.py RUN                       the same metrics again; exit code 1 if they differ from the recorded ones
python test.py RUN --anomaly_map MODE    the run scored with another anomaly map, in a run folder of its own
python test.py RUN --images PATH...      a CSV of scores and an overlay for every image
"""

from __future__ import annotations

from commandline import Parser, boolean, exit_code  # before anything slow: Ctrl-C is one line from here on

# isort: split

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset import ImageSet, Sample
from detector import Detector
from experiment import Experiment, score
from model.precision import PRECISIONS
from readers.base import list_images
from report.overlays import OverlayWriter
from run_files import CONFIG, METRICS, Progress, Run, score_columns
from scoring.anomaly_map import MAP_MODES
from scoring.normalization import Normalizer
from utils import format_table, keep_freed_memory, set_determinism


def main(argv: Sequence[str] | None = None) -> int:
    """Score again, or predict. Returns the exit code: 0, or 1 where metrics differ from the recorded ones."""
    options = _parser().parse_args(argv)
    if not options.images and (options.precision is not None or options.compile is not None):
        raise ValueError("--precision and --compile go with --images: a finished run is scored again as it was scored")
    if options.out is not None and not options.images:
        raise ValueError("--out goes with --images")
    if options.images and options.anomaly_map is not None:
        raise ValueError(
            "--anomaly_map goes with the run's test images: score the run again with it, then use that run"
        )
    names = ("data_path", "weights", "device", "workers", "precision", "compile")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    detector = Detector.load(options.run, **changes)
    set_determinism(detector.config.deterministic)
    if detector.config.fast:
        keep_freed_memory()
    if options.images:
        return predict_images(detector, options.run, options.images, options.out or options.run / "images")
    if options.anomaly_map is not None:
        return score_with(detector, options.run, options.anomaly_map, options.vis)
    return score_again(detector, options.run, options.vis)


def score_again(detector: Detector, run: Path, vis: bool) -> int:
    """Print the metrics of a second scoring beside the recorded ones."""
    config = detector.config
    images = Experiment(config, detector.device).test_images
    evaluation = detector.evaluate(images, keep_maps=vis)
    metrics, recorded = evaluation.report.defined(), Run(run).read(METRICS)["metrics"]
    print(_beside({"now": metrics, "recorded": recorded}, config.title, digits=6))
    if vis and evaluation.maps is not None and detector.color_scale is not None:
        writer = OverlayWriter(config.overlay_folder, images.samples, detector.color_scale)
        writer.write(0, evaluation.maps, evaluation.scores)
        print(f"overlays in {config.overlay_folder}")
    same = metrics == recorded
    print("identical to the recorded metrics" if same else "DIFFERENT from the recorded metrics")
    return 0 if same else 1


def score_with(detector: Detector, run: Path, mode: str, vis: bool) -> int:
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
    recorded, state = Run(run).read(METRICS), Run(run).load_checkpoint()
    assert state is not None, "the detector was loaded from it"
    config = replace(config, anomaly_map=mode, name=f"{name}-{mode}", save_path=run.parents[3], vis=vis or config.vis)
    experiment = Experiment(config, detector.device)
    experiment.distiller = detector.distiller  # trained, in place of a new one
    experiment.train_images, experiment.test_images  # noqa: B018 - missing images show before a folder is made
    identity = Run(run).read(CONFIG)["identity"]  # of the files that were used, wherever they are now
    files = {key: identity[key] for key in ("teacher_weights", "precision", "checkpoint") if key in identity}
    folder = Run(config.run_folder)
    folder.open(config.to_json(), config.identity() | files)
    progress = Progress(**state["progress"])
    progress.evaluations.clear()  # they were made with the other map
    if not folder.finished:
        score(experiment, folder, progress, scored_from=str(run))
    found = folder.read(METRICS)["metrics"]
    print(_beside({mode: found, detector.config.scoring.anomaly_map: recorded["metrics"]}, config.title, digits=4))
    print(f"scored with --anomaly_map {mode}: {folder}")
    return 0


def predict_images(detector: Detector, run: Path, paths: Sequence[Path], out: Path) -> int:
    """Write `out`/scores.csv and `out`/overlays for images and folders of images, batch by batch.

    The columns are path and score; after a run with --normalize also the normalized score and the decision, by the
    run's threshold.
    """
    files = [image for path in paths for image in find_images(path)]
    samples = [Sample(path, anomalous=False, defect=path.parent.name) for path in files]
    normalized = Run(run).read(METRICS).get("normalized")
    normalizer = Normalizer(**normalized["image"]) if normalized else None
    assert detector.color_scale is not None, "every finished run has one"
    overlays = OverlayWriter(out / "overlays", samples, detector.color_scale)
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    with (out / "scores.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["path", *score_columns(0.0, normalizer)], lineterminator="\n")
        writer.writeheader()
        for scores, maps in detector.predict(ImageSet(samples, detector.config.image_size)):
            rows = zip(samples[done : done + len(scores)], scores, strict=True)
            writer.writerows({"path": sample.image, **score_columns(score, normalizer)} for sample, score in rows)
            overlays.write(done, maps, scores)
            done += len(scores)
    print(f"{done} images: scores in {out / 'scores.csv'}, overlays in {out / 'overlays'}")
    return 0


def find_images(path: Path) -> list[Path]:
    """An image itself, or all images below a folder, by name. Raises FileNotFoundError where there is none."""
    if path.is_dir():
        found = sorted({*list_images(path), *(i for sub in path.rglob("*") if sub.is_dir() for i in list_images(sub))})
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
    parser.add_argument("--vis", default=False, help="save overlays", **flag)
    parser.add_argument("--data_path", type=Path, help="where the benchmark lies now")
    parser.add_argument("--weights", help="the teacher's weights file, where it has moved")
    parser.add_argument("--device", help="auto, cpu, cuda, ... (default: the run's)")
    parser.add_argument("--workers", type=int, help="threads that read images ahead")
    parser.add_argument("--precision", choices=PRECISIONS, help="with --images: in place of the run's")
    parser.add_argument("--compile", help="with --images: compile the network", **flag)
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
