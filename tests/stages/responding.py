"""What respond stages are asked in tests, and a program that runs them.

`python -m tests.stages.responding RECIPE_JSON STAGE` is one rank of a stage.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.accelerator.groups import process_group, rendezvous_from_environment
from megatron_soaes.decoding import prompts
from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.lean import LeanGenerator, LeanModel
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.recipe.schema import RespondStage as RespondSettings
from megatron_soaes.stages.respond import RespondStage
from tests.data.material import Conversation, write_conversations
from tests.stages.exam import VOCABULARY

END_OF_TEXT = 0
NEW_TOKENS, PREFIX = 12, 8
SEED, TOP_P = 77, 0.9
TEMPERATURES = (0.0, 0.8)


def words(generator: random.Random, count: int) -> list[int]:
    """Tokens that are bytes or pieces of text."""
    return [generator.randrange(4, VOCABULARY) for _ in range(count)]


class Asked:
    """Prompts that the datasets give, the token that ends a turn, and the reference's answers."""

    def __init__(self, hf_dir: Path) -> None:
        generator = random.Random(11)
        tokenizer = prompts.load_tokenizer(hf_dir)
        self.hf_dir = hf_dir
        self.text_of = prompts.text_of(tokenizer)
        self.lean = LeanGenerator(LeanModel(hf_dir), self.text_of)
        self.chats: list[list[int]] = [words(generator, 3 + 2 * i) for i in range(10)]
        self.documents = [[*words(generator, length), END_OF_TEXT] for length in range(4, 16)]
        written = self.lean.generate(self.chats, Sampling(NEW_TOKENS))
        # The model ends its first answer here, and by far not all others.
        self.end_of_turn = written[0].tokens[4]

    @property
    def prefixes(self) -> list[list[int]]:
        """Of the documents of the training part that are long enough."""
        half = self.documents[: len(self.documents) // 2]
        return [one[:PREFIX] for one in half if len(one) > PREFIX]

    def conversations(self) -> list[Conversation]:
        """The training part (20): the prompts, the first one twice, and those of no use."""
        found = [self.conversation(prompt) for prompt in [*self.chats, self.chats[0]]]
        found.append(([9] * 250 + [self.end_of_turn], [0.0] * 250 + [1.0]))
        found += [([5, 6, 7], [0.0, 0.0, 0.0]), ([5, self.end_of_turn], [1.0, 1.0])]
        found += [([5, 6, 7], [0.0, 0.0, 0.0])] * (20 - len(found))
        return [*found, *[self.conversation([8, 8, 8])] * 5]

    def conversation(self, prompt: Sequence[int]) -> Conversation:
        """The prompt, of which a part is trained as an earlier answer, and the last answer."""
        answer = [30, 31, self.end_of_turn]
        weights = [0.0, 0.5, *[0.0] * (len(prompt) - 2), *[2.0] * 3]
        return [*prompt, *answer, 40], [*weights, 0.0]

    def answers(self, dataset: str) -> list[tuple[list[int], list[int], str]]:
        """Prompt, answer with the token that ended it, and why it ended, at all temperatures."""
        asked = self.chats if dataset == "chats" else self.prefixes
        stop = self.end_of_turn if dataset == "chats" else END_OF_TEXT
        found: list[tuple[list[int], list[int], str]] = []
        for temperature in TEMPERATURES:
            sampling = Sampling(NEW_TOKENS, temperature, TOP_P, SEED, (stop,))
            for prompt, one in zip(asked, self.lean.generate(asked, sampling), strict=True):
                ended = [stop] if one.finish == "stop" else []
                found.append((prompt, [*one.tokens, *ended], one.finish))
        return found


def write_chats(prefix: Path, conversations: Sequence[Conversation], sha256: str) -> Path:
    """Write an SFT dataset of the tokenizer with this hash; returns the prefix."""
    write_conversations(prefix, conversations)
    description = prefix.with_name(prefix.name + ".json")
    text = description.read_text(encoding="utf-8").replace("0" * 64, sha256)
    description.write_text(text, encoding="utf-8")
    return prefix


def stage_of(recipe: Recipe, name: str) -> RespondStage:
    (settings,) = (one for one in recipe.stages if one.name == name)
    assert isinstance(settings, RespondSettings)
    return RespondStage(recipe, settings)


def run_rank(recipe_file: str, name: str) -> None:
    """Run it; the first rank leaves the metrics."""
    recipe = Recipe.model_validate_json(Path(recipe_file).read_text(encoding="utf-8"))
    stage, rendezvous = stage_of(recipe, name), rendezvous_from_environment()
    with process_group(rendezvous):
        metrics = stage.run()
    if rendezvous.rank == 0:
        files.write_json(stage.directory / "result.json", metrics)


if __name__ == "__main__":
    run_rank(*sys.argv[1:])
