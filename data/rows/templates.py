"""From a question and its media to a chat: templates, and placeholders in the text.

`<image>` and `<video>` in a user's text mark where the next image or video of the row goes (EasyR1's convention). Media
without any placeholder come first, before the text of the first user turn (TRL's convention). Where the counts differ
the row is refused, also if it shows nothing at all: a model that answers about a picture it never saw learns to guess.
Only where the user says that there is no such column is the word ordinary text. Placeholders in assistant or system
turns are text. A control token of the model family inside a text (`<|image_pad|>`, `<|im_end|>`, ...) is refused: it
would be read as the token.

1. `<image>` stands for the clip of a row without images whose text has no `<video>` (LLaVA-Video writes so).
2. Other spellings (`<image 1>`, `<image_1>`, `<|image_1|>`) stay as text beside the row's media, whose order they name
   (MMMU); in a row that shows nothing they are placeholders without a medium.
3. A turn may hold text or parts; a part names its medium under any key that chat templates and APIs use, also inline
   (`mmrl.data.rows.containers`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl.data.rows.containers import medium_of_part, parts_in, turns_in
from mmrl.data.rows.row_clips import FrameList
from mmrl.ground.faults import Fault, first_line, shown
from mmrl.ground.time_limit import GivenUp, TimeLimit

PLACEHOLDER = re.compile(r"<(image|video)>")
NUMBERED = re.compile(r"<\|?(image|video)(?:[ _]?\d+\|?|\|)>")
CONTROL = re.compile(
    r"<\|(image_pad|video_pad|vision_start|vision_end|vision_pad|im_start|im_end|endoftext)\|>"
)
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Template:
    """How a question is put. `prompt` holds `{question}`, or is a jinja2 template if it holds `{{` or `{%`.

    A jinja2 template may use `question` (also as `content`) and `row`, the row's other columns. In the simple form only
    `{question}` is replaced, so other braces need no escape.
    """

    prompt: str = "{question}"
    system: str = ""
    """System turn; empty for none. A chat row's own system turn is kept instead."""

    def __post_init__(self) -> None:
        if self.is_jinja:
            _compiled(self.prompt)

    @property
    def is_jinja(self) -> bool:
        """Whether `prompt` is a jinja2 template."""
        return "{{" in self.prompt or "{%" in self.prompt

    @property
    def asks(self) -> bool:
        """Whether the question of the row is used at all."""
        words = ("question", "content") if self.is_jinja else ("{question}",)
        return any(word in self.prompt for word in words)

    def fill(self, question: str, row: Mapping[str, Any]) -> str:
        """The user's text for a question. Raises `Fault` if a jinja2 template cannot be filled from this row."""
        if not self.is_jinja:
            # `replace`, not `format`: a question such as "What is {x}?" passes unharmed.
            return self.prompt.replace("{question}", question)
        template, limit = _compiled(self.prompt)
        fix = "Templates may use question, content and row['column']."
        try:
            with limit.hold("Template.prompt"):
                return template.render(question=question, content=question, row=dict(row))
        except GivenUp:
            raise
        # It is code: with the values of a row it may do anything.
        except Exception as error:
            found = first_line(error) or type(error).__name__
            raise Fault("template cannot be filled", found, fix) from None


PLAIN = Template()
"""The question alone."""
THINK_THEN_BOX = Template(
    "{question}\n\nFirst reason step by step inside <think> </think>, then put the final answer in \\boxed{}."
)
"""Reasoning in tags, answer in a box; user turn only, as in PAPO."""
THINK_THEN_ANSWER = Template(
    "{question}\n\nFirst reason step by step inside <think> </think>, then give the final answer inside "
    "<answer> </answer>."
)
"""Reasoning and answer in tags."""


@dataclass
class Visuals:
    """The media cells of a row, in the order in which the text asks for them."""

    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    has_images: bool = True
    """Is `<image>` a placeholder? False where the user says that the data set has no images."""
    has_videos: bool = True
    remedies: Mapping[str, str] = field(default_factory=dict)
    """What helps where the table has no column for "image" or "video"."""
    used: list[tuple[str, Any]] = field(default_factory=list)
    """("image" or "video", cell), in reading order."""

    def __post_init__(self) -> None:
        self._left: dict[str, Iterator[Any]] = {
            "image": iter(self.images),
            "video": iter(self.videos),
        }
        self._clip_for_image = False

    def counts(self, kind: str) -> bool:
        """Whether `<kind>` is a placeholder here."""
        if kind == "image":
            return bool(self.images or self.has_images)
        return bool(self.videos or self.has_videos)

    def read(self, chat: Sequence[Mapping[str, Any]]) -> None:
        """Learn from the whole chat what its placeholders mean. Raises `Fault` for one of another spelling."""
        texts = [text for turn in chat if turn["role"] == "user" for text in _texts(turn)]
        names = {match.group(1) for text in texts for match in PLACEHOLDER.finditer(text)}
        if self.videos and not self.images and "video" not in names:
            self._clip_for_image = True
        shown = self.images or self.videos or any(map(_shows, chat))
        other = next(filter(None, map(NUMBERED.search, texts)), None)
        if other and not shown and self.counts(other.group(1)):
            self._refuse(f"the text has {other.group()}, and the row shows nothing", other[1])

    def take(self, kind: str) -> dict[str, str]:
        """The chat part of the next medium of this kind."""
        if kind == "image" and self._clip_for_image:
            kind = "video"
        cell = next(self._left[kind], None)
        if cell is None:
            self._refuse(f"there are more <{kind}> placeholders than {kind}s", kind)
        self.used.append((kind, cell))
        return {"type": kind}

    def add(self, kind: str, cell: Any) -> dict[str, str]:
        """The chat part of a medium that stands in the chat itself."""
        self.used.append((kind, cell))
        return {"type": kind}

    def rest(self) -> list[dict[str, str]]:
        """Chat parts of all media that are left, images first."""
        parts = []
        for kind in ("image", "video"):
            parts += [self.add(kind, cell) for cell in self._left[kind]]
        return parts

    def refuse_leftovers(self) -> None:
        """Raise if media are left over although the text has placeholders."""
        if any(next(left, None) is not None for left in self._left.values()):
            self._refuse("there are fewer placeholders than media")

    def _refuse(self, found: str, kind: str = "") -> None:
        count = f"{len(self.images)} images and {len(self.videos)} videos in the row"
        if not self.images and not self.videos:
            fix = self.remedies.get(kind, "Give the media or remove the placeholder.")
            raise Fault("missing media", f"{found} ({count})", fix)
        fix = "Write one <image> or <video> per medium, or none at all (media then come first)."
        raise Fault("placeholder count", f"{found} ({count})", fix)


def question_chat(
    question: str, template: Template, row: Mapping[str, Any], visuals: Visuals
) -> tuple[Mapping[str, Any], ...]:
    """A chat of one user turn; `visuals.used` lists the media in order. Raises `Fault`."""
    turn = {"role": "user", "content": template.fill(question, row)}
    return _finished([turn], template, visuals)


def row_chat(
    turns: Any, template: Template, row: Mapping[str, Any], visuals: Visuals
) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    """A row's own chat, and the text of its last assistant turn if it ends with one. Raises `Fault`.

    Understands {"role", "content"} with contents as text or parts, and {"from", "value"}. The template is applied to
    the text of the last user turn.
    """
    chat = [_turn(turn) for turn in turns_in(turns) or ()]
    label = None
    if chat and chat[-1]["role"] == "assistant":
        # Taken off: the model shall write this turn, not read it.
        label = _plain_text(chat.pop()["content"])
    if not chat or chat[-1]["role"] != "user":
        roles = [turn["role"] for turn in chat]
        fix = "A chat must ask: end it with a user turn (and its answer)."
        raise Fault("bad chat", f"the roles are {roles}", fix)
    chat[-1]["content"] = _templated(chat[-1]["content"], template, row)
    return _finished(chat, template, visuals), label


def _finished(
    chat: list[dict[str, Any]], template: Template, visuals: Visuals
) -> tuple[Mapping[str, Any], ...]:
    """Resolve placeholders and parts of all turns, add leading media and the system turn."""
    visuals.read(chat)
    # In order, because each placeholder takes the next medium of its kind.
    marked = [_resolved(turn, visuals) for turn in chat]
    if not visuals.used:
        first = next(turn for turn in marked if turn["role"] == "user")
        leading = visuals.rest()
        if leading:
            texts = [part for part in _as_parts(first["content"]) if part.get("text") != ""]
            first["content"] = leading + texts
    visuals.refuse_leftovers()
    if template.system and marked[0]["role"] != "system":
        marked.insert(0, {"role": "system", "content": template.system})
    return tuple(marked)


def _turn(turn: Any) -> dict[str, Any]:
    """One turn with known keys and a known role."""
    role, content = _role_and_content(turn)
    content = parts_in(content)
    if not isinstance(role, str) or role not in ROLES:
        fix = f"Roles are {', '.join(ROLES)}."
        raise Fault("bad chat", f"a turn has the role {shown(role)}", fix)
    if not isinstance(content, str | list | tuple):
        fix = "Contents are text or a list of parts."
        raise Fault("bad chat", f"a turn's content is {shown(content)}", fix)
    return {"role": ROLES[role], "content": content}


def _role_and_content(turn: Any) -> tuple[Any, Any]:
    """What a turn says under either pair of keys. Raises `Fault`."""
    if isinstance(turn, Mapping):
        if "role" in turn and "content" in turn:
            return turn["role"], turn["content"]
        if "from" in turn and "value" in turn:
            return turn["from"], turn["value"]
    fix = "Turns are {'role', 'content'} or {'from', 'value'}."
    raise Fault("bad chat", f"a turn is {shown(turn)}", fix)


def _resolved(turn: dict[str, Any], visuals: Visuals) -> dict[str, Any]:
    """The turn with clean parts; plain text stays a string."""
    content, user = turn["content"], turn["role"] == "user"
    parts: list[dict[str, str]] = []
    for part in _as_parts(content):
        parts.extend(_resolved_part(part, visuals, user))
    if isinstance(content, str) and all(part["type"] == "text" for part in parts):
        return {"role": turn["role"], "content": content}
    return {"role": turn["role"], "content": parts}


def _resolved_part(part: Any, visuals: Visuals, user: bool) -> list[dict[str, str]]:
    """One part of a chat as clean parts; media that stand in the chat are taken from there."""
    text = _text_of(part)
    if text is not None:
        _refuse_control(text)
        # Only a user shows something: in other turns "<image>" is a word.
        return list(_marked(text, visuals)) if user else [{"type": "text", "text": text}]
    found = medium_of_part(part) if isinstance(part, Mapping) else None
    if found is None or not user:
        fix = (
            "Parts are {'type': 'text', 'text': ...}, {'type': 'image'}, {'type': 'video'}; "
            "media stand in user turns."
        )
        raise Fault("bad chat", f"a part is {shown(part)}", fix)
    medium, cell = found
    # A bare {"type": "image"} is a placeholder like "<image>".
    if cell is None:
        return [visuals.take(medium)]
    if medium == "video" and isinstance(cell, list | tuple):
        cell = FrameList.of(cell, part.get("times"), part.get("fps") or part.get("sample_fps"))
    return [visuals.add(medium, cell)]


def _text_of(part: Any) -> str | None:
    """The text of a part that is one; Arrow adds the keys of its neighbours, with nothing in them."""
    if isinstance(part, Mapping) and part.get("type") in ("text", "input_text", None):
        text = part.get("text")
        return text if isinstance(text, str) and medium_of_part(part) is None else None
    return None


def _texts(turn: Mapping[str, Any]) -> list[str]:
    """All texts of a turn."""
    found = [_text_of(part) for part in _as_parts(turn["content"])]
    return [text for text in found if text is not None]


def _shows(turn: Mapping[str, Any]) -> bool:
    """Does a turn hold a medium itself?"""
    parts = [part for part in _as_parts(turn["content"]) if isinstance(part, Mapping)]
    return any(found[1] is not None for found in map(medium_of_part, parts) if found)


def _marked(text: str, visuals: Visuals) -> Iterator[dict[str, str]]:
    """Split a user's text at its placeholders."""
    start = 0
    for match in PLACEHOLDER.finditer(text):
        if visuals.counts(match.group(1)):
            if text[start : match.start()]:
                yield {"type": "text", "text": text[start : match.start()]}
            yield visuals.take(match.group(1))
            start = match.end()
    if text[start:]:
        yield {"type": "text", "text": text[start:]}


def _refuse_control(text: str) -> None:
    control = CONTROL.search(text)
    if control:
        fix = "Remove it or write it differently; placeholders are <image> and <video>."
        raise Fault("control token in the text", f"found {control.group()}", fix)


def _templated(content: Any, template: Template, row: Mapping[str, Any]) -> Any:
    """Apply the template to a text, or to the last text part."""
    if isinstance(content, str):
        return template.fill(content, row)
    parts = _as_parts(content)
    # The last text: what stands before it describes the media, and the question comes after them.
    for place in reversed(range(len(parts))):
        part = parts[place]
        question = _text_of(part)
        if question is not None:
            parts[place] = {"type": "text", "text": template.fill(question, row)}
            return parts
    text = template.fill("", row)
    if text.strip():
        parts.append({"type": "text", "text": text})
    return parts


def _as_parts(content: Any) -> list[Any]:
    parts = [content] if isinstance(content, str) else list(content)
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


def _plain_text(content: Any) -> str:
    """The text of an assistant turn."""
    parts = [part for part in _as_parts(content) if isinstance(part, Mapping)]
    return "".join(str(part.get("text") or "") for part in parts)


@functools.cache
def _compiled(source: str) -> tuple[Any, TimeLimit]:
    """A sandboxed jinja2 template, whose unknown names are errors, and its time limit."""
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import SandboxedEnvironment

    # Sandboxed, because a template may come with somebody else's data set.
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return sandbox.from_string(source), TimeLimit()
    except TemplateSyntaxError as error:
        raise ValueError(
            f"Template.prompt is not valid jinja2 (line {error.lineno}: {error.message}); "
            "use {question} without {{ }} for a simple template."
        ) from None
