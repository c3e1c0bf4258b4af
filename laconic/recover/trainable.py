"""Prepare a compressed model for training: choose its trainable parameters.

Low-rank factors, unpruned weights and biases are trained directly, and pruned weights stay zero (`laconic.formats`).
The codes of a quantized layer are frozen, or trained with the straight-through estimator (Y. Bengio et al., 2013, arXiv
1308.3432): a float copy of the matrix gets the gradient of its nearest codes, and is rounded to them at the end. With
LoRA (E. Hu et al., ICLR 2022, arXiv 2106.09685) only low-rank adapters are trained. At the end they are merged into
plain matrices; beside pruned or quantized matrices they stay as separate factors (`Sum`).
"""

import warnings
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from laconic.errors import UserError, install
from laconic.formats import LowRank, Masked, PackedCodes, PackedEmbedding, Sum
from laconic.model import LanguageModel, Site

QuantizedTraining = Literal["frozen", "straight-through"]


class StraightThrough(nn.Module):
    """A quantized layer with a straight-through estimator.

    The forward pass uses the codes nearest to the float matrix `free`; the backward pass gives `free` their gradient.

    Args:
        layer: the quantized layer.
    """

    def __init__(self, layer: PackedCodes) -> None:
        super().__init__()
        self.layer = layer
        self.free = nn.Parameter(layer.dense().float())

    @property
    def weight(self) -> Tensor:
        """The `weight` of the quantized layer, for callers that read its dtype."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        free = self.free.detach()
        return linear(x, (self.layer.nearest(free) - free + self.free).to(x.dtype), self.layer.bias)

    def settle(self) -> PackedCodes:
        """Set the codes of the quantized layer to those nearest to `free`, and return it."""
        self.layer.requantize(self.free.detach())
        return self.layer


@contextmanager
def trainable(
    lm: LanguageModel,
    *,
    quantized: QuantizedTraining = "frozen",
    lora: int | None = None,
    freeze: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[None]:
    """Within the context `lm` is ready for training; afterwards its layers are restored and rounded to its dtype.

    Args:
        lm: the model, changed in place.
        quantized: `frozen` keeps codes; `straight-through` trains them with the straight-through estimator.
        lora: rank of low-rank adapters; None for no adapters.
        freeze: globs over names of parameters that are not trained. Codes that match are frozen, and matrices that
            match get no adapters.
        seed: seed of the initial adapters.

    Raises:
        UserError: a glob matches no parameter, nothing is left to train, or `lora` is set and peft is not installed.
    """
    movable = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    with ExitStack() as undo:
        undo.callback(_unfreeze, movable)
        frozen_ids = {id(parameter) for parameter in frozen_parameters(lm, freeze)}
        _freeze(lm, freeze)
        if lora is not None:
            _freeze(lm, ("*",))
            undo.callback(_merge_adapters, lm)
            _add_adapters(lm, lora, seed, frozen_ids)
        elif quantized == "straight-through":
            layers = _insert_straight_through(lm, frozen_ids)
            undo.callback(_remove_straight_through, lm, layers)
        if not any(parameter.requires_grad for parameter in lm.model.parameters()):
            raise UserError(
                f"Nothing of '{lm.source}' is left to train; freeze fewer parameters, train its codes by "
                "quantized: straight-through, or set lora."
            )
        yield
    for parameter in lm.model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(lm.dtype).to(parameter.dtype)


def check_lora(rank: int | None) -> None:
    """Raise UserError if `rank` is set and peft is not installed."""
    if rank is not None:
        _peft("peft")


def frozen_parameters(lm: LanguageModel, globs: Sequence[str]) -> list[nn.Parameter]:
    """Return the parameters whose names match any of the globs.

    Args:
        lm: the model.
        globs: patterns of parameter names, such as `*embeddings*`.

    Raises:
        UserError: a glob matches no parameter.
    """
    names = dict(lm.model.named_parameters())
    found: dict[str, nn.Parameter] = {}
    for glob in globs:
        matching = {name: parameter for name, parameter in names.items() if fnmatchcase(name, glob)}
        if not matching:
            first = ", ".join(f"'{name}'" for name in list(names)[:3])
            raise UserError(f"freeze has '{glob}', which matches no parameter; the first parameters are {first}.")
        found |= matching
    return list(found.values())


def _freeze(lm: LanguageModel, globs: Sequence[str]) -> None:
    for parameter in frozen_parameters(lm, globs):
        parameter.requires_grad_(False)


def _unfreeze(movable: Sequence[nn.Parameter]) -> None:
    for parameter in movable:
        parameter.requires_grad_(True)


def _insert_straight_through(lm: LanguageModel, frozen_ids: Set[int]) -> dict[StraightThrough, list[str]]:
    """Wrap every quantized linear layer in `StraightThrough`; quantized embeddings stay frozen."""
    places: dict[PackedCodes, list[str]] = {}
    embedded = {module.coded for module in lm.model.modules() if isinstance(module, PackedEmbedding)}
    for name, module in lm.model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedCodes) and module not in embedded and id(module.codes) not in frozen_ids:
            places.setdefault(module, []).append(name)
    layers = {StraightThrough(layer): names for layer, names in places.items()}
    for layer, names in layers.items():
        for name in names:
            lm.model.set_submodule(name, layer.train(lm.model.training))
    return layers


def _remove_straight_through(lm: LanguageModel, layers: dict[StraightThrough, list[str]]) -> None:
    for layer, names in layers.items():
        settled = layer.settle()
        for name in names:
            lm.model.set_submodule(name, settled)


def _add_adapters(lm: LanguageModel, rank: int, seed: int, frozen_ids: Set[int]) -> None:
    """Add adapters of this rank to every matrix of attention and feed-forward that is not in `frozen_ids`.

    Experts get none.
    """
    plain: list[str] = []
    for number, site in enumerate(lm.sites()):
        # peft has no adapters for stacks of matrices; the experts stay as they are.
        if site.stack is not None:
            continue
        if any(id(parameter) in frozen_ids for name, parameter in site.module.named_parameters() if "bias" not in name):
            continue
        if isinstance(site.module, (nn.Linear, Conv1D)):
            plain += site.names
        elif isinstance(site.module, (PackedCodes, Masked)):
            _add_low_rank(lm, site, rank, seed + number)
    if not plain:
        return
    conv = any(isinstance(lm.model.get_submodule(name), Conv1D) for name in plain)
    config = _peft("peft").LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=plain, fan_in_fan_out=conv)
    with warnings.catch_warnings(), torch.random.fork_rng():
        torch.manual_seed(seed)
        # `nn.Linear` and GPT-2's Conv1D store transposed weights; peft corrects `fan_in_fan_out` with a warning.
        warnings.simplefilter("ignore")
        _peft("peft").inject_adapter_in_model(config, lm.model)


def _add_low_rank(lm: LanguageModel, site: Site, rank: int, seed: int) -> None:
    out_features, in_features = site.shape
    generator = torch.Generator().manual_seed(seed)
    bound = in_features**-0.5
    down = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
    assert isinstance(site.module, (PackedCodes, Masked))
    adapter = LowRank.from_factors(torch.zeros(out_features, rank), down).to(site.weight().device)
    lm.replace(site, Sum.from_parts(site.module, adapter))
    for part in adapter.parameters():
        part.requires_grad_(True)


def _merge_adapters(lm: LanguageModel) -> None:
    """Merge peft's adapters into their matrices, and remove them."""
    tuner = _peft("peft.tuners.tuners_utils").BaseTunerLayer
    adapted: list[tuple[str, Any]] = [pair for pair in lm.model.named_modules() if isinstance(pair[1], tuner)]
    for name, module in adapted:
        module.merge()
        lm.model.set_submodule(name, module.get_base_layer())
    if adapted:
        del lm.model.peft_config


def _peft(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"LoRA needs peft, which is not installed: {install('train')}.") from error
