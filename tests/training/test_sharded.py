"""A policy on several processes learns what one process learns: loss, metrics, gradients, weights.

All cases of a number of processes run in one start of them, for starting is what costs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from shutil import copytree

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import clipped
from mmrl.model import tiny
from mmrl.model.folders import ModelError
from mmrl.model.load import LoRA, load_weights
from mmrl.model.placement import is_sharded
from mmrl.model.policy import Policy
from mmrl.model.ranks import RankFailed, Ranks
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.rollouts.engine import HFEngine
from mmrl.training.learner import Learner
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.retries import NonFiniteStep
from mmrl.training.run import PhaseTimer
from mmrl.types import Now, Role, Sampling, VisualBranch
from tests.several import several, values

OF_UPDATES = ("loss/", "policy/", "branch/masked/kl", "papo/", "optim/", "grad_norm/")
"""Metrics of updates; those of answers are the trainer's."""
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
STILL, GRAD = VisualBranch(MASK), VisualBranch(MASK, grad=True)
K3, CLIPPED = GRPO(kl=0.1), Optim(lr=1e-3, max_grad_norm=0.5)


@dataclass(frozen=True)
class Case:
    """What is trained, and what on."""

    folder: str = "2.5"
    load: dict = field(default_factory=dict)
    grpo: GRPO = K3
    objectives: tuple = ()
    branch: VisualBranch = STILL
    updates: int = 1
    tokens: int = 100_000
    prompts: tuple = tuple(PICTURES)
    untrained: tuple[int, ...] = ()
    """Prompts whose answers train nothing."""
    norms: bool = False
    optim: Optim = CLIPPED
    how: str = "auto"


PAPO_TWICE = Case(objectives=(PAPO(),), branch=GRAD, updates=2)
LOW = LoRA(rank=4, vision=True)
CASES = {
    "full": Case(),
    "papo": Case(objectives=(PAPO(),), tokens=100),
    "papo with gradient, two updates": PAPO_TWICE,
    "untied": replace(PAPO_TWICE, folder="untied"),
    "Qwen3": replace(PAPO_TWICE, folder="3"),
    "Qwen3.5": replace(PAPO_TWICE, folder="3.5", updates=1),
    "InternVL": replace(PAPO_TWICE, folder="internvl", updates=1),
    "text alone": Case(folder="text", prompts=tuple(TEXT), updates=2),
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
        folder="3", prompts=(CLIP, TEXT[0], PICTURES[1], TEXT[1]), tokens=120
    ),
    "nothing trained on one": Case(untrained=(1, 3), updates=2, tokens=150),
    "an odd number of prompts": Case(prompts=tuple(PICTURES[:3]), updates=3),
    "no prompt on one": Case(prompts=tuple(PICTURES[:1])),
    "norms of the terms": Case(
        objectives=(PAPO(),), branch=GRAD, norms=True, prompts=(PICTURES[0], TEXT[0], CLIP)
    ),
    "reference on the CPU": Case(load={"offload_reference": True}),
    "recomputed": Case(load={"checkpointing": True}, updates=2),
    "half": Case(load={"dtype": "bfloat16"}, objectives=(PAPO(),), updates=2),
    "half, adapters": Case(load={"dtype": "bfloat16", "lora": LOW}, objectives=(PAPO(),)),
    "groups cut": Case(tokens=70, prompts=(PICTURES[0], TEXT[0], PICTURES[1]), updates=2),
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
def folders(tiny_folder, tiny3_folder, tiny35_folder, tmp_path_factory):
    """Five families, of which one has layers with a state, and one model whose head is a weight of its own."""
    others = tmp_path_factory.mktemp("others")
    internvl = tiny.build(others / "internvl", "internvl")
    text = tiny.build(others / "text", "qwen3")
    untied = others / "untied"
    copytree(tiny_folder, untied)
    model = load_weights(tiny_folder, torch.float32)
    model.lm_head.weight = torch.nn.Parameter(1.1 * model.lm_head.weight.detach())
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.save_pretrained(untied)
    assert not json.loads((untied / "config.json").read_text())["tie_word_embeddings"]
    made = {"2.5": tiny_folder, "3": tiny3_folder, "3.5": tiny35_folder}
    return {**made, "internvl": internvl, "text": text, "untied": untied}


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


def box_of(policy, case, ranks):
    optimizer = Recorded(policy.named_parameters(), case.optim, ranks)
    return Learner(
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


def owned(rollouts, ranks):
    """The groups of this rank, as the supply deals them out, numbered by themselves."""
    own = [r for r in rollouts if r.group % ranks.world == ranks.rank]
    return [replace(r, group=r.group // ranks.world) for r in own]


def learned(case, folders, rollouts, ranks=None):
    """(metrics, gradients of each update, weights) of a step; the metrics alone from ranks behind the first."""
    ranks = ranks or Ranks.alone()
    policy = loaded(case, folders)
    policy.shard(ranks, case.how)
    box = box_of(policy, case, ranks)
    metrics = box.learn(owned(rollouts, ranks), NOW, PhaseTimer())
    weights = {name: whole(p).clone() for name, p in policy.named_parameters()}
    return (metrics, box.optimizer.gradients, weights) if ranks.first else metrics


def sampled_then_learned(folders, ranks):
    """One process has no prompt. What was sampled, and the norm of the update that learns from it."""
    case = CASES["papo with gradient, two updates"]
    policy = loaded(case, folders)
    policy.shard(ranks)
    box = box_of(policy, case, ranks)
    prompts = case.prompts[:2] if ranks.first else ()
    with policy.vision.step():
        with policy.whole(), policy.whole():
            found = HFEngine(policy).generate(prompts, Sampling(4, 1.3, max_tokens=9), NOW)
        paid = [replace(r, reward=float(i % 2)) for i, r in enumerate(found)]
        metrics = box.learn(paid, NOW, PhaseTimer())
    return [r.tokens.tolist() for r in found], metrics["optim/grad_norm"]


def nan_for_the_last(reward, group, mask):
    """The last prompt's answers get advantages that are no numbers: it is the second process that trains them."""
    advantage = group_normalized(reward, group, mask)
    return torch.where(group == group.max(), torch.nan, advantage)


def not_finite_then_finite(folders, rollouts, ranks):
    """One process meets a loss that is not a number: all stop, and go on with other numbers."""
    case = CASES["papo"]
    policy = loaded(case, folders)
    policy.shard(ranks)
    box = box_of(policy, case, ranks)
    box.nonfinite = "stop"
    own = owned(rollouts, ranks)
    box.estimator = nan_for_the_last
    with pytest.raises(NonFiniteStep, match="the loss is nan"):
        box.learn(own, NOW, PhaseTimer())
    box._forget_update()
    box.estimator = group_normalized
    return box.learn(own, NOW, PhaseTimer())["optim/grad_norm"]


SAVED = {
    "tied": ("full", {}),
    "untied": ("untied", {}),
    "adapter": ("lora on the tower", {}),
    "merged": ("lora on the tower", {"merge": True}),
    "half": ("half", {}),
}


def saved(folders, rollouts, ranks, place):
    """Learn and write a folder in each way; one with a NaN is refused by all."""
    for name, (case, how) in SAVED.items():
        policy = loaded(CASES[case], folders)
        policy.shard(ranks)
        box_of(policy, CASES[case], ranks).learn(
            owned(rollouts[case], ranks), NOW, PhaseTimer()
        )
        policy.save(place / name, **how)
    with torch.no_grad():
        policy.parameters()[0].mul_(float("nan"))
    with pytest.raises((ModelError, RankFailed), match="not finite"):
        policy.save(place / "broken")


def every_case(folders, rollouts, place):
    """All cases on this rank, and what else several processes do."""
    ranks = Ranks.start("cpu")
    found = {name: learned(CASES[name], folders, rollouts[name], ranks) for name in rollouts}
    found["sampled"] = sampled_then_learned(folders, ranks)
    found["not finite"] = not_finite_then_finite(folders, rollouts["papo"], ranks)
    saved(folders, rollouts, ranks, place)
    ranks.end()
    return found


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
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def two(folders, rollouts, place):
    """What two processes find in every case."""
    return values(several(2, every_case, folders, rollouts, place, limit=900))


def compare(name, found, alone):
    """What the first of several processes found with what one found alone."""
    metrics, mine, moved = found
    others, gradients, weights = alone
    assert len(gradients) == len(mine) > 0
    for number, (ours, other) in enumerate(zip(mine, gradients, strict=True)):
        assert ours.keys() == other.keys()
        gaps = {n: float((ours[n] - other[n]).norm()) for n in other}
        size = {n: float(other[n].norm()) for n in other}
        total = math.hypot(*size.values())
        # Adam turns the last bits of the first update into more of the second.
        near = 1e-4 if number else 1e-5
        assert math.hypot(*gaps.values()) <= near * total > 0, f"{name}, update {number}"
        for n in other:
            assert gaps[n] <= near * (size[n] + 1e-4 * total), f"{name}, update {number}: {n}"
    for key, value in others.items():
        if key.startswith(OF_UPDATES):
            assert metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-5), f"{name}: {key}"
    for key, weight in weights.items():
        assert (moved[key] - weight).abs().max() < 2e-4, f"{name}: {key}"


HALF = [name for name in CASES if name.startswith("half")]
EXACT = [name for name in CASES if name not in HALF]


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_learn_what_one_learns(name, two, folders, rollouts):
    compare(name, two[0][name], learned(CASES[name], folders, rollouts[name]))
    first, second = two[0][name][0], two[1][name]
    shared = {key: value for key, value in first.items() if key.startswith(OF_UPDATES)}
    assert shared.items() <= second.items()  # both log the same


def of_four(folders, rollouts):
    ranks = Ranks.start("cpu")
    case = CASES["papo with gradient, two updates"]
    found = {}
    for how in ("full", "hybrid"):
        found[how] = learned(replace(case, how=how), folders, rollouts, ranks)
    ranks.end()
    return found


def test_four_processes_on_two_machines_learn_what_one_learns(folders, rollouts):
    name = "papo with gradient, two updates"
    machines = {"LOCAL_WORLD_SIZE": "2"}
    found = values(
        several(4, of_four, folders, rollouts[name], limit=120, environment=machines)
    )[0]
    alone = learned(CASES[name], folders, rollouts[name])
    for how, four in found.items():
        compare(how, four, alone)


def test_a_process_without_prompts_waits_for_those_that_sample(two, folders):
    tokens, norm = sampled_then_learned(folders, Ranks.alone())
    assert two[0]["sampled"][0] == tokens and len(tokens) == 8 and two[1]["sampled"][0] == []
    assert two[0]["sampled"][1] == two[1]["sampled"][1] == pytest.approx(norm, rel=1e-5)


def test_what_is_not_finite_on_one_stops_all_and_leaves_nothing(two, folders, rollouts):
    norm = not_finite_then_finite(folders, rollouts["papo"], Ranks.alone())
    assert two[0]["not finite"] == two[1]["not finite"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("name", HALF)
def test_half_precision_computes_in_it_and_learns_in_fp32(name, two, folders, rollouts):
    case = CASES[name]
    wide = replace(case, load={**case.load, "dtype": "float32"})
    _, exact, _ = learned(wide, folders, rollouts[name])
    _, alone, _ = learned(case, folders, rollouts[name])
    _, found, weights = two[0][name]

    def gap(one):
        flat = [torch.cat([g[n].float().flatten() for n in exact[0]]) for g in (one, exact[0])]
        return float((flat[0] - flat[1]).norm() / flat[1].norm())

    assert gap(found[0]) < 1.3 * gap(alone[0]) < 0.1
    shards = {w.dtype for n, w in weights.items() if ".visual." not in n}
    copies = {w.dtype for n, w in weights.items() if ".visual." in n}  # with masters
    assert (shards, copies) == ({torch.float32}, {torch.bfloat16})


@pytest.mark.parametrize("name", SAVED)
def test_a_sharded_policy_is_saved_as_any_other(name, two, place, folders, rollouts, tmp_path):
    case, how = SAVED[name]
    policy = loaded(CASES[case], folders)
    box_of(policy, CASES[case], Ranks.alone()).learn(rollouts[case], NOW, PhaseTimer())
    policy.save(tmp_path / "alone", **how)
    assert {f.name for f in (tmp_path / "alone").iterdir()} == {
        f.name for f in (place / name).iterdir()
    }
    kind = str(policy.dtype).removeprefix("torch.")
    theirs, ours = (
        Policy.load(folder, device="cpu", dtype=kind)
        for folder in (tmp_path / "alone", place / name)
    )
    alone = dict(theirs.model.named_parameters())
    found = dict(ours.model.named_parameters())
    assert alone.keys() == found.keys()
    near = 0.02 if name == "half" else 2e-4
    assert max(float((found[n] - alone[n]).abs().max()) for n in alone) < near
    files = [
        sum(f.stat().st_size for f in d.glob("*.safetensors"))
        for d in (tmp_path / "alone", place / name)
    ]
    assert files[0] == pytest.approx(files[1], rel=0.01)
    assert not (place / "broken").exists()
