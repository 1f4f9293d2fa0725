"""Whatever the rows, the budget, the blocks and the pace: the same answers, and each prompt is read once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmrl.model.budget import GIB, Budget, Costs
from mmrl.model.policy import Policy
from mmrl.rollouts import next_token, sampler
from mmrl.rollouts.advance import Pace
from mmrl.rollouts.engine import HFEngine
from mmrl.types import Media, Now, Prompt, Sampling

NOW = Now(step=3, progress=0.1, seed=7)
HOT = Sampling(4, 1.5, max_tokens=16)
"""Answers of very different lengths."""


def question(seed, words=0, images=1):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), generator=rng, dtype=torch.uint8)
    text = {"type": "text", "text": "What is at row 1?" + " red" * words}
    turn = {"role": "user", "content": [{"type": "image"}] * images + [text]}
    return Prompt(f"q{seed}", [turn], (Media(pixels),) * images)


PROMPTS = [question(1), question(2, words=30), question(3, images=0), question(4, words=9)]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policy(request, tiny_folder, tiny3_folder):
    folder = tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder
    return often_ending(Policy.load(folder, device="cpu", dtype="float64"))


ONE_FAMILY = pytest.mark.parametrize("policy", ["qwen2_5_vl"], indirect=True)
"""For what never sees the model: texts, temperatures, recorders, messages."""


def often_ending(policy):
    """Every tenth token ends an answer, so that lengths differ."""
    processing = policy.processing
    ids = set(range(3, len(processing.tokenizer), 10)) - set(processing.banned_ids)
    object.__setattr__(processing, "stop_ids", (*processing.stop_ids, *sorted(ids)))
    return policy


@pytest.fixture(scope="module")
def plain(policy):
    """All answers at once, in one packed row, with one look per token."""
    return HFEngine(policy).generate(PROMPTS, HOT, NOW)


def same(mine, right):
    """Equal tokens and stops, log-probs but for rounding. In double precision no draw is a near miss."""
    for a, b in zip(mine, right, strict=True):
        assert torch.equal(a.tokens, b.tokens) and a.stop == b.stop and a.group == b.group
        torch.testing.assert_close(a.logp, b.logp, rtol=0, atol=1e-6)


SLOW = Pace(look_every=3)
STEADY = Pace(look_every=4, buckets=(1, 2, 4, 8, 16), recorder=lambda run: run)
PACES = [Pace(), SLOW, STEADY, Pace(look_every=5, buckets=(3, 6, 16))]


@pytest.mark.parametrize(
    ("rows", "pace"), [(1, SLOW), *((n, p) for n in (3, 256) for p in PACES)]
)
def test_the_answers_do_not_depend_on_rows_and_pace(policy, plain, rows, pace):
    policy.counters.clear()
    found = HFEngine(policy, rows_at_once=rows, pace=pace).generate(PROMPTS, HOT, NOW)
    same(found, plain)
    # A group that does not fit into the rows is read once all the same.
    ids = sum(len(policy.encode(p).ids) for p in PROMPTS)
    assert policy.counters["tokens/prefill"] == ids
    assert policy.counters["tokens/decode"] == sum(len(r.tokens) - 1 for r in plain)
    assert (policy.counters["rollout/refills"] > 0) == (rows < 16)


@pytest.mark.parametrize(("block", "pace"), [(1, SLOW), *((16, p) for p in PACES)])
def test_prompts_in_many_blocks(policy, plain, pace, block, monkeypatch):
    monkeypatch.setitem(sampler.LARGEST_BLOCK, "cpu", block)
    for rows in (5, 256):
        same(HFEngine(policy, rows_at_once=rows, pace=pace).generate(PROMPTS, HOT, NOW), plain)


def test_a_budget_cuts_rows_and_prefills(policy, plain, monkeypatch):
    """Room for one long prompt and little more: fewer rows, several packed rows, the same answers."""
    costs = Costs.of_model(policy.base)
    longest = max(len(policy.encode(p).ids) for p in PROMPTS)
    narrow = replace(
        Budget.of(100 * GIB),
        prefill=(longest + 5) * costs.prefill + 16 * costs.patch,
        keys_values=(3 * longest + 5 * HOT.max_tokens) * costs.token,
    )
    monkeypatch.setattr(policy, "_budget", narrow)
    packed = []
    language = policy.language
    monkeypatch.setattr(
        policy, "language", lambda ids, *rest: packed.append(len(ids)) or language(ids, *rest)
    )
    policy.counters.clear()
    same(HFEngine(policy).generate(PROMPTS, HOT, NOW), plain)
    assert len(packed) == policy.counters["rollout/pieces"] > 1 and max(packed) <= longest + 5
    assert policy.counters["rollout/refills"] > 0 and sum(packed) == sum(
        len(policy.encode(p).ids) for p in PROMPTS
    )
    # Not even one row fits: it is tried all the same.
    monkeypatch.setattr(policy, "_budget", replace(narrow, keys_values=1, logits=1, prefill=1))
    same(HFEngine(policy).generate(PROMPTS, HOT, NOW), plain)


@ONE_FAMILY
@pytest.mark.parametrize("pace", [SLOW, STEADY])
@pytest.mark.parametrize("rows", [2, 256])
def test_stop_strings_cut_exactly_however_seldom_one_looks(policy, plain, rows, pace):
    texts = [policy.processing.decode(r.tokens[4:6]) for r in plain if len(r.tokens) > 8]
    sampling = replace(HOT, stop=tuple(text for text in texts[:3] if text))
    right = HFEngine(policy).generate(PROMPTS, sampling, NOW)
    assert len({r.stop for r in right} & set(sampling.stop)) > 0
    found = HFEngine(policy, rows_at_once=rows, pace=pace).generate(PROMPTS, sampling, NOW)
    same(found, right)
    assert [r.text for r in found] == [r.text for r in right]


@pytest.mark.parametrize("pace", PACES)
def test_prefixes_and_temperatures_belong_to_the_answer_not_to_the_row(policy, pace):
    """Rows at different positions of their answers: hints of different lengths, a temperature per position."""
    hint = policy.processing.encode_answer("<answer> red blue")[:-1]
    given = {
        "prefixes": [hint[:n] for n in (0, 3, 1, 2)],
        "temperature_at": lambda t: (0.0, 1.5, 0.3)[t % 3],
    }
    sampling = Sampling(3, 1.0, max_tokens=10)
    right = HFEngine(policy).generate(PROMPTS, sampling, NOW, **given)
    found = HFEngine(policy, rows_at_once=4, pace=pace).generate(
        PROMPTS, sampling, NOW, **given
    )
    same(found, right)
    # A prefix that fills the whole answer.
    short = replace(sampling, max_tokens=2)
    for r in HFEngine(policy, pace=pace).generate(PROMPTS, short, NOW, prefixes=[hint] * 4):
        assert r.tokens.tolist() == hint[:2].tolist() and r.stop == "length"


@ONE_FAMILY
def test_nothing_to_do(policy):
    assert HFEngine(policy).generate([], HOT, NOW) == []


@ONE_FAMILY
def test_one_token_answers(policy):
    for pace in PACES:
        found = HFEngine(policy, rows_at_once=3, pace=pace).generate(
            PROMPTS, Sampling(2, 0.0, max_tokens=1), NOW
        )
        assert [len(r.tokens) for r in found] == [1] * 8


@ONE_FAMILY
def test_a_long_call_says_how_far_it_is(policy, monkeypatch, capsys):
    monkeypatch.setattr(sampler._Voice, "__init__", hurried(sampler._Voice.__init__))
    HFEngine(policy, rows_at_once=3).generate(PROMPTS, HOT, NOW)
    assert "of 16 answers in" in capsys.readouterr().err


def hurried(init):
    return lambda self, answers: init(self, answers, seconds=0.0)


@ONE_FAMILY
def test_recorded_steps_are_replayed_and_a_wrong_recording_is_not_used(policy, plain, capsys):
    calls = {"recorded": 0, "replayed": 0}

    def recorder(run):
        calls["recorded"] += 1

        def replay():
            calls["replayed"] += 1
            run()

        return replay

    pace = replace(STEADY, recorder=recorder)
    same(HFEngine(policy, rows_at_once=6, pace=pace).generate(PROMPTS, HOT, NOW), plain)
    assert calls["replayed"] > 3 * calls["recorded"] > 0
    assert "not replayed" not in capsys.readouterr().err

    def wrong(run):
        return lambda: None  # changes nothing: the next token is missing

    same(
        HFEngine(policy, pace=replace(pace, recorder=wrong)).generate(PROMPTS, HOT, NOW), plain
    )
    assert "recording gives other numbers" in capsys.readouterr().err

    def impossible(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    pace = replace(pace, recorder=impossible)
    same(HFEngine(policy, pace=pace).generate(PROMPTS, HOT, NOW), plain)
    assert "it cannot be recorded: operation not permitted" in capsys.readouterr().err


class Silent(TorchDispatchMode):
    """Raises for what a CUDA graph cannot hold: numbers that come back to the host, and sizes that follow from them."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0].lstrip("_")
        assert name not in {one.lstrip("_") for one in self.NAMES}, func
        if name in ("index", "index_put", "index_put_"):
            kinds = [x.dtype for x in args[1] if x is not None]
            assert torch.bool not in kinds, "a mask as an index counts its places on the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("top", [{}, {"top_p": 0.8, "top_k": 20, "min_p": 0.01}])
def test_a_step_asks_nothing_of_the_device(policy, monkeypatch, top):
    """Choosing and feeding run without a word to the host, with prompts in one block and in several."""
    steps = []

    def recorder(run):
        def replay():
            with Silent():
                run()
            steps.append(1)

        return replay

    monkeypatch.setattr(next_token, "SORTED", 10)
    pace = replace(STEADY, recorder=recorder)
    for block in (64, 8):
        monkeypatch.setitem(sampler.LARGEST_BLOCK, "cpu", block)
        HFEngine(policy, pace=pace).generate(PROMPTS, replace(HOT, **top), NOW)
    assert len(steps) > 20
    with pytest.raises(AssertionError), Silent():
        torch.ones(2).sum().item()
    with pytest.raises(AssertionError), Silent():
        torch.ones(2)[torch.tensor([True, False])]


def test_the_engine_asks_its_device_for_the_pace():
    assert Pace.of(torch.device("cpu")) == Pace()
    found = Pace.of(torch.device("cuda"))
    assert found.recorder is not None and found.look_every > 1
    assert [found.rows(n) for n in (1, 5, 64, 65, 5000)] == [1, 8, 64, 96, 5000]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_recorded_steps_on_a_gpu_give_the_answers_of_plain_ones(tiny_folder, capsys):
    policy = often_ending(Policy.load(tiny_folder, device="cuda", dtype="float64"))
    plain = HFEngine(policy, pace=Pace()).generate(PROMPTS, HOT, NOW)
    same(HFEngine(policy, rows_at_once=6).generate(PROMPTS, HOT, NOW), plain)
    assert "not replayed" not in capsys.readouterr().err
