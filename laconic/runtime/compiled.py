"""`forward` compiled by torch, and the one mistake that a user can make about that: to have no compiler."""

from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

from laconic.errors import UserError, reason_of
from laconic.model import LanguageModel
from laconic.model.predictions import report_run_errors


class Compiled:
    """`torch.compile` of the forward pass of a model."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm, self._plain = lm, lm.model.forward
        self._forward = torch.compile(lm.model.forward)

    def __call__(self, *inputs: Any, **given: Any) -> Any:
        # Tokens may be given by place.
        with report_run_errors(self._lm, inputs[0] if inputs else given["input_ids"]):
            try:
                return self._forward(*inputs, **given)
            except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
                # What cannot run uncompiled either is no fault of the compiler's.
                self._plain(*inputs, **given)
                raise UserError(
                    f"torch.compile fails on {type(self._lm.model).__name__}: {reason_of(error)}; it needs a C++ "
                    "compiler, or use the runtime eager."
                ) from error
