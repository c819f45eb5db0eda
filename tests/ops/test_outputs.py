import torch

from nnunet_semisam.ops.outputs import OutputSpace, full_resolution


def test_labels_sum_to_one_and_background_is_no_object():
    labels = OutputSpace(3)
    prob = labels.prob(torch.randn(2, 3, 4, 4))
    assert torch.allclose(prob.sum(1), torch.ones(2, 4, 4))
    assert labels.foreground_heads == (1, 2)


def test_regions_overlap_and_every_head_is_an_object():
    regions = OutputSpace(2, has_regions=True)
    prob = regions.prob(torch.full((1, 2, 4, 4), 3.0))
    assert (prob > 0.9).all()
    assert regions.foreground_heads == (0, 1)
    assert regions.harden(prob).sum() == prob.numel()


def test_hardened_labels_are_one_hot_at_the_most_probable():
    prob = torch.softmax(torch.randn(2, 4, 3, 3, 3), 1)
    hard = OutputSpace(4).harden(prob)
    assert (hard.sum(1) == 1).all()
    assert (hard.argmax(1) == prob.argmax(1)).all()


def test_of_equally_probable_labels_the_first_counts():
    prob = torch.tensor([[0.2, 0.4], [0.4, 0.2], [0.4, 0.4]]).T.reshape(2, 3, 1)
    assert OutputSpace(3).labels(prob).flatten().tolist() == [1, 0]


def test_confidence_of_regions_is_that_of_the_least_certain_head():
    prob = torch.tensor([0.9, 0.45]).view(1, 2, 1, 1)
    assert torch.allclose(OutputSpace(2, True).confidence(prob), torch.tensor(0.55))
    assert torch.allclose(OutputSpace(2).confidence(prob), torch.tensor(0.9))


def test_full_resolution_is_the_first_of_a_list():
    fine, coarse = torch.zeros(1), torch.ones(1)
    assert full_resolution([fine, coarse]) is fine
    assert full_resolution(fine) is fine
