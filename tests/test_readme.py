"""The texts tell the truth: their snippets run, both languages agree, their files exist, their tables can be made."""

import re
from pathlib import Path

import pytest

from fastdl.bench import report

ROOT = Path(__file__).resolve().parent.parent
DOCS = ("docs/installation.md", "docs/kernels.md", "docs/memory.md", "docs/testing.md")
TEXTS = ("README.md", "README.ko.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS)
READMES = ("README.md", "README.ko.md")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read(name), re.DOTALL)


SNIPPETS = [(name, index) for name in (*READMES, "docs/memory.md") for index in range(len(blocks(name, "python")))]


@pytest.mark.parametrize(("name", "index"), SNIPPETS)
def test_snippets_run(name: str, index: int, restored_pool: None) -> None:
    exec(compile(blocks(name, "python")[index], f"{name}, snippet {index}", "exec"), {})


@pytest.fixture
def restored_pool():
    """The pool as it was, whatever the snippet does to it."""
    import fastdl

    before = fastdl.cpu_pool()
    yield
    if not before.reason:
        fastdl.cpu_pool("on" if before.enabled else "off", limit=before.limit)


def test_the_two_readmes_have_the_same_parts() -> None:
    english, korean = (read(name) for name in READMES)
    korean = korean.replace(".ko.", ".")  # a picture with Korean words
    for pattern in (r"^(#+) ", r"^(- )", r"^\| `(\w+)` \|", r"\]\(((?!README|#)[^)]+)\)", r"<!-- bench:(\w+)"):
        assert sorted(re.findall(pattern, english, re.MULTILINE)) == sorted(re.findall(pattern, korean, re.MULTILINE))
    commands = [
        [re.sub(r"\s*#.*", "", line) for block in blocks(name, "bash") for line in block.splitlines()]
        for name in READMES
    ]
    assert commands[0] == commands[1]


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files(name: str) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", read(name)) if "://" not in target]
    missing = [target for target in targets if target and not ((ROOT / name).parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("name", TEXTS)
def test_measured_blocks_are_whole(name: str) -> None:
    text = read(name)
    assert len(report.OPENING.findall(text)) == len(report.MARK.findall(text))
    assert all(m["name"] in report.BLOCKS and m["language"] in report.WORDS for m in report.MARK.finditer(text))


def test_every_variable_that_doctor_knows_is_documented() -> None:
    from fastdl.doctor import VARIABLES

    documented = set(re.findall(r"`(FASTDL_\w+|CXX|CUDACXX|MAX_JOBS)`", read("docs/installation.md")))
    assert {name for name in VARIABLES if name != "TRITON_INTERPRET"} == documented
