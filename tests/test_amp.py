"""Mixed precision, which nnU-Net has on CUDA only: here with autocast and `GradScaler` of the CPU, by the same rules.

Two backward passes, one unscaling, clipping, steps left out for an overflow, checkpoints. What the guard counts is in
`test_guards.py`.
"""

import pytest
import torch
from test_checkpoint import killed_in_second_epoch
from test_guards import same, spoil, state
from test_train_step import NO_TERMS, toy, trained  # noqa: F401 (a fixture)
from toy_trainer import build, short, weights

from nnunet_semisam import trainer as engine
from nnunet_semisam.sam import build_backend
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

CONSTANT = {name: {"weight": 0.5, "schedule": "constant"} for name in ("consistency", "sam")}


class Scaled(nnUNetTrainerSemiSAM):
    """Clips at a norm that every step exceeds."""

    max_gradient_norm = 0.5
    scaler = staticmethod(lambda: torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2))
    half = None  # or the type of autocast

    def initialize(self):
        super().initialize()
        self.grad_scaler = self.scaler()

    def autocast(self):
        return torch.autocast("cpu", self.half) if self.half else super().autocast()


class Unscaled(Scaled):
    scaler = staticmethod(lambda: None)


class Noting(Scaled):
    """Notes the type of every pseudo-label and of its confidence."""

    def pseudo_labels(self, *of):
        pseudo = super().pseudo_labels(*of)
        self.believed.extend(part.dtype for label in pseudo.values() for part in (label.prob, label.confidence))
        return pseudo


class Overflowing(Scaled):
    half = torch.float16
    scaler = staticmethod(lambda: torch.amp.GradScaler("cpu", init_scale=2.0**20))


def vectors(trainer):
    """Student and teacher."""
    return weights(trainer), torch.cat([p.flatten() for p in trainer.teacher.network.parameters()])


def started(trainer, **section):
    built = build(trainer, short(**{"terms": CONSTANT, **section}))
    built.on_train_start()
    built.on_train_epoch_start()
    return built


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_a_scale_changes_no_weight(toy, cutmix):  # noqa: F811
    section = short(terms=CONSTANT, num_iterations_per_epoch=5, method_args={"cutmix": cutmix, "loss": "dice"})
    unscaled, scaled = trained(Unscaled, section=section), trained(Scaled, section=section)
    assert scaled.grad_scaler.get_scale() == 2.0**18  # powers of two: nothing is rounded
    assert all(torch.equal(*pair) for pair in zip(vectors(unscaled), vectors(scaled), strict=True))


def test_a_scale_changes_no_weight_in_nnunets_own_step(toy):  # noqa: F811
    section = short(terms=NO_TERMS)
    assert torch.equal(weights(trained(Unscaled, section=section)), weights(trained(Scaled, section=section)))


def test_the_scale_is_resumed(toy, monkeypatch):  # noqa: F811
    section = short(terms=CONSTANT, num_epochs=3)  # 3 iterations each: the scale has grown, and is halfway to growing
    whole = trained(Scaled, section=section)
    killed = killed_in_second_epoch(monkeypatch, section, Scaled)
    resumed = build(Scaled, section, continue_training=True)
    resumed.load_checkpoint(f"{killed.output_folder}/checkpoint_latest.pth")
    assert resumed.grad_scaler.state_dict() == killed.grad_scaler.state_dict()
    assert (resumed.grad_scaler.get_scale(), resumed.grad_scaler._get_growth_tracker()) == (2.0**17, 1)
    resumed.run_training()
    assert resumed.grad_scaler.state_dict() == whole.grad_scaler.state_dict()
    assert all(torch.equal(*pair) for pair in zip(vectors(whole), vectors(resumed), strict=True))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_trains_much_like_full_precision(toy, monkeypatch, half):  # noqa: F811
    """With the embedded generalist, which is asked under autocast."""
    monkeypatch.setattr(engine, "build_backend", build_backend)
    section = short(terms=CONSTANT, num_iterations_per_epoch=2)
    section["sam"] = {**section["sam"], "tune": 0, "min_voxels": 4}
    full = trained(Scaled, section=section)
    believed = []
    ours = trained(type("Half", (Noting,), {"half": half, "believed": believed}), section=section)
    assert len(believed) == 8 and set(believed) == {torch.float32}  # what a pseudo-label is, whatever made it
    assert {p.dtype for p in (*ours.network.parameters(), *ours.teacher.network.parameters())} == {torch.float32}
    assert ours.guard.count == 0 and ours.curves.epochs["sam/items"][0] > 0
    start = build(Scaled, section)
    start.initialize()
    for one, other in zip(vectors(full), vectors(ours), strict=True):
        moved = (one - weights(start)).norm()
        assert 0 < (one - other).norm() < 0.1 * moved
    for name in ("loss/consistency", "loss/sam", "loss/supervised"):
        assert ours.curves.epochs[name][0] == pytest.approx(full.curves.epochs[name][0], rel=0.1)


def test_a_real_overflow_leaves_steps_out_until_the_scale_fits(toy):  # noqa: F811
    built = started(Overflowing)
    before, left_out = state(built), 0
    for batch in [next(built.dataloader_train)] * 16:
        scale = built.grad_scaler.get_scale()
        step = built.train_step(batch)
        assert step["loss"] == step["loss"] and weights(built).isfinite().all()  # the loss itself was finite
        if built.grad_scaler.get_scale() == scale:
            break
        assert built.grad_scaler.get_scale() == scale / 2 and same(before, state(built))
        left_out += 1
    assert 2 <= left_out < 16 and not same(before[0], state(built)[0])
    assert built.guard.count == 0 and built.iteration == left_out + 1


@pytest.mark.parametrize("what, counted", [("gradient", 0), ("supervised", 1)])
def test_nnunets_own_step_is_left_to_the_scaler(toy, monkeypatch, what, counted):  # noqa: F811
    built = started(Scaled, terms=NO_TERMS)
    built.train_step(next(built.dataloader_train))
    before = weights(built)
    spoil(built, monkeypatch, what)
    built.train_step(next(built.dataloader_train))
    assert torch.equal(before, weights(built)) and built.grad_scaler.get_scale() == 2.0**15
    assert built.guard.count == counted


def test_sam_is_tried_and_tested_as_it_is_asked(toy, monkeypatch):  # noqa: F811
    """What overflows in half precision must not pass a test in full precision."""
    seen, embed = [], type(toy).embed
    monkeypatch.setattr(
        type(toy), "embed", lambda *given: seen.append(torch.is_autocast_enabled("cpu")) or embed(*given)
    )

    class Half(nnUNetTrainerSemiSAM):
        def autocast(self):
            return torch.autocast("cpu", torch.bfloat16)

    trained(Half, short(terms=CONSTANT, sam={"min_voxels": 1, "min_agreement": 0.0, "tune": 0}, num_epochs=1))
    assert len(seen) > 4 and all(seen)
