"""`torch.compile`, which nnU-Net switches on on CUDA only: here it is switched on on the CPU, as nnU-Net does it there.

The backend "eager" traces graphs, guards and recompiles, and runs what it has traced by the kernels of an uncompiled
network, so results must be equal to the last bit. "aot_eager", inside DDP, traces the gradient, too. "inductor" is the
compiler that CUDA has; its kernels on the CPU are others, and it takes over a minute: NNUNET_SEMISAM_LONG=1.
"""

import os
from functools import partial

import pytest
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_checkpoint import killed_in_second_epoch
from test_train_step import toy, trained  # noqa: F401 (a fixture)
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.utils import counters
from toy_trainer import build, short, weights

from nnunet_semisam.checkpoint import KEY
from nnunet_semisam.teacher import bare
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

# the tracer looks at every attribute of a tensor, and torch warns it of one
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

PLAIN_COMPILE = torch.compile
CONSTANT = {name: {"weight": 0.5, "schedule": "constant"} for name in ("consistency", "sam")}
SECTION = {"terms": CONSTANT, "num_iterations_per_epoch": 2, "unlabeled_batch_size": 3}  # sizes differ: a recompilation


@pytest.fixture
def compiling(monkeypatch):
    """`compiling(backend)` lets nnU-Net compile from here on; `compiling(None)` ends it."""

    def switch(backend):
        torch._dynamo.reset()
        counters.clear()
        monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: backend is not None)
        monkeypatch.setattr(torch, "compile", partial(PLAIN_COMPILE, backend=backend))

    known = hasattr(torch._dynamo.config, "fail_on_recompile_limit_hit")  # not in torch 2.5
    with torch._dynamo.config.patch({"fail_on_recompile_limit_hit": True} if known else {}):
        yield switch
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def vectors(trainer):
    """Student and teacher."""
    return weights(trainer), torch.cat([p.flatten() for p in trainer.teacher.network.parameters()])


@pytest.mark.parametrize(
    "backend, patch_size, tolerance",
    [
        ("eager", (16, 16, 16), 0),
        ("eager", (16, 16), 0),
        pytest.param(
            "inductor", (16, 16, 16), 1e-4,
            marks=pytest.mark.skipif(not os.environ.get("NNUNET_SEMISAM_LONG"), reason="over a minute"),
        ),
    ],
)  # fmt: skip
def test_compiled_training_ends_with_the_weights_of_an_uncompiled_one(
    toy, compiling, backend, patch_size, tolerance  # noqa: F811
):  # fmt: skip
    plain = trained(section=short(**SECTION), patch_size=patch_size)
    compiling(backend)
    ours = trained(section=short(**SECTION), patch_size=patch_size)
    assert isinstance(ours.network, OptimizedModule) and graphs() > 0
    assert not isinstance(ours.teacher.network, OptimizedModule)
    assert (
        isinstance(ours.teacher._forward, OptimizedModule) and ours.teacher._forward._orig_mod is ours.teacher.network
    )
    start = torch.cat([p.flatten() for p in _untrained(patch_size)])
    for one, other in zip(vectors(plain), vectors(ours), strict=True):
        assert (one - start).abs().max() > 0.01  # far more than the tolerance
        assert (one - other).abs().max() <= tolerance
    for name in ("checkpoint_final.pth", "checkpoint_final_teacher.pth"):
        content = torch.load(f"{ours.output_folder}/{name}", weights_only=True)
        assert content["network_weights"].keys() == bare(plain.network).state_dict().keys()
        assert not [key for key in content["network_weights"] if "_orig_mod" in key]
    content = torch.load(f"{ours.output_folder}/checkpoint_final.pth", weights_only=True)
    assert content[KEY]["teacher"].keys() == content["network_weights"].keys()


def _untrained(patch_size):
    built = build(nnUNetTrainerSemiSAM, short(**SECTION), patch_size=patch_size)
    built.initialize()
    return [p.detach() for p in built.network.parameters()]


@pytest.mark.parametrize("before, after", [("eager", None), (None, "eager")])
def test_either_continues_what_the_other_began(toy, compiling, monkeypatch, before, after):  # noqa: F811
    section = short(**SECTION, num_epochs=2)
    whole = trained(section=section)
    compiling(before)
    killed = killed_in_second_epoch(monkeypatch, section)
    assert isinstance(killed.network, OptimizedModule) is bool(before)
    compiling(after)
    resumed = build(nnUNetTrainerSemiSAM, section, continue_training=True)
    resumed.load_checkpoint(f"{killed.output_folder}/checkpoint_latest.pth")
    resumed.run_training()
    assert isinstance(resumed.network, OptimizedModule) is bool(after) is (graphs() > 0)
    assert all(torch.equal(*pair) for pair in zip(vectors(whole), vectors(resumed), strict=True))


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled:UserWarning")
def test_compiled_inside_ddp(toy, compiling, monkeypatch, tmp_path):  # noqa: F811
    """nnU-Net compiles first and wraps the result; one process is enough to meet both wrappers."""

    class OnTheCpu(nnUNetTrainerSemiSAM):
        def initialize(self):
            self.device, self.grad_scaler = torch.device("cpu"), None
            super().initialize()

    alone = trained(section=short(**SECTION))
    # nnU-Net gives the lowest output no weight here, and counts on the compiled gradient to reach its parameters anyway
    compiling("aot_eager")
    parallel = nnunet.DDP
    monkeypatch.setattr(nnunet, "DDP", lambda network, device_ids: parallel(network))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        ours = trained(OnTheCpu, section=short(**SECTION))
    finally:
        dist.destroy_process_group()
    assert isinstance(ours.network, parallel) and isinstance(ours.network.module, OptimizedModule) and graphs() > 0
    for one, other in zip(vectors(alone), vectors(ours), strict=True):
        assert (one - other).abs().max() <= 1e-4
    content = torch.load(f"{ours.output_folder}/checkpoint_final.pth", weights_only=True)
    assert content["network_weights"].keys() == content[KEY]["teacher"].keys() == ours.teacher.state_dict().keys()
    assert not [key for key in content["network_weights"] if key.startswith(("module.", "_orig_mod."))]
