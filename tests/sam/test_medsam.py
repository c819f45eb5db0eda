"""MedSAM: boxes only, images as 0..1 in a stretched square, an IoU that the answer itself gives."""

from dataclasses import replace

import pytest
import torch

from nnunet_semisam.sam.backends.medsam import MedSam
from nnunet_semisam.sam.base import expected_iou
from nnunet_semisam.sam.tuning import Tunable

CPU = torch.device("cpu")


@pytest.fixture
def medsam(kit):
    return MedSam.from_network(kit.sam(), CPU, input_size=96)


def test_the_image_fills_the_square_in_0_to_1(medsam, kit):
    seen = []
    medsam.sam.image_encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image = kit.scene(2).image * 5 + 100
    medsam.embed(image)
    (pixels,) = seen
    assert pixels.shape == (2, 3, 96, 96) and pixels.min() >= 0 and pixels.max() <= 1
    assert pixels.amax() > 0.9 and pixels.amin() < 0.1
    assert pixels[..., -1, :].std() > 0 and pixels[..., -1].std() > 0  # no padding at any edge


def test_only_boxes_are_heard(medsam, kit):
    scene = kit.scene(2)
    embedding = medsam.embed(scene.image)
    answer = medsam.decode(embedding, scene.prompts).mask_logits
    deaf = replace(scene.prompts, point_coords=scene.prompts.point_coords + 3, mask_logits=None)
    assert torch.equal(medsam.decode(embedding, deaf).mask_logits, answer)
    moved = replace(scene.prompts, boxes=scene.prompts.boxes + 3)
    assert not torch.allclose(medsam.decode(embedding, moved).mask_logits, answer)
    with pytest.raises(ValueError, match="'medsam' hears boxes only; add box to sam.prompts"):
        medsam.decode(embedding, replace(scene.prompts, boxes=None))


def test_the_answer_says_itself_how_good_it_is(medsam, kit):
    scene = kit.scene(2)
    answer = medsam.decode(medsam.embed(scene.image), scene.prompts)
    assert torch.allclose(answer.iou_predictions, expected_iou(answer.mask_logits))


def test_expected_iou_by_hand():
    sure = torch.tensor([[20.0, 20.0, -20.0, -20.0]])
    assert expected_iou(sure).item() == pytest.approx(1)
    # probabilities 3/4, 3/4, 1/4, 1/4: expected intersection 1.5, expected union 2 + 0.5
    vague = torch.tensor([[3.0, 3.0, 1 / 3, 1 / 3]]).log()
    assert expected_iou(vague).item() == pytest.approx(1.5 / 2.5)


def test_messages_name_this_backend_and_its_file():
    with pytest.raises(ValueError, match=r"'medsam' ships no weights; set sam.checkpoint to .*medsam_vit_b.pth"):
        MedSam(None, CPU)


def test_it_is_not_tuned_on_prompts_that_it_never_hears(medsam):
    assert not isinstance(medsam, Tunable)
