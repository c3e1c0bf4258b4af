"""A subclass of HFLM, the model class of the harness, with progress reports and counts of truncated requests."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from laconic.calibrate.batching import tokenizer_of
from laconic.errors import UserError
from laconic.model import LanguageModel, ModelTask
from laconic.model.predictions import report_run_errors
from laconic.progress import Track

# The decorator that registers the class removes its type.
HFLM: Any = huggingface.HFLM

BATCHES_PER_PART = 8
"""The number of batches after which progress is reported."""


class HarnessModel(HFLM):
    """HFLM for a model in memory.

    Args:
        lm: the model.
        batch_size: the number of requests in a batch.
        track: reports progress.
        what: the name of the task, for progress and errors.

    Attributes:
        n_requests: the number of requests.
        n_truncated: the number of requests longer than the context; their prompts are truncated on the left.
        n_answers_truncated: the number of requests whose answer alone is longer than the context. The harness itself
            fails for these.
    """

    def __init__(self, lm: LanguageModel, batch_size: int, track: Track, what: str) -> None:
        # Copied, because the harness adds a pad token to a tokenizer without one.
        tokenizer = copy.deepcopy(tokenizer_of(lm))
        backend = "seq2seq" if lm.task is ModelTask.SEQ2SEQ else "causal"
        super().__init__(pretrained=lm.model, tokenizer=tokenizer, backend=backend, batch_size=batch_size)
        self._lm, self._track = lm, track
        self._what = what
        self.n_requests = 0
        self.n_truncated = 0
        self.n_answers_truncated = 0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._in_parts(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._in_parts(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        longest = max(self._tokens_after(request) for request in requests)
        if self.backend == "causal" and longest >= self.max_length:
            raise UserError(
                f"'{self._what}' writes up to {longest} tokens after a prompt, and the model has a context of "
                f"{self.max_length}; take another task."
            )
        return self._in_parts(super().generate_until, requests)

    def _tokens_after(self, request: Instance) -> int:
        """The largest number of tokens of an answer. Tasks use several names for this option."""
        *_, options = request.args
        normal: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), self.max_gen_toks))
        return normal["max_gen_toks"]

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with report_run_errors(self._lm, inps):
            return super()._model_call(inps, attn_mask, labels)

    def _model_generate(self, context: Tensor, **how: Any) -> Tensor:
        with report_run_errors(self._lm, context, writes=True):
            return super()._model_generate(context, **how)

    def _in_parts(self, ask: Callable[..., list[Any]], requests: Sequence[Instance]) -> list[Any]:
        """Call `ask` on parts of the requests, and return all answers in the order of the requests.

        As in HFLM, long requests come first, and requests with the same prompt are kept together.
        """
        self.n_requests += len(requests)
        prompts = [str(request.args[0]) for request in requests]
        order = sorted(range(len(requests)), key=lambda at: (-len(prompts[at]), prompts[at]))
        size = BATCHES_PER_PART * self.batch_size
        answers: dict[int, Any] = {}
        for part in self._track([order[at : at + size] for at in range(0, len(order), size)], self._what):
            answers |= zip(part, ask([requests[at] for at in part], disable_tqdm=True), strict=True)
        return [answers[at] for at in range(len(requests))]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        longest = self.max_length
        self.n_answers_truncated += sum(len(answer) > longest for _, _, answer in requests)
        requests = [(texts, prompt, answer[-longest:]) for texts, prompt, answer in requests]
        if self.backend == "causal":
            # The last token of an answer is not an input: it is only predicted.
            lengths = [len(prompt) + len(answer) - 1 for _, prompt, answer in requests]
        else:
            lengths = [len(prompt) for _, prompt, _ in requests]
        self.n_truncated += sum(length > longest for length in lengths)
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> Any:
        if left_truncate_len is not None:
            self.n_truncated += sum(len(self.tok_encode(prompt)) > left_truncate_len for prompt in strings)
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
