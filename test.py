"""Score a finished run again from its folder alone, or let it judge new images.

python test.py RUN                       the same figures again; exit code 1 if they differ from the recorded ones
python test.py RUN --images PATH...      a CSV of scores and an overlay for every image
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import parts
from commandline import Parser, boolean, exit_code
from config import Config
from dataset import ImageSet, Sample
from discrepancy import Normality
from engine import Scoring, evaluate, predict
from model import Distiller
from model.precision import PRECISIONS
from normalising import Normaliser
from overlays import overlay_names, write_overlays
from readers.base import list_images
from runs import CONFIG, METRICS, Run, score_columns
from utils import format_table, keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Score again, or predict. Returns the exit code: 0, or 1 where figures differ from the recorded ones."""
    options = _parser().parse_args(argv)
    folder = Run(options.run)
    if not options.images and (options.precision is not None or options.compile is not None):
        raise ValueError("--precision and --compile go with --images: a finished run is scored again as it was scored")
    if not folder.finished:
        raise FileNotFoundError(f"{folder}: no finished run (no {METRICS}); want .../<class>/seed<k> after training")
    saved = folder.read(CONFIG)["config"]
    own = ("data_path", "device", "workers", "precision", "compile")
    changes = {name: value for name in own if (value := getattr(options, name)) is not None}
    config = replace(Config(**Config.from_json(saved)), **changes)
    device = parts.choose_device(config.device)
    parts.set_determinism(config.deterministic)
    keep_freed_memory()
    state = folder.load_checkpoint()
    if state is None:
        raise FileNotFoundError(f"{folder}: its checkpoint is gone; main.py with --fresh trains it again")
    teacher = parts.teacher_of(replace(config, weights=options.weights or config.weights), device)
    recorded = folder.read(CONFIG)["facts"]["teacher_weights"]
    if teacher.weights != recorded:
        raise ValueError(
            f"the run learned from teacher weights {recorded}, found {teacher.weights}; give --weights FILE"
        )
    distiller = parts.distiller_of(replace(config, checkpoint=None), teacher)
    distiller.load_trained_state(state["trained"])
    distiller = parts.scorer_of(config, distiller)
    scoring = parts.scoring_of(config)
    if state["normality"]:
        known = Normality(**{name: tensor.to(device) for name, tensor in state["normality"].items()})
        scoring = replace(scoring, normality=known)
    scale = state["colour_scale"]
    if options.images:
        out = options.out or options.run / "images"
        normaliser = parts.normaliser_in(folder.read(METRICS))
        return predict_images(distiller, config, scoring, device, options.images, out, scale, normaliser)
    return score_again(distiller, config, scoring, device, folder, scale, options.vis)


def score_again(
    distiller: Distiller,
    config: Config,
    scoring: Scoring,
    device: torch.device,
    folder: Run,
    scale: tuple[float, float],
    vis: bool,
) -> int:
    """Print the figures of a second scoring beside the recorded ones."""
    images = parts.images_of(config, "test")
    result = evaluate(distiller, images, device, scoring, config.seg, keep_maps=vis)
    figures, recorded = result.figures(), folder.read(METRICS)["figures"]
    rows = [
        [name, *("n/a" if value is None else f"{value:.6f}" for value in (figures[name], recorded.get(name)))]
        for name in figures
    ]
    print(format_table([config.title, "now", "recorded"], rows))
    if vis and result.maps is not None:
        names = overlay_names(images.samples)
        write_overlays(config.overlay_folder, images.samples, names, result.maps, result.scores, scale)
        print(f"overlays in {config.overlay_folder}")
    same = figures == recorded
    print("identical to the recorded figures" if same else "DIFFERENT from the recorded figures")
    return 0 if same else 1


def predict_images(
    distiller: Distiller,
    config: Config,
    scoring: Scoring,
    device: torch.device,
    paths: Sequence[Path],
    out: Path,
    scale: tuple[float, float],
    normaliser: Normaliser | None,
) -> int:
    """Write `out`/scores.csv and `out`/overlays for images and folders of images, batch by batch.

    The columns are path and score; after a run with --normalise also the normalised score and the decision, by the
    run's threshold.
    """
    files = [image for path in paths for image in find_images(path)]
    samples = [Sample(path, anomalous=False, defect=path.parent.name) for path in files]
    names = overlay_names(samples)
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    with (out / "scores.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["path", *score_columns(0.0, normaliser)], lineterminator="\n")
        writer.writeheader()
        for scores, maps in predict(distiller, ImageSet(samples, config.image_size), device, scoring):
            batch = samples[done : done + len(scores)]
            rows = zip(batch, scores, strict=True)
            writer.writerows({"path": sample.image, **score_columns(score, normaliser)} for sample, score in rows)
            write_overlays(out / "overlays", batch, names[done : done + len(scores)], maps, scores, scale)
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="test.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, .../<class>/seed<k>")
    parser.add_argument("--images", type=Path, nargs="+", help="images or folders to judge, instead of the test set")
    parser.add_argument("--out", type=Path, help="where scores.csv and overlays go (default: RUN/images)")
    parser.add_argument(
        "--vis", type=boolean, nargs="?", const=True, default=False, metavar="0|1", help="save overlays"
    )
    parser.add_argument("--data_path", type=Path, help="where the benchmark lies now")
    parser.add_argument("--weights", help="the teacher's weights file, where it has moved")
    parser.add_argument("--device", help="auto, cpu, cuda, ...")
    parser.add_argument("--workers", type=int, help="threads that read images ahead")
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="with --images: fp32, bf16 or auto in place of the run's"
    )
    parser.add_argument("--compile", type=boolean, nargs="?", const=True, metavar="0|1", help="with --images: compile")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
