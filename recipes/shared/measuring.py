"""What an evaluation adds to accuracy and pass@k: kept answers, a benchmark's own grader and its official numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmrl.data.benchmarks import measures
from mmrl.data.benchmarks.grading import BenchmarkAccuracy
from mmrl.data.benchmarks.registry import is_benchmark
from mmrl.ground.contents import digest, file_digest
from mmrl.model.ranks import Ranks
from mmrl.recipes.shared.opening import UNLIMITED, Load, model_source
from mmrl.recipes.shared.paying import Style
from mmrl.rewards.answers import final_answer, same_wording
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.kept_answers import KeptAnswers
from mmrl.types import Rollout

GROUP = "group_"
"""Columns that name a group begin so."""


def graded_as_published(style: Style, dataset: str) -> Style:
    """The style, with the benchmark's grader in place of its accuracy where the rows are a benchmark's."""
    return replace(style, accuracy=BenchmarkAccuracy()) if is_benchmark(dataset) else style


def keeping(
    engine: Engine, output: Path | None, model: str, load: Load, tools: str = ""
) -> Engine:
    """The engine, its answers kept beside the report (NAME.answers.jsonl); as it is without a report.

    `tools`: what tells the tools that answers call from others.
    """
    if output is None:
        return engine
    rank = Ranks.here().rank
    mine = f".{rank}" if rank else ""
    file = output.with_name(f"{output.stem}.answers{mine}.jsonl")
    # What decides how a prompt looks to the model, and with how many digits it computes.
    shown = (load.dtype, load.min_pixels, load.max_pixels, load.tags, load.thinking)
    clips = tuple(getattr(load, name) for name in UNLIMITED)
    # Only where something was said, so that answers kept before these limits could be set are still found.
    shown += () if clips == (None,) * len(clips) else clips
    if load.engine != "here":  # another engine may draw other answers
        shown = (*shown, "vllm")
    if tools:
        shown = (*shown, "tools", tools)
    return KeptAnswers(engine, file, digest((model_content(model), shown)).hex())


def model_content(model: str) -> str:
    """What stands for a model: the content of its files, and of a checkpoint over them; a hub name for itself."""
    source, checkpoint = model_source(model)
    marks: list[tuple[str, bytes]] = [] if Path(source).is_dir() else [(str(source), b"")]
    for folder in (Path(source), checkpoint):
        if folder is None or not folder.is_dir():
            continue
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            marks.append((str(file.relative_to(folder)), file_digest(file)))
    return digest(marks).hex()


def sampled_numbers(answers: Sequence[Rollout], ks: Sequence[int]) -> dict[str, float]:
    """mean@k of the ks that there are answers for, and `majority`: the score of what most answers to a question say.

    Two answers say the same if they do word by word, or name the same option; 1/2 and 0.5 are two votes.
    """
    groups: dict[int, list[Rollout]] = {}
    for answer in answers:
        groups.setdefault(answer.group, []).append(answer)
    if not groups:
        return {}
    scores = [[score_of(answer) for answer in group] for group in groups.values()]
    fewest = min(len(group) for group in scores)
    found = {f"mean@{k}": measures.mean_at_k(scores, k) for k in ks if k <= fewest}
    votes = [
        measures.majority_score(
            [final_answer(a.text) or None for a in group], paid, same_wording
        )
        for group, paid in zip(groups.values(), scores, strict=True)
    ]
    return {**found, f"majority@{fewest}": measures.accuracy(votes)}


def published_numbers(answers: Sequence[Rollout]) -> dict[str, float]:
    """Numbers of a benchmark from one answer per question: by category, all of a group right, above chance.

    Empty for rows of anything else.
    """
    rows: list[Mapping[str, object]] = [answer.prompt.extra for answer in answers]
    if not rows or any("form" not in row or "chance" not in row for row in rows):
        return {}
    scores = [score_of(answer) for answer in answers]
    chance = measures.accuracy([float(str(row["chance"])) for row in rows])
    found: dict[str, float] = {}
    if chance > 0:
        found["above_chance"] = measures.chance_normalised(measures.accuracy(scores), chance)
    names = [str(row.get("category", "")) for row in rows]
    categories = measures.by_name(names, scores)
    if any(categories):
        found |= {f"accuracy/{name}": share for name, share in categories.items()}
        found["category_mean"] = measures.accuracy(list(categories.values()))
    for column in sorted({name for row in rows for name in row if name.startswith(GROUP)}):
        groups = [row.get(column) for row in rows]
        found[f"all_right_{column.removeprefix(GROUP)}"] = measures.all_right(groups, scores)
    return found


def score_of(answer: Rollout) -> float:
    """The accuracy of a paid answer; its whole reward where the accuracy is not known."""
    accuracy = answer.parts.get("accuracy")
    return float(answer.reward or 0.0) if accuracy is None else float(accuracy)
