"""The curriculum study without training: its recipes, its tuning, its arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.curriculum import __main__ as command
from benchmarks.curriculum import study
from benchmarks.curriculum.claims import (
    BASE,
    CHECKPOINTS,
    CLAIMS,
    CLOZE,
    CPT,
    EXAM_BLEU,
    EXAM_ROUGE,
    NO_CPT,
    PROGRESSIVE,
    REPLAY,
    SINGLE,
    Claim,
    Values,
    finding,
    read_values,
)
from benchmarks.curriculum.recipes import (
    Places,
    Recipes,
    data_recipe,
    exported,
    result_file,
    write_recipe,
)
from benchmarks.curriculum.recipes import Recipe as RecipeFile
from benchmarks.curriculum.settings import TINY, TUNING_SEED, Settings
from benchmarks.curriculum.study import REQUIRES, Rates, arm_recipe, tune, with_requirements
from benchmarks.curriculum.tables import Report, claims_table, means_table, section
from data_prep.rehearsal.initial_model import qwen2_config
from megatron_soaes.accelerator.machine import Machine
from megatron_soaes.errors import ExitCode
from megatron_soaes.evaluation.result import EvaluationResult, Measure, Model, Suite
from megatron_soaes.evaluation.statistics import Verdict
from megatron_soaes.files import write_json
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe, SFTStage, TrainingStage

ARMS = list(REQUIRES)
RATES = Rates(2e-3, {"progressive": 4e-4, "single": 8e-4, "stage2": 2e-4})
BARE = Machine("cpu", None, 0, None, 0, 2, 16 * 2**30, {"torch": "2.13.0"}, None, {})


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A study whose models exist as far as a recipe's check looks at them."""
    places = Places(tmp_path / "study")
    for model in (
        places.corpus / "base-init",
        exported(places.base),
        *(exported(places.arm(seed, arm)) for seed in (1, 2, 3) for arm in ("cpt", "replay")),
        *(exported(places.tuning("cpt", lr)) for lr in Settings().cpt_lrs),
    ):
        write_json(model / "config.json", qwen2_config(4096))
    write_recipe(places.data, data_recipe(places))
    return places


def checked(run: Path, recipe: RecipeFile) -> Recipe:
    loaded = load_recipe(write_recipe(run, recipe))
    check(loaded)
    return loaded


@pytest.mark.parametrize("settings", [Settings(), TINY], ids=["full", "tiny"])
def test_every_recipe_breaks_no_rule(places: Places, settings: Settings) -> None:
    recipes = Recipes(places, settings)
    check(load_recipe(places.data / "recipe.yaml"))
    checked(places.base, recipes.base())
    for seed in (1, 2):
        for arm in ARMS:
            run = places.arm(seed, arm)
            recipe = checked(run, arm_recipe(recipes, seed, arm, RATES))
            assert (recipe.seed, recipe.workdir) == (seed, run)


def test_all_sft_arms_take_as_many_steps_and_as_much_general_text(places: Places) -> None:
    settings = Settings()
    recipes = Recipes(places, settings)
    recipe = checked(places.arm(1, "curriculum"), arm_recipe(recipes, 1, "curriculum", RATES))
    stages = {stage.name: stage for stage in recipe.stages if isinstance(stage, TrainingStage)}
    steps = {name: graph.steps_of(recipe, stage) for name, stage in stages.items()}
    assert steps == {
        "sft1": settings.sft1_steps,
        "progressive": settings.sft2_steps,
        "single": settings.sft_steps,
        "stage2": settings.sft_steps,
    }
    shares = [
        recipe.data.blends[stage.blend].shares()
        for stage in stages.values()
        if isinstance(stage, SFTStage)
    ]
    assert [share["general"] for share in shares] == pytest.approx([settings.sft_general] * 3)
    assert [share.get("dialogue", 0) for share in shares] == pytest.approx(
        [1 - settings.sft_general, settings.sft2_dialogues, 0]
    )
    starts = {name: graph.start_of(recipe, stage) for name, stage in stages.items()}
    assert starts == {
        "sft1": graph.IMPORT,
        "progressive": "sft1",
        "single": graph.IMPORT,
        "stage2": graph.IMPORT,
    }


def test_cpt_and_its_control_differ_in_the_text_only(places: Places) -> None:
    recipes = Recipes(places, Settings())
    cpt, replay = (arm_recipe(recipes, 1, arm, RATES) for arm in ("cpt", "replay"))
    differing = {"name", "blend"}
    for one, other in zip(cpt["stages"], replay["stages"], strict=True):
        assert {k for k in one if one[k] != other[k]} <= differing | {"checkpoints", "after"}
    assert cpt["evaluation"] == replay["evaluation"]
    assert cpt["models"] == replay["models"]
    loaded = checked(places.arm(1, "cpt"), cpt)
    assert loaded.data.blends["mixed"].shares() == {"domain": 0.5, "general": 0.5}
    loaded = checked(places.arm(1, "replay"), replay)
    assert loaded.data.blends["general"].shares() == {"general": 1}


def test_arms_start_from_the_models_they_need(places: Places) -> None:
    recipes = Recipes(places, Settings())
    sources = {
        arm: arm_recipe(recipes, 3, arm, RATES)["models"]["target"]["source"] for arm in ARMS
    }
    assert sources == {
        "cpt": str(exported(places.base)),
        "replay": str(exported(places.base)),
        "curriculum": str(exported(places.arm(3, "cpt"))),
        "no-cpt": str(exported(places.base)),
        "replay-sft": str(exported(places.arm(3, "replay"))),
    }
    assert with_requirements(["curriculum", "no-cpt"]) == ["cpt", "curriculum", "no-cpt"]


def test_rates_are_chosen_by_validation_loss_and_the_exam_is_not_run(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each arm has its best rate elsewhere; the recipes are checked as they are run."""
    best = {"cpt": 1e-3, "progressive": 2e-4, "single": 8e-4, "stage2": 4e-4}

    def pretend(run: Path, recipe: RecipeFile) -> None:
        loaded = checked(run, recipe)
        assert loaded.seed == TUNING_SEED
        assert "exam" not in json.dumps(recipe)
        for stage in loaded.stages:
            if isinstance(stage, TrainingStage):
                distance = abs(math.log(stage.optimizer.lr / best.get(stage.name, 1)))
                losses = {name: {"loss": 1 + distance} for name in stage.validation.sets}
                manifest(stage.name, losses).write(run / stage.name)

    monkeypatch.setattr(study, "soaes_run", pretend)
    rates = tune(Recipes(places, Settings()))
    assert (rates.cpt, rates.sft) == (best.pop("cpt"), best)


def manifest(stage: str, validation: dict[str, dict[str, float]]) -> Manifest:
    metrics = {"validation": validation}
    return Manifest(stage, "sft", {}, {}, {}, metrics, {}, {}, "", 1, "", "")


# -- Figures ------------------------------------------------------------------------------------


def questions(scores: dict[str, float]) -> Suite:
    """Rouge-1 and BLEU-4 alike on three parts; the facts of part A right, the others wrong."""
    measures = {f"llamafactory.{name}": Measure((v, v, v), "%") for name, v in scores.items()}
    measures["facts.accuracy"] = Measure((100.0, 0.0, 0.0), "%", binary=True)
    ids, parts = ("1", "2", "3"), ("A", "B", "C")
    return Suite("questions", "exam", "0", ids, measures, {}, {}, sources=parts)


def choices(percent: int) -> Suite:
    scores = tuple(100.0 * (i < percent) for i in range(100))
    measures = {"choice.acc": Measure(scores, "%", binary=True, chances=(25.0,) * 100)}
    ids = tuple(str(i) for i in range(100))
    return Suite("choices", "cloze", "0", ids, measures, {}, {})


def texts(bits: float) -> Suite:
    measure = Measure((bits,), "bits/byte", higher_is_better=False)
    return Suite("texts", "bytes", "0", ("1",), {"text.bits_per_byte": measure}, {}, {})


def write_result(file: Path, suites: dict[str, Suite]) -> None:
    EvaluationResult(Model("m", "m", "0"), suites).write(file)


@pytest.fixture
def finished(places: Places) -> Places:
    """Three seeds of made-up results: seed s adds s points to what is asked of it."""
    language = {"cloze": choices(50), "bytes": texts(2.0)}
    continuation = questions({"rouge1": 40.0, "bleu4": 20.0})
    write_result(result_file(places.base, "pretrain"), {**language, "continuation": continuation})
    for seed in (1, 2, 3):
        for model, (arm, checkpoint) in CHECKPOINTS.items():
            file = result_file(places.arm(seed, arm), checkpoint)
            if model in (CPT, REPLAY):
                suite = questions({"rouge1": 60.0 + seed, "bleu4": 0.0})
                cloze = choices(50 + seed if model == REPLAY else 50)
                write_result(file, {**language, "cloze": cloze, "continuation": suite})
            else:
                rouge = {PROGRESSIVE: 80.0, NO_CPT: 40.0}.get(model, 79.0) + seed
                suite = questions({"rouge1": rouge, "bleu4": rouge / 2})
                write_result(file, {**language, "exam": suite})
    return places


def claim(figure: object, model: str, control: str) -> Claim:
    return next(
        c for c in CLAIMS
        if (c.figure, c.model, c.control, c.above_chance) == (figure, model, control, False)
    )  # fmt: skip


def test_values_are_read_by_model_figure_and_seed(finished: Places) -> None:
    values = read_values(finished, (1, 2, 3), ARMS)
    assert values[BASE]["cloze.choice.acc"] == [50]
    assert values[PROGRESSIVE]["exam.llamafactory.rouge1"] == [81, 82, 83]
    assert values[PROGRESSIVE]["exam[A].facts.accuracy"] == [100, 100, 100]
    assert values[PROGRESSIVE]["exam[B].facts.accuracy"] == [0, 0, 0]


def test_a_ratio_is_taken_seed_by_seed(finished: Places) -> None:
    found = finding(claim(EXAM_ROUGE, PROGRESSIVE, SINGLE), read_values(finished, (1, 2, 3), ARMS))
    assert found is not None and found.ratio is not None and found.difference is not None
    assert found.ratio.value == pytest.approx((81 / 80 + 82 / 81 + 83 / 82) / 3)
    assert found.ratio.high < 1.02
    assert found.verdict == Verdict.MISSED
    # Welch's interval of two samples of three with standard deviation 1: 1 -+ 2.776 * sqrt(2/3).
    assert found.difference.value == pytest.approx(1)
    assert found.difference.low == pytest.approx(1 - 2.776 * math.sqrt(2 / 3), abs=1e-3)


@pytest.mark.parametrize(
    ("model", "control", "verdict"),
    [
        ([82.5, 83.0, 82.8], [80.0, 80.0, 80.0], Verdict.SHOWN),
        ([82.0, 79.0, 84.0], [80.0, 80.0, 80.0], Verdict.NOT_SHOWN),
        ([79.0, 80.0, 79.5], [80.0, 80.0, 80.0], Verdict.MISSED),
        ([79.0, 80.0, 79.5], [80.0, 0.0, 80.0], Verdict.NOT_MEASURABLE),
    ],
)
def test_verdicts(model: list[float], control: list[float], verdict: Verdict) -> None:
    values = {PROGRESSIVE: {EXAM_ROUGE.path: model}, SINGLE: {EXAM_ROUGE.path: control}}
    found = finding(claim(EXAM_ROUGE, PROGRESSIVE, SINGLE), values)
    assert found is not None
    assert found.verdict == verdict


def cloze_values(base: float, cpt: Sequence[float]) -> Values:
    return {BASE: {CLOZE.path: [base]}, CPT: {CLOZE.path: list(cpt)}}


def test_what_is_kept_is_compared_with_the_one_base() -> None:
    found = finding(claim(CLOZE, CPT, BASE), cloze_values(50.0, [50.0, 49.0]))
    assert found is not None and found.ratio is not None
    assert found.ratio.value == pytest.approx(0.99)
    assert found.difference is None
    above = next(c for c in CLAIMS if c.above_chance and c.control == BASE)
    found = finding(above, cloze_values(50.0, [50.0, 49.0]))
    assert found is not None and found.ratio is not None
    assert found.ratio.value == pytest.approx((1 + 24 / 25) / 2)


def test_a_base_that_guesses_has_nothing_to_lose() -> None:
    found = finding(claim(CLOZE, CPT, BASE), cloze_values(30.0, [31.0, 31.0]))
    assert found is not None
    assert found.verdict == Verdict.NOT_MEASURABLE


def test_fewer_bits_are_better() -> None:
    bits = next(c for c in CLAIMS if c.lower_is_better and c.control == BASE)
    values = {BASE: {bits.figure.path: [2.0]}, CPT: {bits.figure.path: [1.6, 1.6]}}
    found = finding(bits, values)
    assert found is not None and found.ratio is not None
    assert found.ratio.value == pytest.approx(1.25)
    assert found.verdict == Verdict.SHOWN


def test_claims_whose_arms_were_left_out_are_not_judged(finished: Places) -> None:
    values = read_values(finished, (1, 2, 3), ["cpt", "curriculum"])
    assert finding(claim(EXAM_BLEU, PROGRESSIVE, NO_CPT), values) is None
    rows = claims_table(values)[2:]
    assert sum(row.endswith("| not run |") for row in rows) == 9
    assert len(rows) == len(CLAIMS)


def test_the_table_of_means(finished: Places) -> None:
    heading, _, *rows = means_table(read_values(finished, (1, 2, 3), ARMS))
    assert heading.count("|") == rows[0].count("|") == 11
    assert rows[0].startswith("| base | 50.0 | 2.000 | 40.0 | 20.0 | - |")
    # Student's t of 51, 52, 53: 52 -+ 4.303 / sqrt(3).
    assert rows[1].startswith("| replay only | 52.0 [49.5, 54.5] | 2.000 [2.000, 2.000] |")


def test_the_section_names_the_date_the_rates_and_what_varies(finished: Places) -> None:
    values = read_values(finished, (1, 2, 3), ARMS)
    report = Report(BARE, "python -m x", Settings(), RATES, (1, 2, 3), values)
    text = section(report, datetime(2031, 5, 6, tzinfo=UTC))
    assert text.startswith("## The curriculum in miniature, 2031-05-06\n")
    for part in ("python -m x", "single 0.0008", "Seeds 1, 2, 3.", "CPU, 2 cores", "13.5M tokens"):
        assert part in text
    assert {"shown", "missed", "not measurable"} <= {
        line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("|")
    }


# -- The command --------------------------------------------------------------------------------


def test_the_command_records_a_section_only_when_asked(
    finished: Places, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n", encoding="utf-8")
    monkeypatch.setattr(command, "RESULTS", results)
    monkeypatch.setattr(command, "run_study", lambda *_: RATES)
    options = ["--workdir", str(finished.root), "--seeds", "3"]
    assert command.main(options) == ExitCode.OK
    assert results.read_text(encoding="utf-8") == "# Results\n"
    assert command.main([*options, "--record"]) == ExitCode.OK
    assert results.read_text(encoding="utf-8").count("## The curriculum in miniature") == 1
    assert capsys.readouterr().out.count("## The curriculum in miniature") == 2


def test_a_study_runs_in_order_and_stops_where_a_run_stops(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []

    def pretend(run: Path, recipe: RecipeFile) -> None:
        runs.append(str(run.relative_to(places.root)))
        if runs[-1] == "seed-2/cpt":
            raise study.Interrupted(ExitCode.STOPPED)

    monkeypatch.setattr(study, "make", lambda *_: None)
    monkeypatch.setattr(study, "tune", lambda _: RATES)
    monkeypatch.setattr(study, "soaes_run", pretend)
    options = ["--workdir", str(places.root), "--seeds", "2", "--arms", "curriculum"]
    assert command.main(options) == ExitCode.STOPPED
    assert runs == ["data", "base", "seed-1/cpt", "seed-1/curriculum", "seed-2/cpt"]
    assert "the same command goes on" in capsys.readouterr().err


def test_minutes_of_base_become_steps() -> None:
    assert command.settings_of(command.parser().parse_args([])) == Settings()
    one = command.settings_of(command.parser().parse_args(["--minutes-of-base", "90"]))
    assert one.base_tokens == pytest.approx(27_000_000, rel=1e-3)


@pytest.mark.parametrize("options", [["--seeds", "1"], ["--tiny", "--record"], ["--arms", "x"]])
def test_options_that_make_no_sense_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(options)
