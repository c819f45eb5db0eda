"""Every generalist answers on another device what it answers on the CPU (see `toy_device`)."""

import contextlib

import pytest
import torch
from toy_device import DEVICE, accelerator

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam import list_backends
from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.backends.ensemble import Ensemble
from nnunet_semisam.sam.backends.medsam import MedSam
from nnunet_semisam.sam.backends.sam_med3d import SamMed3D
from nnunet_semisam.sam.backends.segment_anything import SegmentAnything
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.types import Prompts

CPU = torch.device("cpu")
BACKENDS = {
    "embedded": lambda kit, device: EmbeddedSam(None, device, rounds=2),
    "segment_anything": lambda kit, device: SegmentAnything.from_network(kit.sam(), device, input_size=96),
    "medsam": lambda kit, device: MedSam.from_network(kit.sam(), device, input_size=96),
    "sam_med3d": lambda kit, device: SamMed3D(kit.med3d(), device, spacing=(2.0, 1.0, 1.0)),
    "sam_med3d, patch": lambda kit, device: SamMed3D(kit.med3d(), device, spacing=(2.0, 1.0, 1.0), window="patch"),
    "ensemble": lambda kit, device: Ensemble.of([BACKENDS[name](kit, device) for name in ("embedded", "sam_med3d")]),
}


def test_every_backend_is_here():
    assert set(list_backends()) <= set(BACKENDS)


@pytest.mark.parametrize("name", list(BACKENDS)[1:])  # the first is a member of the last
def test_answers_are_those_of_the_cpu(kit, monkeypatch, name):
    """Of a backend up to rounding: torch has other kernels for attention where a tensor is no ordinary one."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: contextlib.nullcontext())
    config = SamConfig(min_agreement=0.0, min_voxels=4, planes=4, jitters=1, rounds=2)

    def asked(device):
        backend = BACKENDS[name](kit, device)
        scene = kit.scene(max(backend.ndims))
        prompts = Prompts(**{key: value.to(device) for key, value in vars(scene.prompts).items()})
        predicted = backend.decode(backend.embed(scene.image.to(device)), prompts)
        scene = kit.scene(3)  # in planes where a backend knows only these
        labeler = SamLabeler(backend, config, scene.outputs)
        pseudo = labeler(scene.image.to(device), scene.prob.to(device), iteration=3)
        return [t.cpu() for t in (predicted.mask_logits, predicted.iou_predictions, pseudo.prob, pseudo.confidence)]

    here = asked(CPU)
    with accelerator() as entered:
        there = asked(DEVICE)
    assert all(torch.allclose(*pair, atol=1e-3) for pair in zip(here, there, strict=True))
    assert here[0].std() > 0.01 and entered.operations > 100
