"""Figures show the numbers they are given."""

import io
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from blockdrop import figures
from blockdrop.errors import BlockdropError
from blockdrop.evaluation import ClassStatistics, FrequentPolicy
from blockdrop.policy_curves import Curve, CurvePoint

IMAGES = torch.arange(6, dtype=torch.uint8).mul(40).view(6, 1, 1, 1).expand(6, 3, 4, 4)


def save(figure: Figure) -> None:
    """Drawing finds what layout can't do."""
    figure.savefig(io.BytesIO(), format="svg")


def bars(axes: Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]


def shown(figure: Figure) -> list[int]:
    """Brightness of the images, in order."""
    return [int(axes.images[0].get_array()[0, 0, 0]) // 40 for axes in figure.get_axes() if axes.images]  # type: ignore[index]


def test_bars_are_as_high_as_the_usage() -> None:
    figure = figures.usage_per_block([1.0, 0.5, 0.0, 0.25], [1, 3])
    (axes,) = figure.axes
    assert bars(axes) == pytest.approx([100, 50, 0, 25])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["stage 1", "stage 2"]
    assert [line.get_xdata()[0] for line in axes.lines] == [0.5], "the border of the two stages"  # type: ignore[index]
    save(figure)


def test_the_heat_map_has_a_row_per_class_by_blocks_used() -> None:
    parts = [
        ClassStatistics("cat", 5, 0.9, 2.0, [1, 1, 0]),
        ClassStatistics("a $x$ \x0b\udce9 dog", 5, 0.9, 1.5, [1, 0.5, 0]),
    ]
    figure = figures.usage_per_class(parts, [2, 1])
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[100, 50, 0], [100, 100, 0]]  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.get_yticklabels()] == [r"a \$x\$ ?? dog  1.5", "cat  2.0"]
    save(figure)


def test_of_many_classes_those_with_the_fewest_and_the_most_blocks_are_shown() -> None:
    parts = [ClassStatistics(f"class {i}", 5, 0.9, float(i), [1.0]) for i in range(100)]
    axes = figures.usage_per_class(parts, [1]).axes[0]
    names = [text.get_text().split()[1] for text in axes.get_yticklabels()]
    assert names == [str(i) for i in (*range(20), *range(80, 100))]
    assert "of 100" in axes.get_ylabel()


def test_the_histogram_stacks_wrong_predictions_on_right_ones() -> None:
    figure = figures.blocks_histogram(torch.tensor([1, 1, 1, 3]), torch.tensor([True, True, False, False]), 3)
    (axes,) = figure.axes
    assert bars(axes) == [0, 50, 0, 0, 0, 25, 0, 25]
    assert [bar.get_y() for bar in axes.patches[4:]] == [0, 50, 0, 0]
    assert axes.lines[0].get_xdata()[0] == 1.5  # type: ignore[index]
    save(figure)


def test_extremes_are_those_with_the_fewest_and_the_most_blocks_of_their_class() -> None:
    policy = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 1], [1, 1], [0, 0]]).bool()
    keep_probs = policy * 0.5 + torch.tensor([0.4, 0.2, 0.1, 0.2, 0.3, 0.1])[:, None]
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    figure = figures.extremes(IMAGES, labels, policy, keep_probs, ["cat", "dog"], columns=2)
    assert shown(figure) == [1, 2, 0, 2, 5, 3, 4, 3]
    titles = [axes.get_title() for axes in figure.get_axes()]
    first_row = ["0", "fewest blocks\n1", "", "2", "most blocks\n1"]
    assert titles == [*first_row, "0", "1", "", "2", "1"], "the middle is a gap"
    assert [axes.get_ylabel() for axes in figure.get_axes()][0::5] == ["cat", "dog"]
    figure.draw_without_rendering()
    assert len({round(axes.get_position().width, 6) for axes in figure.get_axes() if axes.images}) == 1
    save(figure)


def test_a_class_with_few_images_leaves_places_empty() -> None:
    policy = torch.ones(1, 2, dtype=torch.bool)
    figure = figures.extremes(IMAGES[:1], torch.tensor([4]), policy, policy.float(), list("abcde"), columns=3)
    assert shown(figure) == [0, 0]
    save(figure)


def test_frequent_policies_come_with_images_that_have_them() -> None:
    policy = torch.tensor([[1, 1], [0, 1], [1, 1], [0, 1], [1, 1], [1, 1]]).bool()
    frequent = [FrequentPolicy("11", 4, 4 / 6, 0.75), FrequentPolicy("01", 2, 2 / 6, 1.0)]
    figure = figures.frequent_policies(frequent, policy, IMAGES, [1, 1], columns=3)
    assert shown(figure) == [0, 4, 5, 1, 3]
    strips = [axes for axes in figure.get_axes() if axes.patches]
    filled = [[bar.get_facecolor() != (1, 1, 1, 1) for bar in axes.patches] for axes in strips]
    assert filled == [[True, True], [False, True]]
    assert strips[0].get_title(loc="left") == "66.7% of the images, 2 blocks, 75.0% of them right"
    save(figure)


def test_curves_are_drawn_in_megaflops_and_per_cent() -> None:
    points = (CurvePoint(1e6, 0.5, "threshold 0.9"), CurvePoint(3e6, 0.9, "threshold 0.1"))
    figure = figures.accuracy_against_flops(
        [Curve("dynamic", points), Curve("full network", points[1:])], 2_000_000
    )
    axes = figure.axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 50], [3, 90]]  # type: ignore[union-attr]
    save(figure)
    (share,) = axes.child_axes
    assert share.get_xlim() == pytest.approx([50 * limit for limit in axes.get_xlim()])


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_figure_is_written_whole_and_always_the_same(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"chart.{ending}"
    for _ in range(2):
        figures.write_figure("--figure", path, figures.usage_per_block([1.0, 0.5], [2]))
        before = path.read_bytes()
    figures.write_figure("--figure", path, figures.usage_per_block([1.0, 0.5], [2]))
    assert path.read_bytes() == before
    with pytest.raises(BlockdropError, match=r"--figure .*not writable"):
        figures.write_figure("--figure", tmp_path / "gone" / path.name, figures.usage_per_block([1.0], [1]))
    with pytest.raises(BlockdropError, match="exists; pass --overwrite"):
        figures.check_figure("--figure", path, overwrite=False)
    with pytest.raises(BlockdropError, match=r"must end in \.png, \.svg or \.pdf"):
        figures.check_figure("--figure", tmp_path / "chart.gif", overwrite=False)
