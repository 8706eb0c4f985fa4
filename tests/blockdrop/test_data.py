"""Data sets: what is read, how it is augmented, what is said about broken folders."""

import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blockdrop.data
from blockdrop.data import (
    NORMALISATIONS,
    Augment,
    DataSource,
    MemoryImages,
    StreamedImages,
    normalise,
    random_crop,
)
from blockdrop.errors import DataError
from tests.conftest import write_image_tree

NONE = NORMALISATIONS["none"]


def test_digits_are_split_into_1347_and_450() -> None:
    source = DataSource("Digits")
    assert (len(source.train), len(source.test), source.num_classes) == (1347, 450, 10)
    assert isinstance(source.test, MemoryImages)
    assert source.test.images.dtype == torch.uint8
    assert source.test.images.shape == (450, 3, 32, 32)
    assert len(source.test.labels.unique()) == 10


def test_normalisation_by_hand() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    out = normalise(images, NORMALISATIONS["imagenet"])
    assert out[0, 1, 0, 0].item() == pytest.approx(-0.456 / 0.224)
    assert out[1, 2, 3, 3].item() == pytest.approx((1 - 0.406) / 0.225)


def test_crop_moves_each_image_by_its_own_offset() -> None:
    images = torch.arange(2 * 3 * 5 * 5).view(2, 3, 5, 5)
    out = random_crop(images, 2, torch.tensor([[2, 2], [0, 3]]))
    assert out[0].equal(images[0]), "offset = padding leaves the image as it is"
    assert out[1, :, 2:, :4].equal(images[1, :, :3, 1:])
    assert out[1, :, :2].eq(0).all()
    assert out[1, :, :, 4].eq(0).all()


def batches(images: MemoryImages | StreamedImages, augment: Augment | None) -> list[torch.Tensor]:
    return [torch.cat(parts) for parts in zip(*images.batches(4, NONE, augment=augment), strict=True)]


@pytest.mark.parametrize("size", [32, 80])
def test_augmentation_depends_on_seed_and_epoch_alone(tmp_path: Path, size: int) -> None:
    source = DataSource("Folder", write_image_tree(tmp_path, size=size), image_size=size, workers=0)
    images, labels = batches(source.train, Augment(1, 2))
    again, again_labels = batches(source.train, Augment(1, 2))
    assert images.equal(again)
    assert labels.equal(again_labels)
    assert not images.equal(batches(source.train, Augment(1, 3))[0])
    assert not images.equal(batches(source.train, Augment(2, 2))[0])
    plain, plain_labels = batches(source.train, None)
    assert plain.shape == (12, 3, size, size)
    assert plain_labels.tolist() == [0] * 6 + [1] * 6


def test_streaming_is_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    write_image_tree(tmp_path, size=80)
    alone, two = (
        batches(DataSource("Folder", tmp_path, image_size=72, workers=workers).train, Augment(0, 0))
        for workers in (0, 2)
    )
    assert alone[0].equal(two[0])
    assert alone[1].equal(two[1])


@pytest.mark.parametrize("size", [32, 80])
def test_a_subset_holds_the_images_of_its_rows(tmp_path: Path, size: int) -> None:
    test = DataSource("Folder", write_image_tree(tmp_path, size=size), image_size=size, workers=0).test
    rows = torch.tensor([1, 6, 11])
    images, labels = batches(test, None)
    some, some_labels = batches(test.subset(rows), None)
    assert some.equal(images[rows])
    assert some_labels.equal(labels[rows])
    assert len(test.subset(rows)) == 3


def test_each_image_is_flipped_by_its_own_coin() -> None:
    left_half = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)
    left_half[..., :4] = 255
    images = MemoryImages(left_half, torch.arange(200), padding=0)
    flipped = batches(images, Augment(0, 0))[0][:, 0, 0, 0].eq(0).sum()
    assert 70 < flipped < 130
    assert batches(MemoryImages(left_half, torch.arange(200), padding=0, flip=False), Augment(0, 0))[0].equal(
        normalise(left_half, NONE)
    )


@pytest.mark.parametrize("size", [32, 80])
def test_training_leaves_no_batch_of_a_single_image(tmp_path: Path, size: int) -> None:
    source = DataSource("Folder", write_image_tree(tmp_path, size=size), image_size=size, workers=0)
    assert [len(labels) for _, labels in source.train.batches(11, NONE, augment=Augment(0, 0))] == [12]
    assert [len(labels) for _, labels in source.train.batches(11, NONE)] == [11, 1]
    assert [len(labels) for _, labels in source.train.batches(1, NONE, augment=Augment(0, 0))] == [1] * 12


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_layout_is_as_asked(channels_last: bool) -> None:
    images, _ = next(DataSource("Digits").test.batches(4, NONE, channels_last=channels_last))
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert images.is_contiguous() != channels_last


def test_images_are_decoded_once(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = DataSource("Folder", image_tree).test
    pixels = np.asarray(Image.open(image_tree / "test" / "dog" / "0000.png"))
    assert isinstance(first, MemoryImages)
    np.testing.assert_array_equal(first.images[6].permute(1, 2, 0).numpy(), pixels)

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(blockdrop.data, "_decode", fail)
        again = DataSource("Folder", image_tree).test
        assert isinstance(again, MemoryImages)
        assert again.images.equal(first.images)

    Image.fromarray(255 - pixels).save(image_tree / "test" / "dog" / "0000.png")
    changed = DataSource("Folder", image_tree).test
    assert isinstance(changed, MemoryImages)
    assert not changed.images.equal(first.images), "a changed file is decoded anew"


def test_two_runs_that_start_together_decode_once(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = blockdrop.data._decode, []

    def slow(*arguments: Any) -> Any:
        calls.append(1)
        time.sleep(0.3)
        return original(*arguments)

    monkeypatch.setattr(blockdrop.data, "_decode", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: DataSource("Folder", image_tree).test, range(2))
    assert len(calls) == 1
    assert isinstance(first, MemoryImages)
    assert isinstance(second, MemoryImages)
    assert first.images.equal(second.images)


def test_a_damaged_cache_is_made_anew(image_tree: Path) -> None:
    first = DataSource("Folder", image_tree).test
    (cache,) = (image_tree / ".blockdrop-cache").glob("*.pt")
    cache.write_bytes(cache.read_bytes()[:100])
    with pytest.warns(UserWarning, match="damaged cache"):
        again = DataSource("Folder", image_tree).test
    assert isinstance(first, MemoryImages)
    assert isinstance(again, MemoryImages)
    assert again.images.equal(first.images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataSource("Folder", image_tree).test  # noqa: B018


def test_a_cifar_tree_stands_in_for_cifar(tmp_path: Path) -> None:
    tree = write_image_tree(tmp_path, classes=tuple("abcdefghij"), count=1)
    assert DataSource("C10", tree).num_classes == 10


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "no such folder; point --data_dir"),
        (lambda tree: shutil.rmtree(tree / "test"), "no test or val folder"),
        (lambda tree: shutil.rmtree(tree / "train"), "no train folder"),
        (lambda tree: [shutil.rmtree(d) for d in (tree / "test").iterdir()], "no class folders"),
        (lambda tree: shutil.rmtree(tree / "test" / "dog"), "class dog is in only one of"),
        (lambda tree: [f.unlink() for f in (tree / "test" / "dog").iterdir()], "Found no valid file.*dog"),
        (
            lambda tree: (tree / "test" / "dog" / "0003.png").write_bytes(b"no image"),
            "dog/0003.png: not a readable",
        ),
    ],
)
def test_broken_folders_are_named(image_tree: Path, break_it: object, message: str) -> None:
    assert callable(break_it)
    break_it(image_tree)
    with pytest.raises(DataError, match=message) as caught:
        DataSource("Folder", image_tree).test  # noqa: B018
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_image_that_does_not_decode_is_named(tmp_path: Path, workers: int) -> None:
    write_image_tree(tmp_path, size=80)
    path = tmp_path / "train" / "cat" / "0002.png"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cat/0002\.png: not a readable image") as caught:
        batches(DataSource("Folder", tmp_path, image_size=72, workers=workers).train, None)
    assert "\n" not in str(caught.value)


def test_torchvisions_cifar_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeCifar:  # what torchvision's data set offers, without its 160 MB
        base_folder = "cifar-10-batches-py"
        classes = tuple("abcdefghij")

        def __init__(self, root: str, train: bool, download: bool):
            assert (root, download) == (str(tmp_path), True)
            self.data = np.full((3, 32, 32, 3), 50 if train else 200, dtype=np.uint8)
            self.data[1, :, :, 2] = 7
            self.targets = [3, 1, 9]

    monkeypatch.setattr(blockdrop.data.torchvision.datasets, "CIFAR10", FakeCifar)
    source = DataSource("C10", tmp_path, download=True)
    assert source.num_classes == 10
    assert isinstance(source.test, MemoryImages)
    assert isinstance(source.train, MemoryImages)
    assert source.test.labels.tolist() == [3, 1, 9]
    assert source.test.images[0].unique().tolist() == [200]
    assert source.train.images[1, :, 4, 5].tolist() == [50, 50, 7]


def test_missing_cifar_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass --download"):
        DataSource("C10", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        DataSource("C100", tmp_path / "missing")
