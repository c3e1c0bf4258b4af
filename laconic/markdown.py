"""Escape text for Markdown, so that names chosen by users are shown literally and not as markup or HTML."""

import re

MARKUP = re.compile(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])")
"""Characters with a meaning in GitHub's Markdown. An underscore inside a word has none."""
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: str) -> str:
    """`text` on one line with markup escaped, for a heading, a paragraph or a cell of a table.

    >>> plain("a|b <i>_c_</i> snake_case")
    'a\\\\|b &lt;i&gt;\\\\_c\\\\_&lt;/i&gt; snake_case'
    """
    escaped = MARKUP.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
    return re.sub("[&<>]", lambda found: ENTITIES[found[0]], escaped)


def code(text: str, *, in_table: bool = False) -> str:
    """`text` on one line as a code span. With `in_table`, bars are escaped for a cell of a table.

    >>> code("a`b")
    '``a`b``'
    """
    line = " ".join(text.split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    # Markdown removes one space on each side of the content.
    inside = f" {line} " if line.startswith("`") or line.endswith("`") else line
    return f"{fence}{inside.replace('|', chr(92) + '|') if in_table else inside}{fence}"
