import pytest
import torch

from nnunet_semisam.ops.losses import soft_mse


def some_prob(seed, shape=(2, 3, 4, 5, 6)):
    return torch.softmax(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), 1)


def test_mse_of_equal_probabilities_is_zero():
    prob = some_prob(0)
    assert soft_mse(prob, prob, torch.ones(2, 1, 4, 5, 6)) == 0


def test_zero_confidence_gives_zero_and_no_nan():
    prob = some_prob(0).requires_grad_()
    value = soft_mse(prob, some_prob(1), torch.zeros(2, 1, 4, 5, 6))
    value.backward()
    assert value == 0
    assert prob.grad.abs().sum() == 0


def test_confidence_weighs_each_voxel():
    prob, target = some_prob(0), some_prob(1)
    left = torch.zeros(2, 1, 4, 5, 6)
    left[..., :3] = 1
    both = soft_mse(prob, target, torch.ones_like(left))
    assert soft_mse(prob, target, left) + soft_mse(prob, target, 1 - left) == pytest.approx(both.item())
    assert soft_mse(prob, target, left) != pytest.approx(both.item() / 2)


def test_half_precision_stays_finite():
    prob = torch.zeros(1, 2, 4, 4, dtype=torch.float16)
    prob[:, 0] = 1
    assert torch.isfinite(soft_mse(prob, 1 - prob.float(), torch.ones(1, 1, 4, 4)))


def test_mse_equals_its_formula():
    prob = torch.tensor([[[[0.9]], [[0.1]]]])
    target = torch.tensor([[[[0.5]], [[0.5]]]])
    confidence = torch.tensor([[[[0.5]]]])
    assert soft_mse(prob, target, confidence) == pytest.approx((0.16 + 0.16) / 2 * 0.5)
