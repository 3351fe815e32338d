"""Whether the tokenizers go with the models, and those of a pair with each other."""

from __future__ import annotations

from collections.abc import Mapping

from data_prep.same_tokenizer import require_same_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.files import sha256_file
from megatron_soaes.preflight.findings import Finding, Found, Unseen, look
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.schema import (
    AnyTrainingStage,
    DistillStage,
    ModelName,
    ModelSource,
    Recipe,
    SpeculateStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.stages.datasets import reading_for


def look_at_tokenizers(recipe: Recipe, shapes: Mapping[ModelName, ModelShape]) -> list[Finding]:
    """That of the target first, last both together where stages need them to agree."""
    found = [
        look(f"tokenizer of {name}", _tokenizer(recipe, name, shape))
        for name, shape in shapes.items()
    ]
    draft = recipe.models.draft
    if draft is not None and all(one.is_well for one in found):
        found.append(look("tokenizers of the pair", _pair(recipe, draft)))
    return found


def _tokenizer(recipe: Recipe, name: ModelName, shape: ModelShape) -> Found:
    source = recipe.models.get(name)
    assert source is not None
    if not source.source.is_dir():
        yield Unseen(f"the tokenizer of {name}: its folder must be there first")
        return
    try:
        reading = reading_for(recipe, source, shape, sequence_length=1)
    except UserError as error:
        found = f"{error.found} in {error.where}"
        yield UserError(f"models.{name}.source", found, error.expected, error.fix)
    else:
        yield f"ids below {shape.vocab_size:,}, tokenizer {reading.tokenizer.sha256[:12]}"


def _pair(recipe: Recipe, draft: ModelSource) -> Found:
    target = recipe.models.target.source
    if any(isinstance(stage, DistillStage | SpeculateStage) for stage in recipe.stages):
        require_same_tokenizer(target, draft.source)
        yield "both mean the same"
    shared = _shared_chats(recipe)
    made, wanted = (sha256_file(source / "tokenizer.json") for source in (draft.source, target))
    if shared and made != wanted:
        raise UserError(
            draft.source / "tokenizer.json", f"another file than the target's ({made[:12]})",
            f"the same ({wanted[:12]}): {', '.join(shared)} is tokenized once, and training "
            "compares the hash",
            "Copy the target's file, if both mean the same.",
        )  # fmt: skip


def _shared_chats(recipe: Recipe) -> list[str]:
    """The datasets of conversations that are tokenized for the target and train the draft."""
    read = [
        name
        for stage in recipe.stages
        if isinstance(stage, AnyTrainingStage) and stage.model == "draft"
        for name in graph.datasets_of(recipe, stage)
    ]
    return [name for name in dict.fromkeys(read) if recipe.data.datasets[name].conversations]
