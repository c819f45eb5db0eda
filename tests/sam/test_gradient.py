"""Whatever method and generalist: SAM's pseudo-label moves the student, and neither the teacher nor the generalist."""

import pytest
import torch
from torch import nn

from nnunet_semisam.config import SamConfig
from nnunet_semisam.methods import build_method, list_methods
from nnunet_semisam.methods._sam_assisted import SamAssisted
from nnunet_semisam.sam import build_backend, list_backends
from nnunet_semisam.sam.backends.sam_med3d import SamMed3D
from nnunet_semisam.sam.backends.segment_anything import SegmentAnything
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.types import UnlabeledBatch

CONFIG = SamConfig(min_agreement=0.0)  # random weights agree with nobody


def sure_of_itself(sam):
    """Random weights that predict an IoU of about 1 and sharp masks; else confidence may well be 0 everywhere."""
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[-1].bias.add_(1)
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight.mul_(1000)
    return sam


@pytest.fixture(params=["stub", *list_backends()])
def backend(request, kit):
    if request.param == "stub":
        return kit.stub()
    if request.param == "segment_anything":
        return SegmentAnything.from_network(sure_of_itself(kit.sam()), torch.device("cpu"), input_size=64)
    if request.param == "medsam":
        return kit.echo_medsam.from_network(kit.sam(), torch.device("cpu"), input_size=64)
    if request.param == "sam_med3d":
        return SamMed3D(kit.echo_med3d(4), torch.device("cpu"), spacing=(1.5, 1.5, 1.5))
    arguments = {"members": [{"backend": "embedded"}]} if request.param == "ensemble" else {}
    return build_backend(SamConfig(backend=request.param, backend_args=arguments), torch.device("cpu"))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", list_methods())
def test_sam_term_moves_the_student_alone(backend, kit, name, ndim):
    if ndim == 2 and 2 not in backend.ndims:
        pytest.skip("serves volumes only")
    scene = kit.scene(ndim)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    student, teacher = conv(1, 3, 3, padding=1), conv(1, 3, 1)
    method = build_method(name, {}, scene.outputs)
    assisted = SamAssisted(method, SamLabeler(backend, CONFIG, scene.outputs))
    calls = []

    def predict(image):
        calls.append(image)
        return scene.prob + 0 * teacher(image)

    unlabeled = UnlabeledBatch(scene.image, scene.image, ("a", "b"))
    with torch.no_grad():
        pseudo = assisted.pseudo_labels(predict, unlabeled)
    asked = len(calls)
    method.pseudo_labels(predict, unlabeled)
    assert asked == len(calls) - asked  # the teacher does not run for SAM alone
    assert set(pseudo) == {*method.term_names, "sam"}
    assert (pseudo["sam"].confidence > 0).any() and not pseudo["sam"].prob.requires_grad
    method.terms(student, unlabeled, {"sam": pseudo["sam"]})["sam"].backward()
    assert student.weight.grad.norm() > 1e-8
    assert teacher.weight.grad is None
    assert all(p.grad is None for m in kit.modules_of(backend) for p in m.parameters())
