"""A NeMo 2 checkpoint directory, read without NeMo: where its parts lie, and its configuration.

CKPT/context/io.json        the objects of the run (fiddle's JSON), with what was given explicitly
CKPT/context/model.yaml     the same of the model, with every default of its classes filled in
CKPT/context/...            tokenizer and generation config, named in io.json by relative paths
CKPT/weights/               a torch_dist checkpoint; the keys of the model begin with `module.`
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_soaes.checkpoint.nemo_config import shape_of
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.shapes import ModelShape

CONTEXT = "context"
WEIGHTS = "weights"
IO = "io.json"
DEFAULTS = "model.yaml"
KEY_PREFIX = "module."
ARTIFACTS = "artifacts"
GENERATION_CONFIG = "generation_config.json"
CONFIG_PATH = "<root>.model.config"
TOKENIZER_PATH = "<root>.model.tokenizer.pretrained_model_name"
_ATTRIBUTE = re.compile(r"^Attr\(name='(\w+)'\)$")


@dataclass(frozen=True)
class NemoCheckpoint:
    """The model of one NeMo 2 checkpoint."""

    directory: Path
    module: str
    """Of the configuration's class."""
    name: str
    settings: Mapping[str, Any]
    """Arguments of that class; classes and functions among them are their dotted names."""
    tokenizer: Path | None
    """The tokenizer in the checkpoint, None when it names one that is elsewhere."""

    @property
    def where(self) -> str:
        """What errors about `settings` name."""
        return f"{self.directory / CONTEXT / IO}: {CONFIG_PATH}"

    @property
    def generation_config(self) -> Path | None:
        """The generation_config.json that came with the model."""
        file = self.directory / CONTEXT / ARTIFACTS / GENERATION_CONFIG
        return file if file.is_file() else None

    def shape(self, vocab_size: int) -> ModelShape:
        """The model's shape; `vocab_size` counts where the configuration names none."""
        return shape_of(self.module, self.name, self.settings, vocab_size, self.where)

    def weights(self) -> TorchDistReader:
        """The model's tensors, by their names in Megatron-Core."""
        return TorchDistReader(self.directory / WEIGHTS, prefix=KEY_PREFIX)

    @property
    def has_optimizer(self) -> bool:
        """Whether optimizer state was saved beside the weights."""
        keys = TorchDistReader(self.directory / WEIGHTS).shapes
        return any(not key.startswith(KEY_PREFIX) for key in keys)


def is_nemo_directory(path: Path) -> bool:
    """Whether `path` is a NeMo 2 checkpoint."""
    return (path / CONTEXT / IO).is_file()


def open_nemo(path: Path) -> NemoCheckpoint:
    """Read the configuration of a NeMo 2 checkpoint; nothing in it is executed.

    Raises UserError when a part is missing or io.json is not what NeMo writes.
    """
    if not (path / WEIGHTS).is_dir():
        raise UserError(
            path, f"no folder {WEIGHTS}", f"it, beside {CONTEXT}",
            "Give a checkpoint that NeMo saved to its end.",
        )  # fmt: skip
    file = path / CONTEXT / IO
    try:
        objects: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["objects"]
        config = next(o for o in objects.values() if CONFIG_PATH in o.get("paths", ()))
        cls = _arguments(objects[config["metadata"]["key"]])["fn_or_cls"]
        module, _, name = cls.rpartition(".")
        explicit = _arguments(config)
        tokenizer = _tokenizer_path(objects)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise UserError(
            file, f"no readable {CONFIG_PATH} ({error!r})", "the io.json that NeMo 2 writes",
            "Give a checkpoint that NeMo saved to its end.",
        ) from None  # fmt: skip
    settings = _defaults(path / CONTEXT / DEFAULTS) | explicit
    return NemoCheckpoint(path, module, name, settings, _local(path / CONTEXT, tokenizer))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an object in io.json that are plain values or names of Python objects."""
    found = {}
    for key, value in config["items"]:
        match = _ATTRIBUTE.match(key)
        if match is None or not isinstance(value, dict):
            continue
        if value["type"] == "leaf":
            found[match[1]] = value["value"]
        elif value["type"] == "pyref":
            found[match[1]] = f"{value['module']}.{value['name']}"
    return found


def _tokenizer_path(objects: Mapping[str, Any]) -> str | None:
    """Folder of the tokenizer, relative to the context, or the name of one elsewhere."""
    for config in objects.values():
        for _, value in config["items"]:
            if isinstance(value, dict) and TOKENIZER_PATH in value.get("paths", ()):
                return str(value["value"])
    return None


def _local(context: Path, tokenizer: str | None) -> Path | None:
    """The tokenizer's folder if it lies in the context."""
    folder = (context / (tokenizer or "")).resolve()
    return folder if folder.is_dir() and context.resolve() in folder.parents else None


def _defaults(file: Path) -> dict[str, Any]:
    """Arguments of the configuration in model.yaml; none when there is no such file."""
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))["config"]
        return {
            name: value["_target_"] if isinstance(value, dict) else value
            for name, value in config.items()
        }
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            file, f"unreadable content ({error!r})", "the model.yaml that NeMo 2 writes",
            "Restore the file, or remove it: it is needed only where io.json leaves a value out.",
        ) from None  # fmt: skip
