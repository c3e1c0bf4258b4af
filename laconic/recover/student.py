"""A fresh, smaller model in the place of the one that was given, for `distil` to teach.

It begins with chosen blocks of the model (V. Sanh et al., "DistilBERT", 2019, arXiv 1910.01108, takes one of two), or
with random ones between the model's own embeddings and head, or as another model altogether.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.calibrate import Calibration
from laconic.compress import Outcome, Shorten, Step
from laconic.errors import UserError, must_be, reason_of, unknown
from laconic.formats import Format
from laconic.model import LanguageModel, check_model, load, skeleton
from laconic.model.layers import layers_of
from laconic.model.loading import tokenizers
from laconic.model.task import auto_class_for

Number = Annotated[int, Field(ge=0)]
Blocks = tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Student(Step):
    """Go on with a smaller model.

    blocks:  numbers of the blocks of the model that it has, in their order; of an encoder-decoder
             `{encoder: [0, 2], decoder: [0]}`. All of them where not said.
    weights: those `blocks` have, or `random` ones.
    outside: what lies outside of the blocks (embeddings, last norm, head) is the model's where it has the same shape.
    config:  values of the configuration that differ, as `{hidden_size: 192}`; the blocks then have random weights.
    model:   a folder or hub name instead: another model, with its own weights, or of random ones where the folder has
             only a config.json.
    seed:    of random weights.
    """

    name = "student"

    blocks: Blocks | dict[str, Blocks] | None = None
    weights: Literal["blocks", "random"] = "blocks"
    outside: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    seed: Number = 0

    def __post_init__(self) -> None:
        if self.model is not None and (self.blocks is not None or self.config):
            raise must_be("model", "left out where blocks or config say what the student is like", self.model)
        if self.model is None and self.blocks is None and not self.config and self.weights == "blocks":
            raise UserError("The step 'student' needs to know the student: give blocks, config, weights or model.")

    @property
    def needs_data(self) -> bool:
        return False

    @property
    def _is_random(self) -> bool:
        return self.weights == "random" or bool(self.config)

    def check(self, lm: LanguageModel) -> None:
        if self.model is not None:
            check_model(self.model)
            return
        for name in self.config:
            if name not in lm.model.config.to_dict():
                raise unknown("value", name, lm.model.config.to_dict(), f"The configuration of '{lm.source}' has")
        if self.blocks is not None:
            Shorten(blocks=self._others(lm)).check(lm)
        if self._is_random and any(isinstance(module, Format) for module in lm.model.modules()):
            raise UserError("A student with random weights is a plain model; put the step before those that compress.")
        if self._is_random:
            self._smaller(lm.weightless())

    def rehearse(self, lm: LanguageModel) -> LanguageModel | None:
        if self.model is not None:
            return skeleton(self.model)
        if self._is_random:
            return self._smaller(lm)[0]
        if self.blocks is not None:
            Shorten(blocks=self._others(lm)).rehearse(lm)
        return None

    def apply(self, lm: LanguageModel, data: Calibration | None) -> Outcome:
        """Make the student; `lm` stays as it is.

        Raises:
            UserError: there are no such blocks, or no such model, or it does another task.
        """
        self.check(lm)
        now, dropped = (self._another(lm), {}) if self.model is not None else self._smaller(lm)
        if now.task is not lm.task:
            raise UserError(f"The student '{self.model}' does {now.task}, and the model {lm.task}; take one that does.")
        before, after = (model.stored_nbytes(model.sites(("all",))) for model in (lm, now))
        names = dict.fromkeys((*before, *after), 0)
        return Outcome(plan={}, before=names | before, after=names | after, dropped=dropped, now=now)

    def _smaller(self, lm: LanguageModel) -> tuple[LanguageModel, Mapping[str, tuple[int | str, ...]]]:
        """The student, and which blocks of the model it has not."""
        small = lm.copy()
        dropped = {} if self.blocks is None else Shorten(blocks=self._others(lm)).apply(small, None).dropped
        if not self._is_random:
            return small, dropped
        config = copy.deepcopy(small.model.config)
        config.update(self.config)
        fresh = self._random(config, type(small.model), lm.device)
        if self.outside:
            _copy_outside(small, fresh)
        return replace(small, model=fresh.train(lm.model.training)), dropped

    def _another(self, lm: LanguageModel) -> LanguageModel:
        assert self.model is not None
        folder = Path(self.model).expanduser()
        if not folder.is_dir() or any(folder.glob("*.safetensors")):
            return replace(load(self.model, str(lm.device)), original=lm.original)
        config = check_model(self.model)
        kind = auto_class_for(config, config.architectures or (type(lm.model).__name__,))
        own, target = tokenizers(self.model)
        model = self._random(config, kind, lm.device).train(lm.model.training)
        return replace(
            LanguageModel.of(model, own or lm.tokenizer),
            dtype=lm.dtype,
            source=self.model,
            original=lm.original,
            target_tokenizer=target or lm.target_tokenizer,
        )

    def _random(self, config: PreTrainedConfig, kind: Any, device: torch.device) -> PreTrainedModel:
        """In fp32, whatever the configuration says: what trains is rounded where it is stored."""
        # Numbers are drawn on the CPU, so that they are the same on every device.
        drawn_on = device if device.type == "meta" else torch.device("cpu")
        with torch.random.fork_rng(), drawn_on:
            torch.manual_seed(self.seed)
            try:
                model = kind.from_config(config) if not issubclass(kind, PreTrainedModel) else kind(config)
            except ValueError as error:
                raise UserError(f"There is no model of that configuration: {reason_of(error)}") from error
        torch.nn.Module.to(model, device, torch.float32)
        return model

    def _others(self, lm: LanguageModel) -> tuple[int | str, ...] | dict[str, tuple[int | str, ...]]:
        """The blocks that the student does not have."""
        assert self.blocks is not None
        counts = {layers.name: len(layers) for layers in layers_of(lm)}
        asked = self.blocks if isinstance(self.blocks, dict) else dict.fromkeys(counts, self.blocks)
        for stack, kept in asked.items():
            if stack not in counts:
                raise unknown("stack", stack, counts)
            if not kept or list(kept) != sorted(set(kept)) or kept[-1] >= counts[stack]:
                raise must_be("blocks", f"some of 0 to {counts[stack] - 1}, each once and in order", list(kept))
        others: dict[str, tuple[int | str, ...]] = {
            stack: tuple(n for n in range(counts[stack]) if n not in kept) for stack, kept in asked.items()
        }
        return others if len(counts) > 1 else next(iter(others.values()))


@torch.no_grad()
def _copy_outside(source: LanguageModel, target: PreTrainedModel) -> None:
    """What lies outside of the blocks, where it has the same shape."""
    inside = tuple(f"{layers.list}." for layers in layers_of(source))
    theirs: Mapping[str, torch.Tensor] = source.model.state_dict()
    for name, tensor in target.state_dict().items():
        if not name.startswith(inside) and name in theirs and theirs[name].shape == tensor.shape:
            tensor.copy_(theirs[name])
