"""Tables in markdown."""

from blockdrop.tables import table


def test_words_stand_left_and_numbers_right_and_bars_are_escaped() -> None:
    rows = [{"name": "a|b", "accuracy %": "90.00"}, {"name": "c", "accuracy %": "80.50"}]
    assert table(rows, words=1).splitlines() == [
        "| name | accuracy % |", "| --- | ---: |", r"| a\|b | 90.00 |", "| c | 80.50 |",
    ]  # fmt: skip
