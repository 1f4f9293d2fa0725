"""Samples in the trainer's terms: prompts, rewards, curriculum, evaluation, consistency."""

import json

import pytest
import torch

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.craft.procedural import scene
from mmrl.data.pretext.difficulty import LevelController
from mmrl.data.pretext.evaluate import evaluate_engine
from mmrl.data.pretext.marking.consistency import RuleJudge, split_reply
from mmrl.data.pretext.mixture import LearningProgress
from mmrl.data.pretext.presets import Ingredient, TaskMix
from mmrl.data.pretext.prompts import (
    Curriculum,
    PretextPrompts,
    above_chance_reward,
    pretext_correct,
    pretext_reward,
    solution_key,
    to_prompt,
)
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.stream.sources import DrawnSource, FolderSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.data.pretext.surface import Surface
from mmrl.ground.faults import BadRow
from mmrl.types import Rollout

MIX = TaskMix(
    "mix",
    (
        Ingredient("relative-position"),
        Ingredient("camera-motion", 1.0, {"frames": 4, "side": 64}),
    ),
)
EMPTY = torch.zeros(0, dtype=torch.long)


def prompts(size: int | None = None) -> PretextPrompts:
    return PretextPrompts(SampleStream(DrawnSource(0, (240, 320)), MIX), size)


def answered(prompt, text: str, group: int = 0) -> Rollout:
    return Rollout(prompt, group, EMPTY, EMPTY, torch.zeros(0, dtype=torch.uint8), text, "eos")


def test_prompts_are_random_access_and_repeatable() -> None:
    first, second = prompts()[7], prompts()[7]
    assert first.id == second.id and torch.equal(first.media[0].frames, second.media[0].frames)
    assert prompts().size is None and prompts(5).size == 5
    with pytest.raises(ValueError, match="at least 1"):
        prompts(0)


def test_media_keep_layout_and_times() -> None:
    collection = prompts()
    seen = set()
    for index in range(12):
        prompt = collection[index]
        kinds = [
            part["type"] for part in prompt.messages[0]["content"] if part["type"] != "text"
        ]
        assert len(kinds) == len(prompt.media)
        for kind, medium in zip(kinds, prompt.media, strict=True):
            assert medium.frames.dtype == torch.uint8 and medium.frames.shape[1] == 3
            assert medium.is_video == (kind == "video") and (
                medium.times is None or len(medium.times) == 4
            )
            assert medium.duration is None or medium.duration == pytest.approx(1.0)
            seen.add(kind)
    assert seen == {"image", "video"}


def test_the_target_earns_one_and_noise_nothing() -> None:
    for index in range(6):
        prompt = prompts()[index]
        right, wrong = (
            answered(prompt, prompt.extra["target"]),
            answered(prompt, "I think it is blue"),
        )
        assert (
            pretext_reward(right) == above_chance_reward(right) == pretext_correct(right) == 1.0
        )
        assert (
            pretext_reward(wrong) == above_chance_reward(wrong) == pretext_correct(wrong) == 0.0
        )
        assert solution_key(wrong) == "invalid" != solution_key(right)
        json.dumps(
            {key: prompt.extra[key] for key in ("truth", "knobs", "surface", "evidence")}
        )


def test_evidence_is_read_by_the_masking_views() -> None:
    from mmrl.perception.evidence import evidence_pixels
    from mmrl.types import ViewContext

    sample = make(find("patchfit"), [scene(0, 1)])
    prompt = to_prompt(sample)
    height, width = prompt.media[0].frames.shape[-2:]
    shown = evidence_pixels(ViewContext(prompt, 0), height, width, 1)
    assert torch.equal(
        shown[0], torch.from_numpy(sample.evidence[0].mask(sample.visuals[0].pixels))
    )


def test_rewards_refuse_other_prompts() -> None:
    from mmrl.types import Prompt

    with pytest.raises(ValueError, match="has no 'task'"):
        pretext_reward(answered(Prompt("x", []), "a"))


def test_an_index_without_sample_is_a_bad_row(tmp_path) -> None:
    (tmp_path / "bad.png").write_text("x")
    stream = SampleStream(FolderSource(tmp_path), TaskMix("p", (Ingredient("rotation"),)))
    with pytest.raises(BadRow, match="every medium"):
        PretextPrompts(stream)[0]


def test_the_curriculum_moves_levels_and_weights_and_resumes() -> None:
    def run(curriculum: Curriculum, steps: int) -> None:
        for step in range(steps):
            paid = []
            for index in range(8):
                prompt = to_prompt(curriculum.stream.sample(8 * step + index))
                easy = prompt.extra["task"] == "relative-position"
                paid.append(answered(prompt, prompt.extra["target"] if easy else "no"))
            curriculum.apply(curriculum.observe(paid), progress=step / 10)

    def fresh() -> Curriculum:
        stream = SampleStream(DrawnSource(0, (240, 320)), MIX)
        return Curriculum(
            stream, LevelController(start=0.5, window=4, step=0.1), LearningProgress()
        )

    first = fresh()
    run(first, 3)
    assert first.levels.levels["relative-position"] > 0.5 > first.levels.levels["camera-motion"]
    second = fresh()
    second.load(json.loads(json.dumps(first.state())))
    assert second.stream.shares() == first.stream.shares()
    assert second.stream.sample(50).id == first.stream.sample(50).id
    metrics = first.apply({"relative-position": (2.0, 4)})
    assert (
        metrics["pretext/success/relative-position"] == 0.5
        and "pretext/level/relative-position" in metrics
    )


class Scripted:
    """An engine that knows a share of the answers."""

    def __init__(self, share: float) -> None:
        self.share, self.asked = share, 0

    def generate(self, prompts, sampling, now):
        out = []
        for prompt in prompts:
            self.asked += 1
            knows = (self.asked * self.share) % 1 < self.share
            out.append(
                answered(prompt, prompt.extra["target"] if knows else "no idea", self.asked)
            )
        return out

    def sync(self, policy) -> None:
        return None


def test_evaluation_reports_accuracy_chance_and_intervals() -> None:
    stream = SampleStream(DrawnSource(0, (240, 320)), MIX)
    perfect = evaluate_engine(Scripted(1.0), "all", stream, 20)
    assert perfect.overall == 1.0 and {r.task for r in perfect.results} == {
        "relative-position",
        "camera-motion",
    }
    half = evaluate_engine(Scripted(0.5), "half", stream, 40)
    for result in half.results:
        low, high = result.accuracy_interval
        assert low < result.accuracy < high and 0.2 < result.accuracy < 0.8
        assert result.above_chance < result.reward and result.unreadable == pytest.approx(
            1 - result.accuracy
        )
    assert "relative-position" in half.table() and json.dumps(half.json())
    nothing = evaluate_engine(Scripted(0.0), "none", stream, 10)
    assert nothing.overall < 0.0


def test_the_rule_judge_compares_the_last_named_answer() -> None:
    task, truth = find("rotation"), {"answer": 90, "step": 90, "near": 0.0}
    judge = RuleJudge(task, truth)
    assert judge("First 0. It was turned by 90 degrees.", "90") == 1
    assert judge("It was turned by 90 degrees.\nNo, 180.", "90") == 0
    assert judge("I cannot tell.", "90") is None and judge("90.", "forty") == 0
    jigsaw = RuleJudge(find("jigsaw"), {"answer": [2, 1, 3], "pieces": [1, 2, 3], "gamma": 0.2})
    assert jigsaw("The sky is in piece 3. So the order is 3, 1, 2.", "3, 1, 2") == 1
    assert jigsaw("So the order is 1, 2, 3.", "3, 1, 2") == 0
    assert "not the paper" in judge.name


def test_replies_are_split_into_reasoning_and_answer() -> None:
    surface = Surface(thinking="think")
    reply = "<think>turned by 90</think><answer>90</answer>"
    assert split_reply(reply, surface) == ("turned by 90", "90")
    assert split_reply("<think>turned by 180</think> no answer", surface) == (
        "turned by 180",
        None,
    )
