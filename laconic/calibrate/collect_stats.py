"""Statistics of every linear layer of a model, collected in one pass over the data, which several processes share."""

from collections.abc import Collection, Mapping, Sequence

import torch

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.layer_stats import LayerStats, gather
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.scores import scores
from laconic.calibrate.statistics import GradientStatistic, Statistic
from laconic.errors import UserError
from laconic.model import LanguageModel, Site, predict
from laconic.processes import sync_errors


def collect_stats(
    lm: LanguageModel, data: Calibration, needs: Collection[type[Statistic]], sites: Sequence[Site]
) -> dict[str, LayerStats]:
    """Run every batch forward, and backward where a gradient statistic is needed; return `LayerStats` by site name.

    Raises:
        UserError: there is no batch, or activations, predictions or gradients are not finite.
    """
    if not data.batches:
        raise UserError("The calibration data is empty; give a source with at least one row of text.")
    if not needs:
        return {site.name: LayerStats(support=site.support) for site in sites}
    with_gradients = any(issubclass(kind, GradientStatistic) for kind in needs)
    trainable = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    was_training = lm.model.training
    lm.model.eval().requires_grad_(False)
    try:
        with sync_errors(), Recorder(lm, sites, needs) as recorder, torch.set_grad_enabled(with_gradients):
            for batch, generator in data.share("Measuring the layers"):
                recorder.batch = {name: tensor.to(lm.device) for name, tensor in batch.items()}
                predictions, _ = predict(lm, recorder.batch)
                if with_gradients:
                    _differentiate(list(scores(predictions, data.labels, generator)))
                    recorder.count_predictions(len(predictions.values))
    finally:
        for parameter in trainable:
            parameter.requires_grad_()
        lm.model.train(was_training)
    known = recorder.known()
    gather(known)
    check_finite(known, needs)
    return known


def _differentiate(losses: list[torch.Tensor]) -> None:
    for i, loss in enumerate(losses):
        loss.backward(retain_graph=i + 1 < len(losses))


def check_finite(known: Mapping[str, LayerStats], needs: Collection[type[Statistic]]) -> None:
    """Raise UserError where what was measured of a site is not finite."""
    for name, statistics in known.items():
        for kind in needs:
            # One pass: a sum is finite only where every term is.
            if not torch.isfinite(statistics[kind].total.sum()):
                raise UserError(
                    f"The {kind.__name__} statistic of '{name}' is not finite; check the model and the data."
                )
