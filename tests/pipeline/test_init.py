"""A team's own project: what is written, that it runs, and what is refused."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from megatron_soaes.cli import app
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.pipeline.init.amounts import amounts_for
from megatron_soaes.pipeline.init.corpus import Corpus, look_into
from megatron_soaes.pipeline.init.placement import ROOM, place, state_gib
from megatron_soaes.pipeline.init.project import init_project, recipe_name
from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.run import run
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import CPTStage, SFTStage
from megatron_soaes.recipe.shapes import ModelShape, read_shape
from megatron_soaes.recipe.training_settings import Layout
from tests.checkpoint.tiny import Case, make_model
from tests.data_prep.conftest import save_tokenizer, train_tokenizer
from tests.data_prep.sft_material import CHATML

SHAPES = Path(__file__).parents[2] / "examples/shapes"
SEVEN_B = read_shape(SHAPES / "qwen2.5-7b-instruct.json")
SEVENTY_TWO_B = read_shape(SHAPES / "qwen2.5-72b-instruct.json")
DOCUMENTS = [{"text": f"the quick brown fox {i} jumps over the lazy dog"} for i in range(200)]
CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": f"what jumps over dog {i}?"},
            {"role": "assistant", "content": "the quick brown fox"},
        ]
    }
    for i in range(60)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny HF model whose tokenizer has a chat template; tests leave it as it is."""
    model = make_model(tmp_path_factory.mktemp("base") / "model", Case(vocab_size=400, layers=2))
    return save_tokenizer(model, train_tokenizer(), chat_template=CHATML)


def write_records(path: Path, records: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def rehearsal_of(readme: Path) -> list[str]:
    """The overrides of the command that the README gives."""
    (command,) = re.findall(r"soaes run recipe\.yaml \\\n(.*?)\n\n", readme.read_text(), re.DOTALL)
    return shlex.split(command.replace("\\\n", " "))


@pytest.mark.parametrize(("kind", "records"), [("cpt", DOCUMENTS), ("sft", CONVERSATIONS)])
def test_a_project_passes_its_check_and_its_rehearsal(
    tmp_path: Path, base: Path, kind: str, records: list[object]
) -> None:
    write_records(tmp_path / "corpus/a.jsonl", records)
    project = tmp_path / "team's project"
    recipe, environment, readme = init_project(project, base, str(tmp_path / "corpus/*.jsonl"))

    assert {recipe, environment, readme} == set(project.iterdir())
    assert "SBATCH_PARTITION" in environment.read_text(encoding="utf-8")
    check(load_recipe(recipe))
    assert run(load_recipe(recipe, rehearsal_of(readme))) == ExitCode.OK
    done = project / "rehearsal"
    trained, evaluated = read_manifest(done / kind), read_manifest(done / "evaluation")
    assert trained is not None and evaluated is not None
    assert trained.metrics["iteration"] == 2
    assert evaluated.metrics.keys() == {"import", f"{kind}@best"}
    assert (done / "hf/hf/config.json").is_file()


def test_the_commands_write_a_project_and_report_on_it(tmp_path: Path, base: Path) -> None:
    write_records(tmp_path / "a.jsonl", DOCUMENTS)
    project = tmp_path / "new"
    corpus = f"{tmp_path}/*.jsonl"
    said = CliRunner().invoke(app, ["init", str(project), f"--base={base}", f"--corpus={corpus}"])
    assert said.exit_code == ExitCode.OK
    assert said.output.endswith(f"Next: soaes recipe check {project / 'recipe.yaml'}\n")
    said = CliRunner().invoke(app, ["report", str(project / "recipe.yaml")])
    assert said.exit_code == ExitCode.OK
    assert "preprocess-domain" in (project / "run/report.html").read_text(encoding="utf-8")


def test_gpus_become_a_cluster_and_a_layout_that_the_comments_explain(
    tmp_path: Path, base: Path
) -> None:
    write_records(tmp_path / "a.jsonl", DOCUMENTS)
    files = init_project(tmp_path / "new", base, str(tmp_path / "a.jsonl"), 16, "h100-80g")
    recipe = load_recipe(files[0])

    check(recipe)
    assert recipe.cluster is not None
    assert (recipe.cluster.nodes, recipe.cluster.gpus_per_node) == (2, 8)
    assert recipe.models.target.layout == Layout(data_parallel=16)
    assert "of 79 GiB" in files[0].read_text(encoding="utf-8")
    # The rehearsal runs without the cluster.
    alone = load_recipe(files[0], rehearsal_of(files[2]))
    check(alone)
    assert alone.cluster is None and alone.models.target.layout == Layout()


@pytest.mark.parametrize("records", [DOCUMENTS, CONVERSATIONS])
def test_a_large_model_gets_a_recipe_that_keeps_every_rule(
    tmp_path: Path, base: Path, records: list[object]
) -> None:
    large = shutil.copytree(base, tmp_path / "72b")
    shutil.copy(SHAPES / "qwen2.5-72b-instruct.json", large / "config.json")
    corpus = str(write_records(tmp_path / "a.jsonl", records))
    recipe = load_recipe(init_project(tmp_path / "new", large, corpus, 64, "h100-80g")[0])

    check(recipe)
    layout = recipe.models.target.layout
    assert (layout.tensor_parallel, layout.pipeline_parallel) == (8, 2)


def test_paths_are_absolute_and_odd_names_are_no_trouble(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / 'corpus "#1": [of] 2/a.jsonl', DOCUMENTS)
    monkeypatch.chdir(tmp_path)
    files = init_project(Path("国企-2024"), base, ['corpus "#1": [of] 2/a.jsonl'])
    recipe = load_recipe(files[0])

    assert recipe.name == "run-2024"
    assert recipe.workdir == tmp_path / "国企-2024/run"
    (pattern,) = recipe.data.datasets["domain"].text
    assert pattern.startswith(str(tmp_path))
    assert look_into([pattern]).files == 1


def test_an_empty_folder_is_used_and_another_is_refused(tmp_path: Path, base: Path) -> None:
    corpus = str(write_records(tmp_path / "a.jsonl", DOCUMENTS))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert init_project(empty, base, corpus)[0] == empty / "recipe.yaml"
    before = sorted(empty.iterdir())

    with pytest.raises(UserError, match=r"empty: found files in it"):
        init_project(empty, base, corpus)
    with pytest.raises(UserError, match=r"a\.jsonl: found a file; expected a new or an empty"):
        init_project(tmp_path / "a.jsonl", base, corpus)
    assert sorted(empty.iterdir()) == before


def test_nothing_is_left_of_a_project_whose_recipe_breaks_a_rule(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(recipe: object) -> None:
        raise UserError("recipe", "a broken rule", "none", "Mend it.")

    corpus = write_records(tmp_path / "a.jsonl", DOCUMENTS)
    monkeypatch.setattr("megatron_soaes.pipeline.init.project.check", refuse)
    with pytest.raises(UserError, match="a broken rule"):
        init_project(tmp_path / "new", base, str(corpus))
    assert list(tmp_path.iterdir()) == [corpus]


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        ("config.json", r"config\.json: found no such file"),
        ("tokenizer.json", r"found no tokenizer\.json; expected an HF directory with a tokenizer"),
        ("model.safetensors", r"found no \*\.safetensors"),
    ],
)
def test_an_incomplete_base_is_refused(tmp_path: Path, missing: str, match: str) -> None:
    base = make_model(tmp_path / "model", Case(vocab_size=400, layers=1))
    save_tokenizer(base, train_tokenizer())
    corpus = str(write_records(tmp_path / "a.jsonl", DOCUMENTS))
    (base / missing).unlink()

    with pytest.raises(UserError, match=match):
        init_project(tmp_path / "new", base, corpus)
    assert not (tmp_path / "new").exists()


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    base = make_model(tmp_path / "model", Case(vocab_size=400, layers=1))
    save_tokenizer(base, train_tokenizer())
    corpus = str(write_records(tmp_path / "a.jsonl", CONVERSATIONS))

    with pytest.raises(UserError, match="no chat_template"):
        init_project(tmp_path / "new", base, corpus)


@pytest.mark.parametrize(
    ("gpus", "gpu", "match"),
    [
        (8, None, "--gpu: found nothing beside --gpus"),
        (None, "h100-80g", "--gpus: found nothing beside --gpu"),
        (8, "h100-80gb", "Did you mean 'h100-80g'"),
        (12, "h100-80g", "--gpus: found 12; expected 1 to 8, or a multiple of 8"),
        (0, "h100-80g", "--gpus: found 0"),
    ],
)
def test_gpus_that_say_too_little_are_refused(
    tmp_path: Path, base: Path, gpus: int | None, gpu: str | None, match: str
) -> None:
    corpus = str(write_records(tmp_path / "a.jsonl", DOCUMENTS))

    with pytest.raises(UserError, match=match):
        init_project(tmp_path / "new", base, corpus, gpus, gpu)
    assert not (tmp_path / "new").exists()


def test_the_corpus_is_known_by_its_records(tmp_path: Path) -> None:
    content = [{"content": one["text"]} for one in DOCUMENTS]
    compressed = tmp_path / "b.jsonl.gz"
    compressed.write_bytes(gzip.compress(b"\n" + json.dumps(content[0]).encode() + b"\n"))
    parquet = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(DOCUMENTS), parquet)
    alpaca = write_records(tmp_path / "d.jsonl", [{"instruction": "say fox", "output": "fox"}])

    documents = look_into([str(write_records(tmp_path / "a.jsonl", DOCUMENTS))])
    assert (documents.key, documents.files, documents.is_chat) == ("text", 1, False)
    assert documents.tokens == (tmp_path / "a.jsonl").stat().st_size // 4
    assert look_into([str(compressed)]).key == "content"
    assert look_into([str(parquet)]).key == "text"
    assert look_into([str(alpaca)]).is_chat


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("plain text\n", r"a\.txt:1: found invalid JSON .*Write each text as a line of its own"),
        ('{"title": "x"}\n', "a record with the keys title; expected a text at 'text'"),
        ("\n", r"a\.txt: found no record"),
        ('{"messages": []}\n', r"a\.txt: found conversations; expected documents at 'text', as in"),
    ],
)
def test_what_is_no_corpus_is_named(tmp_path: Path, content: str, match: str) -> None:
    write_records(tmp_path / "a.jsonl", DOCUMENTS)
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")

    with pytest.raises(UserError, match=match):
        look_into([str(tmp_path / "a.*")])
    with pytest.raises(UserError, match=r"--corpus /.*/nowhere/\*: found no such file"):
        look_into(["nowhere/*"])


@pytest.mark.parametrize(
    ("shape", "gpus", "gpu", "layout"),
    [
        (SEVEN_B, 8, "h100-80g", (2, 1, 4)),
        (SEVEN_B, 8, "l40s-48g", (4, 1, 2)),
        (SEVENTY_TWO_B, 64, "h100-80g", (8, 2, 4)),
        (SEVENTY_TWO_B, 64, "b200-180g", (8, 1, 8)),
    ],
)
def test_a_replica_is_as_small_as_memory_allows(
    shape: ModelShape, gpus: int, gpu: str, layout: tuple[int, int, int]
) -> None:
    found = place(shape, gpus, gpu).layout

    assert (found.tensor_parallel, found.pipeline_parallel, found.data_parallel) == layout
    assert found.sequence_parallel


def test_a_model_that_has_no_room_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"72\.7B parameters, and no layout needs less than 152"):
        place(SEVENTY_TWO_B, 8, "h100-80g")


@given(
    st.sampled_from([SEVEN_B, SEVENTY_TWO_B]),
    st.sampled_from([1, 2, 4, 6, 8, 16, 24, 64, 256]),
    st.sampled_from(sorted(GPUS)),
)
def test_every_placement_fills_the_gpus_and_leaves_room(
    shape: ModelShape, gpus: int, gpu: str
) -> None:
    try:
        found = place(shape, gpus, gpu)
    except UserError:
        return
    assert found.layout.processes == gpus == found.nodes * found.gpus_per_node
    assert found.gpus_per_node % found.layout.tensor_parallel == 0
    assert shape.layers % found.layout.pipeline_parallel == 0
    assert state_gib(shape, found.layout) == found.state_gib <= ROOM * GPUS[gpu].memory_gib


@given(
    st.integers(1, 10**13),
    st.booleans(),
    st.sampled_from([Layout(), Layout(tensor_parallel=8, data_parallel=24)]),
    st.booleans(),
)
def test_amounts_keep_the_rules_of_a_recipe(
    tokens: int, chat: bool, layout: Layout, on_gpus: bool
) -> None:
    corpus = Corpus(("a",), 1, None if chat else "text", tokens)
    found = amounts_for(corpus, SEVEN_B, layout, on_gpus=on_gpus)

    assert found.sequence_length % layout.tensor_parallel == 0
    assert 0 < found.sequence_length <= SEVEN_B.max_position
    assert found.global_batch_size % layout.data_parallel == 0
    assert 0 < found.warmup_steps <= found.steps
    assert 0 < found.holdout <= 0.2


@given(st.text())
def test_any_folder_gives_a_name_that_recipes_accept(folder: str) -> None:
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", recipe_name(Path("/projects") / folder))


def test_kinds_of_stages(tmp_path: Path, base: Path) -> None:
    documents = str(write_records(tmp_path / "a.jsonl", DOCUMENTS))
    dialogue = str(write_records(tmp_path / "b.jsonl", CONVERSATIONS))
    cpt, sft = (
        load_recipe(init_project(tmp_path / name, base, corpus)[0])
        for name, corpus in (("one", documents), ("two", dialogue))
    )

    assert [stage.kind for stage in cpt.stages] == ["cpt", "evaluate", "export"]
    assert isinstance(cpt.stages[0], CPTStage) and cpt.stages[0].steps >= 10
    assert [stage.kind for stage in sft.stages] == ["sft", "evaluate", "export"]
    assert isinstance(sft.stages[0], SFTStage) and sft.stages[0].epochs == 2
