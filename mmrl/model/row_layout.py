"""Where the segments of a packed row lie, and which of them go through an attention kernel together.

A row is `[prompt 1 | answers of 1 | prompt 2 | answers of 2 | …]`. A `Layout` names its segments; a `Bucket` gathers
some of them, padded to one length, so that a kernel sees a dense batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mmrl.model.ragged import Segments

Segment = tuple[int, int]
"""[start, end) in the row."""

ALONE = 512
"""Segments at least this long get a kernel call of their own; shorter ones of similar length share one."""
WASTE = 1.25
"""Largest padded size of a shared call, relative to its tokens."""
SLACK = 64
"""Padded tokens that a shared call may waste in any case: a further call costs more."""


@dataclass(frozen=True)
class Bucket:
    """Segments that go through the kernel together, padded right."""

    index: Tensor
    """long [n, L]: stream index of each token, padded with 0."""
    valid: Tensor
    """bool [n, L]."""
    cut: slice | None
    """The segment itself if it is alone: then nothing is copied."""

    def take(self, row: Tensor) -> Tensor:
        """[1, H, S, d] -> [n, H, L, d]."""
        if self.cut is not None:
            return row[:, :, self.cut]
        return row[0][:, self.index].transpose(0, 1)

    def put(self, row: Tensor, part: Tensor) -> None:
        """Write the valid tokens of part [n, H, L, ...] to row [1, H, S, ...]."""
        if self.cut is not None:
            row[:, :, self.cut] = part
        else:
            row[0][:, self.index[self.valid]] = self._unpadded(part).to(row.dtype)

    def add(self, row: Tensor, part: Tensor) -> None:
        """Add the valid tokens of part [n, H, L, d] to row [1, H, S, d]."""
        if self.cut is not None:
            row[:, :, self.cut] += part
        else:
            # Safe as an indexed sum, for segments do not overlap: no index comes twice.
            row[0][:, self.index[self.valid]] += self._unpadded(part)

    def _unpadded(self, part: Tensor) -> Tensor:
        """[n, H, L, ...] -> [H, tokens, ...]."""
        return part.transpose(0, 1)[:, self.valid]


@dataclass(frozen=True)
class RaggedRow:
    """Segments of a row for kernels that take segments of any length. Nothing here is read back from the device."""

    causal: Segments
    """All prompts and answers, in the order of the row, each causal in itself."""
    answers: Tensor
    """long [Ta]: places of all answer tokens that have a prompt, group by group."""
    prompts: Tensor
    """long [Tp]: places of the tokens of their prompts."""
    of_answers: Segments
    """One segment per group in `answers`: its answers together, for they look at the same prompt."""
    of_prompts: Segments
    """One segment per group in `prompts`."""


@dataclass(frozen=True)
class Layout:
    """Where the segments of a packed row lie. Answers of a group follow their prompt without a gap."""

    prompts: tuple[Segment, ...]
    """Each group's prompt."""
    answers: tuple[tuple[Segment, ...], ...]
    """Per group, its answers; empty segments are allowed."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    kept: list[tuple[Tensor, Tensor]] | None = None
    """If a list, keys and values [1, Hk, S, d] of each layer are appended (prefill of a rollout)."""
    causal: tuple[Bucket, ...] = field(init=False, repr=False)
    """Prompts and answers, each causal in itself."""
    crossing: tuple[tuple[Bucket, Bucket], ...] = field(init=False, repr=False)
    """(answers of groups, their prompts): the answers attend to the prompt; prompts of a pair have one length."""

    def __post_init__(self) -> None:
        filled = [segment for segment in self._segments() if _length(segment) > 0]
        causal = tuple(self._bucket(run) for run in _alike(filled))
        object.__setattr__(self, "causal", causal)
        object.__setattr__(self, "crossing", tuple(self._crossing()))

    @cached_property
    def ragged(self) -> RaggedRow:
        """The same for kernels that need no padding."""
        return _ragged(self)

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return max((end for _, end in self._segments()), default=0)

    def _segments(self) -> list[Segment]:
        """All prompts, then all answers."""
        answers = [segment for group in self.answers for segment in group]
        return [*self.prompts, *answers]

    def _crossing(self) -> list[tuple[Bucket, Bucket]]:
        """Answers with their prompts. All answers of a group are one segment here: they look the same way."""
        prompt_of: dict[int, dict[Segment, Segment]] = {}
        for number, prompt in enumerate(self.prompts):
            group = self.answers[number]
            start = prompt[1]
            end = max((end for _, end in group), default=start)
            if end == start or _length(prompt) == 0:
                continue
            # Only prompts of one length share a call, for padded keys would be looked at. A long prompt fills a call
            # by itself; a negative key keeps it apart.
            key = _length(prompt) if _length(prompt) < ALONE else -number - 1
            prompt_of.setdefault(key, {})[start, end] = prompt
        pairs: list[tuple[Bucket, Bucket]] = []
        for prompts in prompt_of.values():
            for run in _alike(list(prompts)):
                own = [prompts[answers] for answers in run]
                pairs.append((self._bucket(run), self._bucket(own)))
        return pairs

    def _bucket(self, segments: Sequence[Segment]) -> Bucket:
        starts, ends = torch.tensor(segments).unbind(1)
        lengths = ends - starts
        column = torch.arange(int(lengths.max()))
        valid = column < lengths[:, None]
        index = torch.where(valid, starts[:, None] + column, 0)
        # A segment that is alone is a plain slice of the row, which is a view.
        cut = slice(*segments[0]) if len(segments) == 1 else None
        return Bucket(index.to(self.device), valid.to(self.device), cut)


def _ragged(layout: Layout) -> RaggedRow:
    filled = sorted(segment for segment in layout._segments() if _length(segment) > 0)
    answers: list[Segment] = []
    prompts: list[Segment] = []
    for prompt, group in zip(layout.prompts, layout.answers, strict=True):
        end = max((end for _, end in group), default=prompt[1])
        if _length(prompt) > 0 and end > prompt[1]:
            answers.append((prompt[1], end))
            prompts.append(prompt)
    device = layout.device
    return RaggedRow(
        Segments.of([_length(segment) for segment in filled], device),
        _places(answers, device),
        _places(prompts, device),
        Segments.of([_length(segment) for segment in answers], device),
        Segments.of([_length(segment) for segment in prompts], device),
    )


def _places(segments: Sequence[Segment], device: torch.device) -> Tensor:
    """Every place of the segments, long [n]."""
    found = [torch.arange(start, end) for start, end in segments]
    return (torch.cat(found) if found else torch.zeros(0, dtype=torch.long)).to(device)


def example_layout(
    prompts: Sequence[int], answers: Sequence[Sequence[int]], device: torch.device | None = None
) -> Layout:
    """Layout of groups given by their lengths: prompts (19, 7), answers ((5, 9), (3,))."""
    spans: list[Segment] = []
    segments: list[tuple[Segment, ...]] = []
    at = 0
    for prompt, group in zip(prompts, answers, strict=True):
        spans.append((at, at + prompt))
        at += prompt
        row = []
        for length in group:
            row.append((at, at + length))
            at += length
        segments.append(tuple(row))
    return Layout(tuple(spans), tuple(segments), device or torch.device("cpu"))


def _length(segment: Segment) -> int:
    return segment[1] - segment[0]


def _alike(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments sorted by length and cut into runs that waste little when padded."""
    runs: list[list[Segment]] = []
    tokens = longest = 0
    for segment in sorted(segments, key=_length, reverse=True):
        length = _length(segment)
        # The longest comes first in a run, so it decides how far the others are padded.
        padded = longest * (len(runs[-1]) + 1) if runs else 0
        bearable = WASTE * (tokens + length) + SLACK
        if runs and longest < ALONE and padded <= bearable:
            runs[-1].append(segment)
            tokens += length
        else:
            runs.append([segment])
            tokens, longest = length, length
    return runs
