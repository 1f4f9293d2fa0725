"""Tables whose columns mean something only together, turned into columns that the conventions know.

Video-R1 (arXiv 2503.21776, also its cold-start set): `path` is a picture or a clip by the row's `data_type`, `solution`
holds the answer inside <answer>. It becomes `images`, `videos` and a bare answer; the rest stays, so that
`problem_type` reaches the reward and `options` the question. The same files about clips only, with tokens counted per
frame, are read by `mmrl.data.grounding.formats.video_r1`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.rows.columns import AUTO, ColumnMap
from mmrl.ground.faults import Fault, shown
from mmrl.ground.tables import Row, Table

KINDS = {"image": "images", "video": "videos"}


def laid_out(table: Table, columns: ColumnMap) -> Table:
    """The table, or a view of it if its columns are those of a known layout and the user maps no media."""
    names = set(table.columns())
    untouched = columns.images == columns.videos == (AUTO,)
    has_own = names & {"image", "images", "video", "videos"}
    if {"data_type", "path"} <= names and untouched and not has_own:
        return VideoR1Table(table)
    return table


def bare_answer(value: Any) -> Any:
    """The inside of an answer that is a whole reply, <answer>…</answer> with or without <think>…</think> before it."""
    text = value.strip() if isinstance(value, str) else ""
    if not text.endswith("</answer>"):
        return value
    # Cut rather than matched by a pattern, which a long hostile text could keep busy for minutes.
    before, mark, inside = text.removesuffix("</answer>").rpartition("<answer>")
    before = before.strip()
    is_thought = before.startswith("<think>") and before.endswith("</think>")
    return inside.strip() if mark and (is_thought or not before) else value


class VideoR1Table:
    """Rows of Video-R1 with their medium in `images` or `videos`."""

    def __init__(self, inner: Table) -> None:
        self.name, self._inner = inner.name, inner

    def columns(self) -> list[str]:
        others = [name for name in self._inner.columns() if name != "path"]
        return [*others, *KINDS.values()]

    def light(self) -> frozenset[str]:
        return (self._inner.light() - {"path"}) | set(KINDS.values())

    def __len__(self) -> int:
        return len(self._inner)

    def scan(self) -> Iterator[Row | Fault]:
        for row in self._inner.scan():
            if isinstance(row, Fault):
                yield row
                continue
            try:
                yield _with_medium(row)
            except Fault as fault:
                yield fault

    def row(self, index: int, columns: Sequence[str]) -> Row:
        wanted = [name for name in columns if name not in KINDS.values()]
        asked = dict.fromkeys([*wanted, "path", "data_type"])
        return _with_medium(self._inner.row(index, list(asked)))

    def where(self, index: int) -> str:
        return self._inner.where(index)

    def base(self, index: int) -> Path | None:
        return self._inner.base(index)


def _with_medium(row: Row) -> Row:
    """The row with its path in the column of its kind. Raises `Fault` for a kind that is neither."""
    kind, path = row.get("data_type"), row.get("path")
    if not isinstance(kind, str) or kind not in KINDS:
        found = f"data_type is {shown(kind)}"
        raise Fault("bad row", found, f"It is one of {', '.join(KINDS)}.")
    if not isinstance(path, str) or not path.strip():
        found = f"data_type is {shown(kind)}, and path is {shown(path)}"
        raise Fault("missing media", found, "Give the path or drop the row.")
    media = {name: [] for name in KINDS.values()}
    media[KINDS[kind]] = [path]
    others = {name: value for name, value in row.items() if name != "path"}
    return {**others, **media}
