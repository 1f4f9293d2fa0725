"""Visual branches: the same answers, other pixels.

Draws come from (run seed, step, prompt id, branch, medium) and, for per-answer views, the answer; so a step that is run
again sees the same masks, and one draw serves a whole group unless asked otherwise. Grids and positions never change.
Pixels are rendered and processed once per prompt (or answer) and step, however many passes read them. A view that says
`reads_saliency` is given the attention which the policy's own tower pays to each visual token of the real picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from mmrl.model.answer_media import AnswerMedia, Inside, rendered
from mmrl.model.drawing import Transform, drawing, spoils
from mmrl.model.encoded import Encoded
from mmrl.model.packing import Group
from mmrl.model.patches import Patches
from mmrl.model.policy import Policy
from mmrl.model.processing import Processing
from mmrl.model.unseen import without_sight
from mmrl.types import Now, Prompt, Role, Rollout, VisualBranch

SuffixOf = Callable[[Rollout], Tensor]
"""Which tokens, long [S], are scored behind an answer."""
PickOf = Callable[[Rollout], Tensor]
"""Of which tokens, long [T, k], log-probs are wanted in each place of an answer; k is the same for all answers."""
PLAIN = ("raw", "ref")
"""Views that show the pixels as they are."""


class Views:
    """The groups of a batch under each branch."""

    def __init__(
        self,
        policy: Policy,
        rollouts: Sequence[Rollout],
        branches: Mapping[str, VisualBranch],
        now: Now,
    ) -> None:
        self.policy = policy
        self.rollouts = rollouts
        self.branches = branches
        self.now = now
        self._rendered: dict[tuple[str, str, int], tuple[Patches, ...]] = {}
        self._worded: dict[tuple[str, int], Tensor] = {}
        self._reworded: dict[tuple[str, int], Encoded] = {}
        self._media = AnswerMedia(policy.processing)
        self._within: dict[int, Inside | None] = {}
        self._redrawn: dict[tuple[str, str, int, int, str], Patches] = {}

    def groups(
        self,
        name: str,
        rows: Sequence[int],
        suffix: SuffixOf | None = None,
        *,
        words: bool = False,
        ends: bool = False,
        picked: PickOf | None = None,
    ) -> list[Group]:
        """These rows under branch `name`, with their positions in `rows` as row numbers.

        `suffix`: what is scored behind each answer; `words`: shall the prompt's own words be scored? `ends`: shall the
        place behind what the policy wrote? `picked`: which tokens' log-probs are wanted in each place?
        """
        shared = name in PLAIN or self.branches[name].share_in_group
        members: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            # A view per answer makes a group of each answer: they share no pixels, so no prompt either.
            key = self.rollouts[row].group if shared else position
            members.setdefault(key, []).append(position)
        out = []
        for positions in members.values():
            chosen = [self.rollouts[rows[p]] for p in positions]
            group = Group(
                self._encoded(name, chosen[0]),
                self.pixels(name, rows[positions[0]]),
                tuple(r.tokens for r in chosen),
                tuple(positions),
                tuple(r.temperature for r in chosen),
                shared,
                () if suffix is None else tuple(suffix(r) for r in chosen),
                tuple(written(r) for r in chosen) if ends else (),
                self._words(name, chosen[0]) if words else None,
                tuple(r.path for r in chosen) if any(r.path for r in chosen) else (),
                self._inside(name, [rows[p] for p in positions]),
                () if picked is None else tuple(picked(r) for r in chosen),
            )
            out.append(without_sight(group) if self._shows(name) == "nothing" else group)
        return out

    def _shows(self, name: str) -> str:
        return "plain" if name in PLAIN else self.branches[name].view.shows

    def _asked(self, name: str, rollout: Rollout) -> Prompt:
        """The question as a branch asks it."""
        reworded = None if name in PLAIN else self.branches[name].reworded
        return rollout.prompt if reworded is None else reworded(rollout.prompt)

    def _encoded(self, name: str, rollout: Rollout) -> Encoded:
        """The question as a branch asks it, with the pixels as they are."""
        encoded = self.policy.encode(rollout.prompt)
        if name in PLAIN or self.branches[name].reworded is None:
            return encoded
        key = (name, rollout.group)
        if key not in self._reworded:
            prompt = self._asked(name, rollout)
            self._reworded[key] = in_other_words(
                self.policy.processing, rollout.prompt, prompt, encoded, name
            )
        return self._reworded[key]

    def _words(self, name: str, rollout: Rollout) -> Tensor:
        key = (name, rollout.group)
        if key not in self._worded:
            prompt, encoded = self._asked(name, rollout), self._encoded(name, rollout)
            self._worded[key] = self.policy.processing.words(prompt, encoded)
        return self._worded[key]

    def pixels(self, name: str, row: int) -> tuple[Patches, ...]:
        """What an answer's prompt shows under a branch."""
        rollout = self.rollouts[row]
        encoded = self.policy.encode(rollout.prompt)
        if self._shows(name) == "plain" or not rollout.prompt.media:
            return encoded.visual
        if self._shows(name) == "nothing":
            return ()
        branch = self.branches[name]
        answer = self._answer(branch, row)
        key = (name, rollout.prompt.id, answer)
        if key not in self._rendered:
            self._rendered[key] = render_branch(
                self.policy, rollout.prompt, name, branch, self.now, answer
            )
        return self._rendered[key]

    def shown(self, name: str, row: int) -> tuple[Patches, ...]:
        """What an answer's prompt and the answer itself show under a branch."""
        inside = None if self._shows(name) == "nothing" else self.inside(name, row)
        return self.pixels(name, row) + (inside.visual if inside else ())

    def inside(self, name: str, row: int) -> Inside | None:
        """What an answer itself shows under a branch; None if nothing.

        Raises ValueError if its placeholders and its media do not belong together.
        """
        if row not in self._within:
            rollout = self.rollouts[row]
            found = self._within[row] = self._media.of(rollout)
            if found is not None:
                self.policy.vision.answered(rollout.prompt, found.visual)
        plain = self._within[row]
        # Where nothing is shown, it is known by its places only, and leaves with them.
        if self._shows(name) != "changed" or plain is None:
            return plain
        each = enumerate(plain.visual)
        return replace(plain, visual=tuple(self._reseen(name, row, n, old) for n, old in each))

    def _inside(self, name: str, rows: Sequence[int]) -> tuple[Inside | None, ...]:
        found = tuple(self.inside(name, row) for row in rows)
        return found if any(found) else ()

    def _reseen(self, name: str, row: int, number: int, plain: Patches) -> Patches:
        """The n-th medium inside an answer under a branch; drawn once for answers that have it in common."""
        rollout, branch, policy = self.rollouts[row], self.branches[name], self.policy
        answer = self._answer(branch, row)
        key = (name, rollout.prompt.id, answer, number, plain.key)
        if key not in self._redrawn:
            policy.counters[f"views/{name}"] += 1
            self._redrawn[key] = rendered(
                policy.processing,
                rollout,
                number,
                policy.encode(rollout.prompt),
                plain,
                name,
                branch,
                self.now,
                answer,
                policy.vision.saliency,
            )
        return self._redrawn[key]

    def _answer(self, branch: VisualBranch, row: int) -> int:
        """What keys an answer's draw: nothing if one serves the group."""
        # Counted within the group, so that an answer's draw does not depend on what else is in the batch.
        return -1 if branch.share_in_group else row - self._first(row)

    def _first(self, row: int) -> int:
        group = self.rollouts[row].group
        groups = [rollout.group for rollout in self.rollouts]
        return groups.index(group)


def in_other_words(
    processing: Processing, prompt: Prompt, other: Prompt, encoded: Encoded, name: str
) -> Encoded:
    """`other`, which branch `name` asks instead of `prompt` (`encoded`), as the model reads it.

    Raises ValueError if it does not show the same media.
    """
    if tuple(map(id, other.media)) != tuple(map(id, prompt.media)):
        raise ValueError(
            f"The branch {name!r} asks prompt {prompt.id!r} with {len(other.media)} media instead of its own "
            f"{len(prompt.media)}; VisualBranch.reworded may change words only. Change pixels by its view."
        )
    found = processing.encode_words(other, encoded)
    return replace(found, stands_for=encoded.original, variant=f"{name}: ")


def written(rollout: Rollout) -> int:
    """Tokens of an answer up to the last one that is no observation."""
    own = (rollout.roles != int(Role.OBSERVATION)).nonzero()
    return int(own[-1]) + 1 if len(own) else 0


def render_branch(
    policy: Policy,
    prompt: Prompt,
    name: str,
    branch: VisualBranch,
    now: Now,
    answer: int = -1,
    *,
    compared: bool = False,
) -> tuple[Patches, ...]:
    """The media of one prompt under a branch; `answer` keys the draw of a per-answer view.

    Raises ValueError if the view would change the answer of the prompt's question, unless the answers are only
    `compared` with those to the real pixels.
    """
    if not compared and (reason := spoils(branch.view, prompt)):
        raise ValueError(f"The branch {name!r} cannot show prompt {prompt.id!r}: {reason}")
    if branch.view.shows == "nothing":
        raise ValueError(
            f"The branch {name!r} shows nothing ({type(branch.view).__name__}): answers can be scored under it, and "
            "not sampled. To sample without pictures, ask a row that has none."
        )
    if branch.view.shows == "plain":
        return policy.encode(prompt).visual
    policy.counters[f"views/{name}"] += len(prompt.media)
    ready = policy.vision.drawn(prompt, name, branch, now) if answer < 0 else None
    if ready is not None:
        return ready
    encoded = policy.encode(prompt)
    transform = transform_of(policy, prompt, encoded, name, branch, now, answer)
    return policy.processing.rerender(prompt, encoded, transform, branch.stage)


def transform_of(
    policy: Policy,
    prompt: Prompt,
    encoded: Encoded,
    name: str,
    branch: VisualBranch,
    now: Now,
    answer: int,
) -> Transform:
    """What a branch does to the frames uint8 [F, 3, H, W] of a prompt's n-th medium, with the draws of this step."""

    def saliency(medium: int) -> Tensor | None:
        # Asked before the view runs: saliency costs a run of the tower, which most views do not need.
        if not branch.view.reads_saliency:
            return None
        return policy.vision.saliency(encoded.visual[medium])

    return drawing(prompt, name, branch, now, answer, saliency)
