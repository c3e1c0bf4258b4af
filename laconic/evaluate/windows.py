"""Windows of documents in which a causal language model scores each token once.

Each row of the corpus is a separate document, which follows the start token. A document longer than the context is read
in windows that advance by `stride`. Each token is scored once, in the first window that contains it, with at least
`context − stride` tokens before it (or all preceding tokens).

By default that is half of the context, and at most `OVERLAP` tokens: in longer windows fewer tokens run twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from laconic.calibrate.batching import max_positions
from laconic.calibrate.collation import collate
from laconic.calibrate.corpus import Corpus
from laconic.calibrate.row import IGNORED, Row, tokenizer_of
from laconic.errors import must_be
from laconic.model import Batch, LanguageModel

MAX_CONTEXT = 2048
"""The default context in tokens, for models with a longer one."""
OVERLAP = 512
"""The default number of tokens that a window shares with the window before it, for contexts of twice that and more."""
PADDING = 0.1
"""The largest share of padding in a window, in batches of more than `FEW_TOKENS` tokens."""
FEW_TOKENS = 512
BATCH = 16
BATCH_TOKENS = 4096
"""The largest number of tokens in a batch of several windows."""


@dataclass(frozen=True)
class Windows:
    """The windows of all documents, as batches.

    Args:
        context: the largest number of tokens in a window.
        stride: the number of tokens by which a window advances.
        rows: tokens and labels of each window. A token without a label is context.
        documents: the index of the document of each window, in ascending order.
        count: the number of documents.
        start_token: the token before each document; None for none.
    """

    context: int
    stride: int
    rows: Sequence[Row]
    documents: Sequence[int]
    count: int
    start_token: int | None

    @property
    def inputs(self) -> tuple[int, int, list[list[int]], list[int]]:
        """A JSON value that is equal for two models that read the same tokens in the same windows."""
        return self.context, self.stride, [row.input_ids for row in self.rows], list(self.documents)

    @cached_property
    def parts(self) -> list[list[int]]:
        """The indices of the windows in each batch. Windows of similar length are together, so that they need little
        padding."""
        order = sorted(range(len(self.rows)), key=lambda index: len(self.rows[index].input_ids))
        parts: list[list[int]] = []
        for index in order:
            # The last window of a batch is its longest.
            length = len(self.rows[index].input_ids)
            tokens = (len(parts[-1]) + 1) * length if parts else 0
            is_padded = bool(parts) and len(self.rows[parts[-1][0]].input_ids) < (1 - PADDING) * length
            if not parts or len(parts[-1]) == BATCH or tokens > BATCH_TOKENS or (is_padded and tokens > FEW_TOKENS):
                parts.append([])
            parts[-1].append(index)
        return parts

    def batches(self, lm: LanguageModel) -> list[Batch]:
        """The windows of each part as a batch.

        Args:
            lm: the model that reads them.
        """
        return [collate(lm, [self.rows[index] for index in part]) for part in self.parts]

    def documents_of(self, part: int) -> Int[Tensor, " rows"]:
        """The index of the document of each row of a batch."""
        return torch.tensor([self.documents[index] for index in self.parts[part]])


def window_size(lm: LanguageModel, context: int | None, stride: int | None) -> tuple[int, int]:
    """Context and stride of the windows for a model.

    Args:
        lm: the model, with or without weights.
        context: the number of tokens in a window; None for the context of the model, up to `MAX_CONTEXT`.
        stride: the number of tokens by which a window advances; None for half of the context, or all but `OVERLAP`.

    Raises:
        UserError: one of them is out of range.
    """
    return check_window(max_positions(lm), lm.source, context, stride)


def check_window(longest: int | None, source: str, context: int | None, stride: int | None = None) -> tuple[int, int]:
    """As `window_size`, for a model of which only the context is known.

    Args:
        longest: the largest number of tokens that the model reads; None if it is not limited.
        source: the name of the model, for errors.
        context: as for `window_size`.
        stride: as for `window_size`.

    Raises:
        UserError: as `window_size`.

    Example:
        >>> check_window(4096, "model", None)
        (2048, 1536)
    """
    context = min(longest or MAX_CONTEXT, MAX_CONTEXT) if context is None else context
    if context < 2 or (longest is not None and context > longest):
        raise must_be("The context", f"2 to {longest or 'any number of'} tokens for '{source}'", context)
    stride = max(context // 2, context - OVERLAP) if stride is None else stride
    if not 1 <= stride < context:
        raise must_be("The stride", f"between 1 and the context less one ({context - 1})", stride)
    return context, stride


def find_windows(lm: LanguageModel, corpus: Corpus, context: int | None = None, stride: int | None = None) -> Windows:
    """Tokenize documents and divide them into windows.

    Args:
        lm: the model that reads them, with its tokenizer.
        corpus: the documents.
        context: as for `window_size`.
        stride: as for `window_size`.

    Raises:
        UserError: as `window_size`.
    """
    return divide_texts(tokenizer_of(lm), corpus, *window_size(lm, context, stride))


def divide_texts(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, context: int, stride: int) -> Windows:
    """Tokenize documents and divide them into windows.

    Args:
        tokenizer: the tokenizer of the model that reads them.
        corpus: the documents.
        context: the number of tokens in a window.
        stride: the number of tokens by which a window advances.
    """
    first = start_token(tokenizer)
    rows: list[Row] = []
    documents: list[int] = []
    for document, example in enumerate(corpus.examples):
        ids = tokenizer(example.joined, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [token for token in (first, *ids) if token is not None]
        for start, new in window_bounds(len(ids), context, stride):
            tokens = ids[start : start + context]
            scored = [token if index >= new - start else IGNORED for index, token in enumerate(tokens)]
            rows.append(Row(tokens, labels=scored))
            documents.append(document)
    return Windows(context, stride, rows, documents, len(corpus.examples), first)


def targets_of(
    batch: Batch, documents: Int[Tensor, " rows"]
) -> tuple[Bool[Tensor, "rows tokens"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The positions of a batch whose next token is scored.

    Args:
        batch: windows with labels.
        documents: the index of the document of each window.

    Returns:
        True at these positions; and for each of them the next token, and the index of its document.

    Example:
        >>> batch = {"labels": torch.tensor([[-100, -100, 5, 6], [7, 8, -100, -100]])}
        >>> positions, tokens, documents = targets_of(batch, torch.tensor([0, 1]))
        >>> positions.nonzero().tolist(), tokens.tolist(), documents.tolist()
        ([[0, 1], [0, 2], [1, 0]], [5, 6, 8], [0, 0, 1])
    """
    following = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    positions = following != IGNORED
    return positions, following[positions], documents[positions.nonzero()[:, 0]]


def start_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that is put before a document, so that the document's first token is predicted too.

    Args:
        tokenizer: the tokenizer of a model.

    Returns:
        The start token of the tokenizer, else the end token, else None.
    """
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return next((token for token in tokens if isinstance(token, int)), None)


def window_bounds(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int]]:
    """The windows of a document.

    Args:
        tokens: the number of tokens of the document.
        context: the number of tokens in a window.
        stride: the number of tokens by which the window advances.

    Yields:
        The position where the window starts, and the position of the first token that is not in an earlier window.

    Example:
        >>> list(window_bounds(10, context=4, stride=2))
        [(0, 0), (2, 4), (4, 6), (6, 8)]
    """
    end = 0
    for start in range(0, max(tokens, 1), stride):
        if tokens > 1:
            yield start, end
        end = min(start + context, tokens)
        if end == tokens:
            return
