"""The context of a model by the configuration in its folder, without loading the model."""

from pathlib import Path

from laconic.model.checkpoints.location import read_json

CONFIG = "config.json"


def positions_in(folder: Path) -> int | None:
    """The largest number of tokens by the configuration in a folder; None if it does not say.

    Args:
        folder: the folder of a model.

    Raises:
        UserError: its configuration is no JSON object.
    """
    file = folder / CONFIG
    if not file.is_file():
        return None
    found = read_json(file, f"The file '{file}'", dict)
    text = found.get("text_config", found)
    longest = text.get("max_position_embeddings", text.get("n_positions"))
    return longest if isinstance(longest, int) and longest > 0 else None
