"""Export a finished run as a folder that predicts without PyTorch: python -m scripts.export RUN --format onnx openvino

The folder holds the model (from the image's pixels to anomaly map and score), model.json (its facts and the run's
threshold) and predict.py, which needs onnxruntime or openvino, numpy and pillow. At the end it predicts on the run's
own images; where it does not predict as the run does, nothing is left and the exit code is 1.
"""

from __future__ import annotations

from commandline import Parser, boolean, exit_code  # before anything slow: Ctrl-C is one line from here on

# isort: split

import argparse
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL

import export
from detector import Detector
from experiment import Experiment
from export.folder import MADE_BY
from export.timing import BATCHES, time_formats
from run_files import CHECKPOINT, CONFIG, METRICS, Run, identity_sha256
from utils import code_revision, environment_info, file_sha256, format_table, set_determinism, write_atomically

TEMPLATE = Path(export.__file__).parent / "predict_template.py"
DIFFERENT = 1  # the exit code where the export does not predict as the run does


class NotEqual(Exception):
    """The export does not predict as the run does; the text says in what."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Raises ValueError or OSError on user errors."""
    options = _parser().parse_args(argv)
    formats = tuple(dict.fromkeys(options.format))
    target = options.out or options.run / "export"
    export.check_packages(formats)
    export.check_target(target)
    names = ("data_path", "weights", "workers")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    detector = Detector.load(options.run, device="cpu", precision="fp32", compile=False, **changes)
    if detector.config.tiles is not None:
        raise ValueError(
            f"{options.run}: was trained with --tiles, and an export scores one square: it cannot cut an image into "
            "windows and join their maps; python test.py RUN --images does"
        )
    set_determinism(detector.config.deterministic)
    try:
        with export.replace_when_whole(target) as folder:
            fill(folder, detector, Run(options.run), formats, options.timing)
    except NotEqual as problem:
        print(f"not exported: {problem}", file=sys.stderr)
        return DIFFERENT
    print(f"exported to {target}")
    return 0


def fill(folder: Path, detector: Detector, run: Run, formats: Sequence[str], timing: bool) -> None:
    """Write all files, check them on the run's images, and print what was found. Raises NotEqual."""
    split, images = export.parity_images(Experiment(detector.config, detector.device))
    print(f"{detector.config.title}: writing {' and '.join(formats)} ...", flush=True)
    models = export.write_models(export.build_graph(detector), formats, folder)
    shutil.copyfile(TEMPLATE, folder / export.PREDICT)
    facts = describe(folder, detector, run, models)
    save(folder, facts)  # predict.py reads it
    print(f"compared with the run on {len(images)} {split} images, from their files:")
    for name in formats:
        parity = export.compare(detector, folder, name, (split, images))
        print(f"  {export.FORMATS[name].title}: {parity}", flush=True)
        if parity.problem:
            raise NotEqual(f"with {export.FORMATS[name].title} {parity.problem}")
        models[name]["parity"] = parity.to_json()
    if timing:
        print(f"milliseconds an image, {facts['hardware']} ...", flush=True)
        facts["milliseconds"] = time_formats(detector, folder, models)
        print(speed_table(facts))
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    save(folder, facts)


def describe(folder: Path, detector: Detector, run: Run, models: dict[str, Any]) -> dict[str, Any]:
    """What model.json holds; `models` are what `write_models` returned."""
    config, scoring, metrics = detector.config, detector.config.scoring, run.read(METRICS)
    files = {name: digest for model in models.values() for name, digest in model["sha256"].items()}
    packages = sorted({package for name in models for package in export.FORMATS[name].packages})
    environment = environment_info()
    return {
        "made_by": MADE_BY,
        "class": config.classes[0],
        "benchmark": config.dataset,
        "variant": config.variant,
        "net": config.net,
        "seed": config.seeds[0],
        "image_size": config.image_size,
        "resize": "to a square, Pillow's BILINEAR with antialiasing; the aspect ratio is not kept",
        "orientation": "upright by EXIF",
        "max_pixels": config.max_pixels,
        "input": {"images": f"(N, 3, {config.image_size}, {config.image_size}) uint8, RGB"},
        "outputs": {"scores": "(N,) float32", "maps": f"(N, {config.image_size}, {config.image_size}) float32"},
        "anomaly_map": scoring.anomaly_map,
        "precision": "fp32",
        "threshold": None if (threshold := run.threshold()) is None else threshold.to_json(),
        "models": models,
        "checkpoint_sha256": file_sha256(run.folder / CHECKPOINT),
        "teacher_weights": detector.distiller.teacher.weights,
        "identity_sha256": identity_sha256(run.read(CONFIG)["identity"]),
        "image_auroc": metrics["metrics"].get("image_auroc"),
        "revision": code_revision(),
        "hardware": environment["hardware"],
        "versions": {
            **environment["versions"],
            "pillow": PIL.__version__,
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "files": {**files, export.PREDICT: file_sha256(folder / export.PREDICT)},
    }


def save(folder: Path, facts: dict[str, Any]) -> None:
    """Write model.json."""
    write_atomically(folder / export.FACTS, json.dumps(facts, indent=2, allow_nan=False) + "\n")


def speed_table(facts: dict[str, Any]) -> str:
    """Sizes and milliseconds, a line each for PyTorch and every format."""
    sizes = {export.FORMATS[name].title: f"{model['bytes'] / 1e6:.1f}" for name, model in facts["models"].items()}
    rows = [
        [title, sizes.get(title, "-"), *(f"{found[batch]:.1f}" for batch in BATCHES)]
        for title, found in facts["milliseconds"].items()
    ]
    return format_table(["", "MB", *(f"batch {batch}" for batch in BATCHES)], rows)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="scripts.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag: dict[str, Any] = {"type": boolean, "nargs": "?", "const": True, "metavar": "0|1"}
    parser.add_argument("run", type=Path, help="a run folder, .../<class>/seed<k>")
    parser.add_argument("--format", nargs="+", choices=export.FORMATS, required=True, help="for which runtimes")
    parser.add_argument("--out", type=Path, help="the folder (default: RUN/export); an earlier export is replaced")
    parser.add_argument(
        "--timing", default=True, help="measure beside PyTorch, eager and compiled (default: 1)", **flag
    )
    parser.add_argument("--data_path", type=Path, help="where the benchmark lies now")
    parser.add_argument("--weights", help="the teacher's weights file, where it has moved")
    parser.add_argument("--workers", type=int, help="threads that read images ahead")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
