"""Means that might make a step cheaper and are not in it: what would each give, by itself?

    OMP_WAIT_POLICY=passive python benchmarks/means.py --patch-size 64 64 64 [--features 8 16 32 32] [--device cuda]

Each row has two ways of the same work that take turns: as it is, and instead. Random images and weights, two labeled
and two unlabeled patches; the loss of the student's row is the mean square of its output. Compiled is by inductor.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import step_data
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from step_parts import clock
from torch import Tensor, nn

from nnunet_semisam.sam.embedded import load_generalists
from nnunet_semisam.sam.embedded.network import INPUTS
from nnunet_semisam.sam.med3d import Med3D

Work = Callable[[], object]
PATCHES, OBJECTS = 2, 4
KEEP = 1.0  # log-odds in favour of the prompt, the default of the embedded generalist


def network_of(patch_size: list[int], features: list[int], device: torch.device) -> nn.Module:
    """nnU-Net's plain U-Net for three classes."""
    parts = step_data.architecture(len(patch_size), features)
    arguments = (parts["network_class_name"], parts["arch_kwargs"], parts["_kw_requires_import"])
    return get_network_from_plans(*arguments, 1, 3, deep_supervision=False).to(device)


def student_passes(network: nn.Module, patch_size: list[int], device: torch.device) -> tuple[Work, Work]:
    """Two passes, one after the other, and one pass of all patches; forth and back."""
    labeled, unlabeled = torch.randn(2, PATCHES, 1, *patch_size, device=device)

    def passed(*batches: Tensor) -> None:
        network.zero_grad(set_to_none=True)
        for batch in batches:
            network(batch).float().square().mean().backward()

    return lambda: passed(labeled, unlabeled), lambda: passed(torch.cat([labeled, unlabeled]))


def compiled(network: nn.Module, *inputs: object) -> tuple[Work, Work]:
    """Its forward pass without gradient, eager and compiled."""
    faster = torch.compile(network)

    def of(one: Callable) -> Work:
        return torch.no_grad()(lambda: one(*inputs))

    return of(network), of(faster)


def encoded(device: torch.device) -> tuple[Work, Work]:
    """SAM-Med3D's encoder on one window, in single precision and in bfloat16."""
    sam = Med3D().to(device).eval()
    window = torch.randn(1, 1, *[sam.image_side] * 3, device=device)

    @torch.no_grad()
    def encode(*, half: bool) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return sam.encode(window)

    return lambda: encode(half=False), lambda: encode(half=True)


def pairs(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, tuple[Work, Work]]]:
    """The rows: name, as it is, instead."""
    network = network_of(args.patch_size, args.features, device)
    patches = torch.randn(PATCHES, 1, *args.patch_size, device=device)
    yield "student: two passes / one of both batches", student_passes(network, args.patch_size, device)
    yield "teacher: eager / compiled", compiled(network.eval(), patches)
    generalist = load_generalists(None)[len(args.patch_size)]
    seen = torch.randn(OBJECTS, INPUTS, *[generalist.grid] * len(args.patch_size), device=device)
    yield "embedded generalist: eager / compiled", compiled(generalist.network.to(device).eval(), seen, KEEP)
    if len(args.patch_size) == 3:
        yield "SAM-Med3D's encoder: single precision / bfloat16", encoded(device)


def seconds(ways: tuple[Work, Work], device: torch.device, rounds: int) -> list[float]:
    """Medians of both ways; they take turns."""
    read, took = clock(device), ([], [])
    for number in range(rounds + 2):
        for way, times in zip(ways, took, strict=True):
            begin = read()
            way()
            if number >= 2:
                times.append(read() - begin)
    return [statistics.median(times) for times in took]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch-size", type=int, nargs="+", default=[64, 64, 64], metavar="SIDE")
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 32], help="channels per stage")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--rounds", type=int, default=7, help="after two to warm up")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print("| as it is / instead | s | s | instead, of it |\n|---|---|---|---|")
    for name, ways in pairs(args, device):
        plain, other = seconds(ways, device, args.rounds)
        print(f"| {name} | {plain:.4f} | {other:.4f} | {other / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
