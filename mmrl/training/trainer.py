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

import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from mmrl.ground.faults import first_line
from mmrl.ground.progress import Progress
from mmrl.ground.stopping import GivenUp, Stopped, Waiting
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import Surrogate, clipped
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks, lost
from mmrl.model.watch import end_with, farewell
from mmrl.objectives.base import Memory, Objective, started
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.ahead import asked_ahead
from mmrl.rollouts.choosing import opened
from mmrl.rollouts.correction import corrected
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import RolloutCall, group_rollout
from mmrl.rollouts.stages import OneStep
from mmrl.training import checkpoint
from mmrl.training.beside import Beside, each_alone
from mmrl.training.closeups import all_branches, keep_sample
from mmrl.training.collapse import CollapseGuard, watched
from mmrl.training.compatibility import (
    check_branches,
    check_lengths,
    check_setup,
    needs_correct,
)
from mmrl.training.door import Door, entered, settings_of
from mmrl.training.dry import Parts, hand_over
from mmrl.training.early_stop import EarlyStop
from mmrl.training.evaluate import heldout_prompts
from mmrl.training.first_looks import FirstLooks, show_example
from mmrl.training.giving_up import GivingUp
from mmrl.training.going_on import begin_logs, origin, say_extension, say_other_sums
from mmrl.training.identity import described_method
from mmrl.training.kept import Kept
from mmrl.training.learner import Estimator, Learner
from mmrl.training.left_out import LeftOut
from mmrl.training.memories import Memories
from mmrl.training.monitor import Alarms, BlindPolicy, Monitor, refuse_blindness
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.paying import Payer
from mmrl.training.retries import NonFiniteStep, Retries, said
from mmrl.training.rollout_metrics import counted
from mmrl.training.run import PhaseTimer, Run, due, planned_steps
from mmrl.training.score_plan import plan_scores
from mmrl.training.supplied import supply_of
from mmrl.training.tracking import Tracker, describe, peak_memory, read_metrics
from mmrl.training.whole_batch import together
from mmrl.types import Now, Prompts, Sampling, VisualBranch


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
        early: EarlyStop | CollapseGuard = EarlyStop(),
        settings: Mapping[str, Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.policy = policy
        self.ranks = Ranks.connected() if ranks is None else ranks
        """The processes that train together: those that torchrun started, unless somebody says otherwise."""
        self.engine = opened(policy, run.rows_at_once, sampling) if engine is None else engine
        self.rewards = rewards
        self.rollout = rollout = asked_ahead(rollout, self.engine, run.staleness, objectives)
        self.estimator = estimator
        self.surrogate = surrogate
        self.grpo = grpo = corrected(grpo, self.engine, rollout, sampling)
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
        self.plateau = watched(early, self.objectives)
        self.looks = FirstLooks.of(monitor, run, self.objectives, self.branches, rollout)
        # Before anything is loaded or written: what cannot mean anything should not cost a minute.
        setup = (self.objectives, self.branches, rollout, estimator, grpo, self.engine, prompts)
        check_setup(*setup, surrogate, rewards)
        check_branches(self.branches, rollout, policy)
        check_lengths(sampling, policy.context)
        self.supply = supply_of(
            policy, prompts, run, self.objectives, self.branches, rollout, self.ranks
        )
        self.remembered = Memories.of(self.objectives, self.memories, rollout, self.supply)
        judged = needs_correct(self.objectives, rollout)
        counters = self.supply.counters
        self._pay = Payer(rewards, grpo, sampling.max_tokens, judged, counters)
        self.settings = self._described(prompts, early, settings or {})
        self.steps = planned_steps(run, prompts)
        self._bring_to_devices()
        self.optimizer = Optimizer(policy.named_parameters(), optim, self.ranks)
        policy.expected = self.optimizer.bytes_to_come
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
        self.giving_up = GivingUp(policy, self.ranks)
        self.learner.between_parts = self.giving_up.between_parts
        measuring = (policy, self.engine, rewards, sampling, run, monitor)
        self.beside = Beside(*measuring, self.ranks, self.heldout, prompts, self.steps, rollout)
        self.kept = Kept(run, policy, self.optimizer, self.ranks)
        self.step_done = 0
        self.watch: Sequence[str] = ()  # metrics that the line of progress shows first
        self.retries = Retries(optim.nonfinite, run.seed)
        self.identity = ""
        """The id of the run; known once the output folder has been looked into."""
        self.branched: Mapping[str, Any] | None = None
        """Which run this one began as, if it is a branch."""

    def _described(
        self, prompts: Prompts, early: EarlyStop | CollapseGuard, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a continued run must agree on."""
        records = {"optim": self.optim, "sampling": self.sampling, "grpo": self.grpo}
        chosen = {"estimator": self.estimator, "surrogate": self.surrogate}
        method = {**records, "early": early, **chosen, "rollout": self.rollout}
        return {
            **settings_of(self.run, self.policy.description, prompts),
            **described_method(self.rewards, self.branches, self.objectives, **method),
            **describe(settings),
        }

    def _bring_to_devices(self) -> None:
        """The reference, if somebody reads it, and the weights where they are trained, before there is an optimizer."""
        updates = self.run.updates_per_step
        plan = plan_scores(self.grpo, self.objectives, self.branches, updates)
        if "ref" in plan.stored or "ref" in plan.live:
            self.policy.freeze_reference()
        if self.ranks.several and not self.policy.ranks.several:
            self.policy.shard(self.ranks)

    def step(self, now: Now) -> dict[str, float]:
        """One rollout and its updates; returns the metrics. `now.step` counts from 1."""
        clock, self.supply.now = PhaseTimer(), now
        self.supply.new_step()
        with self.policy.vision.step():
            with clock("generate"), each_alone(self.policy, self.ranks, "rollout"):
                engine = OneStep(self.engine)  # who is asked again gives further answers
                rollouts = self.rollout(engine, self._pay, self.supply, self.sampling, now)
            # However long the slowest rank sampled: no collective waits for it.
            self.ranks.wait("update")
            places = self.supply.group_places(rollouts) if self.ranks.several else None
            metrics = self.learner.learn(rollouts, now, clock, places)
        self.engine.sync(self.policy)  # before anything is sampled with the new weights
        seconds = {**clock.read(), "time/prompts": self.supply.waited()}
        metrics.update(self._leftovers(seconds))
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
            entered(self.run, self.ranks) as door,
            checkpoint.disk(door.folder),
            Waiting(self.run.grace) as self._signals,
        ):
            self.giving_up.signals = self._signals
            self.ranks.place.limit = self.run.phase_limit
            try:
                return self._fit(door)
            except RuntimeError as error:
                if not lost(error):
                    raise
                # In the words of a library, which say nothing of what to do.
                reason = f"another process ended or hangs ({first_line(error)})"
                end_with(farewell(reason, self.ranks.rank, self.ranks.place))
            finally:
                self.giving_up.signals, self.ranks.place.limit = None, 0.0

    def _fit(self, door: Door) -> dict[str, float]:
        folder = door.folder
        # Not after steps of this trainer: a second `fit` goes on with what the first one wrote.
        if self.step_done == 0:
            door.start_anew(self.run)
        door.refuse_other_settings(self.settings)
        done = door.finished()
        if done is not None:
            return done
        tracker = door.tracker(self.run, self.settings)
        self.supply.log = folder / "skipped.jsonl"
        self.identity = door.marker.id
        metrics = self._resume(tracker, door)
        progress = Progress(self.steps, self.step_done, watch=self.watch)
        if self.step_done == 0:
            if self.ranks.first:
                show_example(self.supply, self.policy, self.rewards)
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
        return self.ranks.most(self._signals.asked)

    def _leave(self) -> NoReturn:
        """End the run after its state was saved."""
        told = self._asked()
        self.ranks.agreed_to_end = True
        Progress.say(
            f"Stopped at step {self.step_done}; the same command continues from {self.run.folder}/checkpoints."
        )
        raise KeyboardInterrupt if told == signal.SIGINT else Stopped(told)

    def _first_evaluation(self, tracker: Tracker) -> dict[str, float]:
        try:
            with self._signals.until_overdue(self.giving_up.beside):
                found = self._evaluated(0, tracker)
                return found | self.beside.probed(0) | self.left_out.metrics()
        except GivenUp:
            Progress.say("Stopped before the first step; the same command starts again.")
            told = self._asked()
            self.ranks.agreed_to_end = True
            raise Stopped(told) from None

    def _one_step(self, tracker: Tracker) -> dict[str, float]:
        """A step with evaluation, logging and checkpoint; on failure the state before it is saved first."""
        number = self.ranks.place.step = self.step_done + 1
        # Taken before anything moves: a failed step is repeated with the same prompts and the same memory.
        before, version = self._state(), self.policy.version
        self.giving_up.step_begins()
        try:
            with self._signals.until_overdue(self.giving_up.in_step):
                metrics = self._attempt(number, before)
        except GivenUp:
            self._forget_step()
            self._save(before)
            self._leave()
        except Exception as error:
            if lost(error):  # nothing can be agreed on any more
                raise
            self._forget_step()
            if isinstance(error, NonFiniteStep):
                # With the same prompts and draws it would fail at each start, for ever.
                before |= {"supply": self.supply.state(), "attempts": self.retries.attempts}
            kept = f"The last checkpoint in {self.run.folder}/checkpoints stays"
            # All ranks save together: not what one of them met alone, while the others wait elsewhere.
            common = isinstance(error, NonFiniteStep) or self.ranks.shares(error)
            # A failure between the updates of a step leaves weights that belong to no step: those are not saved.
            if self.policy.version == version and (common or not self.ranks.several):
                kept = self._kept(before)
            raise TrainingError(
                f"Step {number} failed: {said(error)}\n{kept}; mend the cause and run the same command to go on."
            ) from error
        self.step_done = number
        metrics.update(self.plateau.observe(metrics))
        if due(number, self.run.sample_every):
            now, rollouts = Now(number, number / self.steps, self.run.seed), self._last_rollouts
            shown = all_branches(self.branches, self.rollout)
            keep_sample(tracker, self.policy, rollouts, self.learner.maps, shown, now)
        # Here, for whoever continues with the evaluation that is owed no longer has the answers.
        with each_alone(self.policy, self.ranks, "look"):
            seen = self.looks(self.policy, self._last_rollouts, number, self.ranks)
        metrics.update(seen)
        return self._conclude(metrics, tracker)

    def _conclude(self, metrics: dict[str, float], tracker: Tracker) -> dict[str, float]:
        """Evaluation, logging and checkpoint after a step."""
        number, last = self.step_done, self._ended()
        owed = dict(metrics)
        try:
            with self._signals.until_overdue(self.giving_up.beside):
                if self.heldout and (last or due(number, self.run.eval_every)):
                    metrics.update(self._evaluated(number, tracker))
                if self.monitor.probe_every and (last or due(number, self.monitor.probe_every)):
                    metrics.update(self.beside.probed(number))
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
            self._save(wait=last)
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
            self.remembered.load(before)

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
        counted((self.policy.counters, self.supply.counters))
        self.rewards.metrics()

    def _evaluated(self, step: int, tracker: Tracker) -> dict[str, float]:
        return self.beside.evaluated(step, partial(tracker.evaluated, step))

    def _stop_if_blind(self, metrics: Mapping[str, float]) -> None:
        try:
            refuse_blindness(metrics, self.monitor.least_difference)
        except BlindPolicy as problem:
            self._save()
            raise TrainingError(f"Stopped after step {self.step_done}: {problem}") from problem

    def _leftovers(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """What was counted since the last step, of all ranks; seconds of the slowest."""
        counts = counted((self.policy.counters, self.supply.counters))
        own = {**counts, **self.rewards.metrics(), "memory/peak": peak_memory()}
        return together(self.ranks, {**own, **seconds})

    def _state(self) -> dict[str, Any]:
        return {
            "run": self.identity,
            "settings": self.settings,
            "step": self.step_done,
            "attempts": self.retries.attempts,
            "version": self.policy.version,
            "supply": self.supply.state(),
            **self.remembered.state(),
            "plateau": self.plateau.state(),
            "threads": torch.get_num_threads(),
            **({"processes": self.ranks.world} if self.ranks.several else {}),
            **({"branched": self.branched} if self.branched else {}),
        }

    def _save(self, state: Mapping[str, Any] | None = None, *, wait: bool = True) -> None:
        self.kept.save(state or self._state(), wait=wait)

    def _resume(self, tracker: Tracker, door: Door) -> dict[str, float]:
        """Take up the newest whole checkpoint; returns its step's metrics if they are not logged yet, else none."""
        newest, state = self.ranks.by_first(lambda: self._newest(door))
        if newest is None:
            return {}
        with self.ranks.together("resume"):
            self._restore(newest, state)
        if newest.parent != self.kept.folder:
            self._save()  # a branch needs the run it began as no more
        if door.extended:
            parts = self.run, self.optim, self.settings, self.supply.prompts
            say_extension(*parts, self.step_done, door.extended)
        # The evaluation before the first step is made again.
        owed: dict[str, float] | None = state.get("owed")
        tracker.truncate(self.step_done or -1, again=owed is not None)
        # Alarms hold means of past steps; the log has them, so that no checkpoint need.
        self.alarms = Alarms(self.monitor.window, self.objectives)
        self.alarms.replay(self.ranks.by_first(lambda: read_metrics(door.folder)))
        return {} if owed is None else self._conclude(owed, tracker)

    def _newest(self, door: Door) -> tuple[Path | None, dict[str, Any]]:
        """The checkpoint to go on from with its numbers; None without any, and then the files of a fresh run."""
        found = self.kept.newest(self.identity)
        goes_on = found[0] is not None
        if not goes_on:
            door.refuse_lost_end()
            found = origin(self.run, self.settings, self.steps)
        door.branched = found[1].get("branched")
        door.write_settings(self.settings)
        if not goes_on:
            begin_logs(door.folder, found[0])
            self.left_out.write(door.folder / "skipped.jsonl")
        return found

    def _restore(self, newest: Path, state: Mapping[str, Any]) -> None:
        self.kept.restore(newest, state)
        self.retries.attempts = state["attempts"]
        if state["supply"]:  # a branch on other data begins with their first
            self.supply.load(state["supply"])
        self.policy.version = state["version"]
        self.step_done = state["step"]
        self.policy.vision.clear()
        if state["plateau"]:
            self.plateau.load(state["plateau"])
        self.branched = state.get("branched")
        self.remembered.load(state)
        say_other_sums(state, torch.get_num_threads(), self.ranks.world)
        Progress.say(f"Continuing {self.run.folder} after step {self.step_done}.")

    def _finish(self, metrics: dict[str, float], door: Door) -> dict[str, float]:
        folder = door.folder
        if not metrics:  # continued after the last step
            metrics = read_metrics(folder)[-1]
            del metrics["step"]
        if self.plateau.reached:
            Progress.say(f"Stopped early after step {self.step_done}: {self.plateau.why}.")
        self.kept.settle()
        self.policy.save(folder / "model", card=door.card(self.run, self.settings, metrics))
        door.finish(metrics)
        self.rewards.close()
        self.supply.close()
        return metrics
