"""Clips as training data, shared by the video recipes: which rows and frames, and what happens to broken files.

`ClipQuestions(dataset, video_root, data, clips, asking)` opens the policy and the prompts over an annotation file (the
format is recognised, or named) or over drawn clips (`drawn:clips`). Clips are decoded by a worker with a time limit,
kept in a cache of the run's folder so that each is decoded once, and put into quarantine (`quarantine.jsonl` in the
run's folder) if they cannot be read; what happens to their rows is the user's choice, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmrl.data.grounding import formats
from mmrl.data.grounding.sets import (
    GroundingPrompts,
    GroundingRow,
    GroundingRows,
    refuse_spans_outside,
    timelens_usable,
)
from mmrl.data.grounding.time_encodings import EncodingName, TimeEncoded, encoding_of
from mmrl.data.video.frame_cache import FrameCache
from mmrl.data.video.video import ClipReader, ClipSampling
from mmrl.ground.faults import BadMedia, Fault
from mmrl.ground.printable import tell
from mmrl.ground.progress import busy
from mmrl.ground.quarantine import Guarded, Quarantine
from mmrl.ground.require import require
from mmrl.model.load import LoRA
from mmrl.model.policy import Policy
from mmrl.recipes.shared.clip_asking import Asking, span_style_of
from mmrl.recipes.shared.embedded import WarmUp, warm_model
from mmrl.recipes.shared.opening import (
    EMBEDDED,
    Data,
    Load,
    open_data,
    open_policy,
    refuse_clip_flags,
)
from mmrl.training.run import Run
from mmrl.types import Prompts

Format = Literal[
    "auto", "timelens_100k", "timelens_bench", "activitynet_captions", "charades_sta", "qvhighlights", "didemo",
    "tvgbench", "time_r1", "video_r1", "plain",
]  # fmt: skip
WANTED = "--clips.seconds, --clips.max-words and --clips.sound"
"""Flags that say which rows are used."""
LOOKED_INTO = 500
"""Clips whose length is read before the start, where annotations do not tell it: milliseconds each."""
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
    """Decoder; auto is PyAV, the only one that is right on every file. Another reads the files it is right on."""
    timeout: float = 60.0
    """Seconds after which a decode is given up and its worker killed."""
    cache: Path | None = None
    """Folder of decoded frames; None is `frames` in the run's folder."""
    cache_gb: float = 20.0
    """Largest size of that folder; 0 turns it off."""
    on_bad: Literal["drop", "substitute", "stop"] = "drop"
    """A file that cannot be read: leave its rows out, show another row in their place (always the same), or stop."""

    def __post_init__(self) -> None:
        first, last = self.seconds
        least, most = self.min_tokens, self.max_frame_tokens
        require(
            self,
            fps=(self.fps is None or self.fps > 0, "positive, or None with num_frames"),
            seconds=(0 <= first <= last, "two rising numbers"),
            max_frame_tokens=(
                least is None or most is None or least <= most,
                f"at least min_tokens, which is {least}; lower --clips.min-tokens, or set it to None",
            ),
            timeout=(self.timeout > 0, "positive"),
            cache_gb=(self.cache_gb >= 0, "0 (off) or positive"),
        )


@dataclass(frozen=True)
class ClipQuestions:
    """A data set of questions about clips, as the arguments of a recipe describe it."""

    dataset: str
    video_root: Path | None
    data: Data
    clips: Clips
    asking: Asking

    @property
    def drawn(self) -> bool:
        """Are the clips drawn, with nothing to read or decode?"""
        return self.dataset.startswith("drawn:")

    def open_policy(
        self, model: str, load: Load, lora: LoRA | None = None, run: Run | None = None
    ) -> Policy:
        """The policy; `embedded` is the tiny model that was warmed up on drawn clips, told their times in this way."""
        if not self.drawn:
            refuse_clip_flags(self.data, load)
            # What is wrong with rows is told before weights are loaded or warmed up.
            _ = self.rows
        if model == EMBEDDED:
            model = str(warm_model(clip_warm_up(self.asking.time)))
        return open_policy(model, load, lora, run, clips_sized=not self.drawn)

    def open_prompts(
        self, policy: Policy, seed: int, folder: Path | None = None
    ) -> tuple[Prompts, Prompts]:
        """Training and held-out prompts in the frame sizes of this policy; `folder`: the run's.

        Held-out rows are never snapped, and never about a clip that is trained on.
        """
        data, asking = self.data, self.asking
        if self.drawn:
            train, held = open_data(self.dataset, data, seed)
            return TimeEncoded(train, asking.time), TimeEncoded(held, asking.time)
        rows = self.rows
        refuse_token_limits(self.clips, policy)
        # Pixels per side of a visual token: limits are given in tokens.
        factor = policy.processing.videos.factor
        make = PromptMaker(self.clips, asking, factor, folder, seed)
        if data.heldout:
            others = self._rows(data.heldout, replace(data, limit=None))
            return make(rows), make(others, train=False)
        if data.heldout_rows == 0:
            return make(rows), make(rows, train=False)
        count = min(data.heldout_rows, max(1, len(rows) // 10))
        train_rows, held_rows = split_by_clip(rows, count, seed)
        return make(train_rows), make(held_rows, train=False)

    @cached_property
    def rows(self) -> GroundingRows:
        """The usable rows of the annotation file. Raises ValueError without any."""
        return self._rows(self.dataset, self.data)

    def settings(self) -> dict[str, Any]:
        """What a resumed run must agree on; where frames are kept is free to change."""
        clips = replace(self.clips, cache=None)
        return {"dataset": self.dataset, "clips": clips, "asking": self.asking}

    def _rows(self, dataset: str, data: Data) -> GroundingRows:
        return read_annotations(dataset, self.video_root, data, self.clips)


def about_spans(dataset: str, clips: Clips) -> bool:
    """Is this a data set of temporal grounding?"""
    if dataset.startswith("drawn:"):
        return dataset.startswith("drawn:clips")
    return clips.format not in ("auto", "video_r1") or (
        clips.format == "auto" and formats.is_grounding(dataset)
    )


def about_clips(dataset: str, clips: Clips, asking: Asking) -> bool:
    """Is this a data set of other questions, which are asked about clips and paid as Video-R1 does?"""
    if asking.style != "video-r1" or dataset.startswith("drawn:"):
        return False
    named = clips.format == "video_r1"
    return named or (clips.format == "auto" and formats.is_video_r1(dataset))


def clip_warm_up(telling: EncodingName) -> WarmUp:
    """What the embedded model has learned before it is trained on clips."""
    return WarmUp(task="clips", steps=400, telling=telling)


def read_annotations(
    dataset: str, video_root: Path | None, data: Data, clips: Clips
) -> GroundingRows:
    """The usable rows of an annotation file; what is wrong with others is printed."""
    if not Path(dataset).is_file():
        raise ValueError(
            f"There is no annotation file {dataset}; give a published one, or JSON lines such as "
            '{"video": "a.mp4", "query": "a dog jumps", "span": [2.0, 4.5]}.'
        )
    read = formats.read_rows if clips.format == "auto" else formats.READERS[clips.format]
    rows = within_clips(read(dataset, video_root, allow_outside=data.allow_outside), clips)
    usable = rows.keep(
        lambda row: timelens_usable(row, *clips.seconds, clips.max_words, clips.sound)
    )
    fewer = len(rows) - len(usable)
    count, *faults = usable.report().splitlines()
    unwanted = f", {fewer:,} more are not wanted by {WANTED}" if fewer else ""
    tell("\n".join([f"{Path(dataset).name}: {count}{unwanted}", *faults]))
    if data.limit is not None:
        usable = usable.pick(range(min(data.limit, len(usable))))
    if not len(usable):
        raise ValueError(f"{dataset} has no usable row{unwanted}.\n{rows.report()}")
    return usable


def within_clips(rows: GroundingRows, clips: Clips) -> GroundingRows:
    """Rows whose spans lie in their clips, where the annotation does not say how long these are.

    The first `LOOKED_INTO` clips are asked; rows of further ones are judged when they are decoded.
    """
    unknown = [row for row in rows if row.spans and not row.image and _of_unknown_length(row)]
    videos = list(dict.fromkeys(row.video for row in unknown))[:LOOKED_INTO]
    if not videos:
        return rows
    lengths: dict[str, float] = {}
    with (
        busy("Reading the lengths of clips"),
        closing(ClipReader(timeout=clips.timeout)) as reader,
    ):
        for video in videos:
            with suppress(BadMedia):  # a broken file is told, and counted, when it is decoded
                lengths[video] = reader.probe(video).duration
    kept: list[GroundingRow] = []
    faults = list(rows.faults)
    for row in rows:
        length = lengths.get(row.video) if _of_unknown_length(row) else None
        try:
            refuse_spans_outside(row.spans, length)
        except Fault as fault:
            faults.append(fault.at(row.extra.get("where", row.id)))
            continue
        kept.append(row)
    return GroundingRows(kept, faults)


def _of_unknown_length(row: GroundingRow) -> bool:
    return row.duration is None and row.start is None and row.end is None


def split_by_clip(
    rows: GroundingRows, heldout: int, seed: int
) -> tuple[GroundingRows, GroundingRows]:
    """(training, held-out) rows, at least `heldout` of the latter, no clip in both. Raises ValueError for one clip."""
    videos = list(dict.fromkeys(row.video for row in rows))
    if len(videos) < 2:
        raise ValueError(
            f"All {len(rows)} rows are about one clip, so none can be held out; name another file with --data.heldout, "
            "or evaluate on the training rows with --data.heldout-rows 0."
        )
    chosen: set[str] = set()
    order = np.random.default_rng(seed).permutation(len(videos)).tolist()
    # The last clip stays in training, however many rows are wanted.
    for place in order[:-1]:
        if sum(row.video in chosen for row in rows) >= heldout:
            break
        chosen.add(videos[place])
    train = rows.keep(lambda row: row.video not in chosen)
    return train, rows.keep(lambda row: row.video in chosen)


class PromptMaker:
    """Rows to prompts, with one reader, cache and quarantine for all."""

    def __init__(
        self, clips: Clips, asking: Asking, factor: int, folder: Path | None, seed: int
    ) -> None:
        place, listed = clips.cache, None
        if folder is not None:
            place, listed = place or folder / "frames", folder / "quarantine.jsonl"
        cache = None
        if clips.cache_gb and place is not None:
            cache = FrameCache(place, int(clips.cache_gb * 2**30))
        self.reader = ClipReader(
            None if clips.backend == "auto" else clips.backend,
            timeout=clips.timeout,
            cache=cache,
            quarantine=Quarantine(listed),
        )
        self.sampling = clip_sampling(clips, asking, factor)
        self.clips, self.asking, self.seed = clips, asking, seed

    def __call__(self, rows: Sequence[GroundingRow], train: bool = True) -> Guarded:
        """Prompts over rows; `train`: true spans may be snapped."""
        style = span_style_of(self.asking)
        asked = rows
        # Questions of Video-R1 hold options on lines of their own, which cleaning would join.
        if self.asking.style != "video-r1":
            asked = [replace(row, query=style.clean(row.query)) for row in rows]
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
        # `Guarded` calls it "raise"; flags of all recipes call it "stop".
        on_bad = "raise" if self.clips.on_bad == "stop" else self.clips.on_bad
        return Guarded(prompts, on_bad, self.seed)


def clip_sampling(clips: Clips, asking: Asking, factor: int) -> ClipSampling:
    """Limits in tokens as limits in pixels of this model."""

    def pixels(tokens: int | None) -> int | None:
        return None if tokens is None else tokens * factor**2

    return ClipSampling(
        fps=None if clips.num_frames else clips.fps,
        num_frames=clips.num_frames,
        max_frames=clips.max_frames,
        min_pixels=pixels(clips.min_tokens),
        max_pixels=pixels(clips.max_frame_tokens),
        total_pixels=None if clips.max_tokens else pixels(clips.total_tokens),
        max_tokens=clips.max_tokens,
        factor=factor,
        # Times written before each pair of frames take places of the clip's budget too.
        stamp_tokens=10 if asking.time.startswith("interleaved") else 0,
    )


def refuse_token_limits(clips: Clips, policy: Policy) -> None:
    """Raise ValueError for limits that a family which shows every frame in equal squares cannot keep."""
    family = policy.family
    each = family.shape(policy.base.config).square_tokens
    if not each:
        return
    frames, why = (
        clips.num_frames or clips.max_frames,
        f"{family.name} shows every frame in {each} tokens",
    )
    if clips.max_frame_tokens is not None and clips.max_frame_tokens < each:
        raise ValueError(
            f"{why}, more than --clips.max-frame-tokens {clips.max_frame_tokens}; set that to None."
        )
    name = "total-tokens" if clips.max_tokens is None else "max-tokens"
    most = clips.total_tokens if clips.max_tokens is None else clips.max_tokens
    if most is not None and frames * each > most:
        raise ValueError(
            f"{why}: {frames} frames take {frames * each:,}, more than --clips.{name} {most:,}. Set "
            f"--clips.max-frames {most // each} or raise the limit."
        )
