"""What FP8 costs: the same as in `transformers` with rounded weights and inputs; and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.errors import UserError
from megatron_soaes.export.fp8 import report
from megatron_soaes.export.fp8 import texts as calibration_texts
from megatron_soaes.export.fp8.calibration import Fp8, quantise
from megatron_soaes.export.fp8.forward import Decoder
from megatron_soaes.export.fp8.hf import export_hf_fp8
from megatron_soaes.export.fp8.report import Limits, Quality
from megatron_soaes.export.fp8.scales import Scales
from megatron_soaes.export.fp8.texts import CalibrationTexts, read_texts
from megatron_soaes.export.source import open_source
from tests.checkpoint.tiny import LLAMA3_ROPE, Case, edit_weights, reference_logits
from tests.export.fp8_material import SENTENCES, load_quantised, make, make_texts

CASES = [
    Case("llama", vocab_size=300, rope=LLAMA3_ROPE),
    Case("qwen2", tied=True, vocab_size=300),
    Case("qwen3", kv_heads=1, vocab_size=300),
]
ANYTHING = Limits(math.inf, math.inf, math.inf)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a qwen2, another one for a draft, and texts."""
    folder = tmp_path_factory.mktemp("fp8")
    make(folder / "target", CASES[1])
    make(folder / "draft", Case("qwen2", layers=1, vocab_size=310), seed=3)
    make_texts(folder / "texts.jsonl")
    return folder


def request(folder: Path, **options: Any) -> Fp8:
    return replace(Fp8(folder / "texts.jsonl", limits=ANYTHING), **options)


def run(folder: Path, **options: Any) -> tuple[Scales, Quality]:
    return quantise(open_source(folder / "target"), request(folder, **options), torch.bfloat16)


def texts_of(folder: Path) -> CalibrationTexts:
    return read_texts(folder / "texts.jsonl", open_source(folder / "target"))


def centred_error(found: Tensor, expected: Tensor) -> float:
    found, expected = (x - x.mean(-1, keepdim=True) for x in (found, expected))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plain_forward_pass_is_that_of_transformers(tmp_path: Path, case: Case) -> None:
    hf_dir = make(tmp_path / "hf", case)
    tokens = torch.arange(200) * 37 % 300
    decoder = Decoder(open_source(hf_dir), torch.bfloat16, torch.device("cpu"))
    with torch.inference_mode():
        found = F.linear(decoder.exact_states([tokens])[0], decoder.output())
    expected = reference_logits(hf_dir, tokens.unsqueeze(0))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_reported_cost_is_that_of_the_quantised_model_in_transformers(
    tmp_path: Path, case: Case
) -> None:
    """Of an FP8 directory as a reader sees it, with code of its own for weights and inputs."""
    hf_dir, texts = make(tmp_path / "hf", case), make_texts(tmp_path / "texts.jsonl")
    fp8 = Fp8(texts, cache=False, limits=ANYTHING)
    found = export_hf_fp8(hf_dir, tmp_path / "out", fp8).quality
    model = load_quantised(tmp_path / "out")
    pairs, losses = [], []
    for text in read_texts(texts, open_source(hf_dir)).held_out:
        with torch.no_grad():
            quantised = model(text.unsqueeze(0)).logits[0]
        pairs.append((quantised, reference_logits(hf_dir, text.unsqueeze(0))[0]))
        losses.append(torch.stack([F.cross_entropy(x[:-1], text[1:]) for x in pairs[-1]]))
    after, before = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert 0.01 < found.logit_error == pytest.approx(centred_error(after, before), rel=0.02)
    weights = torch.tensor([len(x) - 1.0 for x, _ in pairs])
    expected = (torch.stack(losses) * weights.unsqueeze(1)).sum(0).div(weights.sum()).exp()
    assert found.perplexity_after == pytest.approx(float(expected[0]), rel=1e-3)
    assert found.perplexity_before == pytest.approx(float(expected[1]), rel=1e-5)


def test_acceptance_is_the_overlap_of_both_over_the_tokens_both_have(material: Path) -> None:
    _, found = run(material, draft=material / "draft")
    overlaps = []
    for text in texts_of(material).held_out:
        target, draft = (
            reference_logits(material / name, text.unsqueeze(0))[0][:, :300].softmax(-1)
            for name in ("target", "draft")
        )
        overlaps.append(torch.minimum(target, draft).sum(-1))
    assert found.acceptance_before == pytest.approx(float(torch.cat(overlaps).mean()), abs=1e-6)
    assert found.acceptance_after != found.acceptance_before
    _, itself = run(material, draft=material / "target")
    assert itself.acceptance_before == pytest.approx(1.0)
    assert itself.acceptance_after is not None
    assert itself.acceptance_after < 0.999


def test_positions_are_measured_in_blocks(material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = run(material, draft=material / "draft")
    monkeypatch.setattr(report, "POSITIONS", 7)
    _, blocks = run(material, draft=material / "draft")
    assert blocks.logit_error == pytest.approx(whole.logit_error, rel=1e-4)
    assert blocks.perplexity_after == pytest.approx(whole.perplexity_after, rel=1e-5)
    assert blocks.acceptance_after == pytest.approx(whole.acceptance_after, rel=1e-5)


def test_fewer_matrices_in_fp8_cost_less(material: Path) -> None:
    _, all_of_it = run(material)
    _, weights_only = run(material, cache=False)
    _, little = run(material, cache=False, exclude=("qkv", "gate_up", "down_proj"))
    assert little.logit_error < weights_only.logit_error < all_of_it.logit_error


def test_held_out_texts_do_not_calibrate(material: Path, tmp_path: Path) -> None:
    lines = (material / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    for number in (0, 8):
        lines[number] = json.dumps({"prompt": "why? why? why?"})
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    original, _ = run(material)
    changed, _ = run(material, calibration=tmp_path / "texts.jsonl")
    assert original.inputs == changed.inputs
    lines[1] = json.dumps({"prompt": "why? why? why?"})
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    other, _ = run(material, calibration=tmp_path / "texts.jsonl")
    assert other.inputs != original.inputs
    assert other.weights == original.weights


def test_a_megatron_checkpoint_has_the_same_scales(material: Path, tmp_path: Path) -> None:
    import_hf(material / "target", tmp_path / "checkpoint", verify=False)
    source = open_source(tmp_path / "checkpoint")
    scales, quality = quantise(source, request(material), torch.bfloat16)
    assert (scales, quality) == run(material)


def test_progress_counts_layers(material: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantise(
        open_source(material / "target"), request(material), torch.bfloat16,
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(n, 4) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (replace(ANYTHING, logit_error=0.001), "FP8: logit error: found 0.0.*--max-logit-error"),
        (
            replace(ANYTHING, perplexity_increase=-1.0),
            "increase of the perplexity.*--max-perplexity-increase.*nothing was written",
        ),
        (
            replace(ANYTHING, acceptance_loss=1e-4),
            "loss of acceptance: found 0.0.*acceptance: 1.0000 -> 0.9.*--max-acceptance-loss",
        ),
    ],
)
def test_what_costs_too_much_is_refused_and_not_written(
    material: Path, tmp_path: Path, limits: Limits, expected: str
) -> None:
    fp8 = request(material, limits=limits, draft=material / "target")
    with pytest.raises(UserError, match=expected):
        export_hf_fp8(material / "target", tmp_path / "out", fp8)
    assert not list(tmp_path.iterdir())


def test_no_number_is_no_quality(material: Path) -> None:
    _, quality = run(material)
    with pytest.raises(UserError, match="logit error: found nan"):
        replace(quality, logit_error=math.nan).require(ANYTHING)
    assert "2 of them cut" in next(replace(quality, cut_texts=2).lines())


def test_a_model_that_overflows_is_named(tmp_path: Path) -> None:
    hf_dir = make(tmp_path / "hf", CASES[1])
    name = "model.layers.2.mlp.up_proj.weight"
    edit_weights(hf_dir, lambda tensors: tensors[name].fill_(math.inf))
    fp8 = Fp8(make_texts(tmp_path / "texts.jsonl"), limits=ANYTHING)
    with pytest.raises(UserError, match=r"model\.layers\.2, down_proj: found values NaN"):
        quantise(open_source(hf_dir), fp8, torch.bfloat16)


def test_groups_are_known_by_name(material: Path) -> None:
    with pytest.raises(UserError, match="found 'k_proj'; expected one of qkv, o_proj"):
        run(material, exclude=("k_proj",))
    with pytest.raises(UserError, match="found every group of matrices"):
        run(material, exclude=("qkv", "o_proj", "gate_up", "down_proj"))


def test_a_draft_of_another_vocabulary_is_refused(material: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "draft", CASES[1])
    file = other / "tokenizer.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    first, second = list(fields["model"]["vocab"])[100:102]
    vocabulary = fields["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(UserError, match="another vocabulary"):
        run(material, draft=other)


def test_every_eighth_text_is_held_out_and_long_ones_are_cut(
    material: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of(material)
    assert (len(texts.held_out), len(texts.calibrating), texts.cut) == (2, 14, 0)
    monkeypatch.setattr(calibration_texts, "LONGEST", 30)
    cut = texts_of(material)
    assert cut.cut == len(SENTENCES)
    assert [text.tolist() for text in cut.held_out] == [t[:30].tolist() for t in texts.held_out]


def test_a_conversation_is_what_the_chat_template_makes_of_it(
    material: Path, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "garden"}]
    lines = [{"messages": turns}, {"messages": turns[:1]}]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    texts = read_texts(file, open_source(material / "target"))
    (answered,), (asked,) = texts.held_out, texts.calibrating
    assert answered[: len(asked)].tolist() == asked.tolist()
    assert len(answered) > len(asked) + 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "why?"}\n', "found 1 texts; expected two at least"),
        ('{"prompt": "why?"}\n{"question": "why?"}\n', r"line 2: found fields \['question'\]"),
        ("", "found no prompts"),
    ],
)
def test_texts_that_cannot_calibrate_are_refused(
    material: Path, tmp_path: Path, content: str, expected: str
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=expected):
        read_texts(file, open_source(material / "target"))


def test_tokens_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    small = make(tmp_path / "hf", Case("qwen2", vocab_size=60))
    with pytest.raises(UserError, match="expected tokens below 60"):
        read_texts(make_texts(tmp_path / "texts.jsonl"), open_source(small))
