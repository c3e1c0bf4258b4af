"""Whether a configuration, and the structure that lies in it, describe all of a model, so that it is loaded as it is.

The model is built from both without weights, as `from_pretrained` will, and compared with the one in memory: classes of
modules, the tensors and shapes in each, and every flag and number, many of which depend on a layer's place.
"""

from typing import Any

from transformers import PreTrainedModel

from laconic.errors import UserError, reason_of
from laconic.model.stock import MODEL_ERRORS, differences, modules_of, stock, switch_as
from laconic.store.packed import unpack
from laconic.store.shapes import deviations
from laconic.store.structure import formats, rebuild


def describe(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """The structure of `model`: empty where its class makes all of it of the configuration.

    Raises:
        UserError: there is something that configuration and structure cannot say; then no folder can hold the model.
    """
    kind = type(model).__name__
    try:
        plain = stock(model)
    except MODEL_ERRORS as error:
        raise UserError(
            f"The class {kind} makes no model of this one's configuration: {reason_of(error)}; put that right."
        ) from error
    switch_as(model, plain)
    structure = {**formats(model), **deviations(model, plain)}
    rebuild(plain, structure)
    unpack(plain)
    found = next(differences(modules_of(model), modules_of(plain)), None)
    if found is not None:
        raise UserError(
            f"The configuration does not describe the model, so it would be loaded as another one: of it the class "
            f"{kind} makes one in which {found}; put the configuration right, or start from the model as it was."
        )
    return structure
