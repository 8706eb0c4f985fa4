"""The report page in a real browser: what it shows is what Python computes; and the page as a file."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from torch import Tensor

from agents.answers import NEVER
from agents.policies import map_policy
from blockdrop import figures
from blockdrop.flops import FlopTable
from blockdrop.policy_curves import Curve, CurvePoint
from blockdrop.report import embedding, page
from blockdrop.report.embedding import sprite_sheets
from blockdrop.report.page import Report, ReportFigure, report_page

HOSTILE = """</script><script>window.ran = 1</script><!--<script> "quoted" & 'so' \u2028"""


def make_report(images: int = 200, stage_sizes: tuple[int, ...] = (6, 7, 7), classes: int = 4) -> Report:
    """Keep probabilities on a grid, so that many are equal, 0 and 1 among them; every second prediction random."""
    generator = torch.Generator().manual_seed(1)
    blocks = sum(stage_sizes)
    labels = torch.randint(classes, (images,), generator=generator)
    random = torch.randint(classes, (images, blocks + 1), generator=generator)
    predictions = torch.where(torch.rand(random.shape, generator=generator) < 0.5, labels[:, None], random)
    image = torch.arange(images)
    colours = torch.stack((image % 256, image // 256, 7 * image % 256), 1).to(torch.uint8)  # tells images apart
    curve = Curve("dynamic", (CurvePoint(40e6, 0.5, "threshold 0.8"), CurvePoint(90e6, 0.75, "threshold 0.2")))
    first = Curve("first K blocks", (CurvePoint(20e6, 0.25, "first 3 blocks"), CurvePoint(99e6, 0.75, "all")))
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 2, 3])
    return Report(
        title="Test report",
        facts=[("model", "R62_C10"), ("images", str(images))],
        classes=[f"class {name}" for name in "abcdefgh"[:classes]],
        stage_sizes=stage_sizes,
        keep_probs=torch.randint(11, (images, blocks), generator=generator) / 10,
        predictions=predictions,
        labels=labels,
        losses=torch.rand(images, generator=generator).round(decimals=1),
        flops=FlopTable(886_016, tuple(7_077_888 + 11 * block for block in range(blocks)), 2_447_974),
        threshold=0.5,
        thumbnails=colours[:, :, None, None].expand(-1, -1, 8, 8).contiguous(),
        curves=[curve, first],
        figures=[ReportFigure("A line.", "It rises.", figure)],
    )


def answering_report(answer_threshold: float = 0.9) -> Report:
    """Confidences on a grid, 0 and 1 among them; every third answer is random."""
    report, generator = make_report(211), torch.Generator().manual_seed(2)
    random = torch.randint(4, report.labels.shape, generator=generator)
    return replace(
        report,
        answers=torch.where(torch.rand(random.shape, generator=generator) < 0.67, report.labels, random),
        confidence=torch.randint(11, random.shape, generator=generator) / 10,
        answer_threshold=answer_threshold,
    )


def policy_of(report: Report, threshold: float) -> tuple[Tensor, Tensor]:
    """Policies and predictions where no image is answered: bool (N, K), int64 (N,)."""
    policy = map_policy(report.keep_probs, threshold)
    return policy, report.predictions.gather(1, policy.sum(1, keepdim=True)).squeeze(1)


def answered_of(report: Report, threshold: float, answer_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Policies, predictions and the answered images: bool (N, K), int64 (N,), bool (N,)."""
    policy, predictions = policy_of(report, threshold)
    assert report.confidence is not None
    assert report.answers is not None
    answered = report.confidence >= answer_threshold
    return policy & ~answered.unsqueeze(1), report.answers.where(answered, predictions), answered


def numbers_of(report: Report, threshold: float, answer_threshold: float = NEVER) -> dict[str, str]:
    """What the page must show, by element."""
    policy, predictions = policy_of(report, threshold)
    answered, more = torch.zeros(len(policy), dtype=torch.bool), {}
    if report.answers is not None:
        policy, predictions, answered = answered_of(report, threshold, answer_threshold)
        right = (predictions == report.labels)[answered].double().mean().item()
        more = {
            "answered": f"{100 * answered.double().mean().item():.1f} %",
            "answered-accuracy": f"{100 * right:.2f} % right" if answered.any() else "",
        }
    flops = report.flops.per_image(policy, answered).double().mean().item()
    return more | {
        "accuracy": f"{100 * (predictions == report.labels).double().mean().item():.2f} %",
        "blocks": f"{policy.sum(1).double().mean().item():.2f}",
        "mflops": f"{flops / 1e6:.2f}",
        "share": f"{100 * flops / report.flops.full:.1f} % of full",
        "unique": f"{len(torch.unique(policy, dim=0)):,}",
    }


def expect_numbers(page: Page, report: Report, threshold: float, answer_threshold: float = NEVER) -> None:
    for name, text in numbers_of(report, threshold, answer_threshold).items():
        expect(page.locator(f"#{name}")).to_have_text(text)


def images_shown(page: Page) -> list[int]:
    tiles = page.locator("#grid li:not([hidden]) button")
    return [int(number) for number in tiles.evaluate_all("tiles => tiles.map((tile) => tile.dataset.image)")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        missing = "no Chromium is installed"
        if "BLOCKDROP_REQUIRE_BROWSER" in os.environ:
            pytest.fail(missing)
        pytest.skip(missing)
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    with sync_playwright() as playwright:
        arguments = [f"--disable-{feature}" for feature in quiet]
        yield playwright.chromium.launch(executable_path=path, args=["--no-first-run", *arguments])


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Page:
    """One for all tests: a process of the browser's for each would take most of their time."""
    page = browser.new_page()
    page.set_default_timeout(10_000)
    return page


@pytest.fixture
def open_page(tab: Page, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a report from disk. At the end of the test: no page complained or asked for anything but itself."""
    complaints: list[str] = []
    requests: list[str] = []
    listeners: dict[Any, Callable[[Any], None]] = {
        "console": lambda message: complaints.append(message.text) if message.type == "error" else None,
        "pageerror": lambda error: complaints.append(str(error)),
        "request": lambda request: requests.append(request.url),
    }
    file = tmp_path / "report.html"
    for event, listener in listeners.items():
        tab.on(event, listener)

    def open_report(report: Report, width: int = 1280, height: int = 800) -> Page:
        file.write_text(report_page(report), encoding="utf-8")
        tab.set_viewport_size({"width": width, "height": height})
        tab.goto(file.as_uri())
        expect(tab.locator("#accuracy")).not_to_be_empty()
        return tab

    yield open_report
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    tab.emulate_media(media="screen")
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} <= {file.as_uri()}


def test_typed_thresholds_give_pythons_numbers(open_page: Callable[..., Page]) -> None:
    report = make_report()
    page = open_page(report)
    # 0.7 is above the float32 0.7 that keep probabilities are, and equal to it once rounded to float32
    for threshold in (0.7, float(np.float32(0.3)), 0.0, 1e-50, 0.05, 1.0, 1 - 1e-12, 1.5):
        page.locator("#threshold-number").fill(repr(threshold))
        expect_numbers(page, report, threshold)
        used = policy_of(report, threshold)[0].sum(1)
        captions = page.locator("#grid .caption").all_text_contents()
        assert [int(caption.split()[0]) for caption in captions] == used[:150].tolist()


def test_first_numbers_are_those_of_the_reports_threshold(open_page: Callable[..., Page]) -> None:
    report = replace(make_report(), threshold=0.6000000238418579)  # not on the slider's steps
    page = open_page(report)
    expect(page.locator("#threshold-number")).to_have_value("0.6000000238418579")
    expect_numbers(page, report, report.threshold)


def test_slider_moves_numbers_field_and_marker(open_page: Callable[..., Page]) -> None:
    report = make_report()
    page = open_page(report)
    page.locator("#threshold").fill("0.301")
    expect(page.locator("#threshold-number")).to_have_value("0.301")
    expect_numbers(page, report, 0.301)
    policy, predictions = policy_of(report, 0.301)
    marker = page.locator("#chart g.here")
    mean_flops = report.flops.per_image(policy).double().mean().item()
    assert float(marker.get_attribute("data-flops") or "") == mean_flops
    expect(marker).to_have_attribute("data-accuracy", f"{(predictions == report.labels).double().mean().item()}")
    page.get_by_role("button", name="Reset").click()
    expect_numbers(page, report, 0.5)


def test_both_thresholds_give_pythons_numbers(open_page: Callable[..., Page]) -> None:
    report = answering_report()
    page = open_page(report)
    expect_numbers(page, report, 0.5, 0.9)
    # 0.7 is above the float32 0.7 that confidences are, and equal to it once rounded to float32
    for threshold, answer_threshold in ((0.7, 0.7), (0.7, 1e-60), (0.05, 1.0), (0.3, 1.001), (1.0, 0.55)):
        page.locator("#threshold-number").fill(repr(threshold))
        page.locator("#answer-threshold-number").fill(repr(answer_threshold))
        expect_numbers(page, report, threshold, answer_threshold)
        policy, _, answered = answered_of(report, threshold, answer_threshold)
        marker = page.locator("#chart g.here")
        mean_flops = report.flops.per_image(policy, answered).double().mean().item()
        assert float(marker.get_attribute("data-flops") or "") == mean_flops
        captions = [caption.split()[0] for caption in page.locator("#grid .caption").all_text_contents()]
        used = [str(count) for count in policy.sum(1).tolist()]
        wanted = ["answered" if sure else blocks for sure, blocks in zip(answered.tolist(), used, strict=True)]
        assert captions == wanted[:150]
    page.locator("#answer-threshold").fill("0.8")
    expect_numbers(page, report, 1.0, 0.8)
    page.get_by_role("button", name="Reset the answer threshold").click()
    expect_numbers(page, report, 1.0, 0.9)


def test_an_answer_threshold_of_never_stands_at_the_sliders_end(open_page: Callable[..., Page]) -> None:
    report = answering_report(NEVER)
    page = open_page(report)
    expect_numbers(page, report, 0.5, NEVER)
    expect(page.locator("#answer-threshold")).to_have_value("1.001")


def test_a_report_without_answers_shows_nothing_about_them(open_page: Callable[..., Page]) -> None:
    page = open_page(make_report())
    for hidden in ("#answer-threshold", "#answered", "#by"):
        expect(page.locator(hidden)).to_be_hidden()
    assert "nswer" not in page.locator("main").inner_text()


def test_answered_images_can_be_filtered_ordered_and_opened(open_page: Callable[..., Page]) -> None:
    report = answering_report(0.5)
    page = open_page(report)
    _, predictions, answered = answered_of(report, 0.5, 0.5)
    page.locator("#by").select_option("answer")
    page.locator("#result").select_option("wrong")
    matching = answered & (predictions != report.labels)
    assert images_shown(page) == matching.nonzero().flatten().tolist()
    page.locator("#by").select_option("resnet")
    page.locator("#result").select_option("all")
    assert images_shown(page) == (~answered).nonzero().flatten().tolist()
    page.locator("#by").select_option("all")
    page.locator("#order").select_option("surest")
    assert report.confidence is not None
    assert report.answers is not None
    first = int((-report.confidence).argsort(stable=True)[0])
    assert images_shown(page)[0] == first
    page.locator("#grid button").first.click()
    detail = page.locator("#detail")
    name = report.classes[int(report.answers[first])]
    expect(detail).to_contain_text(f"Answer{name} (confidence 1.000)")
    expect(detail).to_contain_text("Blocks usednone: answered")
    expect(detail).to_contain_text(f"{report.flops.policy_network / 1e6:.2f} MFLOPs")
    assert detail.locator("li.kept").count() == 0


def cheapest_within(report: Report, share: float, answer_threshold: float = NEVER) -> float:
    """The lowest threshold within a budget, by trying all."""
    for threshold in [*sorted(set(report.keep_probs.flatten().tolist())), 1.0]:
        policy, _ = policy_of(report, threshold)
        answered = torch.zeros(len(policy), dtype=torch.bool)
        if report.answers is not None:
            policy, _, answered = answered_of(report, threshold, answer_threshold)
        if report.flops.per_image(policy, answered).double().mean().item() <= share * report.flops.full:
            return threshold
    return 1.0


@pytest.mark.parametrize("answering", [False, True])
def test_a_budget_sets_the_lowest_threshold_within_it(open_page: Callable[..., Page], answering: bool) -> None:
    report = answering_report() if answering else make_report()
    page = open_page(report)
    answer_threshold = 0.9 if answering else NEVER
    for share in (0.6, 0.35, 0.8, 5.0, 0.01):
        page.locator("#budget-number").fill(f"{100 * share:g}")
        expect_numbers(page, report, cheapest_within(report, share, answer_threshold), answer_threshold)
        expect(page.locator("#budget-number")).to_have_value(f"{100 * share:g}")
    page.locator("#budget-number").blur()
    shown = numbers_of(report, 1.0, answer_threshold)["share"].split()[0]
    expect(page.locator("#budget-number")).to_have_value(shown)
    page.locator("#threshold").fill("0.5")
    expect(page.locator("#budget-number")).to_have_value(
        numbers_of(report, 0.5, answer_threshold)["share"].split()[0]
    )
    page.locator("#budget").fill("50")
    expect_numbers(page, report, cheapest_within(report, 0.5, answer_threshold), answer_threshold)


def test_a_point_of_a_curve_sets_its_threshold(open_page: Callable[..., Page]) -> None:
    report = make_report()
    page = open_page(report)
    page.locator('#chart .marker[aria-label*="threshold 0.8"]').click()
    expect(page.locator("#threshold-number")).to_have_value("0.8")
    expect_numbers(page, report, 0.8)
    page.locator('#chart .marker[aria-label*="threshold 0.2"]').focus()
    page.keyboard.press("Enter")
    expect_numbers(page, report, 0.2)
    page.locator('#chart .marker[aria-label*="first 3 blocks"]').click()
    expect_numbers(page, report, 0.2)


def test_a_threshold_out_of_range_ends_at_the_range(open_page: Callable[..., Page]) -> None:
    page = open_page(make_report())
    for typed, value in (("5", "1.001"), ("-3", "0")):
        page.locator("#threshold-number").fill(typed)
        page.locator("#threshold-number").blur()
        expect(page.locator("#threshold-number")).to_have_value(value)


def test_a_number_being_typed_changes_nothing_until_it_is_one(open_page: Callable[..., Page]) -> None:
    report = make_report()
    page = open_page(report)
    page.locator("#threshold-number").fill("")
    expect_numbers(page, report, 0.5)
    page.locator("#threshold-number").blur()
    expect(page.locator("#threshold-number")).to_have_value("0.5")


def test_filters_show_what_matches(open_page: Callable[..., Page]) -> None:
    report = make_report()
    page = open_page(report)
    policy, predictions = policy_of(report, 0.5)
    used, right = policy.sum(1), predictions == report.labels
    page.locator("#class").select_option("class b")
    page.locator("#result").select_option("wrong")
    matching = (report.labels == 1) & ~right
    expect(page.locator("#matching")).to_contain_text(f"{matching.sum()} of 200 images · accuracy 0.00 %")
    page.locator("#result").select_option("all")
    page.locator("#least").fill("10")
    page.locator("#most").fill("12")
    matching = (report.labels == 1) & (used >= 10) & (used <= 12)
    accuracy, blocks = right[matching].double().mean().item(), used[matching].double().mean().item()
    expect(page.locator("#matching")).to_have_text(
        f"{matching.sum()} of 200 images · accuracy {100 * accuracy:.2f} % · {blocks:.2f} blocks on average"
    )
    assert images_shown(page) == matching.nonzero().flatten().tolist()
    page.locator("#least").fill("13")
    expect(page.locator("#matching")).to_have_text("No image matches these filters.")
    assert images_shown(page) == []
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("#matching")).to_contain_text("200 of 200 images")


def test_orders(open_page: Callable[..., Page]) -> None:
    report = make_report(160)
    page = open_page(report)
    used, losses = policy_of(report, 0.5)[0].sum(1), report.losses
    keys = {"fewest": used, "most": -used, "hardest": -losses, "easiest": losses, "given": torch.arange(160)}
    for order, key in keys.items():
        page.locator("#order").select_option(order)
        expected = key.argsort(stable=True).tolist()
        assert images_shown(page) == expected[:150]
    page.get_by_role("button", name="Next").click()
    assert images_shown(page) == expected[150:]
    expect(page.locator("#page")).to_have_text("page 2 of 2")


def test_wrong_predictions_are_marked_by_a_sign(open_page: Callable[..., Page]) -> None:
    report = make_report(100)
    page = open_page(report)
    wrong = policy_of(report, 0.5)[1] != report.labels
    captions = page.locator("#grid .caption").all_text_contents()
    assert ["✗" in caption for caption in captions] == wrong.tolist()


def test_a_click_shows_the_images_policy(open_page: Callable[..., Page]) -> None:
    report = make_report()
    page = open_page(report)
    page.locator("#grid button").nth(17).click()
    detail = page.locator("#detail")
    expect(detail.get_by_role("heading", name="Image 17")).to_be_visible()
    for threshold in (0.5, 0.7):  # the open panel follows the slider
        page.locator("#threshold").fill(str(threshold))
        policy, predictions = policy_of(report, threshold)
        expect(detail).to_contain_text(f"{policy[17].sum()} of 20")
        expect(detail).to_contain_text(f"Prediction{report.classes[int(predictions[17])]}")
        expect(detail).to_contain_text(f"{report.flops.per_image(policy)[17] / 1e6:.2f} MFLOPs")
        cells = detail.locator("li")
        kept = cells.evaluate_all("cells => cells.map((cell) => cell.className === 'kept')")
        assert kept == policy[17].tolist()
        states = detail.locator("li .name").all_inner_texts()
        assert ["●" in state for state in states] == policy[17].tolist()
        numbers = detail.locator("li .number").all_inner_texts()
        assert numbers == [f"{keep_prob:.3f}" for keep_prob in report.keep_probs[17].tolist()]
    assert detail.locator(".stage").count() == 3


def test_arrow_keys_beside_an_open_image_go_to_the_next_one_and_keep_its_tile_in_sight(
    open_page: Callable[..., Page],
) -> None:
    page = open_page(make_report())
    page.locator("#grid li:not([hidden]) button").nth(40).click()
    heading = page.locator("#detail-heading")
    expect(heading).to_have_text("Image 40")
    for key, image in (("ArrowRight", 41), ("ArrowRight", 42), ("ArrowLeft", 41)):
        page.keyboard.press(key)
        expect(heading).to_have_text(f"Image {image}")
        expect(page.locator(f'#grid button[data-image="{image}"]')).to_be_in_viewport()


def test_what_looks_wrong_stands_on_the_page(open_page: Callable[..., Page]) -> None:
    report = replace(make_report(), warnings=["one policy serves <all> images"])
    expect(open_page(report).locator(".warning")).to_have_text("Note: one policy serves <all> images.")
    expect(open_page(make_report()).locator(".warning")).to_have_count(0)


def test_curves_look_as_in_the_figures() -> None:
    chart = (Path(page.__file__).parent / "chart.js").read_text(encoding="utf-8")
    style = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")
    dashes = re.search(r"const DASHES = (\[.*?\]);", chart)
    assert dashes is not None
    assert tuple(json.loads(dashes[1])) == figures.CURVE_DASHES
    names = re.findall(r"\.colour-\d \{ --colour: var\(--(\w+)\)", style)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", style.split("@media")[0]))
    assert [colours[name].upper() for name in names] == [
        to_hex(colour).upper() for colour in figures.CURVE_COLOURS
    ]


def test_how_many_blocks_give_the_right_prediction(open_page: Callable[..., Page]) -> None:
    report = make_report(1, (4,), classes=2)
    report = replace(report, labels=torch.tensor([1]), predictions=torch.tensor([[1, 0, 1, 1, 0]]))
    page = open_page(report)
    page.locator("#grid button").click()
    expect(page.locator("#detail")).to_contain_text("Right with0, 2–3 of its most probable blocks")


def test_tiles_show_their_images(open_page: Callable[..., Page]) -> None:
    report = make_report(300)
    thumbnails = report.thumbnails[:, :, :1, :1].expand(-1, -1, 60, 60).contiguous()  # two sheets, padded cells
    page = open_page(replace(report, thumbnails=thumbnails))
    page.get_by_role("button", name="Next").click()
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    corners = page.locator("#grid canvas").evaluate_all(
        """tiles => tiles.map((tile) => {
          const { data } = tile.getContext("2d").getImageData(0, 0, 60, 60);
          return [[...data.slice(0, 3)], [...data.slice(-4, -1)]];
        })"""
    )
    expected = thumbnails[150:, :, 0, 0].tolist()
    assert corners == [[colour, colour] for colour in expected]


def test_keyboard_alone_reaches_everything(open_page: Callable[..., Page]) -> None:
    report = make_report()
    page = open_page(report)
    keyboard, focused = page.keyboard, page.locator(":focus")

    def tab_to(selector: str) -> None:
        for _ in range(20):
            keyboard.press("Tab")
            if focused.evaluate("(element, selector) => element.matches(selector)", selector):
                return
        raise AssertionError(f"Tab doesn't reach {selector}")

    tab_to(".skip")
    tab_to("#threshold")
    keyboard.press("ArrowRight")
    expect_numbers(page, report, 0.501)
    keyboard.press("Home")
    expect_numbers(page, report, 0.0)
    tab_to("#threshold-number")
    tab_to("#reset")
    keyboard.press("Enter")
    expect_numbers(page, report, 0.5)
    tab_to("#chart .marker")
    keyboard.press("ArrowRight")
    expect(page.locator("#chart .tooltip")).to_contain_text("threshold 0.2")
    keyboard.press("ArrowDown")
    expect(page.locator("#chart .tooltip")).to_contain_text("all75.00 % accuracy")
    tab_to("#class")
    keyboard.press("ArrowDown")
    expect(page.locator("#matching")).to_contain_text(f"{(report.labels == 0).sum()} of 200")
    keyboard.press("ArrowUp")
    tab_to("#clear")
    tab_to("#grid button")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowDown")
    keyboard.press("ArrowLeft")
    row = int(focused.get_attribute("data-image") or "")  # as many images as a row holds
    assert row > 1
    keyboard.press("Enter")
    expect(page.locator("#detail-heading")).to_be_focused()
    expect(page.locator("#detail-heading")).to_have_text(f"Image {row}")
    keyboard.press("Escape")
    expect(focused).to_have_attribute("data-image", str(row))
    keyboard.press("End")
    expect(focused).to_have_attribute("data-image", "199")
    expect(page.locator("#page")).to_have_text("page 2 of 2")
    tab_to("#previous-page")


def test_curve_points_tell_their_values(open_page: Callable[..., Page]) -> None:
    report = make_report()
    page = open_page(report)
    tooltip = page.locator("#chart .tooltip")
    points = page.locator("#chart .marker")
    expect(points).to_have_count(4)
    share = f"{100 * 90e6 / report.flops.full:.1f} %"
    page.locator("#chart").scroll_into_view_if_needed()
    points.nth(1).hover()
    expect(tooltip).to_have_text(f"dynamicthreshold 0.275.00 % accuracy90.00 MFLOPs ({share})")
    page.mouse.move(0, 0)
    expect(tooltip).to_be_hidden()
    points.nth(2).focus()
    expect(tooltip).to_contain_text("first K blocksfirst 3 blocks25.00 % accuracy20.00 MFLOPs")
    expect(points.nth(1)).to_have_attribute("aria-label", re.compile("dynamic, threshold 0.2, 75.00.% accuracy"))
    expect(page.locator("#legend li")).to_have_text(["dynamic", "first K blocks", "the threshold above"])
    page.locator("#zoom").check()
    expect(points).to_have_count(2)


def test_any_text_is_shown_as_text(open_page: Callable[..., Page]) -> None:
    report = make_report(20, classes=2)
    curves = [replace(report.curves[0], name=HOSTILE)]
    page = open_page(
        replace(
            report,
            title=HOSTILE,
            facts=[(HOSTILE, HOSTILE)],
            classes=[HOSTILE, "other"],
            labels=torch.zeros(20, dtype=torch.int64),
            curves=curves,
            figures=[replace(report.figures[0], title=HOSTILE, description=HOSTILE)],
        )
    )
    page.locator("#grid button").first.click()
    for place in ("h1", "header dt", "header dd", "#detail dd", "#legend li", "#class option[value='0']"):
        assert page.locator(place).first.text_content() == HOSTILE
    assert page.locator("figcaption").text_content() == f"{HOSTILE} {HOSTILE}"
    assert page.locator("figure img").get_attribute("alt") == HOSTILE
    assert page.evaluate("window.ran") is None


def test_the_page_can_reach_no_network(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content(report_page(make_report(3)))
    blocked = page.evaluate(
        """() => new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (event) => resolve(event.blockedURI));
          new Image().src = "http://127.0.0.1:9/pixel.png";
          setTimeout(() => resolve("nothing blocked"), 5000);
        })"""
    )
    assert blocked == "http://127.0.0.1:9/pixel.png"
    page.close()


def test_nothing_is_wider_than_the_window(open_page: Callable[..., Page]) -> None:
    report = make_report(60, (18, 18, 18))
    long_name = "n02123045_" + "W" * 80
    page = open_page(replace(report, title=long_name, facts=[("file", long_name)], classes=[long_name] * 4))
    page.locator("#grid button").first.click()
    page.locator("summary").click()
    cells = page.locator("#detail .strip li")
    assert cells.count() == 54
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not cells.evaluate_all("cells => cells.some((cell) => cell.scrollWidth > cell.clientWidth)")


def test_print_holds_numbers_curve_and_figures_without_controls(open_page: Callable[..., Page]) -> None:
    page = open_page(make_report())
    page.locator("#threshold").fill("0.25")
    expect(page.locator("#threshold-printed")).to_be_hidden()
    page.emulate_media(media="print")
    expect(page.locator("#threshold-printed")).to_have_text("0.25")
    for shown in ("h1", "#threshold-printed", "#accuracy", "#chart svg", "figure img", "figcaption"):
        expect(page.locator(shown)).to_be_visible()
    for hidden in ("#threshold", "#filters", "#grid", "#zoom", "summary"):
        expect(page.locator(hidden)).to_be_hidden()


@pytest.mark.parametrize(
    "report",
    [
        make_report(1, (1,), classes=1),
        replace(make_report(5), keep_probs=torch.full((5, 20), 0.5)),
        replace(make_report(5), curves=[], figures=[], facts=[]),
        replace(make_report(5), curves=[Curve("none", ()), Curve("one", (CurvePoint(1e6, 1.0, "only"),))]),
        replace(make_report(5), losses=torch.tensor([0.0, float("inf"), 1.0, float("inf"), 0.0])),
        replace(make_report(5), threshold=0.0),
    ],
    ids=["single", "equal", "bare", "short curves", "infinite losses", "threshold 0"],
)
def test_extreme_reports(open_page: Callable[..., Page], report: Report) -> None:
    page = open_page(report, width=390)
    expect_numbers(page, report, report.threshold)
    page.locator("#order").select_option("hardest")
    page.locator("#grid button").first.click()
    expect(page.locator("#detail .strip li")).to_have_count(sum(report.stage_sizes))
    page.locator("#zoom").check()
    for threshold in ("0", "1"):
        page.locator("#threshold").fill(threshold)
        expect_numbers(page, report, float(threshold))


def embedded(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(packed: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["base64"]), np.dtype(packed["type"]).newbyteorder("<"))


@pytest.mark.parametrize(("classes", "kind"), [(4, "uint8"), (256, "uint8"), (257, "uint16")])
def test_arrays_survive_the_page(classes: int, kind: str) -> None:
    report = make_report(30, (2, 3))
    largest = torch.full((30,), classes - 1)
    report = replace(report, classes=[str(label) for label in range(classes)], labels=largest)
    data = embedded(report_page(report))
    assert data["predictions"]["type"] == data["labels"]["type"] == kind
    assert unpacked(data["keepProbs"]).tolist() == report.keep_probs.flatten().tolist()
    assert unpacked(data["predictions"]).tolist() == report.predictions.flatten().tolist()
    assert unpacked(data["labels"]).tolist() == report.labels.tolist()
    assert unpacked(data["losses"]).tolist() == report.losses.tolist()


def test_no_text_ends_the_data_or_becomes_markup() -> None:
    report = replace(make_report(3, classes=1), title=HOSTILE, classes=[HOSTILE])
    page = report_page(report)
    assert embedded(page)["classes"] == [HOSTILE]
    assert "window.ran = 1</script>" not in page
    assert "\u2028" not in page[page.index('id="data"') :]


def test_names_of_undecodable_files_dont_stop_the_page() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    page = report_page(replace(make_report(3, classes=1), facts=[("file", name)], classes=[name]))
    assert "<dd>caf?</dd>" in page
    assert page.encode()


def test_the_same_report_gives_the_same_page() -> None:
    assert report_page(make_report(5)) == report_page(make_report(5))


def test_every_address_on_the_page_is_data() -> None:
    page = report_page(make_report(5))
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in page.replace('"url(#plot)"', "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_probs": torch.zeros(5, 19)}, r"keep_probs is \S+ \(5, 19\), not torch.float32 \(5, 20\)"),
        ({"keep_probs": torch.zeros(5, 20).double()}, "keep_probs is torch.float64"),
        ({"keep_probs": torch.full((5, 20), float("nan"))}, "keep_probs: not all in"),
        ({"predictions": torch.zeros(5, 20, dtype=torch.int64)}, r"predictions is torch.int64 \(5, 20\)"),
        ({"predictions": torch.full((5, 21), 4)}, "predictions: 4 to 4, with 4 classes"),
        ({"labels": torch.full((5,), -1)}, "labels: -1 to -1"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "labels: no images"),
        ({"losses": torch.zeros(4)}, r"losses is torch.float32 \(4,\)"),
        ({"losses": torch.full((5,), float("nan"))}, "losses: some are NaN"),
        ({"thumbnails": torch.zeros(5, 3, 65, 65, dtype=torch.uint8)}, "65 pixels"),
        ({"thumbnails": torch.zeros(5, 3, 8, 9, dtype=torch.uint8)}, "thumbnails is torch.uint8"),
        ({"stage_sizes": (20, 0)}, "stage_sizes"),
        ({"stage_sizes": (19,)}, "keep_probs"),
        ({"flops": FlopTable(1, (1,) * 19, 1)}, "flops.blocks has 19 entries"),
        ({"threshold": float("nan")}, "threshold: nan"),
        ({"answer_threshold": float("nan")}, "answer_threshold: nan"),
        ({"answers": torch.zeros(5, dtype=torch.int64)}, "answers, confidence: one without the other"),
        (
            {"answers": torch.full((5,), 4), "confidence": torch.zeros(5)},
            "answers: 4 to 4, with 4 classes",
        ),
        (
            {"answers": torch.zeros(5, dtype=torch.int64), "confidence": torch.full((5,), 1.1)},
            "confidence: not all in",
        ),
        ({"curves": [Curve("bent", (CurvePoint(1.0, 93.2, "p"),))]}, "curves: bent, p: 1.0 FLOPs, accuracy 93.2"),
    ],
)
def test_parts_that_dont_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report_page(replace(make_report(5), **change))


def opened(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.parametrize("size", [8, 12, 64])
def test_every_image_stands_where_the_page_looks_for_it(size: int) -> None:
    thumbnails = np.random.default_rng(0).integers(0, 256, (70, 3, size, size), dtype=np.uint8)
    sheets, place = sprite_sheets(thumbnails)
    pictures = [opened(sheet) for sheet in sheets]
    for image, thumbnail in enumerate(thumbnails):
        sheet, rest = divmod(image, place["perSheet"])
        row, column = (place["cell"] * step for step in divmod(rest, place["columns"]))
        assert (pictures[sheet][row : row + size, column : column + size] == thumbnail.transpose(1, 2, 0)).all()


def test_large_sheets_become_a_close_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "LOSSLESS_SHEETS", 100)
    thumbnails = (
        np.random.default_rng(0).integers(0, 256, (9, 3, 1, 1), dtype=np.uint8).repeat(32, 2).repeat(32, 3)
    )
    thumbnails += np.arange(32, dtype=np.uint8) % 5
    (sheet,), _ = sprite_sheets(thumbnails)
    assert sheet.startswith("data:image/jpeg")
    first = opened(sheet)[:32, :32].astype(int)
    assert np.abs(first - thumbnails[0].transpose(1, 2, 0)).mean() < 3


def test_a_large_figure_becomes_png(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = make_report(1).figures[0]
    assert figure.uri.startswith("data:image/svg+xml")
    monkeypatch.setattr(page, "LARGEST_SVG", 1000)
    assert figure.uri.startswith("data:image/png")
