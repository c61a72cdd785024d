"""Tables as text."""


def table(lines):
    """Cells in columns, the first aligned left, with a rule below the head.

    Args:
        lines: Lists of strings, all of one length; the first is the head.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)
