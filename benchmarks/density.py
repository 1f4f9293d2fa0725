"""How dense is the code? Tokens per line and comments per 100 code lines of each folder.

    python benchmarks/density.py mmrl perception data recipes

A code line has a token that is neither comment nor docstring. Tokens are names, numbers, strings and operators;
comments that steer a tool (noqa, type: …) do not count. The densest lines are named: begin there.
"""

from __future__ import annotations

import argparse
import ast
import os
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LAYOUT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
DIRECTIVES = ("noqa", "type:", "fmt:", "pragma", "pyright:", "!")


def documented(tree: ast.AST) -> set[int]:
    """Numbers of the lines in docstrings and in strings below a field."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines.update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    return lines


def measured(path: Path) -> tuple[Counter[int], int]:
    """Tokens of each code line, and the number of comments."""
    strings = documented(ast.parse(path.read_text(encoding="utf-8")))
    tokens: Counter[int] = Counter()
    comments = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                comments += not token.string.lstrip("# ").startswith(DIRECTIVES)
            elif token.type not in LAYOUT and token.start[0] not in strings:
                tokens[token.start[0]] += 1
    return tokens, comments


def sources(folder: Path) -> Iterator[Path]:
    """Files below a folder; links to other folders are not followed."""
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in sorted(names) if name.endswith(".py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("mmrl")])
    parser.add_argument("--densest", type=int, default=5, help="lines to name per folder")
    asked = parser.parse_args()
    for folder in asked.folders:
        lines: list[tuple[int, str]] = []
        comments = 0
        for path in sources(folder):
            tokens, found = measured(path)
            comments += found
            lines += [(count, f"{path}:{number}") for number, count in tokens.items()]
        if not lines:
            continue
        lines.sort()
        mean = sum(count for count, _ in lines) / len(lines)
        p90 = lines[int(0.9 * (len(lines) - 1))][0]
        share = 100 * comments / len(lines)
        print(
            f"{folder}: {len(lines)} code lines, {mean:.1f} tokens a line (p90 {p90}), {share:.1f} comments per 100"
        )
        for count, place in reversed(lines[-asked.densest :]):
            print(f"  {count:>4}  {place}")


if __name__ == "__main__":
    main()
