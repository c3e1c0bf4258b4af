"""A verb that refuses an option which is given twice: of two values the parser alone would take the last in silence."""

from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperOption

GIVEN = "laconic.given"


def asked(context: Any, name: str) -> Any:
    """The value of an option as it was given, for what runs before the options are read."""
    return context.meta[GIVEN].get(name)


class Once(TyperCommand):
    """Options that take a value and are no list may be given once; a flag may be repeated, which says nothing new."""

    # Its own Context is one that typer keeps to itself.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[GIVEN] = given
        for option, times in Counter(option for option in order if isinstance(option, TyperOption)).items():
            if times > 1 and not (option.multiple or option.is_flag):
                ctx.fail(f"The option '{option.opts[0]}' is given {times} times; give it once.")
        return super().parse_args(ctx, args)
