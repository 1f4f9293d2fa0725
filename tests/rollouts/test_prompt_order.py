"""Order of prompts, bad rows, exact resume."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.faults import BadRow
from mmrl.model.ranks import Ranks
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Prompt, Prompts
from tests.several import several, values


@dataclass(frozen=True)
class Rows(Prompts):
    """Numbered prompts; those in `bad` cannot be read."""

    size: int | None = 7
    bad: tuple[int, ...] = ()

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRow(f"row {index} is broken")
        return Prompt(str(index), [])


def ids(prompts):
    return [int(p.id) for p in prompts]


def test_an_epoch_holds_every_row_once_and_epochs_differ():
    supply = Supply(Rows(7), 7, seed=3)
    first, second = ids(supply.take()), ids(supply.take())
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert supply.epoch == 2.0
    assert ids(Supply(Rows(7), 7, seed=3).take()) == first
    assert ids(Supply(Rows(7), 7, seed=4).take()) != first


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.integers(0, 5),
    st.sets(st.integers(0, 8), max_size=4),
)
def test_the_order_does_not_depend_on_the_portions_and_resumes_exactly(
    size, portions, stop, bad
):
    rows = Rows(size, tuple(bad))
    if set(range(size)) <= bad:
        return
    whole = ids(Supply(rows, 1, seed=1).take(sum(portions)))
    supply, found = Supply(rows, 1, seed=1), []
    for i, portion in enumerate(portions):
        if i == stop:
            state = json.loads(json.dumps(supply.state()))
            supply = Supply(rows, 1, seed=1)
            supply.load(state)
        found += ids(supply.take(portion))
    assert found == whole and not set(found) & bad


def test_an_endless_collection_is_read_in_its_own_order():
    supply = Supply(Rows(None), 3, seed=9)
    assert (
        ids(supply.take()) == [0, 1, 2]
        and ids(supply.take(2)) == [3, 4]
        and supply.epoch == 0.0
    )


def test_bad_rows_are_skipped_counted_and_logged(tmp_path):
    log = tmp_path / "skipped.jsonl"
    supply = Supply(Rows(None, bad=(1, 4)), 4, seed=0, log=log)
    assert ids(supply.take()) == [0, 2, 3, 5]
    assert supply.counters["data/skipped"] == 2 and supply.position == 6
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(r["row"], r["reason"]) for r in rows] == [
        (1, "row 1 is broken"),
        (4, "row 4 is broken"),
    ]


def test_a_bad_row_is_counted_in_every_pass_and_listed_once(tmp_path):
    log, rows = tmp_path / "skipped.jsonl", Rows(6, bad=(1, 4))
    supply = Supply(rows, 2, seed=0, log=log)
    # A held-out row of the same number, found before the first step, is another one.
    log.write_text('{"position": -1, "side": "held-out", "row": 4, "reason": "no picture"}\n')
    for _ in range(5):
        supply.take()
    assert supply.counters["data/skipped"] >= 4 and supply.epoch > 2

    def listed():
        told = [json.loads(line) for line in log.read_text().splitlines()]
        return sorted(row["row"] for row in told if row["position"] >= 0)

    assert listed() == [1, 4]
    again = Supply(rows, 2, seed=0, log=log)
    again.load(supply.state())
    for _ in range(3):
        again.take()
    assert listed() == [1, 4], "nor after going on"


def test_rows_that_load_but_cannot_be_used_are_skipped_too():
    def check(prompt):
        if int(prompt.id) % 2:
            raise BadRow("odd")

    assert ids(Supply(Rows(None), 3, seed=0, check=check).take()) == [0, 2, 4]


def test_bad_rows_end_the_run_by_choice():
    with pytest.raises(BadRow, match="row 1 is broken"):
        Supply(Rows(None, bad=(1,)), 4, seed=0, on_bad="stop").take()


@pytest.mark.parametrize("size", [5, None])
def test_a_collection_without_a_usable_row_is_an_error_and_no_endless_loop(size):
    rows = Rows(size, bad=tuple(range(3000)))
    with pytest.raises(BadRow, match=r"(5|1000) rows in a row cannot be used.*is broken"):
        Supply(rows, 2, seed=0).take()


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="dataset is empty"):
        Supply(Rows(0), 2, seed=0)


def test_peeking_changes_nothing(tmp_path):
    log = tmp_path / "skipped.jsonl"
    supply = Supply(Rows(None, bad=(0,)), 2, seed=0, log=log)
    assert supply.peek().id == "1" and supply.position == 0
    assert not supply.counters and not log.exists()
    assert (
        ids(supply.take()) == [1, 2] and supply.counters["data/skipped"] == 1 and log.exists()
    )


def test_the_log_forgets_what_will_be_met_again(tmp_path):
    log = tmp_path / "skipped.jsonl"
    supply = Supply(Rows(None, bad=(1, 4)), 2, seed=0, log=log)
    supply.take()
    state = supply.state()
    supply.take()
    assert len(log.read_text().splitlines()) == 2
    with log.open("a") as file:
        file.write('{"position": 0, "row"')  # torn by a kill
    again = Supply(Rows(None, bad=(1, 4)), 2, seed=0, log=log)
    again.load(state)
    assert [json.loads(line)["row"] for line in log.read_text().splitlines()] == [1]
    again.take()
    assert [json.loads(line)["row"] for line in log.read_text().splitlines()] == [1, 4]


def dealt(size, bad, per_step, steps):
    """Steps of a supply: (ids, places) of this rank, the skipped rows counted, the position."""
    ranks = Ranks.start("cpu")
    supply = Supply(Rows(size, bad), per_step, seed=2, ranks=ranks)
    seen = []
    for count in steps:
        peeked = supply.peek().id if ranks.rank == 1 else ""
        shown = [
            (p.id, place) for p, place in zip(supply.take(count), supply.places, strict=True)
        ]
        seen.append((peeked, shown))
    outcome = seen, dict(supply.counters), supply.position
    ranks.end()
    return outcome


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("size", "bad"),
    [(7, ()), (7, (0, 2, 5)), (3, ()), (None, (1, 2, 8))],
    ids=["good", "bad rows", "rows come twice in a step", "endless"],
)
def test_prompts_do_not_depend_on_the_number_of_ranks(world, size, bad):
    steps = (4, 5, 1, 4)
    (alone, counted, position) = dealt(size, bad, 4, steps)
    found = values(several(world, dealt, size, bad, 4, steps))
    for number, (_, whole) in enumerate(alone):
        shares = [seen[number][1] for seen, _, _ in found]
        together = sorted(
            (pair for share in shares for pair in share), key=lambda pair: pair[1]
        )
        assert together == whole
        if not bad and number == 0 and size != 3:
            assert shares == [whole[rank::world] for rank in range(world)]
        # A row that comes twice is one rank's, whose engine gives it other answers the second time.
        for share in shares:
            assert not {row for row, _ in share} & {
                row for other in shares if other is not share for row, _ in other
            }
        assert found[1][0][number][0] == whole[0][0]
    assert all(end == position for _, _, end in found)
    assert sum(dict(count).get("data/skipped", 0) for _, count, _ in found) == counted.get(
        "data/skipped", 0
    )


def all_bad():
    ranks = Ranks.start("cpu")
    supply = Supply(Rows(5, (0, 1, 2, 3, 4)), 3, seed=0, ranks=ranks)
    try:
        supply.take()
    except BadRow as problem:
        return str(problem)
    finally:
        ranks.end()


def test_all_ranks_find_that_nothing_is_usable():
    first, second = values(several(2, all_bad))
    assert first == second == all_bad() and "5 rows in a row cannot be used" in first


class Expecting:
    """Stands for the workers that read ahead: reads here, and notes what it was told to expect."""

    def __init__(self, rows):
        self.rows, self.expected = rows, []

    def expect(self, rows):
        self.expected.append([*rows])

    def read(self, row):
        return self.rows[row]

    def drain(self):
        return {}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_rank_reads_its_own_rows_ahead_and_no_others(world):
    rows = Rows(None)
    for rank in range(world):
        ranks = Ranks(rank, world)
        ranks.gathered = lambda value: [value]  # nothing is wrong with the others' rows
        ahead = Expecting(rows)
        supply = Supply(rows, 6, seed=0, ahead=ahead, ranks=ranks)
        for step in range(2):
            taken = ids(supply.take())
            begin = 6 * step
            assert taken == [*range(begin + rank, begin + 6, world)]
            # This step's and the next one's.
            assert ahead.expected[step] == [*range(begin + rank, begin + 12, world)]
