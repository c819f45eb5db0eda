"""Several generalists, one answer: who counts how much, which axes are common, and mistakes in the list of members."""

from __future__ import annotations

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.backends.ensemble import Ensemble
from nnunet_semisam.sam.backends.segment_anything import SegmentAnything
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.types import SamPrediction

CPU = torch.device("cpu")


class Says(SamBackend):
    """Always the same answer."""

    def __init__(self, logits, iou, ndims=(2,)):
        self.logits, self.iou, self.ndims, self.heard = torch.tensor(logits), torch.tensor(iou), ndims, []

    def embed(self, image):
        return image

    def decode(self, embedding, prompts):
        self.heard.append(prompts)
        shape = (len(prompts), *embedding.shape[2:])
        return SamPrediction(self.logits.expand(shape).clone(), self.iou.expand(len(prompts)))

    def to(self, device):
        self.device = device
        return self


def answer(kit, *members):
    scene = kit.scene(2)
    ensemble = Ensemble.of(members)
    return ensemble.decode(ensemble.embed(scene.image), scene.prompts)


def test_one_member_speaks_for_itself(kit):
    logits = [-15.0, -2.0, 0.0, 0.3, 5.0, 12.0, 19.0] * 8
    said = answer(kit, Says(logits, 0.7))
    assert torch.allclose(said.mask_logits[0, 0], torch.tensor(logits), atol=1e-4)
    assert said.iou_predictions.tolist() == pytest.approx([0.7] * 4)


def test_members_count_by_predicted_iou_times_stability(kit):
    sure = [3.0, -3.0] * 28  # stability 1
    wavering = [0.5, 2.0, 2.0, -5.0] * 14  # stability 2/3
    said = answer(kit, Says(sure, 0.9), Says(wavering, 0.6))
    first, second = 0.9 / (0.9 + 0.4), 0.4 / (0.9 + 0.4)
    prob = first * torch.tensor(sure).sigmoid() + second * torch.tensor(wavering).sigmoid()
    assert torch.allclose(said.mask_logits[0, 0].sigmoid(), prob, atol=1e-5)
    assert said.iou_predictions.tolist() == pytest.approx([first * 0.9 + second * 0.6] * 4)


def test_where_nobody_is_sure_all_count_alike(kit):
    said = answer(kit, Says([1.0] * 56, 0.0), Says([-3.0] * 56, 0.0))
    prob = (torch.tensor(1.0).sigmoid() + torch.tensor(-3.0).sigmoid()) / 2
    assert torch.allclose(said.mask_logits.sigmoid(), prob) and said.iou_predictions.max() == 0


def test_a_broken_member_is_outvoted(kit):
    said = answer(kit, Says([2.0, -2.0] * 28, 0.8), Says([float("nan")] * 28 + [float("inf")] * 28, float("nan")))
    assert torch.allclose(said.mask_logits[0, 0], torch.tensor([2.0, -2.0] * 28), atol=1e-4)
    assert torch.allclose(said.iou_predictions, torch.tensor(0.8))


def test_every_member_hears_the_same_prompts_and_moves_along(kit):
    members = [Says([1.0] * 56, 0.5), Says([2.0] * 56, 0.5)]
    scene, ensemble = kit.scene(2), Ensemble.of(members)
    ensemble.decode(ensemble.embed(scene.image), scene.prompts)
    assert all(member.heard == [scene.prompts] for member in members)
    assert ensemble.to(CPU) is ensemble and all(member.device == CPU for member in members)


def test_axes_are_those_that_all_members_serve(kit):
    both, planes, volumes = (Says([1.0], 0.5, ndims) for ndims in ((2, 3), (2,), (3,)))
    assert Ensemble.of([both]).ndims == (2, 3) and Ensemble.of([both, planes]).ndims == (2,)
    assert Ensemble.of([volumes, both]).ndims == (3,) and Ensemble.ndims == (2, 3)
    with pytest.raises(ValueError, match="no number of axes is common to all members .*2D.*3D.*share one"):
        Ensemble.of([both, planes, volumes])


def test_volumes_are_labeled_by_planes_when_a_member_knows_planes_only(kit):
    scene = kit.scene(3)
    ensemble = Ensemble.of([EmbeddedSam(), SegmentAnything.from_network(kit.sam(), CPU, input_size=96)])
    label = SamLabeler(ensemble, SamConfig(backend="ensemble", planes=1, min_agreement=0), OutputSpace(3))
    pseudo = label(scene.image, scene.prob, 0)
    asked = pseudo.confidence.flatten(1).gt(0).any(1)
    assert asked.all() and (pseudo.confidence > 0).float().mean() < 0.2 and label.stats["items"] >= 2


def test_members_are_built_as_the_section_names_them(kit, monkeypatch, tmp_path):
    package = pytest.importorskip("segment_anything")
    monkeypatch.setitem(package.sam_model_registry, "vit_b", lambda checkpoint: kit.sam())
    monkeypatch.setenv("nnUNet_sam_checkpoints", str(tmp_path))
    torch.save(kit.sam().state_dict(), tmp_path / "sam.pth")
    other = {"backend": "segment_anything", "checkpoint": "sam.pth", "backend_args": {"model": "vit_b"}}
    config = SamConfig(backend="ensemble", backend_args={"members": [{"backend": "embedded"}, other]})
    ensemble = build_backend(config, CPU)
    assert [type(member) for member in ensemble.members] == [EmbeddedSam, SegmentAnything] and ensemble.ndims == (2,)


def test_the_voxel_size_is_handed_on(kit, monkeypatch):
    given = []
    monkeypatch.setattr(
        "nnunet_semisam.sam.backends.ensemble.build_backend", lambda *args: given.append(args[2]) or EmbeddedSam()
    )
    config = SamConfig(backend="ensemble", backend_args={"members": [{"backend": "sam_med3d"}]})
    build_backend(config, CPU, [3, 1, 1])
    assert given == [(3, 1, 1)]


@pytest.mark.parametrize(
    "members, problem",
    [
        ([], "members is .*give a list"),
        ("embedded", "members is 'embedded'.*give a list"),
        ({"backend": "embedded"}, "give a list"),
        (["embedded"], r"members\[0\] is 'embedded'; give a dictionary with keys out of backend, checkpoint"),
        ([{"backend": "embedded"}, {"checkpoint": "a"}], r"members\[1\] is .* backend is needed"),
        ([{"backend": "embedded", "weight": 2}], r"members\[0\] has the unknown key 'weight'; .*backend_args"),
        ([{"backend": "sam_ultra"}], "unknown sam.backend 'sam_ultra'"),
        ([{"backend": "embedded", "backend_args": {"colour": 1}}], "unknown key 'colour'"),
    ],
)
def test_mistaken_members(members, problem):
    with pytest.raises(ValueError, match=problem):
        build_backend(SamConfig(backend="ensemble", backend_args={"members": members}), CPU)


def test_checkpoints_are_those_of_the_members(tmp_path):
    with pytest.raises(ValueError, match="name the checkpoint of each member"):
        Ensemble("weights.pth", CPU, members=[{"backend": "embedded"}])
    missing = {"backend": "segment_anything", "checkpoint": str(tmp_path / "sam.pth")}
    with pytest.raises(FileNotFoundError, match="sam.pth"):
        Ensemble(None, CPU, members=[missing])
