import shutil
import sys
from pathlib import Path

import pytest

from fastdl.native import toolchain
from fastdl.native.settings import build_mode, cpu_arch
from fastdl.native.status import NativeUnavailableError
from tests.native.harness import executable


@pytest.fixture(autouse=True)
def _own_environment(cache_folder: Path) -> None:
    """No setting comes in from outside."""


def test_cxx_is_honoured_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = executable(tmp_path / "wrapper", "exit 0")
    monkeypatch.setenv("CXX", f"{wrapper} g++ -m64")
    assert toolchain.find_compiler().command == (str(wrapper), "g++", "-m64")


def test_identity_follows_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = executable(tmp_path / "wrapper", "exit 0")
    monkeypatch.setenv("CXX", str(wrapper))
    before = toolchain.find_compiler().identity
    assert toolchain.find_compiler().identity == before
    executable(wrapper, "exit 1 # changed")
    assert toolchain.find_compiler().identity != before


def test_a_cxx_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeUnavailableError, match=r"'no-such-compiler'.*CXX"):
        toolchain.find_compiler()


def test_no_compiler_at_all_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeUnavailableError, match=r"No C\+\+ compiler.*Install"):
        toolchain.find_compiler()


def test_ninja_comes_from_its_package_or_from_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toolchain.find_ninja().is_file()
    monkeypatch.setitem(sys.modules, "ninja", None)  # importing it now raises ImportError
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeUnavailableError, match="pip install ninja"):
        toolchain.find_ninja()
    on_path = executable(tmp_path / "ninja", "exit 0")
    assert toolchain.find_ninja() == on_path


def test_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.__version__", "2.9.1+cu126")
    with pytest.raises(NativeUnavailableError, match=r"2\.9\.1\+cu126 is older than 2\.11"):
        toolchain.torch_installation()


@pytest.mark.parametrize(
    ("version", "release"),
    [("2.13.0+cpu", (2, 13)), ("2.11.0a0+git1", (2, 11)), ("10.0", (10, 0)), ("unknown", (0, 0))],
)
def test_torch_release(version: str, release: tuple[int, int]) -> None:
    assert toolchain.torch_release(version) == release


def test_the_target_version_is_the_one_torch_defines() -> None:
    # torch/csrc/stable/version.h: (2 << 56) | (11 << 48)
    assert int(toolchain.TORCH_TARGET_VERSION, 16) == (2 << 56) | (11 << 48)


def test_an_unknown_architecture_is_an_error_with_the_compilers_words(compiler: str) -> None:
    with pytest.raises(NativeUnavailableError, match=r"-march=pentium9.*FASTDL_CPU_ARCH"):
        toolchain.probe(toolchain.find_compiler(), "pentium9")


def test_a_compiler_without_cxx20_by_name_is_asked_for_cxx2a(
    tmp_path: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = 'case "$*" in *-std=c++20*) echo "unknown standard" >&2; exit 1;; esac'
    old = executable(tmp_path / "old", f'{refuse}\nexec {compiler} "$@"')
    monkeypatch.setenv("CXX", str(old))
    assert toolchain.probe(toolchain.find_compiler(), "native").standard == "-std=c++2a"


def test_a_compiler_that_cannot_be_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(NativeUnavailableError, match=f"{broken} could not be run"):
        toolchain.probe(toolchain.find_compiler(), "native")


@pytest.mark.parametrize(
    ("value", "mode"),
    [(None, "auto"), ("auto", "auto"), ("0", "never"), ("Never", "never"), ("1", "always"), (" always ", "always")],
)
def test_build_mode(value: str | None, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv("FASTDL_BUILD", value)
    assert build_mode() == mode


def test_settings_that_make_no_sense_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDL_BUILD", "perhaps")
    with pytest.raises(NativeUnavailableError, match=r"FASTDL_BUILD is 'perhaps'.*'auto'"):
        build_mode()
    monkeypatch.setenv("FASTDL_CPU_ARCH", "native; rm -rf x")
    with pytest.raises(NativeUnavailableError, match="FASTDL_CPU_ARCH"):
        cpu_arch()


def test_native_is_the_default_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_arch() == "native"
    monkeypatch.setenv("FASTDL_CPU_ARCH", "x86-64-v3")
    assert cpu_arch() == "x86-64-v3"


def test_flags_carry_architecture_target_and_string_abi() -> None:
    torch = toolchain.torch_installation()
    flags = toolchain.compile_flags("x86-64-v3", torch)
    assert "-march=x86-64-v3" in flags
    assert f"-DTORCH_TARGET_VERSION={toolchain.TORCH_TARGET_VERSION}" in flags
    assert f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.cxx11_abi)}" in flags
    assert (torch.include / "torch" / "csrc" / "stable" / "library.h").is_file()
    assert shutil.which(toolchain.find_ninja()) is not None
