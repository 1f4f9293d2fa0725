"""LongRLVR: the official values, places read from words, measures against a raster, orders, and what rows must say."""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.drawn.drawn import Drawn
from mmrl.perception.longrlvr import (
    MOST,
    ContextReward,
    EvidenceScore,
    GroundedAccuracy,
    LongRLVR,
    Place,
    evidence_of,
    evidence_score,
    f_beta,
    named_places,
    written,
)
from mmrl.recipes.shared.evidence_data import EvidenceLessons, EvidenceWarmUp, evidence_rewards
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rewards.pay import Rewards, tagged_accuracy
from mmrl.types import Prompt

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
FILE = json.loads((GOLDEN / "longrlvr_reward.json").read_text(encoding="utf-8"))
OFFICIAL = LongRLVR(tag="useful_chunks")


@dataclass(frozen=True)
class Says:
    """A judge that always says the same."""

    value: float

    def __call__(self, rollout):
        return self.value


def answered(text, evidence=None, answer="red", **extra):
    columns = {} if evidence is None else {"evidence": evidence}
    return SimpleNamespace(text=text, prompt=Prompt("p", "?", answer=answer, extra={**columns, **extra}))  # fmt: skip


def total(rollout, longrlvr, ans):
    context = ContextReward(Says(ans), longrlvr)(rollout)
    return GroundedAccuracy(Says(ans), longrlvr)(rollout) + (context or 0.0)


def score(block, evidence, **extra):
    text = f"<evidence>{block}</evidence><answer>red</answer>"
    return EvidenceScore()(answered(text, evidence, **extra))


# ------------------------------------------------------------------------------------------------- the official code


@pytest.mark.parametrize("case", FILE["cases"], ids=lambda case: case["name"])
def test_the_reward_is_the_official_one(case):
    inputs, right = case["inputs"], case["outputs"]
    rollout, ans = answered(inputs["response"], inputs["ref_chunks"]), inputs["answer_correct"]
    found = {
        "score": total(rollout, OFFICIAL, ans),
        "fbeta_score": EvidenceScore(OFFICIAL)(rollout) or 0.0,
        "answer_acc": GroundedAccuracy(Says(ans), OFFICIAL)(rollout),
    }
    for name, value in found.items():
        assert abs(value - right[name]) <= FILE["atol"] + FILE["rtol"] * abs(right[name]), name


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("<evidence>chunk 1</evidence><answer>red</answer>", True),
        ("<think>a</think> <answer>red</answer>\n<evidence>\nchunk 1\n</evidence>", True),
        ("<evidence>chunk 1</evidence><evidence>chunk 1</evidence><answer>red</answer>", False),
        ("<evidence>chunk 1</evidence><answer>red</answer><answer>red</answer>", False),
        ("<evidence>chunk 1</evidence><answer>red", False),
        ("<evidence>chunk 1<answer>red</answer>", False),
        ("", False),
    ],
)
def test_each_block_must_be_there_exactly_once(text, whole):
    rollout = answered(text, [1])
    assert total(rollout, LongRLVR(), 1.0) == (2.0 if whole else 0.0)


# --------------------------------------------------------------------------------------------------------- properties


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_f_lies_between_precision_and_recall(precision, recall, beta):
    found = f_beta(precision, recall, beta)
    assert 0 <= found <= 1
    low, high = sorted((precision, recall))
    assert low - 1e-9 <= found <= high + 1e-9
    assert f_beta(0.0, 0.0) == 0.0 and f_beta(1.0, 1.0) == 1.0


@given(st.sets(st.integers(1, 12), min_size=1), st.lists(st.integers(1, 12), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_wrong_answer_earns_less_than_any_right_one_and_all_chunks_less_than_the_right_ones(
    evidence, named
):
    block = ", ".join(f"<CHUNK_{n}>" for n in named)
    text = f"<evidence>{block}</evidence><answer>a</answer>"
    rollout = answered(text, sorted(evidence))
    wrong, right = (total(rollout, LongRLVR(), ans) for ans in (0.0, 1.0))
    assert 0 <= wrong <= 0.1 + 1e-12 < 1.0 <= right <= 2 + 1e-12
    reference = [Place(("chunk", n)) for n in evidence]
    everything = [Place(("chunk", n)) for n in range(1, 40)]
    assert evidence_score(everything, reference) < evidence_score(reference, reference) == 1.0


BOX = st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(1, 6), st.integers(1, 6))
REGION = st.tuples(
    st.integers(0, 1),
    st.lists(BOX, min_size=1, max_size=3),
    st.integers(0, 8),
    st.integers(1, 4),
)


def places(regions):
    """Regions as places: boxes of a picture in a stretch of frames."""
    return [
        Place(("visual", of), (x, y, x + w, y + h), (a, a + n), "frames")
        for of, boxes, a, n in regions
        for x, y, w, h in boxes
    ]  # fmt: skip


def raster(places):
    """The same on a grid of pixels and frames, [2, 12, 18, 18]."""
    grid = np.zeros((2, 12, 18, 18), dtype=bool)
    for place in places:
        (x0, y0, x1, y1), (a, b) = (map(int, place.box), map(int, place.time))
        grid[place.of[1], a:b, x0:x1, y0:y1] = True
    return grid


@given(st.lists(REGION, min_size=1, max_size=4), st.lists(REGION, min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_measures_of_boxes_in_frames_are_those_of_a_raster(named, evidence):
    named, evidence = places(named), places(evidence)
    mine, truth = raster(named), raster(evidence)
    pictures = {place.of for place in evidence}
    mean = truth.sum() / len(set(evidence))
    sizes = [float(raster([one]).sum()) if one.of in pictures else mean for one in named]
    shared = (mine & truth).sum()
    expected = f_beta(shared / sum(sizes), shared / truth.sum())
    assert evidence_score(named, evidence) == pytest.approx(expected)


@given(st.lists(REGION, max_size=4))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_as_it_was(regions):
    several = [
        *places(regions),
        Place(("chunk", 7)),
        Place(("visual", 2)),
        Place(("visual", 0)),
    ]
    several += [
        Place(("visual", 1), None, (0.5, 2.25), "seconds"),
        Place(("visual", 0), (0, 1, 2.5, 3)),
    ]
    assert named_places(written(several)) == several
    assert written([]) == ""


@given(st.permutations(["[0, 0, 4, 4]", "[2, 2, 6, 6]", "[9, 9, 12, 12]", "[9, 9, 12, 12]"]))
@settings(max_examples=10, deadline=None)
def test_the_order_of_places_does_not_matter(order):
    evidence = {"boxes": [[0, 0, 6, 6], [3, 3, 8, 8]]}
    assert score("\n".join(order), evidence) == pytest.approx(score(" ".join(sorted(order)), evidence))  # fmt: skip


# ---------------------------------------------------------------------------------------------------- places in words


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ("<CHUNK_3>, chunk 4; page 12", [("chunk", 3), ("chunk", 4), ("chunk", 12)]),
        ("Picture 2 and image 1", [("visual", 1), ("visual", 0)]),
        ("[1, 2, 3, 4.5]", [Place(("visual", 0), (1, 2, 3, 4.5))]),
        ("clip 2: frames 3-5", [Place(("visual", 1), None, (2, 5), "frames")]),
        ("frame 3; frame 7", [Place(("visual", 0), None, (a, a + 1), "frames") for a in (2.0, 6.0)]),
        ("2.5 to 4 s, 7–9", [Place(("visual", 0), None, t, "seconds") for t in ((2.5, 4), (7, 9))]),
        ("[2.5, 4]", [Place(("visual", 0), None, (2.5, 4), "seconds")]),
        ('{"bbox_2d": [1, 2, 3, 4]} at 0-1 s', [Place(("visual", 0), (1, 2, 3, 4), (0, 1), "seconds")]),
        ("image 2 [0, 0, 1, 1] [1, 1, 2, 2]", [Place(("visual", 1), (0, 0, 1, 1)), Place(("visual", 1), (1, 1, 2, 2))]),
        ("the red one, I think", []),
        ("", []),
    ],
)  # fmt: skip
def test_places_are_read_from_words(block, found):
    right = [one if isinstance(one, Place) else Place(one) for one in found]
    assert named_places(block) == right


@pytest.mark.parametrize(
    ("block", "evidence", "expected"),
    [
        ("[0, 0, 4, 4]", {"boxes": [[0, 0, 4, 4]]}, 1.0),
        ("[0, 0, 8, 4]", {"boxes": [[0, 0, 4, 4]]}, f_beta(0.5, 1.0)),
        ("[0, 0, 2, 4]", {"boxes": [[0, 0, 4, 4]]}, f_beta(1.0, 0.5)),
        ("[0, 0, 4, 4] [0, 0, 4, 4]", {"boxes": [[0, 0, 4, 4]]}, f_beta(0.5, 1.0)),
        ("picture 1", {"boxes": [[0, 0, 4, 4]]}, 0.0),
        ("[4, 4, 0, 0]\n[0, 0, 4, 4]", {"boxes": [[0, 0, 4, 4]]}, f_beta(0.5, 1.0)),
        ("picture 2 [0, 0, 4, 4]", {"visual": 1, "boxes": [[0, 0, 4, 4]]}, 1.0),
        ("[0, 0, 4, 4]", {"visual": 1, "boxes": [[0, 0, 4, 4]]}, 0.0),
        ("picture 3", [{"visual": 2}, {"visual": 0}], f_beta(1.0, 0.5)),
        ("picture 3 [0, 0, 1, 1]", {"visual": 2}, 1.0),
        ("2 to 6 s", {"span": [2, 4]}, f_beta(0.5, 1.0)),
        ("2 to 6 s", {"span": [4, 4]}, f_beta(0.25, 1.0)),
        ("frames 3-6", {"span": [2, 6]}, 0.0),
        ("frames 3-6", {"frames": [2, 3, 9]}, f_beta(0.5, 2 / 3)),
        ("frames 3-4 [0, 0, 4, 2]", {"frames": [2, 3], "boxes": [[0, 0, 4, 4]]}, f_beta(1.0, 0.5)),
        ("frames 3-4", {"frames": [2, 3], "boxes": [[0, 0, 4, 4]]}, 0.0),
        ("chunk 2", '[{"boxes": [[0, 0, 4, 4]]}]', 0.0),
        (" ".join(["[0, 0, 4, 4]"] * (MOST + 1)), {"boxes": [[0, 0, 4, 4]]}, 0.0),
        (", ".join(f"page {n}" for n in range(1, 101)), [5], f_beta(0.01, 1.0)),
    ],
)  # fmt: skip
def test_pictures_clips_and_pages_are_scored_by_what_is_shared(block, evidence, expected):
    assert score(block, evidence) == pytest.approx(expected)


def test_boxes_of_another_space_are_carried_over():
    text = "<evidence>[0, 0, 500, 500]</evidence><answer>red</answer>"
    row = {"original_size": (64, 32), "evidence": {"boxes": [[0, 0, 32, 16]]}}
    thousandths = EvidenceScore(LongRLVR(predicted="thousand"))
    assert thousandths(answered(text, **row)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="original_size"):
        thousandths(answered(text, row["evidence"]))


# -------------------------------------------------------------------------------------------- rows, settings, rewards


@pytest.mark.parametrize("evidence", [None, [], ()])
def test_a_row_without_evidence_has_no_context_reward(evidence):
    rollout = answered("<evidence>chunk 1</evidence><answer>red</answer>", evidence)
    assert EvidenceScore()(rollout) is None and ContextReward(Says(1.0))(rollout) is None
    assert GroundedAccuracy(Says(1.0))(rollout) == 1.0


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ("here", "'p': the evidence 'here' cannot be named in words"),
        ({"mask": [[1]]}, "'p': the evidence .* cannot be named in words"),
        ({"where": 1}, "'p': the evidence .* cannot be named in words"),
        ({"boxes": [[4, 0, 0, 4]]}, r"'p': the evidence box \[4.* is not \[x0"),
        ({"span": [5, 2]}, "'p': the evidence span .* ends before it starts"),
        ({"span": [1, 2], "frames": [1]}, "'p': .* has frames and a span"),
        ([{"boxes": [[0, 0, 1, 1]]}, {"span": [1, 2]}], "'p': .* say different things of one picture"),
    ],
)  # fmt: skip
def test_a_row_whose_evidence_cannot_be_read_is_an_error_of_the_row(evidence, said):
    with pytest.raises(ValueError, match=said):
        score("[0, 0, 1, 1]", evidence)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": -1}, "weight is -1"),
        ({"beta": 0}, "beta is 0"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"tag": "answer"}, "tag is 'answer'"),
        ({"tag": "two words"}, "tag is 'two words'"),
        ({"predicted": "inches"}, "predicted is 'inches'"),
    ],
)
def test_absurd_settings_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        LongRLVR(**given)


def test_hostile_texts_take_no_time():
    parts = ("<evidence>", "[1,1,1,1] ", "frame 1 to 2 ", "1 to ", "picture 1", "[ ", "1" * 99)
    began = time.process_time()
    for part in parts:
        assert 0 <= score(part * 4000, {"boxes": [[0, 0, 1, 1]]}) <= 1
    assert time.process_time() - began < 3


def test_at_weight_0_a_run_has_the_rewards_of_plain_rlvr():
    style, weights = style_of("tag"), RewardWeights(0.9, 0.1)
    off, plain = evidence_rewards(weights, style, LongRLVR(weight=0.0)), weights.rewards(style)
    assert off.functions == plain.functions and off.weights == plain.weights
    with pytest.raises(ValueError, match=r"--reward\.own.*--longrlvr\.weight 0"):
        evidence_rewards(RewardWeights(own=("accuracy=1.0",)), style, LongRLVR())


def test_in_workers_the_parts_add_up_to_the_formula_and_keep_their_markers(tmp_path):
    from tests.test_seams import rollout  # a whole record

    rewards = evidence_rewards(RewardWeights(1.0, 0.0), style_of("tag"), LongRLVR())
    assert rewards.correct == ("accuracy", 0.5)
    assert rewards.weights == {"accuracy": 1.0, "format": 0.0, "context": 1.0, "evidence": 0.0}
    assert rewards.needs_tags == ("<answer>", "</answer>")
    grounded = pickle.loads(pickle.dumps(GroundedAccuracy(tagged_accuracy)))
    assert grounded.preload == ("math_verify",)
    rewards.close()
    small = Rewards(isolate=False, **{n: (rewards.weights[n], f) for n, f in rewards.functions.items()})  # fmt: skip
    (paid,) = small(
        [_with(rollout(), "<evidence>page 1</evidence><answer>red</answer>", [1, 2])]
    )
    f = f_beta(1.0, 0.5)
    assert paid.reward == pytest.approx(1 + 0.1 * f + 0.9 * f)
    assert paid.parts["evidence"] == pytest.approx(f) and paid.parts["accuracy"] == 1.0


def _with(rollout, text, evidence):
    from dataclasses import replace

    prompt = replace(rollout.prompt, answer="red", extra={"evidence": evidence})
    return replace(rollout, text=text, prompt=prompt)


@pytest.mark.parametrize("task", ["lookup", "clips"])
def test_drawn_rows_carry_evidence_that_can_be_named(task):
    rows = Drawn(task, size=6)
    for row in rows:
        (place,) = evidence_of(row)
        assert evidence_score([place], [place]) == 1.0
        says = (place.box is not None, place.time is not None)
        assert says == (task == "lookup", task == "clips")


def test_lessons_name_the_box_of_the_asked_cell_or_of_another():
    lessons = EvidenceLessons(EvidenceWarmUp(elsewhere=0.5))
    scores = []
    for index in range(64):
        prompt = lessons[index]
        target = prompt.extra["target"]
        rollout = SimpleNamespace(text=target, prompt=prompt)
        scores.append(EvidenceScore()(rollout))
    assert set(scores) == {0.0, 1.0} and 0.5 < sum(scores) / 64 < 0.75
