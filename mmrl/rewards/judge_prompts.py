r"""What judges are asked with: every prompt is a file `prompts/NAME.md` of our own words, with a version.

    ---
    version: 1
    about: one line for the report
    tags: verdict                       optional: tags that the reader of replies looks for, separated by spaces
    ---
    # system
    …
    # user
    Question: {{question}}
    -----
    {{response}}
    -----

`judge_prompt("NAME").filled(question=…, response=…)` gives chat messages. `{{field}}` is replaced once, in one pass, so
that a value which looks like a field stays text. What is judged must not speak to the judge:

1. A field alone between two lines of dashes is fenced: both lines become longer than any run of dashes in the value.
2. The prompt's own `tags` in a value are written with square brackets, so that no answer contains its own verdict.
3. Control tokens of chat templates (`<|im_end|>`, `</s>`, `[INST]`, …) in a value are broken up, since a server may
   read them as the end of the message.

A version rises when a prompt asks for something else. Version and text make the digest, which is in the judge's cache
key (`Asked.prompt`) and in the settings of a run whose rewards name the prompt (`Reward.judge_prompts`). No torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).with_name("prompts")
LONGEST_RUN = 60
"""So many dashes of a run in a value are shown."""
_FIELD = re.compile(r"^-----\n\{\{(\w+)\}\}\n-----$|\{\{(\w+)\}\}", re.MULTILINE)
_FILE = re.compile(r"---\n(.*?\n)---\n(?:# system\n(.*?)\n)?# user\n(.*)", re.DOTALL)
# A model takes any of them for a line: hyphens, dashes, the minus sign, box drawing, their wide forms.
_DASHES = re.compile("[-\u2010-\u2015\u2212\u2500\u2501\ufe58\ufe63\uff0d]{5,}")
_CONTROL = re.compile(
    r"<\|([^<>|]{1,40})\|>|<(/?s|(?:start|end)_of_turn|[be]os|<?/?SYS>?)>|\[(/?INST)\]"
)


class Asked(list[dict[str, Any]]):
    """Chat messages that know which prompt they were made with, for the judge's cache."""

    prompt: JudgePrompt | None = None
    vote: int = 0
    """Which of several replies to the same messages; 0 is the first. Others are sampled with this seed."""

    def voted(self, vote: int) -> Asked:
        """The same messages, for another reply."""
        again = Asked(self)
        again.prompt, again.vote = self.prompt, vote
        return again

    def followed(self, *messages: dict[str, Any]) -> Asked:
        """The same conversation with further messages."""
        longer = Asked([*self, *messages])
        longer.prompt, longer.vote = self.prompt, self.vote
        return longer


@dataclass(frozen=True)
class JudgePrompt:
    """One file."""

    name: str
    version: int
    about: str
    """What it asks, in a line."""
    tags: tuple[str, ...]
    """Tags of a verdict, made harmless in all values."""
    system: str
    """Empty: there is no such message."""
    user: str

    @property
    def text(self) -> str:
        """Both messages, as they stand in the file."""
        return f"# system\n{self.system}\n\n# user\n{self.user}" if self.system else self.user

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change with the version, the text and the tags."""
        texts = [self.system, self.user]
        content = json.dumps([self.name, self.version, self.tags, *texts])
        digest = hashlib.sha256(content.encode()).hexdigest()
        return digest[:16]

    @cached_property
    def fields(self) -> frozenset[str]:
        """What must be filled in."""
        found = _FIELD.finditer(f"{self.system}\n{self.user}")
        return frozenset(match[1] or match[2] for match in found)

    @cached_property
    def fenced(self) -> frozenset[str]:
        """Fields between lines: what models have written belongs there."""
        found = _FIELD.finditer(f"{self.system}\n{self.user}")
        return frozenset(match[1] for match in found if match[1])

    def filled(self, *, pictures: Sequence[str] = (), **fields: str | int) -> Asked:
        """The chat messages; `pictures`: addresses (`data:` too) of images that stand before the text.

        Raises ValueError for a field that is missing, or that the prompt does not have.
        """
        if fields.keys() != self.fields:
            raise ValueError(
                f"The judge prompt {self.name!r} has the fields {_listed(self.fields)}; missing are "
                f"{_listed(self.fields - fields.keys())}, unknown are {_listed(fields.keys() - self.fields)}."
            )
        values: dict[str, str] = {}
        for name, value in fields.items():
            values[name] = self.harmless(str(value))
        messages = Asked()
        messages.prompt = self
        if self.system:
            rules = _filled(self.system, values)
            messages.append({"role": "system", "content": rules})
        said: Any = _filled(self.user, values)
        if pictures:
            seen = [{"type": "image_url", "image_url": {"url": one}} for one in pictures]
            said = [*seen, {"type": "text", "text": said}]
        messages.append({"role": "user", "content": said})
        return messages

    def harmless(self, value: str) -> str:
        """A value without power over the judge, or over who reads its reply."""
        if self.tags:
            names = "|".join(map(re.escape, self.tags))
            own = re.compile(rf"<\s*(/?)\s*((?:{names})\s*\d*)\s*>", re.IGNORECASE)
            value = own.sub(r"[\1\2]", value)
        return _CONTROL.sub(lambda found: f"[{found[1] or found[2] or found[3]} ]", value)


@cache
def judge_prompt(name: str) -> JudgePrompt:
    """The prompt in `prompts/NAME.md`. Raises ValueError for a name that there is not."""
    if name not in prompt_names():
        near = get_close_matches(name, prompt_names(), 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"There is no judge prompt {name!r}; {meant}There are {_listed(prompt_names())}."
        )
    return parsed(name, (FOLDER / f"{name}.md").read_text(encoding="utf-8"))


def prompt_names() -> list[str]:
    """All prompts, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.md"))


def parsed(name: str, content: str) -> JudgePrompt:
    """A file's text as a prompt. Raises ValueError for one that is not as described above."""
    found = _FILE.fullmatch(content)
    if found is None:
        raise ValueError(
            f"The judge prompt {name!r} must begin with a head between lines of three dashes, and then hold '# user' "
            "(before it '# system', if there is one)."
        )
    head = yaml.safe_load(found[1])
    known = isinstance(head, dict) and _NEEDED <= head.keys() <= _HEAD
    if not known:
        raise ValueError(
            f"The head of the judge prompt {name!r} holds {_listed(head or ())}; it needs version and about, and may "
            "have tags."
        )
    version = head["version"]
    if type(version) is not int or version < 1:
        raise ValueError(
            f"The judge prompt {name!r} has the version {version!r}; versions are 1, 2, 3, …"
        )
    tags = str(head.get("tags") or "").split()
    # A prompt need not have a system message.
    system = (found[2] or "").strip()
    user = found[3].strip()
    about = str(head["about"])
    return JudgePrompt(name, version, about, tuple(tags), system, user)


_NEEDED = {"version", "about"}
_HEAD = {*_NEEDED, "tags"}


def _filled(text: str, values: dict[str, str]) -> str:
    """The text with its fields replaced, all in one pass."""

    def put(found: re.Match[str]) -> str:
        if found[1] is None:
            return values[found[2]]
        value = _DASHES.sub(_shortened, values[found[1]])
        runs = [len(run) for run in _DASHES.findall(value)]
        # Longer than any run inside, so that none of them ends it.
        line = "-" * max(5, max(runs, default=0) + 1)
        return f"{line}\n{value}\n{line}"

    return _FIELD.sub(put, text)


def _shortened(run: re.Match[str]) -> str:
    return run[0][:LONGEST_RUN]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"
