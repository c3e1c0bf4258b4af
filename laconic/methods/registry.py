"""The methods by name: those of `laconic.methods`, and those of plug-ins."""

from functools import partial

from laconic.catalogue import catalogue
from laconic.methods import METHODS
from laconic.methods.base import Method
from laconic.registry import Registry, check_named_class

METHOD_REGISTRY: Registry[type[Method]] = Registry(
    "laconic.methods",
    "method",
    {method.name: method for method in METHODS},
    check=partial(check_named_class, Method),
    reserved=catalogue,
)
"""Every class of a method, by the name that recipes give it."""
