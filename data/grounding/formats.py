"""One reader per file format of temporal grounding: annotations in, `Rows` out. Nothing is decoded.

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
    plain                    JSON lines of our own: video, query, span or spans; optionally id, duration, start, end and
                             source; all else goes to `extra`

Spans of TVGBench and Time-R1 count from the start of the crop, as their own code uses them; `spans_from="file"` shifts
spans that count from the start of the file.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mmrl.data.grounding.questions import clean_query
from mmrl.data.grounding.sets import GroundingRow, RowBuilder, Rows
from mmrl.ground.faults import Fault, shown

Source = str | Path
SEGMENT = 5.0
"""Seconds of a DiDeMo segment."""
PLAIN_FIELDS = {"id", "video", "query", "span", "spans", "duration", "source", "start", "end"}


def read_rows(file: Source, video_root: Source | None = None, **options: Any) -> Rows:
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
    return (
        reader is not None
        and reader is not video_r1
        and (reader is not plain or bool({"span", "spans"} & set(first)))
    )


def _reader_of(first: Mapping[str, Any]) -> Callable[..., Rows] | None:
    """The reader whose keys a first entry has."""
    signs: dict[Callable[..., Rows], set[str]] = {
        timelens_100k: {"events", "video_path"}, timelens_bench: {"spans", "queries"},
        activitynet_captions: {"timestamps", "sentences"}, qvhighlights: {"relevant_windows", "vid"},
        didemo: {"times", "description"}, tvgbench: {"path", "question", "answer"}, time_r1: {"timestamp", "sentence"},
        video_r1: {"problem", "problem_type", "path"}, plain: {"video", "query"},
    }  # fmt: skip
    return next((reader for reader, keys in signs.items() if keys <= set(first)), None)


def timelens_100k(file: Source, video_root: Source | None = None, **checks: bool) -> Rows:
    """TimeLens-100K: one row per event, queries cleaned. `checks` are those of `RowBuilder`, here and below."""
    builder = RowBuilder(file, "timelens-100k", video_root, **checks)
    for where, entry in _entries(builder):
        events = entry.get("events")
        if not isinstance(events, list) or not events:
            builder.note(
                where, Fault("no events", shown(events), "Give a list of {query, span}.")
            )
            continue
        for number, event in enumerate(events):
            place = f"{where}, event {number + 1}"
            if not isinstance(event, Mapping):
                builder.note(place, Fault("no event", shown(event), "Give {query, span}."))
                continue
            row = _row(
                entry.get("video_path"),
                f"{entry.get('video_path')}/{number}",
                event.get("query"),
                entry,
            )
            extra = {k: entry[k] for k in ("iou", "pred") if k in entry}
            builder.add(
                place,
                replace(row, source=str(entry.get("source") or builder.source), extra=extra),
                event.get("span"),
            )
    return builder.result


def timelens_bench(file: Source, video_root: Source | None = None, **checks: bool) -> Rows:
    """TimeLens-Bench: spans and queries are paired; the file's name is the source."""
    return _per_video(file, video_root, Path(file).stem, "spans", "queries", checks)


def activitynet_captions(
    file: Source, video_root: Source | None = None, **checks: bool
) -> Rows:
    """ActivityNet Captions, and Charades-STA as JSON: timestamps and sentences are paired."""
    return _per_video(file, video_root, Path(file).stem, "timestamps", "sentences", checks)


def charades_sta(
    file: Source,
    video_root: Source | None = None,
    durations: Source | None = None,
    **checks: bool,
) -> Rows:
    """Charades-STA as text. `durations` is the CSV of Charades (columns id, length); without it ends are not cut."""
    builder = RowBuilder(file, "charades-sta", video_root, **checks)
    lengths: dict[str, str] = {}
    if durations is not None:
        with open(durations, newline="") as table:
            lengths = {line["id"]: line["length"] for line in csv.DictReader(table)}
    for number, line in enumerate(builder.file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"(\S+) ([\d.]+) ([\d.]+)##(.*)", line.strip())
        if found is None:
            builder.note(
                f"line {number}",
                Fault("bad line", shown(line), "Write `VIDEO start end##sentence.`"),
            )
            continue
        video, start, end, sentence = found.groups()
        row = _row(video, f"{video}/{number}", sentence, {"duration": lengths.get(video)})
        builder.add(f"line {number}", row, [_float(start), _float(end)])
    return builder.result


def qvhighlights(file: Source, video_root: Source | None = None, **checks: bool) -> Rows:
    """QVHighlights: all relevant windows of a query are true; saliency scores go to `extra`. Test rows have none."""
    builder = RowBuilder(file, "qvhighlights", video_root, **checks)
    for where, entry in _entries(builder):
        row = _row(entry.get("vid"), str(entry.get("qid")), entry.get("query"), entry)
        extra = {
            k: entry[k] for k in ("qid", "relevant_clip_ids", "saliency_scores") if k in entry
        }
        builder.add(where, replace(row, extra=extra), entry.get("relevant_windows"))
    return builder.result


def didemo(file: Source, video_root: Source | None = None, **checks: bool) -> Rows:
    """DiDeMo: annotators' segments in seconds, the most often marked first; all of them in `extra["annotators"]`."""
    builder = RowBuilder(file, "didemo", video_root, **checks)
    for where, entry in _entries(builder):
        times = entry.get("times")
        if (
            not isinstance(times, list)
            or not all(_is_segment(time) for time in times)
            or not times
        ):
            builder.note(
                where,
                Fault(
                    "no span", shown(times), "Give [first, last] segments, one per annotator."
                ),
            )
            continue
        marks = [(SEGMENT * first, SEGMENT * (last + 1)) for first, last in times]
        video = str(entry.get("video") or "")
        # Sources are of many kinds; clips are mostly stored re-encoded under the same name.
        row = _row(
            Path(video).stem,
            str(entry.get("annotation_id", where)),
            entry.get("description"),
            entry,
        )
        spans = [span for span, _ in Counter(marks).most_common()]
        builder.add(where, replace(row, extra={"annotators": marks}), spans)
    return builder.result


def tvgbench(
    file: Source,
    video_root: Source | None = None,
    spans_from: Literal["crop", "file"] = "crop",
    **checks: bool,
) -> Rows:
    """TVGBench: the answer is "start-end"."""
    builder = RowBuilder(file, "tvgbench", video_root, **checks)
    for where, entry in _entries(builder):
        found = re.fullmatch(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*", str(entry.get("answer")))
        span = (
            [_float(found.group(1)), _float(found.group(2))] if found else entry.get("answer")
        )
        row = _row(
            entry.get("path"), f"tvgbench/{where}", entry.get("question"), entry, "start", "end"
        )
        extra = {k: entry[k] for k in ("qsemtype", "dataset_name") if k in entry}
        row = replace(row, extra=extra, source=str(entry.get("dataset_name") or builder.source))
        builder.add(where, row, _shifted(span, row, spans_from))
    return builder.result


def time_r1(
    file: Source,
    video_root: Source | None = None,
    spans_from: Literal["crop", "file"] = "crop",
    **checks: bool,
) -> Rows:
    """Time-R1's training set; its `difficulty` (0 to 100, higher is easier) goes to `extra`."""
    builder = RowBuilder(file, "time-r1", video_root, **checks)
    for where, entry in _entries(builder):
        name = str(entry.get("qid", f"time-r1/{where}"))
        row = _row(
            entry.get("video"), name, entry.get("sentence"), entry, "video_start", "video_end"
        )
        row = replace(
            row, extra={k: entry[k] for k in ("qid", "difficulty", "pred") if k in entry}
        )
        builder.add(where, row, _shifted(entry.get("timestamp"), row, spans_from))
    return builder.result


def video_r1(file: Source, video_root: Source | None = None, **checks: bool) -> Rows:
    """Video-R1's mixed set of clips and pictures: the answer is the inside of `solution`; options join the question."""
    builder = RowBuilder(file, "video-r1", video_root, **checks)
    for where, entry in _entries(builder):
        kind, solution = entry.get("data_type"), str(entry.get("solution") or "")
        block = re.search(r"<answer>(.*?)</answer>", solution, re.DOTALL)
        answer = (block.group(1) if block else solution).strip()
        if kind not in ("video", "image") or not answer:
            found = f"data_type {shown(kind)}, solution {shown(solution)}"
            builder.note(
                where,
                Fault(
                    "bad entry",
                    found,
                    'data_type is "video" or "image"; solution holds an answer.',
                ),
            )
            continue
        problem, options = entry.get("problem"), entry.get("options")
        if isinstance(problem, str) and isinstance(options, list) and options:
            problem = "\n".join([problem, "Options:", *map(str, options)])
        row = _row(
            str(entry.get("path") or "").removeprefix("./"),
            str(entry.get("problem_id", where)),
            problem,
            {},
        )
        extra = {"problem_type": entry.get("problem_type"), "solution": solution}
        row = replace(row, answer=answer, image=kind == "image", extra=extra, query=problem)
        builder.add(
            where,
            replace(row, source=str(entry.get("data_source") or "video-r1")),
            None,
            needs_span=False,
        )
    return builder.result


def plain(file: Source, video_root: Source | None = None, **checks: bool) -> Rows:
    """Our own format. Spans count from `start` if that is given. Further keys go to `extra`."""
    builder = RowBuilder(file, Path(file).stem, video_root, **checks)
    for where, entry in _entries(builder):
        row = _row(
            entry.get("video"),
            str(entry.get("id", where)),
            entry.get("query"),
            entry,
            "start",
            "end",
        )
        extra = {k: v for k, v in entry.items() if k not in PLAIN_FIELDS}
        row = replace(row, source=str(entry.get("source") or builder.source), extra=extra)
        builder.add(where, row, entry.get("spans", entry.get("span")))
    return builder.result


def _per_video(
    file: Source,
    video_root: Source | None,
    source: str,
    spans: str,
    queries: str,
    checks: Mapping[str, bool],
) -> Rows:
    builder = RowBuilder(file, source, video_root, **checks)
    for where, entry in _entries(builder):
        video, true, asked = entry["video"], entry.get(spans), entry.get(queries)
        if not isinstance(true, list) or not isinstance(asked, list) or len(true) != len(asked):
            found = f"{spans} {shown(true)}, {queries} {shown(asked)}"
            builder.note(where, Fault("unpaired", found, "Give two lists of one length."))
            continue
        for number, (span, query) in enumerate(zip(true, asked, strict=True)):
            builder.add(
                f"{where}, item {number + 1}",
                _row(video, f"{video}/{number}", query, entry),
                span,
            )
    return builder.result


def _entries(builder: RowBuilder) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, entry) of JSON lines, a JSON list, or a JSON mapping whose keys become `video`."""
    text = builder.file.read_text()
    if text.lstrip()[:1] == "[" or not builder.file.name.endswith((".jsonl", ".json_l")):
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if isinstance(content, list):
            yield from _checked(
                builder, ((f"entry {i + 1}", entry) for i, entry in enumerate(content))
            )
            return
        if (
            isinstance(content, dict)
            and content
            and all(isinstance(value, dict) for value in content.values())
        ):
            yield from _checked(
                builder, ((f"video {k}", {**v, "video": k}) for k, v in content.items())
            )
            return
    yield from _checked(builder, _lines(builder, text))


def _lines(builder: RowBuilder, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            builder.note(
                f"line {number}",
                Fault("no JSON", f"{error}: {shown(line)}", "Write one object per line."),
            )


def _checked(
    builder: RowBuilder, entries: Iterator[tuple[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, entry in entries:
        if isinstance(entry, dict):
            yield where, entry
        else:
            builder.note(
                where,
                Fault("no object", shown(entry), "An entry is an object with named values."),
            )


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
    query = clean_query(query) if isinstance(query, str) else query
    first, last = _number(entry.get(start)), _number(entry.get(end))
    return GroundingRow(
        name, video, query, [], "", duration=entry.get("duration"), start=first, end=last
    )


def _shifted(span: Any, row: GroundingRow, spans_from: str) -> Any:
    """The span counted from the crop."""
    if spans_from not in ("crop", "file"):
        raise ValueError(f"spans_from is {spans_from!r}; allowed are 'crop' and 'file'.")
    if spans_from == "crop" or not row.start or not isinstance(span, list) or len(span) != 2:
        return span
    return [value - row.start if isinstance(value, (int, float)) else value for value in span]


def _is_segment(time: Any) -> bool:
    return (
        isinstance(time, list)
        and len(time) == 2
        and all(isinstance(x, int) and x >= 0 for x in time)
    )


def _number(value: Any) -> float | None:
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else None
    )


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
