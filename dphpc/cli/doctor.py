"""dphpc doctor."""

from __future__ import annotations

from dphpc.cli.app import command


@command("doctor", parallel=True)
def doctor() -> None:
    """What this machine offers, what is missing, and how to get it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dphpc.cli.machine import report
    from dphpc.parallel.launch import launched

    sections = report()  # on every rank: counting ranks is collective
    if launched().rank != 0:
        return
    marks = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("·", "dim")}
    # Lines are folded on a terminal only, so that a file or a pipe can be searched.
    console = Console(width=None if Console().is_terminal else 300)
    for title, findings in sections.items():
        table = Table(
            title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False
        )
        for finding in findings:
            mark, style = marks[finding.present]
            value = Text(finding.value)
            if finding.remedy and finding.present is not True:
                value.append(f"\nget it: {finding.remedy}", style="yellow")
            table.add_row(Text(mark, style=style), Text(finding.name, style="bold"), value)
        console.print(table)
        console.print()
