"""Compressed folders of every architecture with what they must compute."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from laconic.evaluate.cost import stored_bytes
from laconic.formats import Format
from laconic.model import LanguageModel
from laconic.model.task import find_auto_class
from laconic.store import file_bytes, save
from tests.architectures import ARCHITECTURES, BY_NAME, alike, batch_for, compress_everything, factors, outputs
from tests.store.readers import in_fresh_process

TIED = ("bert-masked", "gpt2", "llama-tied", "t5", "bart-scaled")
HALF = ("bert-masked", "gpt2", "llama", "t5", "t5-gated", "bart")
NESTED = ("bert-classifier", "gpt2", "t5-gated")


@dataclass(frozen=True)
class Checkpoint:
    """key: architecture and what was compressed; auto: the class it was saved from, as an Auto class."""

    key: str
    folder: Path
    auto: str
    lm: LanguageModel


def checkpoints(parent: Path) -> Iterator[Checkpoint]:
    """Save them all under `parent`."""
    for architecture in ARCHITECTURES:
        yield saved_as(
            compress_everything(architecture.lm(), rank=4), parent, f"{architecture.name}/everything/float32"
        )
    for name in HALF:
        lm = compress_everything(BY_NAME[name].lm().with_dtype(torch.float16), rank=4)
        yield saved_as(lm, parent, f"{name}/everything/float16")
    for name in TIED:
        for target in ("attention", "head", "embedding"):
            lm = BY_NAME[name].lm()
            for site in lm.sites((target,)):
                lm.replace(site, factors(site, rank=4))
            yield saved_as(lm, parent, f"{name}/{target}/float32")
    for name in NESTED:
        lm = compress_everything(BY_NAME[name].lm(), rank=8)
        for site in lm.sites(("blocks",)):
            lm.replace(site, factors(site, rank=2))
        yield saved_as(lm, parent, f"{name}/nested/float32")


def saved_as(lm: LanguageModel, parent: Path, key: str) -> Checkpoint:
    """Save `lm` under `parent`."""
    # In memory as it is once stored, like a model that laconic loaded in its stored dtype.
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.copy_(parameter.to(lm.dtype))
    folder = parent / key.replace("/", "-")
    save(lm, folder)
    save_file(batch_for(lm.model), f"{folder}.batch")
    auto = find_auto_class(lm.model.config, [type(lm.model).__name__]).__name__
    return Checkpoint(key, folder, auto, lm)


def job(checkpoint: Checkpoint, auto: str | None = None, dtype: str | None = None) -> dict[str, object]:
    auto = auto or checkpoint.auto
    return {"key": f"{checkpoint.key}:{auto}:{dtype}", "folder": str(checkpoint.folder), "auto": auto, "dtype": dtype}


@torch.no_grad()
def hidden(model: PreTrainedModel) -> Tensor:
    """The last hidden states, which AutoModel of the same checkpoint returns."""
    batch = batch_for(model)
    if model.base_model is not model:
        return model.base_model(**batch)[0]
    output = model(**batch, output_hidden_states=True)
    return output["decoder_hidden_states"][-1] if model.config.is_encoder_decoder else output[0]


def in_half(model: PreTrainedModel) -> Tensor:
    """The outputs in float16, but for what transformers keeps in float32."""
    half = copy.deepcopy(model)
    for parameter in half.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.half()
    for name, module in half.named_modules():
        if isinstance(module, Format):
            module.half()
        if name.rpartition(".")[2] in half._keep_in_fp32_modules:
            module.float()
    return outputs(half)


def unexpected(complaints: Mapping[str, str]) -> dict[str, str]:
    """The complaints of `in_fresh_process` that stock models would not give rise to as well.

    A masked language model has no pooler, so its base model gets a new one; the positions of Marian are computed, not
    stored.
    """
    made_anew = ("'pooler.", "embed_positions.")
    return {key: said for key, said in complaints.items() if not any(name in said for name in made_anew)}


def check_the_same_outputs(saved: Sequence[Checkpoint], tmp_path: Path) -> None:
    """Another process computes from each folder what the model in memory does, to the last bit."""
    in_float16 = [checkpoint for checkpoint in saved if checkpoint.lm.dtype == torch.float16]
    jobs = [job(checkpoint, dtype="float32") for checkpoint in saved] + [job(checkpoint) for checkpoint in in_float16]
    computed, complaints = in_fresh_process(jobs, tmp_path, laconic=True)
    # The positions of Marian are computed, not stored.
    assert not {key: said for key, said in complaints.items() if "embed_positions." not in said}
    for checkpoint in saved:
        key = f"{checkpoint.key}:{checkpoint.auto}:float32"
        assert alike(computed[key], outputs(checkpoint.lm.model)), checkpoint.key
    for checkpoint in in_float16:
        key = f"{checkpoint.key}:{checkpoint.auto}:None"
        assert torch.equal(computed[key], in_half(checkpoint.lm.model)), checkpoint.key


def check_refused_without_laconic(saved: Sequence[Checkpoint], tmp_path: Path) -> None:
    """Stock transformers says that sizes do not match, and loads nothing."""
    some = [checkpoint for checkpoint in saved if checkpoint.key.startswith(("bert-", "gpt2", "t5", "llama"))]
    _, complaints = in_fresh_process([job(checkpoint) for checkpoint in some], tmp_path, laconic=False)
    for checkpoint in some:
        assert "size" in complaints[f"{checkpoint.key}:{checkpoint.auto}:None"], checkpoint.key


def check_bytes(saved: Sequence[Checkpoint]) -> None:
    """Each folder is as large as the model said, within a percent."""
    for checkpoint in saved:
        said = stored_bytes(checkpoint.lm)
        assert abs(file_bytes(checkpoint.folder) - said) <= 0.01 * said, checkpoint.key
