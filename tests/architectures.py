"""Every architecture that laconic knows, as a tiny random model with a batch it can run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from laconic.formats import LowRank
from laconic.model import LanguageModel, ModelTask, Site, first_token_mask
from laconic.model.anatomy import find_entry
from laconic.model.task import infer_task, reads_choices
from tests.tiny_models import (
    BART,
    BLOCKS,
    DECODER,
    GPT2,
    HEADS,
    INNER,
    SMALL,
    T5,
    TINY_MODELS,
    VOCABULARY,
    WIDTH,
)
from tests.tiny_relatives import RELATIVES

__all__ = ["BART", "BLOCKS", "DECODER", "GPT2", "HEADS", "INNER", "SMALL", "T5", "VOCABULARY", "WIDTH"]


@dataclass(frozen=True)
class Architecture:
    """A name, the model's class and the configuration that keeps it tiny."""

    name: str
    build: Callable[[], PreTrainedModel]

    def model(self, seed: int = 0) -> PreTrainedModel:
        """The model with random weights, large enough that every one of them shows in the outputs."""
        torch.manual_seed(seed)
        model = self.build().eval()
        for name, tensor in model.named_parameters():
            if not tensor.requires_grad:
                # Sinusoidal positions, which are computed anew at loading.
                continue
            if tensor.dim() > 1:
                torch.nn.init.normal_(tensor, std=WIDTH**-0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(tensor, std=0.1)
        return model

    def lm(self, seed: int = 0) -> LanguageModel:
        return LanguageModel.of(self.model(seed))


ARCHITECTURES = tuple(Architecture(name, build) for name, build in TINY_MODELS.items())
EVERY_ARCHITECTURE = (*ARCHITECTURES, *(Architecture(name, build) for name, build in RELATIVES.items()))
"""With those that resemble another one: their entries are tested, and not again what no entry decides."""
BY_NAME = {architecture.name: architecture for architecture in EVERY_ARCHITECTURE}


def batch_for(model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
    """Two rows of seven tokens, the second one padded by two; with target tokens for an encoder-decoder.

    For multiple choice, each row has three choices of that length.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    if reads_choices(type(model)):
        mask = mask[:, None].repeat(1, 3, 1)
    batch = {"input_ids": torch.randint(3, VOCABULARY, mask.shape, generator=generator), "attention_mask": mask}
    entry = find_entry(model.config.model_type)
    if entry is not None and entry.global_attention:
        batch["global_attention_mask"] = first_token_mask(batch["input_ids"])
    # A class that finds answers makes the decoder's inputs itself, as many as source tokens.
    if model.config.is_encoder_decoder and infer_task(model) is not ModelTask.QUESTION_ANSWERING:
        batch["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 5), generator=generator)
    return batch


@torch.no_grad()
def outputs(model: PreTrainedModel, seed: int = 0) -> Tensor:
    """The logits of the batch, or the last hidden states of a base model."""
    return model(**batch_for(model, seed))[0]


def alike(one: Tensor, other: Tensor) -> bool:
    """Equal but for the last digit: how a product with one column is summed depends on where the matrix lies."""
    return torch.allclose(one, other, rtol=1e-6, atol=1e-7)


def factors(site: Site, rank: int | None = None) -> LowRank:
    """The truncated SVD of a site's matrix; of full rank by default."""
    U, S, Vh = torch.linalg.svd(site.weight().double(), full_matrices=False)
    rank = len(S) if rank is None else rank
    A, B = U[:, :rank] * S[:rank], Vh[:rank]
    return LowRank.from_factors(A.to(site.weight().dtype), B.to(site.weight().dtype))


def compress_everything(lm: LanguageModel, rank: int | None = None) -> LanguageModel:
    """Replace every site, heads and embeddings included."""
    for site in lm.sites(("*",)):
        lm.replace(site, factors(site, rank))
    return lm
