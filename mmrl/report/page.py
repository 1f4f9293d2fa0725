"""The shell of every page: one file without network, by keyboard, light and dark, printable, and safe.

Texts of rows and models go through three gates. They are escaped by the template; characters that turn the reading
direction or order a terminal about are written out; and the page's own policy allows no script but ours, by its hash,
no link to anywhere, and no picture but pixels that lie in the page.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmrl.ground.outputs import write_whole
from mmrl.ground.printable import printable

FOLDER = Path(__file__).parent / "page"
GENERATOR = '<meta name="generator" content="mmrl {kind}">'


def render(template: str, **values: Any) -> str:
    """The page that a template makes of these values."""
    script = _file("page.js")
    digest = hashlib.sha256(script.encode()).digest()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{base64.b64encode(digest).decode()}'"
    )
    # The two files are ours: they are the only texts that are not escaped.
    shell = {"script": Markup(script), "style": Markup(_file("page.css")), "policy": policy}
    return _environment().get_template(template).render(**shell, **values)


def write_page(file: Path, page: str) -> None:
    """Write a page in one go."""
    write_whole(file, page)


def is_page(page: str, kind: str) -> bool:
    """Is this a page of ours: a "report", or a "preview"?"""
    return GENERATOR.format(kind=kind) in page[:1000]


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_readable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # As \uXXXX, texts in other scripts than Latin would take twice the room.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment


def _readable(value: object) -> object:
    """What the template writes: texts without power over the reader's screen."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value


@cache
def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
