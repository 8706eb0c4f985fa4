"""The page's data, and the page made of it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from agents.answers import NEVER
from blockdrop.figures import rendered
from blockdrop.flops import FlopTable
from blockdrop.policy_curves import Curve
from blockdrop.report.embedding import as_json, as_text, content_hash, data_uri, packed, sprite_sheets


@dataclass(frozen=True)
class ReportFigure:
    """A figure on the page."""

    title: str
    description: str
    """What it shows, in a sentence or two: caption, and text for those who can't see it."""
    figure: Figure
    photos: bool = False
    """Whether it shows images or a scale of colours, which must stay as they are on a dark page."""

    @cached_property
    def svg(self) -> bytes:
        """Of a file."""
        return rendered(self.figure, "svg")

    @cached_property
    def png(self) -> bytes:
        """Of a file."""
        return rendered(self.figure, "png")

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        with Image.open(io.BytesIO(self.png)) as image:
            return np.asarray(image.convert("RGB"))

    @property
    def uri(self) -> str:
        """As SVG, or as PNG where that would be large."""
        if len(self.svg) <= LARGEST_SVG:
            return data_uri("image/svg+xml", self.svg)
        return data_uri("image/png", self.png)


@dataclass(frozen=True)
class Report:
    """What the page shows of N images and K blocks. Tensors are on the CPU."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Names and values for the head of the page: model, data, checkpoint, …."""
    classes: Sequence[str]
    """Names by label; any text."""
    stage_sizes: Sequence[int]
    """Blocks of each stage; their sum is K."""
    keep_probs: Tensor
    """float32 (N, K)."""
    predictions: Tensor
    """int64 (N, K + 1): what the network says of each image with its m most probable blocks on, m from 0 to K (of
    equal ones the lower block first). A threshold t runs the m blocks whose keep probability is at least t."""
    labels: Tensor
    """int64 (N,)."""
    losses: Tensor
    """float32 (N,): the full network's cross-entropy, nats: how difficult an image is."""
    flops: FlopTable
    """Policy network included."""
    threshold: float
    """Where the slider stands first."""
    thumbnails: Tensor
    """uint8 (N, 3, S, S), S at most 64."""
    curves: Sequence[Curve]
    figures: Sequence[ReportFigure]
    warnings: Sequence[str] = ()
    """What a reader should know before they believe the numbers."""
    answers: Tensor | None = None
    """int64 (N,): what the policy network answers; None: it answers nothing."""
    confidence: Tensor | None = None
    """float32 (N,): how sure it is, 0 to 1. An image is answered if this is at least the answer threshold."""
    answer_threshold: float = NEVER
    """Where the second slider stands first."""


ABOVE_ALL = 1.001
"""An answer threshold that no probability reaches, at the end of the page's slider."""
LARGEST_SVG = 500_000
"""Bytes; a larger figure holds many images or points, and pixels are the smaller file."""
SCRIPTS = ("model.js", "elements.js", "chart.js", "explorer.js")


def report_page(report: Report) -> str:
    """The page as HTML that needs no other file and no network.

    Raises:
        ValueError: a part of the report has another shape or type than the others need, or a value out of range.
    """
    check(report)
    scripts = [_part(name) for name in SCRIPTS]
    sheets, place = sprite_sheets(report.thumbnails.numpy())
    return Template(_part("page.html")).substitute(
        policy=_security_policy(scripts),
        title=as_text(report.title),
        style=_part("page.css"),
        facts="\n".join(
            f"<div><dt>{as_text(name)}</dt><dd>{as_text(value)}</dd></div>" for name, value in report.facts
        ),
        warnings="".join(f'<p class="warning">Note: {as_text(line)}.</p>\n' for line in report.warnings),
        figures=_figures(report.figures),
        sheets="\n".join(f'<img class="sheet" src="{sheet}" alt="" hidden>' for sheet in sheets),
        data=as_json(_data(report) | {"thumbnails": place}),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def check(report: Report) -> None:
    """Raises ValueError if the report's parts don't fit together; see `report_page`."""
    images, blocks = report.labels.numel(), sum(report.stage_sizes)
    *_, size = 0, *report.thumbnails.shape
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "keep_probs": (torch.float32, (images, blocks)),
        "predictions": (torch.int64, (images, blocks + 1)),
        "labels": (torch.int64, (images,)),
        "losses": (torch.float32, (images,)),
        "thumbnails": (torch.uint8, (images, 3, size, size)),
    }
    _require((report.answers is None) == (report.confidence is None), "answers, confidence: one without the other")
    if report.answers is not None:
        expected |= {"answers": (torch.int64, (images,)), "confidence": (torch.float32, (images,))}
    why = f"(by labels and stage_sizes there are {images} images and {blocks} blocks)"
    _require(images > 0, "labels: no images")
    _require(blocks > 0 and min(report.stage_sizes) > 0, f"stage_sizes {report.stage_sizes}: each needs a block")
    for name, (dtype, shape) in expected.items():
        tensor: Tensor = getattr(report, name)
        found = f"{name} is {tensor.dtype} {tuple(tensor.shape)}"
        _require(tensor.dtype == dtype and tensor.shape == shape, f"{found}, not {dtype} {shape} {why}")
    _require(1 <= size <= 64, f"thumbnails are {size} pixels wide, not 1 to 64")
    _require(len(report.flops.blocks) == blocks, f"flops.blocks has {len(report.flops.blocks)} entries {why}")
    for name in ("labels", "predictions", *(["answers"] if report.answers is not None else [])):
        low, high = (int(value) for value in getattr(report, name).aminmax())
        classes = len(report.classes)
        _require(0 <= low <= high < classes, f"{name}: {low} to {high}, with {classes} classes")
    for name in ("keep_probs", "confidence"):
        values = getattr(report, name)  # NaN fails a comparison, so it is refused, too
        _require(values is None or bool(((values >= 0) & (values <= 1)).all()), f"{name}: not all in [0, 1]")
    _require(not bool(report.losses.isnan().any()), "losses: some are NaN")
    _require(math.isfinite(report.threshold), f"threshold: {report.threshold}")
    _require(not math.isnan(report.answer_threshold), f"answer_threshold: {report.answer_threshold}")
    for curve in report.curves:
        for point in curve.points:
            good = math.isfinite(point.flops) and 0 <= point.accuracy <= 1
            _require(good, f"curves: {curve.name}, {point.label}: {point.flops} FLOPs, accuracy {point.accuracy}")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _part(name: str) -> str:
    return resources.files("blockdrop.report").joinpath(name).read_text("utf-8")


def _security_policy(scripts: Sequence[str]) -> str:
    """Refuses every request and every script but ours.

    Styles need no hash: they can do no harm without requests, and a browser may hold the styles within the
    page's SVG images to the page's policy, too.
    """
    hashes = " ".join(map(content_hash, scripts))
    sources = f"img-src data:; style-src 'unsafe-inline'; script-src {hashes}"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"


def _data(report: Report) -> dict[str, Any]:
    labels = np.min_scalar_type(len(report.classes) - 1)
    return {
        "classes": list(report.classes),
        "stageSizes": list(report.stage_sizes),
        "keepProbs": packed(report.keep_probs.numpy()),
        "predictions": packed(report.predictions.numpy().astype(labels)),
        "labels": packed(report.labels.numpy().astype(labels)),
        "losses": packed(report.losses.numpy()),
        "flops": {
            "fixed": report.flops.fixed,
            "policyNetwork": report.flops.policy_network,
            "blocks": report.flops.blocks,
        },
        "threshold": report.threshold,
        "answers": None if report.answers is None else packed(report.answers.numpy().astype(labels)),
        "confidence": None if report.confidence is None else packed(report.confidence.numpy()),
        "answerThreshold": min(report.answer_threshold, ABOVE_ALL),
        "curves": [asdict(curve) for curve in report.curves],
    }


def _figures(figures: Sequence[ReportFigure]) -> str:
    if not figures:
        return ""
    inner = "\n".join(map(_figure, figures))
    return f'<section class="figure-list"><h2>Figures</h2><div class="figures">\n{inner}\n</div></section>'


def _figure(shown: ReportFigure) -> str:
    width, height = (round(96 * inches) for inches in shown.figure.get_size_inches())  # CSS pixels
    title, description = as_text(shown.title), as_text(shown.description)
    source = f'src="{shown.uri}" width="{width}" height="{height}"'
    kind = "photos" if shown.photos else "drawing"
    image = f'<img class="{kind}" {source} alt="{title}" loading="lazy">'
    return f"<figure>{image}<figcaption><strong>{title}</strong> {description}</figcaption></figure>"
