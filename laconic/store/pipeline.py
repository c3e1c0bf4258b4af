"""What a folder of sentence-transformers has beside its transformer, carried over to another folder.

The transformer lies at its top, as that library saves it, so that transformers finds it there too.
"""

import shutil
from pathlib import Path

from safetensors.torch import save, save_file

from laconic.model.embedding import Pipeline

METADATA = {"format": "pt"}


def save_pipeline(pipeline: Pipeline, folder: Path) -> None:
    """Write its configurations as they were read, and its tensors as they were stored, always as safetensors."""
    for path, text in pipeline.files.texts.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    for path, tensors in pipeline.files.tensors.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place, METADATA)
        # safetensors lets only the owner read what it writes.
        shutil.copymode(next(file for file in folder.iterdir() if file.suffix == ".json"), place)


def pipeline_bytes(pipeline: Pipeline) -> int:
    """Bytes of the files of tensors that `save_pipeline` writes."""
    every = pipeline.files.tensors.values()
    return sum(
        len(save({name: tensor.contiguous() for name, tensor in tensors.items()}, METADATA)) for tensors in every
    )
