"""The rows of a rollout on the device: choose a token for each, feed it, and say which have ended.

A row is a place in tables of fixed size (`Table`), so that nothing is copied when an answer ends and another begins.
Both halves of a step read and write tensors only. Nothing comes back to the host until it looks (`Advance.look`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.model.decoding import Decoding
from mmrl.model.logprobs import logits
from mmrl.model.policy import Policy
from mmrl.rollouts.graphs import Recorder, Replayed, recorded_on_cuda
from mmrl.rollouts.next_token import drawn, truncated, uniforms
from mmrl.types import Sampling

CAPACITY = {"cpu": 64, "cuda": 256}
"""Tokens that a row has room for at first; doubled when answers grow."""
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of rows for which steps are recorded."""


@dataclass(frozen=True)
class Pace:
    """How a device likes its steps."""

    look_every: int = 1
    """Tokens of each answer between two looks of the host at who has ended."""
    buckets: tuple[int, ...] = ()
    """Numbers of rows; empty: exactly as many as there are answers."""
    recorder: Recorder | None = None
    """Records steps and replays them; None: every step is called plainly."""

    @classmethod
    def of(cls, device: torch.device) -> Pace:
        """CUDA: recorded steps of few shapes, a look at every eighth token. CPU: plain ones without an idle row."""
        return cls(8, BUCKETS, recorded_on_cuda) if device.type == "cuda" else cls()

    def rows(self, count: int) -> int:
        """Rows that are computed for so many answers."""
        return next((size for size in self.buckets if size >= count), count)


@dataclass(frozen=True)
class Beginning:
    """An answer that takes a row."""

    seed: tuple[int | str, ...]
    """Keys its stream of draws."""
    forced: Sequence[int]
    """Tokens that it begins with."""
    position: int
    """M-RoPE position of its first token."""


@dataclass
class Ended:
    """What an answer has become."""

    tokens: list[int]
    logp: list[float]


class Table:
    """One place per row: what it has drawn, and what it will draw from."""

    def __init__(
        self, places: int, tokens: int, forced: int, device: torch.device, kind: torch.dtype
    ) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.places = places
        # One column more: rows that have ended write there until somebody looks.
        self.tokens = zeros(places, tokens + 1)
        self.logp = zeros(places, tokens + 1, dtype=kind)
        self.count = zeros(places)
        """Tokens so far, of each place."""
        self.done = torch.ones(places, dtype=torch.bool, device=device)
        self.noise = zeros(places, tokens, dtype=torch.float32)
        self.forced = zeros(places, max(1, forced))
        self.forced_length = zeros(places)
        self.position = zeros(places)

    def begin(self, places: Sequence[int], answers: Sequence[Beginning]) -> None:
        """New answers take these places."""
        device, length = self.tokens.device, self.noise.shape[1]
        at = torch.tensor(places, device=device)
        # All uniform numbers are drawn ahead, a stream per answer: what others do cannot shift it.
        self.noise[at] = uniforms([one.seed for one in answers], length).to(device)
        width = self.forced.shape[1]
        forced = [list(one.forced[:width]) for one in answers]
        rows = [[*tokens, *[0] * (width - len(tokens))] for tokens in forced]
        self.forced[at] = torch.tensor(rows, device=device)
        lengths = [len(tokens) for tokens in forced]
        self.forced_length[at] = torch.tensor(lengths, device=device)
        self.position[at] = torch.tensor([one.position for one in answers], device=device)
        self.count[at] = 0
        self.done[at] = False


class Advance:
    """Rows that advance together, each a place of the table and a row of the store in the same order."""

    def __init__(
        self,
        policy: Policy,
        store: Decoding,
        table: Table,
        sampling: Sampling,
        temperatures: Sequence[float],
        pace: Pace,
        banned: Sequence[int],
    ) -> None:
        self.policy, self.store, self.table, self.sampling = policy, store, table, sampling
        device, wide = policy.device, table.logp.dtype
        self.temperatures = torch.tensor(temperatures, dtype=wide, device=device)
        self._cold = [temperature == 0 for temperature in temperatures]
        self.banned = torch.tensor(list(banned), dtype=torch.long, device=device)
        self.stop_ids = torch.tensor(sorted(policy.processing.stop_ids), device=device)
        self.rows: list[int] = []
        """The place of each row."""
        self.at = torch.zeros(0, dtype=torch.long, device=device)
        """The same on the device."""
        self.states: Tensor | None = None
        """[B, D]: hidden states that predict the next tokens."""
        self.pace = pace
        self._version = 0
        self._choose = Replayed(self.choose, self._chosen, pace.recorder)
        self._feed = Replayed(self.feed, self._fed, pace.recorder)

    def arrange(
        self, kept: Sequence[int | None], places: Sequence[int], group: Sequence[int | None]
    ) -> None:
        """Go on with these rows (None: new ones), which stand for these places and answer these prompts."""
        store = self.store
        first = min(self.table.noise.shape[1], CAPACITY.get(self.at.device.type, 64))
        store.arrange(kept, store.capacity or first)
        store.seat(group)
        old, self.rows = self.rows, list(places)
        if self.states is not None and list(kept) != list(range(len(old))):
            index = [row or 0 for row in kept]
            self.states = self.states[torch.tensor(index, device=self.at.device).long()]
        if self.rows != old:
            self.at = torch.tensor(self.rows, device=self.at.device).long()
            self._version += 1

    def start(self, rows: Sequence[int], states: Tensor) -> None:
        """Hidden states [n, D] at the end of the prompts of new rows."""
        if self.states is None or len(self.states) != len(self.rows):
            self.states = states.new_zeros(len(self.rows), states.shape[1])
            self._version += 1
        self.states[torch.tensor(rows, device=states.device)] = states

    def draw(self) -> None:
        """Choose the next token of each row."""
        self._choose((self._version, self.store.version))

    def step(self, longest: int, even: int | None) -> None:
        """Feed the last token of each row. The longest row has `longest` before it; `even`: all have as many."""
        if longest >= self.store.capacity:  # doubled, so that copies stay few
            room = min(self.table.noise.shape[1], max(longest + 1, 2 * self.store.capacity))
            self.store.arrange(range(len(self.rows)), room)
        self._next = (longest, even)
        self._feed((self._version, self.store.version))

    def choose(self) -> None:
        """The next token of each row, its log-prob, and whether it ends the answer: into the table."""
        table, at = self.table, self.at
        assert self.states is not None, "nobody has started"
        count = table.count[at]
        # Rows that have ended stand one beyond the last number.
        step = count.clamp(max=table.noise.shape[1] - 1)
        raw = logits(self.states, self.policy.base.lm_head.weight)
        # Over the whole vocabulary, before truncation: the same numbers as in training.
        logp, tokens = self._drawn(raw, table.noise[at, step], step)
        # Forced tokens are put in after the draw, so that a prefix does not shift the stream of draws.
        forced = table.forced[at, count.clamp(max=table.forced.shape[1] - 1)]
        tokens = torch.where(count < table.forced_length[at], forced, tokens)
        table.tokens[at, count] = tokens
        table.logp[at, count] = logp.gather(1, tokens[:, None]).squeeze(1)
        done = table.done[at]
        count = count + (~done).long()
        # Nothing inside a forced prefix ends an answer.
        stops = (tokens[:, None] == self.stop_ids).any(-1) & (count > table.forced_length[at])
        table.count[at] = count
        table.done[at] = done | stops | (count >= table.noise.shape[1])

    def feed(self) -> None:
        """The last token of each row goes through the language model: new hidden states."""
        table, store, policy = self.table, self.store, self.policy
        assert self.states is not None, "nobody has started"
        last = (table.count[self.at] - 1).clamp(min=0)
        store.written.copy_(last)
        store.begin(*self._next)
        rows = policy.base.get_input_embeddings()(table.tokens[self.at, last])[:, None]
        positions = table.position[self.at] + last
        out = policy.text_model(
            inputs_embeds=rows,
            position_ids=policy.family.position_ids(positions.expand(3, -1)[..., None]),
            use_cache=False,
            layout=store,
            **policy.family.without_mask(rows),
        )
        self.states.copy_(out.last_hidden_state[:, 0])

    def look(self) -> tuple[list[int], list[bool]]:
        """Tokens of each row so far, and whether it has ended."""
        at = self.at
        both = torch.stack([self.table.count[at], self.table.done[at].long()]).tolist()
        return both[0], [bool(done) for done in both[1]]

    def recent(self, tokens: int) -> list[list[int]]:
        """The last tokens of each row, so many; shorter ones repeat their first."""
        back = torch.arange(-tokens, 0, device=self.at.device)
        columns = (self.table.count[self.at][:, None] + back).clamp(min=0)
        return self.table.tokens[self.at[:, None], columns].tolist()

    def results(self, places: Sequence[int], lengths: Sequence[int]) -> list[Ended]:
        """What stands at these places."""
        at, longest = torch.tensor(places, device=self.at.device), max(lengths)
        tokens = self.table.tokens[at, :longest].tolist()
        logp = self.table.logp[at, :longest].tolist()
        return [Ended(t[:n], p[:n]) for t, p, n in zip(tokens, logp, lengths, strict=True)]

    def _drawn(self, raw: Tensor, noise: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs [B, V] at the temperature of each row's position, and tokens [B] drawn from them."""
        if all(self._cold):
            logp = raw.log_softmax(-1)
            return logp, _likeliest(logp, self.banned)
        heat = self.temperatures[step]
        logp = (raw / torch.where(heat > 0, heat, 1.0)[:, None]).log_softmax(-1)
        tokens = drawn(truncated(logp, self.sampling, self.banned), noise)
        if any(self._cold):
            tokens = torch.where(heat > 0, tokens, _likeliest(logp, self.banned))
        return logp, tokens

    def _chosen(self) -> list[Tensor]:
        """All that `choose` changes."""
        table = self.table
        return [table.tokens, table.logp, table.count, table.done]

    def _fed(self) -> list[Tensor]:
        """All that `feed` changes, but for keys and values, which it writes again to the same places."""
        assert self.states is not None, "nobody has started"
        # States go on in place: unlike keys, what a step does to them cannot be done twice.
        return [self.states, self.store.written, *self.store.carried.tensors()]


def _likeliest(logp: Tensor, banned: Tensor) -> Tensor:
    return logp.index_fill(1, banned, float("-inf")).argmax(-1)
