"""Folders in the layout of sentence-transformers, written without that library."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.architectures import BY_NAME, WIDTH
from tests.tokens import letters

NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
}
"""The classes of version 6.2 of sentence-transformers."""


class Part(NamedTuple):
    """A module: the name of its class, its configuration, and its tensors."""

    kind: str
    config: Mapping[str, Any] | None = None
    tensors: Mapping[str, Tensor] | None = None


def pooling(*modes: str, **more: Any) -> Part:
    mode = modes[0] if len(modes) == 1 else list(modes)
    return Part("Pooling", {"embedding_dimension": WIDTH, "pooling_mode": mode, **more})


NORMALIZE = Part("Normalize")


def dense(width: int, out: int, function: str = "torch.nn.modules.activation.Tanh", seed: int = 0) -> Part:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "linear.weight": torch.randn(out, width, generator=generator) * width**-0.5,
        "linear.bias": torch.randn(out, generator=generator),
    }
    config = {"in_features": width, "out_features": out, "bias": True, "activation_function": function}
    return Part("Dense", config, tensors)


def sentence_folder(
    folder: Path,
    parts: Sequence[Part],
    *,
    model: PreTrainedModel | None = None,
    top: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    layout: Mapping[str, str] = NEW,
    inside: str = "",
    pickled: bool = False,
) -> Path:
    """Write a model with `parts` behind it.

    Args:
        model: the transformer; a tiny random BERT where none is given.
        top, settings: what config_sentence_transformers.json and sentence_bert_config.json say; no file for None.
        layout: the full names of classes; others are under sentence_transformers.models.
        inside: the folder of the transformer.
        pickled: tensors lie in pytorch_model.bin.
    """
    transformer = folder / inside
    (BY_NAME["bert-base"].model() if model is None else model).save_pretrained(transformer)
    letters().save_pretrained(transformer)
    modules = [("Transformer", inside), *((part.kind, f"{n}_{part.kind}") for n, part in enumerate(parts, start=1))]
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": layout.get(kind, f"sentence_transformers.models.{kind}")}
        for n, (kind, path) in enumerate(modules)
    ]
    write(folder / "modules.json", listed)
    for (_, path), part in zip(modules[1:], parts, strict=True):
        if part.config is not None:
            write(folder / path / "config.json", part.config)
        if part.tensors is not None and pickled:
            torch.save(dict(part.tensors), folder / path / "pytorch_model.bin")
        elif part.tensors is not None:
            save_file(dict(part.tensors), folder / path / "model.safetensors", {"format": "pt"})
    if top is not None:
        write(folder / "config_sentence_transformers.json", top)
    if settings is not None:
        write(transformer / "sentence_bert_config.json", settings)
    return folder


def write(file: Path, said: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(said, indent=2))
