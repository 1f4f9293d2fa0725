"""AdamW against its formula, schedules, clipping, fp32 master weights, exact state."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmrl.model.placement import own_part
from mmrl.model.ranks import Ranks
from mmrl.training.optim import Optim, Optimizer
from tests.several import several, values


def parameters(dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)

    def make(*shape):
        return nn.Parameter(torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype))

    return [("weight", make(3, 4)), ("bias", make(4))]


def feed(named, step, scale=1.0):
    """The same made-up gradients in every run."""
    rng = torch.Generator().manual_seed(100 + step)
    for _, p in named:
        p.grad = (scale * torch.randn(p.shape, generator=rng, dtype=torch.float64)).to(
            p.grad_dtype
        )


def run(optimizer, named, steps, start=0, scale=1.0):
    for step in range(start, start + steps):
        feed(named, step, scale)
        optimizer.gradient_norm()
        optimizer.step(planned=10)


@pytest.mark.parametrize("decay_all", [False, True])
def test_adamw_by_its_formula_and_decay_on_biases_only_if_asked_for(decay_all):
    settings = Optim(
        lr=0.01,
        weight_decay=0.1,
        decay_all=decay_all,
        beta1=0.8,
        beta2=0.9,
        max_grad_norm=0,
    )
    named, expected = parameters(), [p.detach().clone() for _, p in parameters()]
    run(Optimizer(named, settings), named, 3)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected]
    for step in range(3):
        feed(other := parameters(), step)
        for p, (_, source), (m, v) in zip(expected, other, moments, strict=True):
            g = source.grad
            m.mul_(0.8).add_(0.2 * g)
            v.mul_(0.9).add_(0.1 * g * g)
            if p.ndim == 2 or decay_all:
                p.mul_(1 - 0.01 * 0.1)
            p.sub_(
                0.01
                * (m / (1 - 0.8 ** (step + 1)))
                / ((v / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
            )
    for (_, p), e in zip(named, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (
            "cosine",
            [0.25, 0.5, 0.75, 1.0, *(0.5 + 0.5 * math.cos(math.pi * k / 6) for k in range(6))],
        ),
    ],
)
def test_learning_rates(schedule, expected):
    settings = Optim(lr=0.2, schedule=schedule, warmup=4, weight_decay=0.0)
    assert [settings.factor(step, 10) for step in range(10)] == pytest.approx(expected)
    named = parameters()
    optimizer = Optimizer(named, settings)
    used = []
    for step in range(10):
        feed(named, step)
        used.append(optimizer.step(planned=10))
    assert used == pytest.approx([0.2 * e for e in expected])


def test_a_warm_up_may_be_a_share_of_the_run():
    """Perception-R1: 0.05 of 11 steps in each of 25 epochs are int(13.75) steps."""
    share, steps = Optim(warmup_share=0.05), Optim(warmup=13)
    rates = [share.factor(step, 275) for step in range(20)]
    assert rates == [steps.factor(step, 275) for step in range(20)]
    with pytest.raises(ValueError, match=r"Optim\.warmup_share is 0\.1; .*0 if warmup is set"):
        Optim(warmup=3, warmup_share=0.1)


def test_a_schedule_may_be_longer_than_the_run():
    long = Optim(schedule="cosine", schedule_steps=65_000)
    assert long.factor(1199, 1200) == Optim(schedule="cosine").factor(1199, 65_000) > 0.999
    with pytest.raises(ValueError, match=r"Optim\.schedule_steps is 0"):
        Optim(schedule_steps=0)


def test_a_run_that_goes_on_beyond_its_plan_keeps_a_sane_rate():
    assert (
        Optim(schedule="linear").factor(15, 10) == 0.0
        and Optim(schedule="cosine").factor(15, 10) == 0.0
    )
    assert Optim(schedule="cosine", warmup=20).factor(19, 10) == 1.0


def test_clipping():
    named = parameters()
    feed(named, 0, scale=50.0)
    before = torch.cat([p.grad.flatten() for _, p in named])
    norm = Optimizer(named, Optim(max_grad_norm=2.0)).gradient_norm()
    after = torch.cat([p.grad.flatten() for _, p in named])
    assert norm == pytest.approx(before.norm().item()) and after.norm().item() == pytest.approx(
        2.0, rel=1e-5
    )
    torch.testing.assert_close(after / after.norm(), before / before.norm())

    feed(named, 0, scale=50.0)
    assert Optimizer(named, Optim(max_grad_norm=0)).gradient_norm() == pytest.approx(norm)
    assert torch.equal(torch.cat([p.grad.flatten() for _, p in named]), before)

    feed(named, 0, scale=1e-3)
    small = torch.cat([p.grad.flatten() for _, p in named])
    Optimizer(named, Optim(max_grad_norm=2.0)).gradient_norm()
    assert torch.equal(torch.cat([p.grad.flatten() for _, p in named]), small), (
        "small gradients are left alone"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_gradient_shows_in_the_norm(value):
    named = parameters()
    feed(named, 0)
    named[0][1].grad[0, 0] = value
    assert not Optimizer(named, Optim()).gradient_norm() < float("inf")


def test_parameters_without_a_gradient_stay():
    named = parameters()
    optimizer = Optimizer(named, Optim(lr=0.1))
    feed(named, 0)
    named[1][1].grad = None
    before = [p.detach().clone() for _, p in named]
    optimizer.step(planned=1)
    assert not torch.equal(named[0][1], before[0]) and torch.equal(named[1][1], before[1])
    assert all(p.grad is None for _, p in named), "a step clears the gradients"


def test_bf16_gradients_add_up_over_micro_batches():
    # Two thousand equal terms: a running sum in bf16 stops at 256 times the first.
    named = parameters(torch.bfloat16)
    Optimizer(named, Optim())
    row = torch.randn(1, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    for _ in range(2000):
        torch.nn.functional.linear(row, named[0][1].t(), named[1][1]).sum().backward()
    expected = row.t().float().expand(3, 4)
    torch.testing.assert_close(named[0][1].grad, 2000 * expected)
    torch.testing.assert_close(named[1][1].grad, torch.full((4,), 2000.0))


def test_the_step_needs_no_second_copy_of_the_gradients():
    named = parameters(torch.bfloat16)
    optimizer = Optimizer(named, Optim())
    feed(named, 0)
    memory = [p.grad.data_ptr() for _, p in named]
    seen = []
    optimizer._adam.register_step_pre_hook(
        lambda adam, *_: seen.extend(
            p.grad.data_ptr() for g in adam.param_groups for p in g["params"]
        )
    )
    optimizer.step(planned=1)
    assert sorted(seen) == sorted(memory)


def test_bf16_weights_move_by_fp32_masters():
    settings = Optim(lr=1e-5, weight_decay=0.01)
    named = parameters(torch.bfloat16)
    reference = [(n, nn.Parameter(p.detach().float())) for n, p in named]
    start = [p.detach().clone() for _, p in named]
    ours, theirs = Optimizer(named, settings), Optimizer(reference, settings)
    for step in range(60):
        feed(named, 0)
        for (_, p), (_, q) in zip(named, reference, strict=True):
            q.grad = p.grad.float()
        ours.step(planned=60)
        theirs.step(planned=60)
        if step == 0:
            big = (
                start[0].abs() > 0.01
            )  # one step is far below half a unit in the last place of these
            assert torch.equal(named[0][1].detach()[big], start[0][big])
    for (_, p), (_, q), s in zip(named, reference, start, strict=True):
        assert p.dtype == torch.bfloat16 and torch.equal(p, q.to(torch.bfloat16))
        assert (p != s).any(), "sixty small steps add up"


@pytest.fixture(scope="module")
def eager():
    """torchao's optimizers run as they are written; compiling each shape takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        yield


LEAN = {
    "fp32 masters and moments": {},
    "8-bit moments": {"eight_bit": True},
    "no masters": {"masters": False},
    "no masters, 8-bit moments": {"masters": False, "eight_bit": True},
}


@pytest.mark.parametrize("how", LEAN.values(), ids=LEAN.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_steps_move_the_weights_with_every_kind_of_state(eager, how, dtype):
    # 1e-5 is far below half a unit in the last place of bf16 weights near 1; 100 steps of one sign are 1e-3.
    start = torch.ones(64, 128)
    weight = nn.Parameter(start.to(dtype, copy=True))
    optimizer = Optimizer([("weight", weight)], Optim(lr=1e-5, weight_decay=0.0, **how))
    for _ in range(100):
        weight.grad = torch.ones(64, 128)
        optimizer.step(planned=100)
    moments = optimizer._adam.state[optimizer._masters[0]]["exp_avg"]
    moved = (start - optimizer._masters[0].float()).mean()
    torch.testing.assert_close(moved, torch.tensor(1e-3), rtol=0.1, atol=0)
    if not optimizer.settings.masters and dtype == torch.bfloat16:
        assert optimizer._masters[0] is weight, "no copy"
        assert moments.dtype == torch.bfloat16
    assert (type(moments) is torch.Tensor) == (not how.get("eight_bit", False))


def test_the_compiled_step_is_the_written_one():
    def moved(compiled):
        weight = nn.Parameter(torch.linspace(-1, 1, 64 * 128).view(64, 128).bfloat16())
        settings = Optim(lr=1e-3, masters=False)
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(torch, "compile", lambda function, **_: function)
            optimizer = Optimizer([("weight", weight)], settings)
            weight.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
            optimizer.step(planned=1)
        return weight.detach().float()

    # Their draws differ, so rounding may: by one unit in the last place of bf16 at most.
    torch.testing.assert_close(moved(True), moved(False), rtol=2**-7, atol=2e-5)


@pytest.mark.parametrize("how", LEAN.values(), ids=LEAN.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_continues_bit_for_bit(eager, dtype, how):
    settings = Optim(lr=1e-3, schedule="cosine", warmup=2, **how)

    def parameters(dtype, seed=0):
        rng = torch.Generator().manual_seed(seed)
        # Large enough to be quantised.
        draws = torch.randn(64, 128, generator=rng), torch.randn(128, generator=rng)
        return [(str(i), nn.Parameter(x.to(dtype))) for i, x in enumerate(draws)]

    whole = parameters(dtype)
    run(Optimizer(whole, settings), whole, 6)

    first = parameters(dtype)
    optimizer = Optimizer(first, settings)
    run(optimizer, first, 3)
    file = io.BytesIO()
    torch.save(optimizer.state(), file)
    file.seek(0)
    second = parameters(dtype, seed=9)
    resumed = Optimizer(second, settings)
    with torch.no_grad():
        for (_, new), (_, old) in zip(second, first, strict=True):
            new.copy_(old)
    resumed.load(torch.load(file, weights_only=True))
    assert resumed.steps == 3
    run(resumed, second, 3, start=3)
    for (_, a), (_, b) in zip(whole, second, strict=True):
        assert torch.equal(a, b)


def test_user_errors_are_explained():
    with pytest.raises(ValueError, match="Every parameter is frozen"):
        Optimizer([], Optim())
    for field, value in {
        "lr": -1.0,
        "warmup": -1,
        "weight_decay": -0.1,
        "beta1": 1.0,
        "beta2": -0.1,
    }.items():
        with pytest.raises(ValueError, match=rf"Optim\.{field} is {value}; it must be"):
            Optim(**{field: value})
    with pytest.raises(ValueError, match="max_grad_norm is -1"):
        Optim(max_grad_norm=-1)


def stepped(how, sharded):
    """A layer after three steps, its weights cut over the processes or not; the kind of its moments."""
    ranks = Ranks.start("cpu")
    torch.manual_seed(0)
    layer = nn.Linear(128, 64)
    if sharded:
        fully_shard(layer, mesh=init_device_mesh("cpu", (ranks.world,)))
    optimizer = Optimizer(list(layer.named_parameters()), Optim(lr=1e-2, **how), ranks)
    norms = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        for number in range(3):
            torch.manual_seed(number)
            layer(torch.randn(4, 128)).square().sum().backward()
            optimizer.collect()
            norms.append(optimizer.gradient_norm())
            optimizer.step(10)
    moments = own_part(optimizer._adam.state[optimizer.parameters[0]]["exp_avg"])
    weights = [p.full_tensor() if sharded else p for p in layer.parameters()]
    return [w.detach() for w in weights], norms, type(moments).__name__


def stepped_together(ways):
    found = {name: stepped(how, sharded=True) for name, how in ways.items()}
    Ranks.here().end()
    return found


def test_shards_are_stepped_and_clipped_as_whole_weights():
    ways = {
        "fused": {},
        "all decayed": {"decay_all": True},
        "8-bit moments": {"eight_bit": True},
    }
    found = values(several(2, stepped_together, ways))
    for name, how in ways.items():
        weights, norms, kind = stepped(how, sharded=False)
        assert found[0][name][1] == found[1][name][1] == pytest.approx(norms, rel=1e-5)
        assert found[0][name][2] == kind
        for ours, theirs in zip(found[0][name][0], weights, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def refused():
    with pytest.raises(ValueError, match=r"--optim.masters False .* use --load.shard off"):
        stepped({"masters": False}, sharded=True)
    Ranks.here().end()


def test_rounding_by_chance_of_shards_is_refused():
    values(several(2, refused))
