"""A click command whose help lists options under headings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import click


class SectionedCommand(click.Command):
    """A command with many options.

    Args:
        sections: heading by heading the dataclass whose fields are the names of its options; other options come
            last, under "Other options".
    """

    def __init__(self, *args: Any, sections: Mapping[str, type[Any]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headings = {field.name: heading for heading, kind in sections.items() for field in fields(kind)}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options for each heading, in the order in which headings were given."""
        lists: dict[str, list[tuple[str, str]]] = {heading: [] for heading in self._headings.values()}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record is not None:
                lists.setdefault(self._headings.get(parameter.name or "", "Other options"), []).append(record)
        for heading, records in lists.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
