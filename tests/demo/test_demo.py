"""The demonstration as users start it, as short as it goes: table, picture, scores, and nothing outside its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import blosc2
import pytest

from nnunet_semisam.cli import demo
from nnunet_semisam.demo.commands import CommandFailed, Place
from nnunet_semisam.demo.dataset import NAME, SEMISAM
from nnunet_semisam.demo.run import RUNS, table, waited

ROWS = {"supervised": (0.5, 0.3), "SemiSAM student": (0.6, 0.1), "SemiSAM teacher": (0.9, 0.7)}
SCORES = {row: {"a": {"organ 1": one, "organ 2": two}} for row, (one, two) in ROWS.items()}


def test_table_shows_losses_as_well_as_wins():
    lines = table(SCORES).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == list(RUNS)
    assert lines[1].split()[-3:] == ["0.500", "0.300", "0.400"]
    assert lines[2].split()[-4:] == ["0.350", "0", "of", "1"]
    assert lines[3].split()[-4:] == ["0.800", "1", "of", "1"]


def test_that_the_unlabeled_phantoms_did_not_count_is_told(tmp_path):
    place = Place(tmp_path)
    log = place.logs / f"train_{SEMISAM}.txt"
    log.write_text("Epoch 0\nDone\n")
    assert waited(place) == ""
    log.write_text("Epoch 0\n12:00: WARNING: semisam: unlabeled patches did not count at the end: Dice 0.1\nDone\n")
    assert waited(place).strip() == log.read_text().splitlines()[1]


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from nnunet_semisam.cli.demo import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'nnunetv2', 'numpy'} & sys.modules.keys()"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert time.monotonic() - started < 5  # 0.1 s on an idle machine


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "precious").write_text("")
    with pytest.raises(SystemExit, match="not an empty folder"):
        demo.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_torchvision_of_another_torch_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit, match="torchvision cannot be imported"):
        demo.main([str(tmp_path / "new")])


def test_a_failing_command_names_its_log_and_shows_the_end(tmp_path, capsys):
    place = Place(tmp_path / "demo")
    with pytest.raises(CommandFailed, match=r"(?s)nnUNetv2_train ended with code 2.*train\.txt.*required"):
        place.run("nnUNetv2_train", log="train")
    assert "required" in (place.logs / "train.txt").read_text()
    assert "$ nnUNetv2_train" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_end_to_end(tmp_path, capsys):
    before, folder = dict(os.environ), tmp_path / "demo"
    demo.main([str(folder), "--quick"])
    printed = capsys.readouterr().out
    assert dict(os.environ) == before
    assert all(row in printed for row in RUNS) and "[6/6]" in printed
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    dice = json.loads((folder / "scores.json").read_text())["dice"]
    assert list(dice) == list(RUNS) and all(len(cases) == 2 for cases in dice.values())
    labels = {path.name for path in folder.rglob("*.nii.gz") if "unlabeled" in path.name}
    assert labels and all(name.endswith("_0000.nii.gz") for name in labels)
    logs = [file.read_text() for file in (folder / "logs").glob("train_*.txt")]
    assert len(logs) == 2 and all("train_loss" in log and "train_loss nan" not in log for log in logs)
    blank = list(
        (folder / "nnUNet_preprocessed" / NAME).rglob("unlabeled_*_seg.b2nd")
    )  # nnU-Net's preprocessor writes it
    assert len(blank) == 2 and all(blosc2.open(urlpath=str(file), mode="r")[:].max() <= 0 for file in blank)
