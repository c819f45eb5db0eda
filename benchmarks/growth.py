"""How a step grows: operations, and the generalist's seconds, against patch size, number of classes, number of planes.

    python benchmarks/growth.py [--only patches classes planes] [--repeats 5] [--threads 1]

Networks are nnU-Net's plain U-Net of its usual sizes, with deep supervision; their operations are counted on the "meta"
device, so nothing is computed: a labeled patch is one forward and one backward pass of the student, an unlabeled one
the same and a forward pass of the teacher. The embedded generalist runs really, on noise in which a made-up teacher
sees one ball per class, so that it is asked about as many objects as there are classes. Counted are matrix products
and convolutions (`FlopCounterMode`). segment_anything is ViT-B with random weights: its cost is right.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import step_data
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from step_arms import built
from torch.utils.flop_counter import FlopCounterMode

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.labeler import SamLabeler

FEATURES = {2: [32, 64, 128, 256, 512, 512, 512, 512], 3: [32, 64, 128, 256, 320, 320]}
PATCHES = {3: (32, 64, 96, 128, 160), 2: (128, 256, 512, 1024)}
SMALLEST = 4  # voxels across in the last stage, as nnU-Net plans it
CLASSES = (1, 2, 4, 8, 16)
PLANES = (2, 4, 8, 16)


def network_operations(patch_size: Sequence[int], classes: int) -> tuple[int, int]:
    """Of a forward and of a backward pass for one patch."""
    ndim = len(patch_size)
    stages = 1 + int(np.log2(min(patch_size) / SMALLEST))
    plan = step_data.architecture(ndim, FEATURES[ndim][:stages])
    names = plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"]
    with torch.device("meta"):
        network = get_network_from_plans(*names, 1, classes + 1, allow_init=False, deep_supervision=True)
        with FlopCounterMode(display=False) as forward:
            outputs = network(torch.zeros(1, 1, *patch_size))
        with FlopCounterMode(display=False) as backward:
            sum(output.sum() for output in outputs[:-1]).backward()  # the lowest one has no part in nnU-Net's loss
    return forward.get_total_flops(), backward.get_total_flops()


def patch_with(classes: int, patch_size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (1, 1, *patch_size), and probabilities (1, classes + 1, *patch_size) with one ball per class on a grid."""
    rng, ndim = np.random.default_rng(0), len(patch_size)
    across = int(np.ceil(classes ** (1 / ndim)))
    evidence = np.zeros((1, classes + 1, *patch_size), dtype=np.float32)
    for index in range(classes):
        cell = np.unravel_index(index, [across] * ndim)
        centre = [(place + 0.5) * side / across for place, side in zip(cell, patch_size, strict=True)]
        offsets = np.ix_(*[np.arange(side) - middle for side, middle in zip(patch_size, centre, strict=True)])
        inside = sum(offset**2 for offset in offsets) < (0.3 * min(patch_size) / across) ** 2
        evidence[0, index + 1] = 12.0 * inside - 6.0
    image = torch.from_numpy(rng.standard_normal((1, 1, *patch_size), dtype=np.float32))
    return image, torch.from_numpy(evidence).softmax(1)


def generalist(settings: dict, classes: int, patch_size: Sequence[int], repeats: int) -> tuple[float, float, int]:
    """Operations and median seconds for one patch, and how many objects were asked about."""
    config = SamConfig(**settings)
    labeler = SamLabeler(built(config, torch.device("cpu"), (1.0,) * len(patch_size)), config, OutputSpace(classes + 1))
    image, prob = patch_with(classes, patch_size)
    with FlopCounterMode(display=False) as counter:
        labeler(image, prob, 0)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        labeler(image, prob, 0)
        seconds.append(time.perf_counter() - start)
    took = statistics.median(seconds) if seconds else float("nan")
    return counter.get_total_flops(), took, int(labeler.stats["items"])


def patches(repeats: int) -> None:
    print("| patch | GFLOP per patch: labeled | unlabeled | generalist | mean teacher / stock | SemiSAM / mean teacher "
          "| generalist, s per patch |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for ndim, sides in PATCHES.items():
        for side in sides:
            size = (side,) * ndim
            forward, backward = network_operations(size, 2)
            asked, seconds, _ = generalist({"backend": "embedded"}, 2, size, repeats)
            stock, teacher = forward + backward, 3 * forward + 2 * backward
            print(f"| {side}^{ndim} | {stock / 1e9:.1f} | {(forward + stock) / 1e9:.1f} | {asked / 1e9:.1f} | "
                  f"{teacher / stock:.2f} | {1 + asked / teacher:.3f} | {seconds:.3f} |", flush=True)  # fmt: skip


def classes(repeats: int) -> None:
    print("| classes | objects | generalist, GFLOP per patch | s per patch | network, both patches, GFLOP "
          "| generalist's share |\n|---|---|---|---|---|---|")  # fmt: skip
    for count in CLASSES:
        asked, seconds, objects = generalist({"backend": "embedded"}, count, (64, 64, 64), repeats)
        forward, backward = network_operations((64, 64, 64), count)
        network = 3 * forward + 2 * backward
        print(f"| {count} | {objects} | {asked / 1e9:.1f} | {seconds:.3f} | {network / 1e9:.1f} | "
              f"{asked / (asked + network):.1%} |", flush=True)  # fmt: skip


def planes(repeats: int) -> None:
    del repeats  # seconds of ViT-B on a CPU tell nothing
    print("| planes | objects | segment_anything, GFLOP per patch |\n|---|---|---|")
    for count in PLANES:
        asked, _, objects = generalist({"backend": "segment_anything", "planes": count}, 2, (64, 64, 64), 0)
        print(f"| {count} | {objects} | {asked / 1e9:.1f} |", flush=True)


TABLES = {"patches": patches, "classes": classes, "planes": planes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.only:
        TABLES[name](args.repeats)
        print()


if __name__ == "__main__":
    main()
