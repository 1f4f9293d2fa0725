"""Qwen3.5 and Qwen3.6, dense and as a mixture of experts: hybrids of linear and full attention.

Three of four layers have linear attention, which carries a state; how they read a packed row is said in
`mmrl.model.linear_attention`. The rest is Qwen3-VL without DeepStack: the same placeholders, time stamps, tower and
positions, which turn a quarter of each head. Qwen3.6 checkpoints have the same `model_type`.

The chat template opens the answer's thought in the prompt (`<think>`), or with `--load.thinking off` closes it there
again; what an answer's text begins with is said in `mmrl.model.processing`. LoRA adapts attention of both kinds, MLPs
and shared experts; convolutions, decays and routed experts are no linear layers. Weights of the multi-token prediction
(`mtp.*`) are ignored when a checkpoint is loaded, and not saved. No loss that balances experts is added.

Coordinates are taken to count 0 ... 1000 as in Qwen3-VL; the maintainers say so of the successor (QwenLM/Qwen3.8-
Flash-Next issue 4). No released weights have been run by us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmrl.model.families import tiny_parts
from mmrl.model.families.qwen import LARGE_PIXELS, Qwen3VL

if TYPE_CHECKING:
    from mmrl.model.families.tiny_parts import TinySize

LAYER = r".*language_model\.layers\.\d+\."
LORA = (
    LAYER + r"(self_attn|mlp|mlp\.shared_expert)\.(q|k|v|o|gate|up|down)_proj"
    "|" + LAYER + r"linear_attn\.(in_proj_qkv|in_proj_z|in_proj_a|in_proj_b|out_proj)"
)
THINKING = (
    "{%- if add_generation_prompt -%}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\n\n</think>\n\n' -}}"
    "{%- else -%}{{- '<think>\n' -}}{%- endif -%}"
    "{%- endif -%}"
)
"""End of the tiny models' chat template: as the released ones do, it opens the thought."""


@dataclass(frozen=True)
class Qwen35(Qwen3VL):
    """A hybrid of linear and full attention."""

    def prepare(self, base: Any) -> None:
        """Exchange in a loaded model what the core computes by itself."""
        from mmrl.model.linear_attention import readable_kinds

        super().prepare(base)
        readable_kinds(self.text_model(base), base)

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model."""
        from transformers import Qwen3_5Config

        return Qwen3_5Config(
            text_config=self._tiny_text(size, ids, vocabulary),
            vision_config=self._tiny_vision(size),
            **tiny_parts.token_ids(ids),
        )

    def tiny_weights(self, model: Any) -> None:
        """Weights that remember: the library's own first ones forget the state within a token or two."""
        import torch

        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("A_log"):
                    weight.copy_(torch.empty_like(weight).uniform_(0.01, 1).log())
                elif name.endswith("dt_bias"):
                    weight.uniform_(-3, -1)

    def tiny_processor(self, size: TinySize, tokenizer: Any) -> Any:
        """The processor of a tiny model."""
        processor = super().tiny_processor(size, tokenizer)
        processor.chat_template = tiny_parts.CHAT_TEMPLATE + THINKING
        return processor

    def _tiny_text(
        self, size: TinySize, ids: Mapping[str, int], vocabulary: int
    ) -> dict[str, Any]:
        text = super()._tiny_text(size, ids, vocabulary)
        # Released models turn a quarter of each head; here half, as far as that is a whole number of pairs.
        part = 0.5 if text["head_dim"] % 4 == 0 else 1.0
        pairs = int(text["head_dim"] * part) // 2
        text["rope_parameters"] |= {
            "partial_rotary_factor": part,
            "mrope_section": tiny_parts.sections(pairs, share=5 / 16),
        }
        return text | {
            # Every fourth layer has full attention, and the last one, so that a small model has both kinds.
            "layer_types": [
                "full_attention"
                if (i + 1) % 4 == 0 or i + 1 == size.layers
                else "linear_attention"
                for i in range(size.layers)
            ],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        }

    def _tiny_vision(self, size: TinySize) -> dict[str, Any]:
        return tiny_parts.vision_config(size) | {"num_position_embeddings": 64}


@dataclass(frozen=True)
class Qwen35Moe(Qwen35):
    """Its MLPs are experts behind a router, and one expert that all tokens share."""

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model: four experts, of which two answer."""
        from transformers import Qwen3_5MoeConfig

        text = self._tiny_text(size, ids, vocabulary)
        del text["intermediate_size"]
        text |= {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": size.hidden,
            "shared_expert_intermediate_size": size.hidden,
        }
        return Qwen3_5MoeConfig(
            text_config=text,
            vision_config=self._tiny_vision(size),
            **tiny_parts.token_ids(ids),
        )


_DENSE = Qwen35(
    "qwen3_5",
    "Qwen3.5",
    space="thousand",
    stamps=True,
    whole_clip=True,
    max_pixels=LARGE_PIXELS,
    lora=LORA,
    rounds_to_fp32=True,
)
FAMILIES = (
    _DENSE,
    replace(
        Qwen35Moe(**vars(_DENSE)),
        model_type="qwen3_5_moe",
        name="Qwen3.5-MoE",
        left_out_of_lora="routed experts and router",
    ),
)
