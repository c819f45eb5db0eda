"""UA-MT: the teacher counts where it says the same under noise."""

import math
import weakref

import pytest
import torch

from nnunet_semisam.methods import build_method
from nnunet_semisam.methods._sam_assisted import SamAssisted
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.types import PseudoLabel, UnlabeledBatch


class Doubtful:
    """Sure everywhere; in the right half it says the opposite at every other call."""

    def __init__(self):
        self.images = []

    def __call__(self, image):
        self.images.append(image)
        one = torch.full_like(image[:, :1], 0.99)
        if len(self.images) % 2:
            one[..., image.shape[-1] // 2 :] = 0.01
        return torch.cat([one, 1 - one], 1)


@pytest.mark.parametrize("regions", [False, True])
def test_where_the_passes_disagree_nothing_is_believed(regions):
    teacher, image = Doubtful(), torch.randn(2, 1, 4, 6)
    method = build_method("ua_mt", {"passes": 4}, OutputSpace(2, regions))
    label = method.pseudo_labels(teacher, UnlabeledBatch(image, image, ("a", "b")))["consistency"]
    assert label.confidence[..., :3].min() == 1 and label.confidence[..., 3:].max() == 0
    clean, *noisy = teacher.images
    assert torch.equal(clean, image) and len(noisy) == 4
    assert torch.equal(label.prob, Doubtful()(image))
    for number, one in enumerate(noisy):
        difference = (one - image).abs()
        assert 0 < difference.max() <= 0.2 + 1e-6
        assert not any(torch.equal(one, other) for other in noisy[number + 1 :])


def test_the_surest_voxels_are_believed_however_often_the_teacher_is_asked():
    """Ten tenths are more than 1 in float32, and a logarithm of what is left to 1 would be NaN."""
    image = torch.zeros(1, 1, 4, 4)
    for passes in (8, 10, 11):
        method = build_method("ua_mt", {"passes": passes}, OutputSpace(2, True))
        label = method.pseudo_labels(lambda _: torch.ones(1, 2, 4, 4), UnlabeledBatch(image, image, ("a",)))
        assert label["consistency"].confidence.min() == 1


def test_the_limit_is_a_share_of_the_largest_entropy():
    """0.9 and two times 0.05: an entropy of 0.394, 0.359 of ln 3."""
    prob = torch.tensor([0.9, 0.05, 0.05]).view(1, 3, 1, 1)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.05)) / math.log(3)
    image = torch.zeros(1, 1, 1, 1)
    for limit, believed in ((entropy + 0.01, 1), (entropy - 0.01, 0), (1, 1)):
        method = build_method("ua_mt", {"passes": 1, "limit": limit}, OutputSpace(3))
        label = method.pseudo_labels(lambda _: prob, UnlabeledBatch(image, image, ("a",)))["consistency"]
        assert label.confidence.item() == believed


def test_in_a_cascade_the_labels_of_the_previous_stage_stay_as_they_are():
    image, teacher = torch.randn(2, 3, 4, 6), Doubtful()
    method = build_method("ua_mt", {}, OutputSpace(2))
    method.pseudo_labels(teacher, UnlabeledBatch(image, image, ("a", "b"), previous=2))
    for seen in teacher.images[1:]:
        assert torch.equal(seen[:, 1:], image[:, 1:]) and not torch.equal(seen[:, :1], image[:, :1])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"passes": 0}, "passes is 0; it must be an integer of at least 1"),
        ({"limit": 1.5}, "limit is 1.5"),
        ({"noise_std": -1.0}, "noise_std is -1.0"),
    ],
)
def test_bad_arguments_are_named(args, words):
    with pytest.raises(ValueError, match=words):
        build_method("ua_mt", args, OutputSpace(2))


def test_while_sam_works_no_more_than_one_output_of_the_teacher_is_kept():
    alive = []

    def teacher(image):
        prob = torch.rand(1, 2, 8, 8)
        alive.append(weakref.ref(prob))
        return prob

    class Looker(SamLabeler):
        def __init__(self):
            pass

        def __call__(self, image, prob, iteration=0):
            assert prob is alive[0]() and sum(ref() is not None for ref in alive) == 1
            return PseudoLabel.certain(prob)

    image = torch.zeros(1, 1, 8, 8)
    assisted = SamAssisted(build_method("ua_mt", {"passes": 4}, OutputSpace(2)), Looker())
    assert list(assisted.pseudo_labels(teacher, UnlabeledBatch(image, image, ("a",)))) == ["consistency", "sam"]
    assert len(alive) == 5
