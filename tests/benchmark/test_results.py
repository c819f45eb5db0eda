"""From made-up scores to tables, plot and page: planted differences, ceilings, teachers, holes."""

import csv
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from made_up import NAME, protocol, raw_dataset

from nnunet_semisam.benchmark.dataset import find_dataset
from nnunet_semisam.benchmark.launch import Launcher
from nnunet_semisam.benchmark.page import Page
from nnunet_semisam.benchmark.results import write_results
from nnunet_semisam.benchmark.runs import expand, write_json
from nnunet_semisam.benchmark.scores import SCORES_FILE, read_csv, write_csv
from nnunet_semisam.benchmark.state import scoring
from nnunet_semisam.benchmark.steps import Steps
from nnunet_semisam.benchmark.summary import MEAN, summarise

ARMS = ["supervised", "full", "semisam"]
GAIN = {("supervised", "final"): 0.0, ("semisam", "final"): 0.04, ("semisam", "teacher"): 0.0, ("full", "final"): 0.2}


def score_rows(run):
    """Scores with the gains above; SemiSAM misses the class "back" of one case."""
    for (arm, weights), gain in GAIN.items():
        if arm != run.arm.name:
            continue
        for number, case in enumerate(run.cases):
            for name in run.dataset.classes:
                rng = np.random.default_rng([number, len(name), ord(run.fold.draw[0]), len(arm), len(weights)])
                dice = 0.5 + 0.02 * number + gain + 0.005 * rng.standard_normal()
                missed = (arm, weights, name, number) == ("semisam", "final", "back", 0)
                yield {
                    "dataset": NAME, "labels": run.fold.labels, "draw": run.fold.draw, "seed": run.seed, "arm": arm,
                    "weights": weights, "case": case, "class": name, "dice": 0.0 if missed else float(dice),
                    "hd95": 3.0, "assd": 1.0, "nsd": 0.5, "empty": "missed" if missed else "",
                }  # fmt: skip


@pytest.fixture
def made(tmp_path):
    dataset = raw_dataset(tmp_path, cases=24)
    used = protocol(dataset, arms=ARMS, budgets=[1, 2], draws=["0", "1", "2"], val_cases=16)
    return used, expand(used, [dataset]), tmp_path


def lines_of(used, runs):
    rows = [row for run in runs for row in score_rows(run)]
    return {(line.labels, line.label, line.column): line for line in summarise(used, runs, rows)}


def test_a_planted_gain_is_found_and_none_where_there_is_none(made):
    used, runs, _ = made
    lines = lines_of(used, runs)
    gain = lines["1", "front", "semisam"].differences["dice"]
    assert 0.03 < gain.low < 0.04 < gain.high < 0.05 and gain.p < 0.001
    assert 0.03 < gain.draws_low < gain.low and gain.high < gain.draws_high < 0.05
    none = lines["1", "front", "semisam (teacher)"].differences["dice"]
    assert none.low < 0 < none.high
    assert lines["1", "front", "supervised"].differences == {}


def test_means_spread_and_empties_by_hand(made):
    used, runs, _ = made
    lines = lines_of(used, runs)
    rows = [r for run in runs for r in score_rows(run)]
    mine = [r for r in rows if (r["labels"], r["arm"], r["weights"], r["class"]) == ("2", "semisam", "final", "front")]
    line = lines["2", "front", "semisam"]
    assert line.means["dice"] == pytest.approx(np.mean([r["dice"] for r in mine]))
    of_draws = [np.mean([r["dice"] for r in mine if r["draw"] == draw]) for draw in used.draws]
    assert line.spread == pytest.approx(np.std(of_draws, ddof=1)) and (line.cases, line.replicates) == (16, 3)
    assert lines["2", "back", "semisam"].empty == 3 and lines["2", MEAN, "semisam"].empty == 3  # one case, three draws
    both = (line.means["dice"] + lines["2", "back", "semisam"].means["dice"]) / 2
    assert lines["2", MEAN, "semisam"].means["dice"] == pytest.approx(both)


def test_the_ceiling_is_one_run_that_is_compared_with_every_draw(made):
    used, runs, _ = made
    line = lines_of(used, runs)["1", "front", "full"]
    assert line.replicates == 1 and math.isnan(line.spread)
    assert line.differences["dice"].replicates == 3 and line.differences["dice"].low > 0.18


def test_seeds_of_a_single_draw_say_nothing_about_other_draws(made):
    used, _, _ = made
    used = replace(used, draws=("0",), seeds=(0, 1, 2))
    line = lines_of(used, expand(used, [find_dataset(used.datasets[0])]))["1", "front", "semisam"]
    assert line.differences["dice"].low > 0 and math.isnan(line.differences["dice"].draws_low)
    assert line.differences["dice"].replicates == 3


def test_a_run_that_is_missing_leaves_its_pairs_out(made):
    used, runs, _ = made
    left = [run for run in runs if (run.arm.name, run.fold.draw) != ("semisam", "1")]
    rows = [row for run in left for row in score_rows(run)]
    line = next(
        line
        for line in summarise(used, runs, rows)
        if (line.labels, line.label, line.column) == ("1", "front", "semisam")
    )
    assert (line.replicates, line.differences["dice"].replicates) == (2, 2)


def test_scores_survive_their_file(made):
    _, runs, root = made
    rows = [row for run in runs for row in score_rows(run)]
    write_csv(root / "scores.csv", rows)
    again = read_csv(root / "scores.csv")
    assert len(again) == len(rows) and again[0]["dice"] == pytest.approx(rows[0]["dice"], rel=1e-5)
    assert {k: v for k, v in again[5].items() if k != "dice"} == {k: v for k, v in rows[5].items() if k != "dice"}


def test_page_and_files_tell_numbers_leak_rules_and_what_is_missing(made):
    used, runs, root = made
    steps = Steps(root, runs, Launcher())
    for run in runs[:-1]:
        write_json(steps.folder(run) / "scored.json", {"settings": scoring(run)})
        write_csv(steps.folder(run) / SCORES_FILE, list(score_rows(run)))
    (steps.folder(runs[-1])).mkdir(parents=True)
    (steps.folder(runs[-1]) / "failed.txt").write_text("CommandFailed: out of memory\nmore")
    write_results(root, used, steps)
    text, page = (root / "results.md").read_text(), (root / "results.html").read_text()
    for piece in (
        "NOT COMPLETE",
        "semisam (teacher)",
        "fingerprint were made once from all cases",
        "out of memory",
        "missed",
    ):
        assert piece in text and piece in page
    assert page.count("data:image/png;base64,iVBOR") == 1 and not re.search(r'(src|href)="(?!data:)', page)
    assert f"dice_{NAME}.png" in text and (root / f"dice_{NAME}.png").stat().st_size > 5000
    with (root / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    row = next(r for r in summary if (r["labels"], r["class"], r["column"]) == ("1", "front", "semisam"))
    assert float(row["dice_low"]) > float(row["dice_draws_low"]) > 0.03 and float(row["dice_p"]) < 0.001
    pairs = sum(bool(r["dice_p"]) for r in summary)
    assert row["dice_pairs"] == "16 x 3" and f"comparisons ({pairs} here)" in text


def test_text_of_others_cannot_become_html():
    page = Page("a < b")
    page.table(["x|y"], [["<script>"]])
    assert "<script>" not in page.html() and "a &lt; b" in page.html()
    assert "| x/y |" in page.markdown()
