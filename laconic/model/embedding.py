"""What a folder declares to be done with the last hidden states, and how its texts are read."""

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
"""What the width of a token is called in the configuration of a Pooling module, now and before."""
COSINE = "cosine"
SIMILARITIES = (COSINE, "dot", "euclidean", "manhattan")


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What a folder of sentence-transformers says of texts and vectors.

    model_type:     the class of the library that reads it.
    max_length:     tokens of a text at most; None where the tokenizer says it.
    prompts:        by name, what may stand before a text.
    default_prompt: that which does where none is asked for, "" for none.
    similarity:     by which vectors are compared, one of SIMILARITIES.
    lower_case:     whether texts are put in lower case, whatever the tokenizer does.
    """

    model_type: str = "SentenceTransformer"
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    similarity: str = COSINE
    lower_case: bool = False


@dataclass(frozen=True, kw_only=True)
class Files:
    """What lies beside the transformer, by path in the folder: texts, and tensors as they are stored."""

    texts: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


class Pipeline(nn.Module):
    """From the last hidden states to one vector for each row. It never trains.

    Args:
        stages: in order.
        settings: how texts are read, and vectors compared.
        files: what the folder has of all that; none where nothing is declared.
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
        """The vectors of the last hidden states `states`; the masks are 1 at tokens that count."""
        features = {TOKENS: states, ATTENTION_MASK: attention_mask}
        features[POOLING_MASK] = attention_mask if pooling_mask is None else pooling_mask
        for stage in self.stages:
            features = stage(features)
        return features[SENTENCE]

    @property
    def stage_list(self) -> list[Stage]:
        """The stages in order."""
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    @property
    def is_declared(self) -> bool:
        """Whether a folder says so."""
        return bool(self.files.texts)

    @property
    def pools_prompts(self) -> bool:
        """Whether the tokens of a prompt count like any other."""
        return all(stage.include_prompt for stage in self.stage_list if isinstance(stage, Pooling))

    @property
    def size(self) -> tuple[int, int]:
        """(parameters, bytes as stored)."""
        stored = [tensor for tensors in self.files.tensors.values() for tensor in tensors.values()]
        return sum(tensor.numel() for tensor in stored), sum(tensor.nbytes for tensor in stored)

    def describe(self) -> str:
        """In words, as "cls pooling, unit length"."""
        words = ", ".join(stage.describe() for stage in self.stage_list)
        return words if self.is_declared else f"{words} (none is declared: there is no modules.json)"

    def describe_prompts(self) -> str | None:
        """Which prompts there are, and which of them stands before a text here; None where there are none."""
        named = [name for name, prompt in self.settings.prompts.items() if prompt]
        if not named:
            return None
        first = self.settings.default_prompt
        return f"{', '.join(named)}; " + (
            f"'{first}' stands before every text" if first else "none stands before a text"
        )

    def to_bytes(self) -> bytes:
        """All that decides what it computes, for a hash."""
        numbers = [
            f"{path} {name} {tensor.dtype} {tuple(tensor.shape)}".encode() + _bytes(tensor)
            for path, tensors in sorted(self.files.tensors.items())
            for name, tensor in sorted(tensors.items())
        ]
        return json.dumps(dict(self.files.texts), sort_keys=True).encode() + b"".join(numbers)


MEAN_POOLING = Pipeline([Pooling(("mean",)), Normalize()], TextSettings(), Files())
"""Where no folder declares anything: the mean of the tokens, of length 1."""


def check_width(pipeline: Pipeline, config: PreTrainedConfig, whose: str) -> None:
    """Raise UserError where the last hidden states of a model of this configuration do not fit the pipeline of `whose`.

    What a Pooling module says of its own width is not looked at: it pools vectors of any.
    """
    for stage, read in _reading(pipeline, config):
        if stage.width not in (None, read) and not isinstance(stage, Pooling):
            raise UserError(
                f"What '{whose}' declares behind its transformer ({stage.describe()}) reads {stage.width} numbers and "
                f"would be given {read}; keep the hidden size that it was made for."
            )


def adapt_width(pipeline: Pipeline, config: PreTrainedConfig, whose: str) -> Pipeline:
    """The pipeline of `whose` model behind one of another configuration: its Pooling modules say what they then read.

    Raises:
        UserError: as `check_width`.
    """
    check_width(pipeline, config, whose)
    texts = dict(pipeline.files.texts)
    for stage, read in _reading(pipeline, config):
        path = f"{stage.path}/config.json"
        if isinstance(stage, Pooling) and path in texts:
            said = json.loads(texts[path])
            if any(said.get(name, read) != read for name in WIDTHS):
                said |= {name: read for name in WIDTHS if name in said}
                texts[path] = json.dumps(said, indent=4)
    return Pipeline(pipeline.stage_list, pipeline.settings, replace(pipeline.files, texts=texts))


def _reading(pipeline: Pipeline, config: PreTrainedConfig) -> Iterator[tuple[Stage, int]]:
    """Each stage with the width of what it reads; nothing where the configuration does not tell it."""
    text = config.get_text_config()
    # OPT's are narrower than its blocks.
    width = getattr(text, "word_embed_proj_dim", getattr(text, "hidden_size", None))
    if width is None:
        return
    now = {TOKENS: width}
    for stage in pipeline.stage_list:
        yield stage, now[stage.reads]
        now[stage.writes] = stage.given(now[stage.reads])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
