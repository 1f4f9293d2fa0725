"""The tool loop: the model speaks, a tool answers, the model goes on, until it has said what it has to say.

    begins      a piece that ends at a stop string of a tool, at its end, or where no room is left
    called      the words of the turn, up to the stop string, are read and the tool is called beside all else
    observed    the answer's ids go on with those of the observation, role OBSERVATION; nothing is tokenised again
    ended       behind an end token, a tool that says so, the last turn, or where an observation has no room

Each answer goes its own way: while one waits for its tool the others are drawn (`Forest.flow`). What is drawn depends
on the prompt, the number of the answer and what lies before, never on who was first.

Departures from VerlTool's code (github.com/TIGER-AI-Lab/verl-tool)
1. The answer of a tool that says that it is done is not put behind the answer, which nothing would read.
2. An observation that leaves no room for a word ends the answer in front of it, as cut off.
3. Those of `tools/toolbox.py`.

Counted for the log: `tool/answers`, `tool/turns` (of the model), `tool/calls`, `tool/refused`, `tool/failed`,
`tool/timeouts`, `tool/dropped` (answers lost to them), `tool/void` (without a valid call and not ended), and
`tool/observation_tokens`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmrl.ground.calls import Action, Call
from mmrl.ground.faults import BadRow, first_line
from mmrl.ground.printable import logger
from mmrl.model.observing import Frame, observation
from mmrl.model.policy import Policy
from mmrl.rollouts.forking import Forest, Piece, Start
from mmrl.rollouts.tree_groups import Growth
from mmrl.tools.calling import Answer, Calling
from mmrl.tools.tool import Observation, Tool, Trajectory
from mmrl.tools.toolbox import Toolbox, ToolsFailed
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

log = logger(__name__)

COUNTED = tuple(
    f"tool/{what}"
    for what in (
        "answers",
        "turns",
        "calls",
        "refused",
        "failed",
        "timeouts",
        "dropped",
        "void",
    )
)
"""Counts of a step, besides the tokens of observations."""


@dataclass(frozen=True)
class Opening:
    """Where an answer begins."""

    prompt: int
    piece: int | None = None
    """It goes on from this piece of another answer; None: from the prompt."""
    cut: int | None = None
    """As `Start.cut`."""
    before: int = 0
    """Tokens before it."""
    turn: tuple[int, ...] = ()
    """Those of the turn that it goes on with."""
    trajectory: Trajectory | None = None
    """Its own copy of what has happened up to there; None: nothing has."""


@dataclass(eq=False)
class Spoken:
    """An answer, from its beginning to its end."""

    opening: Opening
    trajectory: Trajectory
    turn: tuple[int, ...]
    """Tokens of the present turn so far."""
    used: int
    """Tokens so far."""
    pieces: list[Piece] = field(default_factory=list)
    """The last one is its leaf."""
    kept: list[Trajectory] = field(default_factory=list)
    """What had happened where each piece begins, if it is kept."""
    finished: bool = False
    """Did it come to its end?"""
    cut: bool = False
    """Did an observation find no room?"""
    lost: str = ""
    """Why it is left out: its tool failed."""

    @property
    def leaf(self) -> int:
        """Number of its last piece."""
        return self.pieces[-1].number


class ToolLoop:
    """Answers to some prompts that call tools."""

    def __init__(
        self,
        policy: Policy,
        toolbox: Toolbox,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        now: Now,
        counters: Counter[str],
    ) -> None:
        self.policy, self.toolbox, self.prompts = policy, toolbox, prompts
        self.use, self.sampling, self.now = toolbox.use, sampling, now
        self.counters = counters
        self._frame = Frame.of(policy.processing, toolbox.use.turns)
        self._calling = Calling(toolbox)
        self._keeps = False
        self._last_loss = ""
        self._coming: list[Start] = []
        """Where pieces begin that were not handed out yet."""
        self._by_start: dict[int, tuple[Start, Spoken]] = {}
        """By object, which is kept alive so that no other can take its name."""
        self._tickets = itertools.count()
        self._called: dict[int, tuple[Spoken, Tool, Action]] = {}
        """Ticket -> who waits for which tool."""

    def run(
        self, trees: Forest, openings: Sequence[Opening], *, top: int = 0, keeps: bool = False
    ) -> list[Spoken]:
        """The answers that begin there, each to its end. `top`: as `Forest.grow`; `keeps`: `Spoken.kept` is filled."""
        self._keeps = keeps
        for name in COUNTED:
            self.counters[name] += 0  # told even where there are none
        answers = [self._opened(opening) for opening in openings]
        with Calling(self.toolbox) as self._calling:
            trees.flow(self._feed, top=top)
        for answer in answers:
            self._end(answer)
        return answers

    def refuse_many_lost(self) -> None:
        """Raise ToolsFailed if too many of the step's answers were lost."""
        lost, count = self.counters["tool/dropped"], self.counters["tool/answers"]
        if lost > self.use.most_failed * count:
            raise ToolsFailed(
                f"Tools failed in {lost} of {count} answers of this step, and at most "
                f"{self.use.most_failed:.0%} may be lost; the last: {self._last_loss} Mend the tool, or allow more "
                "with --use.most-failed."
            )

    def completed(self, answer: Spoken, rollout: Rollout) -> Rollout:
        """The answer's record with its calls, the model's own words as its text, and whether it is trained."""
        own = rollout.tokens[rollout.roles == int(Role.POLICY)]
        void = self._is_void(answer)
        masked = (self.use.mask_overlong and not answer.finished) or (
            self.use.mask_void and void
        )
        return replace(
            rollout,
            text=self.policy.processing.answer_text(own),
            stop="length" if answer.cut else rollout.stop,
            calls=tuple(answer.trajectory.calls),
            unheeded=masked,
        )

    def paid(self, growth: Growth, answers: Sequence[Sequence[Spoken]]) -> list[list[Rollout]]:
        """Paid answers of each prompt, without those that were lost."""
        there = [[one for one in own if not one.lost] for own in answers]
        by_leaf = {one.leaf: one for own in there for one in own}
        leaves = [[one.leaf for one in own] for own in there]
        return growth.paid(leaves, lambda leaf, one: self.completed(by_leaf[leaf], one))

    def _opened(self, opening: Opening) -> Spoken:
        self.counters["tool/answers"] += 1
        trajectory = opening.trajectory
        if trajectory is None:
            prompt = self.prompts[opening.prompt]
            trajectory = Trajectory(prompt, media=list(prompt.media))
        answer = Spoken(opening, trajectory, opening.turn, opening.before)
        start = Start(opening.prompt, opening.piece, opening.cut)
        self._begin(answer, start)
        return answer

    def _begin(self, answer: Spoken, start: Start) -> None:
        """Let a piece of an answer begin."""
        if self._keeps:
            answer.kept.append(answer.trajectory.fork())
        longest = self.use.max_action_length
        given = len(start.given)
        most = given + longest - len(answer.turn) if longest else None
        start = replace(start, max_tokens=most, stop=self.toolbox.stop)
        self._by_start[id(start)] = start, answer
        self._coming.append(start)
        self.counters["tool/turns"] += 1

    def _feed(self, ended: Sequence[Piece], growing: int) -> Sequence[Start]:
        """As `Forest.flow` asks."""
        for piece in ended:
            _, answer = self._by_start.pop(id(piece.start))
            self._spoke(answer, piece)
        if self.use.together:
            while not self._coming and not growing and self._calling.under_way:
                self._hear_all()
        else:
            self._hear(self._calling.done(wait=False))
            while not self._coming and not growing and self._calling.under_way:
                self._hear(self._calling.done(wait=True))
        found, self._coming = self._coming, []
        return found

    def _hear_all(self) -> None:
        """Wait for all calls under way, and take them in the order in which they were made."""
        found: list[tuple[int, Answer]] = []
        while self._calling.under_way:
            found += self._calling.done(wait=True)
        self._hear(sorted(found, key=lambda told: told[0]))

    def _spoke(self, answer: Spoken, piece: Piece) -> None:
        """The model has ended a piece."""
        if not answer.pieces and answer.opening.trajectory is None:
            answer.trajectory.key = self._key(piece)
        answer.pieces.append(piece)
        answer.used += len(piece.tokens)
        answer.turn += piece.tokens[len(piece.start.given) :]
        if piece.stop not in self.toolbox.stop:
            answer.finished = piece.stop not in ("length", "piece")
            return
        if len(answer.trajectory.calls) >= self.use.max_turns:
            return
        self._call(answer, self._words(answer, piece.stop))

    def _key(self, piece: Piece) -> tuple[int | str, ...]:
        prompt = self.prompts[piece.start.prompt]
        return (self.now.seed, self.now.step, prompt.id, *piece.way[:1])

    def _words(self, answer: Spoken, stop: str) -> str:
        """The words of the turn, up to and including the string that ended it."""
        text = self.policy.processing.spell(answer.turn)
        # The last token may hold more than the string's end.
        before, found, _ = text.rpartition(stop)
        return before + found if found else text

    def _call(self, answer: Spoken, words: str) -> None:
        """Read what is asked for, and have it done."""
        self.counters["tool/calls"] += 1
        try:
            self._greet(answer)
            tool, action, why = self.toolbox.read(words)
        except Exception as error:  # what a tool raises beside BadAction is its failure
            why = f"A tool failed ({type(error).__name__}: {first_line(error)})."
            self._fail(answer, Call("", None, "failed", why))
            return
        if tool is None or action is None:
            name = tool.name if tool else ""
            told = Observation(why, valid=False)
            self._observe(answer, Call(name, None, "refused", why), told)
            return
        ticket = next(self._tickets)
        self._called[ticket] = answer, tool, action
        self._calling.begin(ticket, tool, action, answer.trajectory)

    def _greet(self, answer: Spoken) -> None:
        """Before the first call of an answer all its tools may make themselves ready."""
        if answer.trajectory.calls or answer.opening.trajectory is not None:
            return
        for tool in self.toolbox.tools:
            tool.begin(answer.trajectory)

    def _hear(self, ended: Sequence[tuple[int, Answer]]) -> None:
        """Take what tools have answered."""
        for ticket, told in ended:
            answer, tool, action = self._called.pop(ticket)
            found = dict(told.observation.found)
            call = Call(tool.name, action, told.outcome, told.why, told.seconds, found)
            if told.outcome in ("failed", "timeout"):
                self._fail(answer, call)
            else:
                self._observe(answer, call, told.observation)

    def _observe(self, answer: Spoken, call: Call, told: Observation) -> None:
        """Put what a tool said behind the answer, if there is room, and let the model go on."""
        self.counters["tool/refused"] += call.outcome == "refused"
        trajectory = answer.trajectory
        try:
            ids = self._ids(told)
        except BadRow as error:
            # What the model asked for, for example a strip of one pixel, cannot be shown to it.
            self.counters["tool/refused"] += 1
            why = f"It cannot be shown: {error}"
            call = replace(call, outcome="refused", note=why)
            told = Observation(why, done=told.done, valid=False)
            ids = self._ids(told)
        if told.done:
            trajectory.calls.append(call)
            answer.finished = True
            return
        if answer.used + len(ids) >= self.sampling.max_tokens:
            trajectory.calls.append(call)
            answer.cut = True
            return
        said = replace(call, said=told.marked(), shown=len(told.media))
        trajectory.calls.append(said)
        for medium in told.media:
            trajectory.add(medium)
        self.counters["tool/observation_tokens"] += len(ids)
        answer.turn = ()
        last = answer.pieces[-1]
        start = Start(
            last.start.prompt, last.number, None, ids, Role.OBSERVATION, tuple(told.media)
        )
        self._begin(answer, start)

    def _ids(self, told: Observation) -> tuple[int, ...]:
        most, side = self.use.max_observation, self.use.truncate
        return observation(self.policy.processing, self._frame, told.parts(), most, side)

    def _fail(self, answer: Spoken, call: Call) -> None:
        """A tool did not answer: the answer is lost."""
        answer.trajectory.calls.append(call)
        answer.lost = self._last_loss = call.note
        self.counters["tool/timeouts" if call.outcome == "timeout" else "tool/failed"] += 1
        self.counters["tool/dropped"] += 1

    def _is_void(self, answer: Spoken) -> bool:
        return not answer.finished and not any(c.valid for c in answer.trajectory.calls)

    def _end(self, answer: Spoken) -> None:
        """The answer is over."""
        assert answer.pieces, "each has spoken"
        self.counters["tool/void"] += self._is_void(answer)
        if not answer.trajectory.calls:
            return
        for tool in self.toolbox.tools:
            try:
                tool.end(answer.trajectory)
            except Exception as error:  # the answer is there, whatever a tool does now
                why = f"{type(error).__name__}: {first_line(error)}"
                log.warning("The tool %r failed at the end of an answer (%s).", tool.name, why)
