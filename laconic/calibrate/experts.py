"""Statistics of the experts of a layer while the model runs, over the tokens that the router sends to each.

While a recorder is entered, a module of experts that is still that of transformers is replaced by an `ExpertLayer` on
the same tensors, whose matrices are modules that can have hooks.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laconic.calibrate.expert_statistics import RoutedTokens, StackStatistic
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.reservoir import Reservoir
from laconic.calibrate.statistics import GradientStatistic, InputStatistic, Statistic
from laconic.formats import ExpertLayer, ExpertStack, Routing
from laconic.formats.expert_layer import is_experts, routed_arguments
from laconic.model import InputTokens, LanguageModel, Site
from laconic.processes import all_reduce_sum

Counted = Bool[Tensor, "sequences tokens"]
Keys = Int[Tensor, " kept"]
FindTokens = Callable[[int, InputTokens], tuple[Counted, Keys]]
"""Returns for the number of tokens that enter a layer, and the texts that they belong to, which tokens are no padding,
and the keys of these (`laconic.calibrate.reservoir.token_keys`)."""

LEAST_SAMPLE = 1024
"""Number of tokens of the layer's input that are sampled at least."""
SAMPLE_PER_COLUMN = 4
"""Number of sampled tokens for each column of the widest matrix that does not read the layer's input."""


class StackRecorder:
    """The statistics of the matrices of one stack.

    Args:
        stack: the matrices.
        needs: the types of statistics.
        device: the device of the sums.
    """

    def __init__(self, stack: ExpertStack, needs: Collection[type[Statistic]], device: torch.device) -> None:
        self.stack = stack
        # A set of types has another order in each process, and all of them gather one statistic at a time.
        kinds = sorted(needs, key=lambda kind: kind.__name__)
        inputs = [kind for kind in kinds if issubclass(kind, InputStatistic)]
        gradients = [kind for kind in kinds if issubclass(kind, GradientStatistic)]
        self.inputs, self.gradients = (
            [StackStatistic.empty(kind, stack.experts, stack.shape, device) for kind in own]
            for own in (inputs, gradients)
        )
        self._keeps_inputs = any(kind.reads_inputs for kind in gradients)

    def attach(self, find_tokens: Callable[[Routing], RoutedTokens]) -> RemovableHandle:
        """Register the hook that updates the statistics; `find_tokens` leaves out the padding of a call."""

        def read(args: tuple[Tensor, Routing]) -> tuple[Tensor, RoutedTokens]:
            tokens = find_tokens(args[1])
            X = tokens.without_padding(args[0].detach())
            for statistic in self.inputs:
                statistic.update_inputs(X, tokens)
            return X, tokens

        def on_call(_: nn.Module, args: tuple[Tensor, Routing]) -> None:
            read(args)

        def on_return(_: nn.Module, args: tuple[Tensor, Routing], output: Tensor) -> Tensor:
            X, tokens = read(args)
            if not torch.is_grad_enabled():
                return output
            kept = X if self._keeps_inputs else None
            leaf = output if output.requires_grad else output.detach().requires_grad_()
            leaf.register_hook(lambda G: self._update(kept, G.detach(), tokens))
            # Unlike other layers, an `ExpertLayer` changes no output in place, so no copy is needed.
            return leaf.view_as(leaf)

        if self.gradients:
            return self.stack.register_forward_hook(on_return)
        # A pass may be ended when the last matrix is about to be called.
        return self.stack.register_forward_pre_hook(on_call)

    def _update(self, X: Tensor | None, G: Tensor, tokens: RoutedTokens) -> None:
        G = tokens.without_padding(G)
        for statistic in self.gradients:
            statistic.update_gradients(X, G, tokens)


class ExpertRecorder(ExitStack):
    """A context manager that updates the statistics of the experts of one layer.

    Args:
        lm: the model.
        path: the path of the module of experts.
        sites: matrices of experts; all experts of their stacks are measured.
        needs: the types of statistics to collect.
        find_tokens: finds the padding.
    """

    def __init__(
        self,
        lm: LanguageModel,
        path: str,
        sites: Sequence[Site],
        needs: Collection[type[Statistic]],
        find_tokens: FindTokens,
    ) -> None:
        super().__init__()
        self._model, self.path, self._sites, self._find_tokens = lm.model, path, sites, find_tokens
        self._module = lm.model.get_submodule(path)
        self.layer = self._module if isinstance(self._module, ExpertLayer) else ExpertLayer(self._module)
        first, last = self.layer.stacks().values()
        units = dict.fromkeys(site.unit for site in sites)
        modules = {unit: self.layer.get_submodule(unit.removeprefix(f"{path}.")) for unit in units}
        self.stacks = {
            unit: StackRecorder(module, needs, lm.device)
            for unit, module in modules.items()
            if isinstance(module, ExpertStack)
        }
        self.read_input = set(_find_input_stacks(first))
        self.last = last
        self.rows = torch.zeros(last.experts, dtype=torch.long, device=lm.device)
        widths = [recorder.stack.in_features for recorder in self.stacks.values() if self.reads_own_channels(recorder)]
        self.sample = Reservoir(max(LEAST_SAMPLE, SAMPLE_PER_COLUMN * max(widths))) if widths else None
        self._routed: tuple[Routing, RoutedTokens] | None = None
        self._counted: Counted | None = None

    def __enter__(self) -> Self:
        if self.layer is not self._module:
            self._model.set_submodule(self.path, self.layer)
            self.callback(self._model.set_submodule, self.path, self._module)
        self.callback(self.layer.register_forward_pre_hook(self._on_call, with_kwargs=True).remove)
        for stack in self.stacks.values():
            self.callback(stack.attach(self._leave_out_padding).remove)
        return self

    @property
    def modules(self) -> list[nn.Module]:
        """The modules whose calls update statistics."""
        return [stack.stack for stack in self.stacks.values()]

    @property
    def width(self) -> int:
        """The number of columns of the widest matrix that is measured."""
        return max(recorder.stack.in_features for recorder in self.stacks.values())

    def reads_own_channels(self, recorder: StackRecorder) -> bool:
        """Whether the measured inputs of a stack are made by the expert itself, not those of the layer."""
        return bool(recorder.inputs) and recorder.stack not in self.read_input

    def _on_call(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        hidden = routed_arguments(args, kwargs)[0]
        self._counted, keys = self._find_tokens(len(hidden), self._sites[0].places[0].reads[0])
        self._routed = None
        if self.sample is not None:
            self.sample.add(hidden.detach()[self._counted.flatten()], keys)

    def _leave_out_padding(self, routing: Routing) -> RoutedTokens:
        if self._routed is None or self._routed[0] is not routing:
            assert self._counted is not None
            self._routed = routing, RoutedTokens.of(routing, self._counted)
            self.rows += self._routed[1].rows
        return self._routed[1]

    def count_predictions(self, number: int) -> None:
        """Add `number` to the number of predictions that the gradient statistics are divided by."""
        for stack in self.stacks.values():
            for statistic in stack.gradients:
                statistic.counts += number

    def stats(self) -> dict[str, LayerStats]:
        """The statistics of each measured matrix, by its name."""
        found = {}
        for site in self._sites:
            index = site.places[0].index
            assert index is not None
            recorder = self.stacks[site.unit]
            parts = [statistic.part(index) for statistic in (*recorder.inputs, *recorder.gradients)]
            found[site.name] = LayerStats(parts, site.support, int(self.rows[index]) if parts else None)
        return found

    def gather(self) -> None:
        """Combine the statistics of all processes, in place."""
        self.rows = all_reduce_sum(self.rows)
        for stack in self.stacks.values():
            for statistic in (*stack.inputs, *stack.gradients):
                statistic.gather()
        if self.sample is not None and bool((self.rows < self.width).any()):
            self.sample.gather()


def _find_input_stacks(stack: nn.Module) -> Iterator[nn.Module]:
    """The stacks in `stack`, itself included, that read its input."""
    yield stack
    if isinstance(stack, ExpertStack):
        for name in stack.input_modules:
            yield from _find_input_stacks(stack.get_submodule(name))


def find_expert_recorders(
    lm: LanguageModel, sites: Sequence[Site], needs: Collection[type[Statistic]], find_tokens: FindTokens
) -> list[ExpertRecorder]:
    """Make one recorder for each layer of experts that has some of the matrices.

    Args:
        lm: the model.
        sites: the matrices of experts.
        needs: the types of statistics to record.
        find_tokens: as in `ExpertRecorder`.
    """
    layers: dict[str, list[Site]] = {}
    for site in sites:
        layers.setdefault(_find_layer(lm.model, site.unit), []).append(site)
    return [ExpertRecorder(lm, path, members, needs, find_tokens) for path, members in layers.items()]


def _find_layer(model: nn.Module, stack: str) -> str:
    """The path of the module of experts that a stack lies in."""
    parts = stack.split(".")
    paths = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next(path for path in paths if is_experts(model.get_submodule(path)))
