"""Runs: identities, files, exact resume, failures that lose nothing. Kills are in test_resume.py."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from shutil import copytree

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.checksums import seal
from mmrl.ground.faults import BadRow
from mmrl.ground.outputs import OutputError
from mmrl.grpo import GRPO
from mmrl.model.load import LoRA
from mmrl.model.patches import PixelBudget
from mmrl.model.policy import Policy
from mmrl.objectives.base import Objective, ScoreRequest
from mmrl.objectives.papo import PAPO
from mmrl.objectives.vogue import VOGUE
from mmrl.perception.masking import PatchMask
from mmrl.rewards.parts import needs_tags
from mmrl.rewards.pay import Rewards, RewardStopped, in_process
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import DynamicSampling, group_rollout
from mmrl.training.optim import Optim
from mmrl.training.run import Run, planned_steps
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer, TrainingError
from mmrl.types import Now, Prompts, Sampling, Shaped, View, VisualBranch

MASKED = {"masked": VisualBranch(PatchMask(0.5, 8))}


PLUG = {}
"""Answers that are still paid, and what is raised then; empty while all is well."""


def pay(rollout):
    if PLUG:
        PLUG["left"] -= 1
        if PLUG["left"] == 0:
            error = PLUG["error"]
            PLUG.clear()
            raise error
    return float(int(rollout.tokens.sum()) % 7) / 7


def box(
    folder,
    output=None,
    *,
    load=None,
    reward=pay,
    steps=4,
    prompts=Drawn("lookup", size=11),
    run=None,
    **rest,
):
    """A small run: 2 prompts of 3 answers per step, a checkpoint every second step."""
    policy = Policy.load(folder, **({"device": "cpu", "dtype": "float32"} | (load or {})))
    settings = {
        "prompts_per_step": 2,
        "save_every": 2,
        "sample_every": 2,
        "eval_prompts": 2,
    } | (run or {})
    rest = {"sampling": Sampling(3, max_tokens=4), "optim": Optim(lr=1e-3)} | rest
    rewards = Rewards(accuracy=in_process(reward), on_failure="stop")
    return Trainer(
        policy,
        prompts=prompts,
        rewards=rewards,
        run=Run(output=output, steps=steps, **settings),
        **rest,
    )


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def timeless(rows):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows
    ]


def test_a_schedule_reads_the_share_that_is_done_when_the_step_ends(tiny_folder, tmp_path):
    """Step n of N is at n/N: the last step is at the end, and none is one late."""
    seen = []

    def recorded(engine, pay, supply, sampling, now):
        seen.append((now.step, now.progress, VOGUE().probability(now.progress)))
        return group_rollout(engine, pay, supply, sampling, now)

    box(tiny_folder, tmp_path / "run", rollout=recorded).fit()
    assert seen == [(1, 0.25, 0.75), (2, 0.5, 0.5), (3, 0.75, 0.25), (4, 1.0, 0.0)]


def test_a_run_says_before_its_first_step_how_it_writes_the_tags_it_needs(
    tiny_folder, tmp_path, capsys
):
    @needs_tags("<think>")
    def tagged(rollout):
        return 1.0

    forgetful = Path(copytree(tiny_folder, tmp_path / "model"))
    config = json.loads((forgetful / "config.json").read_text())
    del config["mmrl_tags"]
    (forgetful / "config.json").write_text(json.dumps(config))
    for folder, said in ((tiny_folder, False), (forgetful, True)):
        box(folder, tmp_path / f"run-{said}", reward=tagged, steps=1).fit()
        told = capsys.readouterr().err
        assert ("<think>: written as plain text" in told) == said
        assert not said or told.index("<think>: written") < told.index("step 1/1")


# Identities.


def test_zero_coefficients_are_bit_equal_to_grpo(tiny_folder):
    """No branch is rendered or scored, every counter and metric is the same, and so is every bit of the weights."""

    class Unseen(View):
        changes_geometry = changes_order = False

        def __call__(self, frames, context, rng, now):
            raise AssertionError("the view was rendered")

    plain = box(tiny_folder)
    off = box(
        tiny_folder,
        objectives=[PAPO(0.0, 0.0, 0.0)],
        branches={"masked": VisualBranch(Unseen())},
    )
    on = box(tiny_folder, objectives=[PAPO()], branches=MASKED)
    rows = {name: [] for name in ("plain", "off", "on")}
    for n in (1, 2, 3):
        for name, trainer in (("plain", plain), ("off", off), ("on", on)):
            rows[name].append(trainer.step(Now(n, n / 4, 0)))
    assert same(weights(plain), weights(off)) and timeless(rows["plain"]) == timeless(
        rows["off"]
    )
    assert not same(weights(plain), weights(on))
    assert rows["on"][0]["patches/tower"] == 2 * rows["plain"][0]["patches/tower"]
    assert rows["on"][0]["tokens/score"] == rows["plain"][0]["tokens/update"]
    assert "branch/masked/kl" in rows["on"][0] and "branch/masked/kl" not in rows["off"][0]


@pytest.mark.parametrize(
    "prompts",
    [Drawn("lookup", size=9), Drawn("lookup", size=9, pictures=0)],
    ids=["same", "text"],
)
def test_a_branch_that_changes_nothing_is_bit_equal_too(tiny_folder, prompts):
    branch = {"masked": VisualBranch(PatchMask(0.0 if prompts.pictures else 0.9))}
    plain = box(tiny_folder, prompts=prompts)
    empty = box(
        tiny_folder, prompts=prompts, objectives=[PAPO(0.02, 0.0, 0.0)], branches=branch
    )
    for n in (1, 2):
        plain.step(Now(n, 0.0, 0))
        assert empty.step(Now(n, 0.0, 0))["loss/perception"] == 0.0
    assert same(weights(plain), weights(empty))


def test_the_split_into_passes_does_not_matter(tiny_folder):
    large, small = (
        box(
            tiny_folder,
            load={"dtype": "float64"},
            objectives=[PAPO()],
            branches=MASKED,
            run={"tokens_per_pass": n},
        )
        for n in (10_000, 35)
    )
    for n in (1, 2):
        first, second = large.step(Now(n, 0.0, 0)), small.step(Now(n, 0.0, 0))
        assert (
            second["tokens/update"] == first["tokens/update"]
            and second["patches/tower"] == first["patches/tower"]
        )
        assert second["loss/total"] == pytest.approx(first["loss/total"], rel=1e-6, abs=1e-9)
        assert second["optim/grad_norm"] == pytest.approx(first["optim/grad_norm"], rel=1e-6)
    for name, value in weights(small).items():
        torch.testing.assert_close(
            weights(large)[name], value, rtol=0, atol=2e-5
        )  # Adam enlarges small gaps


def test_several_updates_score_raw_once_beforehand(tiny_folder):
    one, two = box(tiny_folder), box(tiny_folder, run={"updates_per_step": 2})
    first, second = one.step(Now(1, 0.0, 0)), two.step(Now(1, 0.0, 0))
    assert (
        "tokens/score" not in first
        and second["tokens/score"] == second["tokens/update"] == first["tokens/update"]
    )
    assert second["policy/ratio_max"] != 1.0 == first["policy/ratio_max"]
    assert (one.policy.version, two.policy.version) == (1, 2)


@dataclass(frozen=True)
class Anchored(Objective):
    """Reads the reference without a KL in the core."""

    def score_requests(self):
        return (ScoreRequest("ref"),)

    def terms(self, live, batch, now):
        return {"anchor": (live["raw"].logp - live["ref"].logp).square()}


def test_an_objective_may_read_the_reference_without_kl(tiny_folder):
    trainer = box(tiny_folder, objectives=[Anchored()])
    first, second = trainer.step(Now(1, 0.0, 0)), trainer.step(Now(2, 0.0, 0))
    assert first["loss/anchor"] == pytest.approx(0.0, abs=1e-9) and second["loss/anchor"] > 1e-6


def test_the_overlong_penalty_is_part_of_the_pay(tiny_folder):
    trainer = box(tiny_folder, grpo=GRPO(overlong_buffer=2, overlong_factor=0.5))
    metrics = trainer.step(Now(1, 0.0, 0))
    assert metrics["reward/overlong"] == -0.5 and metrics["answer/length"] == 4.0
    assert metrics["reward/total"] == pytest.approx(metrics["reward/accuracy"] - 0.5, abs=1e-6)


# Files.


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """An undisturbed run of 5 steps with everything on, and what it printed last."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    trainer = full(tiny_folder, output)
    return trainer, output, trainer.fit()


@pytest.fixture(scope="module")
def undisturbed(tiny_folder, tmp_path_factory):
    """A small run to its end, with the settings that are given; each once: weights, and metrics but for times."""

    @cache
    def done(steps=4, save_every=2):
        output = tmp_path_factory.mktemp("undisturbed") / "run"
        trainer = box(tiny_folder, output, steps=steps, run={"save_every": save_every})
        trainer.fit()
        return weights(trainer), timeless(read_metrics(output))

    return done


def full(folder, output, **rest):
    settings = {"eval_every": 2, "keep": 2} | rest.pop("run", {})
    arguments = {
        "steps": 5,
        "objectives": [PAPO()],
        "branches": MASKED,
        "grpo": GRPO(kl=0.01),
        "heldout": Drawn("lookup", split="heldout"),
        "optim": Optim(lr=1e-3, schedule="cosine", warmup=2),
        "settings": {"note": "mine"},
    }
    return box(folder, output, run=settings, **(arguments | rest))


def test_metrics_are_one_row_per_step_with_evaluations_at_start_interval_and_end(finished):
    _, output, last = finished
    rows = read_metrics(output)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 2, 4, 5]
    assert {k for k in rows[0] if not k.startswith("eval/")} == {"step", "time/evaluate"}
    names = set(rows[3])
    assert {
        "reward/total",
        "reward/accuracy",
        "loss/total",
        "loss/perception",
        "loss/kl",
        "branch/masked/kl",
    } <= names
    assert {
        "time/generate",
        "time/reward",
        "time/score",
        "time/update",
        "time/total",
        "memory/peak",
    } <= names
    assert {
        "tokens/prefill",
        "tokens/decode",
        "tokens/score",
        "tokens/update",
        "tokens/head",
        "patches/tower",
    } <= names
    assert {"optim/lr", "optim/grad_norm", "answer/length"} <= names
    assert all(name == "step" or name.count("/") >= 1 for row in rows for name in row)
    assert [row["optim/lr"] for row in rows[1:3]] == [0.5e-3, 1e-3] and rows[5][
        "optim/lr"
    ] < rows[4]["optim/lr"] < 1e-3
    parts = sum(rows[3][f"time/{k}"] for k in ("generate", "score", "update"))
    assert (
        rows[4]["time/total"]
        > 0.8 * sum(rows[4][f"time/{k}"] for k in ("generate", "score", "update"))
        and parts > 0
    )
    assert (
        {k: v for k, v in rows[-1].items() if k != "step"}
        == last
        == json.loads((output / "finished.json").read_text())
    )


def test_samples_settings_and_checkpoints(finished, tiny_folder):
    _, output, _ = finished
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [2, 2, 2, 4, 4, 4] and all(
        s["question"].startswith("<image>") for s in samples
    )
    assert (
        len({s["prompt"] for s in samples[:3]}) == 1
        and samples[0]["reward"] == samples[0]["parts"]["accuracy"]
    )
    config = json.loads((output / "config.json").read_text())
    settings = config["settings"]
    assert (
        settings["grpo"]["kl"] == 0.01
        and settings["optim"]["schedule"] == "cosine"
        and settings["run"]["steps"] == 5
    )
    assert (
        settings["branches"]["masked"]["view"]["ratio"] == 0.5
        and settings["objectives"][0]["gamma"] == 0.02
    )
    assert settings["policy"] == {
        "source": str(tiny_folder),
        "dtype": "float32",
        "freeze": [],
        "lora": None,
        "shared": True,
        "device": "cpu",
        "pixels": {},
    }
    assert settings["prompts"]["task"] == "lookup" and settings["rewards"] == {"accuracy": 1.0}
    assert settings["note"] == "mine" and settings["estimator"] == "group_normalized"
    assert (
        config["environment"]["torch"] == torch.__version__ and config["environment"]["command"]
    )
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["step-4", "step-5"]
    state = json.loads((output / "checkpoints" / "step-4" / "state.json").read_text())
    assert state["step"] == 4 and state["supply"] == {"position": 8} and state["threads"] == 1


def test_the_final_model_loads_like_any_other(finished):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    trainer, output, _ = finished
    model = AutoModelForImageTextToText.from_pretrained(output / "model", dtype=torch.float32)
    stored = dict(model.named_parameters())
    assert all(torch.equal(stored[name], p) for name, p in trainer.policy.named_parameters())
    processor = AutoProcessor.from_pretrained(output / "model")
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True
    )
    assert "<|image_pad|>" in text and text.endswith("assistant\n")
    again = Policy.load(output / "model", device="cpu", dtype="float32")
    sampling, now, prompts = Sampling(2, max_tokens=4), Now(1, 0.0, 0), [Drawn("lookup")[50]]
    ours, theirs = (
        HFEngine(p).generate(prompts, sampling, now) for p in (trainer.policy, again)
    )
    assert [r.tokens.tolist() for r in ours] == [r.tokens.tolist() for r in theirs]


@pytest.mark.parametrize("vision", [False, True])
def test_an_adapter_is_saved_and_loads_again(tiny_folder, tmp_path, vision):
    trainer = box(
        tiny_folder,
        tmp_path / "run",
        load={"lora": LoRA(rank=2, vision=vision)},
        steps=2,
        grpo=GRPO(kl=0.1),
    )
    trainer.fit()
    model = tmp_path / "run" / "model"
    assert (model / "adapter_config.json").is_file() and not (
        model / "model.safetensors"
    ).exists()
    rows = read_metrics(tmp_path / "run")
    assert (
        rows[0]["policy/kl_ref"] == pytest.approx(0.0, abs=1e-9)
        and rows[1]["policy/kl_ref"] > 0
    )
    with pytest.raises(ValueError, match=r"is an adapter already.*merge"):
        Policy.load(model, device="cpu", lora=LoRA(rank=2))
    again = Policy.load(model, device="cpu", dtype="float32")
    assert same(weights(trainer), {name: p.detach() for name, p in again.named_parameters()})
    sampling, now, prompts = Sampling(2, max_tokens=4), Now(1, 0.0, 0), [Drawn("lookup")[50]]
    ours, theirs = (
        HFEngine(p).generate(prompts, sampling, now) for p in (trainer.policy, again)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.logp, b.logp)


# Continuing.


class Unplugged(BaseException):
    """Ends a run as a power cut would: nothing is saved."""


def unplugged_at(call):
    """The reward of the n-th answer never comes. The same function, for another one would not continue the run."""
    PLUG.update(left=call, error=Unplugged())
    return pay


@dataclass
class Past:
    """What Remembers has seen."""

    mean: float = 0.3
    seen: torch.Tensor = field(default_factory=lambda: torch.zeros(2))

    def state(self):
        return {"mean": self.mean, "seen": self.seen}

    def load(self, state):
        self.mean, self.seen = state["mean"], torch.tensor(state["seen"])


@dataclass(frozen=True)
class Remembers(Objective):
    """An objective whose past decides the advantages."""

    def start_memory(self):
        return Past()

    def shape(self, advantage, batch, now, memory):
        memory.mean = 0.7 * memory.mean + 0.3 * batch.reward.mean().item()
        memory.seen += torch.tensor([1.0, batch.reward.sum().item()])
        return Shaped(advantage * (0.5 + memory.mean + 0.01 * memory.seen.sum()))


VARIANTS = {
    "fp32, everything on": lambda: {},
    "bf16, memory": lambda: {
        "load": {"dtype": "bfloat16"},
        "objectives": [Remembers()],
        "branches": {},
    },
    "adapter, two updates": lambda: {
        "load": {"lora": LoRA(rank=2)},
        "run": {"updates_per_step": 2},
    },
    "frozen tower, dynamic": lambda: {
        "load": {"freeze": ("vision", "merger")},
        "rollout": DynamicSampling(low=0.3, high=0.6),
        "objectives": [],
        "branches": {},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_was_cut_off_continues_bit_for_bit(finished, tiny_folder, tmp_path, variant):
    if VARIANTS[variant]():
        output = tmp_path / "whole"
        whole = full(tiny_folder, output, **VARIANTS[variant]())
        final = whole.fit()
    else:
        whole, output, final = finished
    calls = {"frozen tower, dynamic": 40}.get(
        variant, 2 + 6 + 6 + 2 + 6 + 4
    )  # an evaluation pays two answers
    with pytest.raises(Unplugged):
        full(
            tiny_folder, tmp_path / "cut", reward=unplugged_at(calls), **VARIANTS[variant]()
        ).fit()
    rows = read_metrics(tmp_path / "cut")
    assert 2 <= rows[-1]["step"] < 5 and not (tmp_path / "cut" / "finished.json").exists()
    again = full(tiny_folder, tmp_path / "cut", **VARIANTS[variant]())
    last = again.fit()
    assert same(weights(whole), weights(again))
    assert timeless(read_metrics(output)) == timeless(read_metrics(tmp_path / "cut"))
    assert timeless([final]) == timeless([last])
    for log in ("samples.jsonl", "closeups.jsonl", "eval.jsonl"):
        ours, theirs = ((place / log).read_text() for place in (output, tmp_path / "cut"))
        assert ours == theirs, log


def test_what_the_report_shows_is_kept(finished):
    """Numbers per token of the answers that were sampled, what each branch saw, and every held-out answer."""
    _, output, _ = finished
    logs = {}
    for name in ("samples", "closeups", "eval"):
        lines = (output / f"{name}.jsonl").read_text().splitlines()
        logs[name] = [json.loads(line) for line in lines]
    assert [row["step"] for row in logs["closeups"]] == [2, 4]
    for close in logs["closeups"]:
        group = [row for row in logs["samples"] if row["step"] == close["step"]]
        assert {row["prompt"] for row in group} == {close["prompt"]}
        (raw,), (masked,) = close["pictures"]["raw"], close["pictures"]["masked"]
        assert raw[0]["uri"] != masked[0]["uri"]
        for answer, row in zip(close["answers"], group, strict=True):
            assert "".join(answer["tokens"]).startswith(row["answer"])
            names = set(answer) - {"tokens"}
            assert names == {"advantage", "logp", "dependence/masked"}
            assert {len(answer[name]) for name in names} == {len(answer["tokens"])}
            assert all(number <= 0 for number in answer["logp"])
    metrics = {row["step"]: row for row in read_metrics(output)}
    for step in (0, 2, 4, 5):
        scores = [row["score"] for row in logs["eval"] if row["step"] == step]
        assert sum(scores) / 2 == pytest.approx(metrics[step]["eval/accuracy"])
    page = (output / "report.html").read_text()
    assert "finished" in page and page.count('data-heat="') == 6
    assert not any("report/failures" in row for row in metrics.values())


def test_checkpoints_do_not_disturb(finished, tiny_folder, tmp_path):
    """Saving each step or never, sampling and keeping differently: the same bits."""
    trainer, output, _ = finished
    other = full(tiny_folder, tmp_path, run={"save_every": 0, "sample_every": 1, "keep": 0})
    other.fit()
    assert same(weights(trainer), weights(other))
    assert timeless(read_metrics(output)) == timeless(read_metrics(tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-5"]


def test_a_finished_run_says_so_and_changes_nothing(finished, tiny_folder, capsys):
    _, output, last = finished
    before = {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in output.rglob("*") if p.is_file()
    }
    trainer = full(tiny_folder, output)
    start = weights(trainer)
    assert trainer.fit() == last
    assert (
        "holds a finished run; nothing to do. --run.overwrite starts anew"
        in capsys.readouterr().err
    )
    assert before == {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in output.rglob("*") if p.is_file()
    }
    assert same(weights(trainer), start)


def unfinished(folder, output, **rest):
    """A run whose fourth step was cut off."""
    with pytest.raises(Unplugged):
        box(folder, output, reward=unplugged_at(6 * 3 + 1), **rest).fit()
    assert [row["step"] for row in read_metrics(output)] == [1, 2, 3]


def test_other_settings_are_refused_with_the_difference(tiny_folder, tmp_path):
    unfinished(tiny_folder, tmp_path)
    changes = {
        r"optim\.lr: was 0\.001, now 0\.002": {"optim": Optim(lr=2e-3)},
        r"run\.seed: was 0, now 1": {"run": {"seed": 1}},
        r"prompts\.size: was 11, now 12": {"prompts": Drawn("lookup", size=12)},
        r"policy\.dtype: was 'float32', now 'float64'": {"load": {"dtype": "float64"}},
        r"grpo\.kl: was 0\.0, now 0\.1": {"grpo": GRPO(kl=0.1)},
    }
    for message, change in changes.items():
        with pytest.raises(
            OutputError,
            match=rf"unfinished run with other settings:\s[\s\S]*{message}[\s\S]*--run.overwrite",
        ):
            box(tiny_folder, tmp_path, **change).fit()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3], (
        "a refusal touches nothing"
    )
    free = {
        "eval_every": 1,
        "eval_prompts": 1,
        "save_every": 1,
        "keep": 5,
        "sample_every": 0,
        "name": "other",
    }
    box(tiny_folder, tmp_path, run=free).fit()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-2",
        "step-3",
        "step-4",
    ]


def test_torn_files_of_a_kill_are_mended(undisturbed, tiny_folder, tmp_path):
    cut = tmp_path / "cut"
    unfinished(tiny_folder, cut)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (cut / name).open("a") as file:
            file.write('{"step": 4, "loss/to')
    draft = cut / "checkpoints" / ".writing-step-4-1"
    draft.mkdir()
    (draft / "weights.safetensors").write_text("half")
    again = box(tiny_folder, cut)
    again.fit()
    whole, metrics = undisturbed()
    assert same(whole, weights(again)) and not draft.exists()
    assert metrics == timeless(read_metrics(cut))


def test_a_run_cut_off_before_its_first_checkpoint_starts_anew(
    undisturbed, tiny_folder, tmp_path
):
    with pytest.raises(Unplugged):
        box(tiny_folder, tmp_path / "cut", reward=unplugged_at(8)).fit()
    assert [row["step"] for row in read_metrics(tmp_path / "cut")] == [1]
    again = box(tiny_folder, tmp_path / "cut")
    again.fit()
    whole, metrics = undisturbed()
    assert same(whole, weights(again))
    assert metrics == timeless(read_metrics(tmp_path / "cut"))


def test_a_run_cut_off_after_its_last_step_only_writes_the_model(
    finished, tiny_folder, tmp_path
):
    import shutil

    trainer, output, last = finished
    shutil.copytree(output, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "finished.json").unlink()
    again = full(tiny_folder, tmp_path / "run")
    assert again.fit() == last and same(weights(trainer), weights(again))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "finished.json").is_file()


def test_overwriting_starts_anew(tiny_folder, tmp_path):
    unfinished(tiny_folder, tmp_path)
    trainer = box(tiny_folder, tmp_path, optim=Optim(lr=5e-3), run={"overwrite": True}, steps=2)
    trainer.fit()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["optim/lr"] == 5e-3
    assert trainer.fit() == {k: v for k, v in rows[-1].items() if k != "step"}, (
        "the same trainer deletes nothing"
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.png").write_text("x")
    with pytest.raises(OutputError, match="no folder of a run"):
        box(tiny_folder, photos, run={"overwrite": True}).fit()
    assert (photos / "holiday.png").is_file()


def test_other_threads_are_mentioned(tiny_folder, tmp_path, capsys):
    unfinished(tiny_folder, tmp_path)
    state = tmp_path / "checkpoints" / "step-2" / "state.json"
    state.write_text(state.read_text().replace('"threads": 1', '"threads": 3'))
    seal(state.parent)
    box(tiny_folder, tmp_path).fit()
    said = capsys.readouterr().err
    assert "used 3 threads, now 1: last bits may differ" in said and "after step 2" in said


# Failures.


@dataclass(frozen=True)
class PoisonedAt(Objective):
    """No number in one step."""

    step: int

    def terms(self, live, batch, now):
        return {"poison": live["raw"].logp * (float("nan") if now.step == self.step else 0.0)}


def stopped_at(call):
    PLUG.update(left=call, error=RuntimeError("the judge has left"))
    return pay


def full_disk_at(call):
    PLUG.update(left=call, error=OSError("no space left"))
    return pay


FAILURES = {
    "reward": (stopped_at, r"[\s\S]*the judge has left", RewardStopped),
    "disk": (full_disk_at, r"[\s\S]*no space left", RewardStopped),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_step_keeps_the_state_before_it(undisturbed, tiny_folder, tmp_path, failure):
    fails, message, kind = FAILURES[failure]
    failing = box(
        tiny_folder, tmp_path / "cut", steps=5, run={"save_every": 0}, reward=fails(20)
    )
    with pytest.raises(
        TrainingError, match=rf"Step 4 failed: .*{message}[\s\S]*state before it is saved"
    ) as caught:
        failing.fit()
    assert isinstance(caught.value.__cause__, kind)
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-3"]
    assert all(p.grad is None for p in failing.policy.parameters())
    again = box(tiny_folder, tmp_path / "cut", steps=5, run={"save_every": 0})
    again.fit()
    whole, metrics = undisturbed(steps=5, save_every=0)
    assert same(whole, weights(again))
    assert metrics == timeless(read_metrics(tmp_path / "cut"))


def test_a_first_step_that_fails_evaluates_only_once(tiny_folder, tmp_path):
    reward = stopped_at(4)
    heldout = Drawn("lookup", split="heldout")
    with pytest.raises(TrainingError, match="Step 1 failed"):
        box(tiny_folder, tmp_path, reward=reward, heldout=heldout, steps=2).fit()
    box(tiny_folder, tmp_path, reward=reward, heldout=heldout, steps=2).fit()
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]


def test_a_failure_between_updates_leaves_the_last_checkpoint(tiny_folder, tmp_path):
    updates = [0]

    @dataclass(frozen=True)
    class Later(Objective):
        def terms(self, live, batch, now):
            updates[0] += 1
            return {"poison": live["raw"].logp * (float("nan") if updates[0] == 6 else 0.0)}

    whole = box(
        tiny_folder, tmp_path / "whole", run={"updates_per_step": 2}, objectives=[Later()]
    )
    updates[0] = 100
    whole.fit()
    updates[0] = 0
    with pytest.raises(
        TrainingError, match=r"Step 3 failed.*[\s\S]*The last checkpoint in .* stays"
    ):
        box(
            tiny_folder,
            tmp_path / "cut",
            run={"updates_per_step": 2},
            objectives=[Later()],
            optim=Optim(lr=1e-3, nonfinite="stop"),
        ).fit()
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-2"]
    again = box(
        tiny_folder, tmp_path / "cut", run={"updates_per_step": 2}, objectives=[Later()]
    )
    again.fit()
    assert same(weights(whole), weights(again))


# Bad input.


@dataclass(frozen=True)
class Spoiled(Prompts):
    """Rows of which some are broken, and some too long."""

    size: int | None = 12
    broken: tuple[int, ...] = (1, 5)
    long: tuple[int, ...] = (7,)

    def __getitem__(self, index):
        if index in self.broken:
            raise BadRow(f"row {index}: the image cannot be read")
        prompt = Drawn("lookup")[index]
        if index not in self.long:
            return prompt
        return replace(
            prompt,
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": "?" * 90}],
                }
            ],
        )


def test_bad_rows_and_prompts_that_are_too_long_are_skipped_and_counted(tiny_folder, tmp_path):
    load = {"budget": PixelBudget(max_prompt_tokens=60)}
    arguments = {
        "prompts": Spoiled(),
        "load": load,
        "steps": 8,
        "heldout": Spoiled(long=(0,), broken=(2,)),
    }
    trainer = box(tiny_folder, tmp_path / "whole", **arguments)
    assert [p.id for p in trainer.heldout] == [Drawn("lookup")[1].id, Drawn("lookup")[3].id]
    trainer.fit()
    rows = read_metrics(tmp_path / "whole")
    assert all(row["answer/count"] == 6 for row in rows[1:])
    skipped = [
        json.loads(line)
        for line in (tmp_path / "whole" / "skipped.jsonl").read_text().splitlines()
    ]
    of_training = [row for row in skipped if row["position"] >= 0]
    assert sum(row.get("data/skipped", 0) for row in rows) >= len(of_training) == 3
    assert [row["side"] for row in skipped if row["position"] < 0] == ["held-out"] * 2
    reasons = {row["row"]: row["reason"] for row in of_training}
    assert reasons.keys() == {1, 5, 7} and "cannot be read" in reasons[1]
    assert "at most 60 are allowed" in reasons[7] and "max_prompt_tokens" in reasons[7]

    with pytest.raises(Unplugged):
        box(
            tiny_folder, tmp_path / "cut", **arguments, reward=unplugged_at(2 + 6 * 7 + 3)
        ).fit()
    box(tiny_folder, tmp_path / "cut", **arguments).fit()
    ours, theirs = (
        (tmp_path / name / "skipped.jsonl").read_text() for name in ("whole", "cut")
    )
    assert ours == theirs and timeless(read_metrics(tmp_path / "cut")) == timeless(rows)


def test_a_bad_row_can_end_the_run_without_loss(tiny_folder, tmp_path):
    with pytest.raises(TrainingError, match="row 3: the image cannot be read") as caught:
        box(
            tiny_folder,
            tmp_path,
            prompts=Spoiled(None, broken=(3,), long=()),
            run={"on_bad": "stop"},
        ).fit()
    assert isinstance(caught.value.__cause__, BadRow)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_data_without_a_usable_row(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="dataset is empty"):
        box(tiny_folder, prompts=Spoiled(0))
    with pytest.raises(
        BadRow, match=r"4 rows in a row cannot be used, the whole dataset; the last one: row \d"
    ):
        box(tiny_folder, tmp_path, prompts=Spoiled(4, broken=(0, 1, 2, 3))).fit()


def test_an_output_that_cannot_be_written(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot be written to .*--run\.output"):
        box(tiny_folder, tmp_path / "file" / "run").fit()


def test_processes_that_nobody_connected_are_refused(tiny_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2.*without\s+torchrun"):
        box(tiny_folder)
    monkeypatch.setenv("WORLD_SIZE", "1")
    box(tiny_folder)


def test_lengths_of_runs():
    rows = Drawn("lookup", size=11)
    assert planned_steps(Run(steps=7), rows) == 7
    assert planned_steps(Run(epochs=2, prompts_per_step=4), rows) == 5
    assert planned_steps(Run(epochs=1, prompts_per_step=40), rows) == 1
    with pytest.raises(ValueError, match=r"endless.*--run\.steps"):
        planned_steps(Run(), Drawn("lookup"))


def test_run_settings_are_checked():
    wrong = {
        "steps": 0,
        "epochs": 0,
        "prompts_per_step": 0,
        "updates_per_step": 17,
        "tokens_per_pass": 0,
    }
    wrong |= {
        "on_bad": "ignore",
        "keep": -1,
        "save_every": -1,
        "eval_every": -1,
        "sample_every": -1,
        "eval_prompts": -1,
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"Run\.{name} is {value!r}; it must be"):
            Run(**{name: value})
    assert str(Run(name="x").folder) == "runs/x"


# What a person sees.


def test_a_run_shows_one_prompt_and_plain_lines_without_a_terminal(
    tiny_folder, tmp_path, capsys
):
    box(tiny_folder, tmp_path, steps=3, heldout=Drawn("lookup", split="heldout")).fit()
    said = capsys.readouterr().err
    assert (
        "One prompt as the model reads it:\n<|im_start|>user\n<|vision_start|>" in said
        and "(answer: " in said
    )
    lines = [line for line in said.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 1/3") and lines[-1].startswith("step 3/3")
    assert "steps/s" in lines[-1] and "0 s left" in lines[-1] and "eval/accuracy" in lines[-1]


def test_a_trainer_works_in_a_thread_and_goes_on_after_a_failure(
    undisturbed, tiny_folder, tmp_path
):
    """As a notebook does: no signals outside the main thread, and `fit` can be called again."""
    import threading

    trainer = box(tiny_folder, tmp_path / "run", reward=stopped_at(15))
    caught = []

    def first():
        try:
            trainer.fit()
        except TrainingError as error:
            caught.append(str(error))

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    assert caught and "Step 3 failed" in caught[0]
    trainer.fit()
    whole, metrics = undisturbed()
    assert same(whole, weights(trainer))
    assert metrics == timeless(read_metrics(tmp_path / "run"))
