"""What all options have in common: they are typed, frozen, and say what is wrong with them."""

from __future__ import annotations

import difflib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from vrray.errors import SpecError


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, options: dict[str, Any]) -> Self:
        """Validate options.

        Raises:
            SpecError: an option is unknown (with the nearest known one) or has a wrong value.
        """
        for name in options:
            if name not in cls.model_fields:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(cls.model_fields)}"
                raise SpecError(f"unknown option {name!r}{hint}")
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise SpecError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if isinstance(part, str) and part.isidentifier())
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"option {where}: {message} (got {problem['input']!r})" if where else message)
    return "; ".join(dict.fromkeys(lines))
