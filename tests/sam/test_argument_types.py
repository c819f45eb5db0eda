"""Values of a configuration against the annotations of a constructor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import pytest

from nnunet_semisam.sam.argument_types import argument_types, fits, in_words

if TYPE_CHECKING:
    from somewhere import Unknown


@pytest.mark.parametrize(
    "hint, right, wrong, words",
    [
        (int, [0, -3], [True, 1.0, "1", None], "an integer"),
        (float, [0, 1.5], [True, "1", None, float("nan"), float("inf")], "a number"),
        (bool, [True], [1, "true", None], "true or false"),
        (str, ["", "a"], [1, ["a"]], "a string"),
        (Optional[str], ["a", None], [1], "a string, or null"),  # noqa: UP045 (the older spelling is meant)
        (int | None, [1, None], ["a"], "an integer, or null"),
        (Sequence[int], [[], [0, 1], (2,)], ["a", 0, [0.5], [[0]], None, {"a": 1}], "a list of integers"),
        (tuple[float, ...], [[0.5, 1]], [["a"]], "a list of numbers"),
        (list[str] | None, [["a"], None], [[1], "a"], "a list of strings, or null"),
    ],
)
def test_what_fits_and_what_does_not(hint, right, wrong, words):
    assert [value for value in right if not fits(value, hint)] == []
    assert [value for value in wrong if fits(value, hint)] == []
    assert in_words(hint) == words


def test_what_json_cannot_say_is_not_judged():
    for hint in (Path, dict[str, int], list, tuple[int, str], object):
        assert fits("anything", hint)


def test_annotations_that_cannot_be_resolved_are_none():
    class Foreign:
        def __init__(self, checkpoint, device, *, size: int = 1, other: Unknown = None):
            pass

    assert argument_types(Foreign) == {}
    assert argument_types(object) == {}
