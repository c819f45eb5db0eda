"""The folder imagesUn: listing by names only, and everything that can be wrong in it."""

from __future__ import annotations

import os

import numpy as np
import pytest
from toy_dataset import dataset_json

from nnunet_semisam.data.image_checks import open_problems
from nnunet_semisam.data.raw_pool import files_per_case, list_unlabeled, scan_unlabeled


@pytest.fixture
def raw(tmp_path):
    """Makes a raw folder of empty files: listing must not open them."""

    def make(*unlabeled: str, labeled: tuple[str, ...] = ("a_0000.nii.gz", "b_0000.nii.gz")):
        for folder, names in (("imagesTr", labeled), ("imagesUn", unlabeled)):
            (tmp_path / folder).mkdir()
            for name in names:
                (tmp_path / folder / name).touch()
        return tmp_path

    return make


def problems_of(raw_folder, **more):
    return [sentence for _, sentence in scan_unlabeled(raw_folder, dataset_json(**more))[1]]


def test_lists_the_same_files_as_nnunet(raw):
    from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

    names = [f"{case}_000{channel}.nii.gz" for case in ("x_1", "x_0000", "y") for channel in (1, 0)]
    folder = raw(*names, labeled=("a_0000.nii.gz", "a_0001.nii.gz"))
    cases = list_unlabeled(folder, dataset_json(2))
    assert list(cases) == ["x_0000", "x_1", "y"]
    theirs = create_lists_from_splitted_dataset_folder(str(folder / "imagesUn"), ".nii.gz", num_processes=1)
    assert list(cases.values()) == theirs


def test_no_folder_is_no_case(tmp_path):
    assert list_unlabeled(tmp_path, dataset_json()) == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.nii.gz", ["no channel number", "label"]),
        ("a.nii.gz", ["no channel number", "label"]),
        ("x_0000.nrrd", [".nii.gz", "file_ending", "convert"]),
        ("x_0001.nii.gz", ["'x'", "0001", "imagesTr", "add or remove"]),
        ("a_0000.nii.gz", ["'a' is", "imagesTr", "rename"]),
        ("x_seg_0000.nii.gz", ["'x_seg'", "rename"]),
    ],
)
def test_a_wrong_name_is_told_with_its_cure(raw, name, words):
    folder = raw("good_0000.nii.gz", name)
    (problem,) = problems_of(folder)
    for word in [*words, str(folder / "imagesUn")]:
        assert word in problem
    with pytest.raises(ValueError, match="imagesUn"):
        list_unlabeled(folder, dataset_json())


def test_a_missing_channel_is_a_problem(raw):
    folder = raw("x_0000.nii.gz", labeled=("a_0000.nii.gz", "a_0001.nii.gz"))
    (problem,) = problems_of(folder, channels=2)
    assert "0000, 0001" in problem


def test_one_rgb_file_with_three_channels_is_right(raw):
    assert problems_of(raw("x_0000.nii.gz"), channels=3) == []


def test_names_that_differ_by_case_only_and_folders_are_problems(raw):
    folder = raw("x_0000.nii.gz", "X_0000.nii.gz")
    (folder / "imagesUn" / "more").mkdir()
    problems = problems_of(folder)
    assert len(problems) == 2 and "is a folder" in problems[0] and "upper and lower case" in problems[1]


def test_hidden_files_and_spacing_files_of_tiff_are_ignored(raw):
    folder = raw(".DS_Store", "x_0000.tif", "x.json", labeled=("a_0000.tif",))
    assert list(list_unlabeled(folder, dataset_json(file_ending=".tif"))) == ["x"]


def test_no_file_is_asked_about_that_the_listing_has_told_of_but_links_are(raw, tmp_path, monkeypatch):
    folder = raw(*[f"{number}_0000.nii.gz" for number in range(20)])
    (folder / "imagesUn" / "linked_0000.nii.gz").symlink_to(folder / "imagesTr" / "a_0000.nii.gz")
    (folder / "imagesUn" / "folder").symlink_to(folder / "imagesTr")
    (folder / "imagesUn" / "round").symlink_to("round")
    asked = []
    for name in ("isdir", "isfile"):
        ask = getattr(os.path, name)
        monkeypatch.setattr(os.path, name, lambda path, ask=ask: asked.append(os.path.basename(path)) or ask(path))
    cases, problems = scan_unlabeled(folder, dataset_json())
    assert len(cases) == 21 and "linked" in cases
    assert [sentence.split(" is a ")[1].split(" ")[0].rstrip(";") for _, sentence in problems] == ["folder", "link"]
    assert {"folder", "linked_0000.nii.gz", "round"} <= set(asked) and "0_0000.nii.gz" not in asked


def ramp(shape):
    """An image of different values."""
    return np.arange(np.prod(shape), dtype=float).reshape(shape)


class FakeReader:
    """Serves what the test wants to be read."""

    def __init__(self, image, spacing=(1, 1, 1)):
        self.image, self.spacing = image, spacing

    def read_images(self, files):
        if self.image is None:
            raise OSError("truncated")
        return self.image, {"spacing": self.spacing}


@pytest.mark.parametrize(
    ("reader", "word"),
    [
        (FakeReader(None), "truncated"),
        (FakeReader(ramp((2, 3, 3, 3))), "2 channels"),
        (FakeReader(np.full((1, 3, 3, 3), np.nan)), "not finite"),
        (FakeReader(ramp((1, 3, 3, 3)), (1, 0, 1)), "spacing"),
        (FakeReader(ramp((1, 3, 3, 3)), (1, np.nan, 1)), "spacing"),
    ],
)
def test_a_bad_image_is_named(reader, word):
    (problem,) = open_problems({"x": ["dir/x_0000.nii.gz"]}, reader, dataset_json())
    assert word in problem and "dir/x_0000.nii.gz" in problem


def test_a_case_with_a_file_too_few_is_told_once(raw):
    folder = raw("x_0000.nii.gz", labeled=("a_0000.nii.gz", "a_0001.nii.gz"))
    cases, problems = scan_unlabeled(folder, dataset_json(2))
    reader = FakeReader(ramp((1, 3, 3, 3)))
    num_files = files_per_case(folder, dataset_json(2))
    assert num_files == 2 and len(problems) == 1
    cases = {case: ["dir/x_0000.nii.gz"] for case in cases}  # the file there is empty, which is another problem
    assert open_problems(cases, reader, dataset_json(2), num_files=num_files) == []
    assert "1 channels, but dataset.json names 2" in open_problems(cases, reader, dataset_json(2), num_files=1)[0]
    endless = FakeReader(np.full((1, 3, 3, 3), np.inf))
    assert "not finite" in open_problems(cases, endless, dataset_json(2), num_files=num_files)[0]


def test_every_image_that_opens_is_shown():
    shown = []
    image = ramp((1, 3, 3, 3))
    cases = {"x": ["x_0000.nii.gz"]}
    open_problems(cases, FakeReader(image), dataset_json(), look=lambda files, seen: shown.append((files, seen)))
    open_problems(cases, FakeReader(None), dataset_json(), look=lambda files, seen: shown.append((files, seen)))
    assert len(shown) == 1 and shown[0][0] == ["x_0000.nii.gz"] and shown[0][1] is image


def test_a_good_image_has_no_problem():
    assert open_problems({"x": ["x_0000.nii.gz"]}, FakeReader(ramp((1, 3, 3, 3))), dataset_json()) == []


@pytest.mark.parametrize("beside", [True, False], ids=["labeled have spacings", "labeled have none"])
def test_a_tiff_without_its_spacing_is_named_where_others_have_it(tmp_path, beside):
    dataset_json = {"file_ending": ".tif", "channel_names": {"0": "x"}}
    for folder, name in (("imagesTr", "a"), ("imagesUn", "x"), ("imagesUn", "y")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}_0000.tif").touch()
    for folder, name in (("imagesTr", "a"), ("imagesUn", "x")):  # a json without spacing is something else
        (tmp_path / folder / f"{name}.json").write_text('{"spacing": [1, 1, 2]}' if beside else '{"scanner": 3}')
    problems = [sentence for _, sentence in scan_unlabeled(tmp_path, dataset_json)[1]]
    assert [sentence for sentence in problems if "'y' is without a file y.json" in sentence] == problems
    assert len(problems) == beside
