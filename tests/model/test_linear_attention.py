"""Linear attention on a packed row: equal to rows of their own in outputs and in the gradient of every weight.

The library's own first weights forget the state at once, and its gradient is rounding noise; these tests draw weights
that remember (`hybrid`).
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.model import linear_attention
from mmrl.model.attention import refuse_windows, register
from mmrl.model.linear_attention import (
    disagreement,
    fused_disagreement,
    install,
    over_plan,
    readable_kinds,
)
from mmrl.model.recurrent_row import RecurrentRow, Run, Runs
from mmrl.model.row_layout import Layout, example_layout

LINEAR, FULL = "linear_attention", "full_attention"
RAGGED = ((33, (7, 1, 70, 33)), (70, (5, 0, 9)), (2, (64, 65, 2)))
"""Prompts with their answers: empty ones, chunks that end within and at a border, a prompt shorter than the kernel."""
SINGLE = ((9, (5,)), (1, (3,)))


def hybrid(
    kinds: Sequence[str] = (LINEAR, FULL, LINEAR),
    *,
    moe: bool = False,
    kernel: int = 4,
    heads: int = 2,
) -> Any:
    """A tiny hybrid language model whose layers remember."""
    from transformers import Qwen3_5MoeTextConfig, Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextModel
    from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeTextModel

    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    shared = {
        "vocab_size": 32,
        "hidden_size": 32,
        "num_hidden_layers": len(kinds),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "linear_num_key_heads": heads,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": kernel,
        "layer_types": list(kinds),
        "initializer_range": 0.05,
        "rope_parameters": {**rope, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if moe:
            sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
            model: Any = Qwen3_5MoeTextModel(Qwen3_5MoeTextConfig(**shared, **experts, **sizes))
        else:
            model = Qwen3_5TextModel(Qwen3_5TextConfig(**shared, intermediate_size=48))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("A_log"):
                    weight.copy_(torch.empty_like(weight).uniform_(0.01, 1).log())
                elif name.endswith("dt_bias"):
                    weight.uniform_(-3, -1)
                elif "norm" in name:
                    weight.add_(0.3 * torch.randn_like(weight))
                else:
                    weight.copy_(weight if weight.any() else 0.05 * torch.randn_like(weight))
    model.config._attn_implementation = register()
    return model.train()


class Rows:
    """Groups drawn at random, and what a loss on their answers gives by either path."""

    def __init__(self, groups: Sequence[tuple[int, Sequence[int]]], width: int = 32) -> None:
        prompts, answers = zip(*groups, strict=True)
        self.layout = example_layout(prompts, answers)
        rng = torch.Generator().manual_seed(1)
        self.tokens, self.weights = torch.randn(2, self.layout.length, width, generator=rng)
        # Of a single answer `pack` makes a part of its prompt.
        self.groups = list(zip(self.layout.prompts, self.layout.answers, strict=True))

    def packed(self, model: Any) -> dict[str, Tensor]:
        """Outputs of all answers and gradients of all weights, from one row."""
        positions = torch.zeros(self.layout.length, dtype=torch.long)
        for prompt, answers in self.groups:
            positions[slice(*prompt)] = torch.arange(prompt[1] - prompt[0])
            for start, end in answers:
                positions[start:end] = prompt[1] - prompt[0] + torch.arange(end - start)
        out = _run(model, self.tokens, positions, layout=self.layout)
        return self._found(
            model, {(p, a): out[_behind(p, a)] for p, group in self.groups for a in group}
        )

    def repeated(self, model: Any) -> dict[str, Tensor]:
        """The same from a row of its own for each answer."""
        outs = {}
        for prompt, group in self.groups:
            for answer in group:
                seen = torch.cat([torch.arange(*prompt), torch.arange(*answer)])
                out = _run(model, self.tokens[seen], torch.arange(len(seen)))
                outs[prompt, answer] = out[prompt[1] - prompt[0] - 1 :]
        return self._found(model, outs)

    def _found(self, model: Any, outs: dict[Any, Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        loss = torch.zeros(())
        for (prompt, answer), out in outs.items():
            loss = loss + (out * self.weights[_behind(prompt, answer)]).sum()
        loss.backward()
        gradients = {
            name: weight.grad.clone()
            for name, weight in model.named_parameters()
            if "embed_tokens" not in name  # not asked: the rows are given
        }
        return {"outputs": torch.cat(list(outs.values())).detach(), **gradients}


def _behind(prompt: tuple[int, int], answer: tuple[int, int]) -> Tensor:
    """Places of a prompt's last token and of the answer's."""
    return torch.cat([torch.tensor([prompt[1] - 1]), torch.arange(*answer)])


def _run(model: Any, tokens: Tensor, positions: Tensor, **more: Any) -> Tensor:
    out = model(
        inputs_embeds=tokens[None],
        position_ids=positions.expand(3, 1, -1),
        use_cache=False,
        **more,
    )
    return out.last_hidden_state[0]


def gaps(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of the outputs, and of each gradient relative to its norm."""
    found = {
        name: (ours[name] - theirs[name]).norm().item() / theirs[name].norm().item()
        for name in ours
    }
    found["outputs"] = (ours["outputs"] - theirs["outputs"]).abs().max().item()
    return found


def assert_equal(model: Any, groups: Sequence[tuple[int, Sequence[int]]]) -> None:
    rows = Rows(groups)
    ours, theirs = rows.packed(model), rows.repeated(model)
    assert all(gradient.norm() > 1e-4 for gradient in theirs.values()), "a test of zeros"
    found = gaps(ours, theirs)
    assert found.pop("outputs") < 1e-5
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("moe", [False, True])
def test_packed_equals_repeated(moe: bool, checkpointing: bool) -> None:
    model = hybrid(moe=moe)
    if checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    assert readable_kinds(model) == (FULL, LINEAR)
    assert_equal(model, RAGGED)


@pytest.mark.parametrize("kinds", [(LINEAR, LINEAR), (FULL, LINEAR)])
@pytest.mark.parametrize(("kernel", "heads"), [(4, 4), (2, 2), (1, 2)])
def test_other_orders_kernels_and_heads(
    kinds: tuple[str, ...], kernel: int, heads: int
) -> None:
    model = hybrid(kinds, kernel=kernel, heads=heads)
    readable_kinds(model)
    assert_equal(model, (*RAGGED[1:], *SINGLE))


def test_a_tree_of_runs_equals_its_paths() -> None:
    """Turns of a conversation: a run goes on from a run that goes on from a prompt."""
    model = hybrid((LINEAR, LINEAR))
    readable_kinds(model)
    layout = Layout((20, 5, 66, 9, 0, 3), (-1, 0, 1, 1, 0, 4))
    rng = torch.Generator().manual_seed(0)
    tokens, weights = torch.randn(2, layout.length, 32, generator=rng)
    places = torch.arange(layout.length)
    packed = tokens.clone().requires_grad_()
    (_run(model, packed, places, layout=layout) * weights).sum().backward()
    alone = tokens.clone().requires_grad_()
    run = layout.recurrent
    for number in range(len(run.runs)):
        path = torch.tensor(_path(run, number))
        own = run.runs[number].length
        if own:
            out = _run(model, alone[path], path)[-own:]
            (out * weights[path[-own:]]).sum().backward()
    assert packed.grad is not None
    assert alone.grad is not None
    assert (packed.grad - alone.grad).norm() < 1e-5 * alone.grad.norm()


def _without_context(monkeypatch: pytest.MonkeyPatch) -> None:
    stretched = RecurrentRow.stretched

    def cut(row: RecurrentRow, context: int) -> Any:
        alone = RecurrentRow(
            tuple(Run(run.start, run.end) for run in row.runs), row.length, row.device
        )
        return stretched(alone, context)

    monkeypatch.setattr(RecurrentRow, "stretched", cut)


def _zero_state(monkeypatch: pytest.MonkeyPatch) -> None:
    _changed_start(monkeypatch, lambda start: torch.zeros_like(start))


def _neighbours_state(monkeypatch: pytest.MonkeyPatch) -> None:
    _changed_start(monkeypatch, lambda start: start.roll(1, 0))


def _detached_state(monkeypatch: pytest.MonkeyPatch) -> None:
    _changed_start(monkeypatch, lambda start: start.detach())


def _changed_start(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    def changed(run: Any, *args: Any, **kwargs: Any) -> Any:
        def wrong(*inputs: Any, **settings: Any) -> Any:
            if settings.get("initial_state") is not None:
                settings["initial_state"] = change(settings["initial_state"])
            return run(*inputs, **settings)

        return over_plan(wrong, *args, **kwargs)

    monkeypatch.setattr(linear_attention, "over_plan", changed)


@pytest.mark.parametrize(
    ("break_it", "outputs_differ"),
    [
        (_without_context, True),
        (_zero_state, True),
        (_neighbours_state, True),
        # Seen in the gradient only.
        (_detached_state, False),
    ],
)
def test_the_comparison_sees_each_mistake(
    break_it: Any, outputs_differ: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hybrid()
    readable_kinds(model)
    break_it(monkeypatch)
    rows = Rows(((20, (7, 9)), (12, (5, 6))))
    found = gaps(rows.packed(model), rows.repeated(model))
    assert (found.pop("outputs") > 0.01) is outputs_differ
    assert max(found.values()) > 0.05


def test_a_mistake_is_found_when_a_model_is_made_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    for break_it in (_without_context, _zero_state, _detached_state):
        with monkeypatch.context() as patch:
            break_it(patch)
            model = hybrid()
            with pytest.raises(ValueError, match=r"otherwise than rows of their own"):
                readable_kinds(model)
    assert readable_kinds(hybrid()) == (FULL, LINEAR)


def test_a_layer_that_never_calls_the_functions_is_refused() -> None:
    model = hybrid()
    for layer in model.layers:
        if hasattr(layer, "linear_attn"):
            # As a kernel of the hub would: a forward of its own, which reads the row as one sequence.
            own = layer.linear_attn.forward
            layer.linear_attn.forward = lambda x, *, own=own, **ignored: own(x)
    with pytest.raises(ValueError, match="otherwise than rows of their own"):
        readable_kinds(model)
    model = hybrid()
    model._use_kernels = True  # as `from_pretrained(..., use_kernels=True)` leaves it
    with pytest.raises(ValueError, match="use_kernels=True"):
        readable_kinds(model)


@pytest.mark.parametrize("moe", [False, True])
def test_functions_are_put_in_once_and_leave_the_stock_path_alone(moe: bool) -> None:
    model = hybrid(moe=moe)
    module = sys.modules[type(model).__module__]
    readable_kinds(model)
    before = {
        name: getattr(module, name) for name in (linear_attention.CONV, linear_attention.DELTA)
    }
    install(module)
    readable_kinds(hybrid(moe=moe))
    assert before == {name: getattr(module, name) for name in before}
    stock = inspect.unwrap(before[linear_attention.DELTA])
    assert stock.__module__ == module.__name__
    hooks = [
        len(x.linear_attn._forward_pre_hooks) for x in model.layers if hasattr(x, "linear_attn")
    ]
    readable_kinds(model)
    assert hooks == [1] * len(hooks)


def test_other_kinds_of_layers_are_refused() -> None:
    model = hybrid()
    known = readable_kinds(model)
    refuse_windows(model.config, "the shared-prefix pass", known)
    with pytest.raises(ValueError, match="'linear_attention', which sampling does not know"):
        refuse_windows(model.config, "sampling")
    strange = copy.copy(model.config)
    strange.layer_types = [FULL, "compressed_sparse_attention"]
    with pytest.raises(
        ValueError, match=r"'compressed_sparse_attention'.*Allowed are full_attention"
    ):
        refuse_windows(strange, "sampling", known)


def test_a_family_whose_other_parts_look_across_answers_is_refused() -> None:
    model = hybrid()
    model.config.model_type = "qwen4_exp_text"
    with pytest.raises(
        ValueError, match=r"qwen4_exp model cannot read packed rows.*convolution at nine"
    ):
        readable_kinds(model)


def test_linear_attention_of_another_design_is_refused() -> None:
    model = hybrid((FULL, FULL))
    model.config.layer_types = [LINEAR, FULL]
    with pytest.raises(ValueError, match="without a part `linear_attn`"):
        readable_kinds(model)
    with pytest.raises(ValueError, match="without the functions causal_conv1d_fn"):
        install(sys.modules[__name__])


def _delta() -> Any:
    from transformers.models.qwen3_5 import modeling_qwen3_5

    return inspect.unwrap(modeling_qwen3_5.torch_chunk_gated_delta_rule)


def _inputs(length: int, count: int = 1) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, count, length, 2, 8, generator=rng)
    g, beta = torch.rand(2, count, length, 2, generator=rng)
    return q, k, v, -g, beta


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_padding_leaves_the_state_as_it_is_to_the_last_bit(length: int) -> None:
    q, k, v, g, beta = _inputs(length)
    settings = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    out, end = _delta()(q, k, v, g=g, beta=beta, **settings)
    # What stands on padding plays no part: here the row's first token.
    wide = [torch.cat([x, x[:, :1].expand(-1, 37, -1, -1)], 1) for x in (q, k, v)]
    silent = [pad(x, (0, 0, 0, 37)) for x in (g, beta)]
    padded, padded_end = _delta()(*wide, g=silent[0], beta=silent[1], **settings)
    assert torch.equal(padded_end, end)
    assert torch.equal(padded[:, :length], out)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_the_state_gets_its_gradient(length: int) -> None:
    from transformers.models.qwen3_5 import modeling_qwen3_5

    by_token = inspect.unwrap(modeling_qwen3_5.torch_recurrent_gated_delta_rule)
    q, k, v, g, beta = _inputs(length, count=2)
    grad = torch.randn(v.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for run in (_delta(), by_token):
        start = torch.linspace(-1, 1, 2 * 2 * 8 * 8).view(2, 2, 8, 8).requires_grad_()
        out, _ = run(
            q, k, v, g=0.1 * g, beta=beta, initial_state=start, use_qk_l2norm_in_kernel=True
        )
        found.append(torch.autograd.grad(out, start, grad)[0])
    assert (found[0] - found[1]).norm() < 1e-5 * found[1].norm()
    assert found[1].norm() > 0.1


def _in_a_line(*inputs: Tensor, cu_seqlens: Tensor | None = None, **settings: Any) -> Any:
    """What the fused kernel promises: runs one after another, each with a state of its own."""
    g, beta, start = settings.pop("g"), settings.pop("beta"), settings.pop("initial_state")
    outs, ends = [], []
    assert cu_seqlens is not None
    borders = cu_seqlens.tolist()
    for number in range(len(borders) - 1):
        cut = slice(borders[number], borders[number + 1])
        q, k, v = (x[:, cut] for x in inputs)
        own = None if start is None else start[number : number + 1]
        out, end = _delta()(
            q, k, v, g=g[:, cut], beta=beta[:, cut], initial_state=own, **settings
        )
        outs.append(out)
        ends.append(end)
    return torch.cat(outs, 1), torch.cat(ends) if ends[0] is not None else None


def test_runs_in_a_line_equal_padded_runs() -> None:
    """The path of the fused kernel on CUDA, with a stand-in for it."""
    _in_a_line.__wrapped__ = _delta()  # type: ignore[attr-defined]
    heads = (torch.Size((2, 8)), torch.Size((4, 8)))
    cpu = torch.device("cpu")
    assert fused_disagreement(_in_a_line, cpu, torch.float32, heads, True) is None

    def forgets(*inputs: Any, **settings: Any) -> Any:
        return _in_a_line(*inputs, **{**settings, "initial_state": None})

    forgets.__wrapped__ = _delta()  # type: ignore[attr-defined]
    assert "out differ" in (fused_disagreement(forgets, cpu, torch.float32, heads, True) or "")
    # A function that knows no borders takes the runs for one sequence: then the plain form is used.
    from transformers.models.qwen3_5 import modeling_qwen3_5

    stock = modeling_qwen3_5.torch_chunk_gated_delta_rule
    assert fused_disagreement(stock, cpu, torch.float32, heads, True) is not None


def _row(runs: Sequence[tuple[int, int | None]]) -> RecurrentRow:
    """Runs given by length and parent."""
    at, found = 0, []
    for length, parent in runs:
        found.append(Run(at, at + length, parent))
        at += length
    return RecurrentRow(tuple(found), at, torch.device("cpu"))


def _path(row: RecurrentRow, number: int) -> list[int]:
    run = row.runs[number]
    before = [] if run.parent is None else _path(row, run.parent)
    return [*before, *range(run.start, run.end)]


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_random_trees_are_laid_out_right(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    runs: list[tuple[int, int | None]] = []
    for number in range(12):
        above = int(torch.randint(-1, max(number, 1), (), generator=rng)) if number else -1
        length = int(torch.randint(0, 200, (), generator=rng)) * int(
            torch.rand((), generator=rng) < 0.8
        )
        runs.append((length if number else 5, None if above < 0 else above))
    row = _row(runs)
    context = seed % 4
    stretched = row.stretched(context)
    for number, run in enumerate(row.runs):
        path = [row.length] * context + _path(row, number)
        for offset in range(run.length):
            place = int(stretched.back[run.start + offset])
            seen = stretched.places[place - context : place + 1].tolist()
            end = len(path) - run.length + offset + 1
            assert seen == path[end - context - 1 : end]
    for padded in (True, False):
        _check_plan(row, padded)


def _check_plan(row: RecurrentRow, padded: bool) -> None:
    """A 'delta rule' that writes down the places it has read: each token must have seen its path."""
    plan = row.plan(padded)
    seen: list[list[int]] = []
    ends: list[list[list[int]]] = []
    for level in plan.levels:
        ends.append([])
        for runs in level:
            for position, places in enumerate(_of_each(runs)):
                start = [] if runs.owners is None else ends[-2][int(runs.owners[position])]
                state = list(start)
                for place in places:
                    state = state if place is None else [*state, place]
                    seen.append(state)
                ends[-1].append(state)
    for number, run in enumerate(row.runs):
        path = _path(row, number)
        for offset in range(run.length):
            expected = path[: len(path) - run.length + offset + 1]
            assert seen[int(plan.back[run.start + offset])] == expected
    roots = [number for number, run in enumerate(row.runs) if run.parent is None]
    for number, state in zip(roots, plan.roots.tolist(), strict=True):
        if row.runs[number].length:
            assert ends[0][state] == _path(row, number)


def _of_each(runs: Runs) -> list[list[int | None]]:
    """Places of each run of a call, None on padding."""
    if runs.borders is not None:
        cuts = runs.borders.tolist()
        line = runs.places[0].tolist()
        return [line[start:end] for start, end in pairwise(cuts)]
    valid = torch.ones_like(runs.places, dtype=torch.bool) if runs.valid is None else runs.valid
    if runs.cut is not None:
        assert runs.places[0].tolist() == list(range(runs.cut.start, runs.cut.stop))
    rows = zip(runs.places.tolist(), valid.tolist(), strict=True)
    return [[p if fine else None for p, fine in zip(*row, strict=True)] for row in rows]


def test_indices_are_made_once_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("_stretch", "_plan"):
        real = getattr(sys.modules[RecurrentRow.__module__], name)
        monkeypatch.setattr(
            sys.modules[RecurrentRow.__module__],
            name,
            lambda *args, name=name, real=real: (made.append(name), real(*args))[1],
        )
    model = hybrid((LINEAR, LINEAR, LINEAR))
    readable_kinds(model)
    made.clear()
    Rows(SINGLE).packed(model)
    assert sorted(made) == ["_plan", "_stretch"]


def test_a_model_in_half_precision_is_made_ready_and_stays_close() -> None:
    model = hybrid().to(torch.bfloat16)
    readable_kinds(model)
    layer = next(x.linear_attn for x in model.layers if hasattr(x, "linear_attn"))
    assert disagreement(layer) is None


def test_a_layout_of_another_row_is_an_error() -> None:
    model = hybrid()
    readable_kinds(model)
    with pytest.raises(AssertionError, match="row of 9 tokens, layout of 7"):
        layout: Layout = example_layout((4,), ((3,),))
        _run(model, torch.randn(9, 32), torch.arange(9), layout=layout)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_equals_repeated_on_cuda(dtype: torch.dtype) -> None:
    model = hybrid().to("cuda", dtype)
    readable_kinds(model)
    rows = Rows(RAGGED)
    rows.layout = Layout(rows.layout.lengths, rows.layout.parents, torch.device("cuda"))
    rows.tokens, rows.weights = (x.to("cuda", dtype) for x in (rows.tokens, rows.weights))
    found = gaps(rows.packed(model), rows.repeated(model))
    bound = 0.1 if dtype == torch.bfloat16 else 1e-2  # convolutions may compute in TF32
    assert max(found.values()) < bound, found


@pytest.mark.gpu
def test_the_fused_kernel_agrees_where_it_is_installed() -> None:
    pytest.importorskip("fla")
    from transformers.models.qwen3_5 import modeling_qwen3_5

    stock = modeling_qwen3_5.torch_chunk_gated_delta_rule
    released = (torch.Size((16, 128)), torch.Size((32, 128)))
    cuda = torch.device("cuda")
    assert fused_disagreement(stock, cuda, torch.bfloat16, released, True) is None
