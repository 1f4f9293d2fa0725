"""A look without visual tokens: equal to forbidding every token to look at one, shorter, and without the tower."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import log_softmax

from mmrl import Run, Sampling, Trainer
from mmrl.data.drawn.drawn import Drawn
from mmrl.model.branches import Views, render_branch
from mmrl.model.packing import collate
from mmrl.model.reference_scores import score_repeated
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.model.unseen import UNSEEN, blind
from mmrl.model.vision_tower import insert_features
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask, Unseen
from mmrl.perception.perturb import ViewChain
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.noisy import NoisyRollout
from mmrl.training.tracking import read_metrics
from mmrl.types import AsIs, Now, VisualBranch
from tests.model.test_answer_media import clip, fan, joined, result, said, tree_rollouts
from tests.model.test_answer_trees import CASES, assert_alike
from tests.model.test_open_prompts import load, picture, prompt

torch.set_num_threads(1)
NOW = Now(step=2, progress=0.1, seed=3)
BLIND = VisualBranch(Unseen(), grad=True)
WANTED = {
    "raw": ScoreOutputs(grad=True),
    "blind": ScoreOutputs(entropy=True, divergence="forward", grad=True),
}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request, tiny_folder, tiny3_folder):
    return tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder


def learned(policy, batch, parts, score, branches, wanted=WANTED):
    """Scores of each part, and all gradients of a loss that reads the branch and its divergence."""
    policy.model.zero_grad(set_to_none=True)
    policy.vision.clear()
    policy.counters.clear()
    views = Views(policy, batch.rollouts, branches, NOW)
    width = batch.tokens.shape[1]
    weight = torch.linspace(-1.0, 1.5, len(batch) * width).view(len(batch), width)
    kept = []
    for part in parts:
        rows = part.tolist()
        seen = {name: views.groups(name, rows) for name in wanted}
        scores = score(policy, seen, wanted, (len(rows), width))["blind"]
        # What stands behind a visual token has nobody to predict it, and nobody wrote it.
        on = batch.mask[part].to(scores.logp)
        terms = {"logp": scores.logp, "entropy": scores.entropy, "gap": scores.divergence}
        terms = {name: on * term for name, term in terms.items() if term is not None}
        sum((weight[part] * term).sum() for term in terms.values()).backward()
        kept.append({name: term.detach() for name, term in terms.items()})
        policy.end_part()
    policy.vision.backward()
    grads = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return kept, grads


def answers(policy, seed=0):
    """Trees with pictures in prompt and nodes, and answers that show a clip at their beginning or twice."""
    rng = torch.Generator().manual_seed(seed)
    found = tree_rollouts(policy, seed)
    first, second = clip(seed), picture(seed + 50, 32, 48)
    shown = [result(policy, first), said(policy, 3, rng), result(policy, second)]
    question = prompt(7, 2)
    for pieces, media in (
        ([*shown, said(policy, 2, rng)], (first, second)),
        ([said(policy, 4, rng)], ()),
    ):
        found.append(joined(policy, question, 9, pieces, media))
    return collate(found)


def masked_logp(policy, rollout):
    """Log-probs of an answer's tokens by the stock model where no token may look at a visual one but itself."""
    views = Views(policy, [rollout], {}, NOW)
    (group,) = views.groups("raw", [0])
    encoded, inside, base = group.encoded, group.within[0], policy.base
    ids = torch.cat([encoded.ids, rollout.tokens])
    after = torch.arange(len(rollout.tokens)).expand(3, -1)
    slots, visual = encoded.slots, group.visual
    if inside is not None:
        after, visual = inside.positions, visual + inside.visual
        slots = slots + tuple(slot + len(encoded.ids) for slot in inside.slots)
    positions = torch.cat([encoded.positions, after + encoded.next_position], 1)
    features = policy.vision.tower(visual)
    rows, deepstack = insert_features(
        base.get_input_embeddings()(ids), torch.cat(slots), features
    )
    hidden = torch.zeros(len(ids), dtype=torch.bool)
    hidden[torch.cat(slots)] = True
    count = len(ids)
    sees = torch.ones(count, count, dtype=torch.bool).tril() & ~hidden[None]
    sees |= torch.eye(count, dtype=torch.bool)
    mask = torch.zeros(count, count, dtype=rows.dtype).masked_fill(~sees, float("-inf"))
    out = policy.text_model(
        inputs_embeds=rows[None],
        position_ids=policy.family.position_ids(positions),
        attention_mask=mask[None, None],
        use_cache=False,
        **deepstack,
    ).last_hidden_state[0]
    logits = base.lm_head(out[len(encoded.ids) - 1 : -1])
    return log_softmax(logits, -1).gather(1, rollout.tokens[:, None])[:, 0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_is_the_stock_model_that_may_not_look_at_visual_tokens(folder, dtype):
    """Log-probs and every gradient; none reaches the tower."""
    value, gradient = {"float64": (1e-9, 1e-6), "float32": (2e-5, 1e-4)}[dtype]
    policy = load(folder, dtype)
    batch = answers(policy)
    wanted = {"blind": ScoreOutputs(grad=True)}
    whole = [torch.arange(len(batch))]
    (found,), grads = learned(policy, batch, whole, score_packed, {"blind": BLIND}, wanted)
    stock = load(folder, dtype, shared=False)
    width = batch.tokens.shape[1]
    weight = torch.linspace(-1.0, 1.5, len(batch) * width).view(len(batch), width)
    expected = torch.zeros_like(found["logp"])
    for row, rollout in enumerate(batch.rollouts):
        logp = masked_logp(stock, rollout)
        on = batch.mask[row, : len(logp)]
        (weight[row, : len(logp)][on] * logp[on]).sum().backward()
        expected[row, : len(logp)][on] = logp.detach()[on]
    right = {n: p.grad for n, p in stock.named_parameters() if p.grad is not None}
    seen = {name: grad for name, grad in right.items() if grad.abs().max() > 0}
    assert not any("visual" in name for name in seen)
    assert not any("visual" in name for name in grads)
    assert policy.counters["patches/tower"] == 0
    assert_alike(([found], grads), ([{"logp": expected}], seen), value, gradient)


@pytest.mark.parametrize("case", ["fp64", "adapters"])
def test_rows_of_many_answers_and_slices_are_answers_apart(folder, case):
    """Scores, the exact divergence from the real picture and every gradient, also with limbs and small budgets."""
    dtype, set_up, value, gradient = CASES[case]
    policy = load(folder, dtype, **set_up)
    batch = answers(policy)
    whole, branches = [torch.arange(len(batch))], {"blind": BLIND}
    expected = learned(policy, batch, whole, score_repeated, branches)
    found = learned(policy, batch, whole, score_packed, branches)
    assert_alike(found, expected, value, gradient)
    wide = collate(fan(policy, 1))
    one = learned(policy, wide, [torch.arange(len(wide))], score_packed, branches)
    fed = policy.counters["tokens/update"]
    parts = policy.prompts.parts(wide, len(wide.rollouts[0].prompt_ids) + 20)
    assert len(parts) > 1
    several = learned(policy, wide, parts, score_packed, branches)
    joint = [{k: torch.cat([piece[k] for piece in several[0]]) for k in several[0][0]}]
    order = torch.argsort(torch.cat(parts))
    # Of parts the weights are theirs, so only numbers are compared here.
    for name, right in one[0][0].items():
        assert (joint[0][name][order] - right).abs().max() <= value, name
    assert policy.counters["tokens/update"] == fed


def test_the_row_is_shorter_by_its_visual_tokens_and_nobody_asks_the_tower(folder):
    policy = load(folder, "float64")
    batch = answers(policy)
    views = Views(policy, batch.rollouts, {"blind": BLIND}, NOW)
    rows = range(len(batch))
    for raw, seen in zip(views.groups("raw", rows), views.groups("blind", rows), strict=True):
        visual = sum(map(len, raw.encoded.slots))
        assert len(seen.encoded.ids) == len(raw.encoded.ids) - visual
        assert seen.encoded.next_position == raw.encoded.next_position
        assert blind(seen.encoded) is seen.encoded and seen.encoded.variant == UNSEEN
        assert seen.encoded.original is raw.encoded
        for one, whole in zip(seen.within, raw.within, strict=True):
            # What is scored behind an answer stands where it stood.
            assert (one is None) == (whole is None)
            assert one is None or one.begins[-1] == whole.begins[-1]
        for answer, columns, whole in zip(seen.answers, seen.columns, raw.answers, strict=True):
            assert torch.equal(whole[columns], answer)
    assert all(not views.shown("blind", row) for row in rows)
    before = policy.counters["patches/tower"]
    asked = {"blind": ScoreOutputs(entropy=True)}
    shape = batch.tokens.shape
    scores = score_packed(policy, {"blind": views.groups("blind", rows)}, asked, shape)
    assert policy.counters["patches/tower"] == before
    visual = torch.isin(
        batch.tokens,
        torch.tensor([*policy.family.placeholder_ids(policy.base.config).values()]),
    )
    assert visual.any() and (scores["blind"].logp[visual] == 0).all()
    assert (scores["blind"].logp[batch.mask] != 0).all()


def test_a_question_without_pictures_is_the_same_group(folder):
    policy = load(folder, "float64")
    rng = torch.Generator().manual_seed(1)
    batch = collate([joined(policy, prompt(3, 0), 0, [said(policy, 4, rng)])])
    views = Views(policy, batch.rollouts, {"blind": BLIND}, NOW)
    (raw,), (seen,) = views.groups("raw", [0]), views.groups("blind", [0])
    assert raw == replace(seen, inside=raw.inside) and seen.encoded is raw.encoded


def test_nothing_is_sampled_under_it(folder):
    policy = load(folder, "float64")
    with pytest.raises(
        ValueError, match=r"'blind' shows nothing .*not sampled.*a row that has none"
    ):
        render_branch(policy, prompt(1, 1), "blind", BLIND, NOW)


@dataclass(frozen=True)
class Muted:
    """The question without its words."""

    more: bool = False

    def __call__(self, asked):
        shown = [{"type": "image"} for _ in asked.media]
        media = asked.media[1:] if self.more else asked.media
        return replace(asked, messages=[{"role": "user", "content": shown}], media=media)


def test_a_branch_asks_in_other_words_with_the_same_pictures(folder):
    """Equal to asking that question, with a part of the answers' prompts open, and without a run of the tower more."""
    policy = load(folder, "float64")
    muted = VisualBranch(reworded=Muted(), grad=True)
    assert isinstance(muted.view, AsIs)
    rng = torch.Generator().manual_seed(4)
    question = prompt(5, 2)
    rollouts = [joined(policy, question, 0, [said(policy, n, rng)]) for n in (3, 6, 5)]
    batch, other = (
        collate(rollouts),
        collate([replace(one, prompt=Muted()(question)) for one in rollouts]),
    )
    wanted = {"raw": ScoreOutputs(grad=True), "blind": ScoreOutputs(entropy=True, grad=True)}
    whole = [torch.arange(3)]
    found = learned(policy, batch, whole, score_packed, {"blind": muted}, wanted)
    runs = policy.counters["patches/tower"]
    right = learned(policy, other, whole, score_packed, {"blind": VisualBranch()}, wanted)
    assert_alike(found, right, 1e-9, 1e-6)
    assert runs == sum(len(one.pixels) for one in policy.encode(question).visual)
    assert any("visual" in name for name in found[1])
    parts = policy.prompts.parts(batch, len(rollouts[0].prompt_ids) + 7)
    assert len(parts) > 1
    sliced = learned(policy, batch, parts, score_packed, {"blind": muted}, wanted)
    together = torch.cat([piece["logp"] for piece in sliced[0]])
    assert (together - right[0][0]["logp"]).abs().max() < 1e-9
    views = Views(policy, rollouts, {"blind": VisualBranch(reworded=Muted(True))}, NOW)
    with pytest.raises(ValueError, match=r"asks prompt .* with 1 media instead of its own 2"):
        views.groups("blind", [0])


def odd(rollout):
    return float(rollout.tokens[0] % 2)


def test_papo_trains_with_it_and_both_kinds_of_branches_are_refused_for_sampling(
    folder, tmp_path
):
    policy = load(folder, "float32")

    def trainer(branch, rollout=group_rollout):
        return Trainer(
            policy,
            prompts=Drawn("lookup", cells=2, size_px=32),
            rewards=Rewards(accuracy=odd, isolate=False),
            objectives=[PAPO(gamma=0.01)],
            branches={"masked": branch},
            rollout=rollout,
            sampling=Sampling(group_size=2, max_tokens=4),
            run=Run(output=tmp_path / "run", steps=1, prompts_per_step=2),
        )

    trainer(VisualBranch(Unseen(), grad=True)).fit()
    assert read_metrics(tmp_path / "run")[-1]["branch/masked/kl"] > 0
    for branch, why in (
        (VisualBranch(Unseen()), "shows nothing"),
        (VisualBranch(reworded=Muted()), "asks in other words"),
    ):
        noisy = NoisyRollout(policy, branch, "noisy")
        with pytest.raises(ValueError, match=rf"'noisy', which {why}.*only score"):
            trainer(VisualBranch(Unseen()), noisy)
    with pytest.raises(ValueError, match=r"views\[1\] is Unseen.*use it alone"):
        ViewChain((PatchMask(), Unseen()))
