"""One rank of one stage: `python -m megatron_soaes.stages.worker RECIPE_JSON STAGE`.

Started by `soaes run`, by torchrun or by srun; the exit code is one of `errors.ExitCode`.
"""

from __future__ import annotations

import faulthandler
import sys
import traceback
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.accelerator.launch import end_at_once_on_stop_signals
from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.errors import ExitCode, NonFiniteError, UserError
from megatron_soaes.recipe.check_node import check_node
from megatron_soaes.recipe.problems import RecipeErrors
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Stage, Stopped
from megatron_soaes.stages.preprocess import PreprocessStage
from megatron_soaes.stages.registry import stages_of

RESULT_FILE = "result.json"


def main(arguments: list[str]) -> int:
    """Run one rank; rank 0 leaves its metrics in `RESULT_FILE` of the stage's folder."""
    recipe_file, name = arguments
    end_at_once_on_stop_signals()
    quiet_libraries()
    # A stack of every thread in the log when the launcher aborts a rank that hangs.
    faulthandler.enable()
    try:
        recipe = Recipe.model_validate_json(Path(recipe_file).read_text(encoding="utf-8"))
        stage = stages_of(recipe)[name]
        if isinstance(stage, PreprocessStage):
            files.write_json(stage.directory / RESULT_FILE, stage.run())
        else:
            _run_in_group(stage)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.NON_FINITE
    except Stopped:
        return ExitCode.STOPPED
    except Exception:
        traceback.print_exc()
        return ExitCode.FAILURE
    return ExitCode.OK


def _run_in_group(stage: Stage) -> None:
    from megatron_soaes.accelerator.groups import process_group, rendezvous_from_environment
    from megatron_soaes.accelerator.machine import read_machine

    problems = check_node(stage.recipe, read_machine())
    if problems:
        raise RecipeErrors(f"recipe '{stage.recipe.name}' on this node", problems)
    rendezvous = rendezvous_from_environment()
    with process_group(rendezvous):
        metrics = stage.run()
        if rendezvous.rank == 0:
            files.write_json(stage.directory / RESULT_FILE, metrics)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
