"""A run on several processes: the same run as on one, to its end or to the death of one of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from mmrl import GRPO, Optim, Rewards, Run, Sampling, Trainer, VisualBranch
from mmrl.data.drawn.drawn import Drawn
from mmrl.losses.advantages import batch_normalized
from mmrl.model import watch
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.objectives.papo import PAPO
from mmrl.objectives.vppo import VPPO
from mmrl.perception.masking import PatchMask
from mmrl.recipes import evaluate, papo
from mmrl.recipes.shared.launch import launch
from mmrl.recipes.shared.processes import ranks_of
from mmrl.rewards.parts import in_process
from mmrl.training import shards
from mmrl.training.checkpoint import newest_whole
from mmrl.training.tracking import read_metrics
from tests.several import several, values

MAY_DIFFER = ("time/", "memory/", "rollout/pieces", "rollout/refills")
"""What is measured, and into how many pieces each process cuts its own sampling."""


@in_process
def odd(rollout):
    """Something that differs between answers, and can be had by anybody."""
    return float(int(rollout.tokens.sum()) % 5) / 4


SMALL = {"prompts_per_step": 2, "updates_per_step": 1, "eval_prompts": 0}


def made(model, output, **given):
    """A trainer of the tiny model: two branches' readers, statistics of the batch, two updates."""
    policy = Policy.load(model, device="cpu", dtype="float32")
    run = {"steps": 2, "prompts_per_step": 5, "updates_per_step": 2, "eval_prompts": 3}
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


def fitted_small(model, output):
    return fitted(model, output, run=SMALL | {"steps": 3})


def logged(output):
    """The metrics without what may differ."""
    return [
        {name: v for name, v in row.items() if not name.startswith(MAY_DIFFER)}
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
    assert "Continuing" not in outcomes[1].said and "step 2/2" not in outcomes[1].said


def die(how):
    """The end of this process, in the way that is named."""
    if how == "exception":
        raise MemoryError("no room for this picture")
    os.kill(os.getpid(), signal.SIGSTOP if how == "stopped" else signal.SIGKILL)


def dies_in_step_2(model, output, phase, how):
    """A run whose rank 1 ends in the middle of step 2, in a phase; or in the save of step 1, whenever it is written."""
    watch.BEAT, watch.SILENCE = 0.2, 6.0
    ranks = Ranks.start("cpu")
    trainer = made(model, output, run=SMALL | {"steps": 3})

    def due():
        """Not before the first checkpoint is there, which is written meanwhile."""
        saved = phase == "save" or (Path(output) / "checkpoints" / "step-1").is_dir()
        until = time.monotonic() + 60
        while not saved and time.monotonic() < until:
            time.sleep(0.05)
            saved = (Path(output) / "checkpoints" / "step-1").is_dir()
        return True

    def before(owner, name):
        real = getattr(owner, name)

        def called(*given, **named):
            if ranks.rank == 1 and (phase == "save" or ranks.place.step == 2) and due():
                die(how)
            return real(*given, **named)

        setattr(owner, name, called)

    if phase == "rollout":
        before(trainer, "rollout")
    elif phase == "reward":
        before(trainer, "_pay")
    elif phase == "update":
        before(trainer.optimizer, "collect")
    else:
        import torch.distributed.checkpoint as dcp

        before(dcp.FileSystemWriter, "write_data")
    with ranks_of({}):
        trainer.fit()


def saved_in(output):
    """The newest whole checkpoint and complaints of others; (None, []) where there is none at all."""
    folder = output / "checkpoints"
    return newest_whole(folder) if [*folder.glob("step-*")] else (None, [])


@pytest.fixture(scope="module")
def dead(tiny_folder, tmp_path_factory):
    """Folder of a run of two processes of which one died in a phase, and how both ended; each run once."""

    @cache
    def ended(phase, how):
        output = tmp_path_factory.mktemp("dead") / "run"
        return output, several(2, dies_in_step_2, tiny_folder, output, phase, how, limit=90.0)

    return ended


DEATHS = [
    ("rollout", "killed"),
    ("reward", "stopped"),
    ("update", "exception"),
    ("save", "killed"),
]


@pytest.mark.parametrize(("phase", "how"), DEATHS)
def test_one_dies_and_the_others_end_with_a_message(phase, how, dead):
    output, (first, second) = dead(phase, how)
    assert second.code == {"killed": -9, "stopped": None, "exception": 1}[how], (
        first.said + second.said
    )
    assert first.code == 1, first.said + second.said
    # A save is written while the next step trains, so that step 1 may still be what the other process is at.
    steps = (1, 2) if phase == "save" else (2,)
    assert any(f"Process 0 ends at step {step}" in first.said for step in steps), first.said
    whole, complaints = saved_in(output)
    assert not complaints and (whole is None) == (phase == "save")
    kept = "nothing is saved yet" if whole is None else f"the last checkpoint is {whole}"
    assert kept in first.said, first.said
    assert "the same command goes on from there" in first.said
    if how == "exception":
        assert "no room for this picture" in first.said
    kept = [file.name for file in (output / "checkpoints").glob("step-*")]
    assert kept == ([] if phase == "save" else ["step-1"])


@pytest.fixture(scope="module")
def torn(dead, tiny_folder, tmp_path_factory):
    """A run of two processes that ended in its second step, and one that was left alone: digests at its end."""
    cut, _ = dead("rollout", "killed")
    whole = tmp_path_factory.mktemp("torn") / "whole"
    digests = values(several(2, fitted_small, tiny_folder, whole, limit=200.0))
    return cut, whole, digests[0]


def resumed(model, output, ended, **run):
    """Go on from the checkpoint: digest of what was read, and at the end."""
    ranks = Ranks.start("cpu")
    trainer = made(model, output, run=run)
    found = []
    read = trainer._restore

    def restore(newest, state):
        read(newest, state)
        found.append(digest(trainer))
        if not ended:
            trainer.step_done = trainer.steps

    trainer._restore = restore
    trainer._finish = trainer._finish if ended else lambda *_: {}
    trainer.fit()
    found.append(digest(trainer))
    ranks.end()
    return found


def resumed_small(model, output, ended):
    return resumed(model, output, ended, steps=3, **SMALL)


def test_a_run_goes_on_to_the_same_bits_and_on_any_number_of_ranks(torn, tiny_folder, tmp_path):
    cut, whole, at_the_end = torn
    read = []
    for world in (1, 2, 4):
        output = tmp_path / str(world)
        shutil.copytree(cut, output)
        # To the end on as many, which must be bit-equal, and on one; on four only what was read.
        found = values(several(world, resumed_small, tiny_folder, output, world < 4))
        assert all(each == found[0] for each in found)
        read.append(found[0][0])
        if world == 2:
            assert found[0][1] == at_the_end
        if world < 4:
            same(logged(whole), logged(output), 1e-4)
    assert read[0] == read[1] == read[2]


def saved_alone(model, output):
    """The checkpoint of one process, read by several."""
    return resumed(model, output, False)[0]


def test_a_checkpoint_of_one_process_is_read_by_several(alone, tiny_folder, tmp_path):
    for place in ("one", "two"):
        shutil.copytree(alone, tmp_path / place)
        for name in ("finished.json", "checkpoints/step-2"):
            target = tmp_path / place / name
            shutil.rmtree(target, ignore_errors=True)
            with suppress(OSError):
                target.unlink()
    (one,) = values(several(1, saved_alone, tiny_folder, tmp_path / "one"))
    assert values(several(2, saved_alone, tiny_folder, tmp_path / "two")) == [one, one]


def launched(*argv):
    launch(papo.main, papo.PRESETS, argv)


def test_a_recipe_is_one_run_and_one_voice(tiny_folder, tmp_path):
    argv = ["embedded", "--model", str(tiny_folder), "--run.output", str(tmp_path / "run")]
    argv += ["--run.steps", "1", "--run.prompts-per-step", "3", "--run.eval-prompts", "2"]
    argv += [
        "--run.updates-per-step",
        "1",
        "--sampling.max-tokens",
        "4",
        "--load.device",
        "cpu",
    ]
    first, second = several(2, launched, *argv)
    assert first.code == second.code == 0, first.said + second.said
    assert "1 steps done" in first.said and not second.said.strip()
    first, second = several(2, launched, *argv)
    assert first.code == second.code == 0 and "holds a finished run" in first.said
    # Rank 0 finds that these are other settings; the other one ends without a word.
    first, second = several(2, launched, *argv, "--run.seed", "9")
    assert first.code == second.code == 1 and not second.said.strip()
    assert "a finished run with other settings" in first.said


def test_what_one_process_does_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=r"evaluate runs in one process; .*without torchrun"):
        launch(evaluate.main, evaluate.PRESETS, ["embedded"])
