"""laconic makes a transformer language model smaller and faster, and says what that cost.

Importing it teaches transformers to load what laconic saved: `from_pretrained` then works on those folders too.
"""

from laconic.interrupted import ending_quietly

with ending_quietly():
    from laconic.errors import UserError
    from laconic.recipe import compress
    from laconic.store import materialize, register

    register()

__all__ = ["UserError", "compress", "materialize"]
