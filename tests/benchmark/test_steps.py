"""Steps of a run, with a stub that writes what nnU-Net would: what is done, what is continued, what is not."""

import json
from unittest import mock

import pytest
import torch
from made_up import NAME, protocol, raw_dataset

from nnunet_semisam.benchmark import steps as steps_module
from nnunet_semisam.benchmark.home import MARKER
from nnunet_semisam.benchmark.launch import CommandFailed, Launcher, Slot
from nnunet_semisam.benchmark.provenance import sources, told, training_versions
from nnunet_semisam.benchmark.runs import expand
from nnunet_semisam.benchmark.steps import Steps

PLANS = {
    "configurations": {
        "3d_fullres": {
            "patch_size": [8, 8, 8],
            "batch_size": 2,
            "architecture": {"arch_kwargs": {"n_stages": 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}},
        }
    }
}
SECONDS = {"supervised": 2.0, "mean_teacher": 3.0, "semisam": 5.0}


class Stub(Launcher):
    """In place of the launcher: notes commands, writes their files, and dies where it is told to."""

    def __init__(self, work):
        super().__init__()
        self.work, self.commands, self.die_at = work, [], None
        self.write = True  # checkpoints, while training
        self.gpus = []  # names, of one training after the other

    def run(self, command, *, log, environment, lock):
        self.commands.append(command)
        name = command[0].removeprefix("nnUNetv2_")
        self.environment = environment
        if name in ("plan_experiment", "preprocess"):
            data = self.work / "nnunet" / "all" / "preprocessed" / NAME
            data.mkdir(parents=True, exist_ok=True)
            (data / "nnUNetPlans.json").write_text(json.dumps(PLANS))
        elif name == "train":
            self.train(command)
        elif name == "predict":
            self.predict(command)
        if self.die_at in (name, f"end of {name}"):
            raise CommandFailed(f"{name} was killed")

    def train(self, command):
        words = dict(zip(command[4::2], command[5::2], strict=False))
        results = self.work / "nnunet" / "all" / "results" / NAME
        fold = results / f"{words['-tr']}__nnUNetPlans__{command[2]}" / f"fold_{command[3]}"
        if "--c" in command:
            assert (fold / "checkpoint_latest.pth").exists() or (fold / "checkpoint_final.pth").exists()
            if (fold / "checkpoint_latest.pth").read_bytes() == b"damaged":
                raise CommandFailed("cannot load the checkpoint")
        fold.mkdir(parents=True, exist_ok=True)
        if self.write:
            (fold / "checkpoint_latest.pth").write_text("half")
        if self.die_at == "train":
            return
        plans = json.loads((self.work / "nnunet/all/preprocessed" / NAME / "nnUNetPlans.json").read_text())
        epochs = plans["configurations"][command[2]]["semisam"]["num_epochs"]
        lines = []
        for epoch in range(epochs):
            lines += [
                f"2026-01-01 10:00:0{epoch}.500000: Epoch {epoch} ",
                f"x: Epoch time: {SECONDS[command[2].split('_s')[0]]} s ",
            ]
        (fold / "training_log_2026_1_1_10_00_00.txt").write_text("\n".join(lines))
        debug = {"num_epochs": str(epochs), "num_iterations_per_epoch": "4"}
        if self.gpus:
            debug["gpu_name"] = self.gpus.pop(0)
        (fold / "debug.json").write_text(json.dumps(debug))
        (fold / "checkpoint_final.pth").touch()
        (fold / "validation").mkdir(exist_ok=True)
        (fold / "validation" / "summary.json").touch()
        if "semisam" in command[2]:
            (fold / "checkpoint_final_teacher.pth").touch()

    def predict(self, command):
        words = dict(zip(command[1::2], command[2::2], strict=False))
        from pathlib import Path

        Path(words["-o"]).mkdir(parents=True)
        for image in Path(words["-i"]).iterdir():
            (Path(words["-o"]) / image.name.replace("_0000", "")).touch()

    def names(self):
        """Commands since the last look."""
        found = [f"{c[0].removeprefix('nnUNetv2_')}{' --c' if '--c' in c else ''}" for c in self.commands]
        self.commands = []
        return found


PLANNING = ["extract_fingerprint", "plan_experiment", "preprocess"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    def score(run, folder, weights):
        where = {
            "dataset": NAME,
            "labels": run.fold.labels,
            "draw": run.fold.draw,
            "seed": run.seed,
            "arm": run.arm.name,
        }
        numbers = {"dice": 0.5, "hd95": 1.0, "assd": 1.0, "nsd": 0.5, "empty": ""}
        assert all((folder / f"{case}.nii.gz").exists() for case in run.cases)
        return [{**where, "weights": weights, "case": c, "class": "front", **numbers} for c in run.cases]

    monkeypatch.setattr(steps_module, "score", score)
    return Bench(tmp_path)


class Bench:
    def __init__(self, root):
        self.dataset, self.work = raw_dataset(root), root / "work"
        self.stub = Stub(self.work)

    def steps(self, **values):
        """A benchmark that has just been started."""
        values = {"epochs": 3, "iterations": 4, "draws": ["0"], **values}
        return Steps(self.work, expand(protocol(self.dataset, **values), [self.dataset]), self.stub)


def bring(steps, arm):
    run = next(run for run in steps.runs if run.arm.name == arm)
    steps(run, Slot("cpu"))
    return run


def test_a_run_plans_trains_predicts_and_scores_and_then_nothing_is_left_to_do(bench):
    steps = bench.steps()
    run = bring(steps, "semisam")
    assert bench.stub.names() == [*PLANNING, "train", "predict", "predict"]  # student and teacher
    assert steps.done(run) and {row["weights"] for row in steps.rows()} == {"final", "teacher"}
    steps = bench.steps()
    bring(steps, "semisam")
    assert bench.stub.names() == []
    bring(steps, "supervised")
    assert bench.stub.names() == ["train", "predict"]  # planned once


@pytest.mark.parametrize(
    "die_at, then",
    [
        ("plan_experiment", [*PLANNING, "train", "predict"]),
        ("preprocess", [*PLANNING, "train", "predict"]),
        ("train", ["train --c", "predict"]),
        ("end of train", ["predict"]),
        ("predict", ["predict"]),
    ],
)
def test_after_a_kill_only_what_is_missing_is_done(bench, die_at, then):
    bench.stub.die_at = die_at
    with pytest.raises(CommandFailed, match="was killed"):
        bring(bench.steps(), "supervised")
    bench.stub.names()
    bench.stub.die_at = None
    steps = bench.steps()
    run = next(run for run in steps.runs if run.arm.name == "supervised")
    assert (
        not steps.done(run)
        and (steps.folder(run) / "failed.txt").read_text() == f"CommandFailed: {die_at.split()[-1]} was killed\n"
    )
    bring(steps, "supervised")
    assert bench.stub.names() == then
    assert steps.done(run) and not (steps.folder(run) / "failed.txt").exists()


def test_an_interrupted_run_has_not_failed(bench):
    bench.stub.die_at, bench.stub.stopped = "train", True
    with pytest.raises(CommandFailed):
        bring(steps := bench.steps(), "supervised")
    assert not list(steps.work.rglob("failed.txt"))


def test_a_checkpoint_that_cannot_be_continued_is_dropped(bench):
    bench.stub.die_at = "train"
    with pytest.raises(CommandFailed):
        bring(bench.steps(), "supervised")
    bench.stub.die_at = None
    next(bench.work.rglob("checkpoint_latest.pth")).write_text("damaged")
    bench.stub.names()
    bring(bench.steps(), "supervised")
    assert bench.stub.names() == ["train --c", "train", "predict"]
    (aside,) = bench.work.rglob("damaged_fold_*")
    assert (aside / "checkpoint_latest.pth").read_text() == "damaged"


def test_a_training_that_cannot_go_on_for_another_reason_is_kept(bench):
    """No memory, a full disk: the checkpoint is in order, and training anew would end in the same way."""
    bench.stub.die_at = "train"
    with pytest.raises(CommandFailed):
        bring(bench.steps(), "supervised")
    file = next(bench.work.rglob("checkpoint_latest.pth"))
    torch.save({"current_epoch": 2}, file)
    bench.stub.names()
    kept = file.read_bytes()
    bench.stub.write = False
    with pytest.raises(CommandFailed, match="was killed"):
        bring(bench.steps(), "supervised")
    assert bench.stub.names() == ["train --c"] and file.read_bytes() == kept


def test_other_labeled_cases_of_the_same_draw_are_no_scores_of_it(bench):
    steps = bench.steps(draws=["0"])
    bring(steps, "supervised")
    steps.require_same_cases()
    fewer = bench.steps(draws=["0"], val_cases=4)  # another draw under the same name
    with pytest.raises(ValueError, match=r"trained in .*now: labeled: c\d.*; unlabeled: c\d.*; take another work"):
        fewer.require_same_cases()
    marker = next(bench.work.rglob("trained.json"))
    before = json.loads(marker.read_text())
    turned = {name: cases[::-1] for name, cases in before["cases"].items()}
    marker.write_text(json.dumps({**before, "cases": turned}))
    steps.require_same_cases()  # the same in another order
    marker.write_text(json.dumps({key: value for key, value in before.items() if key != "cases"}))
    fewer.require_same_cases()  # of a version that did not note them


def test_versions_are_noted_with_the_training_and_told_where_they_differ(bench):
    bring(steps := bench.steps(), "supervised")
    (noted,) = [steps.trained(run)["versions"] for run in steps.runs if steps.trained(run)]
    assert noted == [training_versions()] and sources() in noted[0]["nnunet_semisam"]
    assert told([noted, noted]).startswith("Trained by nnunet_semisam")
    mixed = told([[*noted, {**noted[0], "torch": "1.0"}], None])
    assert mixed.startswith("TRAINED BY DIFFERENT VERSIONS") and "torch 1.0" in mixed and "not noted" in mixed


def test_a_training_that_other_code_goes_on_with_is_of_both(bench, monkeypatch):
    bench.stub.die_at = "train"
    with pytest.raises(CommandFailed):
        bring(bench.steps(), "supervised")
    bench.stub.die_at = None
    monkeypatch.setattr(steps_module, "training_versions", lambda: {"torch": "9"})
    run = bring(steps := bench.steps(), "supervised")
    assert steps.trained(run)["versions"] == [training_versions(), {"torch": "9"}]


def test_a_checkpoint_that_cannot_be_read_just_now_is_kept(tmp_path, monkeypatch):
    (tmp_path / "checkpoint_latest.pth").touch()
    for error, damaged in ((MemoryError(), False), (OSError("stale"), False), (ValueError("cut"), True)):
        monkeypatch.setattr("nnunet_semisam.checkpoint.read_checkpoint", mock.Mock(side_effect=error))
        assert steps_module._damaged(tmp_path) == damaged


def test_a_marker_that_a_power_cut_has_emptied_is_none(bench):
    bring(steps := bench.steps(), "supervised")
    for file in bench.work.rglob("scored.json"):
        file.write_text("")
    assert not any(steps.done(run) for run in steps.runs)
    bench.stub.names()
    bring(bench.steps(), "supervised")
    assert bench.stub.names() == [] and any(steps.done(run) for run in steps.runs)


def test_more_cases_predict_again_and_other_units_only_score_again(bench):
    bring(bench.steps(max_cases=1), "supervised")
    bench.stub.names()
    steps = bench.steps(max_cases=3)
    run = bring(steps, "supervised")
    assert bench.stub.names() == ["predict"] and len(steps.rows()) == 3
    for values in ({"voxel_units": True}, {"tolerance": 2.0}, {"max_cases": 2}):
        steps = bench.steps(**values)
        assert not steps.done(run := next(r for r in steps.runs if r.name == run.name))
        bring(steps, "supervised")
        assert bench.stub.names() == [] and steps.done(run)


def test_equal_time_trains_as_many_epochs_as_take_as_long_and_keeps_to_it(bench):
    arms = ["supervised", "semisam", "supervised_time"]
    steps = bench.steps(arms=arms)
    for arm in ("supervised", "semisam"):
        bring(steps, arm)
    bench.stub.die_at = "predict"
    SECONDS["supervised_time"] = 2.0
    with pytest.raises(CommandFailed):
        bring(steps, "supervised_time")
    bench.stub.die_at = None
    run = bring(bench.steps(arms=arms), "supervised_time")
    trained = steps.trained(run)
    assert trained["epochs"] == 8  # 3 epochs of 2 s against 3 of 5 s: 7.5, at least
    assert trained["seconds"] == 16.0


def test_equal_time_is_not_reckoned_from_two_kinds_of_device(bench):
    arms = ["supervised", "semisam", "supervised_time"]
    steps = bench.steps(arms=arms)
    for arm, device in (("supervised", "cpu"), ("semisam", "cuda:1")):
        steps(next(run for run in steps.runs if run.arm.name == arm), Slot(device))
    with pytest.raises(RuntimeError, match="no equal time.*'semisam': 'cuda'.*one kind of --devices"):
        bring(steps, "supervised_time")


def test_equal_time_is_not_reckoned_from_two_kinds_of_gpu(bench):
    arms = ["supervised", "semisam", "supervised_time"]
    steps, bench.stub.gpus = bench.steps(arms=arms), ["A", "B"]
    for arm in ("supervised", "semisam"):
        bring(steps, arm)
    with pytest.raises(RuntimeError, match="no equal time.*'supervised': 'A', 'semisam': 'B'"):
        bring(steps, "supervised_time")
    marker = next(file for file in bench.work.rglob("trained.json") if "semisam" in str(file))
    marker.write_text(json.dumps({key: value for key, value in json.loads(marker.read_text()).items() if key != "gpu"}))
    SECONDS["supervised_time"] = 2.0
    bring(steps, "supervised_time")  # of a version that did not note it


def test_the_best_checkpoint_goes_when_a_run_is_scored(bench):
    bench.stub.die_at = "predict"
    with pytest.raises(CommandFailed):
        bring(bench.steps(), "supervised")
    final = next(bench.work.rglob("checkpoint_final.pth"))
    best = final.with_name("checkpoint_best.pth")
    best.touch()
    bench.stub.die_at = None
    bring(bench.steps(), "supervised")
    assert final.exists() and not best.exists()


def test_a_begun_training_tells_what_it_took_and_what_it_will_take(bench):
    bench.stub.die_at = "train"
    with pytest.raises(CommandFailed):
        bring(steps := bench.steps(), "supervised")
    run = next(run for run in steps.runs if run.arm.name == "supervised")
    assert steps.underway(run) is None  # no epoch yet
    lines = ["2026-01-01 10:00:00.000000: up", "2026-01-01 10:00:07.000000: Epoch 0", "x: Epoch time: 2.0 s"]
    (next(bench.work.rglob("fold_0")) / "training_log_2026_1_1_10_00_00.txt").write_text("\n".join(lines))
    assert steps.underway(run) == (9.0, 4.0)
    (next(bench.work.rglob("fold_0")) / "debug.json").write_text(
        '{"num_epochs": "10", "num_iterations_per_epoch": "4"}'
    )
    assert steps.underway(run) == (9.0, 18.0)  # a trainer of another length
    with mock.patch("nnunet_semisam.benchmark.state.epoch_seconds", side_effect=FileNotFoundError):
        assert steps.underway(run) is None  # just being deleted, to begin anew
    bench.stub.die_at = "predict"
    with pytest.raises(CommandFailed):
        bring(steps, "supervised")
    assert steps.underway(run)[1] == 0.0  # trained, and to be predicted
    bench.stub.die_at = None
    bring(steps, "supervised")
    assert steps.underway(run) is None


def test_the_fold_shows_training_no_label_of_a_hidden_or_evaluation_case(bench):
    run = bring(bench.steps(), "semisam")
    fold = json.loads((bench.work / "nnunet/all/preprocessed" / NAME / "splits_final.json").read_text())
    assert fold == [
        {"train": list(run.fold.labeled), "unlabeled": list(run.fold.unlabeled), "val": [run.fold.labeled[0]]}
    ]


def test_folds_are_numbered_once_and_for_all(bench):
    bring(bench.steps(draws=["1"]), "supervised")
    steps = bench.steps(draws=["0", "1"])
    for run in steps.runs:
        steps(run, Slot("cpu"))
    file = bench.work / "nnunet/all/preprocessed" / NAME / "splits_final.json"
    folds = [entry["train"] for entry in json.loads(file.read_text())]
    by_draw = {run.fold.draw: list(run.fold.labeled) for run in steps.runs}
    assert folds == [by_draw["1"], by_draw["0"]]


def test_the_fingerprint_of_labeled_cases_sees_no_other(bench):
    seen = []
    original = bench.stub.run

    def run(command, **more):
        if command[0] in ("nnUNetv2_extract_fingerprint", "nnUNetv2_preprocess"):
            raw = next((bench.work / "nnunet").rglob("raw")) / NAME / "labelsTr"
            seen.append(sorted(file.name.split(".")[0] for file in raw.iterdir()))
        if command[0] == "nnUNetv2_preprocess":
            raise CommandFailed("enough")
        original(command, **more)

    bench.stub.run = run
    steps = bench.steps(fingerprint_from="labeled")
    with pytest.raises(CommandFailed, match="enough"):
        bring(steps, "supervised")
    assert seen == [sorted(steps.runs[0].fold.labeled), bench.dataset.cases()]
    assert not list(bench.work.rglob(MARKER))


def test_a_smaller_network_is_the_same_for_all_arms(bench):
    steps = bench.steps(network={"patch_size": [12, 12, 12], "batch_size": 3})
    for arm in ("supervised", "semisam"):
        bring(steps, arm)
    plans = json.loads((bench.work / "nnunet/all/preprocessed" / NAME / "nnUNetPlans.json").read_text())
    written = [plans["configurations"][run.configuration] for run in steps.runs]
    assert all((entry["patch_size"], entry["batch_size"]) == ([12, 12, 12], 3) for entry in written)
    assert written[0]["semisam"]["terms"]["sam"] == {"weight": 0} and "terms" not in written[1]["semisam"]


def test_a_network_that_the_plans_do_not_have_is_told_before_the_preprocessing(bench):
    steps = bench.steps(network={"features": [8, 16, 32, 64, 128]})
    for _ in range(2):  # and not planned again for the next run
        with pytest.raises(ValueError, match="features"):
            bring(steps, "supervised")
    assert bench.stub.names() == PLANNING[:2]


def test_another_spacing_is_planned_beside_the_first(bench, monkeypatch):
    for network, home in ((None, "all"), ({"spacing": [2, 2.5, 3]}, "all_2x2.5x3")):
        bench.stub.commands.clear()
        steps = bench.steps(network=network)
        assert steps.home(steps.runs[0]).folder == bench.work / "nnunet" / home
        monkeypatch.setattr(bench.stub, "die_at", "preprocess")
        with pytest.raises(CommandFailed):
            bring(steps, "supervised")
        (plan,) = [command for command in bench.stub.commands if command[0] == "nnUNetv2_plan_experiment"]
        assert plan[3:] == (() if network is None else ("-overwrite_target_spacing", "2.0", "2.5", "3.0"))
