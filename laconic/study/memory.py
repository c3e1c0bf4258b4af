"""The memory that a worker needs for a cell of a study, from shapes, so that Ray can place it on a machine."""

import torch

from laconic.memory import resident_memory
from laconic.model import LanguageModel
from laconic.recipe.checked import LARGE
from laconic.recipe.estimate.in_memory import step_memory, weight_memory
from laconic.recipe.estimate.streamed import streamed_memory
from laconic.store import skeleton
from laconic.study.cells import Cell


class MemoryNeeds:
    """Estimates the memory of cells. The structure of each model is read once."""

    def __init__(self) -> None:
        self._models: dict[str, LanguageModel] = {}

    def of(self, cell: Cell) -> int:
        """The bytes that a worker needs for a cell: an upper bound. 0 for a small model, which fits any machine.

        Args:
            cell: the cell.

        Raises:
            UserError: the model cannot be read.
        """
        recipe = cell.recipe
        if recipe.model not in self._models:
            self._models[recipe.model] = skeleton(recipe.model)
        lm = self._models[recipe.model]
        if sum(parameter.numel() for parameter in lm.model.parameters()) < LARGE:
            return 0
        batches = [{"input_ids": torch.empty(recipe.batch_size, recipe.max_length, device="meta")}]
        # A worker has imported what this process has.
        program = resident_memory() or 0
        if recipe.stream:
            return program + streamed_memory(lm, recipe.steps, batches)
        # The original stays in memory beside the model that is compressed, or that was saved and loaded again.
        weights = weight_memory(lm)
        prepared = max((step_memory(lm, step, batches) for step in cell.prepare), default=0)
        compressed = max((step_memory(lm, step, batches) for step in recipe.steps), default=0)
        return program + max(prepared, weights + max(weights, compressed))
