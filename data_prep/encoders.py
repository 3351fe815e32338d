"""Text to token ids: fastokens where it agrees with the tokenizers library, else that library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from data_prep.tokenizer import TokenizerInfo, read_tokenizer
from megatron_soaes.errors import UserError

Backend = Literal["fastokens", "tokenizers"]
BackendChoice = Literal["auto", "fastokens", "tokenizers"]
Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]

PROBES = (
    "",
    " ",
    "\n\n \t\r\n",
    "a",
    "The quick brown fox, 12345 times; it's we'll they'd DON'T.",
    "中央企业要深化改革,提高核心竞争力。国有资本投资运营公司",
    "全角ABC123，。！？「」　半角ｱｲｳ",
    "日本語のテキスト 한국어 텍스트 ไทย العربية עברית हिन्दी",
    "café cafe\u0301 \u1e9b\u0323 Å \u212b \u0958",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1f3 \U0001f600\ufe0f",
    "\x00\x01\x7f\x85\xa0\ufeff\u200b\u2028\ufffd",
    "\U0002a6d6\U0010ffff\ue000\u0378",
    "    def f(x):\n\t\treturn x ** 2  # \\u0041\r\n",
    "a" * 3000 + "的" * 3000 + " " * 300 + "." * 300,
    "1 22 333 4444 55555 3.14159 1e-10 0xdeadbeef ½ ² Ⅳ 〇",
    "<|endoftext|><|im_start|>user\n<|im_end|></s><s>[INST]<unk>",
)
"""Texts in which tokenizers have been seen to differ: white space, normal forms, rare planes."""


class Encoder(Protocol):
    """One tokenizer library behind one method."""

    name: Backend

    def encode_batch(self, texts: list[str]) -> tuple[Ids, Lengths]:
        """The ids of all texts in a row, uint32 [sum of lengths], and int64 lengths [texts]."""
        ...


class HuggingFaceEncoder:
    """The tokenizers library: the reference."""

    name: Backend = "tokenizers"

    def __init__(
        self, tokenizer: Tokenizer, add_special_tokens: bool, plain_special_tokens: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = plain_special_tokens
        self._add_special_tokens = add_special_tokens

    def encode_batch(self, texts: list[str]) -> tuple[Ids, Lengths]:
        """See `Encoder`."""
        encodings = self._tokenizer.encode_batch_fast(
            texts, add_special_tokens=self._add_special_tokens
        )
        ids = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        lengths = np.array([len(part) for part in ids], dtype=np.int64)
        return np.concatenate([np.empty(0, dtype=np.uint32), *ids]), lengths


class FastokensEncoder:
    """The fastokens library: the same ids, an order of magnitude faster."""

    name: Backend = "fastokens"

    def __init__(self, info: TokenizerInfo) -> None:
        import fastokens

        self._tokenizer = fastokens.Tokenizer.from_file(str(info.path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add_special_tokens = info.add_special_tokens
        self._plain_special_tokens = info.plain_special_tokens

    def encode_batch(self, texts: list[str]) -> tuple[Ids, Lengths]:
        """See `Encoder`."""
        ids, offsets = self._tokenizer.encode_batch_flat(
            texts,
            add_special_tokens=self._add_special_tokens,
            split_special_tokens=self._plain_special_tokens,
        )
        lengths = np.diff(np.frombuffer(offsets, dtype="<i8"))
        return np.frombuffer(ids, dtype="<u4"), lengths


def load_encoder(info: TokenizerInfo, backend: Backend) -> Encoder:
    """An encoder whose agreement with the reference has been checked before."""
    if backend == "fastokens":
        return FastokensEncoder(info)
    return _reference_encoder(read_tokenizer(info.path), info)


def _reference_encoder(reference: Tokenizer, info: TokenizerInfo) -> HuggingFaceEncoder:
    return HuggingFaceEncoder(reference, info.add_special_tokens, info.plain_special_tokens)


def choose_encoder(
    info: TokenizerInfo,
    reference: Tokenizer,
    choice: BackendChoice,
    sample: Callable[[], list[str]],
) -> tuple[Encoder, str]:
    """The encoder for `choice` and a sentence that says why it is that one.

    fastokens must give the ids of `reference` for `PROBES`, for texts with the tokenizer's own
    special tokens and for `sample()`, the first documents of the corpus. Where it does not, "auto"
    takes tokenizers, and "fastokens" raises `UserError`.
    """
    slow = _reference_encoder(reference, info)
    if choice == "tokenizers":
        return slow, "tokenizers, as asked"
    special = [token.content for token in reference.get_added_tokens_decoder().values()]
    probes = [*PROBES, *(f"x{token} {token}中" for token in special[:64]), *sample()]
    try:
        fast = FastokensEncoder(info)
        difference = find_difference(fast, slow, probes)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        difference = f"fastokens failed: {type(error).__name__}: {error}"
    else:
        if difference is None:
            return fast, f"fastokens, checked against tokenizers on {len(probes)} texts"
    if choice == "fastokens":
        raise UserError(
            "--backend fastokens",
            difference,
            "the ids of the tokenizers library",
            "Use --backend auto or --backend tokenizers.",
        )
    return slow, f"tokenizers, because {difference}"


def find_difference(fast: Encoder, slow: Encoder, texts: Sequence[str]) -> str | None:
    """The first text for which two encoders give different ids, in words; None if they agree."""
    fast_ids, fast_lengths = fast.encode_batch(list(texts))
    slow_ids, slow_lengths = slow.encode_batch(list(texts))
    if np.array_equal(fast_lengths, slow_lengths) and np.array_equal(fast_ids, slow_ids):
        return None
    if len(fast_lengths) != len(texts):
        return f"{fast.name} returned {len(fast_lengths)} results for {len(texts)} texts"
    fast_texts = np.split(fast_ids, np.cumsum(fast_lengths)[:-1])
    slow_texts = np.split(slow_ids, np.cumsum(slow_lengths)[:-1])
    for text, ours, reference in zip(texts, fast_texts, slow_texts, strict=True):
        if not np.array_equal(ours, reference):
            return (
                f"{fast.name} encodes {text[:40]!r} as {ours[:8].tolist()}..., "
                f"{slow.name} as {reference[:8].tolist()}..."
            )
    return f"{fast.name} returned ids beyond the lengths it gave"
