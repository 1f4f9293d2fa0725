"""A policy without weights: it reads prompts as the real one does, and can neither score nor write.

Its model is built on torch's meta device, so a model of any size takes no memory. Tags are written as tokenizer,
template and config say; a real load also looks at the weights (`tags.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmrl.model.checkpoint_files import read_config
from mmrl.model.patches import PixelBudget
from mmrl.model.policy import Policy
from mmrl.model.processing import Processing
from mmrl.model.tags import TagMode
from mmrl.model.thinking import ThinkingMode


def weightless(
    source: str | Path,
    budget: PixelBudget,
    tags: TagMode = "auto",
    thinking: ThinkingMode = "auto",
) -> Policy:
    """The policy of a folder or hub name, from its config and processor alone. Raises ValueError as a load does."""
    processing = Processing.load(source, budget, tags, thinking)
    with torch.device("meta"):
        model: Any = processing.family.model_class().from_config(read_config(source))
    policy = Policy(model, processing)
    policy.description = {"source": str(source)}
    return policy
