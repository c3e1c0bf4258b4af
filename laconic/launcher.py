"""Whether a launcher, such as `torchrun` or `accelerate launch`, started this process as one of several."""

import os

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets in the environment of each process."""


def launched() -> bool:
    """Whether there are others that this process works with."""
    return all(name in os.environ for name in LAUNCHED) and os.environ["WORLD_SIZE"] != "1"
