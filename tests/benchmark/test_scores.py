"""Scores of image files: spacing per axis, classes, regions, ignored voxels, and files that are missing or wrong."""

import numpy as np
import pytest
import SimpleITK as sitk
from made_up import protocol, raw_dataset

pytest.importorskip("monai", reason="pip install 'nnunet_semisam[benchmark]'")

from nnunet_semisam.benchmark.runs import expand
from nnunet_semisam.benchmark.scores import score

SHAPE = (20, 24, 28)  # z, y, x
SPACING = (4.0, 1.0, 0.5)


def write(file, labels):
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(SPACING[::-1])  # SimpleITK: x, y, z
    file.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(file))


def case(shift=0, value=1):
    labels = np.zeros(SHAPE)
    labels[5 + shift : 12 + shift, 4:14, 4:14] = value
    labels[5:12, 16:22, 16:26] = 2
    return labels


@pytest.fixture
def scored(tmp_path):
    def call(prediction, truth, labels=None, **values):
        dataset = raw_dataset(tmp_path, labels=labels)
        run = expand(protocol(dataset, max_cases=1, **values), [dataset])[0]
        write(dataset.label(run.cases[0]), truth)
        if prediction is not None:
            write(tmp_path / "out" / f"{run.cases[0]}.nii.gz", prediction)
        return {row["class"]: row for row in score(run, tmp_path / "out", "final")}

    return call


def test_a_shift_along_the_thick_axis_is_measured_in_its_spacing(scored):
    rows = scored(case(shift=2), case())
    assert rows["front"]["hd95"] == pytest.approx(8.0) and rows["front"]["dice"] == pytest.approx(5 / 7)
    assert rows["back"]["dice"] == 1 and rows["back"]["hd95"] == 0


def test_in_voxel_units_it_is_two(scored):
    assert scored(case(shift=2), case(), voxel_units=True)["front"]["hd95"] == pytest.approx(2.0)


def test_regions_are_unions_of_labels(scored):
    rows = scored(case(value=2), case(), {"background": 0, "whole": [1, 2], "front": 1})
    assert rows["whole"]["dice"] == 1 and rows["front"]["empty"] == "missed"


def test_ignored_voxels_count_for_nothing(scored):
    truth = case()
    truth[0:5] = 3
    prediction = case()
    prediction[0:5, 4:14, 4:14] = 1
    rows = scored(prediction, truth, {"background": 0, "front": 1, "back": 2, "ignore": 3})
    assert set(rows) == {"front", "back"} and rows["front"]["dice"] == 1


def test_a_prediction_that_is_missing_is_an_error(scored):
    with pytest.raises(FileNotFoundError, match="nnUNetv2_predict has not written it"):
        scored(None, case())


def test_another_shape_is_an_error(scored):
    with pytest.raises(ValueError, match=r"has shape \(19, 24, 28\), its reference \(20, 24, 28\)"):
        scored(case()[1:], case())
