"""No text of rows, answers, judges or rewards has power over a terminal, wherever it is printed."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest

from mmrl.ground.printable import logger, printable, show, tell
from mmrl.ground.progress import Progress
from mmrl.recipes.shared.launch import EMBEDDED, Preset, launch

ROOT = Path(__file__).parents[2]
ROOMS = ("mmrl", "data", "perception", "recipes")
ORDERS = {
    "clear the screen": "\x1b[2J",
    "title of the window": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "link": "\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\",
    "one-byte sequence": "\x9b31m",
    "delete": "a\x7f",
    "backspace": "rm\x08\x08ok",
    "carriage return": "failed\rpassed",
    "bell": "\x07",
    "device control": "\x1bP$q\x1b\\",
    "shift out": "\x0e",
    "next line": "\x85",
    "right to left": "\u202egpj.exe",
    "isolate": "\u2066a\u2069",
    "line separator": "a\u2028b",
    "tags": "\U000e0041\U000e007f",
    "half an emoji": "\ud83d",
    "other half": "\ude00",
    "nothing": "\x00",
}


@pytest.mark.parametrize("text", ORDERS.values(), ids=ORDERS.keys())
def test_nothing_that_orders_a_terminal_about_is_printed(
    text: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    quoted = f"question: {text} – ende"
    show(quoted)
    tell(quoted)
    Progress.say(quoted)
    logger("mmrl.test").warning("the answer %r and %s", 1, quoted)

    def recipe() -> None:
        raise ValueError(quoted)

    with pytest.raises(SystemExit) as ended:
        launch(recipe, {EMBEDDED: Preset("")}, [])
    out, err = capsys.readouterr()
    for shown in (out, err, caplog.messages[0], str(ended.value)):
        assert not set(shown) & (set(text) - set(printable(text))) and "– ende" in shown
        assert all(
            one == "\n" or unicodedata.category(one) not in ("Cc", "Cs") for one in shown
        )


def test_every_control_character_is_written_out_and_all_else_stays() -> None:
    for code in range(sys.maxunicode + 1):
        one = chr(code)
        shown = printable(one)
        kind = unicodedata.category(one)
        if one in "\n\t":
            assert shown == one
        elif kind in ("Cc", "Cs", "Zl", "Zp"):
            assert shown != one and shown.isascii() and shown.isprintable()
        elif kind[0] in "LMNPS" or kind == "Zs":
            assert shown == one
    # Joined emoji and Persian are spelt with characters of width zero.
    assert printable("👩‍🔬 می‌روم\r\nfin\t") == "👩‍🔬 می‌روم\nfin\t"


def test_json_stays_json() -> None:
    values = {"a": "\x1b[2J\x7f\x9b", "b": ["é", "\ud800"], "c": 1.5}
    for ascii_only in (True, False):
        assert json.loads(printable(json.dumps(values, ensure_ascii=ascii_only))) == values


def test_a_terminal_of_few_letters_gets_them_written_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding="ascii"))
    show("naïve 👍")
    assert bytes_out.getvalue() == b"na\\xefve \\U0001f44d\n"


def prints(tree: ast.AST) -> list[int]:
    """Lines that print past `show` and `tell`, or make a logger past `logger`."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("print", "sys.stdout.write", "sys.stderr.write", "logging.warning"):
            found.append(node.lineno)
        if called == "logging.getLogger" and ast.unparse(node.args[0]) == "__name__":
            found.append(node.lineno)
        if called == "sys.exit" and node.args:
            told = node.args[0]
            is_code = isinstance(told, ast.Constant) and isinstance(told.value, int)
            if not is_code and ast.unparse(told)[:10] not in ("printable(", "main()"):
                found.append(node.lineno)
    return found


def test_there_is_one_place_that_prints() -> None:
    assert (
        prints(ast.parse("print(1); sys.exit(f'{a}'); logging.getLogger(__name__)")) == [1] * 3
    )
    assert prints(ast.parse("sys.exit(2); sys.exit(main()); show(a)")) == []
    past = {}
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            if file == ROOT / "mmrl" / "ground" / "printable.py":
                continue
            if lines := prints(ast.parse(file.read_text())):
                past[str(file.relative_to(ROOT))] = lines
    assert not past, "use show, tell, logger or printable of mmrl.ground.printable"


def test_the_log_keeps_its_records_for_other_readers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    once, again = logger("mmrl.twice"), logger("mmrl.twice")
    assert once is again and len(once.filters) == 1
    once.info("%d%% of %s", 50, "x\x1b[0m")
    assert caplog.messages == ["50% of x\\u001b[0m"]
