"""Whose run a checkpoint is, and whether the run that is started now may go on with it.

A checkpoint carries the id of its run and all settings, so that nothing depends on files beside it: a `config.json`
that is gone or torn is written again, and two runs never share a folder. Among the settings are digests of the data
(`mmrl.ground.contents`) and of the user's functions (`mmrl.ground.source_digest`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl.ground.contents import contents
from mmrl.ground.source_digest import code_digest
from mmrl.training.tracking import OutputError, describe_prompts, differences, environment
from mmrl.types import Prompts

MARKER = ".mmrl.json"
"""The file that says that a folder is ours, and whose run it holds."""
MEANINGS = {
    "prompts.texts": "questions, answers or other columns changed",
    "prompts.media": "pictures or clips changed",
    "prompts.order": "rows moved or changed",
    "code.": "the code of this function, or what it reads, changed",
}
"""Beginning of a setting's name -> what a difference means, where the values say nothing to a person."""


def described_prompts(prompts: Prompts) -> dict[str, Any]:
    """Class, size and plain fields of a collection of prompts, and digests of what it holds."""
    return {**describe_prompts(prompts), **contents(prompts)}


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


def run_id(folder: Path) -> str:
    """The id of the run in a folder, from its marker or its settings; a new one if there is none."""
    return known_id(folder) or uuid.uuid4().hex


def known_id(folder: Path) -> str | None:
    """The id that the files beside the checkpoints tell; None if none can be read."""
    for name, key in ((MARKER, "id"), ("config.json", "run")):
        found = _readable(folder / name).get(key)
        if isinstance(found, str):
            return found
    return None


def has_config(folder: Path) -> bool:
    """Is there a `config.json` that can be read?"""
    return "settings" in _readable(folder / "config.json")


def write_config(folder: Path, identity: str, settings: Mapping[str, Any]) -> None:
    """Write the settings down for people, and for tools that look at runs."""
    config = {"run": identity, "settings": settings, "environment": environment()}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Settings but for those that a continued run may change."""
    return {name: value for name, value in settings.items() if name not in names}


def refuse_other_run(
    folder: Path, state: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raise OutputError if a checkpoint's numbers belong to another run, or to one with other settings."""
    beside = known_id(folder)
    if beside is not None and beside != state["run"]:
        raise OutputError(
            f"The checkpoints in {folder} belong to another run ({state['run']}) than the files beside them "
            f"({beside}). Two runs are never mixed: move the ones that do not belong here away, or choose another "
            "--run.output."
        )
    # As they would look in the file.
    changed = differences(state["settings"], json.loads(json.dumps(settings)))
    if changed:
        told = "\n  ".join(_explained(line) for line in changed)
        raise OutputError(
            f"{folder} holds an unfinished run with other settings:\n  {told}\n"
            "Use the old settings, data and code to continue it, or --run.overwrite to start anew, or another "
            f"--run.output; there, --model {folder} begins with its weights."
        )


def _readable(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it is gone or torn, which costs only itself."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _explained(line: str) -> str:
    """A difference with its meaning."""
    for start, meaning in MEANINGS.items():
        if line.startswith(start):
            return f"{line} ({meaning})"
    return line
