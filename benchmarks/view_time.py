"""What does augmenting an unlabeled patch cost, with and without the view that nobody looks at?

    python benchmarks/view_time.py [--patch-size 128 128 128] [--repeats 24]

CPU seconds per patch of nnU-Net's training transforms of one channel: alone, as a labeled patch has them; giving two
views; and giving the weak view alone, as training has it unless `method_args.view` is "nnunet". The crop before is that
which nnU-Net takes for patches of this size, so that a turned patch is full.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semisam.data.transforms import TwoViewTransform, WeakViewTransform, geometry_of

TURN = (-np.pi / 6, np.pi / 6)  # nnU-Net's, in 3D


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch-size", type=int, nargs="+", default=[128, 128, 128])
    parser.add_argument("--repeats", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    axes = tuple(range(len(args.patch_size)))
    turn = TURN if len(axes) == 3 else (-np.pi, np.pi)
    crop = [int(side) for side in get_patch_size(np.array(args.patch_size), *[turn] * 3, (0.7, 1.4))]
    full = nnUNetTrainer.get_training_transforms(args.patch_size, turn, None, axes, False)
    made = {
        "labeled": full,
        "two views": TwoViewTransform(full),
        "the weak view": WeakViewTransform(geometry_of(full)),
    }
    print("| transforms | CPU seconds per patch | channels |\n|---|---|---|")
    for name, transform in made.items():
        seconds, channels = timed(transform, crop, args.repeats)
        print(f"| {name} | {seconds:.4f} | {channels} |", flush=True)


def timed(transform: Callable[..., dict], crop: list[int], repeats: int) -> tuple[float, int]:
    """CPU seconds per call, the same random numbers for all; and how many channels come out."""
    image, blank = torch.rand(1, *crop), torch.zeros(1, *crop, dtype=torch.int16)
    np.random.seed(0)
    torch.manual_seed(0)
    transform(image=image.clone(), segmentation=blank.clone())  # Gaussian blur chooses its kernel
    began = time.process_time()
    for _ in range(repeats):
        views = transform(image=image.clone(), segmentation=blank.clone())["image"]
    return (time.process_time() - began) / repeats, len(views)


if __name__ == "__main__":
    main()
