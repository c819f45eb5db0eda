import pytest
import torch

from nnunet_semisam.ops.align import FAINT, aligned
from nnunet_semisam.ops.outputs import OutputSpace


def test_labels_are_scaled_by_the_ratio_of_shares_and_sum_to_one():
    prob = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]]).view(2, 3, 1, 1)
    found = aligned(prob, [0.9, 0.05, 0.05], [0.7, 0.2, 0.1], OutputSpace(3))
    ratio = torch.tensor([0.9, 0.05, 0.05]).add(FAINT) / torch.tensor([0.7, 0.2, 0.1]).add(FAINT)
    expected = prob * ratio.view(3, 1, 1)
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True))
    assert found[0, 1].item() < 0.1 < prob[0, 1].item()


def test_regions_are_scaled_each_for_itself():
    prob = torch.tensor([[0.6, 0.9]]).view(1, 2, 1)
    found = aligned(prob, [0.5, 0.1, 0.3], [0.5, 0.4, 0.3], OutputSpace(2, has_regions=True))
    inside, outside = 0.6 * 0.101 / 0.401, 0.4 * 0.901 / 0.601
    assert found.flatten().tolist() == pytest.approx([inside / (inside + outside), 0.9])


@pytest.mark.parametrize("regions", [False, True])
def test_equal_shares_and_strength_0_change_nothing_and_half_strength_half(regions):
    outputs = OutputSpace(2, has_regions=regions)
    prob = torch.rand(2, 2, 4, 4)
    prob = prob if regions else prob / prob.sum(1, keepdim=True)
    same, other = [0.2, 0.3, 0.5][: 3 if regions else 2], [0.6, 0.4, 0.1][: 3 if regions else 2]
    assert torch.allclose(aligned(prob, same, same, outputs), prob)
    assert torch.allclose(aligned(prob, same, other, outputs, strength=0), prob)
    twice = aligned(aligned(prob, same, other, outputs, strength=0.5), same, other, outputs, strength=0.5)
    assert torch.allclose(twice, aligned(prob, same, other, outputs), atol=1e-6)


def test_a_class_that_neither_side_has_is_left_alone():
    prob = torch.tensor([0.7, 0.3]).view(1, 2, 1, 1)
    assert torch.allclose(aligned(prob, [1.0, 0.0], [1.0, 0.0], OutputSpace(2)), prob)
