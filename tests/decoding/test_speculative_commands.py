"""`soaes speculate` and `soaes chat` as a user types them, on a tiny pair."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from data_prep.rehearsal.tokenizer import save_tokenizer, train_tokenizer
from megatron_soaes.cli import app
from megatron_soaes.decoding.chat import Answer, TextStream, converse
from megatron_soaes.decoding.comparison import LengthResult, compare, evenly_spread, recommend
from megatron_soaes.decoding.comparison_report import plot_svg
from megatron_soaes.decoding.draft_length import Round, acceptance_of
from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.measure import (
    Divergence,
    Identity,
    Speedup,
    TimeShares,
    logits_digests,
)
from megatron_soaes.decoding.pairing import load_model, shared_tokenizer
from megatron_soaes.decoding.prompt_file import read_prompts
from megatron_soaes.decoding.prompts import load_tokenizer
from megatron_soaes.decoding.speculative import Speculation, SpeculativeDecoder
from megatron_soaes.errors import UserError
from tests.checkpoint.tiny import Case, edit_weights, make_model

SVG = "{http://www.w3.org/2000/svg}"
TEXT = "A question is asked of a model, and the model answers the question that was asked."


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of target, draft, near (the target a little changed) and prompts.jsonl."""
    folder = tmp_path_factory.mktemp("pair")
    tokenizer = train_tokenizer([TEXT] * 10, 300)
    for name, layers in (("target", 3), ("draft", 1)):
        case = Case("qwen2", tied=True, layers=layers, vocab_size=300)
        save_tokenizer(tokenizer, folder / f"{name}-tokenizer")
        make_model(folder / name, case)
        shutil.copytree(folder / f"{name}-tokenizer", folder / name, dirs_exist_ok=True)
    shutil.copytree(folder / "target", folder / "near")
    edit_weights(folder / "near", lambda tensors: tensors["model.norm.weight"].mul_(1.1))
    lines = [{"prompt": TEXT[:30]}, {"messages": [{"role": "user", "content": "Why?"}]}]
    text = "\n".join(map(json.dumps, lines))
    (folder / "prompts.jsonl").write_text(text + "\n\n", encoding="utf-8")
    return folder


def soaes(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("mode", [[], ["--exact"], ["--temperature", "0.8", "--rows", "2"]])
def test_speculate_reports_speed_acceptance_and_identity(
    pair: Path, tmp_path: Path, mode: list[str]
) -> None:
    out = tmp_path / "report.json"
    output = soaes(
        "speculate", pair / "target", pair / "near", "--prompts", pair / "prompts.jsonl",
        "--draft-length", 2, "--draft-length", 4, "--adaptive", "--max-new-tokens", 12,
        "--repeats", 2, "--out", out, *mode,
    )  # fmt: skip
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [(one["draft_length"], one["adaptive"]) for one in found["lengths"]] == [
        (2, False), (4, False), (4, True)
    ]  # fmt: skip
    for one in found["lengths"]:
        assert one["speedup"]["low"] <= one["speedup"]["high"]
        accepted = one["acceptance"]
        with_bonus = accepted["acceptance_length_with_bonus"]
        assert accepted["acceptance_length_without_bonus"] < with_bonus
        assert sum(one["time"].values()) == pytest.approx(1)
        assert one["adaptive"] or min(one["time"].values()) > 0
        if "--temperature" in mode:
            assert one["identity"] is None
        else:
            assert one["identity"]["equal"] == one["identity"]["prompts"] == 2
            assert one["identity"]["equal_logits"] == (2 if "--exact" in mode else None)
    assert found["cost_ratio"] == found["costs"]["draft"] / found["costs"]["target"][0]
    assert found["sources"]["draft"] == str(pair / "near")
    assert found["exact"] == ("--exact" in mode)
    told = " ".join(output.split())
    assert "Recommendation" in told
    assert re.search(r"the ideal is \d+\.\d\dx.*, reached \d+%: drafting takes \d+% of the", told)
    assert "for a real pair, predict from" in told
    equal = told.count("logits bitwise those of plain decoding for 2 of 2 prompts")
    assert equal == (3 if "--exact" in mode else 0)
    assert ET.parse(out.with_suffix(".svg")).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("speculate", "t", "d", "--prompts", "p", "--out", "."),
            "'.' is a directory",
        ),
        (("chat", "t", "--draft-length", "-1"), "greater than or equal to 0"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    arguments: tuple[str, ...], message: str
) -> None:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output


def test_a_draft_that_agrees_is_accepted(pair: Path) -> None:
    target, near = LeanModel(pair / "target"), LeanModel(pair / "near")
    found = compare(target, near, [[1, 2, 3]], Sampling(12), draft_lengths=[3], repeats=1)
    # The final norm is only scaled, which changes no order.
    assert found.lengths[0].acceptance.acceptance_rate == 1
    assert found.lengths[0].acceptance.acceptance_length_with_bonus == 4
    assert found.identity_holds


def result(low: float, *, gap: float = 0.0) -> LengthResult:
    split = Divergence(0, 3, 1, 2, gap, 0.1)
    return LengthResult(
        3, False, 0.001, Speedup(1.5, low, 2.0), Speedup(1.5, low, 2.0),
        acceptance_of([Round(3, 3, 3, 4)]), 1.6, 1.5, 0.3, TimeShares(0.2, 0.7, 0.1),
        Identity(5, 4, (split,)),
    )  # fmt: skip


def test_a_pair_is_recommended_when_it_is_surely_faster_and_right() -> None:
    assert recommend([result(1.2)]).go
    assert recommend([result(1.2)]).draft_length == 3
    assert not recommend([result(0.9)]).go
    wrong = recommend([result(1.2, gap=0.5)])
    assert not wrong.go
    assert "differ" in wrong.reason


def test_the_logits_are_part_of_the_promise_of_exact_mode() -> None:
    assert Identity(5, 5, (), equal_logits=5).holds
    assert not Identity(5, 5, (), equal_logits=4).holds
    assert Identity(5, 5, ()).holds


def test_digests_are_those_of_the_logits_not_of_the_text(pair: Path) -> None:
    target, near = LeanModel(pair / "target"), LeanModel(pair / "near")
    prompts, sampling = [[1, 2, 3], [4, 5]], Sampling(8)

    def digests(model: LeanModel, draft_length: int, rows: int) -> list[str]:
        decoder = SpeculativeDecoder(model, near, Speculation(draft_length, exact=True))
        return logits_digests(decoder, prompts, sampling, rows)

    plain = digests(target, 0, 2)
    assert digests(target, 3, 2) == plain
    assert len(set(plain)) == 2
    assert not set(digests(near, 0, 2)) & set(plain)  # the same text, the norm a little larger


def test_most_prompts_are_spread_over_the_file() -> None:
    prompts = [[number] for number in range(10)]
    assert evenly_spread(prompts, 4) == [[0], [2], [5], [7]]
    assert evenly_spread(prompts, None) == evenly_spread(prompts, 99) == prompts


def test_what_is_reached_of_the_ideal_is_that_of_the_mode() -> None:
    one = replace(result(1.2), speedup_in_mode=Speedup(0.8, 0.7, 0.9), ideal_speedup=1.6)
    assert one.share_of_ideal == 0.5
    assert replace(one, ideal_speedup=None).share_of_ideal is None


def test_the_plot_of_exact_mode_shows_both_curves_over_plain_decoding_in_that_mode(
    pair: Path,
) -> None:
    target, near = LeanModel(pair / "target"), LeanModel(pair / "near")
    found = compare(target, near, [[1, 2]], Sampling(4), draft_lengths=[3], repeats=1, exact=True)
    one = replace(
        found.lengths[0], speedup=Speedup(9.0, 9.0, 9.0), speedup_in_mode=Speedup(1.2, 1.1, 1.3),
        ideal_speedup=1.2,
    )  # fmt: skip
    drawn = ET.fromstring(plot_svg(replace(found, lengths=(one,))))
    *_, ideal, measured, _ = (line.get("points") for line in drawn.iter(f"{SVG}polyline"))
    assert measured == ideal
    assert "plain decoding in exact mode" in "".join(drawn.itertext())


def test_chat_answers_one_prompt_and_says_how_fast(pair: Path) -> None:
    plain = soaes("chat", pair / "target", "--prompt", "Why?", "--max-new-tokens", 8)
    drafted = soaes(
        "chat", pair / "target", "--draft", pair / "near", "--prompt", "Why?",
        "--max-new-tokens", 8, "--dtype", "fp32", "--fixed", "--exact",
    )  # fmt: skip
    assert "tokens/s" in plain
    assert "acceptance" not in plain
    assert "acceptance rate 1.00" in drafted


def test_chat_tints_what_the_draft_wrote(pair: Path) -> None:
    arguments = ["chat", str(pair / "target"), "--prompt", "Why?", "--max-new-tokens", "8"]
    arguments += ["--dtype", "fp32", "--fixed"]
    green = "\x1b[32m"
    plain = CliRunner().invoke(app, arguments, color=True).output
    assert green not in plain
    drafted = CliRunner().invoke(app, [*arguments, "--draft", str(pair / "near")], color=True)
    assert green in drafted.output


def test_a_conversation_goes_on_until_the_user_ends_it() -> None:
    questions = iter(["One?", "Two?", None])
    seen: list[list[str]] = []
    told: list[str] = []

    def reply(turns: object) -> Answer:
        seen.append([turn["content"] for turn in turns])  # type: ignore[attr-defined]
        return Answer(f"answer {len(seen)}", 10, 2.0, ())

    converse(lambda: next(questions), reply, told.append)
    assert seen == [["One?"], ["One?", "answer 1", "Two?"]]
    assert told == ["10 tokens, 5.0 tokens/s"] * 2


def test_a_character_is_shown_when_all_its_bytes_are_there() -> None:
    raw = "国a".encode()
    stream = TextStream(lambda tokens: bytes(tokens).decode(errors="replace"))
    assert [stream.add(byte) for byte in raw] == ["", "", "国", "a"]
    stream.add(raw[0])
    assert stream.end() == "\ufffd"


def test_models_with_one_tokenizer_are_a_pair(pair: Path) -> None:
    shared_tokenizer(pair / "target", pair / "draft")


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("tokenizer.json", lambda t: _swap(t["model"]["vocab"]), "vocabulary"),
        ("tokenizer.json", lambda t: t["model"]["merges"].reverse(), "merges, rank 0"),
        (
            "tokenizer_config.json",
            lambda t: t.update(eos_token="<|im_end|>"),
            "special tokens, eos",
        ),
    ],
)
def test_another_tokenizer_is_refused_with_the_first_difference(
    pair: Path, tmp_path: Path, name: str, change: object, found: str
) -> None:
    other = tmp_path / "draft"
    shutil.copytree(pair / "draft", other)
    fields = json.loads((other / name).read_text(encoding="utf-8"))
    before = json.dumps(fields)
    change(fields)  # type: ignore[operator]
    assert json.dumps(fields) != before
    (other / name).write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(UserError, match=found):
        shared_tokenizer(pair / "target", other)


def _swap(vocabulary: dict[str, int]) -> None:
    one, two = list(vocabulary)[100:102]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


def test_prompts_are_texts_or_conversations(pair: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(pair / "target")
    text, conversation = read_prompts(pair / "prompts.jsonl", tokenizer)
    assert tokenizer.decode(text) == TEXT[:30]
    assert tokenizer.decode(conversation).endswith("assistant\n")
    lines = tmp_path / "prompts.txt"
    lines.write_text("One\n\nTwo\n", encoding="utf-8")
    assert [tokenizer.decode(ids) for ids in read_prompts(lines, tokenizer)] == ["One", "Two"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "no prompts"),
        ('{"prompt": "One"}\n{"prompt": 1}\n', r"line 2: found fields \['prompt'\]"),
        ('{"prompt": "One"}\n{\n', "line 2: found no JSON"),
        ('{"messages": [{"role": "user"}]}\n', "line 1: found fields"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(
    pair: Path, tmp_path: Path, content: str, found: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=found):
        read_prompts(file, load_tokenizer(pair / "target"))


def test_a_dtype_is_taken_by_name_or_by_measurement(pair: Path) -> None:
    assert load_model(pair / "draft", "bf16").dtype == torch.bfloat16
    assert load_model(pair / "draft", "auto").dtype in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="fp64"):
        load_model(pair / "draft", "fp64")
