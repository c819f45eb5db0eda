"""Shaken prompts stay prompts of the same object; their answers' spread is 0 where all agree, and grows."""

from __future__ import annotations

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.dialogue import converse
from nnunet_semisam.sam.fuse import Answers
from nnunet_semisam.sam.jitter import seeds_for, shaken, stability
from nnunet_semisam.sam.objects import Objects, find_objects
from nnunet_semisam.sam.prompts import prompts_for, select
from nnunet_semisam.types import SamPrediction


def asked(kit, ndim, **settings):
    config, outputs, prob = SamConfig(**settings), OutputSpace(3), kit.scene(ndim).prob
    hard = outputs.harden(prob) > 0
    objects = find_objects(prob, hard, heads=(1, 2), config=config)
    return objects, prompts_for(objects, prob, hard, outputs=outputs, config=config), prob


def shake(prompts, objects, prob, iteration=0, number=0):
    return shaken(prompts, objects, prob, seeds=seeds_for(iteration, torch.arange(len(prompts)), number))


@pytest.mark.parametrize("ndim", [2, 3])
def test_shaken_prompts_differ_and_stay_true(kit, ndim):
    objects, prompts, prob = asked(kit, ndim, num_points=2, num_negative_points=2)
    sides = torch.tensor(prob.shape[2:])
    moved = torch.zeros(3)
    for number in range(10):
        other = shake(prompts, objects, prob, number=number)
        moved += torch.stack(
            [(other.boxes != prompts.boxes).float().mean(), (other.point_coords != prompts.point_coords).float().mean(),
             (other.mask_logits != prompts.mask_logits).float().mean()]
        )  # fmt: skip
        assert (other.boxes >= 0).all() and (other.boxes <= sides).all() and (other.boxes.diff(dim=1) >= 1).all()
        assert (other.boxes - prompts.boxes).abs().max() <= 0.05 * max(sides) + 1
        assert torch.equal(other.point_labels, prompts.point_labels)
        assert torch.equal(other.image, prompts.image) and torch.equal(other.head, prompts.head)
        for row, (image, head) in enumerate(zip(objects.image, objects.head, strict=True)):
            for place, label in zip(other.point_coords[row].long(), other.point_labels[row], strict=True):
                assert label != 1 or objects.masks[row][tuple(place)]
                assert label != 0 or prob[image, head][tuple(place)] < 0.05
        agreement = [kit.dice(a > 0, b > 0) for a, b in zip(other.mask_logits, prompts.mask_logits, strict=True)]
        assert min(agreement) > 0.6
    assert (moved[:2] > 3).all() and moved[2] > 0


def test_clicks_do_not_leave_a_thin_object():
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[0, 19:21, 5:55] = True
    prob = torch.stack([1 - mask[0].float(), mask[0].float()])[None]
    objects = Objects(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), mask)
    config = SamConfig(prompts=["points"], num_points=4)
    prompts = prompts_for(objects, prob, prob > 0.5, outputs=OutputSpace(2), config=config)
    shaken_ones = [shake(prompts, objects, prob, number=number).point_coords[0].long() for number in range(10)]
    assert all(mask[0][tuple(place)] for places in shaken_ones for place in places)
    assert any(not torch.equal(places, prompts.point_coords[0].long()) for places in shaken_ones)


def test_a_shift_brings_in_what_is_surely_not_the_object():
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 0:10, 0:14] = True
    prob = torch.stack([1 - mask[0].float(), mask[0].float()])[None]
    objects = Objects(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), mask)
    config = SamConfig(prompts=["mask"])
    prompts = prompts_for(objects, prob, prob > 0.5, outputs=OutputSpace(2), config=config)
    for number in range(8):
        logits = shake(prompts, objects, prob, number=number).mask_logits
        assert set(logits.unique().round().tolist()) == {-7, 7}
        found = (logits[0] > 0).nonzero()
        low, high = found.amin(0), found.amax(0) + 1
        assert (low <= 1).all() and (high - torch.tensor([10, 14])).abs().max() <= 1
        assert (logits > 0).sum() == (high - low).prod()  # one rectangle, nothing came around


def test_the_seed_decides_and_the_global_random_state_is_left_alone(kit):
    objects, prompts, prob = asked(kit, 3)
    state = torch.get_rng_state()
    first, second = (shake(prompts, objects, prob, 5, 1) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.boxes, second.boxes) and torch.equal(first.mask_logits, second.mask_logits)
    assert torch.equal(first.point_coords, second.point_coords)
    for iteration, number in [(6, 1), (5, 2)]:
        assert not torch.equal(first.boxes, shake(prompts, objects, prob, iteration, number).boxes)
    rows = torch.tensor([2, 3])  # the same items alone, as in the second of two chunks
    part = Objects(*(field[rows] for field in objects))
    alone = shaken(select(prompts, rows), part, prob, seeds=seeds_for(5, rows, 1))
    assert torch.equal(alone.boxes, first.boxes[rows]) and torch.equal(alone.mask_logits, first.mask_logits[rows])


def test_seeds_are_all_different():
    seeds = [seeds_for(i, torch.arange(40), n) for i in range(40) for n in range(5)]
    assert len(torch.cat(seeds).unique()) == 40 * 40 * 5


def squares(*widths: int) -> torch.Tensor:
    masks = torch.zeros(len(widths), 1, 20, 40, dtype=torch.bool)
    for mask, width in zip(masks, widths, strict=True):
        mask[0, :, :width] = True
    return masks


def test_the_spread_is_zero_where_all_agree_and_grows():
    assert stability(squares(10, 10, 10)).item() == 1
    assert stability(squares(0, 0)).item() == 1  # agreed: nothing there
    assert stability(squares(10, 0)).item() == 0
    assert stability(squares(10, 20)).item() == pytest.approx(2 / 3)
    assert stability(squares(10, 20, 20)).item() == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    spread = [1 - stability(squares(20, 20 + d, 20 - d)).item() for d in range(0, 20, 3)]
    assert spread == sorted(spread) and spread[0] == 0 and spread[-1] > 0.5


@pytest.mark.parametrize("steady, factor", [(1.0, 1.0), (0.6, 0.67032), (0.0, 0.36788)])
def test_the_weight_falls_with_exp_of_minus_the_spread(steady, factor):
    mask = squares(10)[0]
    index = torch.zeros(1, dtype=torch.int64)
    predicted = SamPrediction(8.0 * mask.float() - 4, torch.tensor([0.9]))
    answers = Answers.judged(Objects(index, index + 1, mask), predicted, torch.tensor([steady]))
    assert answers.weight.item() == pytest.approx(0.9 * factor, rel=1e-4)


def test_a_generalist_that_hangs_on_its_prompt_is_unsteady_and_keeps_its_first_answer(kit):
    objects, prompts, prob = asked(kit, 2)
    config = SamConfig(jitters=3)
    calls = []

    def copy(given):
        calls.append(given)
        return SamPrediction(given.mask_logits, torch.full((len(given),), 0.9))

    def deaf(given):
        return SamPrediction(prompts.mask_logits, torch.full((len(given),), 0.9))

    items = torch.arange(len(prompts))
    answer, steady = converse(copy, prompts, objects, prob, config=config, items=items)
    assert len(calls) == 4 and torch.equal(answer.mask_logits, prompts.mask_logits)
    assert (steady < 1).all() and (steady > 0.5).all()
    assert (converse(deaf, prompts, objects, prob, config=config, items=items)[1] == 1).all()
