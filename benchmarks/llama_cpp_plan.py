"""Types of llama.cpp's blocks for each matrix, of least predicted loss in the bytes and the time of another file.

Weights are rounded to the nearest values for the predictions. The errors of two weights are then nearly independent, so
the loss needs only the diagonals of the moments C of the inputs and F of the gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from laconic.allocate.spectrum import Budget, choose_candidates
from laconic.calibrate import GradCovariance, InputCovariance, LayerStats
from laconic.errors import UserError
from laconic.methods import Candidate, Candidates, Rtn
from laconic.model import LanguageModel, Site
from laconic.model.tables import join_tables
from laconic.recipe.entry import ModelInput

EMBEDDING = "token_embd.weight"
ROUNDING = Rtn(grid=("q2_k", "q3_k", "q4_0", "iq4_nl", "q4_k", "q4_1", "q5_0", "q5_k", "q6_k", "q8_0"))
SCALE = 10**9
"""The integer that stands for a whole budget."""
PRICES, SHRINKS = 40, 8
"""The prices of time that are tried, and the budgets that are tried at each of them."""

Offers = Mapping[str, Mapping[str, Candidate]]
"""The candidates of each matrix, by the type of their blocks."""


@dataclass(frozen=True)
class Limits:
    """What a file may take.

    Args:
        nbytes: the bytes of its matrices.
        nanoseconds: the time of a token.
    """

    nbytes: int
    nanoseconds: int

    def share(self, candidate: Candidate, price: float) -> int:
        """The part of a budget of `SCALE` that a candidate takes, where time has this share in the price."""
        bytes_part, time_part = candidate.nbytes / self.nbytes, candidate.nanoseconds / self.nanoseconds
        return round(SCALE * ((1 - price) * bytes_part + price * time_part))

    def excess(self, candidates: Mapping[str, Candidate]) -> float:
        """The larger one of what candidates take of both limits; at most 1 if they keep to them."""
        nbytes = sum(candidate.nbytes for candidate in candidates.values())
        nanoseconds = sum(candidate.nanoseconds for candidate in candidates.values())
        return max(nbytes / self.nbytes, nanoseconds / self.nanoseconds)


def predict(site: Site, C: InputCovariance, F: GradCovariance, seconds: Mapping[str, float]) -> dict[str, Candidate]:
    """The candidates of a matrix, by the type of their blocks.

    Args:
        site: the matrix; a word embedding is rounded along the numbers of each token.
        C: the moment of its inputs, or its diagonal.
        F: the diagonal of the moment of the gradients at its outputs.
        seconds: the time of a weight of each type that is offered; a word embedding, whose rows are looked up, takes
            none.
    """
    diagonal, weight = C.total if C.total.ndim == 1 else C.total.diagonal().clone(), site.weight()
    moments = ((diagonal, C.count), (F.total, F.count))
    if site.is_lookup:
        moments, weight = moments[::-1], weight.T.contiguous()
    inputs, gradients = InputCovariance.from_total(*moments[0]), GradCovariance.from_total(*moments[1])
    offered = ROUNDING.candidates(weight, LayerStats([inputs, gradients]))
    options = {str(option.method.grid): option for option in offered.all if isinstance(option.method, Rtn)}
    weights = 0 if site.is_lookup else weight.numel()
    return {
        kind: replace(option, nanoseconds=nanoseconds(kind, weights, seconds))
        for kind, option in options.items()
        if kind in seconds
    }


def nanoseconds(kind: str, weights: int, seconds: Mapping[str, float]) -> int:
    """The time of so many weights of a type."""
    return round(1e9 * weights * seconds[kind])


def limits_of(theirs: Mapping[str, tuple[str, int]], sites: list[Site], seconds: Mapping[str, float]) -> Limits:
    """The bytes and the time of another file.

    Args:
        theirs: the type and the bytes of each matrix of the other file.
        sites: the matrices.
        seconds: the time of a weight of each type.
    """
    return Limits(
        sum(nbytes for _, nbytes in theirs.values()),
        sum(nanoseconds(theirs[site.name][0], site.weight().numel(), seconds) for site in sites if not site.is_lookup),
    )


def choose_types(offers: Offers, limits: Limits) -> dict[str, str]:
    """The type of each matrix, of least predicted loss in sum within both limits.

    Several prices of time are tried. Each makes one budget of both limits (a surrogate relaxation), which is lowered
    until the choice keeps to both.

    Args:
        offers: the candidates of each matrix.
        limits: the largest number of bytes, and the longest time, of all matrices.

    Raises:
        ValueError: no choice that keeps to both limits is found.
    """
    found = [choose_at(offers, limits, price / PRICES) for price in range(PRICES + 1)]
    kept = [chosen for chosen in found if chosen is not None]
    if not kept:
        raise ValueError("No types within the bytes and the time of the other file were found.")
    best = min(kept, key=lambda chosen: sum(candidate.loss for candidate in chosen.values()))
    return {
        name: next(kind for kind, option in offers[name].items() if option is candidate)
        for name, candidate in best.items()
    }


def choose_at(offers: Offers, limits: Limits, price: float) -> dict[str, Candidate] | None:
    """The choice at a price of time; None if no budget that is tried keeps it within both limits."""
    sets = [[{name: Candidates(tuple(options.values()))}] for name, options in offers.items()]
    keep = 1.0
    for _ in range(SHRINKS):
        budget = Budget(keep=keep, cost=lambda candidate: limits.share(candidate, price), dense=SCALE)
        try:
            chosen = choose_candidates(sets, budget)
        except UserError:
            return None
        excess = limits.excess(chosen)
        if excess <= 1:
            return chosen
        keep /= excess
    return None


def matrices(lm: LanguageModel) -> list[Site]:
    """All matrices; a word embedding that is tied to a head is one with it."""
    sites = lm.sites(("all",))
    return join_tables(sites, sites)


def types_of(file: Path) -> dict[str, tuple[str, int]]:
    """The type and the bytes of each tensor of a file of llama.cpp, by its name there."""
    from gguf import GGUFReader  # noqa: PLC0415 (an extra)

    return {tensor.name: (tensor.tensor_type.name.lower(), tensor.n_bytes) for tensor in GGUFReader(file).tensors}


def weights_of(kind: str, nbytes: int) -> int:
    """The number of weights in so many bytes of a type."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415 (an extra)

    size, nbytes_of_block = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    return nbytes * size // nbytes_of_block


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
