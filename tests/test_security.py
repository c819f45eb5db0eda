"""Files of strangers run no code and lead nowhere; nothing but a fetch talks to the network."""

import ast
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_step import toy, trained  # noqa: F401 (a fixture)
from toy_trainer import build, short

import nnunet_semisam
from nnunet_semisam.checkpoint import plain, read_checkpoint, write_atomically, write_teacher_checkpoint
from nnunet_semisam.data.manifest import Manifest
from nnunet_semisam.data.splits import read_split
from nnunet_semisam.sam import build_backend
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

MODULES = sorted(Path(nnunet_semisam.__file__).parent.rglob("*.py"))
TALKATIVE = {"socket", "urllib", "http", "requests", "httpx", "ftplib", "huggingface_hub", "asyncio"}


class Evil:
    """Pickled, it makes a file where it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_our_checkpoints_hold_tensors_and_plain_values_only(toy):  # noqa: F811
    folder = trained().output_folder
    for name in ("checkpoint_final.pth", "checkpoint_final_teacher.pth"):
        assert torch.load(f"{folder}/{name}", weights_only=True)["network_weights"]


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(toy, tmp_path):  # noqa: F811
    good = f"{trained().output_folder}/checkpoint_final.pth"
    bad, trace = tmp_path / "evil.pth", tmp_path / "it_ran"
    trainer = build(nnUNetTrainerSemiSAM, short(num_epochs=2), continue_training=True)
    for protocol in (2, 4):
        torch.save(read_checkpoint(good) | {"_best_ema": Evil(trace)}, bad, pickle_protocol=protocol)
        with pytest.raises(ValueError, match="evil.pth is refused: it is damaged, or holds Python objects"):
            trainer.load_checkpoint(str(bad))
        assert not trace.exists()
    torch.load(bad, weights_only=False)
    assert trace.exists()  # it would have
    bad.write_bytes(Path(good).read_bytes()[:1000])
    with pytest.raises(ValueError, match="evil.pth is refused: it is damaged"):
        trainer.load_checkpoint(str(bad))


def test_the_teachers_checkpoint_is_made_of_none_that_would_run_code(tmp_path):
    trace = tmp_path / "it_ran"
    torch.save({"network_weights": {}, "semisam": {"teacher": {}}, "x": Evil(trace)}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="checkpoint_final.pth is refused"):
        write_teacher_checkpoint(str(tmp_path))
    assert not trace.exists() and not (tmp_path / "checkpoint_final_teacher.pth").exists()


def test_numbers_of_numpy_are_read_and_written_as_plain_ones(tmp_path):
    values = {"log": [np.float64(0.5), (np.int64(3), "x")], "tensor": torch.ones(2), "flag": np.bool_(True)}
    file = str(tmp_path / "as_nnunet_does.pth")
    every = {code: np.zeros(2, code)[0] for code in "?bhilBHILefdFD"}
    torch.save(values | {"every": every, "array": np.arange(3)}, file)
    assert read_checkpoint(file)["log"] == values["log"] and read_checkpoint(file)["every"] == every
    assert read_checkpoint(file)["array"].tolist() == [0, 1, 2]
    old = tmp_path / "numpy_1.pth"
    torch.save(values, old, _use_new_zipfile_serialization=False)
    old.write_bytes(old.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(str(old))["log"] == values["log"]
    write_atomically(plain(values), file)
    read = torch.load(file, weights_only=True)
    assert read["log"] == [0.5, (3, "x")] and read["flag"] is True
    assert type(read["log"][0]) is float and torch.equal(read["tensor"], torch.ones(2))


def test_names_that_are_paths_lead_nowhere(tmp_path):
    (tmp_path / "made").mkdir()
    outside = tmp_path / "secret.b2nd"
    outside.touch()
    manifest = Manifest(tmp_path / "made", "settings")
    record = {"source": "imagesUn", "files": {}, "settings": "settings"}
    names = ["../secret", str(outside.with_suffix("")), "", ".", "..", "..\\secret", "a\0b", "good"]
    manifest.file.write_text(json.dumps(dict.fromkeys(names, record)))
    manifest.image("good").touch()
    assert list(Manifest.load(tmp_path / "made", "settings").cases) == ["good"]
    assert list(Manifest.load(tmp_path / "made", "settings").finished_cases()) == ["good"]
    splits = tmp_path / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["a"], "unlabeled": ["../secret"], "val": []}]))
    with pytest.raises(ValueError, match="secret"):
        read_split(splits, 0, known=["a", "b"])


def test_one_module_alone_imports_what_talks_to_the_network():
    found = {}
    for module in MODULES:
        nodes = list(ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        if talkative := {name.split(".")[0] for name in names} & TALKATIVE:
            found[module.name] = talkative
    assert found == {"fetch.py": {"http", "urllib"}}


def test_a_training_opens_no_connection(toy, monkeypatch):  # noqa: F811
    """With the test and the tuning of the generalist that a training begins with, as they are by default."""
    asked = []

    def refuse(*given, **more):
        asked.append(given)
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    sam = {"min_voxels": 1, "min_agreement": 0.0, "trust": "auto", "tune": 2}
    monkeypatch.setattr("nnunet_semisam.trainer.build_backend", build_backend)  # the one that ships
    assert trained(section=short(sam=sam)).iteration > 0
    assert asked == []
