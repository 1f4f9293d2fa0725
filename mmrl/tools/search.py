"""Search among pictures: each call shows the best one that the answer has not seen yet.

Source: VRAG-RL (arXiv 2505.22019; github.com/Alibaba-NLP/VRAG, commit 24f8d055). Departure: where all that was found
has been shown, the official code shows what a variable happens to hold, perhaps another answer's picture; here the
model is told so, and the same picture never comes twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mmrl.ground.calls import Action
from mmrl.ground.require import require
from mmrl.tools.called import FormTool
from mmrl.tools.indexes import Index
from mmrl.tools.reading import Form, words
from mmrl.tools.tool import IMAGE, Observation, Trajectory
from mmrl.types import Media, Prompt

PAGE = "page"
"""Key of `Call.found`: the name of the page that a search showed, or None."""
BY_QUERY = Form("query", tag="search")
OLD = "No new result: all that this finds has been shown. Search for something else, or answer."
NOTHING = "Nothing was found. Search for other words, or answer."


@dataclass(frozen=True)
class Library:
    """Pictures by name, and how they are found."""

    index: Index
    picture: Callable[[str], Media]
    """Name -> picture."""


@dataclass(frozen=True)
class Search(FormTool):
    """The best picture that the answer has not seen yet."""

    name: str = "search"
    form: Form = BY_QUERY
    library: Callable[[Prompt], Library] = field(kw_only=True)
    """What can be found for a question; for all the same, or of its own."""
    ranking: int = 10
    """How many results of a query are looked at for a new one."""
    said: str = IMAGE
    """What the model reads; {page} is the picture's name, {new} its number."""

    def __post_init__(self) -> None:
        require(self, ranking=(1 <= self.ranking <= 10_000, "1 to 10,000"))
        super().__post_init__()

    def instructions(self) -> str:
        """What a prompt says about it."""
        example = self.example("what you look for")
        return (
            f"To search for pages, write {example} - each search shows one page that you "
            "have not seen."
        )

    def act(self, action: Action, trajectory: Trajectory) -> Observation:
        """Show the best new picture."""
        query = words(action.arguments, self.form.argument)
        library = self.library(trajectory.prompt)
        found = library.index.search(query, self.ranking)
        shown: list[str] = trajectory.state.setdefault(self.name, [])
        new = next((page for page in found if page not in shown), None)
        if new is None:
            return Observation(OLD if found else NOTHING, found={PAGE: None})
        picture = library.picture(new)
        # Only now: what could not be read may be asked for again.
        shown.append(new)
        number = str(len(trajectory.media) + 1)
        said = self.said.replace("{page}", new).replace("{new}", number)
        return Observation(said, (picture,), found={PAGE: new})
