"""`benchmarks/step_time.py`: its parts add up, every part has its row, and weight 0 runs neither teacher nor SAM."""

import itertools
from pathlib import Path

import pytest

SMALL = {"patch_size": [16, 16, 16], "features": [4, 8, 8]}
NO_TERMS = {"semisam": {"terms": {"consistency": {"weight": 0}, "sam": {"weight": 0}}}}


@pytest.fixture
def balls(tmp_path, monkeypatch):
    """The made-up data set, and a function that starts a trainer on it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import step_arms
    import step_data

    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    step_data.write(tmp_path / "preprocessed", SMALL["patch_size"])
    task = step_arms.Task.made_up(**SMALL, batch_size=2, device="cpu")
    stock, mean_teacher, semisam = step_arms.arms(["embedded"])

    def start(arm, **configuration):
        task.plans["configurations"][task.configuration].update(configuration)
        return step_arms.started({"stock": stock, "mean teacher": mean_teacher, "SemiSAM": semisam}[arm], task)

    with step_arms.good_teachers(task):
        yield start


def test_parts_add_up_and_each_is_met(balls):
    from step_parts import PARTS, parts_of_step

    readings = itertools.count()
    parts = parts_of_step(balls("SemiSAM"), lambda: next(readings))
    assert list(parts) == list(PARTS)
    assert sum(parts.values()) == next(readings) - 1  # readings are 0, 1, 2, …
    assert [part for part, spent in parts.items() if not spent] == []


def test_operations_are_given_to_the_part_that_makes_them(balls):
    from step_parts import operations_of_step

    stock, semisam = operations_of_step(balls("stock")), operations_of_step(balls("SemiSAM"))
    forward = stock["student, labeled"]
    assert forward > 0
    assert semisam["student, labeled"] == semisam["student, unlabeled"] == forward
    assert 0.9 * forward < semisam["teacher"] < forward  # it has no deep supervision
    assert semisam["backward"] == 2 * stock["backward"] > 0
    assert stock["teacher"] == stock["SAM decode"] == 0 < semisam["SAM decode"]


def test_weight_0_runs_neither_teacher_nor_sam(balls):
    from step_parts import parts_of_step

    def met(trainer):
        readings = itertools.count()
        return [part for part, spent in parts_of_step(trainer, lambda: next(readings)).items() if spent]

    assert met(balls("SemiSAM", **NO_TERMS)) == met(balls("stock"))


def test_seconds_by_part_are_those_of_a_whole_step(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from step_parts import PARTS
    from step_report import Measured

    steps = [dict.fromkeys(PARTS, seconds) for seconds in (5.0, 1.0, 2.0, 100.0)]
    assert Measured(by_part=steps).parts == dict.fromkeys(PARTS, 3.5)  # of the middle half


def test_tables_and_picture_are_complete(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import step_time
    from step_parts import PARTS

    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    sizes = "--patch-size 16 16 16 --features 4 8 8 --steps 1 --warm-up 0 --no-memory --in-a-row 1 --picture"
    step_time.main([*sizes.split(), str(tmp_path / "parts.png")])
    said = capsys.readouterr().out
    assert [said.count(f"\n| {part} |") for part in PARTS] == [2] * len(PARTS)  # seconds and operations
    assert all(f"\n| {trainer} |" in said for trainer in ("stock", "mean teacher", "SemiSAM, embedded"))
    stock = next(line for line in said.splitlines() if line.startswith("| stock |")).split(" | ")
    assert float(stock[5]) > 0 and stock[6] == "1.00"  # in a row
    assert (tmp_path / "parts.png").stat().st_size > 0


@pytest.mark.parametrize("size", [(32, 32, 32), (64, 64)])
def test_growth_asks_about_one_object_per_class(size, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import growth

    few, many = (growth.generalist({"backend": "embedded"}, classes, size, 0) for classes in (1, 4))
    assert (few[2], many[2]) == (1, 4)
    assert many[0] == pytest.approx(4 * few[0], rel=0.2)


def test_growth_counts_without_computing_what_a_step_computes(balls, monkeypatch):
    import growth
    from step_parts import operations_of_step

    monkeypatch.setattr(growth, "FEATURES", {3: SMALL["features"]})
    step = operations_of_step(balls("stock"))  # of two patches
    assert [2 * part for part in growth.network_operations(SMALL["patch_size"], 2)] == [
        step["student, labeled"],
        step["backward"],
    ]
