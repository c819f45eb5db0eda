"""What the generalist answers on a held-out case, prompted by the trained teacher, through the trainer's labeler."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def sam_labels(
    image: np.ndarray, teacher_probabilities: np.ndarray, semisam_json: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Labels after SAM's word, and where SAM was heard (its confidence is above 0).

    Args:
        image: axes z, y, x, grey values as in the file.
        teacher_probabilities: of the whole case, from `nnUNetv2_predict --save_probabilities`.
        semisam_json: the configuration of the run, as the trainer wrote it.
    """
    import torch

    from nnunet_semisam.config import SemiSAMConfig
    from nnunet_semisam.ops.outputs import OutputSpace
    from nnunet_semisam.sam import build_backend
    from nnunet_semisam.sam.labeler import SamLabeler

    config = SemiSAMConfig().with_section(json.loads(semisam_json.read_text())).sam
    normalised = (image - image.mean()) / image.std()  # nnU-Net's z-score; the spacing is that of the plans
    labeler = SamLabeler(build_backend(config, torch.device("cpu")), config, OutputSpace(len(teacher_probabilities)))
    prob = torch.from_numpy(teacher_probabilities.astype(np.float32))
    pseudo = labeler(torch.from_numpy(normalised.astype(np.float32))[None, None], prob[None], 0)
    return pseudo.prob[0].argmax(0).numpy().astype(np.uint8), (pseudo.confidence[0, 0] > 0).numpy()
