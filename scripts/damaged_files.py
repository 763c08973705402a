"""Damaged files and command lines, drawn at random, and what each of them may end in."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

import report
from config import Config
from dataset import Sample
from flags import parse
from methods import Training
from model import Distiller
from model.averaging import WeightAverage
from readers.checks import check_masks
from readers.image_io import read_mask
from report.results import METRIC_TITLES, collect
from run_files import CHECKPOINT, CONFIG, METRICS, Progress, Run
from run_files.checkpoints import load_checkpoint

Case = Callable[[Path, random.Random], str]  # damages files in a folder and uses them; returns what was done

# JSON in the place of any value.
LITERALS = """null true false 0 -1 1 0.5 1.5 -0.1 1e308 1e999 -1e999 NaN Infinity -Infinity "" "x" "0" "\\u0000"
"\\ud800" [] {} [1] [[]] [null] {"a":1} ["x","x"] 18446744073709551616""".split()
LITERALS += ["9" * 400, "9" * 5000, "[" * 100_000 + "]" * 100_000, '{"a":1,"a":2}']
# Words in the place of any flag's value.
WORDS = """0 1 -1 2 32 33 0.5 nan inf -inf 1e999 -1e-9 1e400 999999999999999999999999 4294967296 100000 all none
auto true x .. / meta cuda:99 timm/ timm/x E3 mse 0,1 1_0 ٣ é""".split()
WORDS += ["", " ", "9" * 400, "a" * 300, "--", "-", "a\nb", "\udcff"]


def config_record() -> dict[str, Any]:
    """What config.json of a run holds."""
    config = Config(classes=("bottle",), epochs=2, data_path=Path("D"), image_size=64)
    identity = config.identity() | {"teacher_weights": "random:0", "precision": "fp32"}
    environment = {"revision": "abc", "versions": {"torch": "2"}, "hardware": "a CPU"}
    return {"config": config.to_json(), "identity": identity, **environment}


def metrics_record() -> dict[str, Any]:
    """What metrics.json of a run holds."""
    metrics: dict[str, float | None] = dict.fromkeys(METRIC_TITLES, 0.75) | {"aupro": None}
    normalizer = {"threshold": 0.5, "low": 0.1, "high": 0.9}
    run = {"class_name": "bottle", "seed": 111, "benchmark": "mvtec", "variant": "rd4ad", "name": "rd4ad"}
    settings = {"net": "wide_res50", "image_size": 64, "batch_size": 4, "epochs": 2, "epochs_trained": 2}
    oracle = {"epoch": 1, "rule": "image_auroc", "metrics": {"image_auroc": 0.8, "aupro": None}}
    counts = {"n_train": 8, "n_held_out": 0, "n_test": 6, "n_anomalous": 3, "train_seconds": 1.5, "score_seconds": 0.5}
    normalized = {
        "chosen_on": "the test set",
        "image": normalizer,
        "pixel": normalizer,
        "image_f1": 1.0,
        "pixel_f1": None,
    }
    origin = {"teacher_weights": "random:0", "precision": "fp32", "revision": "abc", "versions": {"torch": "2"}}
    reasons = {"aupro": "no masks"}
    hole = {"n_test": 3, "n_anomalous": 1, "metrics": metrics, "reasons": reasons}
    results = {"metrics": metrics, "reasons": reasons, "oracle": oracle, "normalized": normalized}
    results |= {"groups": {"defect": {"hole": hole}}}
    return run | settings | results | counts | origin | {"hardware": "a CPU"}


def small_network() -> tuple[Distiller, torch.optim.Optimizer]:
    """A distiller of a few parameters, after a step, and its optimizer."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2)]
    distiller = Distiller(cast(Any, nn.Identity()), *parts)
    optimizer = torch.optim.Adam(distiller.parameters(), lr=0.005, betas=(0.5, 0.999))
    sum(part(torch.rand(2, 3, 8, 8)).square().sum() for part in parts).backward()
    optimizer.step()
    return distiller, optimizer


def checkpoint_state() -> dict[str, Any]:
    """What checkpoint.pt holds, of a resume point, of a finished run and of averaged weights at once."""
    distiller, optimizer = small_network()
    progress = Progress()
    for epoch in (1, 2):
        progress.add(epoch, {"loss": 0.5, "held_out": 0.25}, images=8, seconds=1.0)
        progress.evaluated(epoch, {"image_auroc": 0.75, "aupro": float("nan")})
    statistics = {"mean": torch.rand(3, 4, 4), "spread": torch.rand(3, 4, 4)}
    state = {"trained": distiller.trained_state(), "optimizer": optimizer.state_dict(), "map_statistics": statistics}
    state["raw"] = distiller.trained_state()
    return state | {"color_scale": (0.25, 0.75), "progress": dataclasses.asdict(progress)}


def nodes(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in tables and lists, at any depth."""
    if isinstance(tree, dict):
        items = list(tree.items())
    else:
        items = list(enumerate(tree)) if isinstance(tree, (list, tuple)) else []
    return [place] * bool(place) + [node for key, value in items for node in nodes(value, (*place, key))]


def changed(tree: Any, place: tuple[Any, ...], change: Callable[[Any], Any] | None) -> Any:
    """A copy of the tree with the value at `place` changed, or left out where `change` is None."""
    if not place:
        assert change is not None
        return change(tree)
    key, *rest = place
    whole = copy.copy(tree) if isinstance(tree, dict) else list(tree)
    if not rest and change is None:
        del whole[key]
    else:
        whole[key] = changed(tree[key], tuple(rest), change)
    return tuple(whole) if isinstance(tree, tuple) else whole


def damaged_text(record: dict[str, Any], rng: random.Random) -> tuple[bytes, str]:
    """A JSON file with one value dropped or replaced, or with damaged bytes; and what was done."""
    place, literal = rng.choice(nodes(record)), rng.choice(LITERALS)
    where = ".".join(map(str, place))
    kind = rng.choice(["drop", "replace", "replace", "replace", "cut", "bytes"])
    if kind == "drop":
        return json.dumps(changed(record, place, None)).encode(), f"without {where}"
    if kind == "replace":
        text = json.dumps(changed(record, place, lambda _: "@")).replace('"@"', literal)
        return text.encode(), f"{where} = {literal[:40]}"
    data = bytearray(json.dumps(record).encode())
    if kind == "cut":
        return bytes(data[: rng.randrange(len(data))]), "cut off"
    start = rng.choice([0, rng.randrange(len(data))])
    data[start:start] = rng.choice([b"\xef\xbb\xbf", b"\xff", b"\x00", b"{", b'"', b"\xed\xa0\x80"])
    return bytes(data), f"bytes put in at {start}"


def config_case(folder: Path, rng: random.Random) -> str:
    content, done = damaged_text(config_record(), rng)
    (folder / CONFIG).write_bytes(content)
    with told(done):
        config = Config(**Config.from_json(Run(folder).read(CONFIG)["config"]))
        json.dumps([config.identity(), str(config.sweep_folder)])
        parse(["--config", str(folder / CONFIG)])
    return done


def metrics_case(folder: Path, rng: random.Random) -> str:
    content, done = damaged_text(metrics_record(), rng)
    (folder / METRICS).write_bytes(content)
    with told(done):
        results = collect([folder])
        report.render(report.summarize(results), markdown=True, oracle=True)
    return done


def checkpoint_case(folder: Path, rng: random.Random) -> str:
    """Saved anew with one value dropped or replaced: a tensor's shape, type and values are never taken changed."""
    state = checkpoint_state()
    place = rng.choice(nodes(state))
    value = state
    for key in place:
        value = value[key]
    change: Callable[[Any], Any] | None = None
    name = "drop"
    if isinstance(value, Tensor) and rng.random() < 0.8:
        name, change = rng.choice(TENSOR_CHANGES)
    elif rng.random() < 0.8:
        other = rng.choice(VALUES)
        name, change = repr(other)[:40], lambda _: other
    done = f"{'.'.join(map(str, place))}: {name}"
    torch.save(changed(state, place, change), folder / CHECKPOINT)
    with told(done):
        use_checkpoint(folder)
        if isinstance(value, Tensor) and change is not None:
            raise AssertionError("a tensor that is another was taken")
    return done


TENSOR_CHANGES: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("double", lambda t: t.double()),
    ("half", lambda t: t.half()),
    ("complex", lambda t: t.to(torch.complex64)),
    ("bool", lambda t: t.bool()),
    ("sparse", lambda t: t.to_sparse()),
    ("without values", lambda t: t.to("meta")),
    ("NaN", lambda t: torch.full(t.shape, torch.nan)),
    ("infinite", lambda t: torch.full(t.shape, -torch.inf)),
    ("a dimension more", lambda t: t[None]),
    ("flat", lambda t: t.reshape(-1, 1)),
    ("empty", lambda t: torch.empty(0)),
    ("a list", lambda t: t.tolist()),
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2**70,
    0.5,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    b"x",
    [],
    {},
]
VALUES += [(), [1], {"a": 1}, {1: 2}, [[]], torch.zeros(2), torch.tensor(float("nan")), complex(1, 1), torch.float32]


def flipped_case(folder: Path, rng: random.Random) -> str:
    """Bytes of the file are changed, or it is cut: what is taken all the same must be what was saved."""
    state = checkpoint_state()
    file = io.BytesIO()
    torch.save(state, file)
    data = bytearray(file.getvalue())
    position = rng.randrange(len(data))
    if rng.random() < 0.1:
        data, done = data[:position], f"cut off at {position}"
    else:
        bit = rng.randrange(8)
        data[position] ^= 1 << bit
        done = f"bit {bit} of byte {position}"
    (folder / CHECKPOINT).write_bytes(data)
    with told(done):
        use_checkpoint(folder)
        loaded = Run(folder).load_checkpoint()
        if fingerprint(loaded) != fingerprint(state):
            raise AssertionError("another state was taken")
    return done


def use_checkpoint(folder: Path) -> None:
    """As main.py goes on with it, and as test.py takes it."""
    distiller, optimizer = small_network()
    progress = Run(folder).restore(distiller, optimizer, Training(epochs=3), WeightAverage(distiller, 0.9))
    progress.should_stop(3)
    progress.oracle(["image_auroc", "aupro"])
    load_checkpoint(folder / CHECKPOINT, scored=True)


def fingerprint(tree: Any) -> str:
    """Equal for equal trees of tensors and plain values, to the bit."""
    if isinstance(tree, Tensor):
        return f"{tree.dtype}{tuple(tree.shape)}{tree.numpy().tobytes().hex()}"
    if isinstance(tree, dict):
        return "{" + ",".join(f"{key!r}:{fingerprint(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, (list, tuple)):
        return type(tree).__name__ + "(" + ",".join(map(fingerprint, tree)) + ")"
    return repr(tree)


def flags_case(folder: Path, rng: random.Random) -> str:
    """A few flags of main.py with any values: a Config that comes back from its JSON, or a line and exit code 2."""
    words = []
    for _ in range(rng.randint(1, 2)):
        f = rng.choice(dataclasses.fields(Config))
        values = rng.choices([*WORDS, *f.metadata["choices"]], k=rng.choice([0, 1, 1, 1, 2, 3]))
        words += [f"--{f.name}", *values]
    done = repr(words)[:200]
    printed = io.StringIO()
    with told(done, named=""):
        try:
            with contextlib.redirect_stderr(printed):
                config = parse(words)
        except SystemExit as exit_info:
            raise ValueError(printed.getvalue().strip()) from (None if exit_info.code == 2 else exit_info)
        saved = json.loads(json.dumps(config.to_json(), allow_nan=False))
        numbers = [v for value in saved.values() for v in (value if isinstance(value, list) else [value])]
        if any(isinstance(number, int) and abs(number) > 2**63 for number in numbers):
            raise AssertionError("a number beyond 64 bits was taken")
        if Config(**Config.from_json(saved)) != config:
            raise AssertionError("another configuration comes back")
        config.identity()
    return done


def mask_case(folder: Path, rng: random.Random) -> str:
    """A mask in any form that drawing programs write, perhaps cut off: the drawn pixels, a warning, or a line."""
    drawn = np.random.default_rng(rng.randrange(2**32)).random((rng.randint(8, 20), rng.randint(25, 40))) < 0.3
    drawn[0, 0], drawn[-1, -1] = True, False
    form, kind = rng.choice(list(MASK_FORMS)), rng.choice(MASK_FORMATS[:2] if rng.random() < 0.5 else MASK_FORMATS)
    drawing = MASK_FORMS[form](drawn)
    if kind in ("JPEG", "WEBP"):
        drawing = drawing.convert("RGB")
    image, mask = folder / "000.png", folder / "000_mask.png"
    Image.new("RGB", (drawn.shape[1], drawn.shape[0]), (9, 99, 199)).save(image)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "TIFF" and drawing.mode != "1":
        options = {"compression": rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"])}
    try:
        drawing.save(mask, kind, **options)
    except OSError:  # a form that the format does not hold
        drawing.convert("RGB").save(mask, kind)
    cut = mask.stat().st_size
    if rng.random() < 0.3:
        cut = rng.randrange(cut)
        mask.write_bytes(mask.read_bytes()[:cut])
    done = f"{form} as {kind}, the first {cut} bytes"
    with told(done):
        sample = Sample(image, anomalous=True, defect="drawn", mask=mask)
        if warnings := list(check_masks([sample])):
            raise ValueError(warnings[0])
        if not np.array_equal(read_mask(mask), drawn):
            raise AssertionError("another mask was taken without a word")
    return done


def _palette(drawn: np.ndarray, colors: Sequence[int]) -> Image.Image:
    drawing = Image.fromarray(drawn.astype(np.uint8))
    drawing.putpalette(colors)
    return drawing


def _gray(drawn: np.ndarray, value: float, kind: Any = np.uint8) -> Image.Image:
    return Image.fromarray((drawn * value).astype(kind))


MASK_FORMATS = ["PNG", "TIFF", "BMP", "WEBP", "JPEG"]
MASK_FORMS: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "0 and 255": lambda m: _gray(m, 255),
    "0 and 1": lambda m: _gray(m, 1),
    "one bit": lambda m: _gray(m, 255).convert("1"),
    "RGB": lambda m: _gray(m, 255).convert("RGB"),
    "red": lambda m: Image.fromarray(np.stack([m * 200, m * 0, m * 0], axis=2).astype(np.uint8)),
    "palette": lambda m: _palette(m, [0, 0, 0, 255, 255, 255]),
    "palette, white first": lambda m: _palette(~m, [255, 255, 255, 0, 0, 0]),
    "palette of indices": lambda m: _palette(m, [0, 0, 0, 0, 0, 0]),
    "16 bits": lambda m: _gray(m, 65535, np.uint16),
    "16 bits, 1": lambda m: _gray(m, 1, np.uint16),
    "32 bits": lambda m: _gray(m, 255, np.int32),
    "opaque": lambda m: _gray(m, 255).convert("RGBA"),
    "gray, opaque": lambda m: _gray(m, 255).convert("LA"),
    "alpha alone": lambda m: Image.merge("RGBA", [_gray(m, 0)] * 3 + [_gray(m, 255)]),
    "soft edges": lambda m: _gray(m, 255).filter(ImageFilter.GaussianBlur(1)),
    "inverted": lambda m: _gray(np.ones_like(m), 255),
    "empty": lambda m: _gray(m, 0),
    "transposed": lambda m: _gray(m.T, 255),
    "wide": lambda m: _gray(np.hstack([m, m, m]), 255),
}


class Failure(Exception):
    """A case that ended otherwise than it may."""


class Refused(Exception):
    """A case that ended in one line."""


@contextlib.contextmanager
def told(done: str, named: str = "seed111") -> Iterator[None]:
    """What comes out of a case becomes Refused, one line with `named` in each, or else Failure."""
    try:
        yield
    except (ValueError, OSError) as problem:
        text = str(problem)
        lines = text.splitlines()
        if not text or (named and (len(lines) > 1 or named not in text)) or max(map(len, lines)) > 2000:
            raise Failure(f"{done}: not one short line that names the file: {text[:300]!r}") from problem
        raise Refused(text) from None
    except Exception as problem:
        raise Failure(f"{done}: {type(problem).__name__}: {str(problem)[:300]}") from problem


CASES: dict[str, Case] = {
    "config.json": config_case,
    "metrics.json": metrics_case,
    "checkpoint.pt, values": checkpoint_case,
    "checkpoint.pt, bytes": flipped_case,
    "masks": mask_case,
    "command lines": flags_case,
}


def run_cases(name: str, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """So many cases of a kind: how many were taken, refused and failed, and the failures by their seeds."""
    counts, failures = Counter[str](taken=0, refused=0, failed=0), []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "mvtec/rd4ad/bottle/seed111"
        folder.mkdir(parents=True)
        for number in range(seed, seed + count):
            try:
                CASES[name](folder, random.Random(f"{name} {number}"))
                counts["taken"] += 1
            except Refused:
                counts["refused"] += 1
            except Failure as failure:
                counts["failed"] += 1
                failures.append(f"{name}, --seed {number}: {failure}")
            for file in folder.iterdir():
                file.unlink()
    return counts, failures
