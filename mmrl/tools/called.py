"""What tools share that are called in one `Form`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mmrl.ground.calls import Action
from mmrl.tools.reading import Form
from mmrl.tools.tool import Tool

NO_FORM = Form("")


@dataclass(frozen=True)
class FormTool(Tool):
    """A tool that is called in one form. Derive from it, and give `name`, `form` and `instructions`."""

    name: str = ""
    form: Form = NO_FORM
    """How it is called."""
    usage: str = field(init=False)
    stop: tuple[str, ...] = field(init=False)

    quick: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # Both follow from the other fields, and the loop reads them as attributes.
        object.__setattr__(self, "usage", self.instructions())
        object.__setattr__(self, "stop", self.form.stop)

    def instructions(self) -> str:
        """What a prompt says about it."""
        raise NotImplementedError(f"{type(self).__name__} has no instructions.")

    def parse(self, text: str) -> Action | None:
        """A call by its name, or by its tag. Raises BadAction."""
        return self.form.read(text, self.name)

    def example(self, value: str) -> str:
        """How it is called with a text."""
        return self.form.example(self.name, value if self.form.tag else f'"{value}"')
