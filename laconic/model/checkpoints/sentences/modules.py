"""`modules.json`: which modules of sentence-transformers a model is made of, and where each of them lies."""

from pathlib import PureWindowsPath
from typing import Any

from laconic.errors import UserError
from laconic.model.checkpoints.sentences.stages import KINDS, Module
from laconic.model.checkpoints.sentences.transformer import TASKS

MODULES = "modules.json"
NAMESPACE = "sentence_transformers"
TRANSFORMER = "Transformer"
CROSS_ENCODER = "CrossEncoder"


def modules_of(listed: list[Any], model_type: str, source: str) -> list[Module]:
    """The modules that `listed`, read from modules.json, names: a transformer, then those of KINDS.

    Args:
        model_type: the class of sentence-transformers that the model is for.
        source: the model, for sentences.

    Raises:
        UserError: there are none, or others, or some that need code of their own, or lie outside of the folder.
    """
    modules = [_module(entry, source) for entry in listed]
    if not modules:
        raise UserError(f"The {MODULES} of '{source}' names no module; use a sound folder.")
    if model_type not in TASKS:
        raise UserError(
            f"The model '{source}' is a {model_type} of sentence-transformers, whose outputs laconic does not compute; "
            f"take {MODULES} out of its folder to have the transformer in it seen as a plain model."
        )
    for number, module in enumerate(modules):
        known = module.kind == TRANSFORMER if number == 0 else module.kind in KINDS and model_type != CROSS_ENCODER
        if not known:
            raise UserError(
                f"The {MODULES} of '{source}' names '{module.kind}' as module {number} of a {model_type}, which "
                f"laconic does not compute; it reads a {TRANSFORMER}, and behind that in a SentenceTransformer "
                f"{', '.join(KINDS)}."
            )
    return modules


def _module(entry: Any, source: str) -> Module:
    match entry:
        case {"type": str(named), "path": str(path)}:
            pass
        case _:
            raise UserError(f"An entry of {MODULES} of '{source}' has no type and path: {entry}; use a sound one.")
    package, _, _ = named.partition(".")
    if package != NAMESPACE:
        raise UserError(
            f"The model '{source}' needs code of its own: its {MODULES} names '{named}', which is no module of "
            f"{NAMESPACE}, and laconic never runs code that comes with a model; use one that needs none."
        )
    inside = PureWindowsPath(path)
    if inside.anchor or ".." in inside.parts:
        raise UserError(
            f"The {MODULES} of '{source}' names the folder '{path}', which is not in that of the model; correct it."
        )
    return Module(named.rpartition(".")[2], path)
