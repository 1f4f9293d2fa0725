"""A calculator: numbers, + - * / // % **, brackets, and the functions of `FUNCTIONS`. Nothing else is ever computed.

Limits keep every call short: of characters, of depth, and of the bits of a whole number. No torch.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrl.ground.calls import Action
from mmrl.tools.called import FormTool
from mmrl.tools.reading import Form, words
from mmrl.tools.tool import BadAction, Observation, Trajectory

LONGEST = 500
"""Characters of an expression."""
BITS = 4096
"""Of the largest whole number: about 1,200 digits."""
BY_EXPRESSION = Form("expression", tag="calc")
Number = int | float
OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "sin", "cos", "tan")},
    **{name: getattr(math, name) for name in ("floor", "ceil", "log10", "log2", "gcd")},
    **{function.__name__: function for function in (abs, round, min, max)},
}
CONSTANTS = {"pi": math.pi, "e": math.e}


@dataclass(frozen=True)
class Calculator(FormTool):
    """Computes an expression."""

    name: str = "calculator"
    form: Form = BY_EXPRESSION

    def instructions(self) -> str:
        """What a prompt says about it."""
        return (
            f"To compute something, write {self.example('(3 + 4) * 12')} - numbers, + - * / // % **, brackets, "
            f"and {', '.join(FUNCTIONS)}."
        )

    def act(self, action: Action, trajectory: Trajectory) -> Observation:
        """Compute it."""
        return Observation(written(computed(words(action.arguments, self.form.argument))))


def computed(expression: str) -> Number:
    """The value of an expression. Raises BadAction for what is none, or too large."""
    if len(expression) > LONGEST:
        raise BadAction(
            f"The expression has {len(expression)} characters, at most {LONGEST} are computed."
        )
    try:
        # What people write for powers and products is read as such.
        text = expression.replace("^", "**").replace("×", "*").replace("÷", "/")
        return _value(ast.parse(text.strip(), mode="eval").body)
    except BadAction:
        raise
    except ZeroDivisionError:
        raise BadAction("It divides by zero.") from None
    except (OverflowError, RecursionError, MemoryError):
        raise BadAction("It is too large to be computed.") from None
    except (SyntaxError, ValueError, TypeError) as error:
        raise BadAction(f"It cannot be computed: {error}.") from None


def written(value: Number) -> str:
    """A number as it is told: whole ones in full, others with at most 12 digits."""
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node: ast.AST) -> Number:
    if isinstance(node, ast.Constant):
        return _checked(node.value)
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return _checked(OPERATORS[type(node.op)](_value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            _refuse_power(left, right)
        return _checked(OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.Call) and not node.keywords:
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called in FUNCTIONS:
            return _checked(FUNCTIONS[called](*map(_value, node.args)))
    raise BadAction(f"{ast.unparse(node)[:80]!r} is nothing that a calculator computes.")


def _refuse_power(base: Number, exponent: Number) -> None:
    """Raise BadAction for a power that would be too large, before it takes for ever."""
    if not (isinstance(base, int) and isinstance(exponent, int)):
        return
    if exponent > 0 and base.bit_length() * exponent > BITS:
        raise BadAction("The power is too large to be computed.")


def _checked(value: Any) -> Number:
    """A number that is real, finite and not too large. Raises BadAction."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAction(f"{str(value)[:80]!r} is no real number.")
    if isinstance(value, int) and value.bit_length() > BITS:
        raise BadAction("A number in it is too large to be computed.")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadAction("The result is not a finite number.")
    return value
