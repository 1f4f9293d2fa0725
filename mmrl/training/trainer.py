"""The trainer: one training step as the algorithm box of GRPO, and the run around it.

    rollouts  = rollout(engine, pay, supply, sampling, now)        P prompts, G answers each, paid
    batch     = collate(rollouts)                                  tokens, mask [B, T]; reward, group [B]
    batch    += stored scores: reference, branches, raw            no gradient, only what somebody reads
    advantage = estimator(reward, group, mask), then each objective.shape
    for part in split(batch, by tokens):
        live = raw and branches that want it, scored again
        loss(surrogate + kl + objective terms).backward()          reduced once, with global counts
    pictures' gradients through the tower, clip, optimizer step

Old log-probs are the update's own forward, detached, when there is one update per rollout and nobody reads raw scores
earlier; otherwise raw is scored once beforehand. The loss does not depend on the split, on padding or on the row order.
"""

from __future__ import annotations

import copy
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from mmrl.ground.progress import Progress
from mmrl.ground.stopping import GivenUp, Stopped, Waiting
from mmrl.grpo import GRPO, with_overlong_penalty
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import Surrogate, clipped
from mmrl.model.policy import Policy
from mmrl.objectives.base import Memory, Objective, named, started
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import Engine, HFEngine
from mmrl.rollouts.groups import RolloutCall, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.training import checkpoint
from mmrl.training.closeups import all_branches, keep_sample
from mmrl.training.compatibility import check_lengths, check_setup
from mmrl.training.door import Door, entered, settings_of
from mmrl.training.dry import Parts, hand_over
from mmrl.training.early_stop import EarlyStop, Plateau
from mmrl.training.evaluate import aside, evaluate, heldout_prompts
from mmrl.training.first_looks import FirstLooks
from mmrl.training.identity import described_method, refuse_other_run
from mmrl.training.learner import Estimator, Learner
from mmrl.training.left_out import LeftOut
from mmrl.training.monitor import Alarms, BlindPolicy, Monitor, blind_probe, refuse_blindness
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.retries import NonFiniteStep, Retries, said
from mmrl.training.run import (
    PhaseTimer,
    Run,
    agreed,
    due,
    planned_steps,
    refuse_several_processes,
    single_process,
)
from mmrl.training.tracking import (
    LOGS,
    Tracker,
    chat_as_line,
    describe,
    peak_memory,
    read_metrics,
)
from mmrl.types import Now, Prompts, Rollout, Sampling, VisualBranch


class TrainingError(RuntimeError):
    """The run cannot go on; a checkpoint of the last good state has been written."""


class Trainer:
    """Trains a policy. Everything is an argument; see the recipes for complete examples."""

    def __init__(
        self,
        policy: Policy,
        *,
        prompts: Prompts,
        rewards: Rewards,
        engine: Engine | None = None,
        estimator: Estimator = group_normalized,
        surrogate: Surrogate = clipped,
        grpo: GRPO = GRPO(),
        branches: Mapping[str, VisualBranch] | None = None,
        objectives: Sequence[Objective] = (),
        sampling: Sampling = Sampling(),
        optim: Optim = Optim(),
        run: Run = Run(),
        rollout: RolloutCall = group_rollout,
        memories: Sequence[Memory | None] | None = None,
        heldout: Prompts | None = None,
        monitor: Monitor = Monitor(),
        early: EarlyStop = EarlyStop(),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        refuse_several_processes()
        self.policy = policy
        rows = run.rows_at_once
        self.engine = HFEngine(policy, rows_at_once=rows) if engine is None else engine
        self.rewards = rewards
        self.rollout = rollout
        self.estimator = estimator
        self.surrogate = surrogate
        self.grpo = grpo
        self.sampling = sampling
        self.optim = optim
        self.run = run
        self.branches = dict(branches or {})
        self.objectives = list(objectives)
        self.memories = started(self.objectives, memories)
        self.left_out = LeftOut(prompts, heldout)
        self.heldout = heldout_prompts(
            heldout, run.eval_prompts, policy.encode, self.left_out.add
        )
        self.monitor = monitor
        self.alarms = Alarms(monitor.window, self.objectives)
        self.plateau = Plateau(early)
        self.looks = FirstLooks.of(monitor, run, self.objectives, self.branches, rollout)
        # Before anything is loaded or written: what cannot mean anything should not cost a minute.
        check_setup(
            self.objectives, self.branches, rollout, estimator, grpo, self.engine, prompts
        )
        check_lengths(sampling, policy.context)
        self.supply = Supply(
            prompts, run.prompts_per_step, run.seed, check=policy.encode, on_bad=run.on_bad
        )
        records = {"optim": optim, "sampling": sampling, "grpo": grpo, "early": early}
        chosen = {"estimator": estimator, "surrogate": surrogate, "rollout": rollout}
        self.settings = {
            **settings_of(run, policy.description, prompts),
            **described_method(rewards, self.branches, self.objectives, **records, **chosen),
            **describe(settings or {}),
        }
        self.steps = planned_steps(run, prompts)
        self.optimizer = Optimizer(policy.named_parameters(), optim)
        self.learner = Learner(
            policy,
            self.optimizer,
            estimator,
            surrogate,
            grpo,
            self.branches,
            self.objectives,
            run.updates_per_step,
            run.tokens_per_pass,
            self.steps * run.updates_per_step,
            monitor.norms_every,
            self.memories,
            optim.nonfinite,
        )
        plan = self.learner.plan
        # A copy of the weights, made only if somebody reads the reference, and before the first update.
        if "ref" in plan.stored or "ref" in plan.live:
            policy.freeze_reference()
        self.step_done = 0
        self.retries = Retries(optim.nonfinite, run.seed)
        self.identity = ""
        """The id of the run; known once the output folder has been looked into."""

    def step(self, now: Now) -> dict[str, float]:
        """One rollout and its updates; returns the metrics. `now.step` counts from 1."""
        clock = PhaseTimer()
        with self.policy.vision.step():
            with clock("generate"):
                rollouts = self.rollout(self.engine, self._pay, self.supply, self.sampling, now)
            metrics = self.learner.learn(rollouts, now, clock)
        self.engine.sync(self.policy)  # before anything is sampled with the new weights
        metrics.update(self._leftovers())
        metrics.update(clock.read())
        self._last_rollouts = rollouts
        return metrics

    def fit(self) -> dict[str, float]:
        """Run to the end (or go on from the last checkpoint); returns the last metrics.

        Ctrl-C ends it after the step, and so do SIGTERM, SIGHUP and SIGUSR1, which raise `Stopped`, an exit with code
        128 + the signal's number: after the step, or in `run.grace` seconds, whichever comes first, plus the time to
        write a checkpoint. A second signal leaves at once.
        """
        self.looks.refuse_text(self.supply.prompts)
        hand_over(self._parts())
        with (
            entered(self.run) as door,
            checkpoint.disk(door.folder),
            Waiting(self.run.grace) as self._signals,
        ):
            return self._fit(door)

    def _fit(self, door: Door) -> dict[str, float]:
        folder = door.folder
        # Not after steps of this trainer: a second `fit` goes on with what the first one wrote.
        if self.step_done == 0:
            door.start_anew(self.run)
        door.refuse_other_settings(self.settings)
        done = door.finished()
        if done is not None:
            return done
        tracker = Tracker(folder, self.run.logger, self.run.name)
        self.supply.log = folder / "skipped.jsonl"
        self.identity = door.marker.id
        metrics = self._resume(tracker, door)
        progress = Progress(self.steps, self.step_done)
        if self.step_done == 0:
            example = self._example()
            progress.say(f"One prompt as the model reads it:\n{example}")
            for note in self.policy.processing.tags.notes(example, self.rewards.needs_tags):
                progress.say(note)
            if self.heldout:
                metrics = self._first_evaluation(tracker)
                tracker.log(0, metrics)
                self._stop_if_blind(metrics)
        with self._signals.interrupts(), progress, tracker:
            while not self._ended() and not self._asked():
                metrics = self._one_step(tracker)
                progress.update(self.step_done, metrics)
        # A press of Ctrl-C or a signal during the last step changes nothing: the run is finished all the same.
        if not self._ended():
            self._save()
            self._leave()
        metrics = self._finish(metrics, door)
        tracker.refresh()
        return metrics

    def _parts(self) -> Parts:
        first = Now(1, 1 / self.steps, self.run.seed)
        shown = all_branches(self.branches, self.rollout)
        return Parts(self.policy, self.supply, self.rewards, shown, self.left_out, first)

    def _ended(self) -> bool:
        return self.step_done >= self.steps or self.plateau.reached

    def _asked(self) -> int:
        """The signal that says to stop, the same on all processes; 0 to go on."""
        return agreed(self._signals.asked, self.policy.device)

    def _leave(self) -> NoReturn:
        """End the run after its state was saved."""
        told = self._asked()
        Progress.say(
            f"Stopped at step {self.step_done}; the same command continues from {self.run.folder}/checkpoints."
        )
        raise KeyboardInterrupt if told == signal.SIGINT else Stopped(told)

    def _first_evaluation(self, tracker: Tracker) -> dict[str, float]:
        try:
            with self._signals.until_overdue(single_process):
                found = self._evaluate(0, tracker)
                return found | self._probe(0) | self.left_out.metrics()
        except GivenUp:
            Progress.say("Stopped before the first step; the same command starts again.")
            raise Stopped(self._signals.asked) from None

    def _one_step(self, tracker: Tracker) -> dict[str, float]:
        """A step with evaluation, logging and checkpoint; on failure the state before it is saved first."""
        number = self.step_done + 1
        # Taken before anything moves: a failed step is repeated with the same prompts and the same memory.
        before, version = self._state(), self.policy.version

        def untouched() -> bool:
            """Weights that have moved are no longer those before the step, so then it is done to its end."""
            return single_process() and self.policy.version == version

        try:
            with self._signals.until_overdue(untouched):
                metrics = self._attempt(number, before)
        except GivenUp:
            self._forget_step()
            self._save(before)
            self._leave()
        except Exception as error:
            self._forget_step()
            if isinstance(error, NonFiniteStep):
                # With the same prompts and draws it would fail at each start, for ever.
                before |= {"supply": self.supply.state(), "attempts": self.retries.attempts}
            kept = f"The last checkpoint in {self.run.folder}/checkpoints stays"
            # A failure between the updates of a step leaves weights that belong to no step: those are not saved.
            if self.policy.version == version:
                kept = self._kept(before)
            raise TrainingError(
                f"Step {number} failed: {said(error)}\n{kept}; mend the cause and run the same command to go on."
            ) from error
        self.step_done = number
        metrics.update(self.plateau.observe(metrics))
        if due(number, self.run.sample_every):
            now, rollouts = Now(number, number / self.steps, self.run.seed), self._last_rollouts
            keep_sample(tracker, self.policy, rollouts, self.learner.maps, self.branches, now)
        # Here, for whoever continues with the evaluation that is owed no longer has the answers.
        metrics.update(self.looks(self.policy, self._last_rollouts, number))
        return self._conclude(metrics, tracker)

    def _conclude(self, metrics: dict[str, float], tracker: Tracker) -> dict[str, float]:
        """Evaluation, logging and checkpoint after a step."""
        number, last = self.step_done, self._ended()
        owed = dict(metrics)
        try:
            with self._signals.until_overdue(single_process):
                if self.heldout and (last or due(number, self.run.eval_every)):
                    metrics.update(self._evaluate(number, tracker))
                if self.monitor.probe_every and (last or due(number, self.monitor.probe_every)):
                    metrics.update(self._probe(number))
        except GivenUp:
            # The step is done, its evaluation is not: whoever continues begins with it.
            self._save({**self._state(), "owed": owed})
            self._leave()
        # Last, so that alarms also see what evaluation and probe found.
        raised, messages = self.alarms.observe(metrics)
        metrics.update(raised)
        for message in messages:
            Progress.say(message)
        tracker.log(number, metrics)
        if last or due(number, self.run.save_every):
            self._save()
        # After the save: the blind policy is what somebody will want to look at.
        self._stop_if_blind(metrics)
        return metrics

    def _attempt(self, number: int, before: Mapping[str, Any]) -> dict[str, float]:
        """One step, tried again with other draws while it is not finite."""
        version = self.policy.version

        def step(seed: int) -> dict[str, float]:
            return self.step(Now(number, number / self.steps, seed))

        def undo() -> None:
            self.optimizer.clear()
            self._load_memories(before["objectives"])

        return self.retries.run(step, undo, lambda: self.policy.version == version)

    def _kept(self, before: Mapping[str, Any]) -> str:
        """Save the state before a failed step; what is left, in words."""
        try:
            self._save(before)
        except checkpoint.CheckpointError as problem:
            return f"The state before it could not be saved: {problem}"
        return f"The state before it is saved in {self.run.folder}/checkpoints"

    def _forget_step(self) -> None:
        """Drop the gradients and counts of a step that did not come to its end."""
        self.optimizer.clear()
        self._leftovers()

    def _pay(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Rewards plus the overlong penalty."""
        return with_overlong_penalty(
            self.grpo, self.rewards(rollouts), self.sampling.max_tokens
        )

    def _evaluate(self, step: int, tracker: Tracker) -> dict[str, float]:
        now = Now(step, step / self.steps, self.run.seed)
        told = partial(tracker.evaluated, step)
        with aside(self.policy, self.rewards, "evaluate") as seconds:
            found = evaluate(
                self.engine, self.heldout, self.rewards, self.sampling, now, told=told
            )
        return {**{f"eval/{k}": v for k, v in found.items()}, **seconds}

    def _probe(self, step: int) -> dict[str, float]:
        """What the policy says without its pictures."""
        if not self.monitor.probe_every:
            return {}
        prompts = self.heldout[: self.monitor.probe_prompts] or heldout_prompts(
            self.supply.prompts, self.monitor.probe_prompts, self.policy.encode
        )
        now, budget = Now(step, step / self.steps, self.run.seed), self.run.tokens_per_pass
        with aside(self.policy, self.rewards, "probe") as seconds:
            found = blind_probe(
                self.policy, self.engine, prompts, self.rewards, self.sampling, now, budget
            )
        return {**found, **seconds}

    def _stop_if_blind(self, metrics: Mapping[str, float]) -> None:
        try:
            refuse_blindness(metrics, self.monitor.least_difference)
        except BlindPolicy as problem:
            self._save()
            raise TrainingError(f"Stopped after step {self.step_done}: {problem}") from problem

    def _leftovers(self) -> dict[str, float]:
        """Counters of policy, supply and rewards since the last step."""
        counts: Counter[str] = Counter()
        for source in (self.policy.counters, self.supply.counters):
            counts.update(source)
            source.clear()
        return {
            **{k: float(v) for k, v in counts.items()},
            **self.rewards.metrics(),
            "memory/peak": peak_memory(),
        }

    def _state(self) -> dict[str, Any]:
        # Copied: after a failed step the memory of the step before it is saved.
        states = {
            name: {} if memory is None else copy.deepcopy(memory.state())
            for name, memory in named(self.objectives, self.memories)
        }
        return {
            "run": self.identity,
            "settings": self.settings,
            "step": self.step_done,
            "attempts": self.retries.attempts,
            "version": self.policy.version,
            "supply": self.supply.state(),
            "objectives": states,
            "plateau": self.plateau.state(),
            "threads": torch.get_num_threads(),
        }

    def _load_memories(self, states: Mapping[str, Any]) -> None:
        for name, memory in named(self.objectives, self.memories):
            if memory is not None:
                # As it comes from a file, whoever took it.
                memory.load(checkpoint.plain(states[name]))

    def _save(self, state: Mapping[str, Any] | None = None) -> None:
        # A run that continues from here starts without features, so this one goes on without them: equal batches
        # of pictures through the tower, equal bits.
        self.policy.vision.clear()
        chosen = dict(state or self._state())
        folder = self.run.folder / "checkpoints"
        weights = self.policy.named_parameters()
        checkpoint.save(
            folder, chosen["step"], weights, self.optimizer.state(), chosen, self.run.keep
        )

    def _resume(self, tracker: Tracker, door: Door) -> dict[str, float]:
        """Take up the newest whole checkpoint; returns its step's metrics if they are not logged yet, else none."""
        folder, checkpoints = door.folder, door.folder / "checkpoints"
        checkpoint.clean(checkpoints)
        newest, complaints = checkpoint.newest_whole(checkpoints)
        door.write_settings(self.settings)
        if newest is None:
            for name in LOGS:
                (folder / name).unlink(missing_ok=True)
            self.left_out.write(folder / "skipped.jsonl")
            return {}
        state = checkpoint.read_state(newest)
        refuse_other_run(folder, state, self.identity)
        if complaints:
            Progress.say("\n".join(complaints) + f"\nThe checkpoint before is whole: {newest}.")
            checkpoint.set_aside(checkpoints, newest)
        self._restore(newest, state)
        # The evaluation before the first step is made again.
        owed: dict[str, float] | None = state.get("owed")
        tracker.truncate(self.step_done or -1, again=owed is not None)
        # Alarms hold means of past steps; the log has them, so that no checkpoint need.
        self.alarms = Alarms(self.monitor.window, self.objectives)
        self.alarms.replay(read_metrics(folder))
        return {} if owed is None else self._conclude(owed, tracker)

    def _restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        moments = checkpoint.read_optimizer(folder)
        checkpoint.refuse_nonfinite([], moments, f"The optimizer in {folder}")
        checkpoint.restore_weights(folder, self.policy.named_parameters())
        self.optimizer.load(moments)
        self.retries.attempts = state["attempts"]
        self.supply.load(state["supply"])
        self.policy.version = state["version"]
        self.step_done = state["step"]
        self.policy.vision.clear()
        self.plateau.load(state["plateau"])
        self._load_memories(state["objectives"])
        # Sums over threads are added in another order.
        if state["threads"] != torch.get_num_threads():
            Progress.say(
                f"The run used {state['threads']} threads, now {torch.get_num_threads()}: last bits may differ."
            )
        Progress.say(f"Continuing {self.run.folder} after step {self.step_done}.")

    def _finish(self, metrics: dict[str, float], door: Door) -> dict[str, float]:
        folder = door.folder
        if not metrics:  # continued after the last step
            metrics = read_metrics(folder)[-1]
            del metrics["step"]
        if self.plateau.reached:
            Progress.say(
                f"Stopped early after step {self.step_done}: mean reward and deviation within groups rest."
            )
        self.policy.save(folder / "model")
        door.finish(metrics)
        self.rewards.close()
        return metrics

    def _example(self) -> str:
        prompt = self.supply.peek()
        text = self.policy.encode(prompt).text
        return f"{text}\n(answer: {prompt.answer})" if text else chat_as_line(prompt.messages)
