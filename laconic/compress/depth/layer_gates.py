"""How much the predictions depend on each block, to first order: gates on what blocks add to the hidden states.

Paper: P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3.2: with a gate
ξ = 1 on a part of the network, its importance is the square of ∂L/∂ξ, averaged over the samples. Here a sample is a
row, L is what the Fisher information is made of (`laconic.calibrate.scores`), and the gate of a block multiplies what
it adds to the hidden states, h + ξ (f(h) − h). So ½ E[(∂L/∂ξ)²] is the KL divergence that the second-order expansion
predicts for dropping the block, in nats per prediction; its first order is zero.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic import processes
from laconic.calibrate import Calibration
from laconic.calibrate.scores import scores
from laconic.compress.depth.cuts import Cut, subblock_at
from laconic.model import LanguageModel, predict
from laconic.model.layers import find_layers

Gates = Float[Tensor, "cuts rows"]


def importances(lm: LanguageModel, data: Calibration, cuts: Sequence[Cut]) -> dict[Cut, float]:
    """½ Σ_rows (∂L/∂ξ)² / predictions of each of `cuts`."""
    total = torch.zeros(len(cuts), dtype=torch.float64, device=lm.device)
    count = 0
    trained = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    lm.model.requires_grad_(False)
    try:
        with processes.sync_errors():
            for on_cpu, generator in data.share("Differentiating by gates"):
                batch = {name: tensor.to(lm.device) for name, tensor in on_cpu.items()}
                gates = torch.ones(len(cuts), len(batch["input_ids"]), device=lm.device, requires_grad=True)
                with gated(lm, cuts, gates), torch.enable_grad():
                    predictions, _ = predict(lm, batch)
                    for score in scores(predictions, data.labels, generator):
                        (slopes,) = torch.autograd.grad(score, gates, retain_graph=True)
                        total += slopes.double().square().sum(1)
                count += len(predictions.values)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    count = int(processes.summed(torch.tensor(count)))
    return dict(zip(cuts, (0.5 * processes.summed(total) / max(count, 1)).tolist(), strict=True))


@contextmanager
def gated(lm: LanguageModel, cuts: Sequence[Cut], gates: Gates) -> Iterator[None]:
    """Within the context, what each of `cuts` adds in a row is multiplied by its gate of that row."""
    stacks = {layers.name: layers for layers in find_layers(lm)}
    # A shared block is called for one layer after the other.
    calls: dict[str, dict[int, Tensor]] = {}
    with ExitStack() as hooks:
        for cut, gate in zip(cuts, gates, strict=True):
            layers = stacks[cut.stack]
            if cut.part is not None:
                writer = lm.model.get_submodule(subblock_at(lm, layers, cut).writer)
                hooks.callback(writer.register_forward_hook(_scaled(gate)).remove)
            else:
                path = layers.paths[cut.layer]
                calls.setdefault(path, {})[layers.paths[: cut.layer].count(path)] = gate
        for path, by_call in calls.items():
            hook = lm.model.get_submodule(path).register_forward_hook(_between(by_call), with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def _scaled(gate: Tensor) -> Callable[..., Any]:
    def on_return(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        lines = output.reshape(len(gate), -1, output.shape[-1])
        return (lines * gate[:, None, None].to(output.dtype)).reshape(output.shape)

    return on_return


def _between(by_call: dict[int, Tensor]) -> Callable[..., Any]:
    calls: Counter[nn.Module] = Counter()

    def on_return(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        gate = by_call.get(calls[module])
        calls[module] += 1
        if gate is None:
            return output
        entered = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        left = output[0] if isinstance(output, tuple) else output
        mixed = entered + gate[:, None, None].to(left.dtype) * (left - entered)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    return on_return
