"""A run whose answers a real vLLM draws, behind a server of ours, while the policy learns."""

from __future__ import annotations

import os

import pytest

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.vllm_client import RemoteVLLM
from mmrl.rollouts.vllm_engine import VLLMEngine
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling
from tests.vllm.test_real_engine import served, started

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(os.environ.get("MMRL_VLLM") != "1", reason="make vllm-tests runs it"),
]


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


def test_answers_are_a_step_old_with_staleness_and_of_now_without(tiny_folder, tmp_path):
    local = started(tiny_folder)
    rows = {}
    with served(local) as url:
        for staleness in (0, 1):
            policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
            output = tmp_path / str(staleness)
            Trainer(
                policy,
                prompts=Drawn("lookup", size=40),
                rewards=Rewards(accuracy=pay),
                engine=VLLMEngine(policy, RemoteVLLM(url)),
                sampling=Sampling(4, max_tokens=8),
                optim=Optim(lr=3e-3),
                run=Run(
                    output=output,
                    steps=4,
                    prompts_per_step=4,
                    eval_prompts=0,
                    staleness=staleness,
                ),
            ).fit()
            rows[staleness] = [row["policy/mismatch"] for row in read_metrics(output)]
    local.close()
    assert max(rows[0]) < 1e-3, "the weights that are trained"
    # Steps 1 and 2 are answered by the first weights, of which step 2 has learned already.
    assert rows[1][0] < 1e-3 < 1e-2 < min(rows[1][1:])
