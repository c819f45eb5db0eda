"""The command from raw images to the page, one iteration per arm; then again, with nothing left to do."""

import csv
import json
import os
import re

import numpy as np
import pytest
import SimpleITK as sitk
from toy_trainer import case

from nnunet_semisam.cli.benchmark import main

pytest.importorskip("monai", reason="pip install 'nnunet_semisam[benchmark]'")

NAME = "Dataset996_Toy"
PROTOCOL = {
    "budgets": [2],
    "draws": ["0"],
    "val_cases": 2,
    "epochs": 1,
    "iterations": 1,
    "val_iterations": 1,
    "network": {"patch_size": [16, 16, 16], "features": [4, 4, 8], "batch_size": 2, "spacing": [2.0, 1.5, 1.25]},
    "arms": ["supervised", {"name": "mine", "section": {"method": "fixmatch", "sam": None}}],
}


def write_raw(folder):
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for seed in range(6):
        image, seg = case(seed)
        for sub, array, name in (
            ("imagesTr", image[0], f"c{seed}_0000"),
            ("labelsTr", seg[0].astype(np.uint8), f"c{seed}"),
        ):
            written = sitk.GetImageFromArray(array)
            written.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(written, str(folder / sub / f"{name}.nii.gz"))
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1, "shell": 2}}
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": 6, "file_ending": ".nii.gz"}))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_raw_images_to_the_page(tmp_path, capsys, monkeypatch):
    for variable in ("raw", "preprocessed", "results"):  # nobody's own folders are needed or touched
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / "own" / variable))
    raw, work = tmp_path / NAME, tmp_path / "work"
    write_raw(raw)
    file = tmp_path / "protocol.json"
    file.write_text(json.dumps({"datasets": [str(raw)], **PROTOCOL}))
    before = dict(os.environ)
    main([str(work), "--protocol", str(file), "--workers", "2", "--devices", "cpu"])
    assert dict(os.environ) == before and not (tmp_path / "own").exists()
    assert "[2/2] 0 running" in capsys.readouterr().out
    with (work / "scores.csv").open() as text:
        rows = list(csv.DictReader(text))
    keys = {(row["arm"], row["weights"], row["class"]) for row in rows}
    arms = [("supervised", "final"), ("mine", "final"), ("mine", "teacher")]
    assert keys == {(*arm, name) for arm in arms for name in ("ball", "shell")} and len(rows) == 12
    with (work / "runs.csv").open() as text:
        assert all((row["epochs"], row["iterations"]) == ("1", "1") for row in csv.DictReader(text))
    page = (work / "results.html").read_text()
    assert "mine (teacher)" in page and "data:image/png" in page and "NOT COMPLETE" not in page

    plans = json.loads(next(work.rglob("nnUNetPlans.json")).read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.5, 1.25]  # the images have 2, 1, 1
    hidden = next(work.rglob("splits_final.json"))
    (fold,) = json.loads(hidden.read_text())
    assert len(fold["train"]) == len(fold["unlabeled"]) == 2 and fold["val"] == fold["train"][:1]
    changed = {path: path.stat().st_mtime_ns for path in work.rglob("*.pth")}
    main([str(work), "--dry-run"])  # the folder remembers its protocol
    assert re.search(r"0 of 2 runs to do", capsys.readouterr().out)
    main([str(work)])
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.pth")} == changed
