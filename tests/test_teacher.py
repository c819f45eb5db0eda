import torch
from torch import nn

from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.teacher import EmaTeacher, bare


class SharedNet(nn.Module):
    """Lists the same weight twice in its state dict, as nnU-Net's U-Nets do."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(1, 2, 1)
        self.decoder = nn.Module()
        self.decoder.encoder = self.encoder
        self.decoder.deep_supervision = True
        self.norm = nn.BatchNorm2d(2)

    def forward(self, image):
        logits = self.norm(self.encoder(image))
        return [logits, logits] if self.decoder.deep_supervision else logits


def moved(student):
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
        student.norm.running_mean.add_(1)


def test_ema_equals_its_closed_form_on_a_network_with_shared_tensors():
    student = SharedNet()
    assert len(student.state_dict()) > len(list(student.parameters())) + len(list(student.buffers()))
    teacher = EmaTeacher(student, OutputSpace(2), decay=0.9)
    expected = [p.detach().clone() for p in student.parameters()]
    for iteration in range(30):
        moved(student)
        teacher.update(student, iteration)
        alpha = min(1 - 1 / (iteration + 1), 0.9)
        expected = [alpha * e + (1 - alpha) * p.detach() for e, p in zip(expected, student.parameters(), strict=True)]
    for own, want in zip(teacher.network.parameters(), expected, strict=True):
        assert torch.allclose(own, want, atol=1e-5)


def test_first_update_copies_the_student_and_buffers_are_always_copied():
    student = SharedNet()
    teacher = EmaTeacher(student, OutputSpace(2), decay=0.99)
    moved(student)
    teacher.update(student, 0)
    assert torch.equal(teacher.network.encoder.weight, student.encoder.weight)
    moved(student)
    teacher.update(student, 50)
    assert not torch.equal(teacher.network.encoder.weight, student.encoder.weight)
    assert torch.equal(teacher.network.norm.running_mean, student.norm.running_mean)


def test_teacher_is_in_evaluation_mode_without_deep_supervision_or_gradient():
    student = SharedNet().train()
    teacher = EmaTeacher(student, OutputSpace(2), decay=0.99)
    prob = teacher(torch.randn(2, 1, 4, 4))
    assert not teacher.network.training and student.training and student.decoder.deep_supervision
    assert isinstance(prob, torch.Tensor) and not prob.requires_grad
    assert torch.allclose(prob.sum(1), torch.ones(2, 4, 4))
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_teacher_does_not_share_memory_with_the_student():
    student = SharedNet()
    teacher = EmaTeacher(student, OutputSpace(2), decay=0.99)
    before = teacher.network.encoder.weight.clone()
    moved(student)
    assert torch.equal(teacher.network.encoder.weight, before)


def test_wrappers_are_taken_off():
    student = SharedNet()
    wrapped = nn.Module()
    wrapped._orig_mod = student
    assert bare(wrapped) is student
    assert bare(student) is student
