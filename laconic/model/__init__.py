"""A Transformers model seen as stacks of blocks and sites: anatomy as data, surgery, loading, predictions."""

from laconic.model.anatomy import ANATOMIES, Anatomy, Stack
from laconic.model.lm import DEFAULT_TARGETS, LanguageModel
from laconic.model.loading import check_model, load, skeleton, with_tokenizers
from laconic.model.predictions import Batch, Predictions, divergence, first_token, gathered, predict, run
from laconic.model.site import Group, Reads, Role, Site
from laconic.model.task import Task

__all__ = [
    "ANATOMIES",
    "DEFAULT_TARGETS",
    "Anatomy",
    "Batch",
    "Group",
    "LanguageModel",
    "Predictions",
    "Reads",
    "Role",
    "Site",
    "Stack",
    "Task",
    "check_model",
    "divergence",
    "first_token",
    "gathered",
    "load",
    "predict",
    "run",
    "skeleton",
    "with_tokenizers",
]
