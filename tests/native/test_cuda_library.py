"""The CUDA library: compiled and linked without a GPU, and looked for, refused and told of as the CPU's is."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fastdl.native import FastdlWarning, cache
from fastdl.native.ahead_of_time import build_cuda
from fastdl.native.cuda_toolkit import find_nvcc
from fastdl.native.loader import Loader, Search
from fastdl.native.sources import find_csrc, read_sources
from fastdl.native.status import NativeUnavailableError
from fastdl.native.targets import TARGETS
from fastdl.native.toolchain import find_compiler, torch_installation
from tests.native.cuda_sources import fake_nvcc, write_cuda_sources

CUDA = TARGETS["cuda"]
VARIABLES = ("FASTDL_CUDA_ARCHS", "CUDACXX", "NVCC", "CUDA_HOME")


@pytest.fixture(autouse=True)
def _own_environment(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return write_cuda_sources(tmp_path / "cuda csrc")


@pytest.fixture
def cuda_loader(sources: Path, prebuilt: Path) -> Loader:
    return Loader(sources, prebuilt, CUDA)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes torch and its GPUs out to be of CUDA 13 and of the capabilities that are given."""

    def pretend(*capabilities: tuple[int, int]) -> None:
        installation = replace(torch_installation(), cuda="13.0")
        monkeypatch.setattr("fastdl.native.loader.torch_installation", lambda: installation)
        monkeypatch.setattr("fastdl.native.targets.visible_capabilities", lambda: capabilities)

    return pretend


def need_nvcc() -> None:
    try:
        find_nvcc()
        find_compiler()
    except NativeUnavailableError as error:
        pytest.skip(str(error))


def test_units_are_the_cuda_folder_and_the_digest_knows_what_they_share(sources: Path) -> None:
    tree = read_sources(sources, "cuda")
    assert [unit.relative_to(sources).as_posix() for unit in tree.units] == ["cuda/bindings.cpp", "cuda/twice.cu"]
    digests = {tree.digest}
    for file in ("shared.h", "cuda/twice.h", "cuda/twice.cuh", "cuda/twice.cu", "cuda/bindings.cpp"):
        (sources / file).write_text((sources / file).read_text() + "// changed\n")
        digests.add(read_sources(sources, "cuda").digest)
    assert len(digests) == 6
    # The CPU's library is another matter: neither concerns the other.
    (sources / "cpu").mkdir()
    (sources / "bindings.cpp").write_text("")
    (sources / "cpu" / "twice.cpp").write_text("")
    cpu = read_sources(sources)
    assert [unit.name for unit in cpu.units] == ["bindings.cpp", "twice.cpp"]
    assert read_sources(sources, "cuda").digest in digests
    (sources / "cuda" / "twice.cu").write_text("")
    assert read_sources(sources) == cpu


def test_it_compiles_and_links_without_a_gpu(sources: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need_nvcc()
    manifest = build_cuda(sources, tmp_path / "built", "90a;80", to_be_loaded=False)
    assert cache.is_whole(tmp_path / "built", manifest)
    assert manifest.library == CUDA.library
    assert manifest.arch == "80;90a"
    assert re.search(r"nvcc \d+\.\d+", manifest.compiler_version)
    assert "compiling the CUDA C++ kernels" in capfd.readouterr().err
    content = (tmp_path / "built" / CUDA.library).read_bytes()
    assert b"aoti_torch_get_current_cuda_stream" in content
    listing = shutil.which("cuobjdump") or str(Path("/usr/local/cuda/bin/cuobjdump"))
    if Path(listing).is_file():
        elves = subprocess.run(
            [listing, "--list-elf", str(tmp_path / "built" / CUDA.library)], capture_output=True, text=True, check=True
        )
        assert set(re.findall(r"\.(sm_\w+)\.cubin", elves.stdout)) == {"sm_80", "sm_90a"}


def test_what_a_torch_without_cuda_links_is_for_checking_only(sources: Path, tmp_path: Path) -> None:
    if torch_installation().cuda is not None:
        pytest.skip("this torch has CUDA")
    with pytest.raises(NativeUnavailableError, match="built without CUDA, so the library could not be loaded"):
        build_cuda(sources, tmp_path / "built", "90a")
    assert not (tmp_path / "built").exists()


def test_an_error_in_a_kernel_is_shown(sources: Path, tmp_path: Path) -> None:
    need_nvcc()
    (sources / "cuda" / "twice.cuh").write_text("static __global__ void doubled(float*, int64_t) { no_such_name; }\n")
    with pytest.raises(NativeUnavailableError, match=r"CUDA C\+\+ kernels failed(.|\n)*no_such_name(.|\n)*CUDACXX"):
        build_cuda(sources, tmp_path / "built", "90a", to_be_loaded=False)


@pytest.mark.parametrize(
    ("arch", "without"), [("90a", False), ("80;90a;100a", False), ("80;90", True), ("90+ptx", True)]
)
def test_warp_group_products_are_left_out_where_no_code_has_them(arch: str, without: bool) -> None:
    """Code for plain 90 runs on a Hopper too, and would trap there if the host asked it for them."""
    assert ("-DFASTDL_WITHOUT_WGMMA" in CUDA.device_flags(arch)) == without


def test_the_bindings_compile_against_torchs_headers(compiler: str) -> None:
    """Names and types; the kernels themselves are compiled by the ahead-of-time suite."""
    csrc, torch = find_csrc(), torch_installation()
    flags = [flag for flag in CUDA.flags("90a", torch) if flag != "-O3"]
    command = [compiler, "-std=c++20", *flags, "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    includes = [f"-I{csrc}", "-isystem", str(torch.include)]
    done = subprocess.run(
        [*command, *includes, str(csrc / "cuda" / "bindings.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_package_s_own_library_compiles_and_links(tmp_path: Path) -> None:
    need_nvcc()
    manifest = build_cuda(find_csrc(), tmp_path / "built", "80;90a", to_be_loaded=False)
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", str(tmp_path / "built" / manifest.library)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # All that is left open is torch's, the C and C++ runtime's and the loader's: no kernel without its definition.
    assert not [line for line in undefined.stdout.splitlines() if "fastdl" in line]


def test_without_cuda_nothing_is_looked_for_and_nobody_is_warned(
    cuda_loader: Loader, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = replace(torch_installation(), cuda=None)
    monkeypatch.setattr("fastdl.native.loader.torch_installation", lambda: installation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status = cuda_loader.load()
    assert (status.available, status.absent) == (False, True)
    assert "is built without CUDA" in status.reason
    assert "Install a CUDA build of torch" in status.reason
    assert not cache_folder.exists()


@pytest.mark.parametrize(
    ("capabilities", "reason"),
    [((), "torch sees no CUDA GPU"), (((7, 5),), "need a GPU of compute capability 8.0 or higher")],
)
def test_without_a_gpu_that_serves_nobody_is_warned(
    cuda_loader: Loader, a_gpu: Callable[..., None], capabilities: tuple[tuple[int, int], ...], reason: str
) -> None:
    a_gpu(*capabilities)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status = cuda_loader.load()
    assert not status.available
    assert reason in status.reason


def test_a_missing_nvcc_is_told_and_cured(
    cuda_loader: Loader, a_gpu: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gpu((9, 0))
    monkeypatch.setattr("fastdl.native.cuda_toolkit.SYSTEM_NVCC", tmp_path / "none")
    monkeypatch.setattr("fastdl.native.cuda_toolkit._in_wheels", list)
    monkeypatch.setattr("fastdl.native.cuda_toolkit._on_path", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "No nvcc was found" in cuda_loader.status_without_building().reason
        status = cuda_loader.load()
    assert "pip install nvidia-cuda-nvcc" in status.reason
    assert status.absent


def test_an_nvcc_that_fails_costs_one_warning_and_no_second_try(
    cuda_loader: Loader,
    a_gpu: Callable[..., None],
    compiler: str,
    tmp_path: Path,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_gpu((9, 0))
    monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path / "toolkit")))
    assert "Not built yet" in cuda_loader.status_without_building().reason
    with pytest.warns(FastdlWarning, match=r"runs without its CUDA C\+\+ kernels(.|\n)*nothing is compiled") as caught:
        statuses = [cuda_loader.load() for _ in range(3)]
    assert len(caught) == 1
    assert all(status is statuses[0] for status in statuses)
    assert not statuses[0].available
    assert "CUDACXX" in statuses[0].reason
    assert len(list(cache_folder.glob("native/*/failure.json"))) == 1


def test_a_value_that_makes_no_sense_is_named(
    cuda_loader: Loader, a_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_gpu((9, 0))
    monkeypatch.setenv("FASTDL_CUDA_ARCHS", "hopper")
    with pytest.warns(FastdlWarning, match=r"FASTDL_CUDA_ARCHS is 'hopper'.*80;90a;100a"):
        assert not cuda_loader.load().available


def test_named_architectures_that_the_gpu_cannot_run_are_refused_before_compiling(
    cuda_loader: Loader,
    a_gpu: Callable[..., None],
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    a_gpu((9, 0))
    monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path / "toolkit")))
    monkeypatch.setenv("FASTDL_CUDA_ARCHS", "80;100a")
    with pytest.warns(FastdlWarning, match=r"a GPU of compute capability 9\.0 cannot run.*'native'.*'90a'"):
        assert not cuda_loader.load().available
    assert "compiling" not in capfd.readouterr().err


def test_a_cached_library_is_found_for_the_gpus_that_it_serves(
    sources: Path,
    prebuilt: Path,
    a_gpu: Callable[..., None],
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Key and manifest as a build would leave them; nothing is compiled here."""
    a_gpu((9, 0), (8, 0))
    monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path / "toolkit")))
    search = Search(sources, prebuilt, CUDA)
    assert search.settings.arch == "80;90a"
    keys = {search.key(search.require_tools())}
    entry = a_cached_library(search)
    found = Loader(sources, prebuilt, CUDA).status_without_building()
    assert found.path == entry / CUDA.library
    # Another GPU, another nvcc, other flags: each is another library.
    fake_nvcc(tmp_path / "toolkit", "13.10")
    again = Search(sources, prebuilt, CUDA)
    keys.add(again.key(again.require_tools()))
    a_gpu((10, 0))
    other = Search(sources, prebuilt, CUDA)
    keys.add(other.key(other.require_tools()))
    assert len(keys) == 3
    assert other.existing() is None
    # Built ahead of time for the one, it is refused by the other, with the reason.
    entry.rename(prebuilt)
    assert other.existing() is None
    assert "is compiled for 80;90a, which a GPU of compute capability 10.0 cannot run" in other.notes[0]
    a_gpu((9, 0))
    preferred = Search(sources, prebuilt, CUDA).existing()
    assert preferred is not None
    assert preferred.entry == prebuilt


def a_cached_library(search: Search) -> Path:
    """An entry with some bytes for a library, under the key and with the manifest that belong to it."""
    entry = cache.writable_root() / "native" / search.key(search.require_tools())
    entry.mkdir(parents=True)
    (entry / CUDA.library).write_bytes(b"library")
    manifest = {
        "format": cache.MANIFEST_FORMAT,
        "library": CUDA.library,
        "size": 7,
        "sha256": cache.file_digest(entry / CUDA.library),
        "source_digest": search.sources.digest,
        "system": sys.platform,
        "machine": os.uname().machine,
        "arch": search.settings.arch,
        "required_features": [],
        "flags": [],
        "compiler": "",
        "compiler_version": "",
        "torch": search.torch.version,
        "torch_target": "0x020b000000000000",
        "built_in_seconds": 1.0,
    }
    (entry / cache.MANIFEST).write_text(json.dumps(manifest))
    return entry
