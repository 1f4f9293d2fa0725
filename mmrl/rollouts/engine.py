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

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from mmrl.model.policy import Policy
from mmrl.model.processing import Patches
from mmrl.rollouts.advance import Pace
from mmrl.rollouts.sampler import Answer, Asked, Sampler
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


def check_rows(rows_at_once: int) -> None:
    """Raise ValueError for a number of answers with which nothing would ever be sampled."""
    if rows_at_once < 1:
        raise ValueError(
            f"rows_at_once is {rows_at_once}; at least one answer must advance at a time."
        )


class HFEngine:
    """Samples with the training weights themselves; `sync` has nothing to do.

    `rows_at_once` bounds how many answers advance together; the policy's budget may allow fewer. `pace`: shapes of
    steps and how often the host looks at them; None: as the device likes it.
    """

    def __init__(
        self, policy: Policy, *, rows_at_once: int = 256, pace: Pace | None = None
    ) -> None:
        check_rows(rows_at_once)
        # Also where scores are computed row by row: answers are sampled from a shared prompt all the same.
        policy.family.refuse_layers(policy.base, "sampling")
        self.policy = policy
        self.rows_at_once = rows_at_once
        self.pace = pace

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
        asked: list[Asked] = []
        copies: Counter[str] = Counter()
        for i, prompt in enumerate(prompts):
            encoded = self.policy.encode(prompt)
            pixels = encoded.visual if visual is None else visual[i]
            forced = [] if prefixes is None else prefixes[i].tolist()
            # A prompt that is there twice gets other answers the second time: their numbers go on.
            first = copies[prompt.id]
            copies[prompt.id] += sampling.group_size
            asked.append(Asked(i, prompt, encoded, pixels, forced, first))
        if not asked:
            return []
        pace = self.pace or Pace.of(self.policy.device)
        seeds = (now.seed, now.step, branch)
        answers = Sampler(
            self.policy, asked, sampling, seeds, temperature_at, self.rows_at_once, pace
        ).run()
        return [
            _finished(
                self.policy, asked[answer.prompt], answer, sampling, branch, temperature_at
            )
            for answer in answers
        ]


def _finished(
    policy: Policy,
    asked: Asked,
    answer: Answer,
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
        text=policy.processing.answer_text(tokens),
        stop=answer.stop or "length",
        logp=torch.tensor(answer.logp, dtype=torch.promote_types(policy.dtype, torch.float32)),
        temperature=temperature,
        branch=branch,
    )
