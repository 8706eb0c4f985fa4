"""Shows the files of experiments/results as pages of the site, and mends links that are right on a disk alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"
ELSEWHERE = re.compile(r"\[([^\]]+)\]\(\.\./((?!experiments/results/)[^)]+)\)")
"""Links to files of the checkout that are no pages of the site."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the results."""
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text(encoding="utf-8").replace("](../../docs/", "](../")
        files.append(File.generated(config, f"results/{path.name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to results lead to the site's pages; what is no page is named in their place."""
    if page.file.src_uri.startswith("results/"):
        return markdown
    return ELSEWHERE.sub(r"\1 (`\2`)", markdown).replace("](../experiments/results/", "](results/")
