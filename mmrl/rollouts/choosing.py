"""Which engine answers: the one in this process (`HFEngine`), vLLM in this process, or vLLM behind URLs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmrl.ground.progress import busy
from mmrl.ground.require import require
from mmrl.model.handing import adapts_tower
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rollouts.engine import Engine, HFEngine
from mmrl.types import Sampling

HERE, VLLM = "here", "vllm"
Stale = Literal["refuse", "count"]


@dataclass(frozen=True)
class EngineChoice:
    """How answers are sampled; a policy carries it from where the model is opened to the trainer."""

    which: str = HERE
    """here, vllm, or http://HOST:PORT of a server (several, with commas, for several processes: each has its own, or as
    many neighbours share one as there are processes for a server)."""
    memory: float = 0.5
    """Share of the device's memory that vLLM in this process takes while it answers."""
    stale: Stale = "refuse"
    """What happens to answers of weights that are not the present ones."""
    correct: bool = True
    """Truncated importance weights for vLLM's answers, unless `grpo.mismatch` says something."""
    invariant: bool = False
    """vLLM's kernels that do not depend on the batch."""

    def __post_init__(self) -> None:
        fits = self.which in (HERE, VLLM) or all(u.startswith("http://") for u in self.urls)
        require(
            self,
            which=(fits, "here, vllm, or http://HOST:PORT"),
            memory=(0 < self.memory < 1, "strictly between 0 and 1"),
            invariant=(
                not self.invariant or self.which == VLLM,
                "off unless the engine is vllm; a server is started with --invariant",
            ),
        )

    @property
    def urls(self) -> list[str]:
        """The servers."""
        return [url.strip() for url in self.which.split(",")]


def opened(policy: Policy, rows_at_once: int, sampling: Sampling) -> Engine:
    """The engine that the policy's `engine` names. Raises ValueError where it does not fit, OSError where it is not."""
    choice: EngineChoice = policy.engine or EngineChoice()
    if choice.which == HERE:
        return HFEngine(policy, rows_at_once=rows_at_once)
    # Only now, and only for those who asked: vLLM is no dependency.
    from mmrl.rollouts.vllm_engine import VLLMEngine, refuse_unfit

    refuse_unfit(policy)
    shared = ""
    if choice.which == VLLM:
        vllm: Any = _local(policy, choice, sampling)
    else:
        vllm, shared = _remote(choice)

    class Uncorrected(VLLMEngine):
        """Its log-probs are logged and not corrected."""

        mismatch: ClassVar[Literal["off"]] = "off"  # type: ignore[assignment]

    kind = VLLMEngine if choice.correct else Uncorrected
    return kind(policy, vllm, stale=choice.stale, run=shared)


def _local(policy: Policy, choice: EngineChoice, sampling: Sampling):  # type: ignore[no-untyped-def]
    from mmrl.rollouts.vllm_local import LocalVLLM
    from mmrl.rollouts.vllm_prompts import best_mode

    lora = policy.description.get("lora") or {}
    longest = policy.processing.max_prompt_tokens + sampling.max_tokens
    with busy("Starting vLLM"):
        return LocalVLLM(
            str(policy.description["source"]),
            mode=best_mode(sampling),
            dtype=str(policy.dtype).removeprefix("torch."),
            length=min(longest, policy.context),
            memory=choice.memory,
            rank=int(lora.get("rank", 0)),
            tower=adapts_tower(policy),
            invariant=choice.invariant,
            several=Ranks.here().several,
        )


def _remote(choice: EngineChoice):  # type: ignore[no-untyped-def]
    """A server, and what the names of weights begin with if others bring them there as well."""
    from mmrl.rollouts.vllm_client import RemoteVLLM

    ranks, urls = Ranks.here(), choice.urls
    if ranks.world % len(urls):
        fits = [count for count in range(1, ranks.world + 1) if ranks.world % count == 0]
        raise ValueError(
            f"--load.engine names {len(urls)} servers for {ranks.world} processes; give one for each, with commas, or "
            f"fewer that as many processes share each: {', '.join(map(str, fits))}."
        )
    each = ranks.world // len(urls)
    shared = ranks.broadcast(secrets.token_hex(4)) if each > 1 else ""
    return RemoteVLLM(urls[ranks.rank // each], shared=each > 1), shared
