"""The adapter of SAM-Med3D: grey values, windows, clicks and masks, the estimated IoU, and bad checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.backends import sam_med3d
from nnunet_semisam.sam.backends.sam_med3d import SamMed3D
from nnunet_semisam.sam.base import expected_iou
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.types import Prompts

CPU = torch.device("cpu")
SPACING = (3.0, 1.5, 1.0)


def build(kit, **settings) -> SamMed3D:
    return SamMed3D(kit.med3d(), CPU, **({"spacing": SPACING} | settings))


def spied(backend, monkeypatch):
    """What reaches the network: images, and (features, clicks, labels, masks) of each call of the decoder."""
    seen = {"images": [], "prompted": []}
    encode, decode = backend.network.encode, backend.network.decode
    monkeypatch.setattr(backend.network, "encode", lambda image: seen["images"].append(image) or encode(image))
    monkeypatch.setattr(backend.network, "decode", lambda *given: seen["prompted"].append(given) or decode(*given))
    return seen


def clicks(*places, **more) -> Prompts:
    index = torch.zeros(1, dtype=torch.int64)
    coords = torch.tensor([[list(map(float, place)) for place in places]]).view(1, -1, 3)
    return Prompts(index, index + 1, coords, torch.ones(1, len(places), dtype=torch.int64), **more)


def test_clicks_arrive_as_x_y_z_in_voxels_of_the_window(kit, monkeypatch):
    backend = build(kit)
    seen = spied(backend, monkeypatch)
    box = torch.tensor([[[4.0, 8.0, 10.0], [8.0, 16.0, 20.0]]])
    # the window's middle is the box's, (5.5, 11.5, 14.5), at 15.5; a voxel of it is 1.5 mm
    prompts = clicks((5.5, 11.5, 14.5), (6.5, 13.5, 17.5), (5.5, 11.5, 99.0), boxes=box)
    backend.decode(backend.embed(torch.rand(1, 1, 12, 24, 30)), prompts)
    [(_, coords, labels, masks)] = seen["prompted"]
    assert torch.allclose(coords[0], torch.tensor([[15.5, 15.5, 15.5], [17.5, 17.5, 17.5]]), atol=1e-4)
    assert labels.tolist() == [[1, 1]]  # the third is beyond the window
    assert masks.shape == (1, 1, 8, 8, 8) and masks.abs().max() == 0  # as trained: zeros where there is no mask


def test_mask_prompts_are_logits_and_surely_not_the_object_beyond_the_patch(kit, monkeypatch):
    backend = build(kit, spacing=(1.5, 1.5, 1.5))
    seen = spied(backend, monkeypatch)
    logits = torch.full((1, 16, 16, 16), 9.0)
    backend.decode(backend.embed(torch.rand(1, 1, 16, 16, 16)), clicks((7.5, 7.5, 7.5), mask_logits=logits))
    masks = seen["prompted"][0][3]
    assert torch.equal(masks[0, 0, 2:6, 2:6, 2:6], torch.full((4, 4, 4), 7.0)) and masks.sum() == 7 * (64 - (512 - 64))


def test_windows_are_z_scored_over_the_body(kit, monkeypatch):
    backend = build(kit, spacing=(1.5, 1.5, 1.5))
    seen = spied(backend, monkeypatch)
    body = torch.randn(1, 1, 24, 20, 28, generator=torch.Generator().manual_seed(0)) * 2 + 9
    image = torch.nn.functional.pad(body, (4, 4, 4, 4, 4, 4), value=-3.0)  # air
    image[..., :3] = 0  # nnU-Net's padding
    backend.decode(backend.embed(image), clicks((15.5, 13.5, 17.5)))
    backend.decode(backend.embed(5 * image - 2 * (image != 0)), clicks((15.5, 13.5, 17.5)))
    first, second = seen["images"]
    assert torch.allclose(first, second, atol=1e-3)  # whatever scale nnU-Net has chosen
    view = first[0, 0].permute(2, 1, 0)
    inside = view[4:28, 6:26, 2:30]
    assert abs(inside.mean()) < 0.02 and abs(inside.std() - 1) < 0.02
    air = (-3 - body.mean()) / body.std()
    assert torch.allclose(view[:4].unique(), air, atol=0.1) and torch.allclose(view[..., 0].unique(), air, atol=0.1)


def test_the_raw_zero_says_what_is_body(kit, monkeypatch):
    backend = build(kit, spacing=(1.5, 1.5, 1.5), raw_zero=-1.0)
    seen = spied(backend, monkeypatch)
    image = torch.where(torch.rand(1, 1, 32, 32, 32) < 0.5, -4.0, 1.0)
    image[:, :, :16] *= 2
    backend.decode(backend.embed(image), clicks((15.5, 15.5, 15.5)))
    assert torch.allclose(seen["images"][0].unique(), (torch.tensor([-8.0, -4, 1, 2]) - 1.5) / 0.5, atol=0.1)


def test_an_empty_image_stays_finite(kit):
    backend = build(kit)
    answer = backend.decode(backend.embed(torch.zeros(1, 1, 8, 8, 8)), clicks((4, 4, 4)))
    assert answer.mask_logits.isfinite().all()


def test_one_window_for_all_objects_is_encoded_once(kit, monkeypatch):
    for window, count in {"object": 4, "patch": 2}.items():
        backend, scene = build(kit, window=window, max_windows=3), kit.scene(3)
        seen = spied(backend, monkeypatch)
        backend.decode(backend.embed(scene.image), scene.prompts)
        assert sum(len(images) for images in seen["images"]) == count
        assert max(len(given[1]) for given in seen["prompted"]) <= 3


def test_padding_clicks_say_nothing(kit):
    backend, scene = build(kit), kit.scene(3, prompts=["points"])
    padded = replace(
        scene.prompts,
        point_coords=torch.cat([torch.full((4, 2, 3), 7.0), scene.prompts.point_coords], dim=1),
        point_labels=torch.cat([torch.full((4, 2), -1), scene.prompts.point_labels], dim=1),
    )
    embedding = backend.embed(scene.image)
    expected = backend.decode(embedding, scene.prompts).mask_logits
    assert torch.allclose(backend.decode(embedding, padded).mask_logits, expected, atol=1e-5)


def test_items_may_have_different_numbers_of_clicks(kit):
    backend, scene = build(kit), kit.scene(3, prompts=["points", "negative_points", "box"])
    labels = scene.prompts.point_labels.clone()
    labels[1, 1] = labels[2, :] = -1
    mixed = replace(scene.prompts, point_labels=labels)
    embedding = backend.embed(scene.image)
    answer, plain = (backend.decode(embedding, given).mask_logits for given in (mixed, scene.prompts))
    assert torch.allclose(answer[0], plain[0], atol=1e-5) and torch.allclose(answer[3], plain[3], atol=1e-5)
    assert (answer[1] - plain[1]).abs().max() > 1e-4


@pytest.mark.parametrize("prompts", [["points"], ["mask"], ["points", "negative_points", "box", "mask"]])
def test_clicks_and_masks_are_heard(kit, prompts):
    backend, scene = build(kit, window="patch"), kit.scene(3, prompts=prompts)
    answers = backend.decode(
        backend.embed(scene.image), replace(scene.prompts, image=torch.zeros(4, dtype=torch.int64))
    )
    assert (answers.mask_logits[0] - answers.mask_logits[1]).abs().max() > 1e-4


def test_a_box_alone_is_an_error_and_with_others_it_only_says_where_to_look(kit):
    scene = kit.scene(3, prompts=["box"])
    with pytest.raises(ValueError, match="hears points and masks.* add points or mask to sam.prompts"):
        build(kit).decode(build(kit).embed(scene.image), scene.prompts)
    backend, scene = build(kit, window="patch"), kit.scene(3)
    embedding = backend.embed(scene.image)
    other = replace(scene.prompts, boxes=scene.prompts.boxes.flip(0))
    assert torch.equal(
        backend.decode(embedding, other).mask_logits, backend.decode(embedding, scene.prompts).mask_logits
    )


def test_no_items(kit):
    backend, scene = build(kit), kit.scene(3)
    nobody = replace(
        scene.prompts,
        **{name: value[:0] for name, value in vars(scene.prompts).items()},
    )
    answer = backend.decode(backend.embed(scene.image), nobody)
    assert answer.mask_logits.shape == (0, 20, 32, 44) and answer.iou_predictions.shape == (0,)


def test_the_iou_is_what_the_probabilities_promise():
    sure = torch.full((1, 4, 4, 4), -20.0)
    sure[0, :2] = 20.0
    unsure = sure.clone()
    unsure[0, 1] = 1e-4  # a half of the mask is even odds
    nothing = torch.full((1, 4, 4, 4), -1.0)
    assert expected_iou(torch.cat([sure, unsure, nothing])).tolist() == pytest.approx([1, 0.75, 0], abs=1e-3)


def test_patches_are_labeled(kit):
    scene = kit.scene(3)
    label = SamLabeler(build(kit), SamConfig(backend="sam_med3d", min_agreement=0), scene.outputs)
    label.probe(torch.zeros(1, 1, 20, 32, 44))
    pseudo = label(scene.image.half(), scene.prob.half(), 1)
    assert pseudo.prob.isfinite().all() and label.stats["items"] == 4


def test_mistaken_arguments(kit):
    image = torch.rand(1, 2, 8, 8, 8)
    for spacing in (None, (1.0, 1.0)):
        with pytest.raises(ValueError, match="spacing of sam.backend 'sam_med3d' is .* give the mm per voxel"):
            build(kit, spacing=spacing).embed(image)
    with pytest.raises(ValueError, match="serves 3D images, not one of 2 axes"):
        build(kit).embed(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="channel .* is 2; images have 2 channels"):
        build(kit, channel=2).embed(image)
    for name, value in {"window": "slice", "axes": (0, 1, 1), "max_windows": 0}.items():
        with pytest.raises(ValueError, match=f"sam.backend_args.{name} "):
            build(kit, **{name: value})


def test_a_checkpoint_is_loaded_bare_or_as_published(kit, monkeypatch, tmp_path):
    monkeypatch.setattr(sam_med3d, "Med3D", type("Tiny", (), {"__new__": lambda cls: kit.med3d()}))
    weights = kit.med3d().state_dict()
    weights["mask_decoder.iou_token.weight"] += 1
    for content in (weights, {"model_state_dict": weights, "epoch": 3}):
        torch.save(content, tmp_path / "med3d.pth")
        config = SamConfig(backend="sam_med3d", checkpoint=str(tmp_path / "med3d.pth"))
        backend = build_backend(config, CPU, SPACING)
        assert torch.equal(backend.network.mask_decoder.iou_token.weight, weights["mask_decoder.iou_token.weight"])
        assert backend.spacing == SPACING


def test_bad_checkpoints_are_named(kit, tmp_path):
    file = tmp_path / "med3d.pth"
    with pytest.raises(ValueError, match="'sam_med3d' ships no weights; set sam.checkpoint .* sam_med3d_turbo.pth"):
        SamMed3D(None, CPU)
    with pytest.raises(FileNotFoundError, match="med3d.pth: no such file"):
        SamMed3D(str(file), CPU)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="med3d.pth cannot be read .* damaged"):
        SamMed3D(str(file), CPU)
    torch.save({"model_state_dict": {"weight": [1]}}, file)
    with pytest.raises(ValueError, match="med3d.pth is no plain state dictionary"):
        SamMed3D(str(file), CPU)
    torch.save({"model_state_dict": {"image_encoder.pos_embed": torch.ones(1), "stranger": torch.ones(1)}}, file)
    with torch.device("meta"), pytest.raises(ValueError, match="does not hold SAM-Med3D .missing: image_encoder.* and"):
        SamMed3D(str(file), CPU)


@pytest.mark.slow
def test_the_real_layout_with_random_weights(tmp_path, kit):
    torch.save({"model_state_dict": sam_med3d.Med3D().state_dict()}, tmp_path / "med3d.pth")
    backend = SamMed3D(str(tmp_path / "med3d.pth"), CPU, spacing=SPACING)
    scene = kit.scene(3)
    answer = backend.decode(backend.embed(scene.image), scene.prompts)
    assert answer.mask_logits.shape == (4, 20, 32, 44) and answer.mask_logits.isfinite().all()
