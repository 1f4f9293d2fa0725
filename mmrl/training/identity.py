"""Whose run a checkpoint is, and whether the run that is started now may go on with it.

A checkpoint carries the id of its run and all settings, so that nothing depends on files beside it: a `config.json`
that is gone or torn is written again, and two runs never share a folder. Among the settings are digests of the data
(`mmrl.ground.contents`) and of the user's functions (`mmrl.ground.source_digest`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.ground.contents import SAMPLED, contents
from mmrl.ground.outputs import OutputError
from mmrl.ground.progress import Progress
from mmrl.ground.source_digest import code_digest
from mmrl.rewards.pay import Rewards
from mmrl.training.tracking import describe, describe_prompts, differences
from mmrl.types import Prompts

MEANINGS = {
    "prompts.texts": "questions, answers or other columns changed",
    "prompts.media": "pictures or clips changed",
    "prompts.order": "rows moved or changed",
    "code.": "the code of this function, or what it reads, changed",
}
"""Beginning of a setting's name -> what a difference means, where the values say nothing to a person."""


def described_prompts(prompts: Prompts) -> dict[str, Any]:
    """Class, size and plain fields of a collection of prompts, and digests of what it holds.

    Says so if only a sample of the rows was read: a change elsewhere would not be noticed when the run is continued.
    """
    found = contents(prompts)
    if found["read"].endswith(SAMPLED):
        Progress.say(
            f"A continued run will compare its data with this one's by {found['read']}."
        )
    return {**describe_prompts(prompts), **found}


def described_method(
    rewards: Rewards, branches: Mapping[str, Any], objectives: Sequence[Any], **parts: Any
) -> dict[str, Any]:
    """The method of a run: its records and functions as plain JSON, and digests of its code.

    `parts`: optim, sampling, grpo, early, estimator, surrogate, rollout.
    """
    functions = ("estimator", "surrogate", "rollout")
    parts = {**parts, "branches": branches, "objectives": objectives}
    described = {name: describe(part) for name, part in parts.items()}
    # What happens to a step that is not finite may be decided anew.
    described["optim"] = without(described["optim"], "nonfinite")
    code = described_code(
        rewards=rewards.functions,
        **{name: parts[name] for name in functions},
        objectives=objectives,
        views={name: branch.view for name, branch in branches.items()},
    )
    return {**described, "rewards": rewards.weights, "code": code}


def described_code(**parts: Any) -> dict[str, Any]:
    """Digests of the functions and classes of a run: single ones, lists, and mappings of them."""
    found: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(part, Mapping):
            found[name] = {key: code_digest(each) for key, each in part.items()}
        elif isinstance(part, list):
            found[name] = [code_digest(each) for each in part]
        else:
            found[name] = code_digest(part)
    return found


def without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Settings but for those that a continued run may change."""
    return {name: value for name, value in settings.items() if name not in names}


def refuse_other_run(folder: Path, state: Mapping[str, Any], identity: str) -> None:
    """Raise OutputError if a checkpoint's numbers belong to another run than the folder."""
    if state.get("run", identity) != identity:
        raise OutputError(
            f"The checkpoints in {folder} belong to another run ({state['run']}) than the files beside them "
            f"({identity}). Two runs are never mixed: move the ones that do not belong here away, or choose another "
            "--run.output."
        )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines "name: was X, now Y" for settings that differ, with what that means where the values do not say it."""
    # As they would look in a file.
    lines = differences(old, json.loads(json.dumps(new)))
    return [_explained(line) for line in lines]


def _explained(line: str) -> str:
    """A difference with its meaning."""
    for start, meaning in MEANINGS.items():
        if line.startswith(start):
            return f"{line} ({meaning})"
    return line
