"""Steps that win quality back: trained on the task, taught by the original, or corrected in closed form."""

from laconic.compress import Step
from laconic.recover.distil import Distil
from laconic.recover.finetune import Finetune
from laconic.recover.matches import Match

RECOVERING: tuple[type[Step], ...] = (Finetune, Distil)

__all__ = ["RECOVERING", "Distil", "Finetune", "Match"]
