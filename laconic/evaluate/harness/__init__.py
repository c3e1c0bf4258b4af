"""The tasks of EleutherAI's lm-evaluation-harness (Gao et al., https://doi.org/10.5281/zenodo.5371628).

The extra `harness` installs it. Prompts, answers, scores and their aggregation are those of the harness.
"""

from laconic.evaluate.harness.task import Harness

__all__ = ["Harness"]
