"""Fit a linear map and a bias, or only a bias, that replace a run of dropped blocks.

Paper: D. Shopkhoev et al., "ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization",
arXiv 2505.02819, eq. 5: T* = argmin ‖(M T + Y) − L‖². Here M is the output of the last layer before the run, Y the
residual stream that M is added to, and L the stream after the run. T is multiplied into that layer, so it adds no
matrix product. If a norm follows the sum (post-LN), M is the whole stream, Y is zero, and T is applied after the norm.

Here T is regularised towards the identity, which means dropping the run without a replacement:
T = (D + λ I)(C + λ I)^{-1}, with the centred second moment C of M and the centred cross moment D of L − Y and M, in
float64. λ is chosen by cross-validation over two halves of the batches (`laconic.calibrate.anchor`), and the bias
accounts for the means. M and Y are measured on the model with earlier runs dropped, L on the original, so that the map
also compensates for earlier runs.

`MapFitter` caches the maps of the unchanged model: they are fitted at once for all runs that begin at the same block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.calibrate import Calibration, LayerStats
from laconic.calibrate.activation_capture import ActivationCapture
from laconic.calibrate.anchor import Anchor
from laconic.calibrate.collation import to_device
from laconic.compress.depth.cuts import Cut, all_cuts, subblock_at
from laconic.compress.depth.hidden_states import is_close, stack_rows
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, predict
from laconic.model.depth import find_subblocks, last_writer
from laconic.model.layers import Layers, find_layers, get_layers


@dataclass(frozen=True)
class MapPlace:
    """A module whose output a map can be applied to.

    Args:
        path: path of the module; its output is M.
        whole: True if M is the whole residual stream; False if M is added to it.
        stream: path of a block whose input or output is the residual stream at this place.
        enters: True for the input of that block (before the first block), False for its output.
        width: d, the width of the stream.
    """

    path: str
    whole: bool
    stream: str
    enters: bool
    width: int


@dataclass(frozen=True)
class Original:
    """The original model, as the target of a fit.

    Args:
        lm: the original model.
        blocks: paths of the blocks whose outputs are to be reached.
    """

    lm: LanguageModel
    blocks: tuple[str, ...]


Map = tuple[Float[Tensor, "d d"] | None, Float[Tensor, " d"]]
"""(T, b) in float64; T is None for the identity."""


@torch.no_grad()
def find_map_place(lm: LanguageModel, layers: Layers, index: int, batch: Batch) -> MapPlace | None:
    """Find the module that can hold a map in front of a block.

    The place of the norms is found from activations, because it differs between models of one architecture.

    Args:
        lm: the model.
        layers: the blocks of one stack.
        index: number of the block; the number of blocks for a map after the last one.
        batch: a batch to run the model on.

    Returns:
        The place, or None if there is none.
    """
    if layers.shared:
        return None
    batch = to_device(batch, lm.device)
    return _entry_place(lm, layers, batch) if index == 0 else _place_after(lm, layers, index - 1, batch)


def _entry_place(lm: LanguageModel, layers: Layers, batch: Batch) -> MapPlace | None:
    prefix = next(f"{name}." if name else "" for name, part in lm.model.named_modules() if part is lm.model.base_model)
    path, first = f"{prefix}{layers.depth.input_norm}", layers.paths[0]
    if layers.depth.input_norm is None or path not in dict(lm.model.named_modules()):
        return None
    with ActivationCapture(lm.model, (path, first)) as capture:
        predict(lm, batch)
    hidden, h_in = capture.outputs[path][0], capture.inputs[first][0]
    if hidden.shape != h_in.shape:
        return None
    counted = stack_rows(lm, batch, layers, h_in).counted
    return MapPlace(path, True, first, True, h_in.shape[-1]) if is_close(hidden[counted], h_in[counted]) else None


def _place_after(lm: LanguageModel, layers: Layers, index: int, batch: Batch) -> MapPlace | None:
    block = layers.paths[index]
    if layers.stack.other_linears:
        return None
    parts = find_subblocks(lm, layers, index)
    closing = [f"{block}.{layers.depth.last_norm}"] if layers.depth.last_norm is not None else []
    with ActivationCapture(lm.model, dict.fromkeys((block, *closing, *(part.writer for part in parts)))) as capture:
        predict(lm, batch)
    h_in, h_out = capture.inputs[block][0], capture.outputs[block][0]
    for path in closing:
        if is_close(capture.outputs[path][0].reshape(h_out.shape), h_out):
            return MapPlace(path, True, block, False, h_out.shape[-1])
    written = sum((capture.outputs[part.writer][0].reshape(h_out.shape) for part in parts), torch.zeros_like(h_out))
    if not is_close(h_in + written, h_out):
        return None
    return MapPlace(last_writer(lm, layers, index), False, block, False, h_out.shape[-1])


@torch.no_grad()
def fit_maps(
    lm: LanguageModel, place: MapPlace, layers: Layers, original: Original, data: Calibration, linear: bool
) -> list[Map]:
    """Fit one map for each block of the original whose output is to be reached.

    Args:
        lm: the present model, perhaps without earlier runs.
        place: the place of the map in it.
        layers: the blocks of its stack.
        original: the original model, and the blocks whose outputs are to be reached.
        data: calibration data.
        linear: fit T as well as b. T is still None if cross-validation prefers the identity.
    """
    anchor = Anchor(place.width, dict.fromkeys(original.blocks, place.width), lm.device)
    for number, on_cpu in enumerate(data.batches):
        batch = to_device(on_cpu, lm.device)
        present, target = _capture_both(lm, place, original, batch)
        stream = (present.inputs if place.enters else present.outputs)[place.stream][0]
        M = present.outputs[place.path][0].reshape(stream.shape)
        Y = 0 if place.whole else stream - M
        rows = stack_rows(lm, batch, layers, stream)
        targets = {path: rows.without_padding(rows.lines(target.outputs[path][0] - Y)) for path in original.blocks}
        anchor.update(number, rows.without_padding(rows.lines(M)), targets)
    return [_solve_map(lm, anchor, place, path, linear) for path in original.blocks]


def _capture_both(
    lm: LanguageModel, place: MapPlace, original: Original, batch: Batch
) -> tuple[ActivationCapture, ActivationCapture]:
    """Activations of `lm` at the place and of the original at the blocks; one run if both are the same model."""
    same = lm is original.lm
    paths = (place.path, place.stream, *(original.blocks if same else ()))
    with ActivationCapture(lm.model, dict.fromkeys(paths)) as present:
        predict(lm, batch)
    if same:
        return present, present
    with ActivationCapture(original.lm.model, original.blocks) as target:
        predict(original.lm, batch)
    return present, target


def _solve_map(lm: LanguageModel, anchor: Anchor, place: MapPlace, block: str, linear: bool) -> Map:
    identity = torch.eye(place.width, dtype=torch.float64, device=lm.device)
    problem = anchor.problem(block, identity, LayerStats(), centred=True)
    # Round T to the stored dtype first, so that the bias also compensates for the rounding.
    T = problem.weight.to(lm.dtype).double()
    chosen = T if linear and not torch.equal(T, identity) else None
    bias = problem.bias(identity if chosen is None else chosen)
    assert bias is not None
    return chosen, bias


def no_place_error(lm: LanguageModel, index: int) -> UserError:
    """Return the error for a model that has no place for a map in front of block `index`."""
    model_type = lm.model.config.model_type
    if index:
        return UserError(
            f"Dropped blocks of '{model_type}' cannot be replaced by a map: the place where their outputs are added is "
            "not known, or its layers share one block; use replace: nothing."
        )
    return UserError(
        f"The first blocks of '{model_type}' cannot be replaced by a map, because no norm before them could hold it; "
        "keep block 0, or use replace: nothing."
    )


MAX_CACHED_NUMEL = 2**26
"""Largest number of elements of cached maps (512 MiB in fp64); the oldest maps are dropped and fitted again."""


class MapFitter:
    """Fits and caches maps that replace runs of blocks, and means that replace sub-blocks.

    Args:
        lm: the original model.
        data: calibration data.
        linear: fit a linear map with a bias; otherwise only a bias.
        longest: fit the maps of all runs up to this length together.
    """

    def __init__(self, lm: LanguageModel, data: Calibration, linear: bool, longest: int = 1) -> None:
        self.lm, self.data, self.linear, self.longest = lm, data, linear, longest
        self._maps: dict[tuple[str, int], tuple[MapPlace, list[Map]]] = {}
        self._means: dict[Cut, Tensor] = {}

    def fit_run(self, layers: Layers, run: range) -> tuple[MapPlace, Map]:
        """Return the place and the map for a run of blocks of the original, with nothing dropped before it.

        Args:
            layers: the blocks of the stack.
            run: numbers of the dropped blocks.

        Raises:
            UserError: the model has no place for the map.
        """
        key = layers.name, run.start
        if key not in self._maps or len(run) > len(self._maps[key][1]):
            longest = max(self.longest, len(run))
            blocks = layers.paths[run.start : run.start + longest]
            self._store(key, self.fit(self.lm, layers, run.start, blocks))
        place, maps = self._maps[key]
        return place, maps[len(run) - 1]

    def fit(self, lm: LanguageModel, layers: Layers, index: int, blocks: Sequence[str]) -> tuple[MapPlace, list[Map]]:
        """Fit maps for a model in which blocks were dropped.

        Args:
            lm: the model without the blocks.
            layers: the remaining blocks of the stack.
            index: number of the remaining block in front of which the blocks were dropped.
            blocks: paths of blocks of the original; one map is fitted to the output of each.

        Returns:
            The place, and one map for each of `blocks`.

        Raises:
            UserError: the model has no place for the map.
        """
        place = find_map_place(lm, layers, index, self.data.batches[0])
        if place is None:
            raise no_place_error(lm, index)
        return place, fit_maps(lm, place, layers, Original(self.lm, tuple(blocks)), self.data, self.linear)

    def means(self, cuts: Sequence[Cut]) -> dict[Cut, Tensor]:
        """Return the mean output of sub-blocks, (d,); the first call measures all sub-blocks of the model."""
        if not all(cut in self._means for cut in cuts):
            subblocks = [cut for row in all_cuts(self.lm, "sublayers").values() for cut in row]
            self._means = mean_outputs(self.lm, subblocks, self.data)
        return {cut: self._means[cut] for cut in cuts}

    @property
    def _cached_numel(self) -> int:
        maps = (cached for _, fitted in self._maps.values() for cached in fitted)
        return sum(b.numel() + (0 if T is None else T.numel()) for T, b in maps)

    def _store(self, key: tuple[str, int], fitted: tuple[MapPlace, list[Map]]) -> None:
        # Insert at the end, because the entries at the beginning are dropped first.
        self._maps.pop(key, None)
        self._maps[key] = fitted
        while len(self._maps) > 1 and self._cached_numel > MAX_CACHED_NUMEL:
            del self._maps[next(iter(self._maps))]


@torch.no_grad()
def mean_outputs(lm: LanguageModel, cuts: Sequence[Cut], data: Calibration) -> dict[Cut, Tensor]:
    """Measure the mean output of sub-blocks over all tokens without padding.

    Args:
        lm: the model.
        cuts: the sub-blocks.
        data: calibration data.

    Returns:
        The mean, (d,) in float64, by cut.
    """
    writers = {cut: subblock_at(lm, get_layers(lm, cut.stack), cut).writer for cut in cuts}
    sums: dict[Cut, Tensor] = {}
    counts = dict.fromkeys(cuts, 0)
    stacks = {layers.name: layers for layers in find_layers(lm)}
    for on_cpu in data.batches:
        batch = to_device(on_cpu, lm.device)
        blocks = {cut: stacks[cut.stack].paths[cut.layer] for cut in cuts}
        with ActivationCapture(lm.model, dict.fromkeys((*writers.values(), *blocks.values()))) as capture:
            predict(lm, batch)
        for cut, writer in writers.items():
            hidden = capture.outputs[blocks[cut]][0]
            rows = stack_rows(lm, batch, stacks[cut.stack], hidden)
            written = rows.without_padding(rows.lines(capture.outputs[writer][0].reshape(hidden.shape)))
            sums[cut] = sums.get(cut, 0) + written.sum(0, dtype=torch.float64)
            counts[cut] += len(written)
    return {cut: total / max(counts[cut], 1) for cut, total in sums.items()}
