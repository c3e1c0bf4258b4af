"""A model's folder: safetensors, configuration, tokenizers, recipe and card, written whole or not at all."""

import copy
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from laconic.model import LanguageModel
from laconic.model.checkpoints.sentence_modules import MODULES
from laconic.model.loading import TARGET_TOKENIZER
from laconic.store.atomic import new_folder
from laconic.store.attached import attach
from laconic.store.biases import dense_as_linears
from laconic.store.card import default_card
from laconic.store.pipeline import save_pipeline
from laconic.store.processor import save_processor
from laconic.store.verify import verify_saved

RECIPE = "recipe.yaml"
PLAN = "plan"
TOKENIZER_FILE = "tokenizer.json"
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What lies beside a model in its folder.

    recipe: the YAML that made it.
    plan:   the YAML of what each site became; of several steps in order: plan-1.yaml, plan-2.yaml, ….
    card:   the text of README.md in place of the default one.
    files:  by path in it, what else lies there.
    """

    recipe: str | None = None
    plan: str | tuple[str, ...] = ()
    card: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def save(lm: LanguageModel, folder: Path, beside: Beside | None = None, *, max_shard_size: int | str = "5GB") -> None:
    """Write `lm` to the new `folder` in its stored dtype; the model in memory stays as it is.

    A compressed model reloads exactly after `import laconic`; one that its class can hold, whatever its configuration
    must say for that, is a plain stock checkpoint.
    What sentence-transformers declares beside it lies beside it again, so that `SentenceTransformer` reads the folder.
    Before the folder appears, what was written is loaded and compared with `lm` (`laconic.store.verify`).

    Raises:
        UserError: `folder` exists, the disk is full or refuses, the model is quantized by another library, does not run
            or is one that no configuration of its class describes; then there is no folder.
    """
    beside = beside or Beside()
    with new_folder(folder) as partial:
        stored = in_dtype(lm.model, lm.dtype)
        dense_as_linears(stored)
        attach(stored)
        stored.save_pretrained(partial, max_shard_size=max_shard_size)
        verify_saved(lm, stored, partial)
        for weights in partial.glob("*.safetensors"):
            # safetensors lets only the owner read what it writes; the rest of the folder has the user's own mode.
            shutil.copymode(partial / "config.json", weights)
        save_tokenizers(lm, partial)
        save_processor(lm, partial)
        if lm.pipeline is not None:
            save_pipeline(lm.pipeline, partial)
        plans = (beside.plan,) if isinstance(beside.plan, str) else beside.plan
        notes = _plans(plans) | ({} if beside.recipe is None else {RECIPE: beside.recipe})
        for name, words in notes.items():
            (partial / name).write_text(words, encoding="utf-8")
        for path, content in beside.files.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_bytes(content)
        text = beside.card
        if text is None:
            text = default_card(stored, Path(folder).name, lm.source, file_bytes(partial), lm.pipeline)
        (partial / CARD).write_text(text, encoding="utf-8")


def save_tokenizers(lm: LanguageModel, folder: Path) -> None:
    """Write the tokenizers that `lm` has to `folder`."""
    if lm.tokenizer is not None:
        _save_tokenizer(lm.tokenizer, folder)
    if lm.target_tokenizer is not None:
        _save_tokenizer(lm.target_tokenizer, folder / TARGET_TOKENIZER)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        _forget_last_call(tokenizer)
        # Its own writer tells of a full disk by a bare Exception; Python, writing as many bytes before, by an OSError.
        folder.mkdir(exist_ok=True)
        (folder / TOKENIZER_FILE).write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _forget_last_call(tokenizer: PreTrainedTokenizerFast) -> None:
    """Cut texts where the tokenizer came to cut them, or nowhere.

    A call that cuts them leaves its length in the tokenizer, whose file would tell other programs to cut there too.
    """
    asked, backend = tokenizer.init_kwargs, tokenizer.backend_tokenizer
    if asked.get("max_length") is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(
            asked["max_length"],
            stride=asked.get("stride", 0),
            strategy=asked.get("truncation_strategy", "longest_first"),
            direction=asked.get("truncation_side", "right"),
        )


def _plans(plans: tuple[str, ...]) -> dict[str, str]:
    """File names and texts; a plan is of one step, as the sites of the next are what the one before left."""
    if len(plans) == 1:
        return {f"{PLAN}.yaml": plans[0]}
    return {f"{PLAN}-{number}.yaml": text for number, text in enumerate(plans, start=1)}


def file_bytes(folder: Path) -> int:
    """Bytes of the weights in `folder`: of its safetensors files, and of those of modules behind its transformer."""
    folder = Path(folder)
    modules = folder / MODULES
    behind = [entry["path"] for entry in json.loads(modules.read_text(encoding="utf-8"))] if modules.is_file() else []
    folders = dict.fromkeys((folder, *(folder / path for path in behind)))
    return sum(file.stat().st_size for place in folders for file in place.glob("*.safetensors"))


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of `model` with its weights in `dtype`; what is in `dtype` already is shared with `model`, not copied.

    Tensors that transformers keeps in float32 for this class stay there where `dtype` would round them, and so do those
    that no file holds.
    """
    kept = re.compile("|".join(model._get_dtype_plan(dtype)) or r"\Z.")
    # Given to deepcopy as what it has copied already, each tensor is cast once, and ties stay ties.
    cast: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        rounded = _cast(parameter.detach(), dtype, exactly=kept.search(name) is not None)
        cast[id(parameter)] = nn.Parameter(rounded, requires_grad=False)
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        cast[id(buffer)] = _cast(buffer, dtype, exactly=kept.search(name) is not None) if name in stored else buffer
    return copy.deepcopy(model, cast)


def _cast(tensor: Tensor, dtype: torch.dtype, exactly: bool) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    return tensor if exactly and not torch.equal(rounded.to(tensor.dtype), tensor) else rounded
