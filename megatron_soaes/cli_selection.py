"""`soaes prep relevance train`, `soaes prep relevance eval`, `soaes prep thresholds`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train_relevance(
    labels: Annotated[
        Path, typer.Argument(help="JSON lines of text and label (relevant or irrelevant).")
    ],
    out: Annotated[Path, typer.Argument(help="The model, a JSON file.")],
    *,
    l2: Annotated[float, typer.Option(help="Penalty on weights; more is more cautious.")] = 0.1,
    min_documents: Annotated[
        int, typer.Option(help="N-grams of fewer labelled texts are not learnt from.")
    ] = 2,
    max_ngrams: Annotated[int, typer.Option(help="Those in most texts are learnt.")] = 50_000,
    folds: Annotated[int, typer.Option(help="Of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the folds and the intervals.")] = 1,
) -> None:
    """Learn from labelled texts what belongs to the domain, and say how well it was learnt."""
    from data_prep.curation.selection.quality import describe
    from data_prep.curation.selection.relevance import save_model
    from data_prep.curation.selection.training import TrainingSettings, train

    settings = TrainingSettings(l2, min_documents, max_ngrams, folds, seed)
    model, quality = train(labels, settings)
    save_model(model, out)
    typer.echo(f"On held-out texts of {folds}-fold cross-validation:")
    for line in describe(quality):
        typer.echo(line)
    typer.echo(f"{len(model.ngrams):,} n-grams -> {out}")
    typer.echo(f"Test it on other labels: soaes prep relevance eval {out} LABELS")


def eval_relevance(
    model: Annotated[Path, typer.Argument(help="A model of soaes prep relevance train.")],
    labels: Annotated[Path, typer.Argument(help="JSON lines that it was not trained on.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the intervals.")] = 1,
) -> None:
    """Say how well a model tells labelled texts apart."""
    from data_prep.curation.selection.labels import read_labels
    from data_prep.curation.selection.quality import assess, describe
    from data_prep.curation.selection.relevance import load_model
    from megatron_soaes.files import write_json

    judge = load_model(model)
    labelled = read_labels(labels, at_least=1)
    quality = assess(labelled.relevant, judge.scores(labelled.texts), seed)
    for line in describe(quality):
        typer.echo(line)
    if labelled.sha256 == judge.file.training.get("sha256"):
        typer.echo("These are the labels it was trained on: the figures flatter it.")
    if out:
        write_json(out, {"labels": labelled.sha256, "quality": quality.to_json()})
        typer.echo(f"Figures -> {out}")


def thresholds(
    documents: Annotated[
        list[str], typer.Argument(help="Scored documents: files or globs of JSON lines, Parquet.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of thresholds.json and thresholds.md.")],
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A combination, such as 'credibility>=0.5 and relevance>=0.6'."),
    ] = None,
) -> None:
    """Say what cut-offs on the scores would keep and lose; nothing is dropped."""
    from data_prep.curation.selection.scored import read_documents
    from data_prep.curation.selection.scores import Selection
    from data_prep.curation.selection.threshold_page import markdown
    from data_prep.curation.selection.thresholds import grid_and, threshold_report
    from megatron_soaes.files import write_json, write_text

    combinations = [Selection.parse(text) for text in keep or []]
    report = threshold_report(read_documents(documents), grid_and(combinations))
    write_json(out / "thresholds.json", report.to_json())
    write_text(out / "thresholds.md", markdown(report))
    amount = report.all
    typer.echo(f"{amount.documents:,} documents, {amount.characters:,} characters read.")
    for effect in report.effects[len(report.effects) - len(combinations) :]:
        typer.echo(
            f"{effect.selection}: keeps {effect.kept.documents:,} documents, "
            f"{effect.share:.1%} of the characters"
        )
    typer.echo(f"What each cut-off keeps and loses: {out / 'thresholds.md'}")
