"""Plain help with the options of a command under headings."""

from typing import Any

from typer.core import TyperCommand


class Sectioned(TyperCommand):
    """A command whose help lists its options under their panels' names, those without one last."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, in the order of the command, under the names of their panels."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for name in sorted(panels, key=lambda panel: panel == "Options"):
            with formatter.section(name):
                formatter.write_dl(panels[name])
