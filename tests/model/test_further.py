"""What is scored besides answers: packed against row by row, in slices, with gradients, without a trace elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.model.branches import Views
from mmrl.model.packing import collate
from mmrl.model.reference_scores import score_repeated
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.types import Now
from tests.model.test_open_prompts import rollouts_of
from tests.model.test_policy import groups_of, load, noisy, prompt

torch.set_num_threads(1)
SLOTS = (5, 77)
ALL = ScoreOutputs(
    entropy=True,
    grad=True,
    vocabulary_mean=True,
    top=3,
    slot=SLOTS,
    suffix=True,
    words=True,
    states=True,
)
DIFFERENTIATED = ("logp", "entropy", "vocabulary_mean", "slot")


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policy(request, tiny_folder, tiny3_folder):
    return load(tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder)


@pytest.fixture(scope="module")
def hybrid(tiny35_folder):
    return load(tiny35_folder)


def asked_of(policy, groups, questions):
    """The same groups with suffixes of 0, 1, 2, … tokens and the words of their prompts."""
    found, length = [], 0
    for group, question in zip(groups, questions, strict=True):
        suffixes = []
        for _ in group.answers:
            suffixes.append(torch.arange(70, 70 + length % 4))
            length += 1
        words = policy.processing.words(question, group.encoded)
        # Every second answer ends with something that the policy did not write.
        ends = tuple(len(answer) - row % 2 for row, answer in enumerate(group.answers))
        ends = tuple(max(end, 0) for end in ends)
        found.append(replace(group, suffixes=tuple(suffixes), ends=ends, words=words))
    return found


def some(policy, lengths=((3, 0, 1), (5,), (2, 4)), temperature=0.7):
    questions = [prompt(["image"], 1), prompt([], 2), prompt(["video", "image"], 3)]
    questions = questions[: len(lengths)]
    groups, shape = groups_of(policy, questions, lengths, temperature=temperature)
    return asked_of(policy, groups, questions), shape


def learned(policy, run, groups, shape, wanted=ALL, read=DIFFERENTIATED):
    policy.model.zero_grad(set_to_none=True)
    policy.vision.clear()
    scores = run(policy, {"raw": groups}, {"raw": wanted}, shape)["raw"]
    total = 0.0
    for name in read:
        numbers = getattr(scores, name)
        total = total + (torch.linspace(-1, 2, numbers.numel()) * numbers.flatten()).sum()
    total.backward()
    policy.vision.backward()
    return scores, {
        n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None
    }


def assert_same(found, expected, logp=1e-7, gradient=1e-6):
    present = expected[0].present()
    assert set(found[0].present()) == set(present)
    for name, right in present.items():
        torch.testing.assert_close(
            getattr(found[0], name).detach(), right.detach(), rtol=0, atol=logp, msg=name
        )
    assert set(found[1]) == set(expected[1])
    for name, right in expected[1].items():
        gap = (found[1][name] - right).norm() / right.norm().clamp_min(1e-9)
        assert gap <= gradient, f"{name}: {gap}"


def test_packed_rows_say_what_rows_of_their_own_say(policy):
    groups, shape = some(policy)
    found = learned(policy, score_packed, groups, shape)
    assert_same(found, learned(policy, score_repeated, groups, shape))
    scores = found[0]
    for name in ("top_logp", "suffix", "words", "states"):
        assert not getattr(scores, name).requires_grad, name
    assert scores.suffix_mask.sum(1).tolist() == [0, 1, 2, 3, 0, 1]


def test_layers_with_a_state_say_it_too(hybrid):
    groups, shape = some(hybrid, ((3, 0, 1),))
    found = learned(hybrid, score_packed, groups, shape)
    # Its kernels keep their state in single precision.
    assert_same(found, learned(hybrid, score_repeated, groups, shape), 1e-5, 1e-4)


@pytest.mark.parametrize("name", DIFFERENTIATED[2:])
def test_each_gradient_alone(policy, name):
    groups, shape = some(policy, ((3, 0, 2),))
    found = learned(policy, score_packed, groups, shape, read=(name,))
    assert_same(found, learned(policy, score_repeated, groups, shape, read=(name,)))


def test_a_compared_view_says_it_beside_its_divergence(policy):
    groups, shape = some(policy, ((3, 0, 1),))
    wanted = {"raw": ScoreOutputs(grad=True), "noisy": replace(ALL, divergence="forward")}
    views = {"raw": groups, "noisy": noisy(groups)}
    found = score_packed(policy, views, wanted, shape)["noisy"].present()
    expected = score_repeated(policy, views, wanted, shape)["noisy"].present()
    assert set(found) == set(expected) and "divergence" in found
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right, rtol=0, atol=1e-9, msg=name)


def test_a_suffix_counts_in_the_budget_of_a_pass(policy):
    batch = collate(rollouts_of(policy, [[5, 5, 5, 5]]))
    prompt = len(batch.rollouts[0].prompt_ids)

    def cut(budget, behind=()):
        return [len(part) for part in policy.prompts.parts(batch, prompt + budget, behind)]

    assert cut(16) == [4] and cut(16, [2] * 4) == [2, 2], "four tokens of each answer are fed"
    assert cut(24, [2] * 4) == [4] and cut(23, [0, 2, 2, 4]) == [3, 1]
    policy.prompts.clear()


def test_slices_of_a_wide_group_say_it_and_run_the_prompt_once(policy):
    batch = collate(rollouts_of(policy, [[5, 1, 0, 7]]))
    question = batch.rollouts[0].prompt
    suffix = torch.tensor([70, 71])

    def scored(budget):
        policy.model.zero_grad(set_to_none=True)
        policy.vision.clear()
        policy.counters.clear()
        parts = policy.prompts.parts(batch, budget)
        pieces = {}
        for part in parts:
            views = Views(policy, batch.rollouts, {}, Now(0, 0.0))
            groups = views.groups("raw", part.tolist(), lambda _: suffix, words=True)
            shape = (len(part), batch.tokens.shape[1])
            scores = score_packed(policy, {"raw": groups}, {"raw": ALL}, shape)["raw"]
            weight = 1.0 + part.to(scores.slot)
            loss = (weight * (scores.slot.sum(1) + scores.vocabulary_mean.sum(1))).sum()
            loss.backward()
            policy.end_part()
            for name, numbers in scores.present().items():
                pieces.setdefault(name, {}).update(zip(part.tolist(), numbers, strict=True))
        policy.vision.backward()
        grads = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        rows = {
            name: torch.stack([of[row] for row in sorted(of)]) for name, of in pieces.items()
        }
        return len(parts), rows, grads, policy.counters["tokens/update"]

    whole, sliced = scored(10_000), scored(1)
    assert (whole[0], sliced[0]) == (1, 4)
    assert whole[3] == sliced[3], "the prompt went through the model more than once"
    for name, right in whole[1].items():
        torch.testing.assert_close(
            sliced[1][name].detach(), right.detach(), rtol=0, atol=1e-9, msg=name
        )
    for name, right in whole[2].items():
        assert (sliced[2][name] - right).norm() <= 1e-7 * right.norm().clamp_min(1e-9), name
    assert question.messages  # the words below are of this one
    assert int(whole[1]["words_mask"].sum(1)[0]) == len(
        policy.processing.words(question, policy.encode(question))
    )


def test_who_does_not_ask_gets_the_same_bits(policy):
    groups, shape = some(policy)
    plain = ScoreOutputs(entropy=True, grad=True)
    bare = [replace(group, suffixes=(), words=None) for group in groups]
    wanted = learned(policy, score_packed, bare, shape, plain, ("logp", "entropy"))
    found = learned(policy, score_packed, groups, shape, plain, ("logp", "entropy"))
    assert set(found[0].present()) == {"logp", "entropy"}
    assert torch.equal(found[0].logp, wanted[0].logp)
    assert all(torch.equal(found[1][name], right) for name, right in wanted[1].items())


def test_the_state_is_that_of_the_token_itself(policy):
    groups, shape = some(policy, ((4,),))
    wanted = ScoreOutputs(states=True)
    scores = score_packed(policy, {"raw": groups}, {"raw": wanted}, shape)["raw"]
    width = policy.base.config.get_text_config().hidden_size
    assert scores.states.shape == (1, 4, width)
    # The state of the first token predicts the second.
    with torch.no_grad():
        logits = policy.base.lm_head(scores.states[0, 0]) / 0.7
    expected = logits.log_softmax(-1)[groups[0].answers[0][1]]
    torch.testing.assert_close(scores.logp[0, 1], expected)


def test_ids_that_pad_the_vocabulary_are_no_part_of_the_mean(tiny_folder):
    policy = load(tiny_folder)
    groups, shape = some(policy, ((3,),))
    wanted = ScoreOutputs(vocabulary_mean=True)
    size = policy.head.weight.shape[0]
    policy.processing.real_ids[size // 2 :] = False
    found = score_packed(policy, {"raw": groups}, {"raw": wanted}, shape)["raw"]
    with torch.no_grad():
        policy.head.weight[size // 2 :] += 3.0  # changes the normaliser alone
    policy.vision.clear()
    again = score_packed(policy, {"raw": groups}, {"raw": wanted}, shape)["raw"]
    gap = found.vocabulary_mean - again.vocabulary_mean
    assert gap.abs().min() > 0
    if policy.head is not policy.table:  # else the embedding moved too
        lse = (found.logp - again.logp)[groups[0].answers[0][None] < size // 2]
        torch.testing.assert_close(gap[0, : len(lse)], lse)


WRONG = {
    "<|image_pad|>": "stands for pictures",
    "<|vision_start|>": "stands for pictures",
    "<|im_end|>": "ends answers",
    "<|fim_pad|>": "this tokenizer has none; .*<think>",
    -1: "ids go from 0",
    10**6: "ids go from 0",
}


@pytest.mark.parametrize("run", [score_packed, score_repeated])
@pytest.mark.parametrize("token", WRONG)
def test_a_slot_never_holds_a_token_that_stands_for_something(policy, token, run):
    groups, shape = some(policy, ((3,),))
    with pytest.raises(
        ValueError,
        match=f"The token {token!r} is asked for.*{WRONG[token]}".replace("|", "[|]"),
    ):
        run(policy, {"raw": groups}, {"raw": ScoreOutputs(slot=(5, token))}, shape)


def test_a_slot_goes_by_the_text_of_its_token_too(policy):
    groups, shape = some(policy, ((3,),))
    number = policy.processing.tokenizer.get_vocab()["<think>"]
    by_text, by_id = (
        score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs(slot=(token,))}, shape)
        for token in ("<think>", number)
    )
    assert torch.equal(by_text["raw"].slot, by_id["raw"].slot)


TEXTS = (
    "user",
    "assistant\nWhat?",
    "  two  blanks ",
    "0.5 seconds",
    "émoji 🙂 ünd\n\nso",
    "<|x",
)


@pytest.mark.parametrize("kinds", [[], ["image"], ["video"], ["video", "image"]])
def test_words_are_the_messages_and_nothing_else(policy, kinds):
    """Spelt out again they are the texts, whatever these have in common with the template."""
    question = prompt(kinds, 1)
    parts = list(question.messages[0]["content"])[:-1]
    for text in TEXTS:
        parts.append({"type": "text", "text": text})
    messages = [
        {"role": "system", "content": "system"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "assistant"},
        {"role": "user", "content": parts},
    ]
    question = replace(question, id=f"words-{len(kinds)}{kinds}", messages=messages)
    encoded = policy.encode(question)
    places = policy.processing.words(question, encoded)
    assert torch.equal(encoded.types[places], torch.zeros_like(places))
    spelt = policy.processing.spell(encoded.ids[places].tolist())
    assert spelt == "".join(["system", "user", "assistant", *TEXTS])


def test_a_template_that_rewrites_its_messages_is_refused(policy, monkeypatch):
    question = prompt(["image"], 1)
    encoded = policy.encode(question)
    monkeypatch.setattr(
        type(policy.processing), "_templated", lambda *_: "other \ue0001\ue001 template"
    )
    with pytest.raises(ValueError, match="rewrites the messages"):
        policy.processing.words(question, encoded)
