"""What the networks compute with: fp32, or bf16, which is fast where a processor or GPU has it in hardware."""

from __future__ import annotations

import torch


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where the device multiplies it in hardware, else fp32; the others are themselves."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """torch's autocast to bf16, disabled for fp32; weights stay fp32, and so do losses, distances and maps."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
