"""What each of two processes does in tests; a module of its own, or started processes could not import it.

nnU-Net's `run_ddp` wants CUDA; the trainer here differs from a user's in its device alone.
"""

import os
import time

import torch
import torch.distributed as dist

from nnunet_semisam import collapse

RANKS = 2
SECTION = {
    "seed": 7, "num_epochs": 1, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 1,
    "sam": {"min_voxels": 4, "min_agreement": 0, "tune": 3}, "min_labeled_dice": 0.0,
}  # fmt: skip


def train(rank, root, more, checkpoint=None):
    """One rank, trained with the section and `more`; what it ends up with goes to `RANK.pt`.

    Args:
        checkpoint: file to go on from.
    """
    os.environ |= {f"nnUNet_{name}": f"{root}/nnUNet_{name}" for name in ("preprocessed", "results")}
    os.environ |= {"nnUNet_n_proc_DA": "0", "MASTER_ADDR": "127.0.0.1", "nnUNet_compile": "f", "MPLBACKEND": "Agg"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, init_method=f"file://{root}/meeting_point")
    collapse.WINDOW = 0.999  # alignment acts from the second iteration on
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet
    from toy_trainer import build

    from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

    parallel = nnunet.DDP
    nnunet.DDP = lambda network, device_ids: parallel(network)  # on the CPU there is no device to name

    class OnTheCpu(nnUNetTrainerSemiSAM):
        def initialize(self):
            self.device, self.grad_scaler = torch.device("cpu"), None
            super().initialize()

    trainer = build(OnTheCpu, SECTION | more, continue_training=checkpoint is not None)
    if checkpoint is not None:
        trainer.load_checkpoint(checkpoint)
    seen, losses, step = [], [], trainer.train_step
    trainer.train_step = lambda batch: losses.append(step(batch)["loss"].item()) or {"loss": losses[-1]}
    draw = trainer.method.student_view
    trainer.method.student_view = lambda batch, *more: seen.append(batch.image.clone()) or draw(batch, *more)
    asked, record = [], trainer.record
    trainer.record = lambda *args: asked.append("used_voxels/sam" in args[2]) or record(*args)
    kept, make = [], trainer.build_sam
    trainer.build_sam = lambda: kept.append(make()) or kept[-1]
    trainer.run_training()
    content = {
        "student": trainer.network.state_dict(), "teacher": trainer.teacher.state_dict(), "trust": trainer.trust,
        "asked": asked, "seen": torch.stack(seen) if seen else None,
        "seed": torch.initial_seed(), "iteration": trainer.iteration,
        "readiness": trainer.readiness.state_dict(), "losses": losses,
        "files": sorted(os.listdir(trainer.output_folder)),
        "tuned": [tensor for g in kept[0].labeler.backend.generalists.values()
                  for tensor in g.network.state_dict().values()],
    }  # fmt: skip
    torch.save(content, f"{root}/{rank}.pt")
    dist.destroy_process_group()


def bad_loss_in_one(rank, folder, results):
    """One of two processes; only the second one has a bad loss."""
    from nnunet_semisam import guards

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    losses = {"sam": torch.tensor(torch.nan if rank else 1.0), "supervised": torch.tensor(2.0)}
    _, shared = guards.fetch(
        losses, {"bad": guards.not_finite(losses), "more": torch.tensor([rank + 1.0])}, is_ddp=True
    )
    guard, lines = guards.StepGuard(9), []

    class Trainer:
        grad_scaler, is_ddp, local_rank, current_epoch = None, True, rank, 0
        network = torch.nn.Linear(1, 1)
        print_to_log_file = lines.append

    guard.begin(Trainer.network)
    allowed = guard.allows(Trainer, shared["bad"], list(losses), [f"case{rank}"])
    results.put((rank, allowed, guard.count, shared["more"], lines))
    dist.destroy_process_group()


def wait_for_the_first(rank, folder, fails, meeting, results):
    """One of two processes whose group loses patience after five seconds; the first one works for eight, or fails."""
    from datetime import timedelta

    from nnunet_semisam.ranks import on_first_rank

    class Trainer:
        is_ddp, local_rank = True, rank

    def work():
        time.sleep(8)
        if fails:
            raise OSError("disk full")
        return f"made by {rank}"

    try:
        meeting.wait(100)  # starting takes longer than the patience
        rendezvous = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=5))
        results.put((rank, on_first_rank(Trainer, work, "the work")))
    except Exception as error:
        results.put((rank, f"{type(error).__name__}: {error}"))
    results.close()
    results.join_thread()
    dist.destroy_process_group()
