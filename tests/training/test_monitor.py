"""The blind probe, the stop of a blind run, collapse alarms, gradient norms, and what composition costs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.policy import Policy
from mmrl.objectives.papo import PAPO
from mmrl.objectives.vogue import VOGUE
from mmrl.perception.masking import PatchMask
from mmrl.perception.noise import GaussianNoise
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import HFEngine
from mmrl.training.first_looks import FirstLooks
from mmrl.training.monitor import (
    Alarms,
    BlindPolicy,
    Exchanged,
    Monitor,
    alarm,
    blind_probe,
    refuse_blindness,
)
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer, TrainingError
from mmrl.types import Media, Now, Prompt, Prompts, Sampling, ViewContext, VisualBranch

DATA = Drawn("lookup", cells=2, size_px=32, size=12)
NOW = Now(3, 0.5, 0)
SHORT = Sampling(group_size=2, max_tokens=3)


def odd(rollout):
    return float(rollout.tokens[0] % 2)


@pytest.fixture
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture
def rewards():
    return Rewards(accuracy=odd, isolate=False)


def trainer(
    policy,
    rewards,
    folder,
    *,
    objectives=(),
    branches=None,
    monitor=Monitor(),
    heldout=DATA,
    steps=2,
):
    run = Run(output=folder, steps=steps, prompts_per_step=2, eval_prompts=4, sample_every=0)
    return Trainer(
        policy,
        prompts=Drawn("lookup", cells=2, size_px=32),
        rewards=rewards,
        heldout=heldout,
        objectives=objectives,
        branches=branches,
        sampling=SHORT,
        optim=Optim(lr=1e-3),
        run=run,
        monitor=monitor,
    )


def blind(policy):
    """A policy whose tower sees nothing."""
    with torch.no_grad():
        for parameter in policy.base.model.visual.merger.parameters():
            parameter.zero_()
    return policy


def test_the_probe_measures_what_pictures_change(policy, rewards):
    found = blind_probe(
        policy, HFEngine(policy), [DATA[i] for i in range(6)], rewards, SHORT, NOW
    )
    assert found["probe/difference_blank"] > 1e-4 and found["probe/difference_other"] > 1e-6
    assert found["probe/gap"] == found["probe/accuracy"] - found["probe/accuracy_blank"]
    split = blind_probe(
        policy,
        HFEngine(policy),
        [DATA[i] for i in range(6)],
        rewards,
        SHORT,
        NOW,
        tokens_per_pass=40,
    )
    assert split == pytest.approx(found, abs=1e-5)


def test_a_blind_policy_says_the_same_whatever_it_is_shown(policy, rewards):
    found = blind_probe(
        blind(policy), HFEngine(policy), [DATA[i] for i in range(4)], rewards, SHORT, NOW
    )
    assert (
        found["probe/difference_blank"]
        == found["probe/difference_other"]
        == found["probe/gap"]
        == 0.0
    )
    with pytest.raises(
        BlindPolicy,
        match=r"does not look: blank pictures change.*by 0 nats.*least-difference 0",
    ):
        refuse_blindness(found, 1e-3)
    refuse_blindness(found, 0.0)
    refuse_blindness({}, 1.0)
    refuse_blindness({"probe/difference_blank": 0.2}, 1e-3)


def test_text_only_rows_are_not_probed(policy, rewards):
    text = [replace(DATA[0], media=(), messages=({"role": "user", "content": "What?"},))] * 3
    assert blind_probe(policy, HFEngine(policy), text, rewards, SHORT, NOW) == {}


def test_exchanged_pictures_keep_the_shape():
    other = Media(torch.full((2, 3, 9, 5), 200, dtype=torch.uint8))
    view = Exchanged({"a": (other,)})
    context = ViewContext(Prompt("a", []), 1)
    frames = torch.zeros(5, 3, 12, 20, dtype=torch.uint8)
    seen = view(frames, context, torch.Generator(), NOW)
    assert (
        seen.shape == frames.shape and seen.dtype == torch.uint8 and bool((seen == 200).all())
    )


def test_the_trainer_probes_and_training_is_the_same(policy, rewards, tmp_path, tiny_folder):
    probed = trainer(
        policy, rewards, tmp_path / "a", monitor=Monitor(probe_every=1, probe_prompts=4)
    )
    plain = trainer(
        Policy.load(tiny_folder, device="cpu", dtype="float32"), rewards, tmp_path / "b"
    )
    probed.fit(), plain.fit()
    rows = [
        json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows if "probe/gap" in row] == [0, 1, 2]
    for (name, one), (_, other) in zip(
        policy.named_parameters(), plain.policy.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    row = rows[-1]
    assert {k: v for k, v in row.items() if k.split("/")[0] in ("tokens", "patches")} == {
        k: v
        for k, v in plain_row(tmp_path / "b").items()
        if k.split("/")[0] in ("tokens", "patches")
    }


def plain_row(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_blind_run_stops_with_a_checkpoint(policy, rewards, tmp_path):
    run = trainer(
        blind(policy), rewards, tmp_path, monitor=Monitor(probe_every=1, probe_prompts=4)
    )
    with pytest.raises(TrainingError, match=r"Stopped after step 0: The policy does not look"):
        run.fit()
    assert (tmp_path / "checkpoints" / "step-0").is_dir()


def branched(policy, rewards, folder, objectives=(PAPO(0.02, 0.0, 0.0),), **changes):
    """A run with a visual branch."""
    return trainer(
        policy,
        rewards,
        folder,
        objectives=list(objectives),
        branches={"masked": VisualBranch(PatchMask(size=8))},
        heldout=None,
        **changes,
    )


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("freeze", [(), ("vision",)])
def test_the_first_look_changes_nothing_but_its_own_metrics(
    rewards, tmp_path, tiny_folder, freeze, capsys
):
    """Bit for bit, also where a picture comes again and a frozen tower keeps its features."""
    runs = {}
    for first in (0, 2):
        policy = Policy.load(tiny_folder, device="cpu", dtype="float32", freeze=freeze)
        run = branched(
            policy, rewards, tmp_path / str(first), monitor=Monitor(probe_first=first), steps=3
        )
        run.supply.prompts = DATA
        run.fit()
        runs[first] = dict(policy.named_parameters())
    assert all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])
    plain, looked = logged(tmp_path / "0"), logged(tmp_path / "2")
    found = [row.pop("probe/difference_blank", None) for row in looked]
    assert found[0] > 0.1 and found[1] > 0.1 and found[2] is None
    for row in (*plain, *looked):
        for name in [name for name in row if name.split("/")[0] in ("time", "memory")]:
            del row[name]
    assert plain == looked
    assert capsys.readouterr().err.count("looks at its pictures") == 1


def test_a_run_with_a_branch_stops_when_its_policy_is_blind(policy, rewards, tmp_path):
    run = branched(blind(policy), rewards, tmp_path)
    with pytest.raises(TrainingError, match=r"Stopped after step 1: .*does not look"):
        run.fit()
    assert (tmp_path / "checkpoints" / "step-1").is_dir()


@pytest.mark.parametrize("monitor", [Monitor(probe_first=0), Monitor(least_difference=0.0)])
def test_who_wants_to_go_on_blind_may(policy, rewards, tmp_path, monitor):
    assert (
        branched(blind(policy), rewards, tmp_path, monitor=monitor).fit()["reward/total"] >= 0
    )


def test_runs_without_a_visual_branch_are_not_looked_at(policy, rewards, tmp_path):
    trainer(policy, rewards, tmp_path, heldout=None).fit()
    assert not any("probe/difference_blank" in row for row in logged(tmp_path))


class Text(Prompts):
    """Rows without pictures, but for some."""

    def __init__(self, size, pictures=()):
        self.size, self.pictures = size, pictures

    def __getitem__(self, index):
        if index in self.pictures:
            return replace(DATA[0], id=str(index))
        return Prompt(str(index), ({"role": "user", "content": "What?"},), (), "x")


@pytest.mark.parametrize("size", [3, 2500, None])
def test_rows_without_pictures_are_refused_where_a_branch_wants_them(size):
    looks = FirstLooks(Monitor(), Run(), ["masked"])
    with pytest.raises(ValueError, match=r"'masked'.*none of the .*--data\.columns images="):
        looks.refuse_text(Text(size))
    FirstLooks(Monitor(), Run(), []).refuse_text(Text(size))
    # A few pictures, at the end, are enough.
    last = (size or 1000) - 10
    looks.refuse_text(Text(size, pictures=range(max(last, 0), last + 10)))


@pytest.mark.parametrize("gamma", [0.02, 0.0])
def test_a_run_on_text_alone_needs_a_branch_that_is_off(policy, rewards, tmp_path, gamma):
    run = branched(policy, rewards, tmp_path, objectives=[PAPO(gamma, 0.0, 0.0)], steps=1)
    run.supply.prompts = Text(4)
    if gamma:
        with pytest.raises(ValueError, match="changes pictures, but none of the 4 rows"):
            run.fit()
        assert not list(tmp_path.iterdir())
    else:
        assert run.fit()["reward/total"] >= 0


def test_gradient_norms_of_terms(policy, rewards, tmp_path, tiny_folder):
    objectives = [PAPO(0.02, 0.05, 0.0)]
    branches = {"masked": VisualBranch(PatchMask(size=8), grad=True)}
    watched = trainer(
        policy,
        rewards,
        tmp_path,
        objectives=objectives,
        branches=branches,
        monitor=Monitor(norms_every=2),
    )
    watched.fit()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = {"grad_norm/policy", "grad_norm/perception", "grad_norm/entropy_orig"}
    assert not names & rows[1].keys() and names <= rows[2].keys()
    assert all(rows[2][name] > 0 for name in names - {"grad_norm/policy"})
    whole = rows[2]["optim/grad_norm"]
    assert max(rows[2][n] for n in names) <= whole + sum(
        rows[2][n] for n in names
    ) and whole <= 1.0001 * sum(rows[2][n] for n in names)


def test_two_objectives_cost_one_pass_per_distinct_branch(policy, rewards, tmp_path):
    still = PatchMask(size=8)

    def counted(objectives, branches, folder):
        run = trainer(
            policy,
            rewards,
            tmp_path / folder,
            objectives=objectives,
            branches=branches,
            heldout=None,
        )
        found = run.step(Now(1, 0.0, 0))
        return {k.split("/")[1]: v for k, v in found.items() if k.startswith("scored/")}

    masked, noisy = {"masked": VisualBranch(still)}, {"noisy": VisualBranch(GaussianNoise())}
    papo, vogue = PAPO(), VOGUE(uncertainty="sampled")
    assert counted([], {}, "none") == {"raw": 4}
    assert counted([papo], masked, "papo") == {"raw": 4, "masked": 4}
    assert counted([vogue], noisy, "vogue") == {"raw": 8, "noisy": 4}
    assert counted([papo, vogue], {**masked, **noisy}, "both") == {
        "raw": 8,
        "masked": 4,
        "noisy": 4,
    }
    shared = counted([papo, VOGUE(uncertainty="sampled", noisy="masked")], masked, "shared")
    assert shared == {"raw": 8, "masked": 4}, "two readers of one branch cost one pass"


def test_alarms_name_the_symptom_and_the_remedy():
    assert (
        alarm("branch/masked/kl", 0.05, 1.1) == "divergence"
        and alarm("branch/masked/kl", 0.5, 1.1) == ""
    )
    assert (
        alarm("branch/masked/kl", 0.05, 0.9) == ""
        and alarm("branch/masked/ratio", 0.05, 9.0) == ""
    )
    assert (
        alarm("policy/surprise", 0.2, 0.8) == "entropy"
        and alarm("policy/surprise", 0.4, 1.1) == ""
    )
    assert (
        alarm("answer/length", 100.0, 30.0) == "length"
        and alarm("answer/length", 7.0, 1.0) == ""
    )
    watch = Alarms(3, [PAPO(), VOGUE()])
    said, raised = [], []
    for step in range(12):
        kl = 0.05 if step < 6 else 2.0
        found, messages = watch.observe(
            {"branch/masked/kl": kl, "policy/surprise": 0.3, "answer/length": 50.0}
        )
        raised.append(found)
        said += messages
    assert raised[:7] == [{}] * 7 and raised[8:] == [{"alarm/divergence": 1.0}] * 4
    (message,) = said
    assert (
        "branch/masked/kl was 0.050 in the first 3 steps" in message and "PAPO.gamma" in message
    )


def test_alarms_forget_nothing_but_the_middle_and_may_be_off():
    watch = Alarms(2)
    for step in range(50):
        watch.observe({"answer/length": float(step), "policy/surprise": None})  # type: ignore[dict-item]
    assert [row["answer/length"] for row in watch.rows] == [0.0, 1.0, 48.0, 49.0]
    assert Alarms(0).observe({"answer/length": 1.0}) == ({}, [])
    quiet = Alarms(1)
    quiet.observe({"answer/length": 100.0})
    assert "lower the learning rate" in quiet.observe({"answer/length": 1.0})[1][0]


@pytest.mark.parametrize(
    "wrong",
    [{"probe_every": -1}, {"probe_prompts": 1}, {"least_difference": -1.0}, {"window": -1}],
)
def test_wrong_settings_are_explained(wrong):
    with pytest.raises(ValueError, match=f"Monitor.{next(iter(wrong))} is"):
        Monitor(**wrong)


def test_an_engine_that_is_far_from_training_raises_the_alarm_at_once():
    watch = Alarms(10)
    assert watch.observe({"policy/mismatch": 0.02}) == ({}, [])
    raised, (message,) = watch.observe({"policy/mismatch": 0.5})
    assert raised == {"alarm/mismatch": 1.0}
    assert "mismatch alarm" in message and "0.500 nats" in message and "--logprobs" in message
    # Said once, and never of answers that were drawn under a noisy view, as they shall be.
    assert watch.observe({"policy/mismatch": 0.5}) == ({"alarm/mismatch": 1.0}, [])
    noisy = {"policy/mismatch": 0.5, "rollout/noisy_answers": 4.0}
    assert Alarms(10).observe(noisy) == ({}, [])
