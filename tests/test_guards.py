"""Numerical trouble: told by term and case, the step left out, training ended after too many; healthy runs alike."""

import copy
from unittest import mock

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_ranks import bad_loss_in_one
from toy_trainer import LABELED, UNLABELED, build, short, weights

from nnunet_semisam import guards
from nnunet_semisam.guards import TrainingDiverged, fetch
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

CONSTANT = {name: {"weight": 0.1, "schedule": "constant"} for name in ("consistency", "sam")}


@pytest.fixture
def trainer(toy):  # noqa: F811
    """Ready for its first step; `lines` has what it logs."""
    built = build(nnUNetTrainerSemiSAM, short(terms=CONSTANT, max_bad_steps=3))
    built.on_train_start()
    built.on_train_epoch_start()
    built.lines = []
    built.print_to_log_file = lambda *words, **_: built.lines.append(" ".join(map(str, words)))
    return built


def spoil(trainer, monkeypatch, what):
    """Makes one term or the gradient of every step NaN."""
    if what == "supervised":
        loss = trainer.loss
        monkeypatch.setattr(trainer, "loss", lambda *given: loss(*given) * torch.nan)
    elif what == "gradient":
        parameter = next(trainer.network.parameters())
        handle = parameter.register_hook(lambda gradient: gradient * torch.inf)
        monkeypatch.setattr(trainer, "unspoil", handle.remove, raising=False)
    else:
        terms = trainer.method.terms

        def spoiled(*given):
            found = terms(*given)
            return {**found, what: found[what] + torch.inf}

        monkeypatch.setattr(trainer.method, "terms", spoiled)


def state(trainer):
    """Student, teacher and optimiser, copied."""
    parts = trainer.network.state_dict(), trainer.teacher.state_dict(), trainer.optimizer.state_dict()
    return copy.deepcopy(parts)


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


@pytest.mark.parametrize("what", ["supervised", "consistency", "sam", "gradient"])
def test_a_bad_step_is_told_and_touches_nothing(trainer, monkeypatch, what):
    for _ in range(2):  # after the first one the teacher still is the student
        trainer.train_step(next(trainer.dataloader_train))
    before = state(trainer)
    spoil(trainer, monkeypatch, what)
    step = trainer.train_step(next(trainer.dataloader_train))
    assert step["loss"] != step["loss"] and same(before, state(trainer)) and trainer.iteration == 3
    (line,) = [line for line in trainer.lines if "WARNING" in line]
    named = line.split("not finite: ")[1].split(" in the batch of ")
    assert what in named[0].split(", ")
    assert {*named[0].split(", ")} <= {what, "gradient"}
    cases = set(named[1].split(";")[0].split(", "))
    assert cases & set(LABELED) and cases & set(UNLABELED)


def test_training_goes_on_after_a_bad_step(trainer, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(trainer, patch, "sam")
        trainer.train_step(next(trainer.dataloader_train))
    before = weights(trainer)
    assert trainer.train_step(next(trainer.dataloader_train))["loss"] > -10
    assert not torch.equal(before, weights(trainer)) and weights(trainer).isfinite().all()


def test_too_many_bad_steps_end_the_training(trainer, monkeypatch):
    spoil(trainer, monkeypatch, "consistency")
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    with pytest.raises(TrainingDiverged, match="3 steps.*max_bad_steps.*consistency.*of before"):
        trainer.train_step(next(trainer.dataloader_train))


def test_an_epoch_without_a_bad_step_takes_one_off_the_count(trainer):
    guard, healthy = trainer.guard, [{"loss": np.float32(1.0)}]
    guard.count = 2
    counts = []
    for bad in (0, 0, 1, 0, 0, 0):
        guard.count += bad
        guard.end_epoch(trainer, healthy)
        counts.append(guard.count)
    assert counts == [2, 1, 2, 1, 0, 0]  # the first epoch has the two


def test_the_last_good_checkpoint_stays(toy, monkeypatch):  # noqa: F811
    built = build(nnUNetTrainerSemiSAM, short(terms=CONSTANT, max_bad_steps=2, num_epochs=3))
    built.save_every = 1
    start = nnUNetTrainer.on_epoch_start

    def spoiled(self):
        start(self)
        if self.current_epoch == 1:
            spoil(self, monkeypatch, "supervised")

    monkeypatch.setattr(nnUNetTrainerSemiSAM, "on_epoch_start", spoiled)
    with pytest.raises(TrainingDiverged):
        built.run_training()
    checkpoint = torch.load(f"{built.output_folder}/checkpoint_latest.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in checkpoint["network_weights"].values())


def test_a_step_that_was_left_out_does_not_make_the_loss_of_the_epoch_nan():
    made, out = [{"loss": np.float32(1.0)}, {"loss": np.float32(3.0)}], guards.SKIPPED
    for ranks, losses in ((False, [1.0, 3.0]), (True, [1.0, 3.0, 2.0])):  # nnU-Net wants equally many from each
        guard, rank = guards.StepGuard(9), nnUNetTrainerSemiSAM.__new__(nnUNetTrainerSemiSAM)
        rank.is_ddp, rank.device = ranks, torch.device("cpu")
        with mock.patch.object(guards.dist, "all_reduce"):
            found = guard.end_epoch(rank, [made[0], out, made[1]])
            assert [float(outcome["loss"]) for outcome in found] == losses
            assert guard.end_epoch(rank, [out]) == [out]


def test_the_count_is_resumed(toy, monkeypatch):  # noqa: F811
    section = short(terms=CONSTANT, num_epochs=2)
    built = build(nnUNetTrainerSemiSAM, section)
    built.initialize()
    built.guard.count = 5
    built.run_training()
    again = build(nnUNetTrainerSemiSAM, section, continue_training=True)
    again.load_checkpoint(f"{built.output_folder}/checkpoint_final.pth")
    assert again.guard.count == built.guard.count == 4  # of the two epochs the second was without


def test_an_epoch_with_bad_steps_has_the_mean_of_the_others(toy, monkeypatch):  # noqa: F811
    built = build(nnUNetTrainerSemiSAM, short(terms=CONSTANT))
    loss, calls = nnUNetTrainerSemiSAM.record, []

    def second_is_bad(self, losses, *more):
        calls.append(losses)
        return loss(self, losses | ({"sam": losses["sam"] * torch.nan} if len(calls) == 2 else {}), *more)

    monkeypatch.setattr(nnUNetTrainerSemiSAM, "record", second_is_bad)
    built.run_training()
    logged = built.logger.get_value("train_losses", step=None)
    expected = [(c["supervised"] + 0.1 * (c["consistency"] + c["sam"])).item() for c in (calls[0], calls[2])]
    assert logged == [pytest.approx(sum(expected) / 2)]
    assert built.curves.epochs["loss/sam"] == [pytest.approx((calls[0]["sam"] + calls[2]["sam"]).item() / 2)]


@pytest.mark.parametrize("what", ["supervised", "gradient"])
def test_nnunets_own_step_is_kept_from_spoiling_the_weights(toy, monkeypatch, what):  # noqa: F811
    terms = {name: {"weight": 0} for name in CONSTANT}
    built = build(nnUNetTrainerSemiSAM, short(terms=terms, max_bad_steps=2))
    built.on_train_start()
    built.on_train_epoch_start()
    built.train_step(next(built.dataloader_train))
    before = copy.deepcopy((built.network.state_dict(), built.optimizer.state_dict()))
    spoil(built, monkeypatch, what)
    built.train_step(next(built.dataloader_train))
    assert same(before, (built.network.state_dict(), built.optimizer.state_dict())) and built.guard.count == 1
    with pytest.raises(TrainingDiverged, match=", ".join(sorted(LABELED)[:1])):
        built.train_step(next(built.dataloader_train))


def test_running_statistics_are_taken_back(toy, monkeypatch):  # noqa: F811
    built = build(nnUNetTrainerSemiSAM, short(terms=CONSTANT))
    built.initialize()
    built.network.decoder.register_buffer("seen", torch.zeros(()))

    def counted(network, *_):
        if network.training:
            network.decoder.seen.add_(1)

    built.network.register_forward_hook(counted)
    built.on_train_start()
    built.on_train_epoch_start()
    built.train_step(next(built.dataloader_train))
    assert built.network.decoder.seen == 2  # a labeled and an unlabeled pass
    spoil(built, monkeypatch, "sam")
    built.train_step(next(built.dataloader_train))
    assert built.network.decoder.seen == 2


# --- mixed precision: a GradScaler on the CPU has the same rules as on CUDA --------------------------------------


@pytest.fixture
def scaled(trainer):
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return trainer


def test_an_overflow_while_there_is_a_scale_to_lower_is_ordinary(scaled, monkeypatch):
    before = weights(scaled)
    spoil(scaled, monkeypatch, "gradient")
    scaled.train_step(next(scaled.dataloader_train))
    assert torch.equal(before, weights(scaled)) and scaled.guard.count == 0
    assert scaled.grad_scaler.get_scale() == 2.0**15 and not [line for line in scaled.lines if "WARNING" in line]


def test_an_overflow_at_scale_one_counts(scaled, monkeypatch):
    spoil(scaled, monkeypatch, "gradient")
    for _ in range(16):
        scaled.train_step(next(scaled.dataloader_train))
    assert scaled.guard.count == 0 and scaled.grad_scaler.get_scale() == 1
    scaled.train_step(next(scaled.dataloader_train))
    assert scaled.guard.count == 1


def test_a_bad_loss_counts_and_leaves_the_scale(scaled, monkeypatch):
    before = state(scaled)
    with monkeypatch.context() as patch:
        spoil(scaled, patch, "consistency")
        scaled.train_step(next(scaled.dataloader_train))
    assert same(before, state(scaled)) and scaled.guard.count == 1 and scaled.grad_scaler.get_scale() == 2.0**16
    scaled.train_step(next(scaled.dataloader_train))
    assert not same(before, state(scaled)) and scaled.guard.count == 1


# --- several processes ------------------------------------------------------------------------------------------


def test_two_processes_decide_alike(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=bad_loss_in_one, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert [row[:4] for row in found] == [(0, False, 1, [3.0]), (1, False, 1, [3.0])]
    assert "sam in the batch of case0, case1" in found[0][4][0] and found[1][4] == []


def test_numbers_come_in_one_piece():
    own, shared = fetch({"a": torch.tensor(1.0)}, {"b": torch.tensor([2.0, 3.0]), "c": torch.ones(1)}, is_ddp=False)
    assert own == {"a": 1.0} and shared == {"b": [2.0, 3.0], "c": [1.0]}
