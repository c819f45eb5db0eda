"""Semi-supervised methods, found by file name: one public file is one method; a leading underscore is none."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any, get_origin

from nnunet_semisam.methods._base import SemiMethod
from nnunet_semisam.ops.outputs import OutputSpace


def list_methods() -> list[str]:
    """Names of the methods of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find_method(name: str) -> type[SemiMethod]:
    """The method class in `methods/<name>.py`, or in the module of a dotted name such as "my_lab.my_method".

    Raises:
        ValueError: no such method, or a module that does not define exactly one; the message lists the known ones.
    """
    if name.startswith(".") or ("." not in name and name not in list_methods()):
        raise ValueError(_unknown(name))
    path = name if "." in name else f"{__name__}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        raise ValueError(
            f"{_unknown(name)}. A dotted name means a module of your own that Python can import, but none named "
            f"{error.name!r} was found on the Python path; put its folder on PYTHONPATH, or correct the name"
        ) from error
    found = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if get_origin(c) is None  # Python 3.10 takes Callable[..., X] for a class
        and issubclass(c, SemiMethod)
        and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"semisam: module {module.__name__} must define one SemiMethod; it defines {len(found)}")
    return found[0]


def build_method(name: str, args: dict[str, Any], outputs: OutputSpace) -> SemiMethod:
    """The method `name` with its `method_args`.

    Raises:
        ValueError: unknown method or argument; the message lists the known ones.
    """
    kind = find_method(name)
    known = [f.name for f in dataclasses.fields(kind) if f.name != "outputs"]
    for key in args:
        if key not in known:
            raise ValueError(f"semisam: unknown method_args {key!r} of {name}; known are {', '.join(known)}")
    return kind(outputs=outputs, **args)


def _unknown(name: str) -> str:
    return f"semisam: unknown method {name!r}; known are {', '.join(list_methods())}, or a dotted module"
