"""Readiness: its rule on made-up numbers, its counts on made-up patches, and what it does to a training."""

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_train_step import NO_TERMS, stepped, toy, trained  # noqa: F401 (a fixture)
from toy_trainer import REGIONS, build, short, weights

from nnunet_semisam import readiness
from nnunet_semisam.checkpoint import KEY
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.readiness import Readiness
from nnunet_semisam.teacher import EmaTeacher
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

LENGTH = 5000


def counted(*dice, shown=0.1):
    """An iteration that shows every class with this Dice; None: the class is not shown, but predicted."""
    rows = [(0.0, 0.1, 0.0) if value is None else (value * shown, shown, shown) for value in dice]
    return dict(zip(readiness.COUNTS, zip(*rows, strict=True), strict=True))


def fed(state, row, times=readiness.WINDOW, start=readiness.START):
    """Whatever it says when it sees the row again and again."""
    lines = []
    for iteration in range(start, start + times):
        state.update(row)
        lines.append(state.judge(iteration, LENGTH))
    return [line for line in lines if line]


@pytest.fixture
def state():
    return Readiness(OutputSpace(3), ("organ", "tumor"), 0.5)


def test_at_the_start_nothing_has_to_be_known(state):
    assert fed(state, counted(0.0, 0.0), times=250, start=0) == [] and state.ready
    (line,) = fed(state, counted(0.0, 0.0), times=1, start=250)
    assert not state.ready and "WARNING" in line and "organ 0.000, tumor 0.000; min_labeled_dice is 0.5" in line


def test_nothing_is_said_where_all_is_known_by_then(state):
    assert fed(state, counted(0.9, 0.9), times=500, start=0) == [] and state.ready


def test_nothing_goes_on_before_all_classes_are_known(state):
    (line,) = fed(state, counted(0.9, 0.4), times=500)
    assert not state.ready and line.index("tumor 0.400") < line.index("organ 0.900")
    (line,) = fed(state, counted(0.9, 0.6), times=200)
    assert state.ready and "count again" in line and "tumor 0.50" in line


@pytest.mark.parametrize(("iterations", "start"), [(7, 0), (80, 10), (250_000, 250)])
def test_the_start_of_a_short_training_is_an_eighth(state, iterations, start):
    ready = []
    for iteration in range(start + 1):
        state.judge(iteration, iterations)
        ready.append(state.ready)
        state.update(counted(0.1, 0.9))
    assert ready == [True] * start + [False]


def test_a_run_that_is_resumed_or_delayed_is_not_at_its_start(state):
    """Whatever it has counted so far."""
    assert "have not shown any class yet" in state.judge(125_250, 250_000) and not state.ready


def test_a_class_that_is_lost_ends_it_with_a_margin(state):
    fed(state, counted(0.9, 0.9))
    assert fed(state, counted(0.9, 0.46), times=1000) == [] and state.ready
    (line,) = fed(state, counted(0.9, 0.1), times=300)
    assert not state.ready and "WARNING" in line and "tumor 0.449, organ 0.900" in line
    assert fed(state, counted(0.9, 0.46), times=1000) == [] and not state.ready
    (line,) = fed(state, counted(0.9, 0.9), times=300)
    assert state.ready and "count again" in line


def test_a_class_that_is_never_shown_is_not_waited_for(state):
    assert fed(state, counted(0.9, None)) == [] and state.ready
    assert state.dice() == {"organ": pytest.approx(0.9)}
    fed(state, counted(0.9, 0.0), times=1)
    assert not state.ready


def test_a_class_that_is_not_shown_any_more_is_forgotten(state):
    fed(state, counted(0.9, 0.0), times=1)
    assert fed(state, counted(0.9, None), times=readiness.FORGET - 1) == [] and not state.ready
    assert len(fed(state, counted(0.9, None), times=1)) == 1 and state.ready


def test_without_any_class_shown_nothing_goes_on(state):
    (line,) = fed(state, counted(None, None), times=500)
    assert not state.ready and "have not shown any class" in line


def test_iterations_without_a_class_do_not_lower_its_dice(state):
    """Its false positives elsewhere are no reason to wait: a rare class would never be known."""
    fed(state, counted(0.9, 0.9))
    fed(state, counted(0.9, None), times=readiness.FORGET - 1)
    assert state.ready and state.dice()["tumor"] == pytest.approx(0.9)


def test_dice_is_of_sums_not_of_iterations(state):
    for _ in range(200):
        fed(state, counted(1.0, 1.0, shown=0.001), times=1)
        fed(state, counted(0.2, 0.8, shown=0.1), times=1)
    assert state.dice() == {"organ": pytest.approx(0.2, abs=0.02), "tumor": pytest.approx(0.8, abs=0.02)}


def test_of_many_classes_the_lowest_are_named():
    names = [f"organ{number}" for number in range(60)]
    state = Readiness(OutputSpace(61), names, 0.5)
    (line,) = fed(state, counted(*[0.4 + number / 1000 for number in range(60)]), times=1)
    assert "organ0 0.400" in line and "organ4 0.404 and 55 more above" in line and "organ5 " not in line


def test_a_threshold_of_0_is_always_ready_and_counts_nothing():
    state = Readiness(OutputSpace(3), ("organ", "tumor"), 0)
    assert state.counts(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)) == {}
    state.update({})
    assert state.judge(5000, LENGTH) is None and state.ready and state.dice() == {}


def test_state_round_trip(state):
    fed(state, counted(0.9, 0.1))
    other = Readiness(OutputSpace(3), ("organ", "tumor"), 0.5)
    other.load_state_dict(state.state_dict())
    assert other == state
    assert fed(other, counted(0.9, 0.9), times=300) == fed(state, counted(0.9, 0.9), times=300) and other == state
    off = Readiness(OutputSpace(3), ("organ", "tumor"), 0)
    fed(state, counted(0.1, 0.1), times=500)
    off.load_state_dict(state.state_dict())
    assert not state.ready and "count again" in off.judge(5000, LENGTH) and off.ready


def test_counts_of_labels_leave_out_what_is_ignored(state):
    target = torch.tensor([[0, 1, 1, 2], [0, 2, 3, 3]])[None, None].float()
    predicted = torch.tensor([[0, 1, 2, 2], [1, 0, 2, 1]])[None]
    logits = torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float().requires_grad_()
    found = {name: (8 * part).tolist() for name, part in state.counts([logits], [target]).items()}
    assert found == {"overlap": [1, 1], "predicted": [2, 2], "shown": [2, 2]}
    assert not state.counts(logits, target)["overlap"].requires_grad


def test_counts_of_regions_leave_out_what_is_ignored():
    state = Readiness(OutputSpace(2, has_regions=True), ("whole", "core"), 0.5)
    target = torch.tensor([[[1, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]])[..., None]  # the last one: ignored
    logits = torch.tensor([[[1.0, -1, 2, -1, 3], [-1, 1, -1, -1, 1]]])[..., None]
    found = {name: (5 * part).tolist() for name, part in state.counts(logits, target).items()}
    assert found == {"overlap": [1, 0], "predicted": [2, 1], "shown": [2, 1]}


def test_counts_are_summed_over_patches(state):
    target = torch.tensor([[[1, 1]], [[1, 2]]])[:, None].float()
    logits = torch.nn.functional.one_hot(target[:, 0].long(), 3).movedim(-1, 1).float()
    assert state.counts(logits, target)["overlap"].tolist() == [1.5, 0.5]


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["labels", "regions"])
def test_until_it_is_ready_a_run_is_a_supervised_one(toy, labels):  # noqa: F811
    stock = build(nnUNetTrainer, labels=labels)
    stock.initialize()
    stock.on_train_start()
    batches = [next(stock.dataloader_train) for _ in range(3)]
    waiting = stepped(short(min_labeled_dice=1.0), batches, labels=labels)
    supervised = stepped(short(terms=NO_TERMS), batches, labels=labels)
    assert torch.equal(weights(waiting), weights(supervised)) and toy.calls == 0
    closed = waiting.curves.end_epoch(0)
    assert closed["weight/sam"] == closed["weight/consistency"] == 0
    assert "loss/consistency" not in closed and "loss/sam" not in closed
    assert waiting.readiness.dice().keys() == set(waiting.readiness.names)
    assert closed["labeled_dice"] > 0


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["labels", "regions"])
def test_when_it_is_ready_both_terms_count(toy, monkeypatch, labels):  # noqa: F811
    monkeypatch.setattr(readiness, "WINDOW", 2)
    built = build(nnUNetTrainerSemiSAM, short(min_labeled_dice=1e-9, num_iterations_per_epoch=4), labels=labels)
    lines = []
    built.print_to_log_file = lambda *words, **_: lines.append(" ".join(map(str, words)))
    built.on_train_start()
    built.on_train_epoch_start()
    built.readiness.mean = {name: [0.1] * len(built.readiness.names) for name in readiness.COUNTS}
    calls = []
    for _ in range(4):
        built.train_step(next(built.dataloader_train))
        calls.append(toy.calls)
    assert calls[0] == 0 and calls[1] > 0
    assert len([line for line in lines if "count again" in line]) == 1
    closed = built.curves.end_epoch(0)
    assert closed["loss/consistency"] > 0 and closed["loss/sam"] > 0 and 0 < closed["labeled_dice"] < 1


def test_a_training_whose_start_is_over_ends_its_terms(toy):  # noqa: F811
    built = trained(section=short(min_labeled_dice=1.0, num_epochs=4, num_iterations_per_epoch=4))  # 2 of 16 are free
    used = built.curves.epochs["weight/consistency"]
    assert used[0] > 0 and used[1:] == [0, 0, 0] and toy.calls == 2


def test_while_waiting_the_method_makes_no_pseudo_labels(toy, monkeypatch):  # noqa: F811
    calls = []
    ask = EmaTeacher.__call__
    monkeypatch.setattr(EmaTeacher, "__call__", lambda self, image: calls.append(1) or ask(self, image))
    for guard, passes in ((True, 3), (False, 0)):
        calls.clear()
        trained(section=short(method="ua_mt", min_labeled_dice=1.0, collapse_guard=guard))
        assert len(calls) == passes


def test_what_is_ready_may_still_be_held(toy):  # noqa: F811
    built = build(nnUNetTrainerSemiSAM, short())
    assert built.unlabeled_terms_on
    built.collapse.held = {"ball": "above"}
    assert built.readiness.ready and not built.unlabeled_terms_on


def test_its_dice_is_that_of_the_student_on_the_labeled_patches(toy, monkeypatch):  # noqa: F811
    monkeypatch.setattr(readiness, "WINDOW", 1)
    built = build(nnUNetTrainerSemiSAM, short(min_labeled_dice=0.5))
    built.on_train_start()
    built.on_train_epoch_start()
    batch = next(built.dataloader_train)
    with torch.no_grad():
        predicted = built.network(batch["data"])[0].argmax(1)
    built.train_step(batch)
    truth = batch["target"][0][:, 0]
    for label, name in ((1, "ball"), (2, "shell")):
        overlap = ((predicted == label) & (truth == label)).sum()
        expected = 2 * overlap / ((predicted == label).sum() + (truth == label).sum())
        assert built.readiness.dice()[name] == pytest.approx(expected.item())


@pytest.mark.parametrize(("threshold", "told"), [(1.0, True), (0.0, False)])
def test_a_training_that_ends_without_its_unlabeled_terms_says_so(toy, monkeypatch, threshold, told):  # noqa: F811
    built = build(nnUNetTrainerSemiSAM, short(min_labeled_dice=threshold))
    lines = []
    monkeypatch.setattr(built, "print_to_log_file", lambda *words, **_: lines.append(" ".join(map(str, words))))
    built.run_training()
    found = [line for line in lines if line.startswith("WARNING: semisam: unlabeled patches did not count at the end")]
    assert len(found) == told and all("ball 0." in line and "shell 0." in line for line in found)


def test_a_resumed_run_goes_on_where_it_was(toy, tmp_path):  # noqa: F811
    built = trained(section=short(min_labeled_dice=0.5))
    file = str(tmp_path / "checkpoint.pth")
    built.save_checkpoint(file)
    resumed = build(nnUNetTrainerSemiSAM, short(min_labeled_dice=0.5))
    resumed.initialize()
    resumed.load_checkpoint(file)
    assert resumed.readiness == built.readiness and not resumed.readiness.ready and resumed.readiness.dice()


def test_a_run_from_before_there_was_a_threshold_goes_on(toy, tmp_path):  # noqa: F811
    built = trained(section=short())
    file = str(tmp_path / "checkpoint.pth")
    built.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=False)
    del checkpoint[KEY]["configuration"]["min_labeled_dice"], checkpoint[KEY]["readiness"]
    torch.save(checkpoint, file)
    resumed = build(nnUNetTrainerSemiSAM, short(min_labeled_dice=0.5, num_epochs=3))
    lines = []
    resumed.print_to_log_file = lambda *words, **_: lines.append(" ".join(map(str, words)))
    resumed.initialize()
    resumed.load_checkpoint(file)
    resumed.on_train_start()
    assert any("min_labeled_dice was 0.0, is 0.5" in line for line in lines)
    resumed.on_train_epoch_start()
    resumed.train_step(next(resumed.dataloader_train))
    assert not resumed.readiness.ready
