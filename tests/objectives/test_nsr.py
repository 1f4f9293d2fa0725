"""PSR, NSR and W-REINFORCE: golden advantages and losses, the row filter, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mmrl.grpo import GRPO, losses
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.objectives.base import shaped_in_turn
from mmrl.objectives.nsr import NSR, weights
from mmrl.types import Batch, Now, Prompt, Rollout, Scores

NOW = Now(1, 0.1)
FILE = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "rlvr"
    / "psr_nsr.json"
)
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {"cases": []}
# The released functions run on all rows; their trainer filters before.
MODES = {"positive": lambda lam: (1.0, 0.0), "negative": lambda lam: (0.0, 1.0),
         "weighted": lambda lam: (lam, 1.0)}  # fmt: skip


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(
        found, tensor(expected), rtol=GOLDEN["rtol"], atol=GOLDEN["atol"], check_dtype=False
    )


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden_rlvr_psr_nsr(case):
    given, told = case["inputs"], case["outputs"]
    mask = tensor(given["response_mask"]).bool()
    right = tensor(given["rewards"]) == 1
    own, _ = weights(right, *MODES[given["mode"]](given["lam"]))
    advantage = own.double().unsqueeze(-1) * mask
    close(advantage, told["advantages"])
    if "loss" not in told:
        return
    logp = tensor(given["log_prob"]).requires_grad_()
    clip = given["cliprange"]
    map_ = clipped(logp, tensor(given["old_log_prob"]), advantage, mask, clip_low=clip,
                   clip_high=clip, dual_clip=None)  # fmt: skip
    loss = map_.sum() / mask.sum()
    close(loss, told["loss"])
    close(torch.autograd.grad(loss, logp)[0], told["grad_log_prob"])


def batch_of(correct):
    count = len(correct)
    prompt = Prompt("q", [])
    tokens = torch.zeros(count, 3, dtype=torch.long)
    mask = torch.tensor([[True, True, n % 2 == 0] for n in range(count)])
    rows = [
        Rollout(prompt, n // 2, tokens[0], tokens[0], tokens[0], "", "eos")
        for n in range(count)
    ]
    known = None if None in correct else torch.tensor(correct, dtype=torch.bool)
    return Batch(rows, torch.arange(count) // 2, tokens, mask, torch.full((count,), 9.0),
                 torch.full((count, 3), 7.0), (~mask).byte(), correct=known)  # fmt: skip


CORRECT = [True, False, False, True, False]


@pytest.mark.parametrize(
    ("nsr", "kept"),
    [
        (NSR(1.0, 0.0), [True, False]),
        (NSR(0.0, 1.0), [False, True]),
        (NSR(0.1, 1.0), [True, True]),
    ],
)
def test_answers_of_weight_zero_leave_the_batch_and_its_counts(nsr, kept):
    batch = batch_of(CORRECT)
    after = shaped_in_turn([nsr], [None], batch, NOW)
    stays = torch.tensor([kept[0] if right else kept[1] for right in CORRECT])
    assert torch.equal(after.mask, batch.mask & stays[:, None])
    # The same as a batch that never held the others.
    logp = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    live = {"raw": Scores(logp)}
    parts, _ = losses(GRPO(), clipped, after, live, [nsr], Totals.of(after.mask), NOW)
    own = torch.where(torch.tensor(CORRECT), nsr.positive, -nsr.negative)
    alone = -(own[:, None].expand(5, 3)[after.mask]).mean()  # the ratio is 1
    assert float(parts["policy"]) == pytest.approx(float(alone))


def test_the_total_reward_does_not_matter_and_an_all_wrong_batch_leaves_psr_nothing():
    after = shaped_in_turn([NSR(1.0, 0.0)], [None], batch_of([False] * 4), NOW)
    assert not after.mask.any() and (after.advantage == 0).all()


def test_the_gradient_is_linear_in_the_weight_of_right_answers():
    right = torch.tensor(CORRECT)
    one, two = weights(right, 0.25, 1.0)[0], weights(right, 0.5, 1.0)[0]
    assert torch.equal(2 * one[right], two[right]) and torch.equal(one[~right], two[~right])


def test_an_answer_that_nobody_judged_and_weights_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"NSR reads whether answers are right.*correct="):
        NSR().shape(torch.zeros(2, 3), batch_of([True, None]), NOW)
    with pytest.raises(ValueError, match=r"NSR\.positive and NSR\.negative are both 0"):
        NSR(0.0, 0.0)
    with pytest.raises(ValueError, match=r"NSR\.positive is -1"):
        NSR(-1.0)


def test_it_says_which_groups_teach():
    some = "learns from some answers"
    assert NSR(1.0, 0.0).traits() == ("learns from all-right groups", some)
    assert NSR(0.0, 1.0).traits() == ("learns from all-wrong groups", some)
    assert len(NSR().traits()) == 2
