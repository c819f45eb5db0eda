"""How well does the embedded generalist do on real scans that it has never seen?

    python benchmarks/embedded_on_real.py --data FOLDER [--data FOLDER …] [--splits splits.json] [--weights FILE]

FOLDER is a data set in nnU-Net raw format with `imagesTr` and `labelsTr`. With `--splits` the cases of its `val` lists
are taken, else all. The patch is the whole volume, z-scored. Prompts: the true mask corrupted to a wanted Dice (seeds
fixed), the true box, or one point deep inside. Prints Markdown: Dice of the prompt, Dice of the answer, share of items
whose answer beats the prompt, rank correlation of predicted IoU and true Dice, milliseconds per item.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage, stats

from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.embedded.corruption import corrupt_to_dice
from nnunet_semisam.sam.embedded.noise import coordinates, dice, mask_box
from nnunet_semisam.types import Prompts

CONFIDENT = 5.0  # log-odds of a mask prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--splits", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--weights", type=str)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.6, 0.75, 0.85, 0.95])
    parser.add_argument("--repeats", type=int, default=1, help="corruptions per case, class and level")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=NUMBER", help="arguments of the backend")
    parser.add_argument("--masks", action="store_true", help="mask prompts only, without box and point")
    parser.add_argument("--slices", action="store_true", help="ask the 2D network, on the largest slice across axis 0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    backend = EmbeddedSam(args.weights, **{key: json.loads(value) for key, value in (e.split("=") for e in args.set)})
    print("| data set | class | prompt | items | Dice, prompt | Dice, answer | gain | better | rank corr. | ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for folder in args.data:
        evaluate(folder, backend, args)


def evaluate(folder: Path, backend: EmbeddedSam, args: argparse.Namespace) -> None:
    """All cases, classes and prompts of one data set; one row of the table per class and prompt."""
    rows: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    names = json.loads((folder / "dataset.json").read_text())["labels"]
    for case in cases_of(folder, args.splits)[: args.limit]:
        image, labels = load(folder, case)
        for name, value in names.items():
            if name == "background" or not (labels == value).any():
                continue
            picture, mask = image, labels == value
            if args.slices:
                plane = int(mask.flatten(1).sum(1).argmax())
                picture, mask = image[plane], mask[plane]
            seed = zlib.crc32(f"{case} {name}".encode())
            for kind, prompts, guess in prompts_for(mask, args.levels, args.repeats, seed):
                if args.masks and not (kind.startswith("mask") and prompts.boxes is None):
                    continue
                started = time.perf_counter()
                answer = backend.decode(backend.embed(picture[None, None]), prompts)
                spent = 1000 * (time.perf_counter() - started)
                before = dice(guess, mask) if guess is not None else float("nan")
                after = dice(answer.mask_logits[0] > 0, mask)
                rows.setdefault((name, kind), []).append((before, after, float(answer.iou_predictions[0]), spent))
    for (name, kind), items in rows.items():
        print_row(folder.name, name, kind, np.array(items))
    for name in dict.fromkeys(name for name, _ in rows):
        masks = [items for (other, kind), items in rows.items() if other == name and kind.startswith("mask")]
        print_row(folder.name, name, "all masks", np.array(sum(masks, [])))


def print_row(data: str, name: str, kind: str, items: np.ndarray) -> None:
    """Means, the share of items whose answer beats the prompt, the rank correlation of predicted IoU with true Dice."""
    before, after, told, spent = items.T
    rank = stats.spearmanr(told, after).statistic if len(items) > 2 else float("nan")
    cells = [data, name, kind, len(items), f"{before.mean():.3f}", f"{after.mean():.3f}"]
    cells += [f"{(after - before).mean():+.3f}", f"{(after > before).mean():.0%}", f"{rank:.2f}", f"{spent.mean():.0f}"]
    print("| " + " | ".join(map(str, cells)).replace("+nan", "").replace("nan", "–") + " |", flush=True)


def prompts_for(mask: torch.Tensor, levels: list[float], repeats: int, seed: int):
    """(name, prompts, the prompt read as a mask) for every kind of prompt."""
    for level in levels:
        for repeat in range(repeats):
            rng = torch.Generator().manual_seed(seed + 1000 * repeat + round(100 * level))
            spoiled = corrupt_to_dice(mask, level, rng)
            logits = CONFIDENT * (2 * spoiled.float() - 1)[None]
            yield f"mask {level}", one(mask.ndim, logits=logits), spoiled
            prompts = one(mask.ndim, logits=logits, box=mask_box(spoiled), point=deepest(spoiled))
            yield f"mask {level}, box, point", prompts, spoiled
    box = mask_box(mask)
    yield "box (its ellipsoid)", one(mask.ndim, box=box), ellipsoid(mask.shape, box)
    yield "box, point (ellipsoid)", one(mask.ndim, box=box, point=deepest(mask)), ellipsoid(mask.shape, box)
    yield "point", one(mask.ndim, point=deepest(mask)), None


def one(ndim: int, logits=None, box=None, point=None) -> Prompts:
    """The prompts of a single item."""
    item = torch.zeros(1, dtype=torch.long)
    coords = torch.zeros(1, 0, ndim) if point is None else point.view(1, 1, ndim)
    labels = torch.ones(coords.shape[:2], dtype=torch.long)
    return Prompts(item, item + 1, coords, labels, None if box is None else box[None], logits)


def deepest(mask: torch.Tensor) -> torch.Tensor:
    """The voxel farthest from the mask's border."""
    depth = ndimage.distance_transform_edt(np.pad(mask.numpy(), 1))
    return torch.tensor(np.unravel_index(depth.argmax(), depth.shape)).float() - 1


def ellipsoid(shape: torch.Size, box: torch.Tensor) -> torch.Tensor:
    """The largest ellipsoid in the box."""
    view = (-1, *[1] * len(shape))
    far = (coordinates(shape) + 0.5 - box.mean(0).view(view)) / ((box[1] - box[0]) / 2).view(view)
    return far.square().sum(0) <= 1


def cases_of(folder: Path, splits: Path | None) -> list[str]:
    """Validation cases by the splits file (the same for all label budgets), else every labeled case."""
    if splits is None:
        return sorted(file.name.removesuffix(".nii.gz") for file in (folder / "labelsTr").glob("*.nii.gz"))
    return next(iter(next(iter(json.loads(splits.read_text())[folder.name].values())).values()))["val"]


def load(folder: Path, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (z-scored) and labels in array order."""
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))).astype(np.float32)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz")))
    return torch.from_numpy((image - image.mean()) / image.std()), torch.from_numpy(labels.astype(np.int16))


if __name__ == "__main__":
    main()
