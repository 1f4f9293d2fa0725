"""The policy: a vision-language model that scores answers. The only user of transformers models and peft.

`score` runs packed rows (see `attention.py`, `batching.py`): a prompt once per group, pictures once (`features.py`),
the head on answer tokens only (see `logprobs.py`). The repeated computation of `repeated.py` is the reference and the
fallback (`shared=False`).

Choices: dropout is refused (the ratio of an unchanged policy would not be 1); the head and the embedding are never
adapted by LoRA (the tiled head reads their weights directly); positions are always passed explicitly.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.model import attention
from mmrl.model.load import (
    LoRA,
    Part,
    add_lora,
    freeze_parts,
    load_adapter,
    resolve_device,
    resolve_dtype,
)
from mmrl.model.logprobs import embed, head_divergence, head_scores
from mmrl.model.packing import Group, Stream, pack
from mmrl.model.processing import Encoded, Patches, PixelBudget, Processing
from mmrl.model.vision_cache import FeatureStore, VisualFeatures
from mmrl.model.visual_attention import token_saliency
from mmrl.types import Divergence, Prompt, Scores


@dataclass(frozen=True)
class Wanted:
    """What to compute of a branch."""

    entropy: bool = False
    divergence: Divergence | None = None
    grad: bool = False


class Policy:
    """Listens and learns."""

    def __init__(
        self, model: nn.Module, processing: Processing, *, shared: bool = True
    ) -> None:
        self.model = model
        self.processing = processing
        self.shared = shared
        self.version = 0
        """Grows with each optimizer step."""
        self.retain_vision = False
        """Keep the tower's graph of the next rollout, because its update uses the same weights."""
        self.vision_graph_limit = 2 * 2**30
        """Bytes that graphs of the tower may take before `retains` gives up `retain_vision`."""
        self.description: dict[str, Any] = {"source": getattr(model, "name_or_path", "")}
        """What a continued run must have in common with this one."""
        self.counters: Counter[str] = Counter()
        """Tokens and patches through each network since the trainer last looked."""
        self.features_store = FeatureStore()
        self._encoded: dict[str, tuple[Prompt, Encoded]] = {}
        self._saliency: dict[tuple[str, str], Tensor] = {}
        self._frozen_copy: nn.Module | None = None
        self._reference = False
        base = self.base
        name = attention.register()
        config = base.config.get_text_config()
        if getattr(config, "attention_dropout", 0.0):
            raise ValueError(
                f"The model has attention_dropout {config.attention_dropout}; set it to 0 for RL."
            )
        base.model.language_model.config._attn_implementation = name
        if type(base.lm_head) is not nn.Linear or base.lm_head.bias is not None:
            raise ValueError(
                f"The head is a {type(base.lm_head).__name__}; adapters on lm_head are not supported."
            )
        self.model.train()

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        lora: LoRA | None = None,
        freeze: Sequence[Part] = (),
        checkpointing: bool | None = None,
        budget: PixelBudget | None = None,
        shared: bool = True,
    ) -> Policy:
        """Load a folder or hub name. `device` "auto" is CUDA if there is one; `dtype` "auto" is bf16 there, else fp32.

        `checkpointing` recomputes activations in the backward; None turns it on above 500 M parameters.
        """
        from transformers import AutoModelForImageTextToText

        processing = Processing.load(source, budget or PixelBudget())
        where = resolve_device(device)
        kind = resolve_dtype(dtype, where)
        adapter = Path(source) / "adapter_config.json"
        if adapter.is_file():
            model = load_adapter(Path(source), kind)
        else:
            model = AutoModelForImageTextToText.from_pretrained(source, dtype=kind)
        torch.nn.Module.to(model, where)
        freeze_parts(model.get_base_model() if adapter.is_file() else model, freeze)  # type: ignore[operator]
        if lora is not None and lora.rank:
            if adapter.is_file():
                raise ValueError(
                    f"{source} is an adapter already, so LoRA.rank {lora.rank} would add a second one; "
                    "set it to 0 to train on, or merge the adapter first (policy.save(..., merge=True))."
                )
            model = add_lora(model, lora)
        policy = cls(model, processing, shared=shared)
        policy.description = {
            "source": str(source),
            "dtype": str(kind).removeprefix("torch."),
            "freeze": list(freeze),
            "lora": vars(lora) if lora is not None and lora.rank else None,
            "shared": shared,
        }
        size = sum(p.numel() for p in policy.base.parameters())
        if size > 500e6 if checkpointing is None else checkpointing:
            policy.enable_checkpointing()
        return policy

    @property
    def base(self) -> Any:
        """The transformers model, without the adapter's wrapper; the frozen copy inside `reference()`."""
        if self._reference and self._frozen_copy is not None:
            return self._frozen_copy
        unwrap = getattr(self.model, "get_base_model", None)
        return unwrap() if unwrap is not None else self.model

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "disable_adapter")

    @property
    def device(self) -> torch.device:
        return self.base.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.lm_head.weight.dtype

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trainable parameters with their names."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    @property
    def tower_trains(self) -> bool:
        """Does any weight of the vision tower or its merger change?"""
        return any(p.requires_grad for p in self.base.model.visual.parameters())

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward instead of storing them."""
        base = self.base
        if hasattr(base, "activation_checkpointing_enable"):
            base.activation_checkpointing_enable()
        else:
            base.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    def stepped(self) -> None:
        """The optimizer has changed the weights."""
        self.version += 1
        self.features_store.clear(keep=None if self.tower_trains else self._tower_version())

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Score with the starting weights: adapter off, or the copy made by `freeze_reference`."""
        if self._frozen_copy is None and not self.has_adapter:
            raise ValueError(
                "There is no reference: call policy.freeze_reference() before training, or use LoRA."
            )
        self._reference = True
        try:
            if self._frozen_copy is None:
                with self.model.disable_adapter():  # type: ignore[operator]
                    yield
            else:
                yield
        finally:
            self._reference = False

    def freeze_reference(self) -> None:
        """Keep a copy of the present weights as the reference; not needed with an adapter."""
        if self.has_adapter or self._frozen_copy is not None:
            return
        self._frozen_copy = copy.deepcopy(self.base).requires_grad_(False)

    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt as the model reads it; made once per prompt, until `forget_prompts`. Raises `BadRow`."""
        known = self._encoded.get(prompt.id)
        if known is None or known[0] is not prompt:
            known = (prompt, self.processing.encode(prompt))
            self._encoded[prompt.id] = known
        return known[1]

    def forget_prompts(self) -> None:
        """Drop the encoded prompts of the step."""
        self._encoded.clear()
        self._saliency.clear()

    def saliency(self, patches: Patches) -> Tensor:
        """Attention that each visual token of a medium receives in the tower, float32 [F', h, w] on the CPU."""
        key = (patches.key, self._tower_version())
        if key not in self._saliency:
            self.counters["patches/saliency"] += len(patches.values)
            values = patches.values.to(self.device, self.dtype)
            self._saliency[key] = token_saliency(
                self.base.model.visual, values, patches.grid
            ).cpu()
        return self._saliency[key]

    def features(self, patches: Sequence[Patches], grad: bool = False) -> list[VisualFeatures]:
        """Features of each medium, computed once per content and weights version."""
        grad = grad and self.tower_trains and not self._reference
        return self.features_store.get(self._tower, patches, self._tower_version(), grad)

    def retains(self, patches: Sequence[Patches]) -> bool:
        """Shall the tower keep its graph over these media? Gives up `retain_vision` when graphs would grow too large.

        A graph takes about 40 bytes per patch, block and hidden unit. It is counted with the graphs that are held.
        """
        if not (self.retain_vision and self.tower_trains):
            return False
        config = self.base.config.vision_config
        new = {item.key: len(item.values) for item in patches}
        count = (
            sum(new.values())
            + self.features_store.rows_in_graphs(new) * config.spatial_merge_size**2
        )
        if 40 * count * config.depth * config.hidden_size > self.vision_graph_limit:
            self.retain_vision = False
            self.features_store.drop_graphs()
        return self.retain_vision

    def hidden(self, groups: Sequence[Group], grad: bool) -> tuple[Tensor, Stream]:
        """Last hidden states [N, D] that predict the answer tokens of these groups, in one packed row."""
        stream = pack(groups, self.device)
        features = self.features([item for group in groups for item in group.visual], grad)
        with torch.set_grad_enabled(grad):
            states = self.language(
                stream.ids, stream.positions, stream.layout, stream.visual, features
            )
            self.counters["tokens/update" if grad else "tokens/score"] += len(stream.ids)
            self.counters["tokens/head"] += len(stream.tokens)
            return states[stream.predict], stream

    def language(
        self,
        ids: Tensor,
        positions: Tensor,
        layout: Any,
        visual: Tensor | None = None,
        features: Sequence[VisualFeatures] = (),
    ) -> Tensor:
        """The language model on one packed row: ids [S], positions [3, S] -> hidden states [S, D]."""
        base = self.base
        table = base.get_input_embeddings()
        rows = embed(table.weight, ids, table.padding_idx)
        extra: dict[str, Any] = {}
        if features:
            assert visual is not None
            merged = torch.cat([f.merged for f in features]).to(rows.dtype)
            rows = rows.index_copy(0, visual, merged)
            if features[0].deepstack:
                mask = torch.zeros(1, len(ids), dtype=torch.bool, device=ids.device)
                mask[0, visual] = True
                levels = range(len(features[0].deepstack))
                extra["visual_pos_masks"] = mask
                extra["deepstack_visual_embeds"] = [
                    torch.cat([f.deepstack[i] for f in features]) for i in levels
                ]
        out = base.model.language_model(
            inputs_embeds=rows[None],
            position_ids=positions[:, None],
            use_cache=False,
            layout=layout,
            **extra,
        )
        return out.last_hidden_state[0]

    def score(
        self,
        views: Mapping[str, Sequence[Group]],
        wanted: Mapping[str, Wanted],
        shape: tuple[int, int],
    ) -> dict[str, Scores]:
        """Scores [B, T] of the groups' answers under each view; a view with a divergence is held against "raw".

        The view "ref" is scored with the reference weights.

        `shape` is (B, T) of the batch the rows and columns refer to; entries without a token are 0.
        """
        own_weight = self.base.lm_head.weight
        out: dict[str, Scores] = {}
        kept: tuple[Tensor, Stream] | None = None
        against_raw = any(w.divergence for w in wanted.values())
        order = sorted(wanted, key=lambda name: name != "raw")
        for name in order:
            want = wanted[name]
            with self.reference() if name == "ref" else nullcontext():
                states, stream = self.hidden(views[name], want.grad)
                weight = self.base.lm_head.weight
            if name == "raw" and against_raw:
                kept = (states, stream)
            place = lambda x, s=stream: _scatter(x, s, shape)  # noqa: E731
            with torch.set_grad_enabled(
                want.grad or (want.divergence is not None and wanted["raw"].grad)
            ):
                if want.divergence is None:
                    logp, entropy = head_scores(
                        states, weight, stream.tokens, stream.temperature, want.entropy
                    )
                    out[name] = Scores(place(logp), None if entropy is None else place(entropy))
                    continue
                assert kept is not None, "an exact divergence needs the raw view"
                raw, raw_stream = kept
                same = align(raw_stream, stream)
                _, _, logp, entropy, divergence = head_divergence(
                    raw[same],
                    own_weight,
                    states,
                    weight,
                    stream.tokens,
                    want.divergence,
                    stream.temperature,
                )
                out[name] = Scores(
                    place(logp), place(entropy) if want.entropy else None, place(divergence)
                )
        return out

    def backward_vision(self) -> None:
        """Finish the backward pass: gradients that collected on visual features go through the tower once."""
        self.features_store.backward()

    def save(self, folder: Path, *, merge: bool = False) -> None:
        """Write a Hugging Face folder (weights or adapter, processor). `merge` folds an adapter into the weights.

        An adapter's folder holds the config of its base model too, so that `load` takes it.
        """
        model = self.model
        if merge and self.has_adapter:
            model = copy.deepcopy(self.model).merge_and_unload()  # type: ignore[operator]
        model.save_pretrained(str(folder))  # type: ignore[operator]
        self.processing.processor.save_pretrained(str(folder))
        self.base.config.save_pretrained(str(folder))
        self.base.generation_config.save_pretrained(str(folder))

    def _tower_version(self) -> str:
        if not self.tower_trains:
            return "frozen"
        return "reference" if self._reference else f"step {self.version}"

    def _tower(self, patches: Sequence[Patches]) -> list[VisualFeatures]:
        visual = self.base.model.visual
        where, kind = self.device, self.dtype
        values = torch.cat([p.values for p in patches]).to(where, kind)
        grid = torch.tensor([p.grid for p in patches], dtype=torch.long, device=where)
        self.counters["patches/tower"] += len(values)
        found = visual(values, grid_thw=grid, return_dict=True)
        sizes = [p.tokens for p in patches]
        merged = torch.split(found.pooler_output, sizes)
        levels = [
            torch.split(level, sizes)
            for level in getattr(found, "deepstack_features", None) or ()
        ]
        return [
            VisualFeatures(merged[i], tuple(level[i] for level in levels))
            for i in range(len(patches))
        ]


def align(first: Stream, second: Stream) -> Tensor | slice:
    """Order that brings the tokens of the first stream into the order of the second."""
    if torch.equal(first.rows, second.rows) and torch.equal(first.columns, second.columns):
        return slice(None)
    width = int(max(first.columns.max(), second.columns.max())) + 1
    a, b = first.rows * width + first.columns, second.rows * width + second.columns
    order = torch.argsort(a)
    found = order[torch.searchsorted(a[order], b)]
    assert torch.equal(a[found], b), "the two views hold different answers"
    return found


def _scatter(values: Tensor, stream: Stream, shape: tuple[int, int]) -> Tensor:
    """[N] -> [B, T]."""
    flat = values.new_zeros(shape[0] * shape[1])
    return flat.index_copy(0, stream.rows * shape[1] + stream.columns, values).view(shape)
