"""Where a checkpoint lies that `--load` or `blockdrop.load` names: a file, a folder, a published network, a
file of the Hugging Face hub, or a URL.

A published network is a folder that holds `model.safetensors`, `card.md` and `evaluation.json`.
"""

from __future__ import annotations

import os
import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from blockdrop.errors import BlockdropError, CheckpointError

MODEL_FILE, CARD = "model.safetensors", "card.md"
SUFFIXES = (".safetensors", ".t7", ".pt", ".pth", ".th")
VARIABLE = "BLOCKDROP_PRETRAINED"
HUB = "hf://"


def pretrained_folder() -> Path:
    """Where published networks lie: what BLOCKDROP_PRETRAINED names, else `pretrained/` of the checkout."""
    return Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parents[3] / "pretrained")


def pretrained(folder: str | Path | None = None) -> dict[str, str]:
    """The published networks that `blockdrop.load` knows by name.

    Args:
        folder: where to look. Default: the environment's BLOCKDROP_PRETRAINED, else `pretrained/` of the checkout.
    Returns:
        the first sentence of each one's card, by name; none where there is no such folder.
    """
    root = pretrained_folder() if folder is None else Path(folder)
    cards = sorted(file.parent / CARD for file in root.glob(f"*/{MODEL_FILE}"))
    return {card.parent.name: _first_sentence(card) for card in cards}


def _first_sentence(card: Path) -> str:
    if not card.is_file():
        return ""
    paragraphs = [part for part in card.read_text(encoding="utf-8").split("\n\n") if not part.startswith("#")]
    text = " ".join(paragraphs[0].split()) if paragraphs else ""
    return re.split(r"(?<=\.) ", text, maxsplit=1)[0]


def find(name: str | Path) -> Path:
    """The file or folder that a checkpoint's name means; what lies on the disk wins.

    Raises:
        CheckpointError: it can't be fetched.
    """
    text = str(name)
    if text.startswith(HUB):
        return _from_hub(text)
    if re.match(r"https?://", text):
        return _from_url(text)
    if not os.path.exists(text) and re.fullmatch(r"[\w.-]+", text) and text in pretrained():
        return pretrained_folder() / text
    return Path(name)


def _from_hub(text: str) -> Path:
    """`hf://owner/repository`, or `hf://owner/repository/network`."""
    parts = text.removeprefix(HUB).split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise CheckpointError(f"{text}: must be {HUB}owner/repository, or {HUB}owner/repository/network")
    owner, repository, *rest = parts
    file = rest[0] if rest and rest[0].endswith(SUFFIXES) else "/".join([*rest, MODEL_FILE])
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise BlockdropError(f"{text}: huggingface_hub isn't installed; pip install huggingface_hub") from None
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # the hub's own, and its client's
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{text}: {file} can't be fetched ({reason})") from None


def _from_url(url: str) -> Path:
    """A file's URL, or that of a folder of a published network; kept in torch's hub folder."""
    import hashlib

    import torch

    if not urlsplit(url).path.endswith(SUFFIXES):
        url = f"{url.rstrip('/')}/{MODEL_FILE}"
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    path = Path(torch.hub.get_dir()) / "blockdrop" / key / Path(urlsplit(url).path).name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, ValueError, HTTPException) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(f"{url}: can't be fetched ({reason})") from None
        if path.read_bytes()[:1] == b"<":
            path.unlink()
            raise CheckpointError(f"{url}: is a page, not a checkpoint; name the file itself")
    return path
