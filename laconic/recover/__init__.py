"""Steps that win quality back: trained on the task, taught by the original, or corrected in closed form."""

from laconic.compress import Step
from laconic.recover.correct import Correct
from laconic.recover.distil import Distil, Finetune
from laconic.recover.layer_matching import Match
from laconic.recover.student import Student

RECOVERING: tuple[type[Step], ...] = (Correct, Student, Finetune, Distil)
"""The steps of this package."""

__all__ = ["RECOVERING", "Correct", "Distil", "Finetune", "Match", "Student"]
