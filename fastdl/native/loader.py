"""Find a native library, build it where it is missing, and load it: once, and without ever failing its caller."""

import contextlib
import hashlib
import json
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import build as building
from . import cache
from .settings import Settings
from .sources import SourceTree, find_csrc
from .status import FastdlWarning, NativeAbsentError, NativeStatus, NativeUnavailableError
from .targets import TARGETS, CpuTarget, Tools
from .toolchain import TorchInstallation, find_ninja, torch_installation, torch_release

# Where setup.py puts a library that was built ahead of time.
PREBUILT = Path(__file__).resolve().parent / "prebuilt"
SYSTEMS = ("Linux", "Darwin")
# Another process that builds is waited for; after this long it is taken to hang, and this process builds for itself.
LOCK_PATIENCE = 1800.0
LOCK_POLL = 0.2
WAIT_MESSAGE_AFTER = 5.0
FAILURE = "failure.json"


@dataclass(frozen=True)
class Library:
    """A library on disk that fits this machine, this torch and these sources."""

    entry: Path
    manifest: cache.Manifest
    built_in_seconds: float | None = None

    @property
    def path(self) -> Path:
        return self.entry / self.manifest.library


# Held while a library is looked for, built and loaded; a fork waits for it. Loading takes locks of the linker, of
# torch's registry and of modules such as tempfile, and a child forked meanwhile would find them closed for ever
# (measured: one child in forty, forked within 4 ms of another thread's first call). The thread that loads may fork.
_loading = threading.RLock()


def _renew_lock() -> None:
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _loading.acquire(), after_in_parent=lambda: _loading.release(), after_in_child=_renew_lock
    )


@contextlib.contextmanager
def without_forks() -> Iterator[None]:
    """Within it no other thread forks: for what a first call looks up and imports, under locks as those of loading."""
    with _loading:
        yield


class Loader:
    """Loads one library of a source tree; the process's own are behind ``fastdl.native.load``."""

    def __init__(self, csrc: Path | None = None, prebuilt: Path = PREBUILT, target: CpuTarget = TARGETS["cpu"]) -> None:
        self.target = target
        self.csrc = csrc
        self.prebuilt = prebuilt
        self._status: NativeStatus | None = None

    def load(self) -> NativeStatus:
        """Load the library on the first call; the same status ever after. Warns once where loading it fails.

        Nothing is said where the machine lacks what the library is for: the status tells it to who asks.
        """
        if self._status is None:
            with _loading:
                if self._status is None:
                    self._status = self._load()
                    if not self._status.available and not self._status.absent:
                        warnings.warn(f"{self.target.without} {self._status.reason}", FastdlWarning, stacklevel=3)
        return self._status

    def status_without_building(self) -> NativeStatus:
        """The status if it is known, or else what ``load`` would find; builds, loads and warns of nothing."""
        if self._status is not None:
            return self._status
        try:
            search = Search(self.csrc, self.prebuilt, self.target)
            library = search.existing()
            if library is None:
                search.refuse_if_building_is_off()
                tools = search.require_tools()
                find_ninja()
                return NativeStatus(False, f"Not built yet: {tools.path} will compile it on first use.")
            return NativeStatus(True, path=library.path, features=library.manifest.required_features)
        except NativeUnavailableError as error:
            return _unavailable(error)
        except Exception as error:  # a query must answer whatever the state of the disk
            return NativeStatus(False, _unexpected(error))

    def _load(self) -> NativeStatus:
        try:
            search = Search(self.csrc, self.prebuilt, self.target)
            library = search.existing()
            if library is not None and library.entry == self.prebuilt:
                try:
                    return _load_library(library)
                except NativeUnavailableError as error:
                    # Built ahead of time against other system libraries; one that is built here may still do.
                    search.notes.append(str(error))
                    library = search.cached()
            if library is None:
                search.refuse_if_building_is_off()
                library = search.build()
            return _load_library(library)
        except NativeUnavailableError as error:
            return _unavailable(error)
        except Exception as error:  # whatever it is, the package works without the library
            return NativeStatus(False, _unexpected(error))


class Search:
    """One look for a library, under the settings of this moment."""

    def __init__(self, csrc: Path | None, prebuilt: Path, target: CpuTarget = TARGETS["cpu"]) -> None:
        self.target = target
        if platform.system() not in SYSTEMS:
            raise NativeUnavailableError(
                f"The native kernels are built on {' and '.join(SYSTEMS)}, not on {platform.system()}.",
                "On Windows, use WSL.",
            )
        self.torch: TorchInstallation = torch_installation()
        self.settings: Settings = target.settings(self.torch)
        self.sources: SourceTree = target.sources(csrc or find_csrc())
        self.prebuilt = prebuilt
        self.notes: list[str] = []  # why a library that exists is not used
        self.tools: Tools | None = None
        self.tools_error: NativeUnavailableError | None = None
        try:
            self.tools = target.tools()
        except NativeUnavailableError as error:
            self.tools_error = error

    def existing(self) -> Library | None:
        """A library built ahead of time, or else one from the cache."""
        manifest = cache.read_manifest(self.prebuilt)
        if manifest is not None and self._fits(manifest):
            obstacle = self._obstacle(self.prebuilt, manifest)
            if obstacle:
                self.notes.append(obstacle)
            elif not self.settings.arch_is_asked_for or manifest.arch == self.settings.arch:
                return Library(self.prebuilt, manifest)
        return self.cached()

    def cached(self) -> Library | None:
        """The entry that these tools would make, or, where nothing can be compiled, any that fits."""
        if self.tools is not None:
            key = self.key(self.tools)
            for root in cache.readable_roots():
                library = self._at(root / "native" / key)
                if library is not None:
                    return library
        if self.tools is None or self.settings.build == "never":
            for entry, manifest in cache.entries():
                if self._fits(manifest) and manifest.arch == self.settings.arch:
                    obstacle = self._obstacle(entry, manifest)
                    if obstacle:
                        self.notes.append(obstacle)
                    elif cache.hold(entry):
                        return Library(entry, manifest)
        return None

    def refuse_if_building_is_off(self) -> None:
        if self.settings.build == "never":
            places = " or ".join(str(root / "native") for root in cache.readable_roots())
            raise self._with_notes(
                NativeUnavailableError(
                    f"FASTDL_BUILD={os.environ['FASTDL_BUILD']} forbids building, and no library that fits is in "
                    f"{places}.",
                    "Unset FASTDL_BUILD to have it built, or set FASTDL_CACHE to a folder where it was built.",
                )
            )

    def require_tools(self) -> Tools:
        if self.tools_error is not None:
            raise self._with_notes(self.tools_error)
        assert self.tools is not None
        return self.tools

    def build(self) -> Library:
        """Build under the entry's lock, unless another process has built it (or failed to) while this one waited."""
        tools = self.require_tools()
        root = cache.writable_root()
        key = self.key(tools)
        entry = root / "native" / key
        began = time.time()
        with _locked(root / "native" / f".{key}.lock", self.target.kernels) as locked:
            library = self._at(entry)
            if library is not None:
                return library
            _raise_failure_since(entry, began)
            if locked:
                building.remove_abandoned(root, key)
            try:
                manifest = building.build(self._recipe(tools), key, entry)
            except NativeUnavailableError as error:
                _record_failure(entry, error)
                raise self._with_notes(error) from error
            (entry / FAILURE).unlink(missing_ok=True)
            cache.hold(entry)
        cache.prune(root, keep=entry)
        return Library(entry, manifest, manifest.built_in_seconds)

    def _recipe(self, tools: Tools) -> building.Recipe:
        return building.Recipe(self.target, self.sources, self.settings.arch, self.torch, tools)

    def key(self, tools: Tools) -> str:
        parts = {
            "library": self.target.name,
            "sources": self.sources.digest,
            "flags": self._recipe(tools).flags,
            "compiler": tools.identity,
            "features": self.target.machine_key(self.settings.arch),
            "torch": self.torch.version,
            "platform": (platform.system(), platform.machine()),
            "format": cache.MANIFEST_FORMAT,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _fits(self, manifest: cache.Manifest) -> bool:
        # The stable ABI: compiled against one torch, a library serves every torch from its target version on.
        target = int(manifest.torch_target, 16)
        return (
            manifest.library == self.target.library
            and manifest.source_digest == self.sources.digest
            and (manifest.system, manifest.machine) == (sys.platform, platform.machine())
            and torch_release(self.torch.version) >= (target >> 56, (target >> 48) & 0xFF)
        )

    def _obstacle(self, entry: Path, manifest: cache.Manifest) -> str:
        """Why a library that fits cannot be loaded here; empty if it can."""
        obstacle = self.target.obstacle(manifest.arch, manifest.required_features)
        if obstacle is not None:
            return f"The library in {entry} {obstacle.cause}"
        if not cache.is_whole(entry, manifest):
            return f"The library in {entry} is damaged."
        return ""

    def _at(self, entry: Path) -> Library | None:
        """The library in ``entry``, in use from now on; None if it has to be built (again)."""
        manifest = cache.read_manifest(entry)
        if manifest is None or not self._fits(manifest):
            return None
        obstacle = self.target.obstacle(manifest.arch, manifest.required_features)
        if obstacle is not None:  # building it again from the same ingredients would change nothing
            raise NativeUnavailableError(f"The library in {entry} {obstacle.cause}", obstacle.cure)
        return Library(entry, manifest) if cache.is_whole(entry, manifest) and cache.hold(entry) else None

    def _with_notes(self, error: NativeUnavailableError) -> NativeUnavailableError:
        """The error with what stood in the way of a library that exists; with such a note it is a fault."""
        return NativeUnavailableError(" ".join([*self.notes, error.cause]), error.cure) if self.notes else error


def _unavailable(error: NativeUnavailableError) -> NativeStatus:
    return NativeStatus(False, str(error), absent=isinstance(error, NativeAbsentError))


def _load_library(library: Library) -> NativeStatus:
    import torch

    try:
        torch.ops.load_library(str(library.path))
    except OSError as error:
        detail = error.__cause__ or error  # torch puts the linker's own words behind its own
        raise NativeUnavailableError(
            f"The library {library.path} does not load: {detail}.", _load_cure(str(detail), library)
        ) from error
    return NativeStatus(True, "", library.path, library.manifest.required_features, library.built_in_seconds)


def _load_cure(detail: str, library: Library) -> str:
    if "failed to map segment" in detail:
        return "Its file system forbids running programs: set FASTDL_CACHE to a folder on another one."
    if "GLIBC" in detail or "CXXABI" in detail:
        return (
            "It was compiled against a newer C++ runtime than the one that Python has loaded: set CXX to the compiler "
            "of the same environment (conda: conda install gxx)."
        )
    return f"Remove the folder {library.entry} to have it built again; set CXX if another compiler should build it."


@contextlib.contextmanager
def _locked(path: Path, kernels: str) -> Iterator[bool]:
    """Hold the lock ``path``; False where the file system has no locks or the holder seems to hang.

    Without the lock the build is merely done twice: its result arrives by rename.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    began = time.monotonic()
    said = locked = False
    while not locked and time.monotonic() - began < LOCK_PATIENCE:
        try:
            lock.acquire(timeout=WAIT_MESSAGE_AFTER, poll_interval=LOCK_POLL)
            locked = True
        except Timeout:
            if not said:
                building.say(f"fastdl: waiting for another process that is compiling the {kernels}")
                said = True
        except (OSError, NotImplementedError):
            break
    try:
        yield locked
    finally:
        if locked:
            lock.release()


def _record_failure(entry: Path, error: NativeUnavailableError) -> None:
    with contextlib.suppress(OSError):
        entry.mkdir(exist_ok=True)
        (entry / FAILURE).write_text(json.dumps({"cause": error.cause, "cure": error.cure}), encoding="utf-8")


def _raise_failure_since(entry: Path, began: float) -> None:
    """Raise what the build failed of in the process that was waited for: eight ranks need not fail one by one."""
    try:
        if (entry / FAILURE).stat().st_mtime < began:
            return
        failure = json.loads((entry / FAILURE).read_text(encoding="utf-8"))
        cause, cure = str(failure["cause"]), str(failure["cure"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    raise NativeUnavailableError(cause, cure)


def _unexpected(error: Exception) -> str:
    return (
        f"Loading them failed unexpectedly: {type(error).__name__}: {error}. "
        "Please report this; FASTDL_BACKEND=reference avoids it."
    )
