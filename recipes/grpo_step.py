"""GRPO's training step in plain calls: a tutorial, to be read beside `Trainer`; to train, `mmrl grpo`.

    python -m recipes.grpo_step                                tiny model, drawn pictures, CPU
    python -m recipes.grpo_step 7b --dataset my.jsonl          Qwen2.5-VL-7B on your own rows

Start at `train_step`: six paragraphs are the algorithm box of arXiv 2402.03300 (here without reference KL, with
clip-higher and token-mean reduction). Around it stands the least that a run needs. What it leaves out: checkpoints
(stopped by a signal it saves its weights, but cannot be continued), evaluation on the way, monitors, several updates
per rollout. Flags of those are refused, and `python -m recipes.grpo` has them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mmrl.ground.printable import tell
from mmrl.ground.stopping import Waiting, shielded, stop_if_asked
from mmrl.grpo import GRPO, loss
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.model.load import LoRA
from mmrl.model.packing import Group, collate
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.recipes.shared.launch import Preset, launch, summarise
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import Engine, HFEngine
from mmrl.rollouts.groups import by_group
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.compatibility import check_lengths, check_sampling
from mmrl.training.door import entered, settings_of
from mmrl.training.dry import Parts, hand_over
from mmrl.training.evaluate import evaluate, heldout_prompts
from mmrl.training.left_out import LeftOut
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.retries import ADVICE
from mmrl.training.run import Run, planned_steps, refuse_several_processes
from mmrl.training.tracking import Tracker, describe
from mmrl.training.trainer import TrainingError
from mmrl.types import Now, Rollout, Sampling

LONG = {"steps": 100, "eval_prompts": 512, "save_every": 50}
PRESETS = {
    EMBEDDED: miniature(run=LONG, monitor=None),
    "7b": Preset("Qwen2.5-VL-7B", 7.0),
    "3b": Preset("Qwen2.5-VL-3B", 3.0, model="Qwen/Qwen2.5-VL-3B-Instruct"),
}
UNREAD: dict[str, tuple[str, ...]] = {
    "run": (
        *("updates_per_step", "tokens_per_pass", "eval_every", "save_every", "keep"),
        *("sample_every", "from_run"),
    ),
    "grpo": (
        *("kl", "kl_kind", "kl_in", "kl_importance", "mismatch", "mismatch_level"),
        *("mismatch_cap", "overlong_buffer", "overlong_factor", "drop_truncated"),
    ),
    "optim": ("nonfinite",),
    "load": ("engine", "engine_stale", "engine_correct", "engine_invariant"),
}
"""Argument -> its fields that the step below has no line for."""


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_ViRL39K_train",
    data: Data = Data(),
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.3),
    sampling: Sampling = Sampling(group_size=5, top_p=0.99, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="grpo-step", prompts_per_step=128, epochs=1),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train with GRPO, every call of a step in plain sight."""
    refuse_several_processes("this recipe, which is a step in plain code,")
    refuse_unread(run=run, grpo=grpo, optim=optim, load=load)
    check_sampling(sampling, group_normalized)
    train, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    check_lengths(sampling, policy.context)
    rewards = reward.rewards(style_of(data.style))
    engine = HFEngine(policy, rows_at_once=run.rows_at_once)
    optimizer = Optimizer(policy.named_parameters(), optim)
    policy.expected = optimizer.bytes_to_come
    supply = Supply(
        train, run.prompts_per_step, run.seed, check=policy.encode, on_bad=run.on_bad
    )
    steps = planned_steps(run, train)
    bad = LeftOut(train, heldout)
    exam = heldout_prompts(heldout, run.eval_prompts, policy.encode, bad.add)
    records = {"optim": optim, "sampling": sampling, "grpo": grpo, "reward": reward}
    settings = describe(records) | settings_of(run, policy.description, train)
    hand_over(Parts(policy, supply, rewards, {}, bad, Now(1, 1 / steps, run.seed)))
    with entered(run) as door:
        # The folder is this run's alone: another one's, or a finished one, is left as it is.
        if not door.begin(run, settings):
            return
        scores: dict[str, float] = {}
        logged: dict[str, float] = {}
        tracker = Tracker(run.folder, run.logger, run.name)
        supply.log = run.folder / "skipped.jsonl"
        bad.write(supply.log)
        # A scheduler's signal ends the loop after a step, or within the step if that takes too long.
        with Waiting(run.grace) as signals, signals.anywhere():
            for step in range(steps + 1):
                # Schedules read the share that is done when the step ends, as in `Trainer`.
                now = Now(step, min(step + 1, steps) / steps, run.seed)
                if step in (0, steps):
                    scores = evaluate(engine, exam, rewards, sampling, now)
                    logged = {f"eval/{name}": v for name, v in scores.items()}
                    tracker.log(step, logged)
                if step == steps or signals.asked:
                    break
                found = train_step(
                    policy, supply, engine, rewards, optimizer, grpo, sampling, now, steps
                )
                tracker.log(step + 1, found)
                if step % 10 == 0:
                    text = f"step {step + 1}/{steps}  reward {found['reward/total']:.3f}"
                    tell(text)
        with torch.no_grad():
            policy.save(run.folder / "model", card=door.card(run, settings, logged))
        stop_if_asked()  # the weights so far are saved, and the run counts as unfinished
        door.finish(scores)
        tracker.refresh()
    rewards.close()
    summarise(
        run,
        steps,
        advice="python -m recipes.grpo, the same with checkpoints, monitors and all flags",
    )


def refuse_unread(**records: Any) -> None:
    """Raise ValueError for a flag that this recipe would accept and ignore."""
    for group, record in records.items():
        plain = type(record)()
        for name in UNREAD[group]:
            value = getattr(record, name)
            if value != getattr(plain, name):
                flag = f"--{group}.{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} is {value!r}, but this recipe is one step written out and nothing reads it. Leave "
                    "it out, or train with everything: mmrl grpo, with the same flags."
                )


def train_step(
    policy: Policy,
    supply: Supply,
    engine: Engine,
    rewards: Rewards,
    optimizer: Optimizer,
    grpo: GRPO,
    sampling: Sampling,
    now: Now,
    steps: int,
) -> dict[str, float]:
    """One step of GRPO; returns its metrics."""
    # Inside this block the vision tower runs once per picture, for sampling, scoring and update together.
    with policy.vision.step():
        # 1. G answers to each of P prompts, each paid
        prompts = supply.take()
        rollouts = rewards(engine.generate(prompts, sampling, now))

        # 2. tensors: tokens and mask [B, T], reward and group [B]
        batch = collate(rollouts)

        # 3. the advantage of an answer within its group, on all its tokens
        advantage = group_normalized(batch.reward, batch.group, batch.mask)
        batch = replace(batch, advantage=advantage[:, None] * batch.mask)

        # 4. the policy reads each prompt once and all its answers behind it
        groups = groups_of(policy, rollouts)
        shape = (len(batch), batch.tokens.shape[1])
        live = score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs(grad=True)}, shape)

        # 5. the clipped surrogate, reduced over all trained tokens
        totals = Totals(tokens=int(batch.mask.sum()), sequences=len(rollouts))
        value, metrics = loss(grpo, clipped, batch, live, [], totals, now)
        value.backward()

    # 6. one optimizer step; the gradients of the pictures went through the tower when the block was left
    norm = optimizer.gradient_norm()
    if (
        not norm < optimizer.largest_norm
    ):  # not a number, or infinite: the weights stay as they are
        raise TrainingError(f"The gradient norm of step {now.step + 1} is {norm}. {ADVICE}")
    with shielded():  # not given up half way
        optimizer.step(steps)
        policy.stepped()
    numbers = {name: float(v) for name, v in metrics.items()}
    reward = float(batch.reward.mean())
    return {**numbers, "reward/total": reward, "optim/grad_norm": norm}


def groups_of(policy: Policy, rollouts: Sequence[Rollout]) -> list[Group]:
    """One group per prompt, with its answers and their rows in the batch (the order of `rollouts`)."""
    groups: list[Group] = []
    row = 0
    for members in by_group(rollouts):
        encoded = policy.encode(members[0].prompt)
        rows = tuple(range(row, row + len(members)))
        answers = tuple(answer.tokens for answer in members)
        temperatures = tuple(answer.temperature for answer in members)
        groups.append(Group(encoded, encoded.visual, answers, rows, temperatures))
        row += len(members)
    return groups


if __name__ == "__main__":
    launch(main, PRESETS)
