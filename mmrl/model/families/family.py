"""What the core must know of one family of models: an adapter, found by the `model_type` of a checkpoint's config.

Everything else in this project speaks to a model through its adapter and never asks for a family's name. The defaults
are those of the Qwen-VL design; another design overrides what differs (`internvl.py`), and so may a user's own adapter
(`register`). What an adapter is held to is written down as tests: `tests/model/test_families.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmrl.model.families.tiny_parts import TinySize
    from mmrl.model.mrope import Block
    from mmrl.model.patches import PixelRules

Space = Literal["original", "resized", "thousand"]
"""Where coordinates count: pixels of the picture as it came, pixels after the resize, or 0 ... 1000 on both axes."""
Grid = tuple[int, int, int]
"""Temporal patches, rows and columns."""

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
VISION_TOKENS = (VISION_START, VISION_END, "<|vision_pad|>", IMAGE_PAD, VIDEO_PAD)
TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Shown:
    """How one medium stands in the text."""

    text: str
    """With one placeholder for each unbroken run of visual tokens."""
    runs: tuple[Grid, ...]
    """Temporal patches, rows and columns of visual tokens of each run."""


@dataclass(frozen=True)
class TowerShape:
    """A vision tower in numbers; zeros if there is none."""

    depth: int = 0
    """Blocks."""
    hidden: int = 0
    """Width of the blocks."""
    intermediate: int = 0
    """Width of their MLP."""
    heads: int = 1
    patch: int = 1
    """Pixels per side of a patch."""
    temporal: int = 1
    """Frames of a patch."""
    merge: int = 1
    """Patches per side of a visual token."""
    channels: int = 3
    levels: int = 0
    """Feature levels besides the last (DeepStack)."""
    tile: int = 0
    """Pixels per side of the squares that it reads; 0: pictures of any size."""

    @property
    def square_tokens(self) -> int:
        """Visual tokens of a square; 0 for pictures of any size."""
        return (self.tile // (self.patch * self.merge)) ** 2

    @property
    def patch_numbers(self) -> int:
        """Numbers of one patch."""
        return self.channels * self.temporal * self.patch**2


@dataclass(frozen=True)
class Family:
    """One family. The fields are what differs between relatives, the methods what differs between designs."""

    model_type: str
    """As transformers calls it, in config.json."""
    name: str
    """As people call it."""
    space: Space | None = None
    """In which the family was taught to speak of places; None: not known."""
    image: str = IMAGE_PAD
    """What the chat template writes for a picture."""
    video: str = VIDEO_PAD
    """What the chat template writes for a clip."""
    vision_tokens: tuple[str, ...] = VISION_TOKENS
    """Markers and placeholders of media: never sampled."""
    turns: tuple[str, ...] = TURNS
    """Other tokens that structure a chat. Like `vision_tokens` they may not stand in a prompt's text."""
    end: str = "<|im_end|>"
    """Token that ends an answer."""
    sees: tuple[Literal["image", "video"], ...] = ("image", "video")
    """Media that it reads."""
    axes: Literal[1, 3] = 3
    """Numbers of a position: three (time, row, column), or one."""
    timed: bool = False
    """Are the temporal positions of a clip seconds rather than counted?"""
    stamps: bool = False
    """Is the time of each temporal patch written in the text?"""
    whole_clip: bool = False
    """Do the pixel limits of a clip count all of its frames together?"""
    side_share: float = 0.0
    """Share of a head's rotary frequencies that turn by row, and by column, in released configs; 0 for one axis."""
    max_pixels: int = 0
    """Largest picture of the published processors, in pixels."""
    tower_path: str = "model.visual"
    """Where the vision tower sits in the transformers model; empty if there is none."""
    text_path: str = "model.language_model"
    """Where the language model sits, without its head."""
    merger_path: str = ""
    """Where the merger sits if it is no part of the tower's module."""
    merger_mark: str = "merger"
    """What the names of a merger's weights inside the tower contain."""
    tower_layers: str = "model.visual.blocks."
    """How the names of the layers begin that LoRA adapts in the tower."""
    lora: str = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    """Layers of the language model that LoRA adapts: a pattern for their whole names."""
    left_out_of_lora: str = ""
    """What of the language model LoRA leaves alone, in words; empty if it adapts all of its linear layers."""
    rounds_to_fp32: bool = False
    """Do parts of its layers compute in single precision whatever the format of the model?"""
    saliency: bool = True
    """Can the attention inside the tower be read (`visual_attention.py`)?"""

    @property
    def structure(self) -> tuple[str, ...]:
        """Tokens that may not stand in a prompt's text."""
        return (*self.turns, *self.vision_tokens)

    # Where the parts are.

    def text_model(self, base: Any) -> Any:
        """The language model without its head; has `layers`, and takes `inputs_embeds` and `position_ids`."""
        return base.get_submodule(self.text_path)

    def tower(self, base: Any) -> Any:
        """The vision tower, or None."""
        return base.get_submodule(self.tower_path) if self.tower_path else None

    def parts(self, base: Any) -> Mapping[str, list[nn.Parameter]]:
        """Weights of the parts that can be frozen: "vision" (without its merger), "merger", "language", "head"."""
        found = {
            "language": list(self.text_model(base).parameters()),
            "head": [base.lm_head.weight],
        }
        tower = self.tower(base)
        if tower is None:
            return found
        mark = self.merger_mark
        # The merger may lie inside the tower's module; then the two are told apart by name.
        inside = [p for name, p in tower.named_parameters() if mark and mark in name]
        blocks = [p for name, p in tower.named_parameters() if not (mark and mark in name)]
        beside = (
            list(base.get_submodule(self.merger_path).parameters()) if self.merger_path else []
        )
        return {"vision": blocks, "merger": inside + beside, **found}

    def tower_parameters(self, base: Any) -> list[nn.Parameter]:
        """All weights between pixels and the language model."""
        paths = [path for path in (self.tower_path, self.merger_path) if path]
        return [p for path in paths for p in base.get_submodule(path).parameters()]

    def model_class(self) -> Any:
        """The class of transformers that loads such a model."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText

    def prepare(self, base: Any) -> None:
        """Exchange in a loaded model what the core computes by itself."""
        from mmrl.model.attention import register
        from mmrl.model.window_attention import register_windows

        self.text_model(base).config._attn_implementation = register()
        self.prepare_experts(base)
        tower = self.tower(base)
        if tower is not None:
            tower.config._attn_implementation = register_windows()

    def prepare_experts(self, base: Any) -> None:
        """The grouped product of the library's experts knows no double precision; then they run one by one."""
        import torch

        text = self.text_model(base).config
        if getattr(text, "num_experts", 0) and base.dtype == torch.float64:
            text._experts_implementation = "eager"

    def refuse_layers(self, base: Any, what: str) -> None:
        """Make the language model's layers ready for packed rows; ValueError if `what` would compute something else."""
        from mmrl.model.attention import refuse_windows
        from mmrl.model.linear_attention import readable_kinds

        known = readable_kinds(self.text_model(base), base)
        refuse_windows(base.config.get_text_config(), what, known)

    def dropouts(self, config: Any) -> Mapping[str, float]:
        """Chances of the config that something is dropped in training, all of which must be 0."""
        text = config.get_text_config()
        return {"attention_dropout": getattr(text, "attention_dropout", 0.0)}

    # Text and positions.

    def placeholder_ids(self, config: Any) -> Mapping[str, int]:
        """Placeholder of a visual token -> its id by the config."""
        return {self.image: config.image_token_id, self.video: config.video_token_id}

    def shown(self, is_video: bool, grid: Grid, stamps: Sequence[float]) -> Shown:
        """Text and runs of one medium with `grid` visual tokens; `stamps`: seconds of its temporal patches."""
        if not (is_video and self.stamps):
            return Shown(self.video if is_video else self.image, (grid,))
        depth, rows, columns = grid
        around = f"{VISION_START}{self.video}{VISION_END}"
        text = "".join(f"<{stamp:.1f} seconds>{around}" for stamp in stamps)
        return Shown(text, ((1, rows, columns),) * depth)

    def time_step(self, config: Any, seconds: float) -> float:
        """Distance of neighbouring temporal patches of a clip in positions; `seconds` is that in time."""
        return config.vision_config.tokens_per_second * seconds if self.timed else 1.0

    def positions(self, length: int, blocks: Sequence[Block]) -> Tensor:
        """Positions long [3, length] of a prompt with these runs of visual tokens; equal on all axes for one."""
        from mmrl.model.mrope import mrope_positions

        return mrope_positions(length, blocks if self.axes == 3 else ())

    def position_ids(self, positions: Tensor) -> Tensor:
        """What the language model takes for positions [3, S] of one row or [3, N, S] of several."""
        rows = positions[:, None] if positions.ndim == 2 else positions
        return rows if self.axes == 3 else rows[0]

    def without_mask(self, rows: Tensor) -> dict[str, Any]:
        """Keywords for the language model by which no mask is made for embedded rows that come with a layout.

        Positions of one axis would be searched for several sequences, which waits for the device and makes a square of
        the row's length; a mask of four dimensions is passed on as it is, and nobody reads it.
        """
        return {} if self.axes == 3 else {"attention_mask": rows.new_zeros(1, 1, 1, 1)}

    # Pixels.

    def processor(self, source: Any) -> Any:
        """The processor of a folder or hub name."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(source)

    def pixel_rules(self, processor: Any, config: Any) -> tuple[PixelRules, PixelRules] | None:
        """What the checkpoint's processor does to pictures, and to clips; None if it reads neither."""
        from mmrl.model.patches import PixelRules

        return (
            PixelRules.read(processor.image_processor, "image"),
            PixelRules.read(processor.video_processor, "video", whole_clip=self.whole_clip),
        )

    def features(
        self, base: Any, values: Tensor, grids: Sequence[Grid]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Rows [n, D] of all visual tokens, and of each further level, from patches [N, patch] of media."""
        from mmrl.model.tower_inputs import tower_inputs

        tower = self.tower(base)
        inputs = tower_inputs(tower, grids, values.device)
        found = tower(values, **inputs, return_dict=True)
        # Qwen2.5-VL has no further levels, and a Qwen3-VL config may name none.
        return found.pooler_output, getattr(found, "deepstack_features", None) or ()

    # Sizes.

    def shape(self, config: Any) -> TowerShape:
        """The tower in numbers."""
        vision = config.vision_config
        return TowerShape(
            depth=vision.depth,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_heads,
            patch=vision.patch_size,
            temporal=vision.temporal_patch_size,
            merge=vision.spatial_merge_size,
            channels=getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3),
            levels=len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        )

    def blocks(self, base: Any) -> Sequence[Any]:
        """The tower's blocks."""
        tower = self.tower(base)
        return () if tower is None else tower.blocks

    def run_block(self, block: Any, rows: Tensor, angles: Tensor) -> Any:
        """One block of the tower on rows [N, D] that all see each other; `angles` [N, width of a head] turn them."""
        import torch

        edges = torch.tensor([0, len(rows)])
        return block(rows, cu_seqlens=edges, position_embeddings=(angles, angles))

    # Tiny models for tests and the embedded task.

    def tiny_tokens(self) -> Mapping[str, str]:
        """Special tokens that the tiny tokenizer gets besides Qwen's: name of its attribute -> token."""
        return {}

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model; `ids` are those of the special tokens."""
        raise NotImplementedError(f"The adapter {self.name} builds no tiny models.")

    def tiny_weights(self, model: Any) -> None:
        """Change drawn weights of a tiny model that would make a test blind, such as zeros."""

    def tiny_processor(self, size: TinySize, tokenizer: Any) -> Any:
        """The processor of a tiny model."""
        raise NotImplementedError(f"The adapter {self.name} builds no tiny models.")


_REGISTERED: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make an adapter known under its `model_type`, in place of another of that name. Returns it."""
    _REGISTERED[family.model_type] = family
    return family


def families() -> Mapping[str, Family]:
    """`model_type` -> adapter of all that are known."""
    return dict(_REGISTERED)


def family_of(model_type: str) -> Family:
    """The adapter of a `model_type`. Raises ValueError that says what is missing."""
    if model_type in _REGISTERED:
        return _REGISTERED[model_type]
    raise ValueError(unknown(model_type))


def unknown(model_type: str) -> str:
    """What to say about a family without an adapter."""
    known = ", ".join(f"{name} ({family.name})" for name, family in _REGISTERED.items())
    return (
        f"there is no adapter for models of the type {model_type!r}. Known are {known}. An adapter says which "
        "placeholders stand for media, how positions count, where tower, merger, language model and head sit, how "
        "pixels become patches and which layers LoRA adapts: derive one from mmrl.model.families.Family and pass it "
        "to mmrl.model.families.register before the model is loaded (docs/own_parts.md)"
    )
