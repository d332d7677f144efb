"""A calculator: exact and bounded, whatever it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from glmtune.arithmetic.characters import normalize_problem, without_commas
from glmtune.arithmetic.expressions import (
    UNDEFINED,
    DividedByZero,
    ExpressionError,
    evaluate,
    is_endless,
    round_half_up,
    shortest,
)
from glmtune.config import Settings
from glmtune.tools import Tool, ToolArguments, ToolError

MOST_CHARACTERS = 1000  # of an expression
_MOST_BITS = 400  # of a result, some 120 digits


class CalculatorArguments(ToolArguments):
    """What is to be worked out."""

    expression: str = Field(
        min_length=1, max_length=MOST_CHARACTERS, description="numbers with + - * / ^ % and brackets: 3*(4.5+1)"
    )


class CalculatorSettings(Settings):
    """How results are rounded."""

    decimals: int = Field(2, ge=0, description="decimals of quotients, and of what never ends")
    round_all: bool = Field(False, description="round every result to `decimals`")


class Calculator(Tool):
    """Works out an expression, half up where it rounds."""

    name = "calculate"
    description = "Work out an arithmetic expression exactly."
    Arguments = CalculatorArguments
    Settings = CalculatorSettings
    settings: CalculatorSettings

    def run(self, arguments: Mapping[str, Any]) -> str:
        """Return the value of `expression`, in its shortest form.

        Raises:
            ToolError: it is no expression, or its value is too large.
        """
        expression = without_commas(normalize_problem(arguments["expression"]))
        try:
            value = evaluate(expression)
        except DividedByZero:
            return UNDEFINED
        except ExpressionError as error:
            raise ToolError(str(error)) from error
        if self.settings.round_all or "/" in expression or is_endless(value):
            value = round_half_up(value, self.settings.decimals)
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
            raise ToolError("the result has too many digits")
        return shortest(value)
