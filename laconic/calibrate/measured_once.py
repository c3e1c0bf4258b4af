"""Two passes over a streamed model, for a plan and for the result. Only the first pass measures.

A plan that compares all layers needs their solutions before the first of them is replaced. If these serve every size,
they are kept on disk (`laconic.calibrate.solution_files`), and the second pass runs no block.
"""

from collections.abc import Collection, Iterator, Sequence

from laconic.calibrate.block_pass import find_finished
from laconic.calibrate.blockwise import by_part, choose_pass, run_pass, visit
from laconic.calibrate.collect_stats import Calibration
from laconic.calibrate.sequential import LayerProblems
from laconic.calibrate.solution_files import SolutionFiles
from laconic.calibrate.statistics import Statistic
from laconic.model import LanguageModel, Site


def calibrate_once(
    lm: LanguageModel,
    data: Calibration,
    needs: Collection[type[Statistic]],
    sites: Sequence[Site],
    *,
    writes: bool,
    files: SolutionFiles | None = None,
) -> Iterator[LayerProblems]:
    """Yield the layers of each part with their problems, and measure only parts whose solutions are not in a file.

    A layer of another part has its solutions in place of its statistics. The caller must therefore solve its weight as
    it did before, by a method whose solutions serve every size (`Method.caches_solution`).

    Args:
        lm: the streamed model; layers are on loan until the next ones are asked for.
        data: the calibration data.
        needs: the types of statistics to collect.
        sites: the layers, in forward order.
        writes: whether the caller changes the layers. If not, the solutions of every part that was measured are written
            to a file after the caller is done with it; if so, all files are deleted at the end.
        files: the files, which then stay, of the model that a changed copy was made of; None for those of `lm`.

    Raises:
        UserError: as `blockwise_calibrate`.
    """
    deletes, files = writes and files is None, files or SolutionFiles.of(lm)
    done = find_finished(lm) if writes else frozenset[str]()
    parts = by_part(sites)
    names = {path: [site.name for site in own] for path, own in parts.items()}
    solved = [path for path in parts if path not in done and files.load(path, names[path]) is not None]
    rest = [site for path, own in parts.items() if path not in solved for site in own]
    to_visit = sites
    if parts.keys() - done - set(solved):
        # It also takes over what is finished.
        yield from run_pass(lm, choose_pass(needs)(lm, data, needs, rest, writes=writes, files=files))
        to_visit = [site for path in solved for site in parts[path]]
    yield from visit(lm, to_visit, data.track, writes, files)
    if deletes:
        files.delete()
