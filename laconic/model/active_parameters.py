"""The parameters of a mixture of experts that a token uses."""

from dataclasses import dataclass

from torch import nn

from laconic.model.mixture import experts_paths, find_mixtures
from laconic.model.size import count_parameters


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
