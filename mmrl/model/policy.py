"""The policy: a vision-language model with its processing, its reference and the counters of what it has computed.

How a model comes into memory is in `load.py`, what happens to pictures in `vision_cache.py` (`policy.vision`), how
answers are scored in `scoring.py`; together with these two it is the only user of transformers models.

Choices: dropout is refused (the ratio of an unchanged policy would not be 1); the head and the embedding are never
adapted by LoRA (the tiled head reads their weights directly); positions are always passed explicitly.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mmrl.model.adapter_folder import complete
from mmrl.model.budget import Budget
from mmrl.model.encoded import Encoded
from mmrl.model.families import Family
from mmrl.model.folders import refuse_nonfinite, written
from mmrl.model.load import (
    LoRA,
    Part,
    adapted_like,
    load_model,
    resolve_device,
    resolve_dtype,
)
from mmrl.model.logprobs import embed, logits
from mmrl.model.open_prompts import OpenPrompts
from mmrl.model.packing import pack
from mmrl.model.patches import Patches
from mmrl.model.processing import PixelBudget, Processing
from mmrl.model.ranks import Ranks
from mmrl.model.row_layout import Layout
from mmrl.model.sharding import (
    Lent,
    Shard,
    Shards,
    bring,
    cut_bytes,
    filler,
    lend,
    mesh_of,
)
from mmrl.model.tags import TagMode
from mmrl.model.thinking import ThinkingMode
from mmrl.model.vision_cache import VisionCache
from mmrl.model.vision_tower import VisionTower, VisualFeatures, insert_features
from mmrl.types import Prompt

LARGE = 500e6
"""Parameters above which activations are recomputed, and prompts read ahead, unless the caller says otherwise."""


class Policy:
    """A model that scores answers and learns. `load` makes one from a folder or hub name."""

    def __init__(
        self, model: nn.Module, processing: Processing, *, shared: bool = True
    ) -> None:
        self.model = model
        self.processing = processing
        self.shared = shared
        self.version = 0
        """Grows with each optimizer step."""
        self.engine: Any = None
        """How answers shall be sampled, if not by the policy itself (`rollouts.choosing.EngineChoice`)."""
        self.workers = 0
        """Processes that read and encode prompts ahead of their step (`preparing.py`)."""
        self.offload_reference = False
        """Shall `freeze_reference` keep its copy of the layers on the CPU?"""
        self.description: dict[str, Any] = {"source": getattr(model, "name_or_path", "")}
        """What a continued run must have in common with this one."""
        self.counters: Counter[str] = Counter()
        """Tokens and patches through each network since the trainer last looked."""
        self.in_reference = False
        """Are the reference weights in use now? Set by `reference`."""
        self.vision = VisionCache(
            VisionTower(self),
            self._encode,
            budget=lambda: self.budget,
            counters=self.counters,
        )
        """Owner of encoded prompts and of features of pictures."""
        self.prompts = OpenPrompts(self)
        """Owner of prompts that are run once for several rows of answers."""
        self.memory: int | None = None
        """Bytes that work may take beside weights and optimizer; None: of what is free when it begins."""
        self.expected: Callable[[], int] = lambda: 0
        """Bytes that gradients and the optimizer are still to take."""
        self._budget: Budget | None = None
        self.ranks = Ranks.alone()
        """The processes that train this policy together; set by `shard`."""
        self.how_to_shard: Shard = "auto"
        """What `shard` does unless told otherwise."""
        self._frozen_copy: nn.Module | None = None
        self._shards: Shards | None = None
        self._refuse_unfit()
        self.family.prepare(self.base)
        self._lent = {False: lend(self.base)}
        """Embedding and head: of the policy, and of its frozen copy (True)."""
        self._home = self.device
        """Where the model shall compute; `shard` brings it there."""
        # Also for sampling: layers that act differently in evaluation would sample from another model than is trained.
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
        offload_reference: bool = False,
        tags: TagMode = "auto",
        shard: Shard = "auto",
        thinking: ThinkingMode = "auto",
    ) -> Policy:
        """Load a folder or hub name. `device` "auto" is CUDA if there is one; `dtype` "auto" is bf16 there, else fp32.

        `checkpointing` recomputes activations in the backward; None turns it on above 500 M parameters. `tags`: how
        tags such as `<think>` are read that the tokenizer has as one token (`tags.py`); `thinking`: the chat template's
        switch (`thinking.py`). `shard`: how several processes will share the weights; they wait on the CPU for
        `Policy.shard`, so that no device must hold them all.
        """
        processing = Processing.load(source, budget or PixelBudget(), tags, thinking)
        ranks = Ranks.here()
        home = resolve_device(device, ranks.local_world)
        kind = resolve_dtype(dtype, home)
        adapters = lora if lora is not None and lora.rank else None
        waits = ranks.several and shard != "off"
        model = load_model(
            source, torch.device("cpu") if waits else home, kind, freeze, adapters
        )
        policy = cls(model, processing, shared=shared)
        policy.how_to_shard, policy._home = shard, home
        policy.offload_reference = offload_reference
        policy._look_at_tags()
        policy.description = {
            "source": str(source),
            "dtype": str(kind).removeprefix("torch."),
            "freeze": list(freeze),
            "lora": None if adapters is None else vars(adapters),
            "shared": shared,
            "device": home.type,
            "pixels": {} if budget is None else budget.chosen(),
        }
        # Only what is out of the ordinary, so that runs which it does not concern can be continued as before.
        if tags != "auto":
            policy.description["tags"] = tags
        if thinking != "auto":
            policy.description["thinking"] = thinking
        if policy.processing.tags.plain:
            policy.description["plain_tags"] = list(policy.processing.tags.plain)
        if checkpointing or (checkpointing is None and policy.is_large):
            policy.enable_checkpointing()
        return policy

    @property
    def base(self) -> Any:
        """The transformers model, without the adapter's wrapper; the frozen copy inside `reference()`."""
        if self.in_reference and self._frozen_copy is not None:
            return self._frozen_copy
        unwrap = getattr(self.model, "get_base_model", None)
        return unwrap() if unwrap is not None else self.model

    @property
    def family(self) -> Family:
        """What is particular to models of this kind."""
        return self.processing.family

    @property
    def text_model(self) -> Any:
        """The language model of `base`, without its head."""
        return self.family.text_model(self.base)

    @property
    def has_adapter(self) -> bool:
        """Are there adapters, without which the model is its own reference?"""
        return hasattr(self.model, "disable_adapter")

    @property
    def is_large(self) -> bool:
        """Is it so large that what saves memory or time pays?"""
        return sum(p.numel() for p in self.base.parameters()) > LARGE

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format in which it computes; shards of trained weights are kept in fp32."""
        return self.head.weight.dtype if self._shards is None else self._shards.compute

    @property
    def table(self) -> Lent:
        """Lends the embedding's weight [V, D] of the weights in use; the one way to read it."""
        return self._lent_now[0]

    @property
    def head(self) -> Lent:
        """The same for the head's weight [V, D]."""
        return self._lent_now[1]

    @property
    def _lent_now(self) -> tuple[Lent, Lent]:
        return self._lent[self.in_reference and self._frozen_copy is not None]

    @property
    def budget(self) -> Budget:
        """What work may hold on the device; decided when it is first asked for, and kept."""
        if self._budget is None:
            given, device = self.memory, self.device
            auto = given is None
            self._budget = Budget.auto(device, self.expected()) if auto else Budget.of(given)
        return self._budget

    @property
    def context(self) -> int:
        """Tokens that the model can read, prompt and answer together."""
        return self.base.config.get_text_config().max_position_embeddings

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trainable parameters with their names."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward instead of storing them."""
        base = self.base
        # The name depends on the version of transformers.
        if hasattr(base, "activation_checkpointing_enable"):
            base.activation_checkpointing_enable()
        else:
            base.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    def end_part(self, following: Sequence[Patches] = ()) -> None:
        """Call after the backward of one part of an update: finishes what no later part needs.

        `following`: media that the next part shows as well.
        """
        self.prompts.end_part()
        # Not before the prompts: their backward still adds to the gradients of the pictures' features.
        if not self.prompts.waiting:
            self.vision.end_part(following)

    def stepped(self) -> None:
        """The optimizer has changed the weights."""
        self.version += 1
        self.vision.stepped()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Score with the starting weights: adapter off, or the copy made by `freeze_reference`."""
        if self._frozen_copy is None and not self.has_adapter:
            raise ValueError(
                "There is no reference: call policy.freeze_reference() before training, or use LoRA."
            )
        self.in_reference = True
        # A frozen copy is a model of its own, so the adapter (if any) need not be touched.
        own = self._frozen_copy is None
        try:
            with self.model.disable_adapter() if own else nullcontext():  # type: ignore[operator]
                yield
        finally:
            self.in_reference = False

    def freeze_reference(self) -> None:
        """Keep a copy of the present weights as the reference; not needed with an adapter.

        With `offload_reference` the copy's layers lie in the CPU's memory and come to the device for their turn.
        """
        if self.has_adapter or self._frozen_copy is not None:
            return
        offload = self.offload_reference
        layers = list(self.text_model.layers) if offload else []
        # Given to deepcopy as copied already: the device never holds a second set of them, not for a moment.
        away = {id(p): p.detach().to("cpu", copy=True) for x in layers for p in x.parameters()}
        memo = {key: nn.Parameter(p, requires_grad=False) for key, p in away.items()}
        frozen = copy.deepcopy(self.base, memo).requires_grad_(False)
        if offload:
            for layer in self.family.text_model(frozen).layers:
                cpu_offload(layer, execution_device=self.device)
        self._frozen_copy = frozen
        self._lent[True] = lend(frozen)

    def shard(self, ranks: Ranks, how: Shard | None = None) -> None:
        """Let several processes train this policy: its language model is cut over them (`sharding.py`).

        All of them call it, after `freeze_reference` and before there is an optimizer; None does as `load` was told.
        Raises ValueError.
        """
        self.ranks = ranks
        mesh = mesh_of(ranks, how or self.how_to_shard, self._home.type, self._cut_bytes())
        if mesh is None:
            self._bring_home()
            return
        if not self.shared:
            raise ValueError(
                "--load.shared False scores answers one by one, a different number on each device, which sharded "
                "weights do not allow; use --load.shard off, or --load.shared True."
            )
        shards = Shards(mesh, self.dtype)
        shards.add(
            self.family.text_model(self.base), self._lent_now, frozen=False, on_cpu=False
        )
        if self._frozen_copy is not None:
            self._shard_reference(shards)
        self._shards = shards
        self._bring_home()
        self._call_all_units()

    @property
    def sharded(self) -> bool:
        """Are its weights cut over several processes? Then all of them call the same units in the same order."""
        return self._shards is not None

    def whole(self) -> AbstractContextManager[None]:
        """Inside, this process holds all weights and may sample and score alone. All processes enter it together."""
        return nullcontext() if self._shards is None else self._shards.whole()

    def forget_calls(self) -> None:
        """After an update that broke off: sharded weights are in their place again."""
        if self._shards is not None:
            self._shards.forget_calls()

    def _cut_bytes(self) -> int:
        """Bytes of all that shards hold together."""
        weights = {*self.text_model.parameters(), self.head.weight}
        learning = sum(p.numel() for p in weights if p.requires_grad)
        resting = sum(p.numel() for p in weights if not p.requires_grad)
        return cut_bytes(learning, resting, self.dtype.itemsize)

    def _shard_reference(self, shards: Shards) -> None:
        frozen: Any = self._frozen_copy
        # What brings layers from the CPU one by one; the shards have their own way to do it.
        for layer in self.family.text_model(frozen).layers:
            remove_hook_from_module(layer, recurse=True)
        offload = self.offload_reference
        shards.add(
            self.family.text_model(frozen), self._lent[True], frozen=True, on_cpu=offload
        )

    def _bring_home(self) -> None:
        """Move what does not lie where the model computes yet."""
        bring(self.model, self._home)
        if self._frozen_copy is not None:
            bring(self._frozen_copy, self._home)

    @torch.no_grad()
    def _call_all_units(self) -> None:
        """A first forward of everything, for a unit that never ran cannot be reset."""
        row = pack([filler()], self.device)
        frozen = self._frozen_copy is not None
        for reads in (nullcontext(), self.reference()) if frozen else (nullcontext(),):
            with reads:
                states = self.language(row.ids, row.positions, row.layout, row.visual, ())
                self.head(_head_logits, states)

    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt as the model reads it; made once per step. Raises `BadRow`."""
        return self.vision.encoded(prompt)

    def language(
        self,
        ids: Tensor,
        positions: Tensor,
        layout: Layout,
        visual: Tensor,
        features: Sequence[VisualFeatures],
    ) -> Tensor:
        """The language model on one packed row: ids [S], positions [3, S] -> hidden states [S, D].

        `visual` (long [n]) are the places of the visual tokens, `features` what stands there, medium by medium.
        """
        padding = self.base.get_input_embeddings().padding_idx
        # Not the table's own call: its backward would make a second vocabulary x hidden tensor.
        rows = self.table(embed, ids, padding)
        rows, deepstack = insert_features(rows, visual, features)
        out = self.text_model(
            inputs_embeds=rows[None],
            position_ids=self.family.position_ids(positions),
            use_cache=False,
            layout=layout,
            **self.family.without_mask(rows),
            **deepstack,
        )
        return out.last_hidden_state[0]

    def save(self, folder: Path, *, merge: bool = False, card: str = "") -> None:
        """Write a Hugging Face folder (weights or adapter, processor). `merge` folds an adapter into the weights.

        `card` is the text of its README.md, Markdown. What lies in an adapter's folder: `mmrl.model.adapter_folder`.

        The folder is replaced in one go and carries checksums. Of several processes all call it and the first writes.
        Raises ModelError for weights that are not finite, and for a full disk.
        """
        model = self._standing()
        with self.ranks.together("save"):
            if self.ranks.first:
                self._write(model, Path(folder), merge, card)

    def _write(self, model: Any, folder: Path, merge: bool, card: str) -> None:
        refuse_nonfinite("The policy", dict(model.named_parameters()))
        # What was one token in training must be one for whoever loads the result.
        if self.processing.tags.added:
            self.base.config.mmrl_tags = self.processing.tags.to_store
        if merge and self.has_adapter:
            # Merged in a copy: training may go on with the adapter as it is.
            model = (copy.deepcopy(model) if model is self.model else model).merge_and_unload()
        with written(folder) as draft:
            for part in (
                model,
                self.processing.processor,
                self.base.config,
                self.base.generation_config,
            ):
                part.save_pretrained(str(draft))
            if self.has_adapter and not merge:
                complete(model, draft)
            if card:
                # In the place of a library's empty form, and under the checksums.
                (draft / "README.md").write_text(card, encoding="utf-8")

    def _standing(self) -> nn.Module:
        """The model with all of its weights: itself, or a copy on the CPU of the first process if it is sharded."""
        if self._shards is None:
            return self.model
        # All processes send what they have; the first gets it.
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(self.model, options=whole)
        if not self.ranks.first:
            return self.model
        config = copy.deepcopy(self.base.config)
        config._attn_implementation = (
            "eager"  # it computes nothing; ours have names that only we know
        )
        with torch.device("meta"):
            empty = type(self.base)(config)
            standing = adapted_like(self.model, empty) if self.has_adapter else empty
        for name, tensor in weights.items():
            if tensor.is_floating_point():  # shards of trained weights are wider than the model
                weights[name] = tensor.to(self.dtype)
        standing.load_state_dict(weights, assign=True)
        empty.tie_weights()
        return standing

    def _look_at_tags(self) -> None:
        """Tags that the tokenizer has as tokens, but the weights do not know, are spelt out from now on."""
        base, processing = self.base, self.processing
        weights = [base.get_input_embeddings().weight]
        if base.lm_head.weight is not weights[0]:
            weights.append(base.lm_head.weight)
        tags = processing.tags.with_weights(weights, processing.tokenizer)
        self.processing = processing.with_tags(tags)

    def _encode(self, prompt: Prompt) -> Encoded:
        # Looked up at each call, since `processing` may be exchanged.
        return self.processing.encode(prompt)

    def _refuse_unfit(self) -> None:
        """Raise ValueError for a model that does not score as it samples, or whose head is no plain matrix."""
        config = self.base.config
        for name, dropout in self.family.dropouts(config).items():
            if dropout:
                raise ValueError(f"The model has {name} {dropout}; set it to 0 for RL.")
        if self.shared:
            self.family.refuse_layers(self.base, "the shared-prefix pass")
        head = self.base.lm_head
        # The exact type: a wrapper of LoRA is a Linear's neighbour, but its weight alone is not the head.
        if type(head) is not nn.Linear or head.bias is not None:
            raise ValueError(
                f"The head is a {type(head).__name__}; adapters on lm_head are not supported."
            )


def _head_logits(weight: Tensor, states: Tensor) -> Tensor:
    return logits(states, weight)
