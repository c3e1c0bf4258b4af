"""What a model is measured under: which batches, of which lengths, run by what."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from laconic.errors import must_be
from laconic.runtime import EAGER, check_runtime
from laconic.typed import Typed

BATCHES = (1, 8)
LENGTHS = (128,)

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Conditions(metaclass=Typed):
    """Every `batch` with every `length` is timed; those beyond what a model can read are cut to that.

    runtime: quality is judged through it too.

    Raises:
        UserError: there is no such runtime, or its libraries are missing.
    """

    name: ClassVar[str] = "conditions"

    batch: tuple[Count, ...] = BATCHES
    length: tuple[Count, ...] = LENGTHS
    runtime: str = EAGER

    def __post_init__(self) -> None:
        for name, counts in {"batch": self.batch, "length": self.length}.items():
            if not counts:
                raise must_be(name, "a list of at least one whole number", [])
        check_runtime(self.runtime)

    @classmethod
    def of(cls, cost: "bool | Conditions") -> "Conditions":
        """Those that `cost` says; the usual ones where it only says whether."""
        return cls() if isinstance(cost, bool) else cost
