"""Tokens and patches through each network per step, counted, against the least that the method needs.

    python benchmarks/counts.py

The least: each prompt once per branch and pass, with its answers but for their last token; each distinct picture once
per branch and weights version; the head on answer tokens only. Two of the prompts share a picture (but where there
are two updates). `value` is the largest ratio of a counter to its least, over all settings.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import Cell, model_folder, our_prompts, our_trainer, result, say, write_rows

from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.training.run import Run
from mmrl.types import Now, VisualBranch

PROMPTS, GROUP, ANSWER, VISUAL = 4, 4, 12, 64
MASKED = {"masked": VisualBranch(PatchMask(ratio=0.6, size=16))}
MASKED_LIVE = {"masked": VisualBranch(PatchMask(ratio=0.6, size=16), grad=True)}


def picture_rows(folder: Path, shared: bool) -> Path:
    """Four prompts; if `shared`, the last two ask about the same picture."""
    file = write_rows(folder, VISUAL, PROMPTS)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if shared:
        rows[3]["images"] = rows[2]["images"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def counted(
    cell: Cell, scratch: Path, updates: int, frozen: bool, changes: dict[str, Any]
) -> Counter[str]:
    """Counters of the second step."""
    run = Run(
        output=scratch,
        steps=100,
        prompts_per_step=PROMPTS,
        updates_per_step=updates,
        save_every=0,
    )
    trainer = our_trainer(cell, scratch, run=run, **changes)
    if frozen:
        trainer.policy.base.model.visual.requires_grad_(False)
    for number in (1, 2):
        metrics = trainer.step(Now(number, 0.0, 0))
    trainer.rewards.close()
    return Counter(
        {k: round(v) for k, v in metrics.items() if k.startswith(("tokens/", "patches/"))}
    )


def least(
    cell: Cell, tokenised: list[int], updates: int, frozen: bool, branches: dict
) -> Counter[str]:
    """What a step must do. With a frozen tower the second step meets known pictures only, but for new masks."""
    prompts, fed = sum(tokenised), ANSWER - 1
    packed, head, patches = (
        prompts + PROMPTS * GROUP * fed,
        PROMPTS * GROUP * ANSWER,
        4 * VISUAL,
    )
    pictures = PROMPTS if updates == 2 else PROMPTS - 1
    want: Counter[str] = Counter()
    want["tokens/prefill"], want["tokens/decode"] = prompts, PROMPTS * GROUP * fed
    want["tokens/update"], want["tokens/head"] = packed, head
    if not frozen:
        want["patches/tower"] += pictures * patches
        if updates == 2:  # the second reads its two pictures with other weights
            want["patches/tower"] += pictures // 2 * patches
    if cell.kl:
        want["tokens/score"] += packed
        want["tokens/head"] += head
        want["patches/tower"] += 0 if frozen else pictures * patches
    for branch in branches.values():
        want["tokens/update" if branch.grad else "tokens/score"] += packed
        want["tokens/head"] += head
        want["patches/tower"] += PROMPTS * patches
    if updates == 2:  # the second update needs the log-probs of the first weights
        want["tokens/score"] += packed
        want["tokens/head"] += head
    return +want


def main() -> None:
    """Count and print; the last line is JSON."""
    torch.set_num_threads(1)
    folder = str(model_folder())
    papo = {"branches": MASKED, "objectives": [PAPO()]}
    settings: list[tuple[str, float, int, bool, dict[str, Any]]] = [
        ("GRPO", 0.0, 1, False, {}),
        ("GRPO, KL", 0.04, 1, False, {}),
        ("GRPO, KL, frozen tower", 0.04, 1, True, {}),
        ("PAPO", 0.0, 1, False, papo),
        ("PAPO, KL", 0.04, 1, False, papo),
        ("PAPO, gradient through the branch", 0.0, 1, False, papo | {"branches": MASKED_LIVE}),
        ("GRPO, two updates", 0.0, 2, False, {}),
    ]
    worst = 1.0
    with tempfile.TemporaryDirectory() as place:
        for name, kl, updates, frozen, changes in settings:
            rows = picture_rows(Path(place), shared=updates == 1)
            cell = Cell(folder, str(rows), ANSWER, kl, GROUP)
            lengths = prompt_lengths(cell)
            found = counted(cell, Path(place), updates, frozen, changes)
            want = least(cell, lengths, updates, frozen, changes.get("branches", {}))
            ratios = {
                key: found[key] / want[key] if want[key] else float("inf") for key in found
            }
            say(
                f"{name}: "
                + ", ".join(f"{key} {found[key]} of {want[key]}" for key in sorted(found))
            )
            assert set(want) <= set(found), f"not counted: {set(want) - set(found)}"
            worst = max(worst, *ratios.values(), *(1 / x for x in ratios.values()))
    result("counts", worst, 1.0, "largest counter / its least")


def prompt_lengths(cell: Cell) -> list[int]:
    """Tokens of each prompt."""
    from mmrl.model.processing import Processing

    processing, prompts = Processing.load(cell.folder), our_prompts(cell.rows)
    return [len(processing.encode(prompts[index]).ids) for index in range(PROMPTS)]


if __name__ == "__main__":
    main()
