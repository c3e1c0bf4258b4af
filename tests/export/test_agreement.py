"""The inputs on which an exported model is compared with the original."""

from dataclasses import replace

import torch
from torch import Tensor

from laconic.export.agreement import check_agreement
from laconic.model import Batch, LanguageModel
from laconic.progress import silent
from laconic.runtime import ONNX
from laconic.runtime.engines import Program
from laconic.runtime.signature import Signature
from tests.architectures import BY_NAME
from tests.words import words


class Untidy(Program):
    """A model that says what it likes of padding."""

    version = "none"

    def __init__(self, lm: LanguageModel) -> None:
        self._model = lm.model
        self.padding = 0

    @torch.no_grad()
    def __call__(self, feeds: Batch) -> dict[str, Tensor]:
        logits = self._model(**feeds)["logits"].clone()
        padding = feeds["attention_mask"] == 0
        self.padding += int(padding.sum())
        logits[padding] = 1e3
        return {"logits": logits}


def test_what_is_said_of_padding_is_nobodys_business():
    lm = replace(BY_NAME["bert-masked"].lm(), tokenizer=words())
    untidy = Untidy(lm)
    found = check_agreement(lm, untidy, Signature.of(lm), ONNX, silent)
    assert found.error < 1e-6
    # More than that of the random tokens: the texts have some too.
    assert untidy.padding > 20
