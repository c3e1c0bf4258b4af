"""The use of the experts of a mixture: the tokens that the router sends to each, and the norms of its outputs.

One forward pass over the data measures both, without gradients. Padding does not count.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from laconic import processes
from laconic.calibrate.block_pass import BlockwisePass
from laconic.calibrate.collation import to_device
from laconic.calibrate.collect_stats import Calibration, check_not_empty
from laconic.calibrate.passes import evaluating
from laconic.calibrate.token_rows import batch_rows
from laconic.formats.expert_layer import routed_arguments
from laconic.model import Batch, InputTokens, LanguageModel, ModelTask, predict
from laconic.model.enumeration import is_below
from laconic.model.mixture import Mixture, find_mixtures
from laconic.numerics.moments import check_finite

LABEL = "Measuring the experts"


@dataclass
class ExpertActivity:
    """The use of the experts of one block, summed over tokens.

    Args:
        tokens: the number of tokens that the router sends to each expert, (experts,).
        weighted: Σ w_e(x) · ‖f_e(x)‖₂ over these tokens, (experts,).
    """

    tokens: Float[Tensor, " experts"]
    weighted: Float[Tensor, " experts"]

    @property
    def saliency(self) -> Float[Tensor, " experts"]:
        """The mean of w_e(x) · ‖f_e(x)‖₂ over the tokens of each expert; 0 for an expert without tokens."""
        return self.weighted / self.tokens.clamp(min=1)


def measure_experts(lm: LanguageModel, data: Calibration) -> dict[str, ExpertActivity]:
    """Run every batch forward and measure how much each expert contributes.

    Args:
        lm: the model; it is in eval mode during the call.
        data: the calibration data.

    Returns:
        The activity of the experts of each block, by `Mixture.path`.

    Raises:
        UserError: there is no batch, or outputs of experts are not finite.
    """
    check_not_empty(data)
    mixtures, found = find_mixtures(lm.model), dict[str, ExpertActivity]()
    for mixture in mixtures:
        zeros = torch.zeros(2, mixture.count, dtype=torch.float64, device=lm.device)
        found[mixture.path] = ExpertActivity(*zeros)
    with processes.sync_errors(), evaluating(lm), torch.no_grad():
        if lm.loans is None:
            with _observing(lm, mixtures, found) as observers:
                for batch, _ in data.share(LABEL):
                    inputs = to_device(batch, lm.device)
                    for observer in observers:
                        observer.batch = inputs
                    predict(lm, inputs)
        else:
            _measure_streamed(lm, data, mixtures, found)
    for path, activity in found.items():
        activity.tokens = processes.all_reduce_sum(activity.tokens)
        activity.weighted = processes.all_reduce_sum(activity.weighted)
        check_finite(activity.weighted, f"The outputs of '{path}' are not finite; check the model and the data.")
    return found


@contextmanager
def _observing(
    lm: LanguageModel, mixtures: Sequence[Mixture], found: Mapping[str, ExpertActivity]
) -> Iterator[list["_Observer"]]:
    """Within the context the calls of some mixtures are added to their activity."""
    with ExitStack() as hooks:
        observers = []
        for mixture in mixtures:
            observer = _Observer(found[mixture.path], lm.task, _find_reads(lm, mixture.path))
            observers.append(observer)
            hooks.callback(mixture.experts.register_forward_pre_hook(observer.on_call, with_kwargs=True).remove)
            hooks.callback(mixture.experts.register_forward_hook(observer.on_return).remove)
        yield observers


def _measure_streamed(
    lm: LanguageModel, data: Calibration, mixtures: Sequence[Mixture], found: Mapping[str, ExpertActivity]
) -> None:
    """Run a streamed model block by block over all batches, up to the last block with experts."""
    run = BlockwisePass(lm, data, (), (), writes=False)
    remaining = {mixture.path for mixture in mixtures}
    for paths in run.stacks:
        if not remaining:
            break
        run.enter(paths)
        for path in data.track(paths, LABEL):
            own = [mixture for mixture in mixtures if is_below(mixture.path, path)]
            states = run.stream.next_states()
            with lm.on_loan(path), _observing(lm, own, found) as observers:
                for number, batch in enumerate(run.batches):
                    for observer in observers:
                        observer.batch = batch
                    run.stream.run_once(number, states)
            run.stream.move_to(states)
            remaining -= {mixture.path for mixture in own}
    run.stream.delete_states()


def _find_reads(lm: LanguageModel, path: str) -> InputTokens:
    """The tokens that the module at `path` reads, which are those of its block."""
    blocks = ((stack.reads, block) for stack, blocks in lm.stacks() for block, _ in blocks)
    return next((reads for reads, block in blocks if path.startswith(f"{block}.")), InputTokens.EITHER)


class _Observer:
    """Hooks on a module of experts that add each call to the activity of the experts.

    A module of experts returns only the sum Σ w_e(x) f_e(x). The first hook makes each pair of a token and an expert a
    token of its own, with one expert and the weight 1, so that the module returns every f_e(x). The second hook reads
    them and returns the weighted sum.

    Args:
        activity: the sums, changed in place.
        task: the task of the model.
        reads: the tokens that the experts read.
    """

    def __init__(self, activity: ExpertActivity, task: ModelTask, reads: InputTokens) -> None:
        self._activity, self._task, self._reads = activity, task, reads
        self._index = self._weights = torch.empty(0)
        self.batch: Batch = {}

    def on_call(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Replace the arguments by those of the pairs."""
        hidden, self._index, self._weights = routed_arguments(args, kwargs)
        pairs = self._index.reshape(-1, 1)
        tokens = hidden.repeat_interleave(self._index.shape[1], dim=0)
        return (tokens, pairs, torch.ones_like(self._weights).view_as(pairs)), {}

    def on_return(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add the outputs of the pairs, and return their weighted sum for each token."""
        outputs = output.view(*self._index.shape, -1)
        counted = self._counted()
        index = self._index[counted].flatten()
        norms = outputs[counted].double().norm(dim=-1) * self._weights[counted]
        self._activity.tokens.index_add_(0, index, torch.ones_like(norms).flatten())
        self._activity.weighted.index_add_(0, index, norms.flatten())
        return (outputs * self._weights[..., None]).sum(1).to(output.dtype)

    def _counted(self) -> Bool[Tensor, " tokens"]:
        """True at the tokens of the call that are no padding."""
        return batch_rows(self._task, self.batch, (len(self._index),), self._reads).counted.flatten()
