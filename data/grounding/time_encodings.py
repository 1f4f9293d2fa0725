"""Any prompts with a clip, shown under another time encoding; and where a span can be seen. No torch here.

    TimeEncoded(Drawn("clips"), "interleaved_times")[0]    # "0.0s ", two frames, "1.0s ", two frames, …, the question

`span_evidence` marks true spans in the column `evidence`, which views such as `EvidenceMask` read: they ask whether an
answer depends on the frames of the event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmrl.data.grounding.spans import Spans
from mmrl.data.video import time_text
from mmrl.data.video.time_text import EncodedClip, Encoding, frame_times
from mmrl.ground.contents import Content, content_of
from mmrl.ground.faults import BadRow
from mmrl.types import Media, Prompt, Prompts

EncodingName = Literal[
    "native",
    "interleaved_times",
    "interleaved_index",
    "prefix_times",
    "drawn_times",
    "drawn_index",
]


def encoding_of(name: EncodingName) -> Encoding:
    """The encoding of this name in `mmrl.data.video.time_text`."""
    known: dict[str, Encoding] = {
        "native": time_text.native,
        "interleaved_times": time_text.interleaved_times,
        "interleaved_index": time_text.interleaved_index,
        "prefix_times": time_text.prefix_times,
        "drawn_times": time_text.drawn_times,
        "drawn_index": time_text.drawn_index,
    }
    if name not in known:
        raise ValueError(f"There is no time encoding {name!r}; there are {', '.join(known)}.")
    return known[name]


@dataclass(frozen=True)
class TimeEncoded(Prompts):
    """Prompts whose clip is shown under an encoding. Prompts without a clip, or with several, stay as they are."""

    prompts: Prompts
    encoding: EncodingName = "native"
    spans: bool = True
    """Make the true spans (column `spans`) the answer where a prompt has them."""

    @property
    def size(self) -> int | None:
        """Number of prompts; None if endless."""
        return self.prompts.size

    def __len__(self) -> int:
        return len(self.prompts)  # type: ignore[arg-type]

    def drain(self) -> Mapping[str, int]:
        """What the prompts below counted since this was last asked."""
        return self.prompts.drain()

    def left_out(self) -> Sequence[BadRow]:
        """Bad rows of the prompts below; a collection of the user's need not know any."""
        return getattr(self.prompts, "left_out", tuple)()

    def content(self, index: int) -> Content:
        """Digests of what a prompt asks and shows, before the encoding (`mmrl.ground.contents`)."""
        return content_of(self.prompts, index)

    def __getitem__(self, index: int) -> Prompt:
        """The prompt at this index, its clip shown under the encoding."""
        prompt = self.prompts[index]
        true = prompt.extra.get("spans")
        if len(prompt.media) == 1 and prompt.media[0].is_video:
            encoded = encoding_of(self.encoding)(prompt.media[0])
            prompt = encode_times(prompt, encoded, true)
        if not self.spans or not true:
            return prompt
        return replace(prompt, answer=[tuple(span) for span in true])


def encode_times(
    prompt: Prompt, encoded: EncodedClip, spans: Sequence[Any] | None = None
) -> Prompt:
    """The prompt with its only clip replaced by the parts and media of an encoding; evidence follows true spans."""
    messages = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = _with_parts(content, encoded)
        messages.append({**message, "content": content})
    extra = dict(prompt.extra)
    if spans:
        true = [tuple(span) for span in spans]
        # The old evidence counts in media and frames that are no longer there.
        extra["evidence"] = span_evidence(true, prompt.media[0], encoded.media)
    return replace(prompt, messages=tuple(messages), media=encoded.media, extra=extra)


def _with_parts(content: Sequence[Any], encoded: EncodedClip) -> list[Any]:
    """The parts of a message, those of the encoding in place of the clip."""
    parts: list[Any] = []
    for part in content:
        if part["type"] == "video":
            parts.extend(encoded.parts)
        else:
            parts.append(part)
    return parts


def span_evidence(spans: Spans, clip: Media, shown: Sequence[Media]) -> list[dict[str, Any]]:
    """Regions of the column `evidence`: the frames of the clip within its spans, wherever the encoding shows them.

    A span holds the frames from its start up to, not including, its end; one between two frames marks the nearest.
    """
    times = frame_times(clip)
    inside = [False] * len(times)
    for start, end in spans:
        held = [frame for frame, time in enumerate(times) if start <= time < end]
        for frame in held or [_nearest(times, (start + end) / 2)]:
            inside[frame] = True
    regions = []
    first = 0
    # The encoding shows the frames of the clip in their order, divided over its media.
    for number, medium in enumerate(shown):
        count = len(medium.frames)
        frames = [frame for frame in range(count) if inside[first + frame]]
        first += count
        if frames:
            regions.append({"visual": number, "frames": frames})
    return regions


def _nearest(times: Sequence[float], middle: float) -> int:
    """The frame whose time is nearest; of two the earlier one."""
    distances = [abs(time - middle) for time in times]
    return distances.index(min(distances))
