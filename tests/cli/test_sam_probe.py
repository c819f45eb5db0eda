"""`nnUNetv2_semisam_sam probe`: table, JSON and pictures from labeled training cases, and from no others."""

import json

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_trainer import LABELED, LABELS, NAME, UNLABELED, VAL, build, locations, plans, save_case

from nnunet_semisam.cli.probe_picture import plane_of
from nnunet_semisam.cli.sam import main
from nnunet_semisam.data.splits import training_cases


@pytest.fixture
def planned(toy, tmp_path):  # noqa: F811
    """The toy data set as the commands want it; returns its preprocessed folder."""
    folder = tmp_path / "nnUNet_preprocessed" / NAME
    dataset_json = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 6, "file_ending": ".nii.gz"}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans((16, 16, 16))))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def run(tmp_path, *more):
    assert main(["probe", "-d", NAME, "-c", "toy", "--patches", "2", "-o", str(tmp_path / "out"), *more]) == 0
    latest = max(tmp_path.glob("out*/probe.json"), key=lambda file: file.stat().st_mtime_ns)
    return json.loads(latest.read_text())


def timeless(content):
    return [{k: v for k, v in trial.items() if k != "seconds"} for trial in content["trials"]]


def test_table_json_and_pictures(planned, tmp_path, capsys):
    content = run(tmp_path, "--each-kind", "--set", "sam.min_voxels=1", "--dice", "0.8")
    told = capsys.readouterr().out
    assert tuple(content["cases"]) == LABELED and content["sam"]["min_voxels"] == 1
    rows = {(row["name"], row["source"], len(row["kinds"])): row for row in content["rows"]}
    assert set(rows) == {(n, s, k) for n in ("ball", "shell") for s in ("truth", "corrupted") for k in (4, 1)}
    assert rows["ball", "truth", 4]["prompt"] == 1 and abs(rows["ball", "corrupted", 4]["prompt"] - 0.8) < 0.1
    assert len(content["rows"]) == 2 * 2 * 4 and len(content["trials"]) == 2 * sum(1 for _ in content["rows"])
    assert "| ball | corrupted |" in told and "shell: of a perfect prompt" in told and told.count(": trust it") == 2
    assert (tmp_path / "out" / "probe.md").read_text().strip() in told
    pictures = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert len(pictures) == 2 * 2 * 2 and pictures[0] == "ball_corrupted_0.png"


def test_an_earlier_probe_is_kept(planned, tmp_path, capsys):
    run(tmp_path)
    first = (tmp_path / "out" / "probe.json").read_bytes()
    again = run(tmp_path, "--dice", "0.6")
    assert f"written: {tmp_path / 'out_2'}" in capsys.readouterr().out and again["dice"] == 0.6
    assert (tmp_path / "out" / "probe.json").read_bytes() == first


def test_only_labels_of_training_cases_matter(planned, tmp_path):
    clean = timeless(run(tmp_path))
    random, folder = np.random.RandomState(0), planned / "nnUNetPlans_toy"
    for name in (*UNLABELED, *VAL):
        image, seg, _, _ = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
        image, noise = image[:], random.randint(0, 3, seg.shape).astype(np.int8)
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{ending}").unlink()
        save_case(image, noise, {"class_locations": locations(noise)}, str(folder / name))
    assert timeless(run(tmp_path)) == clean


def test_a_model_prompts_and_its_advantage_is_told(planned, tmp_path, capsys):
    build(nnUNetTrainer).run_training()
    content = run(tmp_path, "--prompts-from", "model", "-tr", "nnUNetTrainer", "--set", "sam.min_voxels=1")
    told = capsys.readouterr().out
    assert "the model has learned from these very cases" in told
    assert all(trial["source"] == "model" and trial["prompt"] < 1 for trial in content["trials"])
    assert content["trials"] or "no object of 1 voxels" in told


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--prompts-from", "model", "-chk", "no.pth"], "no.pth does not exist; train first"),
        (["--set", "sam.plane=3"], "unknown key 'plane' in sam"),
        (["--backend", "sam9"], "unknown sam.backend 'sam9'"),
        (["-f", "3"], "hides the labels"),
        (["-f", "all"], "hides the labels"),
        (["-c", "other"], "no configuration other"),
    ],
)
def test_mistakes_are_told(planned, tmp_path, capsys, more, word):
    assert main(["probe", "-d", NAME, "-c", "toy", *more]) == 1
    assert word in capsys.readouterr().err


def test_a_fold_that_nobody_has_chosen(tmp_path):
    file = tmp_path / "splits_final.json"
    with pytest.raises(ValueError, match='fold 0 has no "train" cases.*start nnUNetv2_train once'):
        training_cases(file, 0, known=list("abcde"))
    with pytest.raises(ValueError, match="only fold all can be trained"):  # nnU-Net writes no file for two
        training_cases(file, 0, known=["a", "b"])
    assert training_cases(file, "all", known=["b", "a"]) == ("a", "b")
    file.write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    assert training_cases(file, 0, known=["a", "b"]) == ("a",)
    file.write_text(json.dumps([{"train": ["a"]}]))  # nobody validates here
    assert training_cases(file, 0, known=["a", "b"]) == ("a",)


@pytest.mark.parametrize("along", [0, 1, 2])
def test_the_picture_shows_a_plane_that_was_asked_about(along):
    voxels = np.zeros((5, 6, 7), dtype=bool)
    truth = np.zeros_like(voxels)
    np.moveaxis(voxels, along, 0)[[1, 3]] = True
    np.moveaxis(truth, along, 0)[3] = True
    import torch

    index = plane_of(torch.from_numpy(voxels), torch.from_numpy(truth))
    assert index[along] == 3 and [i for i in index if isinstance(i, slice)] == [slice(None)] * 2


def test_a_case_that_is_hidden_as_well_is_no_training_case(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["a", "b"], "unlabeled": ["b"], "val": ["c"]}]))
    with pytest.raises(ValueError, match="b"):
        training_cases(file, 0, known=["a", "b", "c"])
