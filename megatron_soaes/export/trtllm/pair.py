"""Do two checkpoints fit together as target and draft of draft-target speculation?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.tokenizer import NAMED_TOKENS, read_config, read_tokenizer, token_content
from megatron_soaes.errors import UserError
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
    for part, wanted, found in _tokenizer_parts(target_hf, draft_hf):
        difference = _first_difference(wanted, found)
        if difference is not None:
            key, here, there = difference
            problems.append(Problem(f"{draft_hf}: {part}, {key}", there, f"{here}, as the target"))
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


def _tokenizer_parts(
    target: Path, draft: Path
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    names = ("vocabulary", "merges", "added tokens", "special tokens", "generation")
    return list(zip(names, _parts(target), _parts(draft), strict=True))


def _parts(hf_dir: Path) -> list[Mapping[str, Any]]:
    """Vocabulary, merges, added and special tokens, and the ids that end or pad an answer."""
    file = hf_dir / "tokenizer.json"
    content = json.loads(read_tokenizer(file).to_str())
    config = read_config(file)
    merges = {f"rank {n}": merge for n, merge in enumerate(content["model"].get("merges", []))}
    added = {f"id {token['id']}": token for token in content["added_tokens"]}
    special = {name: token_content(config.get(name)) for name in NAMED_TOKENS}
    return [content["model"]["vocab"], merges, added, special, _generation_ids(hf_dir)]


def _generation_ids(hf_dir: Path) -> dict[str, Any]:
    """`eos_token_id` and `pad_token_id`; generation_config.json goes before config.json."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        file = hf_dir / name
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise UserError(
                file, f"invalid JSON ({error})", "a JSON object", "Repair it."
            ) from None
        for field in ("eos_token_id", "pad_token_id"):
            if content.get(field) is not None:
                found[field] = content[field]
    return found


def _first_difference(
    wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[str, str, str] | None:
    """Key, wanted and found value; in the order of the first mapping."""
    for key in (*wanted, *(key for key in found if key not in wanted)):
        here, there = wanted.get(key, "nothing"), found.get(key, "nothing")
        if here != there:
            return key, str(here), str(there)
    return None
