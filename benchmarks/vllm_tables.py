"""Write the tables of docs/figures/vllm.md from the lines of `python -m benchmarks vllm` and `greedy`."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import greedy
from benchmarks.tables import ROOT, replace_between
from benchmarks.vllm import CELLS, EAGER, ENGINE, EXACT, MAKE, SPEED, WAYS

BEGIN = "<!-- made by `python -m benchmarks vllm_tables` -->"
PAGE = ROOT / "docs/figures/vllm.md"
MIB = 2**20
KL_BESIDE_PEER, NATS, DECODE, PREFILL = 0.7, 0.02, 4.0, 3.0
"""The targets: KL relative to llm-compressor's; and of the best folder its KL and its speed relative to eager torch."""
ALIKE = 0.95
"""Speeds whose ratio is at least this count as equal: as much do the turns of one model differ."""
COMPARED = {
    "KL": (EXACT, "kl", 1, True),
    "CPU seconds": (MAKE, "cpu_seconds", 1, True),
    "peak memory, MB": (MAKE, "peak", 1e6, True),
    "size of the matrices, MB": (MAKE, "matrix_bytes", 1e6, True),
    "prefill": (SPEED, "prefill", 1, False),
    "decode": (SPEED, "decode", 1, False),
}
"""Quantities: the step and the name of the figure, its unit, and whether less is better."""
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The cells of one model.

    Args:
        model: its name.
        cells: the cells by step and way.
    """

    model: str
    cells: Mapping[tuple[str, str], Cell]

    def get(self, step: str, way: str) -> Cell | None:
        """The cell of a step and a way; None if it was not measured."""
        return self.cells.get((step, way))

    def ways(self, scheme: str, peer: bool) -> list[str]:
        """The ways of a scheme that were made: llm-compressor's, or laconic's."""
        return [
            way
            for way, spec in WAYS.items()
            if spec.scheme == scheme and bool(spec.peer) == peer and (MAKE, way) in self.cells
        ]

    def kl(self, way: str | None) -> float | None:
        """The exact KL of a way; None if it was not measured."""
        return self.cells[EXACT, way]["kl"] if way is not None and (EXACT, way) in self.cells else None

    def best(self, scheme: str, peer: bool) -> str | None:
        """The way with the lowest exact KL, or one of which nothing is known but its cost; None if there is no way."""
        ways = self.ways(scheme, peer)
        ways = [way for way in ways if (EXACT, way) in self.cells] or ways[:1]
        return min(ways, key=lambda way: self.kl(way) or 0.0, default=None)


def main(argv: Sequence[str]) -> None:
    """Write the tables into docs/figures/vllm.md."""
    argparse.ArgumentParser(description=main.__doc__).parse_args(argv)
    parts = []
    for model in dict.fromkeys(cell["model"] for cell in CELLS):
        results = Results(model, {(cell["step"], cell["way"]): cell for cell in CELLS.where(model=model)})
        parts += [*peer_ahead(results), *quality(results), *speed(results), *targets(results), circumstances(results)]
    parts += texts(list(greedy.CELLS))
    replace_between(PAGE, "\n".join(parts) + "\n", BEGIN)


def schemes() -> list[str]:
    """The names of the schemes, in order."""
    return list(dict.fromkeys(spec.scheme for spec in WAYS.values()))


def peer_ahead(results: Results) -> Iterator[str]:
    """Sentences about what llm-compressor does better; one if there is nothing."""
    lines = []
    for scheme in schemes():
        peer, ours = results.best(scheme, peer=True), results.best(scheme, peer=False)
        if peer is None or ours is None:
            continue
        for quantity, (step, name, unit, lower) in COMPARED.items():
            theirs, mine = results.get(step, peer), results.get(step, ours)
            if theirs is None or mine is None:
                continue
            first, second = theirs[name] / unit, mine[name] / unit
            if (first < second) if lower else (second < ALIKE * first):
                lines.append(f"- {scheme}, {quantity}: {number(first)} (`{peer}`) beside {number(second)} (`{ours}`).")
    if any(results.best(scheme, peer=True) and results.best(scheme, peer=False) for scheme in schemes()):
        yield f"### {results.model}: where llm-compressor is ahead"
        yield ""
        yield from lines or ["- In none of the quantities below, between the ways of least KL of each scheme."]
        yield ""


def quality(results: Results) -> Iterator[str]:
    """KL, bytes and CPU seconds of every way."""
    yield f"### {results.model}: distance from the original"
    yield ""
    yield (
        "| scheme | way | KL, exact | beside the best llm-compressor | KL in vLLM, at least | same token "
        "| bits a weight | file, MiB | CPU seconds | peak, MiB |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for scheme in schemes():
        best = results.kl(results.best(scheme, peer=True))
        for way in [*results.ways(scheme, peer=True), *results.ways(scheme, peer=False)]:
            exact, engine, made = (results.get(step, way) for step in (EXACT, ENGINE, MAKE))
            ratio = "" if exact is None or best is None else f"{exact['kl'] / best:.2f}"
            same = "" if exact is None else f"{exact['same_token']:.1%}"
            yield f"| {scheme} | {way} | {_kl(exact)} | {ratio} | {_kl(engine)} | {same} | {_made(made)} |"
    yield ""


def _kl(cell: Cell | None) -> str:
    return "not measured" if cell is None else f"{cell['kl']:.4f} ± {cell['error']:.4f}"


def _made(cell: Cell | None) -> str:
    if cell is None:
        return "| | | "
    bits = 8 * cell["matrix_bytes"] / cell["matrix_weights"]
    exported = f" + {cell['export_cpu_seconds']:.0f}" if "export_cpu_seconds" in cell else ""
    return f"{bits:.2f} | {cell['bytes'] / MIB:,.0f} | {cell['cpu_seconds']:.0f}{exported} | {cell['peak'] / MIB:,.0f}"


def speed(results: Results) -> Iterator[str]:
    """Tokens a second of every way, and beside eager transformers."""
    eager = results.get(SPEED, EAGER)
    if eager is None:
        return
    yield f"### {results.model}: speed"
    yield ""
    yield "| way | prefill, tokens/s | quartiles | beside eager | decode, tokens/s | quartiles | beside eager |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for way in (EAGER, *WAYS):
        cell = results.get(SPEED, way)
        if cell is not None:
            numbers = (
                f"{cell[name]:.4g} | {_quartiles(cell[f'{name}_quartiles'])} | {cell[name] / eager[name]:.2f}×"
                for name in ("prefill", "decode")
            )
            yield f"| {way} | {' | '.join(numbers)} |"
    yield ""


def _quartiles(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}"


def targets(results: Results) -> Iterator[str]:
    """The targets, and whether they are met."""
    yield f"### {results.model}: targets"
    yield ""
    yield "| target | way | measured | verdict |"
    yield "|---|---|---:|---|"
    for scheme in schemes():
        peer = results.best(scheme, peer=True)
        least = results.kl(peer)
        for way in results.ways(scheme, peer=False):
            said, kl = f"{scheme}: KL at most {KL_BESIDE_PEER} × llm-compressor's", results.kl(way)
            if kl is None or least is None:
                yield f"| {said} | {way} | | not measured |"
            else:
                yield f"| {said} (`{peer}`) | {way} | {kl / least:.2f} | {_verdict(kl <= KL_BESIDE_PEER * least)} |"
            yield from _same_speed(results, scheme, way)
    eager = results.get(SPEED, EAGER)
    if eager is not None:
        yield from _fastest(results, eager)
    yield ""


def _same_speed(results: Results, scheme: str, way: str) -> Iterator[str]:
    """The rows of the target that a way is as fast as llm-compressor's."""
    ours = results.get(SPEED, way)
    theirs = next(filter(None, (results.get(SPEED, peer) for peer in results.ways(scheme, peer=True))), None)
    if ours is None or theirs is None:
        return
    for name in ("prefill", "decode"):
        ratio = ours[name] / theirs[name]
        yield f"| {scheme}: {name} as fast as llm-compressor's | {way} | {ratio:.2f}× | {_verdict(ratio >= ALIKE)} |"


def _fastest(results: Results, eager: Cell) -> Iterator[str]:
    """The rows of the target for the fastest folder of laconic that is close enough to the original."""
    close = [way for scheme in schemes() for way in results.ways(scheme, peer=False)]
    kls = {way: results.kl(way) for way in close if results.get(SPEED, way)}
    close = [way for way, kl in kls.items() if kl is not None and kl <= NATS]
    if not close:
        yield f"| the best folder at most {NATS} nats away | none | | missed |"
        return
    way = max(close, key=lambda way: results.cells[SPEED, way]["decode"])
    said = f"the best folder at most {NATS} nats away"
    for name, least in (("decode", DECODE), ("prefill", PREFILL)):
        ratio = results.cells[SPEED, way][name] / eager[name]
        verdict = _verdict(ratio >= least)
        yield f"| {said}: {name} at least {least:g} × eager bfloat16 | {way} | {ratio:.2f}× | {verdict} |"


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def texts(cells: Sequence[Cell]) -> list[str]:
    """The table of greedy texts that engines write as torch does; empty if none was measured."""
    if not cells:
        return []
    head = (
        "| engine | model | equal texts | gaps where they first differ, median / largest "
        f"| texts that are equal or differ by less than {greedy.GAP:g} | verdict |"
    )
    lines = ["### Greedy text", "", head, "|---|---|---:|---:|---:|---|"]
    for cell in cells:
        gaps = sorted(cell["gaps"])
        shown = f"{gaps[len(gaps) // 2]:.2g} / {gaps[-1]:.2g}" if gaps else "none"
        good = cell["equal"] + cell["within"]
        dtype = f", computed in {cell['dtype']}" if cell["dtype"] else ""
        lines.append(
            f"| {cell['library']} | {cell['model']}{dtype} | {cell['equal']} of "
            f"{cell['prompts']} | {shown} | {good} | {_verdict(good == cell['prompts'])} |"
        )
    return [*lines, ""]


def circumstances(results: Results) -> str:
    """The versions and the processor of the cells."""
    made = [cell for (step, _), cell in results.cells.items() if step == MAKE]
    theirs, ours = ([cell for cell in made if ("commit" in cell) == mine] for mine in (False, True))
    commits = ", ".join(dict.fromkeys(cell["commit"] for cell in ours))
    libraries = ["", *dict.fromkeys(cell["library"] for (step, _), cell in results.cells.items() if step == SPEED)]
    return (
        f"llm-compressor: {_versions(theirs)}. laconic {commits}: {_versions(ours)}{', '.join(libraries)}. "
        f"{made[0]['processor']}, one thread.\n"
    )


def _versions(cells: Sequence[Cell]) -> str:
    versions = {name: number for cell in cells for name, number in cell["versions"].items()}
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def number(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
