"""Search: both indexes rank alike where they should, and no page comes twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.calls import Action
from mmrl.tools.indexes import BM25, Embeddings, trigrams
from mmrl.tools.search import NOTHING, OLD, Library, Search
from mmrl.tools.tool import BadAction, Trajectory
from mmrl.types import Media, Prompt

TEXTS = {
    "a": "revenue of the year 2021",
    "b": "revenue of the year 2020, and costs of the year 2020",
    "c": "map of the harbour",
}


def library(texts=TEXTS):
    return Library(BM25(texts), lambda name: Media(torch.full((1, 3, 4, 4), ord(name[0]))))


def test_bm25_has_the_values_of_its_formula():
    index = BM25({"x": "one two two", "y": "one"}, k1=1.0, b=0.5)
    # Both words of x by hand: mean length 2, so L = 0.5 + 0.5 * 3 / 2.
    rarity = math.log(1 + 1.5 / 1.5)
    assert index._rarity("two") == pytest.approx(rarity)
    assert index._weight(0, 2) == pytest.approx(2 * 2 / (2 + 1.25))
    assert index.search("two", 9) == ["x"] and index.search("one", 9) == ["y", "x"]


@pytest.mark.parametrize("index", [BM25(TEXTS), Embeddings.of(TEXTS, trigrams)])
def test_both_indexes_answer_behind_one_interface(index):
    assert index.search("Revenue 2021", 1) == ["a"]
    assert index.search("HARBOUR", 5)[0] == "c"
    assert index.search("", 5) == [] and index.search("???", 5) == []


def test_trigrams_find_misspelt_words_and_words_do_not():
    assert BM25(TEXTS).search("harbur", 5) == []
    assert Embeddings.of(TEXTS, trigrams).search("harbur", 1) == ["c"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["one", "two", "three", "four", "five"]), min_size=1),
    st.integers(1, 6),
)
def test_rankings_are_names_each_once_and_a_part_of_longer_ones(words, count):
    for index in (BM25(TEXTS | {"d": "one two", "e": "two three"}),):
        found = index.search(" ".join(words), count)
        assert len(found) == len(set(found)) <= count
        assert found == index.search(" ".join(reversed(words)), 99)[:count]


def test_indexes_refuse_what_cannot_be_searched():
    with pytest.raises(ValueError, match="at least one document"):
        BM25({})
    with pytest.raises(ValueError, match="one row"):
        Embeddings(["a"], np.ones((2, 3)), trigrams)
    with pytest.raises(ValueError, match="not finite"):
        Embeddings(["a"], np.full((1, 3), np.nan), trigrams)
    with pytest.raises(ValueError, match="must come from one model"):
        Embeddings(["a"], np.ones((1, 3)), trigrams).search("a", 1)


def test_no_page_is_shown_twice_and_the_model_is_told():
    tool, shared = Search(library=lambda _: library()), library()
    assert shared.index.search("revenue", 9) == ["a", "b"]
    way, other = Trajectory(Prompt("p", ())), Trajectory(Prompt("q", ()))
    asks = Action("search", {"query": "revenue"})
    pages = [tool.act(asks, way).found["page"] for _ in range(3)]
    assert pages == ["a", "b", None]
    said = tool.act(asks, way)
    assert said.text == OLD and not said.media and said.valid
    assert tool.act(Action("search", {"query": "zebra"}), way).text == NOTHING
    # What one answer has seen is nothing to another one.
    assert tool.act(asks, other).found["page"] == "a"


def test_a_page_that_cannot_be_read_may_be_asked_for_again():
    def broken(name):
        raise OSError(name)

    tool = Search(library=lambda _: Library(BM25(TEXTS), broken))
    way = Trajectory(Prompt("p", ()))
    for _ in range(2):
        with pytest.raises(OSError, match="a"):
            tool.act(Action("search", {"query": "2021"}), way)


def test_queries_are_read_from_their_tag():
    tool = Search(library=lambda _: library())
    action = tool.parse("<think>x</think><search> revenue </search>")
    assert action is not None and action.arguments == {"query": "revenue"}
    assert tool.parse("<search>open") is None
    with pytest.raises(BadAction, match="not empty"):
        tool.act(Action("search", {"query": "  "}), Trajectory(Prompt("p", ())))
    assert tool.parse(tool.usage) is not None
