"""`mmrl check RECIPE …`: would a run with these arguments start? Settings, model files, rows, output and memory.

The recipe runs as it is until training would begin, with a model without weights, and rows are read and encoded as in
training. Nothing is written, nothing is trained. Exit code 0 if a run would start, 1 with the reason if not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.ground.faults import BadRow
from mmrl.ground.outputs import refuse_overwriting, refuse_place
from mmrl.ground.printable import printable, show
from mmrl.ground.progress import busy
from mmrl.ground.scratch import temporary_folder
from mmrl.model.quiet import quiet_libraries
from mmrl.recipes.shared.configuration import Configuration
from mmrl.recipes.shared.domains import first_of_others, lines_of
from mmrl.recipes.shared.launch import (
    USER_ERRORS,
    Preset,
    look_ahead,
    placed,
    resolved,
    take_flag,
)
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.recipes.shared.planning import refuse_unfit
from mmrl.recipes.shared.previewing import built, reasons, taken, without_stages
from mmrl.training.door import RUN, stored_settings
from mmrl.training.run import Run

ROWS, MOST = 64, 100_000
"""Rows that are read and encoded by default, and at most."""
SHOWN = 5
"""Reasons of skipped rows that are printed."""


def check(main: Callable[..., Any], presets: Mapping[str, Preset], argv: Sequence[str]) -> None:
    """Check a recipe's command line, and say line by line what was found; user errors end it with their message."""
    args = list(argv)
    try:
        rows = _rows(take_flag(args, "rows"))
        asked = placed(resolved(main, presets, args))
        quiet_libraries()
        for line in checked(main, asked, rows):
            show(line)
    except (*USER_ERRORS, BadRow, OSError) as error:
        sys.exit(printable(f"mmrl check: {error}"))
    show("A run with these arguments would start.")


def checked(main: Callable[..., Any], asked: Configuration, rows: int) -> Iterator[str]:
    """One line for each thing that is in order, cheapest first. Raises ValueError and others for what is not."""
    look_ahead(asked.arguments)
    yield f"settings  {asked.recipe} {asked.preset}"
    run = asked.arguments.get("run")
    if isinstance(run, Run):
        yield f"output    {_output(run)}"
    model = str(asked.arguments.get("model", ""))
    refuse_unfit(asked)
    yield f"memory    {'the tiny model fits anywhere' if model == EMBEDDED else 'no objection'}"
    yield f"model     {model}: {_weights(model)}"
    yield from _data(main, asked, rows)


def _output(run: Run) -> str:
    """What a run would find where it writes. Raises `OutputError` for a place it may not use."""
    refuse_place(run.folder, RUN.output)
    if run.overwrite:
        refuse_overwriting(run.folder, RUN)
        return f"{run.folder}, what an old run wrote there is deleted first"
    if stored_settings(run.folder) is not None:
        return f"{run.folder} holds a run, which is continued if its settings are these"
    return f"{run.folder}"


def _weights(model: str) -> str:
    """What is known of a model's weights without reading them. Raises ValueError for a folder that has none."""
    folder = Path(model)
    if not folder.is_dir():
        return "made on the spot" if model == EMBEDDED else "by its name on the hub"
    if any((folder / name).is_dir() for name in ("model", "checkpoints")):
        return "the result of a run"
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not files:
        raise ValueError(
            f"The model folder {model} holds no weights (*.safetensors); copy all files of the model into it, or give "
            "another --model."
        )
    size = sum(file.stat().st_size for file in files) / 2**30
    return f"{len(files)} files of weights, {size:.2f} GiB"


def _data(main: Callable[..., Any], asked: Configuration, rows: int) -> Iterator[str]:
    """Rows as training would take them. Raises BadRow or ValueError where none can be used."""
    with temporary_folder("check") as scratch:
        arguments, notes = without_stages(asked, scratch / "run")
        parts = built(main, arguments, asked.recipe)
        parts.supply.log = scratch / "skipped.jsonl"
        with busy("Reading rows"):
            prompts = taken(parts, rows)
            prompts += first_of_others(parts.supply.prompts, prompts)
            lengths = [len(parts.policy.encode(prompt).ids) for prompt in prompts]
        skipped = [*parts.left_out.reasons(), *reasons(scratch / "skipped.jsonl")]
        parts.rewards.close()
    size = parts.supply.prompts.size
    whole = "endless data" if size is None else f"{size} rows"
    told = f"{len(prompts)} of {whole} read, longest prompt {max(lengths)} tokens"
    several = lines_of(parts.supply.prompts)
    named = f"{len(several)} data sets" if several else asked.arguments.get("dataset", "")
    yield f"data      {named}: {told}"
    yield from (f"          {line}" for line in several)
    yield f"rewards   {', '.join(f'{w:g} {name}' for name, w in parts.rewards.weights.items())}"
    if skipped:
        yield f"skipped   {len(skipped)} rows cannot be used:"
        yield from (f"          {reason}" for reason in skipped[:SHOWN])
    yield from (f"not seen  {note}" for note in notes)


def _rows(given: str | None) -> int:
    if given is None:
        return ROWS
    if not given.isdigit() or not 1 <= int(given) <= MOST:
        raise ValueError(f"--rows is {given!r}; it must be a number from 1 to {MOST}.")
    return int(given)
