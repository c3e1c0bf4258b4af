"""The layer of experts of a mixture, whose matrices are modules.

transformers stores the experts of a layer in one module with two parameters of three dimensions, and computes that
module by functions that read its flags: its forward pass is the same for all classes with the decorator
`use_experts_implementation`. An `ExpertLayer` stands in for such a module. It computes the same function, but its two
parameters are modules, which can be compressed and can have hooks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from laconic.errors import UserError
from laconic.formats.experts import DenseExpertStack, ExpertStack, ViewedExpertStack
from laconic.formats.routing import Routing

FLAGS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated", "_is_expert_parallel")
"""Attributes that transformers sets on every module of experts that it can compute by its own functions."""
OUTPUT_STACK = "down_proj"
"""The name of the matrices that the experts apply last."""
ARGUMENTS = ("hidden_states", "top_k_index", "top_k_weights")
"""The arguments of a module of experts, in their order."""
STACK_DIMENSIONS = 3
"""The dimensions of a stack of matrices."""


class ExpertLayer(nn.Module):
    """Experts whose matrices are modules; it computes what the transformers module that it stands in for computes.

    It has the attributes and the other modules of that module, such as its activation function, and its two
    `ExpertStack`s by the names of that module's parameters.

    Args:
        experts: the module of transformers; it is not changed.

    Raises:
        UserError: its experts are split among processes.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> sizes = dict(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, num_key_value_heads=2)
        >>> config = MixtralConfig(**sizes, intermediate_size=16, vocab_size=16, num_local_experts=4)
        >>> block = MixtralForCausalLM(config).model.layers[0]
        >>> layer = ExpertLayer(block.mlp.experts)
        >>> {name: (stack.experts, stack.shape) for name, stack in layer.stacks().items()}
        {'gate_up_proj': (4, (32, 8)), 'down_proj': (4, (8, 16))}
        >>> layer.stacks()["down_proj"].weight is block.mlp.experts.down_proj
        True
    """

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        own = vars(experts)
        if own["_is_expert_parallel"]:
            raise UserError("The experts of the model are split among processes; load it without expert parallelism.")
        # Code of the model may read any attribute of the module, and so does its `_apply_gate`.
        self.__dict__.update({name: value for name, value in own.items() if name not in vars(self)})
        self._experts_class: Any = type(experts)
        stacks = find_dense_stacks(experts)
        assigned = {name for stack in stacks for name in (stack, f"{stack}_bias")}
        for name, module in (*experts.named_children(), *stacks.items()):
            self.add_module(name, module)
        for name, parameter in experts.named_parameters(recurse=False):
            if name not in assigned:
                self.register_parameter(name, parameter)
        for name, buffer in experts.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in experts._non_persistent_buffers_set)
        self.train(experts.training)

    def stacks(self) -> dict[str, ExpertStack]:
        """The stacks by name, in the order in which they are applied."""
        names = stack_names(self)
        return {name: stack for name in names if isinstance(stack := self.get_submodule(name), ExpertStack)}

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens width"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens width"]:
        """Compute the weighted sum of the outputs of the experts of each token.

        Args:
            hidden_states: the tokens of all rows.
            top_k_index: the experts of each token.
            top_k_weights: their weights.
        """
        first, last = self.stacks().values()
        routing = Routing.of(top_k_index, top_k_weights, last.experts)
        inner = first(hidden_states.index_select(0, routing.tokens), routing)
        outputs = self.normalize(last(self.activate(inner), routing))
        return routing.gather(outputs, top_k_index.shape[-1]).to(hidden_states.dtype)

    def activate(self, inner: Float[Tensor, "pairs inner"]) -> Float[Tensor, "pairs hidden"]:
        """The activation function, or the product of the gate and its input, of outputs of the first stack."""
        if self.has_gate:
            return self._experts_class._apply_gate(self, inner)
        return self.get_submodule("act_fn")(inner)

    def normalize(self, outputs: Float[Tensor, "pairs width"]) -> Float[Tensor, "pairs width"]:
        """The norm of the outputs of each expert, which few models have."""
        return self.get_submodule("post_expert_norm")(outputs) if self.has_post_expert_norm else outputs


def is_experts(module: nn.Module) -> bool:
    """Whether a module is an `ExpertLayer`, or experts of transformers that one can stand in for.

    Example:
        >>> is_experts(nn.Linear(2, 2))
        False
    """
    if isinstance(module, ExpertLayer):
        return True
    if not set(FLAGS) <= vars(module).keys():
        return False
    parameters = dict(module.named_parameters(recurse=False))
    return all(name in parameters and parameters[name].dim() == STACK_DIMENSIONS for name in stack_names(module))


def routed_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of a call of a module of experts, which a model may give by position or by name.

    Args:
        args: the arguments by position.
        kwargs: the arguments by name.

    Returns:
        `hidden_states` (tokens, width), `top_k_index` (tokens, k) and `top_k_weights` (tokens, k), as in
        `ExpertLayer.forward`.

    Example:
        >>> import torch
        >>> hidden, index, weights = torch.ones(3, 8), torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2)
        >>> routed_arguments((hidden,), {"top_k_weights": weights, "top_k_index": index})[1].shape
        torch.Size([3, 2])
    """
    given = {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
    hidden, index, weights = (given[name] for name in ARGUMENTS)
    return hidden, index, weights


def stack_names(module: nn.Module) -> tuple[str, str]:
    """The names of the two stacks of a module of experts, in the order in which they are applied."""
    return "gate_up_proj" if vars(module)["has_gate"] else "up_proj", OUTPUT_STACK


def find_dense_stacks(module: nn.Module) -> dict[str, ExpertStack]:
    """The stacks of a transformers module of experts, on its parameters, by name in the order of their use."""
    flags, parameters = vars(module), dict(module.named_parameters(recurse=False))
    return {
        name: DenseExpertStack.of(parameters[name], parameters.get(f"{name}_bias"), flags["is_transposed"])
        for name in stack_names(module)
    }


def find_expert_stacks(module: nn.Module) -> dict[str, ExpertStack]:
    """The stacks of a module of experts by name, in the order in which they are applied.

    Args:
        module: a module for which `is_experts` is true. The stacks of a module of transformers are views of its
            parameters; those of an `ExpertLayer` are its modules.
    """
    if isinstance(module, ExpertLayer):
        return module.stacks()
    flags = vars(module)
    return {name: ViewedExpertStack(module, name, flags["is_transposed"]) for name in stack_names(module)}


@contextmanager
def expert_layers(model: nn.Module) -> Iterator[None]:
    """Within the context an `ExpertLayer` stands in for each module of experts of transformers in `model`.

    The tensors are the same. Hooks can then be registered at the path of each stack.
    """
    found = {path: module for path, module in model.named_modules() if is_experts(module)}
    plain = {path: module for path, module in found.items() if not isinstance(module, ExpertLayer)}
    try:
        for path, module in plain.items():
            model.set_submodule(path, ExpertLayer(module))
        yield
    finally:
        for path, module in plain.items():
            model.set_submodule(path, module)
