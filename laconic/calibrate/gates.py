"""Gradients of gates in one pass over the data, shared among processes.

Every head or channel gets a gate ξ = 1 that multiplies its columns of the input of the output projection. The
importance of a head is E|∂L/∂ξ| (P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS
2019, equation 2) or E(∂L/∂ξ)² (P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019,
equation 8). Both are computed for each text separately, so they do not depend on the batch size. For enumerated labels,
E|∂L/∂ξ| is approximated by a mean over the columns of L.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laconic import processes
from laconic.calibrate.anchor import count_rows
from laconic.calibrate.collation import to_device
from laconic.calibrate.collect_stats import Calibration, check_not_empty, without_weight_gradients
from laconic.calibrate.gate_pass import BlockGates, Slopes, differentiate_gates
from laconic.calibrate.losses import fisher_losses
from laconic.calibrate.passes import evaluating
from laconic.model import Batch, LanguageModel, predict
from laconic.model.prunable_group import PrunableGroup
from laconic.numerics.moments import check_finite


@dataclass
class GateGradients:
    """Gradients of the gates of one group of heads or channels, averaged over texts.

    Args:
        absolute: E|∂L/∂ξ|, (parts,).
        squared: E(∂L/∂ξ)², (parts,).
    """

    absolute: Float[Tensor, " parts"]
    squared: Float[Tensor, " parts"]

    def add(self, by_loss: Sequence[Float[Tensor, "texts parts"]]) -> None:
        """Add the gradients of all losses of one batch.

        The squared gradients of the losses sum to one expectation, so their absolute values are divided by the square
        root of the number of losses.
        """
        for gradient in by_loss:
            self.absolute += gradient.abs().sum(0) / len(by_loss) ** 0.5
            self.squared += gradient.square().sum(0)


def gate_gradients(lm: LanguageModel, data: Calibration, groups: Sequence[PrunableGroup]) -> dict[str, GateGradients]:
    """Run every batch forward and backward and average the gradients of the gates.

    Args:
        lm: the model.
        data: the calibration data.
        groups: groups of heads or channels; those with the same `coupling`, which are pruned together, share gates.

    Returns:
        The gradients by `PrunableGroup.coupling`.

    Raises:
        UserError: there is no batch, or predictions or gradients are not finite.
    """
    check_not_empty(data)
    counts = {group.coupling: group.count for group in groups}
    found = {
        key: GateGradients(*torch.zeros(2, count, dtype=torch.float64, device="cpu")) for key, count in counts.items()
    }
    if lm.loans is not None:
        _add_streamed(lm, data, groups, found)
    else:
        with processes.sync_errors(), evaluating(lm), without_weight_gradients(lm):
            for batch, generator in data.share("Measuring the gates"):
                inputs = to_device(batch, lm.device)
                by_loss = list(_gradients(lm, inputs, groups, counts, data, generator))
                for key, gates in found.items():
                    gates.add([gradients[key] for gradients in by_loss])
    texts = count_rows(data.batches)
    for key, gates in found.items():
        gates.absolute = processes.all_reduce_sum(gates.absolute) / texts
        gates.squared = processes.all_reduce_sum(gates.squared) / texts
        check_finite(
            gates.squared, f"The gradients of the gates of '{key}' are not finite; check the model and the data."
        )
    return found


def _add_streamed(
    lm: LanguageModel, data: Calibration, groups: Sequence[PrunableGroup], found: Mapping[str, GateGradients]
) -> None:
    """Add the gradients of a streamed model on the batches of this process, block by block.

    Args:
        lm: the model.
        data: the calibration data.
        groups: the groups.
        found: zeros by `PrunableGroup.coupling`, changed in place.
    """
    members = Counter(group.coupling for group in groups)
    # The gates of groups in several blocks have the sum of their gradients, for each batch and loss.
    shared: dict[tuple[str, int], list[Tensor]] = {}

    def make(path: str, number: int, batch: Batch) -> BlockGates:
        own = [group for group in groups if group.writer.block == path]
        counts = {group.coupling: group.count for group in own}
        gates = _make_gates(lm, batch, counts)

        def finish(slopes: Slopes) -> None:
            for key, by_loss in zip(gates, slopes, strict=True):
                if members[key] == 1:
                    found[key].add([gradient.double().cpu() for gradient in by_loss])
                    continue
                earlier = shared.get((key, number), [torch.zeros_like(gradient) for gradient in by_loss])
                shared[key, number] = [sum + gradient for sum, gradient in zip(earlier, by_loss, strict=True)]

        return BlockGates(list(gates.values()), partial(_apply_gates, own, gates), finish)

    differentiate_gates(lm, data, make)
    for number in range(len(data.shares())):
        for key in (key for key, count in members.items() if count > 1):
            found[key].add([gradient.double().cpu() for gradient in shared[key, number]])


def _make_gates(lm: LanguageModel, batch: Batch, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Gates for each text of a batch, (texts, parts) by coupling."""
    texts = len(batch["input_ids"])
    return {key: torch.ones(texts, count, device=lm.device, requires_grad=True) for key, count in counts.items()}


def _gradients(
    lm: LanguageModel,
    batch: Batch,
    groups: Sequence[PrunableGroup],
    counts: Mapping[str, int],
    data: Calibration,
    generator: torch.Generator,
) -> Iterator[dict[str, Float[Tensor, "texts parts"]]]:
    """Yield ∂L/∂ξ, (texts, parts) by coupling, for each loss of one batch."""
    gates = _make_gates(lm, batch, counts)
    with _apply_gates(groups, gates):
        predictions, _ = predict(lm, batch)
    for loss in fisher_losses(predictions, data.labels, generator):
        gradients = torch.autograd.grad(loss, list(gates.values()), retain_graph=True)
        yield {key: gradient.double().cpu() for key, gradient in zip(gates, gradients, strict=True)}


@contextmanager
def _apply_gates(groups: Sequence[PrunableGroup], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context the input of each output projection is multiplied by the gates of its heads or channels."""

    def hook_of(group: PrunableGroup) -> RemovableHandle:
        gate = gates[group.coupling].repeat_interleave(group.size, dim=1)

        def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # Some models flatten texts and tokens into one dimension.
            rows = args[0].reshape(len(gate), -1, gate.shape[1])
            return ((rows * gate[:, None].to(rows.dtype)).view_as(args[0]), *args[1:])

        return group.writer.module.register_forward_pre_hook(multiply)

    with ExitStack() as hooks:
        for group in groups:
            hooks.callback(hook_of(group).remove)
        yield
