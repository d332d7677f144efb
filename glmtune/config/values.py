"""What stands in a recipe or on the command line, read by the type of its setting.

YAML 1.1 takes `2024-01-01` for a date, `Yes` for true, `1:30` for 90 and `1e-4` for a text, whatever is meant. Here a
scalar without quotes keeps its text until its setting is known: one that takes texts gets it as it stands, any other
one the number, truth value or null that it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from glmtune.config.tree import Settings

_NULLS = ("", "~", "null", "Null", "NULL")
_WORDS = {
    form: value
    for value, words in {True: ("true", "yes", "on"), False: ("false", "no", "off")}.items()
    for word in words
    for form in (word, word.title(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(0x[\da-fA-F]+|0o[0-7]+|0b[01]+|\d+(_\d+)*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\d+(_\d+)*(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NO_NUMBERS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}


LISTS = (list, tuple, set, frozenset, Sequence)
MAPPINGS = (dict, Mapping)
MOST_VALUES = 100_000  # of a recipe
MOST_CHARACTERS = 200_000
MOST_DIGITS = 100  # of a number


class Plain(str):
    """A scalar as it stands in YAML, without quotes."""

    __slots__ = ()


class Written(str):
    """What stands behind the `=` of an override."""

    __slots__ = ()


class RepeatedKeyError(yaml.YAMLError):
    """A key that stands twice in one mapping."""


class _Loader(yaml.SafeLoader):
    """Makes a `Plain` of each scalar without quotes; a key twice in one mapping is an error."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}

    def construct_plain(self, node: yaml.ScalarNode) -> str:
        return str(node.value) if node.style else Plain(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, list[int]] = {}
        for key, _ in node.value:
            lines.setdefault(str(key.value), []).append(key.start_mark.line + 1)
        for key, found in lines.items():
            if len(found) > 1:
                raise RepeatedKeyError(f"'{key}' stands in line {found[0]} and again in line {found[1]}. Leave one.")
        made = super().construct_mapping(node, deep)
        return {str(key) if isinstance(key, str) else key: value for key, value in made.items()}


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_plain)


def parse(text: str, most: int = MOST_CHARACTERS) -> Any:
    """Return a YAML document whose scalars without quotes are `Plain`.

    Args:
        text: of the document.
        most: characters that it may have.

    Raises:
        yaml.YAMLError: it is none, or its aliases make too much of it; a key that stands twice is told with both lines.
    """
    if len(text) > most:
        raise yaml.YAMLError(f"it has more than {most:,} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if count_values(node, {}) > MOST_VALUES:  # before anything is made of it: keys and merges multiply, too
            raise yaml.YAMLError(f"its aliases (*name) make more than {MOST_VALUES:,} values of it")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("lists or groups are nested too deeply") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # of which YAML's own are none
        raise yaml.YAMLError(f"a value is not what its tag (!!name) says: {error}") from error
    finally:
        loader.dispose()


def count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return how many values a document has, those of an alias at each place where it stands.

    Args:
        node: of the document, as it is written.
        counts: of what was counted, by its identity.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = MOST_VALUES + 1  # within itself, where there is no end of it
        inner = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        counts[id(node)] = 1 + sum(count_values(one, counts) for one in inner)
    return counts[id(node)]


def native(value: Any) -> Any:
    """Return a value in which each `Plain` is the null, truth value, number or text that it looks like."""
    return by_type(value, Any)


def by_type(value: Any, annotation: Any) -> Any:
    """Return what was written as the type of its setting takes it; what does not fit is left for pydantic to refuse.

    Args:
        value: of a mapping by `parse`, in which an override may stand as a `Written`.
        annotation: the type of the setting, or a group of settings.
    """
    kinds = list(alternatives(annotation))
    if isinstance(value, Written):
        value = unwrap(value, kinds)
    group = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)
    if group is not None and is_null(value):  # all of its settings are left out
        return {}
    if isinstance(value, Plain):
        return scalar(value, kinds)
    if isinstance(value, list):
        inner = (*arguments_of(LISTS, kinds), Any)[0]
        return [by_type(entry, inner) for entry in value]
    if isinstance(value, dict):
        if group is not None:
            types = {name: field.annotation for name, field in group.model_fields.items()}
            return {key: by_type(entry, types.get(key, Any)) for key, entry in value.items()}
        keys, inner = arguments_of(MAPPINGS, kinds) or (str, Any)
        return {by_type(Plain(key), keys): by_type(entry, inner) for key, entry in value.items()}
    return value


def as_group(value: Any) -> Any:
    """Return a group of settings as a dictionary, its values as they are; what is none is left as it is."""
    if isinstance(value, Written):
        value = unwrap(value, [dict[str, Any]])
    return {} if is_null(value) else value


def is_null(value: Any) -> bool:
    """Return whether nothing, or YAML's word for it, stands in a recipe."""
    return value is None or (isinstance(value, Plain) and value in _NULLS)


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, or the one type; what pydantic notes beside them is left out."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for kind in get_args(annotation):
            yield from alternatives(kind)
    else:
        yield annotation


def arguments_of(containers: Sequence[type], kinds: list[Any]) -> tuple[Any, ...]:
    """Return what a list or dictionary among some types holds; nothing where there is none."""
    return next((get_args(kind) for kind in kinds if get_origin(kind) in containers), ())


def takes(kinds: list[Any], *types: type) -> bool:
    """Return whether one of some types, or of the values of a `Literal` among them, is or is like one of `types`."""
    members = [type(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    return any(isinstance(kind, type) and issubclass(kind, types) for kind in (*kinds, *members))


def is_text(kinds: list[Any]) -> bool:
    """Return whether a scalar is a text by some types: no number and no truth value among them."""
    return takes(kinds, str, Path) and not takes(kinds, int, float) and Any not in kinds


def unwrap(text: Written, kinds: list[Any]) -> Any:
    """Return what an override says: a text as it stands, or without the quotes around all of it; all else is YAML."""
    starts = text[:1]
    yaml_begins = ("'", '"', *("[{" if arguments_of((*LISTS, *MAPPINGS), kinds) else ""))
    if text == "-" or (is_text(kinds) and starts not in yaml_begins):  # YAML reads a lone '-' as a list of nothing
        return Plain(text)
    try:
        value = parse(text)
    except yaml.YAMLError:
        return str(text)
    return str(text) if isinstance(value, Plain) and starts in ("'", '"') else value


def scalar(text: Plain, kinds: list[Any]) -> Any:
    """Return a scalar as some types take it. Nothing at all is null, of which pydantic tells where none is taken."""
    if text == "" or (text in _NULLS and (takes(kinds, NoneType) or not is_text(kinds))):
        return None
    if is_text(kinds):
        return str(text)
    if text in _WORDS and (takes(kinds, bool) or Any in kinds):
        return _WORDS[text]
    if text.lower() in _NO_NUMBERS:
        return float(_NO_NUMBERS[text.lower()])
    if len(text) > MOST_DIGITS:  # no number of anything
        return str(text)
    with suppress(ValueError):
        if _INTEGER.fullmatch(text):
            return int(text, 0) if text.lstrip("+-")[1:2].isalpha() else int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return str(text)
