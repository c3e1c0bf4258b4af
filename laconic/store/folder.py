"""Write the folder of a saved model atomically: weights, configuration, tokenizers, recipe and model card.

Two parts are copied from the folder of the original model: the processor of a vision-language model, and the modules of
sentence-transformers that follow the transformer. The transformer itself is at the top of the folder, as that library
saves it.
"""

import copy
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from laconic.model import LanguageModel
from laconic.model.checkpoints import TARGET_TOKENIZER
from laconic.model.checkpoints.sentence_modules import MODULES
from laconic.model.embedding import Pipeline
from laconic.model.loading import model_location
from laconic.store.atomic import new_folder
from laconic.store.card import model_card
from laconic.store.densify import dense_to_linears
from laconic.store.pretrained import attach
from laconic.store.verify import verify_saved

RECIPE = "recipe.yaml"
PLAN = "plan"
TOKENIZER_FILE = "tokenizer.json"
CARD = "README.md"
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""Files of processors and image processors of transformers. Their tokenizer is saved separately."""
REMOTE_CODE = "auto_map"
"""The key for Python code in the folder of a model. laconic uses the classes of transformers, and saves no code."""


@dataclass(frozen=True, kw_only=True)
class ExtraFiles:
    """Additional files for the folder of a model.

    Args:
        recipe: the YAML of the recipe that produced the model, for recipe.yaml.
        plan: the YAML of its plan, for plan.yaml. The plans of several steps, in order, become plan-1.yaml,
            plan-2.yaml, …. The layers in a plan are those of the model before that step.
        card: the text of README.md; None to generate a model card.
        files: the content of further files, by their path in the folder.
    """

    recipe: str | None = None
    plan: str | tuple[str, ...] = ()
    card: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def contents(self) -> dict[str, bytes]:
        """The content of all files except the card, by their path in the folder.

        Example:
            >>> sorted(ExtraFiles(recipe="model: m", plan=("a", "b")).contents())
            ['plan-1.yaml', 'plan-2.yaml', 'recipe.yaml']
        """
        plans = (self.plan,) if isinstance(self.plan, str) else self.plan
        numbers = [""] if len(plans) == 1 else [f"-{number}" for number in range(1, len(plans) + 1)]
        texts = {f"{PLAN}{number}.yaml": text for number, text in zip(numbers, plans, strict=True)}
        if self.recipe is not None:
            texts[RECIPE] = self.recipe
        return {**{name: text.encode() for name, text in texts.items()}, **self.files}


def save(
    lm: LanguageModel, folder: Path, extra_files: ExtraFiles | None = None, *, max_shard_size: int | str = "5GB"
) -> None:
    """Write a model to a new folder that `from_pretrained` reads.

    Weights are written in the dtype of `lm`; the model in memory is not changed. A compressed model needs
    `import laconic` to be loaded. If the stock class can hold the model, the folder is a plain checkpoint that loads
    without laconic. `SentenceTransformer` can load the folder of a sentence encoder. Before the folder gets its final
    name, the saved model is loaded and compared with `lm` (`laconic.store.verify`).

    Args:
        lm: the model with its tokenizers.
        folder: the path of the new folder; it must not exist.
        extra_files: additional files; None for only a model card.
        max_shard_size: the largest safetensors file, in bytes or as text like "5GB".

    Raises:
        UserError: `folder` exists, the disk is full or not writable, another library quantized the model, the model
            does not run, or no configuration of its class describes it. No folder is left then.
    """
    extra_files = extra_files or ExtraFiles()
    with new_folder(folder) as partial:
        stored = to_dtype(lm.model, lm.dtype)
        dense_to_linears(stored)
        attach(stored)
        stored.save_pretrained(partial, max_shard_size=max_shard_size)
        verify_saved(lm, stored, partial)
        write_other_files(lm, stored, partial, Path(folder), extra_files)


def write_other_files(
    lm: LanguageModel, stored: PreTrainedModel, partial: Path, folder: Path, extra_files: ExtraFiles
) -> None:
    """Write everything beside the weights and the configuration, which `partial` has already.

    Args:
        lm: the model with its tokenizers.
        stored: the model with weights in their stored dtype.
        partial: the folder to write to.
        folder: the folder that it becomes.
        extra_files: additional files.
    """
    for weights in partial.glob("*.safetensors"):
        # safetensors files are readable by the owner only; use the mode of the other files.
        shutil.copymode(partial / "config.json", weights)
    save_tokenizers(lm, partial)
    _save_processor(lm, partial)
    if lm.pipeline is not None:
        texts = {path: text.encode() for path, text in lm.pipeline.files.texts.items()}
        for path, content in (texts | _pipeline_tensors(lm.pipeline)).items():
            _write(partial / path, content)
    for path, content in extra_files.contents().items():
        _write(partial / path, content)
    card = extra_files.card
    if card is None:
        card = model_card(stored, folder.name, lm.source, file_bytes(partial), lm.pipeline)
    (partial / CARD).write_text(card, encoding="utf-8")


def save_tokenizers(lm: LanguageModel, folder: Path) -> None:
    """Write the tokenizers of `lm` to `folder`: none, one, or two (for source and target texts)."""
    if lm.tokenizer is not None:
        _save_tokenizer(lm.tokenizer, folder)
    if lm.target_tokenizer is not None:
        _save_tokenizer(lm.target_tokenizer, folder / TARGET_TOKENIZER)


def file_bytes(folder: Path) -> int:
    """Bytes of all safetensors files in the folder of a model, including modules of sentence-transformers."""
    folder = Path(folder)
    modules = folder / MODULES
    entries = json.loads(modules.read_text(encoding="utf-8")) if modules.is_file() else []
    folders = dict.fromkeys((folder, *(folder / entry["path"] for entry in entries)))
    return sum(file.stat().st_size for place in folders for file in place.glob("*.safetensors"))


def pipeline_bytes(pipeline: Pipeline) -> int:
    """Bytes of the safetensors files that saving `pipeline` writes."""
    return sum(map(len, _pipeline_tensors(pipeline).values()))


def to_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of `model` with its floating-point weights in `dtype`.

    Args:
        model: the model to copy; tensors that have `dtype` already are shared with the copy.
        dtype: the dtype of the copy. Tensors that transformers keeps in float32 for this class are cast only if the
            cast does not round them. Non-persistent buffers are not cast.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
        >>> to_dtype(model, torch.bfloat16).pooler.dense.weight.dtype
        torch.bfloat16
    """
    exact = exact_names(model, dtype)
    # The memo of deepcopy: each tensor is cast once, and tied tensors stay tied.
    copies: dict[int, object] = {}
    for name, parameter in model.named_parameters():
        rounded = cast_tensor(parameter.detach(), dtype, exactly=exact.search(name) is not None)
        copies[id(parameter)] = nn.Parameter(rounded, requires_grad=False)
    computed = {name for name, _ in model.named_non_persistent_buffers()}
    for name, buffer in model.named_buffers():
        copies[id(buffer)] = buffer if name in computed else cast_tensor(buffer, dtype, exact.search(name) is not None)
    return copy.deepcopy(model, copies)


def exact_names(model: PreTrainedModel, dtype: torch.dtype) -> re.Pattern[str]:
    """A pattern for the names of tensors that transformers keeps in float32 if the model has this dtype."""
    return re.compile("|".join(model._get_dtype_plan(dtype)) or r"\Z.")


def cast_tensor(tensor: Tensor, dtype: torch.dtype, exactly: bool) -> Tensor:
    """A tensor as it is stored.

    Args:
        tensor: the tensor.
        dtype: the dtype of the stored model.
        exactly: leave the tensor in its dtype if the cast would round it.
    """
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if exactly and not tensor.is_meta and not torch.equal(rounded.to(tensor.dtype), tensor):
        return tensor
    return rounded


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        _reset_truncation(tokenizer)
        # On a full disk, tokenizers raises a bare Exception. Writing the same bytes here first raises an OSError.
        _write(folder / TOKENIZER_FILE, tokenizer.backend_tokenizer.to_str(pretty=True).encode())
    tokenizer.save_pretrained(folder)


def _reset_truncation(tokenizer: PreTrainedTokenizerFast) -> None:
    """Restore the truncation that the tokenizer was loaded with.

    A call with truncation changes the state of the tokenizer, which would otherwise be saved in tokenizer.json.
    """
    loaded, backend = tokenizer.init_kwargs, tokenizer.backend_tokenizer
    if loaded.get("max_length") is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(
            loaded["max_length"],
            stride=loaded.get("stride", 0),
            strategy=loaded.get("truncation_strategy", "longest_first"),
            direction=loaded.get("truncation_side", "right"),
        )


def _save_processor(lm: LanguageModel, folder: Path) -> None:
    """Copy the files of the processor from the source of `lm`; text-only models have none."""
    origin = model_location(lm.source) if lm.model.config.sub_configs else None
    if origin is None:
        return
    for name in PROCESSOR_FILES:
        settings = origin.json(name)
        if settings is not None:
            settings = {key: value for key, value in settings.items() if key != REMOTE_CODE}
            _write(folder / name, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())


def _pipeline_tensors(pipeline: Pipeline) -> dict[str, bytes]:
    """The content of the safetensors files of `pipeline`, by path."""
    return {
        path: safetensors_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
        for path, tensors in pipeline.files.tensors.items()
    }


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
