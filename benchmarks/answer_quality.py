"""Which number tells a good answer of the generalist from a bad one?

    python benchmarks/answer_quality.py --data FOLDER [--data FOLDER …] [--splits splits.json] [--limit 8]

Data and corrupted masks as in `embedded_on_real.py`; the corrupted mask is turned into prompts as in training (mask,
box, clicks), and the prompts are shaken `--jitters` times (`nnunet_semisam.sam.jitter`). Prints Markdown: Spearman's
correlation of true Dice and each number, over all levels of corruption of a class and as the mean within a level (there
the prompt's own quality does not help), then the Dice of the unshaken answer and of the mean over the shaken ones.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from embedded_on_real import CONFIDENT, cases_of, load
from scipy import stats

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.embedded.corruption import corrupt_to_dice
from nnunet_semisam.sam.embedded.noise import dice
from nnunet_semisam.sam.fuse import Answers
from nnunet_semisam.sam.jitter import seeds_for, shaken, stability
from nnunet_semisam.sam.objects import Objects
from nnunet_semisam.sam.prompts import prompts_for
from nnunet_semisam.types import SamPrediction

LEVELS = (0.6, 0.75, 0.85, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--splits", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--weights", type=str)
    parser.add_argument("--jitters", type=int, default=4)
    parser.add_argument("--draw", type=int, default=0, help="another draw of the shaking")
    parser.add_argument("--slices", action="store_true", help="ask the 2D network, on the largest slice across axis 0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    backend = EmbeddedSam(args.weights)
    rows: dict[str, dict[float, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for folder in args.data:
        names = json.loads((folder / "dataset.json").read_text())["labels"]
        for case in cases_of(folder, args.splits)[: args.limit]:
            image, labels = load(folder, case)
            for name, value in names.items():
                truth = labels == value
                if name == "background" or not truth.any():
                    continue
                plane = int(truth.flatten(1).sum(1).argmax())
                picture = image[plane] if args.slices else image
                truth = truth[plane] if args.slices else truth
                for level in LEVELS:
                    rng = torch.Generator().manual_seed(zlib.crc32(f"{case} {name}".encode()) + round(100 * level))
                    spoiled = corrupt_to_dice(truth, level, rng)
                    rows[name][level].append(judge(backend, picture, spoiled, truth, draws=(args.draw, args.jitters)))
    report(rows)


def judge(
    backend: EmbeddedSam, image: torch.Tensor, spoiled: torch.Tensor, truth: torch.Tensor, *, draws: tuple[int, int]
) -> dict[str, float]:
    """The numbers that could tell how good the answer is, and how good it is."""
    prob = (CONFIDENT * (2 * spoiled.float() - 1)).sigmoid()
    prob = torch.stack([1 - prob, prob])[None]
    zero = torch.zeros(1, dtype=torch.int64)
    objects, outputs, config = Objects(zero, zero + 1, spoiled[None]), OutputSpace(2), SamConfig(components=None)
    prompts = prompts_for(objects, prob, prob > 0.5, outputs=outputs, config=config)
    embedding = backend.embed(image[None, None])
    asked = [prompts] + [shaken(prompts, objects, prob, seeds=seeds_for(draws[0], zero, n)) for n in range(draws[1])]
    given = [backend.decode(embedding, prompts) for prompts in asked]
    logits = torch.stack([answer.mask_logits for answer in given])  # (J + 1, 1, *S)
    first = Answers.judged(objects, given[0])
    mean = logits.sigmoid().mean(0)
    iou, steady = float(given[0].iou_predictions), float(stability(logits > 0))
    sharp, agreement = float(first.weight / first.agreement / iou), float(first.agreement)
    numbers = {
        "predicted IoU": iou,
        "stability": sharp,
        "agreement": agreement,
        "exp(-u)": float(np.exp(steady - 1)),
        "voxels: 1 - 4 var": 1 - 4 * float(logits.sigmoid().var(0, unbiased=False)[mean > 0.1].mean()),
        "IoU x stability x agreement": iou * sharp * agreement,
        "IoU x stability x agreement x exp(-u)": iou * sharp * agreement * float(np.exp(steady - 1)),
        "agreement x exp(-u)": agreement * float(np.exp(steady - 1)),
        "stability x exp(-u)": sharp * float(np.exp(steady - 1)),
        "IoU x exp(-u)": iou * float(np.exp(steady - 1)),
    }
    judged = Answers.judged(objects, SamPrediction(torch.logit(mean), given[0].iou_predictions))
    numbers["_first"], numbers["_mean"] = dice(first.logits[0] > 0, truth), dice(judged.logits[0] > 0, truth)
    return numbers


def report(rows: dict[str, dict[float, list[dict[str, float]]]]) -> None:
    classes = list(rows)
    names = [name for name in rows[classes[0]][LEVELS[0]][0] if not name.startswith("_")]
    print("| number | " + " | ".join(f"{name}, all | {name}, within a level" for name in classes) + " |")
    print("|---" * (1 + 2 * len(classes)) + "|")
    for name in names:
        cells = []
        for levels in rows.values():
            groups = [np.array([(item[name], item["_first"]) for item in items]) for items in levels.values()]
            within = [stats.spearmanr(*group.T).statistic for group in groups]
            cells += [f"{stats.spearmanr(*np.concatenate(groups).T).statistic:.2f}", f"{np.nanmean(within):.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| class | prompt | items | Dice, unshaken | Dice, mean of all |\n|---|---|---|---|---|")
    for name, levels in rows.items():
        for level, items in levels.items():
            first, mean = (np.mean([item[key] for item in items]) for key in ("_first", "_mean"))
            print(f"| {name} | mask {level} | {len(items)} | {first:.3f} | {mean:.3f} |")


if __name__ == "__main__":
    main()
