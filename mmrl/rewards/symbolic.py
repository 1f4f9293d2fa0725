"""Are two answers the same mathematics? Runs in a worker that can be killed; imports sympy when it is called. No torch.

`same_symbols` says yes, no or does not know (None); `value` is the calculator that a verifier may use. Both take what
anybody has written, and may never return: `Executor` ends them from outside.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any

from mmrl.rewards.answers import MATH_LENGTH, same_math
from mmrl.rewards.forms import read_series
from mmrl.rewards.numbers import plain
from mmrl.rewards.parts import Call, Failure, preloads
from mmrl.rewards.worker_pool import WorkerPool

POINTS = (("17", "13"), ("29", "31"), ("5", "19"))
"""Fractions at which two expressions with letters are compared."""
AGREE = 1e-9
"""Relative difference of two values at a point that may be rounding."""


@preloads("math_verify")
def same_symbols(
    answer: str, reference: str, tolerance: float, constants: Mapping[str, float]
) -> float | None:
    """1 if the difference of both simplifies to 0, 0 if it does not, None where neither can be shown.

    Letters named in `constants` are replaced by their values; numbers agree within a relative `tolerance`.
    """
    if max(len(answer), len(reference)) > MATH_LENGTH:
        return None
    if read_series(plain(reference)) is not None or read_series(plain(answer)) is not None:
        return float(same_math(answer, reference))
    given, wanted = expression(answer, constants), expression(reference, constants)
    if given is None or wanted is None:
        return None
    difference = given - wanted
    if difference.free_symbols and not _agrees_at_points(given, wanted):
        return 0.0
    simple = difference.simplify()
    if simple == 0:
        return 1.0
    if simple.free_symbols:
        return None
    if wanted.free_symbols:  # they differ by a number
        return 0.0
    error, scale = abs(complex(simple.evalf(20))), abs(complex(wanted.evalf(20)))
    return float(error <= tolerance * scale) if error == error else None


@preloads("math_verify")
def value(text: str, constants: Mapping[str, float]) -> float | None:
    """The decimal value of an expression without letters; None for anything else."""
    found = expression(text, constants) if len(text) <= MATH_LENGTH else None
    if found is None or found.free_symbols or not found.is_real:
        return None
    return float(found.evalf(20))


def expression(text: str, constants: Mapping[str, float]) -> Any:
    """The sympy expression that a text is, with constants in place of their letters; None if it is none."""
    import logging

    from math_verify import parse
    from sympy import Expr

    # It warns at each start that its own time-out is off.
    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)
    shown = text.strip().strip("$").strip()
    # In the text, since the parser takes "2g" for two grams and drops them.
    for letter, number in constants.items():
        value = f"{Decimal(repr(float(number))):f}"
        alone = re.compile(rf"([\d)}}]\s*)?(?<![A-Za-z\\]){re.escape(letter)}(?![A-Za-z])")
        shown = alone.sub(partial(_factor, value), shown)
    parsed: list[Any] = parse(f"${shown}$", parsing_timeout=None)  # type: ignore[arg-type]
    return next((one for one in parsed if isinstance(one, Expr)), None)


def _factor(value: str, found: re.Match[str]) -> str:
    """A value in the place of a letter: behind a number or a bracket as a factor."""
    return f"{found[1]}\\cdot ({value})" if found[1] else f"({value})"


def _agrees_at_points(given: Any, wanted: Any) -> bool:
    """Do two expressions have the same values at a few places? Where either has none, that says nothing."""
    from sympy import Rational

    letters = sorted(given.free_symbols | wanted.free_symbols, key=lambda letter: letter.name)
    for number, (top, bottom) in enumerate(POINTS):
        at = {
            letter: Rational(int(top) + place + number, int(bottom))
            for place, letter in enumerate(letters)
        }
        one, other = complex(given.subs(at).evalf(20)), complex(wanted.subs(at).evalf(20))
        if abs(one - other) > AGREE * max(abs(one), abs(other), 1.0):
            return False
    return True


@dataclass(eq=False)
class Executor:
    """Runs both in killable workers, each call for at most `seconds`."""

    seconds: float = 5.0
    workers: int = 2
    memory: int = 1 << 30
    late: int = 0
    """Calls that were ended from outside, by time or memory, so far."""
    _pool: list[WorkerPool] = field(default_factory=list, repr=False)

    async def same(
        self, answer: str, reference: str, tolerance: float, constants: Mapping[str, float]
    ) -> float | None:
        """`same_symbols`; None as well for what fails or does not end in time."""
        return await self._run("same", answer, reference, tolerance, dict(constants))

    async def value(self, text: str, constants: Mapping[str, float]) -> float | None:
        """`value`, likewise."""
        return await self._run("value", text, dict(constants))

    def close(self) -> None:
        """End the workers; a later call starts them again."""
        for pool in self._pool:
            pool.close()

    async def _run(self, name: str, *args: Any) -> float | None:
        if not self._pool:  # at the first call: most answers never come here
            functions = {"same": same_symbols, "value": value}
            self._pool.append(WorkerPool(functions, self.workers, self.memory))
        (running,) = self._pool[0].begin([Call(name, args, limit=self.seconds)])
        outcome, _ = await asyncio.wrap_future(running)
        if isinstance(outcome, Failure):
            self.late += outcome.reason in ("timeout", "memory", "exit")
            return None
        (found,) = outcome
        return found if isinstance(found, float) else None
