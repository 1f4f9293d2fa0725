"""`mmrl choices ROWS --output FILE`: rows with preferred answers as choices, with an audit of what gives them away.

    mmrl choices preferences.jsonl --output choices.jsonl --audit audit.json
    python -m recipes.vmr 7b --dataset choices.jsonl --no-convert

A line of the output holds all columns of the row, and `problem` (what is asked), `answer` (the letter of the chosen
answer), `option_texts`, `id`. Duplicates are left out, and so is a row that contradicts an earlier one. Pictures inside
the file cannot be written as text: such rows are converted as they are read, without this step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.rows.choice_audit import Audit, Row, audited, key_of
from mmrl.data.rows.choices import VMR, choice_of
from mmrl.data.rows.columns import ColumnMap, cell_at
from mmrl.data.rows.sources import open_table
from mmrl.ground.faults import Fault
from mmrl.ground.printable import printable, show
from mmrl.ground.seeds import digest
from mmrl.ground.tables import Table

DUPLICATE, CONTRADICTION = "duplicate", "contradicts an earlier row"


def main(args: Sequence[str]) -> None:
    """The command line; what is wrong with it or with the rows ends it with a message."""
    given = _parser().parse_args(list(args))
    try:
        vmr = VMR(given.chosen, given.rejected, given.options, given.longest, given.ratio)
        output = Path(given.output)
        if output.exists():
            raise ValueError(
                f"--output {output} is there already; move it away or name another file."
            )
        table = open_table(given.rows, given.split, given.subset)
        found = converted(table, vmr, given.seed, given.question)
        audit = found.audit()
        lines = [json.dumps(line, ensure_ascii=False) for line, _ in found]
        output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if given.audit:
            told = json.dumps(audit.as_json(), indent=1)
            Path(given.audit).write_text(f"{told}\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(printable(f"mmrl choices: {error}"))
    show(audit.told())
    show(f"Written to {output}. Next: python -m recipes.vmr 7b --dataset {output} --no-convert")
    base = table.base(0)
    if base is not None and base.resolve() != output.parent.resolve():
        show(f"Pictures lie beside the rows they come from: add --data.image-root {base}")


class Converted:
    """The lines of a file of choices, and what was left out."""

    def __init__(self) -> None:
        self.lines: list[tuple[dict[str, Any], Row]] = []
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Row]]:
        return iter(self.lines)

    def audit(self) -> Audit:
        """Of the lines. Raises ValueError without any."""
        return audited([row for _, row in self.lines], self.skipped)


def converted(table: Table, vmr: VMR, seed: int, question: str = "") -> Converted:
    """All rows of a table that can be choices. Raises ValueError for columns that are not there, or cannot be text."""
    names = table.columns()
    heavy = sorted(set(names) - table.light())
    if heavy:
        raise ValueError(
            f"{table.name} holds pictures in the file itself (columns {heavy}), which lines of text cannot; train on "
            "it directly: python -m recipes.vmr --dataset ROWS converts the same rows as it reads them."
        )
    asked = ColumnMap.of({"question": question} if question else None)
    columns = asked.resolve(names, table.name)
    for name in (vmr.chosen, vmr.rejected):
        if name not in names:
            raise ValueError(
                f"{table.name} has no column {name!r}; it has {names}. Name it by --chosen, --rejected."
            )
    if not columns["question"]:
        raise ValueError(
            f"{table.name} has no column with the request; it has {names}. Name it by --question."
        )
    found = Converted()
    seen: dict[Any, str] = {}
    for number, row in enumerate(table.scan()):
        try:
            if isinstance(row, Fault):
                raise row
            line, made = _line(row, columns, table.where(number), vmr, seed)
        except Fault as fault:
            found.skipped[fault.reason] += 1
            continue
        key = key_of(made)
        if key in seen:
            same = seen[key] == made.choice.chosen
            found.skipped[DUPLICATE if same else CONTRADICTION] += 1
            continue
        seen[key] = made.choice.chosen
        found.lines.append((line, made))
    return found


def _line(
    row: Mapping[str, Any],
    columns: Mapping[str, Sequence[str]],
    where: str,
    vmr: VMR,
    seed: int,
) -> tuple[dict[str, Any], Row]:
    request = cell_at(row, columns["question"][0])
    if isinstance(request, list) and request and isinstance(request[-1], Mapping):
        request = request[-1].get("content")
    if not isinstance(request, str) or not request.strip():
        raise Fault("no request", f"{where} holds none", "Give a text, or drop the row.")
    own = cell_at(row, columns["id"][0]) if columns["id"] else None
    # The content and not the place: the order of an answer must not change when rows above are taken out.
    name = (
        str(own)
        if own is not None
        else digest("choice", request, str(row.get(vmr.chosen)), size=8).hex()
    )
    choice = choice_of(request, row, name, vmr, seed)
    line = {
        **{
            key: value
            for key, value in row.items()
            if key not in (*columns["question"], *columns["answer"])
        },
        "id": name,
        "problem": choice.text,
        "option_texts": list(choice.options),
        "answer": choice.answer,
    }
    return line, Row(request, choice)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl choices",
        description="Turn requests with a preferred and a rejected answer into choices (VMR), and audit them.",
    )
    vmr = VMR()
    add = parser.add_argument
    add("rows", help="JSONL, JSON, parquet or CSV file, folder or hub name")
    add("--output", required=True, help="the JSONL file to write; never replaced")
    add("--audit", help="a JSON file for the audit")
    add(
        "--question",
        default="",
        help="column with the request (by convention: prompt, question, …)",
    )
    add("--chosen", default=vmr.chosen, help="column with the preferred answer")
    add(
        "--rejected",
        default=vmr.rejected,
        help="column with the rejected answer, or a list of them",
    )
    add("--options", type=int, default=vmr.options, help="answers to choose among")
    add("--longest", type=int, default=vmr.longest, help="most characters of an answer")
    add(
        "--ratio",
        type=float,
        default=vmr.ratio,
        help="longest over shortest answer, in characters",
    )
    add("--seed", type=int, default=0, help="of the order of the options")
    add("--split", help="split of a hub or saved data set")
    add("--subset", help="configuration of a hub data set")
    return parser
