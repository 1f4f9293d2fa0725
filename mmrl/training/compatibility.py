"""Refuse what cannot mean anything, before a run starts, with both parts and the reason in the message.

    a single-rollout objective with an estimator or filter that compares the answers of a group
    an objective without the answers it reads: labels, experts, checklists, answers sampled under a noisy view
    two parts that sample answers under noisy views
    a filter of its own (PEARL) together with dynamic sampling
    a visual term in the loss on answers that the policy did not write
    one branch name with two settings, or two exact divergences
    a view that changes the answer of a question
    a correction for the sampler's probabilities on answers that nobody sampled

What objectives want and what rollout functions bring, they say themselves (`Objective.wants`, `brings`,
`drops_even_groups`); an estimator is asked by giving it single answers. Rows are checked by the first few.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from mmrl.ground.faults import BadRow
from mmrl.grpo import GRPO
from mmrl.model.branches import spoils
from mmrl.objectives.base import Objective
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import RolloutFunction, chain
from mmrl.rollouts.noisy import can_look
from mmrl.types import Prompt, Prompts, VisualBranch

ROWS = 8
"""How many rows are looked at."""

HOW = {
    "label": "it needs the label in each group; use rollout=WithLabel(policy.processing.encode_answer, ...)",
    "expert": "it needs an expert answer next to each group; use rollout=WithExpert(policy.processing.encode_answer)",
    "checklist": "it needs answers to checklists; use rollout=ChecklistRollout(ask, mark, pearl)",
    "noisy prompts": "it needs answers sampled under that branch; use rollout=NoisyPrompts(policy, view, branch), or "
    "another draw",
}


def check_setup(
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    rollout: RolloutFunction,
    estimator: Callable[..., torch.Tensor],
    grpo: GRPO,
    engine: Engine,
    prompts: Prompts,
) -> None:
    """Raise ValueError for the first meaningless combination."""
    parts = chain(rollout)
    _check_single_rollouts(objectives, parts, estimator)
    _check_noisy_samplers(objectives, parts)
    _check_filters(objectives, parts)
    _check_wants(objectives, parts)
    _check_given_answers(objectives, branches, parts, grpo)
    _check_branches(objectives, branches, parts)
    if any(hasattr(part, "view") for part in parts) and not can_look(engine):
        raise ValueError(
            f"{called(rollout)} samples answers under a view, but {called(engine)} cannot show other pixels than the "
            "prompt's; use HFEngine."
        )
    _check_rows(branches, parts, _first_rows(prompts))


def joined(*several: Mapping[str, VisualBranch]) -> dict[str, VisualBranch]:
    """The branches of several objectives in one mapping. Raises ValueError if a name has two settings."""
    out: dict[str, VisualBranch] = {}
    for branches in several:
        for name, branch in branches.items():
            if out.setdefault(name, branch) != branch:
                raise ValueError(
                    _two_settings(
                        name, "one objective's branches", out[name], "another's", branch
                    )
                )
    return out


def compares_answers(estimator: Callable[..., torch.Tensor]) -> bool:
    """Does the estimator say nothing about an answer that is alone in its group?"""
    alone, mask = torch.arange(4), torch.ones(4, 3, dtype=torch.bool)
    return not bool(estimator(torch.tensor([0.0, 1.0, 0.0, 1.0]), alone, mask).any())


def called(part: object) -> str:
    """How a part is named in a message."""
    if isinstance(part, partial):
        return called(part.func)
    return getattr(part, "__name__", type(part).__name__)


def _check_single_rollouts(
    objectives: Sequence[Objective],
    parts: Sequence[Any],
    estimator: Callable[..., torch.Tensor],
) -> None:
    for objective in objectives:
        if not (objective.single_rollout and objective.needs()):
            continue
        for part in parts:
            if getattr(part, "drops_even_groups", False):
                raise ValueError(
                    f"{called(objective)} trains one answer per prompt, but {called(part)} drops groups whose answers "
                    "all earn the same, which is every group of one: nothing would be left. Use rollout=group_rollout."
                )
        if compares_answers(estimator):
            raise ValueError(
                f"{called(objective)} trains one answer per prompt, but the estimator {called(estimator)} compares the "
                "answers of a group and gives 0 to an answer that is alone. Use one that does not, for example "
                "partial(group_centered, alone='reward')."
            )


def _check_noisy_samplers(objectives: Sequence[Objective], parts: Sequence[Any]) -> None:
    """Two parts that sample under noisy views: neither would get the answers that it was made for."""
    noisy = lambda whats: [what for what in whats if what.startswith("noisy ")]  # noqa: E731
    brought = [
        (called(part), what) for part in parts for what in noisy(getattr(part, "brings", ()))
    ]
    wanted = [
        (called(objective), what) for objective in objectives for what in noisy(objective.wants)
    ]
    pairs = [*pairwise(brought), *pairwise(wanted)]
    pairs += [(one, other) for one in wanted for other in brought if one[1] != other[1]]
    for (first, one), (second, other) in pairs:
        raise ValueError(
            f"{first} ({one}) and {second} ({other}) both sample answers under noisy views, and an answer can be "
            "sampled under one view only. Keep one of them; an objective may still score another branch."
        )


def _check_wants(objectives: Sequence[Objective], parts: Sequence[Any]) -> None:
    brought = {what for part in parts for what in getattr(part, "brings", ())}
    for objective in objectives:
        for want in objective.wants:
            if want not in brought:
                there = f"brings {', '.join(sorted(brought))}" if brought else "brings none"
                raise ValueError(
                    f"{called(objective)} reads {want!r} answers, but the rollout function {called(parts[0])} {there}: "
                    f"{HOW[want.split(':')[0]]}."
                )


def _check_filters(objectives: Sequence[Objective], parts: Sequence[Any]) -> None:
    droppers = [part for part in parts if getattr(part, "drops_even_groups", False)]
    owners: list[object] = [o for o in objectives if "checklist" in o.wants]
    owners += [part for part in parts if "checklist" in getattr(part, "brings", ())]
    if droppers and owners:
        raise ValueError(
            f"{called(owners[0])} has a filter of its own, which keeps a prompt if either branch carries signal, but "
            f"{called(droppers[0])} drops every group whose answers all earn the same. Leave out {called(droppers[0])}."
        )


def _check_given_answers(
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    parts: Sequence[Any],
    grpo: GRPO,
) -> None:
    given = [
        (part, what)
        for part in parts
        for what in getattr(part, "brings", ())
        if what in ("label", "expert")
    ]
    for part, what in given:
        if grpo.mismatch != "off":
            raise ValueError(
                f"GRPO.mismatch is {grpo.mismatch!r}, but {called(part)} adds {what}s, which nobody sampled and which "
                "have no sampler probabilities. Set mismatch='off'."
            )
        if what == "expert":
            continue  # experts are in no mask: terms do not reach them
        for objective in objectives:
            read = [
                n.branch
                for n in objective.needs()
                if n.stage == "terms" and n.branch in branches
            ]
            if read:
                raise ValueError(
                    f"{called(objective)} has a visual term in the loss (branch {read[0]!r}), and {called(part)} "
                    f"trains {what}s: the term would change how text that the policy did not write depends on the "
                    "picture. Train them in separate runs, or give expert answers that are only scored (WithExpert)."
                )


def _check_branches(
    objectives: Sequence[Objective], branches: Mapping[str, VisualBranch], parts: Sequence[Any]
) -> None:
    for part in parts:
        view, name = getattr(part, "view", None), getattr(part, "branch", "")
        if view is not None and branches.get(name, view) != view:
            raise ValueError(
                _two_settings(name, called(part), view, "branches", branches[name])
            )
    asked: dict[str, tuple[str, str]] = {}
    for objective in objectives:
        for need in objective.needs():
            if need.divergence is None:
                continue
            other, kind = asked.setdefault(need.branch, (called(objective), need.divergence))
            if kind != need.divergence:
                raise ValueError(
                    f"{other} asks for the {kind} divergence of the branch {need.branch!r}, {called(objective)} for "
                    f"the {need.divergence} one, and a branch is scored once. Give one of them another branch."
                )


def _two_settings(
    name: str, first: str, one: VisualBranch, second: str, other: VisualBranch
) -> str:
    return (
        f"The branch {name!r} has two settings, in {first}: {one}, and in {second}: {other}. One name is one view, "
        "drawn and scored once; use equal settings or another name."
    )


def _first_rows(prompts: Prompts) -> list[Prompt]:
    found = []
    for index in range(ROWS if prompts.size is None else min(ROWS, prompts.size)):
        with contextlib.suppress(BadRow):
            found.append(prompts[index])
    return found


def _check_rows(
    branches: Mapping[str, VisualBranch], parts: Sequence[Any], rows: Sequence[Prompt]
) -> None:
    views = {name: branch.view for name, branch in branches.items()}
    views |= {part.branch: part.view.view for part in parts if hasattr(part, "view")}
    for name, view in views.items():
        for row in rows:
            if reason := spoils(view, row):
                raise ValueError(
                    f"The branch {name!r} does not fit the question {row.id!r}: {reason}"
                )
        silent = [row for row in rows if row.media and "depends_on" not in row.extra]
        if silent and (
            getattr(view, "changes_geometry", False) or getattr(view, "changes_order", False)
        ):
            warnings.warn(
                f"The branch {name!r} moves what is seen ({called(view)}), and the rows do not say whether their "
                "answers depend on it; a column depends_on with 'geometry' or 'order' would.",
                stacklevel=4,
            )
    for part in parts:
        if (missing := getattr(part, "missing", None)) is None or not rows:
            continue
        lacking = {missing(row) for row in rows}
        if "" not in lacking:
            raise ValueError(
                f"{called(part)} takes its answers from the column {sorted(lacking)[0]!r}, which none of the first "
                f"{len(rows)} rows has (they have {sorted(rows[0].extra)}); name another with column=..."
            )
