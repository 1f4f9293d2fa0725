"""PuzzleCraft: the printed weights, their properties, plain GRPO at no influence, closed-form gradient."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.grpo import GRPO, loss
from mmrl.losses.advantages import group_centered
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.objectives.puzzlecraft import INVALID, PuzzleCraft, dispersion
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "pretext"
NOW = Now(step=1, progress=0.0)


def answers(groups, options=None):
    """A batch of (text, reward) answers, three tokens each."""
    rollouts, nothing = [], torch.zeros(0, dtype=torch.long)
    for number, group in enumerate(groups):
        prompt = Prompt(f"p{number}", [], extra={"options": options})
        rollouts += [
            Rollout(prompt, number, nothing, nothing, nothing, text, "eos") for text, _ in group
        ]
    rewards = torch.tensor([reward for group in groups for _, reward in group])
    mask = torch.ones(len(rollouts), 3, dtype=torch.bool)
    batch = Batch(
        rollouts=rollouts,
        group=torch.tensor([rollout.group for rollout in rollouts]),
        tokens=torch.zeros(len(rollouts), 3, dtype=torch.long),
        mask=mask,
        reward=rewards,
        advantage=torch.zeros(len(rollouts), 3),
        roles=torch.full((len(rollouts), 3), int(Role.POLICY), dtype=torch.uint8),
    )
    return replace(batch, advantage=group_centered(rewards, batch.group, mask)[:, None] * mask)


@pytest.mark.skipif(
    not (GOLDEN / "puzzlecraft_formula.json").exists(), reason="no puzzlecraft_formula.json"
)
def test_golden_puzzlecraft_formula():
    cases = json.loads((GOLDEN / "puzzlecraft_formula.json").read_text())["cases"]
    assert cases
    for case in cases:
        options = case.get("num_options") if case["kind"] == "option" else None
        keys = [str(key) for key in case["keys"]]
        batch = answers([list(zip(keys, case["rewards"], strict=True))], options)
        batch = replace(batch, reward=batch.reward.double())
        weights = PuzzleCraft().weights(batch)
        assert weights.tolist() == pytest.approx([case["weight"]] * len(keys), abs=1e-12), case
        assert dispersion(keys, options) == pytest.approx(max(0.0, case["d_pi"]), abs=1e-12)


ANSWER = st.tuples(
    st.sampled_from(["A", "B", "C", "D", INVALID]), st.sampled_from([0.0, 0.25, 0.5, 1.0])
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ANSWER, min_size=1, max_size=8), st.sampled_from([None, 1, 4]))
def test_weights_lie_in_the_unit_interval_and_ignore_names(group, options):
    solutions, rewards = zip(*group, strict=True)
    weight = PuzzleCraft().weights(answers([group], options))[0].item()
    assert 0.0 <= weight <= 1.0 and 0.0 <= dispersion(solutions, options) <= 1.0
    if len(set(solutions)) == 1 or set(rewards) in ({0.0}, {1.0}):
        assert weight == 0.0
    # As hard as it is easy: d and 1 - d weigh the same, and so do solutions under other names.
    other = {"A": "z", "B": "A", "C": "q", "D": "B", INVALID: INVALID}
    mirrored = [(other[solution], 1.0 - reward) for solution, reward in group]
    again = PuzzleCraft().weights(answers([mirrored], options))[0].item()
    assert again == pytest.approx(weight, abs=1e-12)


def test_dispersion_leaves_unreadable_answers_out_of_the_shares():
    assert dispersion([INVALID, "A", "A", "A"], 4) < dispersion(["B", "A", "A", "A"], 4)
    assert dispersion([INVALID, INVALID, (1, 2), (2, 1)]) == pytest.approx(2 / 3)
    assert dispersion(["A"], 4) == dispersion(["A", "B"], 1) == 0.0


MIXED = [
    [("A", 1.0), ("B", 0.0), ("C", 0.0), ("B", 0.0)],
    [("A", 1.0), ("A", 1.0), ("B", 0.0), ("D", 0.0)],
]


def test_no_influence_is_grpo_bit_for_bit():
    batch = answers(MIXED, 4)
    shaped = PuzzleCraft(influence=0.0).shape(batch.advantage, batch, NOW).advantage
    assert torch.equal(shaped, batch.advantage)


def test_influence_mixes_and_weights_scale_whole_groups():
    batch = answers(MIXED, 4)
    full, half = (
        PuzzleCraft(influence=i).shape(batch.advantage, batch, NOW).advantage
        for i in (1.0, 0.5)
    )
    torch.testing.assert_close(half, 0.5 * (full + batch.advantage))
    weights = PuzzleCraft().weights(batch)
    assert len(set(weights[:4].tolist())) == 1 and weights[0] != weights[4]
    torch.testing.assert_close(full, batch.advantage * weights.float()[:, None])


def test_groups_of_one_mind_do_not_count():
    batch = answers([[("1, 2", 0.5)] * 4, [("1, 2", 1.0), ("2, 1", 0.0)]])
    weights = PuzzleCraft().weights(batch).tolist()
    assert weights[0] == 0.0 and weights[4] == pytest.approx(1.0)
    found = PuzzleCraft().shape(batch.advantage, batch, NOW).logged
    assert (
        found["silent"] == 0.5
        and found["weight"] == pytest.approx(0.5)
        and found["difficulty"] == 0.5
    )


def test_the_solution_is_what_the_function_says():
    batch = answers([[("one", 1.0), ("eins", 1.0), ("two", 0.0), ("x", 0.0)]])
    same = {"one": 1, "eins": 1, "two": 2}
    plain, told = (
        PuzzleCraft(),
        PuzzleCraft().reading(lambda rollout: same.get(rollout.text, INVALID)),
    )
    assert plain.weights(batch)[0] == 1.0
    assert told.weights(batch)[0] == pytest.approx((2 / 3) ** 0.5)
    assert (told.scale, told.gamma, told.influence) == (4.0, 0.5, 1.0)


def test_unavailable_rewards_are_left_out():
    batch = answers([[("A", 1.0), ("B", 0.0), ("C", float("nan"))]])
    assert PuzzleCraft().weights(batch)[0] == pytest.approx(1.0)
    nothing = answers([[("A", float("nan")), ("B", float("nan"))]])
    assert PuzzleCraft().weights(nothing)[0] == 0.0


def test_the_gradient_of_each_group_is_scaled():
    batch = answers(MIXED, 4)
    grads = {}
    for influence in (0.0, 1.0):
        craft = PuzzleCraft(influence=influence)
        ready = replace(
            batch, advantage=craft.shape(batch.advantage, batch, NOW).advantage, scores={}
        )
        logp = torch.full((8, 3), -1.0, requires_grad=True)
        ready = replace(ready, scores={"raw": Scores(logp.detach())})
        value, _ = loss(
            GRPO(reduction="sequence"),
            clipped,
            ready,
            {"raw": Scores(logp)},
            [craft],
            Totals.of(batch.mask),
            NOW,
        )
        value.backward()
        grads[influence] = logp.grad
    torch.testing.assert_close(
        grads[1.0], grads[0.0] * PuzzleCraft().weights(batch).float()[:, None]
    )
    assert grads[0.0].abs().sum() > 0


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"gamma": -1.0}, {"influence": 1.5}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=f"PuzzleCraft.{next(iter(wrong))}"):
        PuzzleCraft(**wrong)
