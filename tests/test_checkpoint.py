"""Interrupted and resumed equals uninterrupted; a kill while writing leaves the old file; stock nnU-Net reads it."""

import random

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_train_step import toy, trained  # noqa: F401 (a fixture)
from toy_trainer import build, short, weights

from nnunet_semisam.checkpoint import KEY, random_state, restore_random_state, seed_everything, write_atomically
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM


class Killed(Exception):
    pass


def killed_after_first_epoch(self):
    if self.current_epoch == 1:
        raise Killed
    nnUNetTrainer.on_epoch_start(self)


def killed_in_second_epoch(monkeypatch, section, trainer=nnUNetTrainerSemiSAM):
    """A trainer that has ended without a word after its first epoch, whose checkpoint is written."""
    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainerSemiSAM, "on_epoch_start", killed_after_first_epoch)
        killed = build(trainer, section)
        killed.save_every = 1
        with pytest.raises(Killed):
            killed.run_training()
    return killed


@pytest.mark.parametrize("terms", [{}, {"consistency": {"weight": 0}, "sam": {"weight": 0}}], ids=["all", "none"])
def test_resumed_equals_uninterrupted(toy, monkeypatch, terms):  # noqa: F811
    section = short(num_epochs=3, terms=terms)
    whole = trained(section=section)
    killed = killed_in_second_epoch(monkeypatch, section)
    resumed = build(nnUNetTrainerSemiSAM, section, continue_training=True)
    resumed.load_checkpoint(f"{killed.output_folder}/checkpoint_latest.pth")
    assert (resumed.current_epoch, resumed.iteration) == (1, 3)
    resumed.run_training()
    assert torch.equal(weights(whole), weights(resumed))
    assert resumed.iteration == whole.iteration == 9
    names = [name for name in whole.curves.epochs if not name.endswith("seconds")]
    assert {n: whole.curves.epochs[n] for n in names} == {n: resumed.curves.epochs[n] for n in names}
    if terms == {}:
        both = zip(whole.teacher.network.parameters(), resumed.teacher.network.parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in both)


def test_a_write_that_is_cut_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pth"
    write_atomically({"epoch": 1}, str(file))

    def cut(checkpoint, handle):
        handle.write(b"half a file")
        raise Killed

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(Killed):
        write_atomically({"epoch": 2}, str(file))
    assert torch.load(file)["epoch"] == 1
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_stock_trainer_loads_the_checkpoint_and_it_names_a_stock_class(toy):  # noqa: F811
    ours = trained()
    for name in ("checkpoint_final.pth", "checkpoint_final_teacher.pth"):
        checkpoint = torch.load(f"{ours.output_folder}/{name}", weights_only=False)
        assert checkpoint["trainer_name"] == "nnUNetTrainer"
        stock = build(nnUNetTrainer)
        stock.load_checkpoint(f"{ours.output_folder}/{name}")
        expected = weights(ours) if name == "checkpoint_final.pth" else None
        assert expected is None or torch.equal(weights(stock), expected)


def test_checkpoint_of_the_stock_trainer_can_be_continued(toy):  # noqa: F811
    stock = build(nnUNetTrainer)
    stock.run_training()
    ours = build(nnUNetTrainerSemiSAM, short(num_epochs=2), continue_training=True)
    ours.load_checkpoint(f"{stock.output_folder}/checkpoint_final.pth")
    assert (ours.current_epoch, ours.iteration) == (1, 3)
    ours.run_training()
    assert ours.iteration == 6


def test_a_changed_configuration_is_told_by_what_differs(toy, monkeypatch):  # noqa: F811
    file = f"{trained().output_folder}/checkpoint_final.pth"
    lines = []
    monkeypatch.setattr(nnUNetTrainerSemiSAM, "print_to_log_file", lambda self, *words, **_: lines.append(words))
    build(nnUNetTrainerSemiSAM, short(), continue_training=True).load_checkpoint(file)
    assert not [words for words in lines if "WARNING" in str(words)]
    changed = short(ema_decay=0.9, terms={"sam": {"weight": 0.7}})
    build(nnUNetTrainerSemiSAM, changed, continue_training=True).load_checkpoint(file)
    (words,) = [words for words in lines if "WARNING" in str(words)]
    assert words == (
        "WARNING: semisam configuration changed since the checkpoint was written: "
        "ema_decay was 0.99, is 0.9; terms.sam.weight was 2.0, is 0.7",
    )


def test_disable_checkpointing_writes_nothing(toy, tmp_path):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, short())
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert not list((tmp_path / "nnUNet_results").rglob("*.pth"))


def test_checkpoint_holds_plain_types_only(toy):  # noqa: F811
    """A class of this package in the file would keep an environment without the package from reading it."""
    state = torch.load(f"{trained().output_folder}/checkpoint_final.pth", weights_only=False)[KEY]

    def visit(value):
        assert type(value).__module__ in ("builtins", "collections", "torch"), type(value)
        for child in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            visit(child)

    visit(state)


def test_random_state_round_trip():
    seed_everything(1)
    state = random_state()
    first = (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random(), np.random.randn())
    restore_random_state(state)
    assert first == (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random(), np.random.randn())
