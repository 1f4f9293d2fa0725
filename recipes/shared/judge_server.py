"""Where a judge is: the settings that recipes with a judged reward or a judged metric share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmrl.rewards.judge import Judge


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

    def judge(self) -> Judge:
        """The client."""
        # In a file, not in a flag: the command line is written into the run's folder.
        key = None if self.key_file is None else self.key_file.read_text().strip()
        return Judge(
            self.url, self.model, key=key, cache=self.cache, concurrency=self.concurrency
        )
