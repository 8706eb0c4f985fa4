"""Images in tar archives: WebDataset's layout, read where they lie; damaged and hostile archives refused."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blockdrop.data.shards
from blockdrop.data import NORMALISATIONS, Augment, DataSource, Images
from blockdrop.errors import DataError

NONE = NORMALISATIONS["none"]
LONG_AGO = 1_600_000_000


def png(brightness: int, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (brightness,) * 3).save(buffer, "png")
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **about: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in about.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def write_shard(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            add(archive, name, content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def sample(key: str, label: int, brightness: int, size: int = 32) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png(brightness, size)), (f"{key}.cls", f"{label}\n".encode())]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two archives of three samples to train on, one of two to test on."""
    for number in range(2):
        members = [part for i in range(3) for part in sample(f"n/{i}", i % 2, 100 * number + i)]
        write_shard(tmp_path / "train" / f"{number:06}.tar", *members)
    write_shard(tmp_path / "val" / "000000.tar", *sample("a", 0, 7), *sample("b", 2, 8))
    return tmp_path


def brightness(images: Images, augment: Augment | None = None, **part: Any) -> list[int]:
    found = [pixels[:, 0, 16, 16] for pixels, _ in images.batches(4, NONE, augment=augment, **part)]
    return torch.cat(found).mul(255).round().int().tolist()


@pytest.mark.parametrize("size", [32, 80])
def test_images_and_labels_come_from_the_archives_in_order(shards: Path, size: int) -> None:
    for _ in range(2):  # looked up, then from the index
        source = DataSource("Folder", shards, image_size=size, workers=0)
        assert brightness(source.train) == [0, 1, 2, 100, 101, 102]
        assert brightness(source.test) == [7, 8]
        assert source.train.labels.tolist() == [0, 1, 0, 0, 1, 0]
        assert source.classes == ["0", "1", "2"]
    assert sorted(path.name for path in shards.iterdir()) == [".blockdrop-cache", "train", "val"], (
        "nothing unpacked"
    )


def test_archives_serve_every_order_and_part_of_an_epoch(shards: Path) -> None:
    images = DataSource("Folder", shards, image_size=80, workers=2).train
    whole = brightness(images, Augment(0, 0))
    assert sorted(whole) == [0, 1, 2, 100, 101, 102]
    assert whole != sorted(whole)
    assert brightness(images, Augment(0, 0), start=1) == whole[4:]
    assert brightness(images, Augment(0, 0), share=(1, 2)) == [whole[2], whole[3], whole[5]]
    assert brightness(images.subset(torch.tensor([4, 1]))) == [101, 1]


def test_archives_may_lie_side_by_side(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", *sample("a", 1, 50))
    write_shard(tmp_path / "test-0.tar", *sample("a", 0, 60))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = DataSource("C10", tmp_path)
    assert source.classes == ["cat", "dog"]
    assert (brightness(source.train), brightness(source.test)) == ([50], [60])


def test_class_names_stand_beside_the_archives(shards: Path) -> None:
    (shards / "train" / "classes.txt").write_text("cat\ndog\nowl\n")
    assert DataSource("Folder", shards).classes == ["cat", "dog", "owl"]
    (shards / "train" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"000000\.tar/b\.png: has label 2, but classes\.txt has 2 lines"):
        DataSource("Folder", shards).test  # noqa: B018


def test_an_image_tree_may_keep_archives_beside_its_class_folders(image_tree: Path) -> None:
    (image_tree / "train" / "cat.tar").touch()
    assert DataSource("Folder", image_tree).classes == ["cat", "dog"]


def test_only_changed_archives_are_looked_through_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DataSource("Folder", shards)
    original, looked_through = blockdrop.data.shards._list_shard, []

    def note(path: Path) -> object:
        looked_through.append(path.name)
        return original(path)

    monkeypatch.setattr(blockdrop.data.shards, "_list_shard", note)
    DataSource("Folder", shards)
    assert looked_through == []
    changed = write_shard(shards / "train" / "000001.tar", *sample("x", 1, 55), *sample("y", 0, 56))
    os.utime(changed, (LONG_AGO, LONG_AGO + 1))
    write_shard(shards / "train" / "000002.tar", *sample("z", 1, 57))
    assert brightness(DataSource("Folder", shards, image_size=80, workers=0).train) == [0, 1, 2, 55, 56, 57]
    (shards / "train" / "000000.tar").unlink()
    for _ in range(2):
        assert brightness(DataSource("Folder", shards, image_size=80, workers=0).train) == [55, 56, 57]
    assert looked_through == ["000001.tar", "000002.tar"]


def test_a_damaged_index_is_made_anew(shards: Path) -> None:
    DataSource("Folder", shards)
    (index,) = (shards / ".blockdrop-cache").glob("train-shards-2.npz")
    with np.load(index) as stored:
        arrays = dict(stored)
    for wrong in (
        {"places": arrays["places"] + 10**9},
        {"places": arrays["places"] + 2**62},
        {"places": arrays["places"] * [1, -1]},
        {"stamps": arrays["stamps"] * [1, -1, 1, 1, 1]},
        {"stamps": arrays["stamps"] * [-1, 1, 1, 1, 1]},
        {"stamps": arrays["stamps"][:, :3]},
        {"stamps": arrays["stamps"][:0]},
        {"labels": arrays["labels"][:3]},
        {"labels": arrays["labels"] + 10**12},
        {"members": np.uint8([0])},
    ):
        np.savez(index, **(arrays | wrong))
        with pytest.warns(UserWarning, match="damaged cache"):
            assert DataSource("Folder", shards).train.labels.tolist() == [0, 1, 0, 0, 1, 0]


def test_counts_whose_sum_wraps_are_not_counted_by(shards: Path) -> None:
    """NumPy would write where no array is."""
    DataSource("Folder", shards)
    index = shards / ".blockdrop-cache" / "train-shards-2.npz"
    with np.load(index) as stored:
        arrays = dict(stored)
    most = 2**63 - 1
    np.savez(
        index,
        **arrays
        | {
            "shards": np.frombuffer(b"a\0b\0c\0", np.uint8),
            "stamps": np.array([(10**6, count, 1, 1, 1) for count in (most, most, len(arrays["labels"]) + 2)]),
        },
    )
    with pytest.warns(UserWarning, match="archives that there can't be"):
        assert DataSource("Folder", shards).train.labels.tolist() == [0, 1, 0, 0, 1, 0]


def test_a_replaced_archive_of_the_same_size_and_time_is_noticed(shards: Path) -> None:
    path = shards / "train" / "000001.tar"
    assert brightness(DataSource("Folder", shards).train)[3:] == [100, 101, 102]
    status = path.stat()
    again = shards / "again.tar"
    write_shard(again, *(part for i in range(3) for part in sample(f"n/{i}", 1, 110 + i)))
    assert again.stat().st_size == status.st_size
    os.utime(again, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(again, path)
    source = DataSource("Folder", shards)
    assert brightness(source.train)[3:] == [110, 111, 112]
    assert source.train.labels.tolist() == [0, 1, 0, 1, 1, 1]


def test_members_that_are_no_samples_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(write_shard(tmp_path / "train" / "0.tar"), "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "./", type=tarfile.DIRTYPE)
        add(archive, "./README", b"text")
        add(archive, "./._a.png", b"a Mac's")
        add(archive, "./a.json", b"{}")
        add(archive, "./a.seg.png", png(3))
        add(archive, f"./{'long' * 60}/a.cls", b" 5 ")
        add(archive, "./a.cls", b"4")
        add(archive, "./a.PNG", png(40))
        add(archive, "../../etc/passwd", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, f"./{'long' * 60}/a.png", png(50))
        add(archive, "./hard.png", type=tarfile.LNKTYPE, linkname="./a.PNG")
        add(archive, "./device.png", type=tarfile.CHRTYPE)
    write_shard(tmp_path / "test" / "0.tar", *sample("a", 0, 0))
    source = DataSource("Folder", tmp_path)
    assert brightness(source.train) == [40, 50]
    assert source.train.labels.tolist() == [4, 5]


@pytest.mark.parametrize("size", [32, 80])
def test_unreadable_images_are_named_or_left_out(shards: Path, size: int) -> None:
    path = write_shard(
        shards / "train" / "000001.tar", *sample("x", 1, 55), ("y.png", png(9)[:60]), ("y.cls", b"1")
    )
    with pytest.raises(DataError, match=r"000001\.tar/y\.png: not a readable image"):
        brightness(DataSource("Folder", shards, image_size=size, workers=0).train)
    source = DataSource("Folder", shards, image_size=size, workers=0, skip_bad_images=True)
    assert brightness(source.train) == [0, 1, 2, 55]
    assert [name for name, _ in source.bad_images] == [f"{path}/y.png"]


def test_an_archive_that_shrinks_meanwhile_is_noticed(shards: Path) -> None:
    images = DataSource("Folder", shards, image_size=80, workers=0, skip_bad_images=True).train
    os.truncate(shards / "train" / "000001.tar", 600)
    with pytest.raises(DataError, match=r"000001\.tar: has changed since training began"):
        brightness(images)


def huge(path: Path, name: str, size: int) -> None:
    """An archive with a member that claims so many bytes; its file has as many, but none on disk."""
    member = tarfile.TarInfo(name)
    member.size = size
    with open(path, "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(max(0, size) + 20 * 512)


def patch(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def write_raw(path: Path, *blocks: bytes) -> None:
    path.write_bytes(b"".join(block + bytes(-len(block) % 512) for block in blocks) + bytes(1024))


def header(kind: bytes, content: bytes) -> bytes:
    """A header before a member, and what it holds."""
    member = tarfile.TarInfo("header")
    member.type, member.size = kind, len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content


def global_headers(count: int) -> bytes:
    return header(tarfile.XGLTYPE, b"".join(b"13 k%04d=abc\n" % i for i in range(count)))


def members(*parts: tuple[str, bytes]) -> list[bytes]:
    found = []
    for name, content in parts:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        found += [member.tobuf(tarfile.USTAR_FORMAT), content]
    return found


def test_a_few_global_headers_are_passed_over(shards: Path) -> None:
    write_raw(shards / "train" / "000001.tar", global_headers(20), *members(*sample("x", 1, 55)))
    assert brightness(DataSource("Folder", shards).train) == [0, 1, 2, 55]


def long_name_of_gigabytes(path: Path) -> None:
    huge(path, "././@LongLink", 4 << 30)
    header = tarfile.TarInfo("././@LongLink")
    header.size, header.type = 4 << 30, tarfile.GNUTYPE_LONGNAME
    patch(path, 0, header.tobuf(tarfile.GNU_FORMAT))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no archive" * 100), "damaged, or not a tar archive"),
        (lambda path: path.write_bytes(b""), "damaged, or not a tar archive"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "compressed.*decompress it to a .tar"),
        (
            lambda path: path.rename(path.with_suffix(".tar.gz")),
            r"0\.tar\.gz: compressed.*decompress it to a .tar",
        ),
        (lambda path: os.truncate(path, 700), "damaged.*cut off in a.png"),
        (lambda path: os.truncate(path, 1024), "damaged.*no end mark at byte 1,024"),
        (lambda path: patch(path, 1024, b"garbage"), "damaged.*no end mark at byte 1,024"),
        (lambda path: write_shard(path), "no sample in it"),
        (lambda path: write_shard(path, ("a.png", b"")), "a has no label; expected a.cls and a.jpg"),
        (lambda path: write_shard(path, ("b/a.cls", b"1")), "b/a has no image; expected b/a.cls and b/a.jpg"),
        (lambda path: write_shard(path, ("a.png", b""), ("a.jpg", b"")), "a.png and a.jpg are one sample"),
        (lambda path: write_shard(path, ("a.cls", b"-1")), "a.cls is no label"),
        (lambda path: write_shard(path, ("a.cls", b"cat")), "a.cls is no label"),
        (lambda path: write_shard(path, ("a.cls", b"1234567")), "a.cls is no label"),
        (lambda path: write_shard(path, ("a.cls", b" " * 65)), "a.cls is no label"),
        (lambda path: huge(path, "a.cls", 4 << 30), "a.cls is no label"),
        (lambda path: huge(path, "a.jpg", 4 << 30), "a.jpg has 4,294,967,296 bytes; .* may have 256 MiB"),
        (lambda path: huge(path, "a.jpg", -1), "damaged"),
        (lambda path: huge(path, "a.jpg", -5000), "damaged"),
        (lambda path: write_shard(path, *sample("b/a", 0, 1) * 2), "b/a stands in it twice; pack it anew"),
        (lambda path: write_shard(path, *sample("a", 0, 1), ("a.jpg", b"")), "a stands in it twice"),
        (lambda path: write_shard(path, *sample("a", 0, 1), ("a.cls", b"0")), "a stands in it twice"),
        (lambda path: write_shard(path, ("a.cls", b"0"), ("a.cls", b"0")), "a has two labels; pack it anew"),
        (lambda path: write_raw(path, *[header(b"L", b"name")] * 5000), "damaged.*too many headers of one member"),
        (lambda path: write_raw(path, *[header(b"x", b"12 path=abc\n")] * 5000), "damaged.*too many headers"),
        (
            lambda path: write_raw(path, global_headers(70), *members(("a.cls", b"0"))),
            "damaged.*70 global headers",
        ),
        (lambda path: write_raw(path, header(b"g", bytes(100_000))), r"damaged.*a header of 100,\d+ bytes"),
        (long_name_of_gigabytes, "damaged.*a header of 4,294,967,296 bytes"),
    ],
)
def test_bad_archives_are_refused_by_name(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = write_shard(tmp_path / "train" / "0.tar", *sample("a", 0, 0))
    write_shard(tmp_path / "test" / "0.tar", *sample("a", 0, 0))
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        DataSource("Folder", tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_archives_to_test_on_are_missed(shards: Path) -> None:
    (shards / "val" / "000000.tar").unlink()
    with pytest.raises(DataError, match=r"no archives to test on; expected test/\*\.tar or val/\*\.tar"):
        DataSource("Folder", shards)


def test_a_list_of_classes_that_is_no_text_is_refused(shards: Path) -> None:
    (shards / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classes\.txt: can't be read"):
        DataSource("Folder", shards)
    os.truncate(shards / "classes.txt", 20 << 20)
    with pytest.raises(DataError, match=r"classes\.txt: 20,971,520 bytes"):
        DataSource("Folder", shards)
