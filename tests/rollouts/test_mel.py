"""MEL: pairs, texts about them, the replay that keeps a text, and what is learned of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import Totals, reduced
from mmrl.model.packing import collate
from mmrl.objectives.ampo import AMPO
from mmrl.objectives.base import shaped_in_turn
from mmrl.objectives.mel import MEL
from mmrl.objectives.pacs import PACS
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.mel import MELRollout, experience
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.rewording import with_pair
from mmrl.rollouts.stages import OneStep
from mmrl.rollouts.teachers import WithTeachers
from mmrl.training.clashes import refuse_clashes
from mmrl.training.compatibility import check_setup
from mmrl.types import Media, Now, Prompt, Prompts, Role, Rollout, Sampling, Scores

NOW, FOUR = Now(1, 0.1, seed=3), Sampling(4, 0.7, max_tokens=6)
PICTURE = Media(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


class Rows(Prompts):
    """Question n: n of its four answers are right; what is written about it is `written[n]`."""

    size = 5

    def __getitem__(self, index):
        content = [{"type": "image"}, {"type": "text", "text": f"question {index}"}]
        return Prompt(str(index), [{"role": "user", "content": content}], media=(PICTURE,))


class Script:
    """Says "right 0", "wrong 1", …; writes what it is told; a replay is right where the text says "helps"."""

    def __init__(self, text="it helps", stop="eos"):
        self.text, self.stop, self.asked = text, stop, []

    def generate(self, prompts, sampling, now, *, counts=None, first=None, **more):
        found = []
        for group, prompt in enumerate(prompts):
            said = "".join(part.get("text", "") for part in prompt.messages[0]["content"])
            assert prompt.messages[0]["content"][0]["type"] == "image" and prompt.media
            self.asked.append((prompt, said))
            for n in range(counts[group] if counts else sampling.group_size):
                own = torch.tensor([n, 9]), torch.zeros(2, dtype=torch.uint8)
                text, stop = self.says(prompt, said, n)
                one = Rollout(prompt, group, torch.tensor([5]), *own, text, stop)
                found.append(replace(one, logp=torch.zeros(2), temperature=0.7))
        return found

    def says(self, prompt, said, number):
        if "analyst" in said:
            return self.text, self.stop
        if "remember" in said:
            return "right" if "helps" in said else "wrong", "eos"
        return f"{'right' if number < int(prompt.id) else 'wrong'} {number}", "eos"


def pay(rollouts):
    return [
        replace(r, reward=float("right" in r.text), correct="right" in r.text) for r in rollouts
    ]


def run(script, check=None, **numbers):
    supply = Supply(Rows(), 5, seed=0)
    rule = MELRollout(mel=MEL(**numbers), check=check)
    found = rule(OneStep(script), pay, supply, FOUR, NOW)
    own = [one for one in found if one.origin == "policy"]
    return own, [one for one in found if one.origin == "expert"], supply.counters


def test_mixed_groups_write_and_what_helps_is_kept_in_the_context_it_was_written_in():
    script = Script()
    own, texts, counters = run(script)
    assert len(own) == 20 and counters["mel/pairs"] == counters["mel/validated"] == 3
    assert sorted(t.prompt.extra["made_from"] for t in texts) == ["1", "2", "3"]
    for text in texts:
        said = text.prompt.messages[0]["content"][-1]["text"]
        wrong, right = said.index("wrong:\nwrong"), said.index("right:\nright")
        assert wrong < right and "it helps" not in said
        assert (text.text, text.temperature, text.logp) == ("it helps", 1.0, None)
        assert set(text.roles.tolist()) == {int(Role.EXPERT)} and text.correct
    groups = Counter(r.group for r in [*own, *texts])
    assert sorted(groups.values()) == [1] * 3 + [4] * 5, "each text is a group of its own"
    replays = [said for _, said in script.asked if "remember" in said]
    assert len(replays) == 3 and all("it helps" in said for said in replays)
    assert not any("analyst" in said for said in replays)
    again = run(Script())[1]
    assert [t.prompt.messages for t in again] == [t.prompt.messages for t in texts]


@pytest.mark.parametrize(
    ("script", "count"),
    [
        (Script("of no use"), ("mel/validated", 0)),
        (Script("it helps", "length"), ("mel/cut", 3)),
        (Script("  "), ("mel/cut", 3)),
    ],
)
def test_what_does_not_help_or_has_no_end_is_not_learned(script, count):
    own, texts, counters = run(script)
    assert not texts and len(own) == 20 and counters[count[0]] == count[1]


def test_pairs_are_different_and_at_most_all():
    for pairs, written in ((2, 6), (3, 9), (9, 10)):
        script = Script()
        _, texts, counters = run(script, pairs=pairs)
        assert counters["mel/pairs"] == len(texts) == written
        assert len({str(t.prompt.messages) for t in texts}) == written


def test_pairs_without_room_are_counted():
    def check(prompt):
        if "analyst" in str(prompt.messages):
            raise BadRow("too long")

    _, texts, counters = run(Script(), check)
    assert not texts and counters["mel/too_long"] == 3


def test_off_it_is_the_plain_rollout():
    script = Script()
    own, texts, _ = run(script, weight=0.0)
    plain = group_rollout(OneStep(Script()), pay, Supply(Rows(), 5, seed=0), FOUR, NOW)
    assert not texts and len(script.asked) == 5
    assert [(r.text, r.group, r.prompt.id) for r in own] == [
        (r.text, r.group, r.prompt.id) for r in plain
    ]


# ---------------------------------------------------------------------------------------------------------- objective


def batch_of(lengths, texts):
    """Answers of one group, right and wrong in turn, and behind them texts."""
    prompt = Prompt("p", "question")

    def rollout(length, group, reward):
        tokens = torch.arange(length)
        roles = torch.zeros(length, dtype=torch.uint8)
        return Rollout(
            prompt, group, torch.tensor([5]), tokens, roles, "t", "eos", reward=reward
        )

    own = [rollout(length, 0, float(n % 2)) for n, length in enumerate(lengths)]
    given = [experience(rollout(length, 1, 1.0), n + 1) for n, length in enumerate(texts)]
    batch = collate([*own, *given], [Role.POLICY, Role.EXPERT])
    advantage = group_normalized(batch.reward, batch.group, batch.mask)
    return replace(batch, advantage=advantage[:, None] * batch.mask)


def terms_of(mel, batch):
    shaped = shaped_in_turn([mel], [None], batch, NOW)
    torch.manual_seed(0)
    logp = -torch.rand(batch.mask.shape, dtype=torch.float64)
    # What is no token may hold anything.
    logp = torch.where(batch.mask, logp, torch.nan).requires_grad_()
    seen = replace(shaped, kept=shaped.shaped[0].kept)
    return shaped, logp, mel.terms({"raw": Scores(logp)}, seen, NOW)


def test_the_loss_is_the_mean_over_texts_of_their_mean_likelihood():
    batch = batch_of([3, 5, 2, 4], [4, 7])
    shaped, logp, terms = terms_of(MEL(weight=0.5), batch)
    mask = shaped.mask
    totals = Totals(int(mask.sum()), int(mask.any(1).sum()))
    found = reduced(terms["experience"], mask, totals, MEL.reductions["experience"], 0)
    printed = -0.5 * (logp[4, :4].mean() + logp[5, :7].mean()) / 2
    # The factor that it shares with GRPO's own mean: four of six answers.
    torch.testing.assert_close(found, printed * 4 / 6)
    found.backward()
    on = logp.grad != 0
    assert torch.equal(on, batch.roles == Role.EXPERT), "gradients on the texts alone"
    assert torch.equal(shaped.advantage[:4], batch.advantage[:4]) and shaped.advantage[0].any()
    assert not shaped.advantage[4:].any()


def test_a_text_has_no_advantage_whatever_the_estimator_gives():
    """As one without a baseline would."""
    batch = batch_of([3, 5], [4])
    shaped, *_ = terms_of(MEL(), replace(batch, advantage=2.0 * batch.mask))
    assert (
        not shaped.advantage[2].any() and (shaped.advantage[:2] == 2.0 * batch.mask[:2]).all()
    )


def test_without_a_text_there_is_no_loss_and_grpo_is_as_it_was():
    batch = batch_of([3, 5], [])
    shaped, _, terms = terms_of(MEL(), batch)
    assert terms["experience"].eq(0).all()
    assert torch.equal(shaped.advantage, batch.advantage)
    assert torch.equal(shaped.mask, batch.mask)
    off, _, terms = terms_of(MEL(weight=0.0), batch_of([3, 5], [4]))
    assert terms == {} and not off.mask[2].any() and off.mask[:2].any()


def test_what_excludes_it_is_refused_with_both_names():
    rollout = MELRollout(mel=MEL())
    teachers = WithTeachers(lambda text: torch.tensor([1]))
    for objectives, parts, message in (
        ([AMPO()], [rollout, teachers], "MELRollout and WithTeachers"),
        ([PACS()], [rollout], "MELRollout and PACS"),
        ([], [rollout, MELRollout(mel=MEL())], "MELRollout and MELRollout"),
    ):
        with pytest.raises(ValueError, match=message):
            refuse_clashes(objectives, parts)
    setup = [MEL()], {}, group_rollout, group_normalized, GRPO(), OneStep(Script()), Rows()
    with pytest.raises(ValueError, match=r"MEL reads 'experience' answers.*MELRollout"):
        check_setup(*setup)


def test_answers_go_to_their_places_whatever_they_hold():
    assert with_pair("a {wrong} b {right} c", "{right}", "{wrong}") == "a {right} b {wrong} c"
    assert with_pair("{right}, {wrong}", "w", "r") == "r, w"
    for words in ({"analyst": "{wrong}"}, {"remember": "none"}):
        with pytest.raises(ValueError, match=rf"MELRollout\.{next(iter(words))} is"):
            MELRollout(**words)


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"pairs": 0}])
def test_numbers_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"MEL\.{next(iter(wrong))} is"):
        MEL(**wrong)
