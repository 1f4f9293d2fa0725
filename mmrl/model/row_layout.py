"""Where the segments of a packed row lie, and which of them go through an attention kernel together.

A row is a forest of segments in depth-first order: a segment lies behind its parent, and whatever hangs on it, however
deep, lies directly behind it without a gap. A token sees the segments on the way from its own one to the root, and what
comes before it in its own. A group is the tree of depth one, `[prompt 1 | answers of 1 | prompt 2 | …]`.

So all that looks at a segment is one slice of the row, which a `Bucket` cuts out of it; what is shorter it gathers,
padded to one length, so that a kernel sees a dense batch. Every index is worked out on the host and sent in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from mmrl.model.ragged import Segments
from mmrl.model.recurrent_row import RecurrentRow

Segment = tuple[int, int]
"""[start, end) in the row."""
Layers = Mapping[int, tuple[Tensor, Tensor]]
"""Keys and values [1, Hk, S, d] of each layer, after their rotation."""

ROOT = -1
"""Parent of a segment that sees nothing but itself."""
ALONE = 512
"""Segments at least this long get a kernel call of their own; shorter ones of similar length share one."""
WASTE = 1.25
"""Largest padded size of a shared call, relative to its tokens."""
SLACK = 64
"""Padded tokens that a shared call may waste in any case: a further call costs more."""


@dataclass(frozen=True)
class Bucket:
    """Segments that go through the kernel together, padded right."""

    cut: slice | None
    """The segment itself if it is alone: then nothing is copied, and the indices below are empty."""
    index: Tensor
    """long [n, L]: place in the row of each token, padded with 0."""
    valid: Tensor
    """bool [n, L]."""
    segment: Tensor
    """long [t]: which segment each token belongs to."""
    column: Tensor
    """long [t]: where in it."""
    places: Tensor
    """long [t]: where in the row."""

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
            row[0][:, self.places] = self._unpadded(part).to(row.dtype)

    def add(self, row: Tensor, part: Tensor) -> None:
        """Add the valid tokens of part [n, H, L, d] to row [1, H, S, d]."""
        if self.cut is not None:
            row[:, :, self.cut] += part
        else:
            # Safe as an indexed sum, for segments do not overlap: no index comes twice.
            row[0][:, self.places] += self._unpadded(part)

    def _unpadded(self, part: Tensor) -> Tensor:
        """[n, H, L, ...] -> [H, t, ...]."""
        # By numbers and not by `valid`: a mask would make the host wait until the device has counted it.
        return part.transpose(0, 1)[:, self.segment, self.column]


@dataclass(frozen=True)
class RaggedLooking:
    """Tokens that look at an ancestor, for kernels that take segments of any length."""

    places: Tensor
    """long [Tq]: all that looks, segment by segment of what it looks at."""
    queries: Segments
    """Everything that hangs on one segment is one segment here: it looks the same way."""
    keys: Segments


@dataclass(frozen=True)
class RaggedRow:
    """Segments of a row for kernels that take segments of any length. Nothing here is read back from the device."""

    causal: Segments
    """All segments, in the order of the row, each causal in itself."""
    crossings: tuple[tuple[RaggedLooking, Tensor | None], ...]
    """With the places of what is seen, long [Tk], none of them twice; None if that is not in the row.

    One for each level of the tree that anything hangs on, roots first; then one for each past.
    """


@dataclass(frozen=True)
class Past:
    """A slice of the row that also looks at tokens which are not in the row: those of a prompt that was run before."""

    span: Segment
    """Not empty."""
    layers: Layers
    """Of the P tokens that are looked at; of layers with linear attention what they left behind them."""

    @property
    def length(self) -> int:
        """P, the tokens that are looked at."""
        # What the convolution of linear attention left behind has three dimensions.
        return next(keys.shape[2] for keys, _ in self.layers.values() if keys.ndim == 4)


@dataclass(frozen=True)
class Layout:
    """Where the segments of a packed row lie. Raises ValueError if they are not in depth-first order."""

    lengths: tuple[int, ...]
    """Tokens of each segment, in the order of the row; empty segments are allowed."""
    parents: tuple[int, ...]
    """Number of the segment that each hangs on, or `ROOT`."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    kept: list[tuple[Tensor, Tensor]] | None = None
    """If a list, keys and values [1, Hk, S, d] of each layer are appended (prefill of a rollout)."""
    noted: dict[int, tuple[Tensor, Tensor]] | None = None
    """If a dict, keys and values [1, Hk, S, d] by layer, with their graph, are put here (a prompt is opened); of layers
    with linear attention the last inputs of the convolution [1, C, context] and the state [1, H, dk, dv]."""
    pasts: tuple[Past, ...] = ()
    """What parts of the row see beyond it."""

    def __post_init__(self) -> None:
        path: list[int] = []
        for node, parent in enumerate(self.parents):
            while path and path[-1] != parent:
                path.pop()
            if parent != ROOT and not path:
                raise ValueError(
                    f"Segment {node} hangs on segment {parent}, which is not open there: a segment must follow its "
                    "parent and everything that hangs on earlier children of it (depth first)."
                )
            path.append(node)

    @classmethod
    def flat(
        cls,
        prompts: Sequence[int],
        answers: Sequence[Sequence[int]],
        device: torch.device | None = None,
    ) -> Layout:
        """Groups given by their lengths: prompts (19, 7), answers ((5, 9), (3,))."""
        lengths: list[int] = []
        parents: list[int] = []
        for prompt, group in zip(prompts, answers, strict=True):
            root = len(lengths)
            lengths += [prompt, *group]
            parents += [ROOT, *[root] * len(group)]
        return cls(tuple(lengths), tuple(parents), device or torch.device("cpu"))

    def noting(self, noted: dict[int, tuple[Tensor, Tensor]]) -> Layout:
        """The same row, whose layers put their keys and values into `noted`."""
        return replace(self, noted=noted)

    @cached_property
    def spans(self) -> tuple[Segment, ...]:
        """Where each segment lies."""
        ends = list(accumulate(self.lengths))
        return tuple(
            (end - length, end) for end, length in zip(ends, self.lengths, strict=True)
        )

    @property
    def prompts(self) -> tuple[Segment, ...]:
        """The roots."""
        return tuple(self.spans[node] for node in self._roots)

    @property
    def answers(self) -> tuple[tuple[Segment, ...], ...]:
        """Per root, what hangs directly on it."""
        found: dict[int, list[Segment]] = {root: [] for root in self._roots}
        for node, parent in enumerate(self.parents):
            if parent in found:
                found[parent].append(self.spans[node])
        return tuple(map(tuple, found.values()))

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return sum(self.lengths)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each segment; 0 for a root."""
        found: list[int] = []
        for parent in self.parents:
            found.append(0 if parent == ROOT else found[parent] + 1)
        return tuple(found)

    @property
    def causal(self) -> tuple[Bucket, ...]:
        """All segments, each causal in itself."""
        return self._parts[0]

    @property
    def crossing(self) -> tuple[tuple[Bucket, Bucket | None], ...]:
        """(descendants, what they look at): the keys of a pair have one length and do not hang on each other.

        None stands for what is not in the row: these come last, one for each past.
        """
        return self._parts[1]

    @cached_property
    def ragged(self) -> RaggedRow:
        """The same for kernels that need no padding."""
        return _ragged(self)

    @cached_property
    def recurrent(self) -> RecurrentRow:
        """The same for layers that carry a state from token to token."""
        spans = [past.span for past in self.pasts]
        return RecurrentRow.of(self.lengths, self.parents, self.device, spans)

    @property
    def _roots(self) -> list[int]:
        return [node for node, parent in enumerate(self.parents) if parent == ROOT]

    @cached_property
    def _parts(self) -> tuple[tuple[Bucket, ...], tuple[tuple[Bucket, Bucket | None], ...]]:
        inner = set(self.parents)
        # Those that others hang on come first.
        order = sorted(range(len(self.spans)), key=lambda node: node not in inner)
        filled = [self.spans[node] for node in order if self.lengths[node] > 0]
        causal = _alike(filled)
        crossing = self._crossing()
        beyond = [[past.span] for past in self.pasts]
        runs = [*causal, *(side for pair in crossing for side in pair), *beyond]
        buckets = iter(_buckets(runs, self.device))
        own = tuple(next(buckets) for _ in causal)
        within = [(next(buckets), next(buckets)) for _ in crossing]
        return own, (*within, *((bucket, None) for bucket in buckets))

    def _looked_at(self) -> Iterator[tuple[int, Segment]]:
        """(segment, all that hangs on it) wherever neither is empty. What hangs on one is one slice: it looks alike."""
        ends = [end for _, end in self.spans]
        for node in reversed(range(len(ends))):
            parent = self.parents[node]
            if parent != ROOT:
                ends[parent] = max(ends[parent], ends[node])
        for node, (start, end) in enumerate(self.spans):
            if ends[node] > end > start:
                yield node, (end, ends[node])

    def _crossing(self) -> list[tuple[list[Segment], list[Segment]]]:
        """What goes through one call together: descendants, and what they look at."""
        calls: dict[tuple[int, int], dict[Segment, Segment]] = {}
        for node, behind in self._looked_at():
            # Only keys of one length share a call, for padded ones would be looked at; and only keys of one depth, for
            # else a token could look twice in it. Long keys fill a call by themselves; a negative number keeps them
            # apart.
            length = self.lengths[node]
            key = (self.depths[node], length if length < ALONE else -node - 1)
            calls.setdefault(key, {})[behind] = self.spans[node]
        pairs: list[tuple[list[Segment], list[Segment]]] = []
        for keys in calls.values():
            pairs += [(run, [keys[behind] for behind in run]) for run in _alike(list(keys))]
        return pairs


def example_layout(
    prompts: Sequence[int], answers: Sequence[Sequence[int]], device: torch.device | None = None
) -> Layout:
    """As `Layout.flat`."""
    return Layout.flat(prompts, answers, device)


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of long from the host, brought to the device in one transfer that nobody waits for."""
    flat = torch.cat([torch.zeros(0, dtype=torch.long), *(x.reshape(-1) for x in tensors)])
    if device.type == "cuda":  # only from pinned memory does a transfer go on by itself
        flat = flat.pin_memory()
    pieces = flat.to(device, non_blocking=True).split([x.numel() for x in tensors])
    return [piece.view(x.shape) for piece, x in zip(pieces, tensors, strict=True)]


def _buckets(runs: Sequence[Sequence[Segment]], device: torch.device) -> list[Bucket]:
    """A bucket for each run of segments; their indices travel together."""
    # A segment that is alone is a plain slice of the row, which is a view.
    cuts = [slice(*run[0]) if len(run) == 1 else None for run in runs]
    tensors: list[Tensor] = []
    for run, cut in zip(runs, cuts, strict=True):
        tensors += _indices(() if cut is not None else run)
    there = iter(moved(tensors, device))
    buckets: list[Bucket] = []
    for cut in cuts:
        index, valid, *rest = (next(there) for _ in range(5))
        buckets.append(Bucket(cut, index, valid.bool(), *rest))
    return buckets


def _indices(run: Sequence[Segment]) -> list[Tensor]:
    """The five indices of a `Bucket` on the host, long."""
    starts, ends = torch.tensor(list(run), dtype=torch.long).view(-1, 2).unbind(1)
    lengths = ends - starts
    column = torch.arange(max((_length(segment) for segment in run), default=0))
    valid = column < lengths[:, None]
    index = torch.where(valid, starts[:, None] + column, 0)
    segment = torch.arange(len(run)).repeat_interleave(lengths)
    columns = torch.cat([column[:0], *(column[: _length(each)] for each in run)])
    return [index, valid.long(), segment, columns, starts[segment] + columns]


def _ragged(layout: Layout) -> RaggedRow:
    levels: dict[int, tuple[list[Segment], list[Segment]]] = {}
    for node, behind in layout._looked_at():
        looking, seen = levels.setdefault(layout.depths[node], ([], []))
        looking.append(behind)
        seen.append(layout.spans[node])
    within = [levels[depth] for depth in sorted(levels)]
    pairs: list[tuple[list[Segment], list[Segment]]] = [
        *within,
        *(([past.span], [(0, past.length)]) for past in layout.pasts),
    ]
    own = [length for length in layout.lengths if length > 0]
    lengths = [
        own,
        *([_length(segment) for segment in side] for pair in pairs for side in pair),
    ]
    places = [_places(side) for pair in pairs for side in pair]
    there = iter(moved([*map(_edges, lengths), *places], layout.device))
    # The edges come first, then the places, each in the order of the pairs.
    bounds = iter([Segments(next(there).to(torch.int32), max(x, default=0)) for x in lengths])
    causal = next(bounds)
    crossings: list[tuple[RaggedLooking, Tensor | None]] = []
    for number in range(len(pairs)):
        looking, seen = next(there), next(there)
        crossing = RaggedLooking(looking, next(bounds), next(bounds))
        crossings.append((crossing, seen if number < len(within) else None))
    return RaggedRow(causal, tuple(crossings))


def _edges(lengths: Sequence[int]) -> Tensor:
    """Bounds of segments without gaps, long [n + 1]."""
    return torch.tensor([0, *lengths]).cumsum(0)


def _places(segments: Sequence[Segment]) -> Tensor:
    """Every place of the segments, long [n]."""
    return torch.cat([torch.arange(start, end) for start, end in segments])


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
