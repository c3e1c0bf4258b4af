"""Suggests the step that is most likely meant by a line of a recipe that is written in another form.

A method stands within the step `compress`, and parameters stand within what they are of; `{method: rtn, bits: 4}` and
`{rtn: {bits: 4}}` are both meant for `{compress: {method: {rtn: {bits: 4}}}}`.
"""

from dataclasses import fields
from typing import Any

from laconic.compress import Compress, Step
from laconic.errors import UserError, shown
from laconic.methods import METHODS, Method
from laconic.methods.notation import split_config
from laconic.recipe.steps import STEPS

NAMING = ("step", "method", "name", "type", "kind")
"""Keys whose value may be a name."""
_METHODS: dict[str, type[Method]] = {method.name: method for method in METHODS}
_STEPS: dict[str, type[Step]] = {step.name: step for step in STEPS}


def suggestion(line: object) -> str:
    """`, so {…}` with the step that `line` stands for; empty where there is none, or it is `line` itself."""
    parts = _Parts()
    parts.add(line)
    step = parts.step()
    return "" if step is None or step == line else f", so {shown(step)}"


class _Parts:
    """The names and parameters in a line, wherever they stand in it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.parameters: dict[str, Any] = {}

    def add(self, part: object) -> None:
        if isinstance(part, str):
            self._add_name(part)
        for key, value in part.items() if isinstance(part, dict) else ():
            is_name = key in _METHODS or key in _STEPS
            if is_name:
                self.names.append(key)
            if isinstance(value, (dict, str)) and (is_name or key in NAMING):
                self.add(value)
            elif not is_name:
                self.parameters[str(key)] = value

    def _add_name(self, spelled: str) -> None:
        try:
            name, parameters = split_config(spelled, "")
        except UserError:
            name, parameters = spelled, {}
        self.names.append(name)
        self.parameters |= parameters

    def step(self) -> dict[str, Any] | None:
        """The step of these parts; None where they are not those of one step, or of one method."""
        methods = [name for name in self.names if name in _METHODS]
        steps = [name for name in self.names if name not in _METHODS]
        if methods:
            return self._compression(methods[0]) if len(methods) == 1 and set(steps) <= {Compress.name} else None
        if len(steps) != 1 or steps[0] not in _STEPS or steps[0] == Compress.name:
            return None
        return {steps[0]: self.parameters} if self._are_of(steps[0]) else None

    def _are_of(self, step: str) -> bool:
        return self.parameters.keys() <= {field.name for field in fields(_STEPS[step])}

    def _compression(self, method: str) -> dict[str, Any] | None:
        own = {field.name for field in fields(_METHODS[method])}
        given = {name: value for name, value in self.parameters.items() if name in own}
        self.parameters = {name: value for name, value in self.parameters.items() if name not in own}
        if not self._are_of(Compress.name):
            return None
        return {Compress.name: {"method": {method: given} if given else method, **self.parameters}}
