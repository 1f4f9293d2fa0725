"""docs/pretext.md: its examples run as they stand, and it names every official scorer and every operator."""

import re
from pathlib import Path

import pytest

from mmrl.data.pretext import compose, compose_several
from mmrl.data.pretext.marking import compat, compat_np

PAGE = (Path(__file__).parents[3] / "docs" / "pretext.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("place", range(len(EXAMPLES)))
def test_examples_run(place: int) -> None:
    code = EXAMPLES[place]
    if "from trl import" in code:  # needs a model and another trainer
        compile(code, "docs/pretext.md", "exec")
        return
    exec(code, {"__name__": "example"})


@pytest.mark.parametrize("module", [compat, compat_np, compose, compose_several])
def test_the_page_names_what_is_public(module) -> None:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    inner = {"WrappedTask", "worded"}  # what operators are made of
    missing = [
        name
        for name in own
        if not name.startswith("_") and name not in inner and f"`{name}" not in PAGE
    ]
    assert not missing, f"docs/pretext.md lacks {missing} of {module.__name__}."
