"""A Transformers model seen as stacks of blocks and sites: anatomy as data, surgery, loading, predictions.

Internal: it may change with any version.
"""

from laconic.model.anatomy import ANATOMIES, Anatomy, Stack
from laconic.model.batch import Batch, first_token_mask, global_token_mask, token_masks
from laconic.model.lm import DEFAULT_TARGETS, LanguageModel
from laconic.model.loading import check_model, load, load_empty, with_tokenizers
from laconic.model.predictions import (
    Predictions,
    divergence,
    gather_predictions,
    predict,
    run_model,
)
from laconic.model.site import Group, InputTokens, Role, Site
from laconic.model.task import ModelTask

__all__ = [
    "ANATOMIES",
    "DEFAULT_TARGETS",
    "Anatomy",
    "Batch",
    "Group",
    "InputTokens",
    "LanguageModel",
    "ModelTask",
    "Predictions",
    "Role",
    "Site",
    "Stack",
    "check_model",
    "divergence",
    "first_token_mask",
    "gather_predictions",
    "global_token_mask",
    "load",
    "load_empty",
    "predict",
    "run_model",
    "token_masks",
    "with_tokenizers",
]
