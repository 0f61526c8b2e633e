"""The files of a command: types that say which are read and which are written, and the check of all outputs before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from entropy_chains.files import check_outputs
from entropy_chains.offline.traces import check_appendable


class InputFile(click.Path):
    """The type of a file that a command reads."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)  # whether it can be used is found with a better message
        self.name = "file"


class OutputFile(InputFile):
    """The type of a file that a command writes, in the place of a former one."""


class AppendedTraces(InputFile):
    """The type of a trace file that a command only ever adds to."""


class Command(click.Command):
    """Looks at all output files before anything is read or spent."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        appended = self._files(ctx, AppendedTraces)
        check_outputs(self._files(ctx, OutputFile), self._files(ctx, InputFile), appended=appended)
        for path in appended:
            check_appendable(path)
        return super().invoke(ctx)

    def _files(self, ctx: click.Context, kind: type[InputFile]) -> list[Path]:
        """What the user named for the parameters of exactly this type."""
        named = [ctx.params[p.name] for p in self.params if type(p.type) is kind and p.name]
        return [path for value in named for path in (value if isinstance(value, tuple) else (value,)) if path]
