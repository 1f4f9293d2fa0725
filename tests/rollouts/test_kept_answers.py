"""Answers in a file: nothing is asked twice, nothing is reused for another question, a crash costs one block."""

from dataclasses import replace

import pytest
import torch

from mmrl.ground.calls import Action, Call
from mmrl.rollouts.kept_answers import HEADER, KeptAnswers
from mmrl.types import Media, Now, Prompt, Rollout, Sampling

NOW = Now(0, 0.0, 3)
TWO = Sampling(group_size=2)
CALLS = (
    Call(
        "look", Action("look", {"box": [1, 2]}), "answered", found={"n": 1}, said="so", shown=1
    ),
    Call("", None, "refused", "nobody reads this"),
)


class Speaker:
    """Counts what it is asked; stops working after `limit` questions."""

    def __init__(self, limit=1000):
        self.asked, self.limit = [], limit

    def generate(self, prompts, sampling, now):
        answers = []
        for group, prompt in enumerate(prompts):
            if len(self.asked) >= self.limit:
                raise KeyboardInterrupt
            self.asked.append(prompt.id)
            for number in range(sampling.group_size):
                ids, roles = torch.tensor([5, 6]), torch.zeros(1, dtype=torch.uint8)
                tokens = torch.tensor([number])
                text = f"{prompt.id}/{number} é\u2028"
                said = (prompt, group, ids, tokens, roles, text, "eos")
                answers.append(Rollout(*said, temperature=0.5, calls=CALLS))
        return answers


def prompts(count, value=0):
    frames = torch.full((1, 3, 2, 2), value, dtype=torch.uint8)
    message = ({"role": "user", "content": "?"},)
    return [Prompt(f"q{n}", message, (Media(frames),), "1") for n in range(count)]


def same(first, second):
    return (
        (first.text, first.group, first.stop, first.temperature, first.prompt.id)
        == (second.text, second.group, second.stop, second.temperature, second.prompt.id)
        and first.calls == second.calls
        and torch.equal(first.tokens, second.tokens)
        and torch.equal(first.prompt_ids, second.prompt_ids)
        and torch.equal(first.roles, second.roles)
    )


def test_a_stopped_evaluation_goes_on(tmp_path):
    file, rows = tmp_path / "new" / "a.jsonl", prompts(7)
    whole = Speaker().generate(rows, TWO, NOW)
    with pytest.raises(KeyboardInterrupt):
        KeptAnswers(Speaker(limit=5), file, "m", at_once=2).generate(rows, TWO, NOW)
    # Cut in the middle of a line, as a crash leaves it.
    with file.open("a") as torn:
        torn.write('{"key": "00')
    speaker = Speaker()
    kept = KeptAnswers(speaker, file, "m", at_once=2)
    found = kept.generate(rows, TWO, NOW)
    assert speaker.asked == ["q4", "q5", "q6"] and kept.reused == 4
    assert len(found) == 14 and all(map(same, found, whole))
    again = Speaker()
    found = KeptAnswers(again, file, "m").generate(rows, TWO, NOW)
    assert again.asked == [] and all(map(same, found, whole))


@pytest.mark.parametrize(
    ("key", "rows", "sampling", "now"),
    [
        ("other", prompts(1), TWO, NOW),
        ("m", prompts(1, value=1), TWO, NOW),
        ("m", prompts(1), replace(TWO, temperature=0.3), NOW),
        ("m", prompts(1), TWO, Now(0, 0.0, 4)),
    ],
)
def test_nothing_is_reused_for_something_else(tmp_path, key, rows, sampling, now):
    file = tmp_path / "a.jsonl"
    KeptAnswers(Speaker(), file, "m").generate(prompts(1), TWO, NOW)
    speaker = Speaker()
    KeptAnswers(speaker, file, key).generate(rows, sampling, now)
    assert speaker.asked == ["q0"]


def test_a_question_that_is_there_twice_keeps_both_answers(tmp_path):
    rows = prompts(1) * 3 + prompts(2)[1:]
    speaker = Speaker()
    found = KeptAnswers(speaker, tmp_path / "a.jsonl", "m", at_once=1).generate(rows, TWO, NOW)
    assert speaker.asked == ["q0", "q0", "q0", "q1"]
    assert [answer.group for answer in found] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("content", ["notes\n", HEADER + "[]\n", HEADER + "{}\n", "", "\n"])
def test_other_files_are_left_alone(tmp_path, content):
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match="is no file of kept answers"):
        KeptAnswers(Speaker(), file, "m")
    assert file.read_text() == content


def test_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train with the engine itself"):
        KeptAnswers(Speaker(), tmp_path / "a.jsonl", "m").sync(None)
    with pytest.raises(ValueError, match="at least one"):
        KeptAnswers(Speaker(), tmp_path / "a.jsonl", "m", at_once=0)


def test_what_answers_have_in_common_and_show_is_kept(tmp_path):
    """Paths and the media inside answers come back as they were."""
    (row,) = prompts(1)
    still = Media(torch.randint(0, 256, (1, 3, 4, 6), dtype=torch.uint8))
    clip = Media(
        torch.randint(0, 256, (2, 3, 2, 2), dtype=torch.uint8),
        torch.tensor([0.0, 1 / 3], dtype=torch.float64),
        0.7,
    )

    class Forked(Speaker):
        def generate(self, prompts, sampling, now):
            first, second = super().generate(prompts, sampling, now)
            return [
                replace(first, path=((0, 1), (7, 0)), media=(still, clip)),
                replace(second, path=((0, 1), (2, 0))),
            ]

    KeptAnswers(Forked(), tmp_path / "a.jsonl", "m").generate([row], TWO, NOW)
    first, second = KeptAnswers(Speaker(limit=0), tmp_path / "a.jsonl", "m").generate(
        [row], TWO, NOW
    )
    assert first.path == ((0, 1), (7, 0)) and second.path == ((0, 1), (2, 0))
    assert second.media == ()
    for found, right in zip(first.media, (still, clip), strict=True):
        assert torch.equal(found.frames, right.frames) and found.duration == right.duration
    assert first.media[0].times is None and torch.equal(first.media[1].times, clip.times)
