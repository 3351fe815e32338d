"""Respond stages: what a model writes, kept token for token, whoever asks it and however often."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.indexed import open_indexed
from data_prep.tokenizer import load_tokenizer
from megatron_soaes.accelerator.groups import Rendezvous, process_group
from megatron_soaes.accelerator.launch import launch
from megatron_soaes.checkpoint.directory import (
    BEST_TRACKER,
    TRACKER,
    iteration_directory,
)
from megatron_soaes.data.conversations import ConversationRange, Packs, PackSettings, sources_of
from megatron_soaes.data.indexed import TokenizerFacts
from megatron_soaes.decoding import prompts
from megatron_soaes.decoding.interface import Completion, Prompt, Sampling
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.megatron import MegatronGenerator
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Stopped
from megatron_soaes.stages.measuring import Subject
from megatron_soaes.stages.respond import RespondStage
from tests.data.material import write_dataset
from tests.decoding import server as serving
from tests.stages.exam import VOCABULARY, Exam
from tests.stages.responding import (
    END_OF_TEXT,
    NEW_TOKENS,
    PREFIX,
    SEED,
    TOP_P,
    Asked,
    stage_of,
    write_chats,
)

RECIPE = f"""
version: 1
name: respond
workdir: work
seed: {SEED}
models: {{target: {{source: good}}}}
data:
  datasets:
    held: {{indexed: held}}
    seen: {{indexed: seen}}
    chats: {{indexed_conversations: chats, holdout: 0.2}}
    docs: {{indexed: docs, holdout: 0.5}}
  blends: {{mix: {{weights: {{seen: 1}}}}}}
stages:
  - {{name: cpt, kind: cpt, blend: mix, steps: 1, sequence_length: 32, global_batch_size: 1}}
  - name: answers
    kind: respond
    prompts: [chats, docs]
    document_prefix: {PREFIX}
    sampling: {{max_new_tokens: {NEW_TOKENS}, temperatures: [0, 0.8], top_p: {TOP_P}}}
    dtype: fp32
    batch_size: 1
"""
OUTPUTS = {
    "responses.bin", "responses.idx", "responses_weights.bin", "responses_weights.idx",
    "responses_sources.npy", "responses.jsonl", "responses.json",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)):
        yield


@pytest.fixture(scope="module")
def asked(exam: Exam) -> Asked:
    return Asked(exam.good)


@pytest.fixture(scope="module")
def sha256(exam: Exam) -> str:
    return load_tokenizer(exam.good, add_special_tokens=False)[0].sha256


@pytest.fixture(scope="module")
def root(exam: Exam, asked: Asked, sha256: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its model and its data; stages write below `work`."""
    folder = tmp_path_factory.mktemp("respond") / "run"
    for name in ("work/import-target", "work/cpt", "good"):
        shutil.copytree(exam.root / name, folder / name)
    for file in (*exam.root.glob("held.*"), *exam.root.glob("seen.*")):
        shutil.copy(file, folder)
    write_chats(folder / "chats", asked.conversations(), sha256)
    write_dataset(folder / "docs", asked.documents)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def recipe_of(root: Path, *overrides: str) -> Recipe:
    return load_recipe(root / "recipe.yaml", overrides)


def run_here(root: Path, *overrides: str, name: str = "answers") -> dict[str, Any]:
    """The stage under a name of its own, run by this process; its metrics."""
    renamed = () if name == "answers" else (f"answers.name={name}",)
    recipe = recipe_of(root, *renamed, *(one.replace("answers.", f"{name}.") for one in overrides))
    return stage_of(recipe, name).run()


def written(root: Path, name: str = "answers") -> list[tuple[list[int], list[float]]]:
    """Tokens and weights of every conversation of the dataset that a stage wrote, sorted."""
    prefix = root / "work" / name / "responses"
    weights = open_indexed(prefix.with_name("responses_weights"))
    return sorted(
        (tokens.tolist(), weighed.tolist())
        for tokens, weighed in zip(open_indexed(prefix), weights, strict=True)
    )


@pytest.fixture(scope="module")
def metrics(root: Path) -> dict[str, Any]:
    """Of the stage, run by one process on the Megatron checkpoint."""
    return run_here(root)


def test_answers_are_what_the_model_writes(
    root: Path, asked: Asked, metrics: dict[str, Any]
) -> None:
    expected = [*asked.answers("chats"), *asked.answers("docs")]
    assert written(root) == sorted(
        (prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))
        for prompt, answer, _ in expected
    )


def test_a_share_at_the_end_holds_every_dataset_and_no_prompt_from_before(
    root: Path, asked: Asked, metrics: dict[str, Any]
) -> None:
    sources = np.load(root / "work/answers/responses_sources.npy")
    assert (np.diff(sources) != 0).sum() > 1, "dataset after dataset"
    tokens = [one.tolist() for one in open_indexed(root / "work/answers/responses")]
    prompts_of = [
        next(p for p, _, _ in asked.answers(name) if one[: len(p)] == p)
        for one, name in zip(tokens, (["chats", "docs"][i] for i in sources), strict=True)
    ]
    # Both temperatures of a prompt stand together.
    assert prompts_of[0::2] == prompts_of[1::2]


def test_only_an_answer_that_stopped_ends_with_the_stop_token(
    root: Path, asked: Asked, metrics: dict[str, Any]
) -> None:
    finishes = {tuple(prompt + answer): finish for prompt, answer, finish in asked.answers("chats")}
    assert {*finishes.values()} == {"stop", "length"}
    chats = [one for one in written(root) if tuple(one[0]) in finishes]
    for tokens, weights in chats:
        finish = finishes[tuple(tokens)]
        trained = [t for t, weight in zip(tokens, weights, strict=True) if weight]
        assert trained.count(asked.end_of_turn) == (finish == "stop")
        if finish == "stop":
            assert trained[-1] == asked.end_of_turn
        else:
            assert len(trained) == NEW_TOKENS


def test_metrics_count_what_was_asked_and_what_was_not(
    asked: Asked, metrics: dict[str, Any]
) -> None:
    for name, found in metrics.items():
        expected = asked.answers(name)
        assert found["answers"] == len(expected) == 2 * found["prompts"]
        assert found["tokens"] == sum(len(answer) for _, answer, _ in expected)
        assert found["ended_by_stop"] == sum(finish == "stop" for *_, finish in expected)
        assert found["ended_by_stop"] + found["ended_by_length"] == found["answers"]
        assert found["cut_before_no_token"] == 0
    assert metrics["chats"]["left_out"] == {
        "too_short": 0, "unanswered": 8, "too_long": 1, "repeated": 1, "no_answer": 0,
    }  # fmt: skip
    assert metrics["docs"]["left_out"] == {
        "too_short": 4, "unanswered": 0, "too_long": 0, "repeated": 0, "no_answer": 0,
    }  # fmt: skip


def test_training_reads_the_dataset_with_its_masks_and_sources(
    root: Path, sha256: str, metrics: dict[str, Any], tmp_path: Path
) -> None:
    chosen = ConversationRange("answered", root / "work/answers/responses")
    tokenizer = TokenizerFacts(VOCABULARY, END_OF_TEXT, sha256)
    settings = PackSettings(63, SEED, tokenizer, tmp_path, "as_given")
    packs = Packs(chosen, settings, source=0)
    assert sources_of(chosen) == ["chats", "docs"]
    assert packs.report.conversations == sum(one["answers"] for one in metrics.values())
    read = []
    for sample in (packs[i] for i in range(len(packs))):
        for start, end in pairwise(sample.cu_seqlens.tolist()):
            if sample.loss_weights[start:end].any():
                tokens = sample.tokens[start:end].tolist()
                read.append((tokens, sample.loss_weights[start:end].tolist()))
    assert sorted(read) == written(root)


def test_the_description_says_what_the_dataset_holds(
    root: Path, sha256: str, metrics: dict[str, Any]
) -> None:
    plan = stage_of(recipe_of(root), "answers").plan()
    found = json.loads(plan.outputs["responses.json"].read_text(encoding="utf-8"))
    lengths = [len(tokens) for tokens, _ in written(root)]
    assert found == {
        "format": "soaes-sft",
        "version": 1,
        "sources": ["chats", "docs"],
        "conversations": len(lengths),
        "tokens": sum(lengths),
        "trained_tokens": sum(one["tokens"] for one in metrics.values()),
        "longest": max(lengths),
        "tokenizer_sha256": sha256,
        "options": dict(plan.config),
    }


def test_people_can_read_the_answers(root: Path, asked: Asked, metrics: dict[str, Any]) -> None:
    lines = (root / "work/answers/responses.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [*asked.answers("chats"), *asked.answers("docs")]
    assert len(lines) == len(expected)
    prompt, answer, finish = expected[0]
    tokenizer = prompts.load_tokenizer(asked.hf_dir)
    assert {
        "dataset": "chats",
        "temperature": 0.0,
        "finish": finish,
        "prompt": tokenizer.decode(prompt),
        "answer": asked.text_of(answer[:-1] if finish == "stop" else answer),
    } in [json.loads(line) for line in lines]
    assert {json.loads(line)["dataset"] for line in lines} == {"chats", "docs"}


@pytest.mark.parametrize("dimension", ["tensor", "pipeline", "data"])
def test_two_ranks_write_the_same(
    root: Path, dimension: str, metrics: dict[str, Any], tmp_path: Path
) -> None:
    layout = f"together.layout={{{dimension}_parallel: 2}}"
    recipe = recipe_of(root, "answers.name=together", layout)
    assert stage_of(recipe, "together").plan().processes == 2
    resolved = tmp_path / "recipe.json"
    resolved.write_text(recipe.model_dump_json(), encoding="utf-8")
    folder = root / "work/together"
    shutil.rmtree(folder, ignore_errors=True)
    arguments = [str(resolved), "together"]
    code = launch("tests.stages.responding", arguments, 2, tmp_path / "logs")
    assert code == 0, (tmp_path / "logs" / "rank1.log").read_text(encoding="utf-8")
    assert written(root, "together") == written(root)
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == metrics


def test_a_stopped_run_asks_only_what_is_missing(
    root: Path, metrics: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = MegatronGenerator.generate
    calls: list[list[Prompt]] = []

    def stopped_in_the_second(
        self: Any, asked: list[Prompt], sampling: Sampling
    ) -> list[Completion]:
        calls.append(asked)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, asked, sampling)

    monkeypatch.setattr(MegatronGenerator, "generate", stopped_in_the_second)
    # Eight batches of one prompt are kept together; the stop comes at the other two of ten.
    with pytest.raises(Stopped):
        run_here(root, name="stopped")
    assert not (root / "work/stopped/responses.json").exists()
    assert run_here(root, name="stopped") == metrics
    assert [len(one) for one in calls] == [8, 2, 2, 8, 2, 2, 2]
    assert calls[2] == calls[1]
    assert written(root, "stopped") == written(root)


def test_a_lean_copy_gives_the_same_answers(root: Path, metrics: dict[str, Any]) -> None:
    assert run_here(root, "answers.backend=lean", name="lean") == metrics
    assert written(root, "lean") == written(root)
    assert (root / "work/lean/hf/config.json").is_file()


def test_in_bf16_other_answers_are_written_the_same_on_both_backends(
    root: Path, metrics: dict[str, Any]
) -> None:
    change = ("answers.dtype=bf16", "answers.sampling.temperatures=[0]")
    found = run_here(root, *change, name="half")
    assert run_here(root, *change, "answers.backend=lean", name="lean-half") == found
    assert written(root, "half") == written(root, "lean-half")
    assert not {str(one) for one in written(root, "half")} <= {str(one) for one in written(root)}


@pytest.mark.parametrize("backend", ["megatron", "lean"])
def test_the_best_checkpoint_answers_though_a_worse_one_came_later(
    root: Path, exam: Exam, asked: Asked, tmp_path: Path, backend: str
) -> None:
    shutil.copytree(root / "work", tmp_path / "work")
    checkpoints = tmp_path / "work/cpt/checkpoints"
    spoiled = iteration_directory(exam.root / "work/import-target/checkpoints", 0)
    shutil.copytree(spoiled, iteration_directory(checkpoints, 1))
    (checkpoints / TRACKER).write_text("1", encoding="utf-8")
    (checkpoints / BEST_TRACKER).write_text("0", encoding="utf-8")

    options = (
        f"workdir={tmp_path / 'work'}",
        f"answers.backend={backend}",
        "answers.prompts=[docs]",
    )
    for after, name in (("cpt@best", "best"), ("cpt", "last")):
        run_here(root, *options, f"answers.after={after}", name=name)
    expected = sorted(prompt + answer for prompt, answer, _ in asked.answers("docs"))
    assert [tokens for tokens, _ in written(tmp_path, "best")] == expected
    assert [tokens for tokens, _ in written(tmp_path, "last")] != expected


@pytest.fixture
def server(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Iterator[serving.Server]:
    monkeypatch.setattr(serving, "text_of", asked.text_of)
    with serving.running(LeanModel(asked.hf_dir)) as started:
        yield started


def served(server: serving.Server) -> list[str]:
    return [
        "answers.backend=endpoint",
        f"answers.url={server.url}",
        f"answers.served_model={serving.SERVED}",
    ]


def test_a_server_is_asked_with_tokens_and_its_text_is_tokenized(
    root: Path, asked: Asked, server: serving.Server
) -> None:
    found = run_here(root, *served(server), "answers.prompts=[chats]", name="served")
    tokenizer = prompts.load_tokenizer(asked.hf_dir)
    expected = []
    for prompt, answer, finish in asked.answers("chats"):
        end = [asked.end_of_turn] if finish == "stop" else []
        text = asked.text_of(answer[: len(answer) - len(end)])
        expected.append(prompt + tokenizer(text, add_special_tokens=False).input_ids + end)
    assert [tokens for tokens, _ in written(root, "served")] == sorted(expected)
    assert sorted(body["prompt"] for body in server.bodies) == sorted(2 * asked.chats)
    assert found["chats"]["answers"] == len(expected)


def test_an_answer_ends_before_what_stands_for_no_token(
    root: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a target's spare rows are, which its draft may lack."""
    whole = asked.answers("chats")
    known = sorted({token for _, answer, _ in whole for token in answer})[-3]
    subject_of = RespondStage._subject

    def with_fewer_tokens(stage: RespondStage) -> Subject:
        subject = subject_of(stage)
        monkeypatch.setattr(type(subject.tokenizer), "get_vocab", lambda _: {"last": known})
        return subject

    monkeypatch.setattr(RespondStage, "_subject", with_fewer_tokens)
    found = run_here(root, "answers.prompts=[chats]", name="spare")["chats"]
    kept = [
        (prompt, list(takewhile(lambda token: token <= known, answer)), answer)
        for prompt, answer, _ in whole
    ]
    assert found["cut_before_no_token"] == sum(
        bool(part) and part != all_ for _, part, all_ in kept
    )
    assert found["cut_before_no_token"] > 0
    expected = sorted(prompt + part for prompt, part, _ in kept if part)
    assert [tokens for tokens, _ in written(root, "spare")] == expected


def test_answers_without_a_token_are_left_out(
    root: Path, asked: Asked, server: serving.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = server.complete
    silent = {"text": "", "finish_reason": "length"}
    monkeypatch.setattr(
        server, "complete",
        lambda body: silent if body["prompt"] == asked.chats[1] else complete(body),
    )  # fmt: skip
    one = ["answers.prompts=[chats]", "answers.sampling.temperatures=[0]"]
    found = run_here(root, *served(server), *one, name="silent")["chats"]
    assert found["left_out"]["no_answer"] == 1
    assert found["answers"] == len(asked.chats) - 1 == len(written(root, "silent"))
    monkeypatch.setattr(server, "complete", lambda body: silent)
    with pytest.raises(UserError, match="dataset chats: found answers without a single token"):
        run_here(root, *served(server), *one, name="mute")


def test_the_same_temperature_twice_is_one_answer(root: Path, asked: Asked) -> None:
    change = "answers.sampling.temperatures=[0, 0]"
    found = run_here(root, change, "answers.prompts=[docs]", name="twice")
    assert found["docs"]["answers"] == found["docs"]["prompts"] == len(asked.prefixes)


def test_a_refused_dataset_leaves_nothing_behind(
    root: Path, asked: Asked, sha256: str, tmp_path: Path
) -> None:
    conversations = asked.conversations()
    tokens, weights = conversations[3]
    conversations[3] = (tokens[:-2], weights[:-2])
    write_chats(tmp_path / "cut", conversations, sha256)
    data = f"data.datasets.chats.indexed_conversations={tmp_path / 'cut'}"
    expected = f"conversation 3: found token 31 .*expected token {asked.end_of_turn}"
    with pytest.raises(UserError, match=expected):
        run_here(root, data, name="refused")
    assert not (root / "work/refused").exists()


def test_the_recipe_is_sound(root: Path) -> None:
    check(recipe_of(root))


@pytest.mark.parametrize(
    "change",
    [
        "answers.prompts=[docs]", "answers.prompts_per_dataset=2", "answers.document_prefix=9",
        "answers.sampling.max_new_tokens=9", "answers.sampling.temperatures=[0]",
        "answers.sampling.top_p=0.5", "answers.backend=lean", "answers.dtype=bf16",
        "answers.after=import", "seed=1", "chats.holdout=0.5",
    ],
)  # fmt: skip
def test_other_settings_are_another_stage(root: Path, change: str) -> None:
    plan = stage_of(recipe_of(root), "answers").plan()
    assert stage_of(recipe_of(root, change), "answers").plan().config != plan.config


def test_the_plan_names_what_is_read_and_written(root: Path) -> None:
    plan = stage_of(recipe_of(root), "answers").plan()
    assert plan.inputs["start"] == root / "work/cpt/checkpoints"
    assert plan.inputs["data/docs.bin"] == root / "docs.bin"
    assert plan.inputs["data/chats_weights.idx"] == root / "chats_weights.idx"
    assert {path.name for path in plan.outputs.values()} == OUTPUTS
    assert (plan.processes, plan.resumable) == (1, True)
    layout = "answers.layout={data_parallel: 2, tensor_parallel: 2, sequence_parallel: true}"
    wide = stage_of(recipe_of(root, layout, "answers.batch_size=9"), "answers").plan()
    assert wide.config == plan.config
    assert wide.processes == 4
    lean = recipe_of(root, "models.target.layout={data_parallel: 2}", "answers.backend=lean")
    assert stage_of(lean, "answers").plan().processes == 1
