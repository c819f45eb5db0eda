"""SAM-Med3D's network: the layout of its checkpoints, the published numbers, and the closed form of the padding."""

from __future__ import annotations

import hashlib

import pytest
import torch

from nnunet_semisam.sam.med3d import Med3D, layout, load_weights
from nnunet_semisam.sam.med3d.encoder import WindowAttention, _table

# sha256 over the sorted lines "key:shape" of the published code: medim 0.1.2, create_model("SAM-Med3D")
PUBLISHED_LAYOUT = "d07f0d7d122b7add6e58cb79bfa567b7cef2646dc2f54d7f3b91988097231853"


def digest(network):
    lines = "\n".join(f"{name}:{shape}" for name, shape in sorted(layout(network).items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def noise(count, phase):
    """Numbers in -2 .. 2 that look random and need no generator."""
    place = torch.arange(count, dtype=torch.float64)
    return 2 * torch.frac(torch.sin(12.9898 * place + 78.233 * (phase + 1)) * 43758.5453)


def fill(network):
    """Weights that need no file."""
    for number, (name, value) in enumerate(sorted(network.state_dict().items())):
        lifted = name.endswith(("norm1.weight", "norm2.weight", "norm3.weight"))
        value.copy_(0.2 * noise(value.numel(), number).view(value.shape) + lifted)
    return network.eval()


def some(values):
    return values.flatten()[:: values.numel() // 6][:6]


def test_the_layout_is_the_published_one():
    with torch.device("meta"):
        network = Med3D()
    assert digest(network) == PUBLISHED_LAYOUT
    assert sum(p.numel() for p in network.parameters()) == 100_509_232


@torch.no_grad()
def test_numbers_of_the_published_code():
    """A small network of the same build, filled with `noise`; numbers by medim 0.1.2 with the same weights."""
    network = Med3D(grid=2, width=24, depth=2, heads=2, window=14, global_blocks=(1,), embed=48)
    features = fill(network).encode(noise(32**3, 0).view(1, 1, 32, 32, 32).float())
    expected = torch.tensor([0.11876, 0.50321, -0.39111, 0.36882, -0.28983, 0.33084])
    assert torch.allclose(some(features), expected, atol=2e-5)
    points = torch.tensor([[[3.0, 20.0, 9.0], [25.0, 8.0, 14.0]]])
    prompt = 3 * noise(512, 1).view(1, 1, 8, 8, 8).float()
    masks, quality = network.decode(features, points, torch.tensor([[1, 0]]), prompt)
    expected = torch.tensor([-0.23245, -0.19461, 0.21754, 0.33631, 0.34715, -0.11891])
    assert torch.allclose(some(masks), expected, atol=2e-5)
    assert torch.allclose(quality[0], torch.tensor([-1.65631, 1.76326, 0.71545, -0.31788]), atol=2e-5)


def padded_attention(attention, tokens):
    """The same, spelled out: every token of the window, one query and one key at a time in the position terms."""
    span, heads = attention.span, attention.heads
    pad = span - tokens.shape[1]
    window = torch.nn.functional.pad(tokens, (0, 0, 0, pad, 0, pad, 0, pad))
    query, key, value = attention.qkv(window).unflatten(-1, (3, heads, -1)).permute(4, 0, 5, 1, 2, 3, 6)
    tables = [_table(table) for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)]
    logits = torch.einsum("vndhwc,vnijkc->vndhwijk", query, key) / key.shape[-1] ** 0.5
    for d in range(span):
        for h in range(span):
            row = query[:, :, d, h]  # (V, n, w, c)
            for k in range(span):
                logits[:, :, d, h, :, :, :, k] += (row @ tables[0][d, k])[..., None, None]
                logits[:, :, d, h, :, :, :, k] += (row @ tables[1][h, k])[:, :, None, :, None]
                for j in range(span):
                    logits[:, :, d, h, :, :, j, k] += (row[:, :, j] @ tables[2][j, k])[..., None, None]
    mixed = torch.einsum("vndhwt,vntc->vdhwnc", logits.flatten(5).softmax(-1), value.flatten(2, 4)).flatten(4)
    return attention.proj(mixed)[:, : tokens.shape[1], : tokens.shape[2], : tokens.shape[3]]


@pytest.mark.parametrize("grid, span", [(2, 3), (3, 5), (3, 3)])
@torch.no_grad()
def test_padding_in_closed_form_is_the_padded_window(grid, span):
    torch.manual_seed(0)
    attention = WindowAttention(12, 2, grid=grid, span=span).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, grid, grid, grid, 12, dtype=torch.float64)
    assert torch.allclose(attention(tokens), padded_attention(attention, tokens), atol=1e-10)


@torch.no_grad()
def test_half_precision_changes_little(kit):
    network, image = kit.med3d(), torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = network.encode(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network.encode(image)
    assert (rough.float() - exact).std() < 0.05 * exact.std()


def test_a_grid_that_does_not_fit_its_window_is_refused():
    with pytest.raises(ValueError, match="window of 2 tokens for a grid of 3"):
        WindowAttention(12, 2, grid=3, span=2)


def test_other_weights_are_refused_by_name(kit):
    network = kit.med3d()
    weights = network.state_dict()
    weights["image_encoder.pos_embed"] = weights["image_encoder.pos_embed"][:, :1]
    weights["stranger"] = weights.pop("mask_decoder.iou_token.weight")
    with pytest.raises(ValueError) as refused:
        load_weights(network, weights)
    text = str(refused.value)
    assert "missing: mask_decoder.iou_token.weight" in text and "unexpected: stranger" in text
    assert "image_encoder.pos_embed (1, 1, 2, 2, 24) instead of (1, 2, 2, 2, 24)" in text
    with pytest.raises(ValueError, match="missing: image_encoder.pos_embed, .* and [0-9]+ more"):
        load_weights(network, {})


def test_weights_come_back(kit):
    network, other = kit.med3d(), kit.med3d()
    weights = {name: value + 1 for name, value in network.state_dict().items()}
    load_weights(other, weights)
    assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())
