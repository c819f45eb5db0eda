"""Operations of the generalist per unlabeled patch: SemiSAM as published against this package, random weights.

    python benchmarks/generalist_flops.py [--patch-size 128 128 128] [--only NAME ...]

Published: SAM-Med3D shown the patch itself, 128^3, its attention windows padded; one encoding and ten clicks, each
decoded by itself, for every patch of the batch, of which 3 are unlabeled and 1 is labeled. Here: what the labeler asks
about a patch with two balls of two classes. Counted are matrix products and convolutions (`FlopCounterMode`).
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from unittest import mock

import numpy as np
import step_data
import torch
from med3d_cost import padded_attention
from published_semisam import CLICKS, LABELED, UNLABELED
from step_arms import built
from torch.utils.flop_counter import FlopCounterMode

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.sam.med3d import Med3D
from nnunet_semisam.sam.med3d.encoder import WindowAttention

OURS = {
    "embedded": {"backend": "embedded"},
    "sam_med3d": {"backend": "sam_med3d"},
    "sam_med3d, window patch": {"backend": "sam_med3d", "backend_args": {"window": "patch"}},
    "segment_anything, 8 planes of 448^2": {"backend": "segment_anything"},
}


@torch.no_grad()
def published() -> dict[str, float]:
    """Operations of one encoding, of one click, and of all that is done per unlabeled patch; nothing is computed."""
    with torch.device("meta"), mock.patch.object(WindowAttention, "forward", padded_attention):
        network = Med3D().eval()
        with FlopCounterMode(display=False) as encoding:
            features = network.encode(torch.zeros(1, 1, *[network.image_side] * 3))
        click, label = torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.int64)
        with FlopCounterMode(display=False) as decoding:
            network.decode(features, click, label, torch.zeros(1, 1, *[network.mask_side] * 3))
    once, each = encoding.get_total_flops(), decoding.get_total_flops()
    shown = (LABELED + UNLABELED) / UNLABELED
    return {"encoding": once, "click": each, "patch": once + CLICKS * each, "step": shown * (once + CLICKS * each)}


def ours(settings: dict, patch_size: Sequence[int]) -> tuple[float, int]:
    """Operations for one patch, and how many objects were asked about."""
    config = SamConfig(**settings)
    labeler = SamLabeler(built(config, torch.device("cpu"), (1.5,) * 3), config, OutputSpace(3))
    image = torch.from_numpy(step_data.ball_patch(patch_size, np.random.default_rng(0)))[None]
    with FlopCounterMode(display=False) as counter:
        labeler(image, step_data.seen_in(image), 0)
    return counter.get_total_flops(), int(labeler.stats["items"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch-size", type=int, nargs=3, default=[128, 128, 128], metavar="SIDE")
    parser.add_argument("--only", nargs="+", choices=list(OURS), default=list(OURS))
    args = parser.parse_args()
    yardstick = published()
    print("| generalist | objects | GFLOP per unlabeled patch | published step / this |\n|---|---|---|---|")
    for name, what in (("this patch alone", "patch"), ("share of the labeled patch added", "step")):
        print(_row(f"SemiSAM as published, {name}", 1, yardstick[what], yardstick["step"]), flush=True)
    for name in args.only:
        with contextlib.suppress(ModuleNotFoundError):
            operations, objects = ours(OURS[name], args.patch_size)
            print(_row(name, objects, operations, yardstick["step"]), flush=True)
    print(f"\nPublished: encoding {yardstick['encoding'] / 1e9:.1f}, each click {yardstick['click'] / 1e9:.2f} GFLOP")


def _row(name: str, objects: int, operations: float, yardstick: float) -> str:
    return f"| {name} | {objects} | {operations / 1e9:.1f} | {yardstick / operations:.1f} |"


if __name__ == "__main__":
    main()
