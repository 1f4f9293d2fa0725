"""The plan of a run against its measured peak: resident memory of two steps on the CPU, six models with random weights.

    python benchmarks/plan.py [--case NAME] [--small]

Each case runs in a process of its own. `value` is the largest relative difference between plan and peak; the goal is
0.15. The last case has 1 B parameters and a vocabulary of 151,936; it takes some 6 GiB and a few minutes.

What is measured is what the run holds. glibc keeps freed blocks below a threshold that grows with them, up to 32 MiB,
for later use, and the resident memory with them; how much depends on the order in which blocks of different sizes come
and go, which no plan can know. So the measured process has a fixed threshold: larger blocks go back at once. `--kept`
measures without it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import peak, result, say, variety, versions
from transformers import AutoConfig, AutoModelForImageTextToText

from mmrl import GRPO, LoRA, Optim, Policy, Rewards, Run, Sampling, Trainer, VisualBranch
from mmrl.data.drawn.drawn import Drawn, tokenizer_texts
from mmrl.model import tiny
from mmrl.model.load import Part, add_lora, freeze_parts
from mmrl.model.processing import PixelBudget, Processing
from mmrl.model.sizes import sizes
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.training.plan import GIB, Device, Settings, Work, plan
from mmrl.types import Now


@dataclass(frozen=True)
class Case:
    """One model, and one step of it."""

    text: Mapping[str, Any]
    family: str = "qwen2_5_vl"
    vision: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    rank: int = 0
    """Of LoRA; 0 trains all weights."""
    freeze: tuple[Part, ...] = ()
    checkpointing: bool = False
    kl: float = 0.0
    branch: bool = False
    prompts: int = 2
    group: int = 4
    answer: int = 32
    size_px: int = 256
    tokens: int = 16384


def text(hidden: int, layers: int, vocabulary: int, intermediate: int) -> dict[str, Any]:
    """A language model with heads of 64."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 256),
        "head_dim": 64,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
    }


CASES = {
    "full fine-tune": Case(text(512, 12, 32_768, 2048), size_px=320),
    "checkpointing and reference": Case(
        text(768, 12, 32_768, 3072), checkpointing=True, kl=0.01, size_px=320
    ),
    "branch with gradient": Case(text(512, 8, 32_768, 2048), branch=True, size_px=320),
    "half precision": Case(text(768, 8, 65_536, 2048), dtype=torch.bfloat16),
    "LoRA, Qwen3-VL": Case(text(1024, 12, 65_536, 3072), "qwen3_vl", rank=16),
    "1 B, vocabulary 151,936": Case(
        text(2048, 16, 151_936, 5504), freeze=("vision", "language"), prompts=1, answer=16
    ),
}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""For glibc: blocks of 1 MiB and more are given back when they are freed."""
SMALL = {
    "full": Case(text(128, 4, 2048, 256), size_px=64, answer=8),
    "LoRA": Case(text(128, 4, 2048, 256), "qwen3_vl", rank=4, size_px=64, answer=8),
}


def config_of(case: Case, folder: Path) -> Any:
    """The tiny model's config with the sizes of the case."""
    found = AutoConfig.from_pretrained(folder)
    plain = found.to_dict()
    plain["text_config"].pop("layer_types", None)  # made anew from the number of layers
    plain["text_config"] |= case.text
    plain["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
    plain["vision_config"] |= {**case.vision, "out_hidden_size": case.text["hidden_size"]}
    return type(found).from_dict(plain)


def measured(case: Case) -> dict[str, float]:
    """Two steps of the case in this process: planned and measured peak in GiB, and the phase planned to need most."""
    with tempfile.TemporaryDirectory() as scratch:
        size = tiny.TinySize(hidden=256, vision_hidden=128, vision_depth=4)
        folder = tiny.build(f"{scratch}/model", case.family, size, tokenizer_texts())
        config = config_of(case, folder)
        # Before the policy, which exchanges the attention of its config.
        known = sizes(config, case.dtype, case.freeze, LoRA(rank=case.rank))
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=case.dtype)
        freeze_parts(model, case.freeze)
        whole = add_lora(model, LoRA(rank=case.rank)) if case.rank else model
        policy = Policy(whole, Processing.load(folder, PixelBudget()))
        if case.checkpointing:
            policy.enable_checkpointing()
        # Every answer has the full length: what ends one is never drawn.
        processing = policy.processing
        banned = tuple({*processing.banned_ids, *processing.stop_ids})
        object.__setattr__(processing, "banned_ids", banned)
        prompts = Drawn("lookup", size=64, size_px=case.size_px, cells=4)
        encoded = policy.encode(prompts[0])
        trainer = trainer_of(case, policy, prompts, Path(scratch) / "run")
        trainer.rewards.start()
        for number in (1, 2):
            trainer.step(Now(number, number / 100, 0))
        trainer.rewards.close()
        lengths = len(encoded.ids), sum(len(slots) for slots in encoded.slots)
    work = Work(
        prompts=case.prompts,
        group=case.group,
        prompt_tokens=lengths[0],
        visual_tokens=lengths[1],
        answer_tokens=case.answer,
        tokens_per_pass=case.tokens,
        evaluated=0,
        graphs=1 + case.branch,
        reference=case.kl > 0 and not case.rank,
        scored=int(case.kl > 0),
        pictures=1 + case.branch,
    )
    found = plan(
        known,
        work,
        Settings(case.checkpointing),
        Device("cpu", 24 * GIB),
    )
    say(
        json.dumps(
            {
                name: {k: round(v / 2**20) for k, v in p.items()}
                for name, p in found.phases.items()
            }
        )
    )
    return {"planned": found.needed / GIB, "measured": peak() / 1024}


def trainer_of(case: Case, policy: Policy, prompts: Drawn, output: Path) -> Trainer:
    """A trainer whose steps do what the case says."""
    branches = {"masked": VisualBranch(PatchMask(ratio=0.6, size=14), grad=True)}
    return Trainer(
        policy,
        prompts=prompts,
        rewards=Rewards(variety=variety, workers=1),
        grpo=GRPO(kl=case.kl),
        branches=branches if case.branch else {},
        objectives=[PAPO(gamma=0.02)] if case.branch else [],
        sampling=Sampling(group_size=case.group, max_tokens=case.answer),
        optim=Optim(lr=1e-6),
        run=Run(
            output=output,
            steps=100,
            prompts_per_step=case.prompts,
            tokens_per_pass=case.tokens,
            save_every=0,
        ),
    )


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="one case, in this process")
    parser.add_argument("--small", action="store_true", help="two tiny cases")
    parser.add_argument(
        "--kept", action="store_true", help="with freed blocks that glibc keeps for later"
    )
    asked = parser.parse_args()
    cases = SMALL if asked.small else CASES
    if asked.case:
        print(json.dumps(measured(cases[asked.case])))
        return
    say(versions("torch", "transformers"))
    rows: dict[str, dict[str, float]] = {}
    environment = os.environ | ({} if asked.kept else GIVEN_BACK)
    for name in cases:
        command = [sys.executable, __file__, "--case", name]
        command += ["--small"] if asked.small else []
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        )
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        planned, found = rows[name]["planned"], rows[name]["measured"]
        say(
            f"{name}: planned {planned:.2f} GiB, measured {found:.2f} GiB, {planned / found - 1:+.0%}"
        )
    worst = max(abs(row["planned"] / row["measured"] - 1) for row in rows.values())
    result("plan", worst, 0.15, "largest relative difference of plan and peak", cases=rows)


if __name__ == "__main__":
    main()
