"""The embedded preset that all recipes share: the tiny model, drawn look-ups, and numbers that fit both.

`miniature(run={"steps": 40}, ...)` gives the values of a `Preset`; what is named is merged over the shared numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.recipes.shared.launch import DRAWN, EMBEDDED

SHARED: Mapping[str, Any] = {
    "model": EMBEDDED,
    "dataset": DRAWN,
    "data": {"style": "tag"},
    "grpo": {"kl": 0.0, "clip_high": 0.28},
    "sampling": {"group_size": 8, "top_p": 1.0, "max_tokens": 10},
    "optim": {"lr": 2e-4, "weight_decay": 0.0, "warmup": 0},
    "load": {"min_pixels": None, "max_pixels": None, "max_prompt_tokens": None},
    "run": {
        "prompts_per_step": 16,
        "updates_per_step": 1,
        "steps": 50,
        "eval_prompts": 256,
        "save_every": 20,
    },
    "monitor": {"probe_every": 25},
}
NOTE = "tiny model, drawn pictures, CPU, minutes"


def miniature(**changes: Any) -> dict[str, Any]:
    """The shared values with changes: mappings are merged, anything else replaces."""
    values = {**SHARED, **changes}
    for name in SHARED.keys() & changes.keys():
        if isinstance(SHARED[name], Mapping):
            values[name] = {**SHARED[name], **changes[name]}
    return values
