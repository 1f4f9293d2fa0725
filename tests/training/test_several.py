"""A run on several processes: the same run as on one, to its end or to the death of one of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mmrl import GRPO, Optim, Rewards, Run, Sampling, Trainer, VisualBranch
from mmrl.data.drawn.drawn import Drawn
from mmrl.losses.advantages import batch_normalized
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.objectives.papo import PAPO
from mmrl.objectives.vppo import VPPO
from mmrl.perception.masking import PatchMask
from mmrl.rewards.parts import in_process
from mmrl.training import shards
from mmrl.training.tracking import read_metrics
from tests.several import several, values

BEGAN = ("time/", "memory/")


@in_process
def odd(rollout):
    """Something that differs between answers, and can be had by anybody."""
    return float(int(rollout.tokens.sum()) % 5) / 4


def made(model, output, **given):
    """A trainer of the tiny model: two branches' readers, statistics of the batch, two updates."""
    policy = Policy.load(model, device="cpu", dtype="float32")
    run = {"steps": 3, "prompts_per_step": 5, "updates_per_step": 2, "eval_prompts": 6}
    run |= {"save_every": 1, "seed": 1, "sample_every": 1} | given.pop("run", {})
    drawn = Drawn("lookup", cells=2, size_px=32)
    return Trainer(
        policy,
        prompts=drawn,
        heldout=Drawn("lookup", split="heldout", cells=2, size_px=32),
        rewards=Rewards(accuracy=odd),
        estimator=batch_normalized,
        grpo=GRPO(kl=0.05),
        branches={"masked": VisualBranch(PatchMask(0.6), grad=True)},
        objectives=[PAPO(gamma=0.01), VPPO(eta=0.0)],
        sampling=Sampling(group_size=3, max_tokens=5),
        optim=Optim(lr=1e-4, max_grad_norm=0.5),
        run=Run(output=Path(output), **run),
        **given,
    )


def digest(trainer):
    """Of all weights and moments, whole on every rank."""
    total = hashlib.sha256()
    pieces = shards.pieces(trainer.policy.named_parameters(), trainer.optimizer)
    for name in sorted(pieces):
        tensor = pieces[name]
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        total.update(name.encode() + full.contiguous().numpy().tobytes())
    return total.hexdigest()


def fitted(model, output, **given):
    """Train to the end; digest of weights and moments."""
    ranks = Ranks.start("cpu")
    trainer = made(model, output, **given)
    trainer.fit()
    found = digest(trainer)
    ranks.end()
    return found


def logged(output):
    """The metrics without what may differ."""
    return [
        {name: v for name, v in row.items() if not name.startswith(BEGAN)}
        for row in read_metrics(Path(output))
    ]


def same(ours, theirs, tolerance=1e-5):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            close = pytest.approx(value, abs=tolerance * max(1.0, abs(value)))
            assert other[name] == close, (one["step"], name)


@pytest.fixture(scope="module")
def alone(tiny_folder, tmp_path_factory):
    """A run of one process."""
    output = tmp_path_factory.mktemp("alone") / "run"
    fitted(tiny_folder, output)
    return output


@pytest.mark.parametrize("world", [2, 4])
def test_a_run_is_the_same_on_several_ranks(world, alone, tiny_folder, tmp_path):
    output = tmp_path / "run"
    outcomes = several(world, fitted, tiny_folder, output, limit=200.0)
    digests = values(outcomes)
    assert len(set(digests)) == 1
    # Adam makes of the first update's last bits a little more in the second.
    same(logged(alone), logged(output), 1e-4)
    first, second = (
        [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
        for place in (alone, output)
    )
    assert [row["answer"] for row in first] == [row["answer"] for row in second]
    assert (output / "finished.json").is_file() and (output / "model").is_dir()
    assert "Continuing" not in outcomes[1].said and "step 3/3" not in outcomes[1].said
