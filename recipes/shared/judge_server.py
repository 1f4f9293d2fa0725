"""Where a judge is: the settings that recipes with a judged reward or a judged metric share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.ground.declared import added
from mmrl.rewards.judge import SAMPLING, Judge


@dataclass(frozen=True)
class JudgeServer:
    """An OpenAI-compatible server with a text model."""

    url: str = "http://localhost:8000/v1"
    """Base address; empty uses a rule instead."""
    model: str = "Qwen/Qwen2.5-32B-Instruct-AWQ"
    """Name of the model on the server."""
    key_file: Path | None = None
    """File that holds the API key."""
    cache: Path | None = None
    """SQLite file that keeps verdicts; None keeps them in memory."""
    concurrency: int = 64
    """Requests under way at once."""
    replay: bool = added(False)
    """Use only the verdicts in the cache and ask nobody; what it does not hold counts as an outage."""

    def __post_init__(self) -> None:
        if self.replay and (self.cache is None or not self.cache.is_file()):
            raise ValueError(
                f"--judge.replay uses recorded verdicts, but --judge.cache is {self.cache}, which is no file; name "
                "the cache of the run that asked the server."
            )

    def judge(self, **sampling: Any) -> Judge:
        """The client; `sampling`: fields of the request beside or in the place of SAMPLING."""
        # In a file, not in a flag: the command line is written into the run's folder.
        key = None if self.key_file is None else self.key_file.read_text().strip()
        return Judge(
            self.url,
            self.model,
            key=key,
            sampling={**SAMPLING, **sampling},
            cache=self.cache,
            concurrency=self.concurrency,
            replay=self.replay,
        )
