"""CANON: golden advantages and schedule, its identities, every number that may sort, and degenerate groups."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrl.losses.advantages import group_centered
from mmrl.objectives.canon import CANON, conditional, restarted
from mmrl.training.clashes import refuse_clashes
from mmrl.types import Batch, Now, Prompt, Rollout, Scores

NOW = Now(1, 0.1)
FILE = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "rlvr"
    / "canon.json"
)
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {"cases": []}


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(
        found, tensor(expected), rtol=GOLDEN["rtol"], atol=GOLDEN["atol"], check_dtype=False
    )


def batch_of(reward, group, mask, entropy=None, parts=None):
    """Answers with these rewards, masks and entropies; dependence on the picture is twice the entropy."""
    blank = torch.zeros(mask.shape, dtype=torch.long)
    names = sorted(set(group), key=str)
    rows = [
        Rollout(Prompt("q", []), names.index(label), blank[0], blank[0], blank[0], "", "eos",
                parts={} if parts is None else {"size": parts[i]})
        for i, label in enumerate(group)
    ]  # fmt: skip
    scores = {}
    if entropy is not None:
        scores["raw"] = Scores(entropy, entropy=entropy)
        scores["masked"] = Scores(entropy, divergence=2 * entropy)
    return Batch(rows, torch.tensor([r.group for r in rows]), blank, mask.bool(), reward,
                 torch.zeros(mask.shape, dtype=torch.float64), blank.byte(), scores)  # fmt: skip


def golden_batch(given):
    entropy = tensor(given["token_entropy"]) if "token_entropy" in given else None
    mask = tensor(given["response_mask"])
    return batch_of(tensor(given["rewards"]), given["group"], mask, entropy)


@pytest.mark.parametrize(
    "case",
    [case for case in GOLDEN["cases"] if "rewards" in case["inputs"]],
    ids=lambda case: case["name"],
)
def test_golden_rlvr_canon(case):
    given, told = case["inputs"], case["outputs"]["advantages_times_8192"]
    batch, kind = golden_batch(given), case["name"].split("-")[0]
    if kind == "drgrpo":
        close(group_centered(batch.reward, batch.group, batch.mask)[:, None] * batch.mask, told)
        return
    numbers = {"inter": given["mu"], "alpha": given["alpha"], "alone": "reward"}
    if kind == "anneal":  # the code ignores alpha there
        numbers |= {"schedule": "accuracy", "alpha": 1.0}
    canon = CANON(by="length" if kind == "length" else "entropy",
                  favoured="low" if kind == "length" else "high", **numbers)  # fmt: skip
    close(canon.shape(batch.advantage, batch, NOW).advantage, told)


@pytest.mark.parametrize(
    "case", [case for case in GOLDEN["cases"] if "steps" in case["inputs"]]
)
def test_golden_rlvr_canon_schedule(case):
    given = case["inputs"]
    numbers = {
        "total": given["total"], "top": given["max"], "low": given["min"],
        "warmup": given["warmup"], "cycles": given["cycles"],
    }  # fmt: skip
    found = [restarted(step, **numbers) for step in given["steps"]]
    close(tensor(found), case["outputs"]["weight_of_intra"])


def test_the_weight_follows_its_schedule():
    reward = tensor([1.0, 0.0, math.nan, 0.0])
    assert CANON(schedule="accuracy").weight(reward, NOW) == pytest.approx(1 / 3)
    assert CANON(schedule="accuracy").weight(tensor([math.nan]), NOW) == 0.0
    assert CANON(schedule="accuracy").weight(tensor([-1.0]), NOW) == 0.0
    assert CANON(schedule="accuracy", reversed=True).weight(reward, NOW) == pytest.approx(2 / 3)
    assert CANON(schedule="cosine").weight(reward, Now(30, 0.1)) == pytest.approx(0.4)
    assert CANON(schedule="cosine").weight(reward, Now(900, 1.0)) == 1.0
    assert CANON(inter=0.25).weight(reward, NOW) == 0.25


def drawn(count=8, groups=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    reward = torch.rand(count, generator=rng, dtype=torch.float64)
    number = torch.randperm(count, generator=rng).double()
    return reward, number, torch.arange(count) % groups


def test_both_comparisons_in_equal_parts_are_the_distance_to_the_mean():
    reward, number, group = drawn()
    mean = torch.stack([reward[group == label].mean() for label in group])
    torch.testing.assert_close(conditional(reward, number, group, inter=0.5), reward - mean)


def test_the_upper_half_as_a_whole_gets_its_lead():
    reward, number, _ = drawn(7)
    group = torch.zeros(7, dtype=torch.long)
    found, high = conditional(reward, number, group, inter=1.0), number >= 3
    lead = reward[high].mean() - reward[~high].mean()
    assert int(high.sum()) == 4, "an odd group has the larger upper half"
    torch.testing.assert_close(found[high].sum(), 4 * lead)
    torch.testing.assert_close(found[~high].sum(), -3 * lead)


@pytest.mark.parametrize("favoured", ["low", "high"])
def test_alpha_favours_a_half_where_both_are_paid_alike(favoured):
    number, group = tensor([0, 1, 2, 3]), torch.zeros(4, dtype=torch.long)
    found = conditional(
        tensor([1.0] * 4), number, group, inter=1.0, alpha=0.9, favoured=favoured
    )
    sign = 1 if favoured == "low" else -1
    torch.testing.assert_close(found, sign * tensor([0.1, 0.1, -0.1, -0.1]))


def test_permuted_answers_have_permuted_advantages():
    reward, number, group = drawn(9, 3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    found = conditional(reward, number, group, inter=0.7, alpha=0.9)
    moved = conditional(reward[order], number[order], group[order] * 3, inter=0.7, alpha=0.9)
    torch.testing.assert_close(moved, found[order])


def test_every_number_sorts_by_what_it_says_and_padding_reaches_none():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    entropy = tensor([[1, 2, 3], [4, 5, math.nan], [7, math.nan, math.nan], [math.nan] * 3])
    batch = batch_of(tensor([1, 0, 0, 1]), [0] * 4, mask, entropy, [0.5, None, 0.25, 1.0])
    of = {
        "length": [3, 2, 1, 0], "entropy": [2, 4.5, 7, 0], "visual": [4, 9, 14, 0],
        "part": [0.5, math.nan, 0.25, 1.0],
    }  # fmt: skip
    for by, expected in of.items():
        canon = CANON(by=by, part="size" if by == "part" else "")
        torch.testing.assert_close(canon.number(batch), tensor(expected), equal_nan=True)
        shaped = canon.shape(batch.advantage, batch, NOW)
        assert shaped.advantage.isfinite().all() and (shaped.advantage[mask == 0] == 0).all()
    with pytest.raises(ValueError, match=r"CANON\.part is 'length'.*\['size'\].*--canon\.part"):
        CANON(by="part", part="length").number(batch)
    with pytest.raises(ValueError, match="scored without divergence"):
        bare = {"masked": Scores(entropy)}
        CANON(by="visual").number(replace(batch, scores=bare))


def test_it_asks_for_what_its_number_is_made_of():
    assert CANON().score_requests() == ()
    assert CANON(by="entropy").score_requests()[0].entropy
    visual = CANON(by="visual", masked="dark").score_requests()[1]
    assert (visual.branch, visual.stage, visual.divergence) == ("dark", "shape", "forward")


@pytest.mark.parametrize("inter", [0.0, 0.3, 1.0])
def test_degenerate_groups_are_finite(inter):
    group = torch.zeros(3, dtype=torch.long)
    number = tensor([2, 1, 1])
    equal = conditional(tensor([0.1] * 3), number, group, inter=inter)
    assert (equal == 0).all()
    unknown = conditional(tensor([math.nan, 1.0, 0.0]), number, group, inter=inter)
    assert unknown.isfinite().all() and unknown[0] == 0
    untold = conditional(tensor([1.0, 1.0, 0.0]), tensor([math.nan, 1, 2]), group, inter=inter)
    assert untold.isfinite().all() and untold[0] == 0
    one = {"reward": tensor([0.25]), "number": tensor([1]), "group": group[:1], "inter": inter}
    assert float(conditional(**one)) == 0.0
    assert float(conditional(**one, alone="reward")) == 0.25


def test_off_the_same_tensor_comes_back_and_nothing_is_owned():
    off, given = CANON(by="nothing"), torch.randn(1, 1)
    batch = batch_of(tensor([1.0]), [0], torch.ones(1, 1))
    assert off.shape(given, batch, NOW).advantage is given
    assert off.owns() == () and off.traits() == () and CANON().owns() == ("estimator",)


def test_a_later_mean_of_the_group_and_a_second_estimator_are_refused():
    class Centring(CANON):
        def owns(self):
            return ()

        def traits(self):
            return ("centres groups",)

    with pytest.raises(ValueError, match=r"CANON and Centring.*undone by centring"):
        refuse_clashes([CANON(), Centring()], [])
    with pytest.raises(ValueError, match=r"CANON.*owns the estimator"):
        refuse_clashes([CANON(), CANON(by="entropy")], [])


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"inter": 1.5}, "inter"), ({"alpha": -1.0}, "alpha"), ({"by": "part"}, "part"), ({"part": "x"}, "part")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings, name):
    with pytest.raises(ValueError, match=rf"CANON\.{name}"):
        CANON(**settings)
