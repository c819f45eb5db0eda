"""Error clicks carry the right sign, lie in the error, and only where the teacher is sure."""

from __future__ import annotations

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.dialogue import converse
from nnunet_semisam.sam.objects import find_objects
from nnunet_semisam.sam.prompts import prompts_for
from nnunet_semisam.sam.rounds import corrected
from nnunet_semisam.types import SamPrediction

SHAPES = {2: (30, 44), 3: (18, 26, 40)}


def scene(ndim, **settings):
    """One object, of which the teacher is sure but for its upper end; objects, prompts, probabilities."""
    config = SamConfig(**settings)
    prob = torch.full((1, 2, *SHAPES[ndim]), 0.01)
    own = prob[0, 1]
    own[..., 6:20, 10:30] = 0.99
    own[..., 16:20, 10:30] = 0.8
    own[..., 22:25, :] = 0.3
    prob[0, 0] = 1 - own
    outputs = OutputSpace(2)
    hard = outputs.harden(prob) > 0
    objects = find_objects(prob, hard, heads=(1,), config=config)
    return objects, prompts_for(objects, prob, hard, outputs=outputs, config=config), prob


def logits_of(mask: torch.Tensor) -> torch.Tensor:
    return (6.0 * mask.float() - 3)[None]


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_missing_piece_is_clicked_as_object_and_an_excess_as_background(ndim):
    objects, prompts, prob = scene(ndim)
    answer = objects.masks[0].clone()
    answer[..., 6:16, 24:30] = False  # the teacher is sure of this
    answer[..., 8:14, 33:38] = True  # and of this not being it
    more, wrong = corrected(prompts, logits_of(answer), objects, prob)
    assert wrong.tolist() == [True] and more.point_labels[0, -2:].tolist() == [1, 0]
    missing, excess = more.point_coords[0, -2:].long()
    assert 6 <= missing[-2] < 16 and 24 <= missing[-1] < 30
    assert 8 <= excess[-2] < 14 and 33 <= excess[-1] < 38
    assert torch.equal(more.point_coords[:, :-2], prompts.point_coords)  # earlier clicks stay
    assert torch.equal(more.point_labels[:, :-2], prompts.point_labels)
    assert torch.equal(more.mask_logits, logits_of(answer)) and torch.equal(more.boxes, prompts.boxes)


@pytest.mark.parametrize("ndim", [2, 3])
def test_where_the_teacher_is_unsure_nothing_is_clicked(ndim):
    objects, prompts, prob = scene(ndim)
    answer = objects.masks[0].clone()
    answer[..., 16:20, :] = False  # probability 0.8
    answer[..., 22:25, 5:20] = True  # probability 0.3
    more, wrong = corrected(prompts, logits_of(answer), objects, prob)
    assert wrong.tolist() == [False] and more.point_labels[0, -2:].tolist() == [-1, -1]
    assert torch.equal(more.mask_logits, prompts.mask_logits)


def test_not_a_number_is_no_mask_prompt():
    objects, prompts, prob = scene(2)
    answer = logits_of(torch.zeros(SHAPES[2], dtype=torch.bool))
    answer[..., :5, :5] = torch.nan
    more, wrong = corrected(prompts, answer, objects, prob)
    assert wrong.all() and more.mask_logits.isfinite().all()


class Learner:
    """Answers with a square around every positive click, and remembers what it was asked."""

    def __init__(self, shape):
        self.shape, self.seen = shape, []

    def __call__(self, prompts):
        self.seen.append(prompts)
        logits = torch.full((len(prompts), *self.shape), -3.0)
        for item, (places, labels) in enumerate(zip(prompts.point_coords.long(), prompts.point_labels, strict=True)):
            for y, x in places[labels == 1].tolist():
                logits[item, max(0, y - 5) : y + 6, max(0, x - 5) : x + 6] = 3.0
        return SamPrediction(logits, torch.full((len(prompts),), 0.5))


@pytest.mark.parametrize("rounds, clicks", [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4])])
def test_clicks_add_up_over_the_rounds_and_mend_the_answer(rounds, clicks):
    settings = {"prompts": ["points"], "rounds": rounds}
    objects, prompts, prob = scene(2, **settings)
    sam = Learner(SHAPES[2])
    answer, _ = converse(sam, prompts, objects, prob, config=SamConfig(**settings), items=torch.arange(1))
    assert [int((asked.point_labels == 1).sum()) for asked in sam.seen] == clicks
    assert all(asked.mask_logits is None for asked in sam.seen)  # sam.prompts does not name masks
    covered = ((answer.mask_logits > 0) & objects.masks).sum() / objects.masks.sum()
    assert covered > {1: 0.3, 2: 0.55, 4: 0.7}[rounds]


def test_items_without_an_error_are_not_asked_again():
    prob = torch.full((2, 2, *SHAPES[2]), 0.01)
    prob[0, 1, 10:15, 10:15] = prob[1, 1, 4:24, 10:30] = 0.99
    prob[:, 0] = 1 - prob[:, 1]
    config = SamConfig(prompts=["points"], rounds=3)
    objects = find_objects(prob, prob > 0.5, heads=(1,), config=config)
    prompts = prompts_for(objects, prob, prob > 0.5, outputs=OutputSpace(2), config=config)
    sam = Learner(SHAPES[2])
    clipped = lambda asked: (lambda a: SamPrediction(  # noqa: E731
        torch.where(objects.masks[asked.image], a.mask_logits, -3.0), a.iou_predictions
    ))(sam(asked))  # fmt: skip
    answer, _ = converse(clipped, prompts, objects, prob, config=config, items=torch.arange(2))
    assert [asked.image.tolist() for asked in sam.seen] == [[0, 1], [1], [1]]
    assert torch.equal(answer.mask_logits[0] > 0, objects.masks[0])
    assert (answer.mask_logits[1] > 0).sum() > 121  # more than around one click
