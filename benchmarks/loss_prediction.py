"""How well ½ tr(F E C E^T) predicts the true KL of replacing one matrix, over all matrices of minilm-sst2.

Each matrix alone is truncated by `drone` at 30 % of its bytes; the KL divergence on the development set is compared
with the prediction from 128 training rows, and with the layer's output error tr(E C E^T), which knows no gradients.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.progress import track
from scipy.stats import spearmanr

from benchmarks.common import calibration, clone, development, kl, models_folder, predictions, write_json
from laconic.calibrate import GradCovariance, InputCovariance, collect_stats
from laconic.methods import Drone
from laconic.model import load
from laconic.numerics.moments import quadratic_loss


def main(argv: Sequence[str]) -> None:
    """Print the rank correlations; write benchmarks/results/loss_prediction.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=None, help="development rows (default: all 872)")
    options = parser.parse_args(argv)
    lm = load(str(models_folder() / "minilm-sst2"))
    known = collect_stats(lm, calibration(lm, "glue/sst2", 128, seed=0), {InputCovariance, GradCovariance}, lm.sites())
    data = development(lm, "glue/sst2", options.rows)
    dense = predictions(lm, data)
    rows = []
    for site in track(lm.sites(), "Replacing one matrix at a time"):
        changed = clone(lm)
        (same,) = changed.sites([site.name])
        format = Drone().with_keep(0.3, site.shape).compress(site.weight(), known[site.name])
        error = site.weight() - format.dense()
        F, C = known[site.name][GradCovariance].matrix, known[site.name][InputCovariance].matrix
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
        "spearman_predicted": spearmanr([row["predicted"] for row in rows], true).statistic,
        "spearman_output_error": spearmanr([row["output_error"] for row in rows], true).statistic,
        "matrices": rows,
    }
    path = write_json("loss_prediction", result)
    print(f"Spearman rank correlation with the true KL over {len(rows)} matrices:")
    print(f"  ½ tr(F E C Eᵀ)  {result['spearman_predicted']:.3f}")
    print(f"  ½ tr(E C Eᵀ)    {result['spearman_output_error']:.3f}")
    print(f"written to {path}")
