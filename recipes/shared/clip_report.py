"""Answers to questions about spans as a table: R1@m and mIoU of each data set, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from mmrl.data.grounding.metrics import THRESHOLDS, Answered, grounding_table, set_table
from mmrl.data.grounding.questions import SET_TEMPLATE
from mmrl.data.grounding.spans import as_spans
from mmrl.ground.faults import BadRow
from mmrl.ground.printable import tell
from mmrl.recipes.shared.clip_asking import SpanStyle
from mmrl.types import Prompt, Prompts, Rollout

METRICS = (*(f"R1@{threshold}" for threshold in THRESHOLDS), "mIoU")
FAULTS = ("unreadable", "reversed", "empty", "outside")


def blocks(
    prompts: Prompts, count: int, check: Callable[[Prompt], object], size: int = 8
) -> Iterator[list[Prompt]]:
    """The first `count` prompts, a few at a time; rows that cannot be used are left out and counted at the end."""
    length = count if prompts.size is None else min(count, prompts.size)
    # In blocks, since the caller lets go of the pixels of one before the next is decoded.
    block: list[Prompt] = []
    bad = 0
    for index in range(length):
        try:
            prompt = prompts[index]
            check(prompt)
        except BadRow:
            bad += 1
            continue
        block.append(prompt)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
    if bad:
        tell(f"{bad} of {length} questions could not be shown and are not in the table.")


def grounding_report(
    answers: Sequence[Rollout], style: SpanStyle
) -> tuple[str, dict[str, dict[str, float]]]:
    """R1@m and mIoU of each data set with intervals, as text and as numbers; for interval sets their own IoU too."""
    answered = [_answered(rollout) for rollout in answers]
    table = grounding_table(answered)
    if style.template == SET_TEMPLATE:
        sets = set_table(answered)
        table = {name: {**line, **sets[name]} for name, line in table.items()}
    width = max(map(len, [*table, "data set"]))
    heads = "  ".join(f"{metric:>19}" for metric in METRICS)
    lines = [f"{'data set':<{width}}  {'n':>6}  {heads}   faults (%)"]
    for name, line in table.items():
        lines.append(f"{name:<{width}}  {line['n']:>6.0f}  {_cells(line)}")
    return "\n".join(lines), table


def _answered(rollout: Rollout) -> Answered:
    extra = rollout.prompt.extra
    return Answered(
        rollout.text,
        as_spans(extra.get("spans", rollout.prompt.answer)),
        rollout.prompt.source,
        # Intervals are drawn over videos: questions about one video are not independent of each other.
        str(extra.get("video", rollout.prompt.id)),
        extra.get("duration"),
    )


def _cells(line: Mapping[str, float]) -> str:
    """Each metric with its interval, then what was wrong with answers, then the metrics of interval sets."""
    cells = []
    for metric in METRICS:
        low, high = line[f"{metric}_low"], line[f"{metric}_high"]
        cells.append(f"{line[metric]:5.1f} ({low:5.1f}-{high:5.1f})")
    faults = [f"{fault} {line[fault]:.1f}" for fault in FAULTS if line[fault]]
    text = f"{'  '.join(cells)}   {', '.join(faults) or 'none'}"
    if "set_IoU" in line:
        text += f"   set IoU {line['set_IoU']:.1f}, W1 {line['W1']:.1f}, mAP {line['mAP']:.1f}"
    return text
