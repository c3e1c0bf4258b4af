"""Mixtures of experts: the experts and the router of each block.

A router computes one score for each expert and sends a token to the `top_k` best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from laconic.formats.expert_layer import is_experts
from laconic.model.stock import text_config
from laconic.model.usage import trace_usage

ROUTERS = ("router", "gate")
"""The names that the classes of transformers give to the router, which stands beside the experts."""
COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys of configurations that count the experts of a block."""
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
        fewest_per_group: the fewest experts of a group that the router can score.
    """

    path: str
    experts: nn.Module
    owner: nn.Module
    router: nn.Module
    count: int
    per_token: int
    groups: int = 1
    groups_per_token: int = 1
    fewest_per_group: int = 1

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
    usage = trace_usage(model) if isinstance(model, PreTrainedModel) else None
    # A router may select another number than its configuration says, as PhiMoE's always selects two.
    selected = {} if usage is None else usage.experts_per_token
    found = (_find_mixture(model, path, selected.get(path)) for path in experts_paths(model))
    return [mixture for mixture in found if mixture is not None]


def experts_paths(model: nn.Module) -> list[str]:
    """The path of every module of experts, in forward order."""
    return [path for path, module in model.named_modules() if is_experts(module)]


def _find_mixture(model: nn.Module, path: str, selected: int | None) -> Mixture | None:
    """The mixture of a module of experts; None if its router is not found or does not say how many it selects.

    Args:
        model: the model.
        path: the path of the module.
        selected: the number of experts that the router selects for a token; None to read it from the attributes.
    """
    experts, owner = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
    children = dict(owner.named_children())
    router = next((children[name] for name in ROUTERS if name in children), None)
    if router is None:
        return None
    holders = [vars(module) for module in (*router.modules(), owner)]
    if isinstance(model, PreTrainedModel):
        holders.append(vars(text_config(model.config)))
    count = first_number([vars(experts)], COUNT_KEYS)
    per_token = selected or first_number(holders, PER_TOKEN_ATTRIBUTES)
    if count is None or per_token is None:
        return None
    groups, chosen = (first_number([vars(router)], (name,)) for name in ("num_group", "topk_group"))
    least = 1 if groups is None else SCORED_IN_GROUP
    return Mixture(path, experts, owner, router, count, per_token, groups or 1, chosen or 1, least)


def first_number(holders: Sequence[Mapping[str, object]], names: Sequence[str]) -> int | None:
    """The first number that one of the attributes or keys `names` has in one of `holders`; None if there is none."""
    numbers = (values.get(name) for values in holders for name in names)
    return next((number for number in numbers if isinstance(number, int)), None)
