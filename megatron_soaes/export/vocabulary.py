"""How many vocabulary rows an export has, when that is not the model's own number.

Two models of one tokenizer may come with differently padded vocabularies; a pair that is served
together needs one size. Rows are cut only where no token is, and added only as copies of such a
row: a row of zeros would have logit 0, which wins over real tokens whose logits are negative.
"""

from __future__ import annotations

from data_prep.tokenizer import read_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.export.source import Source


def exported_vocab_size(source: Source, wanted: int | None) -> int:
    """`wanted`, by default the model's own size.

    Raises UserError when tokens would lose their rows, when rows are to be added and the last row
    of the model belongs to a token, and when there is no tokenizer that tells.
    """
    rows = source.shape.vocab_size
    if wanted is None or wanted == rows:
        return rows
    file = source.hf_files / "tokenizer.json"
    used = max(read_tokenizer(file).get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if wanted < used:
        raise UserError(
            "vocab_size", str(wanted), f"{used} at least, the tokens of {file}",
            "Choose a larger one.",
        )  # fmt: skip
    if wanted > rows and used >= rows:
        raise UserError(
            "vocab_size", str(wanted), f"at most {rows}: each of the model's rows is a token's",
            "Without a padding row to copy, an added row could win over real tokens. Train with "
            "a padded vocabulary, or export the other model of the pair with this one's size.",
        )  # fmt: skip
    return wanted
