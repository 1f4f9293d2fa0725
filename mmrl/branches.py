"""Visual branches: the same answers, other pixels.

Draws come from (run seed, step, prompt id, branch, medium) and, for per-answer views, the answer; so a step that is run
again sees the same masks, and one draw serves a whole group unless asked otherwise. Grids and positions never change.
Pixels are rendered and processed once per prompt (or answer) and step, however many passes read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmrl.batching import Group
from mmrl.policy import Policy
from mmrl.processing import Patches
from mmrl.seeds import generator
from mmrl.types import Now, Rollout, ViewContext, VisualBranch

PLAIN = ("raw", "ref")
"""Views that show the pixels as they are."""


class Views:
    """The groups of a batch under each branch."""

    def __init__(
        self, policy: Policy, rollouts: Sequence[Rollout], branches: Mapping[str, VisualBranch], now: Now
    ) -> None:
        self.policy = policy
        self.rollouts = rollouts
        self.branches = branches
        self.now = now
        self._rendered: dict[tuple[str, str, int], tuple[Patches, ...]] = {}

    def groups(self, name: str, rows: Sequence[int]) -> list[Group]:
        """These rows under branch `name`, with their positions in `rows` as row numbers."""
        shared = name in PLAIN or self.branches[name].share_in_group
        members: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            key = self.rollouts[row].group if shared else position
            members.setdefault(key, []).append(position)
        out = []
        for positions in members.values():
            chosen = [self.rollouts[rows[p]] for p in positions]
            out.append(
                Group(
                    self.policy.encode(chosen[0].prompt),
                    self.pixels(name, rows[positions[0]]),
                    tuple(r.tokens for r in chosen),
                    tuple(positions),
                    tuple(r.temperature for r in chosen),
                )
            )
        return out

    def pixels(self, name: str, row: int) -> tuple[Patches, ...]:
        """What an answer's prompt shows under a branch."""
        rollout = self.rollouts[row]
        encoded = self.policy.encode(rollout.prompt)
        if name in PLAIN or not rollout.prompt.media:
            return encoded.visual
        branch = self.branches[name]
        answer = -1 if branch.share_in_group else row - self._first(row)
        key = (name, rollout.prompt.id, answer)
        if key not in self._rendered:
            self._rendered[key] = render(self.policy, rollout, name, branch, self.now, answer)
        return self._rendered[key]

    def _first(self, row: int) -> int:
        group = self.rollouts[row].group
        return next(i for i, r in enumerate(self.rollouts) if r.group == group)


def render(
    policy: Policy, rollout: Rollout, name: str, branch: VisualBranch, now: Now, answer: int = -1
) -> tuple[Patches, ...]:
    """The media of one prompt under a branch; `answer` keys the draw of a per-answer view."""
    prompt = rollout.prompt

    def transform(frames: Tensor, medium: int) -> Tensor:
        rng: torch.Generator = generator(now.seed, now.step, prompt.id, name, medium, answer)
        return branch.view(frames, ViewContext(prompt, medium), rng, now)

    return policy.processing.rerender(prompt, policy.encode(prompt), transform, branch.stage)
