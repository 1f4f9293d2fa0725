"""kill -9 and Ctrl-C on real processes: the same command continues to the same bits.

One process imports everything and forks each run, so that no run pays for the imports; nothing is trained in it itself.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from mmrl.training.tracking import read_metrics

ROOT = Path(__file__).parents[2]

RUNS = '''
import json, os, signal, sys, time, traceback
from pathlib import Path

import torch

torch.set_num_threads(1)

from mmrl.data.drawn.drawn import Drawn
from mmrl.training import checkpoint
from mmrl.grpo import GRPO
from mmrl.objectives.papo import PAPO
from mmrl.training.optim import Optim
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling, VisualBranch
from mmrl.perception.masking import PatchMask

folder, base = Path(sys.argv[1]), Path(sys.argv[2])


DEADLY = {}


@in_process
def pay(rollout):
    if DEADLY:
        DEADLY["paid"] += 1
        if DEADLY["paid"] == 31:  # 2 held-out answers, 4 steps of 6 with 2 held-out answers between: within step 5
            die()
    return float(int(rollout.tokens.sum()) % 7) / 7


def train(name):
    Trainer(
        Policy.load(folder, device="cpu", dtype="float32"),
        prompts=Drawn("lookup", size=9),
        heldout=Drawn("lookup", split="heldout", size=2),
        rewards=Rewards(accuracy=pay),
        branches={"masked": VisualBranch(PatchMask(0.5, 8))},
        objectives=[PAPO()],
        grpo=GRPO(kl=0.01),
        sampling=Sampling(3, max_tokens=4),
        optim=Optim(lr=1e-3, schedule="linear"),
        run=Run(output=base / name, steps=5, prompts_per_step=2, save_every=2, eval_every=3),
    ).fit()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_a_step(name):
    DEADLY["paid"] = 0  # in this fork alone
    train(name)


def killed_in_a_checkpoint(name):
    real, count = torch.save, 0

    def save(*args, **kwargs):
        nonlocal count
        real(*args, **kwargs)
        count += 1
        if count == 2:  # weights and optimizer of step 4 are written, its numbers are not
            die()

    torch.save = save
    train(name)


def forked(work, name):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work(name)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def when_lines(name, count, number):
    """Send the signal as soon as the metrics have so many lines."""
    pid, file = forked(train, name), base / name / "metrics.jsonl"
    while not (file.is_file() and file.read_bytes().count(b"\\n") >= count):
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise SystemExit(f"{name} ended before it had {count} lines")
        time.sleep(0.001)
    os.kill(pid, number)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


starts = {
    "whole": lambda: forked(train, "whole"),
    "step": lambda: forked(killed_in_a_step, "step"),
    "checkpoint": lambda: forked(killed_in_a_checkpoint, "checkpoint"),
    "first": lambda: when_lines("first", 1, signal.SIGKILL),
    "ctrl-c": lambda: when_lines("ctrl-c", 3, signal.SIGINT),
}
results = {}
for name, start in starts.items():
    code = ended(start())
    checkpoints = base / name / "checkpoints"
    left = sorted(p.name for p in checkpoints.glob("*"))
    lines = (base / name / "metrics.jsonl").read_bytes().count(b"\\n")
    print(f"--- continuing {name}", file=sys.stderr, flush=True)
    results[name] = {"code": code, "left": left, "lines": lines, "again": ended(forked(train, name))}
    print(f"--- continued {name}", file=sys.stderr, flush=True)
(base / "results.json").write_text(json.dumps(results))
'''


@pytest.fixture(scope="module")
def runs(commands, tiny_folder, tmp_path_factory):
    """Folder of the runs, how each ended, and what was said in each."""
    base = tmp_path_factory.mktemp("runs")
    script = base / "runs.py"
    script.write_text(RUNS)
    done = commands([str(script), str(tiny_folder), str(base)], cwd=base)
    assert done.returncode == 0, done.stderr[-3000:]
    return base, json.loads((base / "results.json").read_text()), done.stderr


def timeless(rows):
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows
    ]


def test_the_moments_are_what_they_say(runs):
    _, found, _ = runs
    assert found["whole"]["code"] == 0 and found["whole"]["lines"] == 6
    for name in ("step", "checkpoint", "first"):
        assert found[name]["code"] == -signal.SIGKILL, name
    assert found["step"]["left"] == ["step-2", "step-4"] and found["step"]["lines"] == 5
    (draft, whole) = found["checkpoint"]["left"]
    assert (
        draft.startswith(".writing-step-4")
        and whole == "step-2"
        and found["checkpoint"]["lines"] == 5
    )
    assert found["first"]["left"] == [] and found["first"]["lines"] < 3


@pytest.mark.parametrize("name", ["step", "checkpoint", "first", "ctrl-c"])
def test_the_same_command_continues_to_the_same_bits(runs, name):
    base, found, _ = runs
    assert found[name]["again"] == 0
    for file in ("model/model.safetensors", "checkpoints/step-5/weights.safetensors"):
        assert (base / name / file).read_bytes() == (base / "whole" / file).read_bytes()
    assert timeless(read_metrics(base / name)) == timeless(read_metrics(base / "whole"))
    assert sorted(p.name for p in (base / name / "checkpoints").iterdir()) == [
        "step-4",
        "step-5",
    ]


def test_ctrl_c_saves_at_the_end_of_the_step_and_says_how_to_go_on(runs):
    base, found, said = runs
    assert found["ctrl-c"]["code"] == 130
    newest = found["ctrl-c"]["left"][-1]
    step = int(newest.removeprefix("step-"))
    assert 2 <= step < 5 and found["ctrl-c"]["lines"] == step + 1
    before = said[: said.index("--- continuing ctrl-c")]
    assert "Stopping after this step" in before
    assert (
        f"Stopped at step {step}; the same command continues from {base / 'ctrl-c'}/checkpoints"
        in before
    )
    after = said[said.index("--- continuing ctrl-c") : said.index("--- continued ctrl-c")]
    assert f"Continuing {base / 'ctrl-c'} after step {step}." in after


def test_the_finished_run_was_left_alone(runs):
    _, found, said = runs
    again = said[said.index("--- continuing whole") : said.index("--- continued whole")]
    assert (
        found["whole"]["again"] == 0
        and "holds a finished run" in again
        and "step 1/5" not in again
    )
