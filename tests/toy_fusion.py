"""Pseudo-labels of answers written by hand."""

import torch

from nnunet_semisam.sam.fuse import Answers, Fusion


def fuse(prob, hard, answers, outputs, believed=None):
    """The pseudo-label of answers, or of several portions of them; all are believed unless `believed` says which."""
    fusion = Fusion(prob, hard, outputs)
    for part in [answers] if isinstance(answers, Answers) else answers:
        fusion.add(part, torch.ones_like(part.head, dtype=torch.bool) if believed is None else torch.tensor(believed))
    return fusion.pseudo_label()
