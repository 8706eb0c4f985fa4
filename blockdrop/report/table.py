"""`Report`: what Python's `train` and `evaluate` return, a network as it was brought beside what came of it."""

from __future__ import annotations

import dataclasses
import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blockdrop.errors import BlockdropError

if TYPE_CHECKING:
    from blockdrop.policy_stats import Outcomes

WIDTH = 99
"""Characters of a line."""
HEADS = ("", "accuracy", "FLOPs/image", "of full", "blocks", "policies", "images/s")
SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
MISSING = "–"


@dataclass(frozen=True)
class Row:
    """A network on the test images."""

    name: str
    """Such as "network as brought", "fine-tuned full network", "dynamic"."""
    accuracy: float
    """Share of right predictions, in [0, 1]."""
    flops: float
    """Mean per image, policy network included where one ran."""
    blocks: float
    """Mean blocks that ran per image."""
    policies: int
    """Number of distinct policies."""
    images_per_second: float | None = None
    """None: not measured."""

    @classmethod
    def of(cls, name: str, outcomes: Outcomes, images_per_second: float | None = None) -> Row:
        """From what a network did on the images."""
        flops, blocks = outcomes.flops_per_image[0], outcomes.block_usage[0]
        return cls(name, outcomes.accuracy, flops, blocks, outcomes.unique_policies, images_per_second)


@dataclass(frozen=True)
class Report:
    """What networks do on the same test images. Prints as a table; notebooks show it as one.

    Args:
        rows: the first is the network that the user brought: the others are compared with it.
        notes: warnings and what else is worth a line.
    Raises:
        ValueError: no rows.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a report without rows")

    @property
    def brought(self) -> Row:
        """The network that the user brought."""
        return self.rows[0]

    def __getitem__(self, name: str) -> Row:
        """The row of this name.

        Raises:
            KeyError: there is none; the message lists those that there are.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name}; choose {', '.join(row.name for row in self.rows)}")

    def flops_share(self, row: Row) -> float:
        """A row's FLOPs as a share of the brought network's."""
        return row.flops / self.brought.flops if self.brought.flops else math.nan

    def speed_up(self, row: Row) -> float | None:
        """A row's images per second as a multiple of the brought network's; None where one isn't measured."""
        own, brought = row.images_per_second, self.brought.images_per_second
        return own / brought if own is not None and brought else None

    def __str__(self) -> str:
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        name_width, *others = widths
        table = [
            "  ".join([cells[0].ljust(name_width), *map(str.rjust, cells[1:], others)]).rstrip() for cells in lines
        ]
        wrapped = (textwrap.wrap(sentence, WIDTH, subsequent_indent="  ") for sentence in self._sentences())
        return "\n".join([*table, *(line for lines in wrapped for line in lines)])

    def _repr_html_(self) -> str:
        """For notebooks, in their own colours, light or dark."""
        number = (
            "text-align: right; padding: 0.25em 0.75em; font-variant-numeric: tabular-nums; white-space: nowrap"
        )
        name = number.replace("right", "left", 1)

        def line(cells: Sequence[str], tag: str) -> str:
            rule = "; border-bottom: 1px solid currentColor" if tag == "th" else ""
            parts = [
                f'<{tag} style="{name if index == 0 else number}{rule}">{html.escape(cell)}</{tag}>'
                for index, cell in enumerate(cells)
            ]
            return f'<tr style="background: transparent; color: inherit">{"".join(parts)}</tr>'

        head, *rows = self._lines()
        body = "".join(line(cells, "td") for cells in rows)
        below = "".join(
            f'<div style="padding: 0.25em 0.75em">{html.escape(text)}</div>' for text in self._sentences()
        )
        table = "border-collapse: collapse; border: none; color: inherit; margin: 0.25em 0"
        return (
            '<div style="color: inherit; overflow-x: auto">'
            f'<table style="{table}"><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table>{below}</div>'
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json`; shares of the brought network's FLOPs and speed are added."""
        rows = [
            {**dataclasses.asdict(row), "flops_share": self.flops_share(row), "speed_up": self.speed_up(row)}
            for row in self.rows
        ]
        return {"rows": rows, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """What `to_json` made.

        Raises:
            BlockdropError: it is something else.
        """
        try:
            rows = [
                Row(
                    str(row["name"]),
                    float(row["accuracy"]),
                    float(row["flops"]),
                    float(row["blocks"]),
                    int(row["policies"]),
                    None if row["images_per_second"] is None else float(row["images_per_second"]),
                )
                for row in values["rows"]
            ]
            return cls(rows, [str(note) for note in values["notes"]])
        except (KeyError, TypeError, ValueError) as error:
            raise BlockdropError(f"no report: {type(error).__name__} {error}; give what to_json made") from None

    def _lines(self) -> list[tuple[str, ...]]:
        """Heads and rows, without the speeds if there are none."""
        lines = [HEADS, *map(self._cells, self.rows)]
        timed = any(row.images_per_second is not None for row in self.rows)
        return lines if timed else [cells[:-1] for cells in lines]

    def _cells(self, row: Row) -> tuple[str, ...]:
        speed = MISSING if row.images_per_second is None else _three_digits(row.images_per_second)
        return (
            row.name,
            f"{row.accuracy:.2%}",
            _scaled(row.flops),
            f"{self.flops_share(row):.1%}",
            f"{row.blocks:.2f}",
            f"{row.policies:,}",
            speed,
        )

    def _sentences(self) -> list[str]:
        comparison = self._comparison()
        return [*([comparison] if comparison else []), *(f"note: {note}" for note in self.notes)]

    def _comparison(self) -> str | None:
        """The last row beside the first, in a sentence."""
        if len(self.rows) < 2:
            return None
        row, brought = self.rows[-1], self.brought
        parts = [
            f"accuracy {100 * (row.accuracy - brought.accuracy):+.2f} points",
            f"{self.flops_share(row):.1%} of FLOPs",
        ]
        if (speed_up := self.speed_up(row)) is not None:
            parts.append(f"{speed_up:.2f} × images/s")
        return f"{row.name} against the {brought.name}: {', '.join(parts)}"


def _scaled(flops: float) -> str:
    """With a prefix, three or four digits.

    >>> _scaled(180_912_640)
    '180.9 M'
    """
    for scale, prefix in SCALES:
        if flops >= scale:
            return f"{flops / scale:.{1 if flops >= 100 * scale else 2}f} {prefix}"
    return f"{flops:.0f}"


def _three_digits(number: float) -> str:
    """At least three digits.

    >>> _three_digits(1234.5), _three_digits(2.3456)
    ('1,234', '2.35')
    """
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f}"
