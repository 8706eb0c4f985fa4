"""Plain content reads as torch reads it; nothing else is run, and nothing that a file only claims takes memory."""

import argparse
import io
import itertools
import os
import pickle
import struct
import tarfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blockdrop.errors import CheckpointError
from blockdrop.models.checkpoints import tensor_pickle, torch_files
from blockdrop.models.checkpoints.torch_files import PRE_16_START, read_torch_file

SERIALISATIONS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pre-1.6"])
HUGE = 10**12
LONG_HUGE = b"\x8a\x06" + HUGE.to_bytes(6, "little")  # as a pickle has it


def save(content: Any, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def same(found: Any, expected: Any) -> bool:
    """Equal, with tensors of one dtype and shape; of dicts also the order."""
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and found.shape == expected.shape and found.equal(expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(map(same, found.values(), expected.values()))
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def write_zip(path: Path, entries: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def write_pickle(path: Path, index: bytes) -> Path:
    """An archive of nothing but these opcodes."""
    return write_zip(path, [("c/data.pkl", b"\x80\x02" + index + b".")])


def replaced(path: Path, old: bytes, new: bytes, count: int = -1) -> Path:
    """The archive with its pickle changed and its checksums right."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    index = next(name for name in entries if name.endswith("data.pkl"))
    assert old in entries[index]
    return write_zip(path, (entries | {index: new.join(entries[index].rsplit(old, count))}).items())


# ---- plain content


PLAIN = {
    "numbers": [0, 255, 65_535, -1, 2**31 - 1, 2**40, -(2**70), 0.5, 1j, True, None],
    "text": "ünï✓" * 100,
    "bytes": [b"", b"\x00\xffabc"],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    3: {"nested": [{}, [], {"x": [1]}]},
    "size": torch.ones(2, 3).shape,
    "numpy": [np.float64(0.25), np.float32(0.5), np.int64(-3), np.bool_(True)],
    "tensors": [torch.arange(6).to(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8)],
    "flags": torch.tensor([True, False]),
    "views": [torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)[1:, :, ::2], torch.arange(5)[3]],
    "empty": [torch.empty(0), torch.empty(0, 3), torch.tensor(7)],
    "repeated": torch.ones(4).expand(1, 4),
    "parameter": nn.Parameter(torch.ones(2)),
}


@SERIALISATIONS
def test_plain_content_reads_as_torch_reads_it(tmp_path: Path, legacy: bool) -> None:
    save(PLAIN, tmp_path / "c.t7", legacy)
    expected = torch.load(tmp_path / "c.t7", weights_only=False)
    expected |= {
        "size": (2, 3),
        "numpy": [0.25, 0.5, -3, True],
        "parameter": torch.ones(2),
    }
    assert same(read_torch_file(tmp_path / "c.t7"), expected)


def test_what_training_scripts_leave_comes_back_as_plain_values(tmp_path: Path) -> None:
    content = {
        "milestones": Counter([3, 3, 5]),
        "ordered": OrderedDict(b=1, a=2),
        "device": torch.device("cuda:1"),
        "dtype": torch.bfloat16,
    }
    expected = {
        "milestones": {3: 2, 5: 1}, "ordered": {"b": 1, "a": 2}, "device": "cuda", "dtype": "torch.bfloat16"
    }  # fmt: skip
    assert read_torch_file(save(content, tmp_path / "c.t7")) == expected


@SERIALISATIONS
def test_a_module_and_its_optimiser_come_back(tmp_path: Path, legacy: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimiser = torch.optim.Adam(module.parameters())
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    content = {"net": module.state_dict(), "optimiser": optimiser.state_dict(), "random": torch.get_rng_state()}
    assert same(read_torch_file(save(content, tmp_path / "c.t7", legacy)), content)


@SERIALISATIONS
def test_tensors_that_share_their_storage_share_it_again(tmp_path: Path, legacy: bool) -> None:
    whole = torch.arange(6)
    first, second = read_torch_file(save([whole, whole[2:]], tmp_path / "c.t7", legacy))
    first[2] = 7
    assert second.tolist() == [7, 3, 4, 5]


def test_python_2_and_torch_0_3_are_understood(tmp_path: Path) -> None:
    """Byte strings as text, an ordered dict as a list of pairs, and a view of a storage."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x011U\x03cpuK\x03(U\x012K\x01K\x02ttQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00K\x02\x85K\x01\x85tR"
    index = b"\x80\x02ccollections\nOrderedDict\n](](U\x03key" + tensor + b"ee\x85R."
    header = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    values = struct.pack("<q3f", 3, 0.5, 1.5, 2.5)
    (tmp_path / "c.t7").write_bytes(b"".join([*header, index, pickle.dumps(["1"], 2), values]))
    content = read_torch_file(tmp_path / "c.t7")
    assert list(content) == ["key"]
    assert content["key"].tolist() == [1.5, 2.5]


# ---- nothing is run


class Call:
    """Pickled, it says: call this function with these arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def hub(folder: Path) -> Call:
    (folder / "hubconf.py").write_text(f"def model():\n    open({str(folder / 'touched')!r}, 'w').close()\n")
    return Call(torch.hub._load_local, str(folder), "model")


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def in_array(content: Any) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = content
    return array


def shell(folder: Path) -> Call:
    return Call(os.system, f"touch {folder / 'touched'}")


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "posix.system": shell,
    "__builtin__.eval": lambda folder: Call(eval, f"open({str(folder / 'touched')!r}, 'w').close()"),
    "__builtin__.getattr": lambda folder: Call(Path.touch, folder / "touched"),
    "torch.hub._load_local": hub,
    "torch.storage._load_from_bytes": lambda folder: Call(torch.storage._load_from_bytes, saved(shell(folder))),
    "multiarray._reconstruct": lambda folder: in_array(shell(folder)),
}
"""What touches a file `touched` when Python unpickles it, by what it calls first."""


@pytest.mark.parametrize("how", ["zip", "pre-1.6", "pickle"])
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_a_hostile_file_is_run(tmp_path: Path, name: str, how: str) -> None:
    content = {"state_dict": {"conv1.weight": torch.ones(1)}, "extra": ATTACKS[name](tmp_path)}
    pickle.loads(pickle.dumps(content["extra"], 2))
    (tmp_path / "touched").unlink()  # the attack is one
    if how == "pickle":
        (tmp_path / "c.t7").write_bytes(pickle.dumps(content, 2))
    else:
        save(content, tmp_path / "c.t7", legacy=how == "pre-1.6")
    said = r"refused: a bare pickle, which would run code" if how == "pickle" else rf"would run code .*{name}\)"
    with pytest.raises(CheckpointError, match=rf"c\.t7: .*{said}"):
        read_torch_file(tmp_path / "c.t7")
    assert not (tmp_path / "touched").exists()


def test_programs_and_torchs_oldest_format_are_named(tmp_path: Path) -> None:
    write_zip(tmp_path / "script.pt", [("c/constants.pkl", b"")], zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="refused: a TorchScript program"):
        read_torch_file(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(tmp_path / "script.pt", "storages")
    with pytest.raises(CheckpointError, match="refused: a tar archive"):
        read_torch_file(tmp_path / "c.tar")


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.uint16),
    ],
    ids=["sparse", "complex", "meta", "uint16"],
)
def test_only_plain_tensors_of_common_types_are_read(tmp_path: Path, value: Tensor) -> None:
    with pytest.raises(CheckpointError, match="holds what is not a plain tensor"):
        read_torch_file(save({"x": value}, tmp_path / "c.t7"))


# ---- tensors that claim more than there is


@SERIALISATIONS
def test_a_tensor_repeated_without_end_takes_no_memory(tmp_path: Path, legacy: bool) -> None:
    content = {"x": torch.ones(1).expand(HUGE)}
    with pytest.raises(CheckpointError, match=f"damaged .a tensor of {HUGE} values from 0 on, 1 are stored"):
        read_torch_file(save(content, tmp_path / "c.t7", legacy))


def test_a_tensor_longer_than_its_storage_takes_no_memory(tmp_path: Path) -> None:
    thousand = b"M" + struct.pack("<H", 1000)
    save({"x": torch.ones(1000)}, tmp_path / "c.t7")
    replaced(tmp_path / "c.t7", thousand, LONG_HUGE, count=1)
    with pytest.raises(CheckpointError, match=f"a tensor of {HUGE} values from 0 on, 1000 are stored"):
        read_torch_file(tmp_path / "c.t7")
    save({"x": torch.ones(1000)}, tmp_path / "c.t7")
    replaced(tmp_path / "c.t7", thousand, LONG_HUGE)
    with pytest.raises(CheckpointError, match=f"storage 0 claims {HUGE} values and has 1000"):
        read_torch_file(tmp_path / "c.t7")


def test_a_number_of_600_digits_is_not_repeated_in_the_message(tmp_path: Path) -> None:
    save({"x": torch.ones(1000)}, tmp_path / "c.t7")
    endless = b"\x8a\xfb" + bytes(250) + b"\x01"
    replaced(tmp_path / "c.t7", b"M" + struct.pack("<H", 1000), endless)
    with pytest.raises(CheckpointError, match=r"damaged.*a storage of an impossible size"):
        read_torch_file(tmp_path / "c.t7")


def test_an_old_files_storage_longer_than_the_file_takes_no_memory(tmp_path: Path) -> None:
    content = save({"x": torch.ones(1000)}, tmp_path / "c.t7", legacy=True).read_bytes()
    thousand = b"M" + struct.pack("<H", 1000)
    (tmp_path / "c.t7").write_bytes(content.replace(thousand, LONG_HUGE))
    with pytest.raises(CheckpointError, match=rf"storage \d+ claims {HUGE} values, too many"):
        read_torch_file(tmp_path / "c.t7")
    (tmp_path / "c.t7").write_bytes(content.replace(thousand, b"M" + struct.pack("<H", 999)))
    with pytest.raises(CheckpointError, match=r"storage \d+ has 1000 values, not 999"):
        read_torch_file(tmp_path / "c.t7")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (0, HUGE), (1, 1)), (4, (1,), (1,)), (1, (2, 2), (2, 1)), (0, (2,), (HUGE,)), (0, (1,) * 9, (1,) * 9)],
)
def test_a_tensor_outside_of_its_storage_is_refused(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    class Outside:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor, (torch.ones(4).storage(), offset, size, stride)

    with pytest.raises(CheckpointError, match="damaged"):
        read_torch_file(save({"x": Outside()}, tmp_path / "c.t7"))


def test_a_file_of_more_bytes_than_any_checkpoint_is_not_begun(tmp_path: Path) -> None:
    with open(save({}, tmp_path / "c.t7"), "ab") as file:
        file.truncate(HUGE)  # on the disk it takes none
    with pytest.raises(CheckpointError, match=f"has {HUGE} bytes; no checkpoint has more"):
        read_torch_file(tmp_path / "c.t7")


# ---- objects


class Tuned:
    """Anybody's class."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Scaled(nn.Module):
    """A module with all that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.arange(3))
        self.register_parameter("missing", None)
        self.activation, self.names, self.note = nn.functional.relu, {"a", "b"}, Tuned(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x))) * self.scale


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda module: module, nn.DataParallel, lambda module: nn.Sequential(module)])
def test_whole_modules_are_read_as_their_state_dicts(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module], legacy: bool
) -> None:
    module = wrap(Scaled())
    found = read_torch_file(save({"net": module, "acc": 93.5, "epoch": 7}, tmp_path / "c.t7", legacy))
    assert set(found) == {"net", "acc", "epoch"}
    expected = dict(module.state_dict())
    assert found["net"].keys() == expected.keys()
    assert all(same(found["net"][key], value) for key, value in expected.items())
    assert same(read_torch_file(save(module, tmp_path / "m.t7", legacy)), found["net"])


def test_modules_of_python_2_are_read(tmp_path: Path) -> None:
    empty = b"ccollections\nOrderedDict\n)R"
    made = b"ccopy_reg\n_reconstructor\n(cmodels.net\nNet\nc__builtin__\nobject\nNtR"
    state = b"}(U\x08training\x89U\x0b_parameters" + empty + b"U\x08_modules" + empty + b"u"
    found = read_torch_file(write_pickle(tmp_path / "c.t7", b"}(U\x03net" + made + state + b"bU\x03accK\x05u"))
    assert found == {"net": {}, "acc": 5}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_namespace_is_a_dict_and_other_objects_are_left_out(tmp_path: Path, legacy: bool) -> None:
    content = {
        "model": {"a": torch.ones(2)},
        "args": argparse.Namespace(lr=0.1, layers=[1, Tuned(3)], cut=(2, Tuned(4)), hook=os.path.join),
        "callback": Tuned(torch.ones(3)),
        "epoch": 3,
    }
    found = read_torch_file(save(content, tmp_path / "c.t7", legacy))
    expected = {"model": content["model"], "args": {"lr": 0.1, "layers": [1, None], "cut": (2, None)}, "epoch": 3}
    assert same(found, expected)


def test_an_object_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"refused: reading it would run code .*test_torch_files\.Tuned\)"):
        read_torch_file(save(Tuned(1), tmp_path / "c.t7"))


MODULE = b"cmodels\nNet\n)\x81q\x00}(U\x0b_parameters}U\x08_modules}U\x01ah\x00sub"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (MODULE, "its modules are nested too deep"),
        (b"cmodels\nNet\n)\x81}(U\x0b_parametersK\x01U\x08_modules}ub", "a module's _parameters are a int"),
        (b"cmodels\nNet\n)\x81K\x01b", "damaged"),
        (b"K\x01)\x81", "an object of no class"),
    ],
)
def test_modules_that_are_none_are_refused(tmp_path: Path, index: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(write_pickle(tmp_path / "c.t7", index))


def test_modules_that_double_are_refused(tmp_path: Path) -> None:
    inner = b"cmodels\nNet\n)\x81q\x00}(U\x0b_parameters}U\x08_modules}ub"
    for n in range(30):
        again = bytes([n])
        inner += (
            b"cmodels\nNet\n)\x81q" + bytes([n + 1]) + b"}(U\x0b_parameters}U\x08_modules}(U\x01ah" + again
            + b"U\x01bh" + again + b"uub"
        )  # fmt: skip
    with pytest.raises(CheckpointError, match="a small file that stands for a huge one"):
        read_torch_file(write_pickle(tmp_path / "c.t7", inner + b"h" + bytes([30])))


# ---- short pickles that stand for a lot


def doubling(times: int) -> bytes:
    """A list of a list twice, of a list twice, …."""
    steps = (b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(times))
    return b"]K\x01aq\x00" + b"".join(steps)


PAIRS = b"](" + b"](K\x01K\x02e" * 1000 + b"eq\x00"
SHORT: dict[str, tuple[bytes, str]] = {
    "doubled lists": (doubling(30), "a small file that stands for a huge one"),
    "a list in itself": (b"]q\x00h\x00a", "nested too deep"),
    "10,000 tuples deep": (b")" + b"\x85" * 10_000, "nested too deep"),
    "a deep tuple as a key": (b"})" + b"\x85" * 10_000 + b"Ns", "a tuple as a key"),
    "keys of one hash": (b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns", "a int as a key"),
    "text of 4 GB": (b"X\xff\xff\xff\xff1234", "damaged"),
    "a number of 2 GB": (b"\x8b\xff\xff\xff\x7f1234", "damaged"),
    "a memo of 4 GB": (b"Nr\xff\xff\xff\xff0", "damaged"),
    "codecs": (b"c_codecs\nencode\n(X\x01\x00\x00\x001X\x04\x00\x00\x00idnatR", "damaged"),
    "bytes without end": (b"c__builtin__\nbytearray\n\x8a\x06" + LONG_HUGE[2:] + b"\x85R", "would run code"),
}


@pytest.mark.parametrize("name", SHORT)
def test_short_pickles_that_stand_for_a_lot_are_refused(tmp_path: Path, name: str) -> None:
    index, message = SHORT[name]
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(write_pickle(tmp_path / "c.t7", index))


def test_a_pickle_may_not_go_on_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_pickle, "MOST_OPCODES", 1000)
    assert read_torch_file(write_pickle(tmp_path / "c.t7", b"(" * 996 + b"N")) is None
    with pytest.raises(CheckpointError, match="names more values than a checkpoint has"):
        read_torch_file(write_pickle(tmp_path / "c.t7", b"(" * 998 + b"N"))
    monkeypatch.setattr(torch_files, "LARGEST_PICKLE", 1000)
    with pytest.raises(CheckpointError, match="an index of 1001 bytes"):
        read_torch_file(write_pickle(tmp_path / "c.t7", b"N" * 998))


def test_pairs_make_one_dict_only(tmp_path: Path) -> None:
    """So that a list of many pairs can't be multiplied by few bytes."""
    make = b"ccollections\nOrderedDict\nh\x00\x85R"
    first, second = read_torch_file(write_pickle(tmp_path / "c.t7", PAIRS + b"(" + make * 2 + b"t"))
    assert (first, second) == ({1: 2}, {})


@SERIALISATIONS
def test_a_tensor_is_not_met_without_end(tmp_path: Path, legacy: bool) -> None:
    """A walk over 10,000 names of one tensor of 40 KB would see 400 MB."""
    large = torch.ones(10_000)
    with pytest.raises(CheckpointError, match="a small file that stands for a huge one"):
        read_torch_file(save({str(n): large for n in range(10_000)}, tmp_path / "c.t7", legacy))


# ---- archives


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.t7", [("c/data.pkl", b"0" * 10**7)], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="a compressed archive, not a torch checkpoint"):
        read_torch_file(path)


@pytest.mark.parametrize(
    "name", ["../c", "c/../../etc/passwd", "/etc/passwd", "c//data/0", "c\\data", "c/./data", "data.pkl", "c/"]
)
def test_an_entry_that_would_lie_outside_of_the_archives_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "c.t7", [("c/data.pkl", b"N."), (name, b"")])
    with pytest.raises(
        CheckpointError, match=r"refused: an archive with an entry called .*not a torch checkpoint"
    ):
        read_torch_file(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["c/data.pkl", "d/data.pkl"])
def test_two_entries_of_one_name_are_refused(tmp_path: Path, second: str) -> None:
    path = write_zip(tmp_path / "c.t7", [("c/data.pkl", b"N."), (second, b"N.")])
    with pytest.raises(CheckpointError, match=f"two entries called {second}"):
        read_torch_file(path)


def directory_entry(content: bytes, number: int) -> int:
    """Where the archive's directory describes an entry."""
    start = struct.unpack("<4s4H2LH", content[-22:])[-2]
    for _ in range(number):
        start += 46 + sum(struct.unpack("<3H", content[start + 28 : start + 34]))
    return start


def patched(path: Path, number: int, field: int, value: bytes) -> Path:
    """The archive with a field of its directory changed."""
    content = bytearray(path.read_bytes())
    start = directory_entry(content, number) + field
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


LENGTH, CHECKSUM, LENGTHS, PLACE = 24, 16, 20, 42


@pytest.mark.parametrize(
    ("number", "field", "value", "message"),
    [
        (1, PLACE, struct.pack("<L", 0), "overlapping entries"),
        (1, LENGTHS, struct.pack("<2L", 2**31, 2**31), "damaged"),
        (0, LENGTHS, struct.pack("<2L", 2**31, 2**31), "overlapping entries"),
        (0, LENGTH, struct.pack("<L", 2**31), "compressed"),
        (0, CHECKSUM, b"\0\0\0\0", r"damaged .Bad CRC-32 for file 'c/data\.pkl'"),
    ],
)
def test_a_directory_that_doesnt_describe_the_archive_is_refused(
    tmp_path: Path, number: int, field: int, value: bytes, message: str
) -> None:
    path = write_zip(tmp_path / "c.t7", [("c/data.pkl", b"N."), ("c/data/0", bytes(100))])
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(patched(path, number, field, value))


def test_what_stands_before_an_entry_is_what_the_directory_says(tmp_path: Path) -> None:
    """Another reader might go by the names and sizes there; here the names must agree, the sizes mean nothing."""
    path = write_zip(tmp_path / "c.t7", [("c/data.pkl", b"K\x07.")])
    content = path.read_bytes()
    path.write_bytes(content.replace(b"c/data.pkl", b"c/date.pkl", 1))
    with pytest.raises(CheckpointError, match=r"damaged \(File name in directory"):
        read_torch_file(path)
    path.write_bytes(content[:18] + struct.pack("<2L", 2**31, 2**31) + content[26:])
    assert read_torch_file(path) == 7


def test_a_directory_of_2_gb_is_not_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.t7", [("c/data.pkl", b"N.")])
    content = bytearray(path.read_bytes())
    content[-10:-6] = struct.pack("<L", 2**31)
    with open(path, "wb") as file:
        file.truncate(2**31 + 1000)  # on the disk it takes none
        file.write(content[:4])
        file.seek(2**31 + 1000)
        file.write(content)
    with pytest.raises(CheckpointError, match=f"damaged .an index of {2**31} bytes"):
        read_torch_file(path)


def test_a_checkpoint_of_another_byte_order_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.t7", [("c/data.pkl", b"N."), ("c/byteorder", b"middle")])
    with pytest.raises(CheckpointError, match="another byte order"):
        read_torch_file(path)


def test_an_old_files_header_must_be_one(tmp_path: Path) -> None:
    pickles = [PRE_16_START + b".", pickle.dumps(1002, 2), *itertools.repeat(pickle.dumps({}, 2), 3)]
    (tmp_path / "c.t7").write_bytes(b"".join(pickles))
    with pytest.raises(CheckpointError, match=r"damaged \(serialisation protocol 1002\)"):
        read_torch_file(tmp_path / "c.t7")


def test_what_the_file_says_is_shown_in_one_printable_line(tmp_path: Path) -> None:
    hostile = b"cx\x1b[2J\ny" + b"y" * 1000 + b"\n"
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(write_pickle(tmp_path / "c.t7", hostile))
    message = str(caught.value).removeprefix(str(tmp_path))
    assert message.isprintable()
    assert len(message) < 300
