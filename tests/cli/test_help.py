"""Every command answers `--help` at once, and without loading torch or nnU-Net."""

import subprocess
import sys
import time
from importlib import metadata

import pytest

LIMIT = 1.5  # seconds for a whole Python process; a quarter of that on an idle machine
HEAVY = ("torch", "nnunetv2", "numpy", "matplotlib", "SimpleITK", "batchgenerators")
CODE = """
import sys
from {module} import {function} as command
sys.argv = [{name!r}, "--help"]
try:
    command()
finally:
    print("loaded:", *(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""


def commands():
    try:
        scripts = metadata.distribution("nnunet_semisam").entry_points
    except metadata.PackageNotFoundError:
        skip = pytest.mark.skip(reason="nnunet_semisam is not installed (pip install -e .)")
        return [pytest.param(None, marks=skip, id="not-installed")]
    return [pytest.param(script, id=script.name) for script in scripts if script.group == "console_scripts"]


@pytest.mark.parametrize("script", commands())
def test_help_is_quick_and_light(script, tmp_path):
    code = CODE.format(module=script.module, function=script.attr, name=script.name, heavy=HEAVY)
    seconds = []
    for _ in range(3):  # the best of three: other programs may be busy
        start = time.perf_counter()
        run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - start)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(f"usage: {script.name}")
        assert run.stderr.strip() == "loaded:"
        if seconds[-1] < LIMIT:
            break
    assert min(seconds) < LIMIT, f"--help took {min(seconds):.2f} s"
