"""Reading weight files and loading states, with errors of one line."""

from __future__ import annotations

import errno
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DOS_FOLDER = 0x10  # of a zip entry's attributes


def read_torch_file(path: Path, flag: str) -> Any:
    """What `torch.save` wrote, tensors and plain containers only, on the CPU.

    Raises FileNotFoundError when there is no such file, ValueError when PyTorch cannot read it or a checksum does not
    hold; both name `flag`. Files of torch before 1.6 have no checksums.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: {flag} must name a file written by torch.save")
    try:
        if zipfile.is_zipfile(path):
            check_integrity(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        raise ValueError(f"cannot read {path}, which {flag} names, as tensors ({reason})") from error


def check_integrity(path: Path) -> None:
    """Raises ValueError where a file of torch.save is not as it was written, by the checksums in it; loads nothing.

    torch.load itself compares none of them: a flipped bit is another weight. An entry that its index calls a folder or
    empty is not even read by it, and the weight is whatever the memory held.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            odd = [member.filename for member in archive.infolist() if not _is_plain(member)]
            damaged = archive.testzip() if not odd else None
    except Exception as error:  # zipfile raises many kinds for a damaged file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one: a place before the file's beginning
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise ValueError(f"no archive of torch.save, or a part of one: {error}") from None
    if odd:
        raise ValueError(f"the index entry of {odd[0]} is none that torch.save writes")
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} does not hold")


def _is_plain(member: zipfile.ZipInfo) -> bool:
    """Whether an entry is a file that is stored as it is."""
    stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
    return stored and not member.is_dir() and not member.external_attr & DOS_FOLDER


def tensors_by_name(state: object, what: str) -> dict[str, Tensor]:
    """`state`, where it is a table of tensors by name; or one ValueError that begins with `what`."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{what} is not a table of tensors by name but a {type(state).__name__}")
    wrong = [k for k, value in state.items() if not isinstance(k, str) or not isinstance(value, Tensor)]
    if wrong:
        found = type(state[wrong[0]]).__name__
        raise ValueError(f"{what} is not a table of tensors by name: {wrong[0]!r} names a {found}")
    return dict(state)


def load_checked(module: nn.Module, state: object, what: str) -> None:
    """Load `state` into `module`, or raise one ValueError that begins with `what` and names the first misfits.

    Batch norm's step counters may be missing: old files have none, and nothing here uses them.
    """
    found, wanted = tensors_by_name(state, what), module.state_dict()
    problems = [
        *_first("lacks", [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]),
        *_first("has the unknown", [k for k in found if k not in wanted]),
    ]
    fitting = [k for k in wanted if k in found]
    misfits = {k: misfits_of(found[k], wanted[k], not k.endswith(("running_var", "_tracked"))) for k in fitting}
    problems += _first("has", [f"{k} {misfit}" for k, misfit in misfits.items() if misfit])
    if problems:
        raise ValueError(f"{what} does not fit: it {'; it '.join(problems)}")
    module.load_state_dict({**wanted, **found})


def misfits_of(tensor: Tensor, wanted: Tensor, negative: bool = True) -> str:
    """What is wrong with a tensor in the place of one like `wanted`; empty where nothing is.

    Shape, type and storage must be the same, all values finite, and without `negative` none below 0.
    """
    if tensor.shape != wanted.shape:
        return f"{tuple(tensor.shape)} for {tuple(wanted.shape)}"
    kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
    if kind != wanted.dtype:
        return f"of {kind} for {wanted.dtype}"
    if tensor.is_meta:
        return "without values"
    if not torch.isfinite(tensor).all():
        return "with NaN or infinite values"
    if not negative and (tensor < 0).any():
        return "with negative values"
    return ""


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
