"""Qwen2 and Qwen3 without eyes: the degenerate case. Prompts of text train like any other, media are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl.model.families import tiny_parts
from mmrl.model.families.family import Family, TowerShape

if TYPE_CHECKING:
    from mmrl.model.families.tiny_parts import TinySize

# Written as templates of language models are: a message's content is a string.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


class TextProcessor:
    """A tokenizer in the place of a processor."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages: Any, **settings: Any) -> Any:
        """As the tokenizer's, also for messages in parts, whose texts are joined."""
        return self.tokenizer.apply_chat_template([_joined(m) for m in messages], **settings)

    def save_pretrained(self, folder: str) -> Any:
        """Write the tokenizer."""
        return self.tokenizer.save_pretrained(folder)


def _joined(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return {**message, "content": content}


@dataclass(frozen=True)
class Text(Family):
    """A language model alone: it is its own base, and there is no tower."""

    def model_class(self) -> Any:
        """The class of transformers that loads such a model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def processor(self, source: Any) -> Any:
        """The tokenizer, dressed as a processor."""
        from transformers import AutoTokenizer

        return TextProcessor(AutoTokenizer.from_pretrained(source))

    def placeholder_ids(self, config: Any) -> Mapping[str, int]:
        """None."""
        return {}

    def pixel_rules(self, processor: Any, config: Any) -> None:
        """None."""

    def shape(self, config: Any) -> TowerShape:
        """No tower."""
        return TowerShape()

    def tiny_config(self, size: TinySize, ids: Mapping[str, int], vocabulary: int) -> Any:
        """The config of a tiny model."""
        from transformers import AutoConfig

        text = tiny_parts.text_config(size, ids, vocabulary)
        if self.model_type == "qwen3":
            text["head_dim"] = size.hidden // size.heads
        return AutoConfig.for_model(self.model_type, **text, tie_word_embeddings=True)

    def tiny_processor(self, size: TinySize, tokenizer: Any) -> Any:
        """The tokenizer with a template for strings."""
        tokenizer.chat_template = CHAT_TEMPLATE
        return TextProcessor(tokenizer)


def _text(model_type: str, name: str) -> Text:
    return Text(
        model_type,
        name,
        sees=(),
        axes=1,
        tower_path="",
        text_path="model",
        tower_layers="",
        lora=r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
        saliency=False,
    )


FAMILIES: tuple[Family, ...] = (_text("qwen2", "Qwen2"), _text("qwen3", "Qwen3"))
