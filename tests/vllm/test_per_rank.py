"""One vLLM in each process that torchrun started: each answers its own prompts by the weights that all train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.several import free_port

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(os.environ.get("MMRL_VLLM") != "1", reason="make vllm-tests runs it"),
]
LIMIT = 900
SCRIPT = """
import sys
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rollouts.choosing import EngineChoice, opened
from mmrl.types import Now, Sampling
from tests.vllm.test_real_engine import PROMPTS, agrees, changed

ranks = Ranks.start("cpu")
policy = Policy.load(sys.argv[1], device="cpu", dtype="float32")
policy.engine = EngineChoice("vllm")
sampling = Sampling(3, 1.0, max_tokens=8)
engine = opened(policy, 4, sampling)
mine = PROMPTS[ranks.rank :: ranks.world]
for step in range(2):
    found = engine.generate(mine, sampling, Now(step + 1, 0.5, 7))
    agrees(policy, found)
    assert {r.version for r in found} == {step}
    # Ranks that do not answer as many prompts, or answer at other times, do not wait for each other.
    ranks.wait("update")
    changed(policy, "")
told = ranks.gathered([r.tokens.tolist() for r in found])
assert len(told) == 2 and told[0] != told[1]
print("rank", ranks.rank, "agrees")
engine.vllm.close()
"""


def test_each_process_asks_its_own(tiny_folder):
    root = Path(__file__).resolve().parents[2]
    port = str(free_port())
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "PYTHONPATH": f"{root}:{root / 'src'}"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tiny_folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=root,
        )
        for rank in range(2)
    ]
    try:
        said = [child.communicate(timeout=LIMIT)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for rank, text in enumerate(said):
        assert f"rank {rank} agrees" in text, text[-3000:]
