import math

import pytest

from nnunet_semisam.ops.schedules import SCHEDULES, sigmoid_rampdown, sigmoid_rampup, sigmoid_rise_and_fall


def test_rampup_has_the_published_values():
    assert sigmoid_rampup(0, 40) == pytest.approx(math.exp(-5))
    assert sigmoid_rampup(20, 40) == pytest.approx(math.exp(-5 * 0.25))
    assert sigmoid_rampup(40, 40) == 1.0
    assert sigmoid_rampup(1000, 40) == 1.0


def test_rampdown_mirrors_the_rampup_and_ends_at_exactly_zero():
    assert sigmoid_rampdown(0, 40) == 1.0
    assert sigmoid_rampdown(10, 40) == pytest.approx(sigmoid_rampup(30, 40))
    assert sigmoid_rampdown(40, 40) == 0.0


@pytest.mark.parametrize("length", [30, 31, 1])
def test_rise_and_fall_is_a_rampup_of_a_third_and_a_rampdown_of_the_rest(length):
    values = [sigmoid_rise_and_fall(t, length) for t in range(-1, 60)]
    top = values.index(max(values))
    assert values[:top] == sorted(values[:top]) and values[top:] == sorted(values[top:], reverse=True)
    assert (sigmoid_rise_and_fall(0, 30), sigmoid_rise_and_fall(5, 30)) == (
        sigmoid_rampup(0, 10),
        sigmoid_rampup(5, 10),
    )
    assert sigmoid_rise_and_fall(10, 30) == 1.0
    assert sigmoid_rise_and_fall(5, 31) == pytest.approx(math.exp(-5 * (1 - 15 / 31) ** 2))  # a third need not be whole
    assert sigmoid_rise_and_fall(15, 30) == pytest.approx(sigmoid_rampdown(5, 20))
    assert sigmoid_rise_and_fall(length, length) == sigmoid_rise_and_fall(length + 5, length) == 0.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_stay_between_zero_and_one_and_turn_at_most_once(name):
    values = [SCHEDULES[name](t, 30) for t in range(-1, 60)]
    assert all(0 <= v <= 1 for v in values)
    steps = [b - a for a, b in zip(values[:-1], values[1:], strict=True) if b != a]
    turns = sum((a > 0) != (b > 0) for a, b in zip(steps[:-1], steps[1:], strict=True))
    assert turns == (name == "sigmoid_rise_and_fall")
