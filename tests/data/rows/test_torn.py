"""Torn tables: what is damaged costs itself, and every row that went with it is counted and listed."""

from __future__ import annotations

import json

import pytest

from mmrl.data.rows.sources import load_prompts

HEAD = "question,answer"


def rows(count, start=0):
    return [{"question": f"{n} + 1?", "answer": n + 1} for n in range(start, start + count)]


def loaded(file, text):
    file.write_text(text, encoding="utf-8")
    return load_prompts(str(file))


def bad_lines(prompts):
    return [int(str(fault).split("line ")[1].split(":")[0]) for fault in prompts.faults]


CSV = {
    "never closed": (
        ["a?,1", 'b?,"2', "c?,3", "d?,4"],
        ["a?"],
        [3, 4, 5],
    ),
    "never closed in the first row": (['"a?,1', "b?,2", "c?,3", "", "d?,4"], None, None),
    "closed by the next quote": (
        ["a?,1", 'b?,"2', "c?,3", 'd?,"4"', "e?,5"],
        ["a?", "e?"],
        [3, 4, 5],
    ),
    "closed at a border of cells": (
        ["a?,1", 'b?,"2', "c?,3", '"d?",4', "e?,5"],
        ["a?", "e?"],
        [3, 4, 5],
    ),
    "a letter behind a quote": (["a?,1", 'b?,"2"x', "c?,3"], ["a?", "c?"], [3]),
    "too many cells": (["a?,1", "b?,2,3", "c?,3"], ["a?", "c?"], [3]),
    "blank lines": (["a?,1", "", "b?,2,3"], ["a?"], [4]),
    "several lines in a cell": (["a?,1", '"b', '?",2', "c?,3,3"], ["a?", "b\n?"], [5]),
    "a quote inside a cell": (['a 5" pipe?,1', '"b ""2""?",2'], ['a 5" pipe?', 'b "2"?'], []),
}


@pytest.mark.parametrize("case", CSV)
def test_lines_that_a_quote_swallows_are_bad_rows_each(tmp_path, case):
    lines, good, bad = CSV[case]
    text = "\n".join([HEAD, *lines, ""])
    if good is None:
        with pytest.raises(ValueError, match=r"no usable row \(.*4 bad row"):
            loaded(tmp_path / "t.csv", text)
        return
    prompts = loaded(tmp_path / "t.csv", text)
    assert [prompt.messages[-1]["content"] for prompt in prompts] == good
    assert bad_lines(prompts) == bad
    assert prompts.skipped == ({"bad row": len(bad)} if bad else {})
    for fault in prompts.faults[1:] if case.startswith("never") else ():
        assert "a quote that opens in line 3" in str(fault)


def test_many_swallowed_lines_are_all_counted(tmp_path):
    lines = [f"{n}?,{n + 1}" for n in range(50_000)]
    lines[10] = '10?,"11'
    prompts = loaded(tmp_path / "t.csv", "\n".join([HEAD, *lines, ""]))
    assert prompts.size + sum(prompts.skipped.values()) == 50_000
    assert prompts.size >= 10 and bad_lines(prompts)[0] == 12


@pytest.mark.parametrize("cut", [1, 5, 12, 20, 27])
@pytest.mark.parametrize("place", [0, 1, 3, 4])
def test_rows_behind_a_torn_line_are_rows(tmp_path, cut, place):
    """Cut anywhere; the newline is gone, so the next row stands on the same line."""
    whole = [json.dumps({**row, "extra": {"question": "inner"}}) for row in rows(5)]
    torn = whole[place][:cut] if place else whole[0]
    text = "".join(
        line + "\n" if n != place else torn + ("" if place else "\n")
        for n, line in enumerate(whole)
    )
    prompts = loaded(tmp_path / "t.jsonl", text)
    assert prompts.size == 5 - bool(place), prompts.summary()
    assert prompts.skipped == ({"bad JSON": 1} if place else {})
    if place:
        assert bad_lines(prompts) == [place + 1]


def test_an_object_inside_a_torn_one_is_no_row(tmp_path):
    first = json.dumps({"question": "a?", "answer": "1"})
    torn = '{"question": "b?", "answer": "2", "extra": {"question": "inner"}'
    prompts = loaded(tmp_path / "t.jsonl", f"{first}\n{torn}\n{first}\n")
    assert prompts.size == 2 and prompts.skipped == {"bad JSON": 1}
    assert bad_lines(prompts) == [2]


@pytest.mark.parametrize("indent", [None, 1, 4])
@pytest.mark.parametrize("damage", ["cut", "glued", "end", "no comma", "words"])
def test_a_torn_entry_of_a_list_costs_itself(tmp_path, indent, damage):
    whole = [json.dumps({**row, "extra": {"x": {}}}, indent=indent) for row in rows(5)]
    pieces = [f"{entry},\n" for entry in whole]
    pieces[-1] = whole[-1] + "\n"
    if damage == "cut":
        pieces[2] = whole[2][:20] + "\n"
    elif damage == "glued":
        pieces[2] = whole[2][:20]
        if indent is None:
            return  # one entry a line: what is glued there cannot be told apart
    elif damage == "words":
        pieces[2] = "oops,\n"
    elif damage == "no comma":
        pieces[2] = whole[2] + "\n"
    text = "[\n" + "".join(pieces) + ("" if damage == "end" else "]\n")
    prompts = loaded(tmp_path / "t.json", text)
    if damage == "no comma":
        assert prompts.size == 5 and not prompts.skipped
        return
    expected = {"cut": 4, "glued": 3, "end": 5, "words": 4}[damage]
    assert prompts.size == expected, prompts.summary()
    assert prompts.skipped == {"bad JSON": 1}
    if damage == "end":
        assert "the list ends without ]" in str(prompts.faults[0])


def test_a_list_without_a_good_entry_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"t\.json, line 2: .*bad JSON"):
        loaded(tmp_path / "t.json", '[\n {"question": \n')
