"""What methods of others ask of the core: who is right, a memory while sampling, whole groups, a loss of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.rows.sources import load_prompts
from mmrl.ground.declared import added
from mmrl.ground.traits import TRAITS, having, traits_of
from mmrl.grpo import GRPO, losses
from mmrl.losses.advantages import group_centered, group_normalized, remax
from mmrl.losses.ngrpo import NGRPO
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import Bounded, clip_range, clipped, gspo, own_reduction, reinforce
from mmrl.model.packing import collate, rows_of
from mmrl.model.policy import Policy
from mmrl.objectives.ace import ACE
from mmrl.objectives.base import Objective, ScoreRequest, old_logp
from mmrl.objectives.dcpo import DCPO
from mmrl.objectives.dsdr import DSDR
from mmrl.objectives.nsr import NSR
from mmrl.objectives.vogue import VOGUE
from mmrl.perception.noise import GaussianNoise
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.groups import DynamicSampling, RolloutFunction, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.clashes import CLASHES, refuse_clashes
from mmrl.training.compatibility import check_setup
from mmrl.training.run import Run
from mmrl.training.tracking import describe, read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import (
    Batch,
    Now,
    Prompt,
    Prompts,
    Role,
    Rollout,
    Sampling,
    Scores,
    VisualBranch,
)

NOW = Now(1, 0.1, 0)
NOISY = {"noisy": VisualBranch(GaussianNoise())}


def rollout(number=0, group=0, reward=1.0, **rest):
    tokens = torch.tensor([5, 6])
    prompt = Prompt(f"q{group}", [{"role": "user", "content": "?"}])
    roles = torch.zeros(2, dtype=torch.uint8)
    return Rollout(prompt, group, torch.tensor([1]), tokens, roles, str(number), "eos",
                   reward=reward, **rest)  # fmt: skip


# ---- correct


@in_process
def half(answer):
    return {"0": 0.5, "1": 0.51, "2": 1.0, "3": None}[answer.text]


@in_process
def shape_only(answer):
    return 1.0


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("half", [False, True, True]),
        (("half", 0.9), [False, False, True]),
        (("form", 1.0), [False, False, False]),
        (None, [None, None, None]),
    ],
)
def test_an_answer_is_right_where_the_declared_part_exceeds_its_number(declared, found):
    rewards = Rewards(half=(0.1, half), form=(9.0, shape_only), correct=declared)
    paid = rewards([rollout(n, n) for n in range(3)])
    assert [one.correct for one in paid] == found
    batch = collate(paid)
    if declared is None:
        assert batch.correct is None
    else:
        assert batch.correct.dtype == torch.bool and batch.correct.tolist() == found
        assert rows_of(batch, torch.tensor([2, 0])).correct.tolist() == [found[2], found[0]]


def test_a_part_that_is_not_available_says_neither_right_nor_wrong():
    rewards = Rewards(half=half, form=shape_only, correct="half")
    paid = rewards([rollout(3, 0), rollout(2, 1)])
    assert [one.correct for one in paid] == [None, True]
    assert collate(paid).correct is None and collate(paid[1:]).correct.tolist() == [True]


@pytest.mark.parametrize(
    "wrong", ["full", ("half", float("nan")), shape_only, ("half", "x"), 3]
)
def test_a_declaration_that_names_no_part_is_refused(wrong):
    with pytest.raises(ValueError, match=r"Rewards got correct=.*half|number that 'half' must"):
        Rewards(half=half, correct=wrong)


def test_a_recipe_declares_accuracy_unless_another_part_is_named():
    style = style_of("tag")
    assert RewardWeights().rewards(style).correct == ("accuracy", 0.5)
    other = RewardWeights(correct="format", correct_above=0.2)
    assert other.rewards(style).correct == ("format", 0.2)
    own = RewardWeights(own=("format=1.0",))
    assert own.rewards(style).correct is None
    with pytest.raises(ValueError, match=r"--reward\.correct is 'iou'.*'accuracy', 'format'"):
        RewardWeights(correct="iou").rewards(style)


@dataclass(frozen=True)
class Asking(Objective):
    needs_correct: ClassVar[bool] = True

    def shape(self, advantage, batch, now):
        assert batch.correct is not None
        return super().shape(advantage, batch, now)


@dataclass(frozen=True)
class AskingRollout(RolloutFunction):
    needs_correct: ClassVar[bool] = True


def check(*objectives, rollout=group_rollout, rewards=None, surrogate=clipped, **rest):
    given = {"branches": {}, "estimator": group_normalized, "grpo": GRPO(), **rest}
    engine, prompts = object(), rest.get("prompts", Drawn("lookup", size=4))
    check_setup(
        objectives, given["branches"], rollout, given["estimator"], given["grpo"], engine, prompts,
        surrogate, rewards,
    )  # fmt: skip


@pytest.mark.parametrize("part", [{"objectives": [Asking()]}, {"rollout": AskingRollout()}])
def test_who_asks_and_finds_nothing_declared_is_refused(part):
    name = "AskingRollout" if "rollout" in part else "Asking"
    objectives, rest = (
        part.get("objectives", []),
        {k: v for k, v in part.items() if k == "rollout"},
    )
    with pytest.raises(
        ValueError, match=rf"{name} reads whether.*\['half'\].*--reward\.correct"
    ):
        check(*objectives, rewards=Rewards(half=half), **rest)
    check(*objectives, rewards=Rewards(half=half, correct="half"), **rest)


# ---- memory of rollout functions, ids


class Tally:
    def __init__(self):
        self.steps: list[int] = []

    def state(self):
        return {"steps": self.steps}

    def load(self, state):
        self.steps = list(state["steps"])


@dataclass(frozen=True)
class Remembering(RolloutFunction):
    inner: object = group_rollout

    def start_memory(self):
        return Tally()

    def __call__(self, engine, pay, supply, sampling, now):
        memory = supply.memory(self)
        memory.steps.append(now.step)
        supply.counters["tally/steps"] += sum(memory.steps)
        return self.inner(engine, pay, supply, sampling, now)


@in_process
def parity(answer):
    return float(int(answer.tokens.sum()) % 2 == 0)


def trainer(folder, output, **rest):
    arguments = {
        "prompts": Drawn("lookup", size=3),
        "rewards": Rewards(parity=parity, correct="parity"),
        "rollout": Remembering(Remembering()),
        "sampling": Sampling(2, max_tokens=3),
        "run": Run(output=output, steps=3, prompts_per_step=2, save_every=1),
        **rest,
    }
    return Trainer(Policy.load(folder, device="cpu", dtype="float32"), **arguments)


def test_the_memory_of_a_rollout_function_rides_in_the_checkpoint(tiny_folder, tmp_path):
    whole = trainer(tiny_folder, tmp_path / "whole")
    whole.fit()
    cut = trainer(tiny_folder, tmp_path / "cut")
    take, count = cut.step, iter(range(2))

    def step(now):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return take(now)

    cut.step = step
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    again = trainer(tiny_folder, tmp_path / "cut")
    again.fit()
    rows = [[row["tally/steps"] for row in read_metrics(tmp_path / name)] for name in ("whole", "cut")]  # fmt: skip
    assert rows[0] == rows[1] == [2.0, 6.0, 12.0]
    outer, inner = (memory for _, memory in again.remembered.rollout[:2])
    assert outer is not inner and outer.steps == inner.steps == [1, 2, 3]
    outer.steps.append(9)
    again.remembered.load({"objectives": {}})  # of a version that knew no such memories
    assert outer.steps == [1, 2, 3, 9]


class Rows(Prompts):
    """Rows whose ids are given."""

    def __init__(self, *ids, same=False):
        self.ids, self.size, self.same = ids, len(ids), same

    def __getitem__(self, index):
        return Prompt(
            self.ids[index],
            [{"role": "user", "content": "?"}],
            answer=0 if self.same else index,
        )


def test_two_rows_of_one_id_are_refused_where_somebody_remembers_prompts():
    for rows, refused in ((Rows("a", "b", "a"), True), (Rows("a", "b"), False),
                          (Rows("a", "a", same=True), False)):  # fmt: skip
        Supply(rows, 2, 0).take(5)
        kept = Supply(rows, 2, 0, named_for=["DCPO"])
        if not refused:
            kept.take(5)
            continue
        with pytest.raises(ValueError, match=r"DCPO remember.*rows \d and \d.*the id 'a'"):
            kept.take(3)


@dataclass(frozen=True)
class Keeper(Objective):
    def remembers_prompts(self):
        return True


def test_a_memory_of_prompts_is_warned_of_endless_data():
    with pytest.warns(UserWarning, match=r"Keeper remembers.*Drawn is endless.*--data\.limit"):
        check(Keeper(), prompts=Drawn("lookup"))
    check(Keeper(), prompts=Drawn("lookup", size=5))


def test_a_visit_is_counted_by_passes_over_the_data():
    supply = Supply(Rows("a", "b", "c"), 2, 0)
    assert [supply.visit(place) for place in range(7)] == [1, 1, 1, 2, 2, 2, 3]
    assert Supply(Drawn("lookup"), 2, 0).visit(10_000) == 1


def test_a_field_that_was_added_later_is_silent_at_its_default():
    @dataclass(frozen=True)
    class Old:
        lr: float = 1.0

    @dataclass(frozen=True)
    class New:
        lr: float = 1.0
        more: str = added("")

    New.__name__ = "Old"
    assert describe(New()) == describe(Old()) and describe(New(more="x"))["more"] == "x"


# ---- bounds of each token


def numbers(seed=0, shape=(3, 5)):
    rng = torch.Generator().manual_seed(seed)
    old = -torch.rand(shape, generator=rng, dtype=torch.float64) * 3
    logp = (old + torch.randn(shape, generator=rng, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(shape, generator=rng, dtype=torch.float64)
    mask = torch.rand(shape, generator=rng) > 0.3
    return logp, old, advantage, mask


def test_constant_bounds_are_the_clip_range():
    logp, old, advantage, mask = numbers()
    spread = lambda old, advantage: (torch.full_like(old, 0.8), torch.full_like(old, 1.28))  # noqa: E731
    plain = clipped(logp, old, advantage, mask, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    bounded = Bounded(clipped, spread)(logp, old, advantage, mask, clip_low=9.0, dual_clip=3.0)
    torch.testing.assert_close(bounded, plain, rtol=1e-12, atol=1e-12)
    one, other = (
        torch.autograd.grad(x.sum(), logp, retain_graph=True)[0] for x in (plain, bounded)
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    # Without bounds the numbers are handed through as they are.
    assert clip_range(partial(clipped, delta=2.0), old, advantage, mask, 0.2, 0.3) == (0.2, 0.3)
    assert own_reduction(Bounded(partial(gspo), spread)) == "sequence"


def test_bounds_of_another_shape_are_refused():
    logp, old, advantage, mask = numbers()
    with pytest.raises(
        ValueError, match=r"low bound of shape \(3,\); give one ratio per token"
    ):
        Bounded(clipped, lambda old, advantage: (old[:, 0], old))(logp, old, advantage, mask)


def batch_of(logp, old, advantage, mask, **rest):
    rows = [rollout(n, n // 2) for n in range(len(mask))]
    group = torch.arange(len(mask)) // 2
    stored = {"raw": Scores(old)}
    return Batch(rows, group, mask.long(), mask, mask.double()[:, 0], advantage,
                 (~mask).byte(), stored, **rest)  # fmt: skip


def test_clip_metrics_follow_the_bounds_of_each_token():
    logp, old, advantage, mask = numbers(1)
    tight = Bounded(clipped, lambda old, a: (1 - 1e-9 * old.exp(), 1 + 1e-9 * old.exp()))
    batch, live = batch_of(logp, old, advantage, mask), {"raw": Scores(logp)}
    shares = []
    for surrogate in (tight, clipped):
        _, found = losses(GRPO(), surrogate, batch, live, [], Totals.of(mask), NOW)
        shares.append(float(found["policy/clip_high"] + found["policy/clip_low"]))
    assert shares[0] > shares[1]


# ---- a loss of one's own


@dataclass(frozen=True)
class OwnLoss(Objective):
    silent: bool = False
    off: ClassVar[None] = None

    def owns(self):
        return ("surrogate",)

    def terms(self, live, batch, now):
        return {} if self.silent else {"own": live["raw"].logp - old_logp(live, batch)}


def test_who_owns_the_surrogate_brings_the_whole_policy_loss():
    logp, old, advantage, mask = numbers(2)
    batch, live = batch_of(logp, old, advantage, mask), {"raw": Scores(logp)}
    parts, found = losses(GRPO(kl=0.0), clipped, batch, live, [OwnLoss()], Totals.of(mask), NOW)
    assert list(parts) == ["own"] and "policy/ratio" in found
    with pytest.raises(ValueError, match="OwnLoss owns the surrogate, but its terms are empty"):
        losses(GRPO(), clipped, batch, live, [OwnLoss(silent=True)], Totals.of(mask), NOW)
    with pytest.raises(
        ValueError, match=r"mismatch is 'truncate'.*OwnLoss has a loss of its own"
    ):
        check(OwnLoss(), grpo=GRPO(mismatch="truncate"))


@dataclass(frozen=True)
class Whole(Objective):
    """Counts the answers of each group that it sees at once."""

    seen: list = field(default_factory=list, compare=False)
    needs_whole_groups: ClassVar[bool] = True

    def terms(self, live, batch, now):
        self.seen.append(batch.group.bincount().tolist())
        return {}


def test_who_compares_answers_in_the_loss_sees_whole_groups(tiny_folder, tmp_path):
    objective = Whole()
    run = Run(output=tmp_path, steps=1, prompts_per_step=2, tokens_per_pass=64)
    one = trainer(
        tiny_folder,
        tmp_path,
        objectives=[objective],
        run=run,
        sampling=Sampling(4, max_tokens=40),
    )
    one.step(NOW)
    assert [n for counts in objective.seen for n in counts if n] == [4, 4]


@dataclass(frozen=True)
class TrainsExperts(Objective):
    trains_roles: ClassVar[tuple[Role, ...]] = (Role.POLICY, Role.EXPERT)


@dataclass(frozen=True)
class Visual(Objective):
    def score_requests(self):
        return (ScoreRequest("masked"),)


def test_roles_that_an_objective_trains_are_in_the_mask_and_out_of_visual_terms():
    expert = replace(rollout(1), roles=torch.full((2,), int(Role.EXPERT), dtype=torch.uint8))
    assert collate([rollout(), expert]).mask.any(1).tolist() == [True, False]
    assert collate([rollout(), expert], TrainsExperts.trains_roles).mask.all()
    with pytest.raises(
        ValueError, match=r"Visual has a visual term.*'masked'.*TrainsExperts trains expert"
    ):
        check(TrainsExperts(), Visual(), branches={"masked": None})


# ---- the table


def told(name, *traits, owns=()):
    """An objective with these traits."""
    return type(
        name, (Objective,), {"traits": lambda self: traits, "owns": lambda self: owns}
    )()


def part_with(name, trait):
    slot = trait.removeprefix("owns the ")
    if trait == "shapes the advantage":
        return type(name, (Objective,), {"shape": lambda self, a, b, n: None})()
    return told(name, owns=(slot,)) if slot != trait else told(name, trait)


@pytest.mark.parametrize("clash", CLASHES, ids=lambda clash: f"{clash.one}, {clash.other}")
def test_every_row_of_the_table_names_both_parts_and_the_reason(clash):
    first, second = part_with("First", clash.one), part_with("Second", clash.other)
    said = rf"First and Second.*{clash.one}.*{clash.other}"
    if clash.verdict == "error":
        with pytest.raises(ValueError, match=said) as problem:
            refuse_clashes([first, second], [], estimator=remax)
        assert clash.reason in str(problem.value)
    else:
        with pytest.warns(UserWarning, match=said):
            refuse_clashes([first, second], [], estimator=remax)
    if clash.behind:
        refuse_clashes(
            [second, first], [], [], clipped
        )  # in the other order both mean something
    refuse_clashes([first], [], estimator=remax)
    for trait in (clash.one, clash.other):
        assert trait in TRAITS or trait.startswith("owns the ")


@pytest.mark.parametrize(
    ("objectives", "rest", "message"),
    [
        ([OwnLoss()], {"surrogate": gspo}, "OwnLoss and gspo .*each is the policy's whole loss"),
        ([OwnLoss()], {"surrogate": Bounded(clipped, max)}, r"OwnLoss and Bounded\(clipped\) .*bound nothing"),
        ([], {"surrogate": Bounded(partial(gspo), max)}, r"Bounded\(gspo\) .*ratio of whole answers, but"),
        ([], {"surrogate": Bounded(reinforce, max)}, r"Bounded\(reinforce\) .*no clip"),
        ([told("Virtual", "learns from all-wrong groups")], {"rollout": DynamicSampling()},
         "Virtual and DynamicSampling.*low=-1"),
        ([told("Sure", "learns from all-right groups")], {"rollout": DynamicSampling()},
         "Sure and DynamicSampling.*high=2"),
        ([told("Mapped", "maps rewards alike")], {}, "Mapped and group_normalized .*use group_centered"),
    ],
)  # fmt: skip
def test_functions_and_rollout_functions_take_part(objectives, rest, message):
    with pytest.raises(ValueError, match=message):
        check(*objectives, **rest)


REAL = {
    "two estimators": (
        dict(objectives=[DCPO()], estimator=NGRPO()),
        "DCPO and NGRPO .*replaces",
    ),
    "two owners": (dict(objectives=[DCPO(), NSR()]), "DCPO and NSR .*replaces the advantage"),
    "an owner behind": (
        dict(objectives=[ACE(), NSR()]),
        "ACE and NSR .*list the second one first",
    ),
    "a centred NGRPO": (
        dict(objectives=[told("Late", "centres groups")], estimator=NGRPO()),
        "NGRPO and Late .*takes the group's mean away",
    ),
    "NGRPO and a filter": (
        dict(estimator=NGRPO(), rollout=DynamicSampling()),
        "DynamicSampling.*low=-1",
    ),
    "NSR and a filter": (
        dict(objectives=[NSR(0.0)], rollout=DynamicSampling(spread=True)),
        "NSR and DynamicSampling.*low=-1",
    ),
    "PSR and a filter": (
        dict(objectives=[NSR(1.0, 0.0)], rollout=DynamicSampling(low=-1)),
        "NSR and DynamicSampling.*high=2",
    ),
    "PACS and a transform": (
        dict(objectives=[OwnLoss(), ACE()]),
        "OwnLoss and ACE .*change nothing",
    ),
    "PACS and bounds": (
        dict(objectives=[OwnLoss()], surrogate=Bounded(clipped, DCPO().bounds)),
        "OwnLoss and Bounded",
    ),
    "bounds of tokens for answers": (
        dict(surrogate=Bounded(gspo, DCPO().bounds)),
        "ratio of whole answers, but the bounds",
    ),
    "KL in the reward": (
        dict(objectives=[NSR()], grpo=GRPO(kl=0.1, kl_in="reward")),
        "kl_in is 'reward', but NSR makes the advantage",
    ),
    "NSR and rewards that do not say": (
        dict(objectives=[NSR()], rewards=Rewards(half=half)),
        "NSR reads whether an answer is right.*half",
    ),
    "virtual answers among injected ones": (
        dict(objectives=[told("Teachers", "injects answers")], estimator=NGRPO()),
        "Teachers and NGRPO",
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_methods_that_exclude_each_other_are_refused_with_both_names(name):
    setup, message = REAL[name]
    objectives = setup.get("objectives", ())
    with pytest.raises(ValueError, match=message):
        check(
            *objectives, **{key: value for key, value in setup.items() if key != "objectives"}
        )


def test_a_memory_of_visits_beside_a_filter_is_warned_of():
    with pytest.warns(
        UserWarning, match="DCPO and DynamicSampling.*dropped before it sees them"
    ):
        check(DCPO(), rollout=DynamicSampling())


def test_who_learns_from_what_is_all_right_keeps_such_groups():
    with pytest.raises(ValueError, match=r"DSDR and DynamicSampling.*high=2, spread=False"):
        check(DSDR(), rollout=DynamicSampling())
    check(DSDR(), rollout=DynamicSampling(high=2))
    check(DSDR(weight=0.0, local=0.0), rollout=DynamicSampling())


def test_methods_that_fit_together_are_let_through():
    check(NSR(), ACE(), VOGUE(alpha_visual=0.0), branches=NOISY)
    check(VOGUE(alpha_visual=0.0), estimator=NGRPO(), branches=NOISY)
    check(DCPO(), ACE(), surrogate=Bounded(clipped, DCPO().bounds))
    check(estimator=NGRPO(), rollout=DynamicSampling(low=-1))


def test_what_fits_together_is_let_through():
    wrong, right = "learns from all-wrong groups", "learns from all-right groups"
    check(told("Virtual", wrong), rollout=DynamicSampling(low=-1))
    check(told("Sure", right), rollout=DynamicSampling(high=2))
    check(told("Mapped", "maps rewards alike"), estimator=group_centered)
    check(told("Mapped", "maps rewards alike"), told("Owner", owns=("estimator",)))
    check(told("Shaping"), part_with("Other", "shapes the advantage"), surrogate=gspo)


def test_an_unknown_trait_or_slot_is_refused_with_the_one_that_was_meant():
    with pytest.raises(
        ValueError, match=r"'centre groups', which is none; did you mean 'centres groups'"
    ):
        having("centre groups")
    with pytest.raises(ValueError, match=r"Odd has the trait.*did you mean 'injects answers'"):
        traits_of(told("Odd", "inject answers"))
    with pytest.raises(ValueError, match=r"Odd owns 'estimators'.*'surrogate'"):
        traits_of(told("Odd", owns=("estimators",)))
    assert traits_of(partial(group_normalized, eps=1.0)) == {
        "centres groups",
        "z-scores groups",
    }


# ---- ids of rows


def drawn_rows(tmp_path):
    return Drawn("lookup", size=6)


def files_of(tmp_path, suffix):
    """Rows with and without ids, repeated ones, and one that is called what a repeated one would be."""
    ids = ["a", "a#2", "a", "a#2", None, "", "a", 7, "7"]
    rows = [{"id": name, "question": "same?", "answer": "yes"} for name in ids]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "csv":
        lines = [f"{row['id'] or ''},{row['question']},yes" for row in rows]
        path.write_text("\n".join(["id,question,answer", *lines]) + "\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        named = [None if row["id"] is None else str(row["id"]) for row in rows]
        columns = {
            "id": named,
            "question": ["same?"] * len(rows),
            "answer": ["yes"] * len(rows),
        }
        pq.write_table(pa.table(columns), path)
    return load_prompts(str(path))


def folder_rows(tmp_path):
    (tmp_path / "parts").mkdir(exist_ok=True)
    for part in ("one", "two"):  # the same ids in two files
        rows = [{"id": n, "question": "same?", "answer": part} for n in range(3)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "parts" / f"{part}.jsonl").write_text(text)
    return load_prompts(str(tmp_path / "parts"))


SOURCES = {
    "drawn": drawn_rows,
    "folder": folder_rows,
    **{kind: partial(files_of, suffix=kind) for kind in ("jsonl", "csv", "parquet")},
}


@pytest.mark.parametrize("name", SOURCES)
def test_ids_of_rows_are_unique_and_the_same_at_every_visit(name, tmp_path):
    rows = SOURCES[name](tmp_path)
    ids = [rows[index].id for index in range(rows.size)]
    assert len(set(ids)) == len(ids) >= 6, ids
    again = SOURCES[name](tmp_path)
    assert [again[index].id for index in reversed(range(rows.size))] == ids[::-1]
    supply = Supply(rows, 4, 0, named_for=["DCPO"])
    met = [prompt.id for _ in range(6) for prompt in supply.take()]
    assert set(met) == set(ids)
