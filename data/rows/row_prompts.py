"""Prompts over the rows of a table: what a row must hold, when it is checked, and what happens to bad ones.

Loading checks what is cheap for every row (question, answer, placeholders, existence of files) and decodes nothing;
pixels are decoded when an index is read. A bad row is a `BadRow` with file, line, reason and remedy. With
`on_bad="stop"` the first one found while loading ends it; with "skip" such rows are left out, counted by reason in
`skipped` and the first ones kept in `faults`. What only decoding can show (a truncated picture) raises `BadRow` from
`prompts[index]` in both modes and is counted; iteration goes on or stops by the same choice; `check()` finds it
beforehand. Where media are embedded as bytes, placeholders are checked when a row is read, not at load.

1. A row without media is text only if its media column is a list or has a plural name (`images`), or the key is absent;
   an empty single cell (`image` is None or "") is a missing medium unless another column of the row gives one.
2. A row whose chat ends with an assistant turn has that turn as its answer, if there is no answer column; its text is
   `extra["target"]` either way.
3. Ids come from the data set's id column (repeated ids get the row number appended), else from a hash of the source's
   name, the row number and the question, so that they are equal on every machine.
4. Embedded bytes are read for the mapped columns only; all other columns without bytes go to `extra`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmrl.data.rows.columns import ColumnMap, missing_field
from mmrl.data.rows.images import check_image, read_image
from mmrl.data.rows.row_clips import FrameList, read_video, video_path
from mmrl.data.rows.templates import PLAIN, Template, Visuals, question_chat, row_chat
from mmrl.ground.contents import Content, digest
from mmrl.ground.faults import BadRow, Fault, shown
from mmrl.ground.tables import Row, Table
from mmrl.types import Media, Prompt, Prompts

OnBad = Literal["skip", "stop"]
KEPT_FAULTS = 10_000
"""How many faults of skipped rows are kept in full."""


class RowPrompts(Prompts):
    """Prompts over the rows of a table. Made by `load_prompts`."""

    def __init__(
        self,
        table: Table,
        template: Template = PLAIN,
        columns: Mapping[str, Any] | ColumnMap | None = None,
        image_root: str | Path | None = None,
        on_bad: OnBad = "skip",
        *,
        limit: int | None = None,
        clip: Mapping[str, Any] | None = None,
    ) -> None:
        if on_bad not in ("skip", "stop"):
            raise ValueError(f"on_bad is {on_bad!r}; it must be 'skip' or 'stop'.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1, or None for all rows.")
        self.source, self.on_bad = table.name, on_bad
        self.skipped: dict[str, int] = {}
        self.faults: list[BadRow] = []
        self._table, self._template, self._clip = table, template, dict(clip or {})
        self._root = None if image_root is None else Path(image_root).expanduser()
        self._bad: set[int] = set()
        self._repeated: set[int] = set()
        self._settle_columns(ColumnMap.of(columns))
        # Empty while the rows are checked: the summary in an error message asks for their number.
        self._rows: Sequence[int] = ()
        self._rows = self._usable_rows(limit)
        # What is met later, while rows are decoded, is told where it is met.
        self._refused, self._at_loading = list(self.faults), len(self._bad)
        self.size: int | None = len(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Prompt:
        """The prompt at this index, decoded. Raises `BadRow`, and IndexError beyond the end."""
        if not 0 <= index < len(self._rows):
            raise IndexError(
                f"Index {index} lies outside {self.source} with {len(self._rows)} usable rows."
            )
        row_number = self._rows[index]
        try:
            return self._prompt(row_number)
        except Fault as fault:
            placed = fault.at(self._table.where(row_number))
            self._count(row_number, placed)
            raise placed from None

    def content(self, index: int) -> Content:
        """Digests of what a prompt asks and shows, without decoding it (`mmrl.ground.contents`). Raises `BadRow`."""
        number = self._rows[index]
        row = self._table.row(number, self._wanted)
        messages, visuals, label = self._chat(row)
        extra = {name: row[name] for name in self._extra if row.get(name) is not None}
        text = digest((messages, self._answer(row, label), extra, label))
        return text, digest(list(visuals.used), self._base(number), files=True)

    def __iter__(self) -> Iterator[Prompt]:
        """All prompts in order; rows that turn out bad are left out, or stop it, by `on_bad`."""
        for index in range(len(self._rows)):
            try:
                prompt = self[index]
            except BadRow:
                if self.on_bad == "stop":
                    raise
                continue
            yield prompt

    def check(self, limit: int | None = None) -> list[BadRow]:
        """Decode the first `limit` prompts (all if None) and return the faults found; with "stop", raise the first."""
        found: list[BadRow] = []
        count = len(self._rows) if limit is None else min(limit, len(self._rows))
        for index in range(count):
            try:
                self[index]
            except BadRow as fault:
                if self.on_bad == "stop":
                    raise
                found.append(fault)
        return found

    def left_out(self) -> Sequence[BadRow]:
        """Rows that were found bad at loading, and how many more there were than are kept."""
        more = self._at_loading - len(self._refused)
        if not more:
            return self._refused
        return [*self._refused, BadRow(f"{self.source}: {more} more rows that cannot be used")]

    def summary(self) -> str:
        """One line: rows, and skipped rows by reason."""
        line = f"{self.source}: {len(self._rows)} prompts"
        if not self.skipped:
            return line
        reasons = [f"{count} {reason}" for reason, count in sorted(self.skipped.items())]
        return f"{line}; bad rows: {', '.join(reasons)}"

    def _settle_columns(self, columns: ColumnMap) -> None:
        """Decide which columns are read; refuse tables without rows, question or answer."""
        if not len(self._table):
            raise ValueError(f"{self.source} is empty; it must hold at least one row.")
        names = self._table.columns()
        self._fields = columns.resolve(names, self.source)
        media = [*self._fields["images"], *self._fields["videos"], *self._fields["frames"]]
        has_chat = bool(self._fields["messages"])
        has_question = bool(self._fields["question"])
        # A folder of pictures, perhaps by class, asks nothing; the template may then do it.
        only_media = set(names) <= {*media, "label"} or columns.question == ""
        may_ask = has_chat or has_question or only_media
        if names and not may_ask and self._template.asks:
            raise missing_field("question", names, self.source)
        # Whoever names no question (`bare`) or says that there is no answer is taken at their word.
        bare = not has_chat and not has_question
        answered = has_chat or self._fields["answer"] or columns.answer == ""
        if names and not answered and not bare:
            raise missing_field("answer", names, self.source)
        self._asks_answer = not bare and columns.answer != ""
        light = self._table.light()
        # Embedded media are not read at load; what depends on them is then checked row by row, later.
        self._decided = all(name in light for name in media)
        mapped = {name for chosen in self._fields.values() for name in chosen}
        self._wanted = [name for name in names if name in light or name in mapped]
        self._extra = [name for name in names if name in light and name not in mapped]

    def _usable_rows(self, limit: int | None) -> Sequence[int]:
        """Numbers of the rows that pass the cheap checks, at most `limit`."""
        usable: list[int] = []
        seen: set[str] = set()
        for number, row in enumerate(self._table.scan()):
            if limit is not None and len(usable) == limit:
                break
            try:
                if isinstance(row, Fault):
                    raise row
                self._check_row(row, number)
            except Fault as fault:
                placed = fault.at(self._table.where(number))
                if self.on_bad == "stop":
                    raise placed from None
                self._count(number, placed)
                continue
            name = _cell(row, self._fields["id"])
            if name is not None:
                if str(name) in seen:
                    self._repeated.add(number)
                seen.add(str(name))
            usable.append(number)
        if not usable:
            raise ValueError(
                f"{self.source} has no usable row ({self.summary()}). The first: {self.faults[0]}"
            )
        return usable

    def _check_row(self, row: Row, number: int) -> None:
        """All that can be known without decoding or reading embedded bytes. Raises `Fault`."""
        if self._fields["answer"]:
            self._answer(row, None)
        if not self._decided:
            # A chat may hold its media, so that it cannot be judged without them; a text can.
            if not self._fields["messages"]:
                self._question(row)
            return
        _, visuals, label = self._chat(row)
        self._answer(row, label)
        base = self._base(number)
        for kind, cell in visuals.used:
            if kind == "image":
                check_image(cell, base)
            elif isinstance(cell, FrameList):
                cell.check(base)
            else:
                video_path(cell, base)

    def _prompt(self, number: int) -> Prompt:
        """Read and decode one row. Raises `Fault`."""
        row = self._table.row(number, self._wanted)
        messages, visuals, label = self._chat(row)
        base = self._base(number)
        media = tuple(self._medium(kind, cell, base) for kind, cell in visuals.used)
        extra = {name: row[name] for name in self._extra if row.get(name) is not None}
        if label is not None:
            extra["target"] = label
        name, answer = self._id(row, number), self._answer(row, label)
        return Prompt(name, messages, media, answer, self.source, extra)

    def _chat(self, row: Row) -> tuple[tuple[Mapping[str, Any], ...], Visuals, str | None]:
        """The row's chat, its media in order, and its own last assistant turn."""
        images = _cells(row, self._fields["images"])
        videos = _cells(row, self._fields["videos"])
        frames = _cell(row, self._fields["frames"])
        if frames:
            times, fps = _cell(row, self._fields["times"]), _cell(row, self._fields["fps"])
            videos.append(FrameList.of(frames, times, fps))
        if not images and not videos:
            _refuse_empty(row, (*self._fields["images"], *self._fields["videos"]))
        has_videos = bool(self._fields["videos"] or self._fields["frames"])
        visuals = Visuals(images, videos, bool(self._fields["images"]), has_videos)
        others = {name: row.get(name) for name in self._extra}
        turns = _cell(row, self._fields["messages"])
        question = turns if turns is not None else self._question(row)
        if isinstance(question, str):
            messages = question_chat(question, self._template, others, visuals)
            return messages, visuals, None
        messages, label = row_chat(question, self._template, others, visuals)
        return messages, visuals, label

    def _question(self, row: Row) -> Any:
        """The question: text or a chat. Empty only where the table has none."""
        if not self._fields["question"]:
            if self._fields["messages"]:
                fix = "Give a chat or drop the row."
                raise Fault("missing question", "the chat is empty", fix)
            return ""
        question = _cell(row, self._fields["question"])
        if isinstance(question, list) and question:
            return question
        if not isinstance(question, str) or not question.strip():
            found = f"column {self._fields['question'][0]!r} holds {shown(question)}"
            raise Fault("missing question", found, "Give a text or a chat, or drop the row.")
        return question

    def _answer(self, row: Row, label: str | None) -> Any:
        """The answer: the column's value, else the chat's last assistant turn. Raises `Fault` if it says nothing."""
        columns = self._fields["answer"]
        answer = _cell(row, columns) if columns else label
        # Only nan differs from itself: an empty number, as tables write it. 0 and False are answers.
        empty = answer is None or answer == [] or answer == {} or answer != answer
        if isinstance(answer, str):
            empty = not answer.strip()
        if empty and self._asks_answer:
            column = columns[0] if columns else "the chat"
            found = f"{column!r} holds {shown(answer)}"
            raise Fault("answer without text", found, "Give an answer or drop the row.")
        return None if empty else answer

    def _id(self, row: Row, number: int) -> str:
        name = _cell(row, self._fields["id"])
        if name is not None and str(name).strip():
            return f"{name}#{number}" if number in self._repeated else str(name)
        text = repr(_cell(row, self._fields["question"] or self._fields["messages"]))
        # Half a surrogate pair, as broken scrapes have it, must give an id and not an error.
        content = f"{self.source}\x1f{number}\x1f{text}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        return f"{self.source}:{digest}"

    def _base(self, number: int) -> Path | None:
        return self._root if self._root is not None else self._table.base(number)

    def _medium(self, kind: str, cell: Any, base: Path | None) -> Media:
        """Decode one medium."""
        if kind == "image":
            return Media(read_image(cell, base))
        if isinstance(cell, FrameList):
            return cell.decode(base)
        return read_video(video_path(cell, base), self._clip)

    def _count(self, number: int, fault: Fault) -> None:
        """Count a bad row once."""
        # Every epoch meets it again.
        if number in self._bad:
            return
        self._bad.add(number)
        self.skipped[fault.reason] = self.skipped.get(fault.reason, 0) + 1
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(fault)


def _cell(row: Row, columns: Sequence[str]) -> Any:
    """The value of a field's only column, or None."""
    return row.get(columns[0]) if columns else None


def _cells(row: Row, columns: Sequence[str]) -> list[Any]:
    """All media cells of a row, lists opened, empty columns left out. Raises `Fault` for a hole in a list."""
    cells: list[Any] = []
    for name in columns:
        value = row.get(name)
        if isinstance(value, list | tuple):
            # Refused, not left out: the placeholders of the text would point at other media.
            if any(_is_empty(cell) for cell in value):
                found = f"column {name!r} holds {shown(value)}"
                raise Fault("missing media", found, "Give every medium of the list.")
            cells.extend(value)
        elif not _is_empty(value):
            cells.append(value)
    return cells


def _refuse_empty(row: Row, columns: Sequence[str]) -> None:
    """Raise if a column for a single medium is there but empty."""
    for name in columns:
        if name not in row:
            continue
        # `images`, or a list: how many there are is up to the row, and none is a text-only row.
        many = name.endswith("s") or isinstance(row[name], list | tuple)
        if not many:
            fix = "Give the medium or drop the row; a text-only row has an empty list, or no such key."
            raise Fault("missing media", f"column {name!r} holds {shown(row[name])}", fix)


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str | bytes) and not cell.strip())
