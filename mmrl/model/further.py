"""What a packed row predicts besides the tokens of its answers: behind each answer, in the prompt, at the tokens.

    slot     any ids in the place behind an answer: the state of its last token predicts them, none is fed; of an
             answer that ends with what the policy did not write, behind the last token that it wrote
    suffix   given tokens behind an answer, fed like it: [answer | suffix] without the suffix's last token
    words    the words of the prompt, once for all answers of a group
    states   the hidden state of each answer token after it was read

An answer's last token is fed for the first, the second and the fourth: alone it predicts nothing of the answer. Nothing
of a row without such a wish changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmrl.model.row_layout import moved
from mmrl.model.tree_row import TreeRow


@dataclass(frozen=True)
class Wishes:
    """What a row shall predict besides its answers."""

    slot: bool = False
    suffix: bool = False
    words: bool = False
    states: bool = False

    @property
    def feed_last(self) -> bool:
        """Is the last token of an answer read by the model?"""
        return self.slot or self.suffix or self.states


@dataclass(frozen=True)
class Aim:
    """Places of a row, what is predicted there, and where it belongs."""

    places: Tensor
    """long [n]: stream index of the hidden state."""
    tokens: Tensor
    """long [n]; the ids of a slot are the caller's."""
    rows: Tensor
    """long [n]: row of the batch; of words, the number of the group in the row."""
    columns: Tensor
    """long [n]."""


@dataclass(frozen=True)
class Members:
    """Which rows of the batch read which group's words."""

    rows: Tensor
    """long [b]."""
    groups: Tensor
    """long [b]."""


@dataclass(frozen=True)
class Further:
    """The further aims of one packed row."""

    aims: Mapping[str, Aim]
    """"slot", "suffix", "words", "states": those that were wished for."""
    members: Members | None = None

    @property
    def size(self) -> int:
        """Tokens that go through the head besides those of the answers; states do not."""
        return sum(len(aim.places) for name, aim in self.aims.items() if name != "states")


NOTHING_FURTHER = Further({})


@dataclass(frozen=True)
class Said:
    """An answer in a row."""

    tokens: Tensor
    """long [T]."""
    suffix: Tensor
    """long [S]."""
    row: int
    first: int
    """Place of the state that predicts its first token."""
    own: Tensor
    """long [T]: places of its tokens."""
    after: int
    """Place of the first token of its suffix that is fed."""
    end: int
    """Tokens before its slot."""

    def behind(self, count: int) -> int:
        """Place of the state behind so many of its tokens."""
        return int(self.own[count - 1]) if count else self.first


@dataclass(frozen=True)
class Worded:
    """A prompt with its words."""

    words: Tensor
    """long [n]: where they are among its ids."""
    ids: Tensor
    """long [P]."""
    start: int
    """Place of its first token."""
    rows: tuple[int, ...]
    """Rows of the batch that answer it."""


@dataclass
class _Lists:
    """An aim on its way."""

    places: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)

    def add(self, places: Tensor, tokens: Tensor, row: int) -> None:
        """Neighbouring tokens of one row."""
        self.places.append(places)
        self.tokens.append(tokens)
        self.rows.append(torch.full((len(places),), row, dtype=torch.long))
        self.columns.append(torch.arange(len(places)))

    def joined(self) -> list[Tensor]:
        """Four times long [n]."""
        nothing = torch.zeros(0, dtype=torch.long)
        each = (self.places, self.tokens, self.rows, self.columns)
        return [torch.cat([nothing, *pieces]) for pieces in each]


def further(
    wishes: Wishes, said: Sequence[Said], asked: Sequence[Worded], device: torch.device
) -> Further:
    """The aims that the wishes name, on the device."""
    lists: dict[str, _Lists] = {}
    if wishes.slot:
        lists["slot"] = _slots(said)
    if wishes.suffix:
        lists["suffix"] = _suffixes(said)
    if wishes.states:
        lists["states"] = _states(said)
    pairs: list[tuple[int, int]] = []
    if wishes.words:
        lists["words"] = _words(asked)
        pairs = [(row, number) for number, one in enumerate(asked) for row in one.rows]
    read = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
    flat = [tensor for one in lists.values() for tensor in one.joined()]
    *there, members = moved([*flat, read], device)
    aims = {name: Aim(*there[4 * n : 4 * n + 4]) for n, name in enumerate(lists)}
    return Further(aims, Members(members[:, 0], members[:, 1]) if wishes.words else None)


def prompt_starts(
    row: TreeRow, roots: Sequence[int | None], lengths: Sequence[int], behind: int
) -> list[int]:
    """Place of the first token of each prompt: in the row, or from `behind` on if it was run before (root None).

    There lie all states of the first such prompt, then those of the next.
    """
    starts: list[int] = []
    for root, length in zip(roots, lengths, strict=True):
        if root is not None:
            starts.append(row.spans[root][0])
            continue
        starts.append(behind)
        behind += length
    return starts


def _slots(said: Sequence[Said]) -> _Lists:
    lists = _Lists()
    for answer in said:
        lists.add(
            torch.tensor([answer.behind(answer.end)]),
            torch.zeros(1, dtype=torch.long),
            answer.row,
        )
    return lists


def _suffixes(said: Sequence[Said]) -> _Lists:
    lists = _Lists()
    for answer in said:
        fed = answer.after + torch.arange(max(len(answer.suffix) - 1, 0))
        places = torch.cat([torch.tensor([answer.behind(len(answer.tokens))]), fed])[
            : len(answer.suffix)
        ]
        lists.add(places, answer.suffix, answer.row)
    return lists


def _states(said: Sequence[Said]) -> _Lists:
    lists = _Lists()
    for answer in said:
        lists.add(answer.own, answer.tokens, answer.row)
    return lists


def _words(asked: Sequence[Worded]) -> _Lists:
    lists = _Lists()
    for number, prompt in enumerate(asked):
        words = prompt.words[prompt.words > 0]  # nothing predicts the first token of all
        lists.add(prompt.start + words - 1, prompt.ids[words], number)
    return lists
