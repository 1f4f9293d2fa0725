"""Rewards: functions, calling conventions, weights, policies, counters."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mmrl.ground.answers import boxed
from mmrl.rewards.functions import words_accuracy
from mmrl.rewards.graders import Graded
from mmrl.rewards.pay import (
    RepetitionPenalty,
    Rewards,
    RewardStopped,
    Unavailable,
    answer_format,
    batch,
    boxed_accuracy,
    choice_accuracy,
    exact_accuracy,
    grouped,
    in_process,
    needs,
    number_accuracy,
    tagged_accuracy,
    think_format,
)
from mmrl.types import Media, Prompt, Rollout

IMAGE = Media(torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5))


def rollout(
    text: str, answer: object = "4", group: int = 0, tokens: int = 3, **extra: object
) -> Rollout:
    prompt = Prompt(
        id=f"p{group}",
        messages=[
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "How many?"}],
            }
        ],
        media=(IMAGE,),
        answer=answer,
        source="drawn",
        extra=extra,
    )
    return Rollout(
        prompt=prompt,
        group=group,
        prompt_ids=torch.arange(7),
        tokens=torch.arange(tokens),
        roles=torch.zeros(tokens, dtype=torch.uint8),
        text=text,
        stop="eos",
        logp=torch.full((tokens,), -0.5),
    )


def groups(*texts: str, size: int = 2) -> list[Rollout]:
    return [rollout(text, group=index // size) for index, text in enumerate(texts)]


@contextmanager
def paying(**arguments: Any) -> Iterator[Rewards]:
    rewards = Rewards(**({"workers": 1} | arguments))
    try:
        yield rewards
    finally:
        rewards.close()


def values(paid: list[Rollout]) -> list[float | None]:
    return [one.reward for one in paid]


def length(answer: Rollout) -> float:
    return len(answer.text) / 10


GOOD = r"<think>2 + 2</think> so \boxed{4}"


@pytest.mark.parametrize(
    ("function", "text", "answer", "value"),
    [
        (boxed_accuracy, GOOD, "4", 1.0),
        (boxed_accuracy, r"\boxed{\frac{8}{2}}", 4, 1.0),
        (boxed_accuracy, r"\boxed{5}", "4", 0.0),
        (boxed_accuracy, "4", "4", 0.0),
        (boxed_accuracy, "no box", "None", 0.0),
        (tagged_accuracy, "<answer>\n4\n</answer>", "4", 1.0),
        (tagged_accuracy, r"<answer>so \boxed{4}</answer>", ["5", "4"], 1.0),
        (tagged_accuracy, r"\boxed{4}", "4", 0.0),
        (words_accuracy, "<answer> Circle  red </answer>", "red circle", 1.0),
        (words_accuracy, "<answer>red circle red</answer>", "red circle", 0.0),
        (words_accuracy, "<answer>b a a</answer>", ["a b", "a b a"], 1.0),
        (words_accuracy, "red circle", "red circle", 0.0),
        (words_accuracy, "<answer></answer>", "red circle", 0.0),
        (choice_accuracy, "<answer>(B)</answer>", "B", 1.0),
        (choice_accuracy, "<answer>A or B</answer>", "B", 0.0),
        (number_accuracy, "I see 12 of 20: 12.", "12", 1.0),
        (number_accuracy, r"\boxed{1,200 cm}", 1200, 1.0),
        (number_accuracy, "<think>12", "12", 0.0),
        (functools.partial(number_accuracy, tolerance=0.05), r"\boxed{104}", "100", 1.0),
        (number_accuracy, r"\boxed{104}", "100", 0.0),
        (exact_accuracy, "<answer> Red  Circle. </answer>", "red circle", 1.0),
        (exact_accuracy, "<answer>red</answer>", "red circle", 0.0),
    ],
)
def test_accuracy_functions(
    function: Callable[[Rollout], float], text: str, answer: object, value: float
) -> None:
    assert function(rollout(text, answer)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        ("< think > a < / think > \\boxed{2} and more", 1.0),
        ("<think>a</think>b<think>c</think>\\boxed{4}", 1.0),
        (r"\boxed{4}", 0.0),
        ("<think>x</think>4", 0.0),
        (r"<think>x</think>\boxed{", 0.0),
        (r"<think>\boxed{4}</think>", 0.0),
        (r"so <think>x</think>\boxed{4}", 0.0),
        ("", 0.0),
    ],
)
def test_think_format_is_papos(text: str, value: float) -> None:
    assert think_format(rollout(text)) == value


def test_think_format_with_the_tag_in_the_template() -> None:
    assert think_format(rollout(r"x</think>\boxed{4}"), opened=True) == 1.0
    assert think_format(rollout(r"x</think>\boxed{4}")) == 0.0


def test_answer_format() -> None:
    assert answer_format(rollout("<think>t</think>\n<answer>4</answer>\n")) == 1.0
    assert answer_format(rollout("<answer>4</answer>")) == 0.0
    assert answer_format(rollout("<answer>4</answer>"), think=False) == 1.0
    for text in (
        "<think>t</think>so <answer>4</answer>",
        "<think>t</think><answer>4</answer><answer>5</answer>",
        "",
    ):
        assert answer_format(rollout(text)) == 0.0


def test_repetition_penalty() -> None:
    assert RepetitionPenalty(n=2)(rollout("a b c d")) == 0.0
    assert RepetitionPenalty(n=2)(rollout("a b A b a b")) == pytest.approx(-(1 - 2 / 5))
    assert RepetitionPenalty()(rollout("too short")) == 0.0
    with pytest.raises(ValueError, match="at least 1"):
        RepetitionPenalty(n=0)


def test_formats_take_linear_time_on_long_answers() -> None:
    began = time.perf_counter()
    for unit in (" ", "<think>", "</think>", "\\boxed{", "</think>\\boxed{ ", "<answer>", "a "):
        long = rollout("<think>" + unit * (200_000 // len(unit)))
        for function in (think_format, answer_format, RepetitionPenalty()):
            function(long)
    assert time.perf_counter() - began < 5.0


def test_weighted_sum_makes_new_records() -> None:
    given = [rollout(GOOD), rollout(r"\boxed{4}")]
    with paying(accuracy=(0.9, boxed_accuracy), format=(0.1, think_format)) as rewards:
        paid = rewards(given)
        assert rewards.weights == {"accuracy": 0.9, "format": 0.1}
        assert rewards([]) == []
    assert values(paid) == pytest.approx([1.0, 0.9])
    assert [dict(one.parts) for one in paid] == [
        {"accuracy": 1.0, "format": 1.0},
        {"accuracy": 1.0, "format": 0.0},
    ]
    assert given[0].reward is None and isinstance(paid[0].tokens, torch.Tensor)
    assert rewards.metrics().keys() == {
        "time/reward",
        "time/reward_accuracy",
        "time/reward_format",
    }


def chars_trl(completions: list, **kwargs: object) -> list[float]:
    """TRL's documented example for chat prompts."""
    return [float(len(completion[0]["content"])) for completion in completions]


def columns_trl(
    prompts: list,
    completions: list,
    answer: list,
    mask: list,
    completion_ids: list,
    trainer_state=None,
):
    rows = zip(prompts, completions, answer, mask, completion_ids, strict=True)
    return [
        float(
            p[0]["role"] == "user"
            and c[0]["role"] == "assistant"
            and a == "4"
            and m.sum() == 6.0
            and i == [0, 1, 2]
        )
        for p, c, a, m, i in rows
    ] + [] * (trainer_state is None)


async def slow_trl(completions: list, solution: list, **kwargs: object) -> list[float | None]:
    await asyncio.sleep(0.01)
    return [float(s in c[0]["content"]) for c, s in zip(completions, solution, strict=True)]


async def slow(answer: Rollout) -> float:
    await asyncio.sleep(0.01)
    return float(isinstance(answer.tokens, torch.Tensor))


@batch
def ranks(answers: list[Rollout]) -> list[float]:
    order = sorted(answers, key=lambda one: len(one.text))
    return [float(order.index(one)) for one in answers]


class Judge:
    """A callable object of the user's, with an async call."""

    async def __call__(self, answer: Rollout) -> float:
        return 0.5


def test_every_convention_is_recognised() -> None:
    given = [rollout("4 a", mask=torch.ones(2, 3)), rollout("b", mask=torch.ones(2, 3))]
    with paying(
        ours=length,
        trl=chars_trl,
        columns=columns_trl,
        trl_async=slow_trl,
        ours_async=slow,
        ranks=ranks,
        judge=Judge(),
    ) as rewards:
        paid = rewards(given)
    assert [dict(one.parts) for one in paid] == [
        {
            "ours": 0.3,
            "trl": 3.0,
            "columns": 1.0,
            "trl_async": 1.0,
            "ours_async": 1.0,
            "ranks": 1.0,
            "judge": 0.5,
        },
        {
            "ours": 0.1,
            "trl": 1.0,
            "columns": 1.0,
            "trl_async": 0.0,
            "ours_async": 1.0,
            "ranks": 0.0,
            "judge": 0.5,
        },
    ]


def test_trl_completions_are_strings_for_string_prompts() -> None:
    plain = Prompt(id="p", messages="How many?", answer="4")  # type: ignore[arg-type]
    given = Rollout(
        plain,
        0,
        torch.arange(2),
        torch.arange(2),
        torch.zeros(2, dtype=torch.uint8),
        "four",
        "eos",
    )

    def trl(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [float(len(p) + 100 * len(c)) for p, c in zip(prompts, completions, strict=True)]

    with paying(trl=trl) as rewards:
        assert values(rewards([given])) == [409.0]


def test_misfits_are_refused_with_a_reason() -> None:
    for parts, message in (
        ({}, "at least one part"),
        ({"a": lambda x, y: 0.0}, r"\(x, y\), which fit no convention"),
        ({"a": lambda: 0.0}, "fit no convention"),
        ({"a": 0.5}, "give a function"),
        ({"a": (float("nan"), length)}, "weight of the reward part 'a' is nan"),
        ({"a": length, "on_failure": "ignore"}, "must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            Rewards(**parts)
    with pytest.raises(ValueError, match="names \\['pixels'\\]"):
        needs("pixels")

    def trl(completions: list, difficulty: list) -> list[float]:
        return [1.0 for _ in difficulty]

    with (
        paying(a=trl) as rewards,
        pytest.raises(ValueError, match=r"asks for the columns \['difficulty'\].*'answer'"),
    ):
        rewards([rollout("x")])


@needs("media", "prompt_ids", "logp")
def looks(answer: Rollout) -> float:
    return (
        float(answer.prompt.media[0].frames.sum()) + len(answer.prompt_ids) + sum(answer.logp)
    )  # type: ignore[arg-type]


def looks_unasked(answer: Rollout) -> float:
    return float(answer.prompt.media[0].frames.sum())


def test_pixels_travel_only_on_demand(caplog: pytest.LogCaptureFixture) -> None:
    with paying(seeing=looks, blind=looks_unasked) as rewards:
        paid = rewards([rollout("x")])
    assert paid[0].parts["seeing"] == float(sum(range(120))) + 7 - 1.5
    assert paid[0].parts["blind"] == 0.0
    assert rewards.metrics()["reward_failures/blind_exception"] == 1
    assert '@needs("media")' in caplog.text


class Model:
    """Holds what cannot travel."""

    lock = threading.Lock()

    @in_process
    def pay(self, answer: Rollout) -> float:
        assert self.lock is Model.lock
        return float(os.getpid() == os.getppid() or answer.tokens.numel())


def test_marked_functions_run_here_with_tensors() -> None:
    with paying(
        model=Model().pay, isolated=lambda one: float(isinstance(one.tokens, list))
    ) as rewards:
        assert dict(rewards([rollout("x")])[0].parts) == {"model": 3.0, "isolated": 1.0}
    with paying(isolate=False, here=lambda one: float(one.tokens.numel())) as rewards:
        assert values(rewards([rollout("x")])) == [3.0]


def wild(answer: Rollout) -> Any:
    """Do what the text says."""
    if answer.text == "loop":
        while True:
            pass
    if answer.text == "power":
        return 9**9**9
    if answer.text == "exit":
        os._exit(1)
    if answer.text == "raise":
        raise KeyError("gold")
    return {"nan": float("nan"), "inf": math.inf, "text": "1.0", "none": None}.get(
        answer.text, 1.0
    )


def test_each_failure_costs_one_answer_and_has_a_name() -> None:
    texts = ("loop", "power", "exit", "raise", "nan", "inf", "text", "fine", "fine")
    with paying(time_limit=0.8, wild=wild, length=(10.0, length)) as rewards:
        paid = rewards(groups(*texts))
        counts = rewards.metrics()
    assert [one.parts["wild"] for one in paid] == [0.0] * 7 + [1.0, 1.0]
    assert values(paid) == [float(len(text)) for text in texts[:7]] + [5.0, 5.0]
    failures = {
        name: count for name, count in counts.items() if name.startswith("reward_failures/")
    }
    assert failures == {
        "reward_failures/wild_timeout": 2,
        "reward_failures/wild_exit": 1,
        "reward_failures/wild_exception": 1,
        "reward_failures/wild_nonfinite": 2,
        "reward_failures/wild_not_a_number": 1,
    }
    assert rewards.metrics() == {}


def test_a_power_tower_given_to_the_symbolic_grader_costs_one_answer() -> None:
    # Our own rules know a tower when they see it; math-verify alone does not.
    grader = Graded(boxed, "math-verify")
    with paying(time_limit=4.0, accuracy=grader) as rewards:
        given = [
            rollout(rf"\boxed{{{answer}}}", r"2^{3}") for answer in ("8", "9^{9^{9^{9}}}", "8")
        ]
        assert values(rewards(given)) == [1.0, 0.0, 1.0]
        assert rewards.metrics()["reward_failures/accuracy_timeout"] == 1


def test_on_failure_drop_leaves_the_answer_out() -> None:
    with paying(on_failure="drop", wild=wild, length=length) as rewards:
        paid = rewards(groups("fine", "raise", "fine", "fine"))
        assert [one.group for one in paid] == [0, 1, 1]
        assert rewards.metrics()["reward_failures/dropped_answers"] == 1


def test_on_failure_stop_names_part_and_prompt() -> None:
    with (
        paying(on_failure="stop", wild=wild) as rewards,
        pytest.raises(
            RewardStopped,
            match=r"(?s)'wild' failed \(exception\) for answer 3 \(prompt 'p1'\).*KeyError",
        ),
    ):
        rewards(groups("fine", "fine", "fine", "raise"))


def test_a_part_that_never_works_stops_the_run() -> None:
    with paying(broken=lambda answer: answer.no_such_field) as rewards:
        for _ in range(3):
            rewards(groups(*["x"] * 16))
        with pytest.raises(RewardStopped, match="no_such_field"):
            rewards(groups(*["x"] * 16))


def test_none_drops_the_part_for_the_whole_group() -> None:
    with paying(wild=wild, length=(10.0, length)) as rewards:
        paid = rewards(groups("none", "fine", "fine", "fine"))
        counts = rewards.metrics()
    assert values(paid) == [4.0, 4.0, 5.0, 5.0]
    assert [one.parts["wild"] for one in paid] == [None, None, 1.0, 1.0]
    assert counts["reward_failures/wild_dropped_groups"] == 1


def test_a_group_without_any_part_is_left_out_and_an_empty_step_stops() -> None:
    with paying(wild=wild) as rewards:
        assert [one.group for one in rewards(groups("none", "fine", "fine", "fine"))] == [1, 1]
        assert rewards.metrics()["reward_failures/answers_without_reward"] == 2
        with pytest.raises(RewardStopped, match="None of the 2 answers"):
            rewards(groups("none", "fine"))


async def down(answer: Rollout) -> float:
    if answer.text == "ask":
        raise Unavailable("HTTP 503")
    if answer.text == "wait":
        await asyncio.sleep(60)
    return 1.0


@pytest.mark.parametrize("text", ["ask", "wait"])
def test_an_outage_stops_or_drops_but_never_pays_zero(text: str) -> None:
    given = groups("fine", text, "fine", "fine")
    with (
        paying(async_time_limit=0.3, judge=down, length=length) as rewards,
        pytest.raises(RewardStopped, match="judge"),
    ):
        rewards(given)
    with paying(
        async_time_limit=0.3, on_unavailable="drop", judge=down, length=length
    ) as rewards:
        paid = rewards(given)
        counts = rewards.metrics()
    assert [one.parts["judge"] for one in paid] == [None, None, 1.0, 1.0]
    assert values(paid) == pytest.approx([len(one.text) / 10 for one in given[:2]] + [1.4, 1.4])
    assert counts["reward_failures/judge_dropped_groups"] == 1


def wild_batch(prompts: list, completions: list, **columns: object) -> list[float]:
    texts = [completion[0]["content"] for completion in completions]
    if "loop" in texts:
        while True:
            pass
    return [1.0 for text in texts if text != "short"]


def test_a_failing_batch_is_repeated_so_that_one_costs_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = groups("a", "b", "loop", "c", "d", "short", "e", "f")
    with paying(time_limit=0.8, batch_time_limit=1.0, batched=wild_batch) as rewards:
        paid = rewards(given)
        counts = rewards.metrics()
    assert values(paid) == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    assert counts["reward_failures/batched_timeout"] == 1
    assert counts["reward_failures/batched_exception"] == 1
    assert counts["reward_failures/batched_repeated_batches"] == 3
    assert "'batched' failed (timeout) for 8 answers at once" in caplog.text


def test_it_works_where_an_event_loop_runs() -> None:
    async def notebook() -> list[Rollout]:
        with paying(slow=slow) as rewards:
            return rewards(groups("a", "b"))

    assert values(asyncio.run(notebook())) == [1.0, 1.0]


async def blocks(answer: Rollout) -> float:
    if answer.text == "block":
        time.sleep(4)
    return 1.0


def test_a_coroutine_that_blocks_its_loop_is_given_up() -> None:
    with paying(
        async_time_limit=0.2, on_unavailable="drop", judge=blocks, length=length
    ) as rewards:
        assert rewards(groups("block", "a"))[0].parts["judge"] is None
        assert values(rewards(groups("a", "a"))) == [1.1, 1.1]


@grouped
def longest(answers: list[Any]) -> list[float | None]:
    """1 for the longest of a group; what says "skip" is not compared, and "down" spoils the comparison."""
    texts = [one.text for one in answers]
    assert len({one.group for one in answers}) == 1, "one group a call"
    if "down" in texts:
        raise Unavailable("no comparison")
    most = max(map(len, texts))
    return [None if text == "skip" else float(len(text) == most) for text in texts]


@functools.wraps(longest)
def longest_alone(answers: list[Any]) -> list[float | None]:
    return longest(answers)


longest_alone.lacks_alone = True  # type: ignore[attr-defined]


def test_a_grouped_part_sees_whole_groups_and_fails_for_one_alone() -> None:
    given = groups("a", "abc", "down", "x", "yy", "skip")
    mixed = [given[0], given[2], given[4], given[1], given[3], given[5]]
    with paying(on_unavailable="drop", longest=longest, length=length) as rewards:
        paid = rewards(mixed)
        counts = rewards.metrics()
    assert [one.text for one in paid] == [one.text for one in mixed], "in order"
    found = {one.text: one.parts["longest"] for one in paid}
    assert found == {"a": 0.0, "abc": 1.0, "down": None, "x": None, "yy": None, "skip": None}
    assert counts["reward_failures/longest_unavailable"] == 2
    assert counts["reward_failures/longest_dropped_groups"] == 2
    assert "reward_failures/longest_repeated_batches" not in counts


def test_a_part_that_lacks_alone_leaves_out_its_answer_and_keeps_the_group() -> None:
    given = groups("a", "down", "x", "skip")
    with paying(on_unavailable="drop", longest=longest_alone, length=length) as rewards:
        paid = rewards(given)
        counts = rewards.metrics()
    assert [(one.text, one.parts["longest"]) for one in paid] == [("x", 0.0)]
    assert counts["reward_failures/answers_without_reward"] == 3
    with (
        paying(longest=longest_alone) as rewards,
        pytest.raises(RewardStopped, match="longest"),
    ):
        rewards(given)
