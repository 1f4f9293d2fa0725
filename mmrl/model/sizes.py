"""What a model takes: parameters, and bytes per token and per patch, asked of the model itself without its weights.

The model is built on torch's meta device, frozen and adapted by the functions that a real load uses, and one layer of
the language model and one block of the tower are run there: what autograd would keep is counted, not derived.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.model.families import Family, TowerShape, families, family_of
from mmrl.model.load import LoRA, Part, add_lora, freeze_parts
from mmrl.model.policy import LARGE
from mmrl.model.recurrent_row import carried_bytes
from mmrl.model.released import UnknownModel, config_of, max_pixels_of
from mmrl.model.row_layout import example_layout

COUNTED = "mmrl_counted"
"""Name under which the experts below are known to transformers."""
ASKED = 64
"""Tokens or patches of the row by which bytes per token are counted."""


@dataclass(frozen=True)
class Sizes:
    """A model as memory sees it. Bytes are those of the format in which it computes."""

    itemsize: int
    """Bytes of one number."""
    parameters: int
    """All of them, adapters included; a tied head counts once."""
    trainable: int
    tower: int
    """Parameters of the vision tower with its merger, adapters included."""
    tower_trainable: int
    """Those of them that learn."""
    language: int
    """Parameters of the language model's layers."""
    active: int
    """Those of them that one token reads: of the experts only as many as answer."""
    largest: int
    """Parameters of the largest unit: a layer, the embedding or the head."""
    layers: int
    hidden: int
    """Width of the language model."""
    intermediate: int
    """Width of its MLP, of all experts that answer together."""
    keys_values: int
    """Numbers of keys and values together, per token and layer; the mean of all layers, of which some have none."""
    carried: int
    """Bytes that layers of linear attention carry per sequence, all of them together, however long it is."""
    vocabulary: int
    layer_graph: int
    """Bytes that autograd keeps per token and layer; 0 if nothing upstream learns."""
    depth: int
    """Blocks of the vision tower."""
    tower_hidden: int
    tower_intermediate: int
    block_graph: int
    """Bytes that autograd keeps per patch and block; 0 if the tower is frozen."""
    patch_numbers: int
    """Numbers of one patch as it comes from the processor."""
    token_side: int
    """Pixels per side of one visual token."""
    merge: int
    """Patches per side of one visual token."""
    deepstack: int
    """Levels of features besides the last."""
    tile: int
    """Pixels per side of the squares that a tower of fixed size reads, else 0."""
    square_tokens: int
    """Visual tokens of such a square, or of a frame of a clip."""
    max_pixels: int
    """Largest picture of the checkpoint's own processor."""

    @property
    def checkpoints(self) -> bool:
        """Does a load turn checkpointing on unless it is told otherwise?"""
        return self.parameters > LARGE

    def visual_tokens(self, pixels: int) -> int:
        """Visual tokens of a picture of so many pixels; none without a tower."""
        if not self.depth:
            return 0
        if not self.tile:
            return max(1, pixels // self.token_side**2)
        squares = max(1, pixels // self.tile**2)
        # The square of the whole follows several tiles.
        squares += squares > 1
        return squares * self.square_tokens


@lru_cache(maxsize=64)
def sizes_of(
    source: str | Path,
    dtype: torch.dtype,
    freeze: tuple[Part, ...] = (),
    lora: LoRA = LoRA(),
) -> Sizes:
    """Sizes of the model of a folder or hub name; nothing is loaded or downloaded. Raises `UnknownModel`."""
    config = config_of(source)
    adapter = Path(source) / "adapter_config.json"
    if adapter.is_file():
        lora = LoRA(rank=int(json.loads(adapter.read_text())["r"]))
    found = sizes(config, dtype, freeze, lora)
    return replace(found, max_pixels=max_pixels_of(source, config.model_type))


def sizes(config: Any, dtype: torch.dtype, freeze: Sequence[Part], lora: LoRA) -> Sizes:
    """Sizes of the model that a config describes, with these parts frozen and these adapters."""
    if config.model_type not in families():
        raise UnknownModel(
            f"Memory is planned for models of the families {', '.join(families())}; this one is {config.model_type!r}."
        )
    family = family_of(config.model_type)
    model, whole = _without_weights(config, dtype, freeze, lora)
    text, tower = config.get_text_config(), family.shape(config)
    layers = family.text_model(model).layers
    with_keys = sum(hasattr(layer, "self_attn") for layer in layers)
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tower_learns = any(p.requires_grad for p in family.tower_parameters(model))
    fed = tower_learns or embedding.requires_grad
    return Sizes(
        itemsize=dtype.itemsize,
        parameters=_count(whole.parameters()),
        trainable=_count(p for p in whole.parameters() if p.requires_grad),
        tower=_count(family.tower_parameters(model)),
        tower_trainable=_count(p for p in family.tower_parameters(model) if p.requires_grad),
        language=_count(layers.parameters()),
        active=_active(layers, text),
        largest=max(*(_count(x.parameters()) for x in layers), embedding.numel(), head.numel()),
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=_mlp_width(text),
        keys_values=-(-2 * text.num_key_value_heads * width * with_keys // len(layers)),
        carried=carried_bytes(text, dtype.itemsize),
        vocabulary=len(head),
        layer_graph=_mean_graph(layers, text.hidden_size, width, dtype, fed),
        depth=tower.depth,
        tower_hidden=tower.hidden,
        tower_intermediate=tower.intermediate,
        block_graph=_block_graph(family, model, tower, dtype),
        patch_numbers=tower.patch_numbers,
        token_side=tower.patch * tower.merge,
        merge=tower.merge,
        deepstack=tower.levels,
        tile=tower.tile,
        square_tokens=tower.square_tokens,
        max_pixels=family.max_pixels,
    )


def _without_weights(
    config: Any, dtype: torch.dtype, freeze: Sequence[Part], lora: LoRA
) -> tuple[Any, nn.Module]:
    """The model on the meta device, alone and with its adapters."""
    family = family_of(config.model_type)
    # A copy, for a model keeps its config; ours would find its attention exchanged.
    config = copy.deepcopy(config)
    with torch.device("meta"):
        model: Any = family.model_class().from_config(config, dtype=dtype)
    freeze_parts(model, freeze)
    family.prepare(model)
    text = family.text_model(model).config
    if getattr(text, "num_experts", 0):
        from transformers.integrations.moe import ExpertsInterface

        ExpertsInterface.register(COUNTED, _equal_shares)
        text._experts_implementation = COUNTED
    with torch.device("meta"):
        whole = add_lora(model, lora) if lora.rank else model
    # peft gives adapters the format of their base, but not on this device.
    whole.to(dtype)
    return model, whole


def _mlp_width(text: Any) -> int:
    """Hidden numbers of an MLP for one token."""
    if not getattr(text, "num_experts", 0):
        return text.intermediate_size
    shared = getattr(text, "shared_expert_intermediate_size", 0)
    return text.num_experts_per_tok * text.moe_intermediate_size + shared


def _active(layers: nn.Module, text: Any) -> int:
    """Parameters of the layers that one token reads."""
    experts = _count(p for name, p in layers.named_parameters() if ".experts." in name)
    if not experts:
        return _count(layers.parameters())
    idle = experts - experts * text.num_experts_per_tok // text.num_experts
    return _count(layers.parameters()) - idle


def _equal_shares(experts: Any, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Experts [E, 2I, D] and [E, D, I] on rows [N, D] as if the first answered all: on the meta device none is chosen.

    What is kept for a backward has the sizes that the library's grouped product keeps: it works row by row.
    """
    count = chosen.shape[-1]
    rows = states[chosen.reshape(-1).argsort() // count]
    opened = experts._apply_gate(rows @ experts.gate_up_proj[0].T)
    closed = opened @ experts.down_proj[0].T
    weighed = closed * weights.reshape(-1)[:, None]
    return weighed.view(len(states), count, -1).sum(1).to(states.dtype)


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _mean_graph(
    layers: Sequence[Any], hidden: int, width: int, dtype: torch.dtype, fed: bool
) -> int:
    """Bytes per token that a layer of the language model keeps for its backward, the mean of all layers."""
    # Layers with the same weights keep the same; a hybrid model has two kinds.
    alike: dict[tuple[str, ...], list[Any]] = {}
    for layer in layers:
        names = tuple(name for name, _ in layer.named_parameters())
        alike.setdefault(names, []).append(layer)
    total = sum(
        len(same) * _layer_graph(same[0], hidden, width, dtype, fed) for same in alike.values()
    )
    return -(-total // len(layers))


def _layer_graph(layer: Any, hidden: int, width: int, dtype: torch.dtype, fed: bool) -> int:
    """Bytes per token that a layer of the language model keeps for its backward."""
    rows = torch.empty(1, ASKED, hidden, dtype=dtype, device="meta")
    # Behind the first layer rows need a gradient as soon as any layer learns.
    rows.requires_grad_(fed or any(p.requires_grad for p in layer.parameters()))
    angles = torch.empty(1, ASKED, width, dtype=dtype, device="meta")
    layout = example_layout((ASKED,), ((),))
    return _kept(
        layer,
        lambda: layer(
            rows, position_embeddings=(angles, angles), attention_mask=None, layout=layout
        ),
    )


def _block_graph(family: Family, model: Any, tower: TowerShape, dtype: torch.dtype) -> int:
    """Bytes per patch that a block of the tower keeps for its backward; 0 without a tower."""
    if not tower.depth:
        return 0
    block = family.blocks(model)[0]
    rows = torch.empty(ASKED, tower.hidden, dtype=dtype, device="meta")
    rows.requires_grad_(any(p.requires_grad for p in block.parameters()))
    width = tower.hidden // tower.heads
    angles = torch.empty(ASKED, width, dtype=dtype, device="meta")
    return _kept(block, lambda: family.run_block(block, rows, angles))


def _kept(module: nn.Module, run: Callable[[], object]) -> int:
    """Bytes per row that autograd keeps of one run, weights not counted."""
    held: dict[int, Tensor] = {}
    own = {_storage(p) for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        # Held, so that no other storage can get the same name.
        if _storage(tensor) not in own:
            held[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(x.untyped_storage().nbytes() for x in held.values()) // ASKED


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
