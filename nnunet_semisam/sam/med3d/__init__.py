"""SAM-Med3D (Wang et al. 2023, https://arxiv.org/abs/2310.15161): the network, in the layout of its published weights.

Written anew from the published architecture. The names of modules are those of the checkpoint's keys. Two habits of
the published network look like slips, but the weights were trained with them, so they are kept: see `encoder` (which
query meets which relative position) and `prompts` (order of axes in the dense position code).
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn

from nnunet_semisam.sam.med3d.decoder import MaskDecoder
from nnunet_semisam.sam.med3d.encoder import ImageEncoder
from nnunet_semisam.sam.med3d.prompts import PromptEncoder


class Med3D(nn.Module):
    """Image encoder, prompt encoder and mask decoder. The defaults are the published size, "vit_b_ori".

    Args:
        grid: tokens along each axis; the image has 16 times as many voxels, masks 4 times.
        window: tokens along each axis of an attention window; at least `grid`.
        embed: channels of the image embedding and of prompts; a multiple of 24 and of twice `decoder_heads`.
    """

    def __init__(
        self,
        *,
        grid: int = 8,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        window: int = 14,
        global_blocks: tuple[int, ...] = (2, 5, 8, 11),
        embed: int = 384,
        decoder_heads: int = 8,
        hidden: tuple[int, int] = (2048, 256),
    ) -> None:
        super().__init__()
        windows = tuple(0 if number in global_blocks else window for number in range(depth))
        self.image_encoder = ImageEncoder(grid, width, heads=heads, windows=windows, out=embed)
        self.prompt_encoder = PromptEncoder(grid, embed)
        self.mask_decoder = MaskDecoder(embed, heads=decoder_heads, hidden=hidden)
        self.grid = grid

    @property
    def image_side(self) -> int:
        """Voxels along each axis of the image."""
        return 16 * self.grid

    @property
    def mask_side(self) -> int:
        """Voxels along each axis of mask prompts and of answers."""
        return 4 * self.grid

    def encode(self, image: Float[Tensor, "V 1 I I I"]) -> Float[Tensor, "V E G G G"]:
        """The embedding of z-scored images."""
        return self.image_encoder(image)

    def decode(
        self,
        features: Float[Tensor, "P E G G G"],
        points: Float[Tensor, "P N 3"],
        labels: Int64[Tensor, "P N"],
        masks: Float[Tensor, "P 1 M M M"],
    ) -> tuple[Float[Tensor, "P 4 M M M"], Float[Tensor, "P 4"]]:
        """Logits of four masks per item (the first is the trained one) and what the IoU head says of them.

        Args:
            features: the image embedding of each item.
            points: voxels of the image, a whole number is a voxel centre; N may be 0.
            labels: 1 inside, 0 outside, -1 padding.
            masks: logits; zeros where there is no mask, as in training.
        """
        sparse = self.prompt_encoder.points(points, labels)
        source = features + self.prompt_encoder.mask_downscaling(masks)
        return self.mask_decoder(source, self.prompt_encoder.grid_code(), sparse)


def layout(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every entry of the state dictionary."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def load_weights(network: Med3D, weights: dict[str, Tensor]) -> None:
    """Loads a state dictionary that fits exactly.

    Raises:
        ValueError: it names the first missing, unexpected and misshapen entries.
    """
    wanted, given = layout(network), {name: tuple(value.shape) for name, value in weights.items()}
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {given[name]} instead of {shape}"
            for name, shape in wanted.items()
            if name in given and given[name] != shape
        ],
    }
    if any(problems.values()):
        raise ValueError("; ".join(f"{kind}: {_first(names)}" for kind, names in problems.items() if names))
    network.load_state_dict(weights)


def _first(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
