"""Groups of layers that are solved with one method and size, and the division of a plan among them.

Layers can be solved together if they read the same input and have the same shape: query, key and value of an attention
(key and value only, if there are more query heads), or gate and up projection. At rank r, a shared input factor takes
r (in + Σ out) numbers; separate factors take r Σ (in + out). At equal size the shared factor has a higher rank (by half
for three square matrices).

The matrices of all experts of a layer that are stored in one stack are a group too. Each of them is solved by itself,
with the same method and size.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from laconic.allocate import Plan, group_name, site_names
from laconic.errors import UserError, add_place, unknown
from laconic.methods import Method
from laconic.model import LanguageModel, Site
from laconic.model.tables import join_tables
from laconic.model.targets import Coverage, excluded_error


@dataclass(frozen=True)
class SolveGroup:
    """Layers with one method and size: one layer, several that are solved as one matrix, or a stack of experts.

    Args:
        sites: the layers, in forward order.
        stack: the path of the stack that the layers are; None if they are solved as one matrix.
    """

    sites: tuple[Site, ...]
    stack: str | None = None

    @property
    def name(self) -> str:
        """The name in a plan, such as `h.0.attn.{q,k}`, or the path of the stack."""
        return group_name([site.name for site in self.sites]) if self.stack is None else self.stack

    @property
    def matrices(self) -> tuple["SolveGroup", ...]:
        """The matrices that are solved by themselves: this group, or each expert of the stack."""
        return (self,) if self.stack is None else tuple(SolveGroup((site,)) for site in self.sites)

    @property
    def count(self) -> int:
        """The number of matrices that are solved by themselves."""
        return 1 if self.stack is None else len(self.sites)

    @property
    def shape(self) -> tuple[int, int]:
        """(Σ out, in) of one matrix."""
        return sum(self.rows), self.sites[0].shape[1]

    @property
    def numel(self) -> int:
        """The number of weights of all matrices, pruned ones included."""
        return self.count * self.shape[0] * self.shape[1]

    @property
    def rows(self) -> tuple[int, ...]:
        """The number of outputs of each layer that is solved as a part of one matrix."""
        return tuple(site.shape[0] for site in (self.sites if self.stack is None else self.sites[:1]))


@dataclass(frozen=True)
class LayerSet:
    """Layers that may be solved together, with the ways to divide them into groups.

    Args:
        alternatives: each layer as a group of its own, and then, if possible, all of them as one group. With a given
            plan there is only one alternative.
    """

    alternatives: tuple[tuple[SolveGroup, ...], ...]

    @property
    def separate(self) -> tuple[SolveGroup, ...]:
        """The first alternative."""
        return self.alternatives[0]

    @property
    def joint(self) -> tuple[SolveGroup, ...]:
        """The last alternative."""
        return self.alternatives[-1]

    @property
    def sites(self) -> list[Site]:
        """All layers of the set, in forward order."""
        return [site for group in self.separate for site in group.sites]


def all_groups(layer_sets: Sequence[LayerSet]) -> list[SolveGroup]:
    """Return the groups of all alternatives of all sets."""
    return [group for layer_set in layer_sets for alternative in layer_set.alternatives for group in alternative]


def find_layer_sets(sites: Sequence[Site], share_inputs: bool) -> list[LayerSet]:
    """Divide the targeted layers into sets, in forward order.

    Args:
        sites: the targeted layers.
        share_inputs: put layers with the same block, input and shape into one set; otherwise each layer is a set of its
            own. The experts of a stack are always one set.
    """
    sets: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        is_single = not share_inputs or site.is_lookup or site.block is None or site.stack is not None
        key = (site.unit,) if is_single else (site.block, site.input, site.shape)
        sets.setdefault(key, []).append(site)
    layer_sets = []
    for members in sets.values():
        if members[0].stack is not None:
            layer_sets.append(LayerSet(((SolveGroup(tuple(members), members[0].unit),),)))
            continue
        separate = tuple(SolveGroup((site,)) for site in members)
        joint = (SolveGroup(tuple(members)),)
        layer_sets.append(LayerSet((separate,) if len(members) == 1 else (separate, joint)))
    return layer_sets


@dataclass(frozen=True)
class TargetedLayers:
    """The targeted layers of a model in its present state.

    Args:
        sites: the layers.
        layer_sets: the same layers, divided into groups that are solved as one matrix.
        coverage: how many of the parameters in the blocks can be compressed.
    """

    sites: list[Site]
    layer_sets: list[LayerSet]
    coverage: Coverage


def find_targeted(
    lm: LanguageModel, targets: Sequence[str], share_inputs: bool, plan: Plan | None, stores_rows: bool = False
) -> TargetedLayers:
    """List the targeted layers of a model, or those that a plan names.

    Args:
        lm: the model; its weights need not be loaded.
        targets: the targets of a step, which a plan replaces.
        share_inputs: layers that read the same input may be solved together.
        plan: the method of each group, by name.
        stores_rows: without a plan, whether the method stores single rows, so that a word embedding which is tied to a
            targeted head stays tied to it.

    Raises:
        UserError: a target or a line of the plan matches no layer, or the plan names a layer that cannot be compressed.
    """
    if plan is None:
        try:
            sites = lm.sites(targets)
            sites = join_tables(sites, lm.sites(("*",))) if stores_rows else sites
            _check_whole_stacks(sites)
        except UserError as error:
            raise add_place(error, "targets") from error
        return TargetedLayers(sites, find_layer_sets(sites, share_inputs), lm.coverage(targets, sites))
    all_sites = _joined_by_plan(lm.sites(("*",)), plan)
    by_unit: dict[str, list[Site]] = {}
    for site in all_sites:
        by_unit.setdefault(site.unit, []).append(site)
    names = [name for line in plan for name in site_names(line)]
    excluded = lm.excluded_matrices()
    for name in names:
        if name in excluded:
            raise excluded_error(name, excluded[name])
        if name not in by_unit:
            nearest = get_close_matches(name, list(by_unit), n=3, cutoff=0) or list(by_unit)[:3]
            raise unknown("site of this model", name, nearest)
    coverage = lm.coverage(("blocks",), [site for site in all_sites if site.block is not None])
    sites = [site for name in names for site in by_unit[name]]
    return TargetedLayers(sites, _layer_sets_in_plan(plan, by_unit), coverage)


def _joined_by_plan(all_sites: Sequence[Site], plan: Plan) -> list[Site]:
    """All sites; a head whose method stores rows comes with its word embeddings, unless these have their own lines."""
    by_rows = {line for line, method in plan.items() if method is not None and method.stores_rows}
    others = [site for site in all_sites if not (site.is_lookup and site.name in plan)]
    joined = {site.name: site for site in join_tables([site for site in others if site.name in by_rows], others)}
    return [joined.get(site.name, site) for site in all_sites]


def _check_whole_stacks(sites: Sequence[Site]) -> None:
    """Raise UserError if only some experts of a stack are targeted: all of them have one method and size."""
    counts = Counter(site.unit for site in sites)
    for site in sites:
        if site.stack is not None and counts[site.unit] < site.stack.experts:
            raise UserError(
                f"The targets name {counts[site.unit]} of the {site.stack.experts} matrices of '{site.unit}', which "
                f"have one method and size; name all of them, as '{site.unit}'."
            )


def _layer_sets_in_plan(plan: Plan, by_unit: Mapping[str, Sequence[Site]]) -> list[LayerSet]:
    """The groups that the lines of a plan name, each as a set without alternatives.

    Args:
        plan: the plan.
        by_unit: the layers by their name in plans: one, or the experts of a stack.
    """
    seen: set[str] = set()
    layer_sets = []
    for line, method in plan.items():
        names = site_names(line)
        members = tuple(site for name in names for site in by_unit[name])
        if repeated := seen & set(names):
            raise UserError(f"The plan names '{sorted(repeated)[0]}' in two lines; keep one of them.")
        seen |= set(names)
        if len(names) > 1:
            _check_together(line, members, method)
        stack = None if members[0].stack is None else members[0].unit
        layer_sets.append(LayerSet(((SolveGroup(members, stack),),)))
    return layer_sets


def _check_together(line: str, sites: Sequence[Site], method: Method | None) -> None:
    is_apart = any(site.is_lookup or site.stack is not None for site in sites)
    if len({(site.block, site.input, site.shape) for site in sites}) > 1 or is_apart:
        raise UserError(f"The plan's line '{line}' must name matrices of one shape that read one input; split it.")
    if method is not None and not method.shares_inputs:
        raise UserError(f"The plan's line '{line}' names several matrices, but '{method.name}' makes no input factor.")


def sets_by_parameter(layer_sets: Sequence[LayerSet]) -> list[list[LayerSet]]:
    """Collect the sets whose layers share one parameter, such as a head that is tied to the embedding.

    A shared parameter is stored once until one of its layers gets a new matrix. A budget in bytes counts the stored
    bytes before compression, so the layers that share a parameter also share its bytes.
    """
    by_parameter: dict[object, list[LayerSet]] = {}
    for layer_set in layer_sets:
        sites = layer_set.sites
        key = sites[0].storage if len(sites) == 1 else sites[0].unit
        by_parameter.setdefault(key, []).append(layer_set)
    return list(by_parameter.values())


def stored_fractions(layer_sets: Sequence[LayerSet]) -> dict[str, float]:
    """Return 1/n by group name for every group that shares its parameter with n − 1 others; the rest is missing."""
    tied = (members for members in sets_by_parameter(layer_sets) if len(members) > 1)
    return {group.name: 1 / len(members) for members in tied for member in members for group in member.separate}


def planned_groups(plan: Plan, layer_sets: Sequence[LayerSet]) -> list[SolveGroup]:
    """Return the groups that have a line in the plan, in forward order."""
    return [group for group in all_groups(layer_sets) if group.name in plan]


def methods_by_group(
    layer_sets: Sequence[LayerSet], method: Method, plan: Plan | None
) -> Iterator[tuple[SolveGroup, Method]]:
    """Yield pairs of a group and its method in the plan, or `method` if it has none; dense groups are left out."""
    for group in all_groups(layer_sets):
        chosen = method if plan is None else plan.get(group.name, method)
        if chosen is not None:
            yield group, chosen


def part_of(group: SolveGroup) -> str:
    """Return the path of the block that a group is in, or that of its first layer if it is outside all blocks."""
    return group.sites[0].block or group.sites[0].name
