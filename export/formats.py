"""Writing the model's files: ONNX from torch, OpenVINO from ONNX."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.graph import ScoringGraph
from model.weights import first_line
from utils import file_sha256

OPSET = 20  # ONNX Runtime reads it since 1.17


@dataclass(frozen=True)
class Format:
    """A file format: its runtime's name, the file that is loaded, all its files, the packages that write and run it."""

    title: str
    file: str
    files: tuple[str, ...]
    packages: tuple[str, ...]


FORMATS = {
    "onnx": Format("ONNX Runtime", "model.onnx", ("model.onnx",), ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format("OpenVINO", "model.xml", ("model.xml", "model.bin"), ("onnx", "onnxscript", "openvino")),
}


def check_packages(formats: Sequence[str]) -> None:
    """Raises ValueError where a package that the formats need is not installed."""
    missing = [p for name in formats for p in FORMATS[name].packages if importlib.util.find_spec(p) is None]
    if missing:
        needed = ", ".join(dict.fromkeys(missing))
        raise ValueError(
            f"--format {' '.join(formats)} needs {needed}, not installed here: pip install -r requirements-export.txt"
        )


def write_models(graph: ScoringGraph, formats: Sequence[str], folder: Path) -> dict[str, Any]:
    """The files of each format, in the folder; returns what model.json says of them.

    Raises ValueError where the network has an operation that cannot be exported.
    """
    path = folder / FORMATS["onnx"].file
    write_onnx(graph, path)
    if "openvino" in formats:
        import openvino

        # read, not converted: the converter would ask for the user's consent to statistics of use
        openvino.save_model(openvino.Core().read_model(path), folder / FORMATS["openvino"].file, compress_to_fp16=False)
    if "onnx" not in formats:
        path.unlink()
    return {
        name: {
            "file": FORMATS[name].file,
            "bytes": sum((folder / file).stat().st_size for file in FORMATS[name].files),
            "sha256": {file: file_sha256(folder / file) for file in FORMATS[name].files},
        }
        for name in formats
    }


def write_onnx(graph: ScoringGraph, path: Path) -> None:
    """The graph as one checked ONNX file: `images` (N, 3, S, S) uint8 -> `scores` (N,), `maps` (N, S, S), N any number.

    Raises ValueError where the network has an operation that cannot be exported.
    """
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = {"images": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                graph,
                (graph.example(),),
                input_names=["images"],
                output_names=["scores", "maps"],
                dynamic_shapes=batch,
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as problem:
            cause = problem.__cause__ or problem
            raise ValueError(f"this network cannot be exported to ONNX: {first_line(Exception(cause))}") from problem
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # traces of the code that made it: a megabyte, of no use to a runtime
        del node.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
