"""The tower runs once per picture, branch and weights version; retained graphs give the same gradients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.model.branches import Views
from mmrl.model.budget import Budget
from mmrl.model.open_prompts import OpenPrompts
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.model.vision_cache import VisionCache
from mmrl.model.vision_tower import VisualFeatures
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import HFEngine
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Now, Prompt, Prompts, Sampling, VisualBranch


@dataclass(frozen=True)
class Item:
    """Stands for patches: a name and what it shows."""

    key: str
    values: torch.Tensor

    def __len__(self):
        return len(self.values)


@dataclass(frozen=True)
class Shown:
    """Stands for an encoded prompt."""

    visual: tuple


class Tower:
    """A linear tower that counts the media it sees."""

    trains, version, merge = True, "step 0", 1

    def __init__(self):
        self.weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
        self.seen = []

    def __call__(self, items):
        self.seen.append([item.key for item in items])
        return [
            VisualFeatures(item.values @ self.weight, ((item.values @ self.weight).square(),))
            for item in items
        ]

    def graph_bytes(self, patches):
        return patches

    def saliency(self, item):
        self.seen.append(item.key)
        return item.values.sum(1)


def cache_of(tower, **limits):
    return VisionCache(tower, lambda prompt: [prompt.answer], **limits)


def item(n, rows=2):
    rng = torch.Generator().manual_seed(n)
    return Item(f"k{n}", torch.randn(rows, 3, generator=rng, dtype=torch.float64))


A, B, C = item(1), item(2, 4), item(3)


def test_one_run_per_content_and_version():
    tower = Tower()
    cache = cache_of(tower)
    first = cache.features([A, B, A])
    assert tower.seen == [["k1", "k2"]] and first[0].merged is not None
    assert torch.equal(first[0].merged, first[2].merged) and not first[0].merged.requires_grad
    cache.features([B, C])
    tower.version = "step 1"
    cache.features([A])
    assert tower.seen == [["k1", "k2"], ["k3"], ["k1"]]
    cache.clear(keep="step 1")
    cache.features([A, B])
    assert tower.seen[3:] == [["k2"]]


def loss_of(features, factor=1.0):
    return factor * sum(
        (x.sin() * (i + 1)).sum() for f in features for i, x in enumerate(f.tensors())
    )


def test_gradients_of_several_uses_pass_the_tower_once():
    plain = Tower()
    (
        loss_of(plain([A, B])) + loss_of(plain([A]), 3.0) + loss_of(plain([B, C]), -0.5)
    ).backward()
    tower = Tower()
    cache = cache_of(tower)
    loss_of(cache.features([A, B], grad=True)).backward()
    cache.features([A, B])
    loss_of(cache.features([A], grad=True), 3.0).backward()
    loss_of(cache.features([B, C], grad=True), -0.5).backward()
    assert tower.weight.grad is None and tower.seen == [["k1", "k2"], ["k3"]]
    cache.backward()
    torch.testing.assert_close(tower.weight.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)
    before = tower.weight.grad.clone()
    cache.backward()
    assert torch.equal(tower.weight.grad, before), "nothing is sent twice"


def test_a_graph_serves_one_backward_and_its_features_stay():
    tower = Tower()
    cache = cache_of(tower)
    cache.features([A], grad=True)
    assert cache.rows_in_graphs() == 2 and cache.rows_in_graphs({"k1"}) == 0
    assert not cache.features([A])[0].merged.requires_grad
    loss_of(cache.features([A], grad=True)).backward()
    cache.backward()
    assert tower.seen == [["k1"]] and tower.weight.grad is not None
    assert cache.rows_in_graphs() == 0
    cache.features([A])
    assert tower.seen == [["k1"]]
    cache.features([A], grad=True)
    assert tower.seen == [["k1"], ["k1"]], "a graph that was used up is made again"


def test_features_without_a_graph_are_made_again_for_an_update():
    tower = Tower()
    cache = cache_of(tower)
    cache.features([A])
    loss_of(cache.features([A], grad=True)).backward()
    cache.backward()
    assert len(tower.seen) == 2 and tower.weight.grad.abs().sum() > 0


def test_a_tower_that_does_not_train_gets_no_graph():
    tower = Tower()
    tower.trains = False
    cache = cache_of(tower)
    with cache.step():
        assert not cache.sampling_features([A])[0].merged.requires_grad
        assert not cache.features([A], grad=True)[0].merged.requires_grad
        assert cache.rows_in_graphs() == 0 and tower.seen == [["k1"]]


HELD = 6 * 8 * 2
"""Bytes of the features of two rows."""


def test_a_call_outside_a_step_makes_room_and_graphs_never_leave():
    tower = Tower()
    cache = cache_of(tower, limit=3 * HELD)  # A and B fit, C does not
    for shown in (A, B, C):
        cache.features([shown])
    tower.seen.clear()
    assert cache.features([C, A])[0].merged.shape == (2, 3) and tower.seen == []
    cache.features([B])
    assert tower.seen == [["k2"]], "of the calls before, the latest made room for C"

    tower = Tower()
    tiny = cache_of(tower, limit=1)
    tiny.features([A, B], grad=True)
    loss_of(tiny.features([A], grad=True)).backward()
    tiny.backward()
    assert tower.seen == [["k1", "k2"]] and tower.weight.grad is not None


# When not all fits.

MANY = [item(n) for n in range(8)]


@pytest.mark.parametrize("kept", [0, 1, 4, 7, 8])
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_passes_of_a_step_read_only_what_does_not_fit(kept, at_once):
    """Each pass runs the tower over N - K of N pictures, and says so; keeping the newest would read all N."""
    tower = Tower()
    tower.trains = False
    cache = cache_of(tower, limit=kept * HELD)
    # A second step finds the same weights, but all of its pictures are new.
    for shown in (MANY, [item(100 + n) for n in range(8)]):
        before = Counter(cache.counters)
        tower.seen.clear()
        with cache.step():
            for _ in range(3):
                for at in range(0, 8, at_once):
                    cache.features(shown[at : at + at_once])
        assert sum(map(len, tower.seen)) == 8 + 2 * (8 - kept)
        assert cache.counters["vision/recomputed"] - before["vision/recomputed"] == 2 * (
            8 - kept
        )


def test_limits_come_from_the_budget_unless_they_are_set(tiny_folder):
    budget = Budget(0, 0, 0, features=2 * HELD, graphs=4, activations=0)
    tower = Tower()
    cache = VisionCache(tower, lambda prompt: prompt, budget=lambda: budget)
    with cache.step():
        cache.sampling_features(MANY[:2])
        assert cache.rows_in_graphs() == 4
        cache.sampling_features(MANY[2:3])
        assert cache.rows_in_graphs() == 0 and len(cache._entries) == 2
        cache.limit = 3 * HELD
        cache.features(MANY[:3])
        assert len(cache._entries) == 3
    policy = Policy.load(tiny_folder, device="cpu", dtype="float64")
    policy.memory = 2**30
    vision, budget = policy.vision, Budget.of(2**30)
    assert (vision._most("features"), vision._most("graphs")) == (
        budget.features,
        budget.graphs,
    )


def test_pictures_of_a_step_come_before_those_of_its_noisy_rollouts():
    tower = Tower()
    tower.trains = False
    cache = cache_of(tower, limit=4 * HELD)
    with cache.step():
        with cache.no_update():
            cache.sampling_features(MANY[4:])
        for _ in range(2):
            for shown in MANY[:4]:
                cache.features([shown])
    assert sum(map(len, tower.seen)) == 8 and not cache.counters["vision/recomputed"]


def test_features_of_frozen_weights_are_found_again_in_the_next_epoch():
    """Steps of two pictures go through eight, again and again, with room for four."""
    tower = Tower()
    tower.trains, tower.version = False, "frozen"
    cache = cache_of(tower, limit=4 * HELD)
    runs = []
    for _ in range(4):
        tower.seen.clear()
        for at in range(0, 8, 2):
            with cache.step():
                for _ in range(2):
                    cache.features(MANY[at : at + 2])
        runs.append(sum(map(len, tower.seen)))
    # Two of the places are needed by the step itself.
    assert runs[0] == 8 and all(run <= 8 - 2 for run in runs[1:])


def test_a_group_that_is_cut_runs_the_tower_once():
    """Parts of an update that follow each other and show the same picture share its graph."""
    plain, tower = Tower(), Tower()
    parts = [[A], [A], [B, C], [B], [A]]
    cache = cache_of(tower)
    for number, shown in enumerate(parts):
        loss_of(plain(shown), number + 1.0).backward()
        loss_of(cache.features(shown, grad=True), number + 1.0).backward()
        cache.end_part((*parts, [])[number + 1])
    assert tower.seen == [["k1"], ["k2", "k3"], ["k1"]] and cache.rows_in_graphs() == 0
    torch.testing.assert_close(tower.weight.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)
    assert cache.counters["vision/recomputed"] == 0, "outside a step each call is for itself"


def test_what_is_forgotten_goes_at_once():
    tower = Tower()
    encoded = {"one": [A, B], "two": [B, C]}
    cache = VisionCache(tower, lambda prompt: Shown(tuple(encoded[prompt.id])))
    one, two = (Prompt(name, (), (), "") for name in encoded)
    with cache.step():
        cache.sampling_features(cache.encoded(one).visual)
        cache.sampling_features(cache.encoded(two).visual)
        cache.forget([Prompt("two", (), (), "")])
        assert set(cache._encoded) == {"one", "two"}, "another prompt of the same name"
        cache.forget([two])
        assert set(cache._encoded) == {"one"}
        assert {key for _, key in cache._entries} == {"k1", "k2"}, "B is shown by both"
        loss_of(cache.features([A, B], grad=True)).backward()
        cache.forget([one])
        assert not cache._entries
    tower.trains, tower.version = False, "frozen"
    with cache.step():
        cache.features(cache.encoded(one).visual)
        cache.forget([one])
        assert len(cache._entries) == 2, "another epoch may ask for them"


def test_pictures_inside_answers_are_forgotten_with_their_prompt():
    tower = Tower()
    cache = VisionCache(tower, lambda prompt: Shown((A,)))
    one, two = (Prompt(name, (), (), "") for name in ("one", "two"))
    with cache.step():
        for prompt, inside in ((one, B), (two, B), (two, C)):
            cache.answered(prompt, [inside])
            cache.sampling_features([*cache.encoded(prompt).visual, inside])
        cache.forget([Prompt("two", (), (), "")])
        assert len(cache._entries) == 3, "another prompt of the same name"
        cache.forget([two])
        assert {key for _, key in cache._entries} == {"k1", "k2"}, (
            "an answer to the other shows B"
        )
        cache.forget([one])
        assert not cache._entries
        cache.answered(one, [B])
    assert not cache._answered


# The life of a step.


def test_a_step_shares_the_graph_of_the_rollout_and_finishes_the_backward():
    plain, tower = Tower(), Tower()
    (loss_of(plain([A])) + loss_of(plain([A]), 2.0)).backward()
    cache = cache_of(tower)
    with cache.step():
        with torch.no_grad():
            cache.sampling_features([A])
        for factor in (1.0, 2.0):
            loss_of(cache.features([A], grad=True), factor).backward()
            cache.end_part()
        assert tower.seen == [["k1"]] and tower.weight.grad is None
    torch.testing.assert_close(tower.weight.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)
    assert cache.rows_in_graphs() == 0


def test_outside_a_step_each_part_has_its_own_graph():
    tower = Tower()
    cache = cache_of(tower)
    cache.sampling_features([A])
    assert cache.rows_in_graphs() == 0
    for _ in range(2):
        loss_of(cache.features([A], grad=True)).backward()
        cache.end_part()
    assert tower.seen == [["k1"]] * 3 and tower.weight.grad is not None


def test_the_rollouts_graph_ends_with_its_weights():
    tower = Tower()
    cache = cache_of(tower)
    with cache.step():
        cache.sampling_features([A])
        loss_of(cache.features([A], grad=True)).backward()
        cache.backward()
        tower.version = "step 1"
        cache.stepped()
        for _ in range(2):
            loss_of(cache.features([A], grad=True)).backward()
            cache.end_part()
    assert tower.seen == [["k1"]] * 3


def test_features_of_frozen_weights_outlive_a_step():
    tower = Tower()
    tower.trains, tower.version = False, "frozen"
    cache = cache_of(tower)
    cache.features([A])
    cache.stepped()
    cache.features([A])
    assert tower.seen == [["k1"]]


def test_graphs_beyond_the_limit_are_all_given_up():
    tower = Tower()
    cache = cache_of(tower, graph_limit=5)
    with cache.step():
        cache.sampling_features([A])  # 2 rows
        assert cache.rows_in_graphs() == 2
        cache.sampling_features([B])  # 4 more
        assert cache.rows_in_graphs() == 0
        cache.sampling_features([C])
        assert cache.rows_in_graphs() == 0, "not taken up again within the step"
    with cache.step():
        cache.sampling_features([C])
        assert cache.rows_in_graphs() == 2


def prompt(answer):
    return Prompt("q", (), (), answer)


def test_prompts_are_encoded_once_per_step():
    cache, one = cache_of(Tower()), prompt("1")
    with cache.step():
        first = cache.encoded(one)
        assert cache.encoded(one) is first
        assert cache.encoded(prompt("2")) == ["2"], "the same id, another prompt"
        again = cache.encoded(one)
        with cache.no_update():
            assert cache.encoded(one) is again
            cache.encoded(Prompt("other", (), (), ""))
        assert cache.encoded(one) is again and set(cache._encoded) == {"q"}
    assert not cache._encoded


def test_no_update_keeps_no_graph_and_forgets_its_prompts():
    tower = Tower()
    cache = cache_of(tower)
    with cache.step():
        with cache.no_update():
            cache.sampling_features([A])
        assert cache.rows_in_graphs() == 0
        cache.sampling_features([B])
        assert cache.rows_in_graphs() == 4
    with cache.no_update():
        cache.encoded(prompt("1"))
        cache.saliency(A)
        cache.saliency(A)
        assert tower.seen[2:] == ["k1"]
    assert not cache._encoded and not cache._saliency


def test_an_error_leaves_nothing_behind():
    tower = Tower()
    cache = cache_of(tower)
    with pytest.raises(KeyError), cache.step():
        cache.encoded(prompt("1"))
        loss_of(cache.features([A], grad=True)).backward()
        raise KeyError
    assert tower.weight.grad is None and not cache._entries and not cache._encoded
    with cache.step():  # and the next one starts afresh
        cache.sampling_features([A])
        assert cache.rows_in_graphs() == 2


def test_steps_do_not_nest():
    cache = cache_of(Tower())
    with cache.step(), pytest.raises(RuntimeError, match="open already"), cache.step():
        pass


# The same through the real model.


def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


@dataclass(frozen=True)
class Same(Prompts):
    """Endless questions about few pictures."""

    pictures: int = 2
    size: int | None = None

    def __getitem__(self, index):
        shown = Drawn("lookup")[index % self.pictures]
        return Prompt(f"q{index}", shown.messages, shown.media, shown.answer)


def trainer(
    folder,
    prompts=Drawn("lookup"),
    freeze=(),
    papo=False,
    steps=4,
    rows_at_once=256,
    per_step=3,
    grpo=GRPO(),
    **run,
):
    policy = Policy.load(folder, device="cpu", dtype="float64", freeze=freeze)
    return Trainer(
        policy,
        prompts=prompts,
        rewards=Rewards(accuracy=pay, isolate=False),
        engine=HFEngine(policy, rows_at_once=rows_at_once),
        branches={"masked": VisualBranch(PatchMask(0.5, 8))} if papo else {},
        objectives=[PAPO()] if papo else [],
        sampling=Sampling(3, max_tokens=4),
        optim=Optim(lr=1e-3),
        grpo=grpo,
        run=Run(steps=steps, prompts_per_step=per_step, **run),
    )


def weights(box):
    return {name: p.detach().clone() for name, p in box.policy.named_parameters()}


def patches(box, first, count):
    """Patches of these prompts, each distinct picture once."""
    shown = [
        item
        for i in range(first, first + count)
        for item in box.policy.encode(box.supply.prompts[i]).visual
    ]
    return sum({item.key: len(item.values) for item in shown}.values())


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def folder(request, tiny_folder, tiny3_folder):
    return tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder


def steps_of(box, count=2):
    return [box.step(Now(n, 0.0, 0)) for n in range(1, count + 1)]


def test_rollout_scoring_and_update_share_one_run_of_the_tower(folder):
    box = trainer(folder)
    first, second = steps_of(box)
    assert first["patches/tower"] == patches(box, 0, 3) and second["patches/tower"] == patches(
        box, 3, 3
    )
    assert first["tokens/prefill"] == sum(
        len(box.policy.encode(box.supply.prompts[i]).ids) for i in range(3)
    )


def test_a_branch_costs_one_more_run_and_small_parts_cost_none(tiny_folder):
    whole, cut = (
        trainer(tiny_folder, papo=True),
        trainer(tiny_folder, papo=True, tokens_per_pass=35),
    )
    assert steps_of(whole, 1)[0]["patches/tower"] == 2 * patches(whole, 0, 3)
    found = steps_of(cut, 1)[0]
    assert found["patches/tower"] == 2 * patches(cut, 0, 3)
    assert found["tokens/update"] == found["tokens/prefill"] + 27, (
        "each group is cut into two parts, and its prompt is run once for both"
    )


@pytest.mark.parametrize("once", [True, False], ids=["prompt once", "prompt per slice"])
def test_cut_groups_run_the_tower_once_in_an_update_without_kept_graphs(
    tiny_folder, monkeypatch, once
):
    if not once:  # as where the weights are cut over several processes
        monkeypatch.setattr(OpenPrompts, "_is_exact", False)
    box = trainer(tiny_folder, tokens_per_pass=35)
    box.policy.vision.graph_limit = 0
    parts, end_part = [], box.policy.end_part
    monkeypatch.setattr(
        box.policy, "end_part", lambda *some: (parts.append(1), end_part(*some))
    )
    found = steps_of(box, 1)[0]
    assert len(parts) >= 6, "each of the three groups is cut"
    assert found["patches/tower"] == 2 * patches(box, 0, 3), "rollout and update"


def test_the_same_picture_in_several_prompts_is_seen_once(tiny_folder):
    box = trainer(tiny_folder, prompts=Same(2))
    found = steps_of(box, 1)[0]
    assert found["patches/tower"] == patches(box, 0, 2) < patches(trainer(tiny_folder), 0, 3)


@pytest.mark.parametrize("papo", [False, True], ids=["grpo", "papo"])
def test_retained_graphs_give_the_same_weights(folder, papo):
    kept, dropped = trainer(folder, papo=papo), trainer(folder, papo=papo)
    dropped.policy.vision.graph_limit = 0
    with_graph, without = steps_of(kept), steps_of(dropped)
    assert without[0]["patches/tower"] == with_graph[0]["patches/tower"] + patches(kept, 0, 3)
    start = weights(trainer(folder))
    for name, value in weights(dropped).items():
        torch.testing.assert_close(weights(kept)[name], value, rtol=1e-8, atol=1e-10)
        assert "visual" not in name or not torch.equal(value, start[name]), name


@pytest.mark.parametrize("freeze", [(), ("vision", "merger")], ids=["full", "frozen"])
def test_half_of_the_features_cost_half_of_the_passes(tiny_folder, freeze):
    """Rollout, reference and update of six pictures with room for three, one prompt per part."""
    grpo, count = GRPO(kl=0.1), 6
    box = trainer(
        tiny_folder,
        freeze=freeze,
        rows_at_once=3,
        tokens_per_pass=40,
        per_step=count,
        grpo=grpo,
    )
    one = patches(box, 0, 1)
    vision = box.policy.vision
    vision.graph_limit = 0
    shown = box.policy.encode(box.supply.prompts[0]).visual
    row = sum(x.numel() * x.element_size() for x in vision.features(shown)[0].tensors())
    vision.limit = 3 * row
    vision.clear()
    box.policy.counters.clear()
    found = steps_of(box, 1)[0]
    if freeze:  # one set of features serves all three passes
        passes = count + 3 + 3
    else:  # rollout, frozen reference, update; none of them has the features of another
        passes = 3 * count
    assert found["patches/tower"] == passes * one
    assert found.get("vision/recomputed", 0) == (6 if freeze else count)


def test_the_limit_counts_all_graphs_of_a_step(tiny_folder):
    """With one prompt per chunk, the second chunk's graph passes the limit: the first is given up as well."""
    box = trainer(tiny_folder, rows_at_once=3)
    config = box.policy.base.config.vision_config
    one = 40 * patches(box, 0, 1) * config.depth * config.hidden_size
    box.policy.vision.graph_limit = 3 * one
    assert steps_of(box, 1)[0]["patches/tower"] == patches(box, 0, 3)
    box = trainer(tiny_folder, rows_at_once=3)
    box.policy.vision.graph_limit = int(1.5 * one)
    found = steps_of(box, 1)[0]
    assert found["patches/tower"] == 2 * patches(box, 0, 3)
    assert box.policy.vision.rows_in_graphs() == 0


def test_several_updates_never_use_features_of_old_weights(tiny_folder):
    """The first update reads the rollout's pass, the others run the tower again with the weights of then."""
    box = trainer(tiny_folder, updates_per_step=3)
    found = steps_of(box, 1)[0]
    assert found["patches/tower"] == 3 * 36 + 2 * 36, (
        "three pictures in the rollout, two of them again"
    )
    assert box.policy.version == 3


def test_a_frozen_tower_is_remembered_over_the_steps(folder):
    box = trainer(folder, prompts=Same(4), freeze=("vision", "merger"))
    found = steps_of(box, 4)
    assert [f.get("patches/tower", 0) for f in found] == [
        patches(box, 0, 3),
        patches(box, 3, 1),
        0,
        0,
    ]
    assert box.policy.vision.rows_in_graphs() == 0


def test_a_step_in_plain_calls_runs_the_tower_once(folder):
    """Sampling, scoring and update inside one `step`: nothing about pictures is said beyond the block."""
    policy = Policy.load(folder, device="cpu", dtype="float64")
    prompts = [Drawn("lookup")[i] for i in range(2)]
    with policy.vision.step():
        answers = HFEngine(policy).generate(prompts, Sampling(2, max_tokens=3), Now(1, 0.0, 0))
        views = Views(policy, answers, {}, Now(1, 0.0, 0))
        groups = views.groups("raw", range(len(answers)))
        shape = (len(answers), max(len(a.tokens) for a in answers))
        live = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs(grad=True)}, shape)
        shown = sum(len(policy.encode(prompt).visual[0].values) for prompt in prompts)
        live["raw"].logp.sum().backward()
        tower = policy.base.model.visual.patch_embed.proj.weight
        assert tower.grad is None
    assert policy.counters["patches/tower"] == shown and tower.grad.abs().sum() > 0
