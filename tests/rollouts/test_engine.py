"""The in-process engine: log-probs equal training, seeds, truncation, stops, prefixes, removal of finished rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.model.packing import Group, collate
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.rollouts import next_token
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.next_token import drawn, nucleus, nucleus_by_sorting, truncated
from mmrl.rollouts.sampler import Answer, stop_string
from mmrl.types import Media, Now, Prompt, Role, Sampling

NOW = Now(step=3, progress=0.1, seed=7)


def picture(seed, height=32):
    rng = torch.Generator().manual_seed(seed)
    return Media(torch.randint(0, 256, (1, 3, height, 32), generator=rng, dtype=torch.uint8))


def question(seed, images=1, words=0):
    parts = [{"type": "image"}] * images + [
        {"type": "text", "text": "What is at row 1?" + " red" * words}
    ]
    return Prompt(
        f"q{seed}",
        [{"role": "user", "content": parts}],
        tuple(picture(seed + n) for n in range(images)),
    )


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policy(request, tiny_folder, tiny3_folder):
    return Policy.load(
        tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder,
        device="cpu",
        dtype="float32",
    )


PROMPTS = [question(1), question(2, images=2, words=3), question(3, images=0)]


def packed_logp(policy, rollouts):
    groups, width = [], max(len(r.tokens) for r in rollouts)
    for number in sorted({r.group for r in rollouts}):
        rows = [i for i, r in enumerate(rollouts) if r.group == number]
        encoded = policy.encode(rollouts[rows[0]].prompt)
        answers = tuple(rollouts[i].tokens for i in rows)
        groups.append(
            Group(
                encoded,
                encoded.visual,
                answers,
                tuple(rows),
                tuple(rollouts[i].temperature for i in rows),
            )
        )
    return score_packed(
        policy, {"raw": groups}, {"raw": ScoreOutputs()}, (len(rollouts), width)
    )["raw"].logp


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_sampler_logp_equals_training(policy, temperature):
    rollouts = HFEngine(policy).generate(PROMPTS, Sampling(4, temperature, max_tokens=9), NOW)
    logp = packed_logp(policy, rollouts)
    for i, r in enumerate(rollouts):
        torch.testing.assert_close(r.logp, logp[i, : len(r.tokens)], rtol=0, atol=1e-5)
    assert [r.group for r in rollouts] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(not set(r.tokens.tolist()) & set(policy.processing.banned_ids) for r in rollouts)


@pytest.mark.parametrize("cut", [{"top_p": 0.7}, {"top_k": 5}, {"min_p": 0.2}])
def test_truncated_draws_keep_the_log_probs_that_training_computes(policy, cut):
    sampling = Sampling(4, 0.8, max_tokens=9, **cut)
    rollouts = HFEngine(policy).generate(PROMPTS, sampling, NOW)
    logp = packed_logp(policy, rollouts)
    ratios = [
        (logp[i, : len(r.tokens)] - r.logp).exp()
        for i, r in enumerate(rollouts)
        if len(r.tokens)
    ]
    torch.testing.assert_close(
        torch.cat(ratios), torch.ones(sum(map(len, ratios))), rtol=0, atol=1e-4
    )


def test_greedy_equals_the_librarys_generate(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    (rollout,) = HFEngine(policy).generate([PROMPTS[0]], Sampling(1, 0.0, max_tokens=8), NOW)
    encoded = policy.encode(PROMPTS[0])
    (patches,) = encoded.visual
    out = policy.base.generate(
        input_ids=encoded.ids[None],
        attention_mask=torch.ones_like(encoded.ids[None]),
        mm_token_type_ids=encoded.types[None],
        pixel_values=patches.values,
        image_grid_thw=torch.tensor([patches.grid]),
        max_new_tokens=8,
        do_sample=False,
        suppress_tokens=sorted(policy.processing.banned_ids),
    )[0, len(encoded.ids) :]
    length = len(rollout.tokens)
    assert out[:length].tolist() == rollout.tokens.tolist()


def test_same_seed_same_answer_and_other_step_other_answer(policy):
    engine = HFEngine(policy)
    sampling = Sampling(4, 1.0, max_tokens=8)
    first, again = (
        engine.generate(PROMPTS, sampling, NOW),
        engine.generate(PROMPTS, sampling, NOW),
    )
    assert all(
        torch.equal(a.tokens, b.tokens) and torch.equal(a.logp, b.logp)
        for a, b in zip(first, again, strict=True)
    )
    other = engine.generate(PROMPTS, sampling, replace(NOW, step=4))
    assert any(not torch.equal(a.tokens, b.tokens) for a, b in zip(first, other, strict=True))
    assert len({tuple(r.tokens.tolist()) for r in first[:4]}) > 1


def test_a_prompt_that_is_there_twice_gets_other_answers(policy):
    sampling = Sampling(3, 1.0, max_tokens=8)
    alone = HFEngine(policy).generate([PROMPTS[2]], sampling, NOW)
    twice = HFEngine(policy).generate([PROMPTS[2], PROMPTS[2]], sampling, NOW)
    answers = [tuple(r.tokens.tolist()) for r in twice]
    assert answers[:3] == [tuple(r.tokens.tolist()) for r in alone] and len(set(answers)) > len(
        set(answers[:3])
    )
    assert [r.group for r in twice] == [0, 0, 0, 1, 1, 1]


def test_batch_shape_hardly_matters(policy):
    sampling = Sampling(4, 1.0, max_tokens=8)
    whole = HFEngine(policy).generate(PROMPTS, sampling, NOW)
    single = [r for p in PROMPTS for r in HFEngine(policy).generate([p], sampling, NOW)]
    chunked = HFEngine(policy, rows_at_once=5).generate(PROMPTS, sampling, NOW)
    for other in (single, chunked):
        same = [
            (a, b) for a, b in zip(whole, other, strict=True) if torch.equal(a.tokens, b.tokens)
        ]
        assert len(same) >= len(whole) - 1
        for a, b in same:
            torch.testing.assert_close(a.logp, b.logp, rtol=0, atol=1e-5)


def test_finished_answers_leave_and_prompts_run_once(policy):
    policy.counters.clear()
    rollouts = HFEngine(policy).generate(PROMPTS, Sampling(6, 1.5, max_tokens=70), NOW)
    lengths = [len(r.tokens) for r in rollouts]
    assert {r.stop for r in rollouts} <= {"eos", "length"} and min(lengths) < max(lengths)
    assert policy.counters["tokens/prefill"] == sum(len(policy.encode(p).ids) for p in PROMPTS)
    assert policy.counters["tokens/decode"] == sum(n - 1 for n in lengths)
    for r in rollouts:
        assert (r.tokens[-1].item() in policy.processing.stop_ids) == (r.stop == "eos")


def test_forced_prefix_is_a_hint_and_scored(policy):
    prefix = policy.processing.encode_answer("<answer> red")[:-1]
    rollouts = HFEngine(policy).generate(
        PROMPTS, Sampling(2, 1.0, max_tokens=9), NOW, prefixes=[prefix] * 3
    )
    logp = packed_logp(policy, rollouts)
    for i, r in enumerate(rollouts):
        assert r.tokens[: len(prefix)].tolist() == prefix.tolist()
        assert r.roles.tolist() == [int(Role.HINT)] * len(prefix) + [int(Role.POLICY)] * (
            len(r.tokens) - len(prefix)
        )
        torch.testing.assert_close(r.logp, logp[i, : len(r.tokens)], rtol=0, atol=1e-5)


def teststop_string(policy):
    free = HFEngine(policy).generate(PROMPTS[:1], Sampling(1, 1.0, max_tokens=30), NOW)[0]
    word = policy.processing.decode(free.tokens[4:5])
    stopped = HFEngine(policy).generate(
        PROMPTS[:1], Sampling(1, 1.0, max_tokens=30, stop=(word,)), NOW
    )[0]
    assert stopped.stop == word and word in stopped.text and len(stopped.tokens) <= 5


PREFIX = "<answer> red"


@pytest.mark.parametrize("stop", ["red", "ans", "<answer>", PREFIX, ">", "answer> r"])
def test_a_stop_string_inside_a_forced_prefix_ends_nothing(policy, stop):
    prefix = policy.processing.encode_answer(PREFIX)[:-1]
    sampling = Sampling(3, 1.0, max_tokens=14)
    engine = HFEngine(policy)
    free = engine.generate(PROMPTS[:1], sampling, NOW, prefixes=[prefix])
    stopped = engine.generate(
        PROMPTS[:1], replace(sampling, stop=(stop,)), NOW, prefixes=[prefix]
    )
    for a, b in zip(free, stopped, strict=True):
        # The string counts from where it reaches beyond the prefix, as a plain search over the text says.
        place = a.text.find(stop, len(PREFIX) - len(stop) + 1)
        assert len(b.tokens) > len(prefix)
        assert torch.equal(a.tokens[: len(b.tokens)], b.tokens)
        assert (b.stop == stop) == (place >= 0)


def test_a_stop_string_that_begins_in_the_prefix_and_ends_beyond_it_counts(policy):
    prefix = policy.processing.encode_answer(PREFIX)[:-1]
    sampling = Sampling(1, 1.0, max_tokens=14)
    engine = HFEngine(policy)
    free = engine.generate(PROMPTS[:1], sampling, NOW, prefixes=[prefix])[0]
    first = policy.processing.spell(free.tokens[len(prefix) : len(prefix) + 1].tolist())
    assert first and "\ufffd" not in first
    across = f"red{first}"
    stopped = engine.generate(
        PROMPTS[:1], replace(sampling, stop=(across,)), NOW, prefixes=[prefix]
    )[0]
    assert stopped.stop == across and len(stopped.tokens) == len(prefix) + 1


def test_a_prefix_that_ends_inside_a_character(policy):
    whole = policy.processing.encode_answer("é")[:-1]
    assert len(whole) == 2
    answer = Answer(0, [int(whole[0])], tokens=whole.tolist())
    assert stop_string(policy, answer, ("é",)) == "é"
    answer = Answer(0, whole.tolist(), tokens=[*whole.tolist(), *whole.tolist()[:1]])
    assert stop_string(policy, answer, ("é",)) == ""


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_double_precision_is_double_throughout(tiny_folder, tiny3_folder, temperature):
    for folder in (tiny_folder, tiny3_folder):
        policy = Policy.load(folder, device="cpu", dtype="float64")
        rollouts = HFEngine(policy).generate(
            PROMPTS, Sampling(2, temperature, max_tokens=9), NOW
        )
        logp = packed_logp(policy, rollouts)
        assert logp.dtype == torch.float64
        for i, r in enumerate(rollouts):
            assert r.logp is not None and r.logp.dtype == torch.float64
            # The norms of the layers compute in single precision in the library: the same on both paths.
            torch.testing.assert_close(r.logp, logp[i, : len(r.tokens)], rtol=0, atol=1e-10)
        paid = [replace(r, reward=0.0) for r in rollouts]
        assert collate(paid).scores["sampler"].logp.dtype == torch.float64


def test_a_sliding_window_is_refused_for_sampling(sliding_folder):
    policy = Policy.load(sliding_folder, device="cpu", dtype="float32", shared=False)
    with pytest.raises(ValueError, match=r"sliding_attention.* sampling does not support"):
        HFEngine(policy)


def test_per_position_temperature(policy):
    cold = HFEngine(policy).generate(
        PROMPTS, Sampling(3, 1.0, max_tokens=6), NOW, temperature_at=lambda t: 1e-4
    )
    greedy = HFEngine(policy).generate(PROMPTS, Sampling(3, 0.0, max_tokens=6), NOW)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(cold, greedy, strict=True))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.05, 1.0),
    st.integers(0, 12),
    st.floats(0.0, 0.9),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_only_allowed_ids_are_drawn(seed, top_p, top_k, min_p, uniform):
    rng = torch.Generator().manual_seed(seed)
    logp = (4 * torch.randn(3, 11, generator=rng)).log_softmax(-1)
    banned = torch.tensor([2, 5])
    prob = truncated(logp, Sampling(top_p=top_p, top_k=top_k, min_p=min_p), banned)
    tokens = drawn(prob, torch.full((3,), uniform))
    assert prob[:, banned].sum() == 0
    for row, token in enumerate(tokens.tolist()):
        assert prob[row, token] > 0
        allowed = logp[row].exp().index_fill(0, banned, 0.0)
        assert prob[row].argmax() == allowed.argmax()
        if top_k:
            assert allowed[token] >= allowed.topk(min(top_k, 9)).values[-1]
        better = allowed[allowed > allowed[token]].sum()
        assert better < top_p * allowed.sum() + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.01, 1.0, exclude_max=True),
    st.sampled_from([0.0, 0.5, 4.0, 30.0]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_the_search_for_a_nucleus_finds_the_set_that_sorting_finds(
    seed, top_p, spread, dtype, coarse
):
    """Flat and sharp distributions, with and without many equal weights, zeros, and sums below 1."""
    rng = torch.Generator().manual_seed(seed)
    prob = (spread * torch.randn(4, 300, generator=rng, dtype=dtype)).softmax(-1)
    if coarse:  # powers of two: sums are exact, and most weights are equal
        prob = torch.randint(-1, 4, (4, 300), generator=rng).to(dtype)
        prob = torch.where(prob < 0, 0.0, 2.0 ** -(prob + 9)).to(dtype)
        top_p = round(top_p * 64) / 64
    mine, right = nucleus(prob, top_p), nucleus_by_sorting(prob.double(), top_p)
    if coarse:
        assert torch.equal(mine, right)
    # Where rounding of a sum decides about the last one, that one may differ, or several that are lost in the rounding.
    differ = mine != right
    lost = (prob.double() * differ).sum(-1) <= 1e-14
    assert ((differ.sum(-1) <= 1) | lost).all()
    assert mine.any(-1).all() and (prob[mine].min() > 0 or coarse)


def test_large_vocabularies_take_the_search(monkeypatch):
    logp = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    sampling, banned = Sampling(top_p=0.7, top_k=20), torch.tensor([1])
    sorting = truncated(logp, sampling, banned)
    monkeypatch.setattr(next_token, "SORTED", 10)
    assert torch.equal(truncated(logp, sampling, banned), sorting)


def test_draws_follow_the_distribution():
    prob = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(20_000, 4)
    tokens = drawn(prob, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    share = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(share, prob[0], rtol=0, atol=0.015)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_rows_of_the_head_beyond_the_tokenizer_are_never_drawn(tiny_folder, temperature):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    known = len(policy.processing.tokenizer)
    torch.manual_seed(0)
    policy.base.resize_token_embeddings(2 * known, mean_resizing=False)
    with torch.no_grad():
        policy.base.lm_head.weight[known:] *= (
            3  # without the ban most draws, and the likeliest, fall here
        )
    sampling = Sampling(4, temperature, max_tokens=9)
    rollouts = HFEngine(policy).generate(PROMPTS, sampling, NOW)
    assert max(int(r.tokens.max()) for r in rollouts) < known
    logp = packed_logp(policy, rollouts)
    for i, r in enumerate(rollouts):
        torch.testing.assert_close(r.logp, logp[i, : len(r.tokens)], rtol=0, atol=1e-5)
    assert torch.cat([r.logp for r in rollouts]).mean() < -torch.tensor(float(known)).log(), (
        "log-probs over all rows"
    )
