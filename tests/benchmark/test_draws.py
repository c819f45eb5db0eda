"""Labeled sets from a file and at random."""

import json

import pytest
from made_up import NAME, protocol, raw_dataset

from nnunet_semisam.benchmark.draws import ceilings, folds, random_fold

CASES = [f"c{number}" for number in range(8)]


def write_splits(tmp_path, **changes):
    entry = {"labeled": ["c0"], "unlabeled": ["c1", "c2"], "val": ["c6", "c7"], **changes}
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({NAME: {"1": {"list": entry}}}))
    return {"splits": str(file), "budgets": [1], "draws": ["list"]}


def test_random_draws_share_the_evaluation_cases_and_nest(tmp_path):
    found = folds(protocol(raw_dataset(tmp_path), budgets=[1, 2, 4]), raw_dataset_of(tmp_path))
    assert len({fold.val for fold in found.values()}) == 1
    for draw in ("0", "1"):
        one, two, four = (set(found[budget, draw].labeled) for budget in ("1", "2", "4"))
        assert one < two < four
    assert found["4", "0"].labeled != found["4", "1"].labeled
    for fold in found.values():
        assert sorted([*fold.labeled, *fold.unlabeled, *fold.val]) == CASES


def raw_dataset_of(tmp_path):
    from nnunet_semisam.benchmark.dataset import find_dataset

    return find_dataset(str(tmp_path / NAME))


def test_the_same_name_draws_the_same_cases_for_ever():
    fold = random_fold("D", CASES, 2, "0", 2)
    assert fold == random_fold("D", CASES[::-1], 2, "0", 2)
    assert (fold.labeled, fold.val) == (("c3", "c7"), ("c1", "c4"))


def test_more_labels_than_cases_is_an_error():
    with pytest.raises(ValueError, match="7 labels asked for, but of its 8 cases 2 are for evaluation .* leaves 6"):
        random_fold("D", CASES, 7, "0", 2)


def test_a_file_decides_all_lists(tmp_path):
    dataset = raw_dataset(tmp_path)
    fold = folds(protocol(dataset, **write_splits(tmp_path)), dataset)["1", "list"]
    assert (fold.labeled, fold.unlabeled, fold.val) == (("c0",), ("c1", "c2"), ("c6", "c7"))
    ceiling = ceilings({("1", "list"): fold})["1", "list"]
    assert (ceiling.labels, ceiling.draw, ceiling.labeled) == ("all", "all", ("c0", "c1", "c2"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"unlabeled": ["c0"]}, "c0 is in two lists"),
        ({"val": ["c1"]}, "c1 is in two lists"),
        ({"val": ["c9"]}, "c9 is not a case"),
        ({"val": []}, "at least one labeled and one val"),
        ({"labeled": ["c0", "c3"]}, "lists 2 labeled cases"),
    ],
)
def test_a_wrong_split_is_refused(tmp_path, changes, message):
    dataset = raw_dataset(tmp_path)
    with pytest.raises(ValueError, match=message):
        folds(protocol(dataset, **write_splits(tmp_path, **changes)), dataset)


def test_a_draw_that_is_not_in_the_file_says_which_are(tmp_path):
    dataset = raw_dataset(tmp_path)
    with pytest.raises(ValueError, match="no draw '7' of 1 labels.*draws of this one list"):
        folds(protocol(dataset, **write_splits(tmp_path) | {"draws": ["7"]}), dataset)
