"""A forest without a model: tokens are drawn by the way to them, from ten, of which 0 ends an answer."""

from __future__ import annotations

import contextlib
from collections import Counter

import torch

from mmrl.ground.seeds import philox
from mmrl.rollouts.forking import Piece
from mmrl.types import Rollout

END = 0


class MadeUpForest:
    """Trees of `Start`s; remembers what was asked. `ends`: probability that a token is the end token."""

    def __init__(self, prompts, longest=12, ends=0.1, seed=0):
        self.prompts, self.longest, self.ends, self.seed = prompts, longest, ends, seed
        self.pieces, self.calls, self.closed = [], [], False
        self._there = Counter()

    def way(self, number, upto=None):
        """(piece, tokens of it) from the prompt."""
        piece = self.pieces[number]
        above, upto = piece.start.piece, len(piece.tokens) if upto is None else upto
        before = [] if above is None else self.way(above, piece.start.cut)
        return [*before, (number, upto)]

    def tokens(self, way):
        return [token for number, upto in way for token in self.pieces[number].tokens[:upto]]

    def grow(self, starts, *, entropy=False, top=0):
        self.calls.append(list(starts))
        return [self._piece(start, entropy, top) for start in starts]

    def _piece(self, start, entropy, top):
        before = [] if start.piece is None else self.tokens(self.way(start.piece, start.cut))
        assert END not in before, "nothing goes on behind an end"
        place = (start.prompt, *before)
        sibling = self._there[place]
        self._there[place] += 1
        room = self.longest - len(before)
        assert room > 0, "no room is left"
        most = room if start.max_tokens is None else min(room, start.max_tokens)
        tokens, stop = [], "length" if most == room else "piece"
        rng = philox("made up", self.seed, start.prompt, *before, "sibling", sibling)
        while len(tokens) < most:
            tokens.append(END if rng.random() < self.ends else 1 + int(9 * rng.random()))
            if tokens[-1] == END:
                stop = "eos"
                break
        said = torch.tensor([0.1 * (1 + token % 5) for token in tokens])
        candidates = torch.arange(top).expand(len(tokens), top)
        piece = Piece(len(self.pieces), start, tuple(tokens), -said, stop,
                      entropy=said if entropy else None,
                      top_logp=-said[:, None] - 0.01 * candidates if top else None,
                      top_ids=candidates if top else None)  # fmt: skip
        self.pieces.append(piece)
        return piece

    def rollouts(self, leaves):
        out = []
        for leaf in leaves:
            way = self.way(leaf)
            tokens = torch.tensor(self.tokens(way))
            prompt = self.pieces[leaf].start.prompt
            out.append(Rollout(self.prompts[prompt], prompt, torch.tensor([5]), tokens,
                               torch.zeros(len(tokens), dtype=torch.uint8), " ".join(map(str, tokens.tolist())),
                               self.pieces[leaf].stop, logp=-torch.ones(len(tokens)),
                               path=self._path(way, leaves)))  # fmt: skip
        return out

    def _path(self, way, leaves):
        """Pieces cut where any answer leaves them. Nodes are other numbers for other leaves, as in a real forest."""
        cuts = {(piece, upto) for leaf in leaves for piece, upto in self.way(leaf)}
        path = []
        for number, upto in way:
            ends = sorted(
                {cut for piece, cut in cuts if piece == number and cut < upto} | {upto}
            )
            begins = [0, *ends[:-1]]
            path += [
                (100 * number + b, e - b) for b, e in zip(begins, ends, strict=True) if e > b
            ]
        return tuple(path)


@contextlib.contextmanager
def planted(into, engine, prompts, sampling, now, **_):
    """As `forking.forest`, with a forest that is kept in a list."""
    trees = MadeUpForest(list(prompts), sampling.max_tokens, seed=now.step)
    into.append(trees)
    yield trees
    trees.closed = True
