"""Do two checkpoints fit together as target and draft of draft-target speculation?"""

from __future__ import annotations

from pathlib import Path

from data_prep.same_tokenizer import tokenizer_differences
from megatron_soaes.export.trtllm.config_check import Checked, check_config
from megatron_soaes.export.trtllm.problems import Problem


def check_pair(
    target: Path, draft: Path, target_hf: Path, draft_hf: Path, served_length: int | None = None
) -> list[Problem]:
    """What keeps the draft from proposing tokens to the target.

    The engines exchange token ids and logits: vocabulary size, dtype of the logits and tokenizer
    must be equal, ids of end and padding too. The draft must reach `served_length` tokens, by
    default all positions of the target. The HF directories hold tokenizer and generation config,
    which a checkpoint does not. Configurations with problems of their own are not compared.
    Raises UserError when a tokenizer cannot be read.
    """
    problems: list[Problem] = []
    first, second = (check_config(folder / "config.json")[0] for folder in (target, draft))
    if first is not None and second is not None:
        problems += _configurations(first, second, draft, served_length)
    for one in tokenizer_differences(target_hf, draft_hf):
        where = f"{draft_hf}: {one.part}, {one.entry}"
        problems.append(Problem(where, one.draft, f"{one.target}, as the target"))
    return problems


def _configurations(
    target: Checked, draft: Checked, folder: Path, served_length: int | None
) -> list[Problem]:
    file = folder / "config.json"
    problems = [
        Problem(f"{file}: {name}", repr(found), f"{wanted!r}, as the target has it")
        for name in ("vocab_size", "logits_dtype")
        if (found := getattr(draft.config, name)) != (wanted := getattr(target.config, name))
    ]
    reach = draft.config.max_position_embeddings
    needed = served_length or target.config.max_position_embeddings
    if reach < needed:
        rule = f"at least {needed}, the tokens that the target serves"
        problems.append(Problem(f"{file}: max_position_embeddings", str(reach), rule))
    return problems
