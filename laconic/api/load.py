"""`laconic.load` loads a model; `laconic.materialize` makes a dense copy of a compressed one."""

from os import PathLike
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.api.arguments import to_model_input
from laconic.errors import must_be
from laconic.store import attach
from laconic.store import materialize as materialize_loaded


class LoadResult(NamedTuple):
    """A model and its tokenizer.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer; None if the folder has none.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> result = load("model")
        >>> result.model.training, result.tokenizer
        (False, None)
        >>> result
        <LoadResult: BertModel, no tokenizer>
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None

    def __repr__(self) -> str:
        tokenizer = "no tokenizer" if self.tokenizer is None else type(self.tokenizer).__name__
        return f"<LoadResult: {type(self.model).__name__}, {tokenizer}>"


def load(model: str | PathLike[str], *, device: str = "cpu") -> LoadResult:
    """Load a model and its tokenizer, compressed by laconic or not, in the class that its configuration names.

    Adapters, GGUF files and models that another library quantized are loaded, too.

    Args:
        model: folder or hub name.
        device: the device for the model: `cpu`, `cuda` or `cuda:1`.

    Returns:
        The model, in the dtype in which it is stored, and the tokenizer.

    Raises:
        UserError: there is no such model, or it is damaged or not supported.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> BertModel(BertConfig(vocab_size=50, **shape)).save_pretrained("model")
        >>> model, tokenizer = load("model")
        >>> type(model).__name__, tokenizer
        ('BertModel', None)
    """
    if not isinstance(model, (str, PathLike)):
        raise must_be("model", "a folder or a hub name", type(model).__name__)
    with to_model_input(model, device=device).open_model() as lm:
        pass
    attach(lm.model)
    return LoadResult(lm.model, lm.tokenizer)


def materialize(model: PreTrainedModel | str | PathLike[str], *, device: str = "cpu") -> PreTrainedModel:
    """Make a dense copy of a compressed model, which loads without laconic.

    Every compressed layer becomes a dense matrix, and heads, channels and blocks get the shapes of the model's class.

    Args:
        model: a loaded model, which is not changed, or a folder or hub name.
        device: the device for a model that is given by its name.

    Raises:
        UserError: it is not a model of transformers, or its class cannot have its shape.

    Example:
        >>> from laconic import compress
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        >>> small = compress(BertModel(BertConfig(vocab_size=50, **shape)), "svd", keep=0.5).model
        >>> type(materialize(small).encoder.layer[0].attention.self.query).__name__
        'Linear'
    """
    return materialize_loaded(load(model, device=device).model if isinstance(model, (str, PathLike)) else model)
