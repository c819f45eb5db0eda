"""Published checkpoints of generalists: where they come from, under which licence, and how to know the right file.

The sums of Segment Anything, MobileSAM and MedSAM are those on which several independent copies agree; that of
SAM-Med3D-turbo is from its authors' page. What is not known is None: nothing here is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

_META = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM = "https://github.com/facebookresearch/segment-anything"
_PHOTOS = "2D; trained on photographs (SA-1B); clicks, boxes, masks"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights.

    Args:
        file: its name in the folder of checkpoints.
        backend: the `sam.backend` that can load it.
        task: dimensions, what it was trained on, prompts.
        licence: of the weights.
        page: where its authors offer it.
        url: direct address; None where there is none.
        size: in bytes.
        sha256: hexadecimal.
        note: what a user has to know before using it.
    """

    name: str
    file: str
    backend: str
    task: str
    licence: str
    page: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    note: str = ""


def _segment_anything(kind: str, file: str, size: int, sha256: str) -> Checkpoint:
    where = {"page": _SAM, "url": f"{_META}/{file}"}
    return Checkpoint(kind, file, "segment_anything", _PHOTOS, "Apache-2.0", **where, size=size, sha256=sha256)


CHECKPOINTS = (
    _segment_anything(
        "sam_vit_b",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _segment_anything(
        "sam_vit_l",
        "sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _segment_anything(
        "sam_vit_h",
        "sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    Checkpoint(
        name="mobile_sam",
        file="mobile_sam.pt",
        backend="mobile_sam",
        task=_PHOTOS,
        licence="Apache-2.0",
        page="https://github.com/ChaoningZhang/MobileSAM",
        url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        size=40_728_226,
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    Checkpoint(
        name="medsam",
        file="medsam_vit_b.pth",
        backend="medsam",
        task="2D; CT, MR and eight more modalities; boxes only",
        licence="Apache-2.0",
        page="https://github.com/bowang-lab/MedSAM",
        size=375_049_145,
        sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
        note="trained at 1024 pixels: sam.backend_args.input_size = 1024 costs seven times as much as the default",
    ),
    Checkpoint(
        name="sam_med3d_turbo",
        file="sam_med3d_turbo.pth",
        backend="sam_med3d",
        task="3D; CT and MR, fine-tuned on 44 public data sets; clicks, masks",
        licence="Apache-2.0",
        page="https://github.com/uni-medical/SAM-Med3D",
        url="https://huggingface.co/blueyo0/SAM-Med3D/resolve/main/sam_med3d_turbo.pth",
        sha256="899a46d04d3b70f723282ceb489149373558bf0aaba389a346f5ab57da5cdd3c",
        note="about 402 MB; its authors replaced it in September 2024, older copies have another sum; it has seen "
        "labels of public benchmarks (left atrium, hippocampus, BraTS): gains on those prove nothing",
    ),
    Checkpoint(
        name="sam_med3d",
        file="sam_med3d.pth",
        backend="sam_med3d",
        task="3D; CT and MR; clicks, masks",
        licence="Apache-2.0",
        page="https://github.com/uni-medical/SAM-Med3D",
        note="it has seen labels of public benchmarks, too",
    ),
)


def find_known(name: str) -> Checkpoint:
    """The checkpoint of this name or file name.

    Raises:
        ValueError: unknown; the message lists the known ones.
    """
    for checkpoint in CHECKPOINTS:
        if name in (checkpoint.name, checkpoint.file):
            return checkpoint
    known = ", ".join(checkpoint.name for checkpoint in CHECKPOINTS)
    raise ValueError(f"unknown checkpoint {name!r}; known are {known}")
