"""A Transformers model seen as stacks of blocks and sites, with the changes that compression makes to it."""

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laconic.formats import ExpertLayer, ExpertStack, Format
from laconic.model.anatomy import Anatomy, Stack
from laconic.model.anatomy.infer import find_anatomy
from laconic.model.dense_parameters import find_dense_parameters
from laconic.model.embedding import MEAN_POOLING, Pipeline
from laconic.model.enumeration import Blocks, find_excluded, find_sites, find_stacks, tie, tied_modules, untie
from laconic.model.file_sizes import FileSizes
from laconic.model.loans import Loans
from laconic.model.loans_on_call import lend_on_call
from laconic.model.loans_origins import to_placeholder
from laconic.model.site import Site, has_module
from laconic.model.size import module_size
from laconic.model.tables import put_tables
from laconic.model.targets import Coverage, matches, measure_coverage, select_sites
from laconic.model.task import ModelTask, infer_task

DEFAULT_TARGETS = ("attention", "ffn")
"""The groups of matrices that are compressed unless others are named."""


@dataclass(frozen=True)
class LanguageModel:
    """A `PreTrainedModel` with its tokenizer, anatomy and task. The model itself is changed in place.

    Args:
        model: the model, which stays an ordinary transformers model throughout.
        tokenizer: its tokenizer, or None.
        anatomy: the paths of its linears.
        task: the kind of its predictions.
        dtype: the dtype that its weights are stored in. laconic computes in float32 and rounds each result to `dtype`,
            so that the model in memory equals the one that is saved and reloaded.
        source: the folder or hub name that it was loaded from; "" for a model that was made in memory.
        target_tokenizer: the tokenizer of an encoder-decoder's targets, if they have a separate one.
        original: a copy of the model before the first step that compresses it; None if no step needs it.
        dropped: for each step that dropped layers, their indices before that step, by the name of the stack.
        pipeline: the sentence-transformers modules after the model; None if its folder has none.
        label_order: names of the classes of a classifier given by the user, in the order of its outputs; None for the
            names in the configuration.
        loans: the tensors on disk of a streamed model; None for a model in memory.
        file_sizes: the bytes in the files of another library; None to count those that laconic would write.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
        >>> lm = LanguageModel.of(GPT2LMHeadModel(config))
        >>> lm.task.value, [site.role.value for site in lm.sites(("ffn",))]
        ('causal', ['inner', 'output'])
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    anatomy: Anatomy
    task: ModelTask
    dtype: torch.dtype
    source: str = ""
    target_tokenizer: PreTrainedTokenizerBase | None = None
    original: "LanguageModel | None" = None
    dropped: tuple[Mapping[str, tuple[int | str, ...]], ...] = ()
    pipeline: Pipeline | None = None
    label_order: tuple[str, ...] | None = None
    loans: Loans | None = None
    file_sizes: FileSizes | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> "LanguageModel":
        """Wrap a loaded model.

        Args:
            model: a transformers model of a supported class.
            tokenizer: its tokenizer, if texts are to be read.

        Raises:
            UserError: the architecture is not understood, or the class is not supported.
        """
        task = infer_task(model)
        return cls(model, tokenizer, find_anatomy(model), task, model.dtype, model.config.name_or_path or "")

    @property
    def device(self) -> torch.device:
        """The device of the model; of a streamed model, the device of tensors on loan."""
        return self.model.device if self.loans is None else self.loans.stored.device

    def on_loan(self, *paths: str) -> AbstractContextManager[None]:
        """A context in which parts of a streamed model have their weights; contexts can be nested.

        Args:
            *paths: paths of modules, such as a block; "" is the whole model.

        Raises:
            UserError: weights cannot be read, or are NaN or infinite.
        """
        return nullcontext() if self.loans is None else self.loans.lend(self.model, paths)

    def loaned_on_call(self, *, keep: bool = False) -> AbstractContextManager[None]:
        """A context in which each part of a streamed model has its weights while it runs.

        Args:
            keep: a part keeps its weights after its first call, until the end of the context.
        """
        return lend_on_call(self.model, self.anatomy, self.loans, keep)

    def write_back(self, path: str) -> None:
        """Write a changed part of a streamed model to its file, from which it is read from then on.

        Args:
            path: the path of the part, such as a block; it is on loan.

        Raises:
            UserError: the file cannot be written.
        """
        if self.loans is not None:
            self.loans.write_back(self.model, path, self.dtype)

    def restore(self, path: str) -> bool:
        """Give the part at `path` of a streamed model the formats and weights that another process wrote back.

        Returns:
            Whether the part was written; if not, nothing is changed.

        Raises:
            UserError: its file is damaged, or does not fit the model.
        """
        return self.loans is not None and self.loans.restore(self.model, path)

    @property
    def embedding_pipeline(self) -> Pipeline:
        """The modules that make one vector of the last hidden states; by default mean pooling and unit length."""
        return MEAN_POOLING if self.pipeline is None else self.pipeline

    def stacks(self) -> Iterator[tuple[Stack, Blocks]]:
        """Each stack of the model with the path and the module of each of its blocks, in forward order."""
        return find_stacks(self.model, self.anatomy)

    def sites(self, targets: Sequence[str] = DEFAULT_TARGETS) -> list[Site]:
        """The sites that at least one target matches, in forward order.

        Args:
            targets: each a group (`attention`, `ffn`, `experts`, `head`, `embedding`), `blocks` (every linear inside
                the blocks), `all` (every site), one of the sets of The Cost of Compression
                (`cost-of-compression:attention`, `:ffn`, `:all`), a glob over site names, or a regular expression after
                `re:`.

        Raises:
            UserError: a target matches nothing. One of the two default targets may match nothing, as a model may have
                no attention or no feed-forward.
        """
        sites = list(find_sites(self.model, self.anatomy))
        if tuple(targets) == DEFAULT_TARGETS:
            targets = [target for target in targets if any(matches(target, site) for site in sites)] or targets
        excluded = self.excluded_matrices()
        dense = sorted(find_dense_parameters(self.model, self.anatomy, sites), key=lambda parameter: -parameter.count)
        selected = {site.name for target in targets for site in select_sites(sites, target, excluded, dense)}
        return [site for site in sites if site.name in selected]

    def excluded_matrices(self) -> dict[str, str]:
        """The linears and embeddings that cannot be compressed, by path, each with the reason as a clause."""
        return find_excluded(self.model, self.anatomy)

    def coverage(self, targets: Sequence[str] = DEFAULT_TARGETS, sites: Sequence[Site] | None = None) -> Coverage:
        """Measure which part of the parameters that `targets` match inside the blocks can be compressed.

        Args:
            targets: as for `sites`.
            sites: the result of `sites` for these targets; None finds them.

        Raises:
            UserError: as `sites`.
        """
        return measure_coverage(self.model, self.anatomy, targets, self.sites(targets) if sites is None else sites)

    def replace(self, site: Site, format: Format, bias: torch.Tensor | None = None) -> None:
        """Replace the module of a site by a format, in place.

        A tied matrix is untied from every module that is not a place or a table of the site.

        Args:
            site: the site.
            format: the format, of the same shape (out, in).
            bias: a new bias (out,); None keeps the present one.
        """
        assert site.stack is None, "the experts of a stack are replaced together"
        if site.is_lookup:
            format = format.to_embedding(site.padding_idx)
        else:
            format.set_bias(site.bias() if bias is None else bias)
        # Rounding through the stored dtype makes the model in memory equal to the reloaded one.
        format = format.to(self.dtype).to(site.weight().dtype).to(self.device)
        format.train(self.model.training).requires_grad_(site.parameter.requires_grad)
        untie(self.model, set(site.replaced_names))
        for name in site.names:
            self.model.set_submodule(name, format)
        tie(self.model, site.names[0], list(site.names[1:]))
        put_tables(self.model, site, format)

    def replace_stack(self, path: str, stack: ExpertStack, bias: torch.Tensor | None = None) -> None:
        """Replace the matrices of all experts of a layer by a stack, in place.

        Args:
            path: the path of their present stack, as `Site.unit`.
            stack: the new stack, of the same number and shape (out, in).
            bias: new biases (experts, out); None keeps the present ones.
        """
        parent, _, name = path.rpartition(".")
        owner = self.model.get_submodule(parent)
        if not isinstance(owner, (ExpertLayer, ExpertStack)):
            owner = ExpertLayer(owner)
            self.model.set_submodule(parent, owner)
        present = owner.get_submodule(name)
        assert isinstance(present, ExpertStack)
        stack.set_bias(present.bias if bias is None else bias)
        # Codes have no gradient, so a stack of codes stays frozen.
        is_trained = any(parameter.requires_grad for parameter in present.parameters())
        stack = stack.to(self.dtype).to(present.slice(0).weight.dtype).to(self.device)
        stack.train(self.model.training).requires_grad_(is_trained)
        owner.add_module(name, stack)

    def modules_of(self, site: Site) -> dict[str, torch.nn.Module]:
        """The modules that replacing a site replaces, by path; putting them back undoes it."""
        # The matrices of experts are parameters of one module until the first of them is replaced.
        if site.stack is None:
            return {name: self.model.get_submodule(name) for name in site.replaced_names}
        path = site.unit if has_module(self.model, site.unit) else site.unit.rpartition(".")[0]
        return {path: self.model.get_submodule(path)}

    def stored_nbytes(self, sites: Sequence[Site]) -> dict[str, int]:
        """Bytes on disk of the matrices now, by `Site.unit`: those of the experts of one stack together.

        A matrix that several sites share counts once, at the first of them. It counts 0 where a module outside `sites`
        shares it, as replacing it frees nothing.
        """
        names = {name for site in sites for name in site.replaced_names}
        counted, nbytes = set[Hashable](), dict[str, int]()
        for site in sites:
            if site.stack is not None:
                nbytes[site.unit] = site.stack.nbytes_in(self.dtype)
                continue
            is_free = site.storage in counted or not self._tied_modules(site) <= names
            counted.add(site.storage)
            nbytes[site.name] = 0 if is_free else self.site_nbytes(site)
        return nbytes

    def site_nbytes(self, site: Site) -> int:
        """Bytes on disk of the matrix of one site, whether it is shared or not."""
        if self.file_sizes is not None and site.name in self.file_sizes.matrices:
            return self.file_sizes.matrices[site.name]
        if not isinstance(site.module, Format):
            return site.shape[0] * site.shape[1] * self.dtype.itemsize
        return site.module.nbytes_in(self.dtype)

    def sites_to_untie(self, sites: Sequence[Site]) -> list[str]:
        """Names of the sites whose matrix is tied to a module that is not replaced with them."""
        alone = [site for site in sites if site.stack is None]
        return [site.name for site in alone if not self._tied_modules(site) <= {*site.replaced_names}]

    def _tied_modules(self, site: Site) -> set[str]:
        return tied_modules(self.model, site.name, site.matrix_parameter)

    def size(self) -> tuple[int, int]:
        """The number of parameters and their bytes on disk, each tensor once, with the sentence-transformers modules.

        Zeros of a pruned matrix do not count as parameters, but its mask counts for the bytes.
        """
        parameters, nbytes = module_size(self.model, self.dtype)
        extra = (0, 0) if self.pipeline is None else self.pipeline.size
        own = nbytes if self.file_sizes is None else self.file_sizes.total
        return parameters + extra[0], own + extra[1]

    def shallow_copy(self) -> "LanguageModel":
        """A copy with its own modules and configuration on the same tensors: replacing a module changes only one."""
        tensors = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return replace(self, model=copy.deepcopy(self.model, tensors))

    def copy(self) -> "LanguageModel":
        """A copy with its own tensors, apart from those on disk."""
        on_disk = {} if self.loans is None else self.loans.stored.placeholders
        return replace(self, model=copy.deepcopy(self.model, on_disk))

    def to_meta(self) -> "LanguageModel":
        """A copy on the meta device, without weights, to try a step on."""
        tensors = {id(tensor): to_placeholder(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())}
        return replace(self, model=copy.deepcopy(self.model, tensors), loans=None)

    def with_label_order(self, names: Sequence[str | int] | None) -> "LanguageModel":
        """The same model with these names of its classes, in the order of its outputs; unchanged for None."""
        # YAML reads `no` and `yes` as False and True.
        return self if names is None else replace(self, label_order=tuple(str(name) for name in names))

    def with_dtype(self, dtype: torch.dtype) -> "LanguageModel":
        """The same model, to be stored in `dtype`."""
        return replace(self, dtype=dtype)
