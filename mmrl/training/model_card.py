"""The README.md of a trained model: what it was made from and how, so that nobody has to guess it later.

The licence is left to whoever publishes the model: it follows from the base model and the data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl.model.tiny import cache_folder
from mmrl.training.tracking import environment

RESULTS = ("eval/accuracy", "eval/accuracy_error", "eval/reward", "eval/length", "reward/total")
"""Metrics of the last step that stand on the card, in this order."""


def model_card(
    name: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, float],
    recipe: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown. `recipe`: recipe, preset and arguments of a command line, where there was one."""
    policy = settings.get("policy")
    base = str(policy.get("source", "")) if isinstance(policy, Mapping) else ""
    adapter = isinstance(policy, Mapping) and bool(policy.get("lora"))
    made = (
        f"the recipe `{recipe['recipe']}`, preset `{recipe['preset']}`" if recipe else "Python"
    )
    rows = [f"| {each} | {metrics[each]:.4f} |" for each in RESULTS if each in metrics]
    parts = [
        _head(base, adapter),
        f"# {name}",
        f"A vision-language model trained with reinforcement learning by mmrl, from {made}.",
        f"Base model: `{base or 'unknown'}`{', with a LoRA adapter' if adapter else ''}.",
        *([_loading(base)] if adapter else []),
        "## Results of the last step",
        "\n".join(["| metric | value |", "|---|---|", *rows]) if rows else "None.",
        "## Data, with fingerprints",
        _fenced(settings.get("prompts")),
        "## Settings",
        _fenced(recipe or {key: part for key, part in settings.items() if key != "prompts"}),
        "## Versions",
        _fenced({key: part for key, part in environment().items() if key != "command"}),
        "## Licence",
        "Not stated. It follows from the licences of the base model and of the data: fill it in before publishing.",
    ]
    return "\n\n".join(parts) + "\n"


def _loading(base: str) -> str:
    """How the folder of an adapter is loaded, and what to do where its base is not."""
    if Path(base).is_relative_to(cache_folder()):
        where = "Its base model is in this folder too, so it can be copied anywhere."
    elif base.startswith(("/", ".", "~")) or Path(base).is_dir():
        where = (
            "The base model is a folder of the computer it was trained on: elsewhere, write the path or hub name of "
            "the same model into `base_model_name_or_path` of `adapter_config.json`."
        )
    else:
        where = "The base model is downloaded under that name."
    return (
        f"`AutoModelForImageTextToText.from_pretrained(FOLDER)` loads both (with peft installed). {where} "
        "`mmrl export RUN --merge` writes one model without an adapter."
    )


def _head(base: str, adapter: bool) -> str:
    """What hubs read."""
    kind = "peft" if adapter else "transformers"
    lines = [f"library_name: {kind}", "pipeline_tag: image-text-to-text", "tags: [mmrl]"]
    # The hub refuses a card whose base is none of its models.
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) and not Path(base).is_dir():
        # A JSON text is one of YAML too, whatever stands in it.
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join(["---", *lines, "---"])


def _fenced(value: Any) -> str:
    """A value as JSON in a block that its own text cannot end."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str).replace("`", "\\u0060")
    return f"```json\n{text}\n```"
