"""Where the bytes of a model are: word embeddings, attention, feed-forwards, head, and everything else."""

from laconic.model import Group, LanguageModel

OTHER = "other"
"""Norms, biases, positions, and matrices that no target names."""
ORDER = (Group.EMBEDDING, Group.ATTENTION, Group.FFN, Group.HEAD)
"""A head that is tied to the embedding is counted there."""


def bytes_by_part(lm: LanguageModel) -> dict[str, int]:
    """Bytes of each part in the stored dtype; what several modules share counts once."""
    sites = sorted(lm.sites(("all",)), key=lambda site: ORDER.index(site.group))
    parts = dict.fromkeys((group.value for group in ORDER), 0)
    counted: set[int] = set()
    for site in sites:
        if id(site.parameter) not in counted:
            counted.add(id(site.parameter))
            parts[site.group.value] += lm.site_nbytes(site)
    return {**parts, OTHER: lm.size()[1] - sum(parts.values())}
