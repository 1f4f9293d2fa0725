"""What is kept of a sampled group besides its texts: what each branch saw, and numbers per token of its answers.

`closeups.jsonl` has one object per group of `samples.jsonl`, for the report:

    step, prompt
    pictures   branch -> per medium a list of frames (`uri`, `time`); "raw" are the true pixels
    answers    per answer its tokens as text, and per token: logp, advantage, entropy (where it was computed), and
               "dependence/BRANCH" = log p(token | true pixels) - log p(token | branch), in nats; and what tools
               have shown in it (`shown`), its first media as above

Numbers are those that the update read, before the weights moved. Branches are rendered once more with the draws of the
step; a view that reads the policy's attention sees that of the updated weights. Everything is bounded: a line has some
tens of kilobytes, however long answers and clips are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.model.branches import transform_of
from mmrl.model.policy import Policy
from mmrl.report.pictures import strip
from mmrl.rollouts.groups import RolloutCall, chain
from mmrl.training.tracking import Tracker
from mmrl.types import Batch, Media, Now, Prompt, Rollout, Scores, VisualBranch

ANSWERS, TOKENS = 4, 400
"""Answers of a group, and first tokens of each, whose numbers are kept."""
MEDIA, FRAMES = 3, 6
"""Media of a prompt, and frames of a clip, that are kept."""
LONGEST, LONGEST_FRAME = 224, 112
"""Pixels on the longer side of a picture, and of a frame of a clip."""
DIGITS = 3
UNFINISHED = "\ufffd"
"""What decoders write for bytes that are no character yet."""
LONGEST_CHARACTER = 4
"""Bytes, and so tokens at most, of one character in UTF-8."""


@dataclass
class TokenMaps:
    """Numbers per token of the first answers of a batch's first group, one row [T] each."""

    rows: list[int] = field(default_factory=list)
    """Their places in the batch."""
    maps: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """Name -> place in the batch -> float [T]; "advantage", "logp/BRANCH", "entropy"."""

    @classmethod
    def of(cls, batch: Batch) -> TokenMaps:
        """What is known of a batch before its update; nothing of one without answers, as some process may have it."""
        if not batch.rollouts:
            return cls()
        first = batch.rollouts[0].group
        rows = [row for row, rollout in enumerate(batch.rollouts) if rollout.group == first]
        found = cls(rows[:ANSWERS])
        found.maps["advantage"] = {row: batch.advantage[row] for row in found.rows}
        found.take(range(len(batch)), batch.scores)
        return found

    def take(self, rows: Sequence[int], scores: Mapping[str, Scores]) -> None:
        """Take in scores of some rows of the batch; what is known already stays, for weights move between updates."""
        places = {row: place for place, row in enumerate(rows)}
        for row in self.rows:
            if row not in places:
                continue
            for name, found in scores.items():
                self._keep(f"logp/{name}", row, found.logp[places[row]])
                if name == "raw" and found.entropy is not None:
                    self._keep("entropy", row, found.entropy[places[row]])

    def _keep(self, name: str, row: int, numbers: Tensor) -> None:
        # A copy: a view would hold on to the scores of the whole batch.
        self.maps.setdefault(name, {}).setdefault(row, numbers.detach().clone())

    def answer(self, row: int, length: int) -> dict[str, list[float]]:
        """Numbers per token of the answer in this row, rounded."""
        of_row = {name: found[row] for name, found in self.maps.items() if row in found}
        raw = of_row.pop("logp/raw", None)
        shown: dict[str, Tensor] = {}
        for name, numbers in of_row.items():
            kind, _, branch = name.partition("/")
            if kind != "logp":
                shown[name] = numbers
            elif raw is not None and branch not in ("ref", "sampler"):
                shown[f"dependence/{branch}"] = raw - numbers
        if raw is not None:
            shown["logp"] = raw
        return {name: _rounded(numbers[:length]) for name, numbers in sorted(shown.items())}


def all_branches(
    branches: Mapping[str, VisualBranch], rollout: RolloutCall
) -> dict[str, VisualBranch]:
    """The branches that are scored, and those under which answers are sampled."""
    found = dict(branches)
    for part in chain(rollout):
        found |= part.sampled_under()
    return found


def keep_sample(
    tracker: Tracker,
    policy: Policy,
    rollouts: Sequence[Rollout],
    maps: TokenMaps,
    branches: Mapping[str, VisualBranch],
    now: Now,
) -> None:
    """Write down the answers to a step's first prompt, and their close-up; of several processes one does it."""
    if not (tracker.writes and rollouts):
        return
    first = rollouts[0].group
    group = [rollout for rollout in rollouts if rollout.group == first]
    tracker.sample(now.step, group)
    tracker.close_up(now.step, lambda: close_up(policy, group, maps, branches, now))


def close_up(
    policy: Policy,
    group: Sequence[Rollout],
    maps: TokenMaps,
    branches: Mapping[str, VisualBranch],
    now: Now,
) -> dict[str, Any]:
    """The object of one group; the policy, its features and its counters are left as they were."""
    prompt = group[0].prompt
    answers = []
    for row, rollout in zip(maps.rows, group, strict=False):
        ids = rollout.tokens[:TOKENS].tolist()
        spelt = spelt_out(ids, policy.processing.spell)
        near: dict[str, Any] = {"tokens": spelt, **maps.answer(row, len(ids))}
        if rollout.media:
            near["shown"] = shown_media(rollout.media)
        answers.append(near)
    pictures = {"raw": shown_media(prompt.media)}
    if prompt.media:
        for name, branch in branches.items():
            # Attention of a model that lies on several processes is asked by all or by none.
            if branch.view.reads_saliency and policy.ranks.several:
                continue
            pictures[name] = shown_media(branch_media(policy, prompt, name, branch, now))
    return {"prompt": prompt.id, "pictures": pictures, "answers": answers}


def spelt_out(ids: Sequence[int], spell: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of each token; of several that make up one character, the last has it and the others nothing."""
    spelt: list[str] = []
    waiting: list[int] = []
    for number in ids:
        waiting.append(number)
        text = spell(waiting)
        # An unfinished character; one that never comes to its end is not waited for.
        if text.endswith(UNFINISHED) and len(waiting) < LONGEST_CHARACTER:
            spelt.append("")
            continue
        spelt.append(text)
        waiting = []
    if waiting:
        spelt[-1] = spell(waiting)
    return spelt


def branch_media(
    policy: Policy, prompt: Prompt, name: str, branch: VisualBranch, now: Now
) -> list[Media]:
    """The prompt's media as a branch shows them at this step."""
    seen: list[Media] = []
    counted = dict(policy.counters)
    with policy.vision.aside(), torch.no_grad():
        encoded = policy.encode(prompt)
        transform = transform_of(policy, prompt, encoded, name, branch, now, -1)

        def noted(frames: Tensor, medium: int) -> Tensor:
            changed = transform(frames, medium)
            seen.append(Media(changed, prompt.media[medium].times))
            return changed

        policy.processing.rerender(prompt, encoded, noted, branch.stage)
    policy.counters.clear()
    policy.counters.update(counted)
    return seen


def shown_media(
    media: Sequence[Media], longest: int = LONGEST, longest_frame: int = LONGEST_FRAME
) -> list[list[dict[str, object]]]:
    """Media as small pictures: one for an image, a few with their times for a clip."""
    shown = []
    for medium in media[:MEDIA]:
        frames = medium.frames.permute(0, 2, 3, 1).cpu().numpy()  # [F, H, W, 3]
        times = None if medium.times is None else medium.times.tolist()
        size = longest_frame if medium.is_video else longest
        shown.append(strip(frames, times, size, FRAMES))
    return shown


def _rounded(numbers: Tensor) -> list[float]:
    return [round(number, DIGITS) for number in numbers.float().cpu().tolist()]
