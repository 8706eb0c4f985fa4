"""Tables for people."""


def table(rows: list[dict[str, str]], words: int) -> str:
    """Rows of cells by column, in markdown; the first so many columns are words, the others numbers."""
    rows = [{key: value.replace("|", r"\|") for key, value in row.items()} for row in rows]
    align = ["---"] * words + ["---:"] * (len(rows[0]) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], align, *(row.values() for row in rows)))
