"""The image encoder of SAM-Med3D: a vision transformer over 16^3 patches with windowed and global attention.

Relative positions, as published and as the weights were trained: with a query at (d, h, w) and a key at (i, j, k), the
attention logit gets

    q(d, h, w) . R_d[d - k]  +  q(d, h, i) . R_h[h - k]  +  q(d, h, j) . R_w[j - k].

A decomposed term would be q . R_d[d - i] + q . R_h[h - j] + q . R_w[w - k] (MViTv2, Li et al., CVPR 2022,
https://arxiv.org/abs/2112.01526); in the published code the axes of its second and third table are broadcast otherwise.

Padding. The windows are larger than the grid (14 against 8) and the rest of a window is padding, 2232 of 2744 tokens.
All padding tokens have the same key and value, the bias of the projection. So only their number and their relative
positions matter, and the last two terms above do not mix i with j: the padding's share of the softmax has a closed
form, and enters as one more key. The result is that of the padded window, at the price of the tokens that exist.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PATCH = 16


class ImageEncoder(nn.Module):
    """(V, 1, 16 G, 16 G, 16 G) to (V, E, G, G, G). `windows`: side of each block's attention window, 0 for global."""

    def __init__(self, grid: int, width: int, *, heads: int, windows: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(1, width, PATCH, stride=PATCH)})
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, width))
        self.blocks = nn.ModuleList(Block(width, heads, grid=grid, span=window or grid) for window in windows)
        self.neck = nn.Sequential(
            nn.Conv3d(width, out, 1, bias=False),
            ChannelNorm(out),
            nn.Conv3d(out, out, 3, padding=1, bias=False),
            ChannelNorm(out),
        )

    def forward(self, image: Float[Tensor, "V 1 I I I"]) -> Float[Tensor, "V E G G G"]:
        tokens = self.patch_embed["proj"](image).movedim(1, -1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.neck(tokens.movedim(-1, 1))


class Block(nn.Module):
    """Attention and MLP, each after a norm and around a shortcut."""

    def __init__(self, width: int, heads: int, *, grid: int, span: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = WindowAttention(width, heads, grid=grid, span=span)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, nn.GELU())

    def forward(self, tokens: Float[Tensor, "V G G G C"]) -> Float[Tensor, "V G G G C"]:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class WindowAttention(nn.Module):
    """Attention of a grid of tokens in the corner of a window of side `span`, the rest of which is padding."""

    def __init__(self, width: int, heads: int, *, grid: int, span: int) -> None:
        super().__init__()
        if span < grid:
            raise ValueError(
                f"an attention window of {span} tokens for a grid of {grid}: give a window of {grid} or more"
            )
        self.heads, self.grid, self.span = heads, grid, span
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_d, self.rel_pos_h, self.rel_pos_w = (
            nn.Parameter(torch.zeros(2 * span - 1, width // heads)) for _ in range(3)
        )

    def forward(self, tokens: Float[Tensor, "V G G G C"]) -> Float[Tensor, "V G G G C"]:
        parts = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(4, 0, 5, 1, 2, 3, 6)
        query, key, value = parts  # (V, heads, G, G, G, c)
        blank = self.qkv.bias.to(parts.dtype).unflatten(0, (3, self.heads, -1))  # what padding projects to
        bias, padding = self._positions(query, blank[0])
        key, value = key.flatten(2, 4), value.flatten(2, 4)
        if padding is not None:
            key, value = (_with(part, extra) for part, extra in ((key, blank[1]), (value, blank[2])))
            bias = torch.cat([bias, padding], dim=-1)
        mixed = F.scaled_dot_product_attention(query.flatten(2, 4), key, value, attn_mask=bias.to(query.dtype))
        return self.proj(mixed.transpose(1, 2).reshape(tokens.shape))

    def _positions(
        self, query: Float[Tensor, "V n G G G c"], blank: Float[Tensor, "n c"]
    ) -> tuple[Float[Tensor, "V n T T"], Float[Tensor, "V n T 1"] | None]:
        """What relative positions add to the logits of the real keys, and the log-mass of the padding."""
        grid, span = self.grid, self.span
        filler = blank[None, :, None, None, None].expand(*query.shape[:4], span - grid, -1)
        rows = torch.cat([query, filler], dim=4)  # the queries of a whole row of the window
        own = torch.einsum("vndhwc,dkc->vndhwk", query, _table(self.rel_pos_d)[:grid])
        first = torch.einsum("vndhic,hkc->vndhik", rows, _table(self.rel_pos_h)[:grid])
        second = torch.einsum("vndhjc,jkc->vndhjk", rows, _table(self.rel_pos_w))
        bias = own[..., None, None, :grid] + (
            first[:, :, :, :, None, :grid, None, :grid] + second[:, :, :, :, None, None, :grid, :grid]
        )  # (V, n, d, h, w, i, j, k)
        bias = bias.flatten(5).flatten(2, 4)
        return bias, None if span == grid else _padding_mass(own, first, second, grid).flatten(2, 4)[..., None]


class Mlp(nn.Module):
    """Two layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.lin1, self.lin2, self.activation = nn.Linear(width, hidden), nn.Linear(hidden, width), activation

    def forward(self, tokens: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        return self.lin2(self.activation(self.lin1(tokens)))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a volume."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, volume: Float[Tensor, "V C *G"]) -> Float[Tensor, "V C *G"]:
        return super().forward(volume.movedim(1, -1)).movedim(-1, 1)


def _padding_mass(
    own: Float[Tensor, "V n d h w k"],
    first: Float[Tensor, "V n d h i k"],
    second: Float[Tensor, "V n d h j k"],
    grid: int,
) -> Float[Tensor, "V n d h w"]:
    """log of the sum over all padding keys (i, j, k) of exp(own[w, k] + first[i, k] + second[j, k]).

    A key with k in the grid is padding where i is beyond it, or i is not but j is; beyond the grid every key is.
    """
    of_i, real_i, beyond_i = _masses(first, grid)
    of_j, _, beyond_j = _masses(second, grid)
    inner = torch.logaddexp(beyond_i + of_j, real_i + beyond_j)[..., :grid]
    per_key = torch.cat([inner, (of_i + of_j)[..., grid:]], dim=-1)
    return (own + per_key[:, :, :, :, None]).logsumexp(-1)


def _masses(terms: Float[Tensor, "V n d h i k"], grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """log-sum-exp over i: of all, of those in the grid, of those beyond it."""
    real, beyond = terms[..., :grid, :].logsumexp(-2), terms[..., grid:, :].logsumexp(-2)
    return torch.logaddexp(real, beyond), real, beyond


def _table(relative: Float[Tensor, "L c"]) -> Float[Tensor, "S S c"]:
    """The entry for every query and key of an axis: distance -(S - 1) is the first of the L = 2 S - 1."""
    places = torch.arange((len(relative) + 1) // 2, device=relative.device)
    return relative[places[:, None] - places + len(places) - 1]


def _with(tokens: Float[Tensor, "V n T c"], extra: Float[Tensor, "n c"]) -> Float[Tensor, "V n T+1 c"]:
    return torch.cat([tokens, extra[None, :, None].expand(len(tokens), -1, -1, -1)], dim=2)
