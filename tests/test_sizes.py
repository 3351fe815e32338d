"""Files and functions stay short enough to be read at once: one that outgrows that wants a name."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_OF_A_FILE, MOST_OF_A_FUNCTION = 400, 50


def test_files_and_functions_are_short() -> None:
    long = []
    for folder in ("megatron_soaes", "data_prep", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            if text.count("\n") > MOST_OF_A_FILE:
                long.append(f"{file}: {text.count(chr(10))} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.end_lineno is not None
                    lines = node.end_lineno - node.lineno + 1
                    if lines > MOST_OF_A_FUNCTION:
                        long.append(f"{file}:{node.lineno} {node.name}: {lines} lines")
    assert not long, "\n".join(long)
