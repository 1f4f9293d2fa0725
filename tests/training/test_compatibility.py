"""Every meaningless combination is refused when the trainer is built, naming both parts and the reason."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.losses.advantages import (
    batch_normalized,
    group_centered,
    group_normalized,
    reinforce_plus_plus,
    rloo,
)
from mmrl.model.policy import Policy
from mmrl.objectives.calibrl import CalibRL
from mmrl.objectives.dvrp import DVRP
from mmrl.objectives.mssr import MSSR
from mmrl.objectives.papo import PAPO
from mmrl.objectives.pearl import PEARL
from mmrl.objectives.visurf import ViSurf
from mmrl.objectives.vogue import VOGUE
from mmrl.perception.masking import PatchMask
from mmrl.perception.noise import DiffusionNoise, GaussianNoise
from mmrl.perception.perturb import Flip, ViewChain
from mmrl.perception.timing import FrameShuffle
from mmrl.rewards.pay import Rewards, tagged_accuracy
from mmrl.rollouts.checklist import ChecklistRollout
from mmrl.rollouts.contrast import ContrastRollout
from mmrl.rollouts.engine import HFEngine, can_look
from mmrl.rollouts.experts import WithExpert, WithLabel
from mmrl.rollouts.groups import (
    DynamicSampling,
    FirstPass,
    LabelRollout,
    RolloutFunction,
    group_rollout,
)
from mmrl.rollouts.noisy import NoisyPrompts, NoisyRollout
from mmrl.training.compatibility import check_setup, compares_answers, joined
from mmrl.training.trainer import Trainer
from mmrl.types import Media, Prompt, Prompts, VisualBranch

MASKED = {"masked": VisualBranch(PatchMask())}
NOISY = {"noisy": VisualBranch(GaussianNoise())}
ALONE = partial(group_centered, alone="reward")
POLICY: Policy = None  # type: ignore[assignment]  # no check looks into it
encode = lambda text: torch.tensor([1])  # noqa: E731
LABEL, EXPERT = WithLabel(encode), WithExpert(encode, column="target")
CHECKLIST = ChecklistRollout(lambda prompt: None, lambda rollout: 0.0)


class Speaker:
    """An engine that cannot show other pixels."""

    def generate(self, prompts, sampling, now):
        return []

    def sync(self, policy):
        pass


class Looker(Speaker):
    """An engine that can."""

    def generate(self, prompts, sampling, now, *, visual=None, branch="raw"):
        return []


def check(
    *objectives,
    branches=None,
    rollout=group_rollout,
    estimator=group_normalized,
    grpo=GRPO(),
    **rest,
):
    prompts = rest.get("prompts", Drawn("lookup"))
    check_setup(
        objectives,
        branches or {},
        rollout,
        estimator,
        grpo,
        rest.get("engine", Looker()),
        prompts,
    )


def noisy_rollout(view=NOISY["noisy"], **rest):
    return NoisyRollout(POLICY, view, **rest)


def contrast():
    return ContrastRollout(POLICY, NOISY["noisy"], bonus=lambda ours, theirs, lengths: ours)


class Annealed(RolloutFunction):
    """Asks for another temperature at each place of an answer."""

    needs = ("temperature per position",)

    def __call__(self, engine, pay, supply, sampling, now):
        return []


REFUSED = {
    "single, group estimator": (
        dict(objectives=[MSSR()], estimator=partial(group_normalized, eps=1e-4)),
        r"MSSR trains one answer per prompt.*group_normalized compares.*gives 0.*alone='reward'",
    ),
    "single, dynamic sampling": (
        dict(
            objectives=[MSSR()],
            estimator=ALONE,
            rollout=FirstPass(print, POLICY, inner=DynamicSampling()),
        ),
        r"MSSR trains one answer per prompt.*DynamicSampling drops groups",
    ),
    "visual term on labels": (
        dict(objectives=[ViSurf(), PAPO()], branches=MASKED, rollout=LABEL),
        r"PAPO has a visual term in the loss \(branch 'masked'\).*WithLabel trains labels.*did not write",
    ),
    "visual term in supervised training": (
        dict(
            objectives=[PAPO()],
            branches=MASKED,
            rollout=LabelRollout(encode, lambda p: torch.tensor([1])),
        ),
        r"PAPO has a visual term.*LabelRollout trains labels",
    ),
    "two noisy rollout functions": (
        dict(rollout=noisy_rollout(inner=NoisyPrompts(POLICY, NOISY["noisy"]))),
        r"NoisyRollout \(noisy answers:noisy\) and NoisyPrompts.*both sample answers under noisy views",
    ),
    "objective and rollout function, other ways": (
        dict(objectives=[VOGUE(draw="rollout")], branches=NOISY, rollout=noisy_rollout()),
        r"VOGUE \(noisy prompts:noisy\) and NoisyRollout \(noisy answers:noisy\) both sample",
    ),
    "two objectives with noisy answers": (
        dict(
            objectives=[VOGUE(draw="rollout"), VOGUE(draw="rollout", noisy="other")],
            branches={**NOISY, "other": VisualBranch(GaussianNoise(0.1))},
            rollout=NoisyPrompts(POLICY, NOISY["noisy"]),
        ),
        r"VOGUE \(noisy prompts:noisy\) and VOGUE \(noisy prompts:other\) both sample",
    ),
    "VOGUE without its answers": (
        dict(objectives=[VOGUE(draw="rollout")], branches=NOISY),
        r"VOGUE reads 'noisy prompts:noisy' answers.*group_rollout brings none.*NoisyPrompts",
    ),
    "PEARL's filter and dynamic sampling": (
        dict(objectives=[PEARL()], rollout=DynamicSampling()),
        r"PEARL has a filter of its own.*DynamicSampling drops every group.*Leave out DynamicSampling",
    ),
    "PEARL without checklists": (
        dict(objectives=[PEARL()]),
        r"PEARL reads 'checklist' answers.*group_rollout brings",
    ),
    "ViSurf without labels": (
        dict(objectives=[ViSurf()]),
        r"ViSurf reads 'label' answers.*brings none.*WithLabel",
    ),
    "ViSurf with experts": (
        dict(objectives=[ViSurf()], rollout=EXPERT),
        r"ViSurf reads 'label'.*brings expert",
    ),
    "CalibRL without experts": (
        dict(objectives=[CalibRL()]),
        r"CalibRL reads 'expert' answers.*WithExpert",
    ),
    "labels that the rows lack": (
        dict(objectives=[ViSurf()], rollout=WithLabel(encode, column="label")),
        r"WithLabel takes its answers from the column 'label'.*none of the first 8 rows",
    ),
    "experts that the rows lack": (
        dict(objectives=[CalibRL()], rollout=WithExpert(encode)),
        r"WithExpert.*column 'solution'.*'target'",
    ),
    "one branch, two settings": (
        dict(
            objectives=[VOGUE()],
            branches=NOISY,
            rollout=noisy_rollout(VisualBranch(DiffusionNoise())),
        ),
        r"branch 'noisy' has two settings, in NoisyRollout: .*DiffusionNoise.*in branches: .*GaussianNoise",
    ),
    "one branch, two divergences": (
        dict(objectives=[VOGUE(noisy="masked"), PAPO(kl="exact")], branches=MASKED),
        r"VOGUE asks for the symmetric divergence of the branch 'masked', PAPO for the forward one",
    ),
    "geometry": (
        dict(branches={"noisy": VisualBranch(ViewChain((GaussianNoise(), Flip())))}),
        r"branch 'noisy' does not fit the question 'drawn:lookup.*ViewChain changes the geometry",
    ),
    "geometry, seen by the engine only": (
        dict(rollout=noisy_rollout(VisualBranch(Flip()))),
        r"branch 'noisy' does not fit the question.*Flip changes the geometry",
    ),
    "order": (
        dict(branches={"mixed": VisualBranch(FrameShuffle())}, prompts=Drawn("clips")),
        r"branch 'mixed' does not fit the question 'drawn:clips.*FrameShuffle changes the order",
    ),
    "sampler probabilities of labels": (
        dict(objectives=[ViSurf()], rollout=LABEL, grpo=GRPO(mismatch="truncate")),
        r"mismatch is 'truncate', but WithLabel adds labels.*mismatch='off'",
    ),
    "an engine without views": (
        dict(rollout=noisy_rollout(), engine=Speaker()),
        r"NoisyRollout needs 'other pixels', which Speaker cannot do.*HFEngine",
    ),
    "an engine without a contrast's views": (
        dict(rollout=contrast(), engine=Speaker()),
        r"ContrastRollout needs 'other pixels', which Speaker cannot do.*HFEngine",
    ),
    "an engine with one temperature per answer": (
        dict(rollout=Annealed(), engine=Looker()),
        r"Annealed needs 'temperature per position', which Looker cannot do \(it can: other pixels\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_meaningless_combinations_are_refused(name):
    setting, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        check(
            *setting.get("objectives", ()),
            **{k: v for k, v in setting.items() if k != "objectives"},
        )


ALLOWED = {
    "nothing": {},
    "PAPO and VOGUE": dict(objectives=[PAPO(), VOGUE()], branches={**MASKED, **NOISY}),
    "the same branch for two": dict(
        objectives=[PAPO(), VOGUE(noisy="masked", uncertainty="sampled")], branches=MASKED
    ),
    "equal divergences": dict(
        objectives=[PAPO(kl="exact"), DVRP(lambda_rob=0.0, lambda_ent=0.0)],
        branches={**MASKED, **NOISY},
    ),
    "MSSR": dict(objectives=[MSSR()], estimator=ALONE, rollout=FirstPass(print, POLICY)),
    "MSSR that is off": dict(objectives=[MSSR(lambda_entropy=0.0, baseline=False)]),
    "visual terms next to experts": dict(
        objectives=[PAPO(), CalibRL()], branches=MASKED, rollout=EXPERT
    ),
    "advantages by dependency on labels": dict(
        objectives=[ViSurf(), VOGUE()], branches=NOISY, rollout=LABEL
    ),
    "labels over dynamic sampling": dict(
        objectives=[ViSurf()], rollout=WithLabel(encode, inner=DynamicSampling())
    ),
    "labels without weight": dict(
        objectives=[ViSurf(weight=0.0), CalibRL(weight=0.0), PEARL(0.0, None, None)]
    ),
    "PEARL": dict(objectives=[PEARL()], rollout=CHECKLIST),
    "VOGUE and its answers": dict(
        objectives=[VOGUE(draw="rollout")],
        branches=NOISY,
        rollout=NoisyPrompts(POLICY, NOISY["noisy"]),
    ),
    "VOGUE's bonus on NoisyRollout": dict(
        objectives=[VOGUE()], branches=NOISY, rollout=noisy_rollout()
    ),
    "another view for the engine": dict(
        objectives=[VOGUE()],
        branches=NOISY,
        rollout=noisy_rollout(VisualBranch(DiffusionNoise()), branch="diffused"),
    ),
    "flips where places do not matter": dict(
        branches={"b": VisualBranch(Flip())}, prompts=Drawn("clips")
    ),
    "shuffled frames of pictures": dict(branches={"b": VisualBranch(FrameShuffle())}),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_meaningful_combinations_pass(name):
    setting = ALLOWED[name]
    check(
        *setting.get("objectives", ()),
        **{k: v for k, v in setting.items() if k != "objectives"},
    )


def test_the_trainer_checks_when_it_is_built(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="ViSurf reads 'label' answers"):
        Trainer(
            policy,
            prompts=Drawn("lookup"),
            rewards=Rewards(accuracy=tagged_accuracy),
            objectives=[ViSurf()],
        )


def test_estimators_are_asked_with_single_answers():
    assert all(
        compares_answers(e)
        for e in (group_normalized, group_centered, rloo, partial(rloo, alone="zero"))
    )
    assert not any(
        compares_answers(e)
        for e in (ALONE, reinforce_plus_plus, partial(batch_normalized, alone="reward"))
    )


def test_branches_of_several_objectives_are_joined():
    assert joined(MASKED, NOISY, MASKED) == {**MASKED, **NOISY}
    with pytest.raises(ValueError, match="branch 'noisy' has two settings"):
        joined(NOISY, {"noisy": VisualBranch(GaussianNoise(0.1))})
    with pytest.raises(ValueError, match="has two settings"):
        joined(MASKED, {"masked": replace(MASKED["masked"], grad=True)})


def test_a_moving_view_on_rows_that_say_nothing_is_pointed_out():
    picture = Media(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))

    class Rows(Prompts):
        size = 3

        def __getitem__(self, index):
            return Prompt(str(index), [], (picture,))

    with pytest.warns(UserWarning, match=r"'b' moves what is seen \(Flip\).*depends_on"):
        check(branches={"b": VisualBranch(Flip())}, prompts=Rows())


def test_only_the_engine_of_this_package_looks():
    assert (
        can_look(HFEngine.__new__(HFEngine)) and can_look(Looker()) and not can_look(Speaker())
    )
