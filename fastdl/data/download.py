"""Fetching an official file: with its checksum, and continuing where an interrupted attempt stopped."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock

from fastdl.data.errors import DataError
from fastdl.data.files import file_digest
from fastdl.data.progress import progress_bar

__all__ = ["download"]

_TIMEOUT_SECONDS = 30
_PIECE = 1 << 18


def download(url: str, target: Path, md5: str) -> Path:
    """Fetch ``url`` into ``target`` and return ``target``.

    The content grows in ``<target>.part``. A later attempt asks the server for the rest of it, and only a complete
    file with the right MD5 takes the name ``target``. Of processes that start together one downloads, the others wait.

    Raises:
        DataError: what the server sent has another MD5.
        OSError: no connection (``urllib.error.URLError``), or the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with FileLock(target.with_name(target.name + ".lock")):
        if target.is_file():
            return target
        _fetch(url, part)
        if (found := file_digest(part, "md5")) != md5:
            # A part left by another version of the file would spoil every later attempt: begin anew once.
            part.unlink()
            _fetch(url, part)
            found = file_digest(part, "md5")
        if found != md5:
            size = part.stat().st_size
            part.unlink()
            raise DataError(target, f"MD5 {md5} from {url}", f"MD5 {found} ({size:,} bytes)")
        part.replace(target)
    return target


def _fetch(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks of the content of ``url``."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the part holds all there is
            return
        raise
    with response:
        if start and response.status != 206:  # the server sends everything from the beginning
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise OSError(f"{part.parent} has {free:,} bytes free, and {url} needs {total - start:,}")
        with (
            part.open("ab" if start else "wb") as file,
            progress_bar(f"Downloading {url.rsplit('/', 1)[-1]}", total, "B", scale=True) as advance,
        ):
            advance(start)
            while piece := response.read(_PIECE):
                file.write(piece)
                advance(len(piece))
        if total is not None and (received := part.stat().st_size) < total:
            raise urllib.error.ContentTooShortError(
                f"{received:,} of {total:,} bytes arrived", (str(part), response.headers)
            )
