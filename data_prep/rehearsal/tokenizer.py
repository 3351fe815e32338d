"""A byte-level BPE tokenizer in the shape of Qwen2's: ChatML, single digits, nothing unknown."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import rjieba
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
PAD = "<|pad|>"
# As in Qwen2's base models, the eos token ends a document and not an answer: a text ends with
# END_OF_TEXT, an assistant's turn with TURN_END. generation_config.json stops at either.
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, PAD)

MAX_LENGTH = 2048

DEFAULT_SYSTEM_PROMPT = "你是一个有用的助手。"
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM_PROMPT + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)

# Qwen2's pieces made finer: a digit; a word with the space before it; one punctuation mark; line
# ends; other white space. No merge learnt inside these crosses a border between them, so the pieces
# of Qwen2, which `transformers` 5 puts in their place in a Qwen2 model's directory, give equal ids
# (there it also composes characters, NFC, as it does for every Qwen2 model).
_PIECES = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]|\s*[\r\n]+|\s+(?!\S)|\s+"
_HAN_RUN = re.compile(r"[\u4e00-\u9fff]{2,}")
_WORD_BORDER = "\x00"
_MIN_CHARACTER_COUNT = 4
_PUNCTUATION = "，。、；：！？（）《》【】“”‘’"

Merge = tuple[str, str]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of `vocab_size` tokens, special ones included.

    Every byte is a token, so decoding gives back any text exactly. The first merges build the
    common characters of `texts`; those after them join whole characters inside words (Chinese
    ones as jieba cuts them). A common name is thus cut the same way in every sentence, which
    merges learnt from the raw bytes of text without spaces would not do.

    Raises UserError when the vocabulary is too small for the characters or cannot be filled.
    """
    counts: Counter[str] = Counter()
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = _split_pieces()
    # Too many by far: a merge may be useless, its characters too rare to be tokens.
    trainer = trainers.BpeTrainer(vocab_size=2 * vocab_size, min_frequency=2, show_progress=False)
    words.train_from_iterator(_marked(texts, counts), trainer)
    common = sorted({*_PUNCTUATION, *(c for c, n in counts.items() if n >= _MIN_CHARACTER_COUNT)})
    learnt = json.loads(words.to_str())["model"]["merges"]
    vocabulary = list(SPECIAL_TOKENS) + sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[Merge] = []
    known = set(vocabulary)
    for left, right in chain(_character_merges(common), (map(_as_bytes, m) for m in learnt)):
        token = left + right
        if left not in known or right not in known or len(known) == vocab_size:
            continue
        merges.append((left, right))
        if token not in known:
            known.add(token)
            vocabulary.append(token)
    if len(vocabulary) != vocab_size or not known.issuperset(map(_as_bytes, common)):
        raise UserError(
            "vocab_size",
            f"{vocab_size}, where the text has {len(common)} common characters and"
            f" {len(learnt)} merges",
            "room for every common character, and merges to fill the rest",
            "Change the vocabulary's size or the amount of text.",
        )
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_split_pieces(), _BYTE_LEVEL])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def _split_pieces() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")


_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _marked(texts: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    """Put a mark, across which nothing merges, between Chinese words; count the characters."""
    for text in texts:
        counts.update(text)
        yield _HAN_RUN.sub(lambda run: _WORD_BORDER.join(rjieba.cut(run[0])), text)


@cache
def _as_bytes(text: str) -> str:
    """The text's UTF-8 bytes in the printable alphabet of byte-level BPE."""
    return "".join(piece for piece, _ in _BYTE_LEVEL.pre_tokenize_str(text))


def _character_merges(characters: Iterable[str]) -> Iterator[Merge]:
    """Join each character's bytes from left to right."""
    done: set[Merge] = set()
    for character in characters:
        symbols = _as_bytes(character)
        for end in range(1, len(symbols)):
            merge = (symbols[:end], symbols[end])
            if merge not in done:
                done.add(merge)
                yield merge


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Write `out` as a directory that `transformers.AutoTokenizer.from_pretrained` loads."""
    out.mkdir(parents=True)
    tokenizer.save(str(out / "tokenizer.json"))
    special_tokens = {
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "additional_special_tokens": [TURN_START, TURN_END],
    }
    write_json(out / "special_tokens_map.json", special_tokens)
    write_json(
        out / "tokenizer_config.json",
        {
            **special_tokens,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token in SPECIAL_TOKENS
            },
        },
    )
