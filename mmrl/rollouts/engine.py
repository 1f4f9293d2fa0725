"""The in-process rollout engine: prompts are prefilled once per group, answers share their keys and values.

One packed row prefills all prompts of a chunk; their keys and values are kept once per prompt, and each answer attends
to them and to a buffer of its own (`decoding.Decoding`). Answers that end are removed at once. Each answer has its own
stream of random numbers, keyed by (run seed, step, prompt id, view, answer), so the same prompt, weights, seed and
batch shape give the same answer; across batch shapes log-probs agree to rounding.

Vision placeholder ids are never drawn: one of them inside an answer would shift the pictures of every later pass. Nor
are ids beyond the tokenizer's, which a vocabulary padded to a round number has: they have no text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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


@dataclass
class _Answer:
    """One answer in progress."""

    prompt: int
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
        encoded = [self.policy.encode(prompt) for prompt in prompts]
        looks = [e.visual for e in encoded] if visual is None else list(visual)
        forced = [[] if prefixes is None else prefixes[i].tolist() for i in range(len(prompts))]
        per_chunk = max(1, self.rows_at_once // sampling.group_size)
        copies: Counter[str] = Counter()
        first = []  # number of a prompt's first answer: a prompt that is there twice gets other answers the second time
        for prompt in prompts:
            first.append(copies[prompt.id])
            copies[prompt.id] += sampling.group_size
        rollouts: list[Rollout] = []
        for start in range(0, len(prompts), per_chunk):
            chunk = range(start, min(start + per_chunk, len(prompts)))
            answers = [
                _Answer(i - start, forced[i]) for i in chunk for _ in range(sampling.group_size)
            ]
            seeds = [
                (now.seed, now.step, prompts[i].id, branch, first[i] + g, "answer")
                for i in chunk
                for g in range(sampling.group_size)
            ]
            _sample(
                self.policy,
                [encoded[i] for i in chunk],
                [looks[i] for i in chunk],
                answers,
                seeds,
                sampling,
                temperature_at,
            )
            for answer in answers:
                i = start + answer.prompt
                rollouts.append(
                    _finished(
                        self.policy,
                        prompts[i],
                        i,
                        encoded[i],
                        answer,
                        sampling,
                        branch,
                        temperature_at,
                    )
                )
        return rollouts


def _finished(
    policy: Policy,
    prompt: Prompt,
    group: int,
    encoded: Encoded,
    answer: _Answer,
    sampling: Sampling,
    branch: str,
    temperature_at: Callable[[int], float] | None,
) -> Rollout:
    tokens = torch.tensor(answer.tokens, dtype=torch.long)
    roles = torch.full((len(tokens),), int(Role.POLICY), dtype=torch.uint8)
    roles[: len(answer.forced)] = int(Role.HINT)
    temperature = sampling.temperature or 1.0
    if temperature_at is not None and len(tokens):
        temperature = sum(temperature_at(t) for t in range(len(tokens))) / len(tokens)
    return Rollout(
        prompt=prompt,
        group=group,
        prompt_ids=encoded.ids,
        tokens=tokens,
        roles=roles,
        text=policy.processing.decode(tokens),
        stop=answer.stop or "length",
        logp=torch.tensor(answer.logp),
        temperature=temperature,
        branch=branch,
    )


@torch.no_grad()
def _sample(
    policy: Policy,
    encoded: Sequence[Encoded],
    looks: Sequence[tuple[Patches, ...]],
    answers: list[_Answer],
    seeds: Sequence[tuple[int | str, ...]],
    sampling: Sampling,
    temperature_at: Callable[[int], float] | None,
) -> None:
    """Fill in the answers of one chunk of prompts."""
    store, states = _prefill(policy, encoded, looks, answers, sampling)
    weight = policy.base.lm_head.weight
    banned = _banned(policy, len(weight))
    noise = uniforms(seeds, sampling.max_tokens).to(policy.device)
    first = torch.tensor([e.next_position for e in encoded], device=policy.device)
    alive = list(range(len(answers)))
    states = states[store.group]
    for t in range(sampling.max_tokens):
        temperature = sampling.temperature if temperature_at is None else temperature_at(t)
        raw = logits(states, weight)
        logp = (raw / temperature if temperature > 0 else raw).log_softmax(-1)
        rows = torch.tensor(alive, device=policy.device)
        tokens = _choose(logp, temperature, sampling, banned, noise[rows, t])
        for position, number in enumerate(alive):
            if t < len(answers[number].forced):
                tokens[position] = answers[number].forced[t]
        chosen = logp.gather(1, tokens[:, None]).squeeze(1)
        stay = _record(policy, answers, alive, tokens.tolist(), chosen.tolist(), sampling)
        if not stay or t + 1 == sampling.max_tokens:
            return
        if len(stay) < len(alive):
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
    return torch.tensor(sorted({*policy.processing.banned_ids, *padding}), device=policy.device)


def _prefill(
    policy: Policy,
    encoded: Sequence[Encoded],
    looks: Sequence[tuple[Patches, ...]],
    answers: Sequence[_Answer],
    sampling: Sampling,
) -> tuple[Decoding, Tensor]:
    """Run all prompts once: their keys and values, and the last hidden state of each [P, D]."""
    device = policy.device
    stream = pack([Group(e, look) for e, look in zip(encoded, looks, strict=True)], device)
    kept: list[tuple[Tensor, Tensor]] = []
    object.__setattr__(stream.layout, "kept", kept)
    media = [item for look in looks for item in look]
    features = policy.vision.sampling_features(media)
    states = policy.language(
        stream.ids, stream.positions, stream.layout, stream.visual, features
    )
    policy.counters["tokens/prefill"] += len(stream.ids)
    segments = stream.layout.prompts
    longest = max(end - start for start, end in segments)
    mask = torch.zeros(len(segments), longest, dtype=torch.bool, device=device)
    where = torch.zeros(len(segments), longest, dtype=torch.long, device=device)
    for i, (start, end) in enumerate(segments):
        mask[i, : end - start] = True
        where[i, : end - start] = torch.arange(start, end, device=device)
    spread = lambda x: x[0][:, where].transpose(0, 1).contiguous()  # noqa: E731  [P, Hk, Lp, d]
    keys, values = [spread(k) for k, _ in kept], [spread(v) for _, v in kept]
    group = torch.tensor([a.prompt for a in answers], device=device)
    capacity = min(sampling.max_tokens, 64)
    room = lambda like: like.new_zeros(len(answers), like.shape[1], capacity, like.shape[3])  # noqa: E731
    store = Decoding(
        keys, values, mask, [room(k) for k in keys], [room(v) for v in values], group
    )
    last = torch.tensor([end - 1 for _, end in segments], device=device)
    return store, states[last]


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
    stay: list[int] = []
    for position, number in enumerate(alive):
        answer = answers[number]
        answer.tokens.append(tokens[position])
        answer.logp.append(logp[position])
        if tokens[position] in policy.processing.stop_ids and len(answer.tokens) > len(
            answer.forced
        ):
            answer.stop = "eos"
        elif sampling.stop:
            tail = policy.processing.decode(
                torch.tensor(answer.tokens[-(max(map(len, sampling.stop)) + 8) :])
            )
            answer.stop = next((s for s in sampling.stop if s in tail), "")
        if not answer.stop:
            stay.append(position)
    return stay


def _room(store: Decoding, needed: int, most: int) -> None:
    have = store.answer_keys[0].shape[2]
    if needed > have:
        store.grow(min(most, max(needed, 2 * have)))


def _step(policy: Policy, store: Decoding, tokens: Tensor, positions: Tensor) -> Tensor:
    """Feed one token per living answer [N]; the next hidden states [N, D]."""
    base = policy.base
    rows = base.get_input_embeddings()(tokens)[:, None]
    out = base.model.language_model(
        inputs_embeds=rows,
        position_ids=positions.expand(3, -1)[..., None],
        use_cache=False,
        layout=store,
    )
    store.filled += 1
    policy.counters["tokens/decode"] += len(tokens)
    return out.last_hidden_state[:, 0]
