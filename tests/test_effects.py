"""The effects benchmark: intervals, correction, equal references, numbers of the exam, and going on after a stop."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.types import Prompt, Rollout

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = (
    *("effects", "effect_methods", "effect_tasks", "effect_statistics"),
    *("effect_results", "effect_tables", "documents", "pretext_effects"),
    *("effect_rlvr", "effect_answers", "effect_readme"),
    *("effect_steps", "effect_lengths", "effect_trees"),
)


@pytest.fixture(scope="module")
def parts():
    """The benchmark's modules by name."""
    sys.path.insert(0, str(FOLDER))  # as when the script is called
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture
def statistics(parts):
    return parts["effect_statistics"]


@pytest.fixture
def plan(parts, tmp_path):
    methods = tuple(parts["effect_methods"].METHODS)
    return parts["effect_results"].Plan(methods, (0, 1, 2, 3, 4), 3, 40, tmp_path)


def drawn_gaps(rng, seeds, questions, of_seeds, of_questions, of_both):
    """Differences around 0 with three sources of chance."""
    by_seed = rng.normal(0, of_seeds, (seeds, 1))
    by_question = rng.normal(0, of_questions, (1, questions))
    return by_seed + by_question + rng.normal(0, of_both, (seeds, questions))


def test_seeds_alone_give_students_interval(statistics):
    gaps = np.repeat([[0.1], [0.2], [0.3], [0.2], [0.2]], 50, axis=1)
    found = statistics.estimate(gaps)
    by_hand = gaps[:, 0].std(ddof=1) / 5**0.5
    assert found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(by_hand, rel=0.04)  # drawn, so not exact
    assert found.half == pytest.approx(2.776 * found.error, rel=1e-3)
    assert found.needed(0.05) == pytest.approx((2.776 + 0.941) * found.error, rel=1e-3)


def test_questions_count_where_seeds_agree(statistics):
    answers = np.array([1.0, 0.0] * 50)
    found = statistics.estimate(np.stack([answers] * 5))
    # Student's interval over the seeds would be 0 wide: they all say 0.5.
    assert found.error == pytest.approx(0.5 / 10 * (5 / 4) ** 0.5, rel=0.05)
    assert found.freedom == pytest.approx(99)


@pytest.mark.parametrize(
    "chance", [(0.0, 0.3, 0.3), (0.05, 0.3, 0.3), (0.2, 0.1, 0.1), (0.2, 0.3, 0.3)]
)
def test_the_interval_holds_the_truth(statistics, chance):
    rng = np.random.default_rng(3)
    held = percentile = 0
    for trial in range(300):
        gaps = drawn_gaps(rng, 5, 60, *chance)
        found = statistics.estimate(gaps, draws=200, seed=trial)
        held += abs(found.mean) <= found.half
        means = statistics.crossed_bootstrap(gaps, 200, rng)
        low, high = np.quantile(means, [0.025, 0.975])
        percentile += low <= 0 <= high
    assert held / 300 >= 0.90
    if chance == (0.2, 0.1, 0.1):
        # What the corrections are for: without them one interval in six or more is wrong.
        assert percentile / 300 <= 0.87


def test_holm_is_that_of_the_textbook(statistics):
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0] and statistics.holm([]) == []


def test_many_empty_claims_show_nothing(statistics):
    rng = np.random.default_rng(0)
    alone = together = 0
    for _ in range(20):
        probabilities = [
            statistics.estimate(drawn_gaps(rng, 5, 40, 0.05, 0.2, 0.2), draws=200).p
            for _ in range(25)
        ]
        alone += min(probabilities) < 0.05
        together += min(statistics.holm(probabilities)) < 0.05
    # Of 25 claims without any effect one or more is below 5 % in half of the tables or more.
    assert alone >= 8 and together <= 4


def test_verdicts(statistics):
    def told(gaps, corrected, larger=True):
        return statistics.verdict(statistics.estimate(np.array(gaps)), corrected, larger)

    clear = [[0.20, 0.21], [0.22, 0.21], [0.21, 0.20]]
    assert told(clear, 0.01) == "shown" and told(clear, 0.01, larger=False) == "opposite"
    assert told(clear, 0.2) == "only before correction"
    assert told([[0.2, -0.2], [-0.1, 0.2]], 1.0) == "not shown"
    assert told([[0.2, 0.3]], 0.0) == "not shown (one seed)"
    assert statistics.estimate(np.zeros((3, 4))).p == 1.0
    assert statistics.estimate(np.ones((3, 4))).p == 0.0


@pytest.mark.parametrize("gaps", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan], [1.0]])])
def test_differences_that_say_nothing_are_refused(statistics, gaps):
    with pytest.raises(ValueError, match="estimate got"):
        statistics.estimate(gaps)


def test_references_are_matched_in_prompts_answers_and_rewards(parts):
    methods = parts["effect_methods"]
    names = set()
    for name in methods.METHODS:
        run = methods.method_run(name, ("--run.steps", "7", "--run.eval-prompts", "0"))
        reference = methods.reference_run(run)
        mine, theirs = run.arguments, reference.arguments
        names.add(reference.name)
        assert theirs["papo"].gamma == theirs["papo"].eta_orig == theirs["papo"].eta_masked == 0
        for shared in ("reward", "grpo", "load", "lora"):
            assert theirs[shared] == mine[shared], (name, shared)
        assert theirs["data"] == replace(mine["data"], split=None), name
        assert theirs["optim"].lr == mine["optim"].lr and theirs["run"].steps == 7
        answers = [
            one["run"].prompts_per_step * one["sampling"].group_size for one in (mine, theirs)
        ]
        assert answers[0] == answers[1], name
        if name != "mssr":
            assert theirs["sampling"] == mine["sampling"], name
    # VOGUE, NoisyRollout, PAPO and Perception-R1 pay alike, DVRP and VPPO do: equal numbers share one reference.
    assert len(names) == 6


def test_another_setting_is_another_reference(parts):
    methods = parts["effect_methods"]
    run = methods.method_run("papo", ())
    keys = {
        methods.reference_run(methods.method_run("papo", options)).key
        for options in ((), ("--reward.format", "0"), ("--sampling.group-size", "4"))
    }
    assert len(keys) == 3
    same = run.on("elsewhere", "drawn:lookup")
    assert same.key == run.key and same.arguments["model"] == "elsewhere"


@pytest.fixture
def rlvr(parts, tmp_path):
    suite = parts["effect_methods"].SUITES["rlvr"]
    names = tuple(suite.methods)
    return parts["effect_results"].Plan(names, (0, 1, 2, 3, 4), 3, 40, tmp_path, suite)


def test_rlvr_systems_answer_as_often_as_their_references(parts, rlvr):
    references = {}
    for task in parts["effect_tasks"].TASKS:
        for name, (run, reference) in rlvr.pairs(task).items():
            mine, theirs = run.arguments, reference.arguments
            references.setdefault((task, reference.name), []).append(name)
            steps = [
                one["run"].prompts_per_step * one["sampling"].group_size
                for one in (mine, theirs)
            ]
            assert steps[1] == 64 and (
                name in ("dars", "ghpo", "self_boundary", "rl_plus") or steps[0] == 64
            )
            assert theirs["sampling"].temperature == 1.0, name
            assert mine["reward"].own == theirs["reward"].own, name
            paid = [(one["reward"].accuracy, one["reward"].format) for one in (mine, theirs)]
            wanted = (1.0, 0.0) if name == "longrlvr" else (0.9, 0.1)
            assert mine["reward"].own or paid == [wanted] * 2, name
    # Four updates have a ratio to clip, CANON sums over a constant length, and wrong verdicts are told to both sides;
    # all others share one reference per task.
    alone = [names for (task, _), names in references.items() if task == "cells"]
    apart = [["canon"], ["dcpo"], ["noisy_verifier"]]
    assert sorted(names for names in alone if len(names) == 1) == apart
    assert len(references) == len(apart) + len({task for task, _ in references})


def test_tree_systems_sample_about_as_much_as_their_references(parts, tmp_path):
    suite = parts["effect_methods"].SUITES["trees"]
    plan = parts["effect_results"].Plan(
        tuple(suite.methods), (0, 1, 2, 3, 4), 3, 40, tmp_path, suite
    )
    pairs = {
        (task, name): pair
        for task in parts["effect_tasks"].TASKS
        for name, pair in plan.pairs(task).items()
    }
    assert {name for _, name in pairs} == set(suite.methods)
    for (task, name), (run, reference) in pairs.items():
        asked = reference.arguments
        # SSB asks on until it has something to learn.
        answers = asked["run"].prompts_per_step * asked["sampling"].group_size
        assert answers == (480 if name == "ssb" else 64), name
        assert asked["reward"] == run.arguments["reward"], name
        assert asked["data"] == replace(run.arguments["data"], split=None), name
        if task == "lengths":
            assert asked["reward"].format == 0, "the paid form has no thoughts"
        for one in (run, reference):
            assert one.arguments["sampling"].max_tokens == parts["effect_steps"].LONGEST
            assert one.arguments["sampling"].temperature == 1.0


def test_lengths_are_free_and_the_answer_stays(parts):
    lengths = parts["effect_lengths"]
    lessons = lengths.LengthLessons(lengths.LengthsWarmUp())
    often = [0] * (lengths.MOST + 1)
    for index in range(80):
        prompt = lessons[index]
        target, answer = prompt.extra["target"], str(prompt.answer)
        often[target.count(answer) - 1] += 1
        assert target.endswith(f"<answer> {answer} </answer>")
        assert target.startswith("<think>") or target.count(answer) == 1
    assert min(often) > 8 and sum(often) == 80


def test_two_steps_lead_from_a_place_to_what_its_colour_names(parts):
    steps = parts["effect_steps"]
    rows = [steps.TwoSteps()[index] for index in range(40)]
    for row in rows:
        cells, asked = row.extra["cells"], (row.extra["row"], row.extra["column"])
        found = cells[2 * (asked[0] - 1) + asked[1] - 1]
        place = ("red", "green", "blue", "yellow").index(found.split()[0])
        assert row.answer == cells[place] and "nothing" not in cells
        assert row.extra["target"].startswith(f"<think> {found} row {place // 2 + 1} column")
        assert row.extra["target"].endswith(f"<answer> {row.answer} </answer>")
    assert len({row.answer for row in rows}) > 6 and len({row.id for row in rows}) == 40
    assert {row.id for row in steps.steps_questions(40)}.isdisjoint(row.id for row in rows)
    lessons = steps.StepLessons(steps.StepsWarmUp())
    astray = [
        lessons[i].extra["target"] != steps.TwoSteps(seed=3000)[i].extra["target"]
        for i in range(60)
    ]
    assert 10 < sum(astray) < 36  # half, less those that meet the right place by chance


def test_recipes_that_are_not_there_yet_are_left_out_and_counted(parts, rlvr):
    methods = parts["effect_methods"]
    absent = methods.Method("of_tomorrow", rlvr.suite.methods["ghpo"].claims)
    both = {"ghpo": rlvr.suite.methods["ghpo"], "of_tomorrow": absent}
    plan = replace(rlvr, methods=tuple(both), suite=replace(rlvr.suite, methods=both))
    assert not absent.exists and list(plan.pairs("failing")) == ["ghpo"]
    assert len(plan.suite.claims) == 2
    assert "2 are not measured yet" in parts["effect_tables"].outcome([], plan)


def test_every_claim_can_be_measured(parts):
    for name, method in parts["effect_methods"].METHODS.items():
        assert (FOLDER.parent / "recipes" / f"{method.recipe}.py").is_file() and method.claims
        assert all(claim.task in parts["effect_tasks"].TASKS for claim in method.claims), name


def said(prompt, thing):
    """An answer that names a thing."""
    nothing = torch.zeros(1, dtype=torch.uint8)
    text = f"<answer> {thing} </answer>"
    return Rollout(prompt, 0, nothing.long(), nothing.long(), nothing, text, "eos", 1.0)


def test_an_oracle_and_a_guesser_take_the_exam(parts):
    tasks = parts["effect_tasks"]
    stream = Drawn("lookup", "heldout", cells=2, size_px=32)
    asked = [stream[index] for index in range(60)]
    odd = [prompt for prompt in asked if prompt.answer != tasks.usual(prompt)]
    sees = tasks.of_greedy([said(prompt, prompt.answer) for prompt in asked])
    guesses = tasks.of_greedy([said(prompt, tasks.usual(prompt)) for prompt in asked])
    turned = [" ".join(reversed(prompt.answer.split())) for prompt in asked]
    reverses = tasks.of_greedy([said(*pair) for pair in zip(asked, turned, strict=True)])
    assert len(odd) > 40 and len(sees["lean"]) == len(odd)
    for number in ("accuracy", "facts", "lean"):
        assert np.mean(sees[number]) == tasks.IDEAL[number]
    assert np.mean(guesses["lean"]) == 1.0 and np.mean(guesses["accuracy"]) < 0.2
    assert np.mean(reverses["facts"]) == 1.0 and np.mean(reverses["accuracy"]) < 0.3


def test_what_is_usual_is_asked_in_eight_of_ten_rows(parts, tmp_path):
    tasks = parts["effect_tasks"]
    kept = tasks.biased(50)
    assert sum(prompt.answer == tasks.usual(prompt) for prompt in kept) == 40
    places = {(p.extra["row"], p.extra["column"]): tasks.usual(p) for p in kept}
    assert len(set(places.values())) == 4
    line = tasks._row(kept[0], tmp_path, 0)
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    read = tasks.load_prompts(str(tmp_path / "rows.jsonl"))[0]
    # The user's way in gives the model the very same prompt.
    assert read.messages == kept[0].messages and read.answer == kept[0].answer
    assert torch.equal(read.media[0].frames, kept[0].media[0].frames)


def answered(prompt, thing, logp=0.0):
    """A sampled answer of one token."""
    return replace(said(prompt, thing), logp=torch.tensor([logp]))


def test_sampled_answers_are_told_apart(parts):
    answers = parts["effect_answers"]
    prompt = Drawn("lookup", "heldout", cells=2, size_px=32)[0]
    words = str(prompt.answer).split()
    assert len(words) == 2
    group = [answered(prompt, thing, np.log(0.25)) for thing in ("red", " ".join(words))]
    group += [answered(prompt, " ".join(reversed(words)))] * 2
    strict = [0.0, 1.0, 0.0, 0.0]
    right = parts["effect_tasks"].TASKS["either"].right
    either = [right(answer) for answer in group]
    assert [parts["effect_tasks"].TASKS["cells"].right(answer) for answer in group] == strict
    assert either == [0.0, 1.0, 1.0, 1.0]
    assert answers.variety(group, either) == 2.0 and answers.variety(group, strict) == 1.0
    # A quarter, nothing for the right one, and two whole ones.
    assert answers.sure(group, strict) == pytest.approx(2.25 / 4)
    assert answers.sure(group, either) == pytest.approx(0.25 / 4)


def test_the_log_of_a_run_tells_answers_clips_and_verdicts(parts, tmp_path):
    log = tmp_path / "metrics.jsonl"
    steps = [{"step": 0, "eval/accuracy": 0.1}]
    for answers, clipped in ((64, 0.5), (70, 0.2), (64, 0.1), (70, 0.1)):
        step = {
            "answer/count": 64,
            "tokens/decode": 5.0 * answers,
            "tokens/update": 640.0,
            "answer/length": 6.0,
            "policy/clip_low": clipped,
            "policy/clip_high": 0.1,
        }
        steps.append({**step, "laser/verified": 0.75})
    log.write_text("\n".join(json.dumps(step) for step in steps))
    told = parts["effect_answers"].of_training(log)
    assert told["trained/answers"] == [67.0] and told["trained/clipped"] == pytest.approx([0.2])
    assert told["trained/verified"] == [0.75] and told["trained/updated"] == [10.0]
    log.write_text(
        "\n".join(
            json.dumps(
                {"answer/count": 8, "tokens/decode": 6, "tokens/update": 9, "answer/length": 3}
            )
            for _ in range(2)
        )
    )
    plain = parts["effect_answers"].of_training(log)
    # GRPO has no verdict, which is as good as chance.
    assert plain == {
        "trained/answers": [3.0],
        "trained/decoded": [0.375],
        "trained/updated": [1.125],
        "trained/clipped": [0.0],
        "trained/verified": [0.5],
    }


def test_rlvr_claims_are_decided_with_five_seeds_and_told_in_the_readme(parts, rlvr, tmp_path):
    rng = np.random.default_rng(2)
    ours = {claim.number: 0.2 if claim.larger else -0.2 for _, claim in rlvr.suite.claims}
    numbers = (*ours, "pass1", "entropy", "variety", "trained/answers")

    def value_of(task, name, seed, number):
        better = ours.get(number, 0.0) if not name.startswith(("grpo", "start")) else 0.0
        if number.startswith("trained/"):
            return [64.0 if number.endswith("answers") else 0.4 + better + rng.normal(0, 0.01)]
        return (0.4 + better + rng.normal(0, 0.01) + rng.normal(0, 0.05, 40)).tolist()

    filled(parts, rlvr, value_of, numbers)
    tables = parts["effect_tables"]
    rows = tables.compared(rlvr)
    there = [c for n, c in rlvr.suite.claims if rlvr.suite.methods[n].exists]
    assert len(rows) == len(there) and {row.verdict for row in rows} == {"shown"}
    text = tables.report(rows, tables.checked(rlvr), rlvr)
    assert "0.9 / 0.1; 64 against 64" in text and "--suite rlvr" in text
    few = tables.compared(replace(rlvr, seeds=(0, 1)))
    assert {row.verdict for row in few} == {"open, 2 of 5 seeds"}
    readme = tmp_path / "README.md"
    readme.write_text((FOLDER.parent / "recipes" / "README.md").read_text())
    parts["effect_readme"].write_column(readme, rows)
    before, after = (
        (f).read_text().splitlines() for f in (FOLDER.parent / "recipes" / "README.md", readme)
    )
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == len({row.method for row in rows})
    assert all(": shown" in line and line.endswith(" |") for line in changed)
    assert all(line.count(" | ") == 5 for line in changed)
    with pytest.raises(SystemExit, match="there must be one"):
        readme.write_text("nothing")
        parts["effect_readme"].write_column(readme, rows)


def filled(parts, plan, value_of, numbers=None):
    """Results of all runs: number -> values of the questions, from task, name, seed and number."""
    results = parts["effect_results"]
    usual = (*parts["effect_tasks"].IDEAL, "entropy", "blank", "kl_masked", "kl_noisy")
    numbers = numbers or usual
    for task in parts["effect_tasks"].TASKS:
        pairs = plan.pairs(task)
        runs = [(None, results.START, None)]
        runs += [(t, t.name, seed) for t in results.each_once(pairs) for seed in plan.seeds]
        for trained, name, seed in runs:
            marks = {n: value_of(task, name, seed, n) for n in numbers}
            results.keep(plan.file(task, name, seed), plan.settings(trained), marks)


def test_every_claim_would_be_shown_for_an_oracle(parts, plan):
    """Methods as good as the task allows, references as they are: all tasks leave room for their claims."""
    rng = np.random.default_rng(0)
    ideal = {**parts["effect_tasks"].IDEAL, "entropy": 0.4, "kl_masked": 1.2, "kl_noisy": 0.02}
    usually = {"accuracy": 0.4, "lean": 0.3, "noisy": 0.5, "entropy": 0.1, "kl_masked": 0.6}

    def value_of(task, name, seed, number):
        ordinary = name == "start" or name.startswith("grpo")
        level = usually.get(number, 0.5) if ordinary else ideal.get(number, 0.5)
        if name == "start" and number == "entropy":
            level = 0.4
        low, high = (0.0, 1.0) if number in parts["effect_tasks"].IDEAL else (None, None)
        noise = rng.normal(0, 0.02) + rng.normal(0, 0.2, 40)
        return np.clip(level + noise, low, high).tolist()

    filled(parts, plan, value_of)
    tables = parts["effect_tables"]
    rows = tables.compared(plan)
    assert len(rows) == sum(len(m.claims) for m in parts["effect_methods"].METHODS.values())
    assert {row.verdict for row in rows} == {"shown"}
    text = tables.report(rows, tables.checked(plan), plan)
    assert text.count("| shown |") == len(rows) and "no bound" in text and "## All" in text
    assert f"Of {len(rows)} claims, shown: papo: KL" in text and "still lack seeds" not in text
    assert "opposite: none." in text and "less room than they need" not in text


def test_half_a_table_is_corrected_for_the_whole(parts, plan):
    rng = np.random.default_rng(1)

    def value_of(task, name, seed, number):
        above = 0.1 if name == "papo" else 0.0
        return (0.5 + above + rng.normal(0, 0.03) + rng.normal(0, 0.1, 40)).tolist()

    one = replace(plan, methods=("papo",))
    filled(parts, one, value_of)
    rows = parts["effect_tables"].compared(one)
    least = min(rows, key=lambda row: row.found.p)
    claims = len(parts["effect_methods"].CLAIMS)
    assert len(rows) == 2 and claims > 20
    assert least.corrected == pytest.approx(min(1.0, claims * least.found.p))
    assert f"{claims - 2} are not measured yet" in parts["effect_tables"].outcome(rows, one)


def test_a_stopped_benchmark_goes_on(parts, plan, monkeypatch):
    effects = parts["effects"]
    small = replace(plan, methods=("dvrp", "visurf"), seeds=(0, 1))
    done, lucky = [], []

    class NoExam:
        @staticmethod
        def of(start, count):
            return NoExam()

        def marked(self, model):
            return {"accuracy": [0.5] * 40}

    def train(trained, seed, exam):
        if trained.name == "dvrp" and seed == 1 and lucky.count(seed) < 3:
            lucky.append(seed)
            raise RuntimeError("out of luck")
        done.append((trained.name, seed))
        return {"accuracy": [0.5] * 40}

    monkeypatch.setattr(effects, "Exam", NoExam)
    monkeypatch.setattr(effects, "start_of", lambda task, plan: Path("nowhere"))
    monkeypatch.setattr(effects, "placed", lambda trained, task, plan: trained)
    monkeypatch.setattr(effects, "trained_marks", train)
    failed = effects.worked(small)
    # DVRP has three tasks; a failed run costs only itself.
    assert len(failed) == 3 and failed[0].endswith("cells/dvrp-1.json") and len(done) == 17
    before = len(done)
    assert effects.worked(small) == [] and len(done) == before + len(failed)
    assert effects.worked(small) == [] and len(done) == before + len(failed)
    assert not list(plan.place.rglob(".*"))


def test_results_of_other_settings_are_refused(parts, plan):
    effects = parts["effects"]
    file = plan.file("cells", "start")
    assert effects.stored(file, plan.settings(None)) is None
    effects.keep(file, plan.settings(None), {"accuracy": [1.0]})
    assert effects.stored(file, plan.settings(None)) == {"accuracy": [1.0]}
    with pytest.raises(SystemExit, match="give another --output"):
        effects.stored(file, replace(plan, steps=4).settings(None))
    with pytest.raises(SystemExit, match="--methods names"):
        effects.main(methods=("pappo",))


@pytest.mark.parametrize(
    ("afters", "gains"), [((0.7, 0.7, 0.7), True), ((0.9, 0.7, 0.55), False)]
)
def test_a_pretext_task_gains_only_if_its_seeds_agree(parts, monkeypatch, afters, gains):
    pretext = parts["pretext_effects"]
    monkeypatch.setattr(pretext, "best_constant", lambda asked: 0.3)
    extra = {"task": "rotation", "chance_reward": 0.25}
    exam = [Prompt(str(i), ({"role": "user", "content": ""},), extra=extra) for i in range(80)]
    rng = np.random.default_rng(0)

    def marks(level):
        earned = {p.id: level + rng.normal(0, 0.2) for p in exam}
        return pretext.Marks(earned, dict.fromkeys(earned, 1.0))

    after = [marks(level) for level in afters]
    row = pretext.judged("rotation", exam, marks(0.5), after, [{"rotation": [0.5]}])
    row = replace(row, corrected=row.gain.p)
    assert row.gain.mean == pytest.approx(0.2, abs=0.07) and row.gain.seeds == 3
    assert row.gains is gains and row.improved is gains


def test_a_section_is_replaced_or_added(parts, tmp_path):
    documents = parts["documents"]
    once = documents.inserted("# Title\n\nprose\n", "numbers", "first")
    assert once.startswith("# Title\n\nprose\n\n") and "first" in once
    twice = documents.inserted(once + "\nafter\n", "numbers", "second")
    order = [twice.index(word) for word in ("prose", "second", "after")]
    assert "first" not in twice and order == sorted(order)
    both = documents.inserted(twice, "others", "third")
    assert "second" in both and "third" in documents.inserted(both, "numbers", "fourth")
    documents.write_section(tmp_path / "new.md", "numbers", "only")
    assert (tmp_path / "new.md").read_text().count("only") == 1
