"""Whether the tensors of an HF directory are those that its config.json promises."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_soaes.checkpoint.hf_files import HFWeights, StoredTensor
from megatron_soaes.errors import UserError
from megatron_soaes.models.weights import Weight, slices
from megatron_soaes.recipe.shapes import ModelShape

OUTPUT = "lm_head.weight"
INPUT = "model.embed_tokens.weight"
DERIVED_SUFFIX = ".rotary_emb.inv_freq"
"""Tables of early Llama files that follow from config.json; transformers ignores them too."""


def check_tensors(source: HFWeights, shape: ModelShape, table: Sequence[Weight]) -> list[str]:
    """Compare names and shapes with the table; returns the HF tensors that are not needed."""
    expected: dict[str, tuple[int, ...]] = {}
    for weight, layer in slices(table, range(shape.layers)):
        expected |= weight.hf_shapes(shape, layer)
    for name, wanted in expected.items():
        stored = source.tensors.get(name)
        if stored is None:
            raise UserError(
                source.directory, f"no tensor {name}", f"it, with shape {list(wanted)}",
                "Download the model again; if it is complete, config.json describes another one.",
            )  # fmt: skip
        if stored.shape != wanted:
            raise UserError(
                f"{stored.file}: {name}", f"shape {list(stored.shape)}",
                f"{list(wanted)}, as config.json says", "Use the config.json of these weights.",
            )  # fmt: skip
    extra = [name for name in source.tensors if name not in expected]
    for name in extra:
        _require_needless(source, source.tensors[name], name, shape)
    return extra


def _require_needless(
    source: HFWeights, stored: StoredTensor, name: str, shape: ModelShape
) -> None:
    if name.endswith(DERIVED_SUFFIX):
        return
    if name == OUTPUT and shape.tied_embeddings:
        output, embedding = source.read(OUTPUT), source.read(INPUT)
        if output.dtype == embedding.dtype and torch.equal(output, embedding):
            return
        raise UserError(
            f"{stored.file}: {name}", f"values that differ from {INPUT}",
            "the same values, because config.json says tie_word_embeddings",
            "Set tie_word_embeddings to false in config.json if they are meant to differ.",
        )  # fmt: skip
    raise UserError(
        f"{stored.file}: {name}", "a tensor this family does not have",
        f"the tensors of a {shape.family} model", "Use a base model without added weights.",
    )  # fmt: skip
