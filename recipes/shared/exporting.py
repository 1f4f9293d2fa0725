"""`mmrl export RUN`: the model of a run as a Hugging Face folder of its own, with an adapter merged if that is asked.

A run that was stopped is exported from its newest whole checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mmrl.ground.outputs import refuse_place
from mmrl.ground.printable import printable, show, tell
from mmrl.model.quiet import quiet_libraries
from mmrl.recipes.shared.launch import USER_ERRORS
from mmrl.recipes.shared.opening import Load, open_policy
from mmrl.training.door import stored_settings

EXPORT_HELP = """usage: mmrl export RUN [--output FOLDER] [--merge]

The model of a run, finished or stopped, as a folder that transformers and vLLM load.

  --output FOLDER   where it is written, a folder that is not there yet (RUN/exported)
  --merge           fold a LoRA adapter, if there is one, into the weights; without it the adapter stays an adapter"""


def export(args: Sequence[str]) -> None:
    """Write the folder and say where it is; user errors end it with their message."""
    left, merge, output, run = list(args), False, None, None
    if not args or {"-h", "--help"} & set(args):
        show(EXPORT_HELP)
        return
    while left:
        given = left.pop(0)
        name, equals, value = given.partition("=")
        if given == "--merge":
            merge = True
        elif name == "--output" and (equals or left):
            output = Path(value if equals else left.pop(0))
        elif given.startswith("-") or run is not None:
            sys.exit(printable(f"mmrl export: {given!r} is not understood.\n\n{EXPORT_HELP}"))
        else:
            run = Path(given)
    if run is None:
        sys.exit(printable(f"mmrl export: name the run's folder.\n\n{EXPORT_HELP}"))
    try:
        quiet_libraries()
        show(str(exported(run, output or run / "exported", merge=merge)))
    except (*USER_ERRORS, OSError) as error:
        sys.exit(printable(f"mmrl export: {error}"))


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
    policy = open_policy(str(run), Load(device="cpu", dtype=_stored_type(run)))
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


def _stored_type(run: Path) -> str:
    """The number format in which the run kept its weights; float32 where it says none."""
    policy = (stored_settings(run) or {}).get("policy") or {}
    return str(policy.get("dtype", "float32")).removeprefix("torch.")
