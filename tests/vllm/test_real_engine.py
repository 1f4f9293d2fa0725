"""A real vLLM (the CPU build) reads what the trainer reads, says what the trainer computes, and takes its weights.

`make vllm-env` makes the environment, `make vllm-tests` runs this in it; elsewhere it is skipped.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from mmrl.model.load import LoRA
from mmrl.model.packing import Group
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.rollouts.vllm_client import RemoteVLLM
from mmrl.rollouts.vllm_engine import VLLMEngine
from mmrl.rollouts.vllm_serve import Desk, server_of
from mmrl.types import Media, Now, Prompt, Role, Sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(os.environ.get("MMRL_VLLM") != "1", reason="make vllm-tests runs it"),
]
NOW = Now(step=3, progress=0.1, seed=7)
SAMPLING = Sampling(3, 1.0, max_tokens=8)
CLOSE = {"rtol": 0, "atol": 1e-3}
TOKENS = int(os.environ.get("MMRL_VLLM_TOKENS", "100000"))
"""Tokens among which no placeholder may be."""


def pixels(seed, frames=1, height=32, width=32):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), generator=rng, dtype=torch.uint8)


def clip(seed, *times):
    return Media(pixels(seed, len(times)), torch.tensor(times, dtype=torch.float64), times[-1])


def question(name, *media):
    parts = [{"type": "video" if one.is_video else "image"} for one in media]
    parts.append({"type": "text", "text": "What is at row 1?"})
    return Prompt(name, [{"role": "user", "content": parts}], media)


IMAGE = question("image", Media(pixels(1)))
PROMPTS = [
    question("text"),
    IMAGE,
    question("odd size", Media(pixels(2, 1, 75, 100))),
    question("three", Media(pixels(3)), Media(pixels(4, 1, 64, 48)), Media(pixels(5))),
    question("clip", clip(6, 0.0, 0.5, 1.0, 1.5)),
    question("odd clip", clip(7, 0.0, 1.0, 2.0)),
    question("uneven clip", clip(8, 0.2, 1.5, 3.1, 3.3)),
    question("lone frame", clip(9, 4.2)),
    question("clip and image", clip(10, 0.0, 0.1, 0.2, 0.3), Media(pixels(11))),
]


def trained(policy, rollouts, visual=None):
    """What training computes for these answers, one tensor each."""
    found = []
    for rollout in rollouts:
        encoded = policy.encode(rollout.prompt)
        seen = encoded.visual if visual is None else visual[rollout.group]
        group = Group(encoded, seen, (rollout.tokens,), (0,), (rollout.temperature,))
        shape = (1, len(rollout.tokens))
        with torch.no_grad():
            scores = score_packed(policy, {"raw": [group]}, {"raw": ScoreOutputs()}, shape)
        found.append(scores["raw"].logp[0])
    return found


def agrees(policy, rollouts, visual=None):
    for rollout, right in zip(rollouts, trained(policy, rollouts, visual), strict=True):
        drawn = rollout.roles == int(Role.POLICY)
        name = f"{rollout.prompt.id}: {rollout.logp[drawn]} and {right[drawn]}"
        torch.testing.assert_close(
            rollout.logp[drawn],
            right[drawn],
            **CLOSE,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def started(folder, **rest):
    from mmrl.rollouts.vllm_local import LocalVLLM

    return LocalVLLM(str(folder), mode="raw", dtype="float32", length=1024, media=4, **rest)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def engine(request, tiny_folder, tiny3_folder):
    folder = tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder
    policy = Policy.load(folder, device="cpu", dtype="float32")
    local = started(folder)
    yield VLLMEngine(policy, local)
    local.close()


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_ids_and_log_probs_are_those_of_training(engine, temperature):
    """Ids are compared by the engine itself, which stops at a difference."""
    sampling = replace(SAMPLING, temperature=temperature)
    found = engine.generate(PROMPTS, sampling, NOW)
    agrees(engine.policy, found)
    again = engine.generate(PROMPTS, sampling, NOW)
    assert [r.tokens.tolist() for r in found] == [r.tokens.tolist() for r in again]
    if temperature:
        answers = {tuple(r.tokens.tolist()) for r in found}
        assert len(answers) > len(PROMPTS)


def test_another_view_of_the_same_prompt_is_not_answered_from_the_real_picture(engine):
    policy = engine.policy
    rules = policy.processing.images
    (real,) = policy.encode(IMAGE).visual
    black = rules.patches(torch.zeros_like(real.frames))
    engine.generate([IMAGE], SAMPLING, NOW)
    found = engine.generate([IMAGE], SAMPLING, NOW, visual=[(black,)], branch="masked")
    agrees(policy, found, [(black,)])
    apart = [
        (a - b).abs().max()
        for a, b in zip(trained(policy, found), [r.logp for r in found], strict=True)
    ]
    assert max(apart) > 0.01


def test_a_forced_start_is_read_and_not_counted(engine):
    start = torch.tensor(engine.policy.processing.encoder.encode("red green").ids)
    found = engine.generate([IMAGE], SAMPLING, NOW, prefixes=[start])
    agrees(engine.policy, found)
    assert all(r.tokens[: len(start)].tolist() == start.tolist() for r in found)


def changed(policy, part):
    """The weights of a part move, as after an update."""
    rng = torch.Generator().manual_seed(policy.version + 1)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if part in name:
                weight.add_(0.02 * torch.randn(weight.shape, generator=rng))
    policy.stepped()
    policy.vision.clear()


@pytest.mark.parametrize("part", ["visual", "language_model", ""])
def test_new_weights_are_used_and_nothing_remembers_the_old_ones(engine, part):
    policy = engine.policy
    before = engine.generate(PROMPTS, SAMPLING, NOW)
    changed(policy, part)
    engine.sync(policy)
    found = engine.generate(PROMPTS, SAMPLING, NOW)
    agrees(policy, found)
    assert {r.version for r in found} == {policy.version}
    old = trained(policy, before)
    shown = [n for n, r in enumerate(before) if r.prompt.media]
    assert max((old[n] - before[n].logp).abs().max() for n in shown) > 1e-2


def test_answers_stay_right_when_it_sleeps_between_calls(engine, monkeypatch):
    """Its bookkeeping of sleep is real on a CPU: who sleeps answers nobody, and wakes in parts; memory alone is not
    given back."""
    local, policy = engine.vllm, engine.policy
    monkeypatch.setattr(local, "on_cuda", True)
    core = local.llm.llm_engine
    for part in ("", "language_model"):
        agrees(policy, engine.generate(PROMPTS[:3], SAMPLING, NOW))
        assert core.is_sleeping() and local.about().version == ""
        with pytest.raises(AssertionError, match="asked for weights"):
            local.answer([], engine.version)
        local.wake("weights")
        assert core.is_sleeping(), "the cache still sleeps"
        changed(policy, part)
    found = engine.generate(PROMPTS[:3], SAMPLING, NOW)
    agrees(policy, found)
    assert {r.version for r in found} == {policy.version}
    local.wake()
    assert not core.is_sleeping()


def test_it_has_the_calls_and_settings_that_the_adapter_uses_elsewhere():
    """What only runs on CUDA is at least there, with these arguments."""
    import dataclasses
    import inspect

    import vllm
    from vllm import envs
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor.abstract import Executor

    for owner, name, arguments in (
        (vllm.LLM, "sleep", {"level": 2}),
        (vllm.LLM, "wake_up", {"tags": ["weights"]}),
        (vllm.LLM, "collective_rpc", {"method": "mmrl_state", "args": ()}),
        (vllm.LLM, "reset_prefix_cache", {}),
        (vllm.LLM, "update_weight_version", {"new_version": "x"}),
        (vllm.LLM, "finish_weight_update", {"weight_version": "x"}),
        (LLMEngine, "reset_encoder_cache", {}),
        (Executor, "register_failure_callback", {"callback": print}),
    ):
        inspect.signature(getattr(owner, name)).bind(None, **arguments)
    settings = {field.name for field in dataclasses.fields(EngineArgs)}
    used = {"enable_sleep_mode", "gpu_memory_utilization", "worker_extension_cls"}
    used |= {"tensor_parallel_size", "distributed_executor_backend", "weight_transfer_config"}
    assert used <= settings
    assert "VLLM_BATCH_INVARIANT" in envs.environment_variables


def test_a_set_of_weights_that_breaks_off_is_mended_by_the_next(engine):
    local, policy = engine.vllm, engine.policy
    with pytest.raises(Exception, match="nothing of this name"):
        local.load(broken(policy), "broken", True)
    assert local.about().version == ""
    agrees(policy, engine.generate(PROMPTS[:2], SAMPLING, NOW))


def broken(policy):
    for number, (name, weight) in enumerate(policy.base.named_parameters()):
        if number == 5:
            raise RuntimeError("nothing of this name")
        yield name, weight


@contextmanager
def served(local):
    server = server_of(Desk(local), "127.0.0.1", 0)
    threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_behind_a_url_it_is_the_same(engine):
    policy = engine.policy
    direct = engine.generate(PROMPTS, SAMPLING, NOW)
    with served(engine.vllm) as url:
        remote = VLLMEngine(policy, RemoteVLLM(url))
        groups = []
        found = remote.generate(PROMPTS, SAMPLING, NOW, done=groups.append)
        assert sorted(group[0].group for group in groups) == list(range(len(PROMPTS)))
        agrees(policy, found)
        changed(policy, "")
        agrees(policy, remote.generate(PROMPTS, SAMPLING, NOW))
    assert [r.tokens.tolist() for r in direct] == [r.tokens.tolist() for r in found]


def test_no_placeholder_is_ever_drawn(engine):
    """At a temperature at which an unbanned engine draws dozens; the engine stops at the first one."""
    hot = Sampling(64, 2.0, max_tokens=64)
    drawn, step = 0, 0
    while drawn < TOKENS:
        step += 1
        rollouts = engine.generate(PROMPTS[:4], hot, replace(NOW, step=step))
        drawn += sum(len(r.tokens) for r in rollouts)
        banned = set(engine.policy.processing.banned_ids)
        assert not any(banned & set(r.tokens.tolist()) for r in rollouts)


@pytest.mark.parametrize("tower", [False, True])
def test_each_adapter_is_used_and_not_the_one_before(tiny_folder, tower):
    lora = LoRA(rank=4, vision=tower)
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32", lora=lora)
    local = started(tiny_folder, rank=8, tower=tower)
    engine = VLLMEngine(policy, local)
    for _ in range(3):
        for asked in by_kind(PROMPTS) if tower else [PROMPTS]:
            agrees(policy, engine.generate(asked, SAMPLING, NOW))
        changed(policy, "lora_B")
    local.close()


def by_kind(prompts):
    """Those with pictures and those with clips, without those with both: with an adapter on the tower vLLM's CPU build
    maps it to the tokens of both kinds, and its tower reads one kind at a time."""
    clips = [any(one.is_video for one in prompt.media) for prompt in prompts]
    pictures = [any(not one.is_video for one in prompt.media) for prompt in prompts]
    rows = list(zip(prompts, clips, pictures, strict=True))
    return [
        [p for p, clip, _ in rows if not clip],
        [p for p, clip, other in rows if clip > other],
    ]
