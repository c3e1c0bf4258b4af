"""A Transformers model seen as stacks of blocks and sites, with the surgery that compression needs."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.formats import Format, Masked, PackedCodes
from laconic.model import ties
from laconic.model.anatomy import Anatomy, Stack
from laconic.model.embedding import MEAN_POOLING, Pipeline
from laconic.model.enumeration import Blocks, find_excluded, find_sites, find_stacks
from laconic.model.site import Site
from laconic.model.structure import find_anatomy
from laconic.model.targets import Coverage, find_dense_parameters, matches, measure_coverage, select_sites
from laconic.model.task import Task, infer_task

DEFAULT_TARGETS = ("attention", "ffn")


@dataclass(frozen=True)
class LanguageModel:
    """A `PreTrainedModel` with its tokenizer and anatomy. The model itself is changed in place.

    dtype is that of the stored weights: what laconic computes in float32 is rounded to it before it is put in
    place, so that the model in memory equals the one that is reloaded.

    original is the model as it was before the first step that does more than prepare it, with tensors of its own; None
    where no step looks at it. dropped are the layers that each step since then has dropped, by stack, as numbered
    before it.

    pipeline is what the folder of the model declares, by sentence-transformers, to be done with what it gives; None
    where it declares nothing.

    label_order are names for the outputs of a head for texts, in their order, as the user has said them; None where
    those in the configuration count (`laconic.calibrate.classes`).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    anatomy: Anatomy
    task: Task
    dtype: torch.dtype
    source: str = ""
    target_tokenizer: PreTrainedTokenizerBase | None = None
    original: "LanguageModel | None" = None
    dropped: tuple[Mapping[str, tuple[int | str, ...]], ...] = ()
    pipeline: Pipeline | None = None
    label_order: tuple[str, ...] | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> "LanguageModel":
        """See any loaded model.

        Raises:
            UserError: the structure of its architecture is not understood, or its class has no predictions.
        """
        task = infer_task(model)
        return cls(model, tokenizer, find_anatomy(model), task, model.dtype, model.config.name_or_path or "")

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def embedding_pipeline(self) -> Pipeline:
        """From last hidden states to the vector of a text: as is declared, or the mean of its tokens, of length 1."""
        return MEAN_POOLING if self.pipeline is None else self.pipeline

    def stacks(self) -> Iterator[tuple[Stack, Blocks]]:
        """Each stack that this model has, with the path and module of each of its blocks, in forward order."""
        return find_stacks(self.model, self.anatomy)

    def sites(self, targets: Sequence[str] = DEFAULT_TARGETS) -> list[Site]:
        """The sites that any of `targets` names, in forward order.

        A target is a group (`attention`, `ffn`, `head`, `embedding`), `blocks` (every linear inside the blocks), `all`
        (every site), one of the sets of The Cost of Compression (`cost-of-compression:attention`, `:ffn`, `:all`), a
        glob over site names, or a regular expression after `re:`.

        Raises:
            UserError: a target matches nothing; of the usual two only where neither does: a model may have no
                attention, or no feed-forward but experts.
        """
        every = list(find_sites(self.model, self.anatomy))
        if tuple(targets) == DEFAULT_TARGETS:
            usual = [target for target in targets if any(matches(target, site) for site in every)]
            targets = usual or targets
        obstacles = self.excluded_matrices()
        dense = sorted(find_dense_parameters(self.model, self.anatomy), key=lambda one: -one.count)
        wanted = {site.name for target in targets for site in select_sites(every, target, obstacles, dense)}
        return [site for site in every if site.name in wanted]

    def excluded_matrices(self) -> dict[str, str]:
        """The linears and embeddings that are no sites, by path, each with why, as a clause (`laconic.model.usage`)."""
        return find_excluded(self.model, self.anatomy)

    def coverage(self, targets: Sequence[str] = DEFAULT_TARGETS) -> Coverage:
        """How much of what `targets` name in the blocks is in sites, and what stays dense.

        Raises:
            UserError: as `sites`.
        """
        return measure_coverage(self.model, self.anatomy, targets, self.sites(targets))

    def replace(self, site: Site, format: Format, bias: torch.Tensor | None = None) -> None:
        """Put `format` where `site` is, with its bias or another; a tied matrix is untied from all but its aliases."""
        if site.is_lookup:
            format = format.to_embedding(site.padding_idx)
        else:
            format.set_bias(site.bias() if bias is None else bias)
        # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
        format = format.to(self.dtype).to(site.weight().dtype).to(self.device)
        format.train(self.model.training).requires_grad_(site.parameter.requires_grad)
        ties.untie(self.model, set(site.names))
        for name in site.names:
            self.model.set_submodule(name, format)
        ties.tie(self.model, site.names[0], list(site.names[1:]))

    def stored_nbytes(self, sites: Sequence[Site]) -> dict[str, int]:
        """Bytes that the matrix of each site takes in a file now, in the stored dtype.

        A matrix that several sites share counts once, at the first of them, and not at all where it is also that of a
        module outside `sites`: replacing it there frees nothing.
        """
        places = {name for site in sites for name in site.names}
        counted: set[int] = set()
        nbytes = {}
        for site in sites:
            sharing = ties.tied_modules(self.model, site.name, site.holds)
            free = id(site.parameter) in counted or not sharing <= places
            counted.add(id(site.parameter))
            nbytes[site.name] = 0 if free else self.site_nbytes(site)
        return nbytes

    def site_nbytes(self, site: Site) -> int:
        """Bytes that the matrix takes in a file, in the stored dtype, whoever shares it."""
        if not isinstance(site.module, Format):
            return site.parameter.numel() * self.dtype.itemsize
        return site.module.nbytes_in(self.dtype)

    def sites_to_untie(self, sites: Sequence[Site]) -> list[str]:
        """Names of those sites whose matrix is now shared with a module that is not replaced with them."""
        return [
            site.name for site in sites if not ties.tied_modules(self.model, site.name, site.holds) <= set(site.names)
        ]

    def size(self) -> tuple[int, int]:
        """(parameters, bytes of them in the stored dtype), each once; with those that are declared beside the model.

        A zero that was chosen is no parameter; where the others are takes bytes nevertheless.
        """
        masked = [module for module in self.model.modules() if isinstance(module, Masked)]
        coded = [module for module in self.model.modules() if isinstance(module, PackedCodes)]
        plain = sum(parameter.numel() for parameter in self.model.parameters() if parameter.is_floating_point())
        plain -= sum(layer.out_features * layer.in_features - layer.count for layer in masked)
        packed = sum(layer.index_nbytes for layer in masked) + sum(layer.nbytes() for layer in coded)
        beside = (0, 0) if self.pipeline is None else self.pipeline.size
        parameters = plain + sum(layer.count for layer in coded) + beside[0]
        return parameters, plain * self.dtype.itemsize + packed + beside[1]

    def shallow_copy(self) -> "LanguageModel":
        """A model with modules and a configuration of its own, on the same tensors: what is put in place of a module of
        one is not seen by the other."""
        tensors = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return replace(self, model=copy.deepcopy(self.model, tensors))

    def copy(self) -> "LanguageModel":
        """The same model with tensors of its own."""
        return replace(self, model=copy.deepcopy(self.model))

    def to_meta(self) -> "LanguageModel":
        """The same without numbers, on the meta device: modules of its own, to see what they would become."""
        tensors: dict[int, torch.Tensor] = {}
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            empty = tensor.detach().to("meta")
            trains = tensor.requires_grad
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            tensors[id(tensor)] = torch.nn.Parameter(empty, requires_grad=trains) if is_parameter else empty
        return replace(self, model=copy.deepcopy(self.model, tensors))

    def with_label_order(self, names: Sequence[str | int] | None) -> "LanguageModel":
        """The same model with these names for its outputs, in their order; as it is for None.

        YAML reads `no` and `yes` as False and True, which are names like any other.
        """
        return self if names is None else replace(self, label_order=tuple(str(name) for name in names))

    def with_dtype(self, dtype: torch.dtype) -> "LanguageModel":
        """The same model, to be stored in `dtype`."""
        return replace(self, dtype=dtype)
