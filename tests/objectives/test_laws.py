"""Laws that every objective obeys, on gradients of real parameters: a tiny Qwen2.5-VL, sixteen fixed answers, fp64.

On, it changes the gradient of the parameters; off, the gradient is GRPO's bit for bit; views that change nothing give
exactly GRPO; and neither the split into passes, nor the order of rows, nor padding matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import clipped
from mmrl.model.policy import Policy
from mmrl.objectives.base import Objective
from mmrl.objectives.calibrl import CalibRL
from mmrl.objectives.dvrp import DVRP
from mmrl.objectives.mssr import MSSR
from mmrl.objectives.papo import PAPO
from mmrl.objectives.pearl import MARKER, PEARL
from mmrl.objectives.visurf import ViSurf
from mmrl.objectives.vogue import VOGUE
from mmrl.objectives.vppo import VPPO
from mmrl.perception.masking import PatchMask
from mmrl.perception.noise import GaussianNoise
from mmrl.rollouts.engine import HFEngine
from mmrl.training.learner import Learner
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.run import PhaseTimer
from mmrl.types import Now, Role, Rollout, Sampling, VisualBranch

NOW = Now(step=3, progress=0.25, seed=5)
Answers = Sequence[Rollout]
VIEWS = {"masked": VisualBranch(PatchMask(0.5, 8)), "noisy": VisualBranch(GaussianNoise(0.5))}
SAME = {name: VisualBranch(PatchMask(0.0)) for name in VIEWS}


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


@dataclass(frozen=True)
class Case:
    """An objective switched on and off, and what it trains on."""

    on: Callable[[], Objective]
    off: Callable[[], Objective]
    blind: Callable[[], Objective] | None = None
    """The part of it that only the views feed: exactly zero when they change nothing."""
    answers: Callable[[Answers], list[Rollout]] = list
    grpo: GRPO = field(default_factory=GRPO)


CASES = {
    "papo": Case(PAPO, lambda: PAPO(0.0, 0.0, 0.0), lambda: PAPO(0.02, 0.0, 0.0)),
    "dvrp": Case(DVRP, lambda: DVRP(0.0, 0.0, 0.0, 0.0), lambda: DVRP(0.01, 0.01, 0.0, 0.0)),
    "vogue": Case(
        VOGUE,
        lambda: VOGUE(alpha_visual=0.0, alpha_entropy=0.0),
        lambda: VOGUE(alpha_visual=1.0, alpha_entropy=0.0),
    ),
    "vppo": Case(
        VPPO,
        lambda: VPPO(top_share=1.0, beta_min=1.0, eta=0.0),
        lambda: VPPO(top_share=1.0, beta_min=0.9, eta=0.0),
    ),
    "mssr": Case(MSSR, lambda: MSSR(lambda_entropy=0.0, baseline=False), grpo=GRPO(kl=0.05)),
    "calibrl": Case(CalibRL, lambda: CalibRL(weight=0.0), answers=given("expert", Role.EXPERT)),
    "visurf": Case(ViSurf, lambda: ViSurf(weight=0.0), answers=given("label", Role.EXPERT)),
    "pearl": Case(PEARL, lambda: PEARL(lambda_p=0.0, cap=None, threshold=None), answers=asked),
}


class Recorded(Optimizer):
    """Keeps the gradients of the last update."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.names, self.gradients = [name for name, _ in args[0]], {}

    def step(self, planned):
        pairs = zip(self.names, self.parameters, strict=True)
        self.gradients = {name: p.grad.clone() for name, p in pairs if p.grad is not None}
        return super().step(planned)


def gradients(folder, answers, objectives=(), branches=VIEWS, grpo=GRPO(), tokens=100_000):
    """Gradient of every parameter after one update."""
    policy = Policy.load(folder, device="cpu", dtype="float64")
    policy.freeze_reference()
    if grpo.kl:  # a reference that is not the policy
        with torch.no_grad():
            for i, p in enumerate(policy.parameters()):
                p.mul_(1 + 0.01 * (i % 3))
    optimizer = Recorded(policy.named_parameters(), Optim(lr=1e-3, max_grad_norm=0))
    branches, objectives = dict(branches), list(objectives)
    box = Learner(
        policy, optimizer, group_normalized, clipped, grpo, branches, objectives, 1, tokens, 10
    )
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
        out.append(
            replace(
                r,
                stop="eos",
                reward=[0.0, 1.0, 0.5, 0.25][(i + i // 4) % 4],
                parts={"accuracy": 1.0},
            )
        )
    return out


@pytest.fixture(scope="module")
def whole(tiny_folder, answers):
    """Gradients of each objective, computed in one packed pass."""
    return {
        n: gradients(tiny_folder, c.answers(answers), [c.on()], grpo=c.grpo)
        for n, c in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_on_it_changes_the_gradient_of_the_parameters(tiny_folder, answers, whole, name):
    case = CASES[name]
    plain = gradients(tiny_folder, case.answers(answers), grpo=case.grpo)
    assert gap(whole[name], plain) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_off_it_is_grpo_bit_for_bit(tiny_folder, answers, name):
    case = CASES[name]
    plain = gradients(tiny_folder, answers, grpo=case.grpo)
    off = gradients(tiny_folder, answers, [case.off()], grpo=case.grpo)
    assert plain.keys() == off.keys() and all(torch.equal(off[n], g) for n, g in plain.items())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.blind])
def test_views_that_change_nothing_give_exactly_grpo(tiny_folder, answers, name):
    blind = CASES[name].blind
    assert blind is not None
    plain, same = (
        gradients(tiny_folder, answers),
        gradients(tiny_folder, answers, [blind()], SAME),
    )
    assert gap(same, plain) < 1e-12
    assert gap(gradients(tiny_folder, answers, [blind()]), plain) > 1e-6, (
        "the views would matter"
    )


@pytest.mark.parametrize("name", CASES)
def test_split_order_and_padding_do_not_matter(tiny_folder, answers, whole, name):
    case = CASES[name]
    rows = case.answers(answers)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = [rows[i] for i in order]
    wide = [watching(rows[0]), *rows[1:]]
    for changed, tokens in ((rows, 70), (shuffled, 150), (wide, 100_000)):
        found = gradients(tiny_folder, changed, [case.on()], grpo=case.grpo, tokens=tokens)
        assert gap(found, whole[name]) < 1e-6
