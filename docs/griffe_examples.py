"""For griffe, which reads the sources for the reference pages: `Example:` is the section that it calls `Examples:`.

It takes the singular for an admonition, in which markdown takes `>>>` for quotations.
"""

import re
from typing import Any

import griffe

__all__ = ["Examples"]


class Examples(griffe.Extension):
    """Names the section as griffe knows it, before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
