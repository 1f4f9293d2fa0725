"""From a request to what vLLM is asked, and from what it says to a result.

The same picture, once: vLLM gets the ids of the rendered chat with one placeholder per medium, and the pixels at the
size and under the view that the trainer sees, cut back out of the trainer's own patches. It expands the placeholders
itself; expanded ids would be expanded again. `result_of` compares the ids that it read with the trainer's.

A medium's name (`Shown.uuid`) is a hash of its pixels as they are shown, with the times of a clip: vLLM keeps pixels
and features under it, so a masked picture must not be called like the real one, nor a clip like the same frames at
other times.

Departures of vLLM from the engine in this process
1. The n-th answer has the seed hash(run seed, step, prompt id, view) + n; other numbers than torch draws from it.
2. A stop string that begins in a forced start is not looked for by vLLM itself; answers are cut here all the same.
3. Log-probs of a forced start do not exist and are 0; no mask holds them.
4. What the log-probs are depends on the sampling (`meaning`): over the whole vocabulary as in training with the raw
   ones at temperature 1; with the processed ones over the ids that may be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from torch import Tensor

from mmrl.ground.contents import digest
from mmrl.ground.seeds import derive_seed
from mmrl.model.patches import Patches, PixelBudget
from mmrl.model.policy import Policy
from mmrl.model.processing import Processing
from mmrl.rollouts.request import Meaning, Request, Result
from mmrl.rollouts.sampler import Answer, stop_string
from mmrl.rollouts.vllm_wire import LogprobsMode, Question, Reply, Said, Shown
from mmrl.types import Media, Sampling

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""Model types whose prompts were compared with vLLM's, id by id."""
RATES = (*range(1, 1001), 24000 / 1001, 30000 / 1001, 60000 / 1001, 1_000_000)
"""Frames per second among which one is looked for at which all times of a clip are frames."""
EXACT = 1e-6
"""How far a time may lie from a frame, in frames."""


class EngineDisagrees(RuntimeError):
    """vLLM read another prompt than the trainer, or said what it must not say. Training on it would be wrong."""


def meaning(sampling: Sampling, mode: LogprobsMode) -> Meaning:
    """What vLLM's log-probs are under this sampling."""
    if mode == "raw":  # of the whole vocabulary at temperature 1, whatever is sampled
        return "whole" if sampling.temperature in (0.0, 1.0) else "none"
    cut = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0
    return "none" if cut or sampling.temperature == 0 else "allowed"


def best_mode(sampling: Sampling) -> LogprobsMode:
    """The mode that says most under this sampling."""
    return "raw" if sampling.temperature in (0.0, 1.0) else "processed"


def questions_of(policy: Policy, request: Request) -> list[tuple[range, Question]]:
    """What vLLM is asked for a request, and which of its answers each question is for.

    Answers with one forced start are one question. A greedy answer is asked once, whatever `count` is, and an answer
    whose start fills it is not asked at all.
    """
    processing = policy.processing
    short = processing.encoder.encode(request.encoded.text).ids
    media = _media(processing, request)
    size = _size(processing, request)
    greedy = request.sampling.temperature == 0
    found: list[tuple[range, Question]] = []
    for start, numbers in groupby(range(request.count), key=request.start):
        answers = list(numbers)
        answers = range(answers[0], answers[-1] + 1)
        room = request.sampling.max_tokens - len(start)
        if room < 1:
            continue
        params = _params(processing, request, room)
        if not greedy:
            params |= {"n": len(answers), "seed": _seed(request) + answers[0]}
        ids = [*short, *_with_one_each(processing, request, start)]
        found.append((answers, Question(ids, media, params, size)))
    return found


def results_of(
    policy: Policy,
    request: Request,
    replies: Sequence[tuple[range, Reply]],
    mode: LogprobsMode,
    version: int | None,
    seconds: float,
) -> list[Result]:
    """The results of a request. Raises EngineDisagrees."""
    found: dict[int, Result] = {}
    for answers, reply in replies:
        start = request.start(answers[0])
        _same_ids(request, start, reply)
        said = list(reply.answers)
        if request.sampling.temperature == 0:
            said = said[:1] * len(answers)
        if len(said) != len(answers):
            raise EngineDisagrees(
                f"vLLM gave {len(said)} answers to prompt {request.prompt.id!r}, asked for {len(answers)}."
            )
        for number, one in zip(answers, said, strict=True):
            result = _result(policy, request, start, one, mode)
            found[number] = replace(result, version=version, seconds=seconds)
    for number in range(request.count):
        if number not in found:  # its start fills it
            start = request.start(number)[: request.sampling.max_tokens]
            found[number] = Result(start, [0.0] * len(start), "length", version=version)
    return [found[number] for number in range(request.count)]


def clip_times(times: Sequence[float], temporal_patch: int) -> dict[str, object]:
    """The metadata of a clip whose frames stand at `times` (seconds), such that vLLM writes and counts these times.

    vLLM knows frames by numbers and a rate: the stamps of Qwen3-VL are means of number / rate, the spacing of
    Qwen2.5-VL is temporal patch · total / (frames · rate).
    """
    count = len(times)
    # A lone frame is shown twice, and then the trainer counts one second per temporal patch.
    gap = (times[-1] - times[0]) / (count - 1) if count > 1 else 1.0 / temporal_patch
    marks = [*times, max(count, temporal_patch) * gap]
    rate = next(r for r in RATES if _on_frames(marks, r) or r == RATES[-1])
    numbers = [round(time * rate) for time in times]
    if count == 1:
        numbers *= temporal_patch
    total = round(len(numbers) * gap * rate)
    return {
        "fps": rate,
        "duration": total / rate,
        "total_num_frames": total,
        "frames_indices": numbers,
        "do_sample_frames": False,
        "video_backend": "mmrl",
    }


def _on_frames(times: Sequence[float], rate: float) -> bool:
    return all(abs(time * rate - round(time * rate)) < EXACT for time in times)


def _seed(request: Request) -> int:
    """Of its first answer; the others count on."""
    # Room for all numbers of answers below 2^62, so that the sum stays a signed 64-bit number.
    return (derive_seed(*request.seed, request.prompt.id, request.branch) >> 1) + request.first


def _params(processing: Processing, request: Request, room: int) -> dict[str, object]:
    sampling = request.sampling
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "max_tokens": room,
        "stop": list(sampling.stop),
        "stop_token_ids": list(processing.stop_ids),
        "banned": list(request.banned),
    }


def _with_one_each(processing: Processing, request: Request, start: Sequence[int]) -> list[int]:
    """A forced start with one placeholder per picture, which vLLM expands."""
    pads = set(processing.family.placeholder_ids(processing.config).values())
    widths = iter(request.within)
    found: list[int] = []
    at = 0
    while at < len(start):
        found.append(start[at])
        at += next(widths).tokens if start[at] in pads else 1
    return found


def _shown(request: Request) -> list[tuple[Media, Patches]]:
    """All media with their pixels, those of the prompt first. Raises ValueError for a clip within an answer."""
    for one in request.within:
        if one.medium.is_video:
            raise ValueError(
                f"An answer to prompt {request.prompt.id!r} shows a clip, which was not tried with vLLM; use "
                "--load.engine here, or a tool that shows single frames."
            )
    own = zip(request.prompt.media, request.pixels, strict=True)
    return [*own, *((one.medium, one.pixels) for one in request.within)]


def _media(processing: Processing, request: Request) -> tuple[Shown, ...]:
    found: list[Shown] = []
    for medium, patches in _shown(request):
        times = _times(processing, medium)
        name = f"{patches.key}-{digest(times).hex()}" if times else patches.key
        found.append(Shown(patches.kind, name, _frames(medium, patches), times))
    return tuple(found)


def _times(processing: Processing, medium: Media) -> dict[str, object] | None:
    if medium.times is None:
        return None
    return clip_times(medium.times.double().tolist(), processing.videos.temporal_patch)


def _frames(medium: Media, patches: Patches) -> Tensor:
    """uint8 [F, 3, H, W]: as many as the medium has, but a lone frame of a clip twice."""
    frames = patches.frames
    if medium.is_video and len(medium.frames) == 1:
        return frames[:1].expand(2, -1, -1, -1)
    return frames[: len(medium.frames)]


def _size(processing: Processing, request: Request) -> dict[str, int] | None:
    """Limits under which the processor leaves the sizes as they are; None if its own do."""
    areas: list[int] = []
    kept = True
    shown = _shown(request)
    for medium, patches in shown:
        rules = processing.videos if medium.is_video else processing.images
        frames = len(medium.frames)
        kept = kept and rules.size(frames, *patches.size, PixelBudget()) == patches.size
        counted = max(frames, 2) + frames % 2 if medium.is_video and rules.whole_clip else 1
        areas += [counted * math.prod(patches.size), max(frames, 1) * math.prod(patches.size)]
    if kept:
        return None
    return {
        "shortest_edge": min(math.prod(patches.size) for _, patches in shown),
        "longest_edge": max(areas),
    }


def _same_ids(request: Request, start: Sequence[int], reply: Reply) -> None:
    """Raise EngineDisagrees unless vLLM read the ids that the trainer reads."""
    ours, theirs = [*request.encoded.ids.tolist(), *start], list(reply.seen)
    if ours == theirs:
        return
    pairs = zip(ours, theirs, strict=False)
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    raise EngineDisagrees(
        f"vLLM read prompt {request.prompt.id!r} (view {request.branch!r}) otherwise than the trainer: it has "
        f"{len(theirs)} ids, ours {len(ours)}, and the first difference is at place {place}: "
        f"{theirs[place : place + 6]}, ours {ours[place : place + 6]}. Answers to it would be trained under another "
        "prompt. Look whether the engine serves the same checkpoint with its processor; else leave this row out."
    )


def _result(
    policy: Policy, request: Request, start: tuple[int, ...], said: Said, mode: LogprobsMode
) -> Result:
    tokens = list(said.tokens)
    if wrong := sorted(set(tokens) & set(request.banned)):
        raise EngineDisagrees(
            f"vLLM drew the ids {wrong[:5]} in an answer to prompt {request.prompt.id!r}, which were banned: they are "
            "markers of pictures, or stand for no text."
        )
    # A number for each: -inf or NaN comes from weights that did not arrive as a whole.
    if len(said.logp) != len(tokens) or not all(map(math.isfinite, said.logp)):
        raise EngineDisagrees(
            f"vLLM's log-probs of an answer to prompt {request.prompt.id!r} are not finite numbers, one per token "
            f"({len(said.logp)} for {len(tokens)}): its weights are damaged. Start the engine again."
        )
    length, stop = _end(policy, request, start, tokens)
    if not stop:
        stop = said.reason if isinstance(said.reason, str) else "length"
    kind = meaning(request.sampling, mode)
    logp = None if kind == "none" else [*[0.0] * len(start), *said.logp[:length]]
    return Result([*start, *tokens[:length]], logp, stop, kind)


def _end(
    policy: Policy, request: Request, start: tuple[int, ...], tokens: Sequence[int]
) -> tuple[int, str]:
    """Where the answer ends and why, by the rules of the engine in this process; "" for neither end nor string."""
    stops = request.sampling.stop
    answer = Answer(request.group, start, tokens=list(start))
    for number, token in enumerate(tokens):
        answer.tokens.append(token)
        if token in policy.processing.stop_ids:
            return number + 1, "eos"
        if stops and (found := stop_string(policy, answer, stops)):
            return number + 1, found
    return len(tokens), ""
