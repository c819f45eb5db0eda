"""Everything that training moves to its device is there, nothing else is mixed in, and nothing on it is float64."""

import contextlib
import os

import pytest
import torch
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_device import DEVICE, OnDevice, accelerator
from toy_trainer import REGIONS, build, short, weights

from nnunet_semisam import trainer as engine
from nnunet_semisam import trust
from nnunet_semisam.sam import build_backend, tuning
from nnunet_semisam.sam.embedded import tuning as frames
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

CONSTANT = {name: {"weight": 0.5, "schedule": "constant"} for name in ("consistency", "sam")}
SAM = {"min_voxels": 4, "min_agreement": 0.0, "trust": None, "tune": 0}
FLAT = {"patch_size": (16, 16)}
CASES = {
    "3d": ({}, {}),
    "2d": ({}, FLAT),
    "regions": ({}, {"labels": REGIONS}),
    "ua_mt, dice, cutmix": ({"method": "ua_mt", "method_args": {"loss": "dice", "cutmix": 1.0}}, FLAT),
    "fixmatch, strong view": ({"method": "fixmatch", "method_args": {"view": "nnunet"}}, FLAT),
    "shaken prompts, rounds": ({"sam": SAM | {"jitters": 2, "rounds": 2}}, FLAT),
    "trust": ({"sam": SAM | {"trust": "auto"}}, FLAT),
    "tuning": ({"sam": SAM | {"tune": 1}}, FLAT),
}


def run(device, section, settings):
    built = build(nnUNetTrainerSemiSAM, section, **settings)
    built.device, built.disable_checkpointing = device, True
    built.run_training()
    return built


@pytest.fixture
def quick(toy, monkeypatch):  # noqa: F811
    """The embedded generalist, little to be tested and tuned on."""
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setattr(engine, "build_backend", build_backend)
    for module, name, value in (
        (trust, "PATCHES", 2),
        (frames, "SYNTHETIC_MAPS", 1),
        (frames, "BATCH", {2: 2, 3: 2}),
        (tuning, "REPORTED", (0.75,)),
        (torch, "autocast", lambda *given, **more: contextlib.nullcontext()),  # tuning on a CPU has it
    ):
        monkeypatch.setattr(module, name, value)


LONG = {"tuning"}  # 13 s: with NNUNET_SEMISAM_LONG=1


@pytest.mark.parametrize("name", [name for name in CASES if name not in LONG or os.environ.get("NNUNET_SEMISAM_LONG")])
def test_training_on_another_device_ends_with_the_same_weights(quick, name):
    more, settings = CASES[name]
    section = short(terms=CONSTANT, num_iterations_per_epoch=2, **{"sam": SAM, **more})
    here = run(torch.device("cpu"), section, settings)
    with accelerator() as entered:
        there = run(DEVICE, section, settings)
        teacher = there.teacher.network
        assert all(isinstance(p, OnDevice) for p in (*there.network.parameters(), *teacher.parameters()))
        moved = weights(there).cpu()
    assert entered.operations > 500
    assert torch.equal(weights(here), moved)
    assert there.curves.epochs["sam/items"] == here.curves.epochs["sam/items"] != [0.0]
    assert here.trust == there.trust


@pytest.mark.parametrize("settings", [{}, FLAT], ids=["3d", "2d"])
def test_a_step_reads_from_the_device_a_few_times(quick, monkeypatch, settings):
    """Once for the components of a class in an image, once for an object's clicks, and 13 times."""
    step, waits, objects = nnUNetTrainerSemiSAM.semi_supervised_step, [], []

    def counted(trainer, *given):
        before = entered.waits
        outcome = step(trainer, *given)
        waits.append(entered.waits - before)
        objects.append(trainer.sam_assisted.labeler.stats["items"])
        return outcome

    monkeypatch.setattr(nnUNetTrainerSemiSAM, "semi_supervised_step", counted)
    section = short(terms=CONSTANT, num_iterations_per_epoch=3, sam=SAM)
    with accelerator() as entered:
        run(DEVICE, section, settings)
    assert len(waits) == 3 and min(objects) > 0
    assert all(0 < n <= 13 + 2 * count for n, count in zip(waits, objects, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: torch.zeros(2, dtype=torch.float64, device=DEVICE),
        lambda x: torch.tensor([1.0], dtype=torch.float64).to(DEVICE),
        lambda x: torch.as_tensor(torch.ones(2).double().numpy(), device=DEVICE),
        lambda x: x.double(),
        lambda x: x + torch.ones(3),
        lambda x: torch.where(x > 0, x, torch.ones(3)),
        lambda x: torch.rand(3, generator=torch.Generator(), device=DEVICE),
        lambda x: x.numpy(),
    ],
)
def test_the_make_believe_device_refuses(wrong):
    with accelerator(), pytest.raises((RuntimeError, TypeError)):
        wrong(torch.ones(3, device=DEVICE))


def test_the_make_believe_device_allows():
    with accelerator():
        x = torch.arange(3, device=DEVICE).float()
        x[torch.tensor([0])] = torch.tensor(5.0)
        x[[1, 2]] *= 2
        assert (x + torch.tensor(1.0)).tolist() == [6.0, 3.0, 5.0] and x.device == DEVICE
        x.view(3, 1)[2].copy_(torch.zeros(1))
        assert x.cpu().numpy().tolist() == [5.0, 2.0, 0.0]
