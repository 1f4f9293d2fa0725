"""What a forest has grown: its pieces, where each goes on, what keys its draws, and the answers that lie in it.

No engine and no model here; engines ask where a piece begins (`Book.open`) and write down what became of it.

    way of a piece    number of its answer, then (tokens kept, number among those that go on there) for each fork
    key of its draws  (run seed, step, prompt id, view, *way, "answer"): from the prompt, as an answer of `generate`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from mmrl.model.answer_media import WITHIN, AnswerMedia, Inside
from mmrl.model.policy import Policy
from mmrl.rollouts.forking import Piece, Start
from mmrl.rollouts.request import Meaning, Request, Result, Within, rollout_of
from mmrl.types import Media, Role, Rollout


@dataclass(frozen=True)
class Place:
    """A token behind which pieces begin, under one name only: a cut at a piece's beginning is where that one began."""

    prompt: int
    piece: int | None = None
    cut: int = 0


@dataclass
class Growing:
    """A piece, from its beginning to its end."""

    number: int
    start: Start
    place: Place
    way: tuple[int, ...]
    given: tuple[int, ...]
    """Its given tokens as far as there is room."""
    most: int
    """Tokens that it may have."""
    left: int
    """Tokens that the answer has room for."""
    before: int
    """Tokens of the answer that lie before it."""
    begins: int
    """How far behind the beginning of the answer it begins, in positions."""
    inside: Inside | None = None
    """What is shown among the given ids."""
    tokens: list[int] = field(default_factory=list)
    logp: list[float] | None = field(default_factory=list)
    """None: the engine says nothing of them that training could compare."""
    stop: str = ""
    meaning: Meaning = "whole"

    def reach(self, count: int) -> int:
        """How far behind its beginning what follows so many of its tokens begins; `WITHIN` inside a medium."""
        if self.inside is None:
            return count
        given = min(count, len(self.given))
        at = int(self.inside.begins[given])
        return at if at == WITHIN else at + count - given

    def media(self, upto: int) -> tuple[Media, ...]:
        """What is shown among its first tokens."""
        slots = () if self.inside is None else self.inside.slots
        return self.start.media[: sum(int(slot[-1]) < upto for slot in slots)]

    @property
    def ending(self) -> str:
        """Why it ends if nothing but its length ends it."""
        return "length" if len(self.tokens) >= self.left else "piece"


class Book:
    """Pieces on some prompts. Places are looked up before anything is grown, so that nothing is half done."""

    def __init__(self, policy: Policy, requests: Sequence[Request]) -> None:
        self.policy, self.requests = policy, requests
        self.pieces: list[Growing] = []
        self._there: Counter[tuple[object, ...]] = Counter()
        """Place -> pieces that go on there so far; of a prompt by its id, which may be there twice."""
        self._first: dict[str, int] = {}
        for request in requests:
            self._first.setdefault(request.prompt.id, request.first)

    @cached_property
    def _media(self) -> AnswerMedia:
        return AnswerMedia(self.policy.processing)

    def open(self, starts: Sequence[Start]) -> list[Growing]:
        """A new piece for each. Raises ValueError for a start that cannot be."""
        places = [self._place(start) for start in starts]
        before = len(self.pieces)
        for start, place in zip(starts, places, strict=True):
            self.pieces.append(self._open(start, place))
        return self.pieces[before:]

    def key(self, piece: Growing) -> tuple[int | str, ...]:
        """What keys its draws."""
        request = self.requests[piece.start.prompt]
        return (*request.seed, request.prompt.id, request.branch, *piece.way, "answer")

    def before(self, place: Place) -> list[int]:
        """The answer's tokens up to a place."""
        return [
            token
            for number, upto in self.path(place)
            for token in self.pieces[number].tokens[:upto]
        ]

    def shown(self, piece: Growing) -> tuple[Within, ...]:
        """What the answer shows up to the last given token of a piece."""
        way = [(self.pieces[number], upto) for number, upto in self.path(piece.place)]
        found: list[Within] = []
        for one, upto in (*way, (piece, len(piece.given))):
            if one.inside is None:
                continue
            shows = zip(one.media(upto), one.inside.visual, one.inside.slots, strict=False)
            found += [Within(medium, seen, len(slot)) for medium, seen, slot in shows]
        return tuple(found)

    def path(self, place: Place) -> list[tuple[int, int]]:
        """(piece, tokens of it) from the prompt to a place."""
        found: list[tuple[int, int]] = []
        # No recursion: a search may grow a way of thousands of pieces.
        while place.piece is not None:
            found.append((place.piece, place.cut))
            place = self.pieces[place.piece].place
        return found[::-1]

    def rollouts(self, leaves: Sequence[int]) -> list[Rollout]:
        """As `Forest.rollouts`."""
        for leaf in leaves:
            if not 0 <= leaf < len(self.pieces):
                raise ValueError(self._no_piece(leaf))
        ends = [self.pieces[leaf] for leaf in leaves]
        ways = [self.path(Place(e.start.prompt, e.number, len(e.tokens))) for e in ends]
        nodes = shared([end.start.prompt for end in ends], ways)
        rows = zip(ends, ways, nodes, strict=True)
        return [self._rollout(end, way, path) for end, way, path in rows]

    def piece(self, piece: Growing, **said: Tensor | None) -> Piece:
        """What is told of a piece; `said`: fields besides."""
        kind = torch.promote_types(self.policy.dtype, torch.float32)
        logp = [float("nan")] * len(piece.tokens) if piece.logp is None else piece.logp
        told = torch.tensor(logp, dtype=kind)
        tokens = tuple(piece.tokens)
        return Piece(piece.number, piece.start, tokens, told, piece.stop, **said, way=piece.way)

    def _place(self, start: Start) -> Place:
        if not 0 <= start.prompt < len(self.requests):
            raise ValueError(
                f"A piece shall start at prompt {start.prompt} of a forest of {len(self.requests)} prompts; they are "
                "counted from 0."
            )
        banned = () if start.media else self.requests[start.prompt].banned
        for token in start.given:
            if token in banned:
                raise ValueError(
                    f"A piece shall begin with the id {token}, which stands for a picture or for no text; give ids of "
                    "words."
                )
        if start.piece is None:
            if start.cut:
                raise ValueError(
                    f"A piece shall keep {start.cut} tokens of no piece; say of which one (Start.piece)."
                )
            return Place(start.prompt)
        if not 0 <= start.piece < len(self.pieces):
            raise ValueError(self._no_piece(start.piece))
        above = self.pieces[start.piece]
        if above.start.prompt != start.prompt:
            raise ValueError(
                f"Piece {start.piece} belongs to prompt {above.start.prompt}, but shall go on at prompt {start.prompt}."
            )
        cut = len(above.tokens) if start.cut is None else start.cut
        if not 0 <= cut <= len(above.tokens):
            raise ValueError(
                f"A piece shall keep {cut} tokens of piece {start.piece}, which has {len(above.tokens)}."
            )
        if above.reach(cut) == WITHIN:
            raise ValueError(
                f"A piece shall keep {cut} tokens of piece {start.piece}, which ends within a picture or clip; keep "
                "all of it, or nothing."
            )
        if above.stop == "eos" and cut == len(above.tokens):
            raise ValueError(
                f"Piece {start.piece} has ended with its end token, behind which nothing goes on; keep fewer than its "
                f"{cut} tokens (Start.cut)."
            )
        return above.place if cut == 0 else Place(start.prompt, start.piece, cut)

    def _open(self, start: Start, place: Place) -> Growing:
        name = self.requests[place.prompt].prompt.id
        there = (name,) if place.piece is None else (place,)
        number = self._there[there]
        self._there[there] += 1
        if place.piece is None:
            way = (self._first[name] + number,)
        else:
            way = (*self.pieces[place.piece].way, place.cut, number)
        before = sum(upto for _, upto in self.path(place))
        begins = 0
        if place.piece is not None:
            above = self.pieces[place.piece]
            begins = above.begins + above.reach(place.cut)
        left = self.requests[place.prompt].sampling.max_tokens - before
        given = start.given[:left]
        most = left if start.max_tokens is None else min(left, start.max_tokens)
        most = max(most, len(given))
        number, inside = len(self.pieces), self._inside(start, left)
        return Growing(number, start, place, way, given, most, left, before, begins, inside)

    def _inside(self, start: Start, left: int) -> Inside | None:
        """What given ids show. Raises ValueError if they do not belong together."""
        if not start.media:
            return None
        request = self.requests[start.prompt]
        if request.branch != "raw":
            raise ValueError(
                f"Answers under the view {request.branch!r} cannot be shown further pictures; sample them as they are."
            )
        if len(start.given) > left:
            raise ValueError(
                f"A piece shall begin with {len(start.given)} ids that show pictures, but the answer has room for "
                f"{left} tokens; begin it only where all of them fit."
            )
        tokens = torch.tensor(start.given)
        roles = torch.full_like(tokens, int(start.role), dtype=torch.uint8)
        shown = Rollout(
            request.prompt, 0, request.encoded.ids, tokens, roles, "", "", media=start.media
        )
        return self._media.of(shown)

    def _rollout(
        self, end: Growing, way: Sequence[tuple[int, int]], path: tuple[tuple[int, int], ...]
    ) -> Rollout:
        tokens: list[int] = []
        logp: list[float] | None = []
        roles: list[int] = []
        media: list[Media] = []
        for number, upto in way:
            piece = self.pieces[number]
            tokens += piece.tokens[:upto]
            given = min(len(piece.given), upto)
            roles += [int(piece.start.role)] * given + [int(Role.POLICY)] * (upto - given)
            media += piece.media(upto)
            known = logp is not None and piece.logp is not None
            logp = [*(logp or []), *(piece.logp or [])[:upto]] if known else None
        stop = "length" if end.stop == "piece" else end.stop
        told = Result(tokens, logp, stop, end.meaning, version=self.policy.version)
        rollout = rollout_of(self.policy, self.requests[end.start.prompt], 0, told)
        written = torch.tensor(roles, dtype=torch.uint8)
        return replace(rollout, roles=written, path=path, media=tuple(media))

    def _no_piece(self, number: int) -> str:
        return f"Piece {number} was not grown in this forest, which has {len(self.pieces)} (numbers from 0)."


def shared(
    groups: Sequence[int], ways: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[tuple[int, int], ...]]:
    """`Rollout.path` of answers given as (piece, tokens of it): runs that the same answers have in common are nodes.

    `groups`: the group of each; nodes are numbered from 0 in each group.
    """
    cuts: dict[int, set[int]] = {}
    for way in ways:
        for piece, upto in way:
            cuts.setdefault(piece, set()).add(upto)
    runs = [_runs(way, cuts) for way in ways]
    through: dict[tuple[int, int, int], set[int]] = {}
    for answer, its in enumerate(runs):
        for run in its:
            through.setdefault(run, set()).add(answer)
    numbers: dict[int, dict[tuple[int, int, int], int]] = {}
    found: list[tuple[tuple[int, int], ...]] = []
    for group, its in zip(groups, runs, strict=True):
        own = numbers.setdefault(group, {})
        path: list[tuple[int, int]] = []
        last: set[int] = set()
        for run in its:
            piece, start, end = run
            if path and through[run] == last:  # nobody joins or leaves in between
                path[-1] = (path[-1][0], path[-1][1] + end - start)
                continue
            path.append((own.setdefault(run, len(own)), end - start))
            last = through[run]
        found.append(tuple(path))
    return found


def _runs(
    way: Sequence[tuple[int, int]], cuts: dict[int, set[int]]
) -> list[tuple[int, int, int]]:
    """(piece, start, end) of a way, cut wherever any answer leaves; without empty ones."""
    found: list[tuple[int, int, int]] = []
    for piece, upto in way:
        ends = sorted(cut for cut in cuts[piece] if 0 < cut <= upto)
        found += [(piece, a, b) for a, b in zip([0, *ends], ends, strict=False)]
    return found
