"""All that a command prints goes through here: one place that keeps control characters from terminals, whatever said them.

What a character is to a terminal stands in :func:`entropy_chains.errors.one_line`. Standard output and error take every text after
:func:`print_anything`: a character that their encoding lacks is written in others.
"""

from __future__ import annotations

import codecs
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from entropy_chains.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

IN_OTHERS = {"−": "-", "–": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "×": "x", "·": "*", "“": '"', "”": '"', "’": "'"}
"""Characters of our own texts in ASCII: a minus must not be lost. All others become ``?``."""


def echo(*lines: str, err: bool = False) -> None:
    """Print lines. Each stays one line, whatever it holds."""
    import click

    # Without a file click writes UTF-8 where the output is ASCII.
    click.echo("\n".join(map(one_line, lines)), file=sys.stderr if err else sys.stdout)


def echo_json(value: Any) -> None:
    """Print an object as JSON, which escapes all but one control character by itself."""
    import click

    click.echo(json.dumps(value, allow_nan=False).replace("\x7f", "\\u007f"))


def console(**settings: Any) -> Console:
    """A console of rich that texts cannot act on: strings are taken as they are, a line each, and only rich's own codes go out."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Clean(Console):
        def render_str(self, text: str, **settings: Any) -> Text:
            return super().render_str(one_line(text), **settings)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control or text.isprintable() else Segment("\n".join(map(one_line, text.split("\n"))), style)

    return Clean(**{"markup": False, "emoji": False, "highlight": False} | settings)


@contextmanager
def print_anything() -> Iterator[None]:
    """Within, texts that standard output and error cannot encode are printed, and warnings are lines of their own."""
    codecs.register_error("entropy-chains", _in_others)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="entropy-chains")
    former = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = former


def _in_others(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(IN_OTHERS.get(c, "?") for c in error.object[error.start : error.end]), error.end
