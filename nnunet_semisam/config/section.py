"""The `semisam` section of a configuration in the plans, and how sections are laid over each other."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from nnunet_semisam.config.sam import SamConfig
from nnunet_semisam.config.term import TermConfig
from nnunet_semisam.values import Refused

SECTION = "semisam"  # key of a configuration in the plans


def is_section(key: str) -> bool:
    """Whether a key is the section's, or almost: "semi_sam", "SemiSAM"."""
    return "".join(filter(str.isalpha, key.lower())) == SECTION


def section_of(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `semisam` section of a configuration in the plans; empty where there is none.

    Raises:
        ValueError: a key is almost called so, which nobody would read.
    """
    for key in configuration:
        if key != SECTION and is_section(key):
            raise ValueError(f"semisam: a section is named {key!r}, which is not read; rename it to {SECTION!r}")
    return configuration.get(SECTION, {})


def in_effect(section: Mapping[str, Any]) -> dict[str, Any]:
    """A whole section without what does nothing: `terms.sam` where `sam` is null, all but the weight of a term of 0."""
    terms = {
        name: term if term["weight"] else {"weight": 0.0}
        for name, term in section["terms"].items()
        if name != "sam" or section["sam"] is not None
    }
    return {**section, "terms": terms}


def laid_over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, dictionaries key by key."""
    both = [name for name in values if isinstance(values[name], Mapping) and isinstance(base.get(name), Mapping)]
    return {**base, **values, **{name: {**base[name], **values[name]} for name in both}}


def merged(kind: type, base: Any, values: Mapping[str, Any], where: str = "") -> Any:
    """`base` with `values` laid over it, or a new `kind` of them; `where` is the key that holds the values."""
    fields = dataclasses.fields(kind)
    known = [f.name for f in fields]
    if not isinstance(values, Mapping):
        hint = f', for instance {{"backend": "{values}"}}' if kind is SamConfig and isinstance(values, str) else ""
        raise Refused(where, f"is {values!r}; it must be a dictionary with keys out of {', '.join(known)}{hint}")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"semisam: unknown key {key!r} in {where or 'the section'}; {hint}known keys are {', '.join(known)}"
            )
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if base is None and (missing := [name for name in needed if name not in values]):
        hint = ", or correct its name" if kind is TermConfig else ""
        raise Refused(where, f"has no {', '.join(missing)}; add it{hint}")
    try:
        return dataclasses.replace(base, **values) if base is not None else kind(**values)
    except Refused as error:
        raise Refused(f"{where}.{error.key}" if where else error.key, error.reason) from None
