"""Where nvcc is looked for, what is asked of it, and which code runs on which GPU."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from fastdl.native import cuda_toolkit, settings
from fastdl.native.cuda_toolkit import arch_of, find_nvcc, generation_flags, host_compiler, probe_toolkit, serves
from fastdl.native.status import NativeAbsentError, NativeUnavailableError
from fastdl.native.toolchain import Compiler, TorchInstallation, torch_installation
from tests.native.cuda_sources import fake_nvcc
from tests.native.harness import executable


@pytest.fixture(autouse=True)
def _no_nvcc_but_the_tests_own(cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDACXX", "NVCC", "CUDA_HOME", "FASTDL_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'empty'}:/usr/bin:/bin")
    monkeypatch.setattr(cuda_toolkit, "SYSTEM_NVCC", tmp_path / "no such nvcc")
    monkeypatch.setattr(cuda_toolkit, "_in_wheels", list)


@pytest.fixture
def torch_of_cuda_13() -> TorchInstallation:
    return replace(torch_installation(), cuda="13.0")


def test_nvcc_is_looked_for_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NativeAbsentError, match=r"No nvcc was found.*nvidia-cuda-nvcc.*CUDACXX"):
        find_nvcc()
    places = {name: fake_nvcc(tmp_path / name) for name in ("wheel", "system", "path", "home", "nvcc", "cudacxx")}
    monkeypatch.setattr(cuda_toolkit, "_in_wheels", lambda: [tmp_path / "none", places["wheel"]])
    assert find_nvcc().path == places["wheel"]
    monkeypatch.setattr(cuda_toolkit, "SYSTEM_NVCC", places["system"])
    assert find_nvcc().path == places["system"]
    monkeypatch.setenv("PATH", str(places["path"].parent), prepend=":")
    assert find_nvcc().path == places["path"]
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find_nvcc().path == places["home"]
    monkeypatch.setenv("NVCC", str(places["nvcc"]))
    assert find_nvcc().path == places["nvcc"]
    monkeypatch.setenv("CUDACXX", str(places["cudacxx"]))
    assert find_nvcc().path == places["cudacxx"]


@pytest.mark.parametrize("folder", ["cu13", "cuda_nvcc"])
def test_the_wheels_nvcc_is_found(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    nvcc = fake_nvcc(tmp_path / "site" / "nvidia" / folder)
    package = ModuleType("nvidia")
    spec = __import__("importlib.machinery").machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "site" / "nvidia")]
    package.__spec__ = spec
    monkeypatch.setitem(sys.modules, "nvidia", package)
    assert nvcc in cuda_toolkit._in_wheels()


def test_a_named_nvcc_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "/no/such/nvcc")
    with pytest.raises(NativeUnavailableError, match=r"'/no/such/nvcc' named by the environment variable CUDACXX"):
        find_nvcc()


def test_identity_follows_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path / "one")))
    before = find_nvcc().identity
    assert find_nvcc().identity == before
    fake_nvcc(tmp_path / "one", "13.10")
    assert find_nvcc().identity != before


def test_a_toolkit_is_told_by_its_nvcc(
    tmp_path: Path, torch_of_cuda_13: TorchInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = fake_nvcc(tmp_path / "toolkit", "12.8")
    # A wrapper that stands elsewhere, as distributions put one into /usr/bin.
    monkeypatch.setenv("CUDACXX", str(executable(tmp_path / "wrapper", f'exec {nvcc} "$@"')))
    toolkit = probe_toolkit(find_nvcc(), torch_of_cuda_13)
    assert toolkit.release == (12, 8)
    assert toolkit.include == tmp_path / "toolkit" / "include"
    assert toolkit.link_flags()[0] == str(tmp_path / "toolkit" / "lib64" / "libcudart_static.a")


def test_the_runtime_is_linked_as_it_is_there(tmp_path: Path, torch_of_cuda_13: TorchInstallation) -> None:
    toolkit = probe_toolkit(cuda_toolkit._nvcc(fake_nvcc(tmp_path / "toolkit", runtime=False)), torch_of_cuda_13)
    with pytest.raises(NativeUnavailableError, match=r"libcudart.*pip install nvidia-cuda-runtime"):
        toolkit.link_flags()
    shared = tmp_path / "toolkit" / "lib64" / "libcudart.so.13"
    shared.touch()
    assert toolkit.link_flags() == (str(shared),)


@pytest.mark.parametrize(
    ("release", "message"),
    [("11.8", r"is of CUDA 11\.8; the kernels need 12\.4"), ("14.0", r"14\.0, later than the 13\.0 of torch.*CUDACXX")],
)
def test_a_release_that_does_not_suit_is_refused(
    release: str, message: str, tmp_path: Path, torch_of_cuda_13: TorchInstallation
) -> None:
    nvcc = cuda_toolkit._nvcc(fake_nvcc(tmp_path / "toolkit", release))
    with pytest.raises(NativeUnavailableError, match=message):
        probe_toolkit(nvcc, torch_of_cuda_13)


def test_an_nvcc_that_does_not_work_is_told(tmp_path: Path, torch_of_cuda_13: TorchInstallation) -> None:
    broken = executable(tmp_path / "nvcc", "echo 'cicc: not found' >&2; exit 1")
    with pytest.raises(NativeUnavailableError, match=r"does not say its release: cicc: not found.*Install"):
        probe_toolkit(cuda_toolkit._nvcc(broken), torch_of_cuda_13)
    incomplete = fake_nvcc(tmp_path / "toolkit")
    (tmp_path / "toolkit" / "include" / "cuda_runtime.h").unlink()
    with pytest.raises(NativeUnavailableError, match=r"lacks cuda_runtime\.h.*nvidia-cuda-runtime"):
        probe_toolkit(cuda_toolkit._nvcc(incomplete), torch_of_cuda_13)


@pytest.mark.parametrize(
    ("command", "expected"), [(("/usr/bin/g++", "-m64"), "/usr/bin/g++"), (("/usr/bin/ccache", "no-g++"), "no-g++")]
)
def test_nvcc_gets_the_compiler_itself(command: tuple[str, ...], expected: str) -> None:
    assert host_compiler(Compiler(command, Path(command[0]), "")) == expected


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 0), "80"), ((8, 6), "86"), ((8, 9), "89"), ((9, 0), "90a"), ((10, 0), "100a"), ((12, 0), "90+ptx")],
)
def test_every_gpu_gets_code_that_runs_on_it(capability: tuple[int, int], arch: str) -> None:
    assert arch_of(capability) == arch
    assert serves(arch, capability)


def test_a_gpu_that_is_too_old_is_told_so() -> None:
    with pytest.raises(NativeAbsentError, match=r"compute capability 8\.0 or higher; this one has 7\.5"):
        arch_of((7, 5))


@pytest.mark.parametrize(
    ("arch", "served", "refused"),
    [
        ("80", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (10, 0)]),
        ("86", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("90a", [(9, 0)], [(8, 0), (10, 0), (12, 0)]),
        ("100a", [(10, 0)], [(10, 3), (9, 0)]),
        ("90+ptx", [(9, 0), (10, 0), (12, 0)], [(8, 9)]),
    ],
)
def test_what_runs_where(arch: str, served: list[tuple[int, int]], refused: list[tuple[int, int]]) -> None:
    assert all(serves(arch, capability) for capability in served)
    assert not any(serves(arch, capability) for capability in refused)


def test_flags_name_machine_code_and_ptx() -> None:
    assert generation_flags(("80", "90a", "90+ptx")) == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=[compute_90,sm_90]",
    )


@pytest.mark.parametrize(
    ("value", "archs"),
    [
        (None, ()),
        ("native", ()),
        (" Native ", ()),
        ("90a", ("90a",)),
        ("100a;80;90a", ("80", "90a", "100a")),
        ("80, 80 90+ptx", ("80", "90+ptx")),
    ],
)
def test_architectures_are_read(value: str | None, archs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv("FASTDL_CUDA_ARCHS", value)
    assert settings.cuda_archs() == archs


@pytest.mark.parametrize("value", ["sm_90", "9.0a", "75", "90b", "hopper", "80;;90a;x", ";", "80; rm -rf x"])
def test_an_architecture_that_is_none_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDL_CUDA_ARCHS", value)
    with pytest.raises(NativeUnavailableError, match=r"FASTDL_CUDA_ARCHS is .*It takes 'native' or a list"):
        settings.cuda_archs()
