"""`mmrl mixture`: the surrogate and its laws, the command over finished runs, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrl.report import mixture_fit as fitting
from mmrl.report.mixture import mixture

NAMES = ("charts", "boxes", "photos")


def simplex(count, sets, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(sets), count)


@pytest.mark.parametrize("sets", [1, 2, 3, 5])
def test_a_known_quadratic_comes_back(sets):
    rng = np.random.default_rng(sets)
    matrix = rng.normal(size=(sets, sets))
    known = fitting.Surrogate(0.4, (matrix + matrix.T) / 2, 0.0)
    weights = simplex(fitting.terms(sets) + 1, sets)
    found = fitting.fit(weights, known(weights), ridge=1e-12)
    fresh = simplex(50, sets, seed=1)
    assert np.abs(found(fresh) - known(fresh)).max() < 1e-5
    assert fitting.terms(sets) == sets * (sets + 1) // 2


def test_the_best_mixture_lies_on_the_simplex_and_is_the_best():
    # Largest at (0.5, 0.3, 0.2): minus the squared distance, as a form in w.
    peak = np.array([0.5, 0.3, 0.2])
    matrix = -np.eye(3) + peak[:, None] + peak[None, :] - (peak**2).sum()
    surrogate = fitting.Surrogate(0.7, matrix, 0.0)
    seen = np.eye(3)
    best = fitting.propose(surrogate, seen)
    assert best.weights == pytest.approx(peak, abs=1e-3)
    assert best.predicted == pytest.approx(0.7) and best.distance == pytest.approx(
        0.5, abs=1e-3
    )
    corner = fitting.propose(fitting.Surrogate(0.0, np.diag([0.0, 2.0, 0.0]), 0.0), seen)
    assert corner.weights == pytest.approx([0, 1, 0]) and corner.distance == 0
    for one in (best, corner):
        assert one.weights.sum() == pytest.approx(1) and one.weights.min() >= 0


def test_projection_on_the_simplex():
    points = np.array([[0.2, 0.3, 0.5], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.4, 0.4]])
    found = fitting.on_simplex(points)
    assert found.tolist() == pytest.approx(
        np.array([[0.2, 0.3, 0.5], [1, 0, 0], [1 / 3] * 3, [0, 0.5, 0.5]])
    )


def test_mixtures_to_begin_with():
    assert len(fitting.seed_mixtures(5)) == 11 and len(fitting.seed_mixtures(2)) == 3
    assert fitting.seed_mixtures(1).tolist() == [[1.0]]
    left = fitting.missing_seeds(np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    assert len(left) == 5


def test_unseen_means_unseen():
    """A mixture that was run twice is left out as a whole; a surrogate of noise is no better than the mean."""
    weights = np.concatenate([simplex(7, 3), simplex(7, 3)[:1]])
    scores = np.linspace(0, 1, 8)
    before = fitting.left_out_predictions(weights, scores)
    scores[[0, 7]] += 5
    after = fitting.left_out_predictions(weights, scores)
    assert after[0] == pytest.approx(before[0]) and after[7] == pytest.approx(before[7])
    assert fitting.noise(weights, scores) == pytest.approx(abs(scores[0] - scores[7]) / 2**0.5)
    assert fitting.noise(weights[:7], scores[:7]) is None


def run(folder: Path, weights, score, *, step=10, dataset="three", finished=True, **more):
    folder.mkdir(parents=True)
    told = {
        "settings": {"domains": dict(zip(NAMES, weights, strict=True))},
        "recipe": {"arguments": {"dataset": dataset, "model": "m"}},
    }
    (folder / "config.json").write_text(json.dumps(told | more))
    rows = [
        {"step": 0, "eval/accuracy": 0.1, "eval/charts/accuracy": 0.2},
        {"step": step, "eval/accuracy": score, "eval/charts/accuracy": 1 - score},
        {"step": step + 1, "reward/total": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        (folder / "finished.json").write_text("{}")
    return str(folder)


def score_of(weights):
    return float(0.3 + 0.8 * weights[0] * weights[1] - 0.2 * weights[2] ** 2)


@pytest.fixture
def seeds(tmp_path):
    """The seven mixtures to begin with, one of them twice, with scores without noise."""
    rows = [*fitting.seed_mixtures(3), np.full(3, 1 / 3)]
    return [run(tmp_path / f"run{n}", row, score_of(row)) for n, row in enumerate(rows)]


def test_the_command_proposes_the_next_weights(seeds, tmp_path, capsys):
    output = tmp_path / "next.json"
    mixture([*seeds, "--output", str(output)])
    found, said = json.loads(output.read_text()), capsys.readouterr().out
    best = found["proposal"]["weights"]
    assert best["charts"] == pytest.approx(0.5, abs=0.03) and best["photos"] < 0.03
    assert found["leave_one_out_error"] < 0.5 * found["error_of_the_mean"]
    assert found["noise"] == pytest.approx(0.0) and found["mixtures"] == 7
    assert found["terms"] == 6 and found["missing_seeds"] == []
    assert all(
        {"score", "fitted", "predicted_unseen", "weights"} <= set(r) for r in found["runs"]
    )
    assert f"next: --mix.weights charts={best['charts']:.4g}"[:30] in said and "unseen" in said
    mixture([*seeds, "--score", "eval/charts/accuracy", f"--output={output}"])
    assert json.loads(output.read_text())["proposal"]["weights"]["photos"] > 0.5
    mixture([*seeds, "--step", "0", "--score=eval/accuracy", "--score=eval/charts/accuracy"])
    assert "0.1500" in capsys.readouterr().out


def test_what_keeps_a_proposal_from_being_trusted_is_said(seeds, tmp_path, capsys):
    mixture([*seeds[:4], run(tmp_path / "late", [0.1, 0.2, 0.7], 0.2, step=99)])
    said = capsys.readouterr().out
    assert "5 mixtures do not determine 6 terms" in said and "10 to 99 steps" in said
    assert "run the uniform one three times" in said
    mixture([*seeds, run(tmp_path / "open", [1, 0, 0], 0.2, finished=False)])
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dataset": "others"}, "has another --dataset than"),
        ({"settings": {}}, "says nothing about weights of data sets"),
        ({"settings": {"domains": {"charts": 0.5, "other": 0.5}}}, "mixes .*same data sets"),
        ({"settings": {"domains": {"levels": "x"}}}, "says nothing about weights"),
    ],
)
def test_runs_that_do_not_compare_are_refused(seeds, tmp_path, change, told):
    with pytest.raises(SystemExit, match=told):
        mixture([*seeds, run(tmp_path / "odd", [1, 0, 0], 0.5, **change)])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--score", "eval/nothing"], "logged no 'eval/nothing'.*eval/charts/accuracy"),
        (["--step", "3"], "0 runs with 0 different mixtures"),
        (["--step", "x"], "must be a number"),
        (["--steps", "3"], "is no flag"),
        (["--score"], "needs a value"),
        (["nowhere"], "no folder nowhere"),
        (["--output", "a", "--output", "b"], "given 2 times"),
    ],
)
def test_bad_arguments_end_in_a_sentence(seeds, more, told):
    with pytest.raises(SystemExit, match=told):
        mixture([*seeds, *more])


def test_too_few_mixtures_are_told_what_to_run(seeds, tmp_path):
    with pytest.raises(SystemExit) as ended:
        mixture([seeds[0], seeds[1], seeds[0]])
    said = str(ended.value.code)
    assert "2 runs with 2 different mixtures" in said and "needs 4 or more" in said
    assert "--mix.weights charts=0.3333 boxes=0.3333 photos=0.3333" in said


def test_no_file_of_somebody_else_is_overwritten(seeds, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    with pytest.raises(SystemExit, match="no report of mmrl"):
        mixture([*seeds, "--output", str(mine)])
    assert mine.read_text() == "{}"


def test_torch_is_not_loaded_for_it(seeds):
    code = (
        "import sys; from mmrl.recipes.__main__ import main; main(['mixture', *sys.argv[1:]]); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *seeds], capture_output=True, text=True)
    assert done.returncode == 0 and "next: --mix.weights" in done.stdout, done.stderr
