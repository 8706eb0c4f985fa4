"""Data of a user's own: the same batches as from memory, reproducible whatever is drawn at random, refused in one
line where they aren't what a network takes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from blockdrop.data import (
    NORMALISATIONS,
    Augment,
    DataSource,
    Images,
    MemoryImages,
    OwnData,
    OwnImages,
    as_data,
    as_images,
    identify,
    reading,
)
from blockdrop.errors import DataError
from tests.conftest import write_image_tree

NONE = NORMALISATIONS["none"]
SIDE, CLASSES, COUNT = 8, 3, 11
Batches = list[tuple[Tensor, Tensor]]


class Pairs(Dataset[Any]):
    """Items as they are given."""

    def __init__(self, items: list[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Noisy(Dataset[Any]):
    """Images that are drawn anew each time, from every global generator."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = torch.rand(1) + float(np.random.rand()) + random.random()  # noqa: NPY002  # as many transforms do
        return drawn.expand(3, SIDE, SIDE) + index, index % CLASSES


def pixels(count: int = COUNT) -> tuple[Tensor, Tensor]:
    """uint8 (M, 3, 8, 8) and labels (M,); image i has i somewhere."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator).to(torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return images, torch.arange(count) % CLASSES


def floats(count: int = COUNT) -> TensorDataset:
    """The same, in [0, 1]."""
    images, labels = pixels(count)
    return TensorDataset(images.float() / 255, labels)


def own(data: Any, **options: Any) -> OwnImages:
    return OwnImages(data, SIDE, CLASSES, **options)


def read(images: Images, augment: Augment | None = None, batch_size: int = 4, **part: Any) -> Batches:
    return list(images.batches(batch_size, NONE, augment=augment, **part))


def assert_same(found: Batches, expected: Batches) -> None:
    assert len(found) == len(expected)
    for (images, labels), (others, other_labels) in zip(found, expected, strict=True):
        torch.testing.assert_close(images, others, rtol=0, atol=0)
        assert labels.equal(other_labels)


def numbers(batches: Batches) -> list[list[int]]:
    """Which images they hold."""
    return [(images[:, 0, 0, 0] * 255).round().long().tolist() for images, _ in batches]


def all_numbers(batches: Batches) -> list[int]:
    """The same, of all batches together."""
    return list(itertools.chain.from_iterable(numbers(batches)))


# ---- what is read


@pytest.mark.parametrize("augment", [None, Augment(3, 1)])
@pytest.mark.parametrize("count", [COUNT, 9])  # 9: a last batch of one, which no BatchNorm can be trained on
def test_a_data_set_gives_the_batches_of_the_same_images_in_memory(count: int, augment: Augment | None) -> None:
    memory = MemoryImages(*pixels(count), padding=0, flip=False)
    found, expected = read(own(floats(count)), augment), read(memory, augment)
    for (images, labels), (others, other_labels) in zip(found, expected, strict=True):
        torch.testing.assert_close(images, others)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.equal(other_labels)
    assert own(floats(count)).count_batches(4) == memory.count_batches(4) == (3 if count == COUNT else 2)
    assert own(floats(count)).smallest_batch(4) == memory.smallest_batch(4) == (3 if count == COUNT else 4)


def test_a_subset_holds_the_images_of_its_rows() -> None:
    rows = torch.tensor([7, 2, 5])
    for data in (floats(), DataLoader(floats(), batch_size=2, shuffle=True)):
        some = own(data).subset(rows)
        assert numbers(read(some)) == [[7, 2, 5]]
        assert some.labels.tolist() == [1, 2, 2]
        assert sorted(numbers(read(some, Augment(0, 0), 2))[0]) == [2, 5, 7]
        assert some.count_batches(2) == 1


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "data set": lambda: floats(),  # type: ignore[dict-item, return-value]
    "shuffled": lambda: DataLoader(floats(), batch_size=4, shuffle=True),
    "own generator": lambda: DataLoader(floats(), 4, shuffle=True, generator=torch.Generator().manual_seed(7)),
    "weighted": lambda: DataLoader(floats(), 4, sampler=WeightedRandomSampler(torch.arange(COUNT) / 10, 20)),
    "subset": lambda: DataLoader(floats(), 4, sampler=SubsetRandomSampler([9, 1, 4, 6, 0])),
    "numpy": lambda: DataLoader(floats(), 4, sampler=NumpySampler()),
    "uneven": lambda: DataLoader(floats(), batch_sampler=Uneven()),
    "noisy": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True),
    "mixed": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True, collate_fn=shifted),
}


class NumpySampler(Sampler[int]):
    """Draws from a generator that it keeps."""

    def __init__(self) -> None:
        self.drawing = np.random.default_rng(4)

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[int]:
        yield from self.drawing.permutation(COUNT)


class Uneven(Sampler[list[int]]):
    """Batches of 2, 4 and 5 images, shuffled by Python's global generator."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[list[int]]:
        order = random.sample(range(COUNT), COUNT)
        yield from (order[:2], order[2:6], order[6:])


def shifted(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A collate_fn that draws."""
    images = torch.stack([image for image, _ in samples])
    return images + torch.rand(len(images), 1, 1, 1), torch.tensor([label for _, label in samples])


@pytest.mark.parametrize("kind", LOADERS)
def test_an_epoch_goes_on_where_it_stopped_and_nothing_global_is_drawn(kind: str) -> None:
    images = own(LOADERS[kind]())
    whole = read(images, Augment(1, 2))
    count = images.count_batches(4)
    assert len(whole) == count
    assert min(len(labels) for _, labels in whole) == images.smallest_batch(4)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    for start in range(count + 1):
        assert_same(read(own(LOADERS[kind]()), Augment(1, 2), start=start), whole[start:])
        assert_same(read(images, Augment(1, 2), start=start), whole[start:])
    assert not torch.cat([labels for _, labels in read(images, Augment(1, 3))]).equal(
        torch.cat([labels for _, labels in whole])
    ), "another epoch"
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    assert after[0].equal(before[0])
    assert after[1:] == before[1:]


@pytest.mark.parametrize("augment", [None, Augment(1, 2)])
@pytest.mark.parametrize("kind", sorted(set(LOADERS) - {"mixed"}))
def test_shares_of_two_processes_make_the_whole_batch(kind: str, augment: Augment | None) -> None:
    images = own(LOADERS[kind]())
    halves = [read(images, augment, start=1, share=(rank, 2)) for rank in (0, 1)]
    together = [
        tuple(torch.cat(parts) for parts in zip(*halved, strict=True)) for halved in zip(*halves, strict=True)
    ]
    assert_same(together, read(images, augment)[1:])  # type: ignore[arg-type]


def test_a_process_without_a_share_of_the_last_test_batch_gets_none_of_it() -> None:
    for data in (floats(), DataLoader(floats(), collate_fn=shifted)):
        *_, (images, labels) = read(own(data), batch_size=10, share=(1, 2))
        assert images.shape == (0, 3, SIDE, SIDE)
        assert labels.shape == (0,)


@pytest.mark.parametrize("augment", [None, Augment(0, 4)])
def test_what_an_item_draws_does_not_depend_on_the_number_of_workers(augment: Augment | None) -> None:
    alone = read(own(Noisy()), augment)
    assert_same(read(own(Noisy(), workers=2), augment), alone)
    for kind in ("noisy", "mixed"):
        loaders = LOADERS[kind](), DataLoader(Noisy(), 4, shuffle=True, num_workers=2)
        alone, two = (read(own(loader), augment) for loader in loaders)
        if kind == "noisy":
            assert_same(two, alone)
        else:
            again = DataLoader(Noisy(), 4, shuffle=True, num_workers=2, collate_fn=shifted)
            assert_same(read(own(again), augment), alone)


def test_without_augment_a_random_transform_always_draws_the_same() -> None:
    images = own(Noisy())
    assert_same(read(images), read(images))
    first, last = read(images)[0][0], read(images.subset(torch.tensor([0])))[0][0]
    assert first[:1].equal(last), "by the item, not by its place in a batch"


def test_an_item_that_comes_twice_in_an_epoch_draws_twice() -> None:
    twice = DataLoader(Noisy(), 4, sampler=WeightedRandomSampler([1.0] + [0.0] * (COUNT - 1), 4))
    ((images, labels),) = read(own(twice), Augment(0, 0))
    assert labels.tolist() == [0] * 4
    assert len(images[:, 0, 0, 0].unique()) == 4


def test_a_weighted_sampler_is_honoured() -> None:
    weights = torch.tensor([0.0] * 8 + [1.0, 1.0, 2.0])
    images = own(DataLoader(floats(), 10, sampler=WeightedRandomSampler(weights, 1000)))
    drawn = torch.tensor(all_numbers(read(images, Augment(0, 0)))).bincount(minlength=COUNT)
    assert images.count_batches(4) == 100, "its own batches"
    assert drawn[:8].sum() == 0
    assert (drawn[8:] / 1000 - torch.tensor([0.25, 0.25, 0.5])).abs().max() < 0.08
    assert numbers(read(images)) == [[8, 9, 10]], "tests: each that it can draw, once"


def test_a_loader_keeps_its_own_batches_when_it_trains() -> None:
    dropping = own(DataLoader(floats(), batch_size=4, shuffle=True, drop_last=True))
    assert [len(labels) for _, labels in read(dropping, Augment(0, 0), 100)] == [4, 4]
    assert (dropping.count_batches(100), dropping.smallest_batch(100)) == (2, 4)
    assert [len(labels) for _, labels in read(dropping, None, 100)] == [COUNT], "tests leave none out"
    single = own(DataLoader(floats(9), batch_size=4))
    assert numbers(read(single, Augment(0, 0))) == [[0, 1, 2, 3], [4, 5, 6, 7, 8]], "no batch of one image"
    assert (single.count_batches(4), single.smallest_batch(4)) == (2, 4)
    assert [len(labels) for _, labels in read(own(LOADERS["uneven"]()), Augment(0, 0))] == [2, 4, 5]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (SubsetRandomSampler([9, 1, 4]), [1, 4, 9]),
        (RandomSampler(range(4)), [0, 1, 2, 3]),  # type: ignore[arg-type]
        (NumpySampler(), list(range(COUNT))),
        (RandomSampler(range(COUNT), num_samples=3), list(range(COUNT))),  # type: ignore[arg-type]
        ([2, 0, 2], [0, 2]),
    ],
)
def test_a_test_reads_what_the_sampler_can_draw_in_order(sampler: Any, expected: list[int]) -> None:
    images = own(DataLoader(floats(), 2, sampler=sampler))
    assert all_numbers(read(images)) == expected
    assert len(images) == len(expected)
    assert images.labels.tolist() == [number % CLASSES for number in expected]


class Epochs(Sampler[int]):
    """Shuffles by `set_epoch` alone, as samplers of many processes do."""

    epoch = 0

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(COUNT, generator=torch.Generator().manual_seed(self.epoch)).tolist()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_a_sampler_is_told_its_epoch() -> None:
    images = own(DataLoader(floats(), COUNT, sampler=Epochs()))
    first, second, again = (numbers(read(images, Augment(0, epoch))) for epoch in (0, 1, 0))
    assert first == again != second


class Opened(Dataset[Any]):
    """Can't be read before its worker_init_fn has opened it."""

    file: int | None = None

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.file is not None
        return torch.full((3, SIDE, SIDE), float(self.file)), 0


def open_in_worker(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.file = os.getpid()


def test_a_worker_init_fn_finds_the_users_data_set() -> None:
    loader = DataLoader(Opened(), 4, num_workers=1, worker_init_fn=open_in_worker)
    images = as_images(loader, SIDE, CLASSES)
    assert {int(batch[0, 0, 0, 0]) for batch, _ in read(images)} != {os.getpid()}
    assert images.labels.tolist() == [0] * COUNT


# ---- labels


class Labelled(Pairs):
    """With labels, or what looks like them, as an attribute."""

    def __init__(self, labels: Any, **attributes: Any):
        images, true = floats().tensors
        super().__init__([(image, int(label)) for image, label in zip(images, true, strict=True)])
        self.targets, self.reads = labels, 0
        vars(self).update(attributes)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return super().__getitem__(index)


TRUE = [number % CLASSES for number in range(COUNT)]


@pytest.mark.parametrize("labels", [TRUE, torch.tensor(TRUE), np.array(TRUE), [torch.tensor(n) for n in TRUE]])
def test_labels_that_a_data_set_has_ready_need_no_pass_over_it(labels: Any) -> None:
    dataset = Labelled(labels)
    halves = Subset(dataset, range(0, COUNT, 2)), Subset(dataset, range(1, COUNT, 2))
    for images in (own(dataset), own(DataLoader(dataset, 2, shuffle=True))):
        assert images.labels.tolist() == TRUE
    assert own(halves[0]).labels.tolist() == TRUE[::2]
    assert own(ConcatDataset(halves)).labels.tolist() == TRUE[::2] + TRUE[1::2]
    assert dataset.reads == 4 * 3, "a few, to see that they are true"


@pytest.mark.parametrize(
    "labels",
    [None, ["cat"] * COUNT, TRUE[:-1], torch.tensor(TRUE).float(), [7] * COUNT, torch.ones(COUNT, 4).long()],
)
def test_other_labels_are_read_from_the_items_once(labels: Any) -> None:
    dataset = Labelled(labels)
    images = own(dataset)
    assert images.labels.tolist() == TRUE
    reads = dataset.reads
    assert reads >= COUNT
    assert images.labels.tolist() == TRUE
    assert images.subset(torch.tensor([3, 2])).labels.tolist() == [0, 2]
    assert dataset.reads == reads


def test_labels_that_are_transformed_are_not_taken_as_they_are() -> None:
    almost = [*TRUE[:4], 9, *TRUE[5:]]  # those that are looked at fit
    assert own(Labelled(almost, target_transform=abs)).labels.tolist() == TRUE


# ---- what is no such data


def item(image: Any = None, label: Any = 0) -> Pairs:
    good = torch.zeros(3, SIDE, SIDE)
    return Pairs([(good, 0), (good if image is None else image, label)])


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(3, SIDE, SIDE), 0


class NoLength:
    def __getitem__(self, index: int) -> Any:
        raise IndexError


class NoLengthSampler(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(3)


NAN = torch.zeros(3, SIDE, SIDE).fill_(float("nan"))
BAD_ITEMS = [
    (item(torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)), r"item 1: an image of torch\.uint8.*dynamic\.transform"),
    (item(np.zeros((3, SIDE, SIDE), np.uint8)), r"item 1: an image of torch\.uint8"),
    (item(Image.new("RGB", (SIDE, SIDE))), r"item 1: a PIL image; .*dynamic\.transform"),
    (item("cat.jpg"), "item 1: its image is a str"),
    (
        item(torch.zeros(1, SIDE, SIDE)),
        r"item 1: an image of shape \(1, 8, 8\); \(3, 8, 8\) is wanted: make it RGB",
    ),
    (item(torch.zeros(SIDE, SIDE)), r"item 1: an image of shape \(8, 8\).*RGB"),
    (item(torch.zeros(SIDE, SIDE, 3)), r"item 1: an image of shape \(8, 8, 3\).*permute"),
    (item(torch.zeros(3, SIDE, SIDE + 1)), r"item 1: an image of shape \(3, 8, 9\).*resize"),
    (item(torch.zeros(1, 3, SIDE, SIDE)), r"item 1: an image of shape \(1, 3, 8, 8\)"),
    (item(NAN), "item 1: an image with NaN"),
    (item(NAN.nan_to_num(float("inf"))), "item 1: an image with NaN or infinite"),
    (item(label=CLASSES), r"item 1: label 3; the network has 3 classes, 0 … 2"),
    (item(label=-1), "item 1: label -1"),
    (item(label=1.0), r"item 1: a label of torch\.float"),
    (item(label=torch.tensor(1.0)), r"item 1: a label of torch\.float"),
    (item(label=torch.tensor([0, 1, 0])), r"item 1: labels of shape \(3,\)"),
    (item(label="cat"), "item 1: label 'cat', a str"),
    (item(label=None), "item 1: label None"),
    (Pairs([torch.zeros(3, SIDE, SIDE)]), r"item 0: a Tensor; \(image, label\) is wanted"),
    (Pairs([(torch.zeros(3, SIDE, SIDE), 0, 7)]), r"item 0: 3 values; \(image, label\) is wanted"),
    (Pairs([{"image": 0, "label": 0}]), r"item 0: a dict; \(image, label\) is wanted"),
]


@pytest.mark.parametrize(
    ("dataset", "expected", "workers"),
    [(*bad, 0) for bad in BAD_ITEMS] + [(*bad, 1) for bad in BAD_ITEMS[::6]],
)
def test_an_item_that_no_network_takes_is_named(dataset: Pairs, expected: str, workers: int) -> None:
    for data in (dataset, DataLoader(dataset, num_workers=workers)):
        with pytest.raises(DataError, match=f"^train_data, {expected}") as caught:
            as_images(data, SIDE, CLASSES, workers=workers, name="train_data")
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match=expected):
            read(own(data), Augment(0, 0))


@pytest.mark.parametrize(
    ("collate", "expected"),
    [
        (lambda samples: torch.stack([image for image, _ in samples]), r"a Tensor; \(images, labels\) is wanted"),
        (lambda samples: (torch.zeros(2, 3, SIDE, SIDE).byte(), torch.zeros(2).long()), "uint8"),
        (lambda samples: (torch.zeros(2, 3, 9, 9), torch.zeros(2).long()), r"\(2, 3, 9, 9\); \(N, 3, 8, 8\)"),
        (lambda samples: (torch.zeros(3, SIDE, SIDE), torch.tensor(0)), r"\(3, 8, 8\); \(N, 3, 8, 8\) is wanted"),
        (lambda samples: (torch.zeros(2, 3, SIDE, SIDE), torch.zeros(2, CLASSES)), r"label of torch\.float32"),
        (lambda samples: (torch.zeros(2, 3, SIDE, SIDE), torch.zeros(3).long()), r"labels of shape \(3,\)"),
        (lambda samples: (torch.zeros(2, 3, SIDE, SIDE), torch.tensor([0, 3])), "label 3; the network has 3"),
        (lambda samples: (torch.zeros(0, 3, SIDE, SIDE), torch.zeros(0).long()), "no images"),
        (lambda samples: ([0, 1], [0, 1]), "its image is a list"),
    ],
)
def test_a_batch_that_no_network_takes_is_named(collate: Any, expected: str) -> None:
    loader = DataLoader(floats(4), batch_size=2, collate_fn=collate)
    with pytest.raises(DataError, match=f"^mine, batch 0: .*{expected}") as caught:
        read(own(loader, name="mine"), Augment(0, 0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lambda: Endless(), "an IterableDataset"),
        (lambda: DataLoader(Endless()), "an IterableDataset"),
        (lambda: DataLoader(floats(), batch_size=None), "batch_size=None"),
        (lambda: NoLength(), "NoLength has no length"),
        (lambda: Pairs([]), "Pairs without items"),
        (lambda: DataLoader(Pairs([]), batch_size=4), "Pairs without items"),
        (lambda: DataLoader(floats(), batch_size=100, drop_last=True), "no batch"),
        (lambda: DataLoader(floats(), sampler=NoLengthSampler()), "NoLengthSampler has no length"),
        (
            lambda: DataLoader(floats(), sampler=DistributedSampler(floats(), num_replicas=2, rank=0)),
            "DistributedSampler; leave the sampler out",
        ),
        (lambda: DataLoader(floats(), sampler=[3, COUNT]), rf"holds item {COUNT}; there are 0 … {COUNT - 1}"),
        (lambda: DataLoader(floats(), sampler=["a"]), r"is \['a'\]; a list of item numbers"),  # type: ignore[arg-type]
        (lambda: DataLoader(floats(), batch_sampler=[[0], []]), "is empty"),
        (lambda: torch.zeros(4, 3, SIDE, SIDE), "Tensor; give a TensorDataset"),
        (lambda: pixels(), "tuple; give a TensorDataset"),
        (lambda: iter(floats()), "give a torch.utils.data.Dataset"),  # type: ignore[call-overload]
        (lambda: None, "NoneType; give a torch.utils.data.Dataset"),
        (lambda: "photos/", "str; give a torch.utils.data.Dataset"),
    ],
)
def test_what_is_no_set_of_numbered_items_is_refused(data: Callable[[], Any], expected: str) -> None:
    with pytest.raises(DataError, match=f"^test_data: .*{expected}") as caught:
        as_images(data(), SIDE, CLASSES, name="test_data")
    assert "\n" not in str(caught.value)


class Liar(Sampler[int]):
    """Draws more or less than its length says."""

    def __init__(self, draws: int):
        self.draws = draws

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[int]:
        yield from (number % COUNT for number in range(self.draws))


@pytest.mark.parametrize(("draws", "made"), [(3, "3"), (10**9, "more")])
def test_a_sampler_that_does_not_keep_its_length_is_refused(draws: int, made: str) -> None:
    with pytest.raises(DataError, match=f"Liar has a length of 4 batches, but makes {made}; mend its __len__"):
        own(DataLoader(floats(), sampler=Liar(draws)))


def test_fewer_images_in_a_batch_than_processes_are_refused() -> None:
    with pytest.raises(DataError, match="one of the batches would be of 2 images, too few for 3 processes"):
        read(own(LOADERS["uneven"]()), Augment(0, 0), share=(0, 3))


def test_a_collate_fn_that_drops_images_is_refused_where_labels_are_wanted() -> None:
    def keep_even(samples: list[Any]) -> Any:
        kept = [sample for sample in samples if sample[1] != 1]
        return torch.stack([image for image, _ in kept]), torch.tensor([label for _, label in kept])

    images = own(DataLoader(floats(), 4, collate_fn=keep_even))
    assert [len(labels) for _, labels in read(images, Augment(0, 0))] == [3, 2, 2]
    with pytest.raises(DataError, match=r"its collate_fn makes .* it must keep all"):
        _ = images.labels


class Broken(Noisy):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("no such photo")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_users_own_stays_and_says_where(workers: int) -> None:
    with pytest.raises(KeyError, match="no such photo") as caught:
        read(own(Broken(), workers=workers, name="mine"))
    notes = [*getattr(caught.value, "__notes__", []), str(caught.value)]
    assert "while reading item 0 of mine" in " ".join(notes)


class Dies(Noisy):
    def __getitem__(self, index: int) -> Any:
        os._exit(9)


def test_a_reading_process_that_ends_is_named_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"with exit code 9; pass num_workers 0 to see why") as caught:
        read(own(DataLoader(Dies(), num_workers=1, timeout=1)))  # by default torch looks every five seconds
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("method", "named"), [("spawn", True), ("forkserver", True), ("fork", False)])
def test_a_script_without_a_guard_is_told_of_it_where_processes_import_it(method: str, named: bool) -> None:
    process: Any = multiprocessing.get_context(method).Process()
    ended: Any = SimpleNamespace(exitcode=1, pid=3, _start_method=process._start_method)
    assert ('under `if __name__ == "__main__":`' in str(reading._killed(ended, "workers"))) == named


# ---- both parts


class Named(Pairs):
    def __init__(self, *classes: str):
        super().__init__([(torch.zeros(3, SIDE, SIDE), 0)] * 4)
        self.classes = list(classes)


def data(train: Any, test: Any = None, **options: Any) -> Any:
    return as_data(train, test, image_size=SIDE, num_classes=CLASSES, **options)


def test_data_know_their_names_parts_and_classes() -> None:
    found = data(floats(), DataLoader(floats(5), 2))
    assert (found.name, found.classes, found.num_classes) == ("own data", ["0", "1", "2"], CLASSES)
    assert (len(found.train), len(found.test), found.bad_images, found.left_out) == (COUNT, 5, [], None)
    assert data(Subset(Named("a", "b", "c"), [0, 1]), floats()).classes == ["a", "b", "c"]
    assert data(floats(), DataLoader(Named("a", "b", "c"))).classes == ["a", "b", "c"]
    assert data(Named("1", "2", "3"), floats(), classes=["x", "y", "z"]).classes == ["x", "y", "z"]
    assert data(found) is found


def test_a_data_source_and_its_parts_are_data(tmp_path: Path) -> None:
    source = DataSource("Folder", write_image_tree(tmp_path, classes=("a", "b", "c"), size=SIDE), image_size=SIDE)
    assert data(source) is source
    assert as_images(source, SIDE, CLASSES) is source.test
    mixed = data(source.train, floats())
    assert mixed.train is source.train
    assert mixed.classes == ["0", "1", "2"]
    with pytest.raises(DataError, match="images of 8 px; the network takes 32: make the data with image_size=32"):
        as_images(source.test, 32, CLASSES)
    with pytest.raises(DataError, match="label 2; the network has 2 classes"):
        as_images(source.test, SIDE, 2)
    with pytest.raises(DataError, match="train_data holds test images already"):
        data(source, source.test)


@pytest.mark.parametrize(
    ("train", "test", "options", "expected"),
    [
        (floats(), None, {}, "test_data: missing"),
        (Named("a", "b"), floats(), {}, r"train_data: 2 classes \(a, b\); the network has 3: give it a head of 2"),
        (Named("a", "b", "c"), Named("a", "b", "d"), {}, "train_data, test_data: class 'c' is in only one"),
        (Named("a", "b", "c"), Named("a", "c", "b"), {}, "the same classes in another order"),
        (Named("a", "b", "c"), floats(), {"classes": ["c", "b", "a"]}, "train_data, classes: the same classes in"),
        (floats(), floats(), {"classes": ["a"]}, r"classes: 1 classes \(a\); the network has 3"),
        (floats(), item(label=5), {}, "test_data, item 1: label 5"),
    ],
)
def test_data_that_do_not_fit_the_network_or_each_other_are_refused(
    train: Any, test: Any, options: Any, expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        data(train, test, **options)


def test_a_run_finds_its_data_again_by_their_numbers_and_their_loader() -> None:
    def identity(train: Any) -> dict[str, Any]:
        return identify(data(train, floats(5)))

    assert identity(floats()) == {"training": 11, "test": 5, "classes": identity(floats())["classes"]}
    of_loader = identity(DataLoader(floats(), 4, shuffle=True))
    assert of_loader["loader"] == {"sampler": "RandomSampler", "batch_size": 4, "drop_last": False}
    assert of_loader == identity(DataLoader(floats(), 4, shuffle=True))
    assert of_loader != identity(DataLoader(floats(), 5, shuffle=True))
    assert identity(LOADERS["uneven"]())["loader"] == {"sampler": "Uneven", "batches": 3}
    batch_sampler = BatchSampler(RandomSampler(floats()), 4, False)
    assert identity(DataLoader(floats(), batch_sampler=batch_sampler)) == of_loader
    assert isinstance(data(floats(), floats()), OwnData)
