"""One reader per file format of temporal grounding: annotations in, `GroundingRows` out. Nothing is decoded.

    read_rows(file)          looks at the first entry and calls the reader that fits
    timelens_100k            JSON lines {source, video_path, duration, events: [{query, span}]}
    timelens_bench           JSON {video: {duration, spans, queries}}
    activitynet_captions     JSON {video: {duration, timestamps, sentences}}; Charades-STA is published like this too
    charades_sta             text lines `VIDEO start end##sentence.`; durations from the CSV of Charades
    qvhighlights             JSON lines {qid, query, vid, duration, relevant_windows, ...}
    didemo                   JSON [{video, description, times}], times in segments of five seconds, one per annotator
    tvgbench                 JSON [{path, question, answer: "s-e", start, end, duration, ...}]
    time_r1                  JSON [{video, sentence, timestamp, duration, qid, video_start, video_end, ...}]
    video_r1                 JSON [{problem, path, data_type, problem_type, options, solution, ...}], clips and pictures
    span_lines               JSON lines of our own ("plain" in `READERS`): video, query, span or spans; optionally id,
                             duration, start, end and source; all else goes to `extra`

Spans of TVGBench and Time-R1 count from the start of the crop, as their own code uses them; `spans_from="file"` shifts
spans that count from the start of the file.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from mmrl.data.grounding.questions import clean_query
from mmrl.data.grounding.sets import GroundingRow, GroundingRows, RowBuilder
from mmrl.ground.faults import Fault, first_line, shown

Source = str | Path
Reader = Callable[..., GroundingRows]
"""(file, video_root=None, **checks) -> rows."""
SEGMENT = 5.0
"""Seconds of a DiDeMo segment."""
OWN_FIELDS = {"id", "video", "query", "span", "spans", "duration", "source", "start", "end"}


def read_rows(file: Source, video_root: Source | None = None, **options: Any) -> GroundingRows:
    """Rows of a file in whatever of the formats it is. Raises ValueError if it is none of them."""
    first = _first_entry(Path(file))
    reader = charades_sta if first is None else _reader_of(first)
    if reader is not None:
        return reader(file, video_root, **options)
    raise ValueError(
        f"{file}: the first entry has the keys {sorted(first or ())[:12]}, as none of the known formats. For your own "
        'data write JSON lines such as {"video": "a.mp4", "query": "a dog jumps", "span": [2.0, 4.5]}.'
    )


def is_grounding(file: Source) -> bool:
    """Does the file hold questions about spans of clips, in one of the formats? Other files are left alone."""
    path = Path(file)
    if not path.is_file() or path.suffix.lower() not in (".json", ".jsonl", ".json_l", ".txt"):
        return False
    try:
        first = _first_entry(path)
    except (ValueError, OSError):
        return False
    if first is None:
        return "##" in path.read_text(errors="replace")[:1000]
    reader = _reader_of(first)
    if reader is span_lines:
        # Captions of clips look the same but for the spans; they are rows of another kind.
        return "span" in first or "spans" in first
    return reader is not None and reader is not video_r1


def is_video_r1(file: Source) -> bool:
    """Does the file hold Video-R1's questions about pictures and clips?"""
    path = Path(file)
    if not path.is_file() or path.suffix.lower() not in (".json", ".jsonl"):
        return False
    try:
        first = _first_entry(path)
    except (ValueError, OSError):
        return False
    return first is not None and _reader_of(first) is video_r1


def _reader_of(first: Mapping[str, Any]) -> Reader | None:
    """The reader whose keys a first entry has."""
    signs: dict[Reader, set[str]] = {
        timelens_100k: {"events", "video_path"},
        timelens_bench: {"spans", "queries"},
        activitynet_captions: {"timestamps", "sentences"},
        qvhighlights: {"relevant_windows", "vid"},
        didemo: {"times", "description"},
        tvgbench: {"path", "question", "answer"},
        time_r1: {"timestamp", "sentence"},
        video_r1: {"problem", "problem_type", "path"},
        # Last, because its keys are the most common.
        span_lines: {"video", "query"},
    }
    for reader, keys in signs.items():
        if keys <= set(first):
            return reader
    return None


def timelens_100k(
    file: Source, video_root: Source | None = None, **checks: bool
) -> GroundingRows:
    """TimeLens-100K: one row per event, queries cleaned. `checks` are those of `RowBuilder`, here and below."""
    builder = RowBuilder(file, "timelens-100k", video_root, **checks)
    for where, entry in _entries(builder):
        events = entry.get("events")
        if not isinstance(events, list) or not events:
            fault = Fault("no events", shown(events), "Give a list of {query, span}.")
            builder.note(where, fault)
            continue
        video = entry.get("video_path")
        source = str(entry.get("source") or builder.source)
        for number, event in enumerate(events):
            place = f"{where}, event {number + 1}"
            if not isinstance(event, Mapping):
                builder.note(place, Fault("no event", shown(event), "Give {query, span}."))
                continue
            # Events of one clip have no ids of their own: the number keeps them apart.
            row = _row(video, f"{video}/{number}", event.get("query"), entry)
            row = replace(row, source=source, extra=_kept(entry, "iou", "pred"))
            builder.add(place, row, event.get("span"))
    return builder.result


def timelens_bench(
    file: Source, video_root: Source | None = None, **checks: bool
) -> GroundingRows:
    """TimeLens-Bench: spans and queries are paired; the file's name is the source."""
    return _per_video(file, video_root, Path(file).stem, "spans", "queries", checks)


def activitynet_captions(
    file: Source, video_root: Source | None = None, **checks: bool
) -> GroundingRows:
    """ActivityNet Captions, and Charades-STA as JSON: timestamps and sentences are paired."""
    return _per_video(file, video_root, Path(file).stem, "timestamps", "sentences", checks)


def charades_sta(
    file: Source,
    video_root: Source | None = None,
    durations: Source | None = None,
    **checks: bool,
) -> GroundingRows:
    """Charades-STA as text. `durations` is the CSV of Charades (columns id, length); without it ends are not cut."""
    builder = RowBuilder(file, "charades-sta", video_root, **checks)
    lengths: dict[str, str] = {}
    if durations is not None:
        with open(durations, newline="") as table:
            lengths = {line["id"]: line["length"] for line in csv.DictReader(table)}
    for number, line in enumerate(builder.file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        found = re.fullmatch(r"(\S+) ([\d.]+) ([\d.]+)##(.*)", line.strip())
        if found is None:
            fault = Fault("bad line", shown(line), "Write `VIDEO start end##sentence.`")
            builder.note(where, fault)
            continue
        video, start, end, sentence = found.groups()
        row = _row(video, f"{video}/{number}", sentence, {"duration": lengths.get(video)})
        # The pattern also lets 1.2.3 through; `_float` makes it None, which `add` refuses with the place.
        builder.add(where, row, [_float(start), _float(end)])
    return builder.result


def qvhighlights(
    file: Source, video_root: Source | None = None, **checks: bool
) -> GroundingRows:
    """QVHighlights: all relevant windows of a query are true; saliency scores go to `extra`. Test rows have none."""
    builder = RowBuilder(file, "qvhighlights", video_root, **checks)
    for where, entry in _entries(builder):
        name, query = str(entry.get("qid")), entry.get("query")
        row = _row(entry.get("vid"), name, query, entry)
        # What highlight detection needs; `qvhighlights_metrics` reads these keys.
        extra = _kept(entry, "qid", "relevant_clip_ids", "saliency_scores")
        builder.add(where, replace(row, extra=extra), entry.get("relevant_windows"))
    return builder.result


def didemo(file: Source, video_root: Source | None = None, **checks: bool) -> GroundingRows:
    """DiDeMo: annotators' segments in seconds, the most often marked first; all of them in `extra["annotators"]`."""
    builder = RowBuilder(file, "didemo", video_root, **checks)
    for where, entry in _entries(builder):
        times = entry.get("times")
        if not _are_segments(times):
            fix = "Give [first, last] segments, one per annotator."
            builder.note(where, Fault("no span", shown(times), fix))
            continue
        # Segments count from 0, and the last one is included.
        marks = [(SEGMENT * first, SEGMENT * (last + 1)) for first, last in times]
        # Sources are of many kinds; clips are mostly stored re-encoded under the same name.
        video = Path(str(entry.get("video") or "")).stem
        name = str(entry.get("annotation_id", where))
        row = _row(video, name, entry.get("description"), entry)
        # Of equally frequent segments the one that was marked first stays first.
        spans = [span for span, _ in Counter(marks).most_common()]
        builder.add(where, replace(row, extra={"annotators": marks}), spans)
    return builder.result


def tvgbench(
    file: Source,
    video_root: Source | None = None,
    spans_from: Literal["crop", "file"] = "crop",
    **checks: bool,
) -> GroundingRows:
    """TVGBench: the answer is "start-end"."""
    builder = RowBuilder(file, "tvgbench", video_root, **checks)
    for where, entry in _entries(builder):
        span = entry.get("answer")
        found = re.fullmatch(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*", str(span))
        if found:
            span = [_float(found.group(1)), _float(found.group(2))]
        name, query = f"tvgbench/{where}", entry.get("question")
        row = _row(entry.get("path"), name, query, entry, "start", "end")
        source = str(entry.get("dataset_name") or builder.source)
        row = replace(row, source=source, extra=_kept(entry, "qsemtype", "dataset_name"))
        builder.add(where, row, _shifted(span, row, spans_from))
    return builder.result


def time_r1(
    file: Source,
    video_root: Source | None = None,
    spans_from: Literal["crop", "file"] = "crop",
    **checks: bool,
) -> GroundingRows:
    """Time-R1's training set; its `difficulty` (0 to 100, higher is easier) goes to `extra`."""
    builder = RowBuilder(file, "time-r1", video_root, **checks)
    for where, entry in _entries(builder):
        name = str(entry.get("qid", f"time-r1/{where}"))
        video, query = entry.get("video"), entry.get("sentence")
        row = _row(video, name, query, entry, "video_start", "video_end")
        row = replace(row, extra=_kept(entry, "qid", "difficulty", "pred"))
        builder.add(where, row, _shifted(entry.get("timestamp"), row, spans_from))
    return builder.result


def video_r1(file: Source, video_root: Source | None = None, **checks: bool) -> GroundingRows:
    """Video-R1's mixed set of clips and pictures: the answer is the inside of `solution`; options join the question."""
    builder = RowBuilder(file, "video-r1", video_root, **checks)
    for where, entry in _entries(builder):
        kind, solution = entry.get("data_type"), str(entry.get("solution") or "")
        block = re.search(r"<answer>(.*?)</answer>", solution, re.DOTALL)
        answer = (block.group(1) if block else solution).strip()
        if kind not in ("video", "image") or not answer:
            found = f"data_type {shown(kind)}, solution {shown(solution)}"
            fix = 'data_type is "video" or "image"; solution holds an answer.'
            builder.note(where, Fault("bad entry", found, fix))
            continue
        problem, options = entry.get("problem"), entry.get("options")
        if isinstance(problem, str) and isinstance(options, list) and options:
            problem = "\n".join([problem, "Options:", *map(str, options)])
        path = str(entry.get("path") or "").removeprefix("./")
        row = _row(path, str(entry.get("problem_id", where)), problem, {})
        row = replace(
            row,
            # Not cleaned: white space and line ends belong to a problem and its options.
            query=problem,
            answer=answer,
            image=kind == "image",
            source=str(entry.get("data_source") or "video-r1"),
            extra={"problem_type": entry.get("problem_type"), "solution": solution},
        )
        builder.add(where, row, None, needs_span=False)
    return builder.result


def span_lines(file: Source, video_root: Source | None = None, **checks: bool) -> GroundingRows:
    """Our own format. Spans count from `start` if that is given. Further keys go to `extra`."""
    builder = RowBuilder(file, Path(file).stem, video_root, **checks)
    for where, entry in _entries(builder):
        name, query = str(entry.get("id", where)), entry.get("query")
        row = _row(entry.get("video"), name, query, entry, "start", "end")
        extra = {key: value for key, value in entry.items() if key not in OWN_FIELDS}
        source = str(entry.get("source") or builder.source)
        spans = entry.get("spans", entry.get("span"))
        builder.add(where, replace(row, source=source, extra=extra), spans)
    return builder.result


READERS: Mapping[str, Reader] = {
    "timelens_100k": timelens_100k,
    "timelens_bench": timelens_bench,
    "activitynet_captions": activitynet_captions,
    "charades_sta": charades_sta,
    "qvhighlights": qvhighlights,
    "didemo": didemo,
    "tvgbench": tvgbench,
    "time_r1": time_r1,
    "video_r1": video_r1,
    "plain": span_lines,
}
"""Name of a format, as on the command line -> its reader."""


def _per_video(
    file: Source,
    video_root: Source | None,
    source: str,
    spans: str,
    queries: str,
    checks: Mapping[str, bool],
) -> GroundingRows:
    builder = RowBuilder(file, source, video_root, **checks)
    for where, entry in _entries(builder):
        video, true, asked = entry.get("video"), entry.get(spans), entry.get(queries)
        if not isinstance(true, list) or not isinstance(asked, list) or len(true) != len(asked):
            found = f"{spans} {shown(true)}, {queries} {shown(asked)}"
            builder.note(where, Fault("unpaired", found, "Give two lists of one length."))
            continue
        for number, (span, query) in enumerate(zip(true, asked, strict=True)):
            row = _row(video, f"{video}/{number}", query, entry)
            builder.add(f"{where}, item {number + 1}", row, span)
    return builder.result


def _entries(builder: RowBuilder) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, entry) of JSON lines, a JSON list, or a JSON mapping whose keys become `video`."""
    # Bytes that are no UTF-8 become half characters, and cost their entry.
    text = builder.file.read_text("utf-8", errors="surrogateescape")
    content = None
    # Published files are named .json and hold lines, or the other way round: the content decides.
    if text.lstrip()[:1] == "[" or not builder.file.name.endswith((".jsonl", ".json_l")):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
    if isinstance(content, list):
        found = _numbered(content)
    elif _is_by_video(content):
        found = _by_video(content)
    else:
        found = _lines(builder, text)
    yield from _checked(builder, found)


def _numbered(content: list[Any]) -> Iterator[tuple[str, Any]]:
    for number, entry in enumerate(content, 1):
        yield f"entry {number}", entry


def _is_by_video(content: Any) -> TypeGuard[dict[str, Any]]:
    """A mapping of mappings. A file of a single line is a mapping, too, but of texts and numbers."""
    if not isinstance(content, dict) or not content:
        return False
    # Most, not all: one broken entry costs itself.
    entries = [value for value in content.values() if isinstance(value, dict)]
    return 2 * len(entries) > len(content)


def _by_video(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for video, entry in content.items():
        named = {**entry, "video": video} if isinstance(entry, dict) else entry
        yield f"video {video}", named


def _lines(builder: RowBuilder, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            found = first_line(error)
            builder.note(
                f"line {number}", Fault("no JSON", found, "Write one object per line.")
            )


def _checked(
    builder: RowBuilder, entries: Iterator[tuple[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, entry in entries:
        if isinstance(entry, dict):
            yield where, entry
        else:
            fix = "An entry is an object with named values."
            builder.note(where, Fault("no object", shown(entry), fix))


def _first_entry(file: Path) -> dict[str, Any] | None:
    """The first entry of JSON, None for a text file of another kind."""
    if file.suffix == ".txt":
        return None
    builder = RowBuilder(file, "")
    first = next(_entries(builder), None)
    if first is None:
        reason = str(builder.result.faults[0]) if builder.result.faults else "it is empty"
        raise ValueError(f"{file} holds no entry that can be read: {reason}")
    return first[1]


def _row(
    video: Any, name: str, query: Any, entry: Mapping[str, Any], start: str = "", end: str = ""
) -> GroundingRow:
    """A row with a cleaned query; crops by the given keys. What is wrong with it is found when it is added."""
    return GroundingRow(
        id=name,
        video=video,
        query=clean_query(query) if isinstance(query, str) else query,
        spans=[],
        source="",
        duration=entry.get("duration"),
        start=_number(entry.get(start)),
        end=_number(entry.get(end)),
    )


def _kept(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The named columns that an entry has."""
    return {name: entry[name] for name in names if name in entry}


def _shifted(span: Any, row: GroundingRow, spans_from: str) -> Any:
    """The span counted from the crop."""
    if spans_from not in ("crop", "file"):
        raise ValueError(f"spans_from is {spans_from!r}; allowed are 'crop' and 'file'.")
    if spans_from == "crop" or not row.start or not isinstance(span, list) or len(span) != 2:
        return span
    # What is no number stays, for `add` to refuse it with its place.
    return [_less(value, row.start) for value in span]


def _less(value: Any, start: float) -> Any:
    number = _number(value)
    return value if number is None else number - start


def _are_segments(times: Any) -> TypeGuard[list[Any]]:
    """A list, not empty, of pairs of whole numbers."""
    if not isinstance(times, list) or not times:
        return False
    return all(_is_segment(time) for time in times)


def _is_segment(time: Any) -> bool:
    if not isinstance(time, list) or len(time) != 2:
        return False
    return all(isinstance(end, int) and 0 <= end < 1_000_000 for end in time)


def _number(value: Any) -> float | None:
    # True is an int in Python and no second in an annotation.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # JSON knows integers of any length.
    return float(value) if abs(value) < 1e300 else math.inf


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
