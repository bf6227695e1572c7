"""The C++ sources: where they lie, which are compiled, and their fingerprint."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .status import NativeUnavailableError

# Installed, csrc/ travels inside the package; in a checkout (or a plain copy of it) it lies beside the package.
PACKAGED = Path(__file__).resolve().parent.parent / "_csrc"
CHECKOUT = Path(__file__).resolve().parent.parent.parent / "csrc"


@dataclass(frozen=True)
class SourceTree:
    """``root`` (csrc/), the translation units that make a library, and a digest of them and their headers."""

    root: Path
    units: tuple[Path, ...]
    digest: str


def find_csrc() -> Path:
    """The folder of C++ sources that belongs to this package."""
    for folder in (PACKAGED, CHECKOUT):
        if (folder / "bindings.cpp").is_file():
            return folder
    raise NativeUnavailableError(
        f"The C++ sources are in neither {PACKAGED} nor {CHECKOUT}.", "Install fastdl again; its wheel carries them."
    )


def read_sources(root: Path, library: str = "cpu") -> SourceTree:
    """The translation units of one library ("cpu" or "cuda"), and the digest that names their state.

    The CPU library is made of ``*.cpp`` and ``cpu/*.cpp``, the CUDA library of ``cuda/*.cpp`` and ``cuda/*.cu``. The
    digest covers every source and header that these units may include: those of ``csrc/`` itself, where both find what
    they share, and those of the library's own folder.
    """
    own = root / library
    folders = (root, own)
    try:
        files = sorted(
            path
            for folder in folders
            for path in folder.glob("*")
            if path.suffix in (".h", ".cuh") or (path.suffix in (".cpp", ".cu") and _is_unit(path, root, library))
            if not path.name.startswith(".")
        )
        digest = hashlib.sha256()
        for path in files:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    except OSError as error:
        raise NativeUnavailableError(
            f"The C++ sources in {root} cannot be read: {error}.",
            "Install fastdl again, or repair the folder's permissions.",
        ) from error
    units = tuple(path for path in files if path.suffix in (".cpp", ".cu"))
    if not units:
        where = root if library == "cpu" else own
        raise NativeUnavailableError(
            f"There is no C++ source in {where}.", "Install fastdl again; its wheel carries them."
        )
    return SourceTree(root, units, digest.hexdigest())


def _is_unit(path: Path, root: Path, library: str) -> bool:
    """The bindings in ``csrc/`` itself are the CPU library's; a ``.cu`` file is the CUDA library's."""
    if library == "cpu":
        return path.suffix == ".cpp"
    return path.parent != root
