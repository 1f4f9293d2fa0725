"""Answers asked ahead on two processes: each asks its own engine, and a stopped run goes on with what was under way."""

from __future__ import annotations

import hashlib

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.vllm_engine import VLLMEngine
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer, TrainingError
from mmrl.types import Sampling
from tests.rollouts.made_up_vllm import MadeUp
from tests.several import several, values

STEPS, BREAKS_IN = 4, 3


class Alone(MadeUp):
    """One that answers while the policy learns, as a server does."""

    alone = True


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


def rollout(engine, pay, supply, sampling, now):
    if now.step == BREAKS_IN and rollout.breaks:
        raise ValueError("stopped")
    return group_rollout(engine, pay, supply, sampling, now)


def whole_tensor(weight):
    """Of all ranks, where each holds a share."""
    weight = weight.detach()
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def ran(folder, output, breaks):
    """What one rank asked, its weights in the end, and whether the run came to its end."""
    torch.set_num_threads(1)
    rollout.breaks = breaks
    ranks = Ranks.start("cpu")
    policy = Policy.load(folder, device="cpu", dtype="float32")
    made_up = Alone(policy)
    trainer = Trainer(
        policy,
        prompts=Drawn("lookup", size=40),
        rewards=Rewards(accuracy=pay),
        rollout=rollout,
        engine=VLLMEngine(policy, made_up),
        sampling=Sampling(2, max_tokens=3),
        optim=Optim(lr=1e-3),
        run=Run(
            output=output,
            steps=STEPS,
            prompts_per_step=3,
            save_every=1,
            eval_prompts=0,
            staleness=1,
        ),
        ranks=ranks,
    )
    ended = True
    try:
        trainer.fit()
    except TrainingError:
        ended = False
    found = hashlib.sha256()
    for weight in policy.parameters():
        found.update(whole_tensor(weight).numpy().tobytes())
    asked = [sorted(q.params["seed"] for q in questions) for questions in made_up.asked]
    return ended, made_up.asked_of, asked, found.hexdigest()


def logged(output):
    beside = ("time/", "memory/")
    return [
        {name: value for name, value in row.items() if not name.startswith(beside)}
        for row in read_metrics(output)
    ]


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("ahead on two")
    return output, values(several(2, ran, tiny_folder, output, False, limit=120.0))


def test_each_process_asks_ahead_for_its_own_prompts(whole):
    output, ranks = whole
    seen = []
    for ended, weights, asked, _ in ranks:
        assert ended and weights == [0, 0, 1, 2], "weights that answer steps 1, 2, 3, 4"
        seen.append(asked)
    # Three prompts on two processes: both have some in every step, and nobody those of another.
    assert [[len(step) for step in asked] for asked in seen] in (
        [[2] * STEPS, [1] * STEPS],
        [[1] * STEPS, [2] * STEPS],
    )
    every = [seed for asked in seen for step in asked for seed in step]
    assert len(set(every)) == len(every) == 3 * STEPS
    assert ranks[0][3] == ranks[1][3], "the same weights"
    assert [row.get("rollout/ahead", 0) for row in logged(output)] == [0, 6, 6, 6]


def test_a_stopped_run_goes_on_to_the_same_bits(whole, tiny_folder, tmp_path):
    stopped = values(several(2, ran, tiny_folder, tmp_path, True, limit=120.0))
    assert [ended for ended, *_ in stopped] == [False, False]
    again = values(several(2, ran, tiny_folder, tmp_path, False, limit=120.0))
    for (ended, weights, asked, digest), right in zip(again, whole[1], strict=True):
        # Step 3's answers were in the checkpoint: only those of the last step are asked for.
        assert ended and weights == [2] and asked == right[2][-1:]
        assert digest == right[3]
    for found, row in zip(logged(tmp_path), logged(whole[0]), strict=True):
        apart = {
            n: (found.get(n), row.get(n)) for n in found | row if found.get(n) != row.get(n)
        }
        assert not apart, row["step"]
