"""Reports of whole runs, of broken ones, of long ones, and of several."""

import json
import random
import subprocess
import sys
import time

import pytest

from mmrl.report.build import flattened, labelled, report_page, write_report
from mmrl.report.refresh import Refresh
from mmrl.report.run_files import read_run

LIMIT = 30_000_000
"""Bytes of the page about a long run."""


def test_the_page_says_what_was_run_and_what_happened(make_run, sample):
    rows, near = sample(2, "q1")
    metrics = [{"step": n, "reward/total": n / 10, "branch/masked/kl": n} for n in range(1, 11)]
    metrics[0] |= {"eval/accuracy": 0.25}
    metrics[-1] |= {"eval/accuracy": 0.75, "alarm/entropy": 1.0, "reward_failures/x_timeout": 3}
    metrics[-1] |= {"probe/accuracy": 0.7, "probe/accuracy_blank": 0.1}
    scores = [(1, "a", 0), (1, "b", 0), (10, "a", 1), (10, "b", 0)]
    folder = make_run(
        settings={"optim": {"lr": 0.125}, "rewards": {"form": 1}},
        metrics=metrics,
        samples=rows,
        closeups=[near],
        eval=[{"step": s, "prompt": p, "score": v, "answer": "x"} for s, p, v in scores],
        skipped=[{"position": 3, "row": 7, "reason": "torn picture"}],
        quarantine=[{"where": "a.mp4", "reason": "hangs", "detail": "60 s"}],
    )
    page = report_page([read_run(folder)])
    for said in (
        "finished",
        "optim.lr",
        "0.125",
        "reward/total",
        "branch/masked/kl",
        "torn picture",
        "a.mp4",
        "reward_failures/x_timeout",
        "<b>entropy</b>",
        "Blind probe",
        "2 questions in common",
        "why?",
    ):
        assert said in page, said


def test_a_run_is_read_as_it_lies(make_run):
    folder = make_run(metrics=[{"step": 1, "reward/total": 1.0}], finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            'not json\n[1]\n{"step": "x"}\n{"step": 2, "reward/total": NaN}\n{"step": 3, "rew'
        )
    (folder / "config.json").write_text("{torn")
    run = read_run(folder)
    assert run.steps == [1, 2] and run.curve("reward/total") == [(1, 1.0)]
    # The last line is being written, which is no damage.
    assert run.damaged == {"metrics.jsonl": 2, "config.json": 1}
    page = report_page([run])
    assert "not finished; step 2" in page and "2 damaged line(s)" in page


@pytest.mark.parametrize(
    "odd",
    [
        {"answers": 3, "pictures": [1]},
        {"answers": [{"tokens": [1], "logp": ["x"]}], "pictures": {"raw": [[{"uri": 1}]]}},
        {"answers": [{"tokens": ["a"], "logp": [1, 2]}, None], "pictures": {"raw": {}}},
    ],
)
def test_values_of_another_kind_are_missing_ones(make_run, sample, odd):
    rows, near = sample(1)
    rows = [{**rows[0], "parts": 3, "reward": "x", "question": None, "answer": ["a"]}]
    folder = make_run(
        settings=[1],
        metrics=[{"step": 1, "eval/accuracy": None, "reward/total": "x", "a": [1]}],
        samples=rows,
        closeups=[{**near, **odd}],
        eval=[{"step": 1}, {"step": 1, "prompt": 3, "score": "x"}],
        skipped=[{}],
        quarantine=[{"path": 3}],
    )
    assert "no reward" in report_page([read_run(folder)])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="There is no folder"):
        read_run(tmp_path / "gone")


def long_run(make_run, sample, words, steps=2000, groups=500, answers=8):
    """A run of many steps with long answers, large pictures and many metrics."""
    rng = random.Random(0)
    names = [f"part{n // 8}/metric{n}" for n in range(80)]
    metrics = [{"step": s, **{n: rng.random() for n in names}} for s in range(1, steps + 1)]
    uri = "data:image/jpeg;base64," + "A" * 12_000
    found = [
        sample(n * steps // groups + 1, f"q{n}", answers, words * 200, 400, uri)
        for n in range(groups)
    ]
    return make_run(
        metrics=metrics,
        samples=[row for rows, _ in found for row in rows],
        closeups=[near for _, near in found],
    )


def test_a_long_run_makes_a_small_page(make_run, sample):
    # Letters of three bytes, which take the most room.
    folder = long_run(make_run, sample, words="图像里的小猫")
    assert sum(file.stat().st_size for file in folder.iterdir()) > LIMIT
    run = read_run(folder)
    began = time.process_time()
    page = report_page([run])
    assert len(page.encode()) < LIMIT
    assert time.process_time() - began < 20
    assert "q0" in page and "q499" in page
    # Less is shown than there is, and the page says so.
    assert "of 500 groups are shown" in page and "Texts are cut after 1000 characters" in page


def test_several_runs_are_compared_by_question(make_run):
    def rows(right):
        return [{"step": 5, "prompt": p, "score": float(p in right)} for p in "abcdefgh"]

    metrics = [{"step": n, "reward/total": n} for n in (1, 2)]
    one = make_run("one", {"lr": 1, "same": 2}, metrics=metrics, eval=rows("ab"))
    two = make_run("two", {"lr": 3, "same": 2}, metrics=metrics, eval=rows("bcdefgh"))
    page = report_page([read_run(one), read_run(two)])
    assert "8 questions in common: 0.250 (one) →\n0.875 (two)" in page
    assert "Right in both 1, only one 1, only two 6,\nneither 0" in page
    assert page.count('class="differs"') == 1


def test_several_runs_need_a_name_for_their_page(make_run):
    runs = [make_run(name, metrics=[{"step": 1, "a/b": 1.0}]) for name in "xy"]
    with pytest.raises(ValueError, match=r"--output compared\.html"):
        write_report(runs, None)


def test_runs_of_one_name_are_told_apart(make_run):
    (folder,) = [make_run(metrics=[{"step": 1, "a/b": 1.0}])]
    twice = labelled([read_run(folder), read_run(folder)])
    assert len(set(twice)) == 2


def test_a_report_never_stops_a_run(make_run, capsys):
    folder = make_run(metrics=[{"step": 1, "a/b": 1.0}])
    (folder / "report.html").mkdir()  # cannot be replaced by a file
    report = Refresh(folder)
    for _ in range(3):
        report.write()
    assert not (folder / ".report.html.draft").exists()
    assert report.failures() == {"report/failures": 3.0} and report.failures() == {}
    said = capsys.readouterr()
    assert (said.out + said.err).count("could not be written") == 1


def test_a_report_is_not_written_at_every_step(make_run):
    folder = make_run(metrics=[{"step": 1, "a/b": 1.0}])
    report = Refresh(folder)
    report.if_due()
    first = (folder / "report.html").stat().st_mtime_ns
    report.if_due()
    assert (folder / "report.html").stat().st_mtime_ns == first


def test_the_command_needs_no_torch(make_run):
    folder = make_run(metrics=[{"step": 1, "a/b": 1.0}])
    code = (
        "import sys\nfrom mmrl.recipes.__main__ import main\n"
        f"main(['report', {str(folder)!r}])\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["gone"], "There is no folder gone"),
        (["--outptu", "x"], "there is no flag '--outptu'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(args, said):
    from mmrl.recipes.__main__ import report

    with pytest.raises(SystemExit) as stop:
        report(args)
    assert said in str(stop.value)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (
            "/home/me/mmrl/recipes/papo.py 7b --run.seed 1",
            "python -m recipes.papo 7b --run.seed 1",
        ),
        ("/usr/bin/mmrl papo", "mmrl papo"),
        ("my_script.py", "my_script.py"),
    ],
)
def test_commands_are_shown_as_they_were_typed(make_run, stored, said):
    folder = make_run(metrics=[{"step": 1, "a/b": 1.0}])
    (folder / "config.json").write_text(json.dumps({"environment": {"command": stored}}))
    assert f"<dd>{said}</dd>" in report_page([read_run(folder)])


def test_metrics_of_a_file_are_plain_json(make_run):
    run = read_run(
        make_run(metrics=[{"step": 2, "a": 1.0}, {"step": 1, "a": 2.0}, {"step": 2, "a": 3}])
    )
    assert run.curve("a") == [(1, 2.0), (2, 3.0)]
    json.dumps([dict(row) for row in run.metrics])


def test_settings_of_listed_records_stand_one_by_one():
    papo, sft = {"class": "PAPO", "gamma": 0.02, "anneal": {"end": 1}}, {"class": "SFT"}
    assert flattened({"objectives": [papo, sft], "freeze": ["vision"], "none": []}) == [
        ("objectives.PAPO.class", "PAPO"),
        ("objectives.PAPO.gamma", "0.02"),
        ("objectives.PAPO.anneal.end", "1"),
        ("objectives.SFT.class", "SFT"),
        ("freeze", '["vision"]'),
        ("none", "[]"),
    ]
    assert dict(flattened({"two": [sft, sft]})).keys() == {"two.0.class", "two.1.class"}


def test_the_prompts_of_judges_are_shown_once(make_run):
    said = "You check <b>answers</b>."
    prompt = {"version": 3, "digest": "ab12", "text": said}
    page = report_page([read_run(make_run(settings={"judge_prompts": {"mine": prompt}}))])
    assert "Judge prompts" in page and "version 3" in page and "ab12" in page
    assert page.count("You check &lt;b&gt;answers") == 1 and said not in page
    assert "judge_prompts.mine.version" in page and "judge_prompts.mine.text" not in page
    assert "Judge prompts" not in report_page([read_run(make_run("other"))])
