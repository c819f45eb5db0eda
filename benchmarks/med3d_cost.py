"""What SAM-Med3D's image encoder costs, with the padding of its attention windows in closed form and spelled out.

    python benchmarks/med3d_cost.py [--repeat 3]

Random weights, one window of 128^3 voxels, one thread. Prints operations, seconds and the difference of the two.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nnunet_semisam.sam.med3d import Med3D
from nnunet_semisam.sam.med3d.encoder import WindowAttention, _table


def padded_attention(attention: WindowAttention, tokens: Tensor) -> Tensor:
    """Attention among all tokens of the window, most of which are padding, as published."""
    grid, span = attention.grid, attention.span
    window = F.pad(tokens, (0, 0, *(0, span - grid) * 3))
    query, key, value = attention.qkv(window).unflatten(-1, (3, attention.heads, -1)).permute(4, 0, 5, 1, 2, 3, 6)
    logits = query.flatten(2, 4) @ key.flatten(2, 4).transpose(-1, -2) / key.shape[-1] ** 0.5
    logits = logits.view(*query.shape[:5], span, span, span)
    tables = [_table(table) for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)]
    logits += torch.einsum("vndhwc,dkc->vndhwk", query, tables[0])[..., None, None, :]
    logits += torch.einsum("vndhic,hkc->vndhik", query, tables[1])[:, :, :, :, None, :, None]
    logits += torch.einsum("vndhjc,jkc->vndhjk", query, tables[2])[:, :, :, :, None, None]
    mixed = logits.flatten(5).flatten(2, 4).softmax(-1) @ value.flatten(2, 4)
    mixed = mixed.unflatten(2, (span, span, span)).permute(0, 2, 3, 4, 1, 5).flatten(4)
    return attention.proj(mixed)[:, :grid, :grid, :grid]


def random_network() -> Med3D:
    torch.manual_seed(0)
    network = Med3D().eval()
    for name, parameter in network.named_parameters():
        if "pos" in name or name.endswith("qkv.bias"):  # zero, or nearly so, at birth
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@torch.no_grad()
def measure(network: Med3D, image: Tensor, repeat: int) -> tuple[Tensor, float, float]:
    """Features, GFLOP, and the best of `repeat` times in seconds."""
    with FlopCounterMode(display=False) as counter:
        features = network.encode(image)
    seconds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        network.encode(image)
        seconds.append(time.perf_counter() - begin)
    return features, counter.get_total_flops() / 1e9, min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many times is printed")
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    network, image = random_network(), torch.randn(1, 1, 128, 128, 128)
    features, operations, seconds = measure(network, image, repeat)
    with mock.patch.object(WindowAttention, "forward", padded_attention):
        expected, padded_operations, padded_seconds = measure(network, image, repeat)
    print(f"padding in closed form: {operations:6.1f} GFLOP, {seconds:6.2f} s")
    print(f"padding spelled out:    {padded_operations:6.1f} GFLOP, {padded_seconds:6.2f} s")
    print(f"largest difference:     {(features - expected).abs().max():.1e} on values up to {expected.abs().max():.1f}")


if __name__ == "__main__":
    main()
