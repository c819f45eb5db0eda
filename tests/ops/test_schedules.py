import math

import pytest

from nnunet_semisam.ops.schedules import SCHEDULES, sigmoid_rampdown, sigmoid_rampup


def test_rampup_has_the_published_values():
    assert sigmoid_rampup(0, 40) == pytest.approx(math.exp(-5))
    assert sigmoid_rampup(20, 40) == pytest.approx(math.exp(-5 * 0.25))
    assert sigmoid_rampup(40, 40) == 1.0
    assert sigmoid_rampup(1000, 40) == 1.0


def test_rampdown_mirrors_the_rampup_and_ends_at_exactly_zero():
    assert sigmoid_rampdown(0, 40) == 1.0
    assert sigmoid_rampdown(10, 40) == pytest.approx(sigmoid_rampup(30, 40))
    assert sigmoid_rampdown(40, 40) == 0.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_stay_between_zero_and_one_and_are_monotonic(name):
    values = [SCHEDULES[name](t, 30) for t in range(-1, 60)]
    assert all(0 <= v <= 1 for v in values)
    assert values in (sorted(values), sorted(values, reverse=True))
