"""`mmrl preview RECIPE …`: a page of rows as a run with these arguments would see them, before anything is trained.

The recipe runs as it is until training would begin, with a model without weights and a scratch folder in the place of
its output. Stages that need a model (a supervised stage, a difficulty filter) are left out, and the page says so.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.ground.faults import BadRow
from mmrl.ground.outputs import refuse_file
from mmrl.ground.printable import printable, show, tell
from mmrl.ground.scratch import temporary_folder
from mmrl.model.quiet import quiet_libraries
from mmrl.recipes.shared.configuration import Configuration
from mmrl.recipes.shared.domains import first_of_others, lines_of
from mmrl.recipes.shared.launch import USER_ERRORS, Preset, resolved, take_flag
from mmrl.recipes.shared.preview_rows import as_text, shown_row
from mmrl.recipes.shared.rehearsal import built, without_stages
from mmrl.report.page import is_page, render, write_page
from mmrl.report.run_files import objects
from mmrl.training.dry import Parts
from mmrl.types import Prompt

ROWS, MOST = 8, 200
"""Rows of a page by default, and at most."""
OUTPUT = Path("preview.html")
SKIPPED = 200
"""Skipped rows that are listed."""


def preview(
    main: Callable[..., Any], presets: Mapping[str, Preset], argv: Sequence[str]
) -> None:
    """Write the page for a recipe's command line; user errors end it with their message."""
    args = list(argv)
    try:
        rows, output = _rows(take_flag(args, "rows")), Path(take_flag(args, "output") or OUTPUT)
        refuse_file(output, lambda page: is_page(page, "preview"), "preview of mmrl")
        asked = resolved(main, presets, args)
        quiet_libraries()
        count = write_preview(main, asked, rows, output, " ".join(argv))
    except (*USER_ERRORS, BadRow, OSError) as error:
        sys.exit(printable(f"mmrl preview: {error}"))
    show(f"{count} rows: {output}")


def write_preview(
    main: Callable[..., Any], asked: Configuration, rows: int, output: Path, command: str = ""
) -> int:
    """Write the page of a resolved command line; returns the number of rows on it. Raises ValueError."""
    began = time.monotonic()
    with temporary_folder("preview") as scratch:
        arguments, notes = without_stages(asked, scratch / "run")
        parts = built(main, arguments, asked.recipe)
        parts.supply.log = scratch / "skipped.jsonl"
        prompts = taken(parts, rows)
        others = first_of_others(parts.supply.prompts, prompts)
        if others:
            notes = [
                *notes,
                f"The last {len(others)} rows are the first of data sets that come later.",
            ]
        prompts += others
        shown = [shown_row(parts, prompt, prompts) for prompt in prompts]
        parts.rewards.close()
        skipped = [*parts.left_out.reasons(), *reasons(scratch / "skipped.jsonl")]
        skipped += reasons(scratch / "run" / "quarantine.jsonl")
    page = render(
        "preview.html",
        kind="preview",
        title=f"{asked.recipe} {asked.preset} – mmrl preview",
        heading=f"{asked.recipe} {asked.preset}",
        facts=_facts(asked, parts, command),
        notes=notes,
        rows=shown,
        skipped=skipped[:SKIPPED],
        skipped_count=len(skipped),
        weights=parts.rewards.weights,
        settings=asked.yaml(),
    )
    write_page(output, page)
    tell(f"Nothing was trained; made in {time.monotonic() - began:.0f} s.")
    return len(shown)


def _rows(given: str | None) -> int:
    if given is None:
        return ROWS
    if not given.isdigit() or not 1 <= int(given) <= MOST:
        raise ValueError(f"--rows is {given!r}; it must be a number from 1 to {MOST}.")
    return int(given)


def taken(parts: Parts, rows: int) -> list[Prompt]:
    """The first prompts of the training, different ones: a small data set is not shown twice."""
    size = parts.supply.prompts.size
    wanted = rows if size is None else min(rows, size)
    found: dict[str, Prompt] = {}
    while len(found) < wanted and (size is None or parts.supply.position < size):
        prompt = parts.supply.take(1)[0]
        found.setdefault(prompt.id, prompt)
    return list(found.values())


def reasons(file: Path) -> list[str]:
    """What a log of skipped rows or of media in quarantine says."""
    found = []
    for row in objects(file)[0]:
        where = row.get("where", row.get("path"))
        reason = as_text(row.get("reason", ""))
        found.append(reason if where is None else f"{as_text(where)}: {reason}")
    return found


def _facts(asked: Configuration, parts: Parts, command: str) -> list[tuple[str, str]]:
    policy, prompts = parts.policy, parts.supply.prompts
    size = "endless" if prompts.size is None else f"{prompts.size} rows"
    several = lines_of(prompts)
    facts = {
        "command": f"mmrl preview {asked.recipe} {command}",
        "processor": f"{policy.description['source']} ({policy.processing.family.name})",
        "data": "; ".join(several) or f"{asked.arguments.get('dataset', '')}, {size}",
        "branches": ", ".join(parts.branches) or "none",
        "reward": " + ".join(f"{w:g} {name}" for name, w in parts.rewards.weights.items()),
    }
    if policy.processing.tags.added and policy.processing.tags.mode == "auto":
        tags = " ".join(policy.processing.tags.tokens) or "none"
        facts["tags as tokens"] = f"{tags}; a run also looks at the weights"
    return list(facts.items())
