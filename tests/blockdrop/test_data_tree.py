"""The index of image trees: what ImageFolder would find, found once, and noticed when it changes."""

import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

import blockdrop.data.tree
from blockdrop.data import DataSource, UnreadableImageError, read_image
from blockdrop.data.cache import Cache, last_change, load_arrays
from blockdrop.data.files import Names, pack_names
from blockdrop.data.tree import ImageTree, open_tree
from blockdrop.errors import DataError
from tests.conftest import write_image_tree

LONG_AGO = 1_600_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The training part of a tree with everything that ImageFolder takes or passes over; nothing has changed
    lately."""
    root = tmp_path / "train"
    for name in (
        "cat/2.png", "cat/10.JPG", "cat/1.png", "cat/readme.txt", "cat/a/x.jpeg", "cat/a/b/deep.bmp",
        "cat/a-b/y.tif", "dog/é.png", "dog/Z.webp", "dog/empty/nothing.txt", "owl/only/nested.ppm",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "dog" / os.fsdecode(b"\xff.png")).touch()
    shutil.copytree(root / "cat", tmp_path / "linked")
    (root / "owl" / "link").symlink_to(tmp_path / "linked")
    settle(root)
    return root


def settle(root: Path) -> None:
    """As if it had last changed long ago."""
    for folder, _, _ in os.walk(root, followlinks=True):
        os.utime(folder, (LONG_AGO, LONG_AGO))


def open_root(root: Path) -> ImageTree:
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    return open_tree(root, classes, Cache(root.parent))


def samples(tree: ImageTree) -> list[tuple[str, int]]:
    return [(tree.name(row), int(label)) for row, label in enumerate(tree.labels)]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the class folders that are read."""
    original, names = blockdrop.data.tree._list_class, []

    def note(root: Path, name: str, others: Any) -> object:
        names.append(name)
        return original(root, name, others)

    monkeypatch.setattr(blockdrop.data.tree, "_list_class", note)
    return names


def test_the_images_are_imagefolders_in_its_order(root: Path) -> None:
    expected = torchvision.datasets.ImageFolder(str(root)).samples
    assert len(expected) == 16
    for _ in range(2):  # listed, then from the index
        assert samples(open_root(root)) == expected


def test_a_tree_is_listed_once(root: Path, listed: list[str]) -> None:
    for _ in range(3):
        open_root(root)
    assert listed == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("change", "class_folder"),
    [
        (lambda root: (root / "cat" / "3.png").touch(), "cat"),
        (lambda root: (root / "cat" / "1.png").unlink(), "cat"),
        (lambda root: (root / "cat" / "1.png").rename(root / "cat" / "0.png"), "cat"),
        (lambda root: (root / "cat" / "a" / "b" / "new.jpg").touch(), "cat"),
        (lambda root: shutil.rmtree(root / "cat" / "a"), "cat"),
        (lambda root: (root / "dog" / "empty" / "first.png").touch(), "dog"),
        (lambda root: (root / "owl" / "link" / "behind.png").touch(), "owl"),
    ],
)
def test_a_changed_class_folder_is_listed_anew_and_no_other(
    root: Path, listed: list[str], change: Callable[[Path], object], class_folder: str
) -> None:
    open_root(root)
    listed.clear()
    change(root)
    for _ in range(2):
        assert samples(open_root(root)) == torchvision.datasets.ImageFolder(str(root)).samples
    assert set(listed) == {class_folder}
    settle(root / class_folder)
    open_root(root)
    listed.clear()
    open_root(root)
    assert not listed, "once the changes are over, the index knows them"


def test_a_class_may_come_and_go(root: Path, listed: list[str]) -> None:
    open_root(root)
    listed.clear()
    (root / "bee").mkdir()
    (root / "bee" / "1.png").touch()
    shutil.rmtree(root / "dog")
    settle(root / "bee")
    for _ in range(2):
        assert samples(open_root(root)) == torchvision.datasets.ImageFolder(str(root)).samples
    assert listed == ["bee"]


def test_a_folder_that_has_just_changed_is_not_yet_trusted(root: Path, listed: list[str]) -> None:
    """A further change may bear the same time."""
    (root / "cat" / "3.png").touch()
    open_root(root)
    status = (root / "cat").stat()
    (root / "cat" / "4.png").touch()
    os.utime(root / "cat", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert samples(open_root(root)) == torchvision.datasets.ImageFolder(str(root)).samples
    assert listed == ["cat", "dog", "owl", "cat"]


def rewrite(index: Path, **changed: np.ndarray) -> None:
    with np.load(index) as stored:
        arrays = dict(stored)
    np.savez(index, **(arrays | changed))


def spoil_an_array(index: Path) -> None:
    content = bytearray(index.read_bytes())
    content[content.index(b"10.JPG")] ^= 1
    index.write_bytes(content)


def wrapping_lengths(index: Path) -> np.ndarray:
    """Their sum is right, modulo 2^64."""
    with np.load(index) as stored:
        lengths = stored["lengths"].copy()
    lengths[:4] = [2**63 - 1, 2**63 - 1, 1, lengths[:4].sum() + 1]
    return lengths


def replace(index: Path, old: bytes, new: bytes) -> None:
    with np.load(index) as stored:
        arrays = {name: stored[name] for name in ("folders", "names")}
    assert sum(old in array.tobytes() for array in arrays.values()) == 1
    rewrite(index, **{n: np.frombuffer(a.tobytes().replace(old, new), np.uint8) for n, a in arrays.items()})


def compress(index: Path) -> None:
    with np.load(index) as stored:
        arrays = dict(stored)
    np.savez_compressed(index, **arrays)


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.write_bytes(index.read_bytes()[:-50]),
        lambda index: index.write_bytes(b"not a zip"),
        spoil_an_array,
        compress,
        lambda index: rewrite(index, lengths=np.array([10**15])),
        lambda index: rewrite(index, lengths=np.full(11, -1)),
        lambda index: rewrite(index, lengths=wrapping_lengths(index)),
        lambda index: rewrite(index, names=np.frombuffer(b"a.png", np.uint8)),
        lambda index: rewrite(index, names=np.array(["a.png"])),
        lambda index: rewrite(index, names=np.array([print], dtype=object)),
        lambda index: rewrite(index, changes=np.array([[1, 1, 1]])),
        lambda index: replace(index, b"cat/a/b\0", b"cat/../\0"),
        lambda index: replace(index, b"cat/a/b\0", b"cat//ab\0"),
        lambda index: replace(index, b"cat/a\0", b"/root\0"),
        lambda index: replace(index, b"cat/a\0", b"cat/.\0"),
        lambda index: replace(index, b"cat/a-b\0", b"cat/a/b\0"),
        lambda index: replace(index, b"10.JPG\0", b"/x.JPG\0"),
        lambda index: rewrite(index, other=np.array([1])),
    ],
)
def test_a_damaged_index_is_made_anew(root: Path, listed: list[str], damage: Callable[[Path], object]) -> None:
    expected = samples(open_root(root))
    (index,) = (root.parent / ".blockdrop-cache").glob("*.npz")
    damage(index)
    with pytest.warns(UserWarning, match=r"train-tree-3\.npz: damaged cache, made anew"):
        assert samples(open_root(root)) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert samples(open_root(root)) == expected
    assert len(listed) == 6


def test_an_index_does_not_lead_out_of_the_tree(root: Path, listed: list[str]) -> None:
    """Else whoever may write the cache has files read that only the run's user may."""
    expected = samples(open_root(root))
    secret = root.parent / "secret"
    secret.mkdir()
    (secret / "private.png").touch()
    os.utime(secret, (LONG_AGO, LONG_AGO))
    folders = ["cat/../../secret", "dog", "owl/only"]
    names = [b"private.png\0", b"Z.webp\0", b"nested.ppm\0"]
    np.savez(
        root.parent / ".blockdrop-cache" / "train-tree-3.npz",
        folders=np.frombuffer(pack_names(folders), np.uint8),
        changes=np.array([last_change(os.stat(root / folder)) for folder in folders]),
        lengths=np.array([len(name) for name in names]),
        names=np.frombuffer(b"".join(names), np.uint8),
    )
    with pytest.warns(UserWarning, match="folders or files that no tree has"):
        assert samples(open_root(root)) == expected


def test_a_replaced_folder_of_the_same_time_is_noticed(root: Path) -> None:
    open_root(root)
    status = (root / "cat").stat()
    (root / "cat" / "3.png").touch()
    os.utime(root / "cat", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert samples(open_root(root)) == torchvision.datasets.ImageFolder(str(root)).samples


def test_no_memory_is_taken_for_an_array_that_is_not_there(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00\x76\x00" + (
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1125899906842624,), }".ljust(117) + b"\n"
    )
    with zipfile.ZipFile(tmp_path / "index.npz", "w") as archive:
        archive.writestr("names.npy", header)
    with pytest.raises(ValueError, match=r"doesn't fit 128 bytes"):
        load_arrays(tmp_path / "index.npz", {"names": (np.uint8, 1)})


def test_where_the_data_cannot_be_written_the_runs_folder_keeps_the_index(root: Path, listed: list[str]) -> None:
    (root.parent / ".blockdrop-cache").touch()  # no folder can be made here, not even by root
    run = root.parent / "run"
    for _ in range(2):
        open_tree(root, ["cat", "dog", "owl"], Cache(root.parent, run))
    assert listed == ["cat", "dog", "owl"]
    assert len(list(run.glob("*-train-tree-3.npz"))) == 1
    open_tree(root, ["cat", "dog", "owl"], Cache(root.parent))
    assert len(listed) == 6, "nowhere to keep it"


def test_a_link_that_leads_back_is_named(root: Path) -> None:
    (root / "cat" / "dogs").symlink_to(root / "dog")
    (root / "dog" / "cats").symlink_to(root / "cat")
    with pytest.raises(DataError, match=r"cat/dogs/cats: a link back to .*/cat; remove it"):
        open_root(root)


def test_classes_without_images_are_named(root: Path) -> None:
    for name in "abcdefgh":
        (root / name).mkdir()
    with pytest.raises(DataError, match=r"no image in class folder a, b, c, d, e and 3 more; expected .*\.jpg"):
        open_root(root)


def test_the_fingerprint_follows_every_file(root: Path) -> None:
    seen = {open_root(root).fingerprint()}
    Image.new("RGB", (2, 2)).save(root / "cat" / "1.png")
    seen.add(open_root(root).fingerprint())
    os.utime(root / "cat" / "1.png", (LONG_AGO, LONG_AGO))
    seen.add(open_root(root).fingerprint())
    (root / "cat" / "1.png").rename(root / "cat" / "0.png")
    seen.add(open_root(root).fingerprint())
    status = (root / "cat" / "0.png").stat()
    (root / "again.png").write_bytes((root / "cat" / "0.png").read_bytes()[::-1])
    os.utime(root / "again.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(root / "again.png", root / "cat" / "0.png")
    seen.add(open_root(root).fingerprint())
    assert len(seen) == 5


def test_names_are_kept_whole() -> None:
    names = ["a.jpg", "ß 1.png", os.fsdecode(b"\xfe\xff.png"), "line\nbreak.png"]
    buffer = np.frombuffer(pack_names(names), np.uint8)
    assert list(Names(buffer)) == names
    assert len(Names(buffer)) == 4
    assert list(Names(np.array([], np.uint8))) == []
    with pytest.raises(ValueError, match="without an end"):
        Names(buffer[:-1])


# ---- folders of real people


def test_what_systems_and_archivers_leave_is_no_class_and_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image_tree(tmp_path, count=2)
    image = (tmp_path / "train" / "cat" / "0000.png").read_bytes()
    for part in ("train", "test"):
        for litter in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".hidden"):
            (tmp_path / part / litter).mkdir()
            (tmp_path / part / litter / "a.png").write_bytes(image)
        (tmp_path / part / "cat" / "._0000.png").write_bytes(b"resource fork")
        (tmp_path / part / "cat" / "@eaDir").mkdir()
        (tmp_path / part / "cat" / "@eaDir" / "thumb.png").write_bytes(image)
        (tmp_path / part / "cat" / "Thumbs.db").write_bytes(b"")
    source = DataSource("Folder", tmp_path)
    assert source.classes == ["cat", "dog"]
    assert (len(source.train), len(source.test)) == (4, 4)
    assert "left out" not in capsys.readouterr().out


def test_other_endings_are_images_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image_tree(tmp_path, count=2)
    cat = tmp_path / "train" / "cat"
    with Image.open(cat / "0000.png") as image:
        image.save(cat / "a.gif")
        image.convert("RGB").save(cat / "b.jfif", "JPEG")
        image.convert("RGB").save(cat / "c.JPE", "JPEG")
    for name in ("a.avif", "b.avif", "notes.txt", "README"):
        (cat / name).write_bytes(b"")
    source = DataSource("Folder", tmp_path)
    assert len(source.train) == 7
    said = "train: 4 files left out, not named like images (2 .avif, 1 .txt, 1 without one)"
    assert capsys.readouterr().out.splitlines()[0].endswith(said)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_test_images_may_stand_under_other_names(tmp_path: Path, name: str) -> None:
    write_image_tree(tmp_path, count=2)
    (tmp_path / "test").rename(tmp_path / name)
    assert len(DataSource("Folder", tmp_path).test) == 4


# ---- pixels are what a viewer shows


def pixel_of(path: Path) -> tuple[int, ...]:
    image = read_image(path)
    assert image.mode == "RGB"
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for ending in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"a.{ending}")
        assert np.asarray(read_image(tmp_path / f"a.{ending}"))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_white_are_refused(tmp_path: Path, dtype: Any) -> None:
    Image.fromarray(np.ones((2, 2), dtype=dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(
        UnreadableImageError, match="32 bits a pixel, whose white nobody knows; save it with 8 or 16"
    ):
        read_image(tmp_path / "a.tiff")


def test_what_is_transparent_stands_on_white(tmp_path: Path) -> None:
    for mode, colour, expected in (
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 128), (227, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
    ):
        Image.new(mode, (1, 1), colour).save(tmp_path / "a.png")
        assert pixel_of(tmp_path / "a.png") == expected
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 8, 7])
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixel_of(tmp_path / "p.png") == (255, 255, 255)


def test_photos_are_turned_as_their_exif_data_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (20, 30)


def test_parts_are_known_in_any_case_and_a_part_itself_is_told_from_the_whole(tmp_path: Path) -> None:
    write_image_tree(tmp_path, count=2)
    (tmp_path / "train").rename(tmp_path / "Train")
    (tmp_path / "test").rename(tmp_path / "Testing")
    assert len(DataSource("Folder", tmp_path).train) == 4
    with pytest.raises(DataError, match=r"no train folder \(found cat, dog\); .*--data_dir .* may be meant"):
        DataSource("Folder", tmp_path / "Train")
    write_image_tree(tmp_path / "once" / "more", count=1)
    with pytest.raises(DataError, match=r"\(found more\); .*--data_dir .*once/more may be meant"):
        DataSource("Folder", tmp_path / "once")


def test_test_images_alone_do_where_the_classes_are_known(tmp_path: Path) -> None:
    write_image_tree(tmp_path, ("ant", "bee", "cat"), count=2)
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "test" / "ant")
    source = DataSource("Folder", tmp_path, classes=["ant", "bee", "cat"])
    assert source.classes == ["ant", "bee", "cat"]
    assert source.test.labels.tolist() == [1, 1, 2, 2]
    with pytest.raises(DataError, match="no train folder, whose images are needed"):
        _ = source.train
    with pytest.raises(DataError, match="class cat is none of the checkpoint's: ant, bee"):
        DataSource("Folder", tmp_path, classes=["ant", "bee"])
    with pytest.raises(DataError, match="no train folder"):
        DataSource("Folder", tmp_path)
