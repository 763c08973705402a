"""Score a finished run again from its folder alone, set its threshold, or predict on new images.

python test.py RUN                       the same metrics again; exit code 1 if they differ from the recorded ones
python test.py RUN --verify              all that the run recorded against its data of now; exit code 1 for a difference
python test.py RUN --anomaly_map MODE    the run scored with another anomaly map, in a run folder of its own
python test.py RUN --map_size own        the run's pixel metrics at the images' own sizes, in a run folder of its own
python test.py RUN --intervals           and how far the metrics could be off with other test images
python test.py RUN --images PATH...      OK or NG for each image, predictions.csv, overlays; exit code 0 if all are OK,
                                         1 if some are NG, 3 if some cannot be read
python test.py RUN --calibrate FOLDER    set the run's threshold from normal images that it has not seen
"""

from __future__ import annotations

from commandline import Parser, boolean, exit_code  # before anything slow: Ctrl-C is one line from here on

# isort: split

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.specs import PRECISIONS
from prediction import STDIN
from run_files import CONFIG, MAPS, METRICS, Progress, Run
from scoring.modes import MAP_MODES, MAP_SIZES
from scoring.thresholds import PIXEL_RULES
from utils import format_table, set_up_libraries

if TYPE_CHECKING:  # what needs torch is imported where it is used: --help and a misspelt flag are answered at once
    from detector import Detector


def main(argv: Sequence[str] | None = None) -> int:
    """Score again, or predict. Returns the exit code: 0, or 1 where metrics differ from the recorded ones."""
    options = _parser().parse_args(argv)
    if not options.images and (options.precision is not None or options.compile is not None):
        raise ValueError("--precision and --compile go with --images: a finished run is scored again as it was scored")
    _check_flags(options)
    if options.save_maps and (options.images or options.verify):
        raise ValueError("--save_maps goes with the run's test images: not with --images or --verify")
    changed = {name: value for name in ("anomaly_map", "map_size") if (value := getattr(options, name)) is not None}
    if options.images and changed:
        raise ValueError(
            f"--{next(iter(changed))} goes with the run's test images: score the run again with it, then use that run"
        )
    if options.intervals is not None:
        from scoring.intervals import Bootstrap

        Bootstrap(options.intervals)  # shows a level without sense now
        if options.images or changed:
            raise ValueError(
                "--intervals goes with the run's own metrics: not with --images, --anomaly_map or --map_size"
            )
    names = ("data_path", "weights", "device", "workers", "precision", "compile")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.verify:
        if any((options.images, options.intervals, changed, options.vis, options.calibrate)):
            raise ValueError("--verify stands alone: it compares a run with its own data")
        return verify_run(options.run, changes)
    from detector import Detector

    detector = Detector.load(options.run, **changes)
    set_up_libraries(detector.config.deterministic, detector.config.fast)
    if options.images:
        from prediction.command import predict_images

        return predict_images(detector, options)
    if options.calibrate is not None:
        from prediction.command import calibrate_run

        return calibrate_run(detector, options)
    if changed:
        return score_with(detector, options.run, changed, bool(options.vis), options.save_maps)
    return score_again(detector, options.run, bool(options.vis), options.intervals, options.save_maps)


def _check_flags(options: argparse.Namespace) -> None:
    """Raises ValueError for flags that go with others which are not there."""
    if not options.images:
        for name in ("out", "threshold", "jsonl", "quiet"):
            if getattr(options, name) not in (None, False):
                raise ValueError(f"--{name} goes with --images")
    if options.calibrate is None:
        for name in ("false_alarm", "pixel_threshold"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} goes with --calibrate, a folder of normal images")
    elif options.threshold is not None:
        raise ValueError("--threshold and --calibrate: give one of them")
    if options.false_alarm is not None and not 0 < options.false_alarm < 1:
        raise ValueError(f"--false_alarm {options.false_alarm}: must be above 0 and below 1")
    if options.images and STDIN in options.images and len(options.images) > 1:
        raise ValueError("--images -: give - alone, or paths")


def score_again(detector: Detector, run: Path, vis: bool, level: float | None = None, with_maps: bool = False) -> int:
    """Print the metrics of a second scoring beside the recorded ones, and their intervals where a level is given."""
    from experiment import Experiment, save_maps
    from report.intervals import render_intervals
    from report.overlays import OverlayWriter
    from report.results import as_recorded, recorded_metrics
    from scoring.predictions import Rule
    from verification import environment_differences

    config = detector.config
    experiment = Experiment(config, detector.device)
    experiment.check_data(with_training=False)
    images = experiment.test_images
    evaluation = detector.evaluate(images, keep_maps=vis or with_maps or level is not None)
    metrics, recorded = evaluation.metrics(), recorded_metrics(Run(run).read(METRICS))
    print(_beside({"now": metrics, "recorded": recorded}, config.title, digits=6))
    if level is not None:
        for name, part in evaluation.parts(config.classes[0]).items():
            intervals = part.intervals(f"{name} seed {config.seeds[0]}", level)
            heading = f"{name}\n" if evaluation.classes else ""
            print(f"\n{heading}{render_intervals(part.report, part.labels, intervals, level)}\n")
    if vis and evaluation.maps is not None and detector.color_scale is not None:
        folder = Run(run).overlay_folder(config)
        writer = OverlayWriter(folder, images.samples, detector.color_scale, Rule.of(detector.threshold))
        writer.write(0, evaluation.maps, evaluation.scores)
        print(f"overlays in {folder}")
    if with_maps:
        save_maps(Run(run), detector, evaluation)
        print(f"maps in {run / MAPS}")
    if as_recorded(metrics, recorded) == recorded:
        print("identical to the recorded metrics")
        return 0
    try:
        data = Run(run).data_differences(experiment.read_data(store=None))
    except (OSError, ValueError) as problem:  # its training images are not needed to score it
        data = f"the training images cannot be compared ({problem})"
    elsewhere = environment_differences(Run(run).read(METRICS))
    causes = [f"the data: {data}"] * bool(data) + [f"the environment: {'; '.join(elsewhere)}"] * bool(elsewhere)
    print(f"DIFFERENT from the recorded metrics; {' and '.join(causes) or 'data and environment are the same'}")
    print(f"python test.py {run} --verify compares everything else")
    return 1


def verify_run(run: Path, changes: Mapping[str, Any]) -> int:
    """Print what of the run is as recorded, and what is not."""
    from verification import verify

    checks = verify(run, **changes)
    print("\n".join(map(str, checks)))
    different = [check.name for check in checks if check.ok is False]
    print(f"DIFFERENT: {', '.join(different)}" if different else "verified: the run is as recorded")
    return 1 if different else 0


def score_with(detector: Detector, run: Path, changed: Mapping[str, Any], vis: bool, with_maps: bool = False) -> int:
    """Score the run with another --anomaly_map or --map_size, into a run folder beside it; print the metrics of both.

    Raises ValueError for what the run has already, and where the run does not lie at
    .../<benchmark>/<name>/<class>/seed<k>.
    """
    from experiment import Experiment, score
    from report.results import recorded_metrics

    run, config = run.resolve(), detector.config
    flags = " and ".join(f"--{flag} {value}" for flag, value in changed.items())
    before = {"anomaly_map": config.scoring.anomaly_map, "map_size": config.map_size}
    for flag, value in changed.items():
        if value == before[flag]:
            raise ValueError(f"--{flag} {value}: {run} is scored with it already")
    name, own = run.parent.parent.name, config.run_folder.parts[-4:]
    if run.parts[-4:] != (own[0], name, *own[2:]):
        raise ValueError(f"{flags}: writes beside the run, which must lie at .../{own[0]}/<name>/{own[2]}/{own[3]}")
    recorded, state = Run(run).read(METRICS), Run(run).load_finished()
    outputs: dict[str, Any] = {"vis": vis or config.vis, "save_maps": with_maps or config.save_maps}
    other = "-".join((name, *changed.values()))
    config = replace(config, name=other, save_path=run.parents[3], **changed, **outputs)
    experiment = Experiment(config, detector.device)
    experiment.distiller = detector.distiller  # trained, in place of a new one
    experiment.train_images, experiment.test_images  # noqa: B018 - missing images show before a folder is made
    identity = Run(run).read(CONFIG)["identity"]  # of the files that were used, wherever they are now
    files = {key: identity[key] for key in ("teacher_weights", "precision", "checkpoint") if key in identity}
    if differences := Run(run).data_differences(experiment.data):
        raise ValueError(f"{flags}: the images are not those of {run}: {differences}")
    folder = Run(config.run_folder)
    progress = Progress(**state["progress"])
    progress.evaluations.clear()  # they were made with the other setting
    if "optimizer" in state:
        experiment.optimizer.load_state_dict(state["optimizer"])
    with folder.lock():
        identity = config.identity() | files | {"data": experiment.data.digests()}
        folder.open(config.to_json(), identity, experiment.data)
        if not folder.finished:
            score(experiment, folder, progress, scored_from=str(run))
    titles = " ".join(changed.values()), " ".join(before[flag] for flag in changed)
    columns = dict(zip(titles, (folder.read(METRICS), recorded), strict=True))
    print(_beside({name: recorded_metrics(record) for name, record in columns.items()}, config.title, digits=4))
    print(f"scored with {flags}: {folder}")
    return 0


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
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="images or folders to predict on, not the test set; - reads their paths from standard input",
    )
    parser.add_argument("--out", type=Path, help="where predictions.csv and overlays go (default: RUN/images)")
    parser.add_argument("--threshold", type=float, metavar="X", help="with --images: NG above this score")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="normal images that the run has not used: sets its threshold; with --images for these images alone",
    )
    parser.add_argument("--false_alarm", type=float, metavar="X", help="with --calibrate: share that may be above it")
    parser.add_argument("--pixel_threshold", metavar="RULE", help=f"with --calibrate: {PIXEL_RULES}")
    parser.add_argument("--jsonl", action="store_true", help="with --images: a line of JSON for each image")
    parser.add_argument("--quiet", action="store_true", help="with --images: the last line alone")
    parser.add_argument("--anomaly_map", choices=MAP_MODES, help="score the run anew with this map")
    parser.add_argument("--map_size", choices=MAP_SIZES, help="compute pixel metrics anew, at maps of this size")
    parser.add_argument(
        "--intervals", type=float, nargs="?", const=0.95, metavar="LEVEL",
        help="bootstrap intervals of the metrics over the test images, of this level (0.95)",
    )  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="compare all that the run recorded with its data of now")
    parser.add_argument("--vis", help="save overlays (default: with --images PATH yes, else no)", **flag)
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
