"""YAML as recipes use it: no duplicate keys, only text keys, and 1e-5 is a number."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from megatron_soaes.errors import UserError

EXPONENT = re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)[eE][-+]?[0-9]+$")
"""Numbers that YAML 1.2 calls floats; YAML 1.1 wants a dot and a signed exponent."""


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as a number."""

    def ignore_aliases(self, data: object) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def parse(text: str, where: object) -> Any:
    """The value of a YAML document as JSON types, aliases written out and dates as text.

    Raises UserError with `where:line` for what is not YAML, for a key given twice, for a key that
    is not text and for an alias inside its own anchor.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node, where, ())
        return json.loads(json.dumps(loader.construct_document(node), default=str))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            f"{where}:{line}", error.problem or "a syntax error", "YAML", "Correct this line."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(where, str(error), "YAML text", "Correct the file.") from None


def dump(value: object) -> str:
    """`value` (JSON types) as block YAML in the order given; `parse` reads the same value back."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )
    return text


def dump_flow(value: object) -> str:
    """`value` (JSON types) on one line."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _check_keys(node: yaml.Node, where: object, above: tuple[yaml.Node, ...]) -> None:
    line = node.start_mark.line + 1
    if node in above:
        raise UserError(
            f"{where}:{line}", "an alias inside its own anchor", "a tree", "Write the value out."
        )
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, where, (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "of several parts"
            raise UserError(
                f"{where}:{line}",
                f"the key {shown}, which YAML reads as no text",
                "a name",
                "Write the key in quotes, or choose another name.",
            )
        if key.value in lines:
            raise UserError(
                f"{where}:{line}",
                f"the key '{key.value}' for the second time (first in line {lines[key.value]})",
                "each key once",
                "Remove one of the two.",
            )
        lines[key.value] = line
        _check_keys(value, where, (*above, node))
