"""Laws that every objective obeys, on gradients of real parameters: a tiny Qwen2.5-VL, sixteen fixed answers, fp64.

All objectives of the package are found by walking it, so that a new one obeys them without an entry here; only one that
cannot be made without arguments, or whose defaults do nothing, stands in `MADE`. On, it changes the gradient of the
parameters; off (`Objective.off`), the gradient is GRPO's bit for bit; views that change nothing give exactly GRPO;
neither the split into passes, nor the order of rows, nor padding matters; degenerate groups give finite gradients; who
says that groups stand alone treats them so; and a memory that was saved goes on as if it had not been.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module

import pytest
import torch

import mmrl.objectives as objectives_package
from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import Bounded, clipped
from mmrl.model.packing import rows_of
from mmrl.model.policy import Policy
from mmrl.objectives.base import (
    CHECKLIST,
    CRITIQUED,
    EXPERIENCE,
    EXPERT,
    HINTS,
    LABEL,
    PROBED,
    SELF_TAUGHT,
    TEACHERS,
    Objective,
)
from mmrl.objectives.bayesian_vla import without_question
from mmrl.objectives.dvrp import DVRP
from mmrl.objectives.laser import LaSeR
from mmrl.objectives.papo import PAPO
from mmrl.objectives.pearl import MARKER
from mmrl.objectives.recap import RECAP
from mmrl.objectives.urlvr import URLVR
from mmrl.objectives.vogue import VOGUE
from mmrl.objectives.vppo import VPPO
from mmrl.perception.masking import PatchMask, Unseen
from mmrl.perception.noise import GaussianNoise
from mmrl.rollouts.engine import HFEngine
from mmrl.training.checkpoint import plain as as_saved
from mmrl.training.learner import Learner
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.run import PhaseTimer
from mmrl.types import Now, Role, Rollout, Sampling, Shaped, VisualBranch

NOW = Now(step=3, progress=0.25, seed=5)
Answers = Sequence[Rollout]
VIEWS = {"masked": VisualBranch(PatchMask(0.5, 8)), "noisy": VisualBranch(GaussianNoise(0.5)),
         "mute": VisualBranch(reworded=without_question), "blind": VisualBranch(Unseen())}  # fmt: skip
SAME = {name: VisualBranch(PatchMask(0.0)) for name in VIEWS}


def first_of_each(answers: Answers) -> list[Rollout]:
    """One answer to each prompt."""
    return list(answers[::4])


def given(origin: str, role: Role) -> Callable[[Answers], list[Rollout]]:
    """One more answer per group, longer than the others, that the policy did not write."""

    def extended(answers: Answers) -> list[Rollout]:
        out = list(answers)
        for answer in answers[::4]:
            tokens = torch.cat([answer.tokens.flip(0), answer.tokens])
            roles = torch.full((len(tokens),), int(role), dtype=torch.uint8)
            out.append(
                replace(
                    answer, tokens=tokens, roles=roles, logp=None, origin=origin, reward=1.0
                )
            )
        return out

    return extended


def begun(answers: Answers) -> list[Rollout]:
    """Every other answer begins with a hint of one token."""
    out = list(answers)
    for number, answer in enumerate(answers):
        roles = answer.roles.clone()
        roles[: (number // 2) % 2] = int(Role.HINT)
        out[number] = replace(answer, roles=roles)
    return out


def probed(answers: Answers) -> list[Rollout]:
    """Every answer has one step of one token, with a potential of its own."""
    values = [((7 * number) % 11) / 11 for number in range(len(answers))]
    return [
        replace(one, valued=((1, value),)) for one, value in zip(answers, values, strict=True)
    ]


def critiqued(answers: Answers) -> list[Rollout]:
    """The first token of every other answer is wrong."""
    return [
        replace(one, valued=((1, -float(number % 2)), (len(one.tokens) - 1, 0.0)))
        for number, one in enumerate(answers)
    ]


def asked(answers: Answers) -> list[Rollout]:
    """A checklist group for the first prompt, half right, and one for the second, never right."""
    out = list(answers)
    for number, mark in ((0, 0.5), (1, 0.0)):
        owner = answers[4 * number].prompt
        prompt = replace(
            owner, id=f"{owner.id}/checklist", extra={**owner.extra, MARKER: owner.id}
        )
        for i, answer in enumerate(answers[4 * number : 4 * number + 4]):
            pay = mark + 0.25 * (i % 2) * (mark > 0)
            parts = {"perception": pay}
            out.append(
                replace(answer, prompt=prompt, group=20 + number, reward=pay, parts=parts)
            )
    return out


def in_parts(answers: Answers) -> list[Rollout]:
    """The same, paid by two parts that differ."""
    return [
        replace(one, parts={"accuracy": one.reward, "format": float(i % 3 > 0)})
        for i, one in enumerate(answers)
    ]


def learned(answers: Answers) -> list[Rollout]:
    """Texts in groups of their own."""
    out = given("expert", Role.EXPERT)(answers)
    return [
        replace(one, group=30 + one.group) if one.origin == "expert" else one for one in out
    ]


def self_taught(answers: Answers) -> list[Rollout]:
    """Texts in groups of their own, with a teacher that prefers other tokens in each place."""
    out: list[Rollout] = []
    for one in learned(answers):
        ids = torch.arange(4).expand(len(one.tokens), 4) + 20
        logp = torch.tensor([0.4, 0.3, 0.1, 0.05]).log().expand(len(ids), 4)
        taught = one.origin == "expert"
        out.append(replace(one, top_ids=ids, top_logp=logp) if taught else one)
    return out


@dataclass(frozen=True)
class Case:
    """An objective switched on and off, and what it trains on."""

    on: Objective
    off: Objective | None
    """None for one that owns a slot and has no way to be GRPO."""
    answers: Callable[[Answers], list[Rollout]]
    grpo: GRPO


# Only what cannot be made without arguments, or does nothing by default.
MADE: dict[str, Callable[[], Objective]] = {
    # The tiny tokenizer has no token of that name, and its laws are of the third step.
    "laser": lambda: LaSeR(token="<think>", loss_warmup=0, mix_warmup=0),
    # Its windows are full after the two steps of a law.
    "recap": lambda: RECAP(window=1),
    # Of votes that tie the first answer wins, so there the order of answers does matter.
    "urlvr": lambda: URLVR("trajectory"),
}
GIVEN = {LABEL.name: given("label", Role.EXPERT), EXPERT.name: given("expert", Role.EXPERT),
         TEACHERS.name: given("expert", Role.EXPERT),
         EXPERIENCE.name: learned, SELF_TAUGHT.name: self_taught,
         HINTS.name: begun, PROBED.name: probed, CRITIQUED.name: critiqued,
         CHECKLIST.name: asked}  # fmt: skip
"""Kind of answers -> what adds them."""


def found() -> Iterator[tuple[str, type[Objective]]]:
    """Every objective of the package, by the name of its module."""
    for module in pkgutil.iter_modules(objectives_package.__path__):
        for kind in vars(import_module(f"mmrl.objectives.{module.name}")).values():
            own = isinstance(kind, type) and issubclass(kind, Objective)
            if (
                own
                and kind.__module__ == f"mmrl.objectives.{module.name}"
                and kind is not Objective
            ):
                yield module.name, kind


def case_of(name: str, kind: type[Objective]) -> Case:
    on = MADE.get(name, kind)()
    off = None
    if kind.off is not None:
        assert kind.off, (
            f"{kind.__name__}.off names no field that switches it off; None if there is none"
        )
        off = replace(on, **kind.off)
    kinds = [kind.name for kind in on.answer_kinds()]
    answers = GIVEN[kinds[0]] if kinds else list
    if name == "recap":
        answers = in_parts
    if on.single_rollout:  # its memory takes several answers to a prompt one after the other
        answers = first_of_each
    # A KL with a weight, so that whatever reads the reference finds another policy there.
    reads = any(request.branch == "ref" for request in on.score_requests())
    return Case(on, off, answers, GRPO(kl=0.05) if reads else GRPO())


CASES = {name: case_of(name, kind) for name, kind in found()}
BLIND = {"papo": PAPO(0.02, 0.0, 0.0), "dvrp": DVRP(0.01, 0.01, 0.0, 0.0),
         "vogue": VOGUE(alpha_visual=1.0, alpha_entropy=0.0),
         "vppo": VPPO(top_share=1.0, beta_min=0.9, eta=0.0)}  # fmt: skip
"""The part of it that only the views feed: exactly zero when they change nothing."""


class Recorded(Optimizer):
    """Keeps the gradients of the last update."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.names, self.gradients = [name for name, _ in args[0]], {}

    def step(self, planned):
        pairs = zip(self.names, self.parameters, strict=True)
        self.gradients = {name: p.grad.clone() for name, p in pairs if p.grad is not None}
        return super().step(planned)


@cache
def loaded(folder):
    """A policy with a frozen reference, and its weights as they were read."""
    policy = Policy.load(folder, device="cpu", dtype="float64")
    policy.freeze_reference()
    return policy, [p.detach().clone() for p in policy.parameters()]


def unlearned(folder, moved: bool) -> Policy:
    """As if it had just been read, for reading is what costs; `moved`: its reference is another policy."""
    policy, weights = loaded(folder)
    policy.vision.clear()
    policy.version = 0
    with torch.no_grad():
        for i, (p, weight) in enumerate(zip(policy.parameters(), weights, strict=True)):
            p.copy_(weight * (1 + 0.01 * (i % 3)) if moved else weight)
            p.grad = None
    return policy


def gradients(folder, answers, objectives=(), branches=VIEWS, grpo=GRPO(), tokens=100_000):
    """Gradient of every parameter after one update."""
    policy = unlearned(folder, moved=bool(grpo.kl))
    optimizer = Recorded(policy.named_parameters(), Optim(lr=0.0, max_grad_norm=0))
    branches, objectives = dict(branches), list(objectives)
    surrogate = next(
        (Bounded(clipped, o.bounds) for o in objectives if hasattr(o, "bounds")), clipped
    )
    box = Learner(
        policy,
        optimizer,
        group_normalized,
        surrogate,
        grpo,
        branches,
        objectives,
        1,
        tokens,
        10,
    )
    if any(memory is not None for memory in box.memories):
        # At its first step a memory may hold nothing that matters. The weights stay where they are.
        box.learn([replace(one, reward=one.reward**2) for one in answers], NOW, PhaseTimer())
    box.learn(list(answers), NOW, PhaseTimer())
    return optimizer.gradients


def gap(mine, theirs) -> float:
    """Largest difference, relative to the larger of the tensor's norm and a thousandth of the largest norm."""
    assert mine.keys() == theirs.keys() and mine
    largest = max(float(g.norm()) for g in theirs.values())
    return max(
        float((mine[n] - g).norm() / max(g.norm(), 1e-3 * largest)) for n, g in theirs.items()
    )


def watching(answer: Rollout) -> Rollout:
    """The answer with thirty observed tokens behind it, which widen every row and are not trained."""
    roles = torch.full((30,), int(Role.OBSERVATION), dtype=torch.uint8)
    tokens = torch.cat([answer.tokens, torch.full((30,), 70)])
    return replace(answer, tokens=tokens, roles=torch.cat([answer.roles, roles]), logp=None)


@pytest.fixture(scope="module")
def answers(tiny_folder):
    """Four answers of different lengths to each of a picture, two pictures, text and a clip."""
    prompts = [Drawn("lookup", size=9, pictures=n)[n] for n in (1, 2, 0)] + [
        Drawn("clips", size=9, frames=6)[3]
    ]
    engine = HFEngine(Policy.load(tiny_folder, device="cpu", dtype="float64"))
    out = []
    for i, r in enumerate(engine.generate(prompts, Sampling(4, 1.3, max_tokens=9), NOW)):
        keep = 2 + (5 * i) % 8
        r = replace(r, tokens=r.tokens[:keep], roles=r.roles[:keep], logp=r.logp[:keep])
        reward = [0.0, 1.0, 0.5, 0.25][(i + i // 4) % 4]
        paid = {"reward": reward, "parts": {"accuracy": 1.0}, "correct": reward > 0.4}
        out.append(replace(r, stop="eos", **paid))
    return out


@pytest.fixture(scope="module")
def whole(tiny_folder, answers):
    """Gradients of an objective in one packed pass, each computed once."""

    @cache
    def computed(name):
        case = CASES[name]
        return gradients(tiny_folder, case.answers(answers), [case.on], grpo=case.grpo)

    return computed


@pytest.fixture(scope="module")
def plain(tiny_folder, answers):
    """GRPO's gradients on some answers, each computed once."""
    known = {}

    def computed(extended=list, grpo=GRPO()):
        key = (extended, grpo)
        if key not in known:
            known[key] = gradients(tiny_folder, extended(answers), grpo=grpo)
        return known[key]

    return computed


@pytest.mark.parametrize("name", CASES)
def test_on_it_changes_the_gradient_of_the_parameters(whole, plain, name):
    case = CASES[name]
    assert gap(whole(name), plain(case.answers, case.grpo)) > 1e-4


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.off is not None])
def test_off_it_is_grpo_bit_for_bit(tiny_folder, answers, plain, name):
    case = CASES[name]
    base = plain(grpo=case.grpo)
    off = gradients(tiny_folder, answers, [case.off], grpo=case.grpo)
    assert base.keys() == off.keys() and all(torch.equal(off[n], g) for n, g in base.items())
    assert case.off.owns() == ()


def test_who_cannot_be_switched_off_owns_a_slot():
    for name, case in CASES.items():
        assert case.off is not None or case.on.owns(), name


@pytest.mark.parametrize("name", BLIND)
def test_views_that_change_nothing_give_exactly_grpo(tiny_folder, answers, plain, name):
    same = gradients(tiny_folder, answers, [BLIND[name]], SAME)
    assert gap(same, plain()) < 1e-12
    seen = gradients(tiny_folder, answers, [BLIND[name]])
    assert gap(seen, plain()) > 1e-6, "the views would matter"


@pytest.mark.parametrize("name", CASES)
def test_split_order_and_padding_do_not_matter(tiny_folder, answers, whole, name):
    case = CASES[name]
    rows = case.answers(answers)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = [rows[i] for i in order]
    wide = [watching(rows[0]), *rows[1:]]
    for changed, tokens in ((shuffled, 70), (wide, 100_000)):
        found = gradients(tiny_folder, changed, [case.on], grpo=case.grpo, tokens=tokens)
        assert gap(found, whole(name)) < 1e-6


def degenerate(answers: Answers) -> list[Rollout]:
    """A group of one, one of equal rewards, one with an empty and a cut answer, and one with an unknown reward."""
    out = [answers[0], *(replace(one, reward=0.5, correct=True) for one in answers[4:8])]
    empty = replace(answers[8], tokens=answers[8].tokens[:0], roles=answers[8].roles[:0],
                    logp=answers[8].logp[:0])  # fmt: skip
    cut = [replace(one, stop="length") for one in answers[9:11]]
    unknown = replace(answers[12], reward=float("nan"), correct=False)
    return [*out, empty, *cut, unknown, *answers[13:]]


@pytest.mark.parametrize("name", CASES)
def test_degenerate_groups_give_finite_gradients(tiny_folder, answers, name):
    case = CASES[name]
    grpo = replace(case.grpo, drop_truncated=True)
    found = gradients(tiny_folder, degenerate(answers), [case.on], grpo=grpo)
    assert found and all(g.isfinite().all() for g in found.values())


@dataclass(frozen=True)
class Witness(Objective):
    """Keeps the batch as the objectives behind it will see it."""

    seen: list = field(default_factory=list, compare=False)

    def shape(self, advantage, batch, now):
        self.seen.append(batch)
        return Shaped(advantage)


def batch_for(folder, case: Case, answers: Answers):
    """The scored batch that an objective is given."""
    witness = Witness()
    gradients(folder, case.answers(answers), [witness, case.on], grpo=case.grpo)
    return witness.seen[0]


def shaped(objective: Objective, batch, memory=None) -> Shaped:
    given = () if memory is None else (memory,)
    return objective.shape(batch.advantage, batch, NOW, *given)


SHAPING = [name for name, case in CASES.items() if type(case.on).shape is not Objective.shape]


@pytest.mark.parametrize("name", SHAPING)
def test_a_memory_goes_on_from_its_state_and_groups_that_stand_alone_do(
    tiny_folder, answers, name
):
    case = CASES[name]
    batch, memory = batch_for(tiny_folder, case, answers), case.on.start_memory()
    first = shaped(case.on, batch, memory)
    if memory is not None:
        again = case.on.start_memory()
        again.load(as_saved(memory.state()))
        here, there = shaped(case.on, batch, memory), shaped(case.on, batch, again)
        assert torch.equal(here.advantage, there.advantage)
        assert as_saved(memory.state()) == as_saved(again.state())
    elif not case.on.spans_batch:
        # A number of its own rows would be logged as that of the step; numbers per token are summed over all ranks.
        maps = {
            name
            for name, value in first.logged.items()
            if torch.is_tensor(value) and value.ndim
        }
        plain = sorted(first.logged.keys() - maps)
        assert not plain, f"{plain} are of this process's rows alone; let it span the batch"
        for number in batch.group.unique():
            rows = (batch.group == number).nonzero().squeeze(-1)
            alone = shaped(case.on, rows_of(batch, rows)).advantage
            torch.testing.assert_close(alone, first.advantage[rows], rtol=1e-9, atol=1e-12)
