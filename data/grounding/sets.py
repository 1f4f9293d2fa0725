"""Data sets of temporal grounding as prompts that decode when they are read.

    rows = timelens_100k("timelens-100k.jsonl", video_root="videos")
    print(rows.report())                      # what was left out, with line and reason
    prompts = GroundingPrompts(rows, ClipReader(), ClipSampling(fps=2, max_tokens=4096))

Every reader gives `GroundingRows`: what is usable, and a `Fault` (file, place, reason, remedy) for each entry that is
not. Spans are in seconds from the start of what is shown: for an entry with a crop (TVGBench, Time-R1) from the start
of the crop, as those sets count. Our policy for true spans, applied by all readers: reversed and empty spans are
dropped; an end up to one second beyond the clip is cut to it; spans further outside are dropped. `clip_ends=False`
keeps them as they are.

`mmrl.data.grounding.formats` holds one reader per file format.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.data.grounding.difficulty import about_sound
from mmrl.data.grounding.questions import SPAN_TEMPLATE, snap_spans
from mmrl.data.grounding.spans import Spans, as_spans
from mmrl.data.grounding.time_encodings import span_evidence
from mmrl.data.rows.images import read_image
from mmrl.data.video.time_text import EncodedClip, Encoding, native, pair_stamps
from mmrl.data.video.video import ClipReader, ClipSampling
from mmrl.ground.contents import Content, digest
from mmrl.ground.faults import BadMedia, Fault, refuse_half_characters, shown
from mmrl.ground.files import regular_size
from mmrl.ground.media_names import VIDEO_SUFFIXES
from mmrl.ground.roots import Root
from mmrl.types import Media, Prompt, Prompts

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
END_SLACK = 1.0
"""Seconds by which a true span may end after the clip."""


@dataclass(frozen=True)
class GroundingRow:
    """One question about one clip, before anything is decoded."""

    id: str
    video: str
    query: str
    spans: Spans
    """True spans in seconds from the start of what is shown; empty where the answer is no span."""
    source: str
    duration: float | None = None
    """Seconds of what is shown, as the annotation says."""
    image: bool = False
    """True if `video` names a single picture (Video-R1)."""
    start: float | None = None
    """Where the crop starts in the file, seconds."""
    end: float | None = None
    """Where the crop ends in the file, seconds."""
    answer: Any = None
    """The true answer if it is no span (Video-R1)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further columns, e.g. iou, difficulty, problem_type, relevant_clip_ids."""


@dataclass
class GroundingRows(Sequence[GroundingRow]):
    """Usable rows, and why others are not."""

    rows: list[GroundingRow] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def keep(self, test: Callable[[GroundingRow], bool]) -> GroundingRows:
        """The rows that pass a test; faults stay."""
        return GroundingRows([row for row in self.rows if test(row)], self.faults)

    def pick(self, indices: Sequence[int]) -> GroundingRows:
        """Some rows by number, e.g. those that `stratified_sample` draws; faults stay."""
        return GroundingRows([self.rows[i] for i in indices], self.faults)

    def report(self, limit: int = 20) -> str:
        """How many rows are usable, reasons with counts, and the first faults with their places."""
        reasons = Counter(fault.reason for fault in self.faults)
        clips = {row.video for row in self.rows}
        asked, about = _some(len(self.rows), "question"), _some(len(clips), "clip")
        lines = [f"{asked} about {about}"]
        lines += [f"  left out: {count} × {reason}" for reason, count in reasons.most_common()]
        lines += [f"  {fault}" for fault in self.faults[:limit]]
        hidden = len(self.faults) - limit
        if hidden > 0:
            lines.append(f"  and {hidden} more")
        return "\n".join(lines)


class RowBuilder:
    """Collects rows of one file: checks what every format shares, and turns what is wrong into faults."""

    def __init__(
        self,
        file: str | Path,
        source: str,
        video_root: str | Path | None = None,
        *,
        check_files: bool = True,
        clip_ends: bool = True,
        allow_outside: bool = False,
    ) -> None:
        self.file, self.source = Path(file), source
        folder = self.file.parent
        if video_root is not None:
            folder = Path(video_root).expanduser()
        flag = "--video-root FOLDER (video_root=)"
        self.root = Root(folder, allow_outside, flag=flag)
        self.check_files, self.clip_ends = check_files, clip_ends
        self.result = GroundingRows()
        self._ids: Counter[str] = Counter()

    def add(
        self, where: str, row: GroundingRow, spans: Any, *, needs_span: bool = True
    ) -> None:
        """Take a row with its raw spans, or note why it cannot be used. `where` is a line or an entry."""
        try:
            refuse_half_characters(vars(row), "field")
            video = self.find(row.video)
            query = row.query.strip() if isinstance(row.query, str) else ""
            if not query:
                raise Fault("no query", f"the query is {shown(row.query)}", "Give a sentence.")
            duration = _seconds(row.duration)
            true = self.usable(spans, duration) if needs_span else []
        except Fault as fault:
            self.note(where, fault)
            return
        # Published files repeat ids; the first keeps its own, so that results of others can be compared with it.
        self._ids[row.id] += 1
        times = self._ids[row.id]
        checked = replace(
            row,
            id=row.id if times == 1 else f"{row.id}#{times}",
            source=row.source or self.source,
            video=video,
            spans=true,
            duration=duration,
            # Decoding comes much later; its errors name the line, too.
            extra={**row.extra, "where": f"{self.file.name}, {where}"},
        )
        self.result.rows.append(checked)

    def note(self, where: str, fault: Fault) -> None:
        """Keep a fault with its place."""
        self.result.faults.append(fault.at(f"{self.file.name}, {where}"))

    def find(self, video: Any) -> str:
        """The file of a clip: a path below the root, or a name without its extension. Raises Fault."""
        if not isinstance(video, str) or not video.strip():
            fix = "Give a path below the video root."
            raise Fault("no video", f"the video is {shown(video)}", fix)
        path = self.root.path(video)
        complete = path.suffix.lower() in VIDEO_SUFFIXES + PICTURES
        if complete and (_is_file(path) or not self.check_files):
            return str(path)
        # Appended, not put in place of the suffix: names such as v_1.5 have dots that are none.
        for extension in VIDEO_SUFFIXES:
            candidate = self.root.path(f"{video}{extension}")
            if _is_file(candidate):
                return str(candidate)
        if not self.check_files:
            return str(self.root.path(f"{video}{VIDEO_SUFFIXES[0]}"))
        fix = "Check the video root, or leave the entry out."
        raise Fault("missing video", f"{shown(str(path), 200)} is not there", fix)

    def usable(self, spans: Any, duration: float | None) -> Spans:
        """True spans by our policy. Raises Fault if none is left."""
        try:
            true = as_spans(spans)
        except ValueError as error:
            fix = "Give [start, end] or a list of such pairs, in seconds."
            raise Fault("no span", str(error), fix) from None
        limit = duration if duration is not None and self.clip_ends else math.inf
        kept = []
        for start, end in true:
            # Annotators round: an end a little behind the clip means its end, one far behind means another clip.
            if limit < end <= limit + END_SLACK:
                end = limit
            if 0 <= start < end <= limit:
                kept.append((start, end))
        if not kept:
            found = f"spans {shown(spans)} of a clip of {duration} s"
            fix = "A span must start before it ends, and lie within the clip."
            raise Fault("unusable span", found, fix)
        return kept


class PackedRows(Sequence[GroundingRow]):
    """Rows as one block of bytes, unpacked when read.

    A forked loader shares the block for good. Of a list of objects every read dirties pages, by counting references,
    until each worker has a copy of its own.
    """

    def __init__(self, rows: Sequence[GroundingRow]) -> None:
        packed = [pickle.dumps(row) for row in rows]
        # Row i lies between _ends[i] and _ends[i + 1].
        self._ends = np.cumsum([0, *map(len, packed)])
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"Index {index} lies outside {len(self)} rows.")
        place = index % len(self)  # counts from the end if negative, as in a list
        start, end = self._ends[place], self._ends[place + 1]
        return pickle.loads(self._bytes[start:end].tobytes())


class GroundingPrompts(Prompts):
    """Prompts over rows: question, clip and true spans; the clip is decoded when an index is read.

    The answer is the list of true spans, or the row's own answer. `extra` holds query, duration, video, source and the
    row's columns, the true spans before snapping (`spans`), where they can be seen (`evidence`), and with `target` the
    text of the true answer (`target`). `encoding` says how the model learns the times of the frames.
    """

    def __init__(
        self,
        rows: Sequence[GroundingRow],
        reader: ClipReader,
        sampling: ClipSampling = ClipSampling(),
        *,
        template: str = SPAN_TEMPLATE,
        encoding: Encoding = native,
        snap: bool = False,
        video_first: bool = True,
        target: Callable[[Spans], str] | None = None,
    ) -> None:
        if "{query}" not in template:
            raise ValueError(
                f"The template {shown(template)} has no place for the question; write {{query}} into it."
            )
        self.rows, self.reader, self.sampling = PackedRows(rows), reader, sampling
        self.template, self.encoding, self.target = template, encoding, target
        self.snap, self.video_first = snap, video_first
        self.size: int | None = len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def content(self, index: int) -> Content:
        """Digests of what a prompt asks and shows, without decoding it (`mmrl.ground.contents`)."""
        row = self.rows[index]
        asked = replace(row, id="", video="", extra={**row.extra, "where": None})
        return digest((self.template, asked)), digest(row.video, files=True)

    def __getitem__(self, index: int) -> Prompt:
        """The prompt at this index, decoded. Raises Fault (a BadRow), and IndexError beyond the end."""
        if not 0 <= index < len(self.rows):
            raise IndexError(f"Index {index} lies outside {len(self.rows)} rows.")
        row = self.rows[index]
        where = row.extra.get("where", row.id)
        try:
            if row.image:
                medium = Media(read_image(row.video, None))
            else:
                medium = self.reader.clip(row.video, self.sampling, row.start, row.end)
            return self.prompt(row, medium)
        except BadMedia as bad:
            fix = "Replace the file, or let Guarded take another row."
            raise Fault(bad.reason, str(bad), fix, where) from bad
        except Fault as fault:
            raise fault.at(where) from None

    def prompt(self, row: GroundingRow, clip: Media) -> Prompt:
        """The prompt of a row with its decoded clip or picture."""
        if row.image:
            encoded = EncodedClip(({"type": "image"},), (clip,))
        else:
            encoded = self.encoding(clip)
        # `replace`, not `format`: templates and questions may hold other braces.
        text = {"type": "text", "text": self.template.replace("{query}", row.query)}
        parts = [*encoded.parts, text] if self.video_first else [text, *encoded.parts]
        answer: Any = row.spans if row.answer is None else row.answer
        # What was decoded is believed before what the annotation says.
        duration = clip.duration if clip.duration is not None else row.duration
        if row.duration is None and row.start is None and row.end is None:
            refuse_spans_outside(row.spans, duration)
        extra = {**row.extra, "query": row.query, "duration": duration, "video": row.video}
        if row.spans:
            extra["spans"], extra["depends_on"] = row.spans, ("order",)
            extra["evidence"] = span_evidence(row.spans, clip, encoded.media)
        if self.snap and row.spans:
            # Metrics go by `spans`; only what is learned is put on the stamps.
            answer = snap_spans(row.spans, pair_stamps(clip))
        if self.target is not None and row.spans:
            extra["target"] = self.target(answer)
        turn = {"role": "user", "content": parts}
        return Prompt(row.id, (turn,), encoded.media, answer, row.source, extra)


def refuse_spans_outside(spans: Spans, duration: float | None) -> None:
    """Raise Fault if no span begins within a clip of `duration` seconds; None: nobody knows, and all are fine."""
    if spans and duration is not None and all(start >= duration for start, _ in spans):
        found = f"spans {shown(spans)} of a clip of {duration:g} s"
        fix = "A span must start before it ends, and lie within the clip."
        raise Fault("unusable span", found, fix)


def timelens_usable(
    row: GroundingRow,
    min_seconds: float = 5,
    max_seconds: float = 500,
    max_words: int = 200,
    sound: bool = False,
) -> bool:
    """Does TimeLens train on this row? By length of clip and query; queries about sounds only with `sound`."""
    if row.duration is not None and not min_seconds <= row.duration <= max_seconds:
        return False
    # Split at single spaces, as there; the query is cleaned, so that these are its words.
    if len(row.query.split(" ")) > max_words:
        return False
    return sound or not about_sound(row.query)


def _is_file(path: Path) -> bool:
    """A regular file? A FIFO under such a name would be waited for."""
    try:
        regular_size(path)
    except BadMedia:
        return False
    return True


def _seconds(value: Any) -> float | None:
    """A duration; None if it is not given. Raises Fault."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 < seconds < math.inf:  # nan neither
        fix = "Give seconds, a positive number."
        raise Fault("bad duration", f"the duration is {shown(value)}", fix)
    return seconds


def _some(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
