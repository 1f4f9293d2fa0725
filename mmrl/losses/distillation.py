"""Divergence of a student from a teacher of whom only the most likely tokens are known."""

from __future__ import annotations

import torch
from torch import Tensor

NO_REST = 1e-6
"""Probability of all other tokens below which the teacher has none: rounding of log-probs leaves as much."""


def topk_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) over k tokens and one more that stands for all others, in nats.

    Log-probs [..., k] of the same k tokens -> [...], at least 0 (but for rounding, up to 1e-6). Exact if k is the whole
    vocabulary, else a lower bound. Entries whose teacher is -inf are left out: padding. The gradient goes to `student`.
    """
    known = teacher.isfinite()
    # Before anything is computed: 0 · inf is no number, in the value and in its gradient.
    q, p = torch.where(known, teacher, 0.0), torch.where(known, student, 0.0)
    shown = torch.where(known, q.exp() * (q - p), 0.0).sum(-1)
    rest_q = 1 - torch.where(known, q.exp(), 0.0).sum(-1)
    rest_p = 1 - torch.where(known, p.exp(), 0.0).sum(-1)
    has_rest = known.any(-1) & (rest_q > NO_REST)
    safe_q = torch.where(has_rest, rest_q, 1.0)
    # Of a student that gives nothing to the others, the smallest number that has a logarithm.
    safe_p = torch.where(has_rest, rest_p.clamp(min=torch.finfo(p.dtype).tiny), 1.0)
    return shown + torch.where(has_rest, safe_q * (safe_q.log() - safe_p.log()), 0.0)
