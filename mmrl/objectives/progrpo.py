"""ProGRPO (arXiv 2602.05281), advantage re-weighting by probabilities (ARM): what is said too surely earns less.

    c(x)   exp of the mean log-prob of the `share` of x's tokens that are least likely (at least one)
    A_i  ← A_i + alpha·(c(q) - c(o_i | q)),      q the words of the prompt, o_i the answer

The prompt's own confidence is the point of reference: an answer that is said more surely than its question loses, one
that was found in spite of small probability gains. Only the least likely tokens count, for all others are near to 1. A
group without a right answer keeps its advantages. Both confidences are of the policy that sampled; the prompt is scored
once for all answers of its group, by its words alone: template, pictures and time stamps have no likelihood that means
anything.

c(q) is one number per group: whatever subtracts the group's mean afterwards takes it away again.

Departures
1. Which group has no right answer is what the rewards declare (`correct`), not a sum of rewards that is 0.
2. An all-right group is shifted, as printed; one review says that it is not: `skip_all_right`.
3. `alpha` is not printed where we could read it: 0.5 is ours.
4. Words are scored at temperature 1, answers at the temperature of sampling.
5. An answer without a trained token, and one to a prompt without words, keeps its advantage.

Source: two reviews of the paper that agree; there is no released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses.reduce import keep
from mmrl.objectives.base import Objective, ScoreRequest
from mmrl.types import Batch, Now, Shaped


@dataclass(frozen=True)
class ProGRPO(Objective):
    """A shift of the advantage against confidence."""

    alpha: float = 0.5
    """Weight of the shift, which is at most this; 0 turns it off."""
    share: float = 0.2
    """Share of the tokens that count, the least likely ones."""
    skip_all_wrong: bool = True
    """Leave groups without a right answer as they are."""
    skip_all_right: bool = False
    """Leave groups without a wrong answer as they are."""

    needs_correct: ClassVar[bool] = True
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            alpha=(self.alpha >= 0, "0 (off) or positive"),
            share=(0 < self.share <= 1, "in (0, 1]"),
        )

    def traits(self) -> tuple[str, ...]:
        """A group's mean would take the prompt's confidence away."""
        return ("shapes the advantage", "undone by centring") if self.alpha > 0 else ()

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Answers and words of the prompt, by the policy that sampled."""
        return (ScoreRequest("raw", "shape", words=True),) if self.alpha > 0 else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The shifted advantage on trained tokens."""
        if self.alpha == 0:
            return Shaped(advantage)
        raw = batch.scores["raw"]
        assert raw.words is not None and raw.words_mask is not None, "asked for, so scored"
        assert batch.correct is not None, "refused at construction without"
        asked, is_asked = confidence(raw.words, raw.words_mask, self.share)
        said, is_said = confidence(raw.logp, batch.mask, self.share)
        moves = is_asked & is_said & ~self.spared(batch.correct, batch.group)
        shift = torch.where(moves, self.alpha * (asked - said), 0.0).to(advantage)
        shifted = torch.where(batch.mask, advantage + shift[:, None], advantage)
        per_token = torch.ones_like(advantage)
        logged = {"shift": shift, "prompt": asked, "answer": said}
        return Shaped(
            shifted, logged={name: x[:, None] * per_token for name, x in logged.items()}
        )

    def spared(self, correct: Tensor, group: Tensor) -> Tensor:
        """Whose group keeps its advantages; correct, group [B] -> bool [B]."""
        _, index, size = group.unique(return_inverse=True, return_counts=True)
        right = torch.zeros_like(size).index_add(0, index, correct.to(size))
        none, all_of_them = (right == 0)[index], (right == size)[index]
        return (none & self.skip_all_wrong) | (all_of_them & self.skip_all_right)


def confidence(logp: Tensor, mask: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(c of each row, does it have any token); logp, mask [B, n] -> [B], bool [B]."""
    on = mask.bool()
    # The sort must be stable, so that ties do not vary by machine.
    ranked = torch.where(on, logp, torch.inf).argsort(dim=-1, stable=True)
    place = ranked.argsort(dim=-1)  # rank of each token, the least likely first
    lengths = on.sum(-1, keepdim=True)
    # Counts are small integers: round away the error of share·n before the ceiling.
    low = on & (place < (lengths * share - 1e-6).ceil().clamp(min=1))
    mean = keep(logp, low).sum(-1) / low.sum(-1).clamp(min=1)
    return mean.exp(), on.any(-1)
