"""Measuring a policy on held-out prompts: greedy accuracy, pass@k, lengths."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mmrl.ground.domains import SCORE
from mmrl.ground.faults import BadRow
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import Engine
from mmrl.training.domain_metrics import by_domain, domain_scores
from mmrl.training.run import PhaseTimer
from mmrl.training.whole_batch import everybodys
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling


def heldout_prompts(
    prompts: Prompts | None,
    count: int,
    check: Callable[[Prompt], object] | None = None,
    report: Callable[[int, BadRow], None] | None = None,
) -> list[Prompt]:
    """The first `count` usable prompts of a collection (all of them if it is smaller; none without one).

    Rows that raise `BadRow`, when read or in `check`, are left out; `report` is given the index and the error of each.
    """
    usable: list[Prompt] = []
    if prompts is None:
        return usable
    rows = itertools.count() if prompts.size is None else range(prompts.size)
    for index in rows:
        if len(usable) >= count:
            break
        # A bad row costs itself: the next one takes its place, so that `count` prompts are measured.
        try:
            prompt = prompts[index]
            if check is not None:
                check(prompt)
        except BadRow as problem:
            if report is not None:
                report(index, problem)
            continue
        usable.append(prompt)
    return usable


@contextlib.contextmanager
def aside(policy: Policy, rewards: Rewards, name: str) -> Iterator[dict[str, float]]:
    """A measurement between two steps: no graphs are kept, and its counts do not join the next step's.

    What is yielded holds `time/<name>` in seconds afterwards.
    """
    seconds: dict[str, float] = {}
    clock = PhaseTimer()
    with clock(name), policy.vision.no_update():
        yield seconds
    seconds[f"time/{name}"] = clock.read()[f"time/{name}"]
    # Read and dropped.
    policy.counters.clear()
    rewards.metrics()


def answers_to(
    engine: Engine,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    sampling: Sampling,
    now: Now,
) -> list[Rollout]:
    """Paid answers; groups are numbered by prompt."""
    return rewards(engine.generate(prompts, sampling, now))


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    sampling: Sampling,
    now: Now,
    part: str = "accuracy",
    ranks: Ranks | None = None,
    told: Callable[[Sequence[Rollout], Sequence[float]], None] | None = None,
) -> dict[str, float]:
    """One greedy answer per prompt: `accuracy` (mean of the reward part), `reward`, `length`, `truncated`.

    All ranks give the same prompts, each answers its share, and all get the numbers of all. `told` is given the answers
    of all and the score of each.
    """
    # Temperature 0 and one answer each: the score does not depend on the run's sampling or seed.
    greedy = replace(sampling, group_size=1, temperature=0.0)
    ranks = Ranks.here() if ranks is None else ranks
    with ranks.together():
        mine = prompts[ranks.rank :: ranks.world]
        rollouts = answers_to(engine, mine, rewards, greedy, now) if mine else []
    rollouts = everybodys(ranks, rollouts)
    if told is not None:
        told(rollouts, [_score(rollout, part) for rollout in rollouts])
    return summary(rollouts, part)


def summary(rollouts: Sequence[Rollout], part: str = "accuracy") -> dict[str, float]:
    """Means over answers, and `NAME/accuracy` of each domain of a mixture.

    An answer without the part counts by its domain's score, without that by its total reward.
    """
    if not rollouts:
        return {}
    count = len(rollouts)
    scores = [_score(r, part) for r in rollouts]
    mean = sum(scores) / count
    # The standard error of a share; rewards outside [0, 1] would make the variance negative.
    variance = max(mean * (1 - mean), 0.0)
    return {
        "accuracy": mean,
        "accuracy_error": math.sqrt(variance / count),
        "reward": sum(r.reward or 0.0 for r in rollouts) / count,
        "length": sum(len(r.tokens) for r in rollouts) / count,
        "truncated": sum(r.stop == "length" for r in rollouts) / count,
        **domain_scores(rollouts, lambda rollout: _score(rollout, part)),
    }


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased chance that at least one of k answers drawn from `samples` is right (Chen et al. 2021)."""
    if not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} needs at least {k} answers per prompt, there are {samples}."
        )
    # Drawn without replacement: all k are wrong in comb(wrong, k) of comb(samples, k) draws.
    all_wrong = math.comb(samples - correct, k) / math.comb(samples, k)
    return 1.0 - all_wrong


def pass_rates(
    rollouts: Sequence[Rollout], ks: Sequence[int], part: str = "accuracy"
) -> dict[str, float]:
    """pass@k over groups; an answer is right if its part is above 0.5."""
    groups: defaultdict[int, list[bool]] = defaultdict(list)
    for rollout in rollouts:
        right = _score(rollout, part) > 0.5
        groups[rollout.group].append(right)
    rates: dict[str, float] = {}
    for k in ks:
        chances = [pass_at_k(sum(group), len(group), k) for group in groups.values()]
        rates[f"pass@{k}"] = sum(chances) / max(1, len(groups))
    return rates


def domain_pass_rates(rollouts: Sequence[Rollout], ks: Sequence[int]) -> dict[str, float]:
    """`NAME/pass@k` of each domain of a mixture; nothing where rows are of none."""
    found: dict[str, float] = {}
    for name, answers in by_domain(rollouts).items():
        rates = pass_rates(answers, ks)
        found |= {f"{name}/{rate}": value for rate, value in rates.items()}
    return found


def _score(rollout: Rollout, part: str) -> float:
    """The part's value; where it does not exist or was dropped for the group, the score or the whole reward."""
    value = rollout.parts.get(part)
    if value is None:
        value = rollout.parts.get(SCORE)
    return float(rollout.reward or 0.0) if value is None else float(value)
