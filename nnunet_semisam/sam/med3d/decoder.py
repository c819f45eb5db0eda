"""The mask decoder of SAM-Med3D: tokens and image attend to each other, then each mask token is read out as a mask.

The two-way transformer is that of Segment Anything (Kirillov et al., ICCV 2023, https://arxiv.org/abs/2304.02643).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nnunet_semisam.sam.med3d.encoder import ChannelNorm, Mlp

MASKS = 4


class MaskDecoder(nn.Module):
    """Image embedding with the mask prompt added, its position code, and prompt tokens to masks and their IoU."""

    def __init__(self, embed: int, *, heads: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(embed, heads, hidden[0])
        self.iou_token = nn.Embedding(1, embed)
        self.mask_tokens = nn.Embedding(MASKS, embed)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(embed, embed // 4, 2, stride=2),
            ChannelNorm(embed // 4),
            nn.GELU(),
            nn.ConvTranspose3d(embed // 4, embed // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Head(embed, embed, embed // 8) for _ in range(MASKS))
        self.iou_prediction_head = Head(embed, hidden[1], MASKS)

    def forward(
        self,
        source: Float[Tensor, "P E G G G"],
        positions: Float[Tensor, "1 E G G G"],
        sparse: Float[Tensor, "P T E"],
    ) -> tuple[Float[Tensor, "P 4 M M M"], Float[Tensor, "P 4"]]:
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(len(source), -1, -1)
        image, places = (volume.flatten(2).transpose(1, 2) for volume in (source, positions))
        tokens, image = self.transformer(torch.cat([own, sparse], dim=1), image, places)
        features = self.output_upscaling(image.transpose(1, 2).reshape(source.shape))
        kernels = [head(tokens[:, 1 + number]) for number, head in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.einsum("pme,pedhw->pmdhw", torch.stack(kernels, dim=1), features)
        return masks, self.iou_prediction_head(tokens[:, 0])


class TwoWayTransformer(nn.Module):
    """Two layers, and a last look of the tokens at the image."""

    def __init__(self, embed: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(embed, heads, hidden, first=number == 0) for number in range(2))
        self.final_attn_token_to_image = Attention(embed, heads, reduction=2)
        self.norm_final_attn = nn.LayerNorm(embed)

    def forward(
        self, prompts: Float[Tensor, "P T E"], image: Float[Tensor, "P I E"], places: Float[Tensor, "1 I E"]
    ) -> tuple[Float[Tensor, "P T E"], Float[Tensor, "P I E"]]:
        tokens = prompts
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompts, places)
        seen = self.final_attn_token_to_image(tokens + prompts, image + places, image)
        return self.norm_final_attn(tokens + seen), image


class TwoWayLayer(nn.Module):
    """Tokens among themselves, tokens at the image, an MLP, and the image at the tokens."""

    def __init__(self, embed: int, heads: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first  # its tokens are the prompts themselves: no code is added, and no shortcut
        self.self_attn = Attention(embed, heads)
        self.cross_attn_token_to_image = Attention(embed, heads, reduction=2)
        self.mlp = Mlp(embed, hidden, nn.ReLU())
        self.cross_attn_image_to_token = Attention(embed, heads, reduction=2)
        self.norm1, self.norm2 = nn.LayerNorm(embed), nn.LayerNorm(embed)
        self.norm3, self.norm4 = nn.LayerNorm(embed), nn.LayerNorm(embed)

    def forward(
        self,
        tokens: Float[Tensor, "P T E"],
        image: Float[Tensor, "P I E"],
        prompts: Float[Tensor, "P T E"],
        places: Float[Tensor, "1 I E"],
    ) -> tuple[Float[Tensor, "P T E"], Float[Tensor, "P I E"]]:
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            coded = tokens + prompts
            tokens = tokens + self.self_attn(coded, coded, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + prompts, image + places, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + places, tokens + prompts, tokens))
        return tokens, image


class Attention(nn.Module):
    """Attention in `reduction` times fewer channels."""

    def __init__(self, embed: int, heads: int, *, reduction: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(embed, embed // reduction)
        self.k_proj = nn.Linear(embed, embed // reduction)
        self.v_proj = nn.Linear(embed, embed // reduction)
        self.out_proj = nn.Linear(embed // reduction, embed)

    def forward(
        self, query: Float[Tensor, "P Q E"], key: Float[Tensor, "P K E"], value: Float[Tensor, "P K E"]
    ) -> Float[Tensor, "P Q E"]:
        pairs = ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        parts = [project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project, tokens in pairs]
        return self.out_proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Head(nn.Module):
    """Three layers with ReLU between."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)])

    def forward(self, token: Float[Tensor, "P E"]) -> Float[Tensor, "P O"]:
        for layer in self.layers[:-1]:
            token = layer(token).relu()
        return self.layers[-1](token)
