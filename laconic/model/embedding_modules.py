"""The modules of sentence-transformers that follow a transformer, as version 6.2 of the library computes them.

Each reads and writes tensors by the names of the library: `token_embeddings` (rows, tokens, d), `attention_mask` and
`pooling_mask` (rows, tokens), `sentence_embedding` (rows, d). Parameters have the same names as in its files.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
ATTENTION_MASK, POOLING_MASK = "attention_mask", "pooling_mask"
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

Features = dict[str, Tensor]
"""The tensors that were written so far, by name."""


class Stage(nn.Module):
    """One module between the last hidden states and the vector.

    Args:
        reads: the name of the tensor that it reads.
        writes: the name of the tensor that it writes; by default the same.
        width: the width of the tensor that it reads; None for any.
    """

    path: str = ""

    def __init__(self, reads: str = SENTENCE, writes: str | None = None, width: int | None = None) -> None:
        super().__init__()
        self.reads, self.writes, self.width = reads, writes or reads, width

    @abstractmethod
    def compute(self, x: Tensor, features: Features) -> Tensor:
        """Compute the tensor that is written from `x`, the tensor that is read."""

    @abstractmethod
    def describe(self) -> str:
        """The module in a few words."""

    def output_width(self, width: int) -> int:
        """The width of the tensor that is written, for an input of this width."""
        return width

    def forward(self, features: Features) -> Features:
        return {**features, self.writes: self.compute(features[self.reads], features)}


class Pooling(Stage):
    """Pool the tokens of each row into one vector, or into several side by side.

    Args:
        modes: names in `MODES`. `mean_sqrt_len_tokens` divides the sum by the root of the number of tokens;
            `weightedmean` weights each token by its position, the first by 1.
        width: the width of a token; None for any.
        include_prompt: whether the tokens of a prompt are pooled too; otherwise `pooling_mask` excludes them.

    Example:
        >>> states, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> features = {TOKENS: states, ATTENTION_MASK: mask}
        >>> Pooling(("mean", "max"))(features)[SENTENCE]
        tensor([[2., 3.]])
    """

    def __init__(self, modes: tuple[str, ...], width: int | None = None, include_prompt: bool = True) -> None:
        super().__init__(TOKENS, SENTENCE, width)
        self.modes, self.include_prompt = modes, include_prompt

    def compute(self, x: Float[Tensor, "rows t d"], features: Features) -> Float[Tensor, "rows k"]:
        mask = features[ATTENTION_MASK if self.include_prompt else POOLING_MASK]
        return torch.cat([_pool(mode, x, mask) for mode in self.modes], dim=-1)

    def output_width(self, width: int) -> int:
        return width * len(self.modes)

    def describe(self) -> str:
        return f"{' and '.join(self.modes)} pooling" + ("" if self.include_prompt else " without the prompt")


def _pool(mode: str, states: Float[Tensor, "rows t d"], mask: Tensor) -> Float[Tensor, "rows d"]:
    weights = mask[..., None].to(states.dtype)
    if mode == "cls":
        return _gather_tokens(states, mask.int().argmax(1))
    if mode == "lasttoken":
        return _gather_tokens(states * weights, mask.shape[1] - 1 - mask.int().flip(1).argmax(1))
    if mode == "max":
        return states.masked_fill(weights == 0, -torch.inf).max(dim=1).values
    if mode == "weightedmean":
        # If a prompt is left out, the tokens after it keep their positions.
        weights = weights * torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype)[:, None]
    total, count = (states * weights).sum(1), weights.sum(1).clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def _gather_tokens(states: Float[Tensor, "rows t d"], place: Tensor) -> Float[Tensor, "rows d"]:
    """For each row, the token at its `place`."""
    return states.gather(1, place[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]


class DenseStage(Stage):
    """A linear with an activation function.

    Args:
        shape: (out, in).
        activation: the activation function.
        bias: whether the linear has a bias.
        residual: whether the input is added, through a second linear if the width changes.
        reads: as in `Stage`.
        writes: as in `Stage`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        activation: nn.Module,
        *,
        bias: bool = True,
        residual: bool = False,
        reads: str = SENTENCE,
        writes: str | None = None,
    ) -> None:
        out, width = shape
        super().__init__(reads, writes, width)
        self.linear = nn.Linear(width, out, bias=bias)
        self.activation_function = activation
        self.adds = residual
        if residual and out != width:
            self.residual = nn.Linear(width, out, bias=False)

    def compute(self, x: Tensor, features: Features) -> Tensor:
        y = self.activation_function(self.linear(x))
        if not self.adds:
            return y
        return y + (x if self.linear.in_features == self.linear.out_features else self.residual(x))

    def output_width(self, width: int) -> int:
        return self.linear.out_features

    def describe(self) -> str:
        function = self.activation_function
        name = "" if isinstance(function, nn.Identity) else f" {type(function).__name__}"
        residual = " and what it read" if self.adds else ""
        return f"dense {self.linear.in_features} → {self.linear.out_features}{name}{residual}{_per_token(self.reads)}"


class LayerNorm(Stage):
    """A layer norm of the vector, which has `width` elements."""

    def __init__(self, width: int) -> None:
        super().__init__(width=width)
        self.norm = nn.LayerNorm(width)

    def compute(self, x: Tensor, features: Features) -> Tensor:
        return self.norm(x)

    def describe(self) -> str:
        return "layer norm"


class Normalize(Stage):
    """Scale vectors to length 1."""

    def compute(self, x: Tensor, features: Features) -> Tensor:
        return functional.normalize(x, dim=-1)

    def describe(self) -> str:
        return f"unit length{_per_token(self.reads)}"


class Truncate(Stage):
    """Keep the `first` elements of the vector: `truncate_dim` in its configuration."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def compute(self, x: Tensor, features: Features) -> Tensor:
        return x[..., : self.first]

    def output_width(self, width: int) -> int:
        return min(self.first, width)

    def describe(self) -> str:
        return f"its first {self.first} numbers"


def _per_token(reads: str) -> str:
    return " (of each token)" if reads == TOKENS else ""
