"""Promptable segmentation models ("generalists"), found by file name: one public file in `backends/` is one backend."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, get_origin

import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.paths import find_checkpoint
from nnunet_semisam.sam import backends
from nnunet_semisam.sam.argument_types import argument_types, fits, in_words
from nnunet_semisam.sam.base import SamBackend


def list_backends() -> list[str]:
    """Names of the backends of this package. Imports none of them."""
    return sorted(m.name for m in pkgutil.iter_modules(backends.__path__) if not m.name.startswith("_"))


def find_backend(name: str) -> type[SamBackend]:
    """The backend class in `sam/backends/<name>.py`, or in the module of a dotted name such as "my_lab.my_sam".

    Raises:
        ValueError: no such backend, or a module that does not define exactly one; the message lists the known ones.
    """
    if name.startswith(".") or ("." not in name and name not in list_backends()):
        raise ValueError(_unknown(name))
    path = name if "." in name else f"{backends.__name__}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        raise ValueError(
            f"{_unknown(name)}. A dotted name means a module of your own that Python can import, but none named "
            f"{error.name!r} was found on the Python path; put its folder on PYTHONPATH, or correct the name"
        ) from error
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    found = [c for c in classes if get_origin(c) is None and issubclass(c, SamBackend)]
    if len(found) != 1:
        raise ValueError(f"semisam: module {module.__name__} must define one SamBackend; it defines {len(found)}")
    return found[0]


def build_backend(config: SamConfig, device: torch.device, spacing: Sequence[float] | None = None) -> SamBackend:
    """The configured backend on `device`: `Backend(checkpoint, device, **backend_args)`.

    Args:
        spacing: mm per voxel of the images, array order; for backends with an argument `spacing` that the
            configuration leaves open.

    Raises:
        ValueError: unknown backend, or a backend argument that it does not take.
        FileNotFoundError: `config.checkpoint` is given but is no file.
    """
    backend: Callable[..., SamBackend] = check_backend_args(config)
    checkpoint = None if config.checkpoint is None else str(find_checkpoint(config.checkpoint))
    arguments = dict(config.backend_args)
    if spacing is not None and "spacing" in _backend_args(backend):
        arguments.setdefault("spacing", tuple(spacing))
    return backend(checkpoint, device, **arguments)


def check_backend_args(config: SamConfig) -> type[SamBackend]:
    """The configured backend class, which takes the names and types in `backend_args`. Opens no checkpoint.

    Raises:
        ValueError: unknown backend or backend argument (the message lists the known ones), a value of another type
            than the constructor's annotation asks for, or prompts that the backend does not hear.
    """
    backend = find_backend(config.backend)
    known = _backend_args(backend)
    hints = argument_types(backend)
    for name, value in config.backend_args.items():
        if name not in known and "**" not in known:
            raise ValueError(
                f"semisam: unknown key {name!r} in sam.backend_args of backend {config.backend!r}; "
                f"known keys are {', '.join(known) or 'none'}"
            )
        if not fits(value, hints.get(name, Any)):
            raise ValueError(f"semisam: sam.backend_args.{name} is {value!r}; it must be {in_words(hints[name])}")
    for member in backend.members_of(config):
        check_backend_args(member)
    if not set(config.prompts) & set(backend.hears) - {"negative_points"}:
        raise ValueError(
            f"semisam: sam.prompts is {', '.join(config.prompts)}, but sam.backend {config.backend!r} hears "
            f"{', '.join(backend.hears)} only; add one of them to sam.prompts"
        )
    return backend


def check_backend(config: SamConfig) -> None:
    """`check_backend_args`, and the values of the arguments as far as no file of weights has to be there for it.

    Raises:
        ValueError: as `check_backend_args`, or a value that the constructor refuses.
    """
    backend = check_backend_args(config)
    if members := backend.members_of(config):
        for member in members:
            check_backend(member)
    elif config.checkpoint is None and not backend.needs_checkpoint:
        build_backend(config, torch.device("cpu"))


def missing_checkpoints(config: SamConfig) -> list[str]:
    """What keeps the backend, or a member of it, from being built on this machine: a file that is not there, or none.

    The configuration has passed `check_backend_args`.
    """
    backend, missing = find_backend(config.backend), []
    if config.checkpoint is None and backend.needs_checkpoint:
        missing.append(
            f"semisam: sam.backend {config.backend!r} needs a checkpoint; set sam.checkpoint to a file "
            "(nnUNetv2_semisam_sam list tells what there is)"
        )
    if config.checkpoint is not None:
        try:
            find_checkpoint(config.checkpoint)
        except FileNotFoundError as error:
            missing.append(str(error))
    return missing + [text for member in backend.members_of(config) for text in missing_checkpoints(member)]


def _backend_args(backend: Callable[..., SamBackend]) -> list[str]:
    """Names of the constructor's arguments beyond checkpoint and device; "**" where it takes any."""
    parameters = list(inspect.signature(backend).parameters.values())[2:]
    return ["**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters]


def _unknown(name: str) -> str:
    return f"semisam: unknown sam.backend {name!r}; known are {', '.join(list_backends())}, or a dotted module"
