"""What `gptq` and `yaqa` predict of themselves on bart-g2p-us: ½ tr(F E C E^T), summed over the matrices, in nats.

Groups of 64, 128 training rows, one seed: to be set beside the KL that comes true, which `quantize_quality` measures.
"""

import argparse
from collections.abc import Sequence

from benchmarks.common import models_folder
from laconic.calibrate import GradCovariance, InputCovariance, collect_stats
from laconic.calibrate.corpus import read
from laconic.methods import Gptq, Yaqa
from laconic.model import load
from laconic.numerics.moments import quadratic_loss
from laconic.progress import silent
from laconic.recipe.flow import Sampling

MODEL, SOURCE, ROWS = "bart-g2p-us", "g2p", 128
BITS = (4, 3, 2)


def main(argv: Sequence[str]) -> None:
    """Print one line for each number of bits."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    lm = load(str(models_folder() / MODEL))
    data = Sampling(samples=ROWS).of(lm, read(SOURCE, "train"), silent)
    sites = lm.sites()
    known = collect_stats(lm, data, frozenset({InputCovariance, GradCovariance}), sites)
    for bits in BITS:
        predicted = {}
        for method in (Gptq(bits=bits), Yaqa(bits=bits)):
            losses = []
            for site in sites:
                of, weight = known[site.name], site.weight().detach().float()
                error = weight.double() - method.compress(weight, of).dense().double()
                losses.append(quadratic_loss(error, of[GradCovariance].matrix, of[InputCovariance].matrix))
            predicted[method.name] = sum(losses)
        print(f"{bits} bits: " + ", ".join(f"{name} {loss:.5f}" for name, loss in predicted.items()))
