"""The adapter of Segment Anything: frames, coordinates, decoding of many images at once, and bad checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.backends.segment_anything import SegmentAnything, decode_items
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.types import Prompts

CPU = torch.device("cpu")


def build(kit, **settings) -> SegmentAnything:
    return SegmentAnything.from_network(kit.sam(), CPU, **({"input_size": 96} | settings))


def spied(backend, image, prompts, monkeypatch):
    """What reaches SAM's prompt encoder: points with labels, boxes, masks."""
    seen = []
    forward = backend.sam.prompt_encoder.forward
    monkeypatch.setattr(backend.sam.prompt_encoder, "forward", lambda *given: seen.append(given) or forward(*given))
    backend.decode(backend.embed(image), prompts)
    return seen


def click(y: float, x: float, **more) -> Prompts:
    index = torch.zeros(1, dtype=torch.int64)
    return Prompts(
        index, index + 1, torch.tensor([[[float(y), float(x)]]]), torch.ones(1, 1, dtype=torch.int64), **more
    )


def test_clicks_and_boxes_arrive_as_x_y_in_sams_frame(kit, monkeypatch):
    prompts = click(9, 40, boxes=torch.tensor([[[4.0, 30.0], [12.0, 48.0]]]))
    [(points, boxes, masks)] = spied(build(kit), torch.rand(1, 1, 24, 48), prompts, monkeypatch)
    # 24 x 48 voxels become 48 x 96 pixels, and SAM adds half a pixel itself
    assert (points[0] + 0.5).tolist() == [[[2 * 40.5, 2 * 9.5]]]
    assert (boxes + 0.5).tolist() == [[60.0, 8.0, 96.0, 24.0]] and masks is None


def test_mask_prompts_are_logits_in_the_upper_left_of_the_frame(kit, monkeypatch):
    logits = torch.full((1, 24, 48), -9.0)
    logits[0, 12:, 24:] = 9.0
    prompts = click(18, 36, mask_logits=logits)
    [(_, _, masks)] = spied(build(kit), torch.rand(1, 1, 24, 48), prompts, monkeypatch)
    assert masks.shape == (1, 1, 24, 24)
    assert masks[0, 0, 8:12, 14:].min() == 7 and masks[0, 0, :5].max() == -7 and masks[0, 0, 12:].max() == -7


def test_images_are_grey_levels_between_robust_percentiles_with_zero_padding(kit):
    backend = build(kit)
    image = torch.randn(2, 1, 24, 48, generator=torch.Generator().manual_seed(0))
    image[0, 0, 0, 0] = 1e4
    pixels = backend._prepare(image, (48, 96))
    assert pixels.shape == (2, 3, 96, 96) and pixels[:, :, 48:].abs().max() == 0
    grey = pixels[:, :, :48] * backend.sam.pixel_std + backend.sam.pixel_mean
    assert torch.allclose(grey[:, :1].expand_as(grey), grey, atol=1e-3)
    assert grey.min() >= -0.01 and grey.max() <= 255.01 and grey.std() > 25
    assert torch.allclose(backend._prepare(5 * image - 3, (48, 96)), pixels, atol=1e-3)


def test_channels(kit):
    image = torch.rand(1, 4, 24, 48)
    two = build(kit)._prepare(image, (48, 96))
    assert torch.equal(two, build(kit, channels=(0,))._prepare(image, (48, 96)))
    three = build(kit, channels=[2, 1, 3])._prepare(image, (48, 96))
    assert torch.equal(three, build(kit)._prepare(image[:, [2, 1, 3]], (48, 96)))
    with pytest.raises(ValueError, match=r"channels is \(4,\), but images have 4 channels"):
        build(kit, channels=(4,))._prepare(image, (48, 96))
    with pytest.raises(ValueError, match="one channel, or three"):
        build(kit, channels=(0, 1))
    with pytest.raises(ValueError, match="max_planes is 0; it must be an integer of at least 1"):
        build(kit, max_planes=0)


def test_decoding_many_images_equals_the_packages_decoder_one_by_one(kit):
    sam = kit.sam().eval()
    features, sparse, dense = torch.randn(3, 32, 4, 4), torch.randn(5, 3, 32), torch.randn(5, 32, 4, 4)
    image, positions = torch.tensor([2, 0, 1, 1, 2]), sam.prompt_encoder.get_dense_pe()
    masks, quality = decode_items(sam.mask_decoder, features[image] + dense, positions, sparse)
    for item, i in enumerate(image.tolist()):
        own, iou = sam.mask_decoder.predict_masks(
            features[i : i + 1], positions, sparse[item : item + 1], dense[item : item + 1]
        )
        assert torch.allclose(masks[item], own[0], atol=1e-5) and torch.allclose(quality[item], iou[0], atol=1e-5)


def test_a_lone_click_takes_the_best_of_three_masks_and_other_prompts_the_first(kit, monkeypatch):
    backend, image = build(kit), torch.rand(1, 1, 24, 48)
    masks = torch.arange(4.0)[None, :, None, None].expand(1, 4, 24, 24)
    quality = torch.tensor([[0.95, 0.2, 0.9, 0.3]])
    module = "nnunet_semisam.sam.backends.segment_anything.decode_items"
    monkeypatch.setattr(module, lambda *_: (masks, quality))
    alone = backend.decode(backend.embed(image), click(5, 5))
    boxed = backend.decode(backend.embed(image), click(5, 5, boxes=torch.tensor([[[2.0, 2.0], [9.0, 9.0]]])))
    assert alone.mask_logits.unique().tolist() == [2] and alone.iou_predictions.item() == pytest.approx(0.9)
    assert boxed.mask_logits.unique().tolist() == [0] and boxed.iou_predictions.item() == pytest.approx(0.95)


def test_masks_come_back_to_the_plane(kit, monkeypatch):
    backend = build(kit)
    ramp = torch.arange(24.0)[None, None, :, None].expand(1, 4, 24, 24) + 100 * torch.arange(24.0)
    module = "nnunet_semisam.sam.backends.segment_anything.decode_items"
    monkeypatch.setattr(module, lambda *_: (ramp, torch.ones(1, 4)))
    logits = backend.decode(backend.embed(torch.rand(1, 1, 24, 48)), click(5, 5)).mask_logits[0]
    # voxel (y, x) is pixel (2 y + 0.5, 2 x + 0.5) of the frame, cell (y - 0.5) / 2 + 0.125 ... of the quarter grid
    y, x = torch.meshgrid((torch.arange(24.0) + 0.5) / 2 - 0.5, (torch.arange(48.0) + 0.5) / 2 - 0.5, indexing="ij")
    assert torch.allclose(logits[1:, 1:-1], (y + 100 * x)[1:, 1:-1], atol=1e-2)


def test_padding_clicks_say_nothing(kit):
    backend, scene = build(kit), kit.scene(2, prompts=["points"])
    padded = replace(
        scene.prompts,
        point_coords=torch.cat([torch.full((4, 2, 2), 7.0), scene.prompts.point_coords], dim=1),
        point_labels=torch.cat([torch.full((4, 2), -1), scene.prompts.point_labels], dim=1),
    )
    embedding = backend.embed(scene.image)
    expected = backend.decode(embedding, scene.prompts).mask_logits
    assert torch.allclose(backend.decode(embedding, padded).mask_logits, expected, atol=1e-4)


@pytest.mark.parametrize("prompts", [["points"], ["box"], ["mask"], ["points", "negative_points", "box", "mask"]])
def test_every_kind_of_prompt_is_heard(kit, prompts):
    backend, scene = build(kit), kit.scene(2, prompts=prompts)
    embedding = backend.embed(scene.image)
    answers = backend.decode(embedding, replace(scene.prompts, image=torch.zeros(4, dtype=torch.int64)))
    assert (answers.mask_logits[0] - answers.mask_logits[1]).abs().max() > 1e-4


def test_chunks_of_the_encoder_do_not_matter(kit):
    image = torch.rand(3, 1, 24, 48)
    whole, chunked = build(kit).embed(image).features, build(kit, max_planes=2).embed(image).features
    assert torch.allclose(whole, chunked, atol=1e-5)


def test_the_working_resolution_is_free_but_a_multiple_of_the_patch(kit):
    assert build(kit, input_size=128).embed(torch.rand(1, 1, 24, 48)).features.shape == (1, 32, 8, 8)
    with pytest.raises(ValueError, match="input_size is 100; it must be a multiple of 16"):
        build(kit, input_size=100)


def test_volumes_are_labeled_by_planes(kit):
    scene = kit.scene(3)
    config = SamConfig(backend="segment_anything", planes=2, min_agreement=0)
    label = SamLabeler(build(kit), config, OutputSpace(3))
    pseudo = label(scene.image.half(), scene.prob.half(), 1)
    assert pseudo.prob.isfinite().all() and pseudo.prob.shape == scene.prob.shape and label.stats["items"] >= 4


@pytest.fixture
def registry(kit, monkeypatch):
    """Segment Anything's smallest model, made tiny."""
    package = pytest.importorskip("segment_anything")
    monkeypatch.setitem(package.sam_model_registry, "vit_b", lambda checkpoint: kit.sam())


def test_a_checkpoint_is_loaded(kit, registry, tmp_path):
    weights = kit.sam().state_dict()
    weights["mask_decoder.iou_token.weight"] += 1
    torch.save(weights, tmp_path / "sam.pth")
    config = SamConfig(backend="segment_anything", checkpoint=str(tmp_path / "sam.pth"))
    backend = build_backend(replace(config, backend_args={"model": "vit_b", "input_size": 64}), CPU)
    assert torch.equal(backend.sam.mask_decoder.iou_token.weight, weights["mask_decoder.iou_token.weight"])


def test_bad_checkpoints_are_named(kit, registry, tmp_path):
    file = tmp_path / "sam.pth"
    with pytest.raises(ValueError, match="ships no weights; set sam.checkpoint"):
        SegmentAnything(None, CPU)
    with pytest.raises(FileNotFoundError, match="sam.pth: no such file"):
        SegmentAnything(str(file), CPU)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="sam.pth cannot be read .* damaged"):
        SegmentAnything(str(file), CPU)
    torch.save(kit.sam().state_dict(), file)
    with pytest.raises(ValueError, match="sam.pth is none of Segment Anything's models vit_b, vit_l, vit_h"):
        SegmentAnything(str(file), CPU)
    with pytest.raises(ValueError, match="model is 'vit_x'; known are vit_b, vit_l, vit_h"):
        SegmentAnything(str(file), CPU, model="vit_x")
    torch.save({"weight": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="sam.pth does not hold a vit_b"):
        SegmentAnything(str(file), CPU, model="vit_b")


@pytest.mark.slow
def test_the_real_layout_with_random_weights(kit, tmp_path):
    package = pytest.importorskip("segment_anything")
    torch.save(package.sam_model_registry["vit_b"](checkpoint=None).state_dict(), tmp_path / "sam.pth")
    backend = SegmentAnything(str(tmp_path / "sam.pth"), CPU, input_size=224)
    scene = kit.scene(2)
    assert backend.decode(backend.embed(scene.image), scene.prompts).mask_logits.shape == (4, 40, 56)
