"""The dry run: states, times of finished runs, and guesses from timed iterations; nothing is written."""

import importlib.util
import json

import pytest
from made_up import NAME, protocol, raw_dataset

from nnunet_semisam.benchmark.launch import Launcher, Slot
from nnunet_semisam.benchmark.measure import FILE, guesses, shortened
from nnunet_semisam.benchmark.planning import plan_steps
from nnunet_semisam.benchmark.progress import kind
from nnunet_semisam.benchmark.run import list_runs, run_benchmark
from nnunet_semisam.benchmark.runs import expand, write_json
from nnunet_semisam.benchmark.state import scoring
from nnunet_semisam.benchmark.steps import Steps
from nnunet_semisam.cli.benchmark import main
from nnunet_semisam.cli.plan import check_section

LOG = "2026-01-01 10:00:01.500000: Epoch 0 \nx: Epoch time: 2.0 s \n"


def steps_of(tmp_path, **values):
    dataset = raw_dataset(tmp_path)
    used = protocol(dataset, **values)
    return used, Steps(tmp_path / "work", expand(used, [dataset]), Launcher())


def test_an_arm_with_a_term_that_would_never_count_is_refused(tmp_path):
    late = {"name": "late", "section": {"terms": {"sam": {"delay": 10**6}}}}
    with pytest.raises(ValueError, match="arm late: semisam: terms.sam.delay is 1000000, but the training has"):
        plan_steps(tmp_path / "work", protocol(raw_dataset(tmp_path), arms=["supervised", late]), Launcher())


def test_it_lists_states_and_writes_nothing(tmp_path):
    used, steps = steps_of(tmp_path)
    text = list_runs(steps, used, 2)
    assert text.count("to do  ") == 4 and "4 of 4 runs to do, 2 at a time: unknown time" in text
    assert f"Length: {used.epochs} epochs of {used.iterations} iterations" in text and "--measure" in text
    assert f"Evaluated on {len(steps.runs[0].cases)} case(s) per draw." in text
    assert not (tmp_path / "work").exists()


def test_finished_runs_tell_how_long_others_of_their_kind_take(tmp_path):
    used, steps = steps_of(tmp_path)
    first, begun = steps.runs[0], steps.runs[1]
    write_json(steps.folder(first) / "trained.json", {"wall": 100.0})
    write_json(steps.folder(first) / "predicted_final" / "benchmark_predicted.json", {"seconds": 20.0})
    write_json(steps.folder(first) / "scored.json", {"settings": scoring(first)})
    write_json(steps.folder(begun) / "begun.json", {"fold": "fold_0"})
    (tmp_path / "work" / "fold_0").mkdir()
    (tmp_path / "work" / "fold_0" / "training_log_2026_1_1_10_00_00.txt").write_text(LOG)
    lines = list_runs(steps, used, 1).splitlines()
    assert lines[0].startswith("done ") and first.title in lines[0]
    assert lines[1].startswith("begun, 1 epochs") and lines[1].endswith("(about 0:06:40)")  # 200 epochs of 2 s
    assert next(line for line in lines[1:] if "supervised" in line).endswith("(about 0:02:00)")
    assert "3 of 4 runs to do, 1 at a time: about 0:15:18" in lines  # 120 + 398 + 400 s


def test_timed_iterations_make_guesses_and_equal_time_takes_as_long_as_its_model(tmp_path):
    arms = ["supervised", "supervised_time", "semisam"]
    used, steps = steps_of(tmp_path, arms=arms, epochs=10, iterations=20)
    timed = {f"{NAME}/supervised": {"iteration": 0.5, "case": 2.0, "rest": 30.0}}
    timed[f"{NAME}/semisam"] = {"iteration": 1.0, "case": 4.0, "rest": 40.0}
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / FILE).write_text(json.dumps(timed))
    found = guesses(tmp_path / "work", used, steps.runs)
    by_arm = {run.arm.name: found[kind(run)] for run in steps.runs}
    assert by_arm == {"supervised": 100 + 30 + 3 * 2, "semisam": 200 + 40 + 3 * 4, "supervised_time": 252}
    assert "timed iterations" in list_runs(steps, used, 1)


def test_what_is_timed_is_short_and_of_the_same_arms(tmp_path):
    used, _ = steps_of(tmp_path, arms=["supervised", "supervised_time", "semisam"], budgets=[1, 2], seeds=[0, 1])
    short = shortened(used)
    assert [arm.name for arm in short.arms] == ["supervised", "semisam"]
    assert (short.budgets, short.draws, short.seeds, short.epochs * short.iterations) == ((1,), ("0",), (0,), 10)
    assert short.network == used.network and short.val_iterations == 1


def test_what_is_timed_has_every_term_on(tmp_path):
    late = {"name": "late", "section": {"terms": {"sam": {"delay": 500, "every": 4, "schedule": "sigmoid_rampup"}}}}
    used, _ = steps_of(tmp_path, arms=["supervised", late])
    for arm in shortened(used).arms:
        check_section({**arm.section, "num_epochs": 2, "num_iterations_per_epoch": 5})  # a delay of 500 would not do
    (_, section) = [arm.section for arm in shortened(used).arms]
    assert section["terms"]["sam"] == {"delay": 0, "every": 4, "schedule": "constant"}


def test_without_monai_nothing_is_started(tmp_path, monkeypatch):
    used, _ = steps_of(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"nnunet_semisam\[benchmark\]"):
        run_benchmark(tmp_path / "work", used, [Slot("cpu")])
    assert not (tmp_path / "work").exists()


def test_the_dry_run_lists_everything_and_then_tells_that_monai_is_missing(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "monai" else find(name, *more))
    folder = str(raw_dataset(tmp_path).folder)
    asked = ["--datasets", folder, "--budgets", "2", "--draws", "0", "--arms", "supervised"]
    with pytest.raises(SystemExit, match="MONAI: pip install"):
        main([str(tmp_path / "work"), *asked, "--dry-run"])
    assert "1 of 1 runs to do" in capsys.readouterr().out
