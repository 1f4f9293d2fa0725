"""Rows as the model reads them, for a page: rendered prompt, processed pixels, every branch, and what answers earn.

Canned answers need no knowledge of a recipe's form: the true answer is put into each of the usual forms, all are paid,
and the form that earns most stands for the right answer; a wrong one is the answer of another row in the same form.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmrl.ground.faults import BadRow
from mmrl.model.branches import spoils
from mmrl.model.encoded import Encoded
from mmrl.perception.longrlvr import evidence_of, written
from mmrl.training.closeups import branch_media, shown_media
from mmrl.training.dry import Parts
from mmrl.types import Media, Prompt, Role, Rollout

LONGEST, LONGEST_FRAME = 1024, 200
"""Pixels on the longer side of a picture, and of a frame of a clip; smaller ones have their true size."""
FORMS: Mapping[str, str] = {
    "the answer alone": "{}",
    "in a box": "\\boxed{{{}}}",
    "thoughts, then in a box": "<think>I looked closely.</think> \\boxed{{{}}}",
    "in <answer>": "<answer>{}</answer>",
    "thoughts, then in <answer>": "<think>I looked closely.</think><answer>{}</answer>",
    "thoughts, then boxed in <answer>": "<think>\nI looked closely.\n</think>\n<answer>\n\\boxed{{{}}}\n</answer>",
}
"""How answers are usually given; the first is no form at all."""
NAMED = "<think>I looked closely.</think><{tag}>{evidence}</{tag}><answer>{answer}</answer>"
"""The same for rows with evidence."""
OWN = "as the row's own target"


def shown_row(parts: Parts, prompt: Prompt, others: Sequence[Prompt]) -> dict[str, Any]:
    """One row of the page; `others` lend their answers as wrong ones."""
    encoded = parts.policy.encode(prompt)
    strips, missing = _strips(parts, prompt)
    return {
        "id": prompt.id,
        "source": prompt.source,
        "text": _collapsed(parts.policy.processing.spell, encoded),
        "tokens": len(encoded.ids),
        "visual": int((encoded.types > 0).sum()),
        "media": [_medium(encoded, prompt, place) for place in range(len(prompt.media))],
        "strips": strips,
        "missing": missing,
        "truth": as_text(prompt.answer),
        **_paid(parts, prompt, encoded, others),
    }


def as_text(answer: object) -> str:
    """An answer as one would write it."""
    if isinstance(answer, str):
        return answer
    return json.dumps(answer, ensure_ascii=False, default=str)


def _collapsed(spell: Callable[[Sequence[int]], str], encoded: Encoded) -> str:
    """The text with each run of a placeholder as one, and their number."""
    both = zip(encoded.ids.tolist(), (encoded.types > 0).tolist(), strict=True)
    told: list[str] = []
    # A run is the same placeholder again and again; text is spelt as one, for a character may lie on several tokens.
    for pad, run in itertools.groupby(both, lambda pair: pair[0] if pair[1] else None):
        places = [token for token, _ in run]
        if pad is None:
            told.append(spell(places))
        else:
            told.append(spell([pad]) + (f"×{len(places)}" if len(places) > 1 else ""))
    return "".join(told)


def _medium(encoded: Encoded, prompt: Prompt, place: int) -> dict[str, Any]:
    """Where a medium stands in the prompt, and at which size the model sees it."""
    medium, patches, slot = prompt.media[place], encoded.visual[place], encoded.slots[place]
    height, width = patches.size
    frames, _, tall, wide = medium.frames.shape
    return {
        "kind": "clip" if medium.is_video else "picture",
        "frames": frames,
        "original": (wide, tall),
        "size": (width, height),
        "grid": tuple(int(side) for side in patches.grid),
        "tokens": len(slot),
        "first": int(slot[0]),
        "last": int(slot[-1]),
        "id": int(encoded.ids[slot[0]]),
    }


def _strips(parts: Parts, prompt: Prompt) -> tuple[list[dict[str, Any]], list[str]]:
    """What the model sees under each branch, and which branches cannot be shown and why."""
    if not prompt.media:
        return [], []
    # At the size at which they are cut into patches, as the model sees them.
    strips = [_strip("raw", _resized(parts, prompt, prompt.media))]
    missing = []
    for name, branch in parts.branches.items():
        if branch.view.reads_saliency:
            missing.append(
                f"{name}: it follows the policy's own attention, and here no weights are loaded."
            )
        elif branch.view.shows == "plain":
            missing.append(
                f"{name}: the pictures as they are; the question is asked in other words."
            )
        elif reason := spoils(branch.view, prompt):
            missing.append(f"{name}: {reason}")
        else:
            seen = branch_media(parts.policy, prompt, name, branch, parts.now)
            strips.append(_strip(name, _resized(parts, prompt, seen)))
    return strips, missing


def _strip(name: str, media: Sequence[Media]) -> dict[str, Any]:
    return {"branch": name, "media": shown_media(media, LONGEST, LONGEST_FRAME)}


def _resized(parts: Parts, prompt: Prompt, media: Sequence[Media]) -> list[Media]:
    policy, found = parts.policy, []
    sizes = [patches.size for patches in policy.encode(prompt).visual]
    for medium, size in zip(media, sizes, strict=True):
        rules = policy.processing.videos if medium.is_video else policy.processing.images
        found.append(Media(rules.resize(medium.frames, size), medium.times))
    return found


def _paid(
    parts: Parts, prompt: Prompt, encoded: Encoded, others: Sequence[Prompt]
) -> dict[str, Any]:
    """What canned answers earn."""
    forms = _forms(prompt)
    if not forms:
        return {"paid": [], "form": "", "problem": "The row has no answer to compare with."}
    try:
        tried = _pay(parts, prompt, encoded, list(forms.values()))
        best = max(range(len(tried)), key=lambda place: tried[place].reward or 0.0)
        form = list(forms)[best]
        said = {
            "right": forms[form],
            "wrong, in the same form": _wrong(prompt, form, others),
            "right, without any form": FORMS["the answer alone"].format(as_text(prompt.answer)),
            "empty": "",
        }
        paid = _pay(parts, prompt, encoded, list(said.values()))
    except Exception as error:  # rewards are anybody's code, and judges may not be there
        return {"paid": [], "form": "", "problem": f"{type(error).__name__}: {error}"}
    rows = [
        {"label": label, "text": text, "reward": one.reward, "parts": dict(one.parts)}
        for (label, text), one in zip(said.items(), paid, strict=True)
    ]
    problem = (
        "" if (tried[best].reward or 0.0) > 0 else "No usual form of the answer earns anything."
    )
    return {"paid": rows, "form": form, "problem": problem}


def _forms(prompt: Prompt) -> dict[str, str]:
    """The true answer in each usual form; none for a row without an answer."""
    found: dict[str, str] = {}
    target = prompt.extra.get("target")
    if isinstance(target, str):
        found[OWN] = target
    if prompt.answer is not None:
        answer = as_text(prompt.answer)
        found |= {name: form.format(answer) for name, form in FORMS.items()}
        found |= _with_evidence(prompt, answer)
    return found


def _with_evidence(prompt: Prompt, answer: str) -> dict[str, str]:
    """The true answer behind the row's evidence; none for rows without any that can be put into words."""
    try:
        evidence = written(evidence_of(prompt))
    except ValueError:  # of a mask, say, which only views read
        return {}
    return {
        f"<{tag}>, then in <answer>": NAMED.format(tag=tag, evidence=evidence, answer=answer)
        for tag in ("evidence", "useful_chunks")
        if evidence
    }


def _wrong(prompt: Prompt, form: str, others: Sequence[Prompt]) -> str:
    """Another row's answer in the same form."""
    for other in others:
        given = _forms(other).get(form)
        if given is not None and as_text(other.answer) != as_text(prompt.answer):
            return given
    return FORMS.get(form, "{}").format("something else")


def _pay(parts: Parts, prompt: Prompt, encoded: Encoded, texts: Sequence[str]) -> list[Rollout]:
    """The answers as a group, paid; an answer that no reward could look at has no reward."""
    group = [_answer(parts, prompt, encoded, text) for text in texts]
    paid = parts.rewards(group)
    return paid if len(paid) == len(group) else [replace(one, reward=None) for one in group]


def _answer(parts: Parts, prompt: Prompt, encoded: Encoded, text: str) -> Rollout:
    try:
        tokens = parts.policy.processing.encode_answer(text)
    except BadRow:
        # A structural token in the truth: the text is what rewards read.
        tokens = torch.tensor([parts.policy.processing.stop_ids[0]])
    roles: Tensor = torch.full((len(tokens),), Role.POLICY, dtype=torch.uint8)
    return Rollout(prompt, 0, encoded.ids, tokens, roles, text, "eos")
