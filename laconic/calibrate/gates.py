"""Gradients of gates in one pass over the data, shared among processes.

Every head or channel gets a gate ξ = 1 that multiplies its columns of the input of the output projection. The
importance of a head is E|∂L/∂ξ| (P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS
2019, equation 2) or E(∂L/∂ξ)² (P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019,
equation 8). Both are computed for each text separately, so they do not depend on the batch size. For enumerated labels,
E|∂L/∂ξ| is approximated by a mean over the columns of L.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laconic import processes
from laconic.calibrate.collation import to_device
from laconic.calibrate.collect_stats import Calibration, without_weight_gradients
from laconic.calibrate.losses import fisher_losses
from laconic.calibrate.passes import evaluating
from laconic.errors import UserError
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
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    counts = {group.coupling: group.count for group in groups}
    found = {key: GateGradients(*torch.zeros(2, count, dtype=torch.float64)) for key, count in counts.items()}
    texts = 0
    with processes.sync_errors(), evaluating(lm), without_weight_gradients(lm):
        for batch, generator in data.share("Measuring the gates"):
            inputs = to_device(batch, lm.device)
            texts += len(inputs["input_ids"])
            by_loss = list(_gradients(lm, inputs, groups, counts, data, generator))
            for gradients in by_loss:
                for key, gradient in gradients.items():
                    # The squared gradients of the losses sum to one expectation, so their absolute values are divided
                    # by the square root of the number of losses.
                    found[key].absolute += gradient.abs().sum(0) / len(by_loss) ** 0.5
                    found[key].squared += gradient.square().sum(0)
    texts = int(processes.all_reduce_sum(torch.tensor(texts)))
    for key, gates in found.items():
        gates.absolute = processes.all_reduce_sum(gates.absolute) / texts
        gates.squared = processes.all_reduce_sum(gates.squared) / texts
        check_finite(
            gates.squared, f"The gradients of the gates of '{key}' are not finite; check the model and the data."
        )
    return found


def _gradients(
    lm: LanguageModel,
    batch: Batch,
    groups: Sequence[PrunableGroup],
    counts: Mapping[str, int],
    data: Calibration,
    generator: torch.Generator,
) -> Iterator[dict[str, Float[Tensor, "texts parts"]]]:
    """Yield ∂L/∂ξ, (texts, parts) by coupling, for each loss of one batch."""
    texts = len(batch["input_ids"])
    gates = {key: torch.ones(texts, count, device=lm.device, requires_grad=True) for key, count in counts.items()}
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
