"""The adapter for vLLM against a loopback server of our own whose vLLM is made up, and which misbehaves on demand.

What a real vLLM says is tested in `tests/vllm`.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from mmrl.grpo import GRPO
from mmrl.model.handing import all_weights
from mmrl.model.load import LoRA
from mmrl.model.patches import PixelBudget
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rollouts import choosing, vllm_client, vllm_local, vllm_serve
from mmrl.rollouts.choosing import EngineChoice, opened
from mmrl.rollouts.correction import corrected
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.experts import WithLabel
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.request import asked_of
from mmrl.rollouts.vllm_client import RemoteVLLM, ServerGone
from mmrl.rollouts.vllm_engine import OldWeights, VLLMEngine
from mmrl.rollouts.vllm_local import TESTED, UnfitVLLM, require_heads, require_version
from mmrl.rollouts.vllm_prompts import EngineDisagrees, clip_times, meaning, questions_of
from mmrl.rollouts.vllm_wire import About, packed, unpacked
from mmrl.types import Media, Now, Prompt, Role, Sampling
from tests.rollouts.made_up_vllm import MadeUp, loopback

NOW = Now(step=3, progress=0.1, seed=7)
SAMPLING = Sampling(3, 1.0, max_tokens=6)


def picture(seed, height=32, width=32):
    rng = torch.Generator().manual_seed(seed)
    return Media(torch.randint(0, 256, (1, 3, height, width), generator=rng, dtype=torch.uint8))


def question(name, *media):
    parts = [{"type": "video" if one.is_video else "image"} for one in media]
    parts.append({"type": "text", "text": f"{name}?"})
    return Prompt(name, [{"role": "user", "content": parts}], media)


PROMPTS = [
    question("red", picture(1)),
    question("blue"),
    question("two", picture(2, 48), picture(1)),
]


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def policy3(tiny3_folder):
    return Policy.load(tiny3_folder, device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(vllm_client, "PAUSES", (0.01,))


def told(rollouts):
    return [(r.group, r.prompt.id, tuple(r.tokens.tolist()), r.stop) for r in rollouts]


def test_over_http_it_is_the_same_as_in_process(policy):
    direct = VLLMEngine(policy, MadeUp(policy)).generate(PROMPTS, SAMPLING, NOW)
    made_up = MadeUp(policy)
    with loopback(made_up) as (url, _):
        engine = VLLMEngine(policy, RemoteVLLM(url))
        found = engine.generate(PROMPTS, SAMPLING, NOW)
        again = engine.generate(PROMPTS, SAMPLING, NOW)
    assert told(direct) == told(found) == told(again) and len(found) == 9
    for rollout in found:
        assert torch.equal(rollout.prompt_ids, policy.encode(rollout.prompt).ids)
        assert rollout.version == policy.version and rollout.logp is not None
    # Every weight once, bit for bit, and a second call with the same weights sends none.
    ours = dict(all_weights(policy))
    assert made_up.got.keys() == ours.keys()
    assert all(torch.equal(made_up.got[name], weight) for name, weight in ours.items())
    assert made_up.done == ["begin", "finish and forget pictures"]


@pytest.mark.parametrize("fault", ["500", "garbage", "half", "closed", "slow"])
@pytest.mark.parametrize(
    "path", ["/answer", "/weights/begin", "/weights/part", "/weights/finish"]
)
def test_what_fails_on_its_way_is_sent_again(policy, fault, path):
    made_up = MadeUp(policy)
    with loopback(made_up) as (url, faults):
        engine = VLLMEngine(policy, RemoteVLLM(url, slow=0.3))
        faults[path] = [fault, fault]
        found = engine.generate(PROMPTS, SAMPLING, NOW)
        assert not faults[path]
    assert told(found) == told(
        VLLMEngine(policy, MadeUp(policy)).generate(PROMPTS, SAMPLING, NOW)
    )
    assert made_up.got.keys() == dict(all_weights(policy)).keys()


def test_a_server_that_stays_away_is_named_with_what_to_do(policy):
    with loopback(MadeUp(policy)) as (url, faults):
        engine = VLLMEngine(policy, RemoteVLLM(url, patience=0.3))
        faults["/answer"] = ["500"] * 1000
        with pytest.raises(
            ServerGone, match=rf"{url} has not answered /answer.*500.*out of memory"
        ) as error:
            engine.generate(PROMPTS, SAMPLING, NOW)
    assert "\x1b" not in str(error.value) and "run the same command" in str(error.value)
    with pytest.raises(ServerGone, match="/about"):
        RemoteVLLM(url, patience=0.05)


def test_a_server_that_was_started_again_gets_the_weights_again(policy):
    made_up = MadeUp(policy)
    with loopback(made_up) as (url, faults):
        engine = VLLMEngine(policy, RemoteVLLM(url))
        first = engine.generate(PROMPTS, SAMPLING, NOW)
        faults["/answer"] = ["restarted"]
        policy.counters.clear()
        again = engine.generate(PROMPTS, SAMPLING, NOW)
    assert told(first) == told(again)
    assert policy.counters["rollout/weights_lost"] == 1 and made_up.done.count("begin") == 2


def test_another_protocol_or_address_is_refused(policy):
    with loopback(MadeUp(policy)) as (url, faults):
        faults["/about"] = ["other protocol"]
        with pytest.raises(ValueError, match="speaks protocol 99, this mmrl 3"):
            RemoteVLLM(url)
    with pytest.raises(
        ValueError, match=r"--load.engine is 'localhost:80'; it must be http://HOST:PORT"
    ):
        RemoteVLLM("localhost:80")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            "other ids",
            EngineDisagrees,
            r"prompt 'red' \(view 'raw'\).*first difference is at place 2",
        ),
        ("draw a marker", EngineDisagrees, r"'red', which were banned"),
        ("nan", EngineDisagrees, r"'red' are not finite numbers.*weights are damaged"),
        ("drop an answer", EngineDisagrees, r"gave 2 answers to prompt 'red', asked for 3"),
        ("drop a reply", OSError, r"gave 2 replies to 3 questions"),
        ("old weights", OldWeights, r"'red' from the weights 'older'; trained are"),
    ],
)
def test_wrong_answers_stop_the_run_and_name_the_sample(policy, fault, error, message):
    made_up = MadeUp(policy)
    made_up.faults = [fault]
    with loopback(made_up) as (url, _), pytest.raises(error, match=message):
        VLLMEngine(policy, RemoteVLLM(url)).generate(PROMPTS, SAMPLING, NOW)


def test_old_weights_are_counted_if_so_wanted(policy):
    made_up = MadeUp(policy)
    made_up.faults = ["old weights"]
    policy.counters.clear()
    found = VLLMEngine(policy, made_up, stale="count").generate(PROMPTS, SAMPLING, NOW)
    assert len(found) == 9 and policy.counters["rollout/stale"] == 9


def test_new_weights_follow_each_update_and_pictures_are_forgotten_if_the_tower_learns(
    tiny_folder,
):
    for freeze, last in (((), "finish and forget pictures"), (("vision", "merger"), "finish")):
        policy = Policy.load(tiny_folder, device="cpu", dtype="float32", freeze=freeze)
        made_up = MadeUp(policy)
        engine = VLLMEngine(policy, made_up)
        engine.generate(PROMPTS, SAMPLING, NOW)
        before = made_up.held
        with torch.no_grad():
            policy.parameters()[-1].add_(1.0)
        policy.stepped()
        engine.sync(policy)
        (rollout, *_) = engine.generate(PROMPTS, SAMPLING, NOW)
        assert rollout.version == 1 and made_up.held != before
        assert made_up.done[-3:] == ["begin", last, "sleep"]
        name, weight = policy.named_parameters()[-1]
        assert torch.equal(made_up.got[name], weight)


def test_half_a_set_of_weights_is_refused_and_a_whole_one_mends_it(policy):
    made_up = MadeUp(policy)
    with loopback(made_up) as (url, _):
        remote = RemoteVLLM(url)
        weights = list(all_weights(policy))
        remote._once(
            "/weights/begin",
            packed(
                {"version": "7", "names": [n for n, _ in weights], "sender": remote._sender}
            ),
        )
        remote._once("/weights/part", packed({"version": "7"}, dict(weights[:2])))
        with pytest.raises(ValueError, match=rf"400.*{len(weights) - 2} weights have not come"):
            remote._once("/weights/finish", packed({"version": "7", "encoder": True}))
        assert remote.about().version == ""
        with pytest.raises(ValueError, match="not expected"):
            remote._once("/weights/part", packed({"version": "7"}, {"nonsense": torch.ones(1)}))
        made_up.faults = ["refuse weights"]
        remote.load(weights, "8", True)
        assert remote.about().version == "8" and made_up.done.count("abandon") == 2


def test_a_sender_that_fell_silent_is_waited_for_and_then_replaced(policy, monkeypatch):
    made_up = MadeUp(policy)
    monkeypatch.setattr(vllm_serve, "LEASE", 0.3)
    with loopback(made_up) as (url, _):
        silent, other = RemoteVLLM(url, shared=True), RemoteVLLM(url, patience=1, shared=True)
        weights = list(all_weights(policy))
        begin = {"version": "9", "names": [n for n, _ in weights], "sender": "silent"}
        silent._once("/weights/begin", packed(begin))
        began = time.monotonic()
        other.load(weights, "9", True)
        assert time.monotonic() - began > 0.25 and made_up.held == "9"
        silent.load(weights, "9", True)  # they are there: nothing is sent
    assert made_up.done == ["begin", "abandon", "begin", "finish and forget pictures"]


def test_what_each_medium_is_called(policy, policy3):
    black = [
        (replace(p, pixels=torch.zeros_like(p.pixels), key="black"),)
        for p in policy.encode(PROMPTS[0]).visual
    ]
    (raw,) = asked_of(policy, PROMPTS[:1], SAMPLING, NOW)
    (masked,) = asked_of(policy, PROMPTS[:1], SAMPLING, NOW, visual=black, branch="masked")
    asked = [questions_of(policy, r)[0][1].media[0] for r in (raw, masked)]
    # Under its own name, with its own pixels: nobody gets the raw picture's features for a masked one.
    assert asked[0].uuid != asked[1].uuid and not asked[1].frames.any()
    assert torch.equal(asked[0].frames, PROMPTS[0].media[0].frames)
    frames = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    clips = [Media(frames, torch.arange(4, dtype=torch.float64) * gap) for gap in (0.5, 1.0)]
    names = set()
    for clip in clips:
        (request,) = asked_of(policy3, [question("clip", clip)], SAMPLING, NOW)
        (shown,) = questions_of(policy3, request)[0][1].media
        names.add(shown.uuid)
        assert torch.equal(shown.frames, frames)
    assert len(names) == 2


@pytest.mark.parametrize("size", [(1, 40, 72), (1, 33, 100), (3, 32, 48), (4, 70, 32)])
def test_pixels_come_back_out_of_patches(policy, policy3, size):
    frames = torch.randint(0, 256, (size[0], 3, *size[1:]), dtype=torch.uint8)
    times = None if size[0] == 1 else torch.arange(size[0], dtype=torch.float64)
    prompt = question("x", Media(frames, times))
    for one in (policy, policy3):
        (patches,) = one.encode(prompt).visual
        rules = one.processing.videos if size[0] > 1 else one.processing.images
        assert torch.equal(patches.frames[: size[0]], rules.resize(frames, patches.size))
        (request,) = asked_of(one, [prompt], SAMPLING, NOW)
        (shown,) = questions_of(one, request)[0][1].media
        assert torch.equal(shown.frames, patches.frames[: size[0]])


def test_sizes_that_a_processor_would_change_travel_with_limits(tiny_folder):
    budget = PixelBudget(min_pixels=256, max_pixels=512)
    small = Policy.load(tiny_folder, device="cpu", dtype="float32", budget=budget)
    (request,) = asked_of(small, [question("x", picture(1, 64, 64))], SAMPLING, NOW)
    one = questions_of(small, request)[0][1]
    area = one.media[0].frames[0, 0].numel()
    assert area <= 512 and (
        one.size is None or one.size["shortest_edge"] <= area <= one.size["longest_edge"]
    )


@pytest.mark.parametrize(
    ("times", "stamps"),
    [
        ([0.2, 1.5, 3.1, 3.3], (0.85, 3.2)),
        ([0.0, 0.5, 1.0, 1.5], (0.25, 1.25)),
        ([n * 1001 / 30000 for n in range(0, 60, 15)], None),
        ([n / 3 for n in range(6)], None),
        ([4.2], (4.2,)),
    ],
)
def test_times_of_a_clip_survive_as_frame_numbers(times, stamps):
    told = clip_times(times, 2)
    rate, numbers = told["fps"], told["frames_indices"]
    back = [number / rate for number in numbers]
    assert back[: len(times)] == pytest.approx(times, abs=1e-6)
    if stamps:
        means = [(a + b) / 2 for a, b in zip(back[::2], back[1::2], strict=True)]
        assert means == pytest.approx(stamps)
    # What Qwen2.5-VL computes of it: seconds between temporal patches.
    gap = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.5
    sampled = len(numbers) / told["total_num_frames"] * rate
    assert 2 / sampled == pytest.approx(2 * gap, rel=1e-5)


def test_forced_starts_go_into_the_prompt_and_come_back_as_hints(policy):
    made_up = MadeUp(policy)
    starts = [torch.tensor([30, 31]), torch.tensor([30, 31]), torch.arange(40, 48)]
    found = VLLMEngine(policy, made_up).generate(PROMPTS[:1], SAMPLING, NOW, prefixes=[starts])
    ((asked,),) = made_up.asked
    assert (
        asked.ids[-2:] == [30, 31]
        and asked.params["n"] == 2
        and asked.params["max_tokens"] == 4
    )
    assert [len(r.tokens) for r in found] == [6, 6, 6] and found[2].stop == "length"
    assert found[0].roles.tolist() == [int(Role.HINT)] * 2 + [int(Role.POLICY)] * 4
    assert (found[2].roles == int(Role.HINT)).all()


def test_draws_of_answers_go_on_and_greedy_is_asked_once(policy):
    made_up = MadeUp(policy)
    engine = VLLMEngine(policy, made_up)
    engine.generate(PROMPTS[:2], SAMPLING, NOW)
    engine.generate(PROMPTS[:1], SAMPLING, NOW, counts=[2], first=[3])
    engine.generate(PROMPTS[:1], SAMPLING, replace(NOW, step=4))
    (one, two), (more,), (later,) = (
        [q.params["seed"] for q in asked] for asked in made_up.asked
    )
    assert more == one + 3 and len({one, two, later}) == 3 and max(one, two, later) < 2**63 - 9
    found = engine.generate(PROMPTS[:1], replace(SAMPLING, temperature=0.0), NOW)
    assert made_up.asked[-1][0].params["n"] == 1 and "seed" not in made_up.asked[-1][0].params
    assert len({tuple(r.tokens.tolist()) for r in found}) == 1 and len(found) == 3


@pytest.mark.parametrize(
    ("mode", "sampling", "what"),
    [
        ("raw", Sampling(2, 1.0), "whole"),
        ("raw", Sampling(2, 1.0, top_p=0.9), "whole"),
        ("raw", Sampling(2, 0.0), "whole"),
        ("raw", Sampling(2, 0.7), "none"),
        ("processed", Sampling(2, 0.7), "allowed"),
        ("processed", Sampling(2, 0.7, top_k=20), "none"),
    ],
)
def test_what_log_probs_mean_depends_on_mode_and_sampling(policy, mode, sampling, what):
    assert meaning(sampling, mode) == what
    made_up = MadeUp(policy)
    made_up.about = lambda: About("0.32.0", "made up", made_up.held, mode, 512)
    engine = VLLMEngine(policy, made_up)
    (rollout, *_) = engine.generate(PROMPTS[:1], replace(sampling, max_tokens=3), NOW)
    assert (rollout.logp is None) == (what == "none")
    if what == "none":
        with pytest.raises(
            ValueError, match=f"vLLM gives its {mode} log-probs.*--load.engine-correct False"
        ):
            corrected(GRPO(), engine, group_rollout, sampling)
    else:
        assert corrected(GRPO(), engine, group_rollout, sampling).mismatch == "truncate"


def test_the_correction_is_on_with_vllm_alone(policy):
    engine = VLLMEngine(policy, MadeUp(policy))
    assert corrected(GRPO(mismatch="mask"), engine, group_rollout, SAMPLING).mismatch == "mask"
    assert corrected(GRPO(), HFEngine(policy), group_rollout, SAMPLING) == GRPO()
    # Labels were sampled by nobody.
    assert corrected(GRPO(), engine, WithLabel(lambda text: None), SAMPLING) == GRPO()


def test_only_the_adapter_travels_with_lora(tiny_folder, tmp_path):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32", lora=LoRA(rank=4))
    made_up = MadeUp(policy, rank=4)
    with loopback(made_up) as (url, _):
        VLLMEngine(policy, RemoteVLLM(url)).generate(PROMPTS[:2], SAMPLING, NOW)
    assert sorted(made_up.got) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(
        ValueError,
        match=r"adapters of rank 4, but this vLLM takes none; start it with --rank 4",
    ):
        VLLMEngine(policy, MadeUp(policy))
    tower = Policy.load(
        tiny_folder, device="cpu", dtype="float32", lora=LoRA(rank=4, vision=True)
    )
    with pytest.raises(ValueError, match=r"leave out silently; start it with --tower"):
        VLLMEngine(tower, MadeUp(tower, rank=4))


def test_other_families_and_other_versions_are_refused(tiny35_folder):
    policy = Policy.load(tiny35_folder, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="'qwen3_5' was not tested with vLLM"):
        VLLMEngine(policy, MadeUp(policy))
    for version in TESTED:
        require_version(version, "")
    with pytest.raises(UnfitVLLM, match=r"vLLM 0.99.0 is installed.*MMRL_VLLM_VERSION=0.99.0"):
        require_version("0.99.0", "")
    require_version("0.99.0", "0.99.0")
    with pytest.raises(UnfitVLLM, match=r"not installed here.*--load.engine http"):
        require_version("", "")


def test_heads_without_a_kernel_are_refused_before_the_first_answer():
    require_heads(32, [32, 64])
    with pytest.raises(
        UnfitVLLM, match=r"heads are 24 wide.*know 32, 64 only.*--load\.engine here"
    ):
        require_heads(24, [32, 64])


def test_messages_are_data_and_nothing_else():
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    message, back = unpacked(packed({"x": [1, None, "ü"]}, tensors))
    assert message == {"x": [1, None, "ü"]}
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    for body in (b"", b"garbage" * 10, packed({})[:-1], b"\xff" * 64):
        with pytest.raises(ValueError, match="no message of mmrl"):
            unpacked(body)


def test_the_policy_carries_the_choice_to_the_trainer(policy, monkeypatch):
    assert isinstance(opened(policy, 4, SAMPLING), HFEngine)
    made_up = MadeUp(policy)
    with loopback(made_up) as (url, _):
        for correct in (True, False):
            monkeypatch.setattr(policy, "engine", EngineChoice(url, correct=correct))
            engine = opened(policy, 4, SAMPLING)
            assert len(engine.generate(PROMPTS, SAMPLING, NOW)) == 9
            found = corrected(GRPO(), engine, group_rollout, SAMPLING).mismatch
            assert found == ("truncate" if correct else "off")
        monkeypatch.setattr(policy, "engine", EngineChoice(f"{url},{url}"))
        with pytest.raises(ValueError, match=r"names 2 servers for 1 processes.*: 1"):
            opened(policy, 4, SAMPLING)
    for wrong in ("VLLM", "localhost:8000", "https://x"):
        with pytest.raises(ValueError, match=r"which is .*here, vllm, or http://HOST:PORT"):
            EngineChoice(wrong)
    for which in ("here", "http://127.0.0.1:8100"):
        with pytest.raises(ValueError, match=r"invariant is .*a server is started with --inv"):
            EngineChoice(which, invariant=True)


def test_processes_that_share_a_server_bring_the_weights_once(policy, monkeypatch):
    """Two ranks of four for each of two servers; all threads here, which ask at the same time."""
    made = [MadeUp(policy), MadeUp(policy)]
    right = VLLMEngine(policy, MadeUp(policy)).generate(PROMPTS, SAMPLING, NOW)
    with loopback(made[0]) as (one, _), loopback(made[1]) as (two, _):
        choice = EngineChoice(f"{one},{two}")
        engines = []
        for rank in range(4):
            ranks = Ranks(rank, 4)
            monkeypatch.setattr(ranks, "broadcast", lambda value: "the run")
            monkeypatch.setattr(choosing.Ranks, "here", lambda ranks=ranks: ranks)
            monkeypatch.setattr(policy, "engine", choice)
            engines.append(opened(policy, 4, SAMPLING))
        assert [e.vllm.url for e in engines] == [one, one, two, two]
        assert not any(e.answers_alone for e in engines)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda e: e.generate(PROMPTS, SAMPLING, NOW), engines))
        monkeypatch.setattr(policy, "engine", EngineChoice(",".join([one] * 3)))
        with pytest.raises(ValueError, match=r"names 3 servers for 4 processes.*: 1, 2, 4"):
            opened(policy, 4, SAMPLING)
    assert all(told(each) == told(right) for each in found)
    # Who came second waited for the first, and sent nothing.
    assert all(one.done == ["begin", "finish and forget pictures"] for one in made)


@pytest.mark.parametrize("several", [False, True])
def test_under_torchrun_each_process_has_a_vllm_of_its_own(policy, monkeypatch, several):
    made = []

    def local(model, **given):
        made.append(given["several"])
        return MadeUp(policy)

    monkeypatch.setattr(vllm_local, "LocalVLLM", local)
    monkeypatch.setattr(policy, "engine", EngineChoice("vllm"))
    monkeypatch.setattr(choosing.Ranks, "here", lambda: type("Some", (), {"several": several}))
    assert len(opened(policy, 4, SAMPLING).generate(PROMPTS, SAMPLING, NOW)) == 9
    assert made == [several]
