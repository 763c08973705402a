"""What several test files share: toy images and features, quick settings, readers of run folders, checkpoints."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

import main as main_command
import test as test_command
from commandline import exit_code
from training import loop

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")

# Real offline weights, 64 pixels, no reading ahead, repeatable to the bit.
TINY = "--net efficientnet_lite0 --image_size 64 --batch_size 4 --workers 0 --device cpu --deterministic".split()

MakeTree = Callable[..., Path]
Command = Callable[..., int]
Network = TypeVar("Network", bound=torch.nn.Module)


def paint(path: Path, rng: np.random.Generator, defect: bool, size: int = 64) -> np.ndarray:
    """A noisy stripe pattern, with a bright disc if `defect`; returns its mask, (size, size) bool."""
    rows, columns = np.mgrid[:size, :size]
    image = 120 + 40 * np.sin(columns / 3 + rng.uniform(0, 0.5)) + rng.normal(0, 6, (size, size))
    mask = np.zeros((size, size), bool)
    if defect:
        y, x = rng.integers(16, size - 16, 2)
        mask = (rows - y) ** 2 + (columns - x) ** 2 <= 81
        image[mask] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).convert("RGB").save(path)
    return mask


def make_mvtec(root: Path, classes: Sequence[str] = ("bottle",), train: int = 8, good: int = 3, bad: int = 3) -> Path:
    """Classes in the MVTec layout, with masks; the number of a class sets its images. Returns the root."""
    for number, name in enumerate(classes):
        rng = np.random.default_rng(number)
        folder = root / name
        for i in range(train):
            paint(folder / f"train/good/{i:03}.png", rng, defect=False)
        for i in range(good):
            paint(folder / f"test/good/{i:03}.png", rng, defect=False)
        for i in range(bad):
            mask = paint(folder / f"test/disc/{i:03}.png", rng, defect=True)
            target = folder / f"ground_truth/disc/{i:03}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)
    return root


def make_second_kind(folder: Path, *numbers: int) -> None:
    """Turn some discs of a class of `make_mvtec` into another kind of defect, dot."""
    for part, ending in (("test", ""), ("ground_truth", "_mask")):
        (folder / part / "dot").mkdir()
        for number in numbers:
            name = f"{number:03}{ending}.png"
            (folder / part / "disc" / name).rename(folder / part / "dot" / name)


def make_mvtec_ad_2(root: Path, classes: Sequence[str] = ("can",), private: int = 3, size: int = 64) -> Path:
    """Classes in the layout of MVTec AD 2: 5 images to learn from, 4 of validation, 3 lights of one good and one bad
    object, and so many private images of each set. Returns the root."""
    for number, name in enumerate(classes):
        rng, folder = np.random.default_rng(number), root / name
        for place, count in (("train/good", 5), ("validation/good", 4), ("test_private", private)):
            for i in range(count):
                paint(folder / f"{place}/{i:03}_regular.png", rng, defect=False, size=size)
        for i in range(private):
            paint(folder / f"test_private_mixed/{i:03}_mixed.png", rng, defect=i % 2 == 0, size=size)
        for light in ("regular", "overexposed", "shift_1"):
            paint(folder / f"test_public/good/000_{light}.png", rng, defect=False, size=size)
            mask = paint(folder / f"test_public/bad/000_{light}.png", rng, defect=True, size=size)
            target = folder / f"test_public/ground_truth/bad/000_{light}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)
    return root


def make_real_iad(root: Path, classes: Sequence[str] = ("audiojack", "usb"), nested: bool = True) -> Path:
    """Three objects to learn from, one normal and two with a defect to test, five views each; returns the root of 256.

    The defect AK is seen in the views C1 to C3 of its object, BX in C5 alone; other views have no mask. The normal test
    object and the first defective one share their number.
    """
    for number, name in enumerate(classes):
        rng = np.random.default_rng(number)
        content: dict[str, Any] = {"meta": {"prefix": f"{name}/", "normal_class": "OK"}, "train": [], "test": []}
        objects = [("train", "OK", i, "") for i in (1, 2, 3)]
        objects += [("test", "OK", 4, ""), ("test", "NG/AK", 4, "C1 C2 C3"), ("test", "NG/BX", 5, "C5")]
        for split, place, i, seen in objects:
            for view in ("C1", "C2", "C3", "C4", "C5"):
                stem = f"{place}/S{i:04}/{name}_{i:04}_{place.replace('/', '_')}_{view}_20231021130235"
                mask = paint(root / f"realiad_256/{name}/{stem}.png", rng, defect=view in seen)
                (root / f"realiad_256/{name}/{stem}.png").rename(root / f"realiad_256/{name}/{stem}.jpg")
                if view in seen:
                    Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"realiad_256/{name}/{stem}_mask.png")
                entry: dict[str, Any] = {
                    "category": name,
                    "anomaly_class": place.removeprefix("NG/") if view in seen else "OK",
                }
                entry |= {"image_path": f"{stem}.jpg", "mask_path": f"{stem}_mask.png" if view in seen else None}
                content[split].append(entry)
        folder = root / ("realiad_jsons/realiad_jsons" if nested else "realiad_jsons")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content))
    return root / "realiad_256"


def train(*arguments: object) -> int:
    """main.py in-process with the tiny settings; returns the exit code."""
    return exit_code(lambda: main_command.main([*TINY, *map(str, arguments)]))


def train_with_a_break(common: Sequence[object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The run of these flags twice: in one go, and interrupted in its third epoch and gone on with.

    Metrics, predictions and losses of both are equal.
    """
    trains, epochs = loop.train_one_epoch, []

    def interrupted(*arguments: Any) -> dict[str, float]:
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return trains(*arguments)

    assert train(*common, "--save_path", folder / "whole") == 0
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_one_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main_command.main([*TINY, *map(str, common), "--save_path", str(folder / "cut")])
    assert train(*common, "--save_path", folder / "cut") == 0
    whole, cut = (next((folder / name).rglob("seed111")) for name in ("whole", "cut"))
    assert record_of(whole)["metrics"] == record_of(cut)["metrics"]
    assert (whole / "predictions.csv").read_text() == (cut / "predictions.csv").read_text()
    losses = [[row["loss"] for row in rows_of(run / "train.csv")] for run in (whole, cut)]
    assert losses[0] == losses[1]
    return whole, cut


def score_again(*arguments: object) -> int:
    """test.py in-process; returns the exit code."""
    return exit_code(lambda: test_command.main([*map(str, arguments)]))


def record_of(run: Path) -> dict[str, Any]:
    """A finished run's metrics.json."""
    return json.loads((run / "metrics.json").read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_below(root: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by its path there, sorted."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def wait_for(folder: Path, name: str, seconds: float = 200) -> Path:
    """The first file of this name below a folder, as soon as there is one."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := next(folder.rglob(name), None):
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {name} below {folder}")


def line_beginning(text: str, *beginning: str) -> str:
    """The one line of a table that begins with these words, single-spaced."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    (found,) = (line for line in lines if line.startswith(f"{' '.join(beginning)} "))
    return found


def random_images(side: int = 64, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """(batch, 3, side, side) uint8."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, side, side), generator=draw, dtype=torch.uint8)


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers of this shape, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randomize_batch_norms(network: Network) -> Network:
    """The network, in evaluation mode, with batch norms as after some training: a mix-up of them shows."""
    draw = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for name, tensor in module.state_dict().items():
                if name != "num_batches_tracked":
                    tensor.copy_(torch.rand(tensor.shape, generator=draw) * 0.5 + 0.5)
    return network.eval()


SQUARE = ((6, 16, 16), (10, 8, 8), (12, 4, 4))
ODD = ((3, 15, 22), (5, 7, 11), (4, 3, 5))  # neither square nor halved exactly


def make_pairs(shapes=SQUARE, dtype=torch.float32, batch=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    pairs = []
    for shape in shapes:
        teacher, student = torch.randn(2, batch, *shape, generator=draw, dtype=torch.float64).to(dtype)
        pairs.append((teacher, student.requires_grad_()))
    return pairs


def doubled(pairs):
    return [(teacher.double(), student.double()) for teacher, student in pairs]


# --- published checkpoints, their structure written out ---

# kind of block, expansion, width of the inner convolution per plane, blocks of the bottleneck's layer, of the decoder's
BACKBONES = {
    "res18": ("basic", 1, 1, 2, (2, 2, 2)),
    "res34": ("basic", 1, 1, 3, (3, 4, 6)),
    "res50": ("bottleneck", 4, 1, 3, (3, 4, 6)),
    "wide_res50": ("bottleneck", 4, 2, 3, (3, 4, 6)),
}


def norm_shapes(shapes, name, channels):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.{leaf}"] = (channels,)
    shapes[f"{name}.num_batches_tracked"] = ()


def block_shapes(shapes, name, kind, inputs, planes, expansion, wide, up=False, shortcut=None):
    """One residual block; transposed convolutions list their inputs first."""
    width, outputs = planes * wide, planes * expansion
    if kind == "bottleneck":
        shapes[f"{name}.conv1.weight"] = (width, inputs, 1, 1)
        shapes[f"{name}.conv2.weight"] = (width, width, 2, 2) if up else (width, width, 3, 3)
        shapes[f"{name}.conv3.weight"] = (outputs, width, 1, 1)
        for number, channels in ((1, width), (2, width), (3, outputs)):
            norm_shapes(shapes, f"{name}.bn{number}", channels)
    else:
        shapes[f"{name}.conv1.weight"] = (inputs, planes, 2, 2) if up else (planes, inputs, 3, 3)
        shapes[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
        norm_shapes(shapes, f"{name}.bn1", planes)
        norm_shapes(shapes, f"{name}.bn2", planes)
    if shortcut:
        shapes[f"{name}.{shortcut}.0.weight"] = (inputs, outputs, 2, 2) if up else (outputs, inputs, 1, 1)
        norm_shapes(shapes, f"{name}.{shortcut}.1", outputs)


def published_shapes(net):
    """The published checkpoint's names and shapes: ({'conv1.weight': (...), ...} of bn, the same of decoder)."""
    kind, e, wide, depth, counts = BACKBONES[net]
    bn: dict[str, tuple[int, ...]] = {}
    for number, inputs, outputs, size in ((1, 64, 128, 3), (2, 128, 256, 3), (3, 128, 256, 3), (4, 256 * 4, 512, 1)):
        if number == 4:  # built and never called
            bn["conv4.weight"] = (512 * e, 1024 * e, 1, 1)
            norm_shapes(bn, "bn4", 512 * e)
            continue
        bn[f"conv{number}.weight"] = (outputs * e, inputs * e, size, size)
        norm_shapes(bn, f"bn{number}", outputs * e)
    block_shapes(bn, "bn_layer.0", kind, 768 * e, 512, e, wide, shortcut="downsample")
    for index in range(1, depth):
        block_shapes(bn, f"bn_layer.{index}", kind, 512 * e, 512, e, wide)
    decoder: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, planes, blocks) in enumerate(
        zip((512, 256, 128), (256, 128, 64), counts, strict=True), start=1
    ):
        block_shapes(decoder, f"layer{layer}.0", kind, inputs * e, planes, e, wide, up=True, shortcut="upsample")
        for index in range(1, blocks):
            block_shapes(decoder, f"layer{layer}.{index}", kind, planes * e, planes, e, wide)
    return bn, decoder


def published_state(net, seed=0):
    draw = torch.Generator().manual_seed(seed)
    states = []
    for shapes in published_shapes(net):
        state = {}
        for name, shape in shapes.items():
            if name.endswith("num_batches_tracked"):
                state[name] = torch.tensor(17)
            elif len(shape) == 4:
                fan = shape[1] * shape[2] * shape[3] if "upsample" not in name else shape[0]
                state[name] = torch.randn(shape, generator=draw) * (2 / fan) ** 0.5
            else:
                state[name] = torch.rand(shape, generator=draw) * 0.5 + 0.5
        states.append(state)
    return {"bn": states[0], "decoder": states[1]}
