"""The forest of the engine in this process: keys and values of all that was grown stay, and what forks looks at them.

    grow    prompts that nobody has asked yet are read in packed rows, once
            the token before each fork is fed once more for its state, and written only if it never was
            given tokens of a piece are read in one row that looks at what lies before them
            then all pieces advance together, a token each, as many at a time as the budget has logits for

Counted in `tokens/prefill`: tokens of prompts and given ones; in `tokens/decode`: tokens that were fed one by one.

A piece is drawn from a stream of its own, and sampled as the plain engine samples: a forest whose pieces all start at
the prompts is `generate`, draw for draw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.model.budget import Costs
from mmrl.model.logprobs import logits
from mmrl.model.packing import Group, pack
from mmrl.model.policy import Policy
from mmrl.model.recurrent_row import LINEAR
from mmrl.model.row_layout import ROOT, Layout, Past
from mmrl.model.tree_decoding import Fed, TreeDecoding, TreeKeys
from mmrl.rollouts.forest_book import Book, Growing, Place
from mmrl.rollouts.forking import Feed, Piece, Start
from mmrl.rollouts.next_token import drawn, truncated, uniforms
from mmrl.rollouts.request import Request
from mmrl.rollouts.sampler import Answer, stop_string
from mmrl.rollouts.seating import Lengths, pieces
from mmrl.types import Role, Rollout

BLOCK = {"cpu": 32, "cuda": 64}
"""Tokens of a block of keys and values: half of one is lost per piece."""


def can_fork(base: Any) -> bool:
    """Can answers of this model fork? Not where layers carry a state, which is that of the last token only."""
    kinds = getattr(base.config.get_text_config(), "layer_types", None) or []
    return LINEAR not in kinds


@dataclass
class _Told:
    """What is said of the places of a piece."""

    entropy: list[Tensor]
    top_logp: list[Tensor]
    top_ids: list[Tensor]


@dataclass(frozen=True)
class _Asked:
    """What shall be said."""

    entropy: bool
    top: int

    @property
    def anything(self) -> bool:
        return self.entropy or self.top > 0


@dataclass
class _Seats:
    """N pieces that advance together."""

    pieces: list[Growing]
    noise: Tensor
    """float [N, longest answer]: the draws of each."""
    states: Tensor
    """[N, D]: hidden states that predict the next token of each."""
    before: dict[int, list[int]]
    """Number of a piece -> the answer's tokens before it."""

    def join(self, others: _Seats) -> None:
        """Take others in, behind those that are there."""
        if self.pieces:
            self.noise = torch.cat([self.noise, others.noise])
            self.states = torch.cat([self.states, others.states])
        else:
            self.noise, self.states = others.noise, others.states
        self.pieces = [*self.pieces, *others.pieces]
        self.before |= others.before


class GrowingForest:
    """Trees on the prompts of some requests, which are alike in all but the prompt and its pixels."""

    def __init__(
        self,
        policy: Policy,
        requests: Sequence[Request],
        rows_at_once: int,
        block: int | None = None,
    ) -> None:
        device = policy.device
        self.policy, self.requests = policy, requests
        self.book = Book(policy, requests)
        self.keys = TreeKeys(block or BLOCK.get(device.type, 32))
        self._costs = Costs.of_model(policy.base)
        self._rows = max(1, min(rows_at_once, policy.budget.logits // self._costs.row))
        self._states: dict[Place, Tensor] = {}
        """Place -> hidden state [D] that predicts what comes next."""
        self._closed = False

    def close(self) -> None:
        """As `Forest.close`."""
        self.keys = TreeKeys(self.keys.size)
        self._states.clear()
        self._closed = True

    def rollouts(self, leaves: Sequence[int]) -> list[Rollout]:
        """As `Forest.rollouts`."""
        return self.book.rollouts(leaves)

    @torch.no_grad()
    def grow(
        self, starts: Sequence[Start], *, entropy: bool = False, top: int = 0
    ) -> list[Piece]:
        """As `Forest.grow`."""
        asked, told = _Asked(entropy, top), {}
        opened = self._begin(starts, asked, told)
        drawing = [piece for piece in opened if len(piece.tokens) < piece.most]
        for first in range(0, len(drawing), self._rows):
            self._draw(drawing[first : first + self._rows], asked, told)
        return [self._told(piece, asked, told) for piece in opened]

    @torch.no_grad()
    def flow(self, feed: Feed, *, entropy: bool = False, top: int = 0) -> None:
        """As `Forest.flow`."""
        asked, told = _Asked(entropy, top), {}
        waiting: deque[Growing] = deque()
        seats = _Seats([], torch.zeros(0), torch.zeros(0), {})
        ended: list[Growing] = []
        while True:
            pieces = [self._told(piece, asked, told) for piece in ended]
            ended = []
            starts = feed(pieces, len(seats.pieces) + len(waiting))
            for piece in self._begin(starts, asked, told) if starts else ():
                (waiting if len(piece.tokens) < piece.most else ended).append(piece)
            free = min(self._rows - len(seats.pieces), len(waiting))
            if free:
                seats.join(self._seated([waiting.popleft() for _ in range(free)]))
            if seats.pieces:
                ended += self._advance(seats, asked, told)
            elif not ended:
                assert not starts, "pieces are seated, or have ended"
                return

    def _begin(
        self, starts: Sequence[Start], asked: _Asked, told: dict[int, _Told]
    ) -> list[Growing]:
        """New pieces, with all read that lies before what they draw."""
        if self._closed:
            raise ValueError("This forest is closed; grow pieces while its context is open.")
        opened = self.book.open(starts)
        told.update({piece.number: _Told([], [], []) for piece in opened})
        self._read_prompts(sorted({piece.place.prompt for piece in opened}))
        self._remember_states({piece.place: None for piece in opened})
        for piece in opened:
            self._open_keys(piece)
            if piece.given:
                self._read_given(piece, asked, told[piece.number])
        return opened

    def _told(self, piece: Growing, asked: _Asked, told: dict[int, _Told]) -> Piece:
        """What became of a piece that has ended."""
        piece.stop = piece.stop or piece.ending
        return self._piece(piece, asked, told.pop(piece.number))

    def _read_prompts(self, numbers: Sequence[int]) -> None:
        """Run prompts that were not read yet, as packed rows: their keys and values, and the states at their ends."""
        new = [number for number in numbers if Place(number) not in self._states]
        sizes = [
            Lengths(len(r.encoded.ids), sum(len(item.values) for item in r.pixels))
            for r in self.requests
        ]
        for piece in pieces(new, sizes, self._costs, self.policy.budget):
            self._read(piece)

    def _read(self, numbers: Sequence[int]) -> None:
        policy, asked = self.policy, [self.requests[number] for number in numbers]
        row = pack([Group(one.encoded, one.pixels) for one in asked], policy.device)
        kept: list[tuple[Tensor, Tensor]] = []
        object.__setattr__(row.layout, "kept", kept)  # frozen for everybody else
        features = policy.vision.sampling_features([m for one in asked for m in one.pixels])
        states = policy.language(row.ids, row.positions, row.layout, row.visual, features)
        policy.counters["tokens/prefill"] += len(row.ids)
        policy.counters["rollout/pieces"] += 1
        for number, (start, end) in zip(numbers, row.layout.prompts, strict=True):
            self.keys.open(_run_of_prompt(number))
            self.keys.write(_run_of_prompt(number), kept, start, end)
            self._states[Place(number)] = states[end - 1].clone()

    def _remember_states(self, places: dict[Place, None]) -> None:
        """The states at places where nothing has gone on yet: the token before each is fed, once."""
        new = [place for place in places if place not in self._states]
        for first in range(0, len(new), self._rows):
            some = new[first : first + self._rows]
            states = self._feed([(place, place.cut) for place in some])
            self._states.update(zip(some, states, strict=True))

    def _feed(self, ends: Sequence[tuple[Place, int]]) -> Tensor:
        """Feed the last of the first n tokens of pieces, given as (a place in the piece, n); states [B, D]."""
        policy, fed, tokens, positions = self.policy, [], [], []
        for place, count in ends:
            assert place.piece is not None, "states of prompts are there"
            piece = self.book.pieces[place.piece]
            fed.append(Fed(piece.number, count - 1))
            tokens.append(piece.tokens[count - 1])
            positions.append(self._position(piece, count - 1))
        ids = torch.tensor(tokens, device=policy.device)
        at = torch.tensor(positions, device=policy.device)
        rows = policy.base.get_input_embeddings()(ids)[:, None]
        out = policy.text_model(
            inputs_embeds=rows,
            position_ids=policy.family.position_ids(at.expand(3, -1)[..., None]),
            use_cache=False,
            layout=TreeDecoding(self.keys, fed),
            **policy.family.without_mask(rows),
        )
        policy.counters["tokens/decode"] += len(fed)
        return out.last_hidden_state[:, 0]

    def _position(self, piece: Growing, token: int) -> int:
        """M-RoPE position of a word of a piece: words are one further each, and a medium as far as it reaches."""
        encoded = self.requests[piece.place.prompt].encoded
        return encoded.next_position + piece.begins + piece.reach(token)

    def _open_keys(self, piece: Growing) -> None:
        place = piece.place
        if place.piece is None:
            run = _run_of_prompt(place.prompt)
            self.keys.open(piece.number, run, self.keys.written(run))
        else:
            self.keys.open(piece.number, place.piece, place.cut)

    def _read_given(self, piece: Growing, asked: _Asked, told: _Told) -> None:
        """Given tokens in one row: their keys and values, log-probs, and the state behind the last."""
        policy, count = self.policy, len(piece.given)
        ids = torch.tensor(piece.given, device=policy.device)
        kept: list[tuple[Tensor, Tensor]] = []
        past = Past((0, count), self.keys.before(piece.number))
        layout = Layout((count,), (ROOT,), policy.device, kept, pasts=(past,))
        shown = () if piece.inside is None else piece.inside.visual
        features = policy.vision.sampling_features(shown) if shown else []
        places, visual = self._places(piece)
        states = policy.language(ids, places, layout, visual, features)
        policy.counters["tokens/prefill"] += count
        self.keys.write(piece.number, kept, 0, count)
        self._states[Place(piece.place.prompt, piece.number, count)] = states[-1].clone()
        piece.tokens += piece.given
        assert piece.logp is not None, "scored here"
        if piece.start.role == Role.OBSERVATION and not asked.anything:
            # Nobody asks how likely an observation is, and it may be long.
            piece.logp += [0.0] * count
            return
        predicting = torch.cat([self._states[piece.place][None], states[:-1]])
        for some, tokens in zip(
            predicting.split(self._rows), ids.split(self._rows), strict=True
        ):
            logp = self._logp(some)
            piece.logp += logp.gather(1, tokens[:, None]).squeeze(1).tolist()
            self._tell(logp, asked, [told] * len(some))
        if piece.start.role == Role.OBSERVATION:
            piece.logp = [0.0] * count

    def _places(self, piece: Growing) -> tuple[Tensor, Tensor]:
        """Positions [3, n] of a piece's given tokens, and where visual tokens stand among them, long [m]."""
        inside, device = piece.inside, self.policy.device
        nothing = torch.zeros(0, dtype=torch.long)
        if inside is None:
            own, slots = torch.arange(len(piece.given)).expand(3, -1), nothing
        else:
            own, slots = inside.positions, torch.cat(inside.slots)
        return (own + self._position(piece, 0)).to(device), slots.to(device)

    def _draw(self, rows: Sequence[Growing], asked: _Asked, told: dict[int, _Told]) -> None:
        """Let pieces advance together until each has ended."""
        seats = self._seated(rows)
        while seats.pieces:
            self._advance(seats, asked, told)

    def _seated(self, rows: Sequence[Growing]) -> _Seats:
        """Pieces whose given tokens were read, ready to advance."""
        most = self.requests[0].sampling.max_tokens
        noise = uniforms([self.book.key(piece) for piece in rows], most).to(self.policy.device)
        before = {piece.number: self.book.before(piece.place) for piece in rows}
        states = torch.stack(
            [self._states[self._end(p)] if p.given else self._states[p.place] for p in rows]
        )
        return _Seats(list(rows), noise, states, before)

    def _advance(self, seats: _Seats, asked: _Asked, told: dict[int, _Told]) -> list[Growing]:
        """A token for each; those that end with it leave their seats and are returned."""
        policy, going = self.policy, seats.pieces
        columns = torch.tensor([len(p.tokens) for p in going], device=policy.device)
        at = torch.arange(len(going), device=policy.device)
        logp, tokens = self._choose(seats.states, seats.noise[at, columns])
        said = logp.gather(1, tokens[:, None]).squeeze(1).tolist()
        self._tell(logp, asked, [told[piece.number] for piece in going])
        left: list[int] = []
        for row, (piece, token) in enumerate(zip(going, tokens.tolist(), strict=True)):
            assert piece.logp is not None, "scored here"
            piece.tokens.append(token)
            piece.logp.append(said[row])
            piece.stop = self._ended(piece, seats.before[piece.number])
            if not piece.stop:
                left.append(row)
        seats.pieces, seats.noise = [going[row] for row in left], seats.noise[left]
        if left:
            ends = [(self._end(piece), len(piece.tokens)) for piece in seats.pieces]
            seats.states = self._feed(ends)
        return [piece for piece in going if piece.stop]

    def _end(self, piece: Growing) -> Place:
        return Place(piece.place.prompt, piece.number, len(piece.tokens))

    def _choose(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs [B, V] over the whole vocabulary at the temperature, and tokens [B] by the sampling's rules."""
        one = self.requests[0]
        banned = torch.tensor(one.banned, dtype=torch.long, device=states.device)
        logp = self._logp(states)
        if one.sampling.temperature == 0:
            return logp, logp.index_fill(1, banned, float("-inf")).argmax(-1)
        return logp, drawn(truncated(logp, one.sampling, banned), noise)

    def _logp(self, states: Tensor) -> Tensor:
        raw = logits(states, self.policy.base.lm_head.weight)
        # Greedy answers are scored at temperature 1.
        return (raw / (self.requests[0].sampling.temperature or 1.0)).log_softmax(-1)

    def _ended(self, piece: Growing, before: Sequence[int]) -> str:
        """Why the piece ends with its last token; "" if it goes on."""
        if piece.tokens[-1] in self.policy.processing.stop_ids:
            return "eos"
        stops = (*self.requests[0].sampling.stop, *piece.start.stop)
        if stops:
            forced = [*before, *piece.given]
            answer = Answer(0, forced, [*before, *piece.tokens])
            if found := stop_string(self.policy, answer, stops):
                return found
        return piece.ending if len(piece.tokens) >= piece.most else ""

    def _tell(self, logp: Tensor, asked: _Asked, told: Sequence[_Told]) -> None:
        """Write down what is asked of each row's distribution."""
        if asked.entropy:
            spread = -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)
            for one, entropy in zip(told, spread.cpu(), strict=True):
                one.entropy.append(entropy)
        if asked.top:
            best = logp.topk(min(asked.top, logp.shape[1]), dim=-1)
            rows = zip(told, best.values.cpu(), best.indices.cpu(), strict=True)
            for one, values, ids in rows:
                one.top_logp.append(values)
                one.top_ids.append(ids)

    def _piece(self, piece: Growing, asked: _Asked, told: _Told) -> Piece:
        kind = torch.promote_types(self.policy.dtype, torch.float32)
        empty = torch.zeros(0, dtype=kind)
        said: dict[str, Tensor] = {}
        if asked.entropy:
            said["entropy"] = torch.stack(told.entropy) if told.entropy else empty
        if asked.top:
            wide = empty.new_zeros(0, asked.top)
            said["top_logp"] = torch.stack(told.top_logp) if told.top_logp else wide
            said["top_ids"] = torch.stack(told.top_ids) if told.top_ids else wide.long()
        return self.book.piece(piece, **said)


def _run_of_prompt(number: int) -> int:
    """Pieces are runs by their number, from 0 on; prompts stand below."""
    return -1 - number
