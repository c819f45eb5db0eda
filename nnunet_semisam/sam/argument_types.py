"""Values from a configuration against the annotations of a backend's constructor, which therefore are its contract."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
PLURALS = {int: "integers", float: "numbers", str: "strings"}


def argument_types(kind: Any) -> dict[str, Any]:
    """The annotation of every argument of a class's constructor; none at all where one cannot be resolved."""
    try:
        return get_type_hints(kind.__init__)
    except Exception:  # annotations are code: names that only a type checker imports, newer syntax, anything
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of the annotated type; annotations that say more than JSON can are not judged.

    True is no integer, an integer is a number, and not-a-number and infinity are none.
    """
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, choice) for choice in get_args(hint))
    if element := _element(hint):
        return isinstance(value, (list, tuple)) and all(fits(entry, element) for entry in value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint if hint in WORDS else True


def in_words(hint: Any) -> str:
    """The annotation as a user reads it, like "a list of integers, or null"."""
    if get_origin(hint) in (Union, types.UnionType):
        return ", or ".join(in_words(choice) for choice in get_args(hint))
    if element := _element(hint):
        return f"a list of {PLURALS.get(element, 'values')}"
    return WORDS.get(hint, str(hint))


def _element(hint: Any) -> Any:
    """The type of the entries of a list, None if the annotation is no list."""
    arguments = [argument for argument in get_args(hint) if argument is not Ellipsis]
    return arguments[0] if get_origin(hint) in (list, tuple, Sequence) and len(arguments) == 1 else None
