"""The report of a network as it was brought beside the dynamic one: as text, in a notebook, as plain values."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from blockdrop.errors import BlockdropError
from blockdrop.policy_stats import Outcomes
from blockdrop.report.table import Report, Row

BROUGHT = Row("network as brought", 0.9321, 505_775_360, 54, 1, 1234.0)
DYNAMIC = Row("dynamic", 0.936, 180_912_640, 16.93, 4690, 2893.1)
REPORT = Report(
    [BROUGHT, Row("fine-tuned full network", 0.9375, 505_775_360, 54, 1), DYNAMIC], ["a <b>warning</b>"]
)


def test_a_row_holds_what_a_network_did_on_the_images() -> None:
    policy = torch.tensor([[True, True], [True, False], [True, False], [False, False]])
    outcomes = Outcomes(policy, torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 0]), torch.tensor([8, 4, 4, 0]))
    assert Row.of("dynamic", outcomes, 10.0) == Row("dynamic", 0.75, 4.0, 1.0, 3, 10.0)


def test_it_prints_as_a_short_table_with_the_brought_network_as_the_measure() -> None:
    head, brought, tuned, dynamic, *below = str(REPORT).splitlines()
    assert brought.split() == ["network", "as", "brought", "93.21%", "505.8", "M", "100.0%", "54.00", "1", "1,234"]
    assert tuned.split()[-1] == "–", "not measured"
    assert dynamic.split() == ["dynamic", "93.60%", "180.9", "M", "35.8%", "16.93", "4,690", "2,893"]
    assert len({len(line) for line in (head, brought, tuned, dynamic)}) == 1, "numbers end where their heads do"
    assert below == [
        "dynamic against the network as brought: accuracy +0.39 points, 35.8% of FLOPs, 2.34 × images/s",
        "note: a <b>warning</b>",
    ]


def test_lines_stay_short_whatever_there_is_to_note() -> None:
    lines = str(Report(REPORT.rows, ["many words " * 40])).splitlines()
    assert max(map(len, lines)) < 100
    assert " ".join(lines).count("many") == 40


def test_speeds_that_nobody_measured_take_no_column() -> None:
    text = str(Report([Row("network as brought", 0.5, 15_602_810_880, 33, 1), Row("dynamic", 0.4, 9.4e9, 20, 7)]))
    assert "images/s" not in text
    assert "accuracy -10.00 points, 60.2% of FLOPs" in text
    assert "15.60 G" in text
    assert len(str(Report([BROUGHT])).splitlines()) == 2, "nothing to compare"


class Cells(HTMLParser):
    """Text and style of each cell; fails on tags that are left open."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.cells: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append(("", dict(attrs)["style"] or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.cells[-1] = (self.cells[-1][0] + data, self.cells[-1][1])


def test_a_notebook_shows_the_same_cells_in_its_own_colours() -> None:
    text = REPORT._repr_html_()
    cells = Cells(text).cells
    assert [cell for cell, _ in cells[7:14]] == [
        "network as brought",
        "93.21%",
        "505.8 M",
        "100.0%",
        "54.00",
        "1",
        "1,234",
    ]
    for index, (_, style) in enumerate(cells):
        assert f"text-align: {'left' if index % 7 == 0 else 'right'}" in style
    assert "note: a &lt;b&gt;warning&lt;/b&gt;" in text
    assert "2.34 × images/s" in text
    colours = set(re.findall(r"(?:color|background|border[-a-z]*): ([^;\"]+)", text))
    assert colours == {"inherit", "transparent", "none", "collapse", "1px solid currentColor"}


def test_rows_are_found_by_name() -> None:
    assert REPORT["dynamic"] is DYNAMIC
    assert REPORT.brought is BROUGHT
    with pytest.raises(KeyError, match="static; choose network as brought, fine-tuned full network, dynamic"):
        REPORT["static"]


def test_it_comes_back_from_json() -> None:
    values = json.loads(json.dumps(REPORT.to_json()))
    assert Report.from_json(values) == REPORT
    dynamic = values["rows"][2]
    assert dynamic["flops_share"] == pytest.approx(180_912_640 / 505_775_360)
    assert dynamic["speed_up"] == pytest.approx(2893.1 / 1234)
    assert values["rows"][1]["speed_up"] is None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rows": [], "notes": []},
        {"rows": [{**dataclasses.asdict(DYNAMIC), "flops": "many"}], "notes": []},
        {"rows": [{"name": "x"}], "notes": []},
        [],
    ],
)
def test_what_is_no_report_is_refused(values: object) -> None:
    with pytest.raises(BlockdropError, match=r"no report: .*; give what to_json made"):
        Report.from_json(values)  # type: ignore[arg-type]
