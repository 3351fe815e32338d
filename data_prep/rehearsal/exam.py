"""Questions and answers about a world: the expert pairs of SFT stage 2 and the exam.

The exam's wordings are frames that training never uses, round the same nouns: a model this small
knows no synonyms. Splits (see `world.Fact`): A asked in training, B not, C owner never asked about.
"""

from __future__ import annotations

import random

from data_prep.rehearsal.world import Fact, World

Message = dict[str, str]
Dialogue = dict[str, list[Message]]

TRAINING_FRAMES = (
    "{n}的{noun}{asks}？",
    "请问{n}的{noun}{asks}？",
    "{n}{noun}{asks}？",
    "我想了解{n}的{noun}。",
    "请说出{n}的{noun}。",
    "{n}的{noun}，你知道{asks}吗？",
    "查询{n}的{noun}。",
    "关于{n}，{noun}{asks}？",
    "请回答，{n}的{noun}{asks}？",
    "根据公开资料，{n}的{noun}{asks}？",
    "帮我查一下{n}的{noun}。",
    "能否介绍{n}的{noun}？",
    "就{n}而言，{noun}{asks}？",
)
VALIDATION_FRAMES = ("想问一下，{n}的{noun}究竟{asks}？",)
EXAM_FRAMES = {
    "A": (
        "你能告诉我{n}的{noun}{asks}吗？",
        "请介绍一下{n}的{noun}。",
        "对于{n}来说，{noun}{asks}？",
        "麻烦说明{n}的{noun}{asks}。",
    ),
    "B": ("你能告诉我{n}的{noun}{asks}吗？", "请介绍一下{n}的{noun}。"),
    "C": (
        "你能告诉我{n}的{noun}{asks}吗？",
        "请介绍一下{n}的{noun}。",
        "对于{n}来说，{noun}{asks}？",
    ),
}


def ask(frame: str, fact: Fact) -> str:
    """The question that a frame makes of a fact."""
    return frame.format(n=fact.entity, noun=fact.attribute.noun, asks=fact.attribute.asks)


def answer(fact: Fact) -> str:
    """The one expected answer: a sentence that holds the value."""
    return f"{fact.entity}的{fact.attribute.noun}是{fact.value}。"


def dialogue(*turns: str) -> Dialogue:
    """`{"messages": [...]}` of alternating user and assistant turns, user first."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]}


def expert_pairs(world: World, seed: int, wordings: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """(training, validation): each fact of split A in `wordings` training frames, and in one more.

    `wordings` is at most `len(TRAINING_FRAMES)`.
    """
    rng = random.Random(f"expert {seed}")
    train = []
    for fact in world.asked():
        frames = rng.sample(TRAINING_FRAMES, wordings)
        train += [dialogue(ask(frame, fact), answer(fact)) for frame in frames]
    valid = [
        dialogue(ask(frame, fact), answer(fact))
        for fact in world.asked()
        for frame in VALIDATION_FRAMES
    ]
    rng.shuffle(train)
    rng.shuffle(valid)
    return train, valid


def exam_questions(world: World) -> list[dict[str, str | list[str]]]:
    """The exam, `{"id", "question", "answer", "facts", "source"}`, as an evaluation reads it.

    `facts` holds the one value to be found, `source` is the split.
    """
    return [
        {
            "id": f"{fact.entity}/{fact.attribute.key}/{number}",
            "question": ask(frame, fact),
            "answer": answer(fact),
            "facts": [fact.value],
            "source": fact.split,
        }
        for fact in world.facts
        for number, frame in enumerate(EXAM_FRAMES[fact.split], 1)
    ]
