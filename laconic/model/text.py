"""The part of a configuration that is of text."""

from transformers import PreTrainedConfig


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that is of text; all of it where there is one part, or no telling which."""
    try:
        return config.get_text_config()
    except ValueError:
        return config
