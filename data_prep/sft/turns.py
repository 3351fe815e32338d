"""Where the answers of a rendered conversation start and end.

What stands before an answer must be exactly the prompt with which a server will ask for it, so
every prompt is rendered for itself: `render(turns[:i], add_generation_prompt)` has to be how
`render(turns[:i + 1])` begins, and that, up to the token that ends the answer, how the whole text
begins. The end of an answer is the first control token after its content.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from data_prep.sft.chat_template import ChatTemplate, ControlTokens, Message
from data_prep.sft.problems import Problem, RecordError
from data_prep.sft.records import Conversation, TrainOn

EXCERPT_CHARACTERS = 40


@dataclass(frozen=True)
class Answer:
    """An answer to train on."""

    name: str
    prompt: str
    """All text before it."""
    control_ids: tuple[int, ...]
    """The control tokens that it holds; the last of them is its end."""


@dataclass(frozen=True)
class RenderedConversation:
    """The text of a conversation, the answers to train on, and the control tokens of the text."""

    text: str
    answers: tuple[Answer, ...]
    control_ids: tuple[int, ...]
    """What the template writes whatever the contents are."""


@dataclass(frozen=True)
class Chat:
    """A chat template with the control tokens of its tokenizer."""

    template: ChatTemplate
    control: ControlTokens

    def render(self, conversation: Conversation, train_on: TrainOn) -> RenderedConversation:
        """Render a conversation and find the answers to train on.

        Raises `RecordError`: a control token in a content, a content that the template leaves out
        or changes (white space apart), or a template that renders an earlier part differently
        once more turns follow.
        """
        self._check_contents(conversation)
        turns = conversation.turns
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = self.template.render(messages)
        frame = _frame(self, tuple(turn.role for turn in turns))
        self._check_rendered(conversation, text, frame)
        answers = tuple(
            self._answer(conversation, messages, position, text)
            for position in conversation.trained(train_on)
        )
        return RenderedConversation(text, answers, frame.control_ids)

    def end_of_turn(self) -> str:
        """The control token that ends an answer. Raises `RecordError` when there is none."""
        return answer_end(self, ("user", "assistant"))[-1]

    def writes_tool_turns(self) -> bool:
        """Whether the template renders turns of role "tool"."""
        try:
            return 2 not in _frame(self, ("user", "assistant", "tool", "assistant")).left_out
        except RecordError:
            return False

    def _check_contents(self, conversation: Conversation) -> None:
        for position, turn in enumerate(conversation.turns):
            for token, _ in self.control.find(turn.content):
                found = f"the control token {token!r} in {conversation.name(position)}"
                raise RecordError(Problem.CONTROL_TOKEN, found)

    def _check_rendered(self, conversation: Conversation, text: str, frame: _Frame) -> None:
        """Earlier answers may be missing: they are looked for where they are trained."""
        squeezed = _squeeze(text)
        for position, turn in enumerate(conversation.turns):
            if turn.role != "assistant" and (
                position in frame.left_out or _squeeze(turn.content) not in squeezed
            ):
                raise _not_rendered(conversation.name(position))

    def _answer(
        self, conversation: Conversation, messages: list[Message], position: int, text: str
    ) -> Answer:
        name = conversation.name(position)
        prompt = self.template.render(messages[:position], add_generation_prompt=True)
        is_last = position == len(messages) - 1
        answered = text if is_last else self.template.render(messages[: position + 1])
        if not answered.startswith(prompt):
            raise _rewritten(f"before {name}", prompt, answered)
        roles = tuple(message["role"] for message in messages[: position + 1])
        tokens = answer_end(self, roles)
        found = self.control.find(answered[len(prompt) :])[: len(tokens)]
        if tuple(token for token, _ in found) != tokens:
            raise RecordError(Problem.NO_END_OF_TURN, f"{name} without {' '.join(tokens)}")
        answered = answered[: len(prompt) + found[-1][1]]
        if not text.startswith(answered):
            raise _rewritten(f"up to the end of {name}", answered, text)
        if _squeeze(messages[position]["content"]) not in _squeeze(answered[len(prompt) :]):
            raise _not_rendered(name)
        return Answer(name, prompt, tuple(map(self.control.id_of, tokens)))


@lru_cache(maxsize=4096)
def answer_end(chat: Chat, roles: tuple[str, ...]) -> tuple[str, ...]:
    """The control tokens of the last turn of `roles`, an answer; the last of them ends it.

    It is the first after the content: what a template writes later (a line end) is not trained.
    Raises `RecordError` when there is none, or when the prompt is not how the turn begins.
    """
    messages = _stand_ins(roles)
    prompt = chat.template.render(messages[:-1], add_generation_prompt=True)
    answered = chat.template.render(messages)
    if not answered.startswith(prompt):
        raise _rewritten("before an answer", prompt, answered)
    answer, content = answered[len(prompt) :], messages[-1]["content"]
    if content not in answer:
        raise _not_rendered("an answer")
    content_end = answer.index(content) + len(content)
    found = chat.control.find(answer)
    inside = list(takewhile(lambda token: token[1] <= content_end, found))
    if len(found) == len(inside):
        rest = answer[content_end:][:EXCERPT_CHARACTERS]
        found_text = f"{rest!r} after an answer, without a special token"
        raise RecordError(Problem.NO_END_OF_TURN, found_text)
    return tuple(token for token, _ in found[: len(inside) + 1])


@dataclass(frozen=True)
class _Frame:
    """What a template makes of a sequence of roles, whatever the contents are."""

    control_ids: tuple[int, ...]
    left_out: frozenset[int]
    """The positions whose contents it does not write."""


@lru_cache(maxsize=4096)
def _frame(chat: Chat, roles: tuple[str, ...]) -> _Frame:
    messages = _stand_ins(roles)
    text = chat.template.render(messages)
    control_ids = tuple(chat.control.id_of(token) for token, _ in chat.control.find(text))
    left_out = (i for i, message in enumerate(messages) if message["content"] not in text)
    return _Frame(control_ids, frozenset(left_out))


def _stand_ins(roles: tuple[str, ...]) -> list[Message]:
    """Messages with contents that no template looks for and no tokenizer has as tokens."""
    return [{"role": role, "content": f"\ue0f5{i}\ue0f6"} for i, role in enumerate(roles)]


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _not_rendered(name: str) -> RecordError:
    found = f"a chat template that leaves out or changes the text of {name}"
    return RecordError(Problem.CONTENT_NOT_RENDERED, found)


def _rewritten(place: str, alone: str, inside: str) -> RecordError:
    same = next(
        (i for i, (a, b) in enumerate(zip(alone, inside, strict=False)) if a != b),
        min(len(alone), len(inside)),
    )
    start = max(0, same - EXCERPT_CHARACTERS // 2)
    end = same + EXCERPT_CHARACTERS
    found = (
        f"text {place} that is rendered as {alone[start:end]!r} at first "
        f"and as {inside[start:end]!r} when more follows"
    )
    return RecordError(Problem.TURNS_REWRITTEN, found)
