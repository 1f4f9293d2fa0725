"""The answers of a group as a tree: what several of them begin with is one piece, and is computed once.

`Rollout.path` says which tokens answers have in common. A group without paths is the tree whose pieces are its answers,
in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmrl.model.row_layout import ROOT

Path = tuple[tuple[int, int], ...]
"""(node, tokens) from the prompt to the end of an answer; empty: it shares nothing."""
Name = tuple[int, ...]
"""The nodes from the prompt to a piece, which tell it from all others of its prompt."""


@dataclass(frozen=True)
class Piece:
    """A run of tokens that one or several answers have in common."""

    tokens: Tensor
    """long [n]."""
    temperature: Tensor
    """float64 [n]."""
    above: int
    """Number of the piece that it goes on from; `ROOT` for the prompt."""
    name: Name
    """A negative number stands for what is one answer's alone."""
    answer: int
    """The first answer that has it."""
    start: int
    """Tokens of that answer before it."""

    @property
    def span(self) -> tuple[int, int]:
        """Its first token in that answer, and the one behind its last."""
        return self.start, self.start + len(self.tokens)


@dataclass(frozen=True)
class AnswerTree:
    """The pieces of some answers to one prompt."""

    pieces: tuple[Piece, ...]
    """Depth first: behind each piece comes all that goes on from it."""
    ways: tuple[tuple[int, ...], ...]
    """Per answer, the pieces on its way from the prompt."""

    @property
    def inner(self) -> frozenset[int]:
        """Pieces that others go on from."""
        return frozenset(piece.above for piece in self.pieces) - {ROOT}

    @property
    def endings(self) -> list[list[int]]:
        """Per piece, the answers whose last one it is."""
        found: list[list[int]] = [[] for _ in self.pieces]
        for answer, way in enumerate(self.ways):
            found[way[-1]].append(answer)
        return found


@dataclass
class _Shoot:
    """A piece on its way: where its tokens stand in the first answer that has it."""

    answer: int
    start: int
    end: int
    further: dict[int, _Shoot] = field(default_factory=dict)
    number: int = ROOT


def answer_tree(
    answers: Sequence[Tensor],
    paths: Sequence[Path] = (),
    temperatures: Sequence[float | Tensor] = (),
) -> AnswerTree:
    """The tree of answers [T_i] with these paths; without paths each is a piece of its own.

    Raises ValueError for a path that does not fit its answer, and for answers that differ where their paths say that
    they do not.
    """
    each = temperatures or (1.0,) * len(answers)
    heat = [temperature_of(*pair) for pair in zip(answers, each, strict=True)]
    roots: dict[int, _Shoot] = {}
    shoots: list[list[_Shoot]] = []
    for number, tokens in enumerate(answers):
        path = paths[number] if paths else ()
        check_path(path, len(tokens))
        shoots.append(_follow(roots, number, path or ((-1 - number, len(tokens)),)))
        for shoot in shoots[-1]:
            _refuse_other(answers, heat, shoot, number)
    pieces = _number(roots, answers, heat)
    return AnswerTree(
        tuple(pieces), tuple(tuple(shoot.number for shoot in way) for way in shoots)
    )


def check_path(path: Path, length: int) -> None:
    """Raise ValueError unless the path is empty or names each token of an answer of this length once."""
    if path and (sum(count for _, count in path) != length or min(n for _, n in path) < 0):
        raise ValueError(
            f"An answer of {length} tokens has the path {path}, whose nodes hold "
            f"{sum(count for _, count in path)}; the counts must be 0 or more and add up to its length."
        )


def temperature_of(tokens: Tensor, temperature: float | Tensor) -> Tensor:
    """The temperature of each of the tokens [T], float64 [T], from one number or one per token."""
    # In double precision, for heads that compute in it: 0.7 in single precision is another temperature.
    value = torch.as_tensor(temperature, dtype=torch.float64, device="cpu")
    if value.ndim and value.shape != tokens.shape:
        raise ValueError(
            f"An answer of {len(tokens)} tokens has {len(value)} temperatures; give one number, or one per token."
        )
    return value.expand(len(tokens))


def unique_tokens(paths: Sequence[Path], lengths: Sequence[int]) -> int:
    """Tokens that these answers to one prompt take in a packed row; the last of an answer predicts nothing.

    `lengths`: tokens of each answer with what is scored behind it.
    """
    counts: dict[object, int] = {}
    goes_on: set[object] = set()
    ends: list[tuple[object, int]] = []
    for number, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        way = path or ((-1 - number, length),)
        names = [tuple(node for node, _ in way[: end + 1]) for end in range(len(way))]
        for name, (_, count) in zip(names, way, strict=True):
            counts[name] = count
        goes_on.update(names[:-1])
        ends.append((names[-1], length - sum(count for _, count in way)))
    # Only a piece that nothing goes on from keeps its last token to itself.
    behind = sum(more for _, more in ends)
    spared = sum(
        1
        for name, more in dict(ends).items()
        if name not in goes_on and counts[name] + more > 0
    )
    return sum(counts.values()) + behind - spared


def _follow(roots: dict[int, _Shoot], number: int, path: Path) -> list[_Shoot]:
    """The shoots on an answer's way, grown where there are none yet."""
    found: list[_Shoot] = []
    level, start = roots, 0
    for node, count in path:
        shoot = level.get(node)
        if shoot is None:
            shoot = level[node] = _Shoot(number, start, start + count)
        elif shoot.end - shoot.start != count:
            raise ValueError(
                f"Node {node} has {shoot.end - shoot.start} tokens on the path of one answer and {count} on that of "
                "another; a node must be cut wherever answers part."
            )
        found.append(shoot)
        level, start = shoot.further, start + count
    return found


def _refuse_other(
    answers: Sequence[Tensor], heat: Sequence[Tensor], shoot: _Shoot, number: int
) -> None:
    """Raise ValueError if an answer says something else than the first one on its shared way."""
    if shoot.answer == number:
        return
    here = slice(shoot.start, shoot.end)
    for what, values in (("tokens", answers), ("temperatures", heat)):
        if not torch.equal(values[shoot.answer][here], values[number][here]):
            raise ValueError(
                f"Answers {shoot.answer} and {number} of a group share the {what} {shoot.start} to {shoot.end - 1} by "
                "their paths, but differ there."
            )


def _number(
    roots: dict[int, _Shoot],
    answers: Sequence[Tensor],
    heat: Sequence[Tensor],
) -> list[Piece]:
    """Give the shoots their numbers, depth first; their pieces in this order."""
    pieces: list[Piece] = []
    # No recursion: a search may grow a way of thousands of nodes.
    waiting: list[tuple[_Shoot, Name, int]] = [
        (shoot, (node,), ROOT) for node, shoot in reversed(roots.items())
    ]
    while waiting:
        shoot, name, above = waiting.pop()
        shoot.number = len(pieces)
        here = slice(shoot.start, shoot.end)
        said, heated = answers[shoot.answer][here], heat[shoot.answer][here]
        pieces.append(Piece(said, heated, above, name, shoot.answer, shoot.start))
        behind = reversed(shoot.further.items())
        waiting += [(one, (*name, node), shoot.number) for node, one in behind]
    return pieces


def named(path: Path) -> Iterator[tuple[Name, int, int]]:
    """(name, first token, token behind the last) of each piece on a path."""
    name: Name = ()
    start = 0
    for node, count in path:
        name = (*name, node)
        yield name, start, start + count
        start += count
