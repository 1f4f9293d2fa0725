"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, dense and as a mixture of experts.

They share placeholders, chat, positions on three axes and the tower's interface, and differ in what the fields of their
adapters say. The experts of Qwen3-VL-MoE are three-dimensional parameters and no linear layers: LoRA adapts attention
(and the MLPs of layers without experts) and leaves experts and router alone; a full fine-tune trains all of them. The
router's load-balancing loss is not added.

Coordinate spaces: Qwen2-VL and Qwen3-VL were taught 0 ... 1000, Qwen2.5-VL pixels after the resize (their reports and
cookbooks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmrl.model.families import tiny_parts
from mmrl.model.families.family import Family, TowerShape

if TYPE_CHECKING:
    from mmrl.model.families.tiny_parts import TinySize

SMALL_PIXELS, LARGE_PIXELS = 12_845_056, 16_777_216
"""Largest picture by the published preprocessor_config.json of Qwen2-VL and Qwen2.5-VL, and of Qwen3-VL."""


@dataclass(frozen=True)
class QwenVL(Family):
    """What the tiny models of Qwen2-VL and Qwen2.5-VL share."""

    def tiny_processor(self, size: TinySize, tokenizer: Any) -> Any:
        """The processor of a tiny model."""
        from transformers import Qwen2VLVideoProcessor
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        grid = _grid(size)
        token = (2 * size.patch) ** 2
        image_size = {"shortest_edge": token, "longest_edge": size.max_image_tokens * token}
        frame_size = {"shortest_edge": token, "longest_edge": size.max_frame_tokens * token}
        return self._processor_class()(
            image_processor=Qwen2VLImageProcessor(size=image_size, **grid),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(
                size=frame_size, cap_pixels_per_frame=False, **grid
            ),
            chat_template=tiny_parts.CHAT_TEMPLATE,
        )

    def _processor_class(self) -> Any:
        from transformers import Qwen2_5_VLProcessor

        return Qwen2_5_VLProcessor

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model."""
        from transformers import Qwen2_5_VLConfig

        text = tiny_parts.text_config(size, ids, vocabulary)
        text["rope_parameters"]["mrope_section"] = tiny_parts.sections(
            _half(size), self.side_share
        )
        vision = tiny_parts.vision_config(size) | {
            "tokens_per_second": 2,
            "window_size": 8 * size.patch,
            "fullatt_block_indexes": list(range(size.vision_depth)),
        }
        return Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, **tiny_parts.token_ids(ids)
        )


@dataclass(frozen=True)
class Qwen2VL(QwenVL):
    """Its tower names its width `embed_dim`, and `hidden_size` what it hands over; its MLP is `mlp_ratio` as wide."""

    def shape(self, config: Any) -> TowerShape:
        """The tower in numbers."""
        vision = config.vision_config
        return TowerShape(
            depth=vision.depth,
            hidden=vision.embed_dim,
            intermediate=int(vision.embed_dim * vision.mlp_ratio),
            heads=vision.num_heads,
            patch=vision.patch_size,
            temporal=vision.temporal_patch_size,
            merge=vision.spatial_merge_size,
            channels=vision.in_channels,
        )

    def _processor_class(self) -> Any:
        from transformers import Qwen2VLProcessor

        return Qwen2VLProcessor

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model."""
        from transformers import Qwen2VLConfig

        text = tiny_parts.text_config(size, ids, vocabulary)
        text["rope_parameters"]["mrope_section"] = tiny_parts.sections(
            _half(size), self.side_share
        )
        vision = tiny_parts.vision_config(size)
        del vision["intermediate_size"], vision["out_hidden_size"]
        vision |= {
            "embed_dim": size.vision_hidden,
            "hidden_size": size.hidden,
            "mlp_ratio": 3,
        }
        return Qwen2VLConfig(
            text_config=text, vision_config=vision, **tiny_parts.token_ids(ids)
        )


@dataclass(frozen=True)
class Qwen3VL(Family):
    """Writes the time of each temporal patch of a clip, and hands deeper features to the first language layers."""

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model."""
        from transformers import Qwen3VLConfig

        text = self._tiny_text(size, ids, vocabulary)
        return Qwen3VLConfig(
            text_config=text,
            vision_config=self._tiny_vision(size),
            **tiny_parts.token_ids(ids),
        )

    def tiny_processor(self, size: TinySize, tokenizer: Any) -> Any:
        """The processor of a tiny model."""
        from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        grid = _grid(size)
        token = (2 * size.patch) ** 2
        image_size = {"shortest_edge": token, "longest_edge": size.max_image_tokens * token}
        half: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        # The limits count all frames of a clip, not one.
        most = 32 * size.max_frame_tokens * token
        clip_size = {"shortest_edge": 2 * token, "longest_edge": most}
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=image_size, **half, **grid),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(
                size=clip_size, cap_pixels_per_frame=False, **half, **grid
            ),
            chat_template=tiny_parts.CHAT_TEMPLATE,
        )

    def _tiny_text(
        self, size: TinySize, ids: Mapping[str, int], vocabulary: int
    ) -> dict[str, Any]:
        text = tiny_parts.text_config(size, ids, vocabulary)
        text["rope_parameters"] |= {
            "mrope_section": tiny_parts.sections(_half(size), self.side_share),
            "mrope_interleaved": True,
        }
        text["head_dim"] = size.hidden // size.heads
        return text

    def _tiny_vision(self, size: TinySize) -> dict[str, Any]:
        # After each quarter of the tower as in released models; one level goes into one language layer.
        quarters = {size.vision_depth * part // 4 for part in (1, 2, 3)}
        return tiny_parts.vision_config(size) | {
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": sorted(quarters)[: size.layers],
        }


@dataclass(frozen=True)
class Qwen3VLMoe(Qwen3VL):
    """Its MLPs are experts behind a router."""

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model: four experts, of which two answer."""
        from transformers import Qwen3VLMoeConfig

        text = self._tiny_text(size, ids, vocabulary) | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": size.hidden,
            "decoder_sparse_step": 1,
        }
        return Qwen3VLMoeConfig(
            text_config=text,
            vision_config=self._tiny_vision(size),
            **tiny_parts.token_ids(ids),
        )


def _half(size: TinySize) -> int:
    """Rotary frequencies of a head."""
    return size.hidden // size.heads // 2


def _grid(size: TinySize) -> dict[str, Any]:
    return {"patch_size": size.patch, "temporal_patch_size": 2, "merge_size": 2}


_QWEN2 = Qwen2VL(
    "qwen2_vl", "Qwen2-VL", space="thousand", side_share=3 / 8, max_pixels=SMALL_PIXELS
)
_QWEN2_5 = QwenVL(
    "qwen2_5_vl",
    "Qwen2.5-VL",
    space="resized",
    timed=True,
    side_share=3 / 8,
    max_pixels=SMALL_PIXELS,
)
_QWEN3 = Qwen3VL(
    "qwen3_vl",
    "Qwen3-VL",
    space="thousand",
    stamps=True,
    whole_clip=True,
    side_share=5 / 16,
    max_pixels=LARGE_PIXELS,
)
_QWEN3_MOE = replace(
    Qwen3VLMoe(**vars(_QWEN3)),
    model_type="qwen3_vl_moe",
    name="Qwen3-VL-MoE",
    left_out_of_lora="experts and router",
)
FAMILIES: tuple[Family, ...] = (_QWEN2, _QWEN2_5, _QWEN3, _QWEN3_MOE)
