"""An engine over two devices: on the CPU build two processes that share the weights, behind a server of ours."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmrl.model.load import LoRA
from mmrl.model.policy import Policy
from mmrl.rollouts.vllm_client import RemoteVLLM, ServerGone
from mmrl.rollouts.vllm_engine import VLLMEngine
from tests.several import free_port
from tests.vllm.test_real_engine import NOW, PROMPTS, SAMPLING, agrees, changed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(os.environ.get("MMRL_VLLM") != "1", reason="make vllm-tests runs it"),
]
ROOT = Path(__file__).resolve().parents[2]
LIMIT = 2400
"""Seconds for what a real server does at last."""


class Server:
    """`vllm_serve` over two processes, as a user starts it."""

    def __init__(self, folder, *more):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mmrl.rollouts.vllm_serve", str(folder)]
        command += ["--port", str(port), "--dtype", "float32", "--length", "1024"]
        command += ["--media", "4", "--tensor-parallel", "2", *more]
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def workers(self):
        """Numbers of the two processes."""
        listed = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split(None, 1) for line in listed.stdout.splitlines()]
        return [int(pid) for pid, args in rows if "resource_tracker" not in args]


@contextmanager
def serving(folder, *more):
    server = Server(folder, *more)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate(timeout=LIMIT)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(workers):
    """A server that ended, however it ended, leaves no worker behind."""
    assert len(workers) == 2
    ends = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not any(map(alive, workers))


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_weights_reach_all_workers_and_one_that_dies_is_named(kind, tiny_folder, tiny3_folder):
    folder = tiny_folder if kind == "qwen2_5_vl" else tiny3_folder
    policy = Policy.load(folder, device="cpu", dtype="float32")
    with serving(folder) as server:
        remote = RemoteVLLM(server.url, patience=LIMIT)
        engine = VLLMEngine(policy, remote)
        for part in ("", "visual", "language_model"):
            found = engine.generate(PROMPTS, SAMPLING, NOW)
            # Each worker had its share of these very weights, or the numbers would be others.
            agrees(policy, found)
            assert {rollout.version for rollout in found} == {policy.version}
            changed(policy, part)
        again = engine.generate(PROMPTS, SAMPLING, NOW)
        agrees(policy, again)
        workers = server.workers()
        os.kill(workers[1], signal.SIGKILL)
        remote.patience = 1
        with pytest.raises(ServerGone, match="Start it again"):
            engine.generate(PROMPTS, SAMPLING, NOW)
        said, _ = server.process.communicate(timeout=LIMIT)
    assert server.process.returncode == 1
    assert re.search(r"A process of this vLLM has ended.*Start the server again", said, re.S)
    gone(workers)


def test_adapters_reach_all_workers(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32", lora=LoRA(rank=4))
    with serving(tiny_folder, "--rank", "8") as server:
        engine = VLLMEngine(policy, RemoteVLLM(server.url, patience=LIMIT))
        for _ in range(2):
            agrees(policy, engine.generate(PROMPTS[:3], SAMPLING, NOW))
            changed(policy, "lora_B")
        workers = server.workers()
        server.process.kill()
        gone(workers)


def test_what_cannot_be_divided_is_refused(tiny_folder):
    with serving(tiny_folder, "--tensor-parallel", "3") as server:
        said, _ = server.process.communicate(timeout=LIMIT)
    assert server.process.returncode == 2
    assert "--tensor-parallel is 3, which does not divide the 4 attention heads" in said
