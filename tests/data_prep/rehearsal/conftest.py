"""One small corpus, made once, that the tests of this folder look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.rehearsal.make import Options, Summary, make

SEED = 7
SMALL = Options(
    general_megabytes=0.3,
    companies=4,
    regulations=2,
    domain_tokens=30_000,
    domain_valid=30,
    dialogues=150,
    dialogues_valid=30,
    questions_per_fact=5,
    cloze_items=12,
    bytes_documents=4,
    genre_tokens=20_000,
    vocab_size=2048,
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rehearsal") / "corpus"
    make(out, SEED, SMALL, workers=1)
    return out


@pytest.fixture(scope="session")
def summary(corpus: Path) -> Summary:
    return make(corpus, SEED, SMALL)
