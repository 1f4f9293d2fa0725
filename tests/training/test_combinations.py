"""Methods that exclude each other, of real parts: which combinations mean nothing, and what is said of each.

`tests/test_seams.py` holds each row of `mmrl.training.clashes` against made-up parts; here the methods themselves say
what they are, so that a trait which one of them forgets is missed.
"""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.losses.advantages import batch_normalized, group_centered, group_normalized
from mmrl.losses.ngrpo import NGRPO
from mmrl.losses.surrogates import Bounded, clipped, gspo
from mmrl.objectives.ace import ACE
from mmrl.objectives.ampo import AMPO
from mmrl.objectives.canon import CANON
from mmrl.objectives.dcpo import DCPO
from mmrl.objectives.deepsearch import DeepSearch
from mmrl.objectives.dsdr import DSDR
from mmrl.objectives.laser import LaSeR
from mmrl.objectives.mel import MEL
from mmrl.objectives.nsr import NSR
from mmrl.objectives.pacs import PACS
from mmrl.objectives.papo import PAPO
from mmrl.objectives.progrpo import ProGRPO
from mmrl.objectives.recap import RECAP
from mmrl.objectives.rl_plus import RLPLUS
from mmrl.objectives.rose import ROSE
from mmrl.objectives.rover import ROVER
from mmrl.objectives.seele import SEELE
from mmrl.objectives.spae import SPAE
from mmrl.objectives.urlvr import URLVR
from mmrl.objectives.visurf import ViSurf
from mmrl.objectives.vogue import VOGUE
from mmrl.perception.masking import PatchMask
from mmrl.perception.noise import GaussianNoise
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.ampo import AMPORollout
from mmrl.rollouts.arpo import ARPORollout
from mmrl.rollouts.dars import DARSRollout
from mmrl.rollouts.deepsearch import DeepSearchRollout
from mmrl.rollouts.ead import EADRollout
from mmrl.rollouts.experts import WithLabel
from mmrl.rollouts.ghpo import GHPORollout
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.rollouts.mel import MELRollout
from mmrl.rollouts.noisy import NoisyPrompts
from mmrl.rollouts.noisy_verifier import NoisyVerifier, NoisyVerifierRollout
from mmrl.rollouts.request import ABILITIES
from mmrl.rollouts.rorecomp import RoRecompRollout
from mmrl.rollouts.rose import ROSERollout
from mmrl.rollouts.seele import SEELERollout
from mmrl.rollouts.self_boundary import SELFRollout
from mmrl.rollouts.spae import SPAERollout
from mmrl.rollouts.svs import SvSRollout
from mmrl.rollouts.teachers import WithTeachers
from mmrl.training.collapse import CollapseGuard, watched
from mmrl.training.compatibility import WIDE, check_sampling, check_setup
from mmrl.training.early_stop import EarlyStop
from mmrl.types import Sampling, VisualBranch

POLICY: Any = SimpleNamespace(processing=None)
MASKED = {"masked": VisualBranch(PatchMask())}
NOISY = VisualBranch(GaussianNoise())
TREES = {
    "ROSE": ROSERollout(policy=POLICY),
    "ARPO": ARPORollout(policy=POLICY),
    "DeepSearch": DeepSearchRollout(),
}


def ids(text):
    return torch.tensor([1])


@in_process
def part(rollout):
    return 0.0


def seele(**more):
    return SEELERollout(processing=POLICY, **more)


def noisy_prompts(**more):
    return NoisyPrompts(POLICY, NOISY, **more)


def said(
    *objectives,
    rollout=group_rollout,
    estimator=group_centered,
    surrogate=clipped,
    grpo=GRPO(),
    rewards=None,
    branches=None,
    size=8,
    around=None,
):
    """What is said of a combination: "error: …", "warn: …" or ""."""
    engine = SimpleNamespace(abilities=ABILITIES)
    rows = Drawn("lookup", size=size)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            # Who answers in stages refuses another one inside as soon as it is made.
            whole = rollout if around is None else around(inner=rollout)
            setup = (objectives, branches or {}, whole, estimator, grpo, engine, rows)
            check_setup(*setup, surrogate, rewards)
        except ValueError as problem:
            return f"error: {problem}"
    return "".join(f"warn: {one.message}" for one in told)


def row(words, *objectives, **setup):
    """What is said of these parts, from its beginning."""
    return words, objectives, setup


FEW = RECAP(objectives=("accuracy",))
BOUNDS = Bounded(clipped, DCPO().bounds)
DROPS = DynamicSampling()
TEACHERS = WithTeachers(ids)
GUIDES = AMPO(choice="random")
GUIDED = AMPORollout(ids, ampo=GUIDES)
FORWARD = NoisyVerifierRollout(NoisyVerifier(correction="forward"))
BACKWARD = NoisyVerifierRollout(NoisyVerifier())
RECOMPOSED = RoRecompRollout(ids)
SEARCH = TREES["DeepSearch"]
UNJUDGED = Rewards(half=part)
ROWS = [
    # What is done to rewards, and taken away again.
    row("error: NoisyV.*exactly that away", rollout=BACKWARD, estimator=group_normalized),
    row("error: NoisyV.*exactly that away", rollout=BACKWARD, estimator=batch_normalized),
    row("error: NoisyV.*shift away", rollout=FORWARD),
    row("warn: NoisyV.*learning rate", rollout=BACKWARD),
    row("error: CANON and RECAP", CANON(), FEW),
    row("error: ProGRPO and RECAP", ProGRPO(), FEW),
    row("error: ProGRPO and CANON", ProGRPO(), CANON()),
    # Two for one place.
    row("error: NSR and DCPO", NSR(), DCPO()),
    row("error: CANON and NGRPO", CANON(), estimator=NGRPO()),
    row("error: PACS and ROVER", PACS(), ROVER()),
    row("error: ROSE and DeepSearch", ROSE(), DeepSearch()),
    # A loss of one's own, or one ratio for an answer.
    row("error: PACS and Bounded", PACS(), surrogate=BOUNDS),
    row("error: ROVER and Bounded", ROVER(), surrogate=BOUNDS),
    row("error: PACS and ACE", PACS(), ACE()),
    row("error: ROVER and ProGRPO", ROVER(), ProGRPO()),
    row("error: PACS and SPAE", PACS(), SPAE()),
    row("error: MELRollout and PACS", PACS(), rollout=MELRollout()),
    row("error: Bounded.gspo.*whole answer", surrogate=Bounded(gspo, DCPO().bounds)),
    # Groups of one mind.
    row("error: NGRPO and DynamicS.*low=-1", estimator=NGRPO(), rollout=DROPS),
    row("error: NSR and DynamicS", NSR(), rollout=DROPS),
    row("error: NSR and SvSRollout", NSR(), rollout=SvSRollout()),
    row("warn: DCPO and DynamicS", DCPO(), rollout=DROPS),
    row("error: .*hardly any would be left", NSR(positive=0.0), rollout=RECOMPOSED),
    # Memories of questions that never come again.
    row("warn: DCPO remembers", DCPO(), size=None),
    row("warn: SEELERollout remembers", SEELE(), rollout=seele(column="target"), size=None),
    row("warn: DeepSearchRollout remembers", DeepSearch(), rollout=SEARCH, size=None),
    # Answers of others.
    row("error: AMPO and RLPLUS", AMPO(), RLPLUS(), rollout=GUIDED),
    row("error: .*weighed in two ways", rollout=AMPORollout(ids, ampo=GUIDES, inner=TEACHERS)),
    row("error: AMPO and NGRPO", AMPO(), rollout=GUIDED, estimator=NGRPO()),
    row("error: (RLPLUS|WithTeachers) and NSR", RLPLUS(), NSR(), rollout=TEACHERS),
    row("error: MELRollout and WithTeachers", MEL(), rollout=MELRollout(inner=TEACHERS)),
    row("error: GHPORollout and NGRPO", rollout=GHPORollout(), estimator=NGRPO()),
    row(
        "error: GHPORollout and AMPO",
        rollout=AMPORollout(ids, ampo=GUIDES, inner=GHPORollout()),
    ),
    row("error: PAPO has a visual", RLPLUS(), PAPO(), rollout=TEACHERS, branches=MASKED),
    row("error: PAPO has a visual.*hint", SEELE(), PAPO(), rollout=seele(), branches=MASKED),
    row("error: PAPO has a visual", ViSurf(), PAPO(), rollout=WithLabel(ids), branches=MASKED),
    # How answers are sampled.
    row("error: EADRollout and LaSeR", LaSeR(), rollout=EADRollout()),
    row("error: EADRollout and ROVER", ROVER(), rollout=EADRollout()),
    row("error: DARSRollout and NoisyPrompts", rollout=noisy_prompts(inner=DARSRollout())),
    row("error: DCPO and NoisyPrompts", DCPO(), rollout=noisy_prompts()),
    row(
        "error: DARSRollout and ROSERollout",
        rollout=ROSERollout(policy=POLICY),
        around=DARSRollout,
    ),
    row("error: .*SEELE.*each answers prompts in stages", rollout=seele(), around=DARSRollout),
    row(
        "error: .*GHPO.*each answers prompts in stages",
        rollout=GHPORollout(),
        around=DARSRollout,
    ),
    *(
        row(
            f"warn: {name}Rollout and {type(other).__name__}.*not independent",
            other,
            rollout=tree,
        )
        for name, tree in TREES.items()
        for other in (CANON(), DSDR(), URLVR("majority"))
    ),
    # Who reads what nobody says.
    row("error: GRPO.entropy is 0.1, but URLVR", URLVR(), grpo=GRPO(entropy=0.1)),
    row("error: SPAE reads 'probed'", SPAE()),
    row("error: VOGUE reads", VOGUE(draw="rollout"), branches={"noisy": NOISY}),
    *(
        row(f"error: {type(one).__name__} reads whether", one, rewards=UNJUDGED)
        for one in (NSR(), ACE(), LaSeR(), DSDR(), ProGRPO())
    ),
    *(
        row(f"error: {type(one).__name__} reads whether", rollout=one, rewards=UNJUDGED)
        for one in (DARSRollout(), SELFRollout(), GHPORollout(), GUIDED, RECOMPOSED, SEARCH)
    ),
    *(
        row(f"error: {type(one).__name__} reads whether", rollout=one, rewards=UNJUDGED)
        for one in (MELRollout(), SvSRollout(), seele())
    ),
]


@pytest.mark.parametrize(("words", "objectives", "setup"), ROWS, ids=[each[0] for each in ROWS])
def test_what_means_nothing_is_said_with_both_names(words, objectives, setup):
    found = said(*objectives, **setup)
    assert re.match(words, found), found or "nothing is said"


@pytest.mark.parametrize(
    "rollout",
    [SPAERollout(POLICY), MELRollout(), TREES["DeepSearch"]],
    ids=lambda rollout: type(rollout).__name__,
)
def test_hundreds_of_answers_beside_what_samples_on_top_are_warned_of(rollout):
    name = type(rollout).__name__
    with pytest.warns(UserWarning, match=rf"group_size is {WIDE}, and {name} asks.*multiply"):
        check_sampling(Sampling(WIDE), group_centered, rollout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sampling(Sampling(WIDE - 1), group_centered, rollout)
        check_sampling(Sampling(WIDE), group_centered)
        off = SPAERollout(POLICY, SPAE(**SPAE.off)) if name == "SPAERollout" else group_rollout
        check_sampling(Sampling(WIDE), group_centered, off)


def test_intrinsic_rewards_that_nobody_watches_are_warned_of():
    with pytest.warns(UserWarning, match=r"URLVR pays for being sure.*CollapseGuard"):
        watched(EarlyStop(), [URLVR()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched(CollapseGuard(), [URLVR()])
        watched(EarlyStop(), [NSR()])
