"""Compute one vector per text from the last hidden states, with the sentence-transformers modules of a model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from laconic.errors import UserError
from laconic.model.embedding_modules import ATTENTION_MASK, POOLING_MASK, SENTENCE, TOKENS, Normalize, Pooling, Stage

WIDTHS = ("embedding_dimension", "word_embedding_dimension")
"""The keys for the width of a token in the configuration of a Pooling module, of new and of old versions."""
COSINE = "cosine"
SIMILARITIES = (COSINE, "dot", "euclidean", "manhattan")


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """The settings with which a sentence-transformers model reads texts and compares vectors.

    Args:
        model_type: the sentence-transformers class that loads it.
        max_length: the maximum number of tokens; None for the maximum of the tokenizer.
        prompts: prompts that may be put before a text, by name.
        default_prompt: the prompt that is used by default; "" for none.
        similarity: how vectors are compared, one of `SIMILARITIES`.
        lower_case: whether texts are lower-cased before the tokenizer.
    """

    model_type: str = "SentenceTransformer"
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    similarity: str = COSINE
    lower_case: bool = False


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files beside the transformer, by path in the folder.

    Args:
        texts: configuration files.
        tensors: the tensors of each weight file, as stored.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


class Pipeline(nn.Module):
    """Compute one vector per row from the last hidden states. It is never trained.

    Args:
        stages: its modules, in order.
        settings: how texts are read and vectors compared.
        files: the files that it was read from; empty if the folder has none.

    Example:
        >>> states = torch.tensor([[[3.0, 0.0], [3.0, 8.0]]])
        >>> MEAN_POOLING(states, torch.ones(1, 2))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(self, stages: Sequence[Stage], settings: TextSettings, files: Files) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.settings, self.files = settings, files
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Pipeline":
        return super().train(False)

    def forward(
        self,
        states: Float[Tensor, "rows t d"],
        attention_mask: Tensor,
        pooling_mask: Tensor | None = None,
    ) -> Float[Tensor, "rows k"]:
        """Compute the vectors.

        Args:
            states: the last hidden states.
            attention_mask: 1 at tokens, 0 at padding.
            pooling_mask: 1 at tokens that are pooled; by default all tokens. It leaves out prompts.
        """
        features = {TOKENS: states, ATTENTION_MASK: attention_mask}
        features[POOLING_MASK] = attention_mask if pooling_mask is None else pooling_mask
        for stage in self.stages:
            features = stage(features)
        return features[SENTENCE]

    @property
    def stage_list(self) -> list[Stage]:
        """The modules in order."""
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    @property
    def pools_prompts(self) -> bool:
        """Whether the tokens of a prompt are pooled like any other."""
        return all(stage.include_prompt for stage in self.stage_list if isinstance(stage, Pooling))

    @property
    def size(self) -> tuple[int, int]:
        """The number of parameters, and their bytes on disk."""
        stored = [tensor for tensors in self.files.tensors.values() for tensor in tensors.values()]
        return sum(tensor.numel() for tensor in stored), sum(tensor.nbytes for tensor in stored)

    def describe(self) -> str:
        """The modules in words, such as "cls pooling, unit length"."""
        words = ", ".join(stage.describe() for stage in self.stage_list)
        return words if self.files.texts else f"{words} (none is declared: there is no modules.json)"

    def describe_prompts(self) -> str | None:
        """The prompts in words, with the default one; None if there are none."""
        names = [name for name, prompt in self.settings.prompts.items() if prompt]
        if not names:
            return None
        default = self.settings.default_prompt
        use = f"'{default}' stands before every text" if default else "none stands before a text"
        return f"{', '.join(names)}; {use}"

    def to_bytes(self) -> bytes:
        """The contents of all files, for a hash: they determine the vectors."""
        numbers = [
            f"{path} {name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            for path, tensors in sorted(self.files.tensors.items())
            for name, tensor in sorted(tensors.items())
        ]
        return json.dumps(dict(self.files.texts), sort_keys=True).encode() + b"".join(numbers)


MEAN_POOLING = Pipeline([Pooling(("mean",)), Normalize()], TextSettings(), Files())
"""The default: the mean of the tokens, scaled to length 1."""


def check_width(pipeline: Pipeline, config: PreTrainedConfig, source: str) -> None:
    """Check that the last hidden states of a model fit a pipeline.

    The width in the configuration of a Pooling module is ignored, as it can pool vectors of any width.

    Args:
        pipeline: the pipeline.
        config: the configuration of the model.
        source: the model that the pipeline belongs to, as errors name it.

    Raises:
        UserError: a module reads vectors of another width.
    """
    for stage, width in _input_widths(pipeline, config):
        if stage.width not in (None, width) and not isinstance(stage, Pooling):
            raise UserError(
                f"A sentence-transformers module of '{source}' ({stage.describe()}) reads vectors of {stage.width} "
                f"numbers, and would get vectors of {width}; keep the hidden size that the module was made for."
            )


def adapt_width(pipeline: Pipeline, config: PreTrainedConfig, source: str) -> Pipeline:
    """Adapt a pipeline to a model of another width, by the widths that its Pooling modules are saved with.

    Args:
        pipeline: the pipeline.
        config: the configuration of the new model.
        source: the model that the pipeline belongs to, as errors name it.

    Raises:
        UserError: as `check_width`.
    """
    check_width(pipeline, config, source)
    texts = dict(pipeline.files.texts)
    for stage, width in _input_widths(pipeline, config):
        path = f"{stage.path}/config.json"
        if isinstance(stage, Pooling) and path in texts:
            values = json.loads(texts[path])
            if any(values.get(name, width) != width for name in WIDTHS):
                values |= {name: width for name in WIDTHS if name in values}
                texts[path] = json.dumps(values, indent=4)
    return Pipeline(pipeline.stage_list, pipeline.settings, replace(pipeline.files, texts=texts))


def _input_widths(pipeline: Pipeline, config: PreTrainedConfig) -> Iterator[tuple[Stage, int]]:
    """Each stage with the width of its input; nothing if the configuration does not contain the width of the model."""
    text = config.get_text_config()
    # In OPT, the last hidden states are narrower than the blocks.
    width = getattr(text, "word_embed_proj_dim", getattr(text, "hidden_size", None))
    if width is None:
        return
    widths = {TOKENS: width}
    for stage in pipeline.stage_list:
        yield stage, widths[stage.reads]
        widths[stage.writes] = stage.output_width(widths[stage.reads])
