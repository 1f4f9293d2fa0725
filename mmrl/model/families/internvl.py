"""InternVL 2.5, 3 and 3.5 in the classes that transformers has for them (checkpoints whose names end in -hf).

A design of its own: the tower reads squares of one size (`tiles.py`) with a class token and one learned position per
patch, a projector beside it merges four patches into one visual token, and the language model (Qwen2 or Qwen3) counts
positions on one axis. A clip is written frame by frame, "Frame1: <img>…</img>", without times.

The attention of the tower is the library's own (each tile is a row of its batch). How much each visual token is looked
at is not read, for tiles and the square of the whole show a place twice. Coordinates: 0 ... 1000 (their grounding
prompts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl.model.families import tiny_parts
from mmrl.model.families.family import TURNS, VISION_TOKENS, Family, Grid, Shown, TowerShape

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl.model.families.tiny_parts import TinySize
    from mmrl.model.patches import PixelRules

IMAGE, VIDEO, START, END = "<IMG_CONTEXT>", "<video>", "<img>", "</img>"
TILE = 448
"""Pixels per side of a published tile."""
MOST_TILES = 12

# A template that writes for a picture what the released ones write: the placeholder and a line break.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<IMG_CONTEXT>\n' -}}"
    "{%- elif part['type'] == 'video' -%}{{- '<video>\n' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class InternVL(Family):
    """Tiles instead of whole pictures, one axis instead of three."""

    def prepare(self, base: Any) -> None:
        """Exchange the attention of the language model; the tower keeps the library's."""
        from mmrl.model.attention import register

        self.text_model(base).config._attn_implementation = register()
        self.prepare_experts(base)

    def dropouts(self, config: Any) -> Mapping[str, float]:
        """Those of the tower too."""
        vision = config.vision_config
        names = ("hidden_dropout_prob", "attention_dropout", "projection_dropout")
        tower = {f"vision_config.{name}": getattr(vision, name, 0.0) for name in names}
        return {**super().dropouts(config), **tower}

    def placeholder_ids(self, config: Any) -> Mapping[str, int]:
        """Frames of a clip have the placeholder of pictures."""
        return {self.image: config.image_token_id}

    def shown(self, is_video: bool, grid: Grid, stamps: Sequence[float]) -> Shown:
        """All tiles of a picture between one pair of marks; one pair for each frame of a clip."""
        one = f"{START}{self.image}{END}"
        if not is_video:
            return Shown(one, (grid,))
        frames, rows, columns = grid
        text = "\n".join(f"Frame{number}: {one}" for number in range(1, frames + 1))
        return Shown(text, ((1, rows, columns),) * frames)

    def pixel_rules(self, processor: Any, config: Any) -> tuple[PixelRules, PixelRules]:
        """Tiles of pictures, frames of clips."""
        from mmrl.model.tiles import TileRules

        shape = self.shape(config)
        return (
            TileRules.of(processor.image_processor, "image", shape.patch, shape.merge),
            TileRules.of(processor.video_processor, "video", shape.patch, shape.merge),
        )

    def features(
        self, base: Any, values: Tensor, grids: Sequence[Grid]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Rows [n, D] of all visual tokens, tile by tile."""
        shape = self.shape(base.config)
        tiles = self.squares(values, grids[0], merge=shape.merge, patch=shape.patch)
        # [tiles, tokens, D]; the library's order within a tile is row by row, as that of our patches.
        found = base.model.get_image_features(tiles, return_dict=True)
        return found.pooler_output.flatten(0, 1), ()

    def squares(self, values: Tensor, grid: Grid, *, merge: int, patch: int) -> Tensor:
        """Tiles [n, 3, side, side] from patches [N, 3 · patch²], of which those of one visual token are neighbours."""
        _, rows, columns = grid
        m, p = merge, patch
        cut = values.view(-1, rows // m, columns // m, m, m, 3, p, p)
        # [n, row of tokens, column of tokens, row, column, channel, p, p] -> rows of pixels
        pixels = cut.permute(0, 5, 1, 3, 6, 2, 4, 7)
        return pixels.reshape(-1, 3, rows * p, columns * p)

    def shape(self, config: Any) -> TowerShape:
        """The tower in numbers."""
        vision = config.vision_config
        return TowerShape(
            depth=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            heads=vision.num_attention_heads,
            patch=vision.patch_size[0],
            merge=round(1 / config.downsample_ratio),
            channels=vision.num_channels,
            tile=vision.image_size[0],
        )

    def blocks(self, base: Any) -> Sequence[Any]:
        """The tower's blocks."""
        return self.tower(base).encoder.layer

    def run_block(self, block: Any, rows: Tensor, angles: Tensor) -> Any:
        """One block on the rows of one tile; nothing is turned."""
        return block(rows[None])

    def tiny_tokens(self) -> Mapping[str, str]:
        """The tokenizer names the marks of pictures."""
        return {
            "start_image_token": START,
            "end_image_token": END,
            "context_image_token": IMAGE,
            "video_token": VIDEO,
        }

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model, whose tiles have four patches per side."""
        from transformers import InternVLConfig

        text = tiny_parts.text_config(size, ids, vocabulary)
        vision = {
            "hidden_size": size.vision_hidden,
            "num_hidden_layers": size.vision_depth,
            "num_attention_heads": size.vision_heads,
            "intermediate_size": 3 * size.vision_hidden,
            "attention_bias": True,
            "image_size": [4 * size.patch] * 2,
            "patch_size": [size.patch] * 2,
            "layer_scale_init_value": 1.0,
            "initializer_range": size.initializer_range,
        }
        return InternVLConfig(
            text_config={**text, "model_type": "qwen2"},
            vision_config=vision,
            image_token_id=ids[IMAGE],
            image_seq_length=4,
            tie_word_embeddings=True,
        )

    def tiny_weights(self, model: Any) -> None:
        """The library draws class token and positions as zeros, with which a tower cannot tell places apart."""
        embeddings = self.tower(model).embeddings
        spread = model.config.vision_config.initializer_range
        for weight in (embeddings.cls_token, embeddings.position_embeddings):
            weight.data.normal_(std=spread)

    def tiny_processor(self, size: TinySize, tokenizer: Any) -> Any:
        """The processor of a tiny model."""
        from transformers import (
            GotOcr2ImageProcessor,
            InternVLProcessor,
            InternVLVideoProcessor,
        )

        square = {"height": 4 * size.patch, "width": 4 * size.patch}
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        shared: dict[str, Any] = {"size": square, "image_mean": mean, "image_std": std}
        # A tile of a tiny model has four tokens.
        most = max(1, min(MOST_TILES, size.max_image_tokens // 4))
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(
                crop_to_patches=True, max_patches=most, **shared
            ),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(**shared),
            image_seq_length=4,
            chat_template=CHAT_TEMPLATE,
        )


FAMILIES: tuple[Family, ...] = (
    InternVL(
        "internvl",
        "InternVL",
        space="thousand",
        image=IMAGE,
        video=VIDEO,
        vision_tokens=(START, END, IMAGE, VIDEO, *VISION_TOKENS),
        turns=TURNS,
        axes=1,
        max_pixels=MOST_TILES * TILE**2,
        tower_path="model.vision_tower",
        merger_path="model.multi_modal_projector",
        merger_mark="",
        tower_layers="model.vision_tower.encoder.layer.",
        saliency=False,
    ),
)
