"""The plan of a run's memory: what models weigh, what autograd keeps, what each switch saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmrl.data.drawn.drawn import Drawn, tokenizer_texts
from mmrl.model import tiny
from mmrl.model.budget import Budget, Costs
from mmrl.model.load import LoRA
from mmrl.model.packing import Group
from mmrl.model.placement import own_part
from mmrl.model.policy import Policy
from mmrl.model.preparing import HELD
from mmrl.model.ranks import Ranks
from mmrl.model.released import TABLE, UnknownModel, config_of
from mmrl.model.scoring import hidden
from mmrl.model.sizes import sizes, sizes_of
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.plan import GIB, Device, Settings, Work, _Shares, plan
from tests.several import several, values

SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"
GPU = Device("cuda", 80 * GIB)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request):
    return tiny.cached(request.param, tiny.TinySize(hidden=128, layers=4), tokenizer_texts())


def load(folder, **settings):
    return Policy.load(folder, device="cpu", checkpointing=False, **settings)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_released_models_have_the_published_number_of_parameters(name):
    for kind in ("", "-Instruct", "-Thinking"):
        assert config_of(f"{name}{kind}").model_type == TABLE[name].family
    assert sizes_of(name, torch.bfloat16).parameters == TABLE[name].parameters


def test_a_model_that_is_not_there_is_said():
    with pytest.raises(UnknownModel, match=r"neither in a folder nor in the cache of the hub"):
        config_of("someone/else-9B")
    with pytest.raises(
        UnknownModel, match=r"families qwen2_vl, qwen2_5_vl.*; this one is 'llava'"
    ):
        sizes(type("Config", (), {"model_type": "llava"})(), torch.float32, (), LoRA())


@pytest.mark.parametrize("freeze", [(), ("vision",), ("vision", "merger", "language")])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_their_bytes_are_those_of_a_load(folder, freeze, rank, dtype):
    lora = LoRA(rank=rank)
    policy = load(folder, freeze=freeze, lora=lora, dtype=dtype)
    known = sizes_of(folder, getattr(torch, dtype), freeze, lora)
    weights = list(policy.model.parameters())
    assert known.parameters == sum(p.numel() for p in weights)
    assert known.trainable == sum(p.numel() for p in policy.parameters())
    assert known.parameters * known.itemsize == sum(p.nbytes for p in weights)
    assert known.language == sum(
        p.numel() for p in policy.base.model.language_model.layers.parameters()
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "optim",
    [
        Optim(),
        Optim(eight_bit=True),
        Optim(masters=False),
        Optim(masters=False, eight_bit=True),
    ],
)
def test_bytes_of_the_optimizer_are_those_of_its_states(folder, dtype, optim):
    """Counted in the tensors, for one matrix as large as the 8-bit formats ask for."""
    weight = torch.nn.Parameter(torch.randn(256, 256).to(getattr(torch, dtype)))
    optimizer = Optimizer([("weight", weight)], optim)
    known = replace(
        sizes_of(folder, weight.dtype), trainable=weight.numel(), parameters=weight.numel()
    )
    found = plan(known, Work(evaluated=0), Settings(optim=optim), GPU).phases["load"]
    masters = sum(m.nbytes for m, _ in optimizer._copies())
    assert found.get("masters", 0) == masters
    weight.grad = torch.zeros_like(weight, dtype=torch.float32)
    if (
        optim.masters and not optim.eight_bit
    ):  # the others compile their step, which takes a minute
        optimizer.step(1)
        states = next(iter(optimizer._adam.state.values()))
        moments = sum(states[name].nbytes for name in ("exp_avg", "exp_avg_sq"))
        assert found["moments"] == moments
    else:
        each = 1 + 4 / 256 if optim.eight_bit else weight.itemsize
        assert found["moments"] == 2 * each * weight.numel()


SHARED = {
    "fp32": ("float32", LoRA(), "full"),
    "bf16": ("bfloat16", LoRA(), "full"),
    "adapters": ("bfloat16", LoRA(rank=4, vision=True), "full"),
    "copies": ("bfloat16", LoRA(), "off"),
}


def held_by_each(folder):
    """Bytes of what each of several processes holds after a step of the optimizer, counted in the tensors."""
    ranks = Ranks.start("cpu")
    found = {}
    for name, (dtype, lora, how) in SHARED.items():
        policy = load(folder, dtype=dtype, lora=lora)
        policy.freeze_reference()
        policy.shard(ranks, how)
        optimizer = Optimizer(policy.named_parameters(), Optim(), ranks)
        for parameter in optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        optimizer.step(1)
        states = [own_part(x) for one in optimizer._adam.state.values() for x in one.values()]
        frozen = [] if policy._frozen_copy is None else policy._frozen_copy.parameters()
        parts = {
            "weights": policy.model.parameters(),
            "reference": frozen,
            "masters": [master for master, _ in optimizer._copies()],
            "moments": [x for x in states if x.ndim],
        }
        found[name] = {n: sum(own_part(x).nbytes for x in each) for n, each in parts.items()}
    ranks.end()
    return found


@pytest.mark.parametrize("name", SHARED)
def test_what_each_of_two_processes_holds_is_what_is_planned(folder, name, each_of_two):
    dtype, lora, how = SHARED[name]
    known = sizes_of(folder, getattr(torch, dtype), (), lora)
    work = Work(reference=not lora.rank, evaluated=0)
    planned = plan(known, work, Settings(shard=how), Device("cpu", GIB, 2)).phases["load"]
    # A weight whose rows cannot be divided evenly leaves one process with a row more.
    for counts in each_of_two:
        for part, size in counts[name].items():
            assert planned.get(part, 0) == pytest.approx(size, rel=0.01), part


@pytest.fixture(scope="module")
def each_of_two(folder):
    return values(several(2, held_by_each, folder))


def test_a_copy_on_each_machine_is_planned_where_it_is_small():
    def weights(how, name, count):
        sizes = sizes_of(f"Qwen/{name}", torch.bfloat16)
        found = plan(sizes, Work(), Settings(shard=how), replace(GPU, count=count))
        return found.phases["load"]["weights"]

    small, large = "Qwen2.5-VL-7B", "Qwen2.5-VL-32B"
    assert (
        weights("auto", small, 16) == weights("hybrid", small, 16) == weights("full", small, 8)
    )
    assert weights("auto", large, 16) == weights("full", large, 16) < weights("full", large, 8)
    # As many as do not fill machines evenly are one mesh.
    assert weights("auto", small, 12) == weights("full", small, 12)


@pytest.mark.parametrize("lora", [LoRA(), LoRA(rank=4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_are_what_autograd_keeps_of_a_packed_row(folder, lora, dtype):
    """Counted tensor by tensor in a real pass; the plan adds room for gradients at both ends."""
    policy = load(folder, lora=lora, dtype=dtype, freeze=("vision", "merger"))
    encoded = policy.encode(Drawn("lookup", size=1, size_px=64, cells=2)[0])
    answers = tuple(torch.arange(5, 5 + 60) for _ in range(4))
    group = Group(encoded, encoded.visual, answers, tuple(range(4)), (1.0,) * 4)
    held: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage()._cdata for p in policy.model.parameters()}

    def keep(tensor):
        held[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden(policy, [group], grad=True)
    found = sum(x.untyped_storage().nbytes() for name, x in held.items() if name not in own)
    known = sizes_of(folder, getattr(torch, dtype), ("vision", "merger"), lora)
    layers = known.layers * known.layer_graph * group.size
    ends = 8 * group.size * known.hidden * known.itemsize
    assert 0.97 * layers < found < layers + ends


def test_the_tower_keeps_what_is_planned(folder):
    policy = load(folder)
    encoded = policy.encode(Drawn("lookup", size=1, size_px=64, cells=2)[0])
    held: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage()._cdata for p in policy.model.parameters()}

    def keep(tensor):
        held[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.vision.tower(encoded.visual)
    found = sum(x.untyped_storage().nbytes() for name, x in held.items() if name not in own)
    known = sizes_of(folder, torch.float32)
    patches = sum(len(medium.values) for medium in encoded.visual)
    planned_bytes = patches * known.depth * known.block_graph
    # The patches themselves and the merger stand beside the blocks.
    assert (
        planned_bytes
        < found
        < planned_bytes + patches * 4 * (2 * known.patch_numbers + 24 * known.tower_hidden)
    )
    assert sizes_of(folder, torch.float32, ("vision",)).block_graph == 0


def peak(work, settings=Settings(), device=GPU, lora=LoRA()):
    return plan(sizes_of(SEVEN, torch.bfloat16, (), lora), work, settings, device)


def test_a_full_fine_tune_of_7b_is_the_sum_of_its_parts():
    found = peak(Work(reference=True)).phases["optimize"]
    count = TABLE["Qwen/Qwen2.5-VL-7B"].parameters
    assert found["weights"] == found["reference"] == 2 * count
    assert found["masters"] == found["gradients"] == 4 * count and found["moments"] == 8 * count


@pytest.mark.parametrize(
    ("phase", "change"),
    [
        ("update", {"settings": Settings(optim=Optim(eight_bit=True))}),
        ("update", {"settings": Settings(optim=Optim(masters=False))}),
        ("update", {"settings": Settings(offload_reference=True)}),
        ("update", {"work": {"tokens_per_pass": 4096}}),
        ("update", {"lora": LoRA(rank=8)}),
        ("update", {"device": Device("cuda", 80 * GIB, 8)}),
    ],
)
def test_each_switch_saves_where_it_should(phase, change):
    work = Work(prompts=128, prompt_tokens=1792, visual_tokens=1280, reference=True)
    changed = replace(work, **change.pop("work", {}))
    if "lora" in change:  # then the model without its adapters is the reference
        changed = replace(changed, reference=False)
    assert peak(changed, **change).bytes(phase) < 0.97 * peak(work).bytes(phase)


@pytest.mark.parametrize(
    ("phase", "change"),
    [
        ("generate", {"rows_at_once": 16}),
        ("generate", {"answer_tokens": 128}),
        ("evaluate", {"rows_at_once": 16}),
        ("evaluate", {"prompt_tokens": 600}),
    ],
)
def test_where_there_is_room_a_rollout_takes_what_it_is_asked_for(phase, change):
    work = Work(prompts=128, prompt_tokens=1792, visual_tokens=1280, reference=True)
    large = Device("cuda", 800 * GIB)
    whole, smaller = (peak(w, device=large) for w in (work, replace(work, **change)))
    assert smaller.bytes(phase) < 0.97 * whole.bytes(phase)


@pytest.mark.parametrize("gib", [24, 32, 48, 80, 141])
@pytest.mark.parametrize("evaluated", [256, 4096])
def test_a_rollout_takes_no_more_than_is_left(gib, evaluated):
    """Whatever is asked for, sampling fits where the rest does: fewer answers advance at once, and seconds grow."""
    work = Work(128, 8, 8192, 7000, 2048, evaluated=evaluated)
    device = Device("cuda", gib * GIB, bandwidth=3e12)
    found = peak(work, device=device, lora=LoRA(rank=16))
    for phase in ("generate", "evaluate"):
        assert found.bytes(phase) <= device.usable, phase
    roomy = peak(work, device=replace(device, memory=2000 * GIB), lora=LoRA(rank=16))
    assert found.seconds["decode"] > roomy.seconds["decode"]
    given = peak(work, Settings(memory=2 * GIB), device, LoRA(rank=16))
    assert given.bytes("generate") < found.bytes("generate")


def test_the_plan_reckons_as_the_engine_does(folder):
    policy = load(folder)
    known, work = sizes_of(folder, torch.float32), Work(prompts=4, evaluated=0)
    share = _Shares(known, work, Settings(), Device("cpu", 8 * GIB))
    assert share.costs == Costs.of_model(policy.base)
    optimizer = Optimizer(policy.named_parameters(), Optim())
    later = share._gradients() + share.standing()["moments"]
    assert later == optimizer.bytes_to_come()


def test_checkpointing_saves_and_views_with_gradient_cost():
    work = Work(prompts=128)
    plain = peak(work, Settings(checkpointing=False)).phases["update"]
    saved = peak(work, Settings(checkpointing=True)).phases["update"]
    assert saved["graphs"] + saved["one layer"] < 0.3 * plain["graphs"]
    assert peak(work).phases["update"] == saved, "large models are loaded with checkpointing"
    more = peak(replace(work, graphs=3)).phases["update"]
    assert more["graphs"] == 3 * saved["graphs"]


@pytest.mark.parametrize("memory", [2 * GIB, 100 * GIB])
def test_features_and_graphs_are_within_the_budget(memory):
    """What the vision cache keeps in a run is what is planned for it."""
    known = sizes_of(SEVEN, torch.bfloat16)
    work = Work(prompts=512, visual_tokens=2000, prompt_tokens=2200)
    found = plan(known, work, Settings(memory=memory), Device("cuda", 500 * GIB))
    budget, rows = Budget.of(memory), 512 * 2000 * known.hidden * 2
    assert found.phases["load"]["features"] == min(rows, budget.features)
    rated = 40 * 512 * 8000 * known.depth * known.tower_hidden
    assert ("tower's graphs" in found.phases["generate"]) == (rated <= budget.graphs)


def test_pictures_of_a_step_and_what_lies_ready_are_in_the_hosts_memory():
    """Bytes of uint8, once decoded and once per way of seeing; the next step's beside them, up to a limit."""
    known = sizes_of(SEVEN, torch.bfloat16)
    work = Work(prompts=16, visual_tokens=1000, prompt_tokens=1200, pictures=2)
    alone = plan(known, work, Settings(), GPU).host
    one = 4000 * 3 * 2 * 14**2
    assert alone["pictures of a step"] == 16 * 3 * one and "workers" not in alone
    helped = plan(known, work, Settings(workers=4), GPU).host
    assert helped["pictures ahead"] == alone["pictures of a step"]
    assert helped["workers"] == 4 * plan(known, work, Settings(workers=1), GPU).host["workers"]
    many = replace(work, prompts=4096)
    assert plan(known, many, Settings(workers=4), GPU).host["pictures ahead"] == HELD


def test_seconds_are_told_only_at_a_rate():
    assert peak(Work()).seconds == {}
    timed = peak(Work(scored=1), device=replace(GPU, flops=4e14, bandwidth=3e12)).seconds
    assert set(timed) == {"prefill", "score", "update", "decode"}
    twice = peak(Work(scored=1), device=replace(GPU, flops=8e14)).seconds
    assert twice["update"] == pytest.approx(timed["update"] / 2) and "decode" not in twice


def test_nothing_is_loaded_for_a_plan(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)
    sizes_of.cache_clear()
    assert not peak(Work()).fits
