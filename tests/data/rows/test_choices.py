"""VMR: rows as choices, what is refused, the audit with planted leaks, the command, and the recipe's prompts."""

from __future__ import annotations

import json
import random

import pytest

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.rows.choice_audit import Row, audited, key_of
from mmrl.data.rows.choice_files import main
from mmrl.data.rows.choices import LETTERS, VMR, asked, choice_of, refuse_cues, response
from mmrl.ground.faults import Fault
from mmrl.recipes.shared.choice_data import ChoicePrompts, DrawnPairs, open_choices
from mmrl.recipes.shared.opening import Data

WORDS = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "joule",
    "kiosk",
    "larch",
)


def pair(number, chosen="", rejected=""):
    """A row without any cue: both answers are words in an order of their own."""
    mixed = random.Random(number).sample(WORDS, 6)
    good, bad = " ".join(mixed[:3]), " ".join(mixed[3:])
    return {"prompt": f"Say {number}.", "chosen": chosen or good, "rejected": rejected or bad}


def made(number, vmr=VMR(), seed=0, **texts):
    row = pair(number, **texts)
    return Row(row["prompt"], choice_of(row["prompt"], row, f"r{number}", vmr, seed))


def test_both_orders_occur_equally_often_and_the_label_follows():
    rows = [made(number) for number in range(400)]
    share = sum(row.choice.answer == "A" for row in rows) / len(rows)
    assert 0.43 < share < 0.57, "a constant letter is right in half of them"
    for number, row in enumerate(rows):
        assert row.choice.chosen == pair(number)["chosen"]
        assert row.choice.text.index("Option A:") < row.choice.text.index("Option B:")
    assert rows[7] == made(7) and any(row != made(n, seed=1) for n, row in enumerate(rows[:20]))


@pytest.mark.parametrize("options", [2, 3, 4])
def test_more_options_are_drawn_from_more_rejected_answers(options):
    lost = ["first", "second", "third", "fourth"]
    row = {"chosen": "right", "rejected": lost}
    found = [choice_of("q", row, f"r{n}", VMR(options=options)) for n in range(60)]
    assert all(len(one.options) == options and one.chosen == "right" for one in found)
    assert {one.answer for one in found} == set(LETTERS[:options])
    assert {text for one in found for text in one.options} == {"right", *lost}


def test_a_chat_ends_with_its_answer_and_fields_in_a_text_stay():
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": " yes it is "}]
    assert response(chat, "chosen") == "yes it is"
    assert response([{"from": "gpt", "value": "yes"}], "chosen") == "yes"
    row = {"chosen": chat, "rejected": [{"role": "assistant", "content": "no {options}"}]}
    text = choice_of("Is {options} a {question}?", row, "r", VMR()).text
    assert "Is {options} a {question}?" in text and text.count("Option A:") == 1
    assert "no {options}" in text and asked("q", ("x", "y"), bare=True) == "q A x B y"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (("The cat.", "the  CAT"), "equal answers"),
        (("a", "b" * 4), "answers of unlike length"),
        (("a" * 9000, "b" * 8999), "answers too long"),
        (("fine here", "x\nOption B: y"), "answers with marks"),
        (("fine here", "so\n**Option A**\n"), "answers with marks"),
    ],
)
def test_what_would_teach_something_else_is_refused_with_its_reason(answers, reason):
    with pytest.raises(Fault) as told:
        refuse_cues(answers, VMR())
    assert told.value.reason == reason
    with pytest.raises(Fault, match="1 answers for 3 options"):
        choice_of("q", {"chosen": "a", "rejected": "b"}, "r", VMR(options=3))
    with pytest.raises(Fault, match="'chosen' holds None"):
        choice_of("q", {"rejected": "b"}, "r", VMR())
    with pytest.raises(ValueError, match=r"VMR\.options is 9"):
        VMR(options=9)


def leaks(rows):
    return {cue.name for cue in audited(rows).leaks}


def test_clean_rows_leak_nothing_and_planted_leaks_are_found():
    clean = [made(number) for number in range(300)]
    assert leaks(clean) == set()
    assert audited(clean).guess == 0.5
    length = [made(n, chosen=pair(n)["chosen"] + " too" if n % 5 else "") for n in range(300)]
    assert "longest" in leaks(length) and "telling words" in leaks(length)
    marks = [
        made(n, chosen=f"- {pair(n)['chosen']}\n- x", rejected=f"{pair(n)['rejected']} y z")
        for n in range(99)
    ]
    assert {"most lines", "most marks"} <= leaks(marks)
    told = [made(n, rejected=f"{pair(n)['rejected']} (rejected)") for n in range(99)]
    assert "telling words" in leaks(told)
    named = [made(n, chosen=f"{pair(n)['chosen']} - the better answer") for n in range(99)]
    assert "names the verdict" in leaks(named)
    repeated = [made(n, chosen=f"say {n} {WORDS[n % 12]}") for n in range(99)]
    assert "repeats the request" in leaks(repeated)
    only = [row for row in clean if row.choice.answer == "A"]
    assert "always A" in leaks(only)
    with pytest.raises(ValueError, match="no choice to audit"):
        audited([])


def test_duplicates_have_one_key_in_either_order():
    one, other = pair(1), pair(1)
    other["chosen"], other["rejected"] = one["rejected"].upper(), one["chosen"]
    rows = [
        Row("q", choice_of("q", row, name, VMR())) for name, row in (("a", one), ("b", other))
    ]
    assert key_of(rows[0]) == key_of(rows[1])


def test_the_command_writes_choices_and_an_audit(tmp_path, capsys):
    source, output, audit = (tmp_path / name for name in ("p.jsonl", "c.jsonl", "a.json"))
    rows = [{**pair(n), "image": f"{n}.png"} for n in range(20)]
    turned = {
        "prompt": rows[0]["prompt"],
        "chosen": rows[0]["rejected"],
        "rejected": rows[0]["chosen"],
    }
    rows += [
        rows[3],
        turned,
        {"prompt": "q", "chosen": "same", "rejected": "Same."},
        {"prompt": "q"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main([str(source), "--output", str(output), "--audit", str(audit)])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    told = json.loads(audit.read_text())
    assert len(lines) == 20 == told["rows"] and "--no-convert" in capsys.readouterr().out
    assert told["skipped"] == {
        "duplicate": 1,
        "contradicts an earlier row": 1,
        "equal answers": 1,
        "no answer to compare": 1,
    }
    for row, line in zip(rows, lines, strict=False):
        assert line["option_texts"][LETTERS.index(line["answer"])] == row["chosen"]
        assert line["image"] == row["image"] and row["prompt"] in line["problem"]
    with pytest.raises(SystemExit, match="is there already"):
        main([str(source), "--output", str(output)])
    with pytest.raises(SystemExit, match="no column 'best'"):
        main([str(source), "--output", str(tmp_path / "x"), "--chosen", "best"])
    # Rows that are read become choices of the same kind, and a guess is right in half of them.
    (source).write_text("".join(json.dumps(pair(n)) + "\n" for n in range(20)))
    train, heldout = open_choices(str(source), Data(style="choice"), VMR(), 0)
    prompts = [side[n] for side in (train, heldout) for n in range(side.size)]
    assert len(prompts) == 20 and {prompt.answer for prompt in prompts} == {"A", "B"}
    words = prompts[0].messages[-1]["content"]
    assert "Option B:" in words and "\\boxed" in words


def test_drawn_pairs_keep_their_picture_and_are_paid_by_the_letter(tmp_path):
    prompts = ChoicePrompts(
        DrawnPairs(Drawn("lookup", cells=2, size_px=32)), VMR(bare=True), lambda text, row: text
    )
    letters = set()
    for index in range(12):
        prompt = prompts[index]
        right = prompt.extra["option_texts"][LETTERS.index(prompt.answer)]
        assert right == prompt.extra["chosen"] != prompt.extra["rejected"]
        assert prompt.media and prompts[index].messages == prompt.messages
        letters.add(prompt.answer)
    assert letters == {"A", "B"}
