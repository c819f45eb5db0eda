"""The configuration of a run: dataclass defaults < preset of the trainer class < `semisam` section of the plans."""

from nnunet_semisam.config.sam import POINT_SOURCES, PROMPT_KINDS, WEIGHTS, SamConfig
from nnunet_semisam.config.section import SECTION, in_effect, is_section, section_of
from nnunet_semisam.config.semisam import SemiSAMConfig
from nnunet_semisam.config.term import TermConfig

__all__ = [
    "POINT_SOURCES",
    "PROMPT_KINDS",
    "SECTION",
    "WEIGHTS",
    "SamConfig",
    "SemiSAMConfig",
    "TermConfig",
    "in_effect",
    "is_section",
    "section_of",
]
