"""The page of the core names everything that can be chosen, and every choice trains."""

import ast
import re
from pathlib import Path

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.losses import advantages, surrogates
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Sampling

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "core.md").read_text(encoding="utf-8")
MODULES = sorted((ROOT / "mmrl" / "losses").glob("[!_]*.py"))


def public_names(module):
    definitions = (ast.FunctionDef, ast.ClassDef)
    tree = ast.parse(module.read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, definitions)]
    return {name for name in names if not name.startswith("_")}


def table(heading):
    """First cells of the table below a heading."""
    section = PAGE.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_public_name_stands_on_the_page(module):
    missing = sorted(name for name in public_names(module) if f"`{name}`" not in PAGE)
    assert not missing, f"docs/core.md lacks {missing} of {module.name}."
    assert f"losses/{module.name}" in PAGE


def test_the_page_names_nothing_else():
    known = set().union(*map(public_names, MODULES))
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert named <= known


def test_examples_of_the_page_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names = {}
        exec(block, names)
        assert names["choice"]


def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


def step(policy, **choice):
    """Metrics of one step of two prompts."""
    trainer = Trainer(
        policy,
        prompts=Drawn("lookup", size=4),
        rewards=Rewards(accuracy=in_process(pay), on_failure="stop"),
        sampling=Sampling(3, max_tokens=4),
        optim=Optim(lr=1e-4),
        run=Run(steps=4, prompts_per_step=2),
        **choice,
    )
    return trainer.step(Now(1, 0.25, 0))


@pytest.mark.parametrize("name", table("Surrogates"))
def test_a_surrogate_is_chosen_by_its_name(policy, name):
    wide = GRPO(clip_low=0.4, clip_high=0.4, dual_clip=None)
    metrics = step(policy, surrogate=getattr(surrogates, name), grpo=wide)
    assert torch.tensor(metrics["loss/total"]).isfinite()


@pytest.mark.parametrize("name", [n for n in table("Advantage estimators") if n != "remax"])
def test_an_estimator_is_chosen_by_its_name(policy, name):
    metrics = step(policy, estimator=getattr(advantages, name))
    assert torch.tensor(metrics["loss/total"]).isfinite()
