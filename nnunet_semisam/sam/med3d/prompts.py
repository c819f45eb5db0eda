"""The prompt encoder of SAM-Med3D: clicks and a coarse mask. It has no code for boxes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nnunet_semisam.sam.med3d.encoder import PATCH, ChannelNorm

MASK_CHANNELS = 16


class PromptEncoder(nn.Module):
    """Tokens for clicks; `mask_downscaling` makes the code of a mask, a field over the grid.

    `no_mask_embed` is in the checkpoint but was not trained: the authors always give a mask, of zeros at first.
    """

    def __init__(self, grid: int, embed: int) -> None:
        super().__init__()
        self.grid = grid
        self.pe_layer = PositionCode(embed // 3)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed) for _ in range(2))  # outside, inside
        self.not_a_point_embed = nn.Embedding(1, embed)
        self.no_mask_embed = nn.Embedding(1, embed)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, MASK_CHANNELS // 4, 2, stride=2),
            ChannelNorm(MASK_CHANNELS // 4),
            nn.GELU(),
            nn.Conv3d(MASK_CHANNELS // 4, MASK_CHANNELS, 2, stride=2),
            ChannelNorm(MASK_CHANNELS),
            nn.GELU(),
            nn.Conv3d(MASK_CHANNELS, embed, 1),
        )

    def points(self, coords: Float[Tensor, "P N 3"], labels: Int64[Tensor, "P N"]) -> Float[Tensor, "P T E"]:
        """One token per click and, as in training, one that is no click; no token at all without any click."""
        if not coords.shape[1]:
            return coords.new_zeros(len(coords), 0, self.not_a_point_embed.embedding_dim)
        table = torch.cat([self.not_a_point_embed.weight, *self.point_embeddings.parameters()])
        code = self.pe_layer((coords + 0.5) / (PATCH * self.grid)) * (labels >= 0)[..., None]
        blank = table[0].expand(len(coords), 1, -1)
        return torch.cat([code + table[labels + 1], blank], dim=1)

    def grid_code(self) -> Float[Tensor, "1 E G G G"]:
        """Position code of the image tokens. Their first two axes are swapped, unlike those of clicks: as published."""
        device = self.pe_layer.positional_encoding_gaussian_matrix.device
        places = (torch.arange(self.grid, device=device) + 0.5) / self.grid
        first, second, third = torch.meshgrid(places, places, places, indexing="ij")
        return self.pe_layer(torch.stack([second, first, third], dim=-1)).movedim(-1, 0)[None]


class PositionCode(nn.Module):
    """Random Fourier features of positions in 0..1; the sines appear twice, to fill a multiple of three."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, features))

    def forward(self, places: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N E"]:
        angle = 2 * math.pi * ((2 * places - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)
