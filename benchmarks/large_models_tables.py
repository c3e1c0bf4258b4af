"""Write the tables of docs/figures/large-models.md from the cells of `python -m benchmarks large_models`."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.large_models import BEFORE, CELLS, KILLED, MEMORY, METHODS, NOW, PEER, PEER_METHOD, PEER_SCRIPT, STREAM
from benchmarks.large_models_results import TOKENS
from benchmarks.tables import ROOT, replace_between

BEGIN = "<!-- made by `python -m benchmarks large_models_tables` -->"
PAGE = ROOT / "docs/figures/large-models.md"
MIB = 2**20
Cell = Mapping[str, Any]
Found = Mapping[tuple[str, str, str, str], Cell]
"""The cells by model, method, build and mode."""


@dataclass(frozen=True)
class Target:
    """An upper bound that a streamed case should keep to.

    Args:
        model: the name of the model.
        method: the name of the method.
        quantity: the quantity in words, with its unit.
        bound: the bound.
        value: the quantity of the streamed cell, and of the earlier build's cell, which may be missing.
    """

    model: str
    method: str
    quantity: str
    bound: float
    value: Callable[[Cell, Cell | None], float | None]


def peak_gigabytes(cell: Cell, before: Cell | None) -> float:
    """The largest resident memory in gigabytes."""
    return cell["peak"] / 1e9


def relative_seconds(cell: Cell, before: Cell | None) -> float | None:
    """CPU seconds relative to the earlier build in memory; None if that was not measured."""
    return None if before is None else cell["cpu_seconds"] / before["cpu_seconds"]


TARGETS = (
    Target("0.5b", "gptq", "peak, GB", 1.6, peak_gigabytes),
    Target("0.5b", "gptq", "CPU seconds, relative to the earlier build", 0.33, relative_seconds),
    *(Target("0.5b", method, "peak, GB", 2.5, peak_gigabytes) for method in ("kfac-svd", "yaqa")),
    Target("0.5b", "kfac-prune", "peak of four blocks, GB", 2.5, peak_gigabytes),
    Target("1.5b", "gptq", "peak, GB", 2.3, peak_gigabytes),
    Target("7B", "gptq", "peak, GB", 6, peak_gigabytes),
)


def main(argv: Sequence[str]) -> None:
    """Write the tables into docs/figures/large-models.md."""
    argparse.ArgumentParser(description=main.__doc__).parse_args(argv)
    cells = {tuple(cell[name] for name in CELLS.key_names): cell for cell in CELLS}
    if cells:
        tables = [table(cells, method) for method in METHODS]
        parts = [compare_ways(cells), *tables, kills(cells), peers(cells), law(cells), targets(cells)]
        replace_between(PAGE, "\n\n".join([*filter(None, parts), circumstances(cells)]) + "\n", BEGIN)


def models_of(cells: Found) -> list[str]:
    """The names of the models, the smallest first."""
    sizes = {cell["model"]: cell["parameters"] for cell in cells.values()}
    return sorted(sizes, key=sizes.__getitem__)


def compare_ways(cells: Found) -> str:
    """Sentences: how much slower streaming is, and whether its results equal those in memory."""
    streamed = [(key, cell) for key, cell in cells.items() if key[3] == STREAM]
    pairs = [(cell, cells[*key[:3], MEMORY]) for key, cell in streamed if (*key[:3], MEMORY) in cells]
    if not pairs:
        return ""
    ratios = {f"{cell['method']} of {cell['model']}": _seconds(cell) / _seconds(beside) for cell, beside in pairs}
    slowest, fastest = max(ratios, key=ratios.__getitem__), min(ratios, key=ratios.__getitem__)
    lines = [
        f"- Streaming takes {ratios[fastest]:.2f} (`{fastest}`) to {ratios[slowest]:.2f} times (`{slowest}`) the CPU "
        "seconds of the same command in memory."
    ]
    compared = [cell for _, cell in streamed if "unequal" in cell]
    unequal = [cell for cell in compared if cell["unequal"]]
    lines.append(
        f"- {len(compared) - len(unequal)} of {len(compared)} streamed results that were compared equal the result in "
        "memory: every tensor, bit for bit."
    )
    lines += [
        f"- `{cell['method']}` of {cell['model']}: {len(cell['unequal'])} tensors differ, KL to the result in memory "
        f"{cell['kl_to_reference']:.1g} (to the original {cell['kl']:.2g})."
        for cell in unequal
    ]
    return "\n".join(lines)


def table(cells: Found, method: str) -> str:
    """Memory, time and disk of one method; empty if nothing was measured."""
    rows = []
    for model in models_of(cells):
        ways = [cells.get((model, method, *way)) for way in ((BEFORE, MEMORY), (NOW, MEMORY), (NOW, STREAM))]
        some = next(filter(None, ways), None)
        if some is None:
            continue
        stream = ways[-1]
        disk = "| | " if stream is None else f"| {stream['anonymous'] / MIB:,.0f} | {stream['scratch'] / MIB:,.0f} "
        rows.append(
            f"| {model} | {some['parameters'] / 1e6:,.0f} | {block_bytes(some) / MIB:,.0f} "
            f"{''.join(map(_way, ways))}{disk}| {some['bytes'] / MIB:,.0f} |"
        )
    if not rows:
        return ""
    return "\n".join(
        [
            f"### {method}",
            "",
            f"`{' '.join(METHODS[method])}`",
            "",
            "| model | parameters, million | one block in float32 | earlier build | in memory | streamed "
            "| anonymous, streamed | scratch | result |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
            *rows,
        ]
    )


def kills(cells: Found) -> str:
    """Runs that were killed and went on; empty if none was measured."""
    killed = {key: cell for key, cell in cells.items() if key[3] == KILLED}
    if not killed:
        return ""
    lines = [
        "### Killed and resumed",
        "",
        "The process is killed (SIGKILL) three times, and the same command goes on each time. A place of 2.5 is "
        "halfway through the third block. Hours are CPU hours of all four processes.",
        "",
        "| model | method | killed at | hours | beside no kill | peak, MiB | scratch, MiB | result |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for (model, method, build, _), cell in killed.items():
        whole = cells.get((model, method, build, STREAM))
        ratio = "not measured" if whole is None else f"{_seconds(cell) / _seconds(whole):.2f}"
        equal = "not compared" if "unequal" not in cell else "differs" if cell["unequal"] else "equal, bit for bit"
        places = ", ".join(f"{place:.1f}" for place in cell["kills"])
        lines.append(
            f"| {model} | {method} | {places} | {_seconds(cell) / 3600:.2f} | {ratio} | {cell['peak'] / MIB:,.0f} "
            f"| {cell['scratch'] / MIB:,.0f} | {equal} |"
        )
    return "\n".join(lines)


def peers(cells: Found) -> str:
    """llm-compressor beside laconic on the same rows; empty if it was not measured."""
    theirs = {key[0]: cell for key, cell in cells.items() if key[2] == PEER}
    if not theirs:
        return ""
    lines = [
        "### Beside llm-compressor",
        "",
        f"GPTQ with 4 bits and groups of 64 on the same rows: `{PEER_SCRIPT.relative_to(ROOT)}`. The embedding and the "
        f"head stay as they are. KL to the original, in nats, on some other texts of {TOKENS} tokens.",
        "",
        "| model | | CPU seconds | peak, MiB | KL | texts | result, MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for model in filter(theirs.__contains__, models_of(cells)):
        beside = {PEER: theirs[model]} | {
            f"laconic, {mode}": cells[key]
            for mode in (MEMORY, STREAM)
            if (key := (model, PEER_METHOD, NOW, mode)) in cells
        }
        lines += [
            f"| {model} | {name} | {_seconds(cell):,.0f} | {cell['peak'] / MIB:,.0f} | {cell['kl']:.4f} "
            f"| {cell['texts']} | {cell['bytes'] / MIB:,.0f} |"
            for name, cell in beside.items()
        ]
    versions = ", ".join(f"{name} {number}" for name, number in next(iter(theirs.values()))["versions"].items())
    return "\n".join([*lines, "", f"Versions of the peer: {versions}."])


def block_bytes(cell: Cell) -> int:
    """Bytes of one block in float32."""
    return 4 * cell["block_parameters"]


def law(cells: Found) -> str:
    """Streamed: anonymous memory beside that of the imports in blocks, and CPU seconds for each million parameters."""
    models = [model for model in models_of(cells) if any(key[0] == model and key[3] == STREAM for key in cells)]
    if not models:
        return ""
    lines = [
        "### Growth",
        "",
        "Streamed: anonymous memory without that of the imports, divided by the bytes of one block in float32 / CPU "
        "seconds without those of the imports, for each million parameters.",
        "",
        f"| | {' | '.join(models)} |",
        "|---|" + "---:|" * len(models),
    ]
    # The seconds of a few blocks are not those of all parameters.
    for method in (method for method, options in METHODS.items() if "--targets" not in options):
        found = [cells.get((model, method, NOW, STREAM)) for model in models]
        if any(found):
            lines.append(f"| {method} | {' | '.join('' if cell is None else _growth(cell) for cell in found)} |")
    return "\n".join(lines)


def targets(cells: Found) -> str:
    """The targets, and whether they are met."""
    lines = ["### Targets", "", "| model | method | quantity | at most | measured | |", "|---|---|---|---:|---:|---|"]
    for target in TARGETS:
        stream = cells.get((target.model, target.method, NOW, STREAM))
        stream = stream or cells.get((target.model, target.method, NOW, KILLED))
        before = cells.get((target.model, target.method, BEFORE, MEMORY))
        value = None if stream is None else target.value(stream, before)
        verdict = "not measured" if value is None else "met" if value <= target.bound else "missed"
        measured = "" if value is None else f"{value:.2f}"
        lines.append(
            f"| {target.model} | {target.method} | {target.quantity} | {target.bound:g} | {measured} | {verdict} |"
        )
    return "\n".join(lines)


def circumstances(cells: Found) -> str:
    """The builds, versions and processor of the cells."""
    commits = {
        build: sorted({cell["commit"] for key, cell in cells.items() if key[2] == build}) for build in (BEFORE, NOW)
    }
    last = [cell for key, cell in cells.items() if key[2] != PEER][-1]
    imports = last["imports"]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    builds = f"Commits: {', '.join(commits[NOW])}" + (
        f"; earlier build: {', '.join(commits[BEFORE])}" * bool(commits[BEFORE])
    )
    return (
        f"The imports alone take {imports['peak'] / MIB:,.0f} MiB ({imports['anonymous'] / MIB:,.0f} anonymous) and "
        f"{imports['cpu_seconds']:.1f} s. {builds}. {last['processor']}, one thread; {versions}."
    )


def _way(cell: Cell | None) -> str:
    """Peak and CPU seconds of one cell."""
    return "| " if cell is None else f"| {cell['peak'] / MIB:,.0f}, {_seconds(cell):,.0f} s "


def _growth(cell: Cell) -> str:
    blocks = (cell["anonymous"] - cell["imports"]["anonymous"]) / block_bytes(cell)
    seconds = (_seconds(cell) - cell["imports"]["cpu_seconds"]) / (cell["parameters"] / 1e6)
    return f"{blocks:.1f} / {seconds:.2f}"


def _seconds(cell: Cell) -> float:
    return cell["cpu_seconds"]
