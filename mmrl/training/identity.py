"""Whose run a checkpoint is, and whether the run that is started now may go on with it.

A checkpoint carries the id of its run and all settings, so that nothing depends on files beside it: a `config.json`
that is gone or torn is written again, and two runs never share a folder. Among the settings are digests of the data
(`mmrl.ground.contents`) and of the user's functions (`mmrl.ground.source_digest`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mmrl.ground.contents import SAMPLED, contents
from mmrl.ground.outputs import OutputError
from mmrl.ground.progress import Progress
from mmrl.ground.source_digest import code_digest
from mmrl.rewards.judge_prompts import judge_prompt
from mmrl.rewards.pay import Rewards
from mmrl.rewards.worker import marker
from mmrl.training.run import FREE_TO_CHANGE
from mmrl.training.tracking import describe, describe_prompts, differences
from mmrl.types import Prompts

MEANINGS = {
    "prompts.texts": "questions, answers or other columns changed",
    "prompts.media": "pictures or clips changed",
    "prompts.order": "rows moved or changed",
    "judge_prompts.": "a judge would be asked something else; take the version of mmrl that began the run",
    "code.": "the code of this function, or what it reads, changed",
    "policy.device": "other kinds of devices compute other numbers; --load.device names one",
    "policy.pixels": "pictures would be read at another size; --load.min-pixels and the like",
}
"""Beginning of a setting's name -> what a difference means, where the values say nothing to a person."""
LATER = {"policy": ("device", "pixels")}
"""Settings that earlier versions did not write down: unknown in their runs, and then not compared."""
JUDGE_PROMPTS = "judge_prompts"
"""The prompts of judges among the settings; unknown in runs of versions in which they were no files."""
LENGTH = ("steps", "epochs")
"""Fields of `Run` that say how long it is; together with the size of the data they are one number."""
FREE_ARGUMENTS = (
    *(f"run.{name}" for name in (*FREE_TO_CHANGE, *LENGTH)),
    # The settings of a run hold what these lead to: the model and what is trained of it, the rows, functions.
    *("model", "dataset", "video_root", "data.image_root", "data.allow_outside", "data.on_bad"),
    *("reward.own", "load.device", "load.dtype"),
    # Where and how fast, not what.
    *("load.workers", "load.memory", "load.check_memory", "load.checkpointing"),
    *("load.offload_reference", "load.shard", "monitor.", "optim.nonfinite"),
    *("clips.cache", "clips.cache_gb", "clips.timeout"),
    # Tables of knowledge points: the settings hold a digest of the one that is read.
    *("table", "write_table"),
    *("judge.url", "judge.key_file", "judge.cache", "judge.concurrency", "judge.replay"),
)
"""Arguments of a command line that may differ when a run goes on; what ends with a dot is a whole record."""

NAMED = ("model", "dataset", "video_root", "data.image_root", "reward.own")
"""Of these, those by which runs are told apart before anything is read."""


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
    # Only where it is used, so that runs which it does not concern can be continued as before.
    for branch in described["branches"].values():
        if branch.get("reworded") is None:
            branch.pop("reworded", None)
    worded = {name: branch.reworded for name, branch in branches.items() if branch.reworded}
    code = described_code(
        rewards=rewards.functions,
        **{name: parts[name] for name in functions},
        objectives=objectives,
        views={name: branch.view for name, branch in branches.items()},
        **({"reworded": worded} if worded else {}),
    )
    prompts = described_judge_prompts(rewards)
    return {**described, "rewards": rewards.weights, "code": code, **prompts}


def described_judge_prompts(rewards: Rewards) -> dict[str, Any]:
    """ "judge_prompts": name -> version, digest and text of each prompt that the rewards name; nothing without any."""
    named = (marker(function, "judge_prompts", ()) for function in rewards.functions.values())
    prompts = [judge_prompt(name) for name in sorted(set(chain(*named)))]
    told = {
        one.name: {"version": one.version, "digest": one.digest, "text": one.text}
        for one in prompts
    }
    return {JUDGE_PROMPTS: told} if told else {}


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
    lines = differences(old, json.loads(json.dumps(_known_to(old, new))))
    return [_explained(line) for line in lines]


def without_length(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings but for how long the run is."""
    return {**settings, "run": without(settings.get("run", {}), *LENGTH)}


def changed_arguments(old: Any, new: Any) -> list[str]:
    """Lines for the arguments of two command lines that differ, but for what is free to change.

    `old`, `new`: recipe, preset and arguments, as `config.json` keeps them. An argument that one of them does not have
    came or went with a version of mmrl, and says nothing.
    """
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return []
    if old.get("recipe") != new.get("recipe"):
        return [f"recipe: was {old.get('recipe')!r}, now {new.get('recipe')!r}"]
    before, after = (flat(record.get("arguments", {})) for record in (old, new))
    shared = [name for name in after if name in before and not _free(name)]
    changed = [name for name in shared if before[name] != after[name]]
    return [
        f"--{name.replace('_', '-')}: was {before[name]!r}, now {after[name]!r}"
        for name in changed
    ]


def short_name(configuration: Mapping[str, Any]) -> str:
    """Six characters that change with whatever makes another run of a command line; longer runs keep theirs.

    `configuration`: its recipe, and the arguments that somebody chose.
    """
    lasting = {
        name: value
        for name, value in flat(configuration["arguments"]).items()
        if value != {} and (not _free(name) or name in NAMED)
    }
    text = json.dumps([configuration["recipe"], lasting], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=3).hexdigest()


def flat(value: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested settings as one mapping, with dots in the names."""
    found: dict[str, Any] = {}
    for name, part in value.items():
        place = f"{at}{name}"
        found |= (
            flat(part, f"{place}.") if isinstance(part, Mapping) and part else {place: part}
        )
    return found


def _free(name: str) -> bool:
    return any(
        name.startswith(one) if one.endswith(".") else name == one for one in FREE_ARGUMENTS
    )


def _known_to(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """New settings but for those that nobody wrote down in the old ones."""
    known = dict(new) if JUDGE_PROMPTS in old else without(new, JUDGE_PROMPTS)
    for part, names in LATER.items():
        if isinstance(known.get(part), Mapping) and isinstance(old.get(part), Mapping):
            unknown = [name for name in names if name not in old[part]]
            known[part] = without(known[part], *unknown)
    return known


def _explained(line: str) -> str:
    """A difference with its meaning."""
    for start, meaning in MEANINGS.items():
        if line.startswith(start):
            return f"{line} ({meaning})"
    return line
