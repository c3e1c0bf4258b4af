"""The structure of one part of a model, with which `laconic.model.loans` stores parts that were changed."""

import torch
from torch import nn
from transformers import PreTrainedModel

from laconic.formats import PackedEmbedding
from laconic.model.loans_parts import Structure
from laconic.model.stock import build_stock
from laconic.store.shapes import changed_shapes
from laconic.store.structure import format_entries, rebuild, unpack_formats


class PartStructures:
    """Functions that describe and rebuild the formats of a model, part by part; see `laconic.model.load_streamed`."""

    def __init__(self) -> None:
        self._stock: PreTrainedModel | None = None
        self._config = ""

    def describe(self, model: PreTrainedModel, path: str) -> Structure:
        """The structure of the part at `path`: one entry for each module that its class does not build.

        Args:
            model: the model; its stock model is built at the first call, and again if the configuration has changed.
            path: the path of the part.
        """
        config = model.config.to_json_string(use_diff=False)
        if self._stock is None or config != self._config:
            self._stock, self._config = build_stock(model), config
        return {**format_entries(model, path), **changed_shapes(model, self._stock, path)}

    def rebuild(self, model: PreTrainedModel, path: str, structure: Structure) -> None:
        """Insert the formats of a structure that the part at `path` does not have, on the meta device and packed."""
        present = self.describe(model, path)
        new = tuple(f"{name}." for name, entry in structure.items() if present.get(name) != entry)
        # A new format is inserted with all that is inside it.
        rebuild(model, {name: entry for name, entry in structure.items() if f"{name}.".startswith(new)})
        for name in structure:
            # The file of a head has no tensor of the word embedding that is a view of it, and this one has no values.
            view = model.get_submodule(name) if f"{name}.".startswith(new) else None
            if isinstance(view, PackedEmbedding):
                view.weight = nn.Parameter(torch.empty_like(view.weight, device="cpu"), requires_grad=False)

    def unpack(self, model: PreTrainedModel) -> None:
        """Give packed layers on the meta device the form that they compute with, in place."""
        unpack_formats(model)
