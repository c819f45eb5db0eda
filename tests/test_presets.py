"""The published recipe as a trainer: what SAM is asked, what comes of it, and that it moves the student."""

import torch
from stub_sam import StubSam
from test_train_step import toy, trained  # noqa: F401 (a fixture)
from toy_trainer import build, short, weights

from nnunet_semisam.presets import find_trainer, nnUNetTrainerSemiSAMFaithful
from nnunet_semisam.types import SamPrediction

SMALL = {"sam": {"min_voxels": 1}}  # an untrained network has no large objects


class Clicked(StubSam):
    """Answers with a plane through the newest click: never what it was prompted with."""

    def __init__(self):
        super().__init__()
        self.prompts = []

    def decode(self, embedding, prompts):
        self.calls += 1
        self.prompts.append(prompts)
        logits = torch.full((len(prompts), *embedding.shape[2:]), 0.4)  # above SAM's threshold
        for item, click in enumerate(prompts.point_coords[:, -1, 0].long().tolist()):
            logits[item, : max(1, click)] = -0.4
        return SamPrediction(logits, torch.full((len(prompts),), 0.1))


def faithful(monkeypatch, **section):
    sam = Clicked()
    monkeypatch.setattr("nnunet_semisam.trainer.build_backend", lambda config, device, spacing: sam.built_for(spacing))
    return build(nnUNetTrainerSemiSAMFaithful, short(**{"sam": SMALL["sam"], **section})), sam


def test_ten_answers_hard_masks_full_weight_and_nothing_tested_or_tuned(toy, monkeypatch):  # noqa: F811
    trainer, sam = faithful(monkeypatch)
    seen = []
    trainer.on_train_start()
    labeler = trainer.sam_assisted.labeler
    monkeypatch.setattr(labeler, "_portion", lambda *args, ask=labeler._portion: seen.append(ask(*args)) or seen[-1])
    monkeypatch.setattr(
        trainer.method, "terms", lambda *args, _terms=trainer.method.terms: seen.append(args[2]["sam"]) or _terms(*args)
    )
    assert sam.calls == 0  # a first look encodes only
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    assert sam.calls == 10
    assert all(prompts.boxes is None for prompts in sam.prompts) and sam.prompts[0].mask_logits is None
    assert [prompts.point_coords.shape[1] for prompts in sam.prompts] == list(range(1, 20, 2))
    answers, label = seen
    assert len(answers.weight) and (answers.weight == 1).all()
    asked = label.confidence.flatten(1).any(1)
    assert asked.any() and set(label.prob[asked].unique().tolist()) == {0.0, 1.0}


def test_published_loss_weights_and_ramps(toy, monkeypatch):  # noqa: F811
    trainer = faithful(monkeypatch)[0]
    config = trainer.semisam
    assert trainer.method.loss == "mse" and type(trainer).preset.min_labeled_dice == 0
    assert config.weights(0, 6000)["sam"] == 0.05 and config.weights(6000, 6000)["consistency"] == 0.05
    assert round(config.weights(1500, 6000)["sam"], 4) == 0.0366  # exp(-5 / 16) / 20
    assert round(config.weights(4500, 6000)["consistency"], 4) == 0.0366
    noisier = type(trainer).preset.with_section({"method_args": {"perturbation": {"noise_std": 0.2}}})
    still = {"contrast": 0, "brightness": 0, "cutout": 0, "remap": 0}
    assert noisier.method_args["perturbation"] == still | {"noise_std": 0.2}
    image = torch.randn(3, 1, 8, 8, 8)
    assert (trainer.method._perturb(image) - image).abs().max() <= 0.2 + 1e-5  # noise of 0.1, clipped, and no more


def test_both_terms_move_the_student(toy, monkeypatch):  # noqa: F811
    def after(**terms):
        trainer, _ = faithful(monkeypatch, terms={name: {"weight": weight} for name, weight in terms.items()})
        trainer.run_training()
        return weights(trainer)

    both, sam, consistency = after(), after(consistency=0), after(sam=0)
    assert not torch.equal(both, sam) and not torch.equal(both, consistency)


def test_without_sam_the_teacher_weighs_what_both_do_otherwise():
    names = ("nnUNetTrainerMeanTeacher", "nnUNetTrainerMeanTeacher_5epochs", "nnUNetTrainerSemiSAM")
    trainers = [find_trainer(name) for name in names]
    configs = [trainer.preset.with_section({}, uses_sam=trainer.uses_sam) for trainer in trainers]
    assert [config.resolved_terms()["consistency"].weight for config in configs] == [2.0, 2.0, 1.0]
