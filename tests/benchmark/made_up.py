"""A raw data set of nothing but file names, and protocols on it."""

import json

from nnunet_semisam.benchmark.dataset import find_dataset
from nnunet_semisam.benchmark.protocol import read_protocol

NAME = "Dataset901_Toy"


def raw_dataset(root, cases=8, labels=None):
    """Empty files; enough for whatever opens none of them."""
    folder = root / NAME
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for number in range(cases):
        (folder / "imagesTr" / f"c{number}_0000.nii.gz").touch()
        (folder / "labelsTr" / f"c{number}.nii.gz").touch()
    labels = labels or {"background": 0, "front": 1, "back": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps(content))
    return find_dataset(str(folder))


def protocol(dataset, **values):
    """Three labels, two draws, three evaluation cases, supervised against SemiSAM."""
    standard = {"budgets": [2], "draws": ["0", "1"], "val_cases": 3, "arms": ["supervised", "semisam"]}
    return read_protocol({"datasets": [str(dataset.folder)], **standard, **values})
