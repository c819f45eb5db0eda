"""`nnUNetv2_semisam_benchmark`: label budgets x draws x arms against the stock trainer, with statistics and a page."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NUMBERS = {"budgets": "numbers of labeled cases", "seeds": "of training"}
ARMS = "built in, or of the protocol file (default: supervised supervised_time full mean_teacher semisam)"
FLAGS = {
    "epochs": "of every arm",
    "iterations": "per epoch",
    "val_iterations": "of nnU-Net's own validation, per epoch",
    "val_cases": "that every draw sets aside for evaluation, without a splits file (default: a fifth)",
    "max_cases": "evaluated at most",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{__doc__} Everything goes into the work folder; your own nnU-Net folders are not touched. "
        "Stopped or killed, the same command goes on where it was; results.html shows what is done so far."
    )
    parser.add_argument("work", type=Path, help="folder for everything; it remembers its protocol")
    parser.add_argument("--protocol", type=Path, metavar="FILE", help="JSON file; flags below are laid over it")
    parser.add_argument("--dry-run", action="store_true", help="list what would be done and how long it would take")
    parser.add_argument("--measure", action="store_true", help="first time a few iterations of every arm, to estimate")
    parser.add_argument("--workers", type=int, metavar="N", help="runs side by side (default: one per device)")
    parser.add_argument("--devices", nargs="+", metavar="DEVICE", help="cuda:0 cuda:1 cpu (default: cuda:0, else cpu)")
    parser.add_argument(
        "--loaders", type=int, metavar="N", help="processes for augmentation per run (default: 0 on cpu)"
    )
    group = parser.add_argument_group("protocol")
    group.add_argument("--datasets", nargs="+", metavar="FOLDER", help="raw data sets: folders, or names in nnUNet_raw")
    group.add_argument("--splits", metavar="FILE", help="data set -> labels -> draw -> labeled, unlabeled, val")
    group.add_argument(
        "--draws", nargs="+", metavar="NAME", help="draws in the splits file, or any names to seed draws"
    )
    group.add_argument("--arms", nargs="+", metavar="NAME", help=ARMS)
    group.add_argument("--arm", action="append", default=[], metavar="NAME=JSON", help="an arm and its semisam section")
    group.add_argument("--baseline", metavar="ARM", help="compared with all others (default: supervised)")
    group.add_argument("--configuration", metavar="NAME", help="default: 3d_fullres")
    for name, meaning in NUMBERS.items():
        group.add_argument(f"--{name}", nargs="+", type=int, metavar="N", help=meaning)
    for name, meaning in FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=meaning)
    group.add_argument("--patch-size", nargs="+", type=int, metavar="N", help="smaller than planned, for all arms")
    group.add_argument("--features", nargs="+", type=int, metavar="N", help="channels per stage, for all arms")
    group.add_argument("--batch-size", type=int, metavar="N", help="for all arms")
    group.add_argument(
        "--spacing", nargs=3, type=float, metavar="MM", help="of the resampled images, z y x, for all arms"
    )
    group.add_argument(
        "--fingerprint-from", choices=("all", "labeled"), help="cases that shape the plans (default: all)"
    )
    group.add_argument("--mirroring", action="store_true", default=None, help="predict with mirroring")
    group.add_argument("--tolerance", type=float, metavar="MM", help="of the surface Dice (default: 1)")
    group.add_argument("--voxel-units", action="store_true", default=None, help="distances in voxels")
    return parser


def protocol_values(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say over what the protocol file says; without a file over what the work folder remembers.

    Raises:
        ValueError: the file cannot be read, or an arm is not NAME=JSON.
    """
    from nnunet_semisam.benchmark.protocol import DEFAULT_ARMS, KEYS, read_protocol_file

    remembered = args.work / "protocol.json"
    file = args.protocol or (remembered if remembered.is_file() else None)
    values = {} if file is None else read_protocol_file(file)
    values |= _absolute({key: getattr(args, key) for key in KEYS if getattr(args, key, None) is not None})
    network = {key: getattr(args, key) for key in ("patch_size", "features", "batch_size", "spacing")}
    if network := {key: value for key, value in network.items() if value is not None}:
        values["network"] = {**(values.get("network") or {}), **network}
    arms = [] if file is None else read_protocol_file(file).get("arms", [])
    own = {arm["name"]: arm for arm in arms if isinstance(arm, dict) and "name" in arm}
    own |= {arm["name"]: arm for arm in map(_arm, args.arm)}
    names = args.arms or [arm["name"] if isinstance(arm, dict) else arm for arm in arms] or DEFAULT_ARMS
    names = [*names, *(arm["name"] for arm in map(_arm, args.arm) if arm["name"] not in names)]
    values["arms"] = [own.get(name, name) for name in names]
    return values


def _absolute(given: dict[str, Any]) -> dict[str, Any]:
    """Paths as they are from anywhere: the work folder remembers them. A data set may also be a name."""
    if "splits" in given:
        given["splits"] = str(Path(given["splits"]).expanduser().resolve())
    if "datasets" in given:
        folders = [(name, Path(name).expanduser()) for name in given["datasets"]]
        given["datasets"] = [
            str(folder.resolve()) if (folder / "dataset.json").is_file() else name for name, folder in folders
        ]
    return given


def _changed(values: Mapping[str, Any], remembered: Path) -> str:
    """What the work folder will remember otherwise than so far, in words; empty where nothing changes."""
    from nnunet_semisam.benchmark.protocol import read_protocol_file

    before = read_protocol_file(remembered) if remembered.is_file() else values
    changed = [f"{key} {before.get(key)} -> {value}" for key, value in values.items() if before.get(key) != value]
    return f"{remembered} changes: {'; '.join(changed)}" if changed else ""


def _arm(text: str) -> dict[str, Any]:
    import json

    name, sign, section = text.partition("=")
    try:
        return {"name": name, "section": json.loads(section)}
    except ValueError as error:
        raise ValueError(
            f'--arm {text!r}: write NAME=JSON, such as fixmatch=\'{{"method": "fixmatch", "sam": null}}\''
        ) from error


def _devices(given: list[str] | None) -> list[str]:
    import re

    import torch

    devices = given or ["cuda:0" if torch.cuda.is_available() else "cpu"]
    for device in devices:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
            raise ValueError(f"--devices {device!r}: must be cpu, mps, cuda or cuda:NUMBER")
        if device.startswith("cuda") and int((device + ":0").split(":")[1]) >= torch.cuda.device_count():
            raise ValueError(f"--devices {device!r}: torch sees {torch.cuda.device_count()} CUDA devices here")
    return devices


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; the exit code is 1 if a run has failed, 130 if it was interrupted."""
    args = _parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        errors = _run(args)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"nnUNetv2_semisam_benchmark: {error}") from error
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if errors:
        print(f"{len(errors)} runs failed:")
        for title, reason in errors.items():
            print(f"\n* {title}\n{reason}")
        raise SystemExit(1)


def _run(args: argparse.Namespace) -> dict[str, str]:
    from nnunet_semisam.benchmark.launch import ENOUGH_LOADERS, Launcher, cores, slots
    from nnunet_semisam.benchmark.measure import measure_arms
    from nnunet_semisam.benchmark.metrics import require_monai
    from nnunet_semisam.benchmark.planning import plan_steps
    from nnunet_semisam.benchmark.protocol import read_protocol
    from nnunet_semisam.benchmark.run import list_runs, run_benchmark

    protocol, work = read_protocol(protocol_values(args)), args.work.expanduser().resolve()
    if (args.workers is not None and args.workers < 1) or (args.loaders is not None and args.loaders < 0):
        raise ValueError("--workers must be at least 1 and --loaders at least 0")
    devices = _devices(args.devices)
    places = slots(devices, args.workers or len(devices), cores(), args.loaders)
    if few := [slot.loaders for slot in places if slot.kind == "cuda" and slot.loaders < ENOUGH_LOADERS]:
        print(f"WARNING: {min(few)} process(es) for augmentation per run: the GPU may wait for them (--loaders)")
    if not args.dry_run and (line := _changed(protocol.as_dict(), work / "protocol.json")):
        print(line)
    if args.measure:
        require_monai()
    not_timed = measure_arms(work, protocol, places) if args.measure else {}
    if args.dry_run:
        print(list_runs(plan_steps(work, protocol, Launcher()), protocol, len(places)))
        require_monai()
        return not_timed
    errors = run_benchmark(work, protocol, places)
    print(f"results: {work / 'results.html'}")
    return errors


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
