"""Fetching from a server that sends everything, continues, stops half-way, or sends something else."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdl.data import DataError
from fastdl.data.cifar import load_cifar
from fastdl.data.cifar_source import CIFAR10
from fastdl.data.download import download
from tests.data.conftest import Small

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    content = CONTENT
    supports_range = True
    stop_after: int | None = None

    def do_GET(self) -> None:
        start = 0
        if self.supports_range and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.content):
                self.send_response(416)
                self.end_headers()
                return
        self.server.requests.append(start)  # type: ignore[attr-defined]
        self.send_response(206 if start else 200)
        body = self.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.stop_after])

    def log_message(self, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    requests: list[int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/cifar-10-python.tar.gz"


@pytest.fixture
def server() -> Iterator[Server]:
    handler = type("OneHandler", (Handler,), {})
    with Server(("127.0.0.1", 0), handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_the_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    assert download(server.url, target, MD5) == target
    assert target.read_bytes() == CONTENT
    assert not target.with_name("file.part").exists()
    download(server.url, target, MD5)
    assert server.requests == [0]


@pytest.mark.parametrize("have", [1000, len(CONTENT) - 1, len(CONTENT)])
def test_an_interrupted_attempt_is_continued(server: Server, tmp_path: Path, have: int) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:have])
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == ([have] if have < len(CONTENT) else [])


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.RequestHandlerClass.supports_range = False  # type: ignore[attr-defined]
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_of_another_file_does_not_spoil_the_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [1000, 0]


def test_a_connection_that_breaks_leaves_what_came(server: Server, tmp_path: Path) -> None:
    server.RequestHandlerClass.stop_after = 300_000  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="300,000 of 1,024,000 bytes arrived"):
        download(server.url, tmp_path / "file", MD5)
    assert (tmp_path / "file.part").stat().st_size == 300_000
    assert not (tmp_path / "file").exists()
    server.RequestHandlerClass.stop_after = None  # type: ignore[attr-defined]
    download(server.url, tmp_path / "file", MD5)
    assert server.requests == [0, 300_000]


def test_the_wrong_content_is_refused_and_deleted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"expected MD5 {'0' * 32} from http.*, found MD5 {MD5}"):
        download(server.url, tmp_path / "file", "0" * 32)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["file.lock"])


def test_a_missing_set_is_fetched_into_the_data_folder(server: Server, tmp_path: Path, small: Small) -> None:
    server.RequestHandlerClass.content = small.files[CIFAR10.archive]  # type: ignore[attr-defined]
    source = replace(small.source, url=server.url)
    dataset = load_cifar(source, tmp_path / "data")
    np.testing.assert_array_equal(dataset.train.images.numpy(), small.train)
    assert (tmp_path / "data" / CIFAR10.archive).is_file()
    load_cifar(source, tmp_path / "data")
    assert server.requests == [0]


def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path: Path, small: Small) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/cifar-10-python.tar.gz"
    with pytest.raises(DataError) as caught:
        load_cifar(replace(small.source, url=url), tmp_path / "data")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'data'}: expected cifar10 as cifar10/train*.parquet")
    assert "the download failed" in message
    assert f"Put cifar-10-python.tar.gz (MD5 {small.source.archive_md5}) from {url} there" in message
