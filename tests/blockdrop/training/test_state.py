"""Going on with a run: the same numbers, bit for bit, whenever and however it was cut off."""

import copy
import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blockdrop.errors import BlockdropError, CheckpointError, Interrupted
from blockdrop.training.means import Means
from blockdrop.training.run_directory import RunDirectory
from blockdrop.training.state import STATE_FILE, read_state, restore

EPOCHS, BATCHES = 3, 4


@dataclass
class Config:
    lr: float = 0.1
    save_minutes: float = 1e-9  # after every batch


def nothing(step: int) -> None: ...


def train(folder: Path, at_step: Callable[[int], None] = nothing, config: Config = Config()) -> torch.Tensor:  # noqa: B008
    """A run of two stages over random data, which goes on with what the folder holds; returns the weights.

    Args:
        at_step: called in the middle of each batch, with the number of batches since this call began.
    """
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    steps = 0
    with RunDirectory(folder, "test", config, resume=True) as run:
        state = run.state
        for stage in range(2):
            optimizer = torch.optim.Adam(network.parameters(), config.lr)
            state.track(network=network, optimizer=optimizer)
            for epoch in state.epochs(EPOCHS * (stage + 1), EPOCHS * stage):
                means, draws = Means(), torch.Generator().manual_seed(epoch)
                state.track_epoch(means=means, draws=draws)
                for batch, scale in state.batches(lambda start: range(start, BATCHES)):
                    loss = (network(torch.rand(5, 3, generator=draws)) - scale - torch.rand(1)).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    at_step(steps)
                    optimizer.step()
                    means.add(5, loss=loss.item(), batch=batch)
                    state.counts["steps"] += 1
                    steps += 1
                run.log(epoch, "train", {**means.means(), "steps": state.counts["steps"]})
                run.log(epoch, "test", {"accuracy": network.bias.item()})
        run.finish_with_test()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in TensorBoard's files."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return {
        tag: sorted((point.step, point.value) for point in events.Scalars(tag))
        for tag in events.Tags()["scalars"]
        if not tag.startswith("final/")
    }


@pytest.fixture(autouse=True)
def _no_waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "event_files" not in request.function.__name__:
        monkeypatch.setattr("blockdrop.training.run_directory.wait_for_a_later_name", lambda _: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(folder), folder


def assert_same(weights: torch.Tensor, folder: Path, undisturbed: tuple[torch.Tensor, Path]) -> None:
    assert torch.equal(weights, undisturbed[0])
    assert logged(folder) == logged(undisturbed[1])
    assert curves(folder) == curves(undisturbed[1])
    assert len(curves(folder)["train/loss"]) == 2 * EPOCHS, "each epoch once"


def in_child(work: Callable[[], object]) -> int:
    """The exit status (minus the signal) of a process that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(number: int) -> Callable[[int], None]:
    def at_step(step: int) -> None:
        if step == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_step


@pytest.mark.parametrize("save_minutes", [1e-9, 1e9], ids=["each batch", "each epoch"])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    save_minutes: float, tmp_path: Path, undisturbed: tuple[torch.Tensor, Path]
) -> None:
    config = Config(save_minutes=save_minutes)
    kills = 0
    while in_child(lambda: train(tmp_path, kill_at(5), config)) == -signal.SIGKILL:
        kills += 1
    assert kills >= 4
    assert_same(train(tmp_path, config=config), tmp_path, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_batch_end_and_saves(
    number: signal.Signals, tmp_path: Path, undisturbed: tuple[torch.Tensor, Path]
) -> None:
    def at_step(step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as stop:
        train(tmp_path, at_step, Config(save_minutes=1e9))
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    seen: list[int] = []
    assert_same(train(tmp_path, seen.append), tmp_path, undisturbed)
    assert len(seen) == 2 * EPOCHS * BATCHES - 7, "no batch is run again"


def test_event_files_of_one_run_are_named_in_their_order(tmp_path: Path) -> None:
    """TensorBoard reads them by name, in which the second stands."""
    for _ in range(3):
        with RunDirectory(tmp_path, "test", Config(), resume=True) as run:
            run.state.save()
    names = sorted(tmp_path.glob("events*"))
    assert len(names) == 3
    assert names == sorted(names, key=lambda file: file.stat().st_mtime_ns)


def test_a_second_signal_ends_it_at_once(tmp_path: Path, undisturbed: tuple[torch.Tensor, Path]) -> None:
    def at_step(step: int) -> None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("never comes here")

    with pytest.raises(Interrupted):
        train(tmp_path, at_step)
    assert_same(train(tmp_path), tmp_path, undisturbed)


class Faults:
    """Lets a system call of writing files fail: the `number`-th of those counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[str], None], number: int):
        self.fail, self.number, self.calls = fail, number, 0
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._around(name, getattr(os, name)))
        monkeypatch.setattr(torch, "save", self._around("write", torch.save))

    def _around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **flags: Any) -> Any:
            self.calls += 1
            if self.calls == self.number:
                if name == "write":
                    args[1].write(b"half of it")
                self.fail(f"before {name}")
            result = call(*args, **flags)
            if self.calls == self.number:
                self.fail(f"after {name}")
            return result

        return counted


CALLS = range(1, 13)
"""Those of writing config.json (3), of the first save (6), and a half of the second."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_around_any_call_of_a_save_costs_nothing(
    moment: str, tmp_path: Path, undisturbed: tuple[torch.Tensor, Path]
) -> None:
    def crash(when: str) -> None:
        if when.startswith(moment):
            os._exit(7)

    for number in CALLS:
        folder = tmp_path / f"{number}"

        def work(folder: Path = folder, number: int = number) -> None:
            with pytest.MonkeyPatch.context() as patch:
                Faults(patch, crash, number)
                train(folder, config=Config(save_minutes=1e9))

        assert in_child(work) == 7
        assert_same(train(folder), folder, undisturbed)


def test_a_disk_that_fails_is_named_and_the_last_state_stays_whole(
    tmp_path: Path, undisturbed: tuple[torch.Tensor, Path]
) -> None:
    for number in CALLS:
        folder, code = tmp_path / f"{number}", (errno.ENOSPC, errno.EIO)[number % 2]

        def fail(when: str, code: int = code) -> None:
            if when.startswith("before"):
                raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, fail, number)
            with pytest.raises(BlockdropError, match=os.strerror(code)):
                train(folder, config=Config(save_minutes=1e9))
        assert not list(folder.glob("*.tmp"))
        assert_same(train(folder), folder, undisturbed)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, undisturbed: tuple[torch.Tensor, Path]) -> None:
    first = train(tmp_path)
    seen: list[int] = []
    assert torch.equal(train(tmp_path, seen.append), first)
    assert seen == []
    assert_same(first, tmp_path, undisturbed)


def test_a_crash_while_an_earlier_run_is_deleted_leaves_no_state_of_another_run(tmp_path: Path) -> None:
    unlink = Path.unlink
    for number in range(1, 5):
        folder = tmp_path / f"{number}"
        train(folder)

        def work(folder: Path = folder, number: int = number) -> None:
            calls = 0

            def counted(path: Path, missing_ok: bool = False) -> None:
                nonlocal calls
                calls += path.name != f"{STATE_FILE}.tmp"
                if calls > number:
                    os._exit(7)
                unlink(path, missing_ok)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Path, "unlink", counted)
                RunDirectory(folder, "test", Config(lr=0.2), overwrite=True)

        assert in_child(work) == 7
        assert not (folder / STATE_FILE).exists()
        with pytest.raises(BlockdropError):
            train(folder, config=Config(lr=0.2))


def test_a_state_without_its_flags_is_not_gone_on_from(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BlockdropError, match=r"holds state.pt, but no whole config.json that says of which run"):
        train(tmp_path)
    assert (tmp_path / STATE_FILE).exists()


def test_logs_of_others_are_not_deleted_by_resuming(tmp_path: Path) -> None:
    theirs = [tmp_path / "metrics.jsonl", tmp_path / "events.out.tfevents.1.theirs"]
    for file in theirs:
        file.write_text("theirs")
    with pytest.raises(BlockdropError, match=r"holds metrics.jsonl, but no whole config.json"):
        train(tmp_path)
    assert [file.read_text() for file in theirs] == ["theirs"] * 2


def test_links_in_a_run_directory_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = tmp_path / "run"
    train(folder)
    for name in (f"{STATE_FILE}.tmp", "config.json.tmp"):
        (folder / name).symlink_to(precious)
    train(folder)
    assert not (folder / STATE_FILE).is_symlink()
    saved = read_state(folder)
    assert saved is not None
    for name in saved["logs"]:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to(precious)
        precious.write_bytes(b"precious" + content)
        with pytest.raises(BlockdropError, match="not writable"):
            train(folder)
        assert precious.read_bytes() == b"precious" + content
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    train(folder)


def test_a_run_whose_folder_was_replaced_leaves_the_new_one_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def replace(step: int) -> None:
        if step == 5:
            folder.rename(tmp_path / "away")
            train(folder, config=Config(lr=0.3))

    with pytest.raises(BlockdropError, match="run: deleted or replaced while this run was training"):
        train(folder, replace)
    assert json.loads((folder / "config.json").read_text())["lr"] == 0.3
    train(folder, lambda _: pytest.fail("it was finished"), Config(lr=0.3))


def test_other_data_are_another_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "test", Config(), data={"training": 12}) as run:
        run.state.save()
    RunDirectory(tmp_path, "test", Config(), resume=True, data={"training": 12}).__exit__()
    with pytest.raises(BlockdropError, match=r"began with other data: \{'training': 12\}, now \{'training': 13\}"):
        RunDirectory(tmp_path, "test", Config(), resume=True, data={"training": 13})


@pytest.mark.parametrize(
    ("key", "value"), [("epoch", -5), ("batch", "1"), ("random", torch.ones(3)), ("random", torch.zeros(7).byte())]
)
def test_a_state_with_impossible_values_is_named(key: str, value: object, tmp_path: Path) -> None:
    train(tmp_path)
    content = torch.load(tmp_path / STATE_FILE)
    torch.save(content | {"finished": False, key: value}, tmp_path / STATE_FILE)
    with pytest.raises(BlockdropError, match=rf"{key}|epoch"):
        train(tmp_path)


def test_moments_of_another_shape_are_named(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg"] = torch.zeros(2)
    with pytest.raises(BlockdropError, match=r"its optimizer doesn't fit this run \(exp_avg has shape \(2,\)\)"):
        restore({"optimizer": optimizer}, {"optimizer": state})


def test_metrics_that_are_gone_are_named(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with (
        RunDirectory(tmp_path, "test", Config(), resume=True) as run,
        pytest.raises(BlockdropError, match="holds no test"),
    ):
        run.finish_with_test()


def test_other_flags_are_another_run(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(BlockdropError, match=r"holds a run of --lr 0.1, not 0.2"):
        train(tmp_path, config=Config(lr=0.2))


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"before")
    with RunDirectory(tmp_path / "run", "test", Config(), inputs=[source]) as run:
        run.state.save()
    source.write_bytes(b"after")
    with pytest.raises(BlockdropError, match="weights, which the run started from, has changed since"):
        RunDirectory(tmp_path / "run", "test", Config(), resume=True, inputs=[source])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"cos\nsystem\n(S'touch x'\ntR."])
def test_a_damaged_state_is_named(content: bytes, tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=STATE_FILE):
        train(tmp_path)


def test_a_file_of_that_name_that_is_no_state_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / STATE_FILE)
    with pytest.raises(BlockdropError, match="not a training state"):
        train(tmp_path)


@pytest.mark.parametrize("name", ["../precious", "/tmp/precious", "config.json", "events.out.tfevents.1/../x"])
def test_a_state_can_have_no_file_cut_but_the_logs(name: str, tmp_path: Path) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious"
    precious.write_text("precious")
    train(run)
    content = torch.load(run / STATE_FILE)
    torch.save({**content, "logs": {name: 0}}, run / STATE_FILE)
    with pytest.raises(BlockdropError, match="not one of ours"):
        train(run)
    assert precious.read_text() == "precious"


def test_parts_of_another_network_are_named(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, lambda step: os.kill(os.getpid(), signal.SIGINT))
    content = torch.load(tmp_path / STATE_FILE)
    content["parts"]["network"] = {"weight": torch.zeros(7)}
    torch.save(content, tmp_path / STATE_FILE)
    with pytest.raises(BlockdropError, match="its network doesn't fit this run"):
        train(tmp_path)


@pytest.fixture
def checkpoint_without_state(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "ckpt_E_3_A_0.500.t7").write_bytes(b"precious")
    yield tmp_path
    assert (tmp_path / "ckpt_E_3_A_0.500.t7").read_bytes() == b"precious"


def test_a_run_that_left_no_state_is_not_begun_anew(checkpoint_without_state: Path) -> None:
    with pytest.raises(BlockdropError, match=f"holds a run without {STATE_FILE} to go on from"):
        train(checkpoint_without_state)
