"""Clips as training data, shared by the video recipes: which rows and frames, how times are told, how spans are paid.

`open_clips` gives prompts over an annotation file (the format is recognised, or named) or over drawn clips
(`drawn:clips`). Clips are decoded by a worker with a time limit, kept in a cache of the run's folder so that each is
decoded once, and put into quarantine (`quarantine.jsonl` in the run's folder) if they cannot be read; what happens to
their rows is the user's choice, and counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmrl.data.grounding import formats
from mmrl.data.grounding import rewards as pay
from mmrl.data.grounding.metrics import THRESHOLDS, Answered, grounding_table, set_table
from mmrl.data.grounding.questions import (
    SET_TEMPLATE,
    SPAN_TEMPLATE,
    STAMPED_TEMPLATE,
    THINK_TEMPLATE,
    clean_query,
    plain_query,
    span_answer,
    think_answer,
)
from mmrl.data.grounding.rewards import SpanReward
from mmrl.data.grounding.sets import GroundingPrompts, GroundingRow, Rows, timelens_usable
from mmrl.data.grounding.spans import Spans, as_spans
from mmrl.data.grounding.times_retold import Telling, Told, encoding_of
from mmrl.data.video.frame_cache import FrameCache
from mmrl.data.video.video import ClipReader, ClipSampling
from mmrl.ground.faults import BadRow
from mmrl.ground.quarantine import Guarded, Quarantine
from mmrl.recipes.shared.launch import EMBEDDED, Data, Load, open_policy

if TYPE_CHECKING:
    from mmrl.model.load import LoRA
    from mmrl.model.policy import Policy
    from mmrl.recipes.shared.embedded import WarmUp
    from mmrl.training.run import Run
    from mmrl.types import Prompt, Prompts, Rollout

Format = Literal[
    "auto", "timelens_100k", "timelens_bench", "activitynet_captions", "charades_sta", "qvhighlights", "didemo",
    "tvgbench", "time_r1", "video_r1", "plain",
]  # fmt: skip
Asked = Literal[
    "timelens", "timezero", "time-r1", "videochat-r1", "timelens2", "tempsamp-r1", "video-r1"
]
THINK_QUESTION = "{query}\nThink first, inside <think> </think>; then give the answer alone inside <answer> </answer>."
DRAWN_CLIPS = "drawn:clips?frames=12"
"""What the embedded model is trained on: clips of six seconds, "When is the red circle shown?"."""


@dataclass(frozen=True)
class Clips:
    """Which rows of the annotations, which frames, and what happens to files that cannot be read."""

    format: Format = "auto"
    """Format of the annotation file; auto recognises it by its first entry."""
    fps: float | None = 2.0
    """Frames per second; None with num_frames."""
    num_frames: int | None = None
    """This many frames, however long the clip is."""
    max_frames: int = 448
    """Most frames of a clip."""
    min_tokens: int | None = 64
    """Fewest visual tokens of a frame; None: no lower limit."""
    max_frame_tokens: int | None = None
    """Most visual tokens of a frame; None: no limit but those of the clip."""
    total_tokens: int | None = 14_336
    """Most visual tokens of a clip as qwen-vl-utils counts them, by pairs of frames: long clips exceed it."""
    max_tokens: int | None = None
    """Most tokens of a clip, always kept, in place of total_tokens."""
    seconds: tuple[float, float] = (0.0, 1e9)
    """Rows about shorter and longer clips are left out (where the annotation has a duration)."""
    max_words: int = 100_000
    """Rows with longer questions are left out."""
    sound: bool = True
    """Keep questions about sounds, which no frame shows."""
    backend: Literal["auto", "decord", "pyav", "torchcodec"] = "auto"
    """Decoder; auto is decord where its wheel imports, else PyAV."""
    timeout: float = 60.0
    """Seconds after which a decode is given up and its worker killed."""
    cache: Path | None = None
    """Folder of decoded frames; None is `frames` in the run's folder."""
    cache_gb: float = 20.0
    """Largest size of that folder; 0 turns it off."""
    on_bad: Literal["drop", "substitute", "stop"] = "drop"
    """A file that cannot be read: leave its rows out, show another row in their place (always the same), or stop."""


@dataclass(frozen=True)
class Asking:
    """How the question is put, times are told, and answers are read and paid."""

    style: Asked = "timelens"
    """Whose wording, parser and reward: timelens (answers at once, IoU), timezero, time-r1, videochat-r1 (think first,
    IoU and format), timelens2 (any number of spans), tempsamp-r1 (shaped IoU), video-r1 (questions about clips)."""
    time: Telling = "native"
    """How times are told: by the model's own means, before each pair of frames, in one list, or drawn on the frames."""
    snap: bool = False
    """Put true spans of the training rows on the times that are shown (TimeLens-7B)."""


@dataclass(frozen=True)
class Style:
    """What belongs together."""

    template: str
    parts: Mapping[str, tuple[float, Callable[..., float]]]
    """Reward part -> weight and function; `accuracy` is the one that is evaluated."""
    target: Callable[[Spans], str] = span_answer
    """Text of the true answer."""
    video_first: bool = True
    clean: Callable[[str], str] = clean_query


def style_of(asking: Asking) -> Style:
    """Wording, reward and target of an asking style."""
    told = asking.time in ("interleaved_times", "drawn_times", "prefix_times")
    think = SpanReward(pay.think_format)
    iou = (0.0, SpanReward(pay.span_iou))
    if asking.style == "timelens":
        template = STAMPED_TEMPLATE if told else SPAN_TEMPLATE
        return Style(template, {"accuracy": (1.0, SpanReward(pay.timelens_iou))})
    if asking.style == "timelens2":
        parts = {
            "accuracy": (1.0, SpanReward(pay.timelens2_set_iou)),
            "wasserstein": (1.0, SpanReward(pay.timelens2_wasserstein)),
            "readable": (1.0, SpanReward(pay.timelens2_penalty)),
        }
        return Style(SET_TEMPLATE, parts, _set_answer)
    if asking.style == "tempsamp-r1":
        return Style(
            THINK_TEMPLATE,
            {"accuracy": (1.0, SpanReward(pay.tempsamp_reward)), "iou": iou},
            _tagged,
            clean=plain_query,
        )
    if asking.style == "video-r1":
        from mmrl.data.grounding.video_r1 import video_r1_accuracy, video_r1_format

        return Style(
            THINK_QUESTION,
            {"accuracy": (1.0, video_r1_accuracy), "format": (1.0, OfText(video_r1_format))},
        )
    scores = {
        "timezero": pay.time_zero_iou,
        "time-r1": pay.time_r1_iou,
        "videochat-r1": pay.videochat_r1_iou,
    }
    paid = {
        "accuracy": (1.0, SpanReward(scores[asking.style])),
        "format": (1.0, think),
        "iou": iou,
    }
    return Style(THINK_TEMPLATE, paid, _thought, asking.style != "videochat-r1", plain_query)


def about_spans(dataset: str, clips: Clips) -> bool:
    """Is this a data set of temporal grounding?"""
    if dataset.startswith("drawn:"):
        return dataset.startswith("drawn:clips")
    return clips.format not in ("auto", "video_r1") or (
        clips.format == "auto" and formats.is_grounding(dataset)
    )


def clip_warm_up(telling: Telling) -> WarmUp:
    """What the embedded model has learned before it is trained on clips."""
    from mmrl.recipes.shared.embedded import WarmUp

    return WarmUp(task="clips", steps=400, telling=telling)


def open_clip_policy(
    model: str,
    dataset: str,
    asking: Asking,
    load: Load,
    lora: LoRA | None = None,
    run: Run | None = None,
) -> Policy:
    """The policy; `embedded` is the tiny model that was warmed up on drawn clips, told their times in this way."""
    if model == EMBEDDED:
        from mmrl.recipes.shared.embedded import warm_model

        model = str(warm_model(clip_warm_up(asking.time)))
    return open_policy(model, load, lora, run, clips_sized=not dataset.startswith("drawn:"))


def open_clips(
    dataset: str,
    video_root: Path | None,
    data: Data,
    clips: Clips,
    asking: Asking,
    *,
    seed: int,
    factor: int,
    folder: Path | None,
) -> tuple[Prompts, Prompts]:
    """Training and held-out prompts. `factor`: pixels per side of a visual token; `folder`: the run's.

    Held-out rows are never snapped, and never about a clip that is trained on.
    """
    if dataset.startswith("drawn:"):
        from mmrl.recipes.shared.launch import open_data

        return tuple(Told(prompts, asking.time) for prompts in open_data(dataset, data, seed))  # type: ignore[return-value]
    rows = read_annotations(dataset, video_root, data, clips)
    make = PromptMaker(clips, asking, factor, folder, seed)
    if data.heldout:
        return make(rows), make(
            read_annotations(data.heldout, video_root, replace(data, limit=None), clips),
            train=False,
        )
    if data.heldout_rows == 0:
        return make(rows), make(rows, train=False)
    train, held = split_by_clip(rows, min(data.heldout_rows, max(1, len(rows) // 10)), seed)
    return make(train), make(held, train=False)


def read_annotations(dataset: str, video_root: Path | None, data: Data, clips: Clips) -> Rows:
    """The usable rows of an annotation file; what is wrong with others is printed."""
    if not Path(dataset).is_file():
        raise ValueError(
            f"There is no annotation file {dataset}; give a published one, or JSON lines such as "
            '{"video": "a.mp4", "query": "a dog jumps", "span": [2.0, 4.5]}.'
        )
    read = formats.read_rows if clips.format == "auto" else getattr(formats, clips.format)
    rows = read(dataset, video_root)
    if rows.faults:
        print(rows.report(), file=sys.stderr)
    usable = rows.keep(
        lambda row: timelens_usable(row, *clips.seconds, clips.max_words, clips.sound)
    )
    if data.limit is not None:
        usable = usable.pick(range(min(data.limit, len(usable))))
    if not len(usable):
        raise ValueError(f"{dataset} has no usable row.\n{rows.report()}")
    return usable


def split_by_clip(rows: Rows, heldout: int, seed: int) -> tuple[Rows, Rows]:
    """(training, held-out) rows, at least `heldout` of the latter, no clip in both. Raises ValueError for one clip."""
    import numpy as np

    videos = list(dict.fromkeys(row.video for row in rows))
    if len(videos) < 2:
        raise ValueError(
            f"All {len(rows)} rows are about one clip, so none can be held out; name another file with --data.heldout, "
            "or evaluate on the training rows with --data.heldout-rows 0."
        )
    chosen: set[str] = set()
    for place in np.random.default_rng(seed).permutation(len(videos))[:-1].tolist():
        if sum(row.video in chosen for row in rows) >= heldout:
            break
        chosen.add(videos[place])
    return rows.keep(lambda row: row.video not in chosen), rows.keep(
        lambda row: row.video in chosen
    )


def blocks(
    prompts: Prompts, count: int, check: Callable[[Prompt], object], size: int = 8
) -> Iterator[list[Prompt]]:
    """The first `count` prompts, a few at a time; rows that cannot be used are left out and counted at the end."""
    length = count if prompts.size is None else min(count, prompts.size)
    block: list[Prompt] = []
    bad = 0
    for index in range(length):
        try:
            prompt = prompts[index]
            check(prompt)
        except BadRow:
            bad += 1
            continue
        block.append(prompt)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
    if bad:
        print(
            f"{bad} of {length} questions could not be shown and are not in the table.",
            file=sys.stderr,
        )


def grounding_report(
    answers: Sequence[Rollout], style: Style
) -> tuple[str, dict[str, dict[str, float]]]:
    """R1@m and mIoU of each data set with intervals, as text and as numbers; for interval sets their own IoU too."""
    told = [
        Answered(
            rollout.text,
            as_spans(rollout.prompt.extra.get("spans", rollout.prompt.answer)),
            rollout.prompt.source,
            str(rollout.prompt.extra.get("video", rollout.prompt.id)),
            rollout.prompt.extra.get("duration"),
        )
        for rollout in answers
    ]
    table = grounding_table(told)
    if style.template == SET_TEMPLATE:
        table = {name: {**line, **set_table(told)[name]} for name, line in table.items()}
    metrics = [*(f"R1@{m}" for m in THRESHOLDS), "mIoU"]
    width = max(map(len, [*table, "data set"]))
    lines = [
        f"{'data set':<{width}}  {'n':>6}  "
        + "  ".join(f"{metric:>19}" for metric in metrics)
        + "   faults (%)"
    ]
    for name, line in table.items():
        cells = [
            f"{line[m]:5.1f} ({line[f'{m}_low']:5.1f}-{line[f'{m}_high']:5.1f})"
            for m in metrics
        ]
        faults = ", ".join(
            f"{f} {line[f]:.1f}"
            for f in ("unreadable", "reversed", "empty", "outside")
            if line[f]
        )
        more = (
            f"   set IoU {line['set_IoU']:.1f}, W1 {line['W1']:.1f}, mAP {line['mAP']:.1f}"
            if "set_IoU" in line
            else ""
        )
        lines.append(
            f"{name:<{width}}  {line['n']:>6.0f}  "
            + "  ".join(cells)
            + f"   {faults or 'none'}{more}"
        )
    return "\n".join(lines), table


class PromptMaker:
    """Rows to prompts, with one reader, cache and quarantine for all."""

    def __init__(
        self, clips: Clips, asking: Asking, factor: int, folder: Path | None, seed: int
    ) -> None:
        place = clips.cache or (folder / "frames" if folder is not None else None)
        cache = (
            FrameCache(place, int(clips.cache_gb * 2**30)) if clips.cache_gb and place else None
        )
        backend = None if clips.backend == "auto" else clips.backend
        quarantine = Quarantine(folder / "quarantine.jsonl" if folder is not None else None)
        self.reader = ClipReader(
            backend, timeout=clips.timeout, cache=cache, quarantine=quarantine
        )
        self.sampling = clip_sampling(clips, asking, factor)
        self.clips, self.asking, self.seed = clips, asking, seed

    def __call__(self, rows: Sequence[GroundingRow], train: bool = True) -> Guarded:
        """Prompts over rows; `train`: true spans may be snapped."""
        style = style_of(self.asking)
        asked = (
            rows
            if self.asking.style == "video-r1"
            else [replace(r, query=style.clean(r.query)) for r in rows]
        )
        prompts = GroundingPrompts(
            asked,
            self.reader,
            self.sampling,
            template=style.template,
            encoding=encoding_of(self.asking.time),
            snap=self.asking.snap and train,
            video_first=style.video_first,
            target=style.target,
        )
        on_bad: Any = {"drop": "drop", "substitute": "substitute", "stop": "raise"}[
            self.clips.on_bad
        ]
        return Guarded(prompts, on_bad, self.seed)


def clip_sampling(clips: Clips, asking: Asking, factor: int) -> ClipSampling:
    """Limits in tokens as limits in pixels of this model."""
    area = factor**2
    pixels = lambda tokens: None if tokens is None else tokens * area  # noqa: E731
    return ClipSampling(
        fps=None if clips.num_frames else clips.fps,
        num_frames=clips.num_frames,
        max_frames=clips.max_frames,
        min_pixels=pixels(clips.min_tokens),
        max_pixels=pixels(clips.max_frame_tokens),
        total_pixels=None if clips.max_tokens else pixels(clips.total_tokens),
        max_tokens=clips.max_tokens,
        factor=factor,
        stamp_tokens=10 if asking.time.startswith("interleaved") else 0,
    )


def _set_answer(spans: Spans) -> str:
    return "[" + ", ".join(f"[{start:.1f}, {end:.1f}]" for start, end in spans) + "]"


def _tagged(spans: Spans) -> str:
    return f"<answer> {spans[0][0]:.2f} to {spans[0][1]:.2f} </answer>"


def _thought(spans: Spans) -> str:
    return think_answer(spans[0])


@dataclass(frozen=True)
class OfText:
    """A function of the text as a reward of rollouts."""

    score: Callable[[str], float]

    def __call__(self, rollout: Any) -> float:
        return self.score(rollout.text)
