"""What the effects benchmark asks: tasks, each with its warm start and an exam in which a claim can show.

cells     the embedded presets as they are: pictures of four cells, a warm start that looks in the right cell in four of
          ten pictures and puts the shape before the colour
noise     the same pictures and a warm start that sees well (eight of ten), so that noise has something to take away.
          Noise is that of diffusion step 500, with which DVRP and NoisyRollout begin. Finer pictures would do the same,
          but this model does not read them: cells of 8 pixels after 600 steps, 0.33
usual     eight in ten questions are answered by what is usual at the asked place, in the warm-up and in training, as in
          real data; the exam is drawn evenly. The short warm-up knows what is usual better than it sees, and training
          pays for that: a model that looks less than it guesses names what is usual where something else is
failing   every target of the warm-up puts the shape first, so that no answer is ever right and all groups fail
either    the warm start of `cells`, which says both orders, and both are right: answers can be right and differ
evidence  a warm start that names a cell's box before it answers, in half of its lessons that of any cell
steps     look up, then look up what you found, in answers twice as long (`effect_steps.py`)
points    the look-ups of `cells`, by a warm start that was taught to read what cells hold behind some questions
lengths   look-ups that are answered at any length, as often right at each (`effect_lengths.py`)
zoom, pages    look-ups that cannot be solved as they are shown (`effect_claims_tools.py`)

An exam keeps one number per question, so that questions can be drawn again for an interval (`effect_answers.py` has
that of the RLVR systems):

    accuracy, noisy, blank    greedy accuracy with the pictures, under noise, on black pictures
    facts                     colour and shape of the asked cell are both named, in either order (greedy)
    lean                      what is usual at the asked place is named, where it is wrong (greedy, either order)
    blind                     the same on black pictures, over all questions: what the words alone make it say
    pass8, entropy            pass@8 and mean surprise -log p of 8 sampled answers
    seeing                    share of a picture's cells that its description names rightly
    kl_masked, kl_noisy       exact KL(raw‖view) over the vocabulary on answers of the warm start, nats per token
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import effect_claims_tools
import numpy as np
import torch
from effect_claims_tools import page_questions, zoom_questions
from effect_lengths import lengths_start
from effect_steps import LONGEST, steps_questions, steps_rows, steps_start
from PIL import Image

from mmrl.data.drawn import drawn
from mmrl.data.drawn.checklist import cells_prompt, cells_seen
from mmrl.data.drawn.drawn import Drawn
from mmrl.data.drawn.scenes import NAMES
from mmrl.data.rows.sources import load_prompts
from mmrl.ground.answers import tagged
from mmrl.ground.seeds import uniform_draw
from mmrl.model import tiny
from mmrl.model.branches import Views
from mmrl.model.policy import Policy
from mmrl.model.processing import Processing
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.perception.masking import Blank, PatchMask
from mmrl.perception.noise import DiffusionNoise
from mmrl.recipes.shared.closer_data import page_box, warm_closer, zoom_box
from mmrl.recipes.shared.embedded import WarmUp, warm_model
from mmrl.recipes.shared.evidence_data import warm_evidence
from mmrl.recipes.shared.opening import DRAWN, Data, open_data
from mmrl.recipes.shared.point_data import warm_points
from mmrl.recipes.shared.supervised import published
from mmrl.rewards.functions import words_accuracy
from mmrl.rewards.pay import tagged_accuracy
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import by_group
from mmrl.rollouts.noisy import rendered
from mmrl.tools.toolbox import Toolbox
from mmrl.training.evaluate import heldout_prompts
from mmrl.training.run import Run
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling, VisualBranch

NOW = Now(0, 0.0, seed=1234)
EXAM_SEED = 99
BRANCHES = {
    "masked": VisualBranch(PatchMask(ratio=0.6, size=16)),
    "noisy": VisualBranch(DiffusionNoise(500, anneal=None), stage="resized"),
    "blank": VisualBranch(Blank()),
}
GREEDY, FREE = Sampling(1, 0.0, max_tokens=10), Sampling(8, 1.0, max_tokens=10)
IDEAL: Mapping[str, float] = {
    "accuracy": 1.0,
    "noisy": 1.0,
    "facts": 1.0,
    "seeing": 1.0,
    "pass8": 1.0,
    "pass1": 1.0,
    "sure": 0.0,
    "lean": 0.0,
    "blind": 0.0,
}
"""What a model that sees all and never guesses would reach; the other numbers have no such bound."""

USUAL_SHARE = 0.8
USUAL_ROWS = 2000
USUAL_SEED = 5
BIASED = WarmUp(steps=150, describe_share=0.25)

PAID_EITHER = ("--reward.own", "words=0.9", "format=0.1", "--reward.correct", "words")

# The form that is paid elsewhere is that of an answer alone, so that it would pay for not thinking.
PAID_RIGHT = ("--reward.accuracy", "1.0", "--reward.format", "0.0")

Marks = dict[str, list[float]]
"""Number -> one value per question."""


@dataclass(frozen=True)
class Task:
    """Where a run starts and what it is asked."""

    name: str
    start: Callable[[Path], Path]
    """Folder for files of data -> the warm start."""
    dataset: Callable[[Path], str] = lambda place: DRAWN
    """Folder for files of data -> what a recipe's --dataset names."""
    options: tuple[str, ...] = ()
    """Of every run on this task."""
    right: Callable[[Rollout], float] = tagged_accuracy
    """Whether an answer is right, for the exam."""
    longest: int = 10
    """Most tokens of an answer in the exam of sampled answers."""
    questions: Callable[[int], tuple[Prompt, ...]] | None = None
    """So many questions of the exam of sampled answers; None: look-ups."""
    toolbox: Callable[[Processing], Toolbox] | None = None
    """Tools that greedy answers may call in the number `closer`."""


def usual(prompt: Prompt) -> str:
    """What most questions about this place have as their answer; four places, four things with nothing in common."""
    place = 2 * (prompt.extra["row"] - 1) + prompt.extra["column"] - 1
    return NAMES[1 + 3 * place + place % 3]


def usual_rows(place: Path) -> str:
    """A file of look-ups of which eight in ten are answered by what is usual, written once; its path."""
    file = place / "usual" / "rows.jsonl"
    if file.is_file():
        return str(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [_row(prompt, file.parent, number) for number, prompt in enumerate(biased())]
    # Written under another name first: a file that exists is complete.
    part = file.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n")
    part.replace(file)
    return str(file)


def biased(count: int = USUAL_ROWS) -> Sequence[Prompt]:
    """Training look-ups, in order, of which the unusual ones are left out until eight in ten are usual."""
    stream = Drawn("lookup", cells=2, size_px=32, seed=USUAL_SEED)
    most, kept, odd = round(count * (1 - USUAL_SHARE)), [], 0
    for index in range(100 * count):
        prompt = stream[index]
        unusual = prompt.answer != usual(prompt)
        # Spread evenly: at no place in the file are more than two in ten unusual.
        if unusual and odd >= most * (len(kept) + 1) / count:
            continue
        odd += unusual
        kept.append(prompt)
        if len(kept) == count:
            return kept
    raise AssertionError(f"only {len(kept)} of {count} rows were found")


def _row(prompt: Prompt, folder: Path, number: int) -> str:
    """One line of the file, and its picture beside it."""
    name = f"{number}.png"
    pixels = prompt.media[0].frames[0].permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(folder / name)
    question = prompt.messages[0]["content"][1]["text"]
    row = {"problem": question, "images": [name], "answer": prompt.answer}
    return json.dumps(row)


class BiasedLessons(Prompts):
    """Warm-up: biased look-ups, six in ten with the shape first, mixed with dense descriptions."""

    def __init__(self, rows: Prompts, dense: Prompts) -> None:
        self.size: int | None = None
        self._rows, self._dense = rows, dense

    def __getitem__(self, index: int) -> Prompt:
        if uniform_draw("lessons", index, "dense") < BIASED.describe_share:
            return self._dense[index]
        count = self._rows.size or 0
        prompt = self._rows[int(uniform_draw("lessons", index, "row") * count)]
        words = str(prompt.answer).split()
        if uniform_draw("lessons", index, "swapped") < BIASED.swapped:
            words.reverse()
        target = f"<answer> {' '.join(words)} </answer>"
        return replace(prompt, extra={**prompt.extra, "target": target})


def usual_start(place: Path) -> Path:
    """A model that has learned what is usual, besides to look."""
    rows = usual_rows(place)

    def lessons(run: Run) -> Prompts:
        return BiasedLessons(load_prompts(rows), Drawn("describe", cells=2, size_px=32))

    start = tiny.cached(BIASED.family, corpus=drawn.tokenizer_texts())
    sources = [inspect.getsource(part) for part in (usual, biased, BiasedLessons)]
    depends_on = (USUAL_SHARE, USUAL_ROWS, USUAL_SEED, *sources)
    return published("usual", start, lessons, BIASED, depends_on)


def closer_task(
    name: str,
    questions: Callable[[int], tuple[Prompt, ...]],
    toolbox: Callable[[Processing], Toolbox],
) -> Task:
    """A task that cannot be solved as it is shown."""
    return Task(
        name,
        lambda place: warm_closer(),
        lambda place: f"drawn:{name}",
        longest=effect_claims_tools.LONGEST,
        questions=questions,
        toolbox=toolbox,
    )


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("cells", lambda place: warm_model()),
        Task("noise", lambda place: warm_model(WarmUp(steps=300, describe_share=0.25))),
        Task("usual", usual_start, usual_rows),
        Task("failing", lambda place: warm_model(WarmUp(swapped=1.0))),
        Task("either", lambda place: warm_model(), options=PAID_EITHER, right=words_accuracy),
        Task("evidence", lambda place: warm_evidence(), longest=48),
        Task("steps", steps_start, steps_rows, longest=LONGEST, questions=steps_questions),
        Task("points", lambda place: warm_points()),
        Task("lengths", lengths_start, options=PAID_RIGHT, longest=LONGEST),
        closer_task("zoom", zoom_questions, zoom_box),
        closer_task("pages", page_questions, page_box),
    )
}


@dataclass(frozen=True)
class Exam:
    """The same questions, and the same given answers, for every model of a task."""

    prompts: tuple[Prompt, ...]
    answers: tuple[Rollout, ...]
    """Answers of the warm start, scored under each view."""

    @staticmethod
    def of(start: Path, count: int) -> Exam:
        """Draw the questions and answer them with the warm start."""
        _, heldout = open_data(DRAWN, Data(style="tag"), seed=EXAM_SEED)
        prompts = tuple(heldout_prompts(heldout, count))
        groups = by_group(engine_of(start).generate(prompts, FREE, NOW))
        return Exam(prompts, tuple(group[0] for group in groups))

    def marked(self, model: Path) -> Marks:
        """All numbers of one model, question by question."""
        engine = engine_of(model)
        greedy = engine.generate(self.prompts, GREEDY, NOW)
        marks = of_greedy(greedy)
        for view in ("noisy", "blank"):
            seen = rendered(engine.policy, self.prompts, view, BRANCHES[view], NOW)
            answers = engine.generate(self.prompts, GREEDY, NOW, visual=seen, branch=view)
            marks[view] = [tagged_accuracy(answer) for answer in answers]
            if view == "blank":
                marks["blind"] = [named(answer, usual(answer.prompt)) for answer in answers]
        groups = by_group(engine.generate(self.prompts, FREE, NOW))
        marks["pass8"] = [float(any(map(tagged_accuracy, group))) for group in groups]
        marks["entropy"] = [surprise(group) for group in groups]
        asked = [question for prompt in self.prompts if (question := cells_prompt(prompt))]
        described = engine.generate(asked, replace(GREEDY, max_tokens=32), NOW)
        marks["seeing"] = [cells_seen(answer) for answer in described]
        for view in ("masked", "noisy"):
            marks[f"kl_{view}"] = self.divergences(engine.policy, view)
        return marks

    def divergences(self, policy: Policy, view: str) -> list[float]:
        """Mean exact KL(raw‖view) over the tokens of each given answer."""
        answers = [replace(answer, group=number) for number, answer in enumerate(self.answers)]
        views, rows = Views(policy, answers, BRANCHES, NOW), range(len(answers))
        outputs = {"raw": ScoreOutputs(), view: ScoreOutputs(divergence="forward")}
        lengths = [len(answer.tokens) for answer in answers]
        with torch.no_grad():
            groups = {name: views.groups(name, rows) for name in outputs}
            scores = score_packed(policy, groups, outputs, (len(answers), max(lengths)))[view]
        assert scores.divergence is not None
        sums = scores.divergence.sum(dim=1).tolist()
        return [total / length for total, length in zip(sums, lengths, strict=True)]


def of_greedy(answers: Sequence[Rollout]) -> Marks:
    """Numbers that the most likely answers tell."""
    # Where what is usual happens to be right, naming it says nothing about leaning.
    odd = [answer for answer in answers if answer.prompt.answer != usual(answer.prompt)]
    return {
        "accuracy": [tagged_accuracy(answer) for answer in answers],
        "facts": [named(answer, str(answer.prompt.answer)) for answer in answers],
        "lean": [named(answer, usual(answer.prompt)) for answer in odd],
    }


def named(answer: Rollout, thing: str) -> float:
    """1 if the answer consists of the words of a thing, in any order."""
    said = (tagged(answer.text) or "").split()
    return float(sorted(said) == sorted(thing.split()))


def contrast(marks: Marks, number: str) -> np.ndarray:
    """A number, or the difference of two ("a-b"), per question."""
    first, _, second = number.partition("-")
    values = np.array(marks[first], dtype=np.float64)
    return values - np.array(marks[second]) if second else values


def mean_of(marks: Marks, number: str) -> float:
    """Mean over the questions."""
    return float(contrast(marks, number).mean())


def surprise(group: Sequence[Rollout]) -> float:
    values = [float(v) for answer in group if answer.logp is not None for v in answer.logp]
    return -fmean(values) if values else math.nan


def engine_of(model: Path) -> Any:
    return HFEngine(Policy.load(model, device="cpu", dtype="float32"))
