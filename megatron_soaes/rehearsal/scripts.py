"""The jobs of the recipe as it is, written down and read, but not submitted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.pipeline.slurm.submission import chain_of_rest
from megatron_soaes.preflight.findings import Finding, look
from megatron_soaes.preflight.scripts import check_scripts
from megatron_soaes.recipe.schema import Recipe

SCRIPT = "submit.sh"


@dataclass(frozen=True)
class Scripts:
    """The rendered commands and what bash and, where it is here, shellcheck and sbatch say."""

    file: Path
    finding: Finding


def render_scripts(
    recipe: Recipe, small: Recipe, folder: Path, environment: Path | None
) -> Scripts | None:
    """Write what `soaes slurm submit` would run, and check it; None without a cluster.

    The text of `small` stands in for corpora that are not here: no job depends on what they hold.
    Raises UserError for a recipe whose jobs do not fill their nodes, and without an environment
    file.
    """
    if recipe.cluster is None:
        return None
    with_text = recipe.model_copy(update={"data": small.data})
    chain = chain_of_rest(with_text, (), environment)
    file = folder / SCRIPT
    files.write_text(file, chain.dry_run())
    return Scripts(file, look("jobs", check_scripts(chain)))
