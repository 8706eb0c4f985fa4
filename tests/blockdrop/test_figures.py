"""Figures show the numbers they are given."""

import pytest
from matplotlib.patches import Rectangle

from blockdrop.figures import usage_per_block


def test_bars_are_as_high_as_the_usage() -> None:
    (axes,) = usage_per_block([1.0, 0.5, 0.0, 0.25], [1, 3]).axes
    heights = [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert heights == pytest.approx([100, 50, 0, 25])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["stage 1", "stage 2"]
