"""Build the whole rehearsal corpus in one directory: the same seed and options, the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_prep.rehearsal.dialogues import dialogues
from data_prep.rehearsal.documents import documents, genre_documents
from data_prep.rehearsal.exam import TRAINING_FRAMES, exam_questions, expert_pairs
from data_prep.rehearsal.general import GeneralText, gather
from data_prep.rehearsal.initial_model import draft_config, qwen2_config, write_initial_model
from data_prep.rehearsal.prompts import held_out_prompts
from data_prep.rehearsal.retention import cloze_items, continuations, likelihood_texts
from data_prep.rehearsal.tokenizer import save_tokenizer, train_tokenizer
from data_prep.rehearsal.world import make_world
from megatron_soaes.errors import UserError
from megatron_soaes.files import atomic_directory, sha256_file, sha256_json, write_json

TOKENIZER_GENERAL_CHARACTERS = 2_000_000
TOKENIZER_DOMAIN_DOCUMENTS = 1500
_ENCODE_BATCH = 64

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """Sizes of the corpus. The defaults suit a model of 4M parameters on two cores."""

    general_megabytes: float = field(default=6.0, metadata={"help": "real text, 10^6 bytes"})
    companies: int = field(default=10, metadata={"help": "companies of the invented world"})
    regulations: int = field(default=5, metadata={"help": "regulations of the invented world"})
    domain_tokens: int = field(default=600_000, metadata={"help": "domain training text, tokens"})
    domain_valid: int = field(default=150, metadata={"help": "held-out domain documents"})
    dialogues: int = field(default=1200, metadata={"help": "general dialogues for SFT stage 1"})
    dialogues_valid: int = field(default=120, metadata={"help": "held-out general dialogues"})
    questions_per_fact: int = field(default=13, metadata={"help": "training wordings of a fact"})
    cloze_items: int = field(
        default=600, metadata={"help": "most items of the cloze on general text"}
    )
    bytes_documents: int = field(default=60, metadata={"help": "most texts for bits per byte"})
    genre_tokens: int = field(
        default=0, metadata={"help": "documents of other companies, tokens; 0: no such file"}
    )
    vocab_size: int = field(default=4096, metadata={"help": "tokens of the tokenizer"})

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if value < 0 or (value == 0 and option.default):
                raise UserError(option.name, str(value), "a positive number", "Raise it.")
        if self.questions_per_fact > len(TRAINING_FRAMES):
            raise UserError(
                "questions_per_fact",
                str(self.questions_per_fact),
                f"at most {len(TRAINING_FRAMES)}, the number of wordings",
                "Lower it.",
            )


@dataclass(frozen=True)
class Part:
    """One JSONL file. `tokens` counts documents' texts or messages' contents, no special tokens."""

    records: int
    characters: int
    bytes: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


@dataclass(frozen=True)
class Summary:
    """What a directory holds; the content of its `summary.json`."""

    fingerprint: str
    seed: int
    options: Options
    parts: dict[str, Part]
    general_characters_by_package: dict[str, int]
    general_dropped: dict[str, int]
    files: dict[str, str]
    """SHA-256 of every file by its relative path."""


def make(
    out: Path, seed: int = 0, options: Options | None = None, workers: int | None = None
) -> Summary:
    """Write the corpus to `out`, whole or not at all; an equal one that is there is reused.

    `workers` processes read the general text (default: one a core); they change nothing in the
    result. The general text depends on the packages installed; an existing corpus stays valid when
    they change. Raises UserError when `out` holds anything but this corpus.
    """
    options = options or Options()
    fingerprint = _fingerprint(seed, options)
    if out.exists():
        return _reuse(out, fingerprint)
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    general = gather(options.general_megabytes, workers=workers)
    if not (general.train and general.valid):
        raise UserError(
            "general_megabytes",
            f"{len(general.train)} training and {len(general.valid)} validation documents",
            "at least one of each",
            "Ask for more megabytes, or install Python with its standard library.",
        )
    with atomic_directory(out) as directory:
        summary = _write(directory, seed, options, fingerprint, general)
        write_json(directory / "summary.json", asdict(summary))
    return summary


def _write(
    directory: Path, seed: int, options: Options, fingerprint: str, general: GeneralText
) -> Summary:
    world = make_world(seed, options.companies, options.regulations)
    talk = dialogues(seed)
    expert_train, expert_valid = expert_pairs(world, seed, options.questions_per_fact)
    talk_train = list(islice(talk, options.dialogues))
    talk_valid = list(islice(talk, options.dialogues_valid))
    rows: dict[str, Sequence[Row]] = {
        "general/train.jsonl": general.train,
        "general/valid.jsonl": general.valid,
        "dialogue/train.jsonl": talk_train,
        "dialogue/valid.jsonl": talk_valid,
        "expert/train.jsonl": expert_train,
        "expert/valid.jsonl": expert_valid,
        "exam.jsonl": exam_questions(world),
        "prompts.jsonl": held_out_prompts(expert_valid, talk_valid, seed),
    }
    stream = documents(world, seed)
    sample = list(islice(stream, TOKENIZER_DOMAIN_DOCUMENTS))
    tokenizer = _tokenizer(rows, sample, options.vocab_size)
    stream = chain(sample, stream)
    rows["domain/train.jsonl"] = _until(stream, tokenizer, options.domain_tokens)
    rows["domain/valid.jsonl"] = list(islice(stream, options.domain_valid))
    held_out = [row["text"] for row in general.valid]
    rows["general/cloze.jsonl"] = cloze_items(held_out, tokenizer, options.cloze_items, seed)
    domain_valid = [row["text"] for row in rows["domain/valid.jsonl"]]
    rows["domain/continuation.jsonl"] = continuations(domain_valid, tokenizer)
    rows["general/bytes.jsonl"] = likelihood_texts(held_out, options.bytes_documents, seed)
    if options.genre_tokens:
        others = genre_documents(world, seed)
        rows["genre/train.jsonl"] = _until(others, tokenizer, options.genre_tokens)
    for name, content in rows.items():
        _write_jsonl(directory / name, content)
    write_json(directory / "world.json", world.to_json())
    save_tokenizer(tokenizer, directory / "tokenizer")
    size = tokenizer.get_vocab_size()
    models = {"base-init": qwen2_config(size), "draft-init": draft_config(size)}
    for name, config in models.items():
        write_initial_model(directory / name, directory / "tokenizer", config, seed)
    return Summary(
        fingerprint=fingerprint,
        seed=seed,
        options=options,
        parts={name: _measure(content, tokenizer) for name, content in sorted(rows.items())},
        general_characters_by_package=dict(general.characters_by_package.most_common()),
        general_dropped=dict(general.dropped.most_common()),
        files=_hashes(directory),
    )


def _tokenizer(
    rows: Mapping[str, Sequence[Row]], domain: Sequence[Row], vocab_size: int
) -> Tokenizer:
    """Train on comparable amounts of general and domain text and on all training dialogues."""
    general: list[str] = []
    size = 0
    for text in map(text_of, rows["general/train.jsonl"]):
        if size >= TOKENIZER_GENERAL_CHARACTERS:
            break
        general.append(text)
        size += len(text)
    talk = map(text_of, chain(rows["dialogue/train.jsonl"], rows["expert/train.jsonl"]))
    return train_tokenizer(chain(general, map(text_of, domain), talk), vocab_size)


def text_of(row: Row) -> str:
    """The text of a document, the contents of a dialogue, or a question and its answer.

    Of a cloze the context and all choices.
    """
    if "text" in row:
        return str(row["text"])
    if "choices" in row:
        return str(row["context"]) + "".join(row["choices"])
    if "messages" in row:
        return "\n".join(message["content"] for message in row["messages"])
    if "prompt" in row:
        return f"{row['prompt']}{row['answer']}"
    return f"{row['question']}\n{row['answer']}"


def _token_counts(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[int]:
    stream = iter(texts)
    while batch := list(islice(stream, _ENCODE_BATCH)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield len(encoding.ids)


def _until(stream: Iterator[dict[str, str]], tokenizer: Tokenizer, tokens: int) -> list[Row]:
    """Documents until they hold `tokens` tokens."""
    taken: list[Row] = []
    count = 0
    while count < tokens:
        row = next(stream)
        taken.append(row)
        count += len(tokenizer.encode(row["text"], add_special_tokens=False).ids)
    return taken


def _measure(rows: Sequence[Row], tokenizer: Tokenizer) -> Part:
    texts = [text_of(row) for row in rows]
    return Part(
        records=len(rows),
        characters=sum(map(len, texts)),
        bytes=sum(len(text.encode("utf-8")) for text in texts),
        tokens=sum(_token_counts(texts, tokenizer)),
    )


def _write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _hashes(directory: Path) -> dict[str, str]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_file(path) for path in paths}


def _fingerprint(seed: int, options: Options) -> str:
    """Changes with the seed, the options and the code of this package."""
    code = {p.name: sha256_file(p) for p in sorted(Path(__file__).parent.glob("*.py"))}
    return sha256_json({"seed": seed, "options": asdict(options), "code": code})


def _reuse(out: Path, fingerprint: str) -> Summary:
    """The summary in `out`, when it has this fingerprint and every file is as it was written."""
    fix = f"Remove {out} or name another directory."
    path = out / "summary.json"
    if not path.is_file():
        raise UserError(out, "something without summary.json", "a corpus or nothing", fix)
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.get("fingerprint") != fingerprint:
        raise UserError(
            out, "a corpus of another seed, options or version", "the corpus asked for", fix
        )
    found = _hashes(out)
    del found["summary.json"]
    if found != stored["files"]:
        different = {k for k, _ in found.items() ^ stored["files"].items()}
        raise UserError(out / min(different), "a changed file", "the file as written", fix)
    stored["options"] = Options(**stored["options"])
    stored["parts"] = {name: Part(**part) for name, part in stored["parts"].items()}
    return Summary(**stored)
