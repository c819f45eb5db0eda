"""The collapse guard: its rule on made-up numbers, no false alarms, and what it does to a training."""

import math

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_trainer import REGIONS, build, short, weights

from nnunet_semisam import collapse, stream
from nnunet_semisam.collapse import CollapseGuard
from nnunet_semisam.ops.align import aligned
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

NAMES = ("background", "organ", "tumor")


def sums(teacher, labeled, random=None, believed=None):
    """Two patches of each kind with these shares of organ and tumor."""

    def of(shares):
        return [2 * part for part in (1 - sum(shares), *shares, 1)]

    rows = {"teacher": of(teacher), "labeled": of(labeled), "random": of(random or labeled)}
    return {**rows, "believed": of(teacher if believed is None else believed)}


def fed(guard, *rows, times=1):
    """What the guard says when it sees the rows again and again."""
    return [line for _ in range(times) for row in rows for line in guard.update(row)]


@pytest.fixture
def guard():
    return CollapseGuard(OutputSpace(3), NAMES)


@pytest.fixture
def settled(guard):
    """After a healthy start."""
    assert fed(guard, sums((0.1, 0.01), (0.12, 0.02), (0.1, 0.01)), times=600) == []
    return guard


def test_too_much_is_told_with_class_and_numbers_and_returns(settled):
    (line,) = fed(settled, sums((0.6, 0.01), (0.12, 0.02)), times=300)
    assert "WARNING" in line and "predicts organ in" in line and "above 0.48" in line
    assert settled.held == {"organ": "above"}
    assert fed(settled, sums((0.24, 0.01), (0.12, 0.02)), times=100) == []  # within, but not by the margin
    (line,) = fed(settled, sums((0.1, 0.01), (0.12, 0.02)), times=300)
    assert "within the range" in line and not settled.held


def test_too_little_is_told_by_the_patches_cropped_at_random(settled):
    lines = fed(settled, sums((0.1, 0.0), (0.12, 0.02), (0.1, 0.01)), times=400)
    assert len(lines) == 1 and "tumor" in lines[0] and "below 0.001," in lines[0]


def test_foreground_everywhere_is_told(guard):
    fed(guard, sums((0.4, 0.0), (0.5, 0.0), (0.4, 0.0)), times=600)
    lines = fed(guard, sums((1.0, 0.0), (0.5, 0.0), (0.4, 0.0)), times=400)
    assert len(lines) == 1 and "background" in lines[0] and "below" in lines[0]


def test_a_class_that_no_label_shows_holds_nothing_up_because_an_untrained_network_predicted_it(guard):
    """One labeled case rarely shows all classes of a data set; the average never gets back to exactly 0."""
    fed(guard, sums((0.3, 0.4), (0.12, 0.0)))
    assert fed(guard, sums((0.1, 0.0), (0.12, 0.0)), times=700) == [] and not guard.held
    (line,) = fed(guard, sums((0.1, 0.01), (0.12, 0.0)), times=200)
    assert "WARNING" in line and "predicts tumor in" in line and "above 0.001," in line
    (line,) = fed(guard, sums((0.1, 0.0), (0.12, 0.0)), times=400)
    assert "within the range" in line and not guard.held


def test_what_an_untrained_network_predicted_is_forgotten_when_judging_begins(guard):
    fed(guard, sums((0.3, 0.4), (0.12, 6e-4)), times=20)
    assert fed(guard, sums((0.1, 6e-4), (0.12, 6e-4)), times=600) == []


def test_nothing_is_said_at_the_start(guard):
    assert fed(guard, sums((0.9, 0.1), (0.1, 0.01)), times=collapse.WARM_UP) == []


def test_a_class_that_was_found_for_a_moment_before_the_warm_up_is_not_missing(guard):
    """With one label a network may take one class for the other until it tells them apart."""
    fed(guard, sums((0.0, 0.05), (0.12, 0.05), (0.1, 0.05)), times=290)
    fed(guard, sums((0.1, 0.0), (0.12, 0.05), (0.1, 0.05)), times=211)
    assert 0.005 < guard.mean["teacher"][2] < 0.007  # the average forgets slowly: still above a tenth of 0.05
    assert fed(guard, sums((0.1, 0.0), (0.12, 0.05), (0.1, 0.05)), times=400) == []
    assert not guard.held and guard.known == ["background", "organ"]


@pytest.mark.parametrize(("judged", "known"), [(collapse.WINDOW - 1, False), (collapse.WINDOW, True)])
def test_a_class_is_known_when_it_was_found_for_long(guard, judged, known):
    lost = sums((0.1, 0.0), (0.12, 0.05), (0.1, 0.05))
    fed(guard, sums((0.1, 0.05), (0.12, 0.05), (0.1, 0.05)), times=collapse.WARM_UP + judged)
    guard.mean["teacher"][2] = 0.0  # from one iteration to the next
    fed(guard, lost)
    assert ("tumor" in guard.known, guard.held) == (known, {"tumor": "below"} if known else {})


def test_a_class_that_comes_and_goes_is_not_known(guard):
    found, lost = (sums((0.1, share), (0.12, 0.05), (0.1, 0.05)) for share in (0.05, 0.0))
    for _ in range(30):
        fed(guard, found, times=60)
        fed(guard, lost, times=60)
    assert not guard.held and "tumor" not in guard.known


def test_too_little_returns_with_a_margin(settled):
    """The limit is 0.001, that of the return 0.002."""
    lost, little, enough = (sums((0.1, share), (0.12, 0.02), (0.1, 0.01)) for share in (0.0, 0.0015, 0.004))
    fed(settled, lost, times=400)
    assert settled.held == {"tumor": "below"}
    assert fed(settled, little, times=600) == [] and settled.held
    (line,) = fed(settled, enough, times=300)
    assert "tumor" in line and "within the range" in line and not settled.held


def test_switched_off_on_resume_nothing_is_held(settled):
    fed(settled, sums((0.6, 0.01), (0.12, 0.02)), times=300)
    assert settled.held
    off = CollapseGuard(OutputSpace(3), NAMES, on=False)
    off.load_state_dict(settled.state_dict())
    assert not off.held


def test_a_class_that_is_not_learned_yet_is_not_missing(guard):
    assert fed(guard, sums((0.1, 0.0), (0.12, 0.02), (0.1, 0.01)), times=3000) == []


def test_rare_classes_and_oversampling_raise_no_alarm(guard):
    """One patch in twenty has the tumor, but every second labeled one is laid on it."""
    random = np.random.default_rng(0)

    def patch(lucky):
        return random.uniform(0.02, 0.2), lucky * random.uniform(0.005, 0.05)

    for _ in range(8000):
        at_random, unlabeled = (patch(random.random() < 0.05) for _ in range(2))
        labeled = tuple(np.mean([at_random, patch(1)], axis=0))
        assert guard.update(sums(unlabeled, labeled, at_random)) == []


def test_sparse_annotations_do_not_make_a_class_too_rare():
    guard = CollapseGuard(OutputSpace(3), NAMES, sparse=True)
    assert fed(guard, sums((0.2, 0.2), (0.3, 0.3)), times=600) == []
    assert fed(guard, sums((0.01, 0.01), (0.3, 0.3)), times=600) == []
    assert len(fed(guard, sums((1.0, 0.0), (0.2, 0.2)), times=600)) == 0  # 4 x 0.3 is more than all
    assert not guard.held


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_does_not_stay_in_the_averages(settled, bad):
    before = dict(settled.mean)
    row = sums((0.3, 0.05), (0.3, 0.05))
    settled.update(row | {"teacher": [bad, *row["teacher"][1:]]})
    assert settled.mean["teacher"] == before["teacher"] and settled.mean["labeled"] != before["labeled"]


def test_state_round_trip(settled):
    fed(settled, sums((0.6, 0.01), (0.12, 0.02)), times=300)
    other = CollapseGuard(OutputSpace(3), NAMES)
    other.load_state_dict(settled.state_dict())
    row = sums((0.3, 0.01), (0.12, 0.02))
    assert other == settled and fed(other, row, times=200) == fed(settled, row, times=200) and other == settled


def test_shares_of_labels_and_of_ignored_voxels():
    guard = CollapseGuard(OutputSpace(3), NAMES, sparse=True)
    target = torch.tensor([[[0, 0, 1, 3], [0, 2, 2, 3]], [[0, 0, 0, 0], [1, 1, 1, 1]]])[:, None].float()
    prob = torch.nn.functional.one_hot(torch.tensor([[[0, 0], [1, 2]]]), 3).movedim(-1, 1).float()
    guard.watch(lambda image: image)(prob)
    found = guard.shares([target, target[..., ::2]], 1)
    assert found["teacher"].tolist() == [0.5, 0.25, 0.25, 1]
    assert found["random"].tolist() == [3 / 8, 1 / 8, 2 / 8, 6 / 8]
    assert found["labeled"].tolist() == [7 / 8, 5 / 8, 2 / 8, 14 / 8]


def test_shares_of_regions():
    guard = CollapseGuard(OutputSpace(2, has_regions=True), ("background", "whole", "core"), sparse=True)
    target = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]])[..., None].bool()  # the last one: ignored
    found = guard.shares(target, 0)
    assert found["labeled"].tolist() == [0.25, 0.5, 0.25, 0.75] and found["random"].tolist() == [0, 0, 0, 0]
    guard.watch(lambda image: image)(torch.tensor([[[0.9, 0.9, 0.1, 0.1], [0.6, 0.4, 0, 0]]])[..., None])
    assert guard.shares(target, 0)["teacher"].tolist() == [0.5, 0.5, 0.25, 1]
    guard.watch(lambda image: image)(torch.tensor([[[0.9, 0.8, 0.1, 0.1], [0.6, 0.4, 0, 0.2]]])[..., None])
    assert guard.shares(target, 0)["believed"].tolist() == pytest.approx([2 / 4, 1.9 / 4, 1.2 / 4, 1])


def test_shares_by_probability(guard):
    prob = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])[..., None, None].expand(2, 3, 2, 2)
    guard.watch(lambda image: image)(prob)
    found = guard.shares(torch.zeros(2, 1, 2, 2), 0)
    assert found["believed"].tolist() == pytest.approx([0.6, 1.0, 0.4, 2]) and found["teacher"].tolist() == [1, 1, 0, 2]


@pytest.fixture
def quick(monkeypatch):
    for name, value in (("WARM_UP", 1), ("WINDOW", 1)):
        monkeypatch.setattr(collapse, name, value)


def started(**section):
    terms = {name: {"weight": 0.1, "schedule": "constant"} for name in ("consistency", "sam")}
    built = build(nnUNetTrainerSemiSAM, short(terms=terms, **section))
    built.on_train_start()
    built.on_train_epoch_start()
    return built


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["labels", "regions"])
def test_a_collapsed_teacher_holds_the_unlabeled_terms_back(toy, quick, monkeypatch, labels):  # noqa: F811
    built = build(nnUNetTrainerSemiSAM, short(num_iterations_per_epoch=8), labels=labels)
    built.on_train_start()
    built.on_train_epoch_start()
    lines = []
    built.print_to_log_file = lambda *words, **_: lines.append(" ".join(map(str, words)))
    teacher, tiny = built.teacher, {"background": 0.01, "ball": 0.01, "shell": 0.01, "whole": 0.01}
    built.collapse.largest = [tiny[name] / 1e3 for name in built.collapse.names]
    monkeypatch.setattr(CollapseGuard, "_widen_range", lambda self: None)
    for _ in range(3):
        built.train_step(next(built.dataloader_train))
    assert built.collapse.held and [line for line in lines if "WARNING: semisam: the teacher predicts" in line]
    calls = toy.calls
    built.curves.end_epoch(0)
    before = weights(built)
    built.train_step(next(built.dataloader_train))
    closed = built.curves.end_epoch(1)
    assert closed["weight/sam"] == closed["weight/consistency"] == 0 and "loss/sam" not in closed
    assert toy.calls == calls and not torch.equal(before, weights(built))  # labels go on teaching
    built.collapse.largest = [1.0] * len(built.collapse.names)
    built.train_step(next(built.dataloader_train))
    built.train_step(next(built.dataloader_train))
    assert not built.collapse.held and toy.calls > calls and built.teacher is teacher


def test_a_guarded_run_equals_one_without_guard(toy):  # noqa: F811
    def trained(**section):
        built = build(nnUNetTrainerSemiSAM, short(**section))
        built.run_training()
        return built

    watched, unwatched = trained(), trained(collapse_guard=False)
    assert torch.equal(weights(watched), weights(unwatched))
    assert watched.collapse.seen == 3 and unwatched.collapse.seen == 0
    assert watched.collapse.mean.keys() == {"teacher", "labeled", "random", "believed"}


def test_random_crops_are_those_of_nnunets_loader(toy):  # noqa: F811
    built = started()
    loader = built.dataloader_train.data_loader
    for size in (1, 2, 3, 5, 8):
        loader.batch_size = size
        at_random = [number for number in range(size) if not loader.get_do_oversample(number)]
        assert at_random == list(range(collapse.random_crops(built, size)))


def test_alignment_takes_the_averages_of_random_crops_and_begins_when_there_are_some(guard):
    rows = sums((0.2, 0.01), (0.5, 0.3), (0.1, 0.01))
    prob = torch.tensor([0.5, 0.4, 0.1]).view(1, 3, 1, 1)

    def say(strength=1.0):
        return guard.aligned(lambda image: image, strength)(prob)

    assert torch.equal(say(), prob)
    fed(guard, rows, times=collapse.WINDOW)
    assert torch.equal(say(), prob)
    fed(guard, rows)
    expected = aligned(prob, [0.89, 0.1, 0.01], [0.79, 0.2, 0.01], guard.outputs)
    assert torch.allclose(say(), expected) and say()[0, 1].item() < 0.3
    assert torch.allclose(say(0.5), aligned(prob, [0.89, 0.1, 0.01], [0.79, 0.2, 0.01], guard.outputs, strength=0.5))
    assert torch.equal(say(0), prob)
    guard.sparse = True
    assert torch.equal(say(), prob)


def test_without_random_crops_nothing_is_aligned(guard):
    rows = {**sums((0.2, 0.01), (0.5, 0.3)), "random": [0.0] * 4}
    fed(guard, rows, times=collapse.WINDOW + 1)
    prob = torch.tensor([0.5, 0.4, 0.1]).view(1, 3, 1, 1)
    assert torch.equal(guard.aligned(lambda image: image, 1.0)(prob), prob)


def test_alignment_is_by_mean_probabilities_not_by_labels(guard):
    """A class that is nowhere the most probable one is not taken for absent."""
    fed(guard, sums((0.5, 0.0), (0.3, 0.3), (0.3, 0.2), believed=(0.3, 0.2)), times=collapse.WINDOW + 1)
    prob = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)
    assert torch.allclose(guard.aligned(lambda image: image, 1.0)(prob), prob)


def test_aligned_labels_are_what_the_student_learns_and_sam_is_asked_about(toy, monkeypatch):  # noqa: F811
    monkeypatch.setattr(collapse, "WINDOW", 0.999)  # from the second iteration on

    def run(strength):
        trainer = build(nnUNetTrainerSemiSAM, short(distribution_alignment=strength))
        seen = []
        trainer.on_train_start()
        labeler = trainer.sam_assisted.labeler
        trainer.sam_assisted.labeler = lambda image, prob, iteration: (
            seen.append(prob) or labeler(image, prob, iteration)
        )
        trainer.sam_assisted.labeler.stats = {"items": 0, "agreement": 0}
        trainer.on_train_epoch_start()
        for _ in range(3):
            trainer.train_step(next(trainer.dataloader_train))
        return seen, weights(trainer)

    (plain, student), (scaled, other) = run(0.0), run(1.0)
    assert torch.equal(plain[0], scaled[0]) and not torch.equal(plain[1], scaled[1])
    assert not torch.equal(student, other)


@pytest.mark.parametrize("why", ["", "probabilistic", "ignore label"])
def test_alignment_without_effect_is_told(toy, monkeypatch, why):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, short(distribution_alignment=1.0))
    trainer.initialize()
    trainer.probabilistic_oversampling = why == "probabilistic"
    if why == "ignore label":
        monkeypatch.setattr(LabelManager, "has_ignore_label", True)
    said = []
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *words, **_: said.append(" ".join(map(str, words))))
    stream.write_configuration(trainer, {})
    assert [why in line for line in said if "no effect" in line] == ([True] if why else [])
