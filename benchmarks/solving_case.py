"""Solve one matrix, and print a JSON object with the CPU seconds of each phase, the peak of memory and the loss.

A program of its own: `python solving_case.py METHOD OUT IN`, METHOD as JSON. It uses the laconic that PYTHONPATH names,
so that two versions can be measured side by side. Weights are random. Inputs and gradients are correlated, and their
features differ in size, as in a trained model.
"""

import cProfile
import json
import pstats
import resource
import sys
from pathlib import Path

import torch

from laconic.calibrate import AbsMean, Fisher, GradCovariance, InputCovariance, LayerStats
from laconic.methods import Method
from laconic.methods.registry import parse_method
from laconic.numerics.moments import quadratic_loss

ROWS = 2048
"""Tokens: 16 texts of 128."""
FACTORS = 256
"""Directions in which inputs vary most."""
PHASES = {
    "search": {"grid.fit_grid"},
    "sweep": {"gptq.sweep_columns", "column_sweep.round", "ldlq.ldlq", "obs.prune_columns"},
    "refit": {"coupled_refit.refit", "refit.refine", "refit.refit"},
    "factors": {"obs.inverse_cholesky", "moments.root_factor", "moments.eigh", "ldlq.unit_factor", "gptq.from_hessian"}
    | {"factors.from_moment", "factors.inverse_diagonal", "obs.correlations"},
}
"""Functions by phase, by the names of their modules. Those that they call count with them."""


def main() -> None:
    """Measure the case that the arguments name."""
    torch.manual_seed(0)
    parameters, rows, columns = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    method = parse_method(parameters, "METHOD")
    at_start = megabytes("VmRSS")
    W = torch.randn(rows, columns) / columns**0.5
    stats, seconds = collect(method, rows, columns)
    before_solving = megabytes("VmRSS")
    profile = cProfile.Profile(cpu_seconds)
    start = cpu_seconds()
    with torch.no_grad():
        result = profile.runcall(method.compress, W, stats)
    solving = cpu_seconds() - start
    peak = megabytes("VmHWM")
    seconds |= by_phase(pstats.Stats(profile))
    print(
        json.dumps(
            {
                "seconds": seconds | {"solving": solving},
                "megabytes": {"statistics": before_solving - at_start, "peak": peak - at_start},
                "loss": relative_loss(W, result.dense().detach(), stats),
            }
        )
    )


def collect(method: Method, rows: int, columns: int) -> tuple[LayerStats, dict[str, float]]:
    """The statistics that the method reads, and the seconds of the second moment of the inputs."""
    x, statistics, seconds = correlated(columns), [], 0.0
    for kind in (InputCovariance, AbsMean):
        if kind in method.required_statistics:
            statistics.append(kind.empty(columns, False, x.device))
            start = cpu_seconds()
            for text in x.split(128 * 16):
                statistics[-1].update(text)
            seconds += cpu_seconds() - start if kind is InputCovariance else 0.0
    for kind in (GradCovariance, Fisher):
        if kind in method.required_statistics:
            statistics.append(kind.empty((rows, columns), x.device))
            statistics[-1].update(x[None], correlated(rows)[None])
            statistics[-1].count = ROWS
    return LayerStats(statistics), {"gram": seconds}


def correlated(features: int) -> torch.Tensor:
    """Vectors, (ROWS, features), that vary mostly in FACTORS directions."""
    scale = torch.randn(features).mul(0.7).exp()
    common = torch.randn(ROWS, FACTORS) @ (torch.randn(FACTORS, features) / FACTORS**0.5)
    return (common + 0.3 * torch.randn(ROWS, features)) * scale


def by_phase(stats: pstats.Stats) -> dict[str, float]:
    """Seconds of each phase. A function that another one of PHASES called does not count."""
    known = {name: phase for phase, names in PHASES.items() for name in names}
    seconds = dict.fromkeys(PHASES, 0.0)
    for function, (_, _, _, _, callers) in vars(stats)["stats"].items():
        if (name := _name(function)) in known:
            seconds[known[name]] += sum(call[3] for caller, call in callers.items() if _name(caller) not in known)
    return seconds


def _name(function: tuple[str, int, str]) -> str:
    """`module.name` of a function of a profile."""
    path, _, name = function
    return f"{Path(path).stem}.{name}"


def relative_loss(W: torch.Tensor, approximation: torch.Tensor, stats: LayerStats) -> float:
    """½ tr(F E C E^T), as a fraction of that of E = W; F is the identity if the method does not read it."""
    C = stats[InputCovariance].matrix
    F = stats[GradCovariance].matrix if GradCovariance in stats else torch.ones(len(W))
    return quadratic_loss(W - approximation.float(), F, C) / quadratic_loss(W, F, C)


def cpu_seconds() -> float:
    """User CPU seconds of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def megabytes(name: str) -> float:
    """A size from the status of this process: VmRSS (at present) or VmHWM (at most so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e3


if __name__ == "__main__":
    main()
