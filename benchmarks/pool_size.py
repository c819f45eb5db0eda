"""How the start of a training, a batch and the memory grow with the number of unlabeled cases.

    python benchmarks/pool_size.py [--cases 10 1000 100000]

The cases are hard links to one small image, already preprocessed, in a temporary folder; each number of cases is
measured in a process of its own. Prints Markdown: seconds, MiB of resident memory, milliseconds per batch.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import step_data

PATCH = (16, 16, 16)
LINKS = 50_000  # to one file; file systems have a limit
ROWS = {
    "record what was preprocessed": "s",
    "list imagesUn": "s",
    "find the pool": "s",
    "start, stock": "s",
    "start, mean teacher": "s",
    "memory of the start, stock": "MiB",
    "memory of the start, mean teacher": "MiB",
    "a batch": "ms",
    "files written": "MB",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[10, 1000, 100_000])
    parser.add_argument("--batches", type=int, default=30)
    args = parser.parse_args()
    found = {}
    for count in args.cases:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[count] = pool.submit(measure, count, args.batches).result()
    print(f"| | {' | '.join(map(str, found))} |\n{'|---' * (1 + len(found))}|")
    for row, unit in ROWS.items():
        print(f"| {row}, {unit} | {' | '.join(f'{one[row]:.3g}' for one in found.values())} |")


def measure(count: int, batches: int) -> dict[str, float]:
    """All rows for so many cases."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        os.environ |= {f"nnUNet_{name}": str(Path(folder) / name) for name in ("raw", "preprocessed", "results")}
        os.environ |= {"nnUNet_n_proc_DA": "0"}
        step_data.write(Path(folder) / "preprocessed", PATCH)
        with contextlib.redirect_stdout(nowhere):
            return _measured(Path(folder), count, batches)


def _measured(folder: Path, count: int, batches: int) -> dict[str, float]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_semisam.data.pool import unlabeled_pool
    from nnunet_semisam.data.raw_pool import list_unlabeled

    plans = PlansManager(step_data.plans(PATCH, 2, [4, 8, 8]))
    managers = plans, plans.get_configuration(step_data.CONFIGURATION), step_data.DATASET_JSON
    files = _write_raw(folder / "raw" / step_data.NAME, count)
    found = {"record what was preprocessed": _seconds(lambda: _preprocess(folder, files, managers))}
    raw = folder / "raw" / step_data.NAME
    found["list imagesUn"] = _seconds(lambda: list_unlabeled(raw, step_data.DATASET_JSON))
    found["find the pool"] = _seconds(lambda: unlabeled_pool(*managers, 0))
    found |= _starts(batches)
    preprocessed = folder / "preprocessed" / step_data.NAME / "nnUNetPlans_timed_unlabeled.json"
    records = [*folder.glob("results/**/semisam_unlabeled.json"), preprocessed]
    return found | {"files written": sum(file.stat().st_size for file in records) / 1e6}


def _starts(batches: int) -> dict[str, float]:
    """Stock and mean teacher, from the trainer's construction to its first step."""
    from step_arms import Task, arms, started
    from step_memory import resident

    found = {}
    task = Task.made_up(PATCH, batch_size=2, features=[4, 8, 8], device="cpu")
    stock, mean_teacher = arms([])
    for arm in (stock, stock, mean_teacher):  # the first start also imports
        before, start = resident("VmRSS"), time.perf_counter()
        trainer = started(arm, task)
        trainer.train_step(next(trainer.dataloader_train))
        found[f"start, {arm.name}"] = time.perf_counter() - start
        found[f"memory of the start, {arm.name}"] = resident("VmRSS") - before
    stream = trainer.dataloader_unlabeled
    spent = [_seconds(lambda: next(stream)) for _ in range(batches)]
    return found | {"a batch": 1000 * statistics.median(spent)}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _write_raw(raw: Path, count: int) -> dict[str, list[str]]:
    for folder in ("imagesTr", "imagesUn"):
        (raw / folder).mkdir(parents=True)
    for case in (*step_data.SPLIT["train"], *step_data.SPLIT["val"]):
        (raw / "imagesTr" / f"{case}_0000.nii.gz").write_bytes(b"image")
    names = [f"unlabeled_case_{number:06}" for number in range(count)]
    paths = [raw / "imagesUn" / f"{name}_0000.nii.gz" for name in names]
    _link(paths, lambda file: file.write_bytes(b"image"))
    return {name: [str(path)] for name, path in zip(names, paths, strict=True)}


def _preprocess(folder: Path, files: dict[str, list[str]], managers: tuple) -> None:
    """What preprocessing leaves behind, without the work."""
    from nnunet_semisam.data.preprocess import open_manifest

    manifest = open_manifest(step_data.NAME, *managers[:2], "imagesUn")
    manifest.folder.mkdir()
    image = folder / "preprocessed" / step_data.NAME / "nnUNetPlans_timed" / "unlabeled_0.b2nd"
    _link([manifest.image(case) for case in files], lambda file: file.write_bytes(image.read_bytes()))
    for case, own in files.items():
        manifest.add(case, own)
    manifest.save()


def _link(paths: list[Path], write: Callable[[Path], Any]) -> None:
    for first, batch in _portions(paths):
        write(first)
        for path in batch:
            os.link(first, path)


def _portions(paths: list[Path]) -> Iterator[tuple[Path, list[Path]]]:
    for start in range(0, len(paths), LINKS):
        yield paths[start], paths[start + 1 : start + LINKS]


if __name__ == "__main__":
    main()
