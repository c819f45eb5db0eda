"""`nnUNetv2_semisam_sam probe`: how good a generalist is at the classes of a data set; labeled training cases only."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nnunet_semisam.config import SamConfig
    from nnunet_semisam.data.labeled import LabeledCases
    from nnunet_semisam.sam.probe import Asked
    from nnunet_semisam.sam.verdict import Row
    from nnunet_semisam.types import LabeledCase

SOURCES = ("truth", "corrupted", "model")
ALONE = ("mask", "box", "points")
SHOWN = 2  # patches with a picture, per class and source
HELD = 48  # patches of several classes in memory
WARNING = "note: the model has learned from these very cases, so its prompts are better here than on unlabeled ones"


@dataclass(frozen=True)
class Task:
    """What is probed: the fold's labeled cases, and how the configuration sees them."""

    name: str
    config: SamConfig
    cases: LabeledCases
    heads: list[str]
    outputs: Any
    patch_size: Sequence[int]
    spacing: Sequence[float]
    device: torch.device


def probe(args: argparse.Namespace) -> int:
    """The subcommand: prints table and verdict, writes them with pictures and all trials to a folder."""
    import torch

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    task, model_folder, folder = _open(args, device)
    folder = _unused(args.o or folder)
    print(f"{task.name}: {len(task.cases)} labeled training case(s): {', '.join(task.cases.names)}")
    prompts: dict[str, Callable[[LabeledCase, int, int], Tensor]] = _prompts(args, task, model_folder)
    if "model" in prompts:
        print(WARNING)
    rows, trials = _run(args, task, prompts, folder)
    text = _report(rows)
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "probe.md").write_text(f"{text}\n", encoding="utf-8")
    content = {"sam": asdict(task.config), "cases": task.cases.names, "dice": args.dice}
    content |= {"rows": [asdict(row) | {"gain": row.gain} for row in rows], "trials": trials}
    (folder / "probe.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"written: {folder}")
    return 0


def _unused(folder: Path) -> Path:
    """The folder, or where it has the results of an earlier probe, one beside it with a number."""
    number, chosen = 1, folder
    while (chosen / "probe.json").exists():
        number += 1
        chosen = folder.with_name(f"{folder.name}_{number}")
    return chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("-d", required=True, metavar="ID", help="number or name of the data set")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-f", default="0", metavar="FOLD", help='fold whose "train" cases are used, or "all"')
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    parser.add_argument("--backend", help="generalist, e.g. embedded, segment_anything (default: as configured)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of the section, e.g. sam.checkpoint=FILE"
    )
    parser.add_argument(
        "--prompts-from", nargs="+", choices=SOURCES, default=["truth", "corrupted"], help="default: %(default)s"
    )
    parser.add_argument("--dice", type=_share, default=0.75, help="of corrupted prompts (default: %(default)s)")
    parser.add_argument("--each-kind", action="store_true", help="also mask, box and points alone")
    parser.add_argument("--patches", type=_count, default=12, metavar="N", help="per class (default: %(default)s)")
    parser.add_argument("-tr", default="nnUNetTrainerSemiSAM", metavar="TRAINER", help="of the model that prompts")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="for table, JSON and pictures (default: with results)")
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one")


def _open(args: argparse.Namespace, device: torch.device) -> tuple[Task, str, Path]:
    """The task, the folder of the model, and the default folder for results."""
    from nnunetv2.paths import nnUNet_results
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from nnunet_semisam.cli.plan import check_section, set_key
    from nnunet_semisam.config import SamConfig, SemiSAMConfig
    from nnunet_semisam.data.dataset import PlannedDataset
    from nnunet_semisam.data.labeled import LabeledCases, head_names
    from nnunet_semisam.data.splits import training_cases
    from nnunet_semisam.ops.outputs import OutputSpace

    planned = PlannedDataset.open(args.d, args.p)
    manager = planned.configurations([args.c])[args.c]
    section = json.loads(json.dumps(manager.configuration.get("semisam", {})))
    for assignment in ([f"sam.backend={args.backend}"] if args.backend else []) + args.set:
        set_key(section, assignment)
    check_section(section)
    config = SemiSAMConfig().with_section(section).sam or SamConfig()
    labels = planned.plans_manager.get_label_manager(planned.dataset_json)
    fold = args.f if args.f == "all" else int(args.f)
    if "model" in args.prompts_from and manager.previous_stage_name:
        raise ValueError(f"{args.c} is a cascade: its model cannot prompt here; leave model out of --prompts-from")
    names = training_cases(planned.folder / "splits_final.json", fold, known=planned.labeled_cases(manager))
    cases = LabeledCases(planned.folder / manager.data_identifier, names, labels)
    outputs = OutputSpace(labels.num_segmentation_heads, labels.has_regions)
    title = f"{planned.name}, {args.c}, fold {fold}, {config.backend}"
    shape = manager.patch_size, manager.spacing
    task = Task(title, config, cases, head_names(labels), outputs, *shape, device)
    place = Path(str(nnUNet_results)) / planned.name / f"semisam_probe__{args.p}__{args.c}"
    return task, get_output_folder(args.d, args.tr, args.p, args.c), place / f"fold_{fold}_{config.backend}"


def _prompts(args: argparse.Namespace, task: Task, model_folder: str) -> dict[str, Any]:
    """For each source a function from patch, head and number to the probabilities that prompt."""
    from nnunet_semisam.sam.probe import corrupted_prob, truth_prob

    made: dict[str, Any] = {
        "truth": lambda patch, head, number: truth_prob(patch, head, task.outputs),
        "corrupted": lambda patch, head, number: corrupted_prob(
            patch, head, task.outputs, wanted=args.dice, number=number
        ),
    }
    if "model" in args.prompts_from:
        made["model"] = _model(args, task, model_folder)
    return {source: made[source] for source in dict.fromkeys(args.prompts_from)}


def _model(args: argparse.Namespace, task: Task, folder: str) -> Callable[[LabeledCase, int, int], Tensor]:
    """The probabilities of a trained network on a patch."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_semisam.ops.outputs import full_resolution

    file = Path(folder) / f"fold_{args.f}" / args.chk
    if not file.is_file():
        raise ValueError(f"{file} does not exist; train first, or name another model with -tr and -chk")
    predictor = nnUNetPredictor(device=task.device, allow_tqdm=False)
    fold = args.f if args.f == "all" else int(args.f)
    predictor.initialize_from_trained_model_folder(folder, use_folds=(fold,), checkpoint_name=args.chk)
    network = predictor.network.to(task.device).eval()

    def predict(patch: LabeledCase, head: int, number: int) -> Tensor:
        with torch.no_grad():
            return task.outputs.prob(full_resolution(network(patch.image[None].float().to(task.device))))[0].cpu()

    return predict


def _run(args: argparse.Namespace, task: Task, prompts: dict[str, Any], folder: Path) -> tuple[list[Row], list[dict]]:
    import torch
    from tqdm import tqdm

    from nnunet_semisam.cli.probe_picture import draw
    from nnunet_semisam.sam import build_backend
    from nnunet_semisam.sam.probe import Prober, patches_by_head
    from nnunet_semisam.sam.verdict import summarize

    backend = build_backend(task.config, task.device, task.spacing)
    configs = [task.config, *(replace(task.config, prompts=(kind,)) for kind in ALONE if args.each_kind)]
    probers = {config.prompts: Prober(backend, config, task.outputs, task.device) for config in configs}
    rows, trials, heads = [], [], task.outputs.foreground_heads
    at_once = max(1, HELD // args.patches)
    groups = (heads[first : first + at_once] for first in range(0, len(heads), at_once))
    shown = (patches_by_head(task.cases, group, patch_size=task.patch_size, count=args.patches) for group in groups)
    for head, patches in (pair for found in shown for pair in found.items()):
        name = task.heads[head]
        for source, prompt in prompts.items():
            found: dict[tuple[str, ...], list[Asked]] = {kinds: [] for kinds in probers}
            chosen = patches if source == "corrupted" else _distinct(patches)
            for number, patch in enumerate(tqdm(chosen, desc=f"{name}, {source}", leave=False, disable=None)):
                prob = prompt(patch, head, number).to(torch.float32)
                for kinds, prober in probers.items():
                    asked = prober.ask(patch, prob, head, iteration=number)
                    if asked is not None:
                        found[kinds].append(asked)
                        if kinds == task.config.prompts and len(found[kinds]) <= SHOWN:
                            draw(patch, head, asked, folder / f"{_file_name(name)}_{source}_{number}.png")
            for kinds, answers in found.items():
                if answers:
                    rows.append(summarize([a.trial for a in answers], name=name, source=source, kinds=kinds))
                trials += [{"class": name, "source": source, "kinds": kinds, **asdict(a.trial)} for a in answers]
            if not any(found.values()):
                what = "prediction" if source == "model" else "object"
                print(f"{name}, {source}: no {what} of {task.config.min_voxels} voxels in {len(chosen)} patch(es)")
    return rows, trials


def _count(text: str) -> int:
    """A number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def _file_name(class_name: str) -> str:
    """A class name as part of a file name: classes may be called "left/right kidney"."""
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in class_name)


def _distinct(patches: list[LabeledCase]) -> list[LabeledCase]:
    """Where a patch holds the whole case, the same one comes again and again; only corruptions of it differ."""
    chosen: list[LabeledCase] = []
    for patch in patches:
        same = (other for other in chosen if other.name == patch.name and bool((other.image == patch.image).all()))
        if not any(same):
            chosen.append(patch)
    return chosen


def _report(rows: list[Row]) -> str:
    from nnunet_semisam.sam.verdict import markdown, sentence

    configured = {(row.name, row.source): row for row in reversed(rows)}  # the first of each is the configured one
    lines = [markdown(rows), ""]
    for (name, source), row in reversed(configured.items()):
        if source == "truth":
            lines.append(f"{name}: of a perfect prompt an answer of Dice {row.answer:.3f} is left.")
        else:
            lines.append(sentence(row))
    return "\n".join(lines)


def _share(text: str) -> float:
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


if __name__ == "__main__":
    sys.exit("this is the subcommand `probe` of nnUNetv2_semisam_sam")
