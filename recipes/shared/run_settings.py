"""What a run was started with, for whoever measures it: data, style, rewards, limits, from its `config.json`."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from mmrl.recipes.shared.configuration import rebuilt
from mmrl.training.door import read_record

OF_RUN = "run"
"""Name of the preset that a run stands for."""
TAKEN = ("data", "reward", "sampling", "load", "video_root", "clips", "asking", "mix")
"""Arguments that a recipe and an evaluation call the same."""
OF_ROWS = ("split", "subset", "limit", "heldout", "columns", "image_root")
"""Fields of `Data` that belong to the rows a run was trained on; with other rows they mean nothing."""


def values_of_run(
    folder: Path, main: Callable[..., Any], dataset: str | None
) -> dict[str, Any] | None:
    """Arguments of the evaluation `main` as the run in a folder has them; None for a folder that is no run.

    `dataset`: other rows that are asked for. Raises ValueError for a run that says too little.
    """
    stored = stored_settings(folder)
    if stored is None:
        return None
    recipe = stored.get("recipe")
    known = recipe["arguments"] if recipe else {}
    if "data" not in known and dataset is None:
        whose = f"of the recipe {recipe['recipe']!r}" if recipe else "not from a command line"
        why = "makes its own questions" if recipe else "has kept no data path and no style"
        raise ValueError(
            f"The run in {folder} is {whose} and {why}, so say what to ask: --dataset FILE --data.style STYLE."
        )
    if not known:
        return None
    hints = typing.get_type_hints(main)
    values = {
        name: rebuilt(hints[name], known[name], name)
        for name in TAKEN
        if name in known and name in hints
    }
    if dataset is not None:
        return _for_other_rows(values)
    run: Mapping[str, Any] = known["run"]
    own = {"dataset": known["dataset"], "heldout_of": run["seed"], "seed": run["seed"]}
    # A run without evaluations is measured on as many as usual.
    return {
        **values,
        **own,
        **({"prompts": run["eval_prompts"]} if run["eval_prompts"] else {}),
    }


def stored_settings(folder: Path) -> dict[str, Any] | None:
    """The `config.json` of a run; None for a model's folder, whose file of that name is another thing."""
    record = read_record(folder / "config.json", "the settings of the run are not known")
    return record if record is not None and {"run", "settings"} <= record.keys() else None


def _for_other_rows(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without what belongs to the run's own rows."""
    values = {name: value for name, value in values.items() if name != "mix"}
    data = values.get("data")
    if not is_dataclass(data) or isinstance(data, type):
        return dict(values)
    plain = {name: getattr(type(data)(), name) for name in OF_ROWS}
    return {**values, "data": replace(data, **plain)}
