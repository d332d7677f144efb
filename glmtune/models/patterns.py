"""Which modules of a model a regular expression names, in a time that grows with its length alone."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic_core import SchemaError, SchemaValidator, core_schema


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern matches as a whole.

    Python's `re` takes years for some patterns, such as `(a+)+$`. This is Rust's, by pydantic: it never goes back, and
    refuses what would need that, or much memory.

    Raises:
        ValueError: a pattern that is none, is too large, or looks around or back (`(?!...)`, `\\1`).
    """
    try:
        compiled(pattern)  # by itself, so that it cannot close what is put around it
        matcher = compiled(rf"\A(?:{pattern})\z")
    except SchemaError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("error: ").strip()
        raise ValueError(f"the pattern cannot be read: {reason}. A list of names says the same.") from None
    return [name for name in names if matcher.isinstance_python(name)]


def compiled(pattern: str) -> SchemaValidator:
    """Return what tells texts that a pattern is found in."""
    return SchemaValidator(core_schema.str_schema(pattern=pattern))
