"""Parts that somebody else wrote: each uses the names that the bases declare, and nothing else.

An objective with a memory, a view, a rollout function that brings answers of a new kind, a reward object, an engine and
a collection of prompts train together; what is misspelt or missing is refused with the name that was meant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.declared import refuse_misspelt
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_centered
from mmrl.model.drawing import spoils
from mmrl.model.policy import Policy
from mmrl.objectives.base import AnswerKind, Objective, ScoreRequest, shaped_in_turn
from mmrl.objectives.puzzlecraft import PuzzleCraft
from mmrl.perception import masking, noise, perturb, saliency, timing
from mmrl.perception.masking import PatchMask
from mmrl.perception.perturb import ViewChain
from mmrl.rewards.contract import Reward
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import HFEngine, can_look
from mmrl.rollouts.groups import RolloutFunction, group_rollout
from mmrl.training.compatibility import check_setup
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import (
    Batch,
    Now,
    Prompt,
    Prompts,
    Sampling,
    Shaped,
    View,
    ViewContext,
    VisualBranch,
)

NOW = Now(1, 0.0, 0)
ECHO = AnswerKind("echo")


@dataclass(frozen=True)
class Darker(View):
    """Half as bright."""

    factor: float = 0.5

    changes_geometry = False
    changes_order = False

    def __call__(self, frames, context, rng, now):
        return (frames * self.factor).to(torch.uint8)

    def strength(self, now):
        return 1.0 - self.factor


class Tally:
    """How many answers were seen so far."""

    def __init__(self):
        self.seen = 0

    def state(self):
        return {"seen": self.seen}

    def load(self, state):
        self.seen = state["seen"]


@dataclass(frozen=True)
class Familiar(Objective):
    """Pays less attention the more it has seen, and stays near the darker view."""

    weight: float = 0.1

    def answer_kinds(self):
        return (ECHO,)

    def score_requests(self):
        return (ScoreRequest("dark"),)

    def start_memory(self):
        return Tally()

    def shape(self, advantage, batch, now, memory):
        memory.seen += len(batch)
        row = torch.arange(len(batch), dtype=advantage.dtype)[:, None].expand_as(advantage)
        return Shaped(advantage / memory.seen, logged={"seen": memory.seen}, kept={"row": row})

    def terms(self, live, batch, now):
        distance = (live["raw"].logp - live["dark"].logp).square()
        return {"near": self.weight * distance * (1 + batch.kept["row"])}


@dataclass(frozen=True)
class Echoing(RolloutFunction):
    """Marks the answers of another rollout function."""

    inner: object = group_rollout

    def brings(self):
        return (ECHO,)

    def __call__(self, engine, pay, supply, sampling, now):
        supply.counters["echo/steps"] += 1
        return self.inner(engine, pay, supply, sampling, now)


class Parity(Reward):
    """Pays even token sums, and counts its calls."""

    in_process = True

    def __init__(self):
        self.calls = 0

    def __call__(self, rollout):
        self.calls += 1
        return float(int(rollout.tokens.sum()) % 2 == 0)

    def metrics(self):
        calls, self.calls = self.calls, 0
        return {"parity/calls": calls}


class Relay:
    """An engine that hands everything on, without other pixels."""

    def __init__(self, engine):
        self.engine, self.synced = engine, 0

    def generate(self, prompts, sampling, now):
        return self.engine.generate(prompts, sampling, now)

    def sync(self, policy):
        self.synced += 1
        self.engine.sync(policy)


class Questions(Prompts):
    """Questions of another collection, counted."""

    size = 3

    def __init__(self):
        self.read, self.below = 0, Drawn("lookup", size=3)

    def __getitem__(self, index):
        self.read += 1
        return self.below[index]

    def drain(self):
        read, self.read = self.read, 0
        return {"data/read": read}


def trainer(folder, output, **rest):
    policy = Policy.load(folder, device="cpu", dtype="float32")
    arguments = {
        "engine": Relay(HFEngine(policy)),
        "prompts": Questions(),
        "rewards": Rewards(parity=Parity()),
        "rollout": Echoing(),
        "objectives": [Familiar()],
        "branches": {"dark": VisualBranch(Darker())},
        "estimator": group_centered,
        "sampling": Sampling(2, max_tokens=3),
        "run": Run(output=output, steps=4, prompts_per_step=2, save_every=2),
    }
    return Trainer(policy, **{**arguments, **rest})


def test_parts_of_others_train_together(tiny_folder, tmp_path):
    made = trainer(tiny_folder, tmp_path)
    found = made.step(NOW)
    assert found["familiar/seen"] == pytest.approx(4.0) and found["loss/near"] > 0
    assert found["branch/dark/strength"] == 0.5 and found["echo/steps"] == 1
    assert found["parity/calls"] == 4 and found["data/read"] >= 2 and made.engine.synced == 1
    made.step(Now(2, 0.25, 0))
    assert made.memories[0].seen == 8, "the trainer owns the memory"


def test_the_memory_of_another_objective_rides_in_the_checkpoint(tiny_folder, tmp_path):
    cut = trainer(tiny_folder, tmp_path)
    take, count = cut.step, iter(range(3))

    def step(now):
        if next(count, None) is None:
            raise KeyboardInterrupt  # as after a kill: step 3 is lost
        return take(now)

    cut.step = step
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    again = trainer(tiny_folder, tmp_path)
    again.fit()
    rows = [row["familiar/seen"] for row in read_metrics(tmp_path)]
    assert rows == pytest.approx([4.0, 8.0, 12.0, 16.0]) and again.memories[0].seen == 16


def test_two_objectives_share_no_memory_and_a_trainer_may_be_given_them(tiny_folder, tmp_path):
    one, two = Familiar(), Familiar()
    assert one == two and vars(replace(one)) == vars(one)
    made = trainer(tiny_folder, tmp_path, objectives=[one, two])
    assert made.memories[0] is not made.memories[1]
    mine = one.start_memory()
    given = trainer(tiny_folder, tmp_path, memories=[mine])
    given.step(NOW)
    assert mine.seen == 4
    with pytest.raises(ValueError, match="1 memories for 2 objectives"):
        trainer(tiny_folder, tmp_path, objectives=[one, two], memories=[mine])


def test_a_replaced_objective_loses_nothing():
    craft = PuzzleCraft().reading(len)
    assert replace(craft, scale=2.0).solution is len and craft != PuzzleCraft()


def test_an_objective_that_returns_a_bare_tensor_is_told_what_to_return(tiny_folder, tmp_path):
    @dataclass(frozen=True)
    class Bare(Objective):
        def shape(self, advantage, batch, now):
            return advantage

    made = trainer(tiny_folder, tmp_path, objectives=[Bare()], rollout=group_rollout)
    with pytest.raises(ValueError, match=r"Bare\.shape returned a Tensor.*Shaped\(advantage\)"):
        made.step(NOW)


def test_answers_that_nobody_brings_are_named_with_a_remedy():
    def check(objective):
        branches = {"dark": VisualBranch(Darker())}
        rest = (group_rollout, group_centered, GRPO(), Relay(None), Questions())
        check_setup([objective], branches, *rest)

    with pytest.raises(
        ValueError, match=r"Familiar reads 'echo' answers.*AnswerKind\('echo'\)"
    ):
        check(Familiar())

    @dataclass(frozen=True)
    class Told(Familiar):
        def answer_kinds(self):
            return (AnswerKind("echo", remedy="use rollout=Echoing()"),)

    with pytest.raises(ValueError, match=r"brings none: use rollout=Echoing\(\)"):
        check(Told())


@dataclass(frozen=True)
class Silent(View):
    """Says nothing about itself."""

    def __call__(self, frames, context, rng, now):
        return frames.flip(-1)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_view_that_says_nothing_is_taken_the_same_alone_and_in_a_chain(wrapped):
    view = ViewChain((Silent(),)) if wrapped else Silent()
    asked = Prompt("q", [], extra={"depends_on": ["geometry"]})
    assert view.changes_geometry and view.changes_order and not view.reads_saliency
    assert "changes the geometry" in spoils(view, asked) and view.strength(NOW) is None
    kind = ViewChain((Darker(),)) if wrapped else Darker()
    assert spoils(kind, asked) == ""
    frames = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert view(frames, ViewContext(asked, 0), torch.Generator(), NOW).shape == frames.shape


def test_a_bare_function_is_no_view():
    for build in (VisualBranch, lambda view: ViewChain((PatchMask(), view))):
        with pytest.raises(ValueError, match=r"must be a View.*perturb\.Transform"):
            build(lambda frames, context, rng, now: frames)


@pytest.mark.parametrize(
    ("base", "name", "meant"),
    [
        (View, "change_geometry", "changes_geometry"),
        (View, "reads_salience", "reads_saliency"),
        (RolloutFunction, "drop_even_groups", "drops_even_groups"),
        (RolloutFunction, "bring", "brings"),
        (Objective, "score_request", "score_requests"),
        (Objective, "reduction", "reductions"),
        (Prompts, "drains", "drain"),
        (Reward, "in_proces", "in_process"),
    ],
)
def test_a_misspelt_attribute_is_refused(base, name, meant):
    with pytest.raises(TypeError, match=rf"Mine\.{name} looks like {base.__name__}\.{meant}"):
        type("Mine", (base,), {name: True})
    with pytest.raises(TypeError, match="looks like"):
        type("Mine", (base,), {"__annotations__": {name: "bool"}})


def test_a_declared_field_without_a_default_is_refused():
    with pytest.raises(TypeError, match=r"Mine\.inner has no default"):
        type("Mine", (RolloutFunction,), {"__annotations__": {"inner": "object"}})
    refuse_misspelt(type("Fine", (), {"shade": 1}), View)


def test_a_reward_with_a_misspelt_marker_is_refused():
    def pay(rollout):
        return 1.0

    pay.in_proces = True
    with pytest.raises(ValueError, match=r"'mine' has an attribute 'in_proces'.*'in_process'"):
        Rewards(mine=pay)


def test_a_collection_that_is_none_is_refused(tiny_folder, tmp_path):
    class Rows:
        size = 1

        def __getitem__(self, index):
            return Drawn("lookup")[index]

    with pytest.raises(ValueError, match=r"Rows is no collection.*mmrl\.types\.Prompts"):
        trainer(tiny_folder, tmp_path, prompts=Rows())


def test_an_engine_says_by_its_parameters_whether_it_can_look():
    assert not can_look(Relay(None)) and can_look(HFEngine.__new__(HFEngine))


def test_every_view_and_every_declared_name_stands_on_the_page():
    page = (Path(__file__).parents[1] / "docs" / "own_parts.md").read_text(encoding="utf-8")
    for module in (masking, noise, perturb, saliency, timing):
        for name, found in vars(module).items():
            if isinstance(found, type) and issubclass(found, View) and found is not View:
                assert f"`{name}" in page, name
    for base in (View, RolloutFunction, Objective, Reward, Prompts):
        for name in vars(base):
            assert name.startswith("_") or f"`{name}" in page, (base, name)


def test_shapes_run_in_turn():
    class Doubled(Objective):
        def shape(self, advantage, batch, now):
            return Shaped(2 * advantage, logged={"mean": float(advantage.mean())})

    ones = torch.ones(2, 3)
    batch = Batch([], torch.arange(2), ones.long(), ones.bool(), ones[:, 0], ones, ones.byte())
    found = shaped_in_turn([Doubled(), Doubled()], [None, None], batch, NOW)
    assert (found.advantage == 4).all()
    assert [shaped.logged["mean"] for shaped in found.shaped] == [1.0, 2.0]
