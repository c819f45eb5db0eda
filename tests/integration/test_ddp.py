"""Two processes train together, as with `-num_gpus 2`, but on the CPU: gloo in NCCL's place.

nnU-Net's `run_ddp` wants CUDA; the trainer here differs from a user's in its device alone. A run on GPUs is not part
of the tests.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2
SECTION = {
    "seed": 7, "num_epochs": 1, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 1,
    "sam": {"min_voxels": 4, "min_agreement": 0, "tune": 3},
}  # fmt: skip


def train(rank, root, folder):
    """One rank; what it ends up with goes to `RANK.pt`."""
    sys.path.insert(0, folder)
    os.environ |= {f"nnUNet_{name}": f"{root}/nnUNet_{name}" for name in ("preprocessed", "results")}
    os.environ |= {"nnUNet_n_proc_DA": "0", "MASTER_ADDR": "127.0.0.1", "nnUNet_compile": "f", "MPLBACKEND": "Agg"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, init_method=f"file://{root}/meeting_point")
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet
    from toy_trainer import build

    from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

    parallel = nnunet.DDP
    nnunet.DDP = lambda network, device_ids: parallel(network)  # on the CPU there is no device to name

    class OnTheCpu(nnUNetTrainerSemiSAM):
        def initialize(self):
            self.device, self.grad_scaler = torch.device("cpu"), None
            super().initialize()

    trainer = build(OnTheCpu, SECTION)
    seen, losses, step = [], [], trainer.train_step
    trainer.train_step = lambda batch: losses.append(step(batch)["loss"].item()) or {"loss": losses[-1]}
    draw = trainer.method.student_view
    trainer.method.student_view = lambda batch: seen.append(batch.image.clone()) or draw(batch)
    trainer.run_training()
    content = {
        "student": trainer.network.state_dict(), "teacher": trainer.teacher.state_dict(), "trust": trainer.trust,
        "seen": torch.stack(seen), "losses": losses, "files": sorted(os.listdir(trainer.output_folder)),
        "tuned": [tensor for g in trainer.sam_assisted.labeler.backend.generalists.values()
                  for tensor in g.network.state_dict().values()],
    }  # fmt: skip
    torch.save(content, f"{root}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_train_one_network(tmp_path):
    from toy_trainer import write_preprocessed

    write_preprocessed(tmp_path / "nnUNet_preprocessed")
    mp.spawn(train, (str(tmp_path), str(Path(__file__).parents[1])), nprocs=RANKS)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(RANKS))
    for name in ("student", "teacher"):
        assert all(torch.equal(one[name][key], two[name][key]) for key in one[name]), name
    assert one["trust"] == two["trust"]
    assert all(torch.equal(a, b) for a, b in zip(one["tuned"], two["tuned"], strict=True))
    assert len(one["seen"]) == 4 and not torch.equal(one["seen"], two["seen"])  # each rank has its own patches
    assert all(torch.isfinite(torch.tensor(rank["losses"])).all() for rank in (one, two))
    assert {"checkpoint_final.pth", "checkpoint_final_teacher.pth", "semisam.json", "semisam_tuned.pt"} <= {
        *one["files"]
    }
