"""vLLM in this process: one engine on this process's device, or, in a server, on several devices (`tensor_parallel`),
whose workers are processes of its own. Imported only when somebody asks for it.

Versions whose interfaces were read, and which `tests/vllm` is for, are in `TESTED`; any other is refused by name, for
what changes between versions changes silently (which caches an update empties, what a log-prob is of).

New weights go through vLLM's own weight-transfer interface, with a transport of ours that hands tensors over in memory
(`vllm_transfer.py`). An update resets no cache by itself: here the prefix cache is emptied after each one, and that of
the encoder, which holds features of pictures, where the tower or its merger may have changed. On CUDA the engine sleeps
while the policy trains, and wakes before it answers; other devices have no such levels.
"""

# vLLM lives in environments of its own.
# pyright: reportMissingImports=false
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl.ground.printable import logger
from mmrl.rollouts.vllm_wire import GONE, About, LogprobsMode, Question, Reply, Said, Shown

log = logger(__name__)

TESTED = ("0.32.0",)
"""Versions of vLLM that were read and run with this adapter; the table is in docs/engines.md."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine and its worker in this process: tensors are handed over
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    # Read when vLLM is imported. Else a C++ compiler makes its small helpers at the first answers, for minutes.
    "TORCHDYNAMO_DISABLE": "1",
}
ON_CPU_SPREAD = {
    # Else it wants a memory node for each worker.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
PLACES = ("weights", "kv_cache")
"""What sleeps and wakes, in vLLM's words."""
ALLOW = "MMRL_VLLM_VERSION"
"""Set to a version that is not in `TESTED`, it is tried all the same."""


class UnfitVLLM(ValueError):
    """vLLM is not there, or not in a version that this adapter knows."""


def installed_version() -> str:
    """The version of vLLM here, without its label; empty if there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ""


def require_version(found: str, allowed: str | None = None) -> None:
    """Raise UnfitVLLM for a version that was not tested, unless it is the one that the user allows."""
    allowed = os.environ.get(ALLOW) if allowed is None else allowed
    if found and found in (*TESTED, allowed):
        return
    known = ", ".join(TESTED)
    if not found:
        raise UnfitVLLM(
            f"vLLM is not installed here. Install version {known} (pip install vllm=={TESTED[-1]}), or start "
            "`python -m mmrl.rollouts.vllm_serve` where it is and give --load.engine http://HOST:PORT; --load.engine "
            "here needs none."
        )
    raise UnfitVLLM(
        f"vLLM {found} is installed; this adapter was read and tested with {known} only. Install one of these, or set "
        f"{ALLOW}={found} to try it all the same (docs/engines.md says what may go wrong)."
    )


def require_heads(size: int, known: Sequence[int]) -> None:
    """Raise UnfitVLLM for heads of a size that vLLM has no kernel for, which it tells only at its first answers."""
    if size not in known:
        raise UnfitVLLM(
            f"The model's attention heads are {size} wide, and vLLM's kernels here know "
            f"{', '.join(map(str, known))} only; use --load.engine here."
        )


def require_share(heads: Mapping[str, int], workers: int, devices: int | None) -> None:
    """Raise UnfitVLLM for numbers of heads that so many workers cannot divide, or for fewer devices than workers.

    `heads`: name of a part of the model -> how many it has; `devices`: None where workers need none of their own.
    """
    for part, count in heads.items():
        if count % workers:
            fits = [n for n in range(1, count + 1) if all(c % n == 0 for c in heads.values())]
            raise UnfitVLLM(
                f"--tensor-parallel is {workers}, which does not divide the {count} attention heads of the model's "
                f"{part}; possible are {', '.join(map(str, fits))}."
            )
    if devices is not None and devices < workers:
        raise UnfitVLLM(
            f"--tensor-parallel is {workers}, but this process sees {devices} devices; show it more "
            "(CUDA_VISIBLE_DEVICES), or give a smaller number."
        )


def require_invariance(build: str) -> None:
    """Raise UnfitVLLM on a kind of device for which vLLM has no kernels that do not depend on the batch.

    `build`: its name in torch, "cpu" or "cuda". On others vLLM would ignore the switch and say nothing.
    """
    if build != "cuda":
        raise UnfitVLLM(
            f"vLLM's kernels that do not depend on the batch are for CUDA; this one computes on {build}. Leave out "
            "--load.engine-invariant (of a server: --invariant)."
        )


class WorkerDied(RuntimeError):
    """A process of an engine over several devices is gone, and with it the engine."""


class LocalVLLM:
    """vLLM's `LLM`, with what a trainer needs of it.

    `memory`: share of the device that it may take; `length`: most tokens of a prompt and its answer; `rank`: of the
    adapters that it takes, 0 for none; `tower`: may they adapt the vision tower; `several`: this process is one of
    several that are connected (torchrun), each of which makes its own; `tensor_parallel`: devices that share the
    weights, each with a process of its own below this one. Raises UnfitVLLM, and WorkerDied from any of its methods.
    """

    alone = False

    def __init__(
        self,
        model: str,
        *,
        mode: LogprobsMode,
        dtype: str = "auto",
        length: int | None = None,
        media: int = 16,
        memory: float = 0.5,
        rank: int = 0,
        tower: bool = False,
        invariant: bool = False,
        several: bool = False,
        tensor_parallel: int = 1,
        extra: dict[str, Any] | None = None,
    ) -> None:
        require_version(installed_version())
        assert not (several and tensor_parallel > 1), "such an engine belongs into a server"
        self.on_cuda = torch.cuda.is_available()
        self.spread = tensor_parallel > 1
        """Are its workers processes of their own?"""
        _prepare(self.on_cuda, self.spread, invariant)
        if self.spread:
            devices = torch.cuda.device_count() if self.on_cuda else None
            require_share(_heads(model), tensor_parallel, devices)
        import vllm

        given: dict[str, Any] = {
            "model": model,
            "dtype": dtype,
            "logprobs_mode": f"{mode}_logprobs",
            "max_model_len": length,
            "limit_mm_per_prompt": {"image": media, "video": media},
            **_shared_settings(),
            **_adapter_settings(rank, tower),
            **_device_settings(self.on_cuda, memory),
            **_process_settings(several, tensor_parallel),
        }
        state = torch.random.get_rng_state()
        self.llm: Any = vllm.LLM(**(given | (extra or {})))
        torch.random.set_rng_state(state)  # it seeds the whole process
        if not self.on_cuda:
            from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

            heads = self.llm.llm_engine.model_config.get_head_size()
            require_heads(heads, CPUAttentionBackend.get_supported_head_sizes())
        if self.spread:
            self.llm.collective_rpc("mmrl_end_with", args=(os.getpid(),))
        self.llm.init_weight_transfer_engine({"init_info": {}})
        self._about = About(
            vllm=installed_version(),
            model=model,
            version="",
            mode=mode,
            length=int(self.llm.llm_engine.model_config.max_model_len),
            rank=rank,
            tower=tower,
        )
        self.held = ""
        """Version of the weights that it has."""
        self._awake = set(PLACES)
        self._coming = False
        """Is a set of weights on its way?"""
        self._adapter: Any = None
        self._adapters = 0

    def about(self) -> About:
        """What it is, and which weights it holds."""
        return replace(self._about, version=self.held)

    def mourn(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, by another thread, if one of its processes ends."""
        if self.spread:
            self.llm.llm_engine.model_executor.register_failure_callback(tell)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """What fails because a process of the engine is gone says so."""
        try:
            yield
        except Exception as error:
            if not getattr(self.llm.llm_engine.model_executor, "is_failed", False):
                raise
            self.held = ""
            raise WorkerDied(GONE) from error

    def answer(self, questions: Sequence[Question], version: str) -> list[Reply]:
        """Replies in the order of the questions, from the weights of this version."""
        return self.answer_in_turn(questions, version, lambda number, reply: None)

    def answer_in_turn(
        self,
        questions: Sequence[Question],
        version: str,
        tell: Callable[[int, Reply], None],
    ) -> list[Reply]:
        """As `answer`; `tell` is given each question's number and reply when the last of its answers has ended."""
        assert version == self.held, f"asked for weights {version!r}, has {self.held!r}"
        with self._alive():
            return self._answered(questions, tell)

    def _answered(
        self, questions: Sequence[Question], tell: Callable[[int, Reply], None]
    ) -> list[Reply]:
        self.wake()
        prompts = [_prompt(question) for question in questions]
        params = [_sampling(question) for question in questions]
        names: list[str] = self.llm.enqueue(
            prompts, params, use_tqdm=False, lora_request=self._adapter
        )
        # Its own names of requests begin with the number that its outputs carry.
        places = {name.partition("-")[0]: place for place, name in enumerate(names)}
        replies: dict[int, Reply] = {}
        engine = self.llm.llm_engine
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    place = places[output.request_id]
                    replies[place] = _reply(output, self._version_of)
                    tell(place, replies[place])
        except BaseException:
            # What goes on being decoded would be answered to whoever asks next.
            engine.abort_request(names, internal=True)
            raise
        return [replies[place] for place in range(len(questions))]

    def load(self, weights: Iterable[tuple[str, Tensor]], version: str, encoder: bool) -> None:
        """Take over all weights; `encoder`: those of the tower or its merger may differ."""
        self.begin()
        try:
            self.take(weights)
        except BaseException:
            self.abandon()
            raise
        self.finish(version, encoder)

    def begin(self) -> None:
        """A new set of weights will come, in parts."""
        self.abandon()
        self.wake("weights")
        self.held = ""  # whatever happens now, what is there belongs to no version
        with self._alive():
            self.llm.start_weight_update()
            self._coming = True
            self._agreed()

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Some of the weights. After an error the whole set must come again."""
        from mmrl.rollouts.vllm_transfer import handed

        with handed(weights, self.spread) as where, self._alive():
            self.llm.update_weights({"update_info": where})
            self._agreed()

    def finish(self, version: str, encoder: bool) -> None:
        """All weights have come: they are in use from now on, and no cache remembers the old ones."""
        with self._alive():
            self._coming = False
            self.llm.finish_weight_update(version)
            self._agreed(version)
            self.wake()
            self._forget(encoder)
        self.held = version

    def adapt(self, folder: Path, version: str) -> None:
        """Take over an adapter instead: the weights below it stay those of the model's folder."""
        from vllm.lora.request import LoRARequest

        self.wake()
        # A new name and number each time: under a known one vLLM would answer with the old adapter.
        self._adapters += 1
        self._adapter = LoRARequest(f"mmrl-{version}", self._adapters, str(folder))
        with self._alive():
            self.llm.update_weight_version(version)
            self._agreed(version)
        self.held = version

    def abandon(self) -> None:
        """A set of weights broke off. What is there belongs to no version until a whole set has come."""
        if self._coming:
            self._coming = False
            with self._alive():
                self.llm.finish_weight_update()

    def _agreed(self, version: str | None = None) -> None:
        """Name the weights on all workers, if a name is given. Raises BrokenWeights unless all say the same."""
        from mmrl.rollouts.vllm_worker import agreed

        if version is None:
            agreed(self.llm.collective_rpc("mmrl_state"))
        else:
            agreed(self.llm.collective_rpc("mmrl_call", args=(version,)))

    def sleep(self) -> None:
        """Give the device's memory to the trainer."""
        if not self.on_cuda or not self._awake:
            return
        # With an adapter the weights below it are not sent again: they wait in the CPU's memory.
        adapts = self._about.rank > 0
        self.llm.sleep(level=1 if adapts else 2)
        self._awake = set()
        self.held = self.held if adapts else ""

    def wake(self, *tags: str) -> None:
        """Take the memory back, that of the weights or of the cache alone if so named."""
        missing = sorted(set(tags or PLACES) - self._awake)
        if missing:
            self.llm.wake_up(tags=missing)
            self._awake |= set(missing)

    def close(self) -> None:
        """End the engine."""
        self.llm.llm_engine.engine_core.shutdown()

    def _forget(self, encoder: bool) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM did not empty its prefix cache; answers would be mixed with old ones."
            )
        if encoder:
            # `reset_mm_cache` of the same object forgets pixels, which do not depend on weights, and no features.
            self.llm.llm_engine.reset_encoder_cache()

    def _version_of(self, output: Any) -> str:
        spans = getattr(output, "weight_versions", None)
        found = dict.fromkeys(span.version for span in spans or ())
        return "+".join(found) or self.held


def _prepare(on_cuda: bool, spread: bool, invariant: bool) -> None:
    """The environment in which vLLM is imported. Raises UnfitVLLM."""
    if invariant:
        require_invariance("cuda" if on_cuda else "cpu")
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    wanted = dict(ENVIRONMENT)
    if not on_cuda:
        wanted |= ON_CPU | (ON_CPU_SPREAD if spread else {})
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def _shared_settings() -> dict[str, Any]:
    """What every engine of ours is told."""
    from vllm.config import WeightTransferConfig

    from mmrl.rollouts.vllm_transfer import BACKEND, registered
    from mmrl.rollouts.vllm_worker import EXTENSION

    registered()
    return {
        "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
        "worker_extension_cls": EXTENSION,
        "enable_prefix_caching": True,
        "seed": 0,
        # The checkpoint's own defaults (top-k, penalties) must not come on top of the run's.
        "generation_config": "vllm",
    }


def _adapter_settings(rank: int, tower: bool) -> dict[str, Any]:
    if not rank:
        return {}
    found: dict[str, Any] = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
    return found | ({"enable_tower_connector_lora": True} if tower else {})


def _device_settings(on_cuda: bool, memory: float) -> dict[str, Any]:
    if on_cuda:
        return {"gpu_memory_utilization": memory, "enable_sleep_mode": True}
    return {"enforce_eager": True, "block_size": 32}


def _process_settings(several: bool, tensor_parallel: int) -> dict[str, Any]:
    if several:
        # In the process groups that are there, as a group of one; all ranks make theirs at the same time.
        return {"distributed_executor_backend": "external_launcher"}
    if tensor_parallel > 1:
        return {"tensor_parallel_size": tensor_parallel, "distributed_executor_backend": "mp"}
    return {}


def _heads(model: str) -> dict[str, int]:
    """How many attention heads the parts of a model have."""
    from vllm.transformers_utils.config import get_config

    config = get_config(model, trust_remote_code=False)
    return {
        "language part": config.get_text_config().num_attention_heads,
        "vision tower": config.vision_config.num_heads,
    }


def _prompt(question: Question) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt_token_ids": list(question.ids)}
    data: dict[str, list[Any]] = {}
    names: dict[str, list[str]] = {}
    for shown in question.media:
        data.setdefault(shown.kind, []).append(_pixels(shown))
        names.setdefault(shown.kind, []).append(shown.uuid)
    if data:
        prompt |= {"multi_modal_data": data, "multi_modal_uuids": names}
    if question.size:
        prompt["mm_processor_kwargs"] = {"size": dict(question.size)}
    return prompt


def _pixels(shown: Shown) -> Any:
    frames = shown.frames.permute(0, 2, 3, 1).contiguous().numpy()  # [F, H, W, 3]
    if shown.kind == "image":
        from PIL import Image

        return Image.fromarray(frames[0])
    return frames, dict(shown.times or {})


def _sampling(question: Question) -> Any:
    from vllm import SamplingParams

    given = dict(question.params)
    banned = given.pop("banned")
    stops = given.pop("stop")
    return SamplingParams(
        **given,
        stop=stops or None,
        detokenize=bool(stops),
        skip_special_tokens=False,
        logprobs=0,
        logit_bias=dict.fromkeys(banned, float("-inf")) or None,
    )


def _reply(output: Any, version_of: Any) -> Reply:
    answers: list[Said] = []
    for one in sorted(output.outputs, key=lambda answer: answer.index):
        tokens = [int(token) for token in one.token_ids]
        rows = zip(tokens, one.logprobs or [], strict=True)
        logp = [float(row[token].logprob) for token, row in rows]
        answers.append(
            Said(tokens, logp, str(one.finish_reason), one.stop_reason, version_of(one))
        )
    return Reply([int(token) for token in output.prompt_token_ids], answers)
