"""Numbers are kept by what they were made from, and survive neither another description nor a torn file."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastdl.inspection import store
from fastdl.inspection.resources import Access, Launch, Resources, from_json, to_json

RESOURCES = Resources(
    registers=32,
    shared_bytes=0,
    local_bytes=0,
    spill_store_bytes=0,
    spill_load_bytes=0,
    loads={16: 2, 4: 1},
    stores={16: 2},
    matrix={"HMMA": 4},
    float_atomics=0,
    arguments={"input_pointer": Access({16: 2}, {})},
    instructions={"LDG": 3, "MUFU.EX2": 1},
    launch=Launch(threads=256, exact=True, dynamic_shared_bytes=None),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path))
    return tmp_path / store.FOLDER


class Maker:
    """Counts how often it is asked."""

    calls = 0

    def __call__(self) -> dict[str, Resources]:
        self.calls += 1
        return {"kernel": RESOURCES}


def test_resources_are_written_and_read_alike() -> None:
    assert from_json(to_json({"kernel": RESOURCES})) == {"kernel": RESOURCES}


def test_the_same_description_is_made_once() -> None:
    make = Maker()
    assert store.remember("a", make) == store.remember("a", make) == {"kernel": RESOURCES}
    assert make.calls == 1
    store.remember("b", make)
    assert make.calls == 2


def test_other_readers_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    store.remember("a", make)
    monkeypatch.setattr(store, "_readers_digest", lambda: "changed")
    store.remember("a", make)
    assert make.calls == 2


@pytest.mark.parametrize("content", ["", "{", '{"kernel": {}}', "[]", '{"kernel": {"arguments": {}, "loads": 1}}'])
def test_a_torn_entry_is_made_again(own_cache: Path, content: str) -> None:
    make = Maker()
    store.remember("a", make)
    (entry,) = own_cache.iterdir()
    entry.write_text(content)
    assert store.remember("a", make) == {"kernel": RESOURCES}
    assert make.calls == 2
    assert from_json(entry.read_text()) == {"kernel": RESOURCES}


def test_two_at_once_leave_one_whole_entry(own_cache: Path) -> None:
    def slow() -> dict[str, Resources]:
        time.sleep(0.1)
        return {"kernel": RESOURCES}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: store.remember("a", slow), range(4)))
    assert found == [{"kernel": RESOURCES}] * 4
    assert len(list(own_cache.iterdir())) == 1


def test_an_error_leaves_nothing(own_cache: Path) -> None:
    def fail() -> dict[str, Resources]:
        raise RuntimeError("does not compile")

    with pytest.raises(RuntimeError, match="does not compile"):
        store.remember("a", fail)
    assert list(own_cache.iterdir()) == []


def test_what_no_run_has_read_for_a_month_goes(own_cache: Path) -> None:
    make = Maker()
    for name in ("old", "used"):
        store.remember(name, make)
    for entry in own_cache.iterdir():
        os.utime(entry, (time.time() - store.KEEP_SECONDS - 1,) * 2)
    store.remember("used", make)
    assert make.calls == 2
    store.remember("new", make)
    store.remember("used", make)
    assert make.calls == 3
    assert len(list(own_cache.iterdir())) == 2
