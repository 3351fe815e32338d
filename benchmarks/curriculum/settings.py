"""Every size and rate of the study, with the reason for it."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.rehearsal.make import Options

TOKENS_PER_SECOND = 5_000
"""Training speed of the 4.0M model on two cores; turns minutes of base training into steps."""
TUNING_SEED = 0
"""Learning rates are chosen on it and its results are not reported, which start at seed 1."""
SEQUENCE_LENGTH = 256
BASE_BATCH = 8
BATCH = 4
"""Sequences of a step after the base: small batches buy optimizer steps for nothing here."""


CORPUS = Options(
    # All documentation that an installation has, so that the base repeats little of it.
    general_megabytes=13.0,
    # More documents of other companies than the base can take, so that it repeats none.
    genre_tokens=6_000_000,
    # A little more than CPT reads, so that it repeats no document.
    domain_tokens=600_000,
    # Few wordings of few facts: the claim concerns a finite set that is soon used up.
    questions_per_fact=6,
)


@dataclass(frozen=True)
class Settings:
    """One study. Shares are of training samples; a sample is 256 tokens."""

    corpus: Options = CORPUS
    base_steps: int = 45 * 60 * TOKENS_PER_SECOND // (BASE_BATCH * SEQUENCE_LENGTH)
    """45 minutes: a base that still improves hides what it forgets."""
    base_lr: float = 2e-3
    genre_share: float = 0.3
    """Of the base's samples. A base that never saw the genre scores near zero, and a ratio to that
    says nothing; general ability, which is to be kept, gets the rest."""
    cpt_steps: int = 976
    """1.0M tokens: facts need exposures and steps; fewer left a tenth of them recalled."""
    cpt_replay: float = 0.5
    """General text among the domain's: less forgets measurably at this size (0.2: a tenth)."""
    cpt_lrs: tuple[float, ...] = (1e-3, 2e-3)
    """The base's own peak learnt most and forgot little beside replay; lower forgets less."""
    sft1_steps: int = 110
    """About one pass over the 1200 general dialogues."""
    sft2_steps: int = 100
    """About four passes over the expert pairs, beside the replay."""
    sft_general: float = 0.15
    """General text in every SFT stage of every arm, because SFT without it forgets."""
    sft2_dialogues: float = 0.25
    """Replay of stage 1 in stage 2, which else overwrites it."""
    sft_lrs: tuple[float, ...] = (2e-4, 4e-4, 8e-4)
    """Each arm takes the best for itself. 7e-4 cost general ability, so lower ones are tried."""
    continuation_tokens: int = 48
    """Written after the beginning of a held-out document: as many as its own continuation has."""
    answer_tokens: int = 48
    """Longest answer in the exam; right ones have fewer than 30."""

    @property
    def sft_steps(self) -> int:
        """Of every SFT arm."""
        return self.sft1_steps + self.sft2_steps

    @property
    def base_tokens(self) -> int:
        return self.base_steps * BASE_BATCH * SEQUENCE_LENGTH


TINY = Settings(
    corpus=Options(
        general_megabytes=0.5,
        companies=4,
        regulations=2,
        domain_tokens=20_000,
        domain_valid=10,
        dialogues=60,
        dialogues_valid=10,
        questions_per_fact=2,
        cloze_items=20,
        bytes_documents=4,
        genre_tokens=20_000,
        vocab_size=2048,
    ),
    base_steps=4,
    cpt_steps=4,
    cpt_lrs=(2e-3,),
    sft1_steps=2,
    sft2_steps=2,
    sft_lrs=(4e-4, 8e-4),
    continuation_tokens=4,
    answer_tokens=4,
)
"""Runs every line of the study in minutes; its figures mean nothing."""
