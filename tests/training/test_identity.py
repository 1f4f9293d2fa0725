"""What a continued run must have in common with the one that was cut off: data, code, settings, and whose run it is."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass, replace
from functools import partial

import pytest
from PIL import Image

from mmrl.data.rows.sources import load_prompts, split_prompts
from mmrl.ground.checksums import seal
from mmrl.ground.contents import contents
from mmrl.ground.outputs import OutputError
from mmrl.ground.source_digest import code_digest
from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.identity import described_code, described_prompts
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import differences, read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Prompt, Prompts, Sampling

# The data.


@pytest.fixture
def folder(tmp_path):
    """Six questions about pictures, in a file."""
    rows = []
    for number in range(6):
        name = f"{number}.png"
        Image.new("RGB", (28, 28), (40 * number, 10, 200)).save(tmp_path / name)
        row = {"image": name, "question": f"Which of {number}?", "answer": f"red {number}"}
        rows.append(row | {"level": number})
    write(tmp_path, rows)
    return tmp_path


def write(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def changed_answer(folder):
    rows = read(folder)
    write(folder, [*rows[:4], rows[4] | {"answer": "blue"}, *rows[5:]])


def changed_question(folder):
    rows = read(folder)
    write(folder, [*rows[:5], rows[5] | {"question": "Which?"}])


def changed_column(folder):
    rows = read(folder)
    write(folder, [rows[0] | {"level": 9}, *rows[1:]])


def reordered(folder):
    """The first row stays, and so does the number of rows."""
    rows = read(folder)
    write(folder, [rows[0], *reversed(rows[1:])])


def other_picture(folder):
    Image.new("RGB", (28, 28), (1, 2, 3)).save(folder / "3.png")


def one_flipped_bit(folder):
    data = bytearray((folder / "3.png").read_bytes())
    data[-20] ^= 1
    (folder / "3.png").write_bytes(data)


def other_row(folder):
    rows = read(folder)
    write(folder, [*rows[:5], rows[4]])


CHANGES = {
    changed_answer: {"texts", "order"},
    changed_question: {"texts", "order"},
    changed_column: {"texts", "order"},
    reordered: {"order"},
    other_picture: {"media", "order"},
    one_flipped_bit: {"media", "order"},
    other_row: {"texts", "media", "order"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_in_the_data_is_seen(folder, change):
    def found():
        return contents(load_prompts(str(folder / "rows.jsonl")))

    before = found()
    assert before == found() and before["read"] == "all 6 rows"
    change(folder)
    after = found()
    assert {name for name in before if before[name] != after[name]} == CHANGES[change]


def test_a_part_of_the_data_has_the_content_of_its_rows(folder):
    train, heldout = split_prompts(load_prompts(str(folder / "rows.jsonl")), 2, seed=5)
    before, other = contents(train), contents(heldout)
    assert before["read"] == "all 4 rows" and before["texts"] != other["texts"]
    write(folder, [row | {"answer": "blue"} for row in read(folder)])
    train, heldout = split_prompts(load_prompts(str(folder / "rows.jsonl")), 2, seed=5)
    assert contents(train)["texts"] != before["texts"]
    assert contents(heldout)["media"] == other["media"]


def test_a_copy_of_the_data_elsewhere_is_the_same_data(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(folder, place)
    ours, theirs = (contents(load_prompts(str(f / "rows.jsonl"))) for f in (folder, place))
    assert ours == theirs


@pytest.mark.parametrize("style", ["parquet", "embedded"])
def test_tables_with_embedded_pictures_too(folder, tmp_path_factory, style):
    import pyarrow
    import pyarrow.parquet as parquet

    def stored(answer="red 2", picture="2.png"):
        rows = read(folder)
        for row in rows:
            name = picture if row["image"] == "2.png" else row["image"]
            data = (folder / name).read_bytes()
            row["image"] = {"bytes": data, "path": None} if style == "embedded" else data
        rows[2]["answer"] = answer
        file = tmp_path_factory.mktemp("table") / "rows.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return contents(load_prompts(str(file)))

    whole = stored()
    assert whole == stored()
    assert stored(answer="blue")["texts"] != whole["texts"]
    assert stored(picture="1.png")["media"] != whole["media"]


@dataclass(frozen=True)
class Rows(Prompts):
    """A collection that only hands out prompts."""

    answers: tuple[str, ...] = ("a", "b", "c")
    size: int | None = 3

    def __getitem__(self, index):
        return Prompt(str(index), [{"role": "user", "content": "?"}], (), self.answers[index])


def test_collections_of_ones_own_are_read_as_they_are():
    first = described_prompts(Rows())
    assert first == described_prompts(Rows()) and first["read"] == "all 3 rows"
    assert described_prompts(Rows(("a", "x", "c")))["texts"] != first["texts"]
    assert described_prompts(Rows(("b", "a", "c")))["order"] != first["order"]


class Many(Prompts):
    """A huge collection that can tell its content."""

    def __init__(self, size, changed=()):
        self.size, self.changed, self.read = size, set(changed), []

    def __getitem__(self, index):
        raise AssertionError("nothing is decoded")

    def content(self, index):
        self.read.append(index)
        return (index + (index in self.changed)).to_bytes(8, "big"), bytes(8)


def test_of_a_huge_collection_a_sample_is_read_and_that_is_said(capsys):
    class Told(Many):
        def __getitem__(self, index):
            return Prompt(str(index), [], ())

    described_prompts(Told(10_000))
    assert capsys.readouterr().err == ""
    described_prompts(Told(260_000))
    assert (
        "compare its data with this one's by 2,000 of 260,000 rows" in capsys.readouterr().err
    )
    large = Many(260_000)
    found = contents(large)
    assert found["read"] == "2,000 of 260,000 rows, a sample"
    assert len(set(large.read)) == 2000 and large.read[0] == 0 and large.read[-1] == 259_999
    assert contents(Many(260_000, changed=large.read[700:701])) != found
    every = Many(10_000)
    assert contents(every)["read"] == "all 10,000 rows" and every.read == [*range(10_000)]
    assert contents(Many(10_000, changed=[7777])) != contents(every)


# The code.

REWARD = '''
import re
from functools import partial

WEIGHT = 0.5
PATTERN = re.compile("red")
SEEN = []


class Base:
    def pay(self, rollout):
        return 1.0


class Judge(Base):
    def __init__(self, least):
        self.least = least

    def __call__(self, rollout):
        return float(len(rollout.text) > self.least)


def scaled(value):
    """Doubled."""
    return 2 * value  # why not


def reward(rollout, extra=1):
    SEEN.append(rollout)
    return WEIGHT * scaled(extra) * bool(PATTERN.search(rollout.text))


def made(least):
    def inner(rollout):
        return float(len(rollout.text) > least)
    return inner


closed, judge, bound = made(3), Judge(3), Judge(3).pay
some = partial(reward, extra=2)
'''


def loaded(tmp_path, text):
    file = tmp_path / f"rewards_{abs(hash(text))}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("users_rewards", file)
    module = importlib.util.module_from_spec(spec)
    import linecache
    import sys

    sys.modules["users_rewards"] = module
    linecache.clearcache()
    spec.loader.exec_module(module)
    names = ("reward", "closed", "judge", "bound", "some")
    return {name: code_digest(getattr(module, name)) for name in names}


EDITS = {
    ("2 * value", "3 * value"): {"reward", "some"},
    ("WEIGHT = 0.5", "WEIGHT = 0.6"): {"reward", "some"},
    ('compile("red")', 'compile("blue")'): {"reward", "some"},
    ("extra=1", "extra=4"): {"reward", "some"},
    ("extra=2", "extra=4"): {"some"},
    ("made(3)", "made(4)"): {"closed"},
    ("Judge(3).pay", "Judge(5).pay"): {"bound"},
    ("Judge(3), Judge(3)", "Judge(5), Judge(3)"): {"judge"},
    ("> self.least", ">= self.least"): {"judge", "bound"},
    ("return 1.0", "return 0.5"): {"judge", "bound"},
    # What changes nothing.
    ('"""Doubled."""', '"""Twice as much."""'): set(),
    ("# why not", "# because"): set(),
    ("2 * value", "2  *  value"): set(),
    ("SEEN = []", "SEEN = [1, 2]"): set(),
    ("closed, judge", "unrelated = 3\nclosed, judge"): set(),
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: f"{edit[0]} -> {edit[1]}")
def test_another_version_of_a_function_is_seen_and_nothing_else(tmp_path, edit):
    before, after = loaded(tmp_path, REWARD), loaded(tmp_path, REWARD.replace(*edit))
    assert REWARD.replace(*edit) != REWARD
    assert {name for name in before if before[name] != after[name]} == EDITS[edit]


def test_what_a_function_counts_is_not_what_it_is():
    def counting():
        count = 0

        def reward(rollout):
            nonlocal count
            count += 1
            return 1.0

        return reward

    reward = counting()
    before = code_digest(reward)
    reward(None)
    assert code_digest(reward) == before


def test_lists_and_mappings_of_functions():
    found = described_code(
        one=code_digest, several=[write, read], named={"x": partial(write, 1)}
    )
    assert found["one"].startswith("code_digest ") and found["named"]["x"].startswith("write ")
    assert [each.split()[0] for each in found["several"]] == ["write", "read"]


# The run.


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


@in_process
def pay_otherwise(rollout):
    return float(int(rollout.tokens.sum()) % 5) / 5


def run(tiny_folder, folder, output, *, reward=pay, steps=3, optim=Optim(lr=1e-3), **rest):
    return Trainer(
        Policy.load(tiny_folder, device="cpu", dtype="float32"),
        prompts=load_prompts(str(folder / "rows.jsonl")),
        rewards=Rewards(accuracy=reward),
        sampling=Sampling(2, max_tokens=2),
        optim=optim,
        run=Run(output=output, steps=steps, prompts_per_step=1, save_every=1, **rest),
    )


@pytest.fixture
def stopped(tiny_folder, folder, tmp_path):
    """A run with checkpoints of its first two steps, whose third is missing."""
    output = tmp_path / "run"
    run(tiny_folder, folder, output).fit()
    shutil.rmtree(output / "checkpoints" / "step-3")
    shutil.rmtree(output / "model")
    (output / "finished.json").unlink()
    # Kept are the newest two, so step 2 is there.
    assert [place.name for place in (output / "checkpoints").iterdir()] == ["step-2"]
    return output


def test_a_run_with_other_data_or_code_is_refused_with_the_reason(tiny_folder, folder, stopped):
    refused = {
        r"code\.rewards\.accuracy: was 'pay \w+', now 'pay_otherwise \w+' \(the code": {
            "reward": pay_otherwise
        },
        r"optim\.lr: was 0\.001, now 0\.01": {"optim": Optim(lr=1e-2)},
    }
    for message, change in refused.items():
        with pytest.raises(
            OutputError, match=rf"{message}[\s\S]*--run\.output; there, --model"
        ):
            run(tiny_folder, folder, stopped, **change).fit()
    changed_answer(folder)
    with pytest.raises(
        OutputError, match=r"prompts\.texts: was '\w+', now '\w+' \(questions, a"
    ):
        run(tiny_folder, folder, stopped).fit()
    assert [row["step"] for row in read_metrics(stopped)] == [1, 2, 3], "nothing was touched"


def test_how_a_run_meets_infinities_may_change(tiny_folder, folder, stopped):
    run(tiny_folder, folder, stopped, optim=Optim(lr=1e-3, nonfinite="skip")).fit()
    assert [row["step"] for row in read_metrics(stopped)] == [1, 2, 3]


def test_without_config_the_checkpoint_knows_whose_it_is(tiny_folder, folder, stopped):
    """Two runs are not mixed, and the same command continues."""
    (stopped / "config.json").unlink()
    with pytest.raises(OutputError, match=r"optim\.lr"):
        run(tiny_folder, folder, stopped, optim=Optim(lr=1e-2)).fit()
    run(tiny_folder, folder, stopped).fit()
    assert [row["step"] for row in read_metrics(stopped)] == [1, 2, 3]
    config = json.loads((stopped / "config.json").read_text())
    assert config["settings"]["optim"]["lr"] == 1e-3


def test_checkpoints_of_another_run_are_not_continued(tiny_folder, folder, stopped, tmp_path):
    other = tmp_path / "other"
    run(tiny_folder, folder, other).fit()
    (other / "finished.json").unlink()
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(stopped / "checkpoints", other / "checkpoints")
    with pytest.raises(OutputError, match=r"belong to another run|was written by the run"):
        run(tiny_folder, folder, other).fit()


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tiny_folder, folder, tmp_path, capsys
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(tiny_folder, folder, whole, steps=4).fit()
    run(tiny_folder, folder, cut, steps=4).fit()
    (cut / "finished.json").unlink()
    weights = cut / "checkpoints" / "step-4" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    run(tiny_folder, folder, cut, steps=4).fit()
    said = capsys.readouterr().err
    assert "step-4 is damaged: weights.safetensors does not hold the bytes" in said
    assert "The checkpoint before is whole" in said and "after step 3" in said
    for file in ("checkpoints/step-4/weights.safetensors", "model/model.safetensors"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
    assert [row["step"] for row in read_metrics(cut)] == [1, 2, 3, 4]
    assert (cut / "checkpoints" / "damaged-step-4").is_dir()


def test_a_checkpoint_that_was_written_anew_by_hand_still_needs_finite_weights(
    tiny_folder, folder, stopped
):
    from safetensors.torch import load_file, save_file

    from mmrl.training.checkpoint import CheckpointError

    file = stopped / "checkpoints" / "step-2" / "weights.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file)
    seal(file.parent)
    with pytest.raises(CheckpointError, match="weights that are not finite"):
        run(tiny_folder, folder, stopped).fit()


def test_differences_tell_a_reordering_from_a_change():
    rows = described_prompts(Rows())
    moved = described_prompts(replace(Rows(), answers=("b", "a", "c")))
    assert [line.split(":")[0] for line in differences(rows, moved)] == ["order"]
    changed = described_prompts(replace(Rows(), answers=("b", "a", "x")))
    assert [line.split(":")[0] for line in differences(rows, changed)] == ["order", "texts"]
