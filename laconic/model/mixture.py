"""Mixtures of experts: the experts and the router of each block, and the removal of experts.

A router computes one score for each expert and sends a token to the `top_k` best. A class of transformers has the same
number of experts in every block, which its configuration gives. So experts are removed from all blocks at once: rows of
the router, matrices of the experts, and the attributes and keys of the configuration that count them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.formats import ExpertLayer
from laconic.formats.expert_layer import is_experts
from laconic.model.lm import LanguageModel
from laconic.model.size import count_parameters
from laconic.model.stock import MODEL_ERRORS, build_stock, differences, modules_by_path, text_config

ROUTERS = ("router", "gate")
"""The names that the classes of transformers give to the router, which stands beside the experts."""
COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys of configurations that count the experts of a block."""
COUNT_ATTRIBUTES = (*COUNT_KEYS, "out_features")
"""The attributes that count them in the modules of a mixture."""
PER_TOKEN_KEYS = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
"""Keys of configurations that count the experts of a token."""
PER_TOKEN_ATTRIBUTES = ("top_k", *PER_TOKEN_KEYS)
"""The attributes that count them in the modules of a mixture."""
SCORED_IN_GROUP = 2
"""DeepSeek's router scores a group of experts by the sum of its two best."""


@dataclass(frozen=True)
class Mixture:
    """The experts of one block and their router.

    Args:
        path: path of the module of the experts.
        experts: that module.
        owner: the module that has the experts and the router.
        router: the router.
        count: the number of experts.
        per_token: the number of experts that read a token.
        groups: the number of groups of experts, of which the router first selects some; 1 if it has no groups.
        groups_per_token: the number of groups that it selects.
        least: the fewest experts of a group that the router can score.
    """

    path: str
    experts: nn.Module
    owner: nn.Module
    router: nn.Module
    count: int
    per_token: int
    groups: int = 1
    groups_per_token: int = 1
    least: int = 1

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules that depend on the number of experts: the owner, the router and what is in it, the experts."""
        return (self.owner, *self.router.modules(), *self.experts.modules())


def find_mixtures(model: nn.Module) -> list[Mixture]:
    """Find the experts of every block, in forward order.

    Args:
        model: a model of transformers, whose experts may be compressed.

    Returns:
        The mixtures; experts are left out if their router is not found, or does not say how many experts it selects.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = dict(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, num_key_value_heads=2)
        >>> config = MixtralConfig(**sizes, intermediate_size=16, vocab_size=16, num_local_experts=4)
        >>> [(found.path, found.count, found.per_token) for found in find_mixtures(MixtralForCausalLM(config))]
        [('model.layers.0.mlp.experts', 4, 2)]
    """
    return [mixture for path in experts_paths(model) if (mixture := _find_mixture(model, path)) is not None]


def experts_paths(model: nn.Module) -> list[str]:
    """The path of every module of experts, in forward order."""
    return [path for path, module in model.named_modules() if is_experts(module)]


def _find_mixture(model: nn.Module, path: str) -> Mixture | None:
    """The mixture of a module of experts; None if its router is not found or does not say how many it selects."""
    experts, owner = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
    children = dict(owner.named_children())
    router = next((children[name] for name in ROUTERS if name in children), None)
    if router is None:
        return None
    holders = [vars(module) for module in (*router.modules(), owner)]
    if isinstance(model, PreTrainedModel):
        holders.append(vars(text_config(model.config)))
    count = _first_number([vars(experts)], COUNT_KEYS)
    per_token = _first_number(holders, PER_TOKEN_ATTRIBUTES)
    if count is None or per_token is None:
        return None
    groups, chosen = (_first_number([vars(router)], (name,)) for name in ("num_group", "topk_group"))
    least = 1 if groups is None else SCORED_IN_GROUP
    return Mixture(path, experts, owner, router, count, per_token, groups or 1, chosen or 1, least)


@dataclass(frozen=True)
class ActiveParameters:
    """The parameters of a mixture of experts, and those that a token uses.

    Args:
        total: the number of parameters.
        active: the same without the experts that do not read the token: of E experts, k read it.
        experts: what E and k are, such as "2 of 16 experts".
    """

    total: int
    active: int
    experts: str

    def __str__(self) -> str:
        return f"{self.total:,d} parameters, of which a token uses {self.active:,d} ({self.experts})"


def count_active(model: nn.Module, total: int | None = None) -> ActiveParameters | None:
    """Count the parameters that a token uses.

    Args:
        model: a model of transformers.
        total: the number of all parameters; None counts those of `model`.

    Returns:
        The counts; None for a model without experts, or if a router does not say how many experts it selects.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = dict(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, num_key_value_heads=2)
        >>> config = MixtralConfig(**sizes, intermediate_size=16, vocab_size=16, num_local_experts=4)
        >>> print(count_active(MixtralForCausalLM(config)))
        2,104 parameters, of which a token uses 1,336 (2 of 4 experts)
    """
    mixtures = find_mixtures(model)
    if not mixtures or len(mixtures) < len(experts_paths(model)):
        return None
    total = count_parameters(model) if total is None else total
    idle = sum(
        round((1 - mixture.per_token / mixture.count) * count_parameters(mixture.experts)) for mixture in mixtures
    )
    choices = dict.fromkeys(f"{mixture.per_token} of {mixture.count} experts" for mixture in mixtures)
    return ActiveParameters(total, total - idle, ", ".join(choices))


def _first_number(holders: Sequence[Mapping[str, object]], names: Sequence[str]) -> int | None:
    numbers = (values.get(name) for values in holders for name in names)
    return next((number for number in numbers if isinstance(number, int)), None)


def count_kept(mixture: Mixture, keep: float) -> int:
    """Return the number of experts that stay: the nearest to a fraction of them, the same in each group.

    Args:
        mixture: the experts.
        keep: the fraction, in (0, 1].
    """
    each = mixture.count // mixture.groups
    return mixture.groups * max(min(mixture.least, each), int(keep * each + 0.5))


def check_removable(lm: LanguageModel, keep: float) -> None:
    """Check that experts can be removed.

    Args:
        lm: the model.
        keep: the fraction of the experts that stays.

    Raises:
        UserError: the model has no experts, they are compressed already, or its class cannot be built with fewer.
    """
    model_type, mixtures = lm.model.config.model_type, find_mixtures(lm.model)
    paths = experts_paths(lm.model)
    if not paths:
        has_experts = (_first_number([vars(text_config(lm.model.config))], COUNT_KEYS) or 0) > 1
        reason = "computes its experts by code of its own, from which none can be removed"
        raise UserError(f"This '{model_type}' {reason if has_experts else 'has no experts'}; leave out experts.")
    if unknown := sorted(set(paths) - {mixture.path for mixture in mixtures}):
        raise UserError(f"The router of '{unknown[0]}' is not known, so no expert can be removed; leave out experts.")
    for mixture in mixtures:
        if isinstance(mixture.experts, ExpertLayer):
            raise UserError(f"The experts '{mixture.path}' are compressed already; remove experts before that.")
        # A table of the experts of each token would name experts that are gone.
        if any(not tensor.is_floating_point() for tensor in (*mixture.router.parameters(), *mixture.router.buffers())):
            raise UserError(f"The router of '{mixture.path}' selects experts by a table, so none can be removed.")
    counts = sorted({mixture.count for mixture in mixtures})
    if len(counts) > 1:
        raise UserError(
            f"The blocks of this '{model_type}' have different numbers of experts ({', '.join(map(str, counts))}), so "
            "the same number cannot stay in all of them; leave out experts."
        )
    _check_buildable(lm, keep)


def can_lose_experts(lm: LanguageModel) -> bool:
    """Whether half of the experts of a model can be removed."""
    try:
        check_removable(lm, 0.5)
    except UserError:
        return False
    return True


def _check_buildable(lm: LanguageModel, keep: float) -> None:
    """Raise UserError if the class of the model would not build its experts and routers with fewer experts."""
    trial = lm.to_meta()
    mixtures = find_mixtures(trial.model)
    keep_experts(trial, {mixture.path: range(count_kept(mixture, keep)) for mixture in mixtures})
    try:
        stock = modules_by_path(build_stock(trial.model))
    except MODEL_ERRORS as error:
        raise UserError(
            f"The class '{type(lm.model).__name__}' cannot be built with fewer experts ({reason_of(error)}); leave out "
            "experts."
        ) from error
    parts = {id(part) for mixture in mixtures for part in mixture.parts}
    actual = {path: module for path, module in modules_by_path(trial.model).items() if id(module) in parts}
    for difference in differences(actual, {path: stock[path] for path in actual if path in stock}):
        raise UserError(
            f"Experts cannot be removed from '{lm.model.config.model_type}', because its class would build another "
            f"model: {difference}; leave out experts."
        )


@torch.no_grad()
def keep_experts(lm: LanguageModel, kept: Mapping[str, Sequence[int]]) -> None:
    """Keep some experts of every block, in place, with their rows of the router.

    A token is then read by at most as many experts as the router can select.

    Args:
        lm: the model, which has equally many experts in all blocks.
        kept: the numbers of the experts that stay, ascending, by `Mixture.path`; equally many in every block.
    """
    mixtures = find_mixtures(lm.model)
    for mixture in mixtures:
        chosen = torch.as_tensor(list(kept[mixture.path]), device=lm.device)
        for part in mixture.parts:
            _select_experts(part, mixture.count, chosen)
    first = mixtures[0]
    count = len(kept[first.path])
    selectable = first.groups_per_token * (count // first.groups)
    per_token = min(first.per_token, selectable)
    for part in (part for mixture in mixtures for part in mixture.parts):
        _set_counts(part, COUNT_ATTRIBUTES, first.count, count)
        _set_counts(part, PER_TOKEN_ATTRIBUTES, first.per_token, per_token)
    models = [part for part in lm.model.modules() if isinstance(part, PreTrainedModel)]
    for holder in (*models, *{id(part.config): part.config for part in models}.values()):
        _set_counts(holder, COUNT_KEYS, first.count, count)
        _set_counts(holder, PER_TOKEN_KEYS, first.per_token, per_token)


def _select_experts(module: nn.Module, count: int, chosen: Int[Tensor, " kept"]) -> None:
    """Select experts in the tensors of the module itself that have a dimension of `count`."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if count in parameter.shape:
            selected = parameter.index_select(parameter.shape.index(count), chosen)
            module.register_parameter(name, nn.Parameter(selected, requires_grad=parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if count in buffer.shape:
            persistent = name not in module._non_persistent_buffers_set
            module.register_buffer(name, buffer.index_select(buffer.shape.index(count), chosen), persistent)


def _set_counts(holder: object, names: Sequence[str], before: int, now: int) -> None:
    for name in names:
        if vars(holder).get(name) == before:
            setattr(holder, name, now)
