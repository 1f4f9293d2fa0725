"""Right or wrong as a text model reads it: a second verifier for answers that rules reject, or an answer in words.

The judge sees the question's words, the reference and the final answer (`answers.final_answer`), not the reasoning. Its
verdict is the last `<verdict>0</verdict>` or `<verdict>1</verdict>` of its reply. Verdict tags inside an answer are
made harmless, and an answer without any text is wrong without asking. The prompt is `prompts/judged_answer.md`. No
torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mmrl.rewards.answers import final_answer, references
from mmrl.rewards.judge_prompts import Asked, judge_prompt
from mmrl.rewards.judged import Judged

if TYPE_CHECKING:
    from mmrl.types import Rollout

LONGEST = 2000
"""Characters of a question or an answer that are shown."""
_VERDICT = re.compile(r"<verdict>\s*([01])\s*</verdict>")


@dataclass(frozen=True)
class JudgedAnswer(Judged):
    """1 if a judge finds the final answer right, else 0. An async reward."""

    judge_prompts: ClassVar[tuple[str, ...]] = ("judged_answer",)

    async def __call__(self, rollout: Rollout) -> float:
        answer = final_answer(rollout.text).strip()
        if not answer:
            return 0.0
        where = f"prompt {rollout.prompt.id!r}"
        return await self.ask(request(rollout.prompt, answer), verdict, where)


def verdict(reply: str) -> float | None:
    """The last verdict of a reply; None without any."""
    found = _VERDICT.findall(reply)
    return float(found[-1]) if found else None


def request(prompt: Any, answer: str) -> Asked:
    """The chat messages that ask for one verdict."""
    wanted = "\n".join(f"- {one}" for one in references(prompt.answer))
    return judge_prompt("judged_answer").filled(
        question=asked(prompt.messages)[:LONGEST],
        references=wanted[:LONGEST],
        answer=answer[:LONGEST],
    )


def asked(messages: Any) -> str:
    """The words of the last message, without pictures."""
    content = messages if isinstance(messages, str) else messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if part.get("type") == "text")
