"""`forward` compiled by torch, and the one mistake that a user can make about that: to have no compiler."""

from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

from laconic.errors import UserError, reason_of
from laconic.model import LanguageModel


class Compiled:
    """`torch.compile` of the forward pass of a model."""

    def __init__(self, lm: LanguageModel) -> None:
        self._forward = torch.compile(lm.model.forward)
        self._name = type(lm.model).__name__

    def __call__(self, *inputs: Any, **given: Any) -> Any:
        try:
            return self._forward(*inputs, **given)
        except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
            raise UserError(
                f"torch.compile fails on {self._name}: {reason_of(error)}; it needs a C++ compiler, or use the runtime "
                "eager."
            ) from error
