"""Devices by name, "auto", "cpu", "cuda", "cuda:1"; and what a device computes in where "auto" is asked for."""

from __future__ import annotations

import torch


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; "auto" is CUDA if there is one, else the CPU.

    Raises:
        ValueError: No such name, or torch sees no CUDA device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:0'") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device; use device='auto' or 'cpu'")
    return resolved


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision of a name; "auto" is "fast" where the device has bfloat16, else "exact".

    Raises:
        ValueError: No such name.
    """
    if precision not in ("exact", "fast", "auto", "official"):
        raise ValueError(f"precision {precision!r} is unknown; choose 'exact', 'fast', 'auto' or 'official'")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "fast" if torch.cuda.is_bf16_supported(including_emulation=False) else "exact"
    return "fast" if torch.cpu._is_avx512_bf16_supported() else "exact"
