"""The in-process rollout engine: prompts are prefilled once per group, answers share their keys and values.

One packed row prefills all prompts of a chunk; their keys and values are kept once per prompt, and each answer attends
to them and to a buffer of its own (`decoding.Decoding`). Answers that end are removed at once. Each answer has its own
stream of random numbers, keyed by (run seed, step, prompt id, view, answer), so the same prompt, weights, seed and
batch shape give the same answer; across batch shapes log-probs agree to rounding.

Vision placeholder ids are never drawn: one of them inside an answer would shift the pictures of every later pass. Nor
are ids beyond the tokenizer's, which a vocabulary padded to a round number has: they have no text.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from mmrl.model.decoding import Decoding
from mmrl.model.logprobs import logits
from mmrl.model.packing import Group, pack
from mmrl.model.policy import Policy
from mmrl.model.processing import Encoded, Patches
from mmrl.rollouts.next_token import drawn, truncated, uniforms
from mmrl.types import Now, Prompt, Role, Rollout, Sampling


class Engine(Protocol):
    """Speaks: G answers per prompt, grouped."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, now: Now
    ) -> list[Rollout]:
        """P·G rollouts, those of one prompt adjacent. Seeds derive from (now.seed, now.step, prompt id, answer)."""
        ...

    def sync(self, policy: Policy) -> None:
        """Take over the policy's current weights."""
        ...


class LookingEngine(Engine, Protocol):
    """An engine that can also answer to other pixels than the prompt's.

    Noisy rollouts, contrasts and the blind probe need one; everything else asks for what `Engine` says.
    """

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        now: Now,
        *,
        visual: Sequence[tuple[Patches, ...]] | None = None,
        branch: str = "raw",
    ) -> list[Rollout]:
        """As `Engine.generate`. `visual`: what each prompt shows instead of its own media, None for these; `branch`:
        the name of that view, which keys the draws and marks `Rollout.branch`."""
        ...


def can_look(engine: Engine) -> TypeGuard[LookingEngine]:
    """Can this engine sample answers to other pixels than the prompt's? Its `generate` takes `visual` and `branch`."""
    parameters = inspect.signature(engine.generate).parameters
    return "visual" in parameters and "branch" in parameters


@dataclass(frozen=True)
class _Asked:
    """A prompt as the engine reads it."""

    group: int
    """Its place among all prompts."""
    prompt: Prompt
    encoded: Encoded
    pixels: tuple[Patches, ...]
    """What it shows."""
    forced: list[int]
    """Tokens that every answer begins with."""
    first: int
    """Number of its first answer, which keys the draws."""


@dataclass
class _Answer:
    """One answer in progress."""

    prompt: int
    """Place of its prompt in the chunk."""
    forced: list[int]
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    stop: str = ""


class HFEngine:
    """Samples with the training weights themselves; `sync` has nothing to do.

    `rows_at_once` bounds how many answers advance together.
    """

    def __init__(self, policy: Policy, *, rows_at_once: int = 256) -> None:
        if rows_at_once < 1:
            raise ValueError(
                f"rows_at_once is {rows_at_once}; at least one answer must advance at a time."
            )
        # Also where scores are computed row by row: answers are sampled from a shared prompt all the same.
        policy.family.refuse_layers(policy.base.config, "sampling")
        self.policy = policy
        self.rows_at_once = rows_at_once

    def sync(self, policy: Policy) -> None:
        """The engine reads the policy's weights directly."""
        assert policy is self.policy, "this engine belongs to another policy"

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        now: Now,
        *,
        visual: Sequence[tuple[Patches, ...]] | None = None,
        branch: str = "raw",
        prefixes: Sequence[Tensor] | None = None,
        temperature_at: Callable[[int], float] | None = None,
    ) -> list[Rollout]:
        """P·G rollouts, those of a prompt adjacent and with its index as `group`.

        `visual`: pixels of each prompt under `branch`; `prefixes`: long [n] per prompt, forced as the start of every
        answer with role HINT; `temperature_at`: temperature of answer position t (its mean is recorded).
        """
        asked: list[_Asked] = []
        copies: Counter[str] = Counter()
        for i, prompt in enumerate(prompts):
            encoded = self.policy.encode(prompt)
            pixels = encoded.visual if visual is None else visual[i]
            forced = [] if prefixes is None else prefixes[i].tolist()
            # A prompt that is there twice gets other answers the second time: their numbers go on.
            first = copies[prompt.id]
            copies[prompt.id] += sampling.group_size
            asked.append(_Asked(i, prompt, encoded, pixels, forced, first))
        per_chunk = max(1, self.rows_at_once // sampling.group_size)
        rollouts: list[Rollout] = []
        for start in range(0, len(asked), per_chunk):
            chunk = asked[start : start + per_chunk]
            rollouts += self._chunk(chunk, sampling, now, branch, temperature_at)
        return rollouts

    def _chunk(
        self,
        asked: Sequence[_Asked],
        sampling: Sampling,
        now: Now,
        branch: str,
        temperature_at: Callable[[int], float] | None,
    ) -> list[Rollout]:
        """The answers to prompts that advance together."""
        answers: list[_Answer] = []
        seeds: list[tuple[int | str, ...]] = []
        for position, one in enumerate(asked):
            for number in range(one.first, one.first + sampling.group_size):
                answers.append(_Answer(position, one.forced))
                seeds.append((now.seed, now.step, one.prompt.id, branch, number, "answer"))
        _sample(self.policy, asked, answers, seeds, sampling, temperature_at)
        return [
            _finished(
                self.policy, asked[answer.prompt], answer, sampling, branch, temperature_at
            )
            for answer in answers
        ]


def _finished(
    policy: Policy,
    asked: _Asked,
    answer: _Answer,
    sampling: Sampling,
    branch: str,
    temperature_at: Callable[[int], float] | None,
) -> Rollout:
    tokens = torch.tensor(answer.tokens, dtype=torch.long)
    roles = torch.full((len(tokens),), int(Role.POLICY), dtype=torch.uint8)
    # What was forced is conditioned on and never trained.
    roles[: len(answer.forced)] = int(Role.HINT)
    temperature = sampling.temperature or 1.0  # greedy answers are scored at temperature 1
    if temperature_at is not None and len(tokens):
        used = [temperature_at(t) for t in range(len(tokens))]
        temperature = sum(used) / len(used)
    return Rollout(
        prompt=asked.prompt,
        group=asked.group,
        prompt_ids=asked.encoded.ids,
        tokens=tokens,
        roles=roles,
        text=policy.processing.decode(tokens),
        stop=answer.stop or "length",
        logp=torch.tensor(answer.logp, dtype=torch.promote_types(policy.dtype, torch.float32)),
        temperature=temperature,
        branch=branch,
    )


@torch.no_grad()
def _sample(
    policy: Policy,
    asked: Sequence[_Asked],
    answers: list[_Answer],
    seeds: Sequence[tuple[int | str, ...]],
    sampling: Sampling,
    temperature_at: Callable[[int], float] | None,
) -> None:
    """Fill in the answers of one chunk of prompts."""
    store, states = _prefill(policy, asked, answers, sampling)
    weight = policy.base.lm_head.weight
    banned = _banned(policy, len(weight))
    # All uniform numbers are drawn ahead, one row per answer: what others do cannot shift an answer's stream.
    noise = uniforms(seeds, sampling.max_tokens).to(policy.device)
    first = torch.tensor([one.encoded.next_position for one in asked], device=policy.device)
    alive = list(range(len(answers)))
    states = states[store.group]  # one row per answer from here on
    for t in range(sampling.max_tokens):
        temperature = sampling.temperature if temperature_at is None else temperature_at(t)
        raw = logits(states, weight)
        # Over the whole vocabulary, before truncation: the same numbers as in training.
        logp = (raw / temperature if temperature > 0 else raw).log_softmax(-1)
        rows = torch.tensor(alive, device=policy.device)
        tokens = _choose(logp, temperature, sampling, banned, noise[rows, t])
        # Forced tokens are put in after the draw, so that a prefix does not shift the stream of draws.
        for position, number in enumerate(alive):
            if t < len(answers[number].forced):
                tokens[position] = answers[number].forced[t]
        chosen = logp.gather(1, tokens[:, None]).squeeze(1)
        stay = _record(policy, answers, alive, tokens.tolist(), chosen.tolist(), sampling)
        if not stay or t + 1 == sampling.max_tokens:
            return
        if len(stay) < len(
            alive
        ):  # finished answers leave: their rows would be computed for nothing
            keep = torch.tensor(stay, device=policy.device)
            store.keep(keep)
            tokens = tokens[keep]
            alive = [alive[i] for i in stay]
        _room(store, t + 1, sampling.max_tokens)
        owner = torch.tensor([answers[i].prompt for i in alive], device=policy.device)
        states = _step(policy, store, tokens, first[owner] + t)


def _banned(policy: Policy, vocabulary: int) -> Tensor:
    """Ids that are never drawn, long [n]: vision markers, and rows of the head that stand for no token."""
    padding = range(len(policy.processing.tokenizer), vocabulary)
    banned = sorted({*policy.processing.banned_ids, *padding})
    return torch.tensor(banned, device=policy.device)


def _prefill(
    policy: Policy, asked: Sequence[_Asked], answers: Sequence[_Answer], sampling: Sampling
) -> tuple[Decoding, Tensor]:
    """Run all prompts once: their keys and values, and the last hidden state of each [P, D]."""
    device = policy.device
    groups = [Group(one.encoded, one.pixels) for one in asked]  # without answers: prompts alone
    stream = pack(groups, device)
    kept: list[tuple[Tensor, Tensor]] = []
    # The layers put their keys and values here while they run; the layout is frozen for everybody else.
    object.__setattr__(stream.layout, "kept", kept)
    media = [item for one in asked for item in one.pixels]
    # An update with the same weights will read the same pictures: then the tower's graph is kept for it.
    features = policy.vision.sampling_features(media)
    states = policy.language(
        stream.ids, stream.positions, stream.layout, stream.visual, features
    )
    policy.counters["tokens/prefill"] += len(stream.ids)
    mask, where = _padded_places(stream.layout.prompts, device)
    group = torch.tensor([answer.prompt for answer in answers], device=device)
    capacity = min(sampling.max_tokens, 64)  # grows with the answers
    # One packed row [1, Hk, L, d] becomes one padded row per prompt [P, Hk, Lp, d].
    keys = [key[0][:, where].transpose(0, 1).contiguous() for key, _ in kept]
    values = [value[0][:, where].transpose(0, 1).contiguous() for _, value in kept]
    store = Decoding(
        keys,
        values,
        mask,
        [_empty(key, len(answers), capacity) for key in keys],
        [_empty(value, len(answers), capacity) for value in values],
        group,
    )
    last = [end - 1 for _, end in stream.layout.prompts]
    return store, states[torch.tensor(last, device=device)]


def _padded_places(
    segments: Sequence[tuple[int, int]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where each prompt's tokens stand in the packed row, padded right: which are real [P, Lp], and where [P, Lp]."""
    longest = max(end - start for start, end in segments)
    mask = torch.zeros(len(segments), longest, dtype=torch.bool, device=device)
    where = torch.zeros(len(segments), longest, dtype=torch.long, device=device)
    for i, (start, end) in enumerate(segments):
        mask[i, : end - start] = True
        where[i, : end - start] = torch.arange(start, end, device=device)
    return mask, where


def _empty(like: Tensor, answers: int, capacity: int) -> Tensor:
    """Room for the keys or values of answers, [B, Hk, capacity, d]."""
    return like.new_zeros(answers, like.shape[1], capacity, like.shape[3])


def _choose(
    logp: Tensor, temperature: float, sampling: Sampling, banned: Tensor, uniform: Tensor
) -> Tensor:
    if temperature == 0:
        return logp.index_fill(1, banned, float("-inf")).argmax(-1)
    return drawn(truncated(logp, sampling, banned), uniform)


def _record(
    policy: Policy,
    answers: list[_Answer],
    alive: Sequence[int],
    tokens: Sequence[int],
    logp: Sequence[float],
    sampling: Sampling,
) -> list[int]:
    """Append one token to each living answer; positions (in `alive`) of those that go on."""
    stop_ids = policy.processing.stop_ids
    stay: list[int] = []
    for position, number in enumerate(alive):
        answer = answers[number]
        answer.tokens.append(tokens[position])
        answer.logp.append(logp[position])
        # Nothing inside a forced prefix ends an answer, neither a token nor a string.
        if len(answer.tokens) > len(answer.forced):
            if tokens[position] in stop_ids:
                answer.stop = "eos"
            elif sampling.stop:
                answer.stop = _stop_string(policy, answer, sampling.stop)
        if not answer.stop:
            stay.append(position)
    return stay


def _stop_string(policy: Policy, answer: _Answer, stops: Sequence[str]) -> str:
    """The first of the strings that the answer's last tokens complete; empty if there is none.

    A string may begin inside the forced prefix, but must reach beyond it: what was forced was not the policy's choice.
    """
    spell = policy.processing.spell
    # A stop string may begin some tokens back, and a token may hold part of a character: 8 more are looked at.
    start = max(len(answer.tokens) - max(map(len, stops)) - 8, 0)
    tail = spell(answer.tokens[start:])
    # A character that the prefix leaves half written shows as U+FFFD there, and is completed by the policy.
    forced = len(spell(answer.tokens[start : len(answer.forced)]).rstrip("\ufffd"))
    for text in stops:
        earliest = max(forced - len(text) + 1, 0)
        if text in tail[earliest:]:
            return text
    return ""


def _room(store: Decoding, needed: int, most: int) -> None:
    have = store.answer_keys[0].shape[2]
    if needed > have:  # doubled, so that copies stay few
        store.grow(min(most, max(needed, 2 * have)))


def _step(policy: Policy, store: Decoding, tokens: Tensor, positions: Tensor) -> Tensor:
    """Feed one token per living answer [N]; the next hidden states [N, D]."""
    rows = policy.base.get_input_embeddings()(tokens)[:, None]
    out = policy.text_model(
        inputs_embeds=rows,
        position_ids=policy.family.position_ids(positions.expand(3, -1)[..., None]),
        use_cache=False,
        layout=store,
    )
    store.filled += 1
    policy.counters["tokens/decode"] += len(tokens)
    return out.last_hidden_state[:, 0]
