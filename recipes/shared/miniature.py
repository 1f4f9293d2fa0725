"""The embedded preset that all recipes share: the tiny model, drawn look-ups, and numbers that fit both.

`miniature(run={"steps": 40}, ...)` is a `Preset`; what is named is merged over the shared numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrl.recipes.shared.launch import Preset
from mmrl.recipes.shared.opening import DRAWN, EMBEDDED

SHARED: Mapping[str, Any] = {
    "model": EMBEDDED,
    "dataset": DRAWN,
    "data": {"style": "tag"},
    "grpo": {"kl": 0.0, "clip_high": 0.28},
    "sampling": {"group_size": 8, "top_p": 1.0, "max_tokens": 10},
    "optim": {
        "lr": 2e-4,
        "weight_decay": 0.0,
        "warmup": 0,
        "warmup_share": 0.0,
        "schedule_steps": None,
    },
    # The tiny model has its own limits; those of a real one would enlarge its pictures.
    "load": {"min_pixels": None, "max_pixels": None, "max_prompt_tokens": None},
    "run": {
        "prompts_per_step": 16,
        "updates_per_step": 1,
        "steps": 50,
        "eval_prompts": 256,
        "save_every": 20,
    },
    # Often enough to show the probe within fifty steps.
    "monitor": {"probe_every": 25},
}
NOTE = "tiny model, drawn pictures, CPU, minutes"


def miniature(note: str = NOTE, /, **changes: Any) -> Preset:
    """The shared values with changes: mappings are merged, None leaves a record as it is, anything else replaces."""
    values = dict(SHARED)
    for name, change in changes.items():
        merge = isinstance(change, Mapping) and name in SHARED
        values[name] = {**SHARED[name], **change} if merge else change
    return Preset(note, **{name: value for name, value in values.items() if value is not None})
