"""`labeled_as_unlabeled`: the images of labeled cases join the unlabeled ones, above all for sparse annotations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from test_cascade import CASES, cascade_plans, trained as trained_cascade, train_lowres, write_lowres  # isort: skip
from test_train_step import toy, trained  # noqa: F401 (a fixture)
from toy_cascade import LOWRES, build_stage, write_predictions
from toy_trainer import LABELED, LABELS, UNLABELED, VAL, build, case, locations, save_case, short, weights

from nnunet_semisam.data.previous_stage import FOLDER
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

KEY = {"labeled_as_unlabeled": True}


def without_unlabeled(splits_file):
    split = json.loads(splits_file.read_text())
    split[0].pop("unlabeled")
    splits_file.write_text(json.dumps(split))


def pool(trainer):
    return set(trainer.dataloader_unlabeled.data_loader._data.identifiers)


def record(trainer):
    with open(f"{trainer.output_folder}/semisam_unlabeled.json") as file:
        return set(json.load(file))


def train_lowres_with_key():
    built = build_stage(nnUNetTrainerSemiSAM, LOWRES, cascade_plans(**KEY))
    built.run_training()
    write_predictions(Path(built.output_folder_base))


def started(**section):
    trainer = build(nnUNetTrainerSemiSAM, short(**section))
    trainer.on_train_start()
    return trainer


def test_the_pool_has_them_and_the_record_of_hidden_labels_has_not(toy):  # noqa: F811
    assert pool(started()) == set(UNLABELED)
    both = started(**KEY)
    assert pool(both) == {*UNLABELED, *LABELED}
    assert record(both) == set(UNLABELED)  # the labels of the others were seen


def test_no_unlabeled_case_is_needed_then(toy, tmp_path):  # noqa: F811
    without_unlabeled(tmp_path / CASES / "splits_final.json")
    trainer = trained(section=short(**KEY))
    assert pool(trainer) == set(LABELED) and record(trainer) == set()
    assert trainer.curves.epochs["loss/consistency"][0] > 0


def test_voxels_without_annotation_get_the_unlabeled_losses(toy, tmp_path, monkeypatch):  # noqa: F811
    """One annotated plane per case; the unlabeled term does not know which voxels these are."""
    for seed, name in enumerate((*LABELED, *VAL)):
        image, seg = case(seed)
        seg[:, :8], seg[:, 9:] = 3, 3
        annotated = {(-1, 0, 1, 2): np.argwhere(seg != 3)}
        for file in (tmp_path / CASES / "nnUNetPlans_toy").glob(f"{name}*"):
            file.unlink()
        properties = {"class_locations": locations(seg) | annotated}
        save_case(image, seg, properties, str(tmp_path / CASES / "nnUNetPlans_toy" / name))
    without_unlabeled(tmp_path / CASES / "splits_final.json")
    seen = []
    ask = nnUNetTrainerSemiSAM.pseudo_labels

    def look(self, *of):
        pseudo = ask(self, *of)
        seen.append(pseudo["consistency"].confidence.min().item())
        return pseudo

    monkeypatch.setattr(nnUNetTrainerSemiSAM, "pseudo_labels", look)
    trainer = trained(section=short(**KEY), labels={**LABELS, "ignore": 3})
    assert seen == [1.0] * 3 and trainer.curves.epochs["loss/consistency"][0] > 0


def test_labels_of_hidden_cases_stay_unread(toy, tmp_path):  # noqa: F811
    before = weights(trained(section=short(**KEY)))
    folder = tmp_path / CASES / "nnUNetPlans_toy"
    for name in UNLABELED:
        (folder / f"{name}_seg.b2nd").unlink()
    assert torch.equal(weights(trained(section=short(**KEY))), before)
    assert not torch.equal(weights(trained()), before)


def test_in_a_cascade_their_previous_stage_is_nnunets_own(toy, tmp_path):  # noqa: F811
    write_lowres(tmp_path / "nnUNet_preprocessed")
    folder = train_lowres()
    trainer = trained_cascade(cascade_plans(**KEY))
    previous = trainer.dataloader_unlabeled.data_loader._data.previous
    assert set(previous) == {*UNLABELED, *LABELED}
    for name, file in previous.items():
        assert str(folder / ("predicted_next_stage" if name in LABELED else FOLDER)) in file


def test_a_cascade_needs_no_other_unlabeled_case_either(toy, tmp_path):  # noqa: F811
    write_lowres(tmp_path / "nnUNet_preprocessed")
    without_unlabeled(tmp_path / CASES / "splits_final.json")
    train_lowres_with_key()
    assert pool(trained_cascade(cascade_plans(**KEY))) == set(LABELED)


def test_check_does_not_ask_for_unlabeled_cases_then(toy, tmp_path):  # noqa: F811
    from toy_trainer import NAME, plans

    from nnunet_semisam.cli.check import check_setup

    folder = tmp_path / CASES
    without_unlabeled(folder / "splits_final.json")
    dataset_json = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 6, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for section, count in (({}, 1), (KEY, 0)):
        content = plans((16, 16, 16))
        content["configurations"]["toy"]["semisam"] = section
        content["foreground_intensity_properties_per_channel"] = {"0": {}}
        (folder / "nnUNetPlans.json").write_text(json.dumps(content))
        problems = check_setup(NAME, configurations=["toy"], fold=0).problems
        assert len([text for text in problems if "no unlabeled case" in text]) == count


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_the_key_is_true_or_false(toy, value):  # noqa: F811
    with pytest.raises(ValueError, match="labeled_as_unlabeled is .* it must be true or false"):
        build(nnUNetTrainerSemiSAM, short(labeled_as_unlabeled=value))
