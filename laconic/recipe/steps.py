"""The steps by name: those of laconic in the order in which they are listed, and those of plug-ins."""

from functools import partial

from laconic.catalogue import catalogue
from laconic.compress import SHRINKING, Step
from laconic.methods import Method
from laconic.methods.registry import METHOD_REGISTRY
from laconic.recover import RECOVERING
from laconic.registry import Registry, check_named_class

STEPS: tuple[type[Step], ...] = (*SHRINKING, *RECOVERING)
STEP_REGISTRY: Registry[type[Step]] = Registry(
    "laconic.steps",
    "step",
    {step.name: step for step in STEPS},
    check=partial(check_named_class, Step),
    reserved=catalogue,
)
"""Every class of a step, by the name that recipes give it."""


def find_method_or_step(name: str) -> type[Method] | type[Step] | None:
    """The class of the method or step that `--method` calls by this name; None where there is none.

    Raises:
        UserError: a plug-in has this name and cannot be used.

    Example:
        >>> find_method_or_step("narrow").__name__, find_method_or_step("svd").__name__
        ('Narrow', 'Svd')
    """
    return STEP_REGISTRY.find(name) or METHOD_REGISTRY.find(name)


def method_or_step_names() -> list[str]:
    """The names of all methods, then of all steps."""
    return [*METHOD_REGISTRY.names(), *STEP_REGISTRY.names()]
