"""Who samples: the engine in this process, vLLM (its CPU build), and `generate` of transformers. Tokens per CPU second.

    python benchmarks/engines.py [--vllm .venv-vllm/bin/python] [--small] [--rounds N]

8 prompts with one picture of 256 visual tokens each, 8 answers of exactly 64 tokens, ids that end one are never drawn.
Each side is a process on one thread and answers in turn with the others; prompts are encoded anew and no cache survives
a round. vLLM runs in an environment of its own (`make vllm-env`) with its log-probs, seeds and bans, as in training;
without `--vllm` it is left out, and the last line says so.

`value` is the worst of ours over `generate` (goal 2) and ours over vLLM (goal 0.7), each over its goal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_runs import Channel, Worker, cpu_seconds, median, model_folder, result, say, versions

ROUNDS, PROMPTS, GROUP, ANSWER, VISUAL = 3, 8, 8, 64, 256
SIZES: dict[str, dict[str, Any]] = {
    # Heads of 32 and 64 numbers: vLLM's CPU build reads no others below 128.
    "tiny": {"hidden": 128, "layers": 2, "vocabulary": 1024},
    "54 M": {
        "hidden": 512,
        "layers": 8,
        "heads": 8,
        "vision_hidden": 256,
        "vocabulary": 49152,
    },
}
GOALS = {"generate": 2.0, "vllm": 0.7}


def prompts(count: int, visual: int) -> list[Any]:
    """Questions about drawn pictures."""
    from tiny_runs import visual_side

    from mmrl.data.drawn.drawn import Drawn

    drawn = Drawn("lookup", size=count, size_px=visual_side(visual), cells=4)
    return [drawn[number] for number in range(count)]


def loaded(folder: str) -> Any:
    """The policy, whose answers never end by themselves."""
    from dataclasses import replace

    from mmrl.model.policy import Policy

    policy = Policy.load(folder, device="cpu", dtype="float32")
    processing = policy.processing
    banned = tuple({*processing.banned_ids, *processing.stop_ids})
    policy.processing = replace(processing, banned_ids=banned)
    return policy


def by_engine(side: str, folder: str, cell: argparse.Namespace) -> Callable[[int], int]:
    """A round of the engine in this process, or of vLLM: the number of its tokens."""
    from mmrl.rollouts.engine import HFEngine
    from mmrl.types import Now, Sampling

    policy, asked = loaded(folder), prompts(cell.prompts, cell.visual)
    sampling = Sampling(cell.group, 1.0, max_tokens=cell.answer)
    local: Any = None
    if side == "vllm":
        from mmrl.rollouts.vllm_engine import VLLMEngine
        from mmrl.rollouts.vllm_local import LocalVLLM

        local = LocalVLLM(folder, mode="raw", dtype="float32", length=1024, media=1)
    engine = HFEngine(policy) if local is None else VLLMEngine(policy, local)

    def run(number: int) -> int:
        policy.vision.clear()
        if local is not None:
            local.llm.reset_prefix_cache()
            local.llm.reset_mm_cache()
            local.llm.llm_engine.reset_encoder_cache()
        found = engine.generate(asked, sampling, Now(number, 0.5, 0))
        return sum(len(rollout.tokens) for rollout in found)

    return run


def by_generate(folder: str, cell: argparse.Namespace) -> Callable[[int], int]:
    """A round of transformers: all prompts in one padded batch."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    policy, asked = loaded(folder), prompts(cell.prompts, cell.visual)
    texts = [
        processor.apply_chat_template(p.messages, add_generation_prompt=True, tokenize=False)
        for p in asked
    ]
    frames = [p.media[0].frames[0].permute(1, 2, 0).contiguous().numpy() for p in asked]
    pictures = [Image.fromarray(frame) for frame in frames]
    banned = sorted(policy.processing.banned_ids)
    lengths = [len(policy.encode(p).ids) for p in asked]

    def run(number: int) -> int:
        torch.manual_seed(number)
        given = processor(
            text=texts,
            images=pictures,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        assert given["attention_mask"].sum(1).tolist() == lengths, "the same prompts"
        with torch.no_grad():
            found = model.generate(
                **given,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                num_return_sequences=cell.group,
                min_new_tokens=cell.answer,
                max_new_tokens=cell.answer,
                suppress_tokens=banned,
            )
        return (found.shape[1] - given["input_ids"].shape[1]) * found.shape[0]

    return run


def serve(side: str, folder: str, cell: argparse.Namespace) -> None:
    """Worker: one round per command."""
    import torch

    channel = Channel()
    torch.set_num_threads(1)
    run = by_generate(folder, cell) if side == "generate" else by_engine(side, folder, cell)
    number = 0
    while channel.receive() is not None:
        number += 1
        tokens: list[int] = []
        seconds = cpu_seconds(lambda: tokens.append(run(number)))  # noqa: B023
        channel.send({"tokens": tokens[0], "seconds": seconds})


def rates(folder: Path, pythons: dict[str, str], cell: argparse.Namespace) -> dict[str, float]:
    """Side -> tokens per CPU second, the median of the rounds."""
    sizes = [f"--{name}={getattr(cell, name)}" for name in ("prompts", "group", "answer")]
    script = str(Path(__file__).resolve())
    workers: dict[str, Worker] = {}
    for side, python in pythons.items():
        more = [*sizes, f"--visual={cell.visual}"]
        workers[side] = Worker([python, script, "--side", side, "--model", str(folder), *more])
    found: dict[str, list[float]] = {side: [] for side in pythons}
    try:
        for round_ in range(cell.rounds + 1):
            for side, worker in workers.items():
                said = worker.ask("round")
                assert said["tokens"] == cell.prompts * cell.group * cell.answer, (side, said)
                if round_:  # the first one warms up
                    found[side].append(said["tokens"] / said["seconds"])
    finally:
        for worker in workers.values():
            worker.close()
    for side, values in found.items():
        say(f"{side}: {[round(value) for value in values]} tokens per CPU second")
    return {side: median(values) for side, values in found.items()}


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--small", action="store_true", help="sizes for a test")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--group", type=int, default=GROUP)
    parser.add_argument("--answer", type=int, default=ANSWER)
    parser.add_argument("--visual", type=int, default=VISUAL)
    parser.add_argument("--side", choices=("here", "generate", "vllm"), help="a worker's")
    parser.add_argument("--model", help="a worker's")
    cell = parser.parse_args()
    if cell.side:
        return serve(cell.side, cell.model, cell)
    if cell.small:
        cell.sizes, cell.rounds = ["tiny"], 1
        cell.prompts, cell.group, cell.answer, cell.visual = 2, 2, 4, 16
    say(versions("torch", "transformers"))
    pythons = {"here": sys.executable, "generate": sys.executable}
    pythons |= {"vllm": cell.vllm} if cell.vllm else {}
    measured = {name: rates(model_folder(**SIZES[name]), pythons, cell) for name in cell.sizes}
    shares: dict[str, float] = {}
    for name, found in measured.items():
        for side in pythons:
            if side != "here":
                shares[f"{name}, over {side}"] = found["here"] / found[side] / GOALS[side]
    vllm = "measured" if cell.vllm else "not measured, no --vllm PYTHON"
    value = min(shares.values())
    result("engines", value, 1.0, "share of goal", at_least=True, vllm=vllm, rates=measured)


if __name__ == "__main__":
    main()
