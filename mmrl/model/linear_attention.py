"""Layers with linear attention (gated delta rule: Qwen3.5, Qwen3.6) on a packed row of prompts and their answers.

Such a layer has no keys that a later token could look up. It carries a state S from token to token, and the last
inputs of a short convolution; in a packed row each answer would go on from its neighbour's. Here the prompt's are
worked out once and handed to every answer of its group, with gradients (`recurrent_row.py` says where things lie):

    convolution   the row is laid out anew, each run behind the last inputs of its prompt, zeros at the beginning
    delta rule    prompts first, then answers, each starting from the state at its prompt's end

The stock layer looks both functions up in its own module, by name, and passes the keywords of the language model's
call on to them. `readable_kinds` puts functions in their place that read the keyword `layout`; without it they are the
stock ones. Padding is exact: with g = beta = 0 a token neither changes the state nor is changed by it.

On CUDA in half precision with the package flash-linear-attention, all runs of a level go through its kernel in one
call without padding, after it has been compared with the library's plain form. That path has not been run by us: there
was no GPU. Elsewhere the library's plain form computes, in single precision whatever the model's number format.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial, wraps
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.model.attention import ATTENTION_NUMBER
from mmrl.model.decoding import Decoding
from mmrl.model.recurrent_row import LINEAR, Plan
from mmrl.model.row_layout import Layout, example_layout

CONV, CONV_STEP = "causal_conv1d_fn", "causal_conv1d_update"
DELTA, DELTA_STEP = "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"
TOLERANCE = 0.03
"""Largest difference that is put down to rounding, relative to the largest number. A wrong state is off by far more."""
UNREAD = {
    "qwen4_exp": "its embeddings look at the two tokens before, a convolution at nine and an indexer at all of them, "
    "whoever wrote them"
}
"""Families with further parts that look from token to token, beside linear attention."""
Function = Callable[..., Any]


def _refuse_unread(language: Any) -> None:
    kind = language.config.model_type.removesuffix("_text")
    if kind in UNREAD:
        raise ValueError(
            f"A {kind} model cannot read packed rows of several answers: {UNREAD[kind]}. Use a model of another "
            "family, for example Qwen3.5."
        )


def readable_kinds(language: Any, whole: Any = None) -> tuple[str, ...]:
    """Kinds of layers of this language model that may read packed rows, its linear attention made ready for them.

    `whole` is the model that it is a part of. Raises ValueError for linear attention that cannot be made ready, or
    whose results differ from those of rows of their own.
    """
    _refuse_unread(language)
    layers = list(_linear_layers(language))
    if not layers:
        return ("full_attention",)
    kinds = ("full_attention", LINEAR)
    if all(hasattr(layer, ATTENTION_NUMBER) for layer in layers):
        return kinds
    _refuse_foreign_kernels(language if whole is None else whole)
    for layer in layers:
        install(sys.modules[type(layer).__module__])
    problem = disagreement(layers[0])
    if problem is not None:
        raise ValueError(
            f"The linear attention of {type(language).__name__} reads a packed row otherwise than rows of their own "
            f"({problem}), so answers would go on from their neighbour's state. Use a version of transformers that "
            "this framework names (5.18 to 5.24 are known), without kernels of the hub, or a model with full attention."
        )
    _number(language)
    return kinds


def install(module: ModuleType) -> None:
    """Put functions that read a `layout` in the place of a model file's own. Safe to call again.

    Raises ValueError for a file that does not have them under the names that are known here.
    """
    missing = [
        name for name in (CONV, CONV_STEP, DELTA, DELTA_STEP) if not hasattr(module, name)
    ]
    if missing:
        raise ValueError(
            f"{module.__name__} has linear attention without the functions {', '.join(missing)}, so it cannot read "
            "packed rows. Known are the gated delta rules of qwen3_5, qwen3_5_moe and qwen3_next in transformers 5.18 "
            "to 5.24; use such a version, or a model with full attention."
        )
    conv, delta = getattr(module, CONV), getattr(module, DELTA)
    if not hasattr(conv, "reads_layout"):
        setattr(
            module, CONV, _reading(conv, packed_conv, getattr(module, CONV_STEP), conv_step)
        )
    if not hasattr(delta, "reads_layout"):
        setattr(
            module,
            DELTA,
            _reading(delta, packed_delta, getattr(module, DELTA_STEP), delta_step),
        )


def _reading(
    stock: Function, packed: Function, stock_step: Function, step: Function
) -> Function:
    """`stock`, but for a packed row or a rollout in progress where the keyword `layout` says so."""

    @wraps(stock)
    def read(
        x: Tensor,
        *args: Any,
        layout: Layout | Decoding | None = None,
        number: int = 0,
        layer: int = 0,
        **rest: Any,
    ) -> Any:
        if layout is None:
            return _form(stock, x)(x, *args, **rest)
        if isinstance(layout, Decoding):
            return step(_form(stock_step, x), layout, number, x, *args, **rest)
        return packed(stock, layout, x, *args, layer=layer, **rest)

    read.reads_layout = True  # type: ignore[attr-defined]
    return read


def _form(stock: Function, x: Tensor) -> Function:
    """The library's choice of a kernel where its kernels run (CUDA, half precision), else its plain form."""
    return stock if _kernels_run(x.device.type, x.dtype) else inspect.unwrap(stock)


def _kernels_run(device: str, dtype: torch.dtype) -> bool:
    return device == "cuda" and dtype in (torch.float16, torch.bfloat16)


def packed_conv(
    stock: Function,
    layout: Layout,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    layer: int = 0,
    **rest: Any,
) -> Tensor:
    """The causal convolution of a packed row: x [1, C, S], weight [C, kernel] -> [1, C, S]. Differentiable."""
    row = layout.recurrent
    assert x.shape[-1] == row.length, f"row of {x.shape[-1]} tokens, layout of {row.length}"
    at = row.stretched(weight.shape[-1] - 1)
    beyond = [past.layers[layer][0][0].t().to(x.dtype) for past in layout.pasts]
    # [S + context of each past + 1, C]
    tokens = pad(torch.cat([x[0].t(), *beyond]), (0, 0, 0, 1))
    if row.kept is not None:
        row.kept.inputs.append(tokens[at.tails].transpose(1, 2).detach().contiguous())
    if layout.noted is not None:
        # Joined by the state; the first time counts, as with keys.
        row.noted.setdefault(layer, tokens[at.tails].transpose(1, 2))
    laid = tokens.index_select(0, at.places).t()[None]
    out = _form(stock, x)(laid, weight, bias, activation=activation)
    return out[0].t().index_select(0, at.back).t()[None]


def packed_delta(
    stock: Function,
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    layer: int = 0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The delta rule of a packed row: q, k [1, S, Hk, dk], v [1, S, Hv, dv], g, beta [1, S, Hv] -> [1, S, Hv, dv].

    `rest` are the layer's other keywords; it has no state of its own to start from. Differentiable.
    """
    row = layout.recurrent
    inputs = (query, key, value, g, beta)
    normed = bool(rest.get("use_qk_l2norm_in_kernel", False))
    unpadded = verified_fused(
        stock, query.device.type, query.dtype, (query.shape[2:], value.shape[2:]), normed
    )
    run = stock if unpadded else inspect.unwrap(stock)
    plan = row.plan(padded=not unpadded)
    pasts = [past.layers[layer][1] for past in layout.pasts]
    keep = row.kept is not None or layout.noted is not None
    out, ends = over_plan(run, plan, inputs, normed, keep=keep, pasts=pasts)
    if row.kept is not None:
        row.kept.states.append(ends.index_select(0, plan.roots).detach())
    if layout.noted is not None:
        left = (row.noted[layer], ends.index_select(0, plan.roots))
        layout.noted.setdefault(layer, left)
    return out, None


def over_plan(
    run: Function,
    plan: Plan,
    inputs: tuple[Tensor, ...],
    normed: bool,
    keep: bool = False,
    pasts: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Run the delta rule call by call: the row's output [1, S, Hv, dv], and the states at the first level's ends.

    `inputs` are query, key, value, g, beta of the row; `normed`: shall `run` normalise queries and keys? The states
    [n, Hv, dk, dv] are worked out only if something goes on from them, or to `keep` them. `pasts`: states
    [1, Hv, dk, dv] that runs of the first level go on from.
    """
    pieces: list[Tensor] = []
    ends_of: list[Tensor] = []  # per level
    before = torch.cat([torch.zeros_like(pasts[0]), *pasts]) if pasts else None
    for depth, level in enumerate(plan.levels):
        handed_on = depth + 1 < len(plan.levels) or (keep and depth == 0)
        ends: list[Tensor] = []
        for runs in level:
            q, k, v = (runs.take(x) for x in inputs[:3])
            g, beta = (runs.take_silent(x) for x in inputs[3:])
            # The gather sums the gradients of all answers into their prompt's state.
            start = None
            if runs.owners is not None:
                assert before is not None, "a run goes on from a state that was not kept"
                start = before.index_select(0, runs.owners)
            settings = {"initial_state": start, "output_final_state": handed_on}
            if runs.borders is not None:
                settings["cu_seqlens"] = runs.borders
            out, end = run(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=normed, **settings)
            pieces.append(out.flatten(0, 1))
            ends.append(end)
        if handed_on:
            before = torch.cat(ends)
            ends_of.append(before)
    out = torch.cat(pieces).index_select(0, plan.back)[None]
    return out, ends_of[0] if ends_of else out.new_zeros(0)


def conv_step(
    run: Function,
    store: Decoding,
    number: int,
    x: Tensor,
    weight: Tensor,
    *args: Any,
    **rest: Any,
) -> Tensor:
    """The convolution of one new token per answer [N, C, 1]; it becomes the last of the answer's inputs."""
    activation = rest.get("activation")
    # The library's function moves the inputs on in place.
    return run(x, store.carried.inputs[number], weight, *args, activation)


def delta_step(
    run: Function,
    store: Decoding,
    number: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The delta rule of one new token per answer, q and k [N, 1, Hk, dk]; the answer's state goes on in place."""
    state = store.carried.states[number]
    known = {name: rest[name] for name in ("g", "beta", "use_qk_l2norm_in_kernel")}
    out, end = run(query, key, value, initial_state=state, output_final_state=True, **known)
    state.copy_(end)
    return out, None


def _linear_layers(language: Any) -> Iterator[Any]:
    """The modules that hold linear attention, in order."""
    kinds = getattr(language.config, "layer_types", None) or []
    for kind, layer in zip(kinds, language.layers, strict=False):
        if kind == LINEAR:
            found = getattr(layer, "linear_attn", None)
            if found is None:
                raise ValueError(
                    f"{type(layer).__name__} is a layer of linear attention without a part `linear_attn`; known are "
                    "the gated delta rules of qwen3_5, qwen3_5_moe and qwen3_next. Use a model with full attention."
                )
            yield found


def _number(language: Any) -> None:
    """Tell each layer which one of its kind it is: keys and states are held for one kind only."""
    for number, layer in enumerate(_linear_layers(language)):
        setattr(layer, ATTENTION_NUMBER, number)
        # The two functions see no layer, so the layer passes its number on.
        layer.register_forward_pre_hook(partial(_with_number, number), with_kwargs=True)
    others = [layer.self_attn for layer in language.layers if hasattr(layer, "self_attn")]
    for number, attention in enumerate(others):
        setattr(attention, ATTENTION_NUMBER, number)


def _with_number(
    number: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if kwargs.get("layout") is None:
        return None
    return args, {**kwargs, "number": number, "layer": module.layer_idx}


def _refuse_foreign_kernels(model: Any) -> None:
    if getattr(model, "use_kernels", False):
        raise ValueError(
            f"{type(model).__name__} was loaded with use_kernels=True, which may exchange whole layers for kernels "
            "that know nothing of packed rows. Load it without; flash-linear-attention is used where it is installed."
        )


def disagreement(layer: Any) -> str | None:
    """Compare one layer on a small packed row with rows of their own, forward and backward; None if they agree."""
    weight = next(iter(layer.parameters()))
    if weight.device.type == "meta":
        return None  # a model without weights computes nothing
    layout = example_layout((6, 2), ((5, 1, 9), (3,)), weight.device)
    width = layer.hidden_size
    # Drawn on the CPU, so that every device is asked the same.
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, layout.length, width, generator=rng).to(weight.device, weight.dtype)
    x, grad = drawn[0].requires_grad_(), drawn[1].detach()
    with torch.enable_grad():
        ours = layer(x[None], layout=layout)[0]
        alone = torch.zeros_like(ours)
        for prompt, answers in zip(layout.prompts, layout.answers, strict=True):
            for answer in answers:
                seen = torch.cat([torch.arange(*prompt), torch.arange(*answer)]).to(x.device)
                found = layer(x[seen][None])[0]
                # The prompt's own part is the same each time, so it may be written again.
                alone = alone.index_copy(0, seen, found)
        gradients = [torch.autograd.grad(out, x, grad)[0] for out in (ours, alone)]
    pairs = {"outputs": (ours.detach(), alone.detach()), "gradients": tuple(gradients)}
    return _first_gap(pairs)


@lru_cache
def verified_fused(
    stock: Function,
    device: str,
    dtype: torch.dtype,
    heads: tuple[torch.Size, torch.Size],
    normed: bool,
) -> bool:
    """Does a fused kernel run here that agrees with the plain form? `heads`: (Hk, dk) and (Hv, dv)."""
    if not _kernels_run(device, dtype):
        return False
    if find_spec("fla") is None:
        warnings.warn(
            "The package flash-linear-attention is not installed: linear attention runs in the library's plain form, "
            "which is right and several times slower.",
            stacklevel=2,
        )
        return False
    problem = fused_disagreement(stock, torch.device(device), dtype, heads, normed)
    if problem is not None:
        warnings.warn(
            f"The kernel of flash-linear-attention is not used in {dtype} ({problem}); the library's plain form is.",
            stacklevel=2,
        )
    return problem is None


def fused_disagreement(
    fused: Function,
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[torch.Size, torch.Size],
    normed: bool,
) -> str | None:
    """Compare a kernel that takes borders with the plain form on two ragged groups; None if they agree."""
    row = example_layout((70, 7), ((5, 66), (3,)), device).recurrent
    rng = torch.Generator().manual_seed(0)
    of_keys, of_values = ((1, row.length, *shape) for shape in heads)
    drawn = [torch.randn(shape, generator=rng) for shape in (of_keys, of_keys, of_values)]
    per_token = of_values[:3]
    decay = -torch.rand(per_token, generator=rng)
    beta = torch.rand(per_token, generator=rng)
    grad = torch.randn(of_values, generator=rng).to(device, dtype)

    def results(run: Function, padded: bool) -> list[Tensor]:
        half = [x.to(device, dtype) for x in (*drawn, beta)]
        inputs = [x.requires_grad_() for x in (*half[:3], decay.to(device), half[3])]
        with torch.enable_grad():
            out, _ = over_plan(run, row.plan(padded), tuple(inputs), normed)
            return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

    try:
        ours = results(fused, padded=False)
    # All that a kernel of another version may raise.
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
        IndexError,
        ImportError,
    ) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    names = ("out", "dq", "dk", "dv", "dg", "dbeta")
    plain = results(inspect.unwrap(fused), padded=True)
    return _first_gap(dict(zip(names, zip(ours, plain, strict=True), strict=True)))


def _first_gap(pairs: dict[str, tuple[Tensor, ...]]) -> str | None:
    """The first of the named pairs that differ by more than rounding."""
    for name, (mine, other) in pairs.items():
        gap = (mine.float() - other.float()).abs().max().item()
        # "Not below" instead of "above": a NaN is a disagreement too.
        if not gap <= TOLERANCE * other.float().abs().max().item():
            return f"{name} differ by {gap:.3g}"
    return None
