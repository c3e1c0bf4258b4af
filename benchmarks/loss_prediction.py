"""Compare ½ tr(F E C E^T) with the true KL of replacing one matrix, over all matrices of minilm-sst2.

Each matrix alone is truncated by `drone` at 30 % of its bytes. The KL divergence on the development set is compared
with the prediction from 128 training rows, and with the layer's output error tr(E C E^T), which uses no gradients.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.progress import track
from scipy.stats import spearmanr

from benchmarks.common import (
    calibration,
    clone,
    development,
    kl,
    load_model,
    predictions,
    write_json,
)
from laconic.calibrate import GradCovariance, InputCovariance, collect_stats
from laconic.calibrate.sources import read
from laconic.methods import Drone, Gptq, Yaqa
from laconic.numerics.moments import quadratic_loss
from laconic.progress import silent
from laconic.recipe.sampling import Sampling


def main(argv: Sequence[str]) -> None:
    """Print the rank correlations; write benchmarks/results/loss_prediction.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=None, help="development rows (default: all 872)")
    options = parser.parse_args(argv)
    lm = load_model("minilm-sst2")
    stats = collect_stats(lm, calibration(lm, "glue/sst2", 128, seed=0), {InputCovariance, GradCovariance}, lm.sites())
    data = development(lm, "glue/sst2", options.rows)
    dense = predictions(lm, data)
    rows = []
    for site in track(lm.sites(), "Replacing one matrix at a time"):
        changed = clone(lm)
        (same,) = changed.sites([site.name])
        format = Drone().with_keep(0.3, site.shape).compress(site.weight(), stats[site.name])
        error = site.weight() - format.dense()
        F, C = stats[site.name][GradCovariance].matrix, stats[site.name][InputCovariance].matrix
        changed.replace(same, format)
        rows.append(
            {
                "site": site.name,
                "predicted": quadratic_loss(error, F, C),
                "output_error": quadratic_loss(error, torch.ones(site.shape[0]), C),
                "kl": kl(dense, predictions(changed, data)),
            }
        )
    true = [row["kl"] for row in rows]
    result = {
        "spearman_predicted": spearmanr([row["predicted"] for row in rows], true)[0],
        "spearman_output_error": spearmanr([row["output_error"] for row in rows], true)[0],
        "matrices": rows,
    }
    path = write_json("loss_prediction", result)
    print(f"Spearman rank correlation with the true KL over {len(rows)} matrices:")
    print(f"  ½ tr(F E C Eᵀ)  {result['spearman_predicted']:.3f}")
    print(f"  ½ tr(E C Eᵀ)    {result['spearman_output_error']:.3f}")
    print(f"written to {path}")


MODEL, SOURCE, ROWS = "bart-g2p-us", "g2p", 128
BITS = (4, 3, 2)


def two_sided(argv: Sequence[str]) -> None:
    """Print the losses that `gptq` and `yaqa` predict for themselves on bart-g2p-us, one line for each number of bits.

    ½ tr(F E C E^T), summed over the matrices, in nats; groups of 64, 128 training rows, one seed. `quantize_quality`
    measures the true KL divergences.
    """
    argparse.ArgumentParser(description=two_sided.__doc__).parse_args(argv)
    lm = load_model(MODEL)
    data = Sampling(samples=ROWS).of(lm, read(SOURCE, "train"), silent)
    sites = lm.sites()
    stats = collect_stats(lm, data, frozenset({InputCovariance, GradCovariance}), sites)
    for bits in BITS:
        predicted = {}
        for method in (Gptq(bits=bits), Yaqa(bits=bits)):
            losses = []
            for site in sites:
                of, weight = stats[site.name], site.weight().detach().float()
                error = weight.double() - method.compress(weight, of).dense().double()
                losses.append(quadratic_loss(error, of[GradCovariance].matrix, of[InputCovariance].matrix))
            predicted[method.name] = sum(losses)
        print(f"{bits} bits: " + ", ".join(f"{name} {loss:.5f}" for name, loss in predicted.items()))
