"""The engine on a toy data set: zero weights equal stock nnU-Net, every term counts, no hidden label does."""

import json
import os

import numpy as np
import pytest
import torch
import toy_trainer
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from stub_sam import StubSam
from toy_trainer import (
    NAME,
    REGIONS,
    SAM_SECTION,
    UNLABELED,
    build,
    locations,
    save_case,
    short,
    weights,
    write_preprocessed,
)

from nnunet_semisam.checkpoint import seed_everything
from nnunet_semisam.curves import Curves
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.trainer import nnUNetTrainerMeanTeacher, nnUNetTrainerSemiSAM

NO_TERMS = {"consistency": {"weight": 0}, "sam": {"weight": 0}}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy data set, loaders in this process, and a stub in SAM's place; returns the stub."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_preprocessed(tmp_path / "nnUNet_preprocessed")
    stub = StubSam()
    monkeypatch.setattr("nnunet_semisam.trainer.build_backend", lambda config, device, spacing: stub.built_for(spacing))
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)  # seconds per epoch
    monkeypatch.setattr(Curves, "plot", lambda self, file: None)
    return stub


def trained(trainer=nnUNetTrainerSemiSAM, section=None, **settings):
    built = build(trainer, short() if section is None else section, **settings)
    built.run_training()
    return built


def stepped(section, batches, trainer=nnUNetTrainerSemiSAM, **settings):
    """A trainer after one step per batch, all random numbers drawn from the same start."""
    built = build(trainer, section, **settings)
    seed_everything(3)
    if not built.was_initialized:
        built.initialize()
    seed_everything(4)
    built.on_train_start()
    built.on_train_epoch_start()
    seed_everything(5)
    for batch in batches:
        built.train_step(batch)
    return built


@pytest.fixture
def batches(toy):
    built = build(nnUNetTrainer)
    built.initialize()
    built.on_train_start()
    return [next(built.dataloader_train) for _ in range(3)]


@pytest.mark.parametrize("patch_size", [(16, 16), (16, 16, 16)], ids=str)
def test_all_weights_zero_equals_stock_bit_for_bit(toy, patch_size):
    stock = build(nnUNetTrainer, patch_size=patch_size)
    seed_everything(3)
    stock.initialize()
    stock.on_train_start()
    same_batches = [next(stock.dataloader_train) for _ in range(3)]
    section = short(terms=NO_TERMS)
    section.pop("seed")
    ours = build(nnUNetTrainerSemiSAM, section, patch_size=patch_size)
    seed_everything(3)
    ours.initialize()
    ours.on_train_start()
    assert torch.equal(weights(stock), weights(ours))
    for trainer in (stock, ours):
        trainer.on_train_epoch_start()
        for batch in same_batches:
            trainer.train_step(batch)
    assert torch.equal(weights(stock), weights(ours))
    assert ours.teacher is None and ours.dataloader_unlabeled is None and toy.calls == 0


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("term", ["consistency", "sam"])
def test_each_term_alone_changes_the_student_by_its_weight(toy, term, labels):
    def after(weight):
        terms = {name: {"weight": weight if name == term else 0, "schedule": "constant"} for name in NO_TERMS}
        return weights(trained(section=short(terms=terms), labels=labels))

    faint, half, full = after(1e-9), after(0.5), after(1.0)
    assert not torch.equal(half, full)
    assert 0 < (half - faint).norm() < (full - faint).norm()


def test_sam_is_asked_only_while_its_weight_is_above_zero(toy, batches):
    terms = {"sam": {"weight": 1.0, "schedule": "linear_rampdown", "iterations": 2}}
    stepped(short(terms=terms), batches)  # weights 1, 0.5, 0
    assert toy.calls == 2


def test_sam_is_not_asked_during_the_delay_and_a_delay_without_end_is_refused(toy, batches):
    terms = {"sam": {"weight": 1.0, "schedule": "constant", "delay": 2}}
    stepped(short(terms=terms), batches)
    assert toy.calls == 1
    terms["sam"]["delay"] = 3
    with pytest.raises(ValueError, match="terms.sam.delay is 3, but the training has 3 iterations"):
        stepped(short(terms=terms), batches)


def test_sam_is_asked_in_every_second_iteration_when_so_told(toy, batches, monkeypatch):
    turns, planes = [], SamLabeler._planes
    monkeypatch.setattr(
        SamLabeler, "_planes", lambda self, hard, iteration: turns.append(iteration) or planes(self, hard, iteration)
    )
    terms = {"sam": {"weight": 1.0, "schedule": "constant", "every": 2}}
    stepped(short(terms=terms), batches)  # iterations 0 and 2 of 3
    assert toy.calls == 2
    assert turns[-2:] == [0, 1]  # the number of the question, by which axes have their turn


@pytest.mark.parametrize("ndim", [2, 3])
def test_sam_is_told_the_voxel_size_of_the_plans(toy, ndim):
    built = build(nnUNetTrainerSemiSAM, short(), patch_size=(16,) * ndim)
    built.initialize()
    built.configuration_manager.configuration["spacing"] = [3.0, 1.0, 0.5][:ndim]
    built.build_sam()
    assert list(toy.spacing) == [3.0, 1.0, 0.5][:ndim]


def test_mean_teacher_has_no_sam(toy):
    trainer = trained(nnUNetTrainerMeanTeacher)
    assert toy.calls == 0
    assert set(trainer.curves.epochs) >= {"loss/consistency", "loss/supervised", "weight/consistency"}


def test_same_seed_same_weights_and_another_seed_others(toy):
    first, second, other = trained(), trained(), trained(section=short(seed=8))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("method_args", [{}, {"paste": 1.0, "cutmix": 1.0, "loss": "dice"}], ids=["plain", "mixed"])
def test_labels_of_unlabeled_cases_do_not_matter(toy, tmp_path, method_args):
    clean = trained(section=short(method_args=method_args))
    folder = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans_toy"
    random = np.random.RandomState(0)
    for name in UNLABELED:
        image, seg, _, _ = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
        image, noise = image[:], random.randint(0, 3, seg.shape).astype(np.int8)
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{ending}").unlink()
        save_case(image, noise, {"class_locations": locations(noise)}, str(folder / name))
    assert torch.equal(weights(clean), weights(trained(section=short(method_args=method_args))))


def test_paste_takes_from_the_labeled_patches_of_the_step(toy, batches):
    """But not in the first eighth of a training: here an iteration of eight."""

    def unlabeled_loss(method_args, shift, **length):
        labeled = [{**batch, "data": batch["data"] + shift} for batch in batches]
        trainer = stepped(short(method_args=method_args, **length), labeled[:1])
        return trainer.curves.end_epoch(0)["loss/consistency"]

    assert unlabeled_loss({}, 0) == unlabeled_loss({}, 5)
    assert unlabeled_loss({"paste": 1.0}, 0) != unlabeled_loss({"paste": 1.0}, 5)
    longer = {"num_epochs": 2, "num_iterations_per_epoch": 4}
    assert unlabeled_loss({"paste": 1.0}, 0, **longer) == unlabeled_loss({"paste": 1.0}, 5, **longer)


def test_images_of_unlabeled_cases_do_matter(toy, tmp_path):
    clean = trained()
    folder = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans_toy"
    for name in UNLABELED:
        image, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
        image, seg = -image[:], seg[:]
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{ending}").unlink()
        save_case(image, seg, properties, str(folder / name))
    assert not torch.equal(weights(clean), weights(trained()))


def test_run_folder_has_configuration_curves_and_both_checkpoints(toy, monkeypatch):
    trainer = trained()
    folder = trainer.output_folder
    monkeypatch.undo()
    trainer.curves.plot(f"{folder}/progress_semisam.png")
    with open(f"{folder}/semisam.json") as file:
        content = json.load(file)
    assert content["sam"]["min_voxels"] == SAM_SECTION["min_voxels"]
    with open(f"{folder}/semisam_unlabeled.json") as file:
        assert tuple(json.load(file)) == UNLABELED
    student = torch.load(f"{folder}/checkpoint_final.pth", weights_only=False)
    teacher = torch.load(f"{folder}/checkpoint_final_teacher.pth", weights_only=False)
    key = next(iter(student["network_weights"]))
    assert student["network_weights"].keys() == teacher["network_weights"].keys()
    assert torch.equal(teacher["network_weights"][key], trainer.teacher.state_dict()[key])
    assert not torch.equal(student["network_weights"][key], teacher["network_weights"][key])
    for name in ("loss/sam", "weight/sam", "sam/agreement", "used_voxels/sam", "sam/seconds"):
        assert len(trainer.curves.epochs[name]) == 1
    with open(f"{folder}/progress_semisam.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_w_and_b_gets_the_curves(toy):
    trainer = build(nnUNetTrainerSemiSAM, short())
    seen = {}

    class Listener:
        def log(self, key, value, step):
            seen[key] = (value, step)

        def update_config(self, config):
            pass

    trainer.logger.loggers.append(Listener())
    trainer.run_training()
    assert seen["semisam/loss/sam"][1] == 0
    assert seen["semisam/weight/sam"][0] > 0


@pytest.mark.parametrize(
    "section, word",
    [
        ({"metod": 1}, "metod"),
        ({"method": "nothing"}, "mean_teacher"),
        ({"terms": {"x": {"weight": 1}}}, "consistency"),
    ],
)
def test_mistakes_in_the_section_are_refused_at_construction(toy, section, word):
    with pytest.raises(ValueError, match=word):
        build(nnUNetTrainerSemiSAM, section)


def test_no_unlabeled_case_is_an_error_before_training(toy, tmp_path):
    file = tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json"
    split = json.loads(file.read_text())
    split[0].pop("unlabeled")
    file.write_text(json.dumps(split))
    with pytest.raises(ValueError, match="imagesUn"):
        trained()


def test_a_length_in_the_section_that_is_not_that_of_the_trainers_name_is_told(toy, monkeypatch):
    from nnunet_semisam.presets import nnUNetTrainerSemiSAM_1epoch  # type: ignore[attr-defined]

    lines = []
    monkeypatch.setattr(nnUNetTrainerSemiSAM, "print_to_log_file", lambda self, *words, **_: lines.append(str(words)))
    for epochs, told in ((1, 0), (2, 1)):
        lines.clear()
        build(nnUNetTrainerSemiSAM_1epoch, short(num_epochs=epochs)).on_train_start()
        assert sum("nnUNetTrainerSemiSAM_1epoch is a training of 1 epochs" in line for line in lines) == told
    lines.clear()
    build(nnUNetTrainerSemiSAM, short(num_epochs=2)).on_train_start()
    assert not [line for line in lines if "is a training of" in line]


def test_a_short_training_writes_checkpoints_as_often_for_its_length_as_a_long_one(toy):
    every = {epochs: build(nnUNetTrainerSemiSAM, short(num_epochs=epochs)).save_every for epochs in (3, 49, 250, 1000)}
    assert every == {3: 1, 49: 2, 250: 12, 1000: 50}


def test_after_half_an_hour_the_next_epoch_ends_with_a_checkpoint(toy, monkeypatch):
    built, written = build(nnUNetTrainerSemiSAM, short(num_epochs=5)), []
    original = built.save_checkpoint
    monkeypatch.setattr(built, "save_checkpoint", lambda file: (written.append(os.path.basename(file)), original(file)))
    built.save_every = 50
    begin, late = nnUNetTrainerSemiSAM.on_epoch_start, {1}

    def hours_later(self):
        begin(self)
        self._saved -= 1801 if self.current_epoch in late else 0

    monkeypatch.setattr(nnUNetTrainerSemiSAM, "on_epoch_start", hours_later)
    monkeypatch.setattr(nnUNetTrainerSemiSAM, "on_train_end", lambda self: None)  # would remove it
    built.run_training()
    assert [name for name in written if name != "checkpoint_best.pth"] == ["checkpoint_latest.pth"]
    checkpoint = torch.load(f"{built.output_folder}/checkpoint_latest.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 2 and built.save_every == 50
    built._saved = 0
    built.save_checkpoint(f"{built.output_folder}/checkpoint_best.pth")  # --c prefers a latest one, however old
    assert built._saved == 0


def test_a_section_with_a_misspelt_name_stops_the_training(toy, monkeypatch):
    plans = toy_trainer.plans

    def misspelt(patch_size):
        made = plans(patch_size)
        made["configurations"]["toy"]["semi_sam"] = {"num_epochs": 3}
        return made

    monkeypatch.setattr(toy_trainer, "plans", misspelt)
    with pytest.raises(ValueError, match="'semi_sam', which is not read; .*configuration toy of nnUNetPlans.json"):
        build(nnUNetTrainerSemiSAM, short())
