"""The page of official scorers names all of them, and its examples run."""

import ast
import re
from pathlib import Path

import pytest
import torch

from mmrl.types import Prompt, Rollout

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "official_scorers.md").read_text(encoding="utf-8")
MODULES = [
    *sorted((ROOT / "perception" / "compat").glob("*.py")),
    ROOT / "perception" / "rewards.py",
    ROOT / "mmrl" / "rewards" / "easyr1.py",
    ROOT / "mmrl" / "rewards" / "mathruler.py",
]
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_scorer_stands_on_the_page(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    public = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    missing = [name for name in public if f"`{name}`" not in PAGE]
    assert not missing, f"docs/official_scorers.md lacks {missing} of {module.name}."


def test_the_rewards_of_the_page_pay():
    names = {}
    exec(BLOCKS[0], names)
    spot = '[{"bbox_2d": [10, 10, 60, 60], "point_2d": [30, 30], "label": "cup"}]'
    rollout = Rollout(
        prompt=Prompt(id="p", messages=[], answer=f"```json{spot}```"),
        group=0,
        prompt_ids=torch.arange(3),
        tokens=torch.arange(3),
        roles=torch.zeros(3, dtype=torch.uint8),
        text=f"<think>A cup.</think><answer>```json{spot}```</answer>",
        stop="eos",
    )
    with names["rewards"] as rewards:
        (paid,) = rewards([rollout])
    # The fence is VLM-R1's way: the others find layout and repetition in order, and no object.
    assert paid.parts["detection"] == 1.0
    assert paid.parts["vision_reasoner"] == 2.0
    assert rewards.weights == {"vision_reasoner": 1.0, "seg_zero": 0.5, "detection": 0.0}


def test_the_tools_of_the_page_work():
    names = {}
    exec(BLOCKS[1], names)
    assert names["grounding"].predicted == "resized"
    assert [check.answer for check in names["fair"]] == ["1", "1", "yes"]
    assert (names["lost"], names["gained"], names["p_value"]) == (1, 1, 1.0)
