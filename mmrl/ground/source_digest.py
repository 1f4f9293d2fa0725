"""A digest of what a function does, from its source: another version of a reward must not continue a run unnoticed.

`code_digest(function)` covers the function, or the class of an object, with what it reads of its own module and of
further modules of the user: functions, classes and plain constants, and what they read in turn. Comments, docstrings
and spacing do not count. Installed packages and the rest of mmrl are left out: each run notes their versions.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import hashlib
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from mmrl.ground.declared import is_free

PLAIN = (bool, int, float, complex, str, bytes, type(None))
CHANGING = {
    "append",
    "extend",
    "insert",
    "add",
    "update",
    "setdefault",
    "pop",
    "remove",
    "clear",
}
"""Methods that change a list, mapping or set."""
OWN = "mmrl"
"""Our own package; only its recipes are the user's to change."""


def code_digest(function: Any) -> str:
    """Name and digest, as in "pay 3f9c0b7a12de45f8"; of a partial with its arguments, of an object with its fields."""
    reader = _Reader()
    reader.take(function)
    return f"{_name(function)} {reader.running.hexdigest()}"


class _Reader:
    """Walks over everything that a function reads, each thing once."""

    def __init__(self) -> None:
        self.running = hashlib.blake2b(digest_size=8)
        # Held, not only noted by address: what is freed would hand its address to something else.
        self._seen: dict[int, Any] = {}

    def take(self, value: Any) -> None:
        """Add a value: code by its source, data by itself."""
        if isinstance(value, PLAIN):
            self._add(repr(value))
        elif id(value) in self._seen:
            self._add("again")
        elif isinstance(value, partial):
            self._seen[id(value)] = value
            for part in (value.func, value.args, value.keywords):
                self.take(part)
        elif isinstance(value, Mapping):
            self._seen[id(value)] = value
            for key in sorted(value, key=str):
                self._add(str(key))
                self.take(value[key])
        elif isinstance(value, list | tuple | set | frozenset):
            self._seen[id(value)] = value
            parts = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            for part in parts:
                self.take(part)
        elif isinstance(value, type):
            self._take_class(value)
        elif isinstance(value, types.MethodType):
            self.take(value.__self__)
            self.take(value.__func__)
        elif isinstance(
            inspect.unwrap(value) if callable(value) else value, types.FunctionType
        ):
            self._take_function(inspect.unwrap(value))
        else:
            self._take_object(value)

    def _take_function(self, function: types.FunctionType) -> None:
        self._seen[id(function)] = function
        self._add(_source(function))
        self.take(function.__defaults__)
        self.take(function.__kwdefaults__)
        # A function that was made by another one differs in what it was made with, but not in what it has counted.
        counted, fills = _assigned(function.__code__), _fills(function.__code__)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            with contextlib.suppress(ValueError):  # an empty cell
                if name not in counted and not (fills and _is_filled(cell.cell_contents)):
                    self.take(cell.cell_contents)
        self._follow(function.__code__, function.__globals__, function.__module__)

    def _take_class(self, kind: type) -> None:
        self._seen[id(kind)] = kind
        self._add(_source(kind))
        for member in vars(kind).values():
            inner = getattr(member, "__func__", member)
            if isinstance(inner, types.FunctionType) and inner.__module__ == kind.__module__:
                self._follow(inner.__code__, inner.__globals__, kind.__module__)
        for base in kind.__bases__:
            if base.__module__ == kind.__module__ or _is_users(base.__module__):
                self.take(base)

    def _take_object(self, value: Any) -> None:
        self._seen[id(value)] = value
        kind = type(value)
        if kind.__module__ in sys.builtin_module_names or kind.__module__ == "re":
            # A compiled pattern, say, whose text is all that it is.
            self._add(str(getattr(value, "pattern", kind.__qualname__)))
            return
        if _is_ours(kind.__module__):
            self._take_class(kind)
        else:
            self._add(kind.__qualname__)
        names: list[str] = []
        if is_dataclass(value):
            names = [each.name for each in fields(value) if each.init and not is_free(each)]
        elif _is_users(kind.__module__) and hasattr(value, "__dict__"):
            # Of a class of one's own: the numbers and texts that it was made with.
            names = sorted(
                name for name, part in vars(value).items() if isinstance(part, PLAIN)
            )
        for name in names:
            self._add(name)
            self.take(getattr(value, name))

    def _follow(self, code: types.CodeType, names: Mapping[str, Any], module: str) -> None:
        """Add what the code reads of its module, and of others that belong to the user."""
        counted, fills = _assigned(code), _fills(code)
        for name in code.co_names:
            if name not in names or name in counted:
                continue  # an attribute, a built-in, or a number that the function itself changes
            found = names[name]
            if fills and _is_filled(found):
                continue
            home = getattr(found, "__module__", None)
            is_data = isinstance(found, (*PLAIN, list, tuple, set, frozenset, dict, re.Pattern))
            if is_data or home == module or (isinstance(home, str) and _is_users(home)):
                self._add(name)
                self.take(found)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):  # functions inside the function
                self._follow(constant, names, module)

    def _add(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self.running.update(f"{len(data)};".encode() + data)


def _source(thing: Any) -> str:
    """The source without comments, docstrings and spacing; the compiled code where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError, ValueError):
        # Typed at a prompt, or a lambda in the middle of a call.
        return _compiled(thing)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(node, _DOCUMENTED)
            and ast.get_docstring(node) is not None
        ):
            node.body = body[1:] or [ast.Pass()]
    return ast.unparse(tree)


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _compiled(thing: Any) -> str:
    code = getattr(thing, "__code__", None)
    if code is None:
        return f"{thing.__module__}.{thing.__qualname__}"
    constants = [each for each in code.co_consts if isinstance(each, PLAIN)]
    return f"{code.co_code.hex()} {constants!r} {code.co_names!r}"


def _assigned(code: types.CodeType) -> set[str]:
    """Names outside a function to which it assigns."""
    stores = ("STORE_DEREF", "STORE_GLOBAL")
    return {each.argval for each in dis.get_instructions(code) if each.opname in stores}


def _fills(code: types.CodeType) -> bool:
    """May the function change a list or mapping? Then what is in them is what it has seen, not what it is."""
    stores = ("STORE_SUBSCR", "DELETE_SUBSCR")
    return bool(CHANGING & {*code.co_names}) or any(
        each.opname in stores for each in dis.get_instructions(code)
    )


def _is_filled(value: Any) -> bool:
    return isinstance(value, list | dict | set)


def _name(function: Any) -> str:
    if isinstance(function, partial):
        return _name(function.func)
    return getattr(function, "__qualname__", type(function).__qualname__)


def _is_users(module: str) -> bool:
    """Does a module belong to the user: neither installed, nor of Python, nor of mmrl but for its recipes?"""
    top = module.partition(".")[0]
    if top == OWN:
        return module.startswith(f"{OWN}.recipes")
    return _is_ours(module)


def _is_ours(module: str) -> bool:
    """Is it a module whose source may be changed here: not installed and not of Python itself?"""
    top = module.partition(".")[0]
    if top == OWN:
        return True
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not ("site-packages" in file or "dist-packages" in file)
