"""PEARL's rollout: perception first, the gate, the soft filter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.objectives.pearl import MARKER, PEARL
from mmrl.rollouts.checklist import ChecklistRollout
from mmrl.rollouts.groups import by_group
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling

NOW = Now(step=1, progress=0.0, seed=0)
SEEN = {0: (0.0, 0.0), 1: (0.5, 1.0), 2: (1.0, 1.0), 3: (0.0, 0.0), 4: (1.0, 1.0)}
"""R_p of the two answers to the checklist of prompt n (mod 6); prompt 5 has none."""
RIGHT = {
    0: (0.0, 1.0),
    1: (1.0, 1.0),
    2: (0.0, 1.0),
    3: (1.0, 1.0),
    4: (1.0, 1.0),
    5: (0.0, 1.0),
}


@dataclass(frozen=True)
class Rows(Prompts):
    size: int | None = None

    def __getitem__(self, index):
        return Prompt(str(index), [])


class Engine:
    def __init__(self):
        self.asked = []

    def generate(self, prompts, sampling, now):
        self.asked.append(([p.id for p in prompts], sampling.max_tokens))
        roles = torch.zeros(1, dtype=torch.uint8)
        return [
            Rollout(p, i, torch.arange(2), torch.tensor([g]), roles, "", "eos")
            for i, p in enumerate(prompts)
            for g in range(sampling.group_size)
        ]


def ask(prompt):
    number = int(prompt.id)
    return None if number % 6 == 5 else Prompt(f"{number}#", [], extra={MARKER: prompt.id})


def mark(rollout):
    return SEEN[int(rollout.prompt.extra[MARKER]) % 6][int(rollout.tokens[0])]


def pay(rollouts):
    assert not [r for r in rollouts if MARKER in r.prompt.extra], (
        "checklists are not paid by the run's rewards"
    )
    return [
        replace(r, reward=0.9 * value, parts={"accuracy": value})
        for r in rollouts
        for value in [RIGHT[int(r.prompt.id) % 6][int(r.tokens[0])]]
    ]


def run(per_step=6, **settings):
    engine, supply = Engine(), Supply(Rows(), per_step, seed=0)
    rule = ChecklistRollout(ask, mark, max_tokens=9, **settings)
    return rule(engine, pay, supply, Sampling(2, max_tokens=50), NOW), engine, supply


def test_the_gate_decides_before_reasoning_is_sampled():
    rollouts, engine, supply = run(soft_filter=False)
    assert engine.asked == [(["0#", "1#", "2#", "3#", "4#"], 9), (["1", "2", "4", "5"], 50)]
    groups = by_group(rollouts)
    assert [g[0].prompt.id for g in groups] == [
        "0#",
        "1#",
        "1",
        "2#",
        "2",
        "3#",
        "4#",
        "4",
        "5",
    ]
    assert [g[0].group for g in groups] == list(range(9)) and all(len(g) == 2 for g in groups)
    assert [r.reward for r in groups[1]] == [0.5, 1.0] and dict(groups[1][0].parts) == {
        "perception": 0.5
    }
    assert [r.reward for r in groups[4]] == [0.0, 0.9]
    assert (
        supply.counters["pearl/gate_closed"],
        supply.counters["pearl/without_checklist"],
    ) == (2, 1)


def test_the_soft_filter_keeps_signal_in_either_branch_and_fills_the_step():
    rollouts, _engine, supply = run(per_step=3)
    kept = [g[0].prompt.id for g in by_group(rollouts)]
    assert kept == ["1#", "1", "2#", "2", "5"], (
        "0 and 3 see nothing, 4 is all right in both branches"
    )
    assert (
        supply.counters["rollout/dropped_groups"] == 3
        and supply.counters["rollout/rounds"] == 2
    )
    assert supply.counters["rollout/surplus_groups"] == 0
    assert [g[0].group for g in by_group(rollouts)] == list(range(5))


def test_the_gate_opens_above_its_threshold():
    def opened(threshold):
        return run(soft_filter=False, pearl=PEARL(threshold=threshold))[1].asked[1][0]

    assert opened(None) == ["0", "1", "2", "3", "4", "5"]
    assert opened(0.0) == ["1", "2", "4", "5"] and opened(0.75) == ["2", "4", "5"]


def test_the_part_is_named_by_the_objective_and_its_factors_fit():
    pearl = PEARL(part="seeing")
    rollouts, *_ = run(soft_filter=False, pearl=pearl)
    assert {name for r in rollouts for name in r.parts} == {"seeing", "accuracy"}
    assert pearl.factors(rollouts) == {"0": 0.0, "1": 0.5, "2": 0.5, "3": 0.0, "4": 0.5}


def test_a_step_without_signal_is_explained():
    with pytest.raises(
        ValueError, match=r"soft filter kept no prompt in 2 rounds of 1 prompts"
    ):
        ChecklistRollout(ask, lambda r: 0.0, rounds=2)(
            Engine(), pay, Supply(Rows(), 1, seed=0), Sampling(2), NOW
        )


def test_checklists_that_do_not_fit_count_as_none():
    def check(prompt):
        if prompt.id == "2#":
            raise BadRow("too long")

    rollouts, engine, supply = run(soft_filter=False, check=check)
    assert engine.asked[0][0] == ["0#", "1#", "3#", "4#"] and "2" in engine.asked[1][0]
    assert (
        supply.counters["pearl/checklist_refused"] == 1
        and supply.counters["pearl/without_checklist"] == 2
    )
    assert "2#" not in {r.prompt.id for r in rollouts}


def test_wrong_settings_are_explained():
    with pytest.raises(
        ValueError, match=r"ChecklistRollout\.rounds is 0; it must be at least 1"
    ):
        ChecklistRollout(ask, mark, rounds=0)
    with pytest.raises(
        ValueError, match=r"accuracy is 'right', but the rewards have \['accuracy'\]"
    ):
        run(accuracy="right")
