"""A run that is made longer, and one that begins as another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.outputs import OutputError, marker_of
from mmrl.losses.schedules import Cosine
from mmrl.model.policy import Policy
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.going_on import _annealed, say_extension
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling, VisualBranch

CONSTANT, COSINE = Optim(lr=1e-3), Optim(lr=1e-3, schedule="cosine")


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


def trainer(model, output, steps, *, optim=CONSTANT, rows=9, papo=None, **run):
    papo = papo or {}
    return Trainer(
        Policy.load(model, device="cpu", dtype="float32"),
        prompts=Drawn("lookup", size=rows),
        heldout=Drawn("lookup", split="heldout", size=2),
        rewards=Rewards(accuracy=pay),
        sampling=Sampling(3, max_tokens=4),
        optim=optim,
        run=Run(output=output, steps=steps, prompts_per_step=2, save_every=1, **run),
        **papo,
    )


def state(trained):
    weights = [p.detach().clone() for _, p in trained.policy.named_parameters()]
    return [*weights, *(m for m in trained.optimizer.state()["adam"]["state"][0].values())]


def logged(folder):
    """Metrics but for seconds, memory and evaluations."""
    aside = ("time/", "memory/", "eval/")
    return [
        {k: v for k, v in row.items() if not k.startswith(aside)}
        for row in read_metrics(folder)
    ]


def lr(folder):
    return [row["optim/lr"] for row in read_metrics(folder) if "optim/lr" in row]


@pytest.fixture(scope="module")
def short(tiny_folder, tmp_path_factory):
    """Finished runs of two steps by their schedule; copy before writing."""
    place = tmp_path_factory.mktemp("short")
    for name, optim in (("constant", CONSTANT), ("cosine", COSINE)):
        trainer(tiny_folder, place / name, 2, optim=optim).fit()
    return place


@pytest.fixture(scope="module")
def planned(tiny_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("planned") / "run"
    made = trainer(tiny_folder, output, 4)
    made.fit()
    return state(made), logged(output)


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_more_steps_make_the_run_that_would_have_been_planned(
    tiny_folder, short, planned, tmp_path, capsys
):
    output = tmp_path / "run"
    shutil.copytree(short / "constant", output)
    longer = trainer(tiny_folder, output, 4)
    longer.fit()
    said = capsys.readouterr().err
    assert "extended from 2 to 4 steps" in said and "does not depend on the length" in said
    assert same(state(longer), planned[0]) and logged(output) == planned[1]
    config = json.loads((output / "config.json").read_text())
    assert config["settings"]["run"]["steps"] == 4 and config["run"] == marker_of(output).id
    assert trainer(tiny_folder, output, 4).fit() == json.loads(
        (output / "finished.json").read_text()
    )


def test_a_schedule_that_ended_says_where_it_goes_on(tiny_folder, short, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(short / "cosine", output)
    trainer(tiny_folder, output, 4, optim=COSINE).fit()
    said = " ".join(capsys.readouterr().err.split())
    rates = lr(output)
    assert rates == pytest.approx(
        [1e-3 * COSINE.factor(*at) for at in ((0, 2), (1, 2), (2, 4), (3, 4))]
    )
    assert f"was {rates[1]:.3g} and goes on at {rates[2]:.3g}" in said
    assert "not the run that would have been planned" in said


@pytest.mark.parametrize(
    ("optim", "depends"),
    [
        (CONSTANT, False),
        (COSINE, True),
        (replace(COSINE, schedule="linear"), True),
        (replace(COSINE, schedule_steps=9), False),
        (replace(CONSTANT, warmup=2), False),
        (replace(CONSTANT, warmup_share=0.5), True),
    ],
)
def test_what_depends_on_the_length_is_known(optim, depends):
    assert ("does not depend" in optim.when_extended(4, 4, 8)) is not depends


def test_annealing_is_named(tiny_folder, tmp_path, capsys):
    view = PatchMask(ratio=0.5, size=14)
    papo = PAPO(gamma=0.1, anneal=Cosine())
    parts = {"objectives": [papo], "branches": {"masked": VisualBranch(view)}}
    trainer(tiny_folder, tmp_path / "run", 1, papo=parts).fit()
    capsys.readouterr()
    trainer(tiny_folder, tmp_path / "run", 2, papo=parts).fit()
    assert "annealed follows the new length, too: PAPO.anneal" in " ".join(
        capsys.readouterr().err.split()
    )


def test_what_is_the_same_at_both_ends_is_not_annealed():
    ends = {"class": "Linear", "start": 1.0, "end": 1.0}
    settings = {"objectives": [{"class": "PAPO", "anneal": ends}], "mask": {"ratio": ends}}
    assert list(_annealed(settings)) == []
    settings["mask"]["ratio"] = {**ends, "end": 0.0}
    assert list(_annealed(settings)) == ["mask.ratio"]


def test_a_stopped_extension_is_unfinished_and_goes_on(tiny_folder, short, planned, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(short / "constant", output)
    cut = trainer(tiny_folder, output, 4)
    cut.step = None  # dies in the first step that is new
    with pytest.raises(RuntimeError):
        cut.fit()
    assert not (output / "finished.json").exists()
    again = trainer(tiny_folder, output, 4)
    again.fit()
    assert same(state(again), planned[0])


def test_epochs_and_steps_are_one_length(tiny_folder, tmp_path, capsys):
    """Nine rows, two a step: one epoch has four steps."""
    output = tmp_path / "run"
    trainer(tiny_folder, output, None, epochs=0.5).fit()
    assert len(logged(output)) == 3
    trainer(tiny_folder, output, 2).fit()
    assert "finished run; nothing to do" in capsys.readouterr().err
    trainer(tiny_folder, output, None, epochs=1.0).fit()
    assert read_metrics(output)[-1]["step"] == 4


def test_shorter_or_without_its_checkpoints_is_refused(tiny_folder, short, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(short / "constant", output)
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    with pytest.raises(OutputError, match=r"run\.steps: was 2, now 1 \(a run can be extended"):
        trainer(tiny_folder, output, 1).fit()
    with pytest.raises(OutputError, match=r"other settings:\n  optim\.lr"):
        trainer(tiny_folder, output, 4, optim=Optim(lr=2e-3)).fit()
    assert before == {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(OutputError, match="whose checkpoints are gone"):
        trainer(tiny_folder, output, 4).fit()
    assert (output / "finished.json").is_file() and (output / "model").is_dir()


# Branches.


def test_a_branch_with_the_same_settings_is_the_same_run(
    tiny_folder, short, planned, tmp_path, capsys
):
    source, output = short / "constant", tmp_path / "branch"
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    made = trainer(tiny_folder, output, 4, from_run=source)
    made.fit()
    assert f"Branching from {source} after step 2." in capsys.readouterr().err
    assert same(state(made), planned[0]) and logged(output) == planned[1]
    note = json.loads((output / "config.json").read_text())["branched"]
    assert note == {"folder": str(source), "run": marker_of(source).id, "step": 2}
    assert marker_of(output).id != note["run"]
    assert before == {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}


def test_a_branch_may_have_other_settings_and_needs_its_origin_once(
    tiny_folder, short, tmp_path, capsys
):
    source, output = tmp_path / "source", tmp_path / "branch"
    shutil.copytree(short / "constant", source)

    def branch():
        return trainer(tiny_folder, output, 4, optim=Optim(lr=5e-4), rows=7, from_run=source)

    cut = branch()
    cut.step = None
    with pytest.raises(RuntimeError):
        cut.fit()
    assert "Anew begin: the order of the data." in capsys.readouterr().err
    shutil.rmtree(source)
    again = branch()
    again.fit()
    assert lr(output) == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])
    assert again.branched["step"] == 2 and again.supply.position == 4


def test_what_cannot_be_branched_is_refused(tiny_folder, tiny3_folder, short, tmp_path):
    source, output = short / "constant", tmp_path / "branch"
    with pytest.raises(OutputError, match=r"is at step 2, .*--run\.steps above 2"):
        trainer(tiny_folder, output, 2, from_run=source).fit()
    with pytest.raises(OutputError, match=r"another model:\n  policy\.source"):
        trainer(tiny3_folder, output, 4, from_run=source).fit()
    with pytest.raises(OutputError, match="which is no folder"):
        trainer(tiny_folder, output, 4, from_run=tmp_path / "none").fit()


def test_questions_that_follow_the_length_are_named(capsys):
    class Staged(Drawn):
        follows_length = "the stages of the questions"

    for prompts, named in ((Staged("lookup"), True), (Drawn("lookup"), False)):
        say_extension(Run(), CONSTANT, {}, prompts, 2, (2, 4))
        assert ("the stages of the questions" in capsys.readouterr().err) is named
