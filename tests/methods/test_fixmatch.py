"""FixMatch: hard labels, where the teacher is sure."""

import torch

from nnunet_semisam.methods import build_method
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.types import UnlabeledBatch


def test_labels_are_hard_and_count_from_the_threshold_on():
    prob = torch.tensor([[0.97, 0.6, 0.05], [0.03, 0.4, 0.95]]).view(1, 2, 1, 3)
    image = torch.zeros(1, 1, 1, 3)
    method = build_method("fixmatch", {"threshold": 0.95}, OutputSpace(2))
    label = method.pseudo_labels(lambda _: prob, UnlabeledBatch(image, image, ("a",)))["consistency"]
    assert label.prob.flatten().tolist() == [1, 1, 0, 0, 0, 1]
    assert label.confidence.flatten().tolist() == [1, 0, 1]
