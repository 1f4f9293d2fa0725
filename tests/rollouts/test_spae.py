"""SPAE's probes: where steps end, that potentials are those of separate rows, and which answers cannot be asked."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.losses.advantages import group_centered
from mmrl.model.branches import Views
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import scored
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.spae import SPAE, potential, top_entropy
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.spae import SPAERollout, step_ends
from mmrl.training.compatibility import _check_rows
from mmrl.types import Now, Prompt, Sampling
from tests.training.test_compatibility import check

NOW = Now(1, 0.1, seed=3)
SAMPLING = Sampling(2, max_tokens=5)


class Letters:
    """A token is a letter; 0 ends."""

    def encode_answer(self, text):
        return torch.tensor([*map(ord, text), 0])

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_steps_end_behind_a_full_stop_and_an_empty_line_while_it_thinks():
    text = "One.\n\nTwo, and\n\n more.\n\nTail.</think>Say.\n\n"
    ends = step_ends([*map(ord, text)], (".\n\n",), Letters())
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == [
        "One.\n\n",
        "Two, and\n\n more.\n\n",
    ]
    assert step_ends([], (".\n\n",), Letters()) == []


@pytest.mark.parametrize(
    ("answer", "usable"),
    [("blue", True), (12, True), (1.5, True), ("a text of many words", False), ("", False),
     (None, False), (True, False), ([1, 2, 3, 4], False), ({"box": 1}, False)],
)  # fmt: skip
def test_only_a_short_text_can_be_asked_for(answer, usable):
    rollout = SPAERollout(Letters(), SPAE())
    assert (rollout.missing(Prompt("q", [], answer=answer)) == "") is usable
    assert SPAERollout(Letters(), SPAE(weight=0.0, fade=0.0)).missing(Prompt("q", [])) == ""


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float64")


def paid(rollouts):
    return [replace(one, reward=1.0, correct=True) for one in rollouts]


def supply_of(prompts):
    ranks = SimpleNamespace(first=True)
    return SimpleNamespace(
        per_step=len(prompts), counters=Counter(), take=lambda: prompts, ranks=ranks
    )


def test_potentials_are_those_of_separate_rows(policy, monkeypatch):
    prompts = [Drawn("lookup", size=4)[n] for n in range(2)]
    prompts[1] = replace(prompts[1], id="other")
    unusable = replace(prompts[0], id="boxes", answer=[[1, 2, 3, 4]])
    spae = SPAE(probes=1, tokens=4, candidates=7)
    # Every second token ends a step, whatever the tiny model says.
    monkeypatch.setattr(
        "mmrl.rollouts.spae.step_ends", lambda ids, ends, words: [*range(2, len(ids) + 1, 2)]
    )
    supply = supply_of([*prompts, unusable])
    rollout = SPAERollout(policy.processing, replace(spae, tokens=4), probe="<answer>")
    # One drawn token has the entropy of its place, whichever it is.
    monkeypatch.setattr(
        "mmrl.rollouts.spae.drawn_entropy",
        lambda piece, given: top_entropy(piece.top_logp[given : given + 1]),
    )
    found = rollout(HFEngine(policy), paid, supply, SAMPLING, NOW)
    told = [(one, cut, value) for one in found for cut, value in _cuts(one)]
    assert told and supply.counters["spae/steps"] == len(told)
    assert supply.counters["spae/unasked"] == 2 and supply.counters["spae/answers"] == 4
    assert not any(one.valued for one in found if one.prompt.id == "boxes")
    for one, cut, value in told:
        assert value == pytest.approx(_separately(policy, one, cut, spae), abs=1e-6)
    plain = HFEngine(policy).generate([*prompts, unusable], SAMPLING, NOW)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(found, plain, strict=True))


def _cuts(rollout):
    at = 0
    for tokens, value in rollout.valued:
        at += tokens
        yield at, value


def _separately(policy, rollout, cut, spae):
    """The potential behind so many tokens, from one row that is read alone."""
    words = policy.processing.encode_answer
    probe, truth = words("<answer>")[:-1], words(rollout.prompt.answer)[:-1]
    tokens = torch.cat([rollout.tokens[:cut], probe, truth])
    row = replace(rollout, tokens=tokens, roles=torch.zeros(len(tokens), dtype=torch.uint8),
                  logp=None, valued=(), temperature=spae.temperature, group=0)  # fmt: skip
    shape = tuple(collate([row]).tokens.shape)
    groups = Views(policy, [row], {}, NOW).groups("raw", [0])
    asked = {"raw": ScoreOutputs(top=spae.candidates)}
    with torch.no_grad():
        scores = scored(policy, {"raw": groups}, asked, shape)["raw"]
    at = cut + len(probe)
    entropy = float(top_entropy(scores.top_logp[0, at, : spae.candidates]))
    return potential(float(scores.logp[0, at:].exp().mean()), math.exp(-entropy))


def test_off_it_samples_as_grpo_and_brings_nothing(policy):
    prompts = [Drawn("lookup", size=4)[0]]
    supply = supply_of(prompts)
    off = SPAERollout(policy.processing, SPAE(weight=0.0, fade=0.0))
    found = off(HFEngine(policy), paid, supply, SAMPLING, NOW)
    assert off.brings() == () and not supply.counters and not any(one.valued for one in found)


def test_words_that_ask_nothing_are_refused():
    with pytest.raises(ValueError, match="not empty"):
        SPAERollout(Letters(), probe="")
    with pytest.raises(ValueError, match="not empty"):
        SPAERollout(Letters(), ends=("",))


def test_rows_without_a_short_answer_and_runs_without_probes_are_refused():
    asked = SPAERollout(Letters(), SPAE())
    boxes = [Prompt(str(n), [], answer=[[1, 2, 3, 4]]) for n in range(3)]
    told = r"SPAERollout.*'answer .*at most 10 tokens.*captions.*--spae.tokens"
    with pytest.raises(ValueError, match=told):
        _check_rows({}, [asked], boxes)
    _check_rows({}, [asked], [*boxes, Prompt("word", [], answer="blue")])
    with pytest.raises(ValueError, match=r"SPAE reads 'probed'.*SPAERollout"):
        check(SPAE(), estimator=group_centered)
