"""From media to finished questions: attempts, wording, layout, identity and replay.

A sample's identity is (source ids, task, version, knobs, seed, index, attempt). A rejected draft is tried again with
the next attempt number, up to `ATTEMPTS`; the number stays in the recipe, so `replay` needs no search. The surface is
not part of the identity of pixels and truth: changing it changes words and layout only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mmrl.data.pretext.contract import Draft, Knobs, Medium, Reject, Sample, Task, Visual
from mmrl.data.pretext.craft.canvas import numbered_canvas
from mmrl.data.pretext.surface import Surface
from mmrl.ground.seeds import Streams, digest

ATTEMPTS = 9
"""Drafts that a task may reject before the medium is given up."""
UNWANTED = 64
"""Drafts that the caller may not want, besides."""


def make(
    task: Task,
    media: Sequence[Medium],
    knobs: Knobs | None = None,
    surface: Surface | None = None,
    seed: int = 0,
    index: int = 0,
    wanted: Callable[[Draft], bool] | None = None,
) -> Sample | Reject:
    """One sample of a task, or the last reason why these media give none. `wanted` may pass over drafts."""
    full = task.complete(knobs or {})
    outcome: Draft | Reject = Reject("no-attempt")
    rejected = 0
    for attempt in range(ATTEMPTS + UNWANTED):
        recipe = _recipe(task, media, full, seed, index, attempt)
        outcome = task.propose(media, full, _streams(recipe))
        if isinstance(outcome, Reject):
            rejected += 1
            if rejected == ATTEMPTS:
                return outcome
        elif wanted is None or wanted(outcome):
            return render_sample(task, outcome, full, surface or Surface(), recipe)
    return Reject("none-wanted")


def draft_identity(task: Task, draft: Draft) -> str:
    """What two drafts share if they ask the same: task, truth, what the words are filled with, and pixels."""
    hashed = hashlib.blake2b(task.name.encode(), digest_size=16)
    hashed.update(json.dumps(draft.truth, sort_keys=True).encode())
    hashed.update(repr(sorted(draft.fields.items())).encode())
    for visual in draft.visuals:
        hashed.update(visual.pixels.tobytes())
    return hashed.hexdigest()


def replay(
    task: Task,
    media: Sequence[Medium],
    recipe: Mapping[str, Any],
    surface: Surface | None = None,
) -> Sample:
    """The identical sample again, from its recipe and the same media."""
    found = [medium.id for medium in media]
    same_task = (task.name, task.version) == (recipe["task"], recipe["version"])
    if not same_task or found != list(recipe["media"]):
        raise ValueError(
            f"the recipe is for {recipe['task']} v{recipe['version']} on media {recipe['media']}, "
            f"but {task.name} v{task.version} on {found} was given; load the same task version and media."
        )
    knobs = task.complete(recipe["knobs"])
    draft = task.propose(media, knobs, _streams(recipe))
    assert isinstance(draft, Draft), f"{task.name} rejected its own recipe {recipe}: {draft}"
    return render_sample(task, draft, knobs, surface or Surface(), recipe)


def render_sample(
    task: Task, draft: Draft, knobs: Knobs, surface: Surface, recipe: Mapping[str, Any]
) -> Sample:
    """Word a draft: visuals first (with their labels), then the question."""
    visuals, evidence = draft.visuals, draft.evidence
    pictures_only = not any(visual.is_video for visual in visuals)
    if surface.layout == "canvas" and len(visuals) > 1 and pictures_only:
        pieces = [visual.pixels for visual in visuals]
        labels = [visual.label for visual in visuals]
        visuals = (Visual(numbered_canvas(pieces, labels)),)
        # Its boxes are those of the single pieces.
        evidence = ()
    parts: list[Mapping[str, str]] = []
    for visual in visuals:
        if visual.label:
            parts.append({"type": "text", "text": f"{visual.label} "})
        parts.append({"type": "video" if visual.is_video else "image"})
    # A fresh stream of the same name: whatever `propose` drew from it, the wording is the same.
    text = task.question(draft, knobs, surface, _streams(recipe).wording)
    parts.append({"type": "text", "text": f"\n{text}" if parts else text})
    return Sample(
        id=digest(recipe, asdict(surface)).hex(),
        task=task.name,
        version=task.version,
        messages=({"role": "user", "content": parts},),
        visuals=visuals,
        truth=draft.truth,
        key=draft.key,
        knobs=knobs,
        surface=surface,
        evidence=evidence,
        meta=draft.meta,
        recipe=recipe,
    )


def equivalent(task: Task, media: Sequence[Medium], sample: Sample) -> Sample:
    """The same pixels and truth in the next wording."""
    variant = (sample.surface.variant or 0) + 1
    return replay(task, media, sample.recipe, replace(sample.surface, variant=variant))


def corrupt(task: Task, media: Sequence[Medium], sample: Sample) -> Sample | Reject:
    """A sample of the same media and knobs whose solution key differs."""
    for extra in range(1, 2 * ATTEMPTS):
        # Far beyond the attempts that `make` tries: no other sample of the stream is met.
        attempt = int(sample.recipe["attempt"]) + 1000 * extra
        recipe = dict(sample.recipe) | {"attempt": attempt}
        draft = task.propose(media, sample.knobs, _streams(recipe))
        if isinstance(draft, Draft) and draft.key != sample.key:
            return render_sample(task, draft, sample.knobs, sample.surface, recipe)
    return Reject("no-other-truth")


def _recipe(
    task: Task, media: Sequence[Medium], knobs: Knobs, seed: int, index: int, attempt: int
) -> dict[str, Any]:
    return {
        "media": [medium.id for medium in media],
        "task": task.name,
        "version": task.version,
        "knobs": dict(knobs),
        "seed": seed,
        "index": index,
        "attempt": attempt,
    }


def _streams(recipe: Mapping[str, Any]) -> Streams:
    return Streams(dict(recipe))
