"""Where the runs of a packed row lie for layers that read it token after token and carry a state (linear attention).

A run is a prompt or an answer. An answer goes on from what its prompt leaves behind: the last inputs of the layer's
convolution, and its state. Everything here is indices, worked out once per row and used by each of its layers:

* for the convolution the row is laid out anew, each run behind the few tokens that it must see (`Stretched`);
* for the state the runs are taken level by level, parents before children (`Plan`), those of similar length together
  and padded right, or one after another for kernels that take them so (`Runs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

LINEAR = "linear_attention"
"""Kind of such layers in a config."""
CHUNK = 64
"""Tokens that the delta rule computes at once; a run is padded to a whole number of chunks in any case."""
WASTE = 1.25
"""Most chunks of a shared call, relative to those its runs need."""
SLACK = 2
"""Chunks that a shared call may waste in any case: a further call costs more."""


@dataclass(frozen=True)
class Run:
    """Tokens [start, end) of the row that follow on another run's, or on nothing."""

    start: int
    end: int
    parent: int | None = None
    """Number of the run that this one goes on from; it comes earlier in the list."""
    past: int | None = None
    """Which of the sequences that are not in the row it goes on from, without a parent in it."""

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.end - self.start


@dataclass(frozen=True)
class Stretched:
    """The row with some tokens of context before each run.

    Behind the S tokens of the row stand the last ones of each past, and a zero.
    """

    places: Tensor
    """long [S']: place in the row of each token."""
    back: Tensor
    """long [S]: where each token of the row stands in it."""
    tails: Tensor
    """long [roots, context]: places of the last tokens of each run without a parent."""


@dataclass(frozen=True)
class Runs:
    """Runs of one level that are computed in one call."""

    places: Tensor
    """long [n, L]: place in the row of each token, 0 on padding; [1, T] if they lie one after another."""
    owners: Tensor | None
    """long [n]: which state of the level before each one starts from, at the first level which past, counted from 1, 0
    standing for nothing; None: all start from nothing."""
    valid: Tensor | None = None
    """bool [n, L]; None if nothing is padded."""
    cut: slice | None = None
    """The run itself if it is alone: then nothing is copied."""
    borders: Tensor | None = None
    """long [n + 1]: where each run begins and ends, if they lie one after another."""

    def take(self, row: Tensor) -> Tensor:
        """[1, S, ...] -> [n, L, ...]."""
        if self.cut is not None:
            return row[:, self.cut]
        return row[0].index_select(0, self.places.flatten()).unflatten(0, self.places.shape)

    def take_silent(self, row: Tensor) -> Tensor:
        """[1, S, H] -> [n, L, H], zero on padding."""
        taken = self.take(row)
        return taken if self.valid is None else taken * self.valid[..., None].to(taken.dtype)


@dataclass(frozen=True)
class Plan:
    """All runs in the order in which they are computed."""

    levels: tuple[tuple[Runs, ...], ...]
    """Each level starts from the states of the one before, in the order in which these were computed."""
    back: Tensor
    """long [S]: where each token of the row stands in the outputs of all calls, one after another."""
    roots: Tensor
    """long [roots]: which state of the first level belongs to each run without a parent."""


@dataclass
class Carried:
    """What the linear-attention layers of a model hand from token to token, for several sequences."""

    inputs: list[Tensor] = field(default_factory=list)
    """Per layer [N, C, context]: the last inputs of its convolution."""
    states: list[Tensor] = field(default_factory=list)
    """Per layer [N, H, dk, dv]: its state, in single precision or better."""

    def of(self, rows: Tensor) -> Carried:
        """Copies for these sequences (long [n]), each as often as it is named."""
        return Carried(
            [inputs.index_select(0, rows) for inputs in self.inputs],
            [states.index_select(0, rows) for states in self.states],
        )

    def arrange(self, rows: Tensor) -> None:
        """Go on with these sequences in this order (long [n])."""
        # Layer after layer, so that the old ones are never all there beside the new ones.
        for tensors in (self.inputs, self.states):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = tensor.index_select(0, rows)

    def room(self, count: int) -> Carried:
        """Nothing, for so many sequences like these."""
        return Carried(
            [inputs.new_zeros(count, *inputs.shape[1:]) for inputs in self.inputs],
            [states.new_zeros(count, *states.shape[1:]) for states in self.states],
        )

    def put(self, rows: Tensor, others: Sequence[Carried]) -> None:
        """Write others, of one sequence each, in the place of these sequences (long [n])."""
        for kind in ("inputs", "states"):
            layers = zip(
                getattr(self, kind), *(getattr(one, kind) for one in others), strict=True
            )
            for mine, *theirs in layers:
                mine[rows] = torch.cat(theirs)

    def tensors(self) -> list[Tensor]:
        """All of them. A step writes into them."""
        return [*self.inputs, *self.states]


def carried_bytes(text: Any, itemsize: int) -> int:
    """Bytes that the linear attention of a language model carries per sequence, by its config; 0 without such layers.

    The states are in single precision or better, the convolutions' inputs in the model's format of `itemsize` bytes.
    """
    layers = list(getattr(text, "layer_types", None) or []).count(LINEAR)
    if not layers:
        return 0
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    inputs = (2 * keys + values) * (text.linear_conv_kernel_dim - 1)
    return layers * (values * text.linear_key_head_dim * max(4, itemsize) + inputs * itemsize)


@dataclass(frozen=True)
class RecurrentRow:
    """The runs of one packed row."""

    runs: tuple[Run, ...]
    """One without tokens is left out; its children go on from its parent."""
    length: int
    """Tokens in the row."""
    device: torch.device
    pasts: int = 0
    """Sequences that are not in the row, but that runs in it go on from."""
    kept: Carried | None = None
    """If given (prefill of a rollout), each layer adds what it leaves behind per run without a parent."""
    noted: dict[int, Tensor] = field(default_factory=dict, repr=False)
    """By layer, the last inputs of its convolution with their graph, until its state is known (a prompt is opened)."""
    _stretched: dict[int, Stretched] = field(default_factory=dict, repr=False)
    _plans: dict[bool, Plan] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        parents: Sequence[int],
        device: torch.device,
        pasts: Sequence[tuple[int, int]] = (),
    ) -> RecurrentRow:
        """Of segments one behind the other, each with the number of its parent; a negative one is no parent.

        `pasts`: slices [start, end) of the row that go on from what is not in it.
        """
        runs: list[Run] = []
        for end, length, parent in zip(accumulate(lengths), lengths, parents, strict=True):
            start = end - length
            if parent >= 0:
                runs.append(Run(start, end, parent))
                continue
            beyond = [i for i, (first, last) in enumerate(pasts) if first <= start < last]
            runs.append(Run(start, end, past=beyond[0] if beyond and length else None))
        return cls(tuple(runs), sum(lengths), device, len(pasts))

    def keep(self) -> Carried:
        """Make this the row of a prefill: what its layers leave behind is put into the result as they run."""
        carried = Carried()
        object.__setattr__(self, "kept", carried)  # frozen for everybody else
        return carried

    def stretched(self, context: int) -> Stretched:
        """The row for a convolution that sees so many tokens before each one."""
        if context not in self._stretched:
            self._stretched[context] = _stretch(self, context)
        return self._stretched[context]

    def plan(self, padded: bool) -> Plan:
        """The runs for calls with padding, or for calls with borders."""
        if padded not in self._plans:
            self._plans[padded] = _plan(self, padded)
        return self._plans[padded]


def _stretch(row: RecurrentRow, context: int) -> Stretched:
    zero = row.length + row.pasts * context
    nothing = torch.full((context,), zero)
    tails: list[Tensor] = []  # per run, what one that follows on it must see
    pieces: list[Tensor] = []
    back = torch.zeros(row.length, dtype=torch.long)
    at = 0
    for run in row.runs:
        before = nothing if run.parent is None else tails[run.parent]
        if run.past is not None:
            before = row.length + run.past * context + torch.arange(context)
        seen = torch.cat([before, torch.arange(run.start, run.end)])
        tails.append(seen[len(seen) - context :])
        if run.length:
            pieces.append(seen)
            back[run.start : run.end] = at + context + torch.arange(run.length)
            at += len(seen)
    of_roots = [tail for run, tail in zip(row.runs, tails, strict=True) if run.parent is None]
    return Stretched(
        torch.cat(pieces).to(row.device),
        back.to(row.device),
        torch.stack(of_roots).to(row.device),
    )


def _plan(row: RecurrentRow, padded: bool) -> Plan:
    levels: list[tuple[Runs, ...]] = []
    back = torch.zeros(row.length, dtype=torch.long)
    # The state of a run, by its number: a place among those of its level.
    states: dict[int, int] = {}
    at = 0
    for members in _levels(row.runs):
        calls: list[Runs] = []
        first = len(states)
        for numbers in _alike(row.runs, members) if padded else [members]:
            runs = [row.runs[number] for number in numbers]
            parents = [_filled_parent(row.runs, number) for number in numbers]
            owners = [states[parent] for parent in parents if parent is not None]
            if row.pasts and not levels:
                owners = [0 if run.past is None else run.past + 1 for run in runs]
            call, offsets = _call(runs, owners, padded, row.device)
            calls.append(call)
            for run, offset in zip(runs, offsets, strict=True):
                back[run.start : run.end] = at + offset + torch.arange(run.length)
            at += call.places.numel()
            for number in numbers:
                states[number] = len(states) - first
        levels.append(tuple(calls))
    roots = [states.get(number, 0) for number, run in enumerate(row.runs) if run.parent is None]
    return Plan(tuple(levels), back.to(row.device), _long(roots, row.device))


def _levels(runs: Sequence[Run]) -> list[list[int]]:
    """Numbers of the runs that hold tokens, by how many such runs lie above them."""
    depths: list[int] = []
    levels: dict[int, list[int]] = {}
    for number, run in enumerate(runs):
        above = -1 if run.parent is None else depths[run.parent]
        # Without tokens it counts as a part of its parent.
        depths.append(above + 1 if run.length else above)
        if run.length:
            levels.setdefault(above + 1, []).append(number)
    return [levels[depth] for depth in sorted(levels)]


def _filled_parent(runs: Sequence[Run], number: int) -> int | None:
    """The nearest run above this one that holds a token."""
    above = runs[number].parent
    while above is not None and not runs[above].length:
        above = runs[above].parent
    return above


def _alike(runs: Sequence[Run], numbers: Sequence[int]) -> list[list[int]]:
    """Runs sorted by length and cut into calls that waste few chunks."""
    calls: list[list[int]] = []
    used = longest = 0
    for number in sorted(numbers, key=lambda number: -runs[number].length):
        chunks = -(-runs[number].length // CHUNK)
        # The longest comes first, so it decides how far the others are padded.
        padded = longest * (len(calls[-1]) + 1) if calls else 0
        if calls and padded <= WASTE * (used + chunks) + SLACK:
            calls[-1].append(number)
            used += chunks
        else:
            calls.append([number])
            used = longest = chunks
    return calls


def _call(
    runs: Sequence[Run], owners: Sequence[int], padded: bool, device: torch.device
) -> tuple[Runs, list[int]]:
    """The call of these runs, and where the outputs of each begin in its own."""
    starts_from = _long(owners, device) if owners else None
    lengths = torch.tensor([run.length for run in runs])
    if not padded:
        places = torch.cat([torch.arange(run.start, run.end) for run in runs])
        borders = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        line = Runs(places[None].to(device), starts_from, borders=borders.to(device))
        return line, borders[:-1].tolist()
    width = int(lengths.max())
    column = torch.arange(width)
    valid = column < lengths[:, None]
    starts = torch.tensor([run.start for run in runs])
    places = torch.where(valid, starts[:, None] + column, 0).to(device)
    alone = slice(runs[0].start, runs[0].end) if len(runs) == 1 else None
    silent = None if bool(valid.all()) else valid.to(device)
    return Runs(places, starts_from, silent, alone), [i * width for i in range(len(runs))]


def _long(numbers: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long, device=device)
