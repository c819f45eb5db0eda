"""A full or read-only disk while training: the path is named, earlier files are whole. And `skip_bad`."""

import errno
import os

import pytest
import torch
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_trainer import NAME, build, short

from nnunet_semisam import stream
from nnunet_semisam.checkpoint import write_atomically
from nnunet_semisam.curves import Curves
from nnunet_semisam.data.disk import DiskTrouble
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFile:
    """A file that takes some bytes and no more; torch gives the error of `write` another type on its way."""

    def __init__(self, file):
        self.file, self.left = file, 2000

    def write(self, content):
        self.left -= len(content)
        return self.file.write(content) if self.left > 0 else full()

    def flush(self):
        self.file.flush()


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.pth"
    write_atomically({"epoch": 1}, str(file))
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda content, target: save(content, FullFile(target)))
    with pytest.raises(DiskTrouble, match=f"cannot write {file}.*free some space"):
        write_atomically({"epoch": 2, "weights": torch.zeros(9999)}, str(file))
    monkeypatch.undo()
    assert torch.load(file)["epoch"] == 1 and [f.name for f in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_checkpoint_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    with pytest.raises(DiskTrouble, match="checkpoint.pth.*permissions"):
        write_atomically({}, str(tmp_path / "checkpoint.pth"))


@pytest.mark.parametrize("what", ["curves", "nnunet"])
def test_a_disk_that_fills_up_in_an_epoch_is_told_and_the_checkpoint_is_whole(toy, monkeypatch, what):  # noqa: F811
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    trainer = build(nnUNetTrainerSemiSAM, short(num_epochs=3))
    trainer.save_every = 1
    owner, name = (Curves, "plot") if what == "curves" else (LocalLogger, "plot_progress_png")
    last = 2 if what == "curves" else 1  # nnU-Net counts on between the two
    monkeypatch.setattr(owner, name, lambda self, place: full() if trainer.current_epoch == last else None)
    with pytest.raises(DiskTrouble, match=f"cannot write {trainer.output_folder}"):
        trainer.run_training()
    checkpoint = torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 2


def test_the_resolved_configuration_names_its_folder(toy, monkeypatch):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, short())
    monkeypatch.setattr(stream, "save_json", full)
    with pytest.raises(DiskTrouble, match=f"cannot write {trainer.output_folder}"):
        trainer.on_train_start()


def test_a_log_that_cannot_be_written_does_not_end_the_training(toy, monkeypatch, capsys):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, short())
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.sleep", lambda seconds: None)
    trainer.log_file = "/proc/no/such/log.txt"
    trainer.run_training()
    assert os.path.isfile(f"{trainer.output_folder}/checkpoint_final.pth")
    assert "failed to log" in capsys.readouterr().out


def test_bad_images_are_skipped_by_the_trainer_only_when_asked_to(toy, tmp_path):  # noqa: F811
    folder = tmp_path / "nnUNet_raw" / NAME / "imagesUn"
    folder.mkdir(parents=True)
    (folder / "bad_0000.nii.gz").write_bytes(b"")
    (folder / "label.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="label.nii.gz"):
        build(nnUNetTrainerSemiSAM, short()).on_train_start()
    trainer = build(nnUNetTrainerSemiSAM, short(skip_bad=True))
    lines = []
    trainer.print_to_log_file = lambda *words, **_: lines.append(" ".join(map(str, words)))
    trainer.on_train_start()
    (told,) = [line for line in lines if "skipped (skip_bad)" in line]
    assert told.count("\n  - ") == 2 and "label.nii.gz" in told and "bad_0000.nii.gz" in told
