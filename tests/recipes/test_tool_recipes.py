"""What the tool recipes share: labels with calls, the tools that settings make, questions that say what there is."""

from __future__ import annotations

import pytest
import torch

from mmrl.data.drawn.closer import Closer
from mmrl.model import tiny
from mmrl.model.policy import Policy
from mmrl.recipes.shared import closer_data
from mmrl.recipes.shared.closer_data import CloserLessons, CloserWarmUp, zoom_box
from mmrl.recipes.shared.supervised import label_rollout
from mmrl.recipes.shared.tool_boxes import Pages, VisualTools, told
from mmrl.recipes.shared.tool_labels import TURNS, Script
from mmrl.recipes.verltool import GroupBonus
from mmrl.rewards.pay import Rewards, exact_accuracy
from mmrl.rewards.tool_use import Curiosity, Redundancy
from mmrl.tools.toolbox import ToolUse
from mmrl.types import Prompt, Role, Rollout


@pytest.fixture(scope="module")
def policy():
    start = tiny.cached(size=closer_data.SIZE, corpus=closer_data.lesson_texts())
    return Policy.load(start, device="cpu", dtype="float32")


def test_labels_hold_what_tools_answer_and_train_what_the_model_says(policy):
    lessons, labels = CloserLessons(CloserWarmUp()), label_rollout(policy)
    kinds = set()
    for index in range(24):
        prompt = lessons[index]
        label = labels.label(0, prompt)
        script = prompt.extra.get(TURNS)
        kinds.add((prompt.extra["task"], script is not None))
        own = label.tokens[label.roles == int(Role.POLICY)]
        assert (
            len(label.tokens) == len(label.roles)
            and int(label.tokens[-1]) in policy.processing.stop_ids
        )
        turns = (prompt.extra["target"],) if script is None else script.turns
        assert policy.processing.answer_text(own) == "".join(turns)
        assert len(label.calls) == len(turns) - 1 == len(label.media)
        # Two visual tokens each way of every picture, whatever its own size.
        assert int((label.tokens == policy.processing.config.image_token_id).sum()) == 4 * len(
            label.media
        )
        assert set(label.roles.tolist()) <= {int(Role.POLICY), int(Role.OBSERVATION)}
    assert kinds == {(task, calls) for task in ("zoom", "pages") for calls in (True, False)}


def test_the_picture_in_a_label_is_the_crop_of_its_call(policy):
    prompt = Closer("zoom")[0]
    turns = (closer_data.call_at(1, 0), "<answer> x </answer>")
    label = label_rollout(policy).label(0, _with(prompt, turns))
    assert torch.equal(label.media[0].frames, prompt.media[0].frames[..., 32:64, 0:32])
    with pytest.raises(ValueError, match="calls no tool"):
        label_rollout(policy).label(0, _with(prompt, ("hello", "<answer> x </answer>")))


def _with(prompt, turns):
    extra = {**prompt.extra, TURNS: Script(turns, zoom_box)}
    return Prompt(prompt.id, prompt.messages, prompt.media, prompt.answer, extra=extra)


def test_settings_make_the_tools_and_questions_tell_of_them(policy):
    both = VisualTools().toolbox(policy.processing, ToolUse())
    assert [tool.name for tool in both.tools] == ["crop_image", "select_frames"]
    assert [
        t.name for t in VisualTools(crop=False).toolbox(policy.processing, ToolUse()).tools
    ] == ["select_frames"]
    rows = Closer("zoom", size=3)
    shown = told(rows, both, True)
    assert shown.size == len(shown) == 3 and told(rows, both, False) is rows
    assert (
        shown[1].messages[0]["content"][-1]["text"].endswith(both.usage)
        and shown[1].id == rows[1].id
    )
    pages = Pages().toolbox(policy.processing, ToolUse(), Closer("pages"))
    assert pages.stop == ("</search>", "</bbox>")
    with pytest.raises(ValueError, match=r"VisualTools\.crop"):
        VisualTools(crop=False, frames=False)
    with pytest.raises(ValueError, match=r"VisualTools\.tag"):
        VisualTools(tag="<a>")


def test_without_weights_the_bonus_changes_no_bit():
    none = torch.zeros(1, dtype=torch.long)
    prompt = Prompt("p", [{"role": "user", "content": "?"}], answer="a")
    answers = [
        Rollout(prompt, 0, none, none, none.to(torch.uint8), text, "eos") for text in ("a", "b")
    ]
    bonus = GroupBonus(alpha=0.0, beta=0.0)
    parts = {
        "curiosity": (bonus.alpha, Curiosity(bonus.rare)),
        "redundancy": (bonus.beta, Redundancy(bonus.free)),
    }
    plain, off = (
        [
            one.reward
            for one in Rewards(accuracy=(0.3, exact_accuracy), isolate=False, **more)(answers)
        ]
        for more in ({}, parts)
    )
    assert plain == off
