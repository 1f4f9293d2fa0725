"""Which column means what: an explicit map, or the names that EasyR1, TRL and plain data sets use.

Recognised by itself, first name wins (`CONVENTIONS`): EasyR1 and PAPO_ViRL39K (`problem` or `prompt`, `answer`,
`images`, `videos`), TRL (`prompt` as text or chat, `image`/`images`, `solution`), plain (`question`, `answer`,
`image`), chats (`messages`, `conversations`), verl (`prompt`, `images`, `reward_model.ground_truth`). An explicit entry
wins over a convention. A name with dots leads into a nested column: `reward_model.ground_truth`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmrl.data.rows.containers import from_json

CONVENTIONS: Mapping[str, tuple[str, ...]] = {
    "question": ("problem", "question", "prompt", "query", "instruction"),
    "messages": ("messages", "conversations"),
    "answer": (
        *("answer", "solution", "ground_truth", "label", "answers", "final_answer"),
        "reward_model.ground_truth",
    ),
    "images": ("images", "image", "image_path", "image_paths", "img"),
    "videos": ("videos", "video", "video_path", "video_paths"),
    "frames": ("frames",),
    "times": ("times", "timestamps", "video_times"),
    "fps": ("fps",),
    "options": ("options", "choices"),
    "id": ("id", "qid", "question_id", "uid", "pid"),
}
AUTO = "auto"
WITHOUT_ANSWERS = (
    "mmrl pretext, which makes questions out of pictures and clips that have no answers"
)
"""Where a message sends whoever has none."""


@dataclass(frozen=True)
class ColumnMap:
    """Names of the columns to read. "auto" goes by convention, an empty name means that there is no such column."""

    question: str = AUTO
    """The question, as text or as a chat."""
    answer: str = AUTO
    """What the reward compares with; any JSON value."""
    images: tuple[str, ...] = (AUTO,)
    """One or more columns that hold an image or a list of images, in order."""
    videos: tuple[str, ...] = (AUTO,)
    """One or more columns that hold a video or a list of videos, in order."""
    messages: str = AUTO
    """A whole chat; used instead of the question."""
    id: str = AUTO
    """A name for the row that stays the same across versions of the file."""
    frames: str = AUTO
    """A clip as a list of images; needs `times` or `fps`."""
    times: str = AUTO
    """Seconds of each frame; a list of lists where a column of videos holds several clips as frames."""
    fps: str = AUTO
    """Frames per second of `frames`, where there are no times."""
    options: str = AUTO
    """Choices of the question, a list of texts; written below it unless it names them already."""

    def denies(self, field: str) -> bool:
        """Did the user say that there is no such column? Then `<image>` or `<video>` in a text is a word."""
        asked = getattr(self, field)
        return not any((asked,) if isinstance(asked, str) else asked)

    @staticmethod
    def of(columns: Mapping[str, Any] | ColumnMap | None) -> ColumnMap:
        """A map from a plain mapping field -> column name (or several for images and videos, or None for absent)."""
        if columns is None or isinstance(columns, ColumnMap):
            return columns or ColumnMap()
        known = [entry.name for entry in fields(ColumnMap)]
        for name in columns:
            if name not in known:
                raise ValueError(
                    f"columns (on the command line: --data.columns) names {name!r}, which is no field"
                    f"{_nearest(name, known)}; fields: {known}."
                )
        return ColumnMap(**{name: _entry(name, value) for name, value in columns.items()})

    def resolve(self, existing: Iterable[str], where: str) -> Mapping[str, tuple[str, ...]]:
        """Field -> columns that exist (none, one, or several for media). Raises ValueError for a missing one."""
        names = list(existing)
        found: dict[str, tuple[str, ...]] = {}
        for entry in fields(self):
            asked = getattr(self, entry.name)
            asked = (asked,) if isinstance(asked, str) else asked
            if asked == (AUTO,):
                known = [name for name in CONVENTIONS[entry.name] if root(name, names) in names]
                # The first only: a table with `problem` and `question` has one question under two names.
                found[entry.name] = tuple(known[:1])
                continue
            # An empty name says that there is no such column.
            found[entry.name] = tuple(name for name in asked if name)
            for name in found[entry.name]:
                if root(name, names) not in names:
                    raise ValueError(
                        f"{where} has no column {name!r} (asked for as {entry.name}){_nearest(name, names)}; "
                        f"it has {names}."
                    )
        return found


def root(name: str, names: Iterable[str]) -> str:
    """The column that a name with dots leads into; the name itself where the table has a column called so."""
    return name if name in names else name.partition(".")[0]


def cell_at(row: Mapping[str, Any], name: str) -> Any:
    """The value under a name, which may lead into nested columns; None if there is none."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for key in name.split("."):
        value = from_json(value) if isinstance(value, str) else value
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def missing_field(field: str, existing: Iterable[str], where: str) -> ValueError:
    """The error for a field that neither the map nor the conventions find."""
    names = list(existing)
    guesses: list[str] = []
    for known in CONVENTIONS[field]:
        guesses += difflib.get_close_matches(known, names, 1, 0.75)
    hint = f" Did you mean {guesses[0]!r}?" if guesses else ""
    drop = ""
    if field == "answer":
        drop = (
            f" If there is none: --data.columns {field}= (in Python columns={{'{field}': None}}), for a reward that "
            f"needs none; or {WITHOUT_ANSWERS}."
        )
    return ValueError(
        f"{where} has no column for the {field}: it has {names}, and looked for are {list(CONVENTIONS[field])}.{hint} "
        f"Name it with {mapping_flag(field, 'THE_COLUMN')}.{drop}"
    )


def mapping_flag(field: str, column: str) -> str:
    """How a column is mapped, on the command line and in Python."""
    return f"--data.columns {field}={column} (in Python columns={{'{field}': '{column}'}})"


def _entry(name: str, value: Any) -> Any:
    """A field's value: text, or a tuple for media."""
    many = name in ("images", "videos")
    if value is None:
        return () if many else ""
    names = (value,) if isinstance(value, str) else tuple(value)
    are_names = all(isinstance(each, str) for each in names)
    if not are_names or (len(names) != 1 and not many):
        allowed = "a column name or a list of them" if many else "a column name"
        raise ValueError(f"columns[{name!r}] is {value!r}; it must be {allowed}.")
    return names if many else names[0]


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
