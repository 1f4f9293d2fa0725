"""What went wrong in a run, in words: alarms, skipped rows, media in quarantine, failures that were counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.report.run_files import RunFiles, text

LISTED = 200
"""Most rows of a list."""
ALARMS: Mapping[str, str] = {
    "divergence": "A branch and the true pictures disagree far more than at the start: the policy may be leaving the "
    "ground it was trained on.",
    "entropy": "The policy has become far less sure of its tokens than at the start.",
    "length": "Answers are far shorter than at the start.",
}
"""What each alarm of the run means."""
_COUNTED = re.compile(
    r"fail|skipped|dropped|left_out|unavailable|timeout|timed_out|nonfinite|substituted|/bad|broken|retries"
)


@dataclass(frozen=True)
class Alarm:
    """One kind of alarm over the run."""

    kind: str
    first: int
    last: int
    steps: int
    meaning: str


@dataclass(frozen=True)
class Failures:
    """All of it."""

    alarms: list[Alarm]
    counted: list[tuple[str, float, int]]
    """Metric, its sum over the run, and the last step at which it was above 0."""
    skipped: Sequence[Mapping[str, str]]
    skipped_count: int
    quarantine: Sequence[Mapping[str, str]]
    quarantine_count: int
    reasons: list[tuple[str, int]]
    """Reason of the quarantine -> media."""
    damaged: Mapping[str, int]

    @property
    def any(self) -> bool:
        """Is there anything to tell?"""
        listed = self.alarms or self.counted or self.skipped or self.quarantine
        return bool(listed or self.damaged)


def collect(run: RunFiles) -> Failures:
    """What went wrong in a run."""
    skipped = [_skipped(row) for row in run.skipped[:LISTED]]
    media = [_medium(row) for row in run.quarantine]
    reasons = Counter(entry["reason"] for entry in media)
    return Failures(
        alarms=_alarms(run),
        counted=_counted(run),
        skipped=skipped,
        skipped_count=len(run.skipped),
        quarantine=media[:LISTED],
        quarantine_count=len(media),
        reasons=reasons.most_common(),
        damaged=run.damaged,
    )


def _alarms(run: RunFiles) -> list[Alarm]:
    found = []
    for name in run.names():
        if not name.startswith("alarm/"):
            continue
        kind = name.removeprefix("alarm/")
        steps = [step for step, value in run.curve(name) if value]
        if steps:
            meaning = ALARMS.get(kind, "")
            first, last = steps[0], steps[-1]
            found.append(Alarm(kind, first, last, len(steps), meaning))
    return found


def _counted(run: RunFiles) -> list[tuple[str, float, int]]:
    found = []
    for name in run.names():
        if not _COUNTED.search(name):
            continue
        curve = [pair for pair in run.curve(name) if pair[1] > 0]
        if not curve:
            continue
        last, _ = curve[-1]
        total = sum(value for _, value in curve)
        found.append((name, total, last))
    return found


def _skipped(row: Mapping[str, Any]) -> dict[str, str]:
    where = "" if row.get("row") is None else f"row {text(row['row'])}"
    side = text(row.get("side", "training"))
    return {"where": where, "side": side, "reason": text(row.get("reason", ""))}


def _medium(row: Mapping[str, Any]) -> dict[str, str]:
    where = row.get("where", row.get("path", ""))
    return {
        "where": text(where),
        "reason": text(row.get("reason", "")),
        "detail": text(row.get("detail", "")),
    }
