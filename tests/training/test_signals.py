"""SIGTERM, SIGHUP, SIGUSR1 at every moment of a run: a documented code in a bounded time, and the same bits later."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.stopping import Stopped, Waiting, leaving, stop_if_asked
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling
from tests.several import several, values

SIGNALS = {"SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 128 + signal.SIGUSR1}
MOMENTS = ("rollout", "reward", "gradient_norm", "optimizer", "evaluation")
"""Where the third step of four is hit."""


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


def trainer(folder, output, grace=20.0, updates=1):
    return Trainer(
        Policy.load(folder, device="cpu", dtype="float32"),
        prompts=Drawn("lookup", size=9),
        heldout=Drawn("lookup", split="heldout", size=2),
        rewards=Rewards(accuracy=pay),
        sampling=Sampling(3, max_tokens=4),
        optim=Optim(lr=1e-3, schedule="linear"),
        run=Run(
            output=output,
            steps=4,
            prompts_per_step=2,
            updates_per_step=updates,
            save_every=0,
            eval_every=1,
            sample_every=1,
            grace=grace,
        ),
    )


def timeless(folder):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
        for row in read_metrics(folder)
    ]


def weights(trained):
    return [p.detach().clone() for _, p in trained.policy.named_parameters()]


def hit(trained, moment, number, hang, monkeypatch):
    """Send the signal at that moment of step 3; `hang`: and never come back."""
    sent = []

    def struck():
        if trained.step_done == (3 if moment == "evaluation" else 2) and not sent:
            sent.append(time.monotonic())
            signal.raise_signal(number)
            limit = sent[0] + (0.4 if moment == "optimizer" else 30)
            while hang and time.monotonic() < limit:
                time.sleep(0.005)

    def before(owner, name):
        real = getattr(owner, name)

        def called(*args, **rest):
            struck()
            return real(*args, **rest)

        monkeypatch.setattr(owner, name, called)

    if moment == "optimizer":
        before(trained.optimizer._adam, "step")
    elif moment == "gradient_norm":
        before(trained.optimizer, "gradient_norm")
    elif moment == "reward":
        before(trained, "_pay")
    elif moment == "rollout":
        before(trained, "rollout")
    else:
        before(trained.beside, "evaluated")


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    trained = trainer(tiny_folder, output)
    trained.fit()
    return weights(trained), timeless(output), (output / "samples.jsonl").read_text()


@pytest.mark.parametrize("hang", [False, True], ids=["step ends", "step hangs"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_saves_and_the_run_goes_on_to_the_same_bits(
    tiny_folder, tmp_path, monkeypatch, capsys, whole, moment, hang
):
    name = list(SIGNALS)[(MOMENTS.index(moment) + hang) % 3]
    output = tmp_path / "run"
    cut = trainer(tiny_folder, output, grace=0.1 if hang else 20.0)
    hit(cut, moment, getattr(signal, name), hang, monkeypatch)
    before, handler = time.monotonic(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as ended:
        cut.fit()
    assert ended.value.code == SIGNALS[name] and time.monotonic() - before < 20
    assert (
        signal.getsignal(signal.SIGTERM) == handler
        and not signal.getitimer(signal.ITIMER_REAL)[0]
    )
    done = 2 if hang and moment in ("rollout", "reward", "gradient_norm") else 3
    said = capsys.readouterr().err
    assert f"{name}: stopping after this step, or in" in said
    assert f"Stopped at step {done}; the same command continues" in said
    assert [p.name for p in (output / "checkpoints").iterdir()] == [f"step-{done}"]
    assert not (output / "finished.json").exists()
    again = trainer(tiny_folder, output)
    again.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(again), whole[0], strict=True))
    assert timeless(output) == whole[1]
    assert (output / "samples.jsonl").read_text() == whole[2]


def test_weights_between_two_updates_are_not_saved_so_the_step_ends(
    tiny_folder, tmp_path, monkeypatch
):
    """After the first of two updates the weights belong to no step: the step is done to its end, late as it is."""
    cut = trainer(tiny_folder, tmp_path / "run", grace=0.0, updates=2)
    real, calls = cut.optimizer.gradient_norm, []

    def slow():
        calls.append(cut.step_done)
        if calls == [0, 0]:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.4)
        return real()

    monkeypatch.setattr(cut.optimizer, "gradient_norm", slow)
    with pytest.raises(Stopped):
        cut.fit()
    assert cut.step_done == 1 and len(calls) == 2
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-1"]


def test_a_signal_in_the_last_step_lets_the_run_finish(tiny_folder, tmp_path, monkeypatch):
    done = trainer(tiny_folder, tmp_path / "run")
    real = done._finish

    def finish(*given):
        signal.raise_signal(signal.SIGTERM)
        return real(*given)

    monkeypatch.setattr(done, "_finish", finish)
    done.fit()
    assert (tmp_path / "run" / "finished.json").is_file()


def test_the_first_evaluation_is_given_up(tiny_folder, tmp_path, monkeypatch, capsys):
    cut = trainer(tiny_folder, tmp_path / "run", grace=0.1)

    def evaluate(step, told):
        signal.raise_signal(signal.SIGHUP)
        time.sleep(30)

    monkeypatch.setattr(cut.beside, "evaluated", evaluate)
    with pytest.raises(Stopped) as ended:
        cut.fit()
    assert ended.value.code == 129
    assert "Stopped before the first step; the same command starts" in capsys.readouterr().err
    again = trainer(tiny_folder, tmp_path / "run")
    again.fit()
    assert again.step_done == 4


def test_outside_of_a_run_the_first_signal_leaves_at_once():
    with pytest.raises(Stopped) as ended, leaving():
        signal.raise_signal(signal.SIGUSR1)
        pytest.fail("went on")
    assert ended.value.code == SIGNALS["SIGUSR1"] and isinstance(ended.value, SystemExit)


def test_a_stage_that_ended_after_a_signal_is_the_last_one():
    with leaving():
        with Waiting(5.0) as signals:
            signal.raise_signal(signal.SIGTERM)
            assert signals.asked == signal.SIGTERM
        with pytest.raises(Stopped):
            stop_if_asked()
    stop_if_asked()


def forked(work):
    """A process that does that; its exit code, negative for a signal."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def waiting(file, ignored=None):
    if ignored is not None:
        signal.signal(ignored, signal.SIG_IGN)
    with leaving(), Waiting(60.0):
        file.touch()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.01)


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_leaves_at_once_and_an_echo_is_none(tmp_path, second):
    pid = forked(lambda: waiting(tmp_path / "up"))
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    for _ in range(2):  # as `timeout` and systemd send them: two at a time
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.01)
    time.sleep(0.4)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the echo is the same signal"
    sent = time.monotonic()
    os.kill(pid, getattr(signal, second))
    assert ended(pid) == SIGNALS[second] and time.monotonic() - sent < 2


def test_what_nohup_ignores_stays_ignored(tmp_path):
    pid = forked(lambda: waiting(tmp_path / "up", signal.SIGHUP))
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.4)
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.2)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    ended(pid)


def test_a_worker_that_was_forked_dies_of_its_own_signal():
    def parent():
        with leaving(), Waiting(60.0) as signals:
            child = os.fork()
            if not child:
                time.sleep(20)
                os._exit(0)
            time.sleep(0.2)
            os.kill(child, signal.SIGTERM)
            assert ended(child) == -signal.SIGTERM and signals.asked == 0

    assert ended(forked(parent)) == 0


def struck_at_step_7():
    ranks = Ranks.start("cpu")
    told = step = 0
    with Waiting(60.0) as signals:
        for step in range(1, 200):
            if ranks.rank == 1 and step == 7:
                os.kill(os.getpid(), signal.SIGUSR1)
            if told := ranks.most(signals.asked):
                break
    ranks.end()
    return step, told


def test_two_processes_stop_at_the_same_step():
    first, second = values(several(2, struck_at_step_7))
    assert first == second == (7, signal.SIGUSR1)


def struck(folder, output, moment):
    """Two processes get a signal in step 3 and cannot end it in time; rank 0 is elsewhere than rank 1."""
    ranks = Ranks.start("cpu")
    cut = trainer(folder, output, grace=0.3)
    owner, name = {
        "rollout": (cut, "rollout"),
        "evaluation": (cut.beside.engine, "generate"),
        "update": (cut.learner, "_live"),
    }[moment]
    real, sent = getattr(owner, name), []

    def called(*given, **named):
        if cut.step_done == (3 if moment == "evaluation" else 2) and not sent:
            sent.append(time.monotonic())
            signal.raise_signal(signal.SIGTERM)
            # One sleeps where it may be interrupted; the other is through and waits for it.
            until = sent[0] + (0 if ranks.rank == 0 else 1.0 if moment == "update" else 30)
            while time.monotonic() < until:
                time.sleep(0.005)
        return real(*given, **named)

    setattr(owner, name, called)
    # One prompt in a part, so that the update has a second one.
    cut.learner.tokens_per_pass = 1
    try:
        with pytest.raises(Stopped) as ended:
            cut.fit()
    finally:
        ranks.end()
    return ended.value.code, cut.step_done, time.monotonic() - sent[0] < 20


@pytest.mark.parametrize("moment", ["rollout", "update", "evaluation"])
def test_two_processes_give_a_step_up_in_time(tiny_folder, tmp_path, moment, whole):
    output = tmp_path / "run"
    outcomes = several(2, struck, tiny_folder, output, moment, limit=120.0)
    done = 3 if moment == "evaluation" else 2
    assert values(outcomes) == [(143, done, True)] * 2
    assert [p.name for p in (output / "checkpoints").iterdir()] == [f"step-{done}"]
    assert f"Stopped at step {done}; the same command continues" in outcomes[0].said
    # One process goes on; the order of sums is another, the numbers are not.
    trainer(tiny_folder, output).fit()
    for ours, theirs in zip(timeless(output), whole[1], strict=True):
        for key in ("reward/total", "loss/total", "eval/accuracy"):
            assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-4), (
                ours["step"],
                key,
            )


def test_a_command_ends_with_the_code(commands, tmp_path, tiny_folder):
    """The signal comes from outside, while a real recipe trains."""
    script = tmp_path / "strike.py"
    script.write_text(
        "import os, signal, sys, threading, time, runpy\n"
        "from pathlib import Path\n"
        "def strike():\n"
        "    file = Path('out/metrics.jsonl')\n"
        "    while not (file.is_file() and file.read_bytes().count(b'\\n') >= 2):\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=strike, daemon=True).start()\n"
        "sys.argv = ['papo', *sys.argv[1:]]\n"
        "runpy.run_module('mmrl.recipes.papo', run_name='__main__')\n"
    )
    given = ["embedded", "--model", str(tiny_folder), "--run.output", "out", "--run.steps"]
    given += ["400", "--run.prompts-per-step", "2", "--run.eval-prompts", "2"]
    given += ["--sampling.max-tokens", "4"]
    done = commands([str(script), *given], cwd=tmp_path)
    assert done.returncode == 143, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "Stopped at step" in done.stderr
    state = sorted((tmp_path / "out" / "checkpoints").glob("step-*/state.json"))
    marker = json.loads((tmp_path / "out" / ".mmrl.json").read_text())
    assert json.loads(state[-1].read_text())["run"] == marker["id"]


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_once_finishes_the_step_and_saves_twice_leaves(
    tiny_folder, tmp_path, monkeypatch, capsys, presses, whole
):
    output, sampled = tmp_path / "run", []
    cut = trainer(tiny_folder, output)
    real = cut.rollout

    def rollout(*args):
        if cut.step_done == 2:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
            sampled.append(cut.step_done)
        return real(*args)

    monkeypatch.setattr(cut, "rollout", rollout)
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    assert "press Ctrl-C again to stop at once" in capsys.readouterr().err
    # The second one does not even let the rollout begin; this run had no checkpoint yet.
    assert sampled == ([2] if presses == 1 else [])
    left = [path.name for path in output.glob("checkpoints/step-*")]
    assert left == (["step-3"] if presses == 1 else [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = trainer(tiny_folder, output)
    again.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(again), whole[0], strict=True))
