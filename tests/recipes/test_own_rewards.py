"""Rewards and prompts of the user's own, from the command line alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl.recipes import papo, visurf
from mmrl.recipes.shared.launch import launch, resolved
from mmrl.recipes.shared.opening import Data
from mmrl.recipes.shared.own_rewards import BUILT_IN, collected, own_parts
from mmrl.recipes.shared.paying import STYLES, RewardWeights, style_of
from mmrl.types import Prompt, Rollout

NOTHING = torch.zeros(0, dtype=torch.long)
OWN = """
from helper_beside import HALF


def long_enough(rollout):
    "Ours: one answer."
    return HALF if len(rollout.text) > 2 else 0.0


def starts_well(prompts, completions, answer, **columns):
    "TRL's: all answers, as messages."
    return [float(c[0]["content"].startswith(a)) for c, a in zip(completions, answer)]


class Fixed:
    def __call__(self, rollout):
        return 0.25


class Needs:
    def __init__(self, path):
        self.path = path


number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(OWN)
    (tmp_path / "helper_beside.py").write_text("HALF = 0.5\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(text, answer="red"):
    prompt = Prompt("1", [{"role": "user", "content": "What?"}], answer=answer)
    return Rollout(prompt, 0, NOTHING, NOTHING, NOTHING, text, "eos")


def test_one_of_each_convention_is_paid_with_its_weight(own):
    weights = RewardWeights(
        own=(
            "my_rewards.py:long_enough=2",
            "my_rewards.py:starts_well",
            "./my_rewards.py:Fixed",
            "exact=0.1",
        )
    )
    with weights.rewards(style_of("plain")) as rewards:
        (paid,) = rewards([said("red")])
    assert paid.parts == {"long_enough": 0.5, "starts_well": 1.0, "Fixed": 0.25, "exact": 1.0}
    assert paid.reward == pytest.approx(2 * 0.5 + 1 + 0.25 + 0.1)


@pytest.mark.parametrize("style", STYLES)
def test_accuracy_and_format_are_those_of_the_style(style):
    parts = RewardWeights(own=("accuracy=0.5", "format=0.25")).parts(style_of(style))
    assert parts == RewardWeights(accuracy=0.5, format=0.25).parts(style_of(style))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_name_of_ours_makes_a_part(name):
    (weight, function), *_ = own_parts([f"{name}=0.5"], {}).values()
    assert weight == 0.5 and function is BUILT_IN[name]


def test_flags_are_collected_wherever_they_stand():
    args = ["7b", "--reward", "a.py:f", "--run.steps", "2", "--reward=number=0.5"]
    assert collected(args) == ["7b", "--run.steps", "2", "--reward.own", "a.py:f", "number=0.5"]
    assert collected(["7b"]) == ["7b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my_rewards.py", r"my_rewards\.py:my_function"),
        ("choise", "Perhaps you meant 'choice'"),
        ("my_rewards.py:f=heavy", "weight 'heavy' is no finite number"),
        ("my_rewards.py:f=nan", "no finite number"),
        ("my_rewards.py:=1", "give my_file.py:function"),
        ("", "give my_file.py:function"),
    ],
)
def test_what_cannot_be_read_is_refused_as_it_was_written(text, message):
    with pytest.raises(ValueError, match=message) as error:
        RewardWeights(own=(text,))
    assert f"--reward {text}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("absent.py:f", "there is no file absent.py"),
        ("my_rewards.py:long_enuogh", "Perhaps you meant 'long_enough'"),
        ("my_rewards.py:number", "is a int, not a function"),
        ("my_rewards.py:Needs", r"pay = Needs\(…\)"),
        ("no_such_package.rewards:f", "cannot be imported"),
        ("broken.py:f", r"broken\.py cannot be imported \(line 2\): ZeroDivisionError"),
        ("wrong.py:f", r"fit no convention"),
    ],
)
def test_what_cannot_be_loaded_is_told_before_anything_is_loaded(own, capsys, text, message):
    (own / "broken.py").write_text("x = 1\ny = 1 / 0\n")
    (own / "wrong.py").write_text("def f(a, b, c):\n    return 1.0\n")

    with pytest.raises(SystemExit) as ended:
        launch(papo.main, papo.PRESETS, ["--reward", text, "--run.output", "out"])
    assert re.search(message, str(ended.value)) and not (own / "out").exists()


def test_the_same_name_in_two_files_and_twice_the_same(own):
    (own / "other.py").write_text("def long_enough(rollout):\n    return 1.0\n")
    parts = own_parts(["my_rewards.py:long_enough", "other.py:long_enough=3"], {})
    assert {name: weight for name, (weight, _) in parts.items()} == {
        "my_rewards_long_enough": 1.0,
        "other_long_enough": 3.0,
    }
    with pytest.raises(ValueError, match="is given twice"):
        own_parts(["other.py:long_enough", "other.py:long_enough=2"], {})


def test_a_name_that_the_recipe_has_itself_is_refused():
    with pytest.raises(ValueError, match="part called 'repetition'"):
        RewardWeights(own=("repetition",)).rewards(
            style_of("box"), repetition=(0.1, BUILT_IN["repetition"])
        )


def test_print_config_holds_what_was_asked_and_gives_it_back(own, capsys):
    flags = [
        "--reward",
        "my_rewards.py:long_enough=0.5",
        "--data.system",
        "Be brief.",
        "--data.style",
        "plain",
    ]
    launch(papo.main, papo.PRESETS, ["--print-config", *flags])
    (own / "config.json").write_text(capsys.readouterr().out)
    again = resolved(papo.main, papo.PRESETS, ["--config", "config.json"]).arguments
    assert again["reward"].own == ("my_rewards.py:long_enough=0.5",)
    assert again["data"].template().system == "Be brief."
    with_label = resolved(visurf.main, visurf.PRESETS, ["--reward=math"]).arguments
    assert with_label["reward"].own == ("math",)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (Data(style="box", suffix="Answer in one word."), "Why?\n\nAnswer in one word."),
        (Data(prompt="Q: {question} A:"), "Q: Why? A:"),
        (Data(prompt="{{ question }} ({{ row.hint }})"), "Why? (sky)"),
        (Data(prompt="p.jinja"), "From a file: Why?"),
        (Data(style="plain"), "Why?"),
    ],
)
def test_a_question_is_put_as_the_user_says(own, data, text):
    (own / "p.jinja").write_text("From a file: {{ question }}\n")
    assert data.template().fill("Why?", {"hint": "sky"}) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(prompt="absent.jinja"), "there is no file absent.jinja"),
        (Data(prompt="{question}", suffix="x"), "Both --data.prompt and --data.suffix"),
        (Data(prompt="Describe it."), "never shows the question"),
        (Data(prompt="{% if question %}"), "not valid jinja2"),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused(own, data, message):
    with pytest.raises(ValueError, match=message):
        data.template()


@pytest.mark.parametrize("given", [["--data.suffix", "x"], ["--data.columns", "question=q"]])
def test_what_a_drawn_task_would_not_look_at_is_refused(own, given):
    with pytest.raises(SystemExit, match=f"{given[0]} is for rows of your own"):
        launch(papo.main, papo.PRESETS, given)


def test_a_run_pays_and_asks_so_and_is_not_continued_otherwise(own, monkeypatch):
    Image.new("RGB", (32, 32), "red").save("red.png")
    rows = [
        {"image": "red.png", "question": f"Colour {i}?", "answer": "red"} for i in range(12)
    ]
    Path("rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    flags = [
        "embedded",
        "--dataset",
        "rows.jsonl",
        "--run.steps",
        "1",
        "--run.eval-prompts",
        "2",
    ]
    flags += ["--run.prompts-per-step", "2", "--run.output", "out", "--run.sample-every", "1"]
    pays = ["--reward", "my_rewards.py:long_enough=0.5", "--reward", "accuracy"]
    asks = ["--data.suffix", "Say it."]
    launch(papo.main, papo.PRESETS, [*flags, *pays, *asks])
    last = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[-1])
    paid = 0.5 * last["reward/long_enough"] + last["reward/accuracy"]
    assert last["reward/total"] == pytest.approx(paid, abs=1e-6)
    sample = Path("out/samples.jsonl").read_text().splitlines()[0]
    assert "Say it." in sample
    for other in ([*pays, "--data.suffix", "Say it loudly."], [*asks, *pays[:2]]):
        with pytest.raises(SystemExit, match="other settings"):
            launch(papo.main, papo.PRESETS, [*flags, *other])
    # The file says something else now: another reward under the same name.
    Path("my_rewards.py").write_text(OWN.replace("> 2", "> 3"))
    for name in [name for name in sys.modules if name.startswith("my_rewards_")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match="other settings"):
        launch(papo.main, papo.PRESETS, [*flags, *pays, *asks])
