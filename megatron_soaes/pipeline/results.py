"""What is known of the files that stages read and made, as a run walks over them."""

from __future__ import annotations

from pathlib import Path

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.hashing import HashCache
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.stages.base import Plan


class Results:
    """Hashes of inputs: those that a stage made are known from its manifest."""

    def __init__(self, workdir: Path) -> None:
        self.hashes = HashCache(workdir / "hashes.json")
        self._made: dict[Path, str] = {}

    def take(self, manifest: Manifest) -> None:
        """Remember what a finished stage made."""
        for output in manifest.outputs.values():
            self._made[Path(output.path)] = output.hash

    def input_hashes(self, plan: Plan) -> dict[str, str]:
        """The hash of each input. Raises UserError for one that is not there."""
        return {name: self._hash(plan.name, name, path) for name, path in plan.inputs.items()}

    def refuse_altered(self, plan: Plan) -> None:
        """Raise UserError for an input that is no longer what the stage that made it has left.

        Files are read again only where their size or time is not the one that was hashed.
        """
        for name, path in plan.inputs.items():
            if path in self._made and self.hashes.of(path) != self._made[path]:
                raise UserError(
                    f"stage {plan.name}, input {name}",
                    f"{path} altered since its stage made it (SHA-256 {self.hashes.of(path)})",
                    f"{self._made[path]}, as its manifest says",
                    "Restore it, or make it again: --force and that stage's name.",
                )  # fmt: skip

    def _hash(self, stage: str, name: str, path: Path) -> str:
        if path in self._made:
            return self._made[path]
        if not path.exists():
            raise UserError(
                f"stage {stage}, input {name}", f"nothing at {path}", "a file or folder",
                "Correct the path in the recipe.",
            )  # fmt: skip
        return self.hashes.of(path)
