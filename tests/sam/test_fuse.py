"""Several answers for one class: each counts where it is strongest; pieces that nobody spoke about are left alone."""

from __future__ import annotations

import pytest
import torch
from toy_fusion import fuse

from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.fuse import Answers
from nnunet_semisam.sam.objects import Objects
from nnunet_semisam.types import SamPrediction

MASK = [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]  # two pieces of class 1 on a line of 6 voxels
LOGITS = [[4.0, 4.0, -4.0, -4.0, -4.0, -4.0], [-4.0, -4.0, -4.0, 3.0, 3.0, -4.0]]


def two_pieces(weights=(0.8, 0.4), head=1) -> Answers:
    index = torch.zeros(2, dtype=torch.int64)
    objects = Objects(index, index + head, torch.tensor(MASK).bool())
    return Answers.judged(objects, SamPrediction(torch.tensor(LOGITS), torch.tensor(weights)))


def teacher(extra: bool = False) -> torch.Tensor:
    hard = torch.tensor(MASK).any(0)
    hard[5] = extra  # a piece too small to ask about
    return torch.stack([1 - 0.9 * hard.float(), 0.9 * hard.float()])[None]


def test_each_piece_has_the_weight_of_its_own_answer():
    prob = teacher()
    pseudo = fuse(prob, prob > 0.5, two_pieces(), OutputSpace(2))
    inside = torch.tensor([4.0, 3.0]).sigmoid()
    assert torch.allclose(pseudo.prob[0, 1, [0, 3]], inside)
    expected = inside * torch.tensor([0.8, 0.4]) + (1 - inside) * 0.6  # the background has the mean
    assert torch.allclose(pseudo.confidence[0, 0, [0, 3]], expected)
    assert pseudo.confidence[0, 0, 2].item() == pytest.approx(0.6, abs=0.01)


def test_a_piece_without_an_answer_is_not_unlearned():
    prob = teacher(extra=True)
    pseudo = fuse(prob, prob > 0.5, two_pieces(), OutputSpace(2))
    assert pseudo.confidence[0, 0].gt(0).tolist() == [True] * 5 + [False]
    one = fuse(prob, prob > 0.5, two_pieces(), OutputSpace(2), believed=[True, False])  # not that for the second piece
    assert one.confidence[0, 0].gt(0).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("regions", [False, True])
def test_answers_may_come_in_portions(regions):
    prob, outputs = teacher(extra=True)[:, int(regions) :], OutputSpace(1 if regions else 2, regions)
    both = two_pieces(head=0 if regions else 1)
    parts = [Answers(*(field[row : row + 1] for field in both)) for row in (0, 1)]
    whole, pieces = fuse(prob, prob > 0.5, both, outputs), fuse(prob, prob > 0.5, parts, outputs)
    assert torch.equal(whole.prob, pieces.prob) and torch.equal(whole.confidence, pieces.confidence)


def test_a_class_that_was_not_asked_about_keeps_what_the_teacher_gives_it():
    prob = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.06, 0.04], [1.0, 0.0, 0.0]]).T[None]  # three voxels
    mask, logits = torch.tensor([[1, 0, 0]]).bool(), torch.tensor([[4.0, -4.0, 4.0]])
    index = torch.zeros(1, dtype=torch.int64)
    answers = Answers.judged(Objects(index, index + 1, mask), SamPrediction(logits, torch.ones(1)))
    pseudo = fuse(prob, mask[None].repeat(1, 3, 1) & (prob > 0.4), answers, OutputSpace(3))
    inside = logits[0].sigmoid()
    left = torch.tensor([0.3, 0.04, 0.0])
    expected = torch.stack([(1 - inside) * (1 - left), inside * (1 - left), left])
    assert torch.allclose(pseudo.prob[0], expected, atol=1e-6)
    assert torch.allclose(pseudo.confidence[0, 0], answers.weight * (1 - left))


def test_sam_does_not_vote_for_a_class_that_nobody_asked_about():
    """Where the teacher sees background, however its little foreground is shared out."""
    prob = torch.tensor([[0.9, 0.001, 0.099], [0.1, 0.9, 0.0]]).T[None]
    mask, logits = torch.tensor([[0, 1]]).bool(), torch.tensor([[4.0, 4.0]])
    index = torch.zeros(1, dtype=torch.int64)
    answers = Answers.judged(Objects(index, index + 1, mask), SamPrediction(logits, torch.ones(1)))
    pseudo = fuse(prob, prob > 0.5, answers, OutputSpace(3))
    assert pseudo.prob[0, :, 0].argmax() == 1 and pseudo.prob[0, 2, 0].item() == pytest.approx(0.099)


def test_a_piece_that_another_answer_claims_is_heard():
    prob = teacher(extra=True)
    answers = two_pieces()
    answers.logits[1, 5] = 2.0
    pseudo = fuse(prob, prob > 0.5, answers, OutputSpace(2))
    assert pseudo.confidence.gt(0).all() and pseudo.prob[0, 1, 5] > 0.5


def test_regions_keep_the_teacher_in_pieces_without_an_answer():
    prob = teacher(extra=True)[:, 1:]
    pseudo = fuse(prob, prob > 0.5, two_pieces(head=0), OutputSpace(1, has_regions=True))
    assert pseudo.prob[0, 0, 5] == prob[0, 0, 5] and pseudo.prob[0, 0, 0].item() == pytest.approx(0.982, abs=1e-3)


def test_the_confidence_of_regions_is_the_mean_of_the_weights_by_probability():
    """Two overlapping answers of weights 0.8 and 0.4; outside of both the mean weight of the image counts."""
    logits = torch.tensor([[20.0, 20.0, -20.0], [-20.0, 20.0, -20.0]])[:, None]
    ones = torch.ones(2)
    answers = Answers(
        torch.tensor([0, 0]), torch.tensor([0, 1]), logits > 0, logits, ones, ones, torch.tensor([0.8, 0.4])
    )
    hard = (logits > 0)[None]
    pseudo = fuse(hard.float(), hard, answers, OutputSpace(2, has_regions=True))
    assert pseudo.confidence.flatten().tolist() == pytest.approx([0.8, 0.6, 0.6], abs=1e-4)


def test_without_any_answer_the_teacher_is_handed_on():
    prob = teacher()
    for given in ({"answers": []}, {"answers": two_pieces(), "believed": [False, False]}):
        pseudo = fuse(prob, prob > 0.5, outputs=OutputSpace(2), **given)
        assert pseudo.prob is prob and pseudo.confidence.shape == (1, 1, 6) and not pseudo.confidence.any()
