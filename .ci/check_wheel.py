"""Checks that a wheel holds every source file, the shims, the start-up line and the weights, and nothing else."""

import sys
import zipfile
from pathlib import Path

root = Path(__file__).parent.parent
held = set(zipfile.ZipFile(sys.argv[1]).namelist())
wanted = {path.relative_to(root).as_posix() for path in (root / "nnunet_semisam").rglob("*.py")}
wanted |= {f"nnunet_semisam/trainers/{path.name}" for path in (root / "trainers").glob("*.py")}
wanted |= {f"nnunet_semisam/sam/embedded/{name}" for name in ("weights.pt", "MODEL_CARD.md")}
wanted |= {"nnunet_semisam.pth", "nnunet_semisam/py.typed"}

problems = [f"missing: {name}" for name in sorted(wanted - held)]
problems += [f"stray: {name}" for name in sorted(held) if not name.startswith("nnunet_semisam")]
print("\n".join(problems) or f"wheel: {len(held)} files, complete")
sys.exit(bool(problems))
