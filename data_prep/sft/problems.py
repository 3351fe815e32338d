"""Why a record becomes no training conversation."""

from __future__ import annotations

from enum import StrEnum


class Problem(StrEnum):
    """What is wrong with a record, beside what can be wrong with any line of JSON."""

    UNKNOWN_FORMAT = "unknown_format"
    AMBIGUOUS_FORMAT = "ambiguous_format"
    WRONG_SHAPE = "wrong_shape"
    UNKNOWN_ROLE = "unknown_role"
    TOOL_ROLE = "tool_role"
    STRUCTURED_FIELD = "structured_field"
    WRONG_ORDER = "wrong_order"
    NO_ANSWER = "no_answer"
    EMPTY_CONTENT = "empty_content"
    BAD_WEIGHT = "bad_weight"
    BAD_SOURCE = "bad_source"
    CONTROL_TOKEN = "control_token"
    TEMPLATE_REFUSES = "template_refuses"
    CONTENT_NOT_RENDERED = "content_not_rendered"
    TURNS_REWRITTEN = "turns_rewritten"
    NO_END_OF_TURN = "no_end_of_turn"
    BORDER_INSIDE_TOKEN = "border_inside_token"
    TOO_LONG = "too_long"


CORRECT = "Correct the line, or collect such lines in a file with --skip-bad-lines FILE."

RULES: dict[str, tuple[str, str]] = {
    Problem.UNKNOWN_FORMAT: (
        "a key 'messages', a key 'conversations', or 'instruction' with 'output'",
        CORRECT,
    ),
    Problem.AMBIGUOUS_FORMAT: ("the keys of one format", "Say which with --format."),
    Problem.WRONG_SHAPE: ("turns whose role and content are strings", CORRECT),
    Problem.UNKNOWN_ROLE: ("system, user or assistant (ShareGPT: system, human or gpt)", CORRECT),
    Problem.TOOL_ROLE: ("turns that the chat template of this model can write", CORRECT),
    Problem.STRUCTURED_FIELD: (
        "the whole turn as text in its content",
        "Write it into the content as the model should say it. Or: " + CORRECT,
    ),
    Problem.WRONG_ORDER: (
        "at most one system prompt, first, then user and assistant in turn, the assistant last",
        CORRECT,
    ),
    Problem.NO_ANSWER: ("at least one assistant turn", CORRECT),
    Problem.EMPTY_CONTENT: ("text in every turn", CORRECT),
    Problem.BAD_WEIGHT: (
        "a finite number above 0 for a record; 0 or 1, at an assistant turn, for a message",
        CORRECT,
    ),
    Problem.BAD_SOURCE: ("a non-empty string", CORRECT),
    Problem.CONTROL_TOKEN: (
        "text without the tokens that only the chat template may write",
        "Rewrite the text (a space inside is enough), or collect such lines with --skip-bad-lines.",
    ),
    Problem.TEMPLATE_REFUSES: ("a conversation that the chat template accepts", CORRECT),
    Problem.CONTENT_NOT_RENDERED: (
        "a chat template that writes every text of the record",
        "Change the text to what the template keeps, or use another template.",
    ),
    Problem.TURNS_REWRITTEN: (
        "a chat template that never changes what stands before an answer or in it",
        "Train on the last answers only (--train-on last), cut the conversation into one record an "
        "answer, or use another template.",
    ),
    Problem.NO_END_OF_TURN: (
        "an assistant turn that the chat template ends with a special token",
        "Use another template: a model trained without one never stops.",
    ),
    Problem.BORDER_INSIDE_TOKEN: (
        "answers that start with a token of their own, because a prompt is tokenized without them",
        "Remove the white space at the start of the answer. Or: " + CORRECT,
    ),
    Problem.TOO_LONG: (
        "a conversation within --max-length",
        "Raise it, or choose --too-long truncate or --too-long drop.",
    ),
}
"""For each problem: what was expected, and what to do."""


class RecordError(Exception):
    """A record that becomes no conversation; `found` says what stands there."""

    def __init__(self, problem: Problem, found: str) -> None:
        super().__init__(problem, found)
        self.problem = problem
        self.found = found
