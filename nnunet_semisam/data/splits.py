"""Labeled, unlabeled and validation cases of a fold, as `splits_final.json` has them.

nnU-Net's own splits file may carry one more key per fold: `{"train": [...], "unlabeled": [...], "val": [...]}`. The
cases of `"unlabeled"` lie in `imagesTr` and have labels, but training must not see them. nnU-Net ignores the key, so
the stock trainer on the same fold is the supervised baseline with the same labeled cases.
"""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_FOLDS = 5  # nnU-Net's cross-validation, where no splits_final.json is given
WHERE_TO_PUT = (
    "There are two places for them, which may be used together: images without labels in the folder {images}, named "
    'like those of imagesTr; and a list "unlabeled" of case names beside "train" and "val" of the fold in {splits}, '
    "for cases of imagesTr whose labels training shall not see. With labeled_as_unlabeled = true in the semisam "
    "section the images of the labeled cases serve, too."
)


@dataclass(frozen=True)
class Split:
    """Case names of one fold. All three are empty where the splits file does not decide (fold "all", no such fold)."""

    labeled: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = ()
    val: tuple[str, ...] = ()


def read_split(
    splits_file: str | Path, fold: int | str, *, known: Collection[str], allow_unlabeled_val: bool = False
) -> Split:
    """The cases of `fold`, checked.

    Args:
        splits_file: nnU-Net's `splits_final.json`; it need not exist.
        fold: number of the fold, or "all". For "all" and numbers beyond the file nnU-Net chooses the cases itself, out
            of all labeled ones: then no fold of the file may hide any.
        known: names of all cases in the folder of the preprocessed labeled cases.
        allow_unlabeled_val: a validation case may be an unlabeled case as well (transductive).

    Raises:
        ValueError: with one line for every problem found.
    """
    split = _read(Path(splits_file), fold)
    problems = split_problems(split, splits_file, fold, known=known, allow_unlabeled_val=allow_unlabeled_val)
    _refuse([*problems, *_choice_problems(split, Path(splits_file), fold, known)])
    return split


def training_cases(splits_file: str | Path, fold: int | str, *, known: Collection[str]) -> tuple[str, ...]:
    """The cases whose labels the training of `fold` sees, and no others.

    Raises:
        ValueError: the lists of the fold are wrong (`split_problems`); or the fold is not in the file, so that nnU-Net
            has not chosen its cases yet.
    """
    split = _read(Path(splits_file), fold)
    _refuse(split_problems(split, splits_file, fold, known=known, allow_unlabeled_val=True))
    if fold == "all":
        return tuple(sorted(known))
    if not split.labeled:
        _refuse(too_few_for_default(splits_file, known))
        raise ValueError(
            f'fold {fold} has no "train" cases in {splits_file}: write them there, or start nnUNetv2_train once, '
            "which writes the file; -f all takes every labeled case."
        )
    return split.labeled


def split_problems(
    split: Split, splits_file: str | Path, fold: int | str, *, known: Collection[str], allow_unlabeled_val: bool = False
) -> list[str]:
    """What is wrong with a split, one sentence per problem; empty if nothing is."""
    where = f"fold {fold} of {splits_file}"
    unlabeled = set(split.unlabeled)
    problems = []
    if both := sorted(unlabeled & set(split.labeled)):
        problems.append(f'{where}: {names(both)} in "train" and in "unlabeled"; remove from one of the two lists.')
    if not allow_unlabeled_val and (both := sorted(unlabeled & set(split.val))):
        problems.append(
            f'{where}: {names(both)} in "val" and in "unlabeled"; remove from "unlabeled", or set '
            '"allow_unlabeled_val": true in the semisam section of the configuration if this is meant.'
        )
    if twice := sorted(case for case, times in Counter(split.unlabeled).items() if times > 1):
        problems.append(f'{where}: {names(twice)} more than once in "unlabeled"; list every case once.')
    for key, cases in (("train", split.labeled), ("unlabeled", split.unlabeled), ("val", split.val)):
        if missing := sorted(set(cases) - set(known)):
            problems.append(
                f'{where}: {names(missing)} in "{key}", but not among the {len(known)} preprocessed cases; '
                "correct the name, or run nnUNetv2_preprocess if the case is new."
            )
    return problems


def too_few_for_default(splits_file: str | Path, known: Collection[str]) -> list[str]:
    """A sentence if nnU-Net is to make five folds out of fewer labeled cases, which it cannot."""
    if Path(splits_file).is_file() or len(known) >= DEFAULT_FOLDS:
        return []
    cases = sorted(known)
    example = json.dumps([{"train": cases[:-1], "val": cases[-1:]}])
    cure = f"write it yourself, for instance {example}, or train fold all" if len(cases) > 1 else "train fold all"
    return [
        f"only fold all can be trained: {splits_file} does not exist, and nnU-Net's own split into {DEFAULT_FOLDS} "
        f"folds fails with {len(cases)} labeled case(s): {cure}."
    ]


def training_cases_in_val(split: Split, splits_file: str | Path, fold: int | str) -> list[str]:
    """A sentence if the validation of a fold measures cases that it trains on; nnU-Net allows it."""
    both = sorted(set(split.labeled) & set(split.val))
    return [f'fold {fold} of {splits_file}: {names(both)} in "train" and in "val"; its Dice flatters.'] if both else []


def collision_problems(
    raw_cases: Iterable[str], known: Collection[str], images_folder: str | Path, *, labeled_folder: Path | None = None
) -> list[str]:
    """Names that an image of `imagesUn` shares with a labeled case; empty if there are none.

    Args:
        known: names of labeled cases.
        labeled_folder: with the raw images of the labeled cases, if `known` were preprocessed: some may be gone.
    """
    both, moved, problems = sorted(set(raw_cases) & set(known)), [], []
    if labeled_folder and labeled_folder.is_dir():
        moved = [case for case in both if not any(labeled_folder.glob(f"{glob.escape(case)}_0000.*"))]
    if shared := [case for case in both if case not in moved]:
        problems.append(
            f"{images_folder}: {names(shared)} also the name of a case of imagesTr; rename the images in imagesUn (or "
            'remove them and list the case under "unlabeled" in splits_final.json to hide its label).'
        )
    if moved:
        problems.append(
            f"{images_folder}: {names(moved)} among the preprocessed labeled cases, but not in {labeled_folder} any "
            "more. Run nnUNetv2_preprocess again, which leaves out what is gone, and take it out of splits_final.json."
        )
    return problems


def no_case_message(images_folder: str | Path, splits_file: str | Path, fold: int | str | None) -> str:
    """What a user reads who has given no unlabeled case at all; fold None: for any fold."""
    places = WHERE_TO_PUT.format(images=images_folder, splits=splits_file)
    note = ' Fold "all" trains on every labeled case, so only imagesUn counts for it.' if fold == "all" else ""
    return f"no unlabeled case found for {'any fold' if fold is None else f'fold {fold}'}. {places}{note}"


def names(cases: Sequence[str], limit: int = 5) -> str:
    """The beginning of a sentence about some cases, like: 'a', 'b' and 3 more are."""
    shown = ", ".join(repr(str(case)) for case in cases[:limit])
    more = f" and {len(cases) - limit} more" if len(cases) > limit else ""
    return f"{shown}{more} {'is' if len(cases) == 1 else 'are'}"


def hidden_cases(splits_file: str | Path) -> dict[int, tuple[str, ...]]:
    """The cases under "unlabeled" of every fold that has some."""
    return {number: split.unlabeled for number, split in enumerate(every_split(splits_file)) if split.unlabeled}


def every_split(splits_file: str | Path) -> list[Split]:
    """All folds of the file, unchecked; empty if it does not exist."""
    return [_entry(entry, splits_file, number) for number, entry in enumerate(_folds(Path(splits_file)))]


def num_folds(splits_file: str | Path) -> int:
    """Number of folds in the file, 0 if it does not exist."""
    return len(_folds(Path(splits_file)))


def _folds(splits_file: Path) -> list:
    if not splits_file.is_file():
        return []
    try:
        splits = json.loads(splits_file.read_text())
    except ValueError as error:
        raise ValueError(f"{splits_file} is not valid JSON ({error}); correct or delete it.") from error
    if not isinstance(splits, list):
        raise ValueError(f"{splits_file} holds a {type(splits).__name__}; it must be a list with one entry per fold.")
    return splits


def _read(splits_file: Path, fold: int | str) -> Split:
    splits = _folds(splits_file)
    if fold != "all" and int(fold) < len(splits):
        return _entry(splits[int(fold)], splits_file, fold)
    if hiding := hidden_cases(splits_file):
        raise ValueError(
            f'{splits_file} hides the labels of cases ("unlabeled" in fold {", ".join(map(str, hiding))}), but fold '
            f"{fold} is not in this file, so nnU-Net would train on these labels. Train a fold of the file "
            f'({_numbers(len(splits))}), or remove the "unlabeled" lists if these labels may be seen.'
        )
    return Split()


def _choice_problems(split: Split, splits_file: Path, fold: int | str, known: Collection[str]) -> list[str]:
    """What nnU-Net would stop at only later: nothing to train on, or nothing to validate on."""
    where = f"fold {fold} of {splits_file}"
    if fold == "all":
        return []
    if int(fold) >= num_folds(splits_file):  # nnU-Net makes it: five folds, or four fifths drawn at random
        few = [f"{where}: nnU-Net draws it from {len(known)} labeled case(s), which are too few: train fold all."]
        return too_few_for_default(splits_file, known) or (few if len(known) < 2 else [])
    problems = []
    if not split.labeled:
        problems.append(f'{where}: "train" is missing or empty; name at least one labeled case there.')
    if not split.val:
        problems.append(
            f'{where}: "val" is missing or empty, and nnU-Net validates on at least one case; name one there, if '
            'need be one of "train" (its Dice flatters).'
        )
    return problems


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError("\n".join(problems))


def _numbers(count: int) -> str:
    return "0" if count == 1 else f"0 to {count - 1}"


def _entry(entry: object, splits_file: str | Path, fold: int | str) -> Split:
    if not isinstance(entry, dict):
        raise ValueError(f"fold {fold} of {splits_file} is {entry!r}; it must be a dictionary.")
    if strange := [key for key in entry if key != "unlabeled" and str(key).lower().startswith("unlab")]:
        raise ValueError(f'fold {fold} of {splits_file} has the key {strange[0]!r}; the key is spelt "unlabeled".')
    labeled, unlabeled, val = (_case_list(entry, key, splits_file, fold) for key in ("train", "unlabeled", "val"))
    return Split(labeled, unlabeled, val)


def _case_list(entry: dict, key: str, splits_file: str | Path, fold: int | str) -> tuple[str, ...]:
    cases = entry.get(key, [])
    if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
        raise ValueError(f'fold {fold} of {splits_file}: "{key}" is {cases!r}; it must be a list of case names.')
    return tuple(cases)
