"""`mmrl export RUN`: the model of a run as a Hugging Face folder of its own, with an adapter merged if that is asked.

A run that was stopped is exported from its newest whole checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mmrl.ground.outputs import refuse_place
from mmrl.ground.printable import printable, show, tell
from mmrl.model.quiet import quiet_libraries
from mmrl.recipes.shared.launch import USER_ERRORS
from mmrl.recipes.shared.opening import Load, open_policy
from mmrl.recipes.shared.pushing import FLAG, opened
from mmrl.training.door import stored_settings

EXPORT_HELP = """usage: mmrl export RUN [--output FOLDER] [--merge] [--push-to-hub OWNER/NAME [--public]]

The model of a run, finished or stopped, as a folder that transformers and vLLM load.

  --output FOLDER          where it is written, a folder that is not there yet (RUN/exported)
  --merge                  fold a LoRA adapter, if there is one, into the weights; without it the adapter stays one
  --push-to-hub OWNER/NAME also send it to that repository of the Hugging Face hub, which must not be there or be
                           empty; needs `hf auth login` or HF_TOKEN. Its card names paths of this computer.
  --public                 everybody may see that repository; without it it is private"""


def export(args: Sequence[str]) -> None:
    """Write the folder and say where it is; user errors end it with their message."""
    if not args or {"-h", "--help"} & set(args):
        show(EXPORT_HELP)
        return
    given = _read(args)
    try:
        quiet_libraries()
        # Before the export, which may take minutes: what the hub will not take should not cost them.
        target = opened(given.push, given.public) if given.push is not None else None
        folder = exported(given.run, given.output or given.run / "exported", merge=given.merge)
        show(str(folder))
        if target is not None:
            show(target.send(folder))
    except (*USER_ERRORS, OSError) as error:
        sys.exit(printable(f"mmrl export: {error}"))


@dataclass
class _Given:
    """The command line."""

    run: Path = Path()
    output: Path | None = None
    push: str | None = None
    merge: bool = False
    public: bool = False


def _read(args: Sequence[str]) -> _Given:
    """The command line; what is wrong with it ends the command."""
    left, given, named = list(args), _Given(), False
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if word in ("--merge", "--public"):
            setattr(given, word.removeprefix("--"), True)
        elif name in ("--output", FLAG) and (equals or left):
            value = value if equals else left.pop(0)
            if name == FLAG:
                given.push = value
            else:
                given.output = Path(value)
        elif word.startswith("-") or named:
            _refuse(f"{word!r} is not understood.")
        else:
            given.run, named = Path(word), True
    if not named:
        _refuse("name the run's folder.")
    if given.public and given.push is None:
        _refuse(f"--public goes with {FLAG} OWNER/NAME.")
    return given


def _refuse(why: str) -> NoReturn:
    sys.exit(printable(f"mmrl export: {why}\n\n{EXPORT_HELP}"))


def exported(run: Path, output: Path, *, merge: bool) -> Path:
    """Write the model of a run into a new folder, which is returned. Raises ValueError."""
    if not run.is_dir():
        raise ValueError(f"There is no run in {run}; name the folder that --run.output named.")
    refuse_place(output, "--output")
    if output.exists():
        raise ValueError(
            f"--output {output} is there already; name a folder that is not, nothing is overwritten."
        )
    # The CPU's memory is the larger one, and nothing is computed but the sum of a merge.
    policy = open_policy(str(run), Load(device="cpu", dtype=stored_type(run)))
    if merge and not policy.has_adapter:
        tell(
            f"{run} has no adapter to merge: all weights were trained, and are written as they are."
        )
        merge = False
    policy.save(output, merge=merge, card=_card(run, merge))
    return output


def _card(run: Path, merge: bool) -> str:
    """The card of the run's model, for what is exported; empty for a run that was stopped and has none yet."""
    file = run / "model" / "README.md"
    card = file.read_text(encoding="utf-8") if file.is_file() else ""
    return (
        card.replace("library_name: peft", "library_name: transformers", 1) if merge else card
    )


def stored_type(run: Path) -> str:
    """The number format in which the run kept its weights; float32 where it says none."""
    policy = (stored_settings(run) or {}).get("policy") or {}
    return str(policy.get("dtype", "float32")).removeprefix("torch.")
