"""Shared memory: real objects in /dev/shm, made, written, truncated and removed by clients."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.config import SharedMemoryConfig
from sidecar.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RequestError,
    UnsupportedError,
)
from sidecar.gateway.messages import RegionRef
from sidecar.gateway.shm import RegionDefinition, SharedMemory

SIZE = 3 * 4096


class Client:
    """Makes objects as a client does."""

    def __init__(self):
        self.prefix = f"sidecar-test-{uuid.uuid4().hex[:12]}-"
        self.made = []

    def make(self, data, name="a"):
        component = self.prefix + name
        self.path(component).write_bytes(data)
        self.made.append(component)
        return f"/{component}"

    @staticmethod
    def path(key):
        return Path("/dev/shm") / key.removeprefix("/")

    def remove_all(self):
        for component in self.made:
            self.path(component).unlink(missing_ok=True)


@pytest.fixture
def client():
    client = Client()
    yield client
    client.remove_all()


@pytest.fixture
def make():
    made = []

    def make(access="read", **options):
        settings = {"enabled": True, "max_regions": 256} | {
            name: options.pop(name) for name in ("enabled", "max_regions") if name in options
        }
        made.append(SharedMemory(SharedMemoryConfig(access=access, **settings), **options))
        return made[-1]

    yield make
    for shm in made:
        shm.close()


@pytest.fixture
def data():
    return bytes(random.Random(1).randbytes(SIZE))


def open_files():
    """Sockets and memfds aside, which the servers of other tests close in their own time."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            target = str(descriptor.readlink())
            count += target.startswith("/") and not target.startswith("/memfd:")
    return count


both = pytest.mark.parametrize("access", ["read", "map"])


# --- reading and writing --------------------------------------------------------------------------


@both
def test_reads_and_writes_what_a_client_registered(make, client, data, access):
    shm = make(access)
    key = client.make(data)
    shm.register("whole", key, 0, SIZE)
    shm.register("part", key, 100, 5000)  # not at a page's start
    assert shm.read("whole", 0, SIZE).tobytes() == data
    assert shm.read("part", 0, 5000).tobytes() == data[100:5100]
    array = shm.read_region(RegionRef("part", 12, offset=7))
    assert array.tobytes() == data[107:119]
    assert (array.dtype, array.shape) == (np.uint8, (12,))
    assert shm.read("part", 5000, 0).size == 0
    shm.write("part", 4, b"hello")
    shm.write_region(RegionRef("whole", 0, offset=8), np.arange(3, dtype=np.uint16))
    shm.write("whole", SIZE, b"")
    shm.write("whole", 0, np.zeros((0, 3), np.float32))
    expected = bytearray(data)
    expected[104:109] = b"hello"
    expected[8:14] = np.arange(3, dtype=np.uint16).tobytes()
    assert client.path(key).read_bytes() == expected


def test_a_copy_is_not_changed_by_the_client_and_a_view_is(make, client):
    key = client.make(bytes(SIZE))
    copies, views = make("read"), make("map")
    copies.register("r", key, 0, SIZE)
    views.register("r", key, 0, SIZE)
    copy, view = copies.read("r", 0, SIZE), views.read("r", 0, SIZE)
    with client.path(key).open("r+b") as file:
        file.write(b"\x07" * SIZE)
    assert not copy.any()
    assert (view == 7).all()
    assert not view.flags.writeable  # a runtime must not write into the client's memory
    assert copy.ctypes.data % 16 == 0


def test_another_process_shares_a_region_and_keeps_it(make, client):
    """As the stock client does it: with Python's own SharedMemory, in another process."""
    shm = make()
    name = client.prefix + "mp"
    client.made.append(name)
    code = (
        "import sys\n"
        "from multiprocessing import shared_memory\n"
        "block = shared_memory.SharedMemory(sys.argv[1], create=True, size=64)\n"
        "block.buf[:5] = b'input'\n"
        "print('made', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(bytes(block.buf[8:14]).decode(), flush=True)\n"
        "sys.stdin.readline()\n"
        "block.close(); block.unlink()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "made\n"
        shm.register("r", name, 0, 64)  # without a slash, as Python names it
        assert shm.read("r", 0, 5).tobytes() == b"input"
        shm.write("r", 8, b"output")
        shm.close()
        assert client.path(name).exists()  # ours to use, never to remove
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "output\n"
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@both
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 1001), (1000, 1), (1001, 0), (-1, 5), (5, -1), (2**70, 1), (0, 2**70)]
)
def test_outside_of_the_region_is_an_error_that_names_it(make, client, data, access, offset, size):
    shm = make(access)
    shm.register("input0", client.make(data), 10, 1000)
    with pytest.raises(
        InvalidRequestError, match=f"{size} bytes at offset {offset} .*'input0'.*1000"
    ):
        shm.read("input0", offset, size)
    if 0 <= size < 2**20:
        with pytest.raises(
            InvalidRequestError, match=f"{size} bytes at offset {offset} .*'input0'"
        ):
            shm.write("input0", offset, bytes(size))


def test_one_read_is_bounded(make, client):
    shm = make(max_read_bytes=1000)
    key = client.make(b"")
    with client.path(key).open("r+b") as file:
        file.truncate(2**40)  # sparse: costs the client nothing
    shm.register("huge", key, 0, 2**40)
    with pytest.raises(InvalidRequestError, match="more than one tensor may take"):
        shm.read("huge", 0, 2**39)
    assert shm.read("huge", 2**39, 1000).tobytes() == bytes(1000)


@both
def test_a_client_that_truncates_gets_an_error_and_kills_nobody(make, client, data, access):
    shm = make(access)
    key = client.make(data)
    shm.register("r", key, 0, SIZE)
    assert shm.read("r", 0, SIZE).size == SIZE
    os.truncate(client.path(key), 5000)
    with pytest.raises(InvalidRequestError, match="'r' is shorter than when it was registered"):
        shm.read("r", 0, SIZE)
    with pytest.raises(InvalidRequestError, match="truncated"):
        shm.write("r", 4000, bytes(2000))
    assert client.path(key).stat().st_size == 5000  # writing has not made it grow again
    assert shm.read("r", 0, 5000).tobytes() == data[:5000]
    os.truncate(client.path(key), 0)
    with pytest.raises(InvalidRequestError):
        shm.read("r", 0, 1)
    shm.unregister("r")


def test_truncated_before_the_first_mapping(make, client, data):
    shm = make("map")
    key = client.make(data)
    shm.register("r", key, 0, SIZE)
    os.truncate(client.path(key), 100)
    with pytest.raises(InvalidRequestError, match="truncated"):
        shm.read("r", 0, 50)  # these bytes are there, the region is not


# --- registering ----------------------------------------------------------------------------------


def test_status_and_unregister(make, client, data):
    shm = make()
    before = open_files()
    key = client.make(data)
    shm.register("b", key, 5, 10)
    shm.register("a", key, 0, SIZE)
    assert shm.status() == [
        RegionDefinition("a", key, 0, SIZE),
        RegionDefinition("b", key, 5, 10),
    ]
    assert shm.status("b") == [RegionDefinition("b", key, 5, 10)]
    with pytest.raises(NotFoundError, match="'c'"):
        shm.status("c")
    shm.unregister("c")  # no error, as in Triton
    shm.unregister("b")
    assert [region.name for region in shm.status()] == ["a"]
    with pytest.raises(NotFoundError, match="unable to find shared memory region 'b'"):
        shm.read("b", 0, 1)
    with pytest.raises(NotFoundError):
        shm.write("b", 0, b"x")
    shm.register("b", key, 0, 4)
    shm.unregister("")
    assert shm.status() == []
    assert open_files() == before


def test_a_name_can_be_registered_once(make, client, data):
    shm = make()
    key = client.make(data)
    other = client.make(b"other", "b")
    shm.register("r", key, 0, SIZE)
    before = open_files()
    for definition in ((key, 0, SIZE), (other, 0, 5)):
        with pytest.raises(ConflictError, match="'r' already in manager"):
            shm.register("r", *definition)
        with pytest.raises(ConflictError):
            shm.check_register("r", *definition)
    assert shm.status("r") == [RegionDefinition("r", key, 0, SIZE)]
    assert open_files() == before


def test_checking_changes_nothing(make, client, data):
    shm = make()
    before = open_files()
    shm.check_register("r", client.make(data), 0, SIZE)
    assert shm.status() == []
    with pytest.raises(NotFoundError):
        shm.check_register("r", "/none-such", 0, 1)
    assert open_files() == before


@pytest.mark.parametrize(
    ("offset", "size"), [(0, SIZE + 1), (SIZE, 1), (-1, 5), (0, 0), (0, -1), (2**64 - 1, 2**64 - 1)]
)
def test_a_region_lies_inside_of_its_object(make, client, data, offset, size):
    shm = make()
    key = client.make(data)
    before = open_files()
    with pytest.raises(InvalidRequestError, match="'r'"):
        shm.register("r", key, offset, size)
    assert open_files() == before


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "//x",
        "..",
        "/..",
        ".",
        "/../etc/passwd",
        "a/b",
        "/a/b",
        "/a\0b",
        "x" * 256,
        "/\ud800",
    ],
)
def test_a_key_is_one_name(make, key):
    with pytest.raises(InvalidRequestError, match="shared memory key"):
        make().register("r", key, 0, 1)


def test_a_region_needs_a_name(make, client, data):
    with pytest.raises(InvalidRequestError, match="needs a name"):
        make().register("", client.make(data), 0, 1)


@given(st.text(max_size=30), st.integers(), st.integers())
@settings(max_examples=200, deadline=None)
def test_no_key_reaches_outside_of_the_folder(tmp_path_factory, key, offset, size):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    (folder / "inside").mkdir(parents=True, exist_ok=True)
    (folder / "outside").write_bytes(bytes(100))
    shm = SharedMemory(SharedMemoryConfig(), directory=folder / "inside")
    for each in (key, f"/{key}", f"../{key}", "../outside"):
        with pytest.raises(RequestError) as caught:
            shm.register("r", each, offset, size)
        assert str(folder) not in str(caught.value)
    assert shm.status() == []


def test_only_regular_files_are_opened(make, tmp_path):
    """Not what a link leads to, no pipe (opening one could wait for ever), no folder, no socket."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100))
    folder = tmp_path / "shm"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "good").write_bytes(bytes(100))
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
        shm = make(directory=folder)
        before = open_files()
        for name in ("link", "pipe", "folder", "socket"):
            with pytest.raises(InvalidRequestError, match=f"'/{name}' is no shared-memory object"):
                shm.register("r", f"/{name}", 0, 10)
        with pytest.raises(NotFoundError, match="'/absent'"):
            shm.register("r", "/absent", 0, 10)
        assert open_files() == before
        shm.register("r", "/good", 0, 10)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_file_that_may_not_be_opened(make, client, data):
    key = client.make(data)
    client.path(key).chmod(0o400)
    with pytest.raises(PermissionDeniedError):
        make().register("r", key, 0, 10)


def test_the_number_of_regions_is_bounded(make, client, data):
    shm = make(max_regions=2)
    key = client.make(data)
    shm.register("a", key, 0, 1)
    shm.register("b", key, 0, 1)
    with pytest.raises(OverloadedError, match="2 shared memory regions"):
        shm.register("c", key, 0, 1)
    shm.unregister("a")
    shm.register("c", key, 0, 1)


def test_switched_off(make, client, data):
    shm = make(enabled=False)
    key = client.make(data)
    for call in (
        lambda: shm.register("r", key, 0, 1),
        lambda: shm.check_register("r", key, 0, 1),
        lambda: shm.unregister(""),
        lambda: shm.status(""),
        lambda: shm.read("r", 0, 1),
        lambda: shm.write("r", 0, b"x"),
    ):
        with pytest.raises(UnsupportedError, match="switched off"):
            call()
    shm.close()


# --- regions that go while they are used ----------------------------------------------------------


def test_a_view_outlives_its_region(make, client, data):
    shm = make("map")
    key = client.make(data)
    shm.register("r", key, 100, 5000)
    view = shm.read("r", 50, 4000)
    shm.unregister("r")
    client.path(key).unlink()
    assert view.tobytes() == data[150:4150]


@both
def test_regions_come_and_go_under_readers(make, client, access):
    """Another object under the same name and, what matters, on the same descriptor: a read gives
    one object's bytes or says that there is no such region."""
    shm = make(access)
    keys = [client.make(bytes([number]) * SIZE, str(number)) for number in range(3)]
    before = open_files()
    stop = threading.Event()
    failures, reads = [], []

    def reader():
        try:
            while not stop.is_set():
                try:
                    array = shm.read("r", 0, SIZE)
                except NotFoundError:
                    continue
                assert array.min() == array.max()
                reads.append(1)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(600):
            shm.register("r", keys[number % 3], 0, SIZE)
            shm.register("other", keys[(number + 1) % 3], 0, SIZE)
            shm.unregister("r" if number % 2 else "")
            shm.unregister("other" if number % 2 else "r")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert reads
    shm.unregister("")
    assert open_files() == before
