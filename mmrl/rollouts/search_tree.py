"""The tree that DeepSearch searches for one prompt: which node is grown next, and what its leaves tell the others.

`Search.starts` says what shall be grown, `add` takes the pieces, `judge` the answers that ended with them, and `move`
backs one of these up and chooses the next node. No engine here: whoever has one drives it (`rollouts.deepsearch`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mmrl.objectives.deepsearch import DeepSearch, backed_up, frontier_score, sibling_score
from mmrl.rollouts.forking import Piece, Start
from mmrl.types import Rollout

__all__ = ["Node", "Search"]


@dataclass(eq=False)
class Node:
    """A run of tokens, or the prompt."""

    piece: Piece | None = None
    """None: the prompt."""
    parent: Node | None = None
    depth: int = 0
    """Nodes on the way from the prompt."""
    children: list[Node] = field(default_factory=list)
    value: float = 0.0
    """What was backed up."""
    visits: int = 0
    answer: Rollout | None = None
    """The paid answer that ends here."""
    backed: bool = False
    """Was this leaf backed up?"""

    @property
    def number(self) -> int:
        """Number of its piece."""
        assert self.piece is not None, "the prompt is no piece"
        return self.piece.number

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of its piece; none for the prompt."""
        return () if self.piece is None else self.piece.tokens

    @property
    def ends(self) -> bool:
        """Does the answer end here?"""
        return self.piece is not None and self.piece.stop != "piece"

    @property
    def verdict(self) -> float:
        """1 for a right answer, else -1; of one that could not be paid as well."""
        return 1.0 if self.answer is not None and self.answer.correct else -1.0

    @property
    def worth(self) -> float:
        """What its tokens are paid."""
        return self.verdict if self.ends else math.tanh(self.value)

    def way(self) -> list[Node]:
        """The nodes from the prompt to this one, both included."""
        nodes: list[Node] = [self]
        here = self.parent
        while here is not None:
            nodes.append(here)
            here = here.parent
        return nodes[::-1]

    def paid(self, fresh: Rollout) -> Rollout:
        """The same answer, as it was told again, with its pay and with what its tokens are worth."""
        assert self.answer is not None, "only paid answers are chosen"
        runs = [(len(node.tokens), node.worth) for node in self.way()[1:]]
        return replace(
            fresh,
            reward=self.answer.reward,
            parts=self.answer.parts,
            correct=self.answer.correct,
            valued=tuple(runs),
        )

    def surprise(self) -> float:
        """Mean entropy of the answer's tokens up to its end, nats; lower is surer."""
        pieces = [node.piece for node in self.way() if node.piece is not None]
        entropies = [piece.entropy for piece in pieces if piece.entropy is not None]
        count = sum(len(entropy) for entropy in entropies)
        return sum(float(entropy.sum()) for entropy in entropies) / max(count, 1)

    def below(self) -> Iterator[Node]:
        """This node and all behind it, in the order in which they were grown from each."""
        waiting: list[Node] = [self]  # no recursion: a tree may be thousands of nodes deep
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)


class Search:
    """One prompt's search."""

    def __init__(self, settings: DeepSearch, prompt: int, run: int) -> None:
        self.settings, self.prompt, self.run = settings, prompt, run
        """`prompt`: its place in the forest; `run`: tokens of a node."""
        self.root = Node()
        self.nodes = 0
        """Grown so far."""
        self.rounds = 0
        """Leaves that were backed up."""
        self.over = False
        self._here = self.root
        self._new: list[Node] = []
        self._found: list[Node] = []
        """Leaves whose answer was paid, in the order in which they ended."""
        self._last_resort = False

    def starts(self) -> list[Start]:
        """The pieces that are to be grown next."""
        piece = self._here.piece
        above = None if piece is None else piece.number
        if self._last_resort:
            return [Start(self.prompt, above)]
        return [Start(self.prompt, above, max_tokens=self.run)] * self.settings.width

    def add(self, piece: Piece) -> None:
        """One of the pieces that were grown."""
        node = Node(piece, self._here, self._here.depth + 1)
        self._here.children.append(node)
        self._new.append(node)
        self.nodes += 1

    def ended(self) -> list[Node]:
        """Those of the new pieces with which an answer ends."""
        return [node for node in self._new if node.ends]

    def judge(self, node: Node, answer: Rollout | None) -> None:
        """The paid answer that ends with a node; None if it could not be paid."""
        node.answer = answer
        if answer is not None:
            self._found.append(node)

    def move(self) -> None:
        """After the new pieces were judged: back one up if any ended, and choose the node that is grown next."""
        ended = self.ended()
        if ended:
            self._back_up(min(ended, key=_preference))
        following = self._best_open() if ended else self._best_sibling()
        self._new = []
        full = self.nodes + self.settings.width > self.settings.nodes
        if following is None or self._last_resort or len(self._found) >= self.settings.answers:
            self.over = True
        elif full:
            # Without room for one more layer, a prompt without any answer gets one.
            self.over = bool(self._found)
            self._last_resort, following = True, self._best_open()
        self._here = following or self.root

    def chosen(self) -> list[Node]:
        """At most `answers` leaves with a paid answer: first those that were backed up."""
        return sorted(self._found, key=lambda node: not node.backed)[: self.settings.answers]

    def _back_up(self, leaf: Node) -> None:
        way, self.rounds, leaf.backed = leaf.way(), self.rounds + 1, True
        for node in way:
            node.value = backed_up(
                node.value, leaf.verdict, node.depth, len(way), self.settings.least
            )
            node.visits += 1

    def _best_sibling(self) -> Node:
        parent = self._here
        explore = self.settings.explore
        return max(
            parent.children,
            key=lambda node: sibling_score(node.value, node.visits, parent.visits, explore),
        )

    def _best_open(self) -> Node | None:
        """The open leaf that most wants to be grown; of equal ones the first. None: all answers have ended."""
        leaves = [
            node
            for node in self.root.below()
            if node.parent is not None and not node.children and not node.ends
        ]
        return max(leaves, key=self._score, default=None)

    def _score(self, node: Node) -> float:
        assert node.parent is not None and node.piece is not None
        entropy = node.piece.entropy
        known = entropy is not None and len(entropy) > 0
        return frontier_score(
            self.settings,
            parent=node.parent.value,
            own=node.value,
            entropy=float(entropy.mean()) if known and entropy is not None else 0.0,
            depth=node.depth,
        )


def _preference(leaf: Node) -> tuple[int, float]:
    """Smallest for the leaf that is backed up: right before wrong before cut ones, of these the surest."""
    assert leaf.piece is not None
    kind = 0 if leaf.verdict > 0 else 2 if leaf.piece.stop == "length" else 1
    return kind, leaf.surprise()
