"""The other side of the comparison: TRL's GRPOTrainer, one step per command. Runs in an environment of its own.

Settings are TRL's defaults (activation checkpointing on, dapo loss, no dual clip) except: CPU in fp32, one prompt with
its group per step, a fixed answer length (`min_new_tokens`), no checkpoints, a log entry at every step. Ids of vision
placeholders are suppressed while sampling, because one of them in an answer ends TRL's step with an error.

With `--dump FILE` the second step's samples, rewards, loss, gradients and the weights it started from are saved.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from tiny_runs import Cell, Channel, Meter, variety
from transformers import AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

VISION = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
DUMP_STEP = 2


class Pace(TrainerCallback):
    """Waits for a command before each step and answers after it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.meter: Meter | None = None
        self.facts: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.meter is not None
        self.channel.send(self.meter.read() | self.facts)
        self._wait(control)

    def _wait(self, control: Any) -> None:
        if self.channel.receive() is None:
            control.should_training_stop = True
        self.meter = self.meter or Meter()
        self.meter.start()


class Watched(GRPOTrainer):
    """GRPOTrainer that tells what it saw, and can save one step."""

    pace: Pace
    dump: str | None = None
    saved: dict[str, Any]

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        if self.dump is None or self._step + 1 != DUMP_STEP:
            return super().training_step(model, inputs, num_items_in_batch)
        plain = self.accelerator.unwrap_model(self.model)
        weights = {name: p.detach().clone() for name, p in plain.named_parameters()}
        loss = super().training_step(model, inputs, num_items_in_batch)
        gradients = {
            name: p.grad.detach().clone()
            for name, p in plain.named_parameters()
            if p.grad is not None
        }
        torch.save(
            {**self.saved, "loss": float(loss), "weights": weights, "gradients": gradients},
            self.dump,
        )
        return loss

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        pad = self.processing_class.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        prompt = output["prompt_ids"][0][output["prompt_mask"][0].bool()]
        self.pace.facts = {
            "visual": int((prompt == pad).sum()),
            "prompt": len(prompt),
            "length": float(output["completion_mask"].sum(1).float().mean()),
        }
        self.saved = {
            "row": inputs[0]["row"],
            "tokens": output["completion_ids"],
            "mask": output["completion_mask"],
            "advantages": output["advantages"],
            "prompt_ids": prompt,
        }
        return output


def main() -> None:
    """Train as long as commands come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cell")
    parser.add_argument("--dump")
    arguments = parser.parse_args()
    cell = Cell(**json.loads(arguments.cell))
    channel = Channel()
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(cell.folder)
    suppressed = [processor.tokenizer.convert_tokens_to_ids(token) for token in VISION]
    base = Path(cell.rows).parent
    rows = [json.loads(line) for line in Path(cell.rows).read_text().splitlines()]
    table = {
        "prompt": [[{"role": "user", "content": row["problem"]}] for row in rows],
        "image": [str(base / row["images"][0]) for row in rows],
        "row": list(range(len(rows))),
    }
    settings = GRPOConfig(
        output_dir=str(base / "trl"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        max_steps=10_000,
        learning_rate=cell.lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=cell.group,
        num_generations=cell.group,
        max_completion_length=cell.answer,
        generation_kwargs={"min_new_tokens": cell.answer, "suppress_tokens": suppressed},
        beta=cell.kl,
    )
    pace = Pace(channel)
    trainer = Watched(
        model=cell.folder,
        args=settings,
        reward_funcs=variety,
        train_dataset=Dataset.from_dict(table).cast_column("image", Image()),
        processing_class=processor,
        callbacks=[pace],
    )
    trainer.pace, trainer.dump = pace, arguments.dump
    trainer.train()


if __name__ == "__main__":
    main()
