"""A chat template is code that comes with a checkpoint: it may never return, fail, or eat all memory."""

import json
import shutil
from functools import partial

import pytest

from mmrl.data.rows.sources import load_prompts
from mmrl.data.rows.templates import Template, _compiled
from mmrl.ground.faults import BadRow
from mmrl.ground.time_limit import GivenUp, TimeLimit
from mmrl.model import checkpoint_files
from mmrl.model.processing import Processing
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Prompt

LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
WHEN = "{%% if 'trap' in messages|string %%}%s{%% endif %%}"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def changed(folder, more: str) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(more + path.read_text())


def asking(text: str) -> Prompt:
    return Prompt(text, ({"role": "user", "content": text},))


def test_a_checkpoint_whose_template_never_returns_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint_files, "TimeLimit", partial(TimeLimit, 0.3))
    changed(folder, LOOP)
    with pytest.raises(ValueError, match=r"The chat template of .*model did not return within"):
        Processing.load(folder)


@pytest.mark.parametrize(
    ("trap", "word"),
    [
        (LOOP, "did not return within"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ ''.join(['a']) + 1 }}", "TypeError"),
    ],
)
def test_a_row_on_which_the_template_fails_is_a_bad_row(folder, trap, word) -> None:
    changed(folder, WHEN % trap)
    processing = Processing.load(folder)
    object.__setattr__(processing, "template_limit", TimeLimit(seconds=0.3))
    with pytest.raises(BadRow, match=word):
        processing.encode(asking("a trap"))
    assert len(processing.encode(asking("no harm")).ids)


def test_a_template_that_is_late_again_and_again_ends_the_run(folder) -> None:
    changed(folder, WHEN % LOOP)
    processing = Processing.load(folder)
    object.__setattr__(processing, "template_limit", TimeLimit(seconds=0.2))
    for _ in range(2):
        with pytest.raises(BadRow):
            processing.encode(asking("trap"))
    with pytest.raises(GivenUp, match="3 times one after the other"):
        processing.encode(asking("trap"))


@pytest.mark.parametrize("text", ["half \ud83d", "\udfff", "\udc00\ud800"])
def test_half_a_character_is_a_bad_row_for_the_model_too(folder, text) -> None:
    processing = Processing.load(folder)
    with pytest.raises(BadRow, match="half of a surrogate pair"):
        processing.encode(asking(text))
    with pytest.raises(BadRow, match="half of a surrogate pair"):
        processing.encode_answer(text)
    parts = ({"role": "user", "content": [{"type": "text", "text": text}]},)
    with pytest.raises(BadRow, match="half of a surrogate pair"):
        processing.encode(Prompt("p", parts))


def test_a_template_of_rows_is_held_to_a_limit(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": word, "answer": "1"} for word in ("good", "trap", "fine")]
    path.write_text("\n".join(map(json.dumps, rows)))
    template = Template("{% if 'trap' in question %}" + LOOP + "{% endif %}{{ question }}")
    endless = Template(LOOP + "{{ question }}")
    for one in (template, endless):
        _compiled(one.prompt)[1].seconds = 0.3
    supply = Supply(load_prompts(str(path), template=template), 2, 0)
    assert supply.prompts.skipped == {"template cannot be filled": 1}
    assert len(supply.take()) == 2
    with pytest.raises(GivenUp, match=r"Template\.prompt did not return"):
        load_prompts(str(path), template=endless)
