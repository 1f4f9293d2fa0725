"""Ranked search among named texts, behind one interface: `search(query, count) -> names`, the best first.

BM25 (Robertson and Zaragoza 2009), over the documents d of the index with length |d| in words:

    Σ over words w of the query   ln(1 + (N - n_w + 0.5) / (n_w + 0.5)) · f·(k1 + 1) / (f + k1·L)
    L = 1 - b + b·|d| / mean |d|

f is how often d has w, n_w how many documents have it. `Embeddings` ranks by the cosine of vectors, which anything may
make; `trigrams` makes some of the letters of a text, so that misspelt words are found, too. Documents of score 0 are
not found. Equal scores: in the order given. No torch.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmrl.ground.require import require

Vector = NDArray[np.floating]
WORD = re.compile(r"\w+")
SIZE = 512
"""Numbers of a vector of `trigrams`."""


class Index(Protocol):
    """Finds names of documents."""

    def search(self, query: str, count: int) -> Sequence[str]:
        """At most `count` names, the best first."""
        ...


class BM25:
    """By the words that query and document share."""

    def __init__(self, texts: Mapping[str, str], k1: float = 1.2, b: float = 0.75) -> None:
        """`texts`: name of a document -> its words. Raises ValueError without any."""
        self.k1, self.b = k1, b
        require(self, k1=(k1 >= 0, "at least 0"), b=(0 <= b <= 1, "in [0, 1]"))
        self._names = _some(tuple(texts))
        counts = [Counter(words_of(text)) for text in texts.values()]
        self._lengths = [count.total() for count in counts]
        self._mean = sum(self._lengths) / len(counts)
        # Word -> (document, how often): a query looks at documents with its words alone.
        self._found: dict[str, list[tuple[int, int]]] = {}
        for place, count in enumerate(counts):
            for word, often in count.items():
                self._found.setdefault(word, []).append((place, often))

    def search(self, query: str, count: int) -> list[str]:
        """At most `count` names, the best first."""
        scores: defaultdict[int, float] = defaultdict(float)
        for word in words_of(query):
            for place, often in self._found.get(word, ()):
                scores[place] += self._rarity(word) * self._weight(place, often)
        # By place where scores are equal, so that the order does not depend on that of the words.
        ranked = sorted(scores, key=lambda place: (-scores[place], place))
        return [self._names[place] for place in ranked[:count]]

    def _rarity(self, word: str) -> float:
        having = len(self._found[word])
        return math.log(1 + (len(self._names) - having + 0.5) / (having + 0.5))

    def _weight(self, place: int, often: int) -> float:
        length = 1 - self.b + self.b * self._lengths[place] / self._mean
        return often * (self.k1 + 1) / (often + self.k1 * length)


class Embeddings:
    """By the cosine between the query's vector and each document's."""

    def __init__(
        self, names: Sequence[str], vectors: Vector, embed: Callable[[str], Vector]
    ) -> None:
        """`vectors` [N, D] of the names; `embed`: query -> vector [D]. Raises ValueError for other shapes."""
        self._names, self._embed = _some(tuple(names)), embed
        if len(set(names)) < len(names) or np.ndim(vectors) != 2 or len(vectors) != len(names):
            raise ValueError(
                f"Embeddings got {len(names)} names, {len(set(names))} of them different, and vectors of the shape "
                f"{np.shape(vectors)}; give one row [D] for each name, and each name once."
            )
        if not np.isfinite(vectors).all():
            raise ValueError("Embeddings got vectors with numbers that are not finite.")
        self._vectors = _unit(np.asarray(vectors, dtype=np.float32))

    @classmethod
    def of(cls, texts: Mapping[str, str], embed: Callable[[str], Vector]) -> Embeddings:
        """The index of these texts."""
        return cls(tuple(texts), np.stack([embed(text) for text in texts.values()]), embed)

    def search(self, query: str, count: int) -> list[str]:
        """At most `count` names, the best first. Raises ValueError for a vector of another length."""
        vector = np.asarray(self._embed(query), dtype=np.float32)
        if vector.shape != self._vectors.shape[1:]:
            raise ValueError(
                f"The query's vector has the shape {vector.shape}, those of the index {self._vectors.shape[1:]}; both "
                "must come from one model."
            )
        scores = self._vectors @ _unit(vector[None])[0]
        ranked = np.argsort(-scores, kind="stable")[:count]
        return [self._names[place] for place in ranked if scores[place] > 0]


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return WORD.findall(text.casefold())


def trigrams(text: str) -> Vector:
    """float32 [512]: how often groups of three letters occur, thrown together by a checksum; case does not count."""
    vector = np.zeros(SIZE, dtype=np.float32)
    for word in words_of(text):
        letters = f" {word} "
        for start in range(len(letters) - 2):
            # A checksum, because the hash of a text differs from process to process.
            vector[zlib.crc32(letters[start : start + 3].encode()) % SIZE] += 1
    return vector


def _unit(vectors: Vector) -> Vector:
    """Rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _some(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("An index needs at least one document.")
    return names
