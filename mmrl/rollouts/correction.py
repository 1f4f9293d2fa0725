"""Engines that are not quite the trainer: their log-probs are compared with training's and corrected from the start.

An engine with other kernels or another precision says in `mismatch` how ("truncate": truncated importance weights,
`GRPO.mismatch`). Answers that nobody sampled have no log-probs, so a run with labels or experts goes without, and so
does one that samples under a noisy view.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmrl.grpo import GRPO
from mmrl.rollouts.ahead import AskedAhead
from mmrl.rollouts.groups import RolloutCall, chain
from mmrl.types import Sampling


def corrected(grpo: GRPO, engine: Any, rollout: RolloutCall, sampling: Sampling) -> GRPO:
    """The numbers of the core with the engine's correction, unless they say one or there can be none.

    Raises ValueError where the engine's log-probs under this sampling cannot be compared with training's.
    """
    parts = chain(rollout)
    given = any(not kind.sampled for part in parts for kind in part.brings())
    # Answers under a noisy view are trained under the clean one, without a correction (`noisy.py`).
    noisy = any(part.sampled_under() for part in parts)
    how = getattr(engine, "mismatch", "off")
    if grpo.mismatch == "off" and how != "off" and not given and not noisy:
        grpo = replace(grpo, mismatch=how)
    if grpo.mismatch == "off" and any(isinstance(part, AskedAhead) for part in parts):
        raise ValueError(
            "--run.staleness is 1, but answers of older weights are not corrected here (--grpo.mismatch is off, and "
            "answers that nobody sampled, of labels or experts, cannot be). Set --grpo.mismatch truncate with "
            "--load.engine-correct True, or leave --run.staleness 0."
        )
    if grpo.mismatch != "off" and hasattr(engine, "refuse_sampling"):
        engine.refuse_sampling(sampling)
    return grpo
