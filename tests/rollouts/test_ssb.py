"""SSB: hints, solutions, the teacher's tokens, and the divergence that is learned."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from mmrl.losses.distillation import topk_divergence
from mmrl.model.branches import Views
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import score_repeated
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.objectives.pacs import PACS
from mmrl.objectives.ssb import SSB, taught_ids, taught_logp
from mmrl.rewards.functions import in_tag
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.ssb import Lessons, SSBRollout, Teacher, common_wrong, kept
from mmrl.rollouts.stages import OneStep
from mmrl.training.checkpoint import plain
from mmrl.training.clashes import refuse_clashes
from mmrl.types import Now, Prompt, Prompts, Role, Rollout, Sampling, Scores

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
FILE = json.loads((GOLDEN / "ssb_kd.json").read_text(encoding="utf-8"))
NOW, FOUR = Now(1, 0.1, seed=3), Sampling(4, 0.8, max_tokens=6)


# --------------------------------------------------------------------------------------------------------- divergence


def rollouts(teacher, temperature, top):
    """Solutions of one token per row of logits [B, T, V], with their teacher."""
    found = []
    for each in teacher:
        best = log_softmax(each / temperature, -1).topk(top)
        length = len(each)
        roles = torch.full((length,), int(Role.EXPERT), dtype=torch.uint8)
        tokens = torch.zeros(length, dtype=torch.long)
        one = Rollout(Prompt("p", ""), 0, tokens[:1], tokens, roles, "", "eos", reward=1.0)
        found.append(replace(one, top_ids=best.indices, top_logp=best.values))
    return found


def loss_of(ssb, student, teacher, mask, top=None):
    """The loss and its gradient, with the mask [B, T] of what is learned."""
    top = top or teacher.shape[-1]
    batch = collate(rollouts(teacher, ssb.temperature, top), [Role.POLICY, Role.EXPERT])
    batch = replace(batch, mask=batch.mask & mask.bool())
    z = student.clone().requires_grad_()
    logp = log_softmax(z / ssb.temperature, -1)
    ids = torch.stack([taught_ids(one) for one in batch.rollouts])
    live = {"raw": Scores(logp[..., 0], picked=logp.gather(-1, ids))}
    term = ssb.terms(live, batch, NOW)["distillation"]
    loss = term.sum() / mask.sum()
    return loss, torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize("case", FILE["cases"], ids=lambda case: case["name"])
def test_the_loss_is_that_of_the_official_code(case):
    given = case["inputs"]
    tensors = [torch.tensor(given[name]) for name in ("student_logits", "teacher_logits")]
    ssb = SSB(temperature=given["temperature"])
    loss, grad = loss_of(ssb, *tensors, torch.tensor(given["mask"]))
    near = {"rtol": FILE["rtol"], "atol": FILE["atol"]}
    torch.testing.assert_close(loss, torch.tensor(case["outputs"]["loss"]), **near)
    torch.testing.assert_close(grad, torch.tensor(case["outputs"]["grad"]), **near)


def logits(seed, scale=2.0):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, 4, 11, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("top", [1, 3, 11])
def test_equal_ones_have_no_loss_others_a_positive_one_and_fewer_tokens_never_more(top):
    same, other, on = logits(1), logits(2), torch.ones(2, 4)
    zero, flat = loss_of(SSB(), same, same, on, top)
    assert zero.item() == pytest.approx(0, abs=1e-12) and flat.abs().max() < 1e-12
    some, _ = loss_of(SSB(), other, same, on, top)
    whole, _ = loss_of(SSB(), other, same, on)
    assert 0 < some <= whole + 1e-12


def test_what_lies_outside_the_mask_reaches_neither_loss_nor_gradient():
    student, teacher, on = logits(1), logits(2), torch.ones(2, 4)
    on[0, 2:] = 0
    loss, grad = loss_of(SSB(), student, teacher, on)
    strange = student.clone()
    strange[0, 2:] = torch.nan
    again, of_strange = loss_of(SSB(), strange, teacher, on)
    assert torch.equal(loss, again) and torch.equal(grad[0, :2], of_strange[0, :2])
    assert not grad[0, 2:].any()


def test_gradients_are_alike_for_all_large_temperatures():
    student, teacher, on = logits(1, 0.5), logits(2, 0.5), torch.ones(2, 4)
    sizes = [
        loss_of(SSB(temperature=heat), student, teacher, on)[1].norm() for heat in (20, 40, 80)
    ]
    assert sizes[1].item() == pytest.approx(sizes[2].item(), rel=0.02)
    assert sizes[0].item() == pytest.approx(sizes[2].item(), rel=0.05)


def test_padding_of_a_teacher_and_none_at_all_are_no_loss():
    student = torch.randn(3, 4, dtype=torch.float64).log_softmax(-1).requires_grad_()
    teacher = torch.full((3, 4), -torch.inf, dtype=torch.float64)
    teacher[0] = torch.tensor([0.1, 0.2, 0.3, 0.1]).log()
    teacher[1, :2] = torch.tensor([0.5, 0.5]).log()
    found = topk_divergence(teacher, student)
    assert found[2] == 0 and (found[:2] > 0).all()
    found.sum().backward()
    assert student.grad.isfinite().all() and not student.grad[1, 2:].any()


# ------------------------------------------------------------------------------------------------------------ rollout


class Rows(Prompts):
    """Question n: n of its four answers are right."""

    def __init__(self, *right):
        self.right, self.size = right, len(right)

    def __getitem__(self, index):
        name = self.right[index]
        return Prompt(str(name), [{"role": "user", "content": f"question {name}"}])


class Script:
    """Answers by number; with hints it says `hinted`, one word after the other."""

    def __init__(self, *hinted, stop="eos"):
        self.hinted, self.stop, self.asked = hinted or ("right",), stop, []

    def generate(self, prompts, sampling, now, *, counts=None, first=None, **more):
        found = []
        for group, prompt in enumerate(prompts):
            said = prompt.messages[0]["content"]
            self.asked.append((prompt.id, sampling.temperature, said))
            for n in range(counts[group] if counts else sampling.group_size):
                told, stop = f"{'right' if n < int(prompt.id[0]) else 'wrong'} {n}", "eos"
                if "~" in prompt.id:
                    told, stop = f"{self.hinted[n]} as told", self.stop
                own = torch.tensor([n, 9]), torch.zeros(2, dtype=torch.uint8)
                found.append(Rollout(prompt, group, torch.tensor([5]), *own, told, stop))
        return found


def pay(rollouts):
    return [
        replace(r, reward=float("right" in r.text), correct="right" in r.text) for r in rollouts
    ]


def teach(solutions, now):
    """Tokens 0 and 1, whose log-probs tell whose they are."""
    ids = torch.tensor([[0, 1], [1, 0]])
    return [(ids, torch.full((2, 2), -float(one.prompt.id[0]))) for one in solutions]


def rule(**numbers):
    return SSBRollout(teach, lambda prompt: torch.tensor([5]), in_tag, SSB(**numbers))


def run(rollout, script, rows, supply=None, steps=1):
    supply = supply or Supply(rows, rows.size, seed=0)
    for step in range(steps):
        found = rollout(OneStep(script), pay, supply, FOUR, Now(1 + step, 0.1, seed=3))
    return found, supply


def test_mixed_questions_are_solved_with_hints_and_learned_without():
    script = Script()
    found, supply = run(rule(), script, Rows(0, 1, 3, 4))
    assert sorted(one.prompt.id for one in found) == ["1", "3"]
    for one in found:
        assert one.prompt.messages[0]["content"] == f"question {one.prompt.id}", "no hints"
        assert one.text == "right as told" and one.tokens.tolist() == [0, 9]
        assert set(one.roles.tolist()) == {int(Role.EXPERT)} and one.temperature == 2.0
        assert one.top_ids.tolist() == [[0, 1], [1, 0]]
        assert (one.top_logp == -float(one.prompt.id)).all() and one.logp is None
    assert [one.group for one in found] == [0, 1]
    hinted = [one for one in script.asked if "~" in one[0]]
    assert {heat for _, heat, _ in hinted} == {0.4}
    assert all("Right:\nright 0" in said and "Wrong:\nwrong" in said for *_, said in hinted)
    names = ("asked", "mixed", "written", "answers", "right")
    counts = {name: supply.counters[f"ssb/{name}"] for name in names}
    # Of four answers to each of the questions 0, 1, 3 and 4 as many are right.
    assert counts == {"asked": 4, "mixed": 2, "written": 2, "answers": 16, "right": 8}


def test_hints_may_be_what_the_answers_state():
    script = Script()
    brief = replace(rule(), read=lambda text: text.upper(), brief=True)
    run(brief, script, Rows(1, 2))
    hinted = [said for name, _, said in script.asked if "~" in name]
    assert hinted and all("Right:\nRIGHT 0" in said for said in hinted)


def test_the_first_right_solution_is_taken():
    found, _ = run(rule(solutions=3), Script("wrong", "right", "right too"), Rows(1, 2))
    assert [one.text for one in found] == ["right as told"] * 2
    assert all(one.tokens[0] == 1 for one in found)


@pytest.mark.parametrize("script", [Script("wrong"), Script("right", stop="length")])
def test_a_run_that_finds_nothing_to_learn_says_so(script):
    with pytest.raises(ValueError, match=r"no right solution in 3 rounds of 2 questions"):
        run(replace(rule(), rounds=3), script, Rows(1, 2))


def test_the_most_common_wrong_answer_is_shown():
    def wrong(*texts):
        one = Rollout(Prompt("p", ""), 0, *[torch.zeros(1)] * 3, "", "eos")
        return [
            replace(one, text=f"{n} <answer> {text} </answer>") for n, text in enumerate(texts)
        ]

    rng = torch.Generator().manual_seed(0)
    assert common_wrong(wrong("a", "b", "B "), in_tag, rng).text.startswith("1")
    drawn = {common_wrong(wrong("a", "b", "c"), in_tag, rng).text[0] for _ in range(40)}
    assert drawn == {"0", "1", "2"}


def test_a_question_that_comes_again_is_learned_again_and_nothing_is_sampled():
    script, rows = Script(), Rows(1, 2)
    once = rule()
    first, supply = run(once, script, rows)
    asked = len(script.asked)
    again, _ = run(once, script, rows, supply)
    assert len(script.asked) == asked and supply.counters["ssb/reused"] == 2
    as_said = {one.prompt.id: one for one in first}
    for one in again:
        assert torch.equal(one.top_logp, as_said[one.prompt.id].top_logp)
    anew = rule(reuse=False)
    _, supply = run(anew, script, rows)
    before = len(script.asked)
    run(anew, script, rows, supply)
    assert len(script.asked) > before and not anew.remembers_prompts()


def test_a_memory_that_was_saved_is_the_same_to_the_bit():
    lessons, prompt = Lessons(), Prompt("p", "")
    roles = torch.zeros(3, dtype=torch.uint8)
    one = Rollout(prompt, 0, torch.arange(2), torch.tensor([4, 5, 6]), roles, "text", "eos")
    ids, logp = torch.randint(0, 200_000, (3, 5)), -torch.rand(3, 5) * 30
    lessons.known["p"] = kept(one, ids, logp, 2.0)
    again = Lessons()
    again.load(plain(lessons.state()))
    found = again.rollout(prompt, 7, torch.arange(2))
    assert torch.equal(found.top_ids, ids) and torch.equal(found.top_logp, logp)
    assert torch.equal(found.tokens, one.tokens) and found.group == 7
    assert again.rollout(replace(prompt, id="q"), 0, torch.arange(2)) is None


def test_what_excludes_it_is_refused_and_absurd_settings_are():
    with pytest.raises(ValueError, match="SSB and PACS"):
        refuse_clashes([SSB(), PACS()], [rule()])
    for wrong in (
        {"weight": 0},
        {"temperature": 0},
        {"top": 0},
        {"rewrite": -1},
        {"solutions": 0},
    ):
        with pytest.raises(ValueError, match=rf"SSB\.{next(iter(wrong))} is"):
            SSB(**wrong)
    with pytest.raises(ValueError, match=r"SSBRollout\.hints is"):
        replace(rule(), hints="none")


# --------------------------------------------------------------------------------------------------- with a real model


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float64")


def solutions():
    rng = torch.Generator().manual_seed(1)
    rows = []
    for group, length in enumerate((3, 5)):
        prompt = Prompt(str(group), [{"role": "user", "content": f"question {group}"}])
        tokens = torch.randint(10, 200, (length,), generator=rng)
        roles = torch.full((length,), int(Role.EXPERT), dtype=torch.uint8)
        rows.append(Rollout(prompt, group, tokens[:1], tokens, roles, "", "eos", reward=1.0))
    return rows


def test_the_same_prompt_teaches_itself_nothing_and_both_paths_read_the_same_tokens(policy):
    rows = solutions()
    taught = Teacher(policy, SSB(top=5, temperature=2.0), 64)(rows, NOW)
    rows = [
        replace(one, top_ids=ids, top_logp=logp, temperature=2.0)
        for one, (ids, logp) in zip(rows, taught, strict=True)
    ]
    batch = collate(rows, [Role.EXPERT])
    groups = {"raw": Views(policy, rows, {}, NOW).groups("raw", [0, 1], picked=taught_ids)}
    asked = {"raw": ScoreOutputs(picked=True, grad=True)}
    packed = score_packed(policy, groups, asked, (2, 5))["raw"]
    repeated = score_repeated(policy, groups, asked, (2, 5))["raw"]
    on = batch.mask[..., None]
    expected = torch.where(on, taught_logp(rows, packed.logp.detach()), 0.0)
    torch.testing.assert_close(packed.picked * on, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(packed.picked * on, repeated.picked * on, rtol=1e-9, atol=1e-9)
    loss = SSB(top=5).terms({"raw": packed}, batch, NOW)["distillation"]
    assert loss.abs().max() < 1e-6
