"""Every step that a recipe may have, in the order in which they are listed."""

from laconic.compress import SHRINKING, Step
from laconic.recover import RECOVERING

STEPS: tuple[type[Step], ...] = (*SHRINKING, *RECOVERING)
