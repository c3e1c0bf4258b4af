"""Text that users have named, in Markdown that laconic writes: it is shown as it is, and neither markup nor HTML."""

import re

MARKUP = re.compile(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])")
"""What GitHub's dialect reads as more than a character; an underscore within a word is none of it."""
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: str) -> str:
    """`text` on one line, for a heading, a paragraph or a cell of a table.

    >>> plain("a|b <i>_c_</i> snake_case")
    'a\\\\|b &lt;i&gt;\\\\_c\\\\_&lt;/i&gt; snake_case'
    """
    escaped = MARKUP.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
    return re.sub("[&<>]", lambda found: ENTITIES[found[0]], escaped)


def code(text: str, *, in_table: bool = False) -> str:
    """`text` on one line as a span of code; in a cell of a table, whose bars count there too, with `in_table`.

    >>> code("a`b")
    '``a`b``'
    """
    line = " ".join(text.split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    # One blank on each side is no part of the span.
    inside = f" {line} " if line.startswith("`") or line.endswith("`") else line
    return f"{fence}{inside.replace('|', chr(92) + '|') if in_table else inside}{fence}"
