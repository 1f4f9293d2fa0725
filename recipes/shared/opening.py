"""What recipes open: the model with its limits and frozen parts, and the rows with the way they are asked.

`open_policy` reads a folder, a hub name, a run that ended or was stopped, or "embedded"; `open_data` gives training and
held-out prompts, asked in the style that `paying` describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmrl.data.drawn.closer import Closer
from mmrl.data.drawn.drawn import Drawn
from mmrl.data.rows.columns import WITHOUT_ANSWERS
from mmrl.data.rows.row_prompts import RowPrompts
from mmrl.data.rows.sources import DRAWN as DRAWN_TASKS
from mmrl.data.rows.sources import load_prompts, split_prompts
from mmrl.data.rows.templates import Template
from mmrl.ground.checksums import damage, is_sealed
from mmrl.ground.outputs import listed
from mmrl.ground.printable import tell
from mmrl.ground.progress import busy
from mmrl.ground.require import require
from mmrl.model.budget import GIB
from mmrl.model.load import LoRA, adapted
from mmrl.model.patches import PixelBudget
from mmrl.model.policy import Policy
from mmrl.model.preparing import default_workers
from mmrl.model.ranks import Ranks
from mmrl.model.sharding import Shard
from mmrl.model.tags import TagMode
from mmrl.model.thinking import ThinkingMode
from mmrl.model.weightless import weightless
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.paying import StyleName, style_of
from mmrl.rollouts.choosing import EngineChoice, Stale
from mmrl.training.checkpoint import (
    CheckpointError,
    newest_whole,
    read_state,
    restore_weights,
)
from mmrl.training.door import refuse_unfit_output
from mmrl.training.dry import is_dry
from mmrl.training.run import Run
from mmrl.training.shards import is_sharded_checkpoint
from mmrl.training.shards import restore_weights as restore_shards
from mmrl.types import Prompts

EMBEDDED = "embedded"
"""Name of the tiny warmed-up model, and of the preset that uses it."""
MOST_WORKERS = 256
"""Processes beside a trainer; beyond it nobody means it."""
PROMPT_FILES = (".jinja", ".jinja2", ".j2", ".txt", ".md")
"""How the name of a prompt's file ends."""
UNLIMITED = {"min_frame_pixels": 1, "max_frame_pixels": 1 << 40, "max_video_pixels": 1 << 50}
"""Limits of clips that change nothing."""
OF_CLIPS = ("fps", "frames", "max_frames")
"""Fields of `Data` about the clips of rows."""
OF_MEDIA = ("image_root", *OF_CLIPS)
"""Fields of `Data` about the media of rows."""
DRAWN = "drawn:lookup?cells=2&size_px=32"
"""What the embedded model is trained on: pictures of four cells, "What is at row 1 column 2?"."""


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
    min_frame_pixels: int | None = None
    """Smallest area of a frame of a clip; None keeps the checkpoint's."""
    max_frame_pixels: int | None = None
    """Largest area of a frame of a clip; None keeps the checkpoint's."""
    max_video_pixels: int | None = None
    """Largest area of all frames of a clip together; None keeps the checkpoint's."""
    max_prompt_tokens: int | None = None
    """Longer prompts are skipped and counted; None is the model's context."""
    offload_reference: bool = False
    """Keep the layers of a full fine-tune's reference in the CPU's memory: slower, and its bytes are free for others.
    A reference exists only where a KL or an objective reads it; with LoRA it is the model without its adapter."""
    shard: Shard = "auto"
    """Under torchrun, how weights, gradients and moments are spread: full (cut over all devices), hybrid (over those
    of a machine, with a copy on each machine: less traffic between them), off (a copy on every device), auto (hybrid
    where it takes at most a quarter of each machine, else full). The vision tower is always a copy."""
    check_memory: bool = True
    """Refuse a run that cannot fit into memory before anything is loaded; off: try it all the same."""
    memory: float | None = None
    """GiB that rollouts and updates may take on the device beside weights and optimizer; None divides what is free
    (of a CPU's memory half)."""
    workers: int | None = None
    """Processes that read prompts and prepare their pictures ahead of the step; 0: none. None: one for each two cores,
    at most 8, where a large model computes on CUDA, else none (the same cores would do both)."""
    shared: bool = True
    """Compute prompts once per group; False repeats them for every answer (slow, for comparison)."""
    tags: TagMode = "auto"
    """How tags such as <think> are written that the tokenizer has as one token: text, token, or auto: as a token only
    where the checkpoint uses it (Qwen3-VL-Instruct does not know <think>)."""
    engine: str = "here"
    """Who samples answers: here (the engine in this process), vllm (in this process, too), or http://HOST:PORT of a
    server that `python -m mmrl.rollouts.vllm_serve` started; one per process, with commas (docs/engines.md)."""
    engine_memory: float = 0.5
    """Share of the device's memory that vLLM in this process takes while it answers."""
    engine_stale: Stale = "refuse"
    """Answers of weights that are not the present ones: stop the run, or count them and let the weights of
    --grpo.mismatch correct them."""
    engine_correct: bool = True
    """Truncated importance weights for vLLM's answers, unless --grpo.mismatch says something else."""
    engine_invariant: bool = False
    """vLLM's kernels whose results do not depend on the batch, where it has them: slower."""
    thinking: ThinkingMode = "auto"
    """Shall answers begin with a thought? on or off, for chat templates with such a switch (Qwen3.5); auto: as the
    template does by itself."""

    def __post_init__(self) -> None:
        has_memory = self.memory is None or self.memory > 0
        areas = ("min_pixels", "max_pixels", *UNLIMITED)
        fine = {
            name: (getattr(self, name) is None or getattr(self, name) >= 1, "positive, or None")
            for name in areas
        }
        has_workers = self.workers is None or 0 <= self.workers <= MOST_WORKERS
        fits = self.engine in ("here", "vllm") or self.engine.startswith("http://")
        require(
            self,
            **fine,
            engine=(fits, "here, vllm, or http://HOST:PORT"),
            engine_memory=(0 < self.engine_memory < 1, "strictly between 0 and 1"),
            memory=(has_memory, "positive GiB, or None to use what is free"),
            workers=(has_workers, f"0 (none) to {MOST_WORKERS}, or None to choose"),
        )


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
    style: StyleName = "box"
    """box: think, then \\boxed{}, asked below the question (-inline: on its line, -system: in a system turn, -lines:
    within an <answer>, tags on lines of their own); answer: think, then <answer> (-open: text between them is fine);
    objects: a JSON list of boxes and points in <answer>; tag: <answer> alone; plain: the answer is the text;
    choice: as box, and the answer is the letter of an option, however it is put."""
    prompt: str = ""
    """How a question is put, in place of the style's: a file (my_prompt.jinja, my_prompt.txt) or the text itself, with
    {question}, or jinja2 with {{ question }} and {{ row.column }}."""
    suffix: str = ""
    """What stands below the question, in place of the style's instruction."""
    system: str = ""
    """System turn, in place of the style's."""
    columns: tuple[str, ...] = ()
    """Column names, as question=problem answer=solution images=left images=right; images= says that there are none."""
    fps: float | None = None
    """Frames per second of a row's clip; None: 2 of a video file, and all of frames that are listed one by one."""
    frames: int | None = None
    """So many frames of a row's clip, however long it is (of a video file an even number), in place of fps."""
    max_frames: int | None = None
    """Most frames of a row's clip at fps; None: 768 of a video file."""
    image_root: Path | None = None
    """Where relative paths of images and videos start; the data file's folder by default."""
    allow_outside: bool = False
    """Read media from anywhere on this machine; by default no path may lead out of that folder."""
    on_bad: Literal["skip", "stop"] = "skip"
    """Skip and count rows that cannot be used, or stop at the first."""

    def __post_init__(self) -> None:
        alone = self.frames is None or (self.fps is None and self.max_frames is None)
        most = self.max_frames
        require(
            self,
            fps=(self.fps is None or self.fps > 0, "positive, or None"),
            frames=(self.frames is None or self.frames >= 1, "at least 1, or None with fps"),
            max_frames=(most is None or most >= 2, "at least 2 (one pair), or None"),
        )
        if not alone:
            raise ValueError(
                f"--data.frames {self.frames} shows so many frames of every clip, so --data.fps and --data.max-frames "
                "have nothing to decide; leave them out, or leave --data.frames out."
            )

    def clip(self) -> dict[str, Any]:
        """What was said about frames, as keyword arguments of `read_clip`."""
        said = {"fps": self.fps, "num_frames": self.frames, "max_frames": self.max_frames}
        return {name: value for name, value in said.items() if value is not None}

    def refuse_drawn(self, dataset: str) -> None:
        """Raise ValueError for what a drawn task would not look at."""
        if not dataset.startswith(DRAWN_TASKS):
            return
        for name in (*("prompt", "suffix", "system", "subset", "columns"), *OF_MEDIA):
            if getattr(self, name):
                flag = f"--data.{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} is for rows of your own; {dataset} is drawn and asked in the words that the embedded "
                    f"model knows. Leave {flag} out, or give --dataset."
                )

    def template(self) -> Template:
        """The style's way of asking, or the user's own. Raises ValueError for a file that is not there."""
        if self.prompt and self.suffix:
            raise ValueError(
                "Both --data.prompt and --data.suffix are given; the prompt says what stands below the question, too."
            )
        style = style_of(self.style).template
        asked = Template(
            prompt=self._own_prompt() or style.prompt, system=self.system or style.system
        )
        if not asked.asks:
            raise ValueError(
                "--data.prompt never shows the question; write {question} (or {{ question }}) into it: "
                f"{asked.prompt[:200]!r}"
            )
        return asked

    def _own_prompt(self) -> str:
        """The text of a prompt of the user's own; empty without one."""
        if self.suffix:
            return "{question}\n\n" + self.suffix
        if not self.prompt:
            return ""
        # A text of one line that ends like a file is meant as one.
        is_name = "\n" not in self.prompt and Path(self.prompt).suffix in PROMPT_FILES
        if not is_name:
            return self.prompt
        path = Path(self.prompt).expanduser()
        if not path.is_file():
            raise ValueError(
                f"--data.prompt: there is no file {self.prompt} (looked in {Path.cwd()})."
            )
        return path.read_text(encoding="utf-8").removesuffix("\n")


def refuse_clip_flags(data: Data, load: Load) -> None:
    """Raise ValueError for frames and sizes that a recipe with --clips of its own would not look at."""
    given = [f"data.{name}" for name in OF_CLIPS if getattr(data, name) is not None]
    given += [f"load.{name}" for name in UNLIMITED if getattr(load, name) is not None]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise ValueError(
            f"{flag} is for rows with clips of recipes that train on any rows; here frames and their sizes are those "
            f"of --clips (fps, num-frames, max-frames, max-frame-tokens, total-tokens). Leave {flag} out."
        )


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
    # Both before the weights are read: that can take minutes, and these errors cost nothing to find.
    ranks = Ranks.here()
    if run is not None:
        ranks.by_first(lambda: refuse_unfit_output(run))
    budget = PixelBudget(
        min_pixels=load.min_pixels,
        max_pixels=load.max_pixels,
        max_prompt_tokens=load.max_prompt_tokens,
        **(UNLIMITED if clips_sized else {name: getattr(load, name) for name in UNLIMITED}),
    )
    source, checkpoint = model_source(model)
    if is_dry():
        return weightless(source, budget, load.tags, load.thinking)
    # A checkpoint holds the trained weights alone, so adapters and frozen parts must be those it was trained with.
    stored = {} if checkpoint is None else policy_settings(checkpoint)
    with busy(f"Loading {model}"):
        policy = Policy.load(
            source,
            device=load.device,
            dtype=load.dtype,
            lora=LoRA(**stored["lora"]) if stored.get("lora") else lora,
            freeze=stored.get("freeze", load.freeze),
            checkpointing=load.checkpointing,
            budget=budget,
            shared=load.shared,
            offload_reference=load.offload_reference,
            tags=stored.get("tags", load.tags),
            thinking=stored.get("thinking", load.thinking),
            shard=load.shard,
        )
    if checkpoint is not None:
        of_shards = is_sharded_checkpoint(checkpoint)
        restore = restore_shards if of_shards else restore_weights
        restore(checkpoint, policy.named_parameters())
    policy.engine = EngineChoice(
        load.engine,
        load.engine_memory,
        load.engine_stale,
        load.engine_correct,
        load.engine_invariant,
    )
    policy.workers = default_workers(policy) if load.workers is None else load.workers
    if load.memory is not None:
        policy.memory = int(load.memory * GIB)
    if policy.has_adapter and policy.family.left_out_of_lora:
        tell(adapted(policy.model, policy.family))
    return policy


def model_source(model: str) -> tuple[str | Path, Path | None]:
    """What to load, and a checkpoint to lay over it: for a run's folder its model, or its newest whole checkpoint."""
    if model == EMBEDDED:
        return warm_model(), None
    folder = Path(model)
    final = folder / "model"
    problem = damage(final) if final.is_dir() else "it is missing"
    if not problem:
        return final, None
    newest, complaints = _newest(folder, final)
    if final.is_dir():
        complaints.insert(0, f"{final} is not known to be whole: {problem}.")
    if complaints:
        tell("\n".join([*complaints, f"{newest or final} is used."]))
    if newest is not None:
        return policy_settings(newest)["source"], newest
    if final.is_dir():  # what is wrong with it, if anything, will show when it is loaded
        return final, None
    refuse_missing_model(model)
    return model, None


def refuse_missing_model(model: str) -> None:
    """Raise ValueError for a path where no folder is. What could be a hub name ("a/b") passes."""
    folder = Path(model)
    if model.startswith(("runs/", "./", "../", "/", "~")) and not folder.is_dir():
        raise ValueError(
            f"There is no model or run in {model}; {_runs_like(folder)}train one first, for example with "
            "python -m recipes.papo."
        )
    if folder.is_dir():
        _refuse_no_model(folder)


def _refuse_no_model(folder: Path) -> None:
    """Raise ValueError for a folder that is neither a model with its weights nor a run."""
    if any((folder / part).is_dir() for part in ("model", "checkpoints")):
        return
    names = ("config.json", "adapter_config.json")
    lacks = "config.json" if not any((folder / name).is_file() for name in names) else ""
    if not lacks and not any(any(folder.glob(kind)) for kind in ("*.safetensors", "*.bin")):
        lacks = "weights (*.safetensors)"
    if lacks:
        raise ValueError(
            f"--model {folder} is a folder without {lacks}, so neither a model nor a run; copy all files of the model "
            "into it, or give another --model."
        )


def _runs_like(folder: Path) -> str:
    """Runs of that name, whose folders also bear a sign of their settings."""
    try:
        found = sorted(map(str, folder.expanduser().parent.glob(f"{folder.name}-??????")))
    except (OSError, ValueError):
        found = []
    return f"there are {listed(found)}; or " if found else ""


def _newest(folder: Path, final: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and what is wrong with newer ones."""
    try:
        return newest_whole(folder / "checkpoints")
    except CheckpointError:
        # A run of an earlier version has no checksums anywhere; its model can still be tried.
        if final.is_dir() and not is_sealed(final):
            return None, []
        raise


def policy_settings(checkpoint: Path) -> dict[str, Any]:
    """Source, adapters and frozen parts of the policy that a run trained, from one of its checkpoints."""
    return read_state(checkpoint)["settings"]["policy"]


def open_data(dataset: str, data: Data, seed: int) -> tuple[Prompts, Prompts]:
    """Training and held-out prompts. Raises ValueError for fewer than two usable rows."""
    reading = {
        "template": data.template(),
        "columns": _column_map(data.columns),
        "image_root": data.image_root,
        "allow_outside": data.allow_outside,
        "on_bad": data.on_bad,
        "clip": data.clip(),
        "seed": seed,
    }
    data.refuse_drawn(dataset)
    with busy(f"Reading {dataset}"):
        prompts = load_prompts(
            dataset, split=data.split, subset=data.subset, limit=data.limit, **reading
        )
    drawn = isinstance(prompts, Drawn | Closer)
    if not drawn:
        refuse_media_alone(prompts, dataset, data)
    if data.heldout_rows == 0 and not drawn:
        return prompts, prompts
    if data.heldout:
        return prompts, load_prompts(data.heldout, **reading)
    if drawn:
        # Drawn pictures have a side of their own for this, endless as well, so no row is set aside.
        return prompts, replace(prompts, split="heldout", size=None)
    tell(prompts.summary())
    if len(prompts) < 2:
        raise ValueError(
            f"{dataset} has {len(prompts)} usable rows; training needs at least 2."
        )
    rows = min(data.heldout_rows, max(1, len(prompts) // 10))
    return split_prompts(prompts, rows, seed)


def refuse_media_alone(prompts: RowPrompts, dataset: str, data: Data) -> None:
    """Raise ValueError for pictures or clips that come with no question, unless the user's own prompt asks one."""
    if prompts.asks_nothing and not (data.prompt or data.suffix):
        raise ValueError(
            f"{dataset} holds {len(prompts)} pictures or clips and asks nothing about them, and this recipe learns "
            f"from questions with answers. Without these, use {WITHOUT_ANSWERS}: mmrl pretext --dataset {dataset}. "
            "With your own, put them beside the files (metadata.jsonl with file_name, question, answer), or ask the "
            "same of all with --data.prompt and pay for it with --reward."
        )


def _column_map(columns: Sequence[str]) -> dict[str, Any] | None:
    """Pairs such as question=problem as a mapping, several columns of media as a list; None without pairs."""
    found: dict[str, Any] = {}
    for pair in columns:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(
                f"--data.columns has {pair!r}; write pairs such as question=problem."
            )
        if key in found and key not in ("images", "videos"):
            raise ValueError(
                f"--data.columns names two columns for {key!r}, {found[key]!r} and {value!r}; give one."
            )
        several = key in ("images", "videos")
        found[key] = [*found.get(key, ()), value] if several else value
    return found or None
