"""Types of llama.cpp's blocks for each matrix of a model, of least predicted loss in the bytes of another file.

Weights are rounded to the nearest values for the predictions. The errors of two weights are then nearly independent, so
the loss needs only the diagonals of the moments C of the inputs and F of the gradients.
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from laconic.allocate.spectrum import Budget, choose_candidates
from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.methods import Candidate, Candidates, Rtn
from laconic.model import LanguageModel, Site
from laconic.model.tables import join_tables
from laconic.recipe.entry import ModelInput

EMBEDDING = "token_embd.weight"
ROUNDING = Rtn(grid=("q2_k", "q3_k", "q4_0", "iq4_nl", "q4_k", "q5_0", "q6_k", "q8_0"))
FAST = frozenset({"q4_0", "iq4_nl", "q8_0"})
"""The types with the fastest kernels."""
LARGE_SHARE = 0.1
"""The share of a file's bytes from which a type decides its speed."""


def predict(site: Site, C: InputCovariance, F: GradCovariance) -> dict[str, Candidate]:
    """The candidates of a matrix, by the type of their blocks.

    Args:
        site: the matrix; a word embedding is rounded along the numbers of each token.
        C: the moment of its inputs, or its diagonal.
        F: the diagonal of the moment of the gradients at its outputs.
    """
    diagonal, weight = C.total if C.total.ndim == 1 else C.total.diagonal().clone(), site.weight()
    moments = ((diagonal, C.count), (F.total, F.count))
    if site.is_lookup:
        moments, weight = moments[::-1], weight.T.contiguous()
    inputs, gradients = InputCovariance.from_total(*moments[0]), GradCovariance.from_total(*moments[1])
    offered = ROUNDING.candidates(weight, LayerStats([inputs, gradients]))
    return {str(option.method.grid): option for option in offered.all if isinstance(option.method, Rtn)}


def choose_types(
    offers: Mapping[str, Mapping[str, Candidate]], types: Collection[str], lookups: Collection[str], nbytes: int
) -> dict[str, str]:
    """The type of each matrix, of least predicted loss in sum within so many bytes.

    Args:
        offers: the candidates of each matrix.
        types: the types to choose from.
        lookups: the matrices whose rows are looked up, which may have any type.
        nbytes: the largest number of bytes of all matrices.
    """
    usable = {
        name: {kind: option for kind, option in options.items() if name in lookups or kind in types}
        for name, options in offers.items()
    }
    sets = [[{name: Candidates(tuple(options.values()))}] for name, options in usable.items()]
    chosen = choose_candidates(sets, Budget(keep=1.0, cost=lambda candidate: candidate.nbytes, dense=nbytes))
    return {
        name: next(kind for kind, option in usable[name].items() if option is candidate)
        for name, candidate in chosen.items()
    }


def fast_types(theirs: Mapping[str, tuple[str, int]]) -> set[str]:
    """The types that keep a file as fast as another one: the fastest ones, and those that it mostly consists of.

    Args:
        theirs: the type and the bytes of each matrix of the other file.
    """
    total = sum(nbytes for _, nbytes in theirs.values())
    kinds = {kind for kind, _ in theirs.values()}
    share = {kind: sum(nbytes for own, nbytes in theirs.values() if own == kind) / total for kind in kinds}
    return {*FAST} | {kind for kind, part in share.items() if part >= LARGE_SHARE}


def matrices(lm: LanguageModel) -> list[Site]:
    """All matrices; a word embedding that is tied to a head is one with it."""
    sites = lm.sites(("all",))
    return join_tables(sites, sites)


def types_of(file: Path) -> dict[str, tuple[str, int]]:
    """The type and the bytes of each tensor of a file of llama.cpp, by its name there."""
    from gguf import GGUFReader  # noqa: PLC0415 (an extra)

    return {tensor.name: (tensor.tensor_type.name.lower(), tensor.n_bytes) for tensor in GGUFReader(file).tensors}


def matrix_types(model: Path, file: Path) -> dict[str, tuple[str, int]]:
    """The type and the bytes that a file of llama.cpp has for each matrix of a model, by its path in the model."""
    types = types_of(file)
    # A file without a head has one that is tied to the word embeddings.
    return {site: types.get(name) or types[EMBEDDING] for name, site in site_names(model).items()}


def site_names(model: Path) -> dict[str, str]:
    """The path of each matrix of a model, by its name in a file of llama.cpp."""
    import gguf  # noqa: PLC0415 (an extra)

    lm = ModelInput(name=str(model)).skeleton()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[lm.model.config.model_type], lm.model.config.num_hidden_layers)
    name_of = partial(names.get_name, try_suffixes=(".weight",))
    return {str(name_of(f"{site.name}.weight")): site.name for site in matrices(lm)}
