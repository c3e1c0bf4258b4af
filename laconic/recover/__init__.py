"""Steps that recover quality: fine-tuning, distillation from the original, and correction in closed form."""

from laconic.compress import Step
from laconic.recover.correct import Correct
from laconic.recover.distil import Distil, Finetune
from laconic.recover.layer_matching import Match
from laconic.recover.student import Student

RECOVERING: tuple[type[Step], ...] = (Correct, Student, Finetune, Distil)
"""All steps of this package, in the order in which the command line lists them."""

__all__ = ["RECOVERING", "Correct", "Distil", "Finetune", "Match", "Student"]
