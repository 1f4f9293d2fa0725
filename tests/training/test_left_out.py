"""Bad rows of either side, found at any moment before the first step, are counted and listed."""

from __future__ import annotations

import json

import pytest

from mmrl.data.rows.sources import load_prompts, split_prompts
from mmrl.ground.faults import BadRow
from mmrl.model.policy import Policy
from mmrl.recipes import grpo_step
from mmrl.recipes.shared.launch import launch
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.left_out import LeftOut
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Prompt, Prompts, Sampling

GOOD = [json.dumps({"question": f"{n} + 1?", "answer": n + 1}) for n in range(12)]
BAD = ['{"question": "cut', '{"question": "?", "answer": ""}', "[1]"]
FLAGS = ("--run.steps", "1", "--run.prompts-per-step", "2", "--run.eval-prompts", "4")


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


def lines(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def trained(folder, output, prompts, heldout):
    trainer = Trainer(
        Policy.load(folder, device="cpu", dtype="float32"),
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(accuracy=pay),
        sampling=Sampling(2, max_tokens=3),
        run=Run(output=output, steps=1, prompts_per_step=2, eval_prompts=3),
    )
    trainer.fit()


def write(file, *rows):
    file.write_text("\n".join([*rows, ""]))
    return load_prompts(str(file))


def test_rows_that_were_refused_at_loading_are_listed_from_both_files(tiny_folder, tmp_path):
    train = write(tmp_path / "train.jsonl", BAD[0], *GOOD[:6], BAD[1])
    held = write(tmp_path / "held.jsonl", *GOOD[6:9], *BAD)
    trained(tiny_folder, tmp_path / "run", train, held)
    found = lines(tmp_path / "run")
    assert [row["side"] for row in found] == ["training"] * 2 + ["held-out"] * 3
    places = [
        "train.jsonl, line 1",
        "train.jsonl, line 8",
        *(f"held.jsonl, line {n}" for n in (4, 5, 6)),
    ]
    assert all(place in row["reason"] for place, row in zip(places, found, strict=True))
    assert read_metrics(tmp_path / "run")[0]["data/left_out"] == 5


def test_two_sides_of_one_file_tell_its_bad_rows_once(tiny_folder, tmp_path):
    rows = write(tmp_path / "rows.jsonl", *GOOD, *BAD)
    trained(tiny_folder, tmp_path / "run", *split_prompts(rows, 3))
    assert len(lines(tmp_path / "run")) == 3


class SomeBad(Prompts):
    """Held-out rows of which every second cannot be read."""

    size = 9

    def __getitem__(self, index):
        if index % 2 == 0:
            raise BadRow(f"row {index} is broken")
        return Prompt(str(index), ({"role": "user", "content": "?"},), (), "1")


def test_heldout_rows_that_cannot_be_read_are_counted_and_listed(tiny_folder, tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", *GOOD)
    trained(tiny_folder, tmp_path / "run", train, SomeBad())
    found = lines(tmp_path / "run")
    assert [row["row"] for row in found] == [0, 2, 4]
    assert {row["side"] for row in found} == {"held-out"} and "row 2 is broken" in str(found)
    assert read_metrics(tmp_path / "run")[0]["data/heldout_skipped"] == 3
    assert "3 rows cannot be used and are listed in" in capsys.readouterr().err


def test_a_collection_of_the_users_own_need_not_know_any():
    class Own:
        size = 3

    assert LeftOut(Own()).metrics() == {} and LeftOut(Own(), None).metrics() == {}


def test_the_written_out_recipe_lists_them_too(tiny_folder, tmp_path):
    write(tmp_path / "rows.jsonl", *GOOD, *BAD)
    given = ["7b", "--model", str(tiny_folder), "--dataset", str(tmp_path / "rows.jsonl")]
    given += ["--sampling.max-tokens", "3", "--run.output", str(tmp_path / "run"), *FLAGS]
    launch(grpo_step.main, grpo_step.PRESETS, [*given, "--load.max-prompt-tokens", "500"])
    assert len(lines(tmp_path / "run")) == 3


def test_of_very_many_bad_rows_the_number_is_told(tmp_path, monkeypatch):
    from mmrl.data.rows import row_prompts

    monkeypatch.setattr(row_prompts, "KEPT_FAULTS", 4)
    rows = write(tmp_path / "rows.jsonl", *GOOD[:2], *BAD * 3)
    listed = list(map(str, rows.left_out()))
    assert len(listed) == 5 and listed[-1].endswith("5 more rows that cannot be used")
    assert sum(rows.skipped.values()) == 9


@pytest.mark.parametrize("heldout_rows", [0, 4])
def test_bad_rows_stay_listed_when_the_run_goes_on(tiny_folder, tmp_path, heldout_rows):
    class Unplugged(BaseException):
        pass

    rows = write(tmp_path / "rows.jsonl", *GOOD, *BAD)
    sides = split_prompts(rows, heldout_rows) if heldout_rows else (rows, rows)
    for cut in (True, False):
        trainer = Trainer(
            Policy.load(tiny_folder, device="cpu", dtype="float32"),
            prompts=sides[0],
            heldout=sides[1],
            rewards=Rewards(accuracy=pay),
            sampling=Sampling(2, max_tokens=3),
            run=Run(output=tmp_path / "run", steps=2, prompts_per_step=2, save_every=1),
        )
        if not cut:
            trainer.fit()
            break
        step = trainer.step
        trainer.step = lambda now, step=step: step(now) if now.step < 2 else unplug()

        def unplug():
            raise Unplugged

        with pytest.raises(Unplugged):
            trainer.fit()
    assert len(lines(tmp_path / "run")) == 3
