"""Text and logits with a draft are those without: bit for bit in exact mode, up to ties in fast."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_soaes.decoding.draft_length import PassCosts, Round
from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.lean import LeanGenerator, LeanModel
from megatron_soaes.decoding.measure import identity, rounding_bound
from megatron_soaes.decoding.speculative import Speculation, SpeculativeDecoder, Step, Written
from megatron_soaes.errors import UserError
from tests.checkpoint.tiny import Case, edit_weights, make_model
from tests.decoding.material import (
    GREEDY,
    NEW_TOKENS,
    PROMPTS,
    SAMPLED,
    VOCABULARY,
    text_of,
    transformers_model,
)

FP32, BF16 = torch.float32, torch.bfloat16
LENGTHS = range(1, 9)
WINDOW = 9
HELPFUL_COSTS = PassCosts(0.1, (1.0,) * 9)
COSTLY = PassCosts(2.0, (1.0,) * 9)


@pytest.fixture(scope="module")
def drafts(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of NAME: the targets with some noise, so that they often agree with them."""
    folder = tmp_path_factory.mktemp("drafts")
    for name in ("qwen2", "qwen3", "llama"):
        (folder / name).mkdir()
        for file in (models / name / "hf").iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        edit_weights(folder / name, _blur)
    return folder


def _blur(tensors: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensors[name] = tensor + 0.05 * tensor.std() * noise


@pytest.fixture(scope="module")
def target(models: Path) -> LeanModel:
    return LeanModel(models / "qwen3" / "hf")


@pytest.fixture(scope="module")
def draft(drafts: Path) -> LeanModel:
    return LeanModel(drafts / "qwen3")


def write(
    target: LeanModel,
    draft: LeanModel | None,
    speculation: Speculation,
    sampling: Sampling = GREEDY,
    rows: int = 1,
) -> list[Written]:
    return SpeculativeDecoder(target, draft, speculation).generate(PROMPTS, sampling, rows)


def tokens_of(written: Iterable[Written]) -> list[list[int]]:
    return [list(one.tokens) for one in written]


def logits_of(
    target: LeanModel, draft: LeanModel | None, speculation: Speculation, rows: int
) -> list[Tensor]:
    """Logits [new tokens, vocabulary] that each sequence was chosen by."""
    prompts = PROMPTS if rows > 1 else PROMPTS[:5]
    parts: list[list[Tensor]] = [[] for _ in prompts]

    def watch(step: Step) -> None:
        parts[step.sequence].append(step.logits)

    SpeculativeDecoder(target, draft, speculation).generate(prompts, GREEDY, rows, watch)
    return [torch.cat(part) for part in parts]


@pytest.mark.parametrize(
    ("name", "dtypes", "rows"),
    [
        ("qwen2", (FP32, BF16), 1),
        ("qwen2", (BF16, FP32), 4),
        ("qwen3", (FP32, FP32), 4),
        ("qwen3", (BF16, BF16), 1),
        ("llama", (BF16, BF16), 4),
    ],
)
def test_exact_mode_gives_the_logits_of_plain_decoding_bit_for_bit(
    models: Path, drafts: Path, name: str, dtypes: tuple[torch.dtype, torch.dtype], rows: int
) -> None:
    target = LeanModel(models / name / "hf", dtypes[0])
    draft = LeanModel(drafts / name, dtypes[1])
    plain = logits_of(target, None, Speculation(0, exact=True, window=WINDOW), rows)
    assert all(len(one) == NEW_TOKENS for one in plain)
    for length in LENGTHS:
        found = logits_of(target, draft, Speculation(length, exact=True, window=WINDOW), rows)
        assert all(map(torch.equal, found, plain)), f"draft length {length}"


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(("name", "dtype"), [("qwen3", BF16), ("qwen2", BF16), ("llama", FP32)])
def test_fast_mode_differs_at_near_ties_only(
    models: Path, drafts: Path, name: str, dtype: torch.dtype, rows: int
) -> None:
    target, draft = LeanModel(models / name / "hf", dtype), LeanModel(drafts / name, dtype)
    plain = write(target, None, Speculation(0), rows=rows)
    for length in (1, 4, 7):
        found = write(target, draft, Speculation(length), rows=rows)
        same = identity(target, PROMPTS, plain, found, exact=False)
        assert same.holds
        assert same.equal >= 5


def test_a_difference_that_rounding_does_not_explain_is_found(target: LeanModel) -> None:
    plain = write(target, None, Speculation(0))
    wrong = list(plain)
    other = (plain[3].tokens[4] + 1) % VOCABULARY
    wrong[3] = replace(plain[3], tokens=(*plain[3].tokens[:4], other))
    same = identity(target, PROMPTS, plain, wrong, exact=False)
    assert (same.equal, same.holds) == (len(PROMPTS) - 1, False)
    (split,) = same.divergences
    assert (split.prompt, split.position, split.speculative) == (3, 4, other)
    assert split.gap > split.bound > 0


def test_in_exact_mode_nothing_explains_a_difference(target: LeanModel) -> None:
    plain = write(target, None, Speculation(0))
    wrong = [replace(plain[0], tokens=(*plain[0].tokens[:-1], 0)), *plain[1:]]
    same = identity(target, PROMPTS, plain, wrong, exact=True)
    assert same.divergences[0].bound == 0
    assert not same.holds


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_passes_of_other_lengths_stay_within_half_of_the_bound(
    models: Path, name: str, dtype: torch.dtype
) -> None:
    model = LeanModel(models / name / "hf", dtype)
    sequence = random.Random(4).choices(range(VOCABULARY), k=96)

    def logits(width: int) -> Tensor:
        cache, parts = model.new_cache(1, 96), []
        for start in range(0, 96, width):
            ids = torch.tensor([sequence[start : start + width]])
            parts.append(model.logits(model.hidden(ids, cache))[0])
            cache.lengths[0] += ids.shape[1]
        return torch.cat(parts)

    one_by_one = logits(1)
    for width in (2, 5, 8, 96):
        for found, expected in zip(logits(width), one_by_one, strict=True):
            bound = rounding_bound(expected.abs().max().item(), dtype)
            # Each of two logits may move by so much.
            assert (found - expected).abs().max() <= bound / 2


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_greedy_text_is_that_of_transformers(
    models: Path, drafts: Path, greedy: dict[str, list[list[int]]], name: str
) -> None:
    target, draft = LeanModel(models / name / "hf"), LeanModel(drafts / name)
    assert tokens_of(write(target, None, Speculation(0))) == greedy[name]
    assert tokens_of(write(target, draft, Speculation(4))) == greedy[name]


@torch.no_grad()
def test_greedy_text_is_that_of_assisted_generation(
    models: Path, drafts: Path, target: LeanModel, draft: LeanModel
) -> None:
    model = transformers_model(models / "qwen3" / "hf")
    assistant = transformers_model(drafts / "qwen3")
    found = tokens_of(write(target, draft, Speculation(4)))
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, do_sample=False,
            max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert out[0, len(prompt) :].tolist() == tokens


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, replace(SAMPLED, top_k=20)])
def test_a_batch_writes_what_each_prompt_gets_alone(
    target: LeanModel, draft: LeanModel, sampling: Sampling
) -> None:
    alone = write(target, draft, Speculation(3), sampling)
    assert {len(one.rounds) for one in alone} != {len(alone[0].rounds)}, "rows do not differ"
    for rows in (2, 4, 9):
        together = write(target, draft, Speculation(3), sampling, rows)
        assert tokens_of(together) == tokens_of(alone)


def test_a_batch_accepts_for_each_sequence_what_is_accepted_alone(
    target: LeanModel, draft: LeanModel
) -> None:
    alone = write(target, draft, Speculation(3))
    together = write(target, draft, Speculation(3), rows=4)
    assert [one.rounds for one in together] == [one.rounds for one in alone]


def test_plain_sampled_text_is_that_of_the_lean_generator(target: LeanModel) -> None:
    expected = LeanGenerator(target, text_of).generate(PROMPTS, SAMPLED)
    found = write(target, None, Speculation(0), SAMPLED)
    assert tokens_of(found) == [list(one.tokens) for one in expected]


def test_the_seed_decides_what_is_sampled(target: LeanModel, draft: LeanModel) -> None:
    first = write(target, draft, Speculation(4), SAMPLED)
    assert write(target, draft, Speculation(4), SAMPLED) == first
    assert write(target, draft, Speculation(4), replace(SAMPLED, seed=4)) != first


def test_only_one_possible_token_makes_sampled_text_greedy(
    target: LeanModel, draft: LeanModel
) -> None:
    sampling = Sampling(NEW_TOKENS, temperature=2.0, top_k=1)
    greedy = tokens_of(write(target, None, Speculation(0)))
    assert tokens_of(write(target, draft, Speculation(4), sampling)) == greedy


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_stop_token_ends_a_text_wherever_it_stands_in_a_draft(
    target: LeanModel, greedy: dict[str, list[list[int]]], rows: int, exact: bool
) -> None:
    for place in (0, 3, 4, 5):
        stop = greedy["qwen3"][0][place]
        sampling = replace(GREEDY, stop_ids=(stop,))
        # The target as its own draft, so that the stop token is an accepted one at most places.
        found = write(target, target, Speculation(4, exact), sampling, rows)
        for one, tokens in zip(found, greedy["qwen3"], strict=True):
            end = tokens.index(stop) if stop in tokens else NEW_TOKENS
            assert list(one.tokens) == tokens[:end]
            assert one.stop == (stop if end < NEW_TOKENS else None)
            assert sum(r.written for r in one.rounds) == len(one.generated)
            assert sum(r.accepted for r in one.rounds) == sum(r.drafted for r in one.rounds)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("count", range(1, 8))
def test_a_text_is_as_long_as_asked_for_and_not_longer(
    target: LeanModel, greedy: dict[str, list[list[int]]], count: int, rows: int
) -> None:
    found = write(target, target, Speculation(4), Sampling(count), rows)
    assert tokens_of(found) == [tokens[:count] for tokens in greedy["qwen3"]]
    assert all(one.stop is None for one in found)


def test_rounds_count_what_was_drafted_and_accepted(target: LeanModel) -> None:
    (own, *_) = write(target, target, Speculation(4), Sampling(12))
    # 5 + 5 tokens, then two more: one draft and the target's own.
    assert own.rounds == (Round(4, 4, 4, 5), Round(4, 4, 4, 5), Round(1, 1, 1, 2))
    (plain, *_) = write(target, None, Speculation(0), Sampling(2))
    assert plain.rounds == (Round(0, 0, 0, 1),) * 2


def test_steps_tell_which_tokens_the_draft_wrote(target: LeanModel, draft: LeanModel) -> None:
    steps: list[Step] = []
    decoder = SpeculativeDecoder(target, draft, Speculation(4))
    (written,) = decoder.generate(PROMPTS[:1], GREEDY, watch=steps.append)
    assert tuple(token for step in steps for token in step.tokens) == written.tokens
    assert [step.accepted for step in steps] == [r.accepted for r in written.rounds]
    assert all(step.logits.shape == (len(step.tokens), VOCABULARY) for step in steps)


def test_vocabularies_may_be_padded_differently(
    tmp_path: Path, target: LeanModel, greedy: dict[str, list[list[int]]]
) -> None:
    for size in (VOCABULARY - 10, VOCABULARY + 6):
        case = Case("llama", layers=1, vocab_size=size)
        draft = LeanModel(make_model(tmp_path / str(size), case), BF16)
        prompts = [[token % 200 for token in prompt] for prompt in PROMPTS[:3]]
        for sampling in (GREEDY, SAMPLED):
            found = SpeculativeDecoder(target, draft, Speculation(3)).generate(prompts, sampling)
            assert all(max(one.tokens) < VOCABULARY for one in found)
            if sampling.greedy:
                plain = SpeculativeDecoder(target, None, Speculation(0)).generate(prompts, GREEDY)
                assert tokens_of(found) == tokens_of(plain)


@pytest.mark.parametrize("costs", [HELPFUL_COSTS, COSTLY])
def test_an_adaptive_length_writes_the_same(
    target: LeanModel, draft: LeanModel, greedy: dict[str, list[list[int]]], costs: PassCosts
) -> None:
    found = write(target, draft, Speculation(8, adaptive=costs))
    assert tokens_of(found) == greedy["qwen3"]
    drafted = sum(r.drafted for one in found for r in one.rounds)
    assert drafted > len(PROMPTS) * 8 if costs is HELPFUL_COSTS else drafted < len(PROMPTS)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"draft_length": -1}, "draft_length"),
        ({"draft_length": 8, "exact": True}, "window"),
        ({"draft_length": 3, "adaptive": COSTLY}, "adaptive"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], field: str
) -> None:
    with pytest.raises(UserError, match=rf"speculation\.{field}"):
        Speculation(**settings)  # type: ignore[arg-type]


def test_a_prompt_that_the_draft_cannot_take_is_refused(tmp_path: Path, target: LeanModel) -> None:
    draft = LeanModel(make_model(tmp_path / "draft", Case(vocab_size=200)))
    with pytest.raises(UserError, match="prompt 0: found token 249"):
        SpeculativeDecoder(target, draft, Speculation(2)).generate([[249]], GREEDY)
