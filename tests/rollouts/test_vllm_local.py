"""What vLLM in this process is asked to do, and in which order: a made-up `vllm` writes it down.

That a real vLLM has these calls, and does what they say, is tested in `tests/vllm`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import safetensors.torch
import torch

from mmrl.rollouts import vllm_local, vllm_serve
from mmrl.rollouts.vllm_local import UnfitVLLM, WorkerDied, require_share
from mmrl.rollouts.vllm_transfer import BACKEND, handed
from mmrl.rollouts.vllm_wire import GONE, Question
from mmrl.rollouts.vllm_worker import BrokenWeights, agreed
from tests.rollouts.made_up_vllm import MadeUp

WEIGHTS = [("a", torch.ones(2)), ("b", torch.zeros(3))]
QUESTION = Question([1, 2], (), {"n": 1, "max_tokens": 1, "banned": [7], "stop": ()})


class LLM:
    """Keeps its books as a real one does, and writes down what it is asked."""

    def __init__(self, **given):
        self.given, self.calls, self.done, self.workers = given, [], [], []
        count = given.get("tensor_parallel_size", 1)
        self.workers = [["", "", 0] for _ in range(count)]
        self.llm_engine = self
        self.model_config = SimpleNamespace(max_model_len=64, get_head_size=lambda: 32)
        self.model_executor = SimpleNamespace(
            is_failed=False, register_failure_callback=lambda tell: setattr(self, "tell", tell)
        )

    def _note(self, name, detail=""):
        if self.model_executor.is_failed:
            raise RuntimeError("cancelled")
        self.calls.append(f"{name} {detail}".strip())

    def init_weight_transfer_engine(self, request):
        self._note("connect")

    def start_weight_update(self):
        self._note("start")

    def update_weights(self, request):
        (where,) = request["update_info"].items()
        self._note("part", where[0])
        for worker in self.workers:
            worker[2] = 2

    def finish_weight_update(self, version=None):
        self._note("finish")

    def update_weight_version(self, version):
        self._note("name")

    def collective_rpc(self, method, args=()):
        if method == "mmrl_call":
            for worker in self.workers:
                worker[0] = args[0]
        elif method == "mmrl_end_with":
            self._note("end with", args[0])
        return self.workers

    def sleep(self, level):
        self._note("sleep", level)

    def wake_up(self, tags):
        self._note("wake", "+".join(tags))

    def reset_prefix_cache(self):
        self._note("forget prefixes")
        return True

    def reset_encoder_cache(self):
        self._note("forget pictures")

    def enqueue(self, prompts, params, use_tqdm, lora_request):
        self._note("ask")
        self.done = ["0-x"]
        return list(self.done)

    def has_unfinished_requests(self):
        return bool(self.done)

    def step(self):
        self.done.clear()
        answer = SimpleNamespace(
            index=0,
            token_ids=[5],
            logprobs=[{5: SimpleNamespace(logprob=-1.0)}],
            finish_reason="length",
            stop_reason=None,
        )
        return [SimpleNamespace(request_id="0", prompt_token_ids=[1, 2], outputs=[answer])]

    def abort_request(self, names, internal):
        self.done.clear()


class Base:
    """Of transports."""

    def __class_getitem__(cls, item):
        return cls


class Factory:
    """Where transports are known."""

    _registry: dict = {}  # noqa: RUF012

    @classmethod
    def register_engine(cls, name, engine):
        cls._registry[name] = engine


@dataclass
class Empty:
    """A base of records."""


def modules():
    config = SimpleNamespace(
        get_text_config=lambda: SimpleNamespace(num_attention_heads=8),
        vision_config=SimpleNamespace(num_heads=4),
    )
    contents = {
        "vllm": {"LLM": LLM, "SamplingParams": lambda **given: given},
        "vllm.config": {"WeightTransferConfig": lambda backend: backend},
        "vllm.distributed": {},
        "vllm.distributed.weight_transfer": {},
        "vllm.distributed.weight_transfer.factory": {"WeightTransferEngineFactory": Factory},
        "vllm.distributed.weight_transfer.base": {
            "WeightTransferEngine": Base,
            "WeightTransferInitInfo": Empty,
            "WeightTransferUpdateInfo": Empty,
        },
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda *given: given},
        "vllm.transformers_utils": {},
        "vllm.transformers_utils.config": {"get_config": lambda model, **more: config},
    }
    made = {}
    for name, inside in contents.items():
        made[name] = ModuleType(name)
        made[name].__spec__ = ModuleSpec(name, None)
        vars(made[name]).update(inside)
    return made


@pytest.fixture
def make(monkeypatch):
    """A LocalVLLM on a made-up device."""
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(vllm_local, "installed_version", lambda: vllm_local.TESTED[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return lambda **more: vllm_local.LocalVLLM("model", mode="raw", **more)


def since(local):
    """What was asked since the last look."""
    calls = list(local.llm.calls)
    local.llm.calls.clear()
    return calls


@pytest.mark.parametrize(("encoder", "pictures"), [(True, ["forget pictures"]), (False, [])])
def test_it_sleeps_after_the_answers_and_wakes_in_parts_around_new_weights(
    make, encoder, pictures
):
    local = make()
    assert local.llm.given["enable_sleep_mode"] and local.llm.given["worker_extension_cls"]
    assert local.llm.given["weight_transfer_config"] == BACKEND
    assert local.llm.given["gpu_memory_utilization"] == 0.5
    local.load(WEIGHTS, "x.0", True)
    start = ["connect", "start", "part ticket", "finish"]
    assert since(local) == [*start, "forget prefixes", "forget pictures"]
    local.answer([QUESTION], "x.0")
    local.sleep()
    local.sleep()
    assert since(local) == ["ask", "sleep 2"]
    assert local.about().version == "", "what it held is gone"
    local.load(WEIGHTS, "x.1", encoder)
    # Room for the cache only when the weights are there; nothing old is in any cache then.
    woken = ["wake weights", "start", "part ticket", "finish", "wake kv_cache"]
    assert since(local) == [*woken, "forget prefixes", *pictures]
    assert local.about().version == "x.1"


def test_with_an_adapter_the_weights_below_it_wait_in_memory(make, tmp_path):
    local = make(rank=4)
    local.adapt(tmp_path, "x.0")
    local.answer([QUESTION], "x.0")
    local.sleep()
    assert local.about().version == "x.0"
    assert since(local) == ["connect", "name", "ask", "sleep 1"]
    local.answer([QUESTION], "x.0")
    assert since(local) == ["wake kv_cache+weights", "ask"]


def test_over_several_devices_all_workers_must_say_the_same(make):
    local = make(tensor_parallel=2)
    assert local.llm.given["tensor_parallel_size"] == 2
    assert local.llm.given["distributed_executor_backend"] == "mp"
    local.load(WEIGHTS, "x.0", True)
    asked = since(local)
    assert asked[0] == f"end with {os.getpid()}", "workers of a killed server would wait on"
    # They read a file: other processes have no such object.
    assert "part file" in asked
    local.llm.workers[1][1] = "RuntimeError: out of memory"
    with pytest.raises(BrokenWeights, match=r"worker 1 of 2 could not .*: RuntimeError: out"):
        local.load(WEIGHTS, "x.1", True)
    assert local.about().version == ""
    local.llm.workers[1][1] = ""
    local.load(WEIGHTS, "x.2", True)
    assert local.about().version == "x.2"
    with pytest.raises(BrokenWeights, match=r"worker 0: 'x' of 2 tensors; worker 1: 'x' of 1"):
        agreed([("x", "", 2), ("x", "", 1)])


def test_a_worker_that_died_is_said_by_whatever_is_asked_next(make, capsys):
    local = make(tensor_parallel=2)
    local.load(WEIGHTS, "x.0", True)
    local.llm.model_executor.is_failed = True
    for ask in (
        lambda: local.answer([QUESTION], "x.0"),
        lambda: local.load(WEIGHTS, "x.1", True),
    ):
        with pytest.raises(WorkerDied, match="A process of this vLLM has ended"):
            ask()
        assert local.about().version == ""


def test_a_server_without_its_vllm_ends_and_says_what_to_do(monkeypatch, policy=None):
    monkeypatch.setattr(vllm_serve, "FAREWELL", 0.0)
    made_up = MadeUp(policy)
    ended = []

    def serve():
        try:
            vllm_serve.serve(made_up, "127.0.0.1", 0)
        except SystemExit as error:
            ended.append(error.code)

    thread = threading.Thread(target=serve)
    thread.start()
    while not hasattr(made_up, "mourned"):
        time.sleep(0.01)
    made_up.mourned()
    thread.join(30)
    assert ended == [GONE] and "Start the server again" in GONE


def test_what_cannot_be_divided_or_has_no_kernels_is_refused(make, monkeypatch):
    with pytest.raises(UnfitVLLM, match=r"is 3, which does not divide the 8 .* are 1, 2, 4"):
        make(tensor_parallel=3)
    with pytest.raises(UnfitVLLM, match=r"is 4, but this process sees 2 devices"):
        make(tensor_parallel=4)
    require_share({"language part": 8}, 4, None)
    make(invariant=True)
    assert os.environ["VLLM_BATCH_INVARIANT"] == "1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnfitVLLM, match=r"are for CUDA; this one computes on cpu.*--invariant"):
        make(invariant=True)


@pytest.mark.parametrize("wrong", ["0", "-1"])
def test_fewer_than_one_device_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        vllm_serve.main(["model", "--tensor-parallel", wrong])
    assert f"--tensor-parallel is {wrong}; it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("room", [True, False])
def test_weights_for_other_processes_lie_in_a_file_for_as_long_as_they_are_read(
    monkeypatch, tmp_path, room
):
    used = SimpleNamespace(free=1 << 40 if room else 40)
    monkeypatch.setattr("mmrl.rollouts.vllm_transfer.SHARED", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda place: used)
    wide = [*WEIGHTS, ("c", torch.arange(6.0).view(2, 3).t())]
    with handed(wide, beyond=True) as where:
        file = where["file"]
        assert file.startswith(str(tmp_path)) == room
        found = safetensors.torch.load_file(file)
        assert all(torch.equal(found[name], weight) for name, weight in wide)
    assert not os.path.exists(file)
