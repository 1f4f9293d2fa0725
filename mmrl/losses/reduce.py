"""From a token map [B, T] to one number, so that neither micro-batches nor padding nor ranks matter.

Every rule divides by GLOBAL counts (`Totals`: all trained tokens and answers of one optimiser update, over all
micro-batches and ranks). A call returns the *summand* of its micro-batch: add up the summands of an update, do not
average them; ranks likewise sum their gradients.

    token_mean     Σ m·x / tokens
    sequence_mean  Σ_i (Σ_t m·x / |o_i|) / sequences
    sequence_sum   Σ m·x / sequences
    constant_norm  Σ m·x / (sequences · C)

Padding: `x` is replaced by 0 where the mask is off, so NaN there reaches neither the value nor the gradient of `x`.
The function that made `x` must do the same with its own inputs, since 0 · NaN is NaN on the way back.

Departures
1. Answers without a trained token are not counted as sequences (as verl; EasyR1 and TRL count them as zeros: pass
   `Totals(tokens, rows)` for that). A sequence that has trained tokens is never split over two micro-batches.
2. `constant_norm` divides by sequences · C as TRL and the Dr. GRPO paper; verl divides by C only.
3. EasyR1 rescales micro-batches by their share of tokens in both modes, PAPO divides by their number, TRL's `bnpo` uses
   local counts: all depend on the split, ours do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["token", "sequence", "sequence_sum", "constant"]


@dataclass(frozen=True)
class Totals:
    """Counts over the whole update: every micro-batch, every rank."""

    tokens: int
    """Trained tokens (mask on)."""
    sequences: int
    """Answers with at least one trained token."""

    @staticmethod
    def of(*masks: Tensor) -> Totals:
        """Count masks [B, T] of all micro-batches (one tensor if the batch is not split)."""
        trained = [mask.bool() for mask in masks]
        return Totals(
            tokens=sum(int(on.sum()) for on in trained),
            sequences=sum(int(on.any(-1).sum()) for on in trained),
        )

    @staticmethod
    def sum(parts: Iterable[Totals]) -> Totals:
        """Add up the counts of micro-batches or ranks."""
        parts = tuple(parts)  # read twice: it may be an iterator
        return Totals(
            tokens=sum(part.tokens for part in parts),
            sequences=sum(part.sequences for part in parts),
        )


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the mask is on, 0 elsewhere, whatever stood there; both [B, T]."""
    # Not x * mask: 0 · NaN is NaN, and so is its gradient.
    return torch.where(mask.bool(), x, 0.0)


def token_mean(x: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Every trained token weighs the same; x, mask [B, T] -> scalar summand."""
    return keep(x, mask).sum() / max(totals.tokens, 1)


def sequence_mean(x: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Every answer weighs the same, its tokens share it; x, mask [B, T] -> scalar summand."""
    lengths = mask.bool().sum(-1).clamp(min=1)  # [B]
    per_answer = keep(x, mask).sum(-1) / lengths
    return per_answer.sum() / max(totals.sequences, 1)


def sequence_sum(x: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Mean over answers of the sum over tokens; x, mask [B, T] -> scalar summand."""
    return keep(x, mask).sum() / max(totals.sequences, 1)


def constant_norm(x: Tensor, mask: Tensor, totals: Totals, constant: float) -> Tensor:
    """Sum over tokens divided by a constant length, mean over answers (Dr. GRPO); x, mask [B, T] -> scalar summand."""
    if not constant > 0:
        raise ValueError(
            f"constant_norm got constant {constant}; it is a length in tokens and must be positive."
        )
    return sequence_sum(x, mask, totals) / constant


def reduced(
    x: Tensor,
    mask: Tensor,
    totals: Totals,
    rule: Reduction,
    constant: float = 0.0,
) -> Tensor:
    """The summand of a token map under the named rule; x, mask [B, T] -> scalar. `constant` serves "constant" only."""
    if rule == "constant":
        return constant_norm(x, mask, totals, constant)
    rules = {"token": token_mean, "sequence": sequence_mean, "sequence_sum": sequence_sum}
    return rules[rule](x, mask, totals)
