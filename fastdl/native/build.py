"""Compile a library's sources with ninja into a folder of their own, and publish the result in the cache."""

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .sources import SourceTree
from .status import NativeUnavailableError
from .targets import CpuTarget, Facts, Tools, nvcc_command
from .toolchain import TORCH_TARGET_VERSION, TorchInstallation, find_ninja

LOG = "build.log"
BUILD_FOLDER_PREFIX = ".building-"
# What a failed build shows of its log.
LOG_TAIL_LINES = 12
# How often a line is printed where progress cannot overwrite itself.
LOG_FILE_INTERVAL = 5.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a build gives."""

    target: CpuTarget
    sources: SourceTree
    arch: str
    torch: TorchInstallation
    tools: Tools

    @property
    def flags(self) -> tuple[str, ...]:
        return (*self.target.flags(self.arch, self.torch), *self.target.device_flags(self.arch))


def build(recipe: Recipe, key: str, entry: Path, *, for_this_machine: bool = True) -> cache.Manifest:
    """Compile ``recipe`` and leave the library and its manifest in ``entry``.

    Everything happens in a temporary folder beside ``entry``; the library and then the manifest are moved in when they
    are whole. Raises NativeUnavailableError with the compiler's first errors and the place of the full log. With
    ``for_this_machine`` an architecture that this machine cannot run is refused before anything is compiled.
    """
    ninja = find_ninja()
    facts = recipe.target.probe(recipe.tools, recipe.arch, recipe.torch)
    if for_this_machine:
        obstacle = recipe.target.obstacle(recipe.arch, facts.host.features)
        if obstacle is not None:
            raise NativeUnavailableError(f"{recipe.target.arch_variable}={recipe.arch} {obstacle.cause}", obstacle.cure)
    started = time.monotonic()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_build_folder_prefix(key), dir=entry.parent))
    except OSError as error:
        raise _disk_error(entry.parent, error) from error
    try:
        (folder / "build.ninja").write_text(ninja_file(recipe, facts), encoding="utf-8")
        _run_ninja(ninja, folder, entry, recipe.target)
        name = recipe.target.library
        library = folder / name
        manifest = cache.Manifest(
            format=cache.MANIFEST_FORMAT,
            library=name,
            size=library.stat().st_size,
            sha256=cache.file_digest(library),
            source_digest=recipe.sources.digest,
            system=sys.platform,
            machine=platform.machine(),
            arch=recipe.arch,
            required_features=facts.host.features,
            flags=recipe.flags,
            compiler=recipe.tools.identity,
            compiler_version=facts.version,
            torch=recipe.torch.version,
            torch_target=TORCH_TARGET_VERSION,
            built_in_seconds=round(time.monotonic() - started, 2),
        )
        entry.mkdir(exist_ok=True)
        os.replace(library, entry / name)  # noqa: PTH105  (the rename is the point; os.replace says so)
        cache.write_manifest(entry, manifest)
        (entry / LOG).unlink(missing_ok=True)
    except OSError as error:
        raise _disk_error(entry.parent, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def remove_abandoned(root: Path, key: str) -> None:
    """Remove what interrupted builds of ``key`` left behind; to be called only by the holder of the key's lock.

    A home folder may be shared by hosts that do not see each other's locks: what another host made is left alone.
    """
    for folder in (root / "native").glob(f"{_build_folder_prefix(key)}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _build_folder_prefix(key: str) -> str:
    return f"{BUILD_FOLDER_PREFIX}{key}-{re.sub(r'[^A-Za-z0-9]', '', platform.node())}-"


def ninja_file(recipe: Recipe, facts: Facts) -> str:
    """One edge for each translation unit, so that they compile in parallel, and one that links them."""
    root, target = recipe.sources.root, recipe.target
    includes = [f"-I{root}", "-isystem", str(recipe.torch.include)]
    if facts.toolkit is not None:
        includes += ["-isystem", str(facts.toolkit.include)]
    compiler = recipe.tools.compiler.command
    flags = (facts.host.standard, *target.flags(recipe.arch, recipe.torch))
    lines = ["rule cxx", f"  command = {_shell(*compiler, *flags, *includes)} -c $in -o $out"]
    lines += ["  description = compiled $name"]
    if recipe.tools.nvcc is not None:
        # The kernels include no header of torch's.
        nvcc = nvcc_command(recipe.tools, target.device_flags(recipe.arch))
        lines += ["rule nvcc", f"  command = {_shell(*nvcc, f'-I{root}')} -c $in -o $out"]
        lines += ["  description = compiled $name"]
    links = _shell(*target.link_flags(recipe.torch, facts))
    lines += ["rule link", f"  command = {_shell(*compiler)} $in {links} -o $out", "  description = linked $name"]
    objects = []
    for unit in recipe.sources.units:
        name = unit.relative_to(root).as_posix()
        objects.append(_escape_path(name + ".o"))
        rule = "nvcc" if unit.suffix == ".cu" else "cxx"
        lines += [f"build {objects[-1]}: {rule} {_escape_path(str(unit))}", f"  name = {_escape_command(name)}"]
    library = target.library
    lines += [f"build {library}: link {' '.join(objects)}", f"  name = {library}", f"default {library}", ""]
    return "\n".join(lines)


def _shell(*words: str) -> str:
    return _escape_command(" ".join(map(shlex.quote, words)))


def _escape_command(text: str) -> str:
    return text.replace("$", "$$")


def _escape_path(text: str) -> str:
    return re.sub(r"([$ :])", r"$\1", text)


def _run_ninja(ninja: Path, folder: Path, entry: Path, target: CpuTarget) -> None:
    jobs = os.environ.get("MAX_JOBS", "").strip()  # torch's own name for it
    command = [str(ninja), "-C", str(folder), "-j", jobs if jobs.isdigit() and int(jobs) > 0 else str(_processors())]
    progress = Progress(target.kernels)
    say(f"fastdl: compiling the {target.kernels} into {entry.parent} (once for this machine and version)")
    lines: list[str] = []
    done = False
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            step = re.match(r"\[(\d+)/(\d+)\] (.*)", line)
            if step:
                progress.step(int(step.group(1)), int(step.group(2)), step.group(3))
        done = process.wait() == 0
    finally:  # also when interrupted
        if process.poll() is None:
            process.terminate()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        progress.finish(done)
    if not done:
        raise _compile_error(lines, entry, target)


def _compile_error(lines: list[str], entry: Path, target: CpuTarget) -> NativeUnavailableError:
    text = "".join(lines)
    where = ""
    with contextlib.suppress(OSError):
        entry.mkdir(exist_ok=True)
        (entry / LOG).write_text(text, encoding="utf-8")
        where = f" The whole log is in {entry / LOG}."
    if "No space left on device" in text:
        return NativeUnavailableError(
            f"The disk is full: compiling the {target.kernels} into {entry.parent} failed.{where}",
            "Free some space there, or set FASTDL_CACHE to a folder with 100 MB to spare (compilers also use TMPDIR).",
        )
    # Everything from the first error on says more than the end, which is often notes on templates.
    body = [line.rstrip() for line in lines if not re.match(r"\[\d+/\d+\]|ninja: (?!error)", line)]
    first = next((index for index, line in enumerate(body) if re.search(r"\berror\b", line)), None)
    shown = body[-LOG_TAIL_LINES:] if first is None else body[first : first + LOG_TAIL_LINES]
    return NativeUnavailableError(
        f"Compiling the {target.kernels} failed:\n  " + "\n  ".join(shown) + "\n",
        f"{target.cure}{where}",
    )


def _disk_error(folder: Path, error: OSError) -> NativeUnavailableError:
    return NativeUnavailableError(
        f"The native kernels could not be written to {folder}: {error}.",
        "Set FASTDL_CACHE to a folder that can be written and has free space.",
    )


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Progress:
    """Says on stderr how far a build is: one line that overwrites itself on a terminal, a few lines elsewhere."""

    def __init__(self, kernels: str) -> None:
        self.kernels = kernels
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.started = self.printed = time.monotonic()

    def step(self, number: int, total: int, what: str) -> None:
        now = time.monotonic()
        if self.terminal:
            _write(f"\r\x1b[Kfastdl: [{number}/{total}] {what}")
        elif now - self.printed >= LOG_FILE_INTERVAL:
            _write(f"fastdl: [{number}/{total}] {what}\n")
        else:
            return
        self.printed = now

    def finish(self, done: bool) -> None:
        clear = "\r\x1b[K" if self.terminal else ""
        outcome = "compiled" if done else "did not compile"
        _write(f"{clear}fastdl: {outcome} the {self.kernels} after {time.monotonic() - self.started:.1f} s\n")


def say(text: str) -> None:
    """A line on stderr."""
    _write(text + "\n")


def _write(text: str) -> None:
    # A closed, missing or full stderr must not cost the build.
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()
