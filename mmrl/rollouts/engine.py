"""The in-process rollout engine: prompts are prefilled once per group, answers share their keys and values.

How many answers advance together follows from the policy's budget and `rows_at_once` (`seating.fill`). Prompts are read
in packed rows that the budget allows; their keys and values are kept once per prompt, until the last of its answers has
ended (`decoding.PromptBlocks`). An answer that ends gives its row to one that waits; when nobody waits, the rows become
fewer. Training, evaluation and probes all come this way.

Each answer has its own stream of random numbers, keyed by (run seed, step, prompt id, view, answer), so the same
prompt, weights, seed and batch shape give the same answer; across batch shapes log-probs agree to rounding.

Vision placeholder ids are never drawn: one of them inside an answer would shift the pictures of every later pass. Nor
are ids beyond the tokenizer's, which a vocabulary padded to a round number has: they have no text.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Protocol, TypeGuard

from mmrl.model.budget import Costs
from mmrl.model.policy import Policy
from mmrl.model.processing import Patches
from mmrl.rollouts.advance import Pace
from mmrl.rollouts.growing_forest import GrowingForest, can_fork
from mmrl.rollouts.request import (
    ABILITIES,
    Ability,
    Asking,
    Request,
    Result,
    abilities_of,
)
from mmrl.rollouts.sampler import Asked, Sampler
from mmrl.types import Now, Prompt, Rollout, Sampling


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
    """Can this engine sample answers to other pixels than the prompt's?"""
    return "other pixels" in abilities_of(engine)


def check_rows(rows_at_once: int) -> None:
    """Raise ValueError for a number of answers with which nothing would ever be sampled."""
    if rows_at_once < 1:
        raise ValueError(
            f"rows_at_once is {rows_at_once}; at least one answer must advance at a time."
        )


class HFEngine(Asking):
    """Samples with the training weights themselves; `sync` has nothing to do.

    `rows_at_once` bounds how many answers advance together; the policy's budget may allow fewer. `pace`: shapes of
    steps and how often the host looks at them; None: as the device likes it.
    """

    abilities: Collection[Ability] = ABILITIES

    def __init__(
        self, policy: Policy, *, rows_at_once: int = 256, pace: Pace | None = None
    ) -> None:
        check_rows(rows_at_once)
        # Also where scores are computed row by row: answers are sampled from a shared prompt all the same.
        policy.family.refuse_layers(policy.base, "sampling")
        self.policy = policy
        self.rows_at_once = rows_at_once
        self.pace = pace
        if not can_fork(policy.base):
            self.abilities = ABILITIES - {"forks"}

    def sync(self, policy: Policy) -> None:
        """The engine reads the policy's weights directly."""
        assert policy is self.policy, "this engine belongs to another policy"

    def answer(self, requests: Sequence[Request]) -> list[Result]:
        """As `Asking.answer`. Requests that are alike in all but the prompt advance together."""
        began = time.monotonic()
        found: dict[int, list[Result]] = {}
        for alike in _alike(requests):
            numbers = [number for number, _ in alike]
            for number, results in zip(
                numbers, self._sampled([r for _, r in alike], began), strict=True
            ):
                found[number] = results
        return [result for number in range(len(requests)) for result in found[number]]

    def plant(self, requests: Sequence[Request]) -> GrowingForest:
        """As `Asking.plant`. Everything that was grown is held until the forest is closed."""
        return GrowingForest(self.policy, requests, self.rows_at_once)

    def trees_together(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[int]:
        """How many of the prompts go into a forest each, in their order, so that its keys stay within the budget.

        Reckoned as if answers shared nothing; a tree that is too large by itself is tried all the same.
        """
        room = self.policy.budget.keys_values // Costs.of_model(self.policy.base).token
        counts, used = [0], 0
        for prompt in prompts:
            prompt_tokens = len(self.policy.encode(prompt).ids)
            most = prompt_tokens + sampling.group_size * sampling.max_tokens
            if counts[-1] and used + most > room:
                counts.append(0)
                used = 0
            counts[-1] += 1
            used += most
        return counts

    def _sampled(self, requests: Sequence[Request], began: float) -> list[list[Result]]:
        """The results of each of some requests that differ in the prompt, pixels, counts and forced starts."""
        asked = [
            Asked(
                i, r.prompt, r.encoded, r.pixels, [r.start(n) for n in range(r.count)], r.first
            )
            for i, r in enumerate(requests)
        ]
        one = requests[0]
        sampler = Sampler(
            self.policy,
            asked,
            one.sampling,
            (*one.seed, one.branch),
            one.temperature_at,
            self.rows_at_once,
            self.pace or Pace.of(self.policy.device),
            one.banned,
        )
        out: list[list[Result]] = [[] for _ in requests]
        for answer in sampler.run():
            out[answer.prompt].append(
                Result(
                    tokens=answer.tokens,
                    logp=answer.logp,
                    stop=answer.stop or "length",
                    version=self.policy.version,
                    seconds=time.monotonic() - began,
                )
            )
        return out


def _alike(requests: Sequence[Request]) -> list[list[tuple[int, Request]]]:
    """Requests with their places, those together that one call of the sampler can answer."""
    found: dict[object, list[tuple[int, Request]]] = {}
    for number, request in enumerate(requests):
        key = (
            request.sampling,
            request.seed,
            request.branch,
            request.temperature_at,
            request.banned,
        )
        found.setdefault(key, []).append((number, request))
    return list(found.values())
