"""Any prompts with a clip, the times of which are told in another way; and where a span can be seen. No torch here.

    TimeEncoded(Drawn("clips"), "interleaved_times")[0]    # "0.0s ", two frames, "1.0s ", two frames, …, the question

`span_evidence` marks true spans in the column `evidence`, which views such as `EvidenceMask` read: they ask whether an
answer depends on the frames of the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mmrl.data.grounding.spans import Spans
from mmrl.data.video import time_text
from mmrl.data.video.time_text import EncodedClip, Encoding, frame_times

if TYPE_CHECKING:
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
class TimeEncoded:
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

    def __getitem__(self, index: int) -> Prompt:
        """The prompt at this index, its clip shown under the encoding."""
        prompt = self.prompts[index]
        true = prompt.extra.get("spans")
        if len(prompt.media) == 1 and prompt.media[0].is_video:
            prompt = encode_times(prompt, encoding_of(self.encoding)(prompt.media[0]), true)
        return (
            replace(prompt, answer=[tuple(span) for span in true])
            if self.spans and true
            else prompt
        )


def encode_times(
    prompt: Prompt, shown: EncodedClip, spans: Sequence[Any] | None = None
) -> Prompt:
    """The prompt with its only clip replaced by the parts and media of an encoding; evidence follows true spans."""
    messages = []
    for message in prompt.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                new
                for part in content
                for new in (shown.parts if part["type"] == "video" else (part,))
            ]
        messages.append({**message, "content": content})
    extra = dict(prompt.extra)
    if spans:
        extra["evidence"] = span_evidence(
            [tuple(span) for span in spans], prompt.media[0], shown.media
        )
    return replace(prompt, messages=tuple(messages), media=shown.media, extra=extra)


def span_evidence(spans: Spans, clip: Media, shown: Sequence[Media]) -> list[dict[str, Any]]:
    """Regions of the column `evidence`: the frames of the clip within its spans, wherever the encoding shows them.

    A span holds the frames from its start up to, not including, its end; one between two frames marks the nearest.
    """
    times = frame_times(clip)
    inside = [any(start <= time < end for start, end in spans) for time in times]
    for start, end in spans:
        if not any(start <= time < end for time in times):
            inside[min(range(len(times)), key=lambda i: abs(times[i] - (start + end) / 2))] = (
                True
            )
    regions, first = [], 0
    for number, medium in enumerate(shown):
        frames = [i for i in range(len(medium.frames)) if inside[first + i]]
        first += len(medium.frames)
        if frames:
            regions.append({"visual": number, "frames": frames})
    return regions
