"""What the tables of docs/recovery.md compare: compressed models, and ways to win their quality back."""

from laconic.compress import Compress, Narrow, Shorten, Step
from laconic.methods import Drone, Fwsvd, KfacSvd, Magnitude, Svd
from laconic.recover import Correct, Distil, Finetune

CALIBRATION_ROWS = 128
FROZEN = ("*embeddings*",)
PACE = {"rows": 4000, "epochs": 1.0, "held_out": 200, "evaluations": 4, "freeze": FROZEN}

STARTS: dict[str, Step] = {
    **{
        f"{name}, {keep}": Compress(method=method, keep=keep)
        for name, method in {"svd": Svd(), "fwsvd": Fwsvd(), "drone": Drone(), "kfac-svd": KfacSvd()}.items()
        for keep in (0.5, 0.35)
    },
    "magnitude, 80 % zeros": Compress(method=Magnitude(sparsity=0.8), allocate="global"),
    "heads, 50 %": Narrow(heads=0.5),
    "blocks, −3 of 6": Shorten(drop=3, select="dp"),
}
"""The rows of the table."""

NEAR = ("drone, 0.5", "kfac-svd, 0.5", "kfac-svd, 0.35", "heads, 50 %")
"""Rows so close to the dense model that 1e-4 would lead away from it."""

WAYS = ("as it is", "correct", "finetune", "distil")
"""The columns of the table."""


def way(name: str, start: str) -> Step | None:
    """One column's step, from the compressed model itself."""
    learning_rate = 3e-5 if start in NEAR else 1e-4
    steps = {
        "correct": Correct(),
        "finetune": Finetune(**PACE, learning_rate=learning_rate),
        "distil": Distil(**PACE, learning_rate=learning_rate, hidden=0.1),
    }
    return steps.get(name)
