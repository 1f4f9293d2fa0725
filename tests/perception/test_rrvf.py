"""RRVF: what drawings of code pay, what hacks pay, and what a judge says. Real renderers where they are installed."""

import asyncio
import importlib.util
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmrl.ground.calls import Action, Call
from mmrl.perception import rendering
from mmrl.perception.likeness import Likeness
from mmrl.perception.rendering import NEEDS, Drawing, Renderer, blank_pages
from mmrl.perception.rrvf import (
    RRVF,
    Form,
    JudgedDrawing,
    Similarity,
    points,
    rescaled,
)
from mmrl.perception.rrvf_rounds import Draw, Showing, Shown
from mmrl.recipes.shared.drawing_data import Cells, draw_cells
from mmrl.rewards.code_answers import code_of
from mmrl.rewards.judge import LocalJudge
from mmrl.rewards.judged import Unreadable
from mmrl.rewards.pay import Rewards
from mmrl.tools.tool import Trajectory
from mmrl.types import Media, Prompt, Rollout

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="120" height="80">{}</svg>'
SHAPES = '<rect x="5" y="5" width="40" height="60" fill="red"/><circle cx="90" cy="40" r="25" fill="blue"/>'
CHART = (
    "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(3, 2))\n"
    "ax.bar(['a', 'b'], [3, 1], color={!r})\nax.set_title('Sales')\nplt.show()\nplt.close()\n"
)
PAGE = (
    "<body style='background: #eef'><h1>Hello</h1><img src='x.png' width=200 height=100></body>"
)


def need(language):
    for package in NEEDS[language]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def svg():
    need("svg")
    with Renderer("svg", workers=1) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def matplotlib():
    need("matplotlib")
    with Renderer("matplotlib", workers=1) as renderer:
        yield renderer


def answer(text, picture=None, **row):
    media = ()
    if picture is not None:
        media = (Media(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]),)
    one = torch.tensor([1])
    prompt = Prompt("q", [{"role": "user", "content": "q"}], media, extra=row)
    return Rollout(prompt, 0, one, one, one.to(torch.uint8), text, "eos")


def fenced(code, word="svg"):
    return f"<think> </think><answer>\n```{word}\n{code}\n```\n</answer>"


def paid(reward, *answers):
    async def all_of_them():
        return await asyncio.gather(*(reward(one) for one in answers))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (fenced("a"), "a"),
        ("<answer> <svg/> </answer>", "<svg/>"),
        (fenced("a")[:-9] + "or\n```\nb\n```\n</answer>", "b"),
        ("<answer>a</answer> then <answer>b</answer>", "b"),
        ("```python\na\n```", None),
        ("<answer> </answer>", None),
        ("<answer>\n```\n```\n</answer>", None),
        ("<answer>unclosed", None),
        ("", None),
    ],
)
def test_the_code_is_the_last_block_of_the_last_answer(text, code):
    assert code_of(text) == code


def test_a_blank_page_is_worth_nothing_and_the_same_picture_all():
    assert (rescaled(1.0, 0.6), rescaled(0.6, 0.6), rescaled(0.2, 0.6)) == (1.0, 0.0, 0.0)
    assert rescaled(0.8, 0.6) == pytest.approx(0.5) and rescaled(1.0, 1.0) == 0.0


def test_the_miniature_pays_what_is_right_cell_by_cell():
    """All right pays 1, the empty grid nothing, each right cell more than none, and what is no square no form."""
    pen, right = Cells(), "red circle, nothing, blue square, green triangle"
    picture = draw_cells(right).picture
    texts = [
        right,
        "red circle, nothing, blue square, nothing",
        "red circle, nothing, nothing, nothing",
    ]
    texts += ["nothing, nothing, nothing, nothing", "red circle, nothing", "so it is"]
    answers = [answer(f"<answer> {text} </answer>", picture) for text in texts]
    found = paid(Similarity(pen, Likeness(side=32)), *answers)
    assert found[0] == pytest.approx(1.0) and found[3:] == [0.0, 0.0, 0.0]
    assert 1 > found[1] > found[2] > 0
    assert paid(Form(pen), *answers) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    # Words the wrong way round draw nothing, and the rest of the list is still drawn.
    assert (
        draw_cells("circle red, nothing, blue square, green triangle").picture != picture
    ).any()


def test_rewards_use_both_parts_and_count_what_was_drawn():
    pen, settings = Cells(), RRVF()
    picture = draw_cells("red circle, nothing, nothing, nothing").picture
    answers = [
        answer(f"<answer> {text} </answer>", picture)
        for text in ("red circle, nothing, nothing, nothing", "a, b")
    ]
    parts = {"similarity": (0.8, Similarity(pen, Likeness(side=32))), "form": (0.2, Form(pen))}
    with Rewards(**parts, correct=("similarity", settings.right_above)) as rewards:
        right, wrong = rewards(answers)
        counted = rewards.metrics()
    assert (right.reward, wrong.reward) == (pytest.approx(1.0), 0.0)
    assert right.correct and not wrong.correct
    assert counted["render/drawn"] == 2 and counted["render/error"] == 2


def test_rows_without_a_picture_lose_the_part():
    assert paid(Similarity(Cells()), answer("<answer>red circle</answer>")) == [None]


def test_svg_is_drawn_the_same_twice_and_hacks_pay_nothing(svg):
    picture = svg(SVG.format(SHAPES)).picture
    assert picture.shape == (80, 120, 3)
    again = svg(SVG.format(SHAPES) + "\n").picture
    assert (picture == again).all()
    red_only = SVG.format(SHAPES.split("/>")[0] + "/>")
    image = '<image href="data:image/png;base64,AAAA" width="120" height="80"/>'
    blank = SVG.format('<rect width="120" height="80" fill="white"/>')
    codes = [
        SVG.format(SHAPES),
        red_only,
        blank,
        SVG.format(image),
        "<svg",
        SVG.format("<text"),
    ]
    answers = [answer(fenced(code), picture) for code in codes]
    found = paid(Similarity(svg, Likeness(side=96)), *answers)
    assert found[0] == pytest.approx(1.0) and 0 < found[1] < 0.9 and found[2:] == [0.0] * 4
    assert paid(Form(svg), *answers) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert svg(SVG.format(image)).fault == "forbidden"
    assert svg(SVG.format('<text y="20">Two words</text>')).words == ("Two words",)


def test_a_chart_is_rebuilt_with_its_words(matplotlib):
    drawn = matplotlib(CHART.format("tab:blue"))
    assert drawn.picture.shape == (200, 300, 3) and {"a", "b", "Sales"} <= set(drawn.words)
    assert (matplotlib(CHART.format("tab:blue") + "#").picture == drawn.picture).all()
    seen = Similarity(matplotlib, Likeness(side=96))
    codes = [
        CHART.format("tab:blue"),
        CHART.format("tab:green"),
        CHART.format("tab:blue").replace("Sales", "Cost"),
    ]
    answers = [answer(fenced(code), drawn.picture, words=list(drawn.words)) for code in codes]
    same, recoloured, renamed = paid(seen, *answers)
    assert same == pytest.approx(1.0) and recoloured < 1 and renamed < 1
    random = "import numpy, random, matplotlib.pyplot as plt\nplt.plot(numpy.random.rand(5) + random.random()){}"
    assert (
        matplotlib(random.format("")).picture == matplotlib(random.format("#")).picture
    ).all()


def test_programs_that_attack_are_bad_form_within_the_limit(matplotlib, monkeypatch):
    brief = rendering.Limits(
        seconds=1.5, memory_mb=1024, processes=16, output_kb=16, files_mb=8
    )
    monkeypatch.setattr(matplotlib._warm, "limits", brief)
    attacks = {
        "while True: pass": "time",
        "import os\nwhile True: os.fork()": "",
        "import socket\nsocket.create_connection(('192.0.2.1', 80), 1)": "error",
        "while True: print('x' * 100000)": "output",
        "import matplotlib.pyplot as plt\nplt.imread('picture.png')": "forbidden",
        "x = 1": "error",
        "def f(:": "error",
        "x" * 200_000: "too long",
        "import matplotlib.pyplot as plt\nplt.figure(figsize=(4000, 4000))": "",
    }
    began = time.monotonic()
    answers = [answer(fenced(code), np.zeros((9, 9, 3), np.uint8)) for code in attacks]
    form = Form(matplotlib)
    assert paid(form, *answers)[:8] == [0.0] * 8
    for code, fault in attacks.items():
        assert not fault or matplotlib(code).fault == fault, code[:80]
    assert time.monotonic() - began < 20
    assert form.metrics()["render/time"] >= 1
    assert matplotlib(CHART.format("red")).picture is not None


def test_pages_are_drawn_without_fetching_anything():
    need("html")
    try:
        import weasyprint  # noqa: F401
    except OSError as error:  # a library of the system is missing
        pytest.skip(str(error))
    with Renderer("html", workers=1) as renderer:
        drawn = renderer(PAGE)
    assert drawn.picture.shape == (768, 1024, 3) and drawn.words == ("Hello",)
    assert (drawn.picture[-1, -1] == (0xEE, 0xEE, 0xFF)).all()
    assert (drawn.picture == 0xCC).all(axis=-1).sum() >= 19_000, "the picture is a grey box"


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"svg needs resvg_py and matplotlib.*mmrl\[render\]"):
        Renderer("svg")
    with pytest.raises(ValueError, match="one of matplotlib, svg, html"):
        Renderer("tikz")


def test_a_judge_sees_both_pictures_and_an_unreadable_reply_is_no_zero():
    picture = draw_cells("red circle, nothing, nothing, nothing").picture
    heard = []

    def judge(chats):
        heard.extend(chats)
        return ["It differs. <score>3</score> no, <score> 7.5 </score>" for _ in chats]

    ok = answer("<answer>red circle, nothing, nothing, nothing</answer>", picture)
    bad = answer("<answer>a, b</answer>", picture)
    assert paid(JudgedDrawing(LocalJudge(judge), Cells()), ok, bad) == [0.75, 0.0]
    assert len(heard) == 1, "what draws nothing is not shown"
    shown = [part for part in heard[0][-1]["content"] if part["type"] == "image_url"]
    assert len(shown) == 2
    with pytest.raises(Unreadable):
        paid(JudgedDrawing(LocalJudge(lambda chats: ["eight" for _ in chats]), Cells()), ok)
    assert [points(text) for text in ("", "<score>11</score>", "<score>10</score>")] == [
        None,
        None,
        1.0,
    ]


def test_the_commonest_colour_is_a_blank_page():
    picture = np.full((4, 6, 3), 9, np.uint8)
    picture[0] = 200
    white, common = blank_pages(picture)
    assert (white == 255).all() and (common == 9).all() and common.shape == picture.shape
    assert Drawing().picture is None


def test_rounds_show_the_drawing_and_say_why_there_is_none():
    pen = Cells()
    tool = Draw(pen=pen)
    cells = "red circle, nothing, nothing, nothing"
    action = tool.parse(f"I look. <draw>{cells}</draw>")
    trajectory = Trajectory(answer("").prompt)
    seen = tool.act(action, trajectory)
    assert seen.found == {"drawn": True} and seen.marked() == "<image>"
    shown = seen.media[0].frames[0].permute(1, 2, 0).numpy()
    assert (shown == draw_cells(cells).picture).all()
    failed = tool.act(Action("draw", {"code": "a, b"}), trajectory)
    assert failed.found == {"drawn": False} and "It failed: 2 cells" in failed.text
    assert "<draw>" in tool.usage and tool.stop == ("</draw>",)
    with pytest.raises(ValueError, match="pen"):
        Draw()


def test_showing_is_paid_only_where_the_answer_keeps_up():
    """Three calls at most; nothing behind a better drawing that was shown, nor for a poor answer."""
    settings = Shown()
    assert (
        settings.paid([0.9, 0.5], 0.89, 0.7) == 2.0
        and settings.paid([0.9] * 5, 0.9, 0.7) == 3.0
    )
    assert settings.paid([0.9], 0.87, 0.7) == 0.0 and settings.paid([0.9], 0.95, 0.4) == 0.0
    assert settings.paid([], 1.0, 1.0) == 0.0
    right, half = (
        "red circle, nothing, nothing, blue square",
        "red circle, nothing, nothing, nothing",
    )
    picture = draw_cells(right).picture
    reward = Showing(Similarity(Cells(), Likeness(side=32)))

    def paid_for(final, *codes):
        calls = tuple(
            Call("draw", Action("draw", {"code": code}), "answered", found={"drawn": True})
            for code in codes
        )
        one = replace(answer(f"<answer>{final}</answer>", picture), calls=calls)
        return paid(reward, one)[0]

    assert paid_for(right, half) == 1.0 and paid_for(right, half, right) == 2.0
    assert (
        paid_for(half, right) == 0.0
        and paid_for(right) == 0.0
        and paid_for("a, b", half) == 0.0
    )
