"""The forest of an engine outside of this process: each piece is asked for with all that lies before it as its start.

Whether what lies before a piece is computed again is the engine's affair; vLLM keeps whole blocks of ids that it has
read (prefix caching), so little is. Pictures within an answer go along with those of the prompt. Log-probs of tokens
are those that came with them when they were drawn; of given tokens, as of forced starts of plain answers, the engine
says none, and they count as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmrl.ground.seeds import derive_seed
from mmrl.rollouts.forest_book import Book, Growing
from mmrl.rollouts.forking import Feed, Piece, Start
from mmrl.rollouts.request import Asking, Request, Result, refuse_beyond
from mmrl.types import Rollout


class ResubmittedForest:
    """Trees on the prompts of some requests, grown by an engine that takes forced starts."""

    def __init__(self, engine: Asking, requests: Sequence[Request]) -> None:
        self.engine = engine
        self.book = Book(engine.policy, requests)
        self._closed = False

    def close(self) -> None:
        """As `Forest.close`; there is nothing to give up here."""
        self._closed = True

    def rollouts(self, leaves: Sequence[int]) -> list[Rollout]:
        """As `Forest.rollouts`."""
        return self.book.rollouts(leaves)

    def grow(
        self, starts: Sequence[Start], *, entropy: bool = False, top: int = 0
    ) -> list[Piece]:
        """As `Forest.grow`."""
        if self._closed:
            raise ValueError("This forest is closed; grow pieces while its context is open.")
        if entropy or top:
            refuse_beyond(self.engine, ("likely tokens",), "A forest whose places are told")
        opened = self.book.open(starts)
        drawing = [piece for piece in opened if len(piece.given) < piece.most]
        befores = [self.book.before(piece.place) for piece in drawing]
        requests = [self._request(p, b) for p, b in zip(drawing, befores, strict=True)]
        for piece in opened:
            piece.tokens, piece.logp = list(piece.given), [0.0] * len(piece.given)
        results = self.engine.answer(requests) if requests else []
        for piece, before, result in zip(drawing, befores, results, strict=True):
            self._take(piece, len(before), result)
        for piece in opened:
            piece.stop = piece.stop or piece.ending
        return [self.book.piece(piece) for piece in opened]

    def flow(self, feed: Feed, *, entropy: bool = False, top: int = 0) -> None:
        """As `Forest.flow`, in rounds: what can begin when the last round has ended is asked for together.

        Who waits for a slow tool keeps nobody from the next round; who is called back within a round waits for its end.
        """
        ended: list[Piece] = []
        while starts := feed(ended, 0):
            ended = self.grow(starts, entropy=entropy, top=top)

    def _request(self, piece: Growing, before: Sequence[int]) -> Request:
        """One answer that begins with all that lies before a piece."""
        whole = self.book.requests[piece.start.prompt]
        sampling = replace(
            whole.sampling,
            max_tokens=piece.before + piece.most,
            stop=(*whole.sampling.stop, *piece.start.stop),
        )
        root, *way = piece.way
        # A number that the way alone decides; below 2^61, so that engines may count on from it.
        number = (derive_seed(root, *way, "fork") >> 3) if way else root
        forced = (*before, *piece.given)
        shown = self.book.shown(piece)
        return replace(whole, sampling=sampling, first=number, forced=(forced,), within=shown)

    def _take(self, piece: Growing, before: int, result: Result) -> None:
        """Write down what became of a piece."""
        piece.tokens, piece.meaning = list(result.tokens[before:]), result.meaning
        piece.logp = None if result.logp is None else [float(x) for x in result.logp[before:]]
        piece.stop = "" if result.stop == "length" else result.stop
        # The engine counts whole answers, of which only the piece is new.
        self.engine.policy.counters["tokens/decode"] -= before
