"""README and pages: their Python runs as it is written, on stand-ins for the files that it names, and links lead
somewhere."""

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18
from torchvision.utils import save_image

import blockdrop

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "experiments" / "results"
PAGES = sorted((ROOT / "docs").glob("*.md"))
SNIPPETS = [
    pytest.param(code, id=f"{path.stem}-{number}")
    for path in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]
CHECKPOINT = "ckpt_E_0_A_0.100_R_-1.00E+00_S_15.00_#_1.t7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a torchvision ResNet's weights, and runs of a dynamic network, its backbone, and a plain net."""
    folder = tmp_path_factory.mktemp("readme")
    for part in ("train", "test"):
        for name in ("ant", "bee", "cat", "dog"):
            (folder / "photos" / part / name).mkdir(parents=True)
            for number in range(2):
                save_image(torch.rand(3, 48, 64), folder / "photos" / part / name / f"{number}.png")
    torch.save(resnet18(num_classes=4).state_dict(), folder / "resnet18.pt")
    dynamic = blockdrop.make_dynamic("R32_C10")
    backbone = dynamic.with_network(dynamic.network)
    plain = dynamic.with_network(blockdrop.build_static("plain20_C10"), "plain20_C10")
    for run, network in (("r32-ft", dynamic), ("r32", backbone), ("plain20", plain)):
        (folder / "cv" / run).mkdir(parents=True)
        network.save(folder / "cv" / run / CHECKPOINT)
    return folder


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 7


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(code.replace("epochs=10", "epochs=1"), {})


def test_the_readmes_python_is_the_beginning_of_a_pages() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    page = (ROOT / "docs" / "own-network.md").read_text(encoding="utf-8")
    lines = [re.sub(r"\s*#.*", "", line) for line in code.splitlines() if line]
    assert re.sub(r" +#.*", "", page).find("\n".join(lines[2:])) > 0


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("path", [README, *PAGES, *sorted(RESULTS.glob("*.md"))], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_there_are(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        file, _, heading = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_every_page_is_in_the_sites_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.name for path in PAGES} | {f"results/{path.name}" for path in RESULTS.glob("*.md")}
    assert {name for name in pages if f"- {name}\n" not in menu} == set()
