"""Will it fit? A recipe's arguments as numbers for `mmrl.training.plan`, the switches that help, and the refusal.

    mmrl plan papo 7b --machine 8x80
    mmrl plan grpo --model my/folder --dataset my.jsonl --lora.rank 64

reads the same command line as `mmrl papo 7b` and loads nothing. Every run asks the same before it loads its model:
one that cannot fit is refused with the switches that would make it fit, one that may not fit is told so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmrl.data.drawn import drawn
from mmrl.ground.printable import show, tell
from mmrl.grpo import GRPO
from mmrl.model import tiny
from mmrl.model.load import LoRA, resolve_device, resolve_dtype
from mmrl.model.preparing import MOST
from mmrl.model.released import UnknownModel
from mmrl.model.sizes import Sizes, sizes_of
from mmrl.objectives.base import Objective
from mmrl.perception.masking import PatchMask
from mmrl.recipes.shared.configuration import Configuration
from mmrl.recipes.shared.domains import Domain, domains_of
from mmrl.recipes.shared.machines import in_words, machine, this_machine
from mmrl.recipes.shared.opening import EMBEDDED, Data, Load, model_source, policy_settings
from mmrl.training.plan import GIB, Device, Plan, Settings, Work, plan
from mmrl.training.run import Run
from mmrl.training.score_plan import ScorePlan, plan_scores
from mmrl.types import Sampling, VisualBranch

TEXT_TOKENS = 512
"""Tokens of a question with its instruction, unless it is said otherwise."""
DRAWN_PAIR = 4
"""Visual tokens of two frames of a drawn clip; by default it has twelve frames."""
ANYWAY = "--load.no-check-memory"


@dataclass(frozen=True)
class Prompting:
    """What the arguments of a recipe do not say about its prompts."""

    images: int = 1
    """Pictures of a prompt, each as large as allowed."""
    text: int = TEXT_TOKENS
    """Tokens of the text."""


def planned(
    asked: Configuration, device: Device, prompting: Prompting = Prompting()
) -> tuple[Plan, Sizes, Work]:
    """What a recipe with these arguments will need on a machine. Raises `UnknownModel`."""
    sizes = _sizes(asked.arguments, device)
    work = _work(asked, sizes, prompting)
    load: Load = asked.arguments["load"]
    memory = None if load.memory is None else int(load.memory * GIB)
    workers = _workers(load, sizes, device)
    settings = Settings(load.checkpointing, load.offload_reference, memory, workers, load.shard)
    if "optim" in asked.arguments:
        settings = replace(settings, optim=asked.arguments["optim"])
    return plan(sizes, work, settings, device), sizes, work


def _workers(load: Load, sizes: Sizes, device: Device) -> int:
    """Processes that read ahead; where nobody says how many, the most that a machine with enough cores gets."""
    if load.workers is not None:
        return load.workers
    return MOST if device.kind == "cuda" and sizes.checkpoints else 0


def refuse_unfit(asked: Configuration) -> None:
    """Raise ValueError, with what would help, for a run that cannot fit; tell of one that may not."""
    load = asked.arguments.get("load")
    # The tiny model fits wherever Python does.
    if load is None or not load.check_memory or asked.arguments["model"] == EMBEDDED:
        return
    device = this_machine(resolve_device(load.device))
    if device is None:
        return
    try:
        found, _, _ = planned(asked, device)
    except UnknownModel as unknown:
        tell(f"Memory is not planned: {unknown}")
        return
    if found.fits:
        return
    where = "free memory of this computer" if device.kind == "cpu" else "free memory of the GPU"
    if device.count > 1:
        where = f"{where} for each of {device.count} processes"
    said = (
        f"This run needs about {_gib(found.needed)} at its peak ({found.peak}), and the {where} is "
        f"{_gib(device.memory)}."
    )
    if not found.cannot:
        tell(f"{said} It may fit while prompts and answers are short. {advice(asked, device)}")
        return
    raise ValueError(f"{said} {advice(asked, device)} To try all the same: {ANYWAY}.")


def advice(asked: Configuration, device: Device, prompting: Prompting = Prompting()) -> str:
    """The switches that make a run fit, as flags; what remains to be done if none does."""
    flags, fits = remedies(asked, device, prompting)
    given = " ".join(flags)
    if fits:
        return f"It fits with {given}."
    ends = "a smaller model or a larger machine (--machine 8x80 plans for eight GPUs)"
    if not flags:
        return f"No switch makes it fit; take {ends}."
    return f"Even with {given} it does not fit; take {ends}."


def remedies(
    asked: Configuration, device: Device, prompting: Prompting = Prompting()
) -> tuple[list[str], bool]:
    """Flags that make a run fit, none of which could be left out, and whether they do."""
    chosen: list[_Switch] = []
    best = planned(asked, device, prompting)[0]
    possible = list(_switches(asked, device.count))
    for switch in possible:
        if best.fits:
            break
        # A stronger value of the same switch takes its place.
        others = [one for one in chosen if one.place != switch.place]
        trial = planned(_switched(asked, [*others, switch]), device, prompting)[0]
        if trial.needed < best.needed:
            chosen, best = [*others, switch], trial
    if best.fits:
        chosen = _fewest(possible, chosen, lambda some: _fits(asked, some, device, prompting))
    return [switch.flag for switch in chosen], best.fits


def _fits(
    asked: Configuration, switches: Sequence[_Switch], device: Device, prompting: Prompting
) -> bool:
    return planned(_switched(asked, switches), device, prompting)[0].fits


def _fewest(
    possible: Sequence[_Switch],
    chosen: list[_Switch],
    fits: Callable[[Sequence[_Switch]], bool],
) -> list[_Switch]:
    """Without those that later ones have made needless, the dearest first, and as mild as will do."""
    for switch in reversed(chosen):
        others = [other for other in chosen if other is not switch]
        if fits(others):
            chosen = others
    for number, switch in enumerate(chosen):
        milder = [one for one in possible if one.place == switch.place]
        for one in milder:
            trial = [*chosen[:number], one, *chosen[number + 1 :]]
            if fits(trial):
                chosen = trial
                break
    return chosen


@dataclass(frozen=True)
class _Switch:
    """One field of one record, as Python and as the command line say it."""

    record: str
    field: str
    value: Any

    @property
    def place(self) -> tuple[str, str]:
        """What it sets."""
        return self.record, self.field

    @property
    def flag(self) -> str:
        name = self.field.replace("_", "-")
        if self.value is True:
            return f"--{self.record}.{name}"
        if self.value is False:
            return f"--{self.record}.no-{name}"
        return f"--{self.record}.{name} {self.value}"


def _switches(asked: Configuration, devices: int) -> Iterator[_Switch]:
    """Those that apply to so many devices, from what changes no number to what changes the method."""
    arguments = asked.arguments
    load: Load = arguments["load"]
    if not load.checkpointing:
        # As the command line spells an optional switch.
        yield _Switch("load", "checkpointing", "True")
    run, optim = arguments.get("run"), arguments.get("optim")
    if isinstance(run, Run):
        for rows in (64, 16, 4):
            if rows < run.rows_at_once:
                yield _Switch("run", "rows_at_once", rows)
        for tokens in (8192, 4096):
            if tokens < run.tokens_per_pass:
                yield _Switch("run", "tokens_per_pass", tokens)
    if optim is not None:
        yield _Switch("load", "offload_reference", True)
        if not optim.eight_bit:
            yield _Switch("optim", "eight_bit", True)
        if optim.masters and devices == 1:  # refused for shards
            yield _Switch("optim", "masters", False)
    for pixels in (501_760, 250_880):
        smaller = load.max_pixels is None or pixels < load.max_pixels
        if smaller and (load.min_pixels or 0) <= pixels:
            yield _Switch("load", "max_pixels", pixels)
    lora = arguments.get("lora")
    if isinstance(lora, LoRA) and not lora.rank:
        yield _Switch("lora", "rank", 64)


def _switched(asked: Configuration, switches: Sequence[_Switch]) -> Configuration:
    arguments = dict(asked.arguments)
    for switch in switches:
        value = True if switch.value == "True" else switch.value
        arguments[switch.record] = replace(arguments[switch.record], **{switch.field: value})
    return replace(asked, arguments=arguments)


def _sizes(arguments: Mapping[str, Any], device: Device) -> Sizes:
    load, model = arguments["load"], arguments["model"]
    where = torch.device("cpu")
    dtype = resolve_dtype(load.dtype, where)
    if load.dtype == "auto" and device.kind == "cuda":
        dtype = torch.bfloat16
    if model == EMBEDDED:  # not the warmed-up one, which takes a minute to make
        return sizes_of(tiny.cached(corpus=drawn.tokenizer_texts()), dtype, load.freeze)
    source, checkpoint = model_source(model)
    stored = {} if checkpoint is None else policy_settings(checkpoint)
    lora = LoRA(**stored["lora"]) if stored.get("lora") else arguments.get("lora", LoRA())
    freeze = stored.get("freeze", load.freeze)
    return sizes_of(source, dtype, tuple(freeze), lora)


def _work(asked: Configuration, sizes: Sizes, prompting: Prompting) -> Work:
    arguments = asked.arguments
    load: Load = arguments["load"]
    sampling: Sampling = arguments.get("sampling") or Sampling()
    several = domains_of(arguments)
    each = [_alone(arguments, domain) for domain in several] or [arguments]
    visual = max(_visual_tokens(alone, sizes, prompting) for alone in each)
    longest = min(visual + prompting.text, load.max_prompt_tokens or math.inf)
    lengths = Work(
        group=sampling.group_size,
        prompt_tokens=int(longest),
        visual_tokens=int(min(visual, longest)),
        answer_tokens=sampling.max_tokens,
        sampled=asked.recipe != "sft",
    )
    run = arguments.get("run")
    if not isinstance(run, Run):
        # Recipes that only ask: all their prompts are one evaluation.
        prompts = int(arguments.get("prompts") or 256)
        rows = int(arguments.get("rows_at_once") or Work.rows_at_once)
        alone = {"trained": False, "evaluated": 0}
        return replace(lengths, prompts=prompts, rows_at_once=rows, **alone)
    heldout = arguments["data"].heldout_rows if "data" in arguments else run.eval_prompts
    heldout *= max(len(several), 1)
    scores = _scores(arguments, run)
    graphs = [name for name, asked_of in scores.live.items() if asked_of.grad]
    every = {**scores.stored, **scores.live}
    branches = [name for name in every if name not in ("raw", "ref")]
    lora = arguments.get("lora", LoRA())
    return replace(
        lengths,
        prompts=run.prompts_per_step,
        updates=run.updates_per_step,
        tokens_per_pass=run.tokens_per_pass,
        rows_at_once=run.rows_at_once,
        evaluated=min(run.eval_prompts, heldout or run.eval_prompts),
        graphs=len(graphs),
        scored=len(scores.stored),
        reference="ref" in every and not lora.rank,
        tiles=_tiles(scores),
        pictures=1 + len(branches),
    )


def _alone(arguments: Mapping[str, Any], domain: Domain) -> dict[str, Any]:
    """The arguments as if one data set of a mixture were all."""
    return {**arguments, "dataset": domain.dataset, "data": domain.data}


def _visual_tokens(arguments: Mapping[str, Any], sizes: Sizes, prompting: Prompting) -> int:
    """Visual tokens of the largest prompt."""
    dataset = str(arguments["dataset"])
    clips = arguments.get("clips")
    if clips is not None and dataset.startswith("drawn:clips"):
        said = re.search(r"frames=(\d+)", dataset)
        return DRAWN_PAIR * math.ceil(int(said[1]) / 2 if said else 6)
    if clips is not None and not dataset.startswith("drawn:"):
        frames = clips.num_frames or clips.max_frames
        if sizes.tile:  # each frame is one square, whatever its size
            return frames * sizes.square_tokens
        pairs = math.ceil(frames / 2)
        whole = clips.max_tokens or clips.total_tokens
        # The limits of a frame and of the whole clip; without either, that of a picture.
        each = clips.max_frame_tokens or sizes.visual_tokens(sizes.max_pixels)
        return min(pairs * each, whole or pairs * each)
    data = arguments.get("data")
    if clips is None and isinstance(data, Data) and (data.frames or data.max_frames):
        # Whoever chooses frames has rows with clips, at least one each.
        return _clip_tokens(data.frames or data.max_frames or 0, arguments["load"], sizes)
    most = arguments["load"].max_pixels or sizes.max_pixels
    side = re.search(r"size_px=(\d+)", dataset)
    if side:
        most = min(most, int(side[1]) ** 2)
    return prompting.images * sizes.visual_tokens(most)


def _clip_tokens(frames: int, load: Load, sizes: Sizes) -> int:
    """Visual tokens of a row's clip with so many frames; without limits each pair is as large as a picture."""
    if sizes.tile:
        return frames * sizes.square_tokens
    each = sizes.visual_tokens(load.max_frame_pixels or sizes.max_pixels)
    whole = math.ceil(frames / 2) * each
    # The limit counts the pixels of all frames, a token those of two.
    return (
        min(whole, sizes.visual_tokens(load.max_video_pixels // 2))
        if load.max_video_pixels
        else whole
    )


def _scores(arguments: Mapping[str, Any], run: Run) -> ScorePlan:
    """What is scored when, by the function that decides it in a run."""
    objectives = [value for value in arguments.values() if isinstance(value, Objective)]
    names = {request.branch for one in objectives for request in one.score_requests()}
    grad = bool(arguments.get("grad") or arguments.get("masked_grad"))
    refresh = bool(arguments.get("refresh_masked"))
    # Any view will do: what is scored depends on gradient and freshness alone.
    branch = VisualBranch(PatchMask(), grad=grad, refresh=refresh)
    branches = {name: branch for name in names if name not in ("raw", "ref")}
    grpo = arguments.get("grpo") or GRPO()
    return plan_scores(grpo, objectives, branches, run.updates_per_step)


def _tiles(scores: ScorePlan) -> int:
    asked = [*scores.stored.values(), *scores.live.values()]
    # One per head that is read at once; copies are made of small blocks of them only.
    return 2 if any(one.divergence for one in asked) else 1


def take_machine(args: list[str], take: Any) -> tuple[Device | None, Prompting]:
    """The flags of `mmrl plan` itself, taken out by `take(args, name)`. Raises ValueError."""
    words, images, text = (take(args, name) for name in ("machine", "images", "text-tokens"))
    flops, bandwidth = (_number(take(args, name), name) for name in ("tflops", "terabytes"))
    device = None if words is None else machine(words)
    rates = {"flops": flops and flops * 1e12, "bandwidth": bandwidth and bandwidth * 1e12}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    if given and device is None:
        raise ValueError(
            "--tflops and --terabytes are measured on some machine; name it with --machine."
        )
    if device is not None:
        device = replace(device, **given)
    counts = [_number(images, "images") or 1, _number(text, "text-tokens") or TEXT_TOKENS]
    return device, Prompting(*map(int, counts))


def _number(text: str | None, name: str) -> float | None:
    """A positive number given as a flag."""
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number > 0:
        raise ValueError(f"--{name} is {text!r}; it must be a positive number.")
    return number


def report(asked: Configuration, device: Device | None, prompting: Prompting) -> str:
    """All phases of a run on a machine, whether it fits, and what would make it fit."""
    if device is None:
        device = this_machine(resolve_device(asked.arguments["load"].device))
    if device is None:
        raise ValueError(
            "How much memory this computer has cannot be read; say it, for example --machine cpu:16."
        )
    found, sizes, work = planned(asked, device, prompting)
    lines = [
        f"{asked.recipe} {asked.preset}: {asked.arguments['model']} on {in_words(device)}",
        f"  {sizes.parameters / 1e9:.2f} B parameters, {sizes.trainable / 1e9:.3g} B trained, "
        f"{8 * sizes.itemsize} bits each",
        f"  {work.prompts} prompts x {work.group} answers; prompts of at most {work.prompt_tokens} tokens "
        f"({work.visual_tokens} visual), answers of at most {work.answer_tokens}",
        "",
    ]
    for name, parts in found.phases.items():
        each = ", ".join(f"{part} {size / GIB:.1f}" for part, size in parts.items() if size)
        lines.append(f"  {name:<9}{found.bytes(name) / GIB:8.1f} GiB   {each}")
    if found.host:
        each = ", ".join(f"{part} {size / GIB:.1f}" for part, size in found.host.items())
        total = sum(found.host.values()) / GIB
        lines.append(f"  {'host':<9}{total:8.1f} GiB   {each} (all devices together)")
    for name, seconds in found.seconds.items():
        lines.append(f"  {name:<9}{seconds:8.1f} s a step at the given rate")
    lines += ["", _verdict(asked, found, prompting)]
    if device.count > 1:
        lines.append(
            f"This is what each of {device.count} devices holds under torchrun, with --load.shard "
            f"{asked.arguments['load'].shard}. What they send to each other takes time that is not planned."
        )
    return "\n".join(lines)


PRESET_COLUMNS = (
    "preset",
    "parameters",
    "at least",
    "meant for",
    "peak there",
    "switches there",
    "one GPU of 80 GiB",
)
NEEDLESS = ("--run.rows-at-once", "--run.tokens-per-pass", "--load.offload-reference")
"""Switches that change neither model nor method: the same numbers but for rounding, in more time."""


def preset_row(asked: Configuration, meant_for: str) -> list[str]:
    """What `docs/scale.md` says of a preset, column by column of `PRESET_COLUMNS`."""
    device, single = machine(meant_for), machine("80")
    found, sizes, _ = planned(asked, device)
    alone, _, _ = planned(asked, single)
    there, _ = remedies(asked, device)
    small, fits = remedies(asked, single)
    least = max(alone.bytes(name) for name in ("load", "optimize") if name in alone.phases)
    return [
        f"{asked.recipe} {asked.preset}",
        f"{sizes.parameters / 1e9:.1f} B",
        f"{least / GIB:.0f} GiB",
        meant_for,
        f"{found.needed / GIB:.0f} GiB, {found.peak}",
        _as_code(there, "as it is"),
        _as_code(small, "as it is") if fits else "no",
    ]


def _as_code(flags: Sequence[str], none: str) -> str:
    return f"`{' '.join(flags)}`" if flags else none


def show_plan(asked: Configuration, device: Device | None, prompting: Prompting) -> None:
    """Print the report."""
    show(report(asked, device, prompting))


def _verdict(asked: Configuration, found: Plan, prompting: Prompting) -> str:
    room = f"{_gib(found.needed)} of {_gib(found.device.usable)} usable"
    if found.fits:
        return f"It fits: {room}, most in {found.peak}."
    return f"It does not fit: {room}, most in {found.peak}. {advice(asked, found.device, prompting)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
