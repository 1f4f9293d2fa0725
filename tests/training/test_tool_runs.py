"""Runs whose answers call tools: what is trained, measured, logged and shown, and that they go on to the same bits."""

from __future__ import annotations

import json
from shutil import copytree, rmtree

import pytest

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.policy import Policy
from mmrl.report.build import report_page
from mmrl.report.run_files import read_run
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.tool_use import ToolRollout
from mmrl.tools.toolbox import Toolbox, ToolUse
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer, TrainingError
from mmrl.types import Sampling
from tests.rollouts.tools_for_tests import Broken, Drawing, Slow

PAID = []


@in_process
def pay(rollout):
    PAID.append(rollout)
    return float(len(rollout.text) % 3)


def trainer(tiny_folder, output, *tools, steps=2, **use):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    toolbox = Toolbox(tools, ToolUse(max_turns=1, **use))
    return Trainer(
        policy,
        prompts=Drawn("lookup", size=12),
        heldout=Drawn("lookup", size=3),
        rewards=Rewards(accuracy=pay),
        rollout=ToolRollout(policy=policy, toolbox=toolbox),
        sampling=Sampling(3, max_tokens=48),
        optim=Optim(lr=1e-3),
        run=Run(output=output, steps=steps, prompts_per_step=2, save_every=1, keep=0,
                eval_every=2, eval_prompts=2 * (steps > 1), sample_every=1, updates_per_step=2),
    )  # fmt: skip


def timeless(rows):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows
    ]


@pytest.mark.parametrize(
    ("tool", "use"), [(Drawing(), {}), (Slow(asynchronous=True), {"together": True})]
)
def test_a_run_with_tools_goes_on_to_the_same_bits(tiny_folder, tmp_path, tool, use):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    PAID.clear()
    trainer(tiny_folder, whole, tool, **use).fit()
    # Held-out prompts were answered with the tools as well.
    called = {r.prompt.id for r in PAID if r.calls}
    assert len(called) >= 3 and all(r.roles is not None for r in PAID)
    rows = read_metrics(whole)
    assert all(row["tool/calls"] > 0 and row["tool/answers"] == 6 for row in rows[-1:])
    assert rows[-1]["tool/dropped"] == 0 and rows[-1]["tool/observation_tokens"] > 0
    copytree(whole, cut)
    rmtree(cut / "checkpoints" / "step-2")
    (cut / "finished.json").unlink()
    rmtree(cut / "model")
    trainer(tiny_folder, cut, tool, **use).fit()
    ours, theirs = (place / "model" / "model.safetensors" for place in (whole, cut))
    assert ours.read_bytes() == theirs.read_bytes()
    assert timeless(rows) == timeless(read_metrics(cut))
    told = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    calls = [call for row in told for call in row.get("calls", ())]
    assert calls and {call["tool"] for call in calls} == {tool.name}
    page = report_page([read_run(whole)])
    assert f"<b>{tool.name}</b>" in page and 'class="calls"' in page
    assert ("shown by tools" in page) is (tool.name == "drawing")


def test_answers_whose_tools_fail_are_left_out_or_end_the_run(tiny_folder, tmp_path):
    PAID.clear()
    trainer(tiny_folder, tmp_path / "drop", Broken(every=3), steps=1, most_failed=1.0).fit()
    (row,) = read_metrics(tmp_path / "drop")[-1:]
    lost = row["tool/dropped"]
    assert lost == row["tool/failed"] > 0
    trained = [r for r in PAID if r.roles is not None]
    assert all(call.outcome == "answered" for r in trained[: 6 - int(lost)] for call in r.calls)
    with pytest.raises(
        TrainingError, match=r"Tools failed in \d of 6 answers[^\n]*out of order"
    ):
        trainer(tiny_folder, tmp_path / "stop", Broken(every=1), steps=1).fit()
