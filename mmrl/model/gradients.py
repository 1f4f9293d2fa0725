"""Gradients of half-precision weights are added up in fp32.

bf16 keeps 8 bits: a running sum in it loses every term smaller than 1/256 of what is there already, so a gradient that
comes in many tiles and micro-batches would stop growing (measured on the head at 2,000 tiles of same-sign terms: a
norm of 0.65 of the right one). Torch adds up in the format that `Tensor.grad_dtype` names.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
"""Formats too short for a running sum."""


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which format gradients of weights of this format are added up: their own, but at least fp32."""
    return torch.float32 if dtype in HALF else dtype


def collect_in_fp32(weights: Iterable[Tensor]) -> None:
    """From now on the gradients of those of the leaf tensors that are half precision are fp32, those held included."""
    for weight in weights:
        wanted = gradient_dtype(weight.dtype)
        if not weight.requires_grad or weight.grad_dtype == wanted:
            continue
        held, weight.grad = (
            weight.grad,
            None,
        )  # torch refuses a new format while there is a gradient
        weight.grad_dtype = wanted
        if held is not None:
            weight.grad = held.to(wanted)
