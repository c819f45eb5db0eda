import pytest
import torch

from nnunet_semisam.ops.losses import LOSSES, soft_dice, soft_mse


@pytest.fixture(params=LOSSES.values(), ids=LOSSES)
def loss(request):
    return request.param


def some_prob(seed, shape=(2, 3, 4, 5, 6)):
    return torch.softmax(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), 1)


def ones(prob):
    return torch.ones_like(prob[:, :1])


def test_equal_probabilities_cost_nothing_and_are_the_minimum(loss):
    target = some_prob(0)
    prob = target.clone().requires_grad_()
    value = loss(prob, target, ones(prob))
    value.backward()
    assert value == 0
    assert prob.grad.abs().max() == 0
    assert loss(some_prob(1), target, ones(prob)) > 0


def test_zero_confidence_gives_zero_and_no_nan(loss):
    prob = some_prob(0).requires_grad_()
    value = loss(prob, some_prob(1), torch.zeros(2, 1, 4, 5, 6))
    value.backward()
    assert value == 0
    assert prob.grad.abs().sum() == 0


def test_confidence_weighs_each_voxel(loss):
    prob, target = some_prob(0), some_prob(1)
    left = torch.zeros(2, 1, 4, 5, 6)
    left[..., :3] = 1
    both = loss(prob, target, ones(prob))
    assert loss(prob, target, left) + loss(prob, target, 1 - left) == pytest.approx(both.item())
    assert loss(prob, target, left) != pytest.approx(both.item() / 2)
    assert loss(prob, target, 0.3 * ones(prob)) == pytest.approx(0.3 * both.item())


def test_half_precision_stays_finite(loss):
    prob = torch.zeros(1, 2, 4, 4, dtype=torch.float16)
    prob[:, 0] = 1
    assert torch.isfinite(loss(prob, 1 - prob.float(), torch.ones(1, 1, 4, 4)))


def test_mse_equals_its_formula():
    prob = torch.tensor([[[[0.9]], [[0.1]]]])
    target = torch.tensor([[[[0.5]], [[0.5]]]])
    confidence = torch.tensor([[[[0.5]]]])
    assert soft_mse(prob, target, confidence) == pytest.approx((0.16 + 0.16) / 2 * 0.5)


def test_dice_equals_its_formula():
    prob, target = some_prob(0), some_prob(1)
    expected = []
    for p, t in zip(prob.unbind(1), target.unbind(1), strict=True):
        own, other = (p**2).sum(), (t**2).sum()
        dice = 2 * (p * t).sum() / (own + other)
        expected.append((1 - dice) * (own + other) / (own + other + 1) * other / (other + 1))
    assert soft_dice(prob, target, ones(prob)) == pytest.approx(torch.stack(expected).mean().item())


def test_gradients_are_linear_in_the_confidence(loss):
    """So the mean over single planes with the weight of all is the gradient of all planes."""
    target, left = some_prob(1), torch.zeros(2, 1, 4, 5, 6)
    left[..., :2] = 1
    gradients = []
    for confidence in (left, 1 - left, torch.ones_like(left)):
        prob = some_prob(0).requires_grad_()
        loss(prob, target, confidence).backward()
        gradients.append(prob.grad)
    assert torch.allclose(gradients[0] + gradients[1], gradients[2], atol=1e-8)


def test_dice_is_relative_to_the_object_and_mse_to_the_patch():
    """The same object in a patch of eight times the size."""
    values = []
    for side in (8, 16):
        target = torch.zeros(1, 1, side, side, side)
        target[..., :4, :4, :4] = 1
        values.append([f(0.5 * target, target, ones(target)).item() for f in (soft_mse, soft_dice)])
    assert values[0][0] == pytest.approx(8 * values[1][0])
    assert values[0][1] == pytest.approx(values[1][1])


@pytest.mark.parametrize(("side", "sure"), [(1, 0.8), (2, 0.4), (4, 0.1), (4, 0.5), (8, 0.4), (12, 0.4)])
def test_dice_does_not_push_back_what_the_target_lacks(side, sure):
    """The pull on an object that the student begins to find: with a teacher that has not found it, and with one that
    has found it."""
    pulls = []
    for found in (0.0, 1.0):
        prob = torch.zeros(1, 1, 16, 16, 16)
        prob[..., :side, :side, :side] = sure
        target = found * (prob > 0)
        prob.requires_grad_()
        soft_dice(prob, target, ones(target)).backward()
        pulls.append(prob.grad.abs().sum().item())
    assert pulls[0] == 0 and pulls[1] > 0


def test_dice_lets_go_of_what_the_target_has_only_a_shade_of():
    """The pull grows with what the teacher sees: a tenth of a voxel, all of it."""
    pulls = []
    for shade in (0.01, 0.1, 1.0):
        prob = torch.zeros(1, 1, 8, 8, 8)
        prob[..., :2, :2, :2] = 0.5
        target = torch.zeros_like(prob)
        target[..., 0, 0, 0] = shade
        prob.requires_grad_()
        soft_dice(prob, target, ones(target)).backward()
        pulls.append(prob.grad.abs().sum().item())
    assert pulls[0] < 0.001 * pulls[2] and pulls[1] < 0.1 * pulls[2]


@pytest.mark.parametrize("name", LOSSES)
def test_the_backward_pass_keeps_nothing_but_what_there_is_already(name):
    """With many classes each further tensor takes as much as the network's output."""
    prob, target, confidence = torch.rand(2, 5, 8, 8).requires_grad_(), torch.rand(2, 5, 8, 8), torch.rand(2, 1, 8, 8)
    known, kept = {tensor.data_ptr() for tensor in (prob, target, confidence)}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        LOSSES[name](prob, target, confidence).backward()
    assert len(kept) >= 3 and all(tensor.data_ptr() in known or tensor.numel() <= 5 for tensor in kept)


def test_the_gradient_is_that_of_the_formula():
    prob, target, confidence = torch.rand(2, 5, 8, 8).requires_grad_(), torch.rand(2, 5, 8, 8), torch.rand(2, 1, 8, 8)
    (3 * LOSSES["mse"](prob, target, confidence)).backward()
    torch.testing.assert_close(prob.grad, 3 * 2 * (prob - target).detach() * confidence / prob.numel())
    prob.grad = None
    (3 * LOSSES["dice"](prob, target, confidence)).backward()
    own, other = (prob.detach() ** 2).sum((0, 2, 3)), (target**2).sum((0, 2, 3))
    factor = (other / (other + 1) / (own + other + 1) / 5).view(1, 5, 1, 1)
    torch.testing.assert_close(prob.grad, 3 * 2 * (prob - target).detach() * confidence * factor)
