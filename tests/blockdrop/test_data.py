"""Data sets: what is read, how it is augmented, what is said about broken folders."""

import errno
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blockdrop.data.memory
import blockdrop.data.source
import blockdrop.data.streamed
from blockdrop.data import (
    NORMALISATIONS,
    RESIZE_FACTOR,
    Augment,
    DataSource,
    Images,
    MemoryImages,
    StreamedImages,
    UnreadableImageError,
    left_out,
    normalise,
    random_crop,
    read_image,
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


def batches(images: Images, augment: Augment | None, **part: Any) -> list[torch.Tensor]:
    """All images and all labels."""
    return [torch.cat(parts) for parts in zip(*images.batches(4, NONE, augment=augment, **part), strict=True)]


def image_set(kind: str, folder: Path) -> Images:
    """Ten images, in memory or streamed."""
    size = {"memory": 32, "streamed": 80}[kind]
    write_image_tree(folder, count=5, size=size)
    return DataSource("Folder", folder, image_size=size, workers=0).train


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


def test_streamed_images_are_cut_as_seed_epoch_and_position_say(tmp_path: Path) -> None:
    write_image_tree(tmp_path, count=2, size=91)
    images = DataSource("Folder", tmp_path, image_size=80, workers=0).train
    order = torch.randperm(4, generator=torch.Generator().manual_seed(blockdrop.data.derived_seed(5, 6))).tolist()
    ((found, _),) = images.batches(4, NONE, augment=Augment(5, 6))
    assert round(80 * RESIZE_FACTOR) == 91, "so nothing is resized"
    for image, position in zip(found, order, strict=True):
        path = sorted((tmp_path / "train").rglob("*.png"))[position]
        generator = np.random.default_rng([5, 6, position])
        left, top = generator.integers(0, 12), generator.integers(0, 12)
        pixels = np.asarray(Image.open(path))[top : top + 80, left : left + 80]
        pixels = pixels[:, ::-1] if generator.random() < 0.5 else pixels
        assert image.mul(255).round().permute(1, 2, 0).equal(torch.from_numpy(pixels.copy()).float())


@pytest.mark.parametrize("augment", [None, Augment(1, 2)])
@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_an_epoch_goes_on_where_it_stopped(tmp_path: Path, kind: str, augment: Augment | None) -> None:
    images = image_set(kind, tmp_path)
    whole = list(images.batches(4, NONE, augment=augment))
    assert [len(labels) for _, labels in whole] == [4, 4, 2]
    for start in range(5):
        rest = list(images.batches(4, NONE, augment=augment, start=start))
        assert len(rest) == max(0, 3 - start)
        for (pixels, labels), (same, same_labels) in zip(rest, whole[start:], strict=True):
            assert pixels.equal(same)
            assert labels.equal(same_labels)


def test_what_an_epoch_leaves_out_is_not_read(tmp_path: Path) -> None:
    images = image_set("streamed", tmp_path)
    (tmp_path / "train" / "cat" / "0001.png").write_bytes(b"no image")
    assert len(batches(images, None, start=1)[1]) == 6


@pytest.mark.parametrize("augment", [None, Augment(1, 2)])
@pytest.mark.parametrize("kind", ["memory", "streamed"])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_shares_of_all_processes_are_the_batch(
    tmp_path: Path, kind: str, augment: Augment | None, processes: int
) -> None:
    images = image_set(kind, tmp_path)
    whole = list(images.batches(4, NONE, augment=augment, start=1))
    shares = [
        list(images.batches(4, NONE, augment=augment, start=1, share=(rank, processes)))
        for rank in range(processes)
    ]
    for number, (pixels, labels) in enumerate(whole):
        for rank, share in enumerate(shares):
            part, part_labels = share[number]
            assert part.equal(pixels.tensor_split(processes)[rank])
            assert part_labels.equal(labels.tensor_split(processes)[rank])
    assert {len(share) for share in shares} == {2}
    if processes > 2:
        assert shares[-1][-1][0].shape == (0, 3, *pixels.shape[2:]), "as many steps for all"


@pytest.mark.parametrize("part", [{"start": -1}, {"share": (2, 2)}, {"share": (-1, 2)}])
def test_there_is_no_such_part_of_an_epoch(part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no such part"):
        next(DataSource("Digits").test.batches(4, NONE, **part))


def test_reading_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    images = image_set("streamed", tmp_path)
    before = torch.get_rng_state()
    batches(images, Augment(0, 0))
    assert torch.get_rng_state().equal(before)


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
        patch.setattr(blockdrop.data.memory, "_decode", fail)
        again = DataSource("Folder", image_tree).test
        assert isinstance(again, MemoryImages)
        assert again.images.equal(first.images)

    Image.fromarray(255 - pixels).save(image_tree / "test" / "dog" / "0000.png")
    changed = DataSource("Folder", image_tree).test
    assert isinstance(changed, MemoryImages)
    assert not changed.images.equal(first.images), "a changed file is decoded anew"


def test_two_runs_that_start_together_decode_once(image_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = blockdrop.data.memory._decode, []

    def slow(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        time.sleep(0.3)
        return original(*arguments, **options)

    monkeypatch.setattr(blockdrop.data.memory, "_decode", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: DataSource("Folder", image_tree).test, range(2))
    assert len(calls) == 1
    assert isinstance(first, MemoryImages)
    assert isinstance(second, MemoryImages)
    assert first.images.equal(second.images)


def test_a_damaged_cache_is_made_anew(image_tree: Path) -> None:
    first = DataSource("Folder", image_tree).test
    (cache,) = (image_tree / ".blockdrop-cache").glob("*-32-2.npz")
    cache.write_bytes(cache.read_bytes()[:100])
    with pytest.warns(UserWarning, match="damaged cache"):
        again = DataSource("Folder", image_tree).test
    assert isinstance(first, MemoryImages)
    assert isinstance(again, MemoryImages)
    assert again.images.equal(first.images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(DataSource("Folder", image_tree).test) == 12


@pytest.mark.parametrize("wrong", [{"labels": 10**12}, {"labels": -1}, {"left_out": 10**12}, {"left_out": -13}])
def test_labels_kept_beside_images_are_compared(image_tree: Path, wrong: dict[str, int]) -> None:
    spoil(image_tree / "test" / "dog" / "0005.png")
    expected = DataSource("Folder", image_tree, skip_bad_images=True).test.labels
    (cache,) = (image_tree / ".blockdrop-cache").glob("*-32-2.npz")
    with np.load(cache) as stored:
        arrays = dict(stored)
    for name, value in wrong.items():
        arrays[name][0] = value
    np.savez(cache, **arrays)
    with pytest.warns(UserWarning, match="damaged cache"):
        again = DataSource("Folder", image_tree, skip_bad_images=True).test
    assert again.labels.equal(expected)


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
        (lambda tree: [f.unlink() for f in (tree / "test" / "dog").iterdir()], "no image in class folder dog"),
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


def spoil(path: Path) -> None:
    """Cuts an image short, so that it opens but doesn't decode."""
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_that_do_not_decode_are_left_out_and_listed(tmp_path: Path, workers: int) -> None:
    write_image_tree(tmp_path, size=80)
    whole, _ = batches(DataSource("Folder", tmp_path, image_size=72, workers=0).train, Augment(0, 0))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(blockdrop.data.derived_seed(0, 0)))
    spoil(tmp_path / "train" / "cat" / "0002.png")
    (tmp_path / "train" / "dog" / "0001.png").unlink()
    (tmp_path / "train" / "dog" / "0001.png").symlink_to("nowhere")
    source = DataSource("Folder", tmp_path, image_size=72, workers=workers, skip_bad_images=True)
    assert source.left_out is None
    for _ in range(2):  # epochs
        rest, labels = batches(source.train, Augment(0, 0))
        assert rest.equal(whole[(order != 2) & (order != 7)]), "the other images are as ever"
        assert labels.sum() == 5
        assert [path for path, _ in source.bad_images] == [
            str(tmp_path / "train" / name) for name in ("cat/0002.png", "dog/0001.png")
        ]
    assert source.left_out == f"left out 2 unreadable images: {tmp_path}/train/cat/0002.png, " + (
        f"{tmp_path}/train/dog/0001.png"
    )
    assert source.bad_images[1][1] == "No such file or directory"


def test_a_batch_of_a_single_unreadable_image_is_empty(tmp_path: Path) -> None:
    write_image_tree(tmp_path, size=80, count=2)
    spoil(tmp_path / "train" / "cat" / "0000.png")
    source = DataSource("Folder", tmp_path, image_size=72, workers=0, skip_bad_images=True)
    shapes = [images.shape for images, _ in source.train.batches(1, NONE)]
    assert shapes == [(0, 3, 72, 72)] + 3 * [(1, 3, 72, 72)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_several_images_none_readable_is_refused(tmp_path: Path, workers: int) -> None:
    write_image_tree(tmp_path, size=80)
    for path in sorted((tmp_path / "train" / "cat").iterdir())[:4]:
        spoil(path)
    source = DataSource("Folder", tmp_path, image_size=72, workers=workers, skip_bad_images=True)
    with pytest.raises(DataError, match=r"none of the 4 images of a batch can be read: .*cat/0000\.png") as caught:
        batches(source.train, None)
    assert "--skip_bad_images" not in str(caught.value)
    assert len(next(source.train.batches(5, NONE))[1]) == 1, "here every batch has a good one"


def test_a_set_read_one_by_one_none_readable_is_refused(tmp_path: Path) -> None:
    write_image_tree(tmp_path, size=80, count=2)
    for path in (tmp_path / "test").rglob("*.png"):
        spoil(path)
    source = DataSource("Folder", tmp_path, image_size=72, workers=0, skip_bad_images=True)
    with pytest.raises(DataError, match="none of the 4 images of the data set can be read"):
        list(source.test.batches(1, NONE))
    with pytest.raises(DataError, match="the only image of the data set can't be read"):
        list(source.test.subset(torch.tensor([2])).batches(1, NONE))
    assert len(list(source.test.batches(1, NONE, start=3))) == 1, "the rest of an epoch isn't the set"


@pytest.mark.parametrize("skip_bad_images", [False, True])
@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("folder", ["data", "data/train/cat"])
def test_a_folder_that_vanishes_is_no_bad_image(
    tmp_path: Path, folder: str, size: int, skip_bad_images: bool
) -> None:
    write_image_tree(tmp_path / "data", size=size)
    source = DataSource("Folder", tmp_path / "data", image_size=size, workers=0, skip_bad_images=skip_bad_images)
    files = source.files(train=True)
    assert files is not None
    (tmp_path / folder).rename(tmp_path / "moved")
    for read in (lambda: files.read(0), lambda: batches(source.train, None)):
        with pytest.raises(DataError, match=r"the folder can't be reached \(No such file") as caught:
            read()
        assert str(caught.value).startswith(f"{tmp_path / folder}: "), "the topmost one that is gone"
        assert "--skip_bad_images" not in str(caught.value)
    assert not source.bad_images
    assert not (tmp_path / folder).exists(), "not made anew for the cache"


def test_a_file_that_vanishes_alone_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableImageError, match="or pass --skip_bad_images"):
        read_image(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"x\.png: not a readable image"):
        read_image("x.png")


def test_images_in_memory_that_do_not_decode_are_left_out_and_come_back(image_tree: Path) -> None:
    path = image_tree / "train" / "cat" / "0002.png"
    content = path.read_bytes()
    whole = DataSource("Folder", image_tree).train
    spoil(path)
    for _ in range(2):  # decoded, then from the cache
        source = DataSource("Folder", image_tree, skip_bad_images=True)
        assert source.train.labels.tolist() == [0] * 5 + [1] * 6
        assert source.bad_images[0][0] == str(path)
        assert batches(source.train, None)[0].equal(batches(whole, None)[0][torch.arange(12) != 2])
    with pytest.raises(DataError, match=r"cat/0002\.png: not a readable image"):
        DataSource("Folder", image_tree).train  # noqa: B018
    path.write_bytes(content)
    source = DataSource("Folder", image_tree, skip_bad_images=True)
    assert len(source.train) == 12
    assert source.left_out is None


def test_an_image_that_looks_unchanged_but_is_mended_comes_back(image_tree: Path) -> None:
    """As where only its permissions change."""
    path = image_tree / "train" / "cat" / "0002.png"
    status, content = path.stat(), path.read_bytes()
    for now, count in ((b"x" * len(content), 11), (content, 12)):
        path.write_bytes(now)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert len(DataSource("Folder", image_tree, skip_bad_images=True).train) == count


def test_a_data_set_without_a_readable_image_is_refused(image_tree: Path) -> None:
    for path in (image_tree / "train").rglob("*.png"):
        spoil(path)
    with pytest.raises(DataError, match=r"none of the 12 images of the data set can be read: .*0000\.png \("):
        DataSource("Folder", image_tree, skip_bad_images=True).train  # noqa: B018


def test_a_disk_in_trouble_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_set("streamed", tmp_path)
    skipping = DataSource("Folder", tmp_path, image_size=80, workers=0, skip_bad_images=True)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", fail)
    for source in (images, skipping.train):
        with pytest.raises(DataError, match=r"can't be read \(Too many open files\)"):
            batches(source, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "none of JPEG"),
        (b"P6 30000 30000 255\n", "decompression bomb"),
        (b"", "none of JPEG"),
        (b"P6 3 x 255\n", "invalid literal"),
    ],
)
def test_only_plain_images_of_decent_size_are_opened(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: not a readable image (")
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.webp"
    with open(path, "wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(DataError, match=r"314,572,800 bytes, over 256 MiB"):
        read_image(path)


@pytest.mark.parametrize("size", [32, 72])
def test_a_strip_is_not_blown_up(tmp_path: Path, size: int) -> None:
    write_image_tree(tmp_path, size=size)
    Image.new("RGB", (1, 200_000)).save(tmp_path / "train" / "cat" / "0000.png")
    source = DataSource("Folder", tmp_path, image_size=size, workers=0, skip_bad_images=True)
    assert len(batches(source.train, None)[0]) == 11
    assert source.bad_images[0][1] == "a strip of 1 × 200000 pixels"


def test_many_bad_images_are_counted_and_some_named() -> None:
    assert left_out([]) is None
    line = left_out([(f"{number}.png", "cut") for number in range(1200)])
    assert line is not None
    assert line.startswith("left out 1,200 unreadable images: 0.png, 1.png, ")
    assert line.endswith(", 9.png and 1,190 more")


def test_a_signal_to_all_processes_does_not_end_those_that_read(tmp_path: Path) -> None:
    write_image_tree(tmp_path, size=80, count=10)
    reading = DataSource("Folder", tmp_path, image_size=72, workers=1).train.batches(2, NONE)
    count = len(next(reading)[1])
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert count + sum(len(labels) for _, labels in reading) == 20


def test_a_killed_process_that_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    """As where memory runs out."""
    write_image_tree(tmp_path, size=80, count=10)
    reading = DataSource("Folder", tmp_path, image_size=72, workers=2).train.batches(1, NONE)
    next(reading)
    worker, other = multiprocessing.active_children()
    worker.kill()
    worker.join()  # no error wherever the program is then, only for the next batches
    expected = rf"process {worker.pid}, which reads images, was ended by SIGKILL.*pass fewer --workers"
    with pytest.raises(DataError, match=expected) as caught:
        list(reading)
    assert "\n" not in str(caught.value)
    other.join(timeout=60)
    assert other.exitcode, "else the program could never end"


def test_other_errors_of_the_reading_processes_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_set("streamed", tmp_path)
    assert isinstance(images, StreamedImages)

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr("torchvision.transforms.v2.functional.pil_to_tensor", fail)
    for images.workers in (0, 1):
        with pytest.raises(RuntimeError, match="a mistake in the program") as caught:
            batches(images, None)
        assert caught.value, "kept, and with it the loader"
        for process in multiprocessing.active_children():
            process.join(timeout=60)
        assert not multiprocessing.active_children()


def test_full_shared_memory_is_said_once_instead_of_waiting_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)  # the processes that read are forked
    images = image_set("streamed", tmp_path)
    assert isinstance(images, StreamedImages)
    images.workers = 1
    said = r"shared memory is full \(unable.*No space left on device \(28\)\); pass --workers 0, or give it more"
    with pytest.raises(DataError, match=said):
        batches(images, None)
    images.workers = 0
    assert batches(images, None)


def test_a_process_that_ends_by_itself_is_not_said_to_lack_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_set("streamed", tmp_path)
    assert isinstance(images, StreamedImages)
    images.workers = 1
    monkeypatch.setattr("torchvision.transforms.v2.functional.pil_to_tensor", lambda *_: os._exit(7))
    with pytest.raises(DataError, match=r"ended with exit code 7; pass --workers 0 to see why"):
        batches(images, None)


def test_processes_that_cannot_be_started_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_tree(tmp_path, size=80)
    images = DataSource("Folder", tmp_path, image_size=72, workers=3).train

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", fail)
    with pytest.raises(DataError, match=r"--workers 3: can't be started \(Cannot allocate memory\); pass fewer"):
        batches(images, None)


def test_imagenets_sizes_are_streamed_by_two_processes(tmp_path: Path) -> None:
    write_image_tree(tmp_path, size=240, count=3)
    source = DataSource("ImgNet", tmp_path, image_size=224, workers=2)
    shapes = [images.shape for images, _ in source.train.batches(4, source.info.normalisation)]
    assert shapes == [(4, 3, 224, 224), (2, 3, 224, 224)]


def test_torchvisions_cifar_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeCifar:  # what torchvision's data set offers, without its 160 MB
        base_folder = "cifar-10-batches-py"
        classes = tuple("abcdefghij")

        def __init__(self, root: str, train: bool, download: bool):
            assert (root, download) == (str(tmp_path), True)
            self.data = np.full((3, 32, 32, 3), 50 if train else 200, dtype=np.uint8)
            self.data[1, :, :, 2] = 7
            self.targets = [3, 1, 9]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
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
