"""Hidden cases under `use_mask_for_norm`: nnU-Net's preprocessed image tells of the label, ours must not."""

from __future__ import annotations

import shutil

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from toy_dataset import ENDING, SHAPE, ToyDataset

from nnunet_semisam.data import work
from nnunet_semisam.data.dataset import preprocess_dataset
from nnunet_semisam.data.hidden import find_hidden, label_shapes_image, preprocess_hidden
from nnunet_semisam.data.pool import unlabeled_pool
from nnunet_semisam.data.preprocess import preprocess_unlabeled
from nnunet_semisam.data.raw_pool import files_of_labeled

IDENTIFIER = "nnUNetPlans_3d_fullres"
CLEAN, NOISE = (np.random.default_rng(1).random(SHAPE) < share for share in (0.0, 0.5))


def write_raw(toy, case: str, label: np.ndarray) -> None:
    """An image whose background is a corner full of zeros, and a label."""
    values = np.random.default_rng(ord(case)).normal(5, 1, SHAPE).astype(np.float32)
    values[np.indices(SHAPE).sum(0) > sum(SHAPE) / 2] = 0
    for folder, name, array in (("imagesTr", f"{case}_0000", values), ("labelsTr", case, label.astype(np.uint8))):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(toy.raw / folder / f"{name}{ENDING}"))


def nnunet_preprocesses(toy, *cases: str) -> None:
    """As `nnUNetv2_preprocess` does, with labels."""
    manager, configuration, dataset_json = toy.managers()
    folder = toy.preprocessed / IDENTIFIER
    folder.mkdir(exist_ok=True)
    for case in cases:
        for left in folder.glob(f"{case}*"):
            left.unlink()
        files = [str(toy.raw / "imagesTr" / f"{case}_0000{ENDING}")], str(toy.raw / "labelsTr" / f"{case}{ENDING}")
        preprocessor = configuration.preprocessor_class(verbose=False)
        preprocessor.run_case_save(str(folder / case), *files, manager, configuration, dataset_json)


def pool_of(toy, fold: int = 0) -> dict:
    return unlabeled_pool(*toy.managers(), fold, num_processes=1)


def image(file) -> np.ndarray:
    return blosc2.open(str(file))[:]


@pytest.fixture
def masked(toy):
    """b is hidden in fold 0 and labeled in fold 1; normalisation uses the mask."""
    toy.edit_plans(use_mask_for_norm=[True])
    toy.splits({"train": ["a"], "unlabeled": ["b"], "val": ["c"]}, {"train": ["a", "b"], "val": ["c"]})
    for case in "abc":
        write_raw(toy, case, CLEAN)
    nnunet_preprocesses(toy, *"abc")
    toy.image("x")
    return toy


def test_the_pool_does_not_tell_of_the_label_and_nnunets_image_does(masked):
    nnunets, ours = [], []
    for label in (CLEAN, NOISE):
        write_raw(masked, "b", label)
        for left in masked.preprocessed.glob(f"{IDENTIFIER}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        nnunet_preprocesses(masked, *"abc")
        nnunets.append(image(masked.preprocessed / IDENTIFIER / "b.b2nd"))
        ours.append(image(pool_of(masked)["b"]))
    assert nnunets[0].shape == nnunets[1].shape and not np.array_equal(*nnunets)  # the leak
    np.testing.assert_array_equal(*ours)
    np.testing.assert_array_equal(ours[0], nnunets[0])  # without any labeled voxel it is the same preprocessing


def test_without_a_mask_the_label_has_no_say_and_nnunets_image_serves(masked):
    masked.edit_plans(use_mask_for_norm=[False])
    images = []
    for label in (CLEAN, NOISE):
        write_raw(masked, "b", label)
        nnunet_preprocesses(masked, "b")
        file = pool_of(masked)["b"]
        assert file == masked.preprocessed / IDENTIFIER / "b.b2nd"
        images.append(image(file))
    np.testing.assert_array_equal(*images)


def test_without_raw_images_what_was_made_is_used_and_else_refused(masked, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delenv("nnUNet_raw")
        with pytest.raises(ValueError, match="'b' is hidden.*imagesTr.*use_mask_for_norm.*set nnUNet_raw"):
            pool_of(masked)
    made = pool_of(masked)
    raw_image = masked.raw / "imagesTr" / f"b_0000{ENDING}"
    raw_image.rename(raw_image.with_name("elsewhere"))
    assert pool_of(masked) == made
    monkeypatch.delenv("nnUNet_raw")
    assert pool_of(masked) == made
    made["b"].unlink()
    with pytest.raises(ValueError, match="'b' is hidden"):
        pool_of(masked)


def test_a_hidden_case_is_no_image_of_images_un(masked, monkeypatch):
    """Where the raw folder is missing the manifest alone says what is in imagesUn; b is a labeled case of fold 1."""
    pool_of(masked)
    monkeypatch.delenv("nnUNet_raw")
    assert list(pool_of(masked, fold=1)) == ["x"]
    name, managers = masked.raw.name, masked.managers()
    assert list(preprocess_unlabeled(name, *managers)) == ["x"]


def test_only_a_changed_image_is_made_again(masked):
    file = pool_of(masked)["b"]
    before = file.stat().st_mtime_ns
    assert pool_of(masked)["b"].stat().st_mtime_ns == before
    write_raw(masked, "b", NOISE)  # another label, and the same image written again
    assert pool_of(masked)["b"].stat().st_mtime_ns == before
    write_raw(masked, "c", NOISE)
    images = masked.raw / "imagesTr"
    (images / f"c_0000{ENDING}").replace(images / f"b_0000{ENDING}")
    assert pool_of(masked)["b"].stat().st_mtime_ns > before


def test_the_preprocess_command_makes_hidden_cases_of_every_fold(masked):
    (masked.raw / "imagesUn" / f"x_0000{ENDING}").unlink()
    assert preprocess_dataset(901, configurations=["3d_fullres"], num_processes=1) == {IDENTIFIER: 1}
    assert (masked.preprocessed / f"{IDENTIFIER}_unlabeled" / "b.b2nd").is_file()
    masked.edit_plans(use_mask_for_norm=[False])
    assert preprocess_dataset(901, configurations=["3d_fullres"], num_processes=1) == {IDENTIFIER: 0}


@pytest.mark.filterwarnings("ignore")  # nnU-Net's reader warns, and reads
def test_a_hidden_case_is_taken_as_nnunet_took_it(tmp_path, monkeypatch):
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    toy = ToyDataset(tmp_path, channels=2)
    toy.edit_plans(use_mask_for_norm=[True, True])
    for case, folder in (("b", "imagesTr"), ("c", "imagesTr"), ("x", "imagesUn")):
        for channel in range(2):
            file = toy.image(case, folder, channel=channel, seed=channel)
            shifted = sitk.ReadImage(str(file))
            shifted.SetOrigin((0.8 * channel, 0, 0))
            sitk.WriteImage(shifted, str(file))
    managers = toy.managers()
    assert list(preprocess_hidden(["b"], toy.raw.name, *managers, num_processes=1)) == ["b"]
    with monkeypatch.context() as patch:
        patch.setattr(work.Work, "_preprocess", lambda self, *args: 1 / 0)
        with pytest.raises(ValueError, match="ZeroDivisionError") as told:
            preprocess_hidden(["c"], toy.raw.name, *managers, num_processes=1)
    assert "origin" not in str(told.value)
    with pytest.raises(ValueError, match="x_0001.*its origin is"):
        preprocess_unlabeled(toy.raw.name, *managers, num_processes=1)
    (toy.raw / "imagesTr" / f"b_0000{ENDING}").write_bytes(b"no image")
    with pytest.raises(ValueError, match='take the cases out of "unlabeled"') as told:
        preprocess_hidden(["b"], toy.raw.name, *managers, num_processes=1)
    assert "skip" not in str(told.value)


def test_files_that_dataset_json_lists_are_found(masked, tmp_path):
    manager, configuration, dataset_json = masked.managers()
    elsewhere = tmp_path / "b.nii.gz"
    (masked.raw / "imagesTr" / f"b_0000{ENDING}").rename(elsewhere)
    with pytest.raises(ValueError, match="'b' is hidden"):
        find_hidden(["b"], masked.raw.name, manager, configuration, dataset_json)
    listed = {"b": {"images": [str(elsewhere)], "label": "none"}, "c": {"images": [f"imagesTr/c_0000{ENDING}"]}}
    found = files_of_labeled(masked.raw, dataset_json | {"dataset": listed}, ["b", "c", "d"])
    assert found == {"b": [str(elsewhere)], "c": [str(masked.raw / "imagesTr" / f"c_0000{ENDING}")]}


def test_one_masked_channel_is_enough_for_the_label_to_have_a_say():
    for flags, shaped in (([True, False], True), ([False, True], True), ([False, False], False)):
        assert label_shapes_image(ConfigurationManager({"use_mask_for_norm": flags, "architecture": {}})) is shaped
