"""Prompts over the rows of a table: what a row must hold, when it is checked, and what happens to bad ones.

Loading checks what is cheap for every row (question, answer, placeholders, existence of files) and decodes nothing;
pixels are decoded when an index is read. A bad row is a `BadRow` with file, line, reason and remedy. With
`on_bad="stop"` the first one found while loading ends it; with "skip" such rows are left out, counted by reason in
`skipped` and the first ones kept in `faults`. What only decoding can show (a truncated picture) raises `BadRow` from
`prompts[index]` in both modes and is counted; iteration goes on or stops by the same choice; `check()` finds it
beforehand. Where media are embedded as bytes, placeholders are checked when a row is read, not at load.

1. A row whose media columns are empty is a text row if its text has no placeholder; how many there are is said at the
   start. A hole in a list of media is a fault: the placeholders would point at other ones.
2. A row whose chat ends with an assistant turn has that turn as its answer, if there is no answer column; its text is
   `extra["target"]` either way.
3. Ids come from the data set's id column (repeated ids get the row number appended), else from a hash of the source's
   name, the row number and the question, so that they are equal on every machine.
4. Embedded bytes are read for the mapped columns only; all other columns without bytes go to `extra`.
5. Choices in a column of their own are written below the question, lettered, unless it has them or the template does.
6. Columns with media that nobody reads are named at the start (`mmrl.data.rows.census`).
7. A path that leads out of the data's folder (or `image_root`) is refused unless `allow_outside` is set.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mmrl.data.rows import census
from mmrl.data.rows.columns import WITHOUT_ANSWERS, ColumnMap, cell_at, missing_field, root
from mmrl.data.rows.containers import (
    chat_in_text,
    clips_in,
    is_empty,
    is_pixels,
    media_in,
    picture_in,
    turns_in,
)
from mmrl.data.rows.images import check_image, read_image
from mmrl.data.rows.layouts import bare_answer, laid_out
from mmrl.data.rows.options import with_options
from mmrl.data.rows.row_clips import FrameList, read_video, video_path
from mmrl.data.rows.templates import PLAIN, Template, Visuals, question_chat, row_chat
from mmrl.ground.contents import Content, digest
from mmrl.ground.faults import BadRow, Fault, refuse_half_characters, shown
from mmrl.ground.progress import Progress
from mmrl.ground.roots import Root
from mmrl.ground.tables import Row, Table
from mmrl.ground.time_limit import GivenUp
from mmrl.types import Media, Prompt, Prompts

OnBad = Literal["skip", "stop"]
KEPT_FAULTS = 10_000
"""How many faults of skipped rows are kept in full."""
NO_ANSWER = "answer without text"
"""Reason for a row that says nothing which a reward could compare with."""
UNFORESEEN = "unforeseen"
"""Reason for a row that raises what it should not."""


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
        allow_outside: bool = False,
        trusted: Sequence[Path] = (),
    ) -> None:
        if on_bad not in ("skip", "stop"):
            raise ValueError(f"on_bad is {on_bad!r}; it must be 'skip' or 'stop'.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1, or None for all rows.")
        asked = ColumnMap.of(columns)
        table = laid_out(table, asked)
        self.source, self.on_bad = table.name, on_bad
        self.skipped: dict[str, int] = {}
        self.faults: list[BadRow] = []
        self._table, self._template, self._clip = table, template, dict(clip or {})
        self._root = None if image_root is None else Path(image_root).expanduser()
        self._outside = {"allow_outside": allow_outside, "trusted": tuple(trusted)}
        self._bad: set[int] = set()
        self._renamed: dict[int, str] = {}
        self._settle_columns(asked)
        self._without_media = 0
        self._media: Counter[str] = Counter()
        # Empty while the rows are checked: the summary in an error message asks for their number.
        self._rows: Sequence[int] = ()
        self._rows = self._usable_rows(limit)
        # What is met later, while rows are decoded, is told where it is met.
        self._refused, self._at_loading = list(self.faults), len(self._bad)
        self.size: int | None = len(self._rows)
        for notice in self._notices():
            Progress.say(notice)

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
            with one_row():
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
        shown: list[Any] = list(visuals.used)
        # Other frames of the same file are other media.
        if self._clip and any(kind == "video" for kind, _ in visuals.used):
            shown.append(self._clip)
        return text, digest(shown, self._base(number).folder, files=True)

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
        """One line: rows, what they show as far as it is known without decoding, and skipped rows by reason."""
        line = f"{self.source}: {len(self._rows)} prompts{self._shows()}"
        if not self.skipped:
            return line
        reasons = [f"{count} {reason}" for reason, count in sorted(self.skipped.items())]
        # A picture that is there and cannot be decoded is met in its turn.
        so_far = " before any picture is decoded" if self._media or not self._decided else ""
        return f"{line}; bad rows{so_far}: {', '.join(reasons)}"

    def _shows(self) -> str:
        """What the rows show, in brackets, as far as it is known."""
        if not self._rows:
            return ""
        if not self._decided:
            return " (their media are looked at in their turn)"
        counted = [
            (self._media["image"], "picture", "pictures"),
            (self._media["video"], "clip", "clips"),
            (self._without_media, "asked as text alone", "asked as text alone"),
        ]
        told = [
            f"{count:,} {one if count == 1 else many}" for count, one, many in counted if count
        ]
        return f" ({', '.join(told)})"

    def _settle_columns(self, columns: ColumnMap) -> None:
        """Decide which columns are read; refuse tables without rows, question or answer."""
        if not len(self._table):
            raise ValueError(f"{self.source} is empty; it must hold at least one row.")
        names = self._table.columns()
        self._fields = columns.resolve(names, self.source)
        fields = ("images", "videos", "frames")
        media = [root(name, names) for field in fields for name in self._fields[field]]
        has_chat = bool(self._fields["messages"])
        has_question = bool(self._fields["question"])
        # A folder of pictures, perhaps by class, asks nothing; the template may then do it.
        only_media = set(names) <= {*media, "label"} or columns.question == ""
        may_ask = has_chat or has_question or only_media
        if names and not may_ask and self._template.asks:
            raise missing_field("question", names, self.source)
        # Whoever names no question (`bare`) or says that there is no answer is taken at their word.
        bare = self.asks_nothing = not has_chat and not has_question
        answered = has_chat or self._fields["answer"] or columns.answer == ""
        if names and not answered and not bare:
            raise missing_field("answer", names, self.source)
        self._asks_answer = not bare and columns.answer != ""
        light = self._table.light()
        mapped = {root(name, names) for chosen in self._fields.values() for name in chosen}
        # Embedded media are not read at load, in columns of their own or inside chats; what depends on them is then
        # checked row by row, later.
        asked = [
            root(name, names) for name in (*self._fields["messages"], *self._fields["question"])
        ]
        self._decided = all(name in light for name in (*media, *asked))
        self._chats_decided = all(name in light for name in asked)
        self._wanted = [name for name in names if name in light or name in mapped]
        choices = self._fields["options"]
        self._extra = [
            name for name in names if name in light and (name not in mapped or name in choices)
        ]
        unread = census.unread_media(self._table, mapped, self._root)
        self._unread = [one for one in unread if not columns.denies(one.field)]
        self._settle_placeholders(columns)

    def _settle_placeholders(self, columns: ColumnMap) -> None:
        """Decide what `<image>` and `<video>` mean, and what to say where they find no medium."""
        self._is_placeholder = {
            "image": not columns.denies("images"),
            "video": not columns.denies("videos") or bool(self._fields["frames"]),
        }
        self._remedies: dict[str, str] = {}
        for kind in ("image", "video"):
            mapped = self._fields[f"{kind}s"] or (kind == "video" and self._fields["frames"])
            if not mapped:
                self._remedies[kind] = census.remedy(kind, self._unread)

    def _notices(self) -> Iterator[str]:
        """What a person should know before training on these rows."""
        blind = self._decided and self._without_media == len(self._rows)
        yield from filter(None, [census.said(self._unread, self.source, blind)])
        if blind and all(self._is_placeholder.values()):
            yield f"{self.source}: no row shows a picture or a clip; the model reads text alone."
        if self._decided and not blind and self._without_media:
            count, rows = self._without_media, len(self._rows)
            yield f"{self.source}: {count} of {rows} rows show no picture or clip; they are asked as text."

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
                with one_row():
                    self._check_row(row, number)
            except Fault as fault:
                placed = fault.at(self._table.where(number))
                if self.on_bad == "stop":
                    raise placed from None
                self._count(number, placed)
                continue
            name = _cell(row, self._fields["id"])
            if name is not None:
                own = str(name)
                while own in seen:  # another row may already be called so
                    own = self._renamed[number] = f"{own}#{number}"
                seen.add(own)
            usable.append(number)
        if not usable:
            hint = f" Rows without answers are for {WITHOUT_ANSWERS}."
            raise ValueError(
                f"{self.source} has no usable row ({self.summary()}). The first: {self.faults[0]}"
                f"{hint if set(self.skipped) == {NO_ANSWER} else ''}"
            )
        return usable

    def _check_row(self, row: Row, number: int) -> None:
        """All that can be known without decoding or reading embedded bytes. Raises `Fault`."""
        refuse_half_characters(row)
        if self._fields["answer"]:
            self._answer(row, None)
        if not self._decided:
            # A chat may hold its media, so that it cannot be judged without them; a text can.
            if not self._fields["messages"] and self._chats_decided:
                self._question(row)
            return
        _, visuals, label = self._chat(row)
        self._answer(row, label)
        base = self._base(number)
        for kind, cell in visuals.used:
            if is_pixels(cell):
                continue
            if kind == "image":
                check_image(cell, base)
            elif isinstance(cell, FrameList):
                cell.check(base)
            else:
                video_path(cell, base)
        self._without_media += not visuals.used
        self._media.update(kind for kind, _ in visuals.used)

    def _prompt(self, number: int) -> Prompt:
        """Read and decode one row. Raises `Fault`."""
        row = self._table.row(number, self._wanted)
        # Again, since a chat with embedded media was not read before.
        refuse_half_characters(row)
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
        images = _cells(row, self._fields["images"], media_in)
        videos = self._clips(row)
        placeholder = self._is_placeholder
        visuals = Visuals(
            images,
            videos,
            has_images=placeholder["image"],
            has_videos=placeholder["video"],
            remedies=self._remedies,
        )
        others = {name: row.get(name) for name in self._extra}
        question = self._turns(row) or self._question(row)
        template = self._template
        if isinstance(question, str):
            question = with_options(question, _cell(row, self._fields["options"]), template)
            return question_chat(question, template, others, visuals), visuals, None
        messages, label = row_chat(question, template, others, visuals)
        return messages, visuals, label

    def _turns(self, row: Row) -> list[Any] | None:
        """The row's chat; None if it has none. Raises `Fault` for a cell that is none."""
        turns = _cell(row, self._fields["messages"])
        found = turns_in(turns)
        if found is None and not is_empty(turns) and turns != []:
            fix = "Give a list of turns {'role', 'content'} or {'from', 'value'}, or drop the row."
            raise Fault("bad chat", f"the chat is {shown(turns)}", fix)
        return found

    def _clips(self, row: Row) -> list[Any]:
        """The row's clips: files, or frames with their times."""
        videos = _cells(row, self._fields["videos"], clips_in)
        frames = _cell(row, self._fields["frames"])
        if frames:
            # Whatever else it is becomes a clip without frames, which is refused with what was found.
            videos.append(frames if isinstance(frames, list | tuple) else ())
        times, fps = _cell(row, self._fields["times"]), _cell(row, self._fields["fps"])
        # Times of several clips are a list for each; those of one are numbers.
        is_nested = isinstance(times, list) and any(isinstance(part, list) for part in times)
        clips: list[Any] = []
        for number, cell in enumerate(videos):
            if isinstance(cell, list | tuple):
                own = times
                if is_nested:
                    own = times[number] if number < len(times) else None
                cell = FrameList.of(cell, own, fps)
            clips.append(cell)
        return clips

    def _question(self, row: Row) -> Any:
        """The question: text or a chat. Empty only where the table has none."""
        if not self._fields["question"]:
            if self._fields["messages"]:
                fix = "Give a chat or drop the row."
                raise Fault("missing question", "the chat is empty", fix)
            return ""
        question = _cell(row, self._fields["question"])
        turns = chat_in_text(question) if isinstance(question, str) else turns_in(question)
        if turns:
            return turns
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
            raise Fault(NO_ANSWER, found, "Give an answer or drop the row.")
        return None if empty else bare_answer(answer)

    def _id(self, row: Row, number: int) -> str:
        name = _cell(row, self._fields["id"])
        if name is not None and str(name).strip():
            return self._renamed.get(number, str(name))
        text = repr(_cell(row, self._fields["question"] or self._fields["messages"]))
        # Half a surrogate pair, as broken scrapes have it, must give an id and not an error.
        content = f"{self.source}\x1f{number}\x1f{text}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        return f"{self.source}:{digest}"

    def _base(self, number: int) -> Root:
        folder = self._root if self._root is not None else self._table.base(number)
        return Root(folder, **self._outside)

    def _medium(self, kind: str, cell: Any, base: Root) -> Media:
        """Decode one medium."""
        if kind == "image":
            return Media(read_image(picture_in(cell), base))
        if isinstance(cell, FrameList):
            return cell.decode(base, self._clip)
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


@contextmanager
def one_row() -> Iterator[None]:
    """Whatever goes wrong with a row is a fault of that row: one row never ends a run."""
    try:
        yield
    # A template that never returns is no fault of the row.
    except (Fault, GivenUp):
        raise
    # Rows come from anywhere. What is known to happen has a reason of its own; this is for what nobody thought of.
    except Exception as error:
        found = f"{type(error).__name__} while it was read"
        raise Fault(
            UNFORESEEN, found, "Drop the row; reading it should not do this."
        ) from error


def _cell(row: Row, columns: Sequence[str]) -> Any:
    """The value of a field's only column, or None."""
    return cell_at(row, columns[0]) if columns else None


def _cells(row: Row, columns: Sequence[str], opened: Callable[[Any], list[Any]]) -> list[Any]:
    """All media cells of a row, lists opened, empty columns left out. Raises `Fault` for a hole in a list."""
    cells: list[Any] = []
    for name in columns:
        value = cell_at(row, name)
        found = opened(value)
        # Refused, not left out: the placeholders of the text would point at other media.
        if any(is_empty(cell) for cell in found):
            said = f"column {name!r} holds {shown(value)}"
            raise Fault("missing media", said, "Give every medium of the list.")
        cells.extend(found)
    return cells
