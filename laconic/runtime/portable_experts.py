"""Mixtures of experts in a form that can be traced for another runtime.

The number of tokens of an expert depends on the numbers of the input, so the layers of transformers and laconic cannot
be traced for any length. Here the experts of a layer follow one another. Each of them reads the rows of its tokens, so
the traced graph computes what the model computes, and no more.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from laconic.formats.expert_layer import ExpertLayer, is_experts
from laconic.model import LanguageModel


class UnrolledExperts(nn.Module):
    """The experts of a layer one after another, each with linear layers or formats of its own.

    Args:
        layer: the layer of experts; its stacks are removed from it.

    Example:
        >>> from transformers import MixtralConfig
        >>> from transformers.models.mixtral.modeling_mixtral import MixtralExperts
        >>> experts = MixtralExperts(MixtralConfig(hidden_size=4, intermediate_size=8, num_local_experts=2))
        >>> unrolled = UnrolledExperts(ExpertLayer(experts))
        >>> [linear.weight.shape for linear in unrolled.inner]
        [torch.Size([16, 4]), torch.Size([16, 4])]
    """

    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        (inner_name, inner), (outer_name, outer) = layer.stacks().items()
        self.inner = nn.ModuleList(inner.slice(index) for index in range(inner.experts))
        self.outer = nn.ModuleList(outer.slice(index) for index in range(outer.experts))
        # The traced model must not have the matrices twice.
        delattr(layer, inner_name)
        delattr(layer, outer_name)
        self.layer = layer

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens width"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens width"]:
        """Compute the weighted sum of the outputs of the experts of each token; see `ExpertLayer.forward`."""
        # `len` would fix the number of tokens in the graph.
        weights = top_k_weights.new_zeros(hidden_states.shape[0], len(self.inner))
        weights = weights.scatter(1, top_k_index, top_k_weights)
        is_chosen = torch.zeros_like(weights, dtype=torch.bool).scatter(1, top_k_index, True)
        total = torch.zeros_like(hidden_states)
        for number, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True)):
            tokens = is_chosen[:, number].nonzero().squeeze(1)
            outputs = self.layer.normalize(outer(self.layer.activate(inner(hidden_states[tokens]))))
            weighted = outputs * weights[tokens, number, None]
            total = total.index_add(0, tokens, weighted.to(total.dtype))
        return total


def unroll_experts(lm: LanguageModel) -> None:
    """Replace every layer of experts of a model by its experts one after another, in place.

    Args:
        lm: the model, whose modules belong to no other model.
    """
    layers = [(path, module) for path, module in lm.model.named_modules() if is_experts(module)]
    for path, module in layers:
        layer = module if isinstance(module, ExpertLayer) else ExpertLayer(module)
        lm.model.set_submodule(path, UnrolledExperts(layer).eval())
