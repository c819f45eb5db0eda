"""The defaults that `docs/options.md` names are those of the code."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from nnunet_semisam.config import SemiSAMConfig
from nnunet_semisam.methods import build_method
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.ops.perturb import Perturbation
from nnunet_semisam.sam import find_backend
from nnunet_semisam.sam.backends.embedded import EmbeddedSam

TEXT = (Path(__file__).parents[1] / "docs" / "options.md").read_text()


def rows(title: str) -> list[list[str]]:
    """Cells of the table under a heading, without its first two lines."""
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]


def told(cell: str, count: int) -> list[Any]:
    """Defaults in a cell for so many keys; empty where it says it in words."""
    parts = [part.strip("` ") for part in cell.split(", ")]
    try:
        found = [json.loads(part) for part in ([cell.strip("` ")] if count == 1 else parts)]
    except json.JSONDecodeError:
        return [parts] if count == 1 and re.fullmatch(r"(`\w+`(, )?)+", cell) else []
    return found if len(found) == count else []


def test_the_section():
    config, checked = SemiSAMConfig(), []
    for keys, default, _ in rows("The section"):
        names = re.findall(r"`([a-z_.]+)`", keys)
        for name, value in zip(names, told(default, len(names)), strict=False):
            place: Any = config.terms["sam"] if keys.startswith("of each term") else config
            for part in name.split("."):
                place = place[part] if isinstance(place, dict) else getattr(place, part)
            assert (list(place) if isinstance(place, tuple) else place) == value, name
            checked.append(name)
    assert {"ema_decay", "sam.min_agreement", "sam.num_negative_points", "min_labeled_dice", "sam.prompts"} <= {
        *checked
    }
    assert len(checked) >= 28
    assert config.terms["sam"].weight == 2.0 and "weight 2.0" in TEXT


def test_fields_of_the_methods():
    checked = []
    for keys, default, meaning in rows("Fields of the methods"):
        names = re.findall(r"`([a-z_]+)`", keys)
        only = re.match(r"`(\w+)` only", meaning)
        method = build_method(only[1] if only else "mean_teacher", {}, OutputSpace(2))
        for name, value in zip(names, told(default, len(names)), strict=False):
            assert getattr(method, name) == value, name
            checked.append(name)
    assert len(checked) == 9
    strengths = dict(
        re.findall(r"`(\w+)` \(([\d.]+)", next(row for row in TEXT.splitlines() if "| `perturbation`" in row))
    )
    assert {name: float(value) for name, value in strengths.items()} == vars(Perturbation())


@pytest.mark.parametrize("backend", ["embedded", "segment_anything", "sam_med3d"])
def test_arguments_of_the_backends(backend):
    defaults = {name: p.default for name, p in inspect.signature(find_backend(backend).__init__).parameters.items()}
    under, checked = "", 0
    for name, key, default, _ in rows("Backends of SAM"):
        under = (re.findall(r"`(\w+)`", name) or [under])[0]
        if under == backend:
            (value,) = told(default, 1)
            found = defaults[key.strip("`")]
            assert (list(found) if isinstance(found, tuple) else found) == value, key
            checked += 1
    assert checked >= 4


def test_steps_of_tuning():
    assert "200 per labeled case, at most 600" in TEXT
    assert [EmbeddedSam.tuning_steps(cases) for cases in (1, 2, 3, 4, 16)] == [200, 400, 600, 600, 600]
