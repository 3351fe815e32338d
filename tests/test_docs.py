"""What the documents tell people to type and to click on is there."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from megatron_soaes.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *(file for folder in ("docs", "examples", "slurm") for file in (ROOT / folder).rglob("*.md")),
]
COMMANDS = get_command(app)


def commands(text: str) -> Iterator[list[str]]:
    """The words after `soaes` of every command line, and of every one quoted in a sentence."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^\s*soaes (.*)$", joined, re.MULTILINE)
    quoted = re.findall(r"`soaes ([^`]*)`", joined.replace("\n", " "))
    for line in (*lines, *quoted):
        yield shlex.split(re.sub(r"\s#.*$", "", line))


def unknown(words: list[str]) -> list[str]:
    """The command or the options among the words that `soaes` does not know."""
    command: Any = COMMANDS
    while hasattr(command, "commands") and words:
        name, *words = words
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    if command.context_settings.get("ignore_unknown_options"):
        return []  # they are another program's
    options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    return sorted(given - options - {"--help"})


def headings(document: Path) -> set[str]:
    """The anchors of a document, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_with_its_options_and_every_link_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [(words, wrong) for words in commands(text) if (wrong := unknown(words))] == []
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        linked = document.parent / target if target else document
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_the_documents_import_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                module = importlib.import_module(node.module)
                assert [one.name for one in node.names if not hasattr(module, one.name)] == []


def test_a_command_that_is_not_there_is_found() -> None:
    (words,) = commands("    soaes export hf a b --iteration=3 --bold  # and why\n")
    assert unknown(words) == ["--bold"]
    assert unknown(["export", "everything"]) == ["everything"]
