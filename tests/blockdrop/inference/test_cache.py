from dataclasses import dataclass

from blockdrop.inference.cache import AGEING_ROWS, ProgramCache


@dataclass
class Blob:
    num_bytes: int


def offer(cache: ProgramCache[str, Blob], key: str, rows: int, num_bytes: int = 10) -> bool:
    cache.count(key, rows)
    if not cache.wants(key) or not cache.room_for(key, num_bytes):
        return False
    cache.programs[key] = Blob(num_bytes)
    return True


def test_a_program_is_wanted_once_enough_rows_have_gone_without_it() -> None:
    cache = ProgramCache[str, Blob](100, compile_after=64)
    assert not offer(cache, "a", 63)
    assert offer(cache, "a", 1)
    assert not cache.wants("a"), "it is there"


def test_memory_stays_within_the_bound_whatever_is_offered() -> None:
    cache = ProgramCache[str, Blob](100, compile_after=1)
    for turn in range(200):
        offer(cache, f"policy {turn % 37}", rows=1 + turn % 11, num_bytes=7 + turn % 30)
        assert cache.num_bytes <= 100
    assert cache.programs
    assert not cache.room_for("huge", 101)


def test_a_smaller_bound_drops_what_is_used_least() -> None:
    cache = ProgramCache[str, Blob](30, compile_after=1)
    for key, rows in (("cold", 5), ("hot", 100), ("warm", 20)):
        assert offer(cache, key, rows)
    cache.resize(25)
    assert (set(cache.programs), cache.max_bytes) == ({"hot", "warm"}, 25)
    cache.resize(9)
    assert not cache.programs


def test_a_full_cache_keeps_the_often_used_and_lets_newcomers_in_only_past_the_rarely_used() -> None:
    cache = ProgramCache[str, Blob](30, compile_after=1)
    assert offer(cache, "hot", 100)
    assert offer(cache, "warm", 20)
    assert offer(cache, "cold", 5)
    assert not offer(cache, "newcomer", 9), "9 is less than twice 5"
    assert set(cache.programs) == {"hot", "warm", "cold"}
    assert offer(cache, "newcomer", 2)
    assert set(cache.programs) == {"hot", "warm", "newcomer"}


def test_what_was_used_long_ago_makes_room() -> None:
    cache = ProgramCache[str, Blob](10, compile_after=1)
    assert offer(cache, "yesterday", 1000)
    for _ in range(12):
        cache.count("passing", AGEING_ROWS)
    assert offer(cache, "today", 10)
    assert set(cache.programs) == {"today"}
