"""What the tiny models of several families share: the chat template and the numbers of their configs.

Why the numbers are as they are is said in `mmrl.model.tiny`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROPE_THETA = 10.0
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class TinySize:
    """Widths and depths. The defaults give about half a million parameters."""

    hidden: int = 96
    """Width of the language model."""
    layers: int = 3
    """Blocks of the language model."""
    heads: int = 4
    """Query heads of the language model."""
    kv_heads: int = 2
    """Key/value heads of the language model."""
    intermediate: int | None = None
    """Width of the language model's MLP; None means three times `hidden`."""
    vision_hidden: int = 64
    """Width of the vision tower."""
    vision_depth: int = 1
    """Blocks of the vision tower."""
    vision_heads: int = 2
    """Heads of the vision tower."""
    patch: int = 8
    """Side of one patch in pixels; one visual token covers twice that in each direction."""
    max_image_tokens: int = 1024
    """Largest number of visual tokens of one image before the processor shrinks it."""
    max_frame_tokens: int = 256
    """Largest number of visual tokens of one pair of video frames before the processor shrinks it."""
    vocab_size: int | None = None
    """Rows of the embedding; None means as many as the tokenizer has. Must not be smaller than that."""
    merges: int = 300
    """Most byte-pair merges the tokenizer may learn."""
    initializer_range: float = 0.08
    """Standard deviation of the drawn weights."""

    def __post_init__(self) -> None:
        head, vision_head = self.hidden / self.heads, self.vision_hidden / self.vision_heads
        # Rotary positions turn pairs of numbers: on three axes in the language model, on two in the tower.
        rules = {
            f"hidden / heads is {head}": (
                head % 2 == 0 and head >= 8,
                "an even number of at least 8",
            ),
            f"heads / kv_heads is {self.heads / self.kv_heads}": (
                self.heads % self.kv_heads == 0,
                "a whole number",
            ),
            f"vision_hidden / vision_heads is {vision_head}": (
                vision_head % 4 == 0,
                "a multiple of 4",
            ),
            f"vocab_size is {self.vocab_size}": (
                self.vocab_size is None or self.vocab_size > 0,
                "positive or None",
            ),
        }
        for found, (fine, rule) in rules.items():
            if not fine:
                raise ValueError(
                    f"TinySize: {found}; it must be {rule}. Change one of the fields named."
                )


def text_config(size: TinySize, ids: Mapping[str, int], vocabulary: int) -> dict[str, Any]:
    """Numbers of the language model."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate or 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 32768,
        "initializer_range": size.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def vision_config(size: TinySize) -> dict[str, Any]:
    """Numbers of a Qwen tower."""
    return {
        "depth": size.vision_depth,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 3 * size.vision_hidden,
        "num_heads": size.vision_heads,
        "patch_size": size.patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": size.hidden,
        "initializer_range": size.initializer_range,
    }


def token_ids(ids: Mapping[str, int]) -> dict[str, Any]:
    """What the outer config of a Qwen model says besides its parts."""
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        # As in the smaller released models.
        "tie_word_embeddings": True,
    }


def sections(sides: int, share: float) -> list[int]:
    """Split `sides` (head_dim / 2) rotary frequencies among time, height and width; height and width get `share` each.

    3/8 gives the released [16, 24, 24] of Qwen2.5-VL for 64, 5/16 the [24, 20, 20] of Qwen3-VL. With few frequencies
    time gets two and the rest is shared, because a tiny model needs them to tell rows and columns apart.
    """
    side = round(sides * share) if sides >= 16 else (sides - 2) // 2
    return [sides - 2 * side, side, side]
