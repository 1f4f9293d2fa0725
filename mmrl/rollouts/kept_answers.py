"""Answers that outlive their process: an evaluation that was stopped goes on, one that ended is not redone.

`KeptAnswers(engine, file, key)` stands for any engine. A question's answers are one line of the file, on the disk
before the next questions are asked; a line that a crash cut off is dropped. A line is used again only for the same
question and pictures, sampling, seed and `key`, which names all else that answers depend on (the model's content).
Log-probs are not kept; what answers have in common, and the pictures inside them, are.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmrl.ground.calls import Action, Call
from mmrl.ground.contents import digest
from mmrl.model.policy import Policy
from mmrl.rollouts.engine import Engine
from mmrl.types import Media, Now, Prompt, Rollout, Sampling

HEADER = '{"mmrl": "answers"}\n'
"""First line of a file of ours."""


class KeptAnswers:
    """An engine whose answers are kept in a file. Raises ValueError for a file that is there and is none of ours."""

    def __init__(self, engine: Engine, file: Path, key: str, at_once: int = 64) -> None:
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}; at least one question is asked at a time.")
        self.engine, self.file, self.key, self.at_once = engine, file, key, at_once
        self.reused = 0
        """Questions whose answers were there already."""
        self._kept = _read(file)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, now: Now
    ) -> list[Rollout]:
        """As `Engine.generate`; questions of the file are not asked again."""
        keys = self._keys(prompts, sampling, now)
        missing = [index for index, key in enumerate(keys) if key not in self._kept]
        self.reused += len(prompts) - len(missing)
        for block in self._blocks(prompts, missing):
            chosen = [prompts[index] for index in block]
            answers: dict[int, list[Rollout]] = {}
            for rollout in self.engine.generate(chosen, sampling, now):
                answers.setdefault(block[rollout.group], []).append(rollout)
            self._keep([_line(keys[index], answers[index]) for index in block])
        found: list[Rollout] = []
        for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
            found += _rollouts(prompt, index, self._kept[key])
        return found

    def sync(self, policy: Policy) -> None:
        """Not for training: the file would hold the answers of weights that are gone."""
        raise ValueError("Kept answers are those of one model; train with the engine itself.")

    def _keys(self, prompts: Sequence[Prompt], sampling: Sampling, now: Now) -> list[str]:
        copies: Counter[str] = Counter()
        keys: list[str] = []
        for prompt in prompts:
            media = [(medium.frames, medium.times) for medium in prompt.media]
            # A prompt that is there twice gets other answers the second time.
            asked = (prompt.id, copies[prompt.id], prompt.messages, media)
            copies[prompt.id] += 1
            how = (self.key, asdict(sampling), now.seed, now.step)
            keys.append(digest((asked, how)).hex())
        return keys

    def _blocks(self, prompts: Sequence[Prompt], missing: Sequence[int]) -> Iterator[list[int]]:
        """The missing questions in blocks; those of one id stay together, since the engine numbers them."""
        by_id: dict[str, list[int]] = {}
        for index in missing:
            by_id.setdefault(prompts[index].id, []).append(index)
        block: list[int] = []
        for indices in by_id.values():
            block += indices
            if len(block) >= self.at_once:
                yield block
                block = []
        if block:
            yield block

    def _keep(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._kept.update({line["key"]: line for line in lines})
        text = "".join(json.dumps(line, default=str) + "\n" for line in lines)
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            text = HEADER + text
        with self.file.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _read(file: Path) -> dict[str, Mapping[str, Any]]:
    """Key -> line. A last line without its end is cut off the file."""
    if not file.exists():
        return {}
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        first, *lines = whole.decode("utf-8").splitlines(keepends=True) or [""]
        rows = [json.loads(line) for line in lines]
        kept = {str(row["key"]): row for row in rows}
    except (ValueError, KeyError, TypeError):
        first, kept = "", {}
    if first != HEADER:
        raise ValueError(
            f"{file} is no file of kept answers of mmrl, or is damaged; move it away, or choose another --output."
        )
    if whole != content:
        os.truncate(file, len(whole))
    return kept


def _line(key: str, answers: Sequence[Rollout]) -> dict[str, Any]:
    """Everything of a question's answers but the question."""
    return {
        "key": key,
        "id": answers[0].prompt.id,
        "prompt_ids": answers[0].prompt_ids.tolist(),
        "answers": [
            {
                "text": answer.text,
                "stop": answer.stop,
                "tokens": answer.tokens.tolist(),
                "roles": answer.roles.tolist(),
                "temperature": _written(answer.temperature),
                # Most answers have none of these.
                **({"path": answer.path} if answer.path else {}),
                **({"calls": [asdict(call) for call in answer.calls]} if answer.calls else {}),
                **({"media": [_shown(m) for m in answer.media]} if answer.media else {}),
            }
            for answer in answers
        ],
    }


def _rollouts(prompt: Prompt, group: int, line: Mapping[str, Any]) -> list[Rollout]:
    seen = torch.tensor(line["prompt_ids"], dtype=torch.long)
    return [
        Rollout(
            prompt,
            group,
            seen,
            torch.tensor(answer["tokens"], dtype=torch.long),
            torch.tensor(answer["roles"], dtype=torch.uint8),
            answer["text"],
            answer["stop"],
            temperature=_read_back(answer["temperature"]),
            path=tuple((node, count) for node, count in answer.get("path", ())),
            media=tuple(_medium(shown) for shown in answer.get("media", ())),
            calls=tuple(_call(told) for told in answer.get("calls", ())),
        )
        for answer in line["answers"]
    ]


def _call(told: Mapping[str, Any]) -> Call:
    action = None if told["action"] is None else Action(**told["action"])
    return Call(**{**told, "action": action})


def _written(temperature: float | torch.Tensor) -> float | list[float]:
    return temperature.tolist() if isinstance(temperature, torch.Tensor) else temperature


def _read_back(kept: float | list[float]) -> float | torch.Tensor:
    """A number as it is, a list as one per token."""
    return torch.tensor(kept, dtype=torch.float64) if isinstance(kept, list) else kept


def _shown(medium: Media) -> dict[str, Any]:
    """A medium as JSON, its bytes in base 64."""
    frames = medium.frames.contiguous().numpy().tobytes()
    return {
        "shape": list(medium.frames.shape),
        "frames": base64.b64encode(frames).decode(),
        "times": None if medium.times is None else medium.times.tolist(),
        "duration": medium.duration,
    }


def _medium(shown: Mapping[str, Any]) -> Media:
    frames = torch.frombuffer(bytearray(base64.b64decode(shown["frames"])), dtype=torch.uint8)
    times = shown["times"]
    return Media(
        frames.view(shown["shape"]),
        None if times is None else torch.tensor(times, dtype=torch.float64),
        shown["duration"],
    )
