"""Reading weight files and loading states, with errors of one line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_torch_file(path: Path, flag: str) -> Any:
    """What `torch.save` wrote, tensors and plain containers only, on the CPU.

    Raises FileNotFoundError when there is no such file, ValueError when PyTorch cannot read it; both name `flag`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: {flag} must name a file written by torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        raise ValueError(f"cannot read {path}, which {flag} names, as tensors ({reason})") from error


def load_checked(module: nn.Module, state: object, what: str) -> None:
    """Load `state` into `module`, or raise one ValueError that begins with `what` and names the first misfits.

    Batch norm's step counters may be missing: old files have none, and nothing here uses them.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{what} is not a table of tensors by name")
    wanted = module.state_dict()
    problems = [
        *_first("lacks", [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]),
        *_first("has the unknown", [k for k in state if k not in wanted]),
        *_first(
            "has other shapes in",
            [
                f"{k} {tuple(state[k].shape)} for {tuple(wanted[k].shape)}"
                for k in wanted
                if k in state and state[k].shape != wanted[k].shape
            ],
        ),
    ]
    if problems:
        raise ValueError(f"{what} does not fit: it {'; it '.join(problems)}")
    module.load_state_dict({**wanted, **state})


def _first(verb: str, names: list[str], shown: int = 3) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return [f"{verb} {', '.join(names[:shown])}{more}"]


def state_sha256(module: nn.Module) -> str:
    """SHA-256 over the names and bytes of a module's tensors, for weights that come without a file of their own."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
