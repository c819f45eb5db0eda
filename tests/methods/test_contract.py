"""Every method in the package must move the student, and nothing else. New method files are taken up by themselves."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn

from nnunet_semisam.methods import build_method, list_methods
from nnunet_semisam.ops.losses import LOSSES, soft_dice, soft_mse
from nnunet_semisam.ops.mix import cutmix
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.ops.window import center_weights
from nnunet_semisam.teacher import EmaTeacher
from nnunet_semisam.types import LabeledBatch, PseudoLabel, UnlabeledBatch

HEADS = 3
ARGS = {"fixmatch": {"threshold": 0.4}, "ua_mt": {"limit": 1.0, "passes": 2}}  # what an untrained network reaches


class TinyNet(nn.Module):
    def __init__(self, ndim):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        self.body = nn.Sequential(conv(1, 4, 3, padding=1), nn.LeakyReLU(), conv(4, HEADS, 1))

    def forward(self, image):
        logits = self.body(image)
        return [logits, logits[..., ::2]]


@pytest.fixture(params=[(ndim, regions) for ndim in (2, 3) for regions in (False, True)], ids=str)
def setting(request):
    ndim, regions = request.param
    torch.manual_seed(0)
    student, other = TinyNet(ndim), TinyNet(ndim)
    outputs = OutputSpace(HEADS, regions)
    image = torch.randn(2, 1, *[12, 10, 8][:ndim])
    unlabeled = UnlabeledBatch(image, image + 0.3 * torch.randn_like(image), ("a", "b"))
    return student, EmaTeacher(other, outputs, decay=0.9), unlabeled, outputs


CHOICES = [(name, view, loss) for name in list_methods() for view in ("device", "nnunet") for loss in LOSSES]


@pytest.fixture(params=CHOICES, ids=str)
def method(request, setting):
    name, view, loss = request.param
    mix = 1.0 if view == "nnunet" else 0.0
    made = build_method(name, {"view": view, "loss": loss, "cutmix": mix, **ARGS.get(name, {})}, setting[3])
    if not made.wants_strong:  # then training has none either
        object.__setattr__(setting[2], "strong", None)
    return made


def test_each_term_moves_the_student_and_only_the_student(method, setting):
    student, teacher, unlabeled, _ = setting
    with torch.no_grad():
        pseudo = method.pseudo_labels(teacher, unlabeled)
    assert set(pseudo) == set(method.term_names)
    for name in pseudo:
        student.zero_grad()
        method.terms(student, unlabeled, {name: pseudo[name]})[name].backward()
        norms = [p.grad.norm().item() for p in student.parameters() if p.grad is not None]
        assert norms and sum(norms) > 1e-8
        assert all(p.grad is None for p in teacher.network.parameters())


def test_gradient_scales_with_the_weight(method, setting):
    student, teacher, unlabeled, _ = setting
    pseudo = method.pseudo_labels(teacher, unlabeled)
    gradients = []
    for weight in (1.0, 3.0):
        student.zero_grad()
        torch.manual_seed(5)
        (weight * sum(method.terms(student, unlabeled, pseudo).values())).backward()
        gradients.append(next(student.parameters()).grad.clone())
    assert torch.allclose(3 * gradients[0], gradients[1], rtol=1e-4, atol=1e-8)


def test_pseudo_labels_are_float32_without_gradient_and_confidence_is_a_share(method, setting):
    _, teacher, unlabeled, outputs = setting
    for label in method.pseudo_labels(teacher, unlabeled).values():
        assert label.prob.dtype == label.confidence.dtype == torch.float32
        assert not label.prob.requires_grad and not label.confidence.requires_grad
        assert label.prob.shape == (2, outputs.num_heads, *unlabeled.image.shape[2:])
        assert ((label.confidence >= 0) & (label.confidence <= 1)).all()


def test_teacher_sees_the_weak_view_and_the_student_another(method, setting):
    student, teacher, unlabeled, _ = setting
    seen = []

    def listening_teacher(image):
        seen.append(image)
        return teacher(image)

    method.pseudo_labels(listening_teacher, unlabeled)
    assert torch.equal(seen[0], unlabeled.image)  # what SAM is prompted with
    assert all((image - unlabeled.image).abs().max() <= 0.2 + 1e-6 for image in seen)  # noise at most
    assert not torch.equal(method.student_view(unlabeled), unlabeled.image)


def test_agreement_costs_nothing(setting):
    student, _, unlabeled, outputs = setting
    still = {"noise_std": 0.0, "contrast": 0.0, "brightness": 0.0, "cutout": 0.0, "remap": 0.0}
    method = build_method("mean_teacher", {"perturbation": still}, outputs)
    twin = EmaTeacher(student, outputs, decay=0.9)
    value = method.terms(student, unlabeled, method.pseudo_labels(twin, unlabeled))["consistency"]
    assert value.item() < 1e-9


def test_the_scale_of_a_pseudo_label_scales_its_term(method, setting):
    student, teacher, unlabeled, _ = setting
    pseudo = method.pseudo_labels(teacher, unlabeled)
    found = []
    for scale in (1.0, 4.0):
        torch.manual_seed(5)
        scaled = {name: replace(label, scale=scale) for name, label in pseudo.items()}
        found.append(sum(method.terms(student, unlabeled, scaled).values()).item())
    assert found[1] == pytest.approx(4 * found[0]) and found[0] > 0


@pytest.mark.parametrize(("loss", "own"), [("mse", soft_mse), ({"sam": "mse"}, soft_dice), ({}, soft_dice)], ids=str)
def test_every_term_has_the_loss_that_is_chosen_for_it(setting, loss, own):
    student, teacher, unlabeled, outputs = setting
    method = build_method("mean_teacher", {"view": "nnunet", "loss": loss}, outputs)
    pseudo = method.pseudo_labels(teacher, unlabeled)
    pseudo["sam"] = pseudo["consistency"]
    found = method.terms(student, unlabeled, pseudo)
    prob, label = outputs.prob(student(unlabeled.strong)[0]), pseudo["sam"]
    expected = {name: f(prob, label.prob, label.confidence) for name, f in (("sam", soft_mse), ("consistency", own))}
    if loss == {}:
        expected["sam"] = expected["consistency"]
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}
    )


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_cutmix_mixes_view_pseudo_label_and_confidence_alike(setting, chance):
    """The student is a pointwise function of the image, and the pseudo-label what it makes of the unmixed image: then
    the loss is 0 whatever is mixed, if all is mixed alike. Confidence alone is left to tell whether it is."""
    *_, unlabeled, outputs = setting
    image = unlabeled.image
    calls = []

    def student(view):
        calls.append(view)
        return torch.cat([view, -view, 0.5 * view], 1)

    method = build_method("mean_teacher", {"view": "nnunet", "loss": "mse", "cutmix": chance}, outputs)
    unlabeled = replace(unlabeled, strong=image)
    label = PseudoLabel.certain(outputs.prob(student(image)))
    assert method.terms(student, unlabeled, {"consistency": label})["consistency"].item() < 1e-12
    assert torch.equal(calls[-1], image) == (chance == 0)
    wrong = replace(label, prob=1 - label.prob, confidence=torch.stack([torch.ones_like(image[0]), 0 * image[0]]))
    found = method.terms(student, unlabeled, {"consistency": wrong})["consistency"]
    moved = torch.where(calls[-1] == image, image, image.roll(1, 0))
    assert torch.equal(calls[-1], moved)
    prob = outputs.prob(student(calls[-1]))
    weight = torch.where(calls[-1] == image, wrong.confidence, wrong.confidence.roll(1, 0))
    assert found.item() == pytest.approx(soft_mse(prob, 1 - prob, weight).item(), rel=1e-4)


@pytest.mark.parametrize("loss", [soft_mse, soft_dice])
@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_paste_puts_labeled_voxels_with_their_label_into_the_view(setting, chance, loss):
    """Labeled patches are all 7; the target there is the label, with full weight, and none where it is ignored."""
    student, _, unlabeled, outputs = setting
    views = []

    def listening(view):
        views.append(view)
        return student(view)

    size = unlabeled.image.shape[2:]
    label = torch.randint(0, HEADS + 1, (1, 1, *size))  # HEADS is the ignore label; one patch for two unlabeled ones
    ignored = label == HEADS
    truth = torch.cat([label == head for head in range(HEADS)], 1).float()
    target = torch.cat([truth, ignored], 1) if outputs.has_regions else label
    labeled = LabeledBatch(torch.full((1, 1, *size), 7.0), [target, target[..., ::2]], ("l",))
    name = {soft_mse: "mse", soft_dice: "dice"}[loss]
    method = build_method("mean_teacher", {"view": "nnunet", "loss": name, "paste": chance}, outputs)
    believed = torch.rand(2, HEADS, *size)
    pseudo = {"consistency": PseudoLabel(believed, torch.rand(2, 1, *size), scale=0.5)}
    found = method.terms(listening, unlabeled, pseudo, labeled)["consistency"]
    pasted = views[0] == 7
    assert pasted.flatten(1).any(1).all() == (chance == 1) and not pasted.all()
    assert torch.equal(views[0], torch.where(pasted, 7.0, unlabeled.strong))
    prob = outputs.prob(student(views[0])[0])
    weight = torch.where(pasted, (~ignored).float(), 0.5 * pseudo["consistency"].confidence)
    assert found.item() == pytest.approx(loss(prob, torch.where(pasted, truth, believed), weight).item(), rel=1e-4)
    found.backward()
    assert sum(p.grad.norm() for p in student.parameters() if p.grad is not None) > 1e-8


@pytest.mark.parametrize("view", ["device", "nnunet"])
def test_what_is_pasted_is_perturbed_with_the_patch_around_it(setting, view):
    """Else the student would know by its contrast what came from a labeled patch."""
    _, _, unlabeled, outputs = setting
    size, views = unlabeled.image.shape[2:], []
    labeled = LabeledBatch(torch.full((1, 1, *size), 7.0), [torch.zeros(1, 1, *size).long()] * 2, ("l",))
    if outputs.has_regions:
        labeled = replace(labeled, target=[torch.zeros(1, HEADS + 1, *size)] * 2)
    method = build_method("mean_teacher", {"view": view, "paste": 1.0}, outputs)
    method._perturb = lambda image: -image
    label = PseudoLabel.certain(torch.rand(2, HEADS, *size))

    def student(image):
        views.append(image)
        return [torch.zeros(2, HEADS, *size)]

    method.terms(student, unlabeled, {"consistency": label}, labeled)
    sign, around = (-1, unlabeled.image) if view == "device" else (1, unlabeled.strong)
    pasted = views[0] == 7 * sign
    assert 0.3 < pasted.float().mean() < 0.7
    assert torch.equal(views[0], sign * torch.where(pasted, 7.0, around))


@pytest.mark.parametrize("loss", [soft_mse, soft_dice])
@pytest.mark.parametrize("sigma", [0.25, 0.05])
def test_with_center_sigma_the_middle_counts_more_than_the_border(setting, loss, sigma):
    """Also where a labeled patch is pasted all over, so that nothing but its truth counts."""
    student, _, unlabeled, outputs = setting
    size = unlabeled.image.shape[2:]
    grid = torch.meshgrid(*[(torch.arange(n) + 0.5) / n - 0.5 for n in size], indexing="ij")
    window = torch.exp(-0.5 * sum((axis / sigma) ** 2 for axis in grid))
    weight = (window / window.mean()).expand(2, 1, *size)
    args = {"view": "nnunet", "center_sigma": sigma, "loss": {soft_mse: "mse", soft_dice: "dice"}[loss]}
    target = torch.rand(2, HEADS, *size)
    pseudo = {name: PseudoLabel.certain(target) for name in ("consistency", "sam")}
    terms = build_method("mean_teacher", {**args, "loss": dict.fromkeys(pseudo, args["loss"])}, outputs).terms
    found, sam = (terms(student, unlabeled, pseudo)[name] for name in pseudo)
    expected = loss(outputs.prob(student(unlabeled.strong)[0]), target, weight)
    assert found.item() == sam.item() == pytest.approx(expected.item(), rel=1e-4)
    found.backward()
    assert sum(p.grad.norm() for p in student.parameters() if p.grad is not None) > 1e-8
    label = torch.randint(0, HEADS, (1, 1, *size))
    truth = torch.cat([label == head for head in range(HEADS)], 1).float()
    target = torch.cat([truth, 0 * truth[:, :1]], 1) if outputs.has_regions else label
    labeled = LabeledBatch(unlabeled.strong[:1], target, ("l",))
    everywhere = build_method("mean_teacher", {**args, "paste": 1.0}, outputs)
    with mock.patch("nnunet_semisam.methods._base.random_boxes", lambda *_: torch.ones(2, 1, *size, dtype=torch.bool)):
        found = everywhere.terms(student, unlabeled, pseudo, labeled)["consistency"]
    seen = unlabeled.strong[:1].expand(2, *[-1] * (len(size) + 1))
    assert found.item() == pytest.approx(
        loss(outputs.prob(student(seen)[0]), truth.expand(2, -1, *size), weight).item(), rel=1e-4
    )


def test_the_middle_counts_more_where_patches_are_mixed_too(setting):
    """The window belongs to the place in the patch that the student sees: it is not mixed."""
    student, _, unlabeled, outputs = setting
    size = unlabeled.image.shape[2:]
    target, confidence = torch.rand(2, HEADS, *size), torch.rand(2, 1, *size)
    args = {"view": "nnunet", "loss": "mse", "center_sigma": 0.25, "cutmix": 1.0}
    torch.manual_seed(3)
    found = build_method("mean_teacher", args, outputs).terms(
        student, unlabeled, {"consistency": PseudoLabel(target, confidence)}
    )
    torch.manual_seed(3)
    torch.rand(())  # whether to mix
    mix = cutmix(unlabeled.strong.shape, unlabeled.strong.device)
    weight = mix(confidence) * center_weights(size, 0.25, confidence.device)
    expected = soft_mse(outputs.prob(student(mix(unlabeled.strong))[0]), mix(target), weight)
    assert found["consistency"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_in_a_cascade_only_the_image_is_perturbed(setting):
    *_, outputs = setting
    one_hot = torch.randint(0, 2, (2, 3, 12, 10)).float()
    image, strong = torch.randn(2, 2, 12, 10), torch.randn(2, 2, 12, 10)
    rough = 1 - one_hot
    unlabeled = UnlabeledBatch(torch.cat([image, one_hot], 1), torch.cat([strong, rough], 1), ("a", "b"), previous=3)
    assert torch.equal(unlabeled.picture, image)
    seen = build_method("mean_teacher", {}, outputs).student_view(unlabeled)
    assert torch.equal(seen[:, 2:], rough) and not torch.equal(seen[:, :2], image)
    seen = build_method("mean_teacher", {"view": "nnunet"}, outputs).student_view(unlabeled)
    assert torch.equal(seen, unlabeled.strong)
