"""Refuse what cannot mean anything, before a run starts, with both parts and the reason in the message.

    groups of one answer, or of equal answers, under an estimator that compares the answers of a group
    answers longer than the model can read
    a single-rollout objective with an estimator or filter that compares the answers of a group
    an objective without the answers it reads: labels, experts, checklists, answers sampled under a noisy view
    two parts that sample answers under noisy views
    a filter of its own (PEARL) together with dynamic sampling
    a visual term in the loss on answers that the policy did not write
    one branch name with two settings, or two exact divergences
    a view that changes the answer of a question
    a correction for the sampler's probabilities on answers that nobody sampled
    what the engine cannot do
    a part that reads whether answers are right, with rewards that do not say
    a memory of prompts over endless data (a warning)
    hundreds of answers to a prompt, beside a part that samples on top of them (a warning)
    two parts whose traits exclude each other (`clashes.py`)

What objectives ask for and what rollout functions bring, they say themselves (`Objective.answer_kinds`,
`RolloutFunction`); an estimator is asked by giving it single answers. Rows are checked by the first few.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch

from mmrl.ground.faults import BadRow
from mmrl.ground.traits import traits_of
from mmrl.grpo import GRPO
from mmrl.losses.surrogates import clipped
from mmrl.model.drawing import spoils
from mmrl.model.policy import Policy
from mmrl.objectives.base import AnswerKind, Objective
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import RolloutCall, RolloutFunction, chain, group_rollout
from mmrl.rollouts.request import Ability, refuse_beyond
from mmrl.training.clashes import called, refuse_clashes
from mmrl.types import Prompt, Prompts, Role, Sampling, View, VisualBranch

ROWS = 8
"""How many rows are looked at."""
WIDE = 64
"""Answers from which on a group is wide: those of the smallest preset of BroRL."""


def check_setup(
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    rollout: RolloutCall,
    estimator: Callable[..., torch.Tensor],
    grpo: GRPO,
    engine: Engine,
    prompts: Prompts,
    surrogate: Callable[..., torch.Tensor] = clipped,
    rewards: Rewards | None = None,
) -> None:
    """Raise ValueError for the first meaningless combination; without `rewards` these are not looked at."""
    parts = chain(rollout)
    _check_traits(objectives, parts, estimator, surrogate, rewards)
    _check_owned_slots(objectives, grpo)
    if rewards is not None:
        _check_judged(objectives, parts, rewards)
    _check_names(objectives, parts, prompts)
    # In an order in which the first message names the cause and not a consequence of it.
    _check_single_rollouts(objectives, parts, estimator)
    # Before the check for missing answers: what is missing may be missing because two parts exclude each other.
    _check_noisy_samplers(objectives, parts)
    _check_filters(objectives, parts)
    _check_answers(objectives, parts)
    _check_given_answers(objectives, branches, parts, grpo)
    _check_branches(objectives, branches, parts)
    for part in parts:
        views: list[Ability] = ["other pixels"] if part.sampled_under() else []
        refuse_beyond(engine, [*views, *part.needs], called(part))
    _check_rows(branches, parts, _first_rows(prompts))


def check_lengths(sampling: Sampling, context: int) -> None:
    """Raise ValueError for longer answers than the model can read, which are `context` tokens, prompt included."""
    if sampling.max_tokens > context:
        raise ValueError(
            f"sampling.max_tokens is {sampling.max_tokens:,}, but this model reads at most {context:,} tokens, prompt "
            "included; lower --sampling.max-tokens."
        )


def check_sampling(
    sampling: Sampling,
    estimator: Callable[..., torch.Tensor],
    rollout: RolloutCall = group_rollout,
) -> None:
    """Raise ValueError for groups that nothing can be learned from, and warn of those that cost many times as much.

    Asked by every command; a trainer made in Python may take such steps, which change nothing.
    """
    _warn_of_width(sampling, rollout)
    # Answers from elsewhere (labels, experts, other views) join the group, or there are no others.
    if any(kind.trained or not kind.sampled for _, kind in _brought(chain(rollout))):
        return
    if not compares_answers(estimator):
        return
    if sampling.group_size == 1:
        raise ValueError(
            f"sampling.group_size is 1, but the estimator {called(estimator)} compares the answers of a group and "
            "gives 0 to an answer that is alone: nothing would be learned. Set --sampling.group-size to 2 or more."
        )
    if sampling.temperature == 0:
        raise ValueError(
            f"sampling.temperature is 0, so all answers of a group are the same, and the estimator {called(estimator)} "
            "compares them: nothing would be learned. Set --sampling.temperature above 0, for example 1."
        )


def _warn_of_width(sampling: Sampling, rollout: RolloutCall) -> None:
    """Wide groups are affordable because a prompt is read once; what is asked beside each answer is not."""
    for part in chain(rollout):
        if sampling.group_size >= WIDE and "samples beside answers" in traits_of(part):
            warnings.warn(
                f"sampling.group_size is {sampling.group_size}, and {called(part)} asks the engine for more beside the "
                "answers: the two costs multiply. Lower --sampling.group-size, or measure a few steps first.",
                stacklevel=4,
            )


def check_branches(
    branches: Mapping[str, VisualBranch], rollout: RolloutCall, policy: Policy
) -> None:
    """Raise ValueError for a view that reads the tower's attention where it cannot be read, or is not sampled under."""
    sampled = [part.sampled_under() for part in chain(rollout)]
    for name, branch in joined(branches, *sampled).items():
        if branch.view.reads_saliency and not policy.family.saliency:
            raise ValueError(f"Branch {name!r}: {policy.vision.tower.no_saliency}")
    for name, branch in joined(*sampled).items():
        if branch.view.shows == "nothing" or branch.reworded is not None:
            raise ValueError(
                f"Answers are sampled under the branch {name!r}, which "
                f"{'asks in other words' if branch.reworded else 'shows nothing'}: such branches only score answers. "
                "Sample under a view that changes pixels, or ask rows of other words or without pictures."
            )


def joined(*several: Mapping[str, VisualBranch]) -> dict[str, VisualBranch]:
    """The branches of several objectives in one mapping. Raises ValueError if a name has two settings."""
    out: dict[str, VisualBranch] = {}
    for branches in several:
        for name, branch in branches.items():
            known = out.setdefault(name, branch)
            if known != branch:  # equal requests share one branch and one pass
                first, second = "one objective's branches", "another's"
                raise ValueError(_two_settings(name, first, known, second, branch))
    return out


def compares_answers(estimator: Callable[..., torch.Tensor]) -> bool:
    """Does the estimator say nothing about an answer that is alone in its group?"""
    # Asked by example rather than by a list of names: an estimator of somebody else answers as well.
    group, mask = torch.arange(4), torch.ones(4, 3, dtype=torch.bool)
    # Below 0, for an estimator may refuse rewards above the largest one that it was told of.
    found = estimator(torch.tensor([-2.0, -1.0, -2.0, -1.0]), group, mask)
    return not bool(found.any())


def needs_correct(objectives: Sequence[Objective], rollout: RolloutCall) -> bool:
    """Does some part read whether an answer is right?"""
    return any(one.needs_correct for one in [*objectives, *chain(rollout)])


def remembering(objectives: Sequence[Objective], rollout: RolloutCall) -> list[str]:
    """Names of the parts whose memory is keyed by the ids of prompts."""
    return [called(one) for one in [*objectives, *chain(rollout)] if one.remembers_prompts()]


def _check_traits(
    objectives: Sequence[Objective],
    parts: Sequence[RolloutFunction],
    estimator: Callable[..., torch.Tensor],
    surrogate: Callable[..., torch.Tensor],
    rewards: Rewards | None,
) -> None:
    """No two parts that exclude each other."""
    functions = [] if rewards is None else [*rewards.functions.values(), rewards]
    refuse_clashes(objectives, parts, functions, surrogate, estimator)


def _check_owned_slots(objectives: Sequence[Objective], grpo: GRPO) -> None:
    """Nothing of the core is left without its place by who owns the estimator or the surrogate."""
    for objective in objectives:
        if "surrogate" in objective.owns() and grpo.mismatch != "off":
            raise ValueError(
                f"GRPO.mismatch is {grpo.mismatch!r}, but it weighs the surrogate, and {called(objective)} has a loss "
                "of its own. Set mismatch='off'."
            )
        if "rewards certainty" in objective.traits() and grpo.entropy > 0:
            raise ValueError(
                f"GRPO.entropy is {grpo.entropy}, but {called(objective)} pays for being sure, which an entropy bonus "
                "works against. Set --grpo.entropy 0."
            )
        if "estimator" in objective.owns() and grpo.kl > 0 and grpo.kl_in == "reward":
            raise ValueError(
                f"GRPO.kl_in is 'reward', but {called(objective)} makes the advantage from the answers' own rewards "
                "and would never see that penalty. Set kl_in='loss'."
            )


def _check_judged(
    objectives: Sequence[Objective], parts: Sequence[RolloutFunction], rewards: Rewards
) -> None:
    """Whoever asks whether an answer is right is told by the rewards."""
    for one in [*objectives, *parts]:
        if one.needs_correct and rewards.correct is None:
            raise ValueError(
                f"{called(one)} reads whether an answer is right, but Rewards with the parts {sorted(rewards.weights)} "
                "declare none that says so. Give Rewards(correct='accuracy'), or ('accuracy', 0.5) with the number "
                "that it must exceed; for a recipe --reward.correct and --reward.correct-above."
            )


def _check_names(
    objectives: Sequence[Objective], parts: Sequence[RolloutFunction], prompts: Prompts
) -> None:
    """Warn whoever remembers prompts of data in which none comes again."""
    for one in [*objectives, *parts]:
        if one.remembers_prompts() and prompts.size is None:
            warnings.warn(
                f"{called(one)} remembers how each prompt fared, but {called(prompts)} is endless: no prompt comes "
                "twice, so that nothing is ever remembered of one. Give it a size (--data.limit for drawn rows).",
                stacklevel=4,
            )


def _check_single_rollouts(
    objectives: Sequence[Objective],
    parts: Sequence[RolloutFunction],
    estimator: Callable[..., torch.Tensor],
) -> None:
    for objective in objectives:
        # Without a request it is switched off and trains nothing.
        if not (objective.single_rollout and objective.score_requests()):
            continue
        for part in parts:
            if part.drops_even_groups:
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


def _brought(parts: Sequence[RolloutFunction]) -> list[tuple[RolloutFunction, AnswerKind]]:
    """Every kind of answers, with the part that brings it."""
    return [(part, kind) for part in parts for kind in part.brings()]


def _asked(objectives: Sequence[Objective]) -> list[tuple[Objective, AnswerKind]]:
    """Every kind of answers that is asked for, with the objective."""
    return [(objective, kind) for objective in objectives for kind in objective.answer_kinds()]


def _check_noisy_samplers(
    objectives: Sequence[Objective], parts: Sequence[RolloutFunction]
) -> None:
    """Two parts that sample under noisy views: neither would get the answers that it was made for."""
    brought = [(part, kind) for part, kind in _brought(parts) if kind.branch]
    asked = [(objective, kind) for objective, kind in _asked(objectives) if kind.branch]
    pairs: list[tuple[tuple[object, AnswerKind], tuple[object, AnswerKind]]] = []
    pairs += [*pairwise(brought), *pairwise(asked)]
    for one in asked:  # an objective and a part may both name a view, if it is the same
        pairs += [(one, other) for other in brought if one[1] != other[1]]
    for (first, one), (second, other) in pairs:  # the first pair is told
        raise ValueError(
            f"{called(first)} ({one}) and {called(second)} ({other}) both sample answers under noisy views, and an "
            "answer can be sampled under one view only. Keep one of them; an objective may still score another branch."
        )


def _check_answers(objectives: Sequence[Objective], parts: Sequence[RolloutFunction]) -> None:
    """Every kind of answers that an objective asks for is brought."""
    brought = [kind for _, kind in _brought(parts)]
    for objective, kind in _asked(objectives):
        if kind in brought:
            continue
        names = ", ".join(sorted(str(one) for one in brought))
        remedy = kind.remedy or (
            "no rollout function of mmrl does; write a RolloutFunction whose brings() returns "
            f"AnswerKind({kind.name!r}{f', {kind.branch!r}' if kind.branch else ''})"
        )
        raise ValueError(
            f"{called(objective)} reads {str(kind)!r} answers, but the rollout function {called(parts[0])} brings "
            f"{names or 'none'}: {remedy}."
        )


def _check_filters(objectives: Sequence[Objective], parts: Sequence[RolloutFunction]) -> None:
    droppers = [part for part in parts if part.drops_even_groups]
    owners: list[object] = [one for one, kind in _asked(objectives) if kind.filtered]
    owners += [part for part, kind in _brought(parts) if kind.filtered]
    if droppers and owners:
        raise ValueError(
            f"{called(owners[0])} has a filter of its own, which keeps a prompt if either branch carries signal, but "
            f"{called(droppers[0])} drops every group whose answers all earn the same. Leave out {called(droppers[0])}."
        )


def _check_given_answers(
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    parts: Sequence[RolloutFunction],
    grpo: GRPO,
) -> None:
    _check_trained_roles(objectives, branches)
    for part, kind in _brought(parts):
        if kind.sampled:
            continue
        if grpo.mismatch != "off":
            raise ValueError(
                f"GRPO.mismatch is {grpo.mismatch!r}, but {called(part)} adds {kind}s, which nobody sampled and which "
                "have no sampler probabilities. Set mismatch='off'."
            )
        if not kind.trained:
            continue  # they are in no mask: terms do not reach them
        for objective in objectives:
            if name := _branch_in_the_loss(objective, branches):
                raise ValueError(
                    f"{called(objective)} has a visual term in the loss (branch {name!r}), and {called(part)} "
                    f"trains {kind}s: the term would change how text that the policy did not write depends on the "
                    "picture. Train them in separate runs, or give expert answers that are only scored (WithExpert)."
                )


def _check_trained_roles(
    objectives: Sequence[Objective], branches: Mapping[str, VisualBranch]
) -> None:
    """No visual term on tokens of others, which one objective trains for all."""
    for trainer in objectives:
        foreign = [role.name.lower() for role in trainer.trains_roles if role != Role.POLICY]
        for objective in objectives if foreign else ():
            if name := _branch_in_the_loss(objective, branches):
                raise ValueError(
                    f"{called(objective)} has a visual term in the loss (branch {name!r}), and {called(trainer)} "
                    f"trains {' and '.join(foreign)} tokens: the term would change how text that the policy did not "
                    "write depends on the picture. Train them in separate runs."
                )


def _branch_in_the_loss(objective: Objective, branches: Mapping[str, VisualBranch]) -> str:
    """The first visual branch that an objective's terms read; "" if none."""
    for request in objective.score_requests():
        if request.stage == "terms" and request.branch in branches:
            return request.branch
    return ""


def _check_branches(
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    parts: Sequence[RolloutFunction],
) -> None:
    for part in parts:
        for name, view in part.sampled_under().items():
            if branches.get(name, view) != view:
                raise ValueError(
                    _two_settings(name, called(part), view, "branches", branches[name])
                )
    # A branch is scored once, and a score has room for one exact divergence.
    asked: dict[str, tuple[str, str]] = {}
    for objective in objectives:
        for request in objective.score_requests():
            kind = request.divergence
            if kind is None:
                continue
            other, first = asked.setdefault(request.branch, (called(objective), kind))
            if first != kind:
                raise ValueError(
                    f"{other} asks for the {first} divergence of the branch {request.branch!r}, {called(objective)} "
                    f"for the {kind} one, and a branch is scored once. Give one of them another branch."
                )


def _two_settings(
    name: str, first: str, one: VisualBranch, second: str, other: VisualBranch
) -> str:
    return (
        f"The branch {name!r} has two settings, in {first}: {one}, and in {second}: {other}. One name is one view, "
        "drawn and scored once; use equal settings or another name."
    )


def _first_rows(prompts: Prompts) -> list[Prompt]:
    found: list[Prompt] = []
    count = ROWS if prompts.size is None else min(ROWS, prompts.size)
    for index in range(count):
        with contextlib.suppress(BadRow):  # the supply skips and counts it, or stops there
            found.append(prompts[index])
    return found


def _check_rows(
    branches: Mapping[str, VisualBranch],
    parts: Sequence[RolloutFunction],
    rows: Sequence[Prompt],
) -> None:
    views = {name: branch.view for name, branch in branches.items()}
    for part in parts:
        views |= {name: branch.view for name, branch in part.sampled_under().items()}
    for name, view in views.items():
        for row in rows:
            if reason := spoils(view, row):
                raise ValueError(
                    f"The branch {name!r} does not fit the question {row.id!r}: {reason}"
                )
        _warn_of_silent_rows(name, view, rows)
    for part in parts:
        lacking = {part.missing(row) for row in rows}
        # A row that lacks the answer is met with a count; that all of the first ones do is a wrong name.
        if rows and "" not in lacking:
            raise ValueError(
                f"{called(part)} takes its answers from the column {sorted(lacking)[0]!r}, which none of the first "
                f"{len(rows)} rows has (they have {sorted(rows[0].extra)}); {part.if_missing}"
            )


def _warn_of_silent_rows(name: str, view: View, rows: Sequence[Prompt]) -> None:
    """Warn if a view may change answers and the rows do not say what theirs depend on."""
    silent = [row for row in rows if row.media and "depends_on" not in row.extra]
    if silent and (view.changes_geometry or view.changes_order):
        warnings.warn(
            f"The branch {name!r} moves what is seen ({called(view)}), and the rows do not say whether their "
            "answers depend on it; a column depends_on with 'geometry' or 'order' would.",
            stacklevel=5,
        )
