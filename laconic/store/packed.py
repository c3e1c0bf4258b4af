"""Layers that a file has in another form than memory: made from it after loading, put back into it when saving."""

from torch import Tensor
from transformers import PreTrainedModel

from laconic.formats import Format
from laconic.model import ties


def unpack(model: PreTrainedModel) -> None:
    """Make every layer that was just loaded one that computes, one at a time.

    Raises:
        UserError: a layer's tensors do not fit each other.
    """
    for layer, places in _places(model).items():
        layer.unpack()
        # Their tensors have other names now, and what is one tensor is still to be one.
        ties.untie(model, set(places))
        ties.tie(model, places[0], places[1:])


def stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Everything that the files of `model` hold: a packed layer that stands in several places once."""
    ignored = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    for layer, places in _places(model).items():
        for alias in places[1:]:
            for tensor in layer.packed_names:
                del state[f"{alias}.{tensor}"]
    return state


def _places(model: PreTrainedModel) -> dict[Format, list[str]]:
    places: dict[Format, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Format) and module.packed_names:
            places.setdefault(module, []).append(name)
    return places
