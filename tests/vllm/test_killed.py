"""A real server is killed while it starts, takes weights, or answers: the run waits and goes on, or stops and resumes.

It kills itself where a file of that name lies, with SIGKILL, so that each phase is hit in its middle. Sleep and wake
belong to vLLM in the trainer's own process, whose death is the trainer's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.vllm_client import RemoteVLLM
from mmrl.rollouts.vllm_engine import VLLMEngine
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer, TrainingError
from mmrl.types import Sampling
from tests.several import free_port
from tests.vllm.test_real_training import pay

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(os.environ.get("MMRL_VLLM") != "1", reason="make vllm-tests runs it"),
]
PHASES = ("start", "begin", "part", "finish", "answer")
SERVER = """
import os, signal, sys
from pathlib import Path
from mmrl.rollouts.vllm_local import LocalVLLM
from mmrl.rollouts.vllm_serve import Desk, server_of

folder, port, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


def die(phase):
    if (place / phase).exists():
        (place / phase).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(LocalVLLM):
    def begin(self):
        super().begin()
        die("begin")

    def take(self, weights):
        super().take(weights)
        die("part")

    def finish(self, version, encoder):
        super().finish(version, encoder)
        die("finish")


local = Mortal(folder, mode="raw", dtype="float32", length=1024, media=4)
die("start")
step, taken = local.llm.llm_engine.step, []


def mortal():
    taken.append(1)
    if len(taken) % 4 == 3:  # of eight tokens: some are drawn, none has been told
        die("answer")
    return step()


local.llm.llm_engine.step = mortal
with server_of(Desk(local), "127.0.0.1", port) as server:
    server.serve_forever()
"""
STEPS, KILLED_IN = 3, 2
DEADLY: list[str] = []
"""Phases in which the server dies from step `KILLED_IN` on."""
PLACE: list[Path] = []


class Doomed(VLLMEngine):
    """Says when its server shall die; no setting of the run knows of that."""

    def bring(self):
        if self.policy.version == KILLED_IN - 1:
            for phase in DEADLY:
                (PLACE[0] / phase).touch()
            DEADLY.clear()
        return super().bring()


class Server:
    """A process that somebody starts again when it has died."""

    def __init__(self, folder, place):
        self.url, self.again, self.deaths = "", True, 0
        port, root = free_port(), Path(__file__).resolve().parents[2]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-c", SERVER, str(folder), str(port), str(place)]
        self._environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}"}
        self.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self):
        self.process = subprocess.Popen(self._command, env=self._environment)

    def _watch(self):
        while self.process.wait() == -9 and self.again:
            self.deaths += 1
            self.start()

    def close(self):
        self.again = False
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def running(folder, place):
    server = Server(folder, place)
    try:
        yield server
    finally:
        server.close()


def trainer(folder, output, url):
    policy = Policy.load(folder, device="cpu", dtype="float32")
    remote = RemoteVLLM(url, patience=900)
    run = Trainer(
        policy,
        prompts=Drawn("lookup", size=40),
        rewards=Rewards(accuracy=pay),
        engine=Doomed(policy, remote),
        sampling=Sampling(2, max_tokens=8),
        optim=Optim(lr=3e-3),
        run=Run(output=output, steps=STEPS, prompts_per_step=2, save_every=1, eval_prompts=0),
    )
    return run, remote


def rows(output):
    """What was measured, without times and without how often weights travelled."""
    beside = ("time/", "memory/", "rollout/weights")
    return [
        {name: value for name, value in row.items() if not name.startswith(beside)}
        for row in read_metrics(output)
    ]


def same(run, right):
    pairs = zip(run.policy.parameters(), right.policy.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_server_that_is_killed_costs_time_and_nothing_else(tiny_folder, tmp_path):
    PLACE[:] = [tmp_path]
    with running(tiny_folder, tmp_path) as server:
        whole, _ = trainer(tiny_folder, tmp_path / "whole", server.url)
        whole.fit()
        assert not server.deaths
        # Killed in every phase of one step, and started again each time by whoever looks after it.
        DEADLY[:] = PHASES
        mourned, _ = trainer(tiny_folder, tmp_path / "mourned", server.url)
        mourned.fit()
        assert server.deaths == len(PHASES) and not any((tmp_path / p).exists() for p in PHASES)
        assert rows(tmp_path / "mourned") == rows(tmp_path / "whole") and same(mourned, whole)
        # Nobody starts it again: the run stops, says what to do, and the same command goes on.
        DEADLY[:], server.again = ["answer"], False
        stopped, remote = trainer(tiny_folder, tmp_path / "stopped", server.url)
        remote.patience = 5
        with pytest.raises(
            TrainingError, match=r"Step 2 failed.*Start it again(.|\n)*is saved"
        ):
            stopped.fit()
        server.start()
        again, _ = trainer(tiny_folder, tmp_path / "stopped", server.url)
        again.fit()
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole") and same(again, whole)
