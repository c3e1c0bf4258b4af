"""Word embeddings that are tied to a head, and stay tied where the head is replaced by a format that has rows.

The rows of a head are tokens, as those of a word embedding are. A format that decodes single rows can therefore be
both: one module, with the word embedding as a view of it.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from laconic.formats import Format, PackedEmbedding
from laconic.model.enumeration import tie, untie
from laconic.model.site import Group, Site


def join_tables(sites: Sequence[Site], all_sites: Sequence[Site]) -> list[Site]:
    """Join each head with the word embeddings that are tied to it, so that both are replaced by one matrix.

    Args:
        sites: the targeted sites.
        all_sites: all sites of the model.

    Returns:
        The targeted sites without the word embeddings that belong to a targeted head. A word embedding that scales its
        rows is not the matrix of its head, and is left as it is.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from laconic.model import LanguageModel
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
        >>> config = LlamaConfig(**sizes, vocab_size=16, tie_word_embeddings=True)
        >>> lm = LanguageModel.of(LlamaForCausalLM(config))
        >>> (head,) = join_tables(lm.sites(("head", "embedding")), lm.sites(("*",)))
        >>> head.name, head.replaced_names
        ('lm_head', ('lm_head', 'model.embed_tokens'))
    """
    tables = {site.storage: site for site in all_sites if site.is_lookup and _is_plain(site)}
    heads = {site.storage for site in sites if site.group is Group.HEAD and site.storage in tables}
    return [
        replace(site, tables=tables[site.storage].places)
        if site.group is Group.HEAD and site.storage in heads
        else site
        for site in sites
        if site.storage not in heads or not site.is_lookup
    ]


def put_tables(model: PreTrainedModel, site: Site, format: Format) -> None:
    """Replace the tables of a site by views of the format that replaced its places.

    Args:
        model: the model, changed in place.
        site: the site.
        format: what stands at its places now.
    """
    if not site.tables:
        return
    module = site.tables[0].module
    view = format.to_embedding(module.padding_idx if isinstance(module, nn.Embedding) else None)
    for table in site.tables:
        model.set_submodule(table.name, view)
    # The first path of a shared module is the one under which it is saved.
    inside = [f"{table.name}.{name}" for table in site.tables for name, part in view.named_modules() if part is format]
    untie(model, {*site.names, *inside})
    order = {name: index for index, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    first, *others = sorted((*site.names, *inside), key=order.__getitem__)
    tie(model, first, others)


def has_tied_head(model: PreTrainedModel) -> bool:
    """Whether the head of a model and its word embeddings are one matrix.

    Args:
        model: a model, with or without a head, and with or without weights.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        return False
    if isinstance(embedding, PackedEmbedding):
        return embedding.coded is head
    return head is embedding or head.weight is embedding.weight


def _is_plain(site: Site) -> bool:
    return all(type(place.module) is nn.Embedding for place in site.places)
