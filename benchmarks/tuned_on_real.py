"""What does tuning on the labeled cases give the embedded generalist on scans that it was not tuned on?

    python benchmarks/tuned_on_real.py --data FOLDER --splits splits.json [--labels 4] [--steps 240] [--out FILE]

Tunes on the `labeled` list (`splits[DATA][LABELS]["list"]`), as training does, and prints the table of
`embedded_on_real.py` for the `val` list before and after. 2D with `--slices`. `--out` writes a weights file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import embedded_on_real
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.tuning import tune_and_report
from nnunet_semisam.types import LabeledCase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--labels", default="4", help="key of the splits file: how many labeled cases")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patch", type=int, nargs="+", default=[48, 64, 64])
    parser.add_argument("--weights", type=str, help="weights to start from; default: those of the package")
    parser.add_argument("--out", type=Path, help="write the tuned weights")
    parser.add_argument("--no-before", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.6, 0.75, 0.85, 0.95])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=NUMBER", help="arguments of the backend")
    parser.add_argument("--masks", action="store_true", help="report mask prompts only, without box and point")
    parser.add_argument("--slices", action="store_true", help="the 2D network, on the largest slice across axis 0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for folder in args.data:
        backend = EmbeddedSam(args.weights, **{k: json.loads(v) for k, v in (e.split("=") for e in args.set)})
        if not args.no_before:
            header(f"{folder.name}, before")
            embedded_on_real.evaluate(folder, backend, args)
        cases = labeled_cases(folder, args)
        began = time.perf_counter()
        patch = args.patch[-2:] if args.slices else args.patch
        heads = range(1, len(cases[0].truth))
        config = SamConfig(tune=args.steps)
        task = backend.tuning_task(cases, heads=heads, patch_size=patch, config=config)
        report = tune_and_report(backend, cases, task, heads=heads, patch_size=patch, config=config, seed=args.seed)
        print(report)
        header(f"{folder.name}, tuned on {len(cases)}: {args.steps} steps, {time.perf_counter() - began:.0f} s")
        if args.out:
            write_weights(backend, args.out)
        embedded_on_real.evaluate(folder, backend, args)


def header(title: str) -> None:
    print(f"\n{title}\n", flush=True)
    print("| data set | class | prompt | items | Dice, prompt | Dice, answer | gain | better | rank corr. | ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")


def labeled_cases(folder: Path, args: argparse.Namespace) -> list[LabeledCase]:
    """The labeled list; z-scored volumes at full size, background first."""
    count = len(json.loads((folder / "dataset.json").read_text())["labels"])
    cases = []
    for name in json.loads(args.splits.read_text())[folder.name][args.labels]["list"]["labeled"]:
        image, labels = embedded_on_real.load(folder, name)
        truth = torch.stack([labels == value for value in range(count)])
        cases.append(LabeledCase(name, image[None], truth, torch.ones(labels.shape, dtype=torch.bool)))
    return cases


def write_weights(backend: EmbeddedSam, file: Path) -> None:
    """A file for `EmbeddedSam(FILE)`."""
    parts = {
        f"{ndim}d": {"width": g.network.width, "grid": g.grid, "state": g.network.state_dict()}
        for ndim, g in backend.generalists.items()
    }
    torch.save(parts, file)


if __name__ == "__main__":
    main()
