"""RECAP: the golden example by hand, its laws, labels, windows as run state, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch

from mmrl.losses.advantages import group_normalized
from mmrl.objectives.recap import NEXT_TOKEN, RECAP, Windows, lambdas, level, signals
from mmrl.types import Batch, Now, Prompt, Rollout, Scores

NOW = Now(1, 0.1)


def history(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_weights_by_hand():
    found = lambdas(torch.tensor([0.77, 1.23], dtype=torch.float64), 5.0)
    # The example of the specification: a soft temperature moves little.
    assert found.tolist() == pytest.approx([0.954, 1.046], abs=1e-3)
    past = history([1.0, 3.0, 2.0, 4.0])
    # mu = 3, mu~ = 2, sigma = 1: c = 1.5 (2/3), i = 0.2.
    assert signals(past, "paper").item() == pytest.approx(1.5 + 0.2, abs=1e-7)
    assert signals(past, "inverse").item() == pytest.approx(2 / 3 + 0.2, abs=1e-7)


@pytest.mark.parametrize("kind", ["paper", "inverse"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_laws_of_the_weights(kind, count):
    past = torch.rand(count, 8, dtype=torch.float64, generator=torch.manual_seed(count)) + 0.1
    signal = signals(past, kind)
    assert lambdas(signal).sum().item() == pytest.approx(count)
    assert lambdas(signals(past[:1].expand(count, 8), kind)).tolist() == pytest.approx(
        [1.0] * count
    )
    scaled = past * torch.linspace(0.5, 9, count).unsqueeze(-1)
    torch.testing.assert_close(signals(scaled, kind), signal, rtol=1e-6, atol=1e-6)
    assert lambdas(signal, 1e6).tolist() == pytest.approx([1.0] * count, abs=1e-5)


def test_of_equal_means_the_volatile_one_weighs_most():
    past = history([0.5] * 8, [0.5] * 4 + [0.1, 0.9, 0.1, 0.9], [0.5] * 8)
    found = lambdas(signals(past))
    assert found.argmax().item() == 1


def test_a_solved_objective_and_a_leap_stay_finite():
    found = signals(history([0.0] * 4, [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]))
    assert found.tolist() == pytest.approx([0.0, 10.0, 0.0], abs=1e-6)


def test_level_is_what_is_missing():
    assert level(torch.tensor([1.0, 0.5, math.nan])) == 0.25
    assert level(torch.tensor([math.nan])) is None
    assert level(torch.tensor([-3.0, -1.0])) == 1.0


def batch_of(parts, groups, labels=()):
    """Answers of two tokens; labels are numbers of answers."""
    tokens = torch.zeros(len(parts), 3, dtype=torch.long)
    mask = torch.tensor([[True, True, False]] * len(parts))
    rows = [
        Rollout(
            Prompt(f"q{group}", []), group, tokens[0], tokens[0], tokens[0], "", "eos",
            origin="label" if n in labels else "policy", parts=own,
        )
        for n, (own, group) in enumerate(zip(parts, groups, strict=True))
    ]  # fmt: skip
    logp = -torch.arange(1.0, 1 + 3 * len(parts)).view(-1, 3)
    return Batch(
        rows, torch.tensor(groups), tokens, mask, torch.zeros(len(parts)),
        torch.full((len(parts), 3), 7.0), (~mask).byte(), scores={"raw": Scores(logp)},
    )  # fmt: skip


PARTS = [
    {"accuracy": 1.0, "format": 1.0, "score": 0.3},
    {"accuracy": 0.0, "format": 1.0, "score": 0.3},
    {"iou": 0.2, "format": 0.0},
    {"iou": 0.8, "format": 1.0},
    {"accuracy": 0.0, "format": None},
]
GROUPS = [0, 0, 1, 1, 2]


def test_each_objective_has_its_own_advantage():
    batch = batch_of(PARTS, GROUPS)
    memory = RECAP(window=2).start_memory()
    found = RECAP(window=2).shape(batch.advantage, batch, NOW, memory)
    # Windows are not full: all weights are 1, and there are three objectives.
    high = group_normalized(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), batch.mask[:2])
    own = torch.tensor([high[0], high[1], 2 * high[1], 2 * high[0], 0.0]) / 3
    torch.testing.assert_close(
        found.advantage[:, 0], own, check_dtype=False, rtol=1e-4, atol=1e-5
    )
    assert not found.advantage[:, 2].any() and set(memory.values) == {
        "accuracy",
        "format",
        "iou",
    }
    assert found.logged["level_accuracy"] == pytest.approx(2 / 3)


def test_only_what_is_asked_for_is_an_objective():
    batch = batch_of(PARTS, GROUPS)
    recap = RECAP(objectives=("iou", "absent"))
    memory = recap.start_memory()
    found = recap.shape(batch.advantage, batch, NOW, memory)
    assert not found.advantage[:2].any() and found.advantage[2:4].any()
    # Without data the window stays as it is, and the objective counts among the K.
    assert (
        memory.values == {"iou": [0.5], "absent": []} and found.logged["weight_absent"] == 1.0
    )


def test_off_leaves_the_advantage():
    batch = batch_of(PARTS, GROUPS)
    recap = RECAP(**RECAP.off)
    assert recap.shape(batch.advantage, batch, NOW).advantage is batch.advantage
    assert recap.start_memory() is None and not recap.owns() and not recap.terms({}, batch, NOW)


def test_labels_are_learned_token_by_token():
    recap = RECAP(window=1, labels=True)
    batch = batch_of([*PARTS[:2], {}], [0, 0, 1], labels=(2,))
    memory = recap.start_memory()
    found = recap.shape(batch.advantage, batch, NOW, memory)
    # -log p of the label's two tokens: 7 and 8.
    assert found.logged["level_next_token"] == 7.5 and not found.advantage[2].any()
    assert found.kept[NEXT_TOKEN].tolist() == [[0.0] * 3] * 2 + [[pytest.approx(1 / 3)] * 3]
    seen = Batch(**{**vars(batch), "kept": found.kept})
    term = recap.terms({"raw": batch.scores["raw"]}, seen, NOW)[NEXT_TOKEN]
    assert term[2, :2].tolist() == pytest.approx([7 / 3, 8 / 3]) and not term[:2].any()


def test_windows_are_run_state():
    def after(memory, values):
        for value in values:
            memory.observe({"a": value, "b": 1 - value if value < 0.5 else None})
        return memory.weights(5.0, "paper")

    values = [0.1, 0.9, 0.3, 0.4, 0.7, 0.2, 0.6, 0.45]
    whole, first, second = Windows(2), Windows(2), Windows(2)
    expected = after(whole, values)
    after(first, values[:5])
    second.load(json.loads(json.dumps(first.state())))
    assert after(second, values[5:]) == expected and expected["a"] != 1.0
    assert len(second.values["a"]) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"window": -1},
        {"temperature": 0.0},
        {"temperature": math.inf},
        {"convergence": "other"},
        {"window": 0, "labels": True},
    ],
)
def test_what_cannot_be_meant_is_refused(given):
    with pytest.raises(ValueError, match="RECAP"):
        RECAP(**given)
