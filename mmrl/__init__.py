"""mmrl: reinforcement learning for vision-language models.

A rollout engine answers prompts; visual branches look at the same answers through masked, noisy or perturbed pixels;
objective modules turn these looks into loss terms or advantages on one GRPO core. Read `types.py` for the records,
`training/trainer.py` for one training step, `objectives/papo.py` for what a paper looks like here.

The names below are loaded when they are first used: `import mmrl` itself imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmrl.ground.version import __version__ as __version__

if TYPE_CHECKING:
    from mmrl.data.rows.sources import load_prompts as load_prompts
    from mmrl.grpo import GRPO as GRPO
    from mmrl.model.load import LoRA as LoRA
    from mmrl.model.policy import Policy as Policy
    from mmrl.rewards.pay import Rewards as Rewards
    from mmrl.training.monitor import Monitor as Monitor
    from mmrl.training.optim import Optim as Optim
    from mmrl.training.run import Run as Run
    from mmrl.training.trainer import Trainer as Trainer
    from mmrl.types import Prompt as Prompt
    from mmrl.types import Sampling as Sampling
    from mmrl.types import VisualBranch as VisualBranch

_HOMES = {
    "GRPO": "mmrl.grpo",
    "LoRA": "mmrl.model.load",
    "Monitor": "mmrl.training.monitor",
    "Optim": "mmrl.training.optim",
    "Policy": "mmrl.model.policy",
    "Prompt": "mmrl.types",
    "Rewards": "mmrl.rewards.pay",
    "Run": "mmrl.training.run",
    "Sampling": "mmrl.types",
    "Trainer": "mmrl.training.trainer",
    "VisualBranch": "mmrl.types",
    "load_prompts": "mmrl.data.rows.sources",
}
"""Where each name of the façade lives."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'mmrl' has no attribute {name!r}; it offers {', '.join(sorted(_HOMES))}."
        )
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
