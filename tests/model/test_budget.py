"""The bytes of a device that work may hold: parts of what is free, and where that is read."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch

from mmrl.model import budget
from mmrl.model.budget import GIB, LEAST, Budget, Costs, free_bytes
from mmrl.model.policy import Policy
from mmrl.training.optim import Optim, Optimizer


@pytest.mark.parametrize("free", [8 * GIB, 100 * GIB])
def test_no_phase_takes_more_than_is_free(free):
    found = Budget.of(free)
    pictures = found.features + found.graphs
    assert found.keys_values + found.prefill + found.logits + pictures <= 0.9 * free
    assert found.activations + pictures <= 0.9 * free
    assert min(astuple(found)) > 0


def test_a_full_device_leaves_the_least_that_works():
    assert Budget.of(-5 * GIB) == Budget.of(0) == Budget.of(LEAST)


def test_negative_parts_are_refused():
    with pytest.raises(ValueError, match=r"Budget\.graphs is -1; it must be 0 or more bytes"):
        Budget(1, 1, 1, 1, -1, 1)


def test_auto_reads_what_is_free_and_leaves_room_for_the_optimizer(monkeypatch):
    free = {"cuda": 40 * GIB, "cpu": 20 * GIB}
    monkeypatch.setattr(budget, "free_bytes", lambda device: free[device.type])
    assert Budget.auto(torch.device("cuda"), 10 * GIB) == Budget.of(30 * GIB)
    assert Budget.auto(torch.device("cpu"), 1 * GIB) == Budget.of(9 * GIB)
    free["cpu"] = None
    assert Budget.auto(torch.device("cpu")) == Budget.of(2 * GIB)


def test_free_memory_of_this_computer_is_read():
    found = free_bytes(torch.device("cpu"))
    assert found is not None and 2**20 < found < 2**50


def test_the_policy_decides_once_and_takes_what_it_is_given(tiny_folder, monkeypatch):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    monkeypatch.setattr(budget, "free_bytes", lambda device: 20 * GIB)
    policy.expected = lambda: 2 * GIB
    first = policy.budget
    monkeypatch.setattr(budget, "free_bytes", lambda device: GIB)
    assert policy.budget is first and first == Budget.of(8 * GIB)
    other = Policy.load(tiny_folder, device="cpu", dtype="float32")
    other.memory = 3 * GIB
    assert other.budget == Budget.of(3 * GIB)


def test_what_the_optimizer_is_still_to_take(tiny_folder):
    weight = torch.nn.Parameter(torch.randn(8, 4).to(torch.bfloat16))
    optimizer = Optimizer([("weight", weight)], Optim())
    assert optimizer.bytes_to_come() == 32 * (4 + 8)
    weight.grad = torch.zeros_like(weight, dtype=torch.float32)
    optimizer.step(1)
    assert optimizer.bytes_to_come() == 32 * 4, "the moments are there now"


def test_costs_are_those_of_the_model(tiny_folder):
    base = Policy.load(tiny_folder, device="cpu", dtype="float32").base
    text, found = base.config.get_text_config(), Costs.of_model(base)
    width = text.hidden_size // text.num_attention_heads
    assert found.token == text.num_hidden_layers * 2 * text.num_key_value_heads * width * 4
    assert found.prefill > found.token and found.patch > 0
    assert found.row == 24 * len(base.lm_head.weight)
