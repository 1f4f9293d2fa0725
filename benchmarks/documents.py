"""What the benchmarks of effects share: sections of a document between two comments."""

from __future__ import annotations

from pathlib import Path


def write_section(document: Path, mark: str, text: str) -> None:
    """Replace the section called `mark` of a file, or add it at its end."""
    document.write_text(
        inserted(document.read_text() if document.is_file() else "", mark, text)
    )


def inserted(document: str, mark: str, text: str) -> str:
    """The document with the text between `<!-- mark: begin -->` and `<!-- mark: end -->`; added if they are missing."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    section = f"{begin}\n{text}\n{end}"
    if begin not in document or end not in document:
        return f"{document.rstrip()}\n\n{section}\n".lstrip()
    return (
        document[: document.index(begin)] + section + document[document.index(end) + len(end) :]
    )
