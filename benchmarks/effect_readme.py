"""The column "miniature effect" of the recipes' README, filled in from the claims of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from effect_tables import Row, gap


def write_column(file: Path, rows: Sequence[Row]) -> None:
    """Replace the last cell of the line of each method that has rows; other lines stay."""
    lines = file.read_text(encoding="utf-8").splitlines()
    told = {row.method: effect([r for r in rows if r.method == row.method]) for row in rows}
    for name, text in told.items():
        places = [n for n, line in enumerate(lines) if names(line, name)]
        if len(places) != 1:
            raise SystemExit(
                f"{file} has {len(places)} lines whose recipe is {name}.py; there must be one."
            )
        cells = lines[places[0]].split(" | ")
        lines[places[0]] = " | ".join([*cells[:-1], f"{text} |"])
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def names(line: str, name: str) -> bool:
    """Is this the line of a table whose second cell begins with the recipe?"""
    cells = line.split(" | ")
    return (
        line.startswith("|")
        and len(cells) > 2
        and cells[1].startswith(f"[{name}.py]({name}.py)")
    )


def effect(rows: Sequence[Row]) -> str:
    """All claims of one method: what, by how much, and the verdict."""
    return "; ".join(f"{row.claim.text} ({gap(row.found)}): {row.verdict}" for row in rows)
