"""Capture stages: what a recipe asks for is stored, told beforehand and refused to others."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.tokenizer import load_tokenizer
from megatron_soaes import files
from megatron_soaes.accelerator.groups import Rendezvous, process_group
from megatron_soaes.data.teacher_store import Origin, TeacherStore
from megatron_soaes.errors import UserError
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import CaptureStage as CaptureSettings
from megatron_soaes.recipe.schema import DistillStage, Recipe
from megatron_soaes.stages.base import Stopped
from megatron_soaes.stages.capture import CaptureStage, captured_origins
from megatron_soaes.stages.datasets import held_out_sets, reading_for
from megatron_soaes.stages.mixtures import training_mixture
from megatron_soaes.stages.train import TrainStage
from megatron_soaes.training.stopping import StopSignal
from tests.data.material import random_conversations, write_conversations
from tests.stages.exam import VOCABULARY, Exam

LENGTH, K = 32, 5
BYTES_PER_TOKEN = K * 6 + 4
RECIPE = """
version: 1
name: capture
workdir: work
models: {target: {source: good}, draft: {source: draft}}
data:
  datasets:
    seen: {indexed: seen}
    chats: {indexed_conversations: chats, holdout: 0.4}
    held: {indexed: held}
  blends: {mix: {weights: {seen: 1, chats: 3}}}
stages:
  - {name: cpt, kind: cpt, blend: mix, steps: 1, sequence_length: 32, global_batch_size: 1}
  - name: captured
    kind: capture
    blend: mix
    samples: 10
    sequence_length: 32
    micro_batch_size: 2
    precision: {dtype: fp32}
    validation: [chats, held]
    validation_samples: 3
    store: {entries: 5, samples_per_shard: 4}
  - name: distil
    kind: distill
    captured: captured
    epochs: 2
    sequence_length: 32
    global_batch_size: 2
    precision: {dtype: fp32}
    validation: {sets: [chats, held]}
"""


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """A group of one; a stage's signal handlers end with it."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.getsignal(number) for number in numbers}
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)):
        yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def root(exam: Exam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its model and its data; the stages write below `work`."""
    folder = tmp_path_factory.mktemp("capture") / "run"
    for name in ("work/import-target", "work/cpt", "good"):
        shutil.copytree(exam.root / name, folder / name)
    shutil.copytree(exam.good, folder / "draft")
    shutil.copytree(folder / "work/import-target", folder / "work/import-draft")
    for file in (*exam.root.glob("held.*"), *exam.root.glob("seen.*")):
        shutil.copy(file, folder)
    conversations = random_conversations(3, 60, LENGTH, VOCABULARY)
    topics = ["law" if i % 2 else "finance" for i in range(60)]
    tokenizer = load_tokenizer(exam.good, add_special_tokens=False)[0].sha256
    write_conversations(folder / "chats", conversations, topics)
    description = folder / "chats.json"
    text = description.read_text(encoding="utf-8").replace("0" * 64, tokenizer)
    description.write_text(text, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def recipe_of(root: Path, *overrides: str) -> Recipe:
    return load_recipe(root / "recipe.yaml", overrides)


def stage_of(recipe: Recipe) -> CaptureStage:
    (settings,) = (one for one in recipe.stages if isinstance(one, CaptureSettings))
    return CaptureStage(recipe, settings)


@pytest.fixture(scope="module")
def metrics(root: Path) -> dict[str, Any]:
    """Of the stage, which is captured now."""
    return stage_of(recipe_of(root)).run()


@pytest.fixture
def captured(root: Path, metrics: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of everything, to be tampered with."""
    return shutil.copytree(root, tmp_path / "run")


def origins_of(root: Path, *overrides: str) -> dict[str | None, Origin]:
    recipe = recipe_of(root, *overrides)
    settings = stage_of(recipe).settings
    shape = shapes_of(recipe)[0][settings.model]
    source = graph.model_of(recipe, settings)
    reading = reading_for(recipe, source, shape, settings.sequence_length)
    mixture, _ = training_mixture(reading, settings)
    sets = held_out_sets(reading, settings.validation, "refuse")
    return captured_origins(reading, settings, mixture, sets)


def contents(root: Path) -> dict[Path, bytes]:
    folder = root / "work/captured"
    return {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_metrics_say_how_much_is_stored_and_whether_k_is_enough(
    root: Path, metrics: dict[str, Any]
) -> None:
    assert metrics["samples"] == 10
    assert metrics["positions"] == 10 * LENGTH
    assert metrics["bytes"] == 10 * LENGTH * BYTES_PER_TOKEN
    store = root / "work/captured/store"
    assert sum(file.stat().st_size for file in store.glob("*.bin")) == metrics["bytes"]
    assert 0 < metrics["residual_mass"] < 1
    assert metrics["packing"]["chats"]["packs"] > 0
    # Of 24 held-out conversations, those of each source once more.
    assert metrics["validation"] == {
        name: {"samples": count}
        for name, count in {"chats": 3, "chats/finance": 3, "chats/law": 3, "held": 2}.items()
    }


def test_whoever_knows_the_origin_reads_the_stores(root: Path, metrics: dict[str, Any]) -> None:
    origins = origins_of(root)
    assert set(origins) == {None, "chats", "chats/finance", "chats/law", "held"}
    for name, origin in origins.items():
        folder = root / "work/captured" / (f"validation/{name}" if name else "store")
        store = TeacherStore(folder, origin)
        store.verify()
        expected = metrics["validation"][name]["samples"] if name else 10
        assert len(store) == expected
        assert store[0].ids.shape == (LENGTH, K)
        assert int(store[0].ids.max()) < VOCABULARY


def test_the_size_is_told_before_the_model_is_loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_model(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr("megatron_soaes.training.engine.load_model", no_model)
    with pytest.raises(MemoryError):
        stage_of(recipe_of(root)).run()
    said = capsys.readouterr().out
    assert "store: 10 samples of 32 tokens, 34 bytes a token: 0.01 MB" in said
    assert "validation/held: 2 samples of 32 tokens" in said


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("captured.after=import", "origin.teacher"),
        ("captured.precision.dtype=bf16", "origin.teacher"),
        ("captured.store.temperature=2.0", "origin.temperature"),
        ("captured.samples=9", "origin.data"),
        ("captured.store.kind=sampled", "layout.kind"),
        ("seed=1", "origin.data"),
    ],
)
def test_an_unfinished_stage_goes_on_with_nothing_else(
    captured: Path, change: str, field: str
) -> None:
    with pytest.raises(UserError, match=field):
        stage_of(recipe_of(captured, change)).run()


def test_another_tokenizer_is_refused(captured: Path) -> None:
    file = captured / "good/tokenizer.json"
    before = files.sha256_file(file)
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    chats = captured / "chats.json"
    text = chats.read_text(encoding="utf-8").replace(before, files.sha256_file(file))
    chats.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"origin\.tokenizer_sha256"):
        stage_of(recipe_of(captured)).run()
    with pytest.raises(UserError, match=r"origin\.tokenizer_sha256"):
        TeacherStore(captured / "work/captured/store", origins_of(captured)[None])


def test_a_store_that_was_cut_short_is_refused_and_then_mended(
    captured: Path, metrics: dict[str, Any]
) -> None:
    whole = contents(captured)
    shard = captured / "work/captured/validation/chats/law/shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="100 bytes"):
        TeacherStore(shard.parent, origins_of(captured)["chats/law"])
    assert stage_of(recipe_of(captured)).run() == metrics
    assert contents(captured) == whole


def test_a_stop_ends_the_stage_and_the_next_run_goes_on(
    captured: Path, metrics: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(captured)
    for name in ("shard-00001.json", "manifest.json"):
        (captured / "work/captured/store" / name).unlink()
    shutil.rmtree(captured / "work/captured/validation")
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "__init__", lambda self: setattr(self, "received", True))
        with pytest.raises(Stopped):
            stage_of(recipe_of(captured)).run()
    assert len(contents(captured)) < len(whole)
    assert stage_of(recipe_of(captured)).run() == metrics
    assert contents(captured) == whole


def test_sampled_answers_have_no_residual_mass(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "run", ignore=shutil.ignore_patterns("captured"))
    changes = ("captured.store.kind=sampled", "captured.validation=[]")
    found = stage_of(recipe_of(tmp_path / "run", *changes)).run()
    assert "residual_mass" not in found
    origin = origins_of(tmp_path / "run", *changes)[None]
    assert TeacherStore(tmp_path / "run/work/captured/store", origin).layout.kind == "sampled"


def test_more_entries_than_the_tokenizer_has_ids_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"store\.entries: found 301"):
        stage_of(recipe_of(root, "captured.store.entries=301", "captured.validation=[]")).run()


def test_the_plan_depends_on_what_is_asked_and_not_on_how_it_is_spread(root: Path) -> None:
    plan = stage_of(recipe_of(root)).plan()
    assert plan.resumable
    assert plan.inputs["start"] == root / "work/cpt/checkpoints"
    assert {f"data/{name}.bin" for name in ("seen", "chats", "held")} <= plan.inputs.keys()
    assert plan.outputs == {
        "store": root / "work/captured/store",
        "validation/chats": root / "work/captured/validation/chats",
        "validation/held": root / "work/captured/validation/held",
    }
    spread = "captured.layout={tensor_parallel: 2, data_parallel: 2}"
    same = stage_of(recipe_of(root, spread, "captured.micro_batch_size=1")).plan()
    assert same.config == plan.config
    assert same.processes == 4
    for change in ("captured.samples=9", "captured.store.entries=6", "seed=1"):
        assert stage_of(recipe_of(root, change)).plan().config != plan.config


def distil(root: Path, *overrides: str) -> dict[str, Any]:
    """The distillation on what was captured; its metrics."""
    recipe = recipe_of(root, *overrides)
    (settings,) = (one for one in recipe.stages if isinstance(one, DistillStage))
    return TrainStage(recipe, settings).run()


def test_a_distillation_reads_the_stores(captured: Path) -> None:
    found = distil(captured)
    # Two passes over 10 samples, 2 a step.
    assert found["iteration"] == 10
    assert sum(found["consumed_samples"].values()) == 20
    before, after = found["acceptance"]["before"], found["acceptance"]["after"]
    assert {"chats", "chats/law", "chats/finance", "held"} == before.keys() == after.keys()
    for figures in (*before.values(), *after.values()):
        assert 0 < figures["alpha"] <= 1
        assert len(figures["tokens_per_pass"]) == len(figures["ideal_speedup"]) == 7


def test_a_store_of_other_samples_is_refused(captured: Path) -> None:
    with pytest.raises(UserError, match=r"origin\.data"):
        distil(captured, "seed=99")


def test_another_tokenizer_is_refused_at_its_first_difference(captured: Path) -> None:
    file = captured / "draft" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    *_, first, second = vocabulary
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"vocabulary, .*Use a draft that was trained"):
        distil(captured)
