"""A policy on several processes learns what one process learns: loss, metrics, gradients, weights.

All cases of a number of processes run in one start of them, for starting is what costs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from shutil import copytree

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import clipped
from mmrl.model.load import LoRA, load_weights
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.model.sharding import is_sharded
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.rollouts.engine import HFEngine
from mmrl.training.learner import Learner
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.run import PhaseTimer
from mmrl.types import Now, Role, Sampling, VisualBranch
from tests.several import several, values

NOW = Now(step=2, progress=0.25, seed=11)
MASK = PatchMask(0.5, 8)
PICTURES = [
    Drawn("lookup", size=9)[0],
    Drawn("lookup", size=9, pictures=2)[1],
    Drawn("lookup", size=9)[2],
    Drawn("lookup", size=9)[3],
]
TEXT = [Drawn("lookup", size=9, pictures=0)[n] for n in (4, 5)]
CLIP = Drawn("clips", size=9, frames=6)[6]


@dataclass(frozen=True)
class Case:
    """What is trained, and what on."""

    folder: str = "2.5"
    load: dict = field(default_factory=dict)
    grpo: GRPO = GRPO(kl=0.1)
    objectives: tuple = ()
    branch: VisualBranch = VisualBranch(MASK)
    updates: int = 1
    tokens: int = 100_000
    prompts: tuple = tuple(PICTURES)
    untrained: tuple[int, ...] = ()
    """Prompts whose answers train nothing."""
    norms: bool = False
    optim: Optim = Optim(lr=1e-3, max_grad_norm=0.5)
    how: str = "auto"


GRAD = VisualBranch(MASK, grad=True)
PAPO_TWICE = Case(objectives=(PAPO(),), branch=GRAD, updates=2)
LOW = LoRA(rank=4, vision=True)
CASES = {
    "full": Case(),
    "papo": Case(objectives=(PAPO(),), tokens=200),
    "papo with gradient, two updates": PAPO_TWICE,
    "untied": replace(PAPO_TWICE, folder="untied"),
    "Qwen3": replace(PAPO_TWICE, folder="3"),
    "exact kl": Case(
        folder="3",
        grpo=GRPO(kl=0.1, kl_kind="exact"),
        objectives=(PAPO(kl="exact"),),
        branch=GRAD,
    ),
    "lora": Case(load={"lora": LoRA(rank=4)}, objectives=(PAPO(),), branch=GRAD, updates=2),
    "lora on the tower": Case(folder="3", load={"lora": LOW}, objectives=(PAPO(),)),
    "frozen tower": Case(load={"freeze": ("vision", "merger")}, objectives=(PAPO(),)),
    "no picture on one": Case(prompts=(PICTURES[0], TEXT[0], PICTURES[1], TEXT[1])),
    "a clip on one": Case(
        folder="3", prompts=(CLIP, TEXT[0], PICTURES[1], TEXT[1]), tokens=150
    ),
    "nothing trained on one": Case(untrained=(1, 3), updates=2, tokens=150),
    "an odd number of prompts": Case(prompts=tuple(PICTURES[:3]), updates=3),
    "no prompt on one": Case(prompts=tuple(PICTURES[:1])),
    "norms of the terms": Case(
        objectives=(PAPO(),), branch=GRAD, norms=True, prompts=(PICTURES[0], TEXT[0], CLIP)
    ),
    "recomputed": Case(load={"checkpointing": True}, updates=2),
    "copies": replace(PAPO_TWICE, how="off"),
}


class Recorded(Optimizer):
    """Keeps the whole gradients of each update."""

    def __init__(self, named, *args):
        super().__init__(named, *args)
        self.names = [name for name, _ in named]
        self.gradients = []

    def step(self, planned):
        found = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if parameter.grad is not None:
                found[name] = whole(parameter.grad).clone()
        self.gradients.append(found)
        return super().step(planned)


def whole(tensor):
    tensor = tensor.detach()
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@pytest.fixture(scope="module")
def folders(tiny_folder, tiny3_folder, tmp_path_factory):
    """The two families, and one whose head is a weight of its own."""
    untied = tmp_path_factory.mktemp("untied") / "model"
    copytree(tiny_folder, untied)
    model = load_weights(tiny_folder, torch.float32)
    model.lm_head.weight = torch.nn.Parameter(1.1 * model.lm_head.weight.detach())
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.save_pretrained(untied)
    assert not json.loads((untied / "config.json").read_text())["tie_word_embeddings"]
    return {"2.5": tiny_folder, "3": tiny3_folder, "untied": untied}


def loaded(case, folders, **more):
    policy = Policy.load(
        folders[case.folder], device="cpu", **{"dtype": "float32", **case.load}, **more
    )
    policy.freeze_reference()
    with torch.no_grad():  # a reference that is not the policy, and adapters that do something
        for i, p in enumerate(policy.parameters()):
            p.mul_(1 + 0.01 * (i % 3)).add_(0.01 * (i % 2))
    return policy


def answers(case, folders):
    """Four answers per prompt, of different lengths and rewards."""
    policy = Policy.load(folders[case.folder], device="cpu", dtype="float32")
    found = HFEngine(policy).generate(case.prompts, Sampling(4, 1.3, max_tokens=9), NOW)
    out = []
    for i, r in enumerate(found):
        keep = 2 + (5 * i) % 8
        role = Role.HINT if i // 4 in case.untrained else Role.POLICY
        tokens = r.tokens[:keep]
        roles = torch.full((len(tokens),), int(role), dtype=torch.uint8)
        reward = [0.0, 1.0, 0.5, 0.25][(i + i // 4) % 4]
        cut = {"tokens": tokens, "roles": roles, "logp": r.logp[:keep], "stop": "eos"}
        out.append(replace(r, **cut, reward=reward, parts={"accuracy": 1.0}))
    return out


def learned(case, folders, rollouts, ranks=None):
    """(metrics, gradients of each update, weights) of a step with the groups that this rank owns."""
    ranks = ranks or Ranks.alone()
    policy = loaded(case, folders)
    policy.shard(ranks, case.how)
    optimizer = Recorded(policy.named_parameters(), case.optim, ranks)
    box = Learner(
        policy,
        optimizer,
        group_normalized,
        clipped,
        case.grpo,
        {"masked": case.branch},
        case.objectives,
        case.updates,
        case.tokens,
        10,
        int(case.norms),
    )
    own = [r for r in rollouts if r.group % ranks.world == ranks.rank]
    # As the supply deals them out.
    own = [replace(r, group=r.group // ranks.world) for r in own]
    metrics = box.learn(own, NOW, PhaseTimer())
    weights = {name: whole(p).clone() for name, p in policy.named_parameters()}
    if ranks.first:
        return metrics, optimizer.gradients, weights
    return metrics


def every_case(folders, rollouts):
    """All cases on this rank."""
    ranks = Ranks.start("cpu")
    return {name: learned(CASES[name], folders, rollouts[name], ranks) for name in rollouts}


@pytest.fixture(scope="module")
def rollouts(folders):
    made = {}
    for case in CASES.values():
        key = (case.folder, tuple(p.id for p in case.prompts), case.untrained)
        if key not in made:
            made[key] = answers(case, folders)
    return {
        name: made[case.folder, tuple(p.id for p in case.prompts), case.untrained]
        for name, case in CASES.items()
    }


@pytest.fixture(scope="module")
def two(folders, rollouts):
    """What two processes find in every case."""
    return values(several(2, every_case, folders, rollouts, limit=240))


def compare(name, theirs, case, folders, rollouts):
    metrics, gradients, weights = learned(case, folders, rollouts)
    found, mine, moved = theirs[0]
    assert len(gradients) == len(mine) > 0
    for number, (ours, other) in enumerate(zip(mine, gradients, strict=True)):
        assert ours.keys() == other.keys()
        gap = sum(float((ours[n] - other[n]).square().sum()) for n in other) ** 0.5
        size = sum(float(g.square().sum()) for g in other.values()) ** 0.5
        # Adam turns the last bits of the first update into more of the second.
        near = 1e-4 if number else 1e-5
        assert size > 0 and gap <= near * size, f"{name}, update {number}: {gap / size}"
        worst = max(
            float((ours[n] - other[n]).norm() / (other[n].norm() + 1e-4 * size)) for n in other
        )
        assert worst <= near, f"{name}, update {number}: {worst}"
    for key, value in metrics.items():
        if key.startswith(
            ("loss/", "policy/", "branch/masked/kl", "papo/", "optim/", "grad_norm/")
        ):
            assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-5), f"{name}: {key}"
    for key, weight in weights.items():
        assert (moved[key] - weight).abs().max() < 2e-4, f"{name}: {key}"


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(name, two, folders, rollouts):
    theirs = [two[0][name], two[1][name]]
    compare(name, theirs, CASES[name], folders, rollouts[name])
    updates = {
        k: v for k, v in theirs[0][0].items() if k.startswith(("loss/", "policy/", "optim/"))
    }
    assert updates.items() <= theirs[1].items()  # both log the same
