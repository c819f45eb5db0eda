"""The splits file: what each fold says, and every way in which it can be wrong."""

from __future__ import annotations

import json

import pytest

from nnunet_semisam.data.splits import (
    Split,
    collision_problems,
    no_case_message,
    num_folds,
    read_split,
    training_cases_in_val,
)

KNOWN = ("a", "b", "c", "d")
FOLD = {"train": ["a"], "unlabeled": ["b", "c"], "val": ["d"]}


@pytest.fixture
def splits_file(tmp_path):
    def write(*folds):
        file = tmp_path / "splits_final.json"
        file.write_text(json.dumps(list(folds)))
        return file

    return write


def test_reads_the_fold_that_is_asked_for(splits_file):
    file = splits_file({"train": ["d"], "val": ["a"]}, FOLD)
    assert read_split(file, 1, known=KNOWN) == Split(("a",), ("b", "c"), ("d",))
    assert read_split(file, "0", known=KNOWN) == Split(("d",), (), ("a",))
    assert num_folds(file) == 2


def test_all_and_a_fold_beyond_the_file_are_nnunets_own_where_no_fold_hides_a_case(splits_file, tmp_path):
    file = splits_file({"train": ["a"], "unlabeled": [], "val": ["d"]})
    assert read_split(file, "all", known=KNOWN) == Split()
    assert read_split(file, 1, known=KNOWN) == Split()
    assert read_split(tmp_path / "none.json", 0, known=(*KNOWN, "e")) == Split()


@pytest.mark.parametrize(("known", "cure"), [(KNOWN, '"val": ["d"]}], or train fold all'), ("a", ": train fold all")])
def test_fewer_cases_than_folds_of_nnunet_are_told_before_it_fails(tmp_path, known, cure):
    with pytest.raises(ValueError, match=f"fails with {len(known)} labeled") as error:
        read_split(tmp_path / "none.json", 0, known=known)
    assert cure in str(error.value)
    assert read_split(tmp_path / "none.json", "all", known=known) == Split()


@pytest.mark.parametrize(
    ("fold", "empty"),
    [
        ({"train": ["a"]}, ["val"]),
        ({"train": ["a"], "val": []}, ["val"]),
        ({"val": ["a"]}, ["train"]),
        ({}, ["train", "val"]),
    ],
)
def test_a_fold_without_cases_to_train_or_validate_on_is_refused(splits_file, fold, empty):
    file = splits_file(fold)
    with pytest.raises(ValueError) as error:
        read_split(file, 0, known=KNOWN)
    begins = [f'fold 0 of {file}: "{key}" is missing or empty' for key in empty]
    lines = str(error.value).split("\n")
    assert len(lines) == len(begins) and all(map(str.startswith, lines, begins))
    assert read_split(file, "all", known=KNOWN) == Split()


def test_one_case_is_too_few_for_a_fold_that_nnunet_draws(splits_file):
    file = splits_file({"train": ["a"], "val": ["a"]})
    assert read_split(file, 0, known="a").labeled == ("a",)
    with pytest.raises(ValueError, match="fold 1 of .* too few: train fold all"):
        read_split(file, 1, known="a")
    assert read_split(file, 1, known="ab") == Split()


@pytest.mark.parametrize("fold", ["all", 2, "7"])
def test_a_fold_that_is_not_in_the_file_is_refused_where_any_fold_hides_a_case(splits_file, fold):
    file = splits_file({"train": ["a"], "val": ["d"]}, FOLD)
    with pytest.raises(ValueError) as error:
        read_split(file, fold, known=KNOWN)
    words = [str(file), f"fold {fold} is not", '"unlabeled" in fold 1', "Train a fold of the file (0 to 1)", "remove"]
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": ["a", "b"]}, ["'b' is", '"train"', "remove"]),
        ({"val": ["d", "c"]}, ["'c' is", '"val"', "allow_unlabeled_val"]),
        ({"unlabeled": ["b", "b"]}, ["'b' is", "more than once"]),
        ({"unlabeled": ["b", "zebra"]}, ["'zebra' is", '"unlabeled"', "preprocessed"]),
        ({"train": ["a", "yak"]}, ["'yak' is", '"train"']),
        ({"unlabeled": "b"}, ["'b'", "list of case names"]),
        ({"unlabeled": [3]}, ["[3]", "list of case names"]),
    ],
)
def test_an_error_names_value_file_and_cure(splits_file, change, words):
    file = splits_file(FOLD | change)
    with pytest.raises(ValueError) as error:
        read_split(file, 0, known=KNOWN)
    for word in [*words, str(file)]:
        assert word in str(error.value)


def test_all_problems_come_at_once(splits_file):
    file = splits_file({"train": ["a", "b"], "unlabeled": ["b", "d"], "val": ["d", "zebra"]})
    with pytest.raises(ValueError) as error:
        read_split(file, 0, known=KNOWN)
    assert len(str(error.value).split("\n")) == 3


def test_cases_that_are_both_trained_on_and_validated_are_told():
    (told,) = training_cases_in_val(Split(("a", "b"), (), ("b", "d")), "splits_final.json", 3)
    assert told.startswith('fold 3 of splits_final.json: \'b\' is in "train" and in "val"')
    assert training_cases_in_val(Split(("a",), ("c",), ("d",)), "splits_final.json", 3) == []


def test_a_validation_case_may_be_unlabeled_when_allowed(splits_file):
    file = splits_file(FOLD | {"val": ["c"]})
    assert read_split(file, 0, known=KNOWN, allow_unlabeled_val=True).unlabeled == ("b", "c")


@pytest.mark.parametrize("text", ["{", '{"train": []}', "[3]"])
def test_a_damaged_file_is_named(tmp_path, text):
    file = tmp_path / "splits_final.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="splits_final.json"):
        read_split(file, 0, known=KNOWN)


def test_an_image_must_not_share_its_name_with_a_labeled_case():
    (problem,) = collision_problems(["b", "x"], KNOWN, "raw/imagesUn")
    assert "'b' is" in problem and "raw/imagesUn" in problem and "rename" in problem
    assert collision_problems(["x"], KNOWN, "raw/imagesUn") == []


def test_a_labeled_case_that_was_moved_away_but_not_preprocessed_again_gets_its_own_cure(tmp_path):
    (labeled := tmp_path / "imagesTr").mkdir()
    (labeled / "a_0000.nii.gz").touch(), (labeled / "b_2_0000.nii.gz").touch()
    shared, moved = collision_problems(["a", "b"], KNOWN, tmp_path / "imagesUn", labeled_folder=labeled)
    assert "'a' is also" in shared and "rename" in shared
    assert "'b' is among the preprocessed" in moved and str(labeled) in moved and "nnUNetv2_preprocess" in moved
    (kept,) = collision_problems(["b"], KNOWN, tmp_path / "imagesUn", labeled_folder=tmp_path / "elsewhere")
    assert "rename" in kept


def test_no_case_at_all_tells_both_places():
    message = no_case_message("raw/imagesUn", "pre/splits_final.json", 0)
    assert "raw/imagesUn" in message and "pre/splits_final.json" in message and '"unlabeled"' in message


def test_british_spelling_is_not_silently_ignored(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["a"], "unlabelled": ["b"], "val": ["c"]}]))
    with pytest.raises(ValueError, match="unlabelled"):
        read_split(file, 0, known={"a", "b", "c"})
