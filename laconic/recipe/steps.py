"""The registry of steps by name: the steps of laconic itself, in the order of listings, and those of plug-ins."""

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
"""The class of every step, by its name in recipes."""


def find_method_or_step(name: str) -> type[Method] | type[Step] | None:
    """The class of the method or step with this name; None if there is none.

    Raises:
        UserError: a plug-in provides this name and cannot be used.

    Example:
        >>> find_method_or_step("narrow").__name__, find_method_or_step("svd").__name__
        ('Narrow', 'Svd')
    """
    return STEP_REGISTRY.find(name) or METHOD_REGISTRY.find(name)


def method_or_step_names() -> list[str]:
    """The names of all methods, then of all steps."""
    return [*METHOD_REGISTRY.names(), *STEP_REGISTRY.names()]
