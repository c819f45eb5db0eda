"""Checkpoint files of strangers: what would run code is refused without being run, and told from what is damaged."""

import argparse
import os
import pickle
from collections import OrderedDict

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.checkpoints import load_tensors


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_tensors_in_plain_containers_are_read(tmp_path):
    content = {"model": OrderedDict(weight=torch.ones(2)), "epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    assert torch.equal(load_tensors(tmp_path / "a.pth")["model"]["weight"], torch.ones(2))


@pytest.mark.parametrize("kind", ["bomb", "settings", "bare pickle"])
def test_files_with_code_are_refused_and_not_run(tmp_path, kind):
    pytest.importorskip("segment_anything")
    file, exploded = tmp_path / "a.pth", tmp_path / "exploded"
    content = {"weight": torch.ones(2), "more": argparse.Namespace(lr=1) if kind == "settings" else Bomb(exploded)}
    if kind == "bare pickle":
        file.write_bytes(pickle.dumps({"more": Bomb(exploded)}, protocol=2))
    else:
        torch.save(content, file)
    config = SamConfig(backend="segment_anything", checkpoint=str(file))
    with pytest.raises(ValueError, match="a.pth is refused: .* would run code"):
        build_backend(config, torch.device("cpu"))
    assert not exploded.exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut"], ids=["empty", "page", "cut"])
def test_damaged_files_are_not_called_dangerous(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match="a.pth cannot be read .* damaged .* fetch"):
        load_tensors(tmp_path / "a.pth")
