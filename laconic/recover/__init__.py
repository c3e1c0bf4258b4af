"""Steps that win quality back: trained on the task, taught by the original, or corrected in closed form."""

from laconic.compress import Step
from laconic.recover.correct import Correct

RECOVERING: tuple[type[Step], ...] = (Correct,)

__all__ = ["RECOVERING", "Correct"]
