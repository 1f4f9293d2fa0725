"""ARPO: the official entropy and branching test, and what a group that branches is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrl.model.budget import Budget
from mmrl.model.policy import Policy
from mmrl.objectives.dsdr import DSDR
from mmrl.rollouts.arpo import ARPO, ARPORollout, branch_score, string_ends, top_entropy
from mmrl.rollouts.dars import DARSRollout
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.stages import OneStep
from mmrl.rollouts.tool_use import ToolRollout
from mmrl.rollouts.tree_groups import together, tokens_once
from mmrl.tools.toolbox import Toolbox, ToolUse
from mmrl.training.clashes import refuse_clashes
from mmrl.types import Media, Now, Prompt, Prompts, Role, Sampling
from tests.rollouts.test_tool_use import rescored
from tests.rollouts.tools_for_tests import Counting

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
FILE = json.loads((GOLDEN / "arpo_branch.json").read_text(encoding="utf-8"))
NEAR = {"rel": FILE["rtol"], "abs": FILE["atol"]}
NOW, EIGHT = Now(1, 0.1, seed=3), Sampling(8, 1.0, max_tokens=24)
OFTEN = ARPO(strings=("a", "e", " "), roots=2, look=3, threshold=1.0)


@pytest.mark.parametrize("case", FILE["cases"], ids=lambda case: case["name"])
def test_golden(case):
    given, expected = case["inputs"], case["outputs"]
    if "entropy" in expected:
        found = top_entropy(torch.tensor(given["flattened_top_logprobs"]))
        assert found == pytest.approx(expected["entropy"], **NEAR)
        return
    before, now = given["entropy_initial"], given["entropy_now"]
    score = branch_score(given["uniform"], before, now, given["weight"])
    assert score == pytest.approx(expected["score"], **NEAR)
    assert (score <= given["threshold"]) is expected["branch"]


@pytest.mark.parametrize("more", [-9.0, -1.0, 0.0, 0.3, 1.0, 9.0])
def test_the_more_unsure_the_oftener_it_branches(more):
    uniforms = torch.linspace(0, 1, 4001).tolist()
    found = sum(branch_score(u, 1.0, 1.0 + more, 0.2) <= 0.5 for u in uniforms) / len(uniforms)
    assert found == pytest.approx(min(max(0.5 + 0.2 * more, 0.0), 1.0), abs=1e-3)
    assert all(0 <= branch_score(u, 0.0, more, 0.2) <= 1 for u in uniforms[::100])


def test_nothing_said_is_no_uncertainty_and_certain_tokens_neither():
    assert top_entropy(torch.zeros(0, 10)) == 0.0
    assert top_entropy(torch.tensor([[0.0, -1e4], [0.0, -1e4]])) == 0.0
    even = torch.full((3, 7), 1 / 7).log()
    assert top_entropy(even) == pytest.approx(3 * torch.tensor(7.0).log().item())


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


class Rows(Prompts):
    """Questions in words."""

    size = 3

    def __getitem__(self, index):
        text = [{"type": "text", "text": f"question {index}" + " red" * index}]
        return Prompt(f"q{index}", [{"role": "user", "content": text}])


def pay(rollouts):
    return [replace(r, reward=float(len(r.tokens) % 2)) for r in rollouts]


def sampled(rule, policy, sampling=EIGHT, rows_at_once=256):
    supply, engine = Supply(Rows(), 3, seed=0), HFEngine(policy, rows_at_once=rows_at_once)
    return rule(OneStep(engine), pay, supply, sampling, NOW), supply.counters


def test_a_group_has_all_its_answers_and_shares_what_it_branches_behind(policy):
    found, counters = sampled(ARPORollout(policy=policy, arpo=OFTEN), policy)
    groups = [[r for r in found if r.group == n] for n in range(3)]
    assert [len(group) for group in groups] == [8, 8, 8]
    assert counters["arpo/branches"] + counters["arpo/further_roots"] == 3 * 6
    assert counters["arpo/branches"] >= 6 and counters["tree/leaves"] == 24
    assert counters["tree/tokens"] == sum(map(tokens_once, groups))
    assert counters["tree/tokens"] < counters["tree/answer_tokens"]
    spell = policy.processing.spell
    for group in groups:
        for one in group:
            assert sum(n for _, n in one.path) == len(one.tokens) <= 24
            for other in group:
                same = 0
                for a, b in zip(one.path, other.path, strict=False):
                    if a != b:
                        break
                    same += a[1]
                assert one.tokens[:same].tolist() == other.tokens[:same].tolist()
                if 0 < same < min(len(one.tokens), len(other.tokens)):
                    # Where ways part, one of the strings has just ended.
                    assert same in string_ends(spell, one.tokens.tolist(), OFTEN.strings)


def test_first_answers_are_those_of_grpo_and_none_depends_on_who_grows_beside(
    policy, monkeypatch
):
    found, _ = sampled(ARPORollout(policy=policy, arpo=OFTEN), policy)
    plain, _ = sampled(group_rollout, policy)
    for number in range(3):
        mine, theirs = ([r for r in rows if r.group == number] for rows in (found, plain))
        for one, other in zip(mine[:2], theirs, strict=False):
            assert one.tokens.tolist() == other.tokens.tolist()
    # So little room that each tree has a forest of its own.
    small = property(lambda self: replace(Budget.of(2**28), keys_values=1))
    monkeypatch.setattr(Policy, "budget", small)
    prompts = [Rows()[index] for index in range(3)]
    assert len(list(together(HFEngine(policy), prompts, EIGHT))) == 3
    alone, _ = sampled(ARPORollout(policy=policy, arpo=OFTEN), policy, rows_at_once=2)
    assert [r.tokens.tolist() for r in alone] == [r.tokens.tolist() for r in found]
    assert [(r.group, r.path) for r in alone] == [(r.group, r.path) for r in found]


def test_with_a_whole_group_of_beginnings_it_is_the_plain_rollout_bit_for_bit(policy):
    plain, _ = sampled(group_rollout, policy)
    off, counters = sampled(ARPORollout(policy=policy, arpo=replace(OFTEN, roots=8)), policy)
    for one, other in zip(off, plain, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.logp, other.logp)
        assert (one.path, one.reward, one.group) == ((), other.reward, other.group)
    assert "tree/leaves" not in counters


def test_where_no_string_ends_the_group_is_filled_from_the_prompt(policy):
    never = replace(OFTEN, strings=("@@@never@@@",))
    found, counters = sampled(ARPORollout(policy=policy, arpo=never), policy)
    assert counters["arpo/branches"] == 0 and counters["arpo/further_roots"] == 18
    plain, _ = sampled(group_rollout, policy)
    # Further beginnings are numbered on, so they are the plain answers too.
    assert [r.tokens.tolist() for r in found] == [r.tokens.tolist() for r in plain]


def test_string_ends_are_where_the_text_first_holds_the_string(policy):
    spell = policy.processing.spell
    text = "héllo wörld, héllo </think> so. héé"
    tokens = policy.processing.tokenizer(text, add_special_tokens=False).input_ids
    strings = ("é", "</think>", "o ")
    first = []
    for count in range(1, len(tokens) + 1):
        before, now = (spell(tokens[:n]).rstrip("\ufffd") for n in (count - 1, count))
        if sum(map(now.count, strings)) > sum(map(before.count, strings)):
            first.append(count)
    assert string_ends(spell, tokens, strings) == first and len(first) >= 6
    assert string_ends(spell, [], strings) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strings": ()}, "strings is"),
        ({"strings": ("",)}, "strings is"),
        ({"roots": 0}, "roots is 0"),
        ({"branches": 1}, "branches is 1"),
        ({"weight": -0.1}, "weight is -0.1"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"look": 0}, "look is 0"),
        ({"candidates": 0}, "candidates is 0"),
    ],
)
def test_absurd_settings_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        ARPO(**change)


def test_what_takes_answers_for_independent_is_warned_of_and_a_second_tree_refused(policy):
    tree = ARPORollout(policy=policy)
    with pytest.warns(UserWarning, match="share their beginning are not independent"):
        refuse_clashes([DSDR()], [tree])
    with pytest.raises(ValueError, match="each decides where answers branch"):
        refuse_clashes([], [tree, ARPORollout(policy=policy, arpo=OFTEN)])
    with pytest.raises(ValueError, match="ARPORollout and DARSRollout cannot be used together"):
        ARPORollout(inner=DARSRollout(), policy=policy)
    with pytest.raises(ValueError, match="has no policy"):
        ARPORollout()


class Shows(Counting):
    """Counts, and shows the picture of so many letters."""

    def act(self, action, trajectory):
        told = super().act(action, trajectory)
        grey = torch.full((1, 3, 32, 32), sum(trajectory.state[self.name]) % 256)
        return replace(told, media=(Media(grey.to(torch.uint8)),))


def test_with_tools_answers_branch_behind_what_tools_answer(policy):
    tools = Toolbox((Shows(),), ToolUse(max_turns=2))
    rule = ARPORollout(policy=policy, arpo=OFTEN, toolbox=tools)
    long = replace(EIGHT, max_tokens=80)
    found, counters = sampled(rule, policy, long)
    assert counters["arpo/branches"] + counters["arpo/further_roots"] == 3 * 6
    assert counters["arpo/branches"] >= 6 and counters["tool/answers"] == 24
    for number in range(3):
        group = [r for r in found if r.group == number]
        assert len(group) == 8
        for one in group:
            assert len(one.media) == sum(call.shown for call in one.calls)
            # What a tool remembers is that of the answer's own way.
            total = 0
            for call in one.calls:
                total += call.found["letters"]
                assert not call.said or f"so {total}" in call.said
            shades = [medium.frames.max().item() for medium in one.media]
            assert shades == sorted(shades)
            for place in _partings(one, group):
                assert one.roles[place] == int(Role.POLICY)
                assert one.roles[place - 1] == int(Role.OBSERVATION)
    few, _ = sampled(rule, policy, long, rows_at_once=1)
    assert [r.tokens.tolist() for r in few] == [r.tokens.tolist() for r in found]
    # Without any place to branch it is the tool loop: the answers that begin at the prompt.
    roots = ARPORollout(policy=policy, arpo=replace(OFTEN, roots=8), toolbox=tools)
    plain, _ = sampled(ToolRollout(policy=policy, toolbox=tools), policy, long)
    alone, _ = sampled(roots, policy, long)
    assert [r.tokens.tolist() for r in alone] == [r.tokens.tolist() for r in plain]
    trained, _ = sampled(rule, policy, long)
    logp = rescored(policy, trained)
    for row, one in enumerate(trained):
        own = one.roles == int(Role.POLICY)
        assert (one.logp - logp[row, : len(one.tokens)])[own].abs().max() < 2e-4


def _partings(one, group):
    """Where other answers of the group leave its way, in tokens."""
    for other in group:
        same = 0
        for a, b in zip(one.path, other.path, strict=False):
            if a != b:
                break
            same += a[1]
        if 0 < same < min(len(one.tokens), len(other.tokens)):
            yield same
