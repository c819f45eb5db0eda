"""Three steps of the engine against the formulas written out: student and teacher must come out the same."""

import copy

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_trainer import NAME, UNLABELED, build, short, weights

from nnunet_semisam import checkpoint as checkpoint_module
from nnunet_semisam import stream
from nnunet_semisam.methods import build_method
from nnunet_semisam.methods._sam_assisted import SamAssisted
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.trainer import SemiSAM, nnUNetTrainerSemiSAM
from nnunet_semisam.types import PseudoLabel, UnlabeledBatch

CONSISTENCY, SAM, DECAY, CLIP = 0.7, 0.4, 0.4, 0.5


def step_by_hand(trainer, networks, optimizer, batch, unlabeled):
    student, teacher = networks
    weak = unlabeled["data"]
    with torch.no_grad():
        q = teacher(weak).softmax(1)
        sam = trainer.sam_assisted.labeler(weak, q, trainer.iteration)
    assert (sam.prob - q).abs().max() > 0.1 and (sam.confidence > 0).any()
    view = trainer.method.student_view(UnlabeledBatch(weak, None, (), trainer.iteration))
    p = student(view)[0].softmax(1)
    loss = trainer.loss(student(batch["data"]), batch["target"])
    loss = loss + CONSISTENCY * ((p - q) ** 2).mean() + SAM * ((p - sam.prob) ** 2 * sam.confidence).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
    optimizer.step()
    alpha = min(1 - 1 / (trainer.iteration + 1), DECAY)
    with torch.no_grad():
        for own, new in zip(teacher.parameters(), student.parameters(), strict=True):
            own.copy_(alpha * own + (1 - alpha) * new)


@pytest.mark.parametrize("patch_size", [(16, 16), (16, 16, 16)], ids=str)
def test_steps_are_what_the_formulas_say(toy, monkeypatch, patch_size):  # noqa: F811
    terms = {"consistency": {"weight": CONSISTENCY}, "sam": {"weight": SAM}}
    terms = {name: {**term, "schedule": "constant"} for name, term in terms.items()}
    section = short(terms=terms, ema_decay=DECAY, method_args={"loss": "mse"})
    trainer = build(nnUNetTrainerSemiSAM, section, patch_size=patch_size)
    monkeypatch.setattr(trainer, "max_gradient_norm", CLIP)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    student, teacher = copy.deepcopy(trainer.network), copy.deepcopy(trainer.network).eval()
    teacher.decoder.deep_supervision = False
    group = trainer.optimizer.param_groups[0]
    names = ("lr", "momentum", "weight_decay", "nesterov")
    optimizer = torch.optim.SGD(student.parameters(), **{name: group[name] for name in names})
    start = weights(trainer)
    for _ in range(3):
        batch, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
        loader = trainer.dataloader_unlabeled
        state = torch.get_rng_state()
        step_by_hand(trainer, (student, teacher), optimizer, batch, unlabeled)
        torch.set_rng_state(state)
        trainer.dataloader_unlabeled = iter([unlabeled])
        trainer.train_step(batch)
        trainer.dataloader_unlabeled = loader
    assert (weights(trainer) - start).norm() > 1e-3
    pairs = [(trainer.network, student), (trainer.teacher.network, teacher)]
    for ours, expected in pairs:
        for own, want in zip(ours.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(own, want, atol=1e-5)


def test_gradients_are_clipped_where_stock_clips(toy, monkeypatch):  # noqa: F811
    limits = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda p, limit, **more: limits.append(limit) or clip(p, limit, **more)
    )
    trainer = build(nnUNetTrainer)
    trainer.on_train_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert limits == [SemiSAM.max_gradient_norm]


def test_views_are_told_apart():
    strong, weak = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    batch = UnlabeledBatch.from_nnunet({"data": torch.cat([strong, weak], 1), "keys": ["a", "b"]}, torch.device("cpu"))
    assert torch.equal(batch.image, weak) and torch.equal(batch.full_view, strong)


def test_a_strong_view_that_nobody_asked_for_is_told():
    batch = UnlabeledBatch.from_nnunet({"data": torch.ones(2, 3, 4, 4), "keys": []}, torch.device("cpu"), channels=3)
    assert torch.equal(batch.image, torch.ones(2, 3, 4, 4)) and batch.roughened.shape == (2, 0, 4, 4)
    with pytest.raises(ValueError, match="wants_strong"):
        batch.full_view  # noqa: B018


@pytest.mark.parametrize(("view", "channels"), [("device", 1), ("nnunet", 2)])
def test_intensities_are_augmented_only_for_a_student_that_sees_them(toy, view, channels):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, short(method_args={"view": view}))
    trainer.on_train_start()
    assert next(trainer.dataloader_unlabeled)["data"].shape[1] == channels
    assert (stream.next_batch(trainer).strong is None) == (channels == 1)


def test_transforms_that_nobody_knows_are_kept(toy, monkeypatch):  # noqa: F811
    class Unknown(BasicTransform):
        def apply(self, data_dict, **params):
            return data_dict

    known = nnUNetTrainerSemiSAM.get_training_transforms
    more = staticmethod(lambda *given, **named: ComposeTransforms([known(*given, **named), Unknown()]))
    monkeypatch.setattr(nnUNetTrainerSemiSAM, "get_training_transforms", more)
    trainer = build(nnUNetTrainerSemiSAM, short())
    trainer.on_train_start()
    assert next(trainer.dataloader_unlabeled)["data"].shape[1] == 2


def test_sam_gets_the_weak_view_and_the_teachers_prediction_and_its_answer_is_passed_on():
    outputs = OutputSpace(2)
    answer = PseudoLabel(torch.rand(1, 2, 4, 4), torch.rand(1, 1, 4, 4))
    seen = []

    class Recorder(SamLabeler):
        def __init__(self):
            pass

        def __call__(self, image, prob, iteration):
            seen.append((image, prob, iteration))
            return answer

    unlabeled = UnlabeledBatch(torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4), ("a",), iteration=5)
    prediction = torch.rand(1, 2, 4, 4).softmax(1)
    assisted = SamAssisted(build_method("mean_teacher", {}, outputs), Recorder())
    pseudo = assisted.pseudo_labels(lambda image: prediction, unlabeled)
    assert pseudo["sam"] is answer
    assert torch.equal(pseudo["consistency"].prob, prediction)
    [(image, prob, iteration)] = seen
    assert image is unlabeled.image and prob is prediction and iteration == 5


def test_schedules_run_over_the_whole_training(toy):  # noqa: F811
    terms = {"sam": {"weight": 1.0, "schedule": "linear_rampdown"}}
    trainer = build(nnUNetTrainerSemiSAM, short(terms=terms, num_epochs=2))
    trainer.run_training()  # weights 1, 5/6, 4/6 and 3/6, 2/6, 1/6
    assert trainer.curves.epochs["weight/sam"] == pytest.approx([5 / 6, 2 / 6])


def test_unlabeled_batch_size_is_obeyed(toy):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, short(unlabeled_batch_size=3))
    trainer.on_train_start()
    assert next(trainer.dataloader_unlabeled)["data"].shape[:2] == (3, 1)
    assert next(trainer.dataloader_train)["data"].shape[:2] == (2, 1)


def test_validation_cases_are_no_unlabeled_cases_unless_allowed(toy, tmp_path):  # noqa: F811
    import json

    file = tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json"
    split = json.loads(file.read_text())
    split[0]["unlabeled"] = [*UNLABELED, *split[0]["val"]]
    file.write_text(json.dumps(split))
    with pytest.raises(ValueError, match="allow_unlabeled_val"):
        build(nnUNetTrainerSemiSAM, short()).on_train_start()
    build(nnUNetTrainerSemiSAM, short(allow_unlabeled_val=True)).on_train_start()


def test_a_kill_while_the_trainer_writes_leaves_the_old_checkpoint(toy, monkeypatch):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, short())
    trainer.run_training()
    file = f"{trainer.output_folder}/checkpoint_final.pth"
    before = torch.load(file, weights_only=False)["current_epoch"]
    trainer.current_epoch += 7

    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_module.os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(file)
    assert torch.load(file, weights_only=False)["current_epoch"] == before


def test_a_seeded_run_does_not_choose_kernels_by_timing(toy):  # noqa: F811
    from nnunet_semisam.stream import GaussianBlurTransform, _nested

    trainer = build(nnUNetTrainerSemiSAM, short(method_args={"view": "nnunet"}))
    trainer.on_train_start()
    for loader in (trainer.dataloader_train, trainer.dataloader_unlabeled):
        blurs = [t for t in _nested(loader.data_loader.transforms) if isinstance(t, GaussianBlurTransform)]
        assert blurs and not any(blur.benchmark for blur in blurs)


def test_channels_that_sam_cannot_serve_are_an_error_before_training(toy, monkeypatch):  # noqa: F811
    def embed(self, image):
        raise ValueError("channels")

    monkeypatch.setattr(type(toy), "embed", embed)
    with pytest.raises(ValueError, match="channels"):
        build(nnUNetTrainerSemiSAM, short()).on_train_start()


def test_training_does_without_the_label_files_of_unlabeled_cases(toy, tmp_path):  # noqa: F811
    folder = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans_toy"
    for name in UNLABELED:
        (folder / f"{name}_seg.b2nd").unlink()
        (folder / f"{name}.pkl").unlink()
    trainer = build(nnUNetTrainerSemiSAM, short())
    trainer.run_training()
    assert np.isfinite(trainer.curves.epochs["loss/consistency"]).all()
    with pytest.raises(FileNotFoundError):
        nnUNetDatasetBlosc2(str(folder), list(UNLABELED)).load_case(UNLABELED[0])


@pytest.mark.parametrize(("view", "patch_size"), [("device", (16, 16, 16)), ("nnunet", (16, 16))])
def test_unlabeled_patches_are_moved_as_labeled_ones(toy, view, patch_size):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, short(method_args={"view": view}), patch_size=patch_size)
    trainer.on_train_start()
    labeled, unlabeled = (
        stream.data_loader if hasattr(stream, "data_loader") else stream
        for stream in (trainer.dataloader_train, trainer.dataloader_unlabeled)
    )
    for name in ("patch_size", "final_patch_size"):
        assert list(getattr(labeled, name)) == list(getattr(unlabeled, name))
    assert max(labeled.patch_size) > max(patch_size)  # room to be turned in
    for kind in (SpatialTransform, MirrorTransform):
        (one,), (other,) = (
            [t for t in transforms if isinstance(t, kind)]
            for transforms in (labeled.transforms.transforms, unlabeled.transforms.transform.transforms)
        )
        assert numbers(one) == numbers(other) and numbers(one)


def numbers(transform):
    """The settings of a transform, without what it keeps for itself."""
    return {name: value for name, value in vars(transform).items() if not name.startswith("_")}
