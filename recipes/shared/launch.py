"""How a recipe starts: presets, the command line, data with its answer style, and the summary at the end.

`launch(main, PRESETS)` reads the command line. A first bare word names a preset, a set of overrides of the recipe's
defaults; every number can be overridden again by a flag. Without preset, `--model` and `--dataset` the embedded preset
runs: a tiny model on drawn pictures, on any laptop. A real model without a preset gets the published preset nearest in
size, so that the tiny model's numbers never reach it.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mmrl.data.rows.templates import Template
    from mmrl.model.load import LoRA
    from mmrl.model.policy import Policy
    from mmrl.training.run import Run
    from mmrl.types import Prompts

EMBEDDED = "embedded"
"""Name of the tiny warmed-up model, and of the preset that uses it."""
DRAWN = "drawn:lookup?cells=2&size_px=32"
"""What the embedded model is trained on: pictures of four cells, "What is at row 1 column 2?"."""


@dataclass(frozen=True)
class Preset:
    """Overrides of a recipe's defaults: argument -> value, or -> mapping of fields for a record."""

    values: Mapping[str, Any]
    size: float | None = None
    """Billions of parameters of the published model; None keeps the preset out of the choice by size."""
    note: str = ""
    """Shown in the help."""


@dataclass(frozen=True)
class Load:
    """How the model is loaded."""

    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda, cuda:1, …"""
    dtype: str = "auto"
    """auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float64."""
    checkpointing: bool | None = None
    """Recompute activations in the backward; None turns it on above 500 M parameters."""
    freeze: tuple[Literal["vision", "merger", "language", "head"], ...] = ()
    """Parts that are not trained."""
    min_pixels: int | None = None
    """Smallest area of an image; None keeps the checkpoint's."""
    max_pixels: int | None = None
    """Largest area of an image; None keeps the checkpoint's."""
    max_prompt_tokens: int | None = None
    """Longer prompts are skipped and counted; None is the model's context."""
    shared: bool = True
    """Compute prompts once per group; False repeats them for every answer (slow, for comparison)."""


@dataclass(frozen=True)
class Data:
    """Which rows, and how questions are put and answers read."""

    split: str | None = None
    """Split of a hub or saved dataset, for example train."""
    subset: str | None = None
    """Configuration of a hub dataset."""
    limit: int | None = None
    """Use only so many rows."""
    heldout: str = ""
    """Another dataset to evaluate on; empty sets rows of the training data aside."""
    heldout_rows: int = 256
    """Rows set aside for evaluation if `heldout` is empty, at most a tenth of the data; 0 evaluates on all rows."""
    style: Literal["box", "answer", "tag", "plain"] = "box"
    """box: think, then \\boxed{}; answer: think, then <answer>; tag: <answer> alone; plain: the answer is the text."""
    columns: tuple[str, ...] = ()
    """Column names, as question=problem answer=solution images=image."""
    image_root: Path | None = None
    """Where relative paths of images and videos start; the data file's folder by default."""
    on_bad: Literal["skip", "stop"] = "skip"
    """Skip and count rows that cannot be used, or stop at the first."""


@dataclass(frozen=True)
class Style:
    """A way of asking and the rewards that read it."""

    template: Template
    accuracy: Callable[..., float]
    format: Callable[..., float]


def launch(
    main: Callable[..., Any], presets: Mapping[str, Preset], argv: Sequence[str] | None = None
) -> Any:
    """Run a recipe from the command line; user errors end it with their message instead of a traceback."""
    import tyro

    args = list(sys.argv[1:] if argv is None else argv)
    name = args.pop(0) if args and not args[0].startswith("-") else None
    prog = _prog(main)
    helping = any(a in ("-h", "--help") for a in args)
    try:
        name = choose_preset(presets, name, flag(args, "model"), flag(args, "dataset"))
        if not helping:
            print(f"{prog} {name}", file=sys.stderr)
        intent = inspect.cleandoc(main.__doc__ or "").split("\n\n")[0]
        description = (
            f"{intent}\n\nPresets (first word; here {name!r}):\n{_preset_lines(presets)}"
        )
        call = with_defaults(main, presets[name].values)
        return tyro.cli(
            call,
            prog=f"{prog} [preset]",
            description=description,
            args=args,
            config=(tyro.conf.SuppressFixed,),  # functions are not for the command line
        )
    except KeyboardInterrupt:
        sys.exit(130)
    except _user_errors() as error:
        sys.exit(f"{prog}: {error}")


def _prog(main: Callable[..., Any]) -> str:
    """How the user called the recipe: `python -m recipes.papo`, or `mmrl papo`."""
    spec = main.__globals__.get("__spec__")
    if main.__module__ == "__main__":
        return f"python -m {spec.name}" if spec is not None else "recipe"
    return f"mmrl {main.__module__.rpartition('.')[2]}"


def choose_preset(
    presets: Mapping[str, Preset], name: str | None, model: str | None, dataset: str | None
) -> str:
    """The named preset, `embedded`, or the published one nearest to the model in size. Raises ValueError."""
    if name is not None:
        if name not in presets:
            close = difflib.get_close_matches(name, presets, 1)
            hint = f" Perhaps you meant {close[0]!r}." if close else ""
            raise ValueError(
                f"There is no preset {name!r}; there are {', '.join(presets)}.{hint}"
            )
        return name
    if model == EMBEDDED or (model is None and dataset is None):
        return EMBEDDED
    sized = {n: p.size for n, p in presets.items() if p.size is not None}
    if not sized:
        raise ValueError(f"Name a preset for a real model or data set: {', '.join(presets)}.")
    size = model_size(model) if model is not None else None
    chosen = (
        next(iter(sized)) if size is None else min(sized, key=lambda n: abs(sized[n] - size))
    )
    reason = (
        f"nearest to {model} ({size:.1f} B parameters)"
        if size is not None
        else "the paper's default"
    )
    print(f"Preset {chosen!r} is used: {reason}.", file=sys.stderr)
    return chosen


def model_size(model: str) -> float | None:
    """Billions of parameters: from the weights of a local folder, else from the name ("…-7B-…"); None if unknown."""
    folder = Path(model)
    if folder.is_dir():
        size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        return size / 2e9 if size else None
    found = re.search(r"(\d+(?:\.\d+)?)\s*[bB]\b", model.replace("-", " "))
    return float(found.group(1)) if found else None


def flag(args: Sequence[str], name: str) -> str | None:
    """The value of --name among the arguments, as `--name value` or `--name=value`."""
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"--{name}="):
            return arg.split("=", 1)[1]
    return None


def with_defaults(main: Callable[..., Any], values: Mapping[str, Any]) -> Callable[..., Any]:
    """A copy of `main` whose defaults are overridden; mappings change fields of a record. Raises ValueError."""
    signature = inspect.signature(main)
    unknown = set(values) - set(signature.parameters)
    if unknown:
        raise ValueError(
            f"{main.__module__}: the preset sets {sorted(unknown)}, which the recipe does not have."
        )
    defaults = []
    for parameter in signature.parameters.values():
        default = parameter.default
        if parameter.name in values:
            new = values[parameter.name]
            if is_dataclass(default) and isinstance(new, Mapping):
                default = replace(default, **new)  # type: ignore[type-var]
            else:
                default = new
        defaults.append(default)
    copy = types.FunctionType(
        main.__code__, main.__globals__, main.__name__, tuple(defaults), main.__closure__
    )
    copy.__annotations__, copy.__doc__, copy.__module__ = (
        main.__annotations__,
        main.__doc__,
        main.__module__,
    )
    return copy


def open_policy(
    model: str,
    load: Load,
    lora: LoRA | None = None,
    run: Run | None = None,
    *,
    clips_sized: bool = False,
) -> Policy:
    """The policy; `embedded` is the tiny warmed-up model. Sees first that the run's output can be written to.

    `clips_sized`: frames of clips come at the size they shall be shown at, so the checkpoint's own limits are lifted.
    """
    from mmrl.model.load import LoRA
    from mmrl.model.patches import PixelBudget
    from mmrl.model.policy import Policy
    from mmrl.training.checkpoint import restore_weights
    from mmrl.training.run import refuse_several_processes
    from mmrl.training.tracking import prepare_output

    refuse_several_processes()
    if run is not None:
        prepare_output(run.folder)
    lifted = (
        {"min_frame_pixels": 1, "max_frame_pixels": 1 << 40, "max_video_pixels": 1 << 50}
        if clips_sized
        else {}
    )
    budget = PixelBudget(
        min_pixels=load.min_pixels,
        max_pixels=load.max_pixels,
        max_prompt_tokens=load.max_prompt_tokens,
        **lifted,
    )
    source, checkpoint = model_source(model)
    stored = _stored_policy(Path(model)) if checkpoint is not None else {}
    policy = Policy.load(
        source,
        device=load.device,
        dtype=load.dtype,
        lora=LoRA(**stored["lora"]) if stored.get("lora") else lora,
        freeze=stored.get("freeze", load.freeze),
        checkpointing=load.checkpointing,
        budget=budget,
        shared=load.shared,
    )
    if checkpoint is not None:
        restore_weights(checkpoint, policy.named_parameters())
    return policy


def model_source(model: str) -> tuple[str | Path, Path | None]:
    """What to load, and a checkpoint to lay over it: for a run's folder its model, or its newest checkpoint."""
    from mmrl.training.checkpoint import steps_in

    if model == EMBEDDED:
        from mmrl.recipes.shared.embedded import warm_model

        return warm_model(), None
    folder = Path(model)
    if (folder / "model").is_dir():
        return folder / "model", None
    steps = steps_in(folder / "checkpoints")
    if steps:
        return _stored_policy(folder)["source"], folder / "checkpoints" / f"step-{steps[-1]}"
    if model.startswith(("runs/", "./", "/", "~")) and not folder.is_dir():
        raise ValueError(
            f"There is no model or run in {model}; train one first, for example with python -m recipes.papo."
        )
    return model, None


def _stored_policy(folder: Path) -> dict[str, Any]:
    import json

    return json.loads((folder / "config.json").read_text())["settings"]["policy"]


def open_data(dataset: str, data: Data, seed: int) -> tuple[Prompts, Prompts]:
    """Training and held-out prompts."""
    from mmrl.data.drawn.drawn import Drawn
    from mmrl.data.rows.sources import load_prompts, split_prompts

    rest = {
        "template": style_of(data.style).template,
        "columns": _column_map(data.columns),
        "image_root": data.image_root,
        "on_bad": data.on_bad,
        "seed": seed,
    }
    prompts = load_prompts(
        dataset, split=data.split, subset=data.subset, limit=data.limit, **rest
    )
    if data.heldout_rows == 0 and not isinstance(prompts, Drawn):
        return prompts, prompts
    if data.heldout:
        return prompts, load_prompts(data.heldout, **rest)
    if isinstance(prompts, Drawn):
        return prompts, replace(prompts, split="heldout", size=None)
    _report_skipped(prompts)
    rows = min(data.heldout_rows, max(1, len(prompts) // 10))
    if len(prompts) < 2:
        raise ValueError(
            f"{dataset} has {len(prompts)} usable rows; training needs at least 2."
        )
    return split_prompts(prompts, rows, seed)


def style_of(name: str) -> Style:
    """Template and rewards that belong together."""
    from functools import partial

    from mmrl.data.rows.templates import PLAIN, THINK_THEN_ANSWER, THINK_THEN_BOX
    from mmrl.rewards import functions as pay

    return {
        "box": Style(THINK_THEN_BOX, pay.boxed_accuracy, pay.think_format),
        "answer": Style(THINK_THEN_ANSWER, pay.tagged_accuracy, pay.answer_format),
        "tag": Style(PLAIN, pay.tagged_accuracy, partial(pay.answer_format, think=False)),
        "plain": Style(PLAIN, pay.exact_accuracy, pay.exact_accuracy),
    }[name]


def summarise(run: Run, steps: int, *, watch: Sequence[str] = (), advice: str = "") -> None:
    """Print what the run did: accuracy before and after, watched metrics, where things lie, what to try next."""
    from mmrl.training.tracking import read_metrics

    rows = read_metrics(run.folder)
    lines = ["", f"{run.name}: {steps} steps done."]
    scores = [
        (r["step"], r["eval/accuracy"]) for r in rows if r.get("eval/accuracy") is not None
    ]
    if scores:
        (first, before), (last, after) = scores[0], scores[-1]
        change = f"{before:.3f} at step {first}  ->  {after:.3f} at step {last}   ({after - before:+.3f})"
        lines.append(f"  held-out accuracy (greedy)   {change}")
    for name in ("reward/total", *watch):
        values = [r[name] for r in rows if r.get(name) is not None]
        if values:
            few = max(1, len(values) // 10)
            start, end = sum(values[:few]) / few, sum(values[-few:]) / few
            lines.append(
                f"  {name:<28} {start:.3f}  ->  {end:.3f}   (means of the first and last {few} steps)"
            )
    folder = run.folder
    lines += [
        f"  metrics      {folder}/metrics.jsonl",
        f"  samples      {folder}/samples.jsonl",
        f"  checkpoints  {folder}/checkpoints",
        f"  model        {folder}/model",
    ]
    if advice:
        lines.append(f"Next: {advice}")
    print("\n".join(lines))


def _preset_lines(presets: Mapping[str, Preset]) -> str:
    width = max(map(len, presets))
    return "\n".join(f"  {name:<{width}}  {preset.note}" for name, preset in presets.items())


def _column_map(columns: Sequence[str]) -> dict[str, str] | None:
    out = {}
    for pair in columns:
        if "=" not in pair:
            raise ValueError(
                f"data.columns has {pair!r}; write pairs such as question=problem."
            )
        key, value = pair.split("=", 1)
        out[key] = value
    return out or None


def _report_skipped(prompts: Any) -> None:
    if prompts.skipped:
        print(prompts.summary(), file=sys.stderr)


def _user_errors() -> tuple[type[BaseException], ...]:
    from mmrl.rewards.pay import RewardStopped
    from mmrl.training.checkpoint import CheckpointError
    from mmrl.training.trainer import TrainingError

    return (ValueError, CheckpointError, RewardStopped, TrainingError, FileNotFoundError)


__all__ = [
    "DRAWN",
    "EMBEDDED",
    "Data",
    "Load",
    "Preset",
    "launch",
    "open_data",
    "open_policy",
    "style_of",
    "summarise",
]
