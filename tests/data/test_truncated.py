import gzip
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_semisam.data.image_checks import open_problems
from nnunet_semisam.data.preprocess import preprocess_unlabeled
from nnunet_semisam.data.truncated import not_finite_files, truncation_problems


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_cut_archive_is_named(toy, share):
    file = toy.image("whole")
    assert truncation_problems([str(file)]) == []
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    [problem] = truncation_problems([str(file)])
    assert str(file) in problem and "cut off" in problem


def test_whole_archive_with_half_an_image_is_named(toy):
    file = toy.image("half")
    content = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(content[: len(content) // 2]))
    [problem] = truncation_problems([str(file)])
    assert str(len(content)) in problem


def test_check_and_preprocessing_refuse_a_cut_image(toy):
    plans_manager, configuration_manager, dataset_json = toy.managers()
    good, bad = toy.image("good"), toy.image("bad")
    bad.write_bytes(bad.read_bytes()[:-200])
    reader = plans_manager.image_reader_writer_class()
    [problem] = open_problems({"bad": [str(bad)], "good": [str(good)]}, reader, dataset_json)
    assert str(bad) in problem
    with pytest.raises(ValueError, match="bad_0000"):
        preprocess_unlabeled(
            plans_manager.dataset_name, plans_manager, configuration_manager, dataset_json, num_processes=1
        )


@pytest.mark.parametrize("how", ["not compressed", "followed by other bytes"])
def test_what_readers_mind_not_is_no_fault(toy, how):
    plans_manager, _, dataset_json = toy.managers()
    file = toy.image("odd")
    content = file.read_bytes()
    file.write_bytes(gzip.decompress(content) if how == "not compressed" else content + b"junk" * 9)
    reader = plans_manager.image_reader_writer_class()
    assert open_problems({"odd": [str(file)]}, reader, dataset_json) == []
    assert not_finite_files([str(file)]) == []


def test_a_damaged_archive_of_full_length_is_named(toy):
    file = toy.image("damaged")
    content = bytearray(file.read_bytes())
    content[-6] ^= 0xFF  # of the sum at the end
    file.write_bytes(content)
    [problem] = truncation_problems([str(file)])
    assert "damaged" in problem


@pytest.mark.parametrize("change", [("h", 72, 0), ("h", 72, 8), ("h", 48, 0), ("h", 48, -1)], ids=str)
def test_nan_is_found_whatever_the_header_says_of_what_readers_do_not_look_at(tmp_path, change):
    values = np.ones((8, 9, 10), np.float32)
    values[-1, -1, -1] = np.nan
    image = nibabel.Nifti1Image(values, np.eye(4))
    content = bytearray(image.to_bytes())
    kind, place, value = change
    if place == 48:  # of the side along the fourth axis, which is there now
        struct.pack_into("<h", content, 40, 4)
    struct.pack_into(f"<{kind}", content, place, value)
    file = tmp_path / "x_0000.nii.gz"
    file.write_bytes(gzip.compress(bytes(content)))
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(file))).squeeze().shape == values.T.shape
    assert not_finite_files([str(file)]) == [str(file)] and truncation_problems([str(file)]) == []
