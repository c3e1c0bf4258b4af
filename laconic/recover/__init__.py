"""Steps that win quality back: trained on the task, taught by the original, or corrected in closed form."""

from laconic.compress import Step

RECOVERING: tuple[type[Step], ...] = ()

__all__ = ["RECOVERING"]
