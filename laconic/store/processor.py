"""What lies beside a vision-language model to make tensors of its images: as it was, in what is saved of the model."""

import json
from pathlib import Path

from laconic.model import LanguageModel
from laconic.model.loading import model_location

PROCESSOR = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""The files of transformers' processors and image processors; their tokenizer is saved as that of any model."""
CODE = "auto_map"
"""Names code beside the model; where transformers has the class itself it is not needed, and what is saved has none."""


def save_processor(lm: LanguageModel, folder: Path) -> None:
    """Write to `folder` what lies where `lm` came from; nothing for a model of text alone, or where there is nothing.

    Raises:
        UserError: a file is damaged.
    """
    place = model_location(lm.source) if lm.model.config.sub_configs else None
    if place is None:
        return
    for name in PROCESSOR:
        said = place.json(name)
        if said is not None:
            kept = {key: value for key, value in said.items() if key != CODE}
            (folder / name).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
