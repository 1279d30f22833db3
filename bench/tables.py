"""Tables of the benchmarks, as docs keep them."""


def markdown(lines: list[list[str]]) -> str:
    """Lay out a table in Markdown, its head first."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "| " + " | ".join(["---"] * len(lines[0])) + " |", *rest])
