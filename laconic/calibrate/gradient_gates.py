"""How the loss of each text would change if a head or a channel were turned down: gradients of gates on what they give.

Every part (`laconic.model.prunable_group`) gets a gate ξ = 1 that multiplies its columns of the input of the output
projection.
Head importance is E|∂L/∂ξ| (P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019,
equation 2), the squared form E(∂L/∂ξ)² that of P. Molchanov et al., "Importance Estimation for Neural Network Pruning"
(CVPR 2019), equation 8. Both are taken text by text, so that no batch size enters, over the losses of
`laconic.calibrate.scores`. Where these stand for all labels at once (`enumerated`), the mean of |∂L/∂ξ| over labels is
not to be had from them, and the mean over their axes has its place: for two classes the root of E(∂L/∂ξ)².
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laconic import processes
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.passes import evaluating
from laconic.calibrate.scores import scores
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, predict
from laconic.model.prunable_group import PrunableGroup


@dataclass
class GateGradients:
    """E|∂L/∂ξ| and E(∂L/∂ξ)² of the gate of each part, over the texts."""

    absolute: Float[Tensor, " parts"]
    squared: Float[Tensor, " parts"]


def gate_gradients(lm: LanguageModel, data: Calibration, inners: Sequence[PrunableGroup]) -> dict[str, GateGradients]:
    """Run every batch forward and backward, and return the gradients by `PrunableGroup.coupling`.

    Groups that lose the same parts share one gate.

    Raises:
        UserError: there is no batch, or predictions or gradients are not finite.
    """
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    counts = {inner.coupling: inner.count for inner in inners}
    found = {key: GateGradients(*torch.zeros(2, count, dtype=torch.float64)) for key, count in counts.items()}
    texts = 0
    with processes.sync_errors(), evaluating(lm), _frozen(lm):
        for batch, generator in data.share("Measuring the gates"):
            moved = {name: tensor.to(lm.device) for name, tensor in batch.items()}
            texts += len(moved["input_ids"])
            every = list(_gradients(lm, moved, inners, counts, data, generator))
            for gradients in every:
                for key, gradient in gradients.items():
                    # The losses are such that their squares add up to one expectation.
                    found[key].absolute += gradient.abs().sum(0) / len(every) ** 0.5
                    found[key].squared += gradient.square().sum(0)
    texts = int(processes.summed(torch.tensor(texts)))
    for key, gates in found.items():
        gates.absolute = processes.summed(gates.absolute) / texts
        gates.squared = processes.summed(gates.squared) / texts
        if not gates.squared.isfinite().all():
            raise UserError(f"The gradients of the gates of '{key}' are not finite; check the model and the data.")
    return found


def _gradients(
    lm: LanguageModel,
    batch: Batch,
    inners: Sequence[PrunableGroup],
    counts: Mapping[str, int],
    data: Calibration,
    generator: torch.Generator,
) -> Iterator[dict[str, Float[Tensor, "texts parts"]]]:
    """∂L/∂ξ of each text of one batch, for each of its losses in turn."""
    texts = len(batch["input_ids"])
    gates = {key: torch.ones(texts, count, device=lm.device, requires_grad=True) for key, count in counts.items()}
    with _gated(inners, gates):
        predictions, _ = predict(lm, batch)
    for loss in scores(predictions, data.labels, generator):
        gradients = torch.autograd.grad(loss, list(gates.values()), retain_graph=True)
        yield {key: gradient.double().cpu() for key, gradient in zip(gates, gradients, strict=True)}


@contextmanager
def _gated(inners: Sequence[PrunableGroup], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context what each output projection reads is multiplied by the gates of its parts."""

    def hook_of(inner: PrunableGroup) -> RemovableHandle:
        gate = gates[inner.coupling].repeat_interleave(inner.size, dim=1)

        def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # Some models flatten texts and tokens into one dimension.
            lines = args[0].reshape(len(gate), -1, gate.shape[1])
            return ((lines * gate[:, None].to(lines.dtype)).view_as(args[0]), *args[1:])

        return inner.writer.module.register_forward_pre_hook(multiply)

    handles = [hook_of(inner) for inner in inners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(lm: LanguageModel) -> Iterator[None]:
    """No gradients of weights; afterwards as it was."""
    trainable = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    lm.model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
