"""Lent weights, who may be sharded how, and sums over processes. What sharded policies learn: test_sharded.py."""

import pytest
import torch
from torch import nn

from mmrl.model.load import resolve_device
from mmrl.model.logprobs import embed
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.model.sharding import add_up, filler, mesh_of, norm_of
from tests.several import several, values


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu")


def test_a_tied_weight_is_one_unit_and_lent_as_it_is_now(policy):
    assert policy.table is policy.head
    weight = policy.base.get_input_embeddings().weight
    assert policy.head(lambda lent: lent) is weight
    ids = torch.tensor([5, 7])
    assert torch.equal(policy.table(embed, ids, None), weight[ids])
    with torch.no_grad():
        weight[5] += 1.0
    assert torch.equal(policy.table(embed, ids, None), weight[ids])


def test_the_reference_lends_its_own(tiny_folder):
    policy = Policy.load(tiny_folder, device="cpu")
    policy.freeze_reference()
    with policy.reference():
        other = policy.head.weight
    assert other is not policy.head.weight and torch.equal(other, policy.head.weight)


def test_lent_weights_are_no_part_of_the_model(policy):
    assert not any("owners" in name for name, _ in policy.model.named_parameters())


@pytest.mark.parametrize("how", ["auto", "full", "off"])
def test_one_process_is_never_sharded(policy, how):
    assert mesh_of(Ranks.alone(), how, "cpu") is None
    before = dict(policy.model.named_parameters())
    policy.shard(Ranks.alone(), how)
    with policy.whole():
        assert all(p is before[name] for name, p in policy.model.named_parameters())


@pytest.mark.parametrize(
    ("world", "local"), [(4, 4), (4, 1), (5, 2)], ids=["one machine", "one each", "uneven"]
)
def test_hybrid_needs_several_machines_with_several_devices_each(world, local):
    ranks = Ranks(0, world, 0, local)
    message = rf"--load.shard is 'hybrid'.* {world} processes, {local} of them on this machine"
    with pytest.raises(ValueError, match=message):
        mesh_of(ranks, "hybrid", "cpu")


def test_unknown_ways_and_what_cannot_be_sharded_are_refused(tiny_folder):
    with pytest.raises(ValueError, match=r"--load.shard is 'zero3'; it must be 'auto', 'full'"):
        mesh_of(Ranks(0, 2, 0, 2), "zero3", "cpu")  # type: ignore[arg-type]
    values(several(2, shard_repeated, tiny_folder))


def shard_repeated(folder):
    ranks = Ranks.start("cpu")
    policy = Policy.load(folder, device="cpu", shared=False)
    with pytest.raises(ValueError, match=r"--load.shared False .* use --load.shard off"):
        policy.shard(ranks)
    policy.shard(ranks, "off")
    ranks.end()


def test_one_card_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"'cuda:1', one card, but 8 processes"):
        resolve_device("cuda:1", processes=8)
    assert resolve_device("cuda:1").index == 1 and resolve_device("cuda", 8).type == "cuda"


def test_the_filler_is_two_tokens_that_predict_one():
    group = filler()
    assert group.size == 2 and [len(answer) for answer in group.answers] == [1]
    assert not group.visual


def summed():
    """Gradients of three weights, of which the second rank has one and nobody the last."""
    ranks = Ranks.start("cpu")
    weights = [
        nn.Parameter(torch.ones(2, 3)),
        nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.ones(1)),
    ]
    half = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    half.grad_dtype = torch.float32
    half.grad = torch.full((2,), 1.0 + 2.0**-12)
    weights[0].grad = torch.full((2, 3), 1.0 + ranks.rank)
    if ranks.rank:
        weights[1].grad = torch.full((4,), 0.5)
    add_up([*weights, half], ranks)
    norm = norm_of([*weights, half], ranks)
    ranks.end()
    return [None if w.grad is None else w.grad.tolist() for w in (*weights, half)], norm


def test_gradients_of_copies_are_summed_and_what_nobody_has_stays_away():
    found = values(several(2, summed))
    fine = 2.0 + 2.0**-11
    wanted = [[[3.0] * 3] * 2, [0.5] * 4, None, [fine, fine]]
    assert [grads for grads, _ in found] == [wanted, wanted]
    norm = (6 * 9 + 4 * 0.25 + 2 * fine**2) ** 0.5
    assert found[0][1] == found[1][1] == pytest.approx(norm)
