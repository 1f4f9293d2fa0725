"""What is watched besides the loss: does the policy look at all, and is it about to collapse?

The blind probe answers some held-out prompts greedily with their pictures, with blank (black) ones and with those of
other prompts (resampled to the same size), and compares the log-probs of its answers to the real pictures under all
three:

    probe/accuracy, _blank, _other    mean of the accuracy part
    probe/gap                         accuracy minus accuracy on blank pictures
    probe/difference_blank, _other    mean over tokens of |log p(real) - log p(other pixels)|, nats

The first steps of every run with visual branches have a cheap half of it (`mmrl.training.first_looks`).

A run whose `difference_blank` stays below `least_difference` trains a blind policy (or pictures that never reach the
model) and is stopped by `BlindPolicy`.

Alarms compare the mean over the last `window` steps with the mean over the first `window`:

    divergence    k3 to a visual branch above 1 nat and 8 times the start      (PAPO: KL hacking)
    entropy       surprise -log p more than 3 times the start, and 0.5 nats above it
    length        answers shorter than 0.4 times the start, if they had at least 8 tokens
    mismatch      log-probs of the engine and of training more than 0.1 nats apart on average; from the first step on

An alarm is logged as `alarm/<name>` (1 while it lasts) and said once, with the remedy of the objectives' papers.
Sources: the symptoms are PAPO's (Figs. 11 to 13), the probe is DVRP's blind test; the thresholds are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.model.branches import Views
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import scored
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.base import Objective
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import Engine, can_look
from mmrl.rollouts.noisy import rendered
from mmrl.rollouts.request import lacks
from mmrl.training.evaluate import summary
from mmrl.types import Media, Now, Prompt, Rollout, Sampling, View, ViewContext, VisualBranch

MOST_MISMATCH = 0.1
"""Mean |log p(engine) - log p(training)| of a token, nats; engines in half precision have about a tenth of it."""
MISMATCH_REMEDY = (
    "compare the engine's precision, checkpoint and --logprobs mode with the run's; the importance weights "
    "(--grpo.mismatch) hide only small differences"
)
ANY_REMEDY = "lower the learning rate or the objectives' coefficients, or add a reference KL"
"""What helps against any alarm, where no objective knows better."""


class BlindPolicy(RuntimeError):
    """Pictures make no difference to what the policy says."""


@dataclass(frozen=True)
class Monitor:
    """What is watched, and how often."""

    probe_every: int = 0
    """Blind probe each so many steps and at the end; 0: never."""
    probe_first: int = 3
    """In a run with visual branches: after each of so many first steps, do its pictures reach the policy? 0: never."""
    probe_prompts: int = 64
    """Held-out prompts of the probe."""
    least_difference: float = 1e-3
    """The run stops if blank pictures change the log-prob of a token by less than this on average, nats."""
    norms_every: int = 0
    """Log the gradient norm of each loss term each so many steps; each term costs a forward and a backward."""
    window: int = 10
    """Steps over which alarms average; 0 turns them off."""

    def __post_init__(self) -> None:
        require(
            self,
            probe_every=(self.probe_every >= 0, "0 (never) or positive"),
            probe_first=(self.probe_first >= 0, "0 (never) or positive"),
            probe_prompts=(self.probe_prompts >= 2, "at least 2, since pictures are exchanged"),
            least_difference=(self.least_difference >= 0, "0 (never stop) or positive"),
            norms_every=(self.norms_every >= 0, "0 (never) or positive"),
            window=(self.window >= 0, "0 (no alarms) or positive"),
        )


@dataclass(frozen=True)
class BlackPixels(View):
    """All pixels black."""

    # Its answers are only compared with those to the real pictures.
    changes_geometry = changes_order = False

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        return torch.zeros_like(frames)


@dataclass(frozen=True)
class Exchanged(View):
    """The medium of another prompt, resampled to this one's size and number of frames."""

    partners: Mapping[str, tuple[Media, ...]]
    """Prompt id -> media of another prompt."""

    # Its answers are only compared with those to the real pictures.
    changes_geometry = changes_order = False

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        media = self.partners[context.prompt.id]
        # The other prompt may have fewer pictures: they are used again in turn.
        other = media[context.medium % len(media)].frames  # uint8 [F', 3, H', W']
        moments = torch.linspace(0, len(other) - 1, len(frames)).round().long()
        pixels = other[moments].float()
        # Same size and count as the original, so that only the content differs, not the number of tokens.
        resized = torch.nn.functional.interpolate(pixels, frames.shape[-2:], mode="bilinear")
        rounded = resized.round().clamp(0, 255)
        return rounded.to(torch.uint8)


def blind_probe(
    policy: Policy,
    engine: Engine,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    sampling: Sampling,
    now: Now,
    tokens_per_pass: int = 16384,
) -> dict[str, float]:
    """Accuracy and log-probs with the pictures, with blank ones and with those of other prompts.

    Prompts without media are left out; empty if fewer than two are left. Raises ValueError for an engine that cannot
    show other pixels.
    """
    prompts = [prompt for prompt in prompts if prompt.media]
    if len(prompts) < 2:
        return {}
    if not can_look(engine):
        raise ValueError(lacks(engine, "other pixels", "The blind probe"))
    # A ring: everybody gets the next prompt's pictures, nobody its own.
    partners: dict[str, tuple[Media, ...]] = {}
    for prompt, following in zip(prompts, [*prompts[1:], prompts[0]], strict=True):
        partners[prompt.id] = following.media
    branches = {
        "blank": VisualBranch(BlackPixels()),
        "other": VisualBranch(Exchanged(partners)),
    }
    greedy = replace(sampling, group_size=1, temperature=0.0)
    found: dict[str, float] = {}
    # Nothing is trained here: no graph of a picture is worth keeping.
    with policy.vision.no_update(), torch.no_grad():
        real = rewards(engine.generate(prompts, greedy, now))
        found["accuracy"] = summary(real)["accuracy"]
        for name, branch in branches.items():
            seen = rendered(policy, prompts, name, branch, now)
            generate: Any = engine.generate
            answers = rewards(generate(prompts, greedy, now, visual=seen, branch=name))
            found[f"accuracy_{name}"] = summary(answers)["accuracy"]
        found |= differences(policy, real, branches, now, tokens_per_pass)
    found["gap"] = found["accuracy"] - found["accuracy_blank"]
    return {f"probe/{name}": value for name, value in found.items()}


def refuse_blindness(found: Mapping[str, float], least: float) -> None:
    """Raise BlindPolicy if a probe found that blank pictures make no difference."""
    difference = found.get("probe/difference_blank")
    if difference is None or not difference < least:
        return
    measured = ""
    if "probe/accuracy" in found:
        measured = (
            f", and its accuracy is {found['probe/accuracy']:.3f} with the pictures, "
            f"{found['probe/accuracy_blank']:.3f} with blank ones and {found['probe/accuracy_other']:.3f} with those "
            "of other questions"
        )
    raise BlindPolicy(
        f"The policy does not look: blank pictures change the log-prob of a token by {difference:.2g} nats on average "
        f"(limit {least:.2g}){measured}. Either the pictures do not reach the model (wrong column, black files, broken "
        "tower), or the questions can be answered without them. Look at some rows; --monitor.least-difference 0 goes "
        "on anyway."
    )


@dataclass
class Alarms:
    """Remembers the start of a run and its last steps."""

    window: int
    objectives: Sequence[Objective] = ()
    rows: list[Mapping[str, float]] = field(default_factory=list)
    """The first `window` steps and the last `window` ones."""
    said: set[str] = field(default_factory=set)

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take up the means of past steps from the rows of a run's metrics."""
        for row in rows:
            if row["step"]:
                self.observe(row)

    def observe(self, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Take in a step's metrics; alarms to log, and messages for those that are new."""
        if not self.window:
            return {}, []
        raised, messages = self._mismatch(metrics)
        self.rows.append(_watched(metrics))
        if len(self.rows) > 2 * self.window:
            # The oldest after the start: the first window stays for ever.
            del self.rows[self.window]
        if len(self.rows) < 2 * self.window:
            return raised, messages
        first = _means(self.rows[: self.window])
        last = _means(self.rows[self.window :])
        # Metrics that only one of the windows has (a branch that was switched on later) cannot be compared.
        for name in first.keys() & last.keys():
            kind = alarm(name, first[name], last[name])
            if not kind:
                continue
            raised[f"alarm/{kind}"] = 1.0
            if kind not in self.said:
                self.said.add(kind)
                messages.append(self._message(kind, name, first[name], last[name]))
        return raised, messages

    def _mismatch(self, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """An engine that is far from training is wrong at once: no start can be compared with."""
        found = metrics.get("policy/mismatch")
        # Answers under a noisy view are drawn from other log-probs than are trained, and shall be.
        noisy = metrics.get("rollout/noisy_answers")
        if found is None or noisy or found <= MOST_MISMATCH:
            return {}, []
        if "mismatch" in self.said:
            return {"alarm/mismatch": 1.0}, []
        self.said.add("mismatch")
        message = (
            f"Warning: mismatch alarm. The engine's log-prob of a token differs from training's by {found:.3f} nats on "
            f"average (limit {MOST_MISMATCH:g}). What helps: {MISMATCH_REMEDY}."
        )
        return {"alarm/mismatch": 1.0}, [message]

    def _message(self, kind: str, name: str, before: float, after: float) -> str:
        """The warning, with what the papers of this run's objectives advise."""
        remedies = [o.remedies[kind] for o in self.objectives if kind in o.remedies]
        if not remedies:
            remedies = [ANY_REMEDY]
        help_ = "; ".join(remedies)
        return (
            f"Warning: {kind} alarm. {name} was {before:.3f} in the first {self.window} steps and is {after:.3f} in "
            f"the last {self.window}. What helps: {help_}."
        )


def alarm(name: str, before: float, after: float) -> str:
    """The alarm that a metric's mean raises, given its mean at the start; "" if none."""
    if _is_branch_kl(name):
        # 8 times the start alone would alarm about a KL that was nearly 0 at first.
        return "divergence" if after > max(1.0, 8.0 * before) else ""
    if name == "policy/surprise":
        return "entropy" if after > max(3.0 * before, before + 0.5) else ""
    if name == "answer/length":
        # Very short answers (a letter, a word) halve by chance.
        return "length" if before >= 8.0 and after < 0.4 * before else ""
    return ""


def _is_branch_kl(name: str) -> bool:
    """Is it a `branch/<name>/kl`?"""
    return name.startswith("branch/") and name.endswith("/kl")


def _watched(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that an alarm may be about."""
    watched: dict[str, float] = {}
    for name, value in metrics.items():
        # None stands for NaN in rows that come back from metrics.jsonl.
        known = name in ("policy/surprise", "answer/length") or _is_branch_kl(name)
        if known and value is not None:
            watched[name] = value
    return watched


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the metrics that all rows have."""
    shared = set(rows[0]).intersection(*rows[1:])
    means: dict[str, float] = {}
    for name in sorted(shared):
        means[name] = fmean(row[name] for row in rows)
    return means


def differences(
    policy: Policy,
    answers: Sequence[Rollout],
    branches: Mapping[str, VisualBranch],
    now: Now,
    budget: int,
) -> dict[str, float]:
    """Mean over tokens of |log p(real) - log p(branch)| for each branch."""
    batch = collate(answers)
    views = Views(policy, batch.rollouts, branches, now)
    sums = dict.fromkeys(branches, 0.0)
    for part in policy.prompts.parts(batch, budget):
        rows = part.tolist()
        names = ("raw", *branches)
        groups = {name: views.groups(name, rows) for name in names}
        scores = scored(
            policy,
            groups,
            {name: ScoreOutputs() for name in names},
            (len(rows), batch.tokens.shape[1]),
        )
        real = scores["raw"].logp  # [B, T], 0 on padding
        for name in branches:
            gap = real - scores[name].logp
            sums[name] += gap.abs().sum().item()
        policy.prompts.end_part()
    count = max(1, sum(len(r.tokens) for r in answers))
    return {f"difference_{name}": value / count for name, value in sums.items()}
