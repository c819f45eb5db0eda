"""Which cases a run may see: labeled, unlabeled and evaluation cases of every budget and draw."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_semisam.benchmark.dataset import RawDataset
from nnunet_semisam.benchmark.protocol import Protocol

ALL = "all"


@dataclass(frozen=True)
class Fold:
    """One labeled set.

    Args:
        labels: number of labeled cases as text, or "all".
        draw: name of the draw; "all" where every draw gives the same.
    """

    dataset: str
    labels: str
    draw: str
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    val: tuple[str, ...]

    def ceiling(self) -> Fold:
        """The same cases with every label of the training side visible."""
        everything = tuple(sorted({*self.labeled, *self.unlabeled}))
        return replace(self, labels=ALL, labeled=everything, unlabeled=())


def folds(protocol: Protocol, dataset: RawDataset) -> dict[tuple[str, str], Fold]:
    """All budgets and draws of a data set, by (labels, draw).

    Raises:
        ValueError: the splits file lacks one, or names cases that do not exist or are in two lists.
    """
    given = None if protocol.splits is None else _read(Path(protocol.splits), dataset.name)
    found = {}
    for budget in protocol.budgets:
        for draw in protocol.draws:
            if given is None:
                fold = random_fold(dataset.name, dataset.cases(), budget, draw, protocol.val_cases)
            else:
                fold = _from_file(given, protocol, dataset.name, budget, draw)
            _check(fold, set(dataset.cases()), protocol.splits)
            found[fold.labels, fold.draw] = fold
    return found


def ceilings(found: dict[tuple[str, str], Fold]) -> dict[tuple[str, str], Fold]:
    """The fully supervised fold that belongs to each one; the same object where the cases are the same."""
    of: dict[tuple[str, str], Fold] = {}
    distinct: dict[tuple, Fold] = {}
    for key, fold in found.items():
        ceiling = fold.ceiling()
        same = (ceiling.labeled, ceiling.val)
        of[key] = distinct.setdefault(same, replace(ceiling, draw=f"{fold.labels}-{fold.draw}"))
    if len(distinct) == 1:
        of = {key: replace(fold, draw=ALL) for key, fold in of.items()}
    return of


def random_fold(dataset: str, cases: list[str], budget: int, draw: str, val_cases: int | None) -> Fold:
    """A draw at random: the evaluation cases are the same for all draws, smaller labeled sets part of larger ones."""
    shuffled = sorted(cases)
    random.Random("evaluation").shuffle(shuffled)
    count = max(1, len(cases) // 5) if val_cases is None else val_cases
    val, rest = sorted(shuffled[:count]), sorted(shuffled[count:])
    random.Random(f"draw {draw}").shuffle(rest)
    if budget > len(rest):
        raise ValueError(
            f"{dataset}: {budget} labels asked for, but of its {len(cases)} cases {count} are for evaluation "
            f"(val_cases; a fifth unless it is set), which leaves {len(rest)}; lower budgets or val_cases"
        )
    return Fold(dataset, str(budget), draw, tuple(sorted(rest[:budget])), tuple(sorted(rest[budget:])), tuple(val))


def _read(file: Path, name: str) -> dict:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"splits {file}: {error}") from error
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"splits {file}: nothing about {name}; add it, or leave splits out to draw at random")
    return content[name]


def _from_file(given: dict, protocol: Protocol, name: str, budget: int, draw: str) -> Fold:
    try:
        entry = given[str(budget)][draw]
        return Fold(name, str(budget), draw, *(tuple(entry[key]) for key in ("labeled", "unlabeled", "val")))
    except (KeyError, TypeError) as error:
        draws = ", ".join(given.get(str(budget), {})) or "none"
        raise ValueError(
            f"splits {protocol.splits}: {name} has no draw {draw!r} of {budget} labels with labeled, unlabeled and "
            f"val; budgets are {', '.join(given)}, draws of this one {draws}"
        ) from error


def _check(fold: Fold, known: set[str], source: str | None) -> None:
    where = f"splits {source or 'drawn at random'}: {fold.dataset}, {fold.labels} labels, draw {fold.draw}"
    lists = (fold.labeled, fold.unlabeled, fold.val)
    cases = [case for names in lists for case in names]
    if twice := sorted({case for case in cases if cases.count(case) > 1}):
        raise ValueError(f"{where}: {twice[0]} is in two lists, or twice in one")
    if strange := sorted(set(cases) - known):
        raise ValueError(f"{where}: {strange[0]} is not a case of the data set")
    if not fold.labeled or not fold.val:
        raise ValueError(f"{where}: needs at least one labeled and one val case")
    if fold.labels != ALL and len(fold.labeled) != int(fold.labels):
        raise ValueError(f"{where}: lists {len(fold.labeled)} labeled cases")
