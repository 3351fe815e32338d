"""The io.json of a NeMo 2 checkpoint, written without NeMo.

NeMo keeps the objects of a run as fiddle configurations: which class is called with which
arguments. This writes the subset of fiddle's JSON (version 0.0.1) that NeMo 2.7.x needs to build
the model and its tokenizer again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from megatron_soaes.checkpoint.nemo_config import MODELS, MODULES, nemo_config
from megatron_soaes.checkpoint.nemo_directory import ARTIFACTS
from megatron_soaes.recipe.shapes import ModelShape

TOKENIZER = "nemo_tokenizer"
"""Folder of the tokenizer, relative to the context."""
VERSION = "0.0.1"
_FIDDLE = "fiddle._src.config"


@dataclass(frozen=True)
class Name:
    """A class, function or constant that a module has."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call that NeMo makes when it reads the checkpoint."""

    function: Name
    arguments: Mapping[str, Any]
    """Plain values, `Name`s and `Call`s."""


def io_json(shape: ModelShape, dtype: torch.dtype, *, generation_config: bool) -> dict[str, Any]:
    """Content of context/io.json for a model of this shape with weights of this dtype.

    The tokenizer lies in the folder TOKENIZER beside it and, with `generation_config`,
    generation_config.json in the folder ARTIFACTS. Raises UserError for a shape that NeMo does not
    describe.
    """
    name, arguments = nemo_config(shape)
    arguments |= {
        "params_dtype": Name("torch", str(dtype).removeprefix("torch.")),
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }
    if generation_config:
        arguments["generation_config"] = _GENERATION_CONFIG
    module = MODULES[shape.family]
    model = Call(
        Name(module, MODELS[shape.family]),
        {"config": Call(Name(module, name), arguments), "tokenizer": _TOKENIZER},
    )
    # The exporter builds the whole context for its tokenizer, and needs the argument to be there.
    context = Call(
        Name("nemo.lightning.io.pl", "TrainerContext"), {"model": model, "trainer": None}
    )
    return _serialised(context)


_TOKENIZER = Call(
    Name("nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer"),
    {"pretrained_model_name": TOKENIZER},
)
_GENERATION_CONFIG = Call(
    Name("nemo.lightning.io.artifact.hf_auto", "from_pretrained"),
    {
        "auto_cls": Name("transformers.generation.configuration_utils", "GenerationConfig"),
        "pretrained_model_name_or_path": f"./{ARTIFACTS}",
    },
)


def _serialised(root: Call) -> dict[str, Any]:
    objects: dict[str, Any] = {}
    counts: Counter[str] = Counter()

    def add(kind: str, content: dict[str, Any]) -> dict[str, Any]:
        counts[kind] += 1
        key = f"{kind.lower()}_{counts[kind]}"
        objects[key] = content
        return {"type": "ref", "key": key}

    def value(argument: Any, path: str) -> dict[str, Any]:
        if isinstance(argument, Call):
            return call(argument, path)
        if isinstance(argument, Name):
            return {**_reference(argument), "paths": [path]}
        return {"type": "leaf", "value": argument, "paths": [path]}

    def call(node: Call, path: str) -> dict[str, Any]:
        items = [
            [f"Attr(name='{name}')", value(argument, f"{path}.{name}")]
            for name, argument in node.arguments.items()
        ]
        names = [[f"Index(index={i})", name] for i, name in enumerate(node.arguments)]
        metadata_type = _reference(Name(_FIDDLE, "BuildableTraverserMetadata"))
        about = {
            "fn_or_cls": _reference(node.function),
            "argument_names": add("tuple", _object(Name("builtins", "tuple"), names, None)),
            "argument_tags": add("dict", _EMPTY_DICT),
            "argument_history": add("dict", _EMPTY_DICT),
        }
        metadata = add(
            "metadata",
            {
                "type": metadata_type,
                "items": [[f"Attr(name='{name}')", part] for name, part in about.items()],
                "metadata": metadata_type,
            },
        )
        config = _object(Name(_FIDDLE, "Config"), items, metadata)
        return add(node.function.name, {**config, "paths": [path]})

    reference = call(root, "<root>")
    return {"root": reference, "objects": objects, "refcounts": {}, "version": VERSION}


def _reference(name: Name) -> dict[str, Any]:
    return {"type": "pyref", "module": name.module, "name": name.name}


def _object(kind: Name, items: list[Any], metadata: Any) -> dict[str, Any]:
    return {"type": _reference(kind), "items": items, "metadata": metadata}


_EMPTY_DICT = _object(Name("builtins", "dict"), [], _object(Name("builtins", "tuple"), [], None))
