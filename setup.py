"""Packaging of `nnunet_semisam`: the package, the folder in which nnU-Net looks for trainers, and the start-up line."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

START_UP_LINE = "nnunet_semisam.pth"
COMMANDS = ["preprocess", "check", "plan", "sam", "demo", "benchmark"]


class BuildWithStartUpLine(build_py):
    """Also puts the start-up line beside the packages.

    In an editable wheel nothing is taken from `build_lib`; what lies in the folder of `install_lib` is packed as it is.
    """

    def run(self):
        super().run()
        install_lib = self.get_finalized_command("install").install_lib
        self.copy_file(START_UP_LINE, install_lib if self.editable_mode else self.build_lib)

    def get_outputs(self, include_bytecode=True):
        ours = [] if self.editable_mode else [str(Path(self.build_lib, START_UP_LINE))]
        return [*super().get_outputs(include_bytecode), *ours]


def version():
    text = (ROOT / "nnunet_semisam" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def long_description():
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="nnunet_semisam",
    version=version(),
    description="Semi-supervised nnU-Net: a mean teacher, helped by a promptable generalist such as SAM",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["nnunet_semisam", "nnunet_semisam.*"]), "nnunet_semisam.trainers"],
    package_dir={"nnunet_semisam.trainers": "trainers"},
    package_data={"nnunet_semisam": ["py.typed", "sam/embedded/weights.pt", "sam/embedded/MODEL_CARD.md"]},
    cmdclass={"build_py": BuildWithStartUpLine},
    install_requires=[
        "nnunetv2>=2.8.0,<2.9",  # 2.8.0 is the first that reads nnUNet_extTrainer
        "torch>=2.5",  # reads checkpoints without running what is in them
        "torchvision",  # segment-anything needs it and does not say so
        "segment-anything==1.0",
        "batchgenerators>=0.25.1",
        "batchgeneratorsv2>=0.3.2",
        "SimpleITK>=2.2.1",
        "acvl-utils>=0.2.6,<0.3",
        "connected-components-3d>=3.10",  # acvl-utils needs it, too
        "numpy>=1.24",
        "scipy",
        "matplotlib",
        "tqdm",
        "jaxtyping>=0.2.30",
        "joblib",  # knows how many cores a container allows; scikit-learn, which nnU-Net wants, needs it, too
    ],
    extras_require={
        "benchmark": ["monai>=1.5,<2"],
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "monai>=1.5,<2",
            "beartype>=0.18",
            "ruff>=0.12",
            "mypy>=1.15",
            "build",
        ],
    },
    entry_points={
        "console_scripts": [f"nnUNetv2_semisam_{name} = nnunet_semisam.cli.{name}:main" for name in COMMANDS],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Healthcare Industry",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
