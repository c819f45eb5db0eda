"""The network of Segment Anything: from its file, at a working resolution of choice."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_semisam.sam.weights import read_weights

KINDS = {(768, 12): "vit_b", (1024, 24): "vit_l", (1280, 32): "vit_h"}  # width, depth of the image encoder


def set_input_size(sam: Any, size: int) -> None:
    """Sets the working resolution in place, by interpolating the absolute position embedding.

    The tables of relative positions are interpolated by SAM itself wherever the grid differs from theirs.
    """
    encoder, prompt_encoder = sam.image_encoder, sam.prompt_encoder
    patch = encoder.patch_embed.proj.kernel_size[0]
    if size < patch or size % patch:
        raise ValueError(
            f"semisam: sam.backend_args.input_size is {size}; it must be a multiple of {patch}, best of 224"
        )
    grid = size // patch
    if encoder.pos_embed.shape[1] != grid:
        embedding = encoder.pos_embed.detach().permute(0, 3, 1, 2)
        embedding = F.interpolate(embedding, (grid, grid), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
        encoder.pos_embed = nn.Parameter(embedding.contiguous(), requires_grad=False)
    encoder.img_size = size
    prompt_encoder.image_embedding_size = (grid, grid)
    prompt_encoder.input_image_size = (size, size)
    prompt_encoder.mask_input_size = (4 * grid, 4 * grid)


def load_sam(
    checkpoint: str | None,
    model: str | None,
    *,
    backend: str = "segment_anything",
    example: str = "sam_vit_b_01ec64.pth",
) -> nn.Module:
    """The network with the weights of `checkpoint`; errors name the file and the cure."""
    try:
        from segment_anything import sam_model_registry
    except ImportError as error:
        raise ImportError(
            f"semisam: sam.backend {backend!r} needs the package: pip install segment-anything==1.0 torchvision"
        ) from error
    weights = read_weights(checkpoint, backend=backend, example=example)
    model = model or _kind(checkpoint, weights)
    if model not in KINDS.values():
        raise ValueError(f"semisam: sam.backend_args.model is {model!r}; known are {', '.join(KINDS.values())}")
    sam = sam_model_registry[model](checkpoint=None)
    try:
        sam.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1:2]
        raise ValueError(
            f"semisam: {checkpoint} does not hold a {model} of Segment Anything ({' '.join(first).strip()}); set "
            "sam.backend_args.model to the kind of the file, or sam.checkpoint to another file"
        ) from error
    return sam


def _kind(checkpoint: str | None, weights: dict[str, Tensor]) -> str:
    """The model kind, read off width and depth of the image encoder."""
    table = weights.get("image_encoder.pos_embed")
    depth = sum(name.startswith("image_encoder.blocks.") and name.endswith(".norm1.weight") for name in weights)
    kind = None if table is None else KINDS.get((table.shape[-1], depth))
    if kind is None:
        raise ValueError(
            f"semisam: sam.checkpoint {checkpoint} is none of Segment Anything's models {', '.join(KINDS.values())} "
            f"(image encoder of depth {depth}); give another file"
        )
    return kind
