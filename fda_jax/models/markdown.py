"""Tables for people: on a terminal, and on a page."""

from collections.abc import Collection, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int]) -> str:
    """A Markdown table whose columns line up in a terminal, too.

    Args:
      header: names of the columns.
      rows: cells.
      numbers: positions of columns that are set flush right.

    Returns:
      The lines of the table.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    # The rule of a column needs a dash beside its colon.
    widths = [max(2, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = [
        [cell.rjust(w) if i in numbers else cell.ljust(w) for i, (cell, w) in enumerate(pairs)]
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    rule = ["-" * (w - 1) + (":" if i in numbers else "-") for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
