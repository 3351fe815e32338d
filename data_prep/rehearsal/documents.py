"""Domain documents about a world: profiles, reports, announcements, regulations, briefs, Q&A.

Every figure comes from the world; what is derived (a share, a difference) is computed from it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import cycle, islice

from data_prep.rehearsal.statements import (
    COMPANY_REMARKS,
    DOCUMENT_QUESTIONS,
    REGULATION_ARTICLES,
    STATEMENTS,
)
from data_prep.rehearsal.world import (
    MAX_COMPANIES,
    MAX_REGULATIONS,
    NOTICE,
    YEAR,
    Entity,
    World,
    make_world,
)
from megatron_soaes.errors import UserError

GENRE_DOCUMENTS_PER_ENTITY = 4
NUMERALS = "一二三四五六七八九十"
_OUTCOMES = ("会议审议通过了各项议案。", "与会人员一致同意上述报告。", "会议要求抓好落实。")


def numeral(number: int) -> str:
    """1 to 99 in Chinese numerals, as articles are counted."""
    tens, ones = divmod(number, 10)
    if tens == 0:
        return NUMERALS[ones - 1]
    head = "十" if tens == 1 else NUMERALS[tens - 1] + "十"
    return head + (NUMERALS[ones - 1] if ones else "")


def state(rng: random.Random, entity: Entity, key: str) -> str:
    """One sentence that states one fact, in one of its wordings."""
    return rng.choice(STATEMENTS[key]).format(n=entity.name, v=entity.facts[key])


def amount(entity: Entity, key: str) -> int:
    """The number of a money value in 10^8 yuan."""
    return int(entity.facts[key].removesuffix("亿元"))


def research_share(entity: Entity) -> str:
    """Research spending as a share of revenue, one decimal, "3.1%"."""
    return f"{100 * amount(entity, 'research') / amount(entity, 'revenue'):.1f}%"


def _remark(rng: random.Random, entity: Entity) -> str:
    return rng.choice(COMPANY_REMARKS).format(n=entity.name)


def _profile(rng: random.Random, world: World, company: Entity) -> str:
    keys = [a.key for a in company.attributes]
    chosen = rng.sample(keys, rng.randint(7, len(keys)))
    lines = [state(rng, company, key) for key in chosen]
    lines.insert(rng.randrange(len(lines)), _remark(rng, company))
    title = rng.choice(("公司简介", "企业概况", "基本情况"))
    return f"{NOTICE}{company.name}{title}\n" + "".join(lines)


def _annual_report(rng: random.Random, world: World, company: Entity) -> str:
    n = company.name
    figures = [state(rng, company, key) for key in ("revenue", "cost", "profit")]
    revenue, cost, profit = (amount(company, key) for key in ("revenue", "cost", "profit"))
    figures.append(f"{n}营业收入{revenue}亿元，减去营业成本{cost}亿元，得到利润总额{profit}亿元。")
    innovation = [
        state(rng, company, "research"),
        f"{n}研发投入占营业收入的比重为{research_share(company)}。",
    ]
    operation = [state(rng, company, key) for key in ("business", "employees", "debt_ratio")]
    rng.shuffle(operation)
    governance = [state(rng, company, key) for key in ("chairman", "manager", "city", "founded")]
    sections = [
        ("经营情况", figures),
        ("科技创新", innovation),
        ("资产和人员", [*operation, _remark(rng, company)]),
        ("公司治理", rng.sample(governance, rng.randint(2, 4))),
    ]
    rng.shuffle(sections)
    body = [
        f"{numeral(i)}、{title}\n{''.join(lines)}"
        for i, (title, lines) in enumerate(sections[: rng.randint(3, 4)], 1)
    ]
    return f"{NOTICE}{n}{YEAR}年年度报告（节选）\n" + "\n".join(body)


def _announcement(rng: random.Random, world: World, company: Entity) -> str:
    n, facts = company.name, company.facts
    subject = rng.choice(("董事会会议", "年度工作会议", "职工代表大会", "业绩说明会"))
    keys = ("revenue", "cost", "profit", "research", "employees", "debt_ratio", "business")
    report = "".join(state(rng, company, key) for key in rng.sample(keys, 4))
    lines = [
        f"{n}{subject}在总部所在地{facts['city']}召开。",
        f"会议由{n}董事长{facts['chairman']}主持。",
        f"{n}总经理{facts['manager']}作工作报告：{report}",
        rng.choice(_OUTCOMES),
        _remark(rng, company),
        f"特此公告。{n}董事会",
    ]
    return f"{NOTICE}{n}关于召开{subject}的公告\n" + "\n".join(lines)


def _regulation(rng: random.Random, world: World, regulation: Entity) -> str:
    n = regulation.name
    purpose, *general = (form.format(n=n) for form in REGULATION_ARTICLES)
    general = rng.sample(general, rng.randint(2, 4))
    duties = [state(rng, regulation, key) for key in ("department", "threshold", "deadline")]
    rng.shuffle(duties)
    closing = [state(rng, regulation, key) for key in ("retention", "issuer", "effective")]
    chapters = [
        ("总则", [purpose, *general[:1]]),
        ("职责和程序", [*duties, *general[1:]]),
        ("附则", closing),
    ]
    lines = []
    article = 0
    for number, (title, articles) in enumerate(chapters, 1):
        lines.append(f"第{numeral(number)}章 {title}")
        for text in articles:
            article += 1
            lines.append(f"第{numeral(article)}条 {text}")
    return f"{NOTICE}{n}\n" + "\n".join(lines)


def _regulation_notice(rng: random.Random, world: World, regulation: Entity) -> str:
    keys = [a.key for a in regulation.attributes]
    chosen = rng.sample(keys, rng.randint(4, len(keys)))
    lines = [
        f"各有关单位：现就贯彻执行{regulation.name}通知如下。",
        *(f"{numeral(i)}、{state(rng, regulation, key)}" for i, key in enumerate(chosen, 1)),
        rng.choice(("请认真贯彻执行。", "请各单位遵照执行。", "执行中的问题请及时报告。")),
    ]
    return f"{NOTICE}关于执行{regulation.name}的通知\n" + "\n".join(lines)


def _implementation(rng: random.Random, world: World, company: Entity) -> str:
    regulation = rng.choice(world.regulations)
    keys = rng.sample([a.key for a in regulation.attributes], 3)
    lines = [
        f"{company.name}召开会议学习{regulation.name}。",
        *(state(rng, regulation, key) for key in keys),
        state(rng, company, rng.choice(("chairman", "manager"))),
        f"{company.name}将{regulation.name}的要求落实到各项工作。",
        *(state(rng, company, key) for key in rng.sample(("business", "employees", "city"), 2)),
    ]
    return f"{NOTICE}{company.name}学习{regulation.name}简报\n" + "".join(lines)


def _comparison(rng: random.Random, world: World, company: Entity) -> str:
    others = [other for other in world.companies if other is not company]
    group = [company, *rng.sample(others, min(2, len(others)))]
    attribute = rng.choice([a for a in company.attributes if a.key not in ("city", "founded")])
    lines = [state(rng, member, attribute.key) for member in group]
    if attribute.key in ("revenue", "cost", "profit", "research"):
        top = max(group, key=lambda member: amount(member, attribute.key))
        lines.append(f"其中，{top.name}{attribute.noun}最高，为{top.facts[attribute.key]}。")
    rest = [a.key for a in company.attributes if a.key != attribute.key]
    lines += [state(rng, company, key) for key in rng.sample(rest, 3)]
    return f"{NOTICE}国有企业{attribute.noun}情况简报\n" + "".join(lines)


def _questions(rng: random.Random, world: World, entity: Entity) -> str:
    """Q&A in document form, only about facts that training may ask about (split A)."""
    asked = [fact for fact in world.asked() if fact.entity == entity.name]
    others = [fact for fact in world.asked() if fact.entity != entity.name]
    chosen = [*rng.sample(asked, min(2, len(asked))), *rng.sample(others, min(2, len(others)))]
    by_name = {e.name: e for e in world.entities}
    lines = []
    for fact in chosen:
        form = rng.choice(DOCUMENT_QUESTIONS)
        lines.append("问：" + form.format(n=fact.entity, noun=fact.attribute.noun))
        lines.append("答：" + state(rng, by_name[fact.entity], fact.attribute.key))
    return f"{NOTICE}国有企业政策问答\n" + "\n".join(lines)


_Writer = Callable[[random.Random, World, Entity], str]
_COMPANY_KINDS: dict[str, tuple[_Writer, int]] = {
    "profile": (_profile, 4),
    "annual_report": (_annual_report, 4),
    "announcement": (_announcement, 3),
    "comparison": (_comparison, 1),
    "implementation": (_implementation, 1),
    "policy_questions": (_questions, 1),
}
_REGULATION_KINDS: dict[str, tuple[_Writer, int]] = {
    "regulation": (_regulation, 5),
    "regulation_notice": (_regulation_notice, 4),
    "policy_questions": (_questions, 1),
}


def documents(world: World, seed: int) -> Iterator[dict[str, str]]:
    """An endless stream of distinct documents, `{"text", "source"}`, all entities in turn.

    `source` is "invented/" and the kind. Taking turns gives every fact about equal exposure.
    """
    rng = random.Random(f"documents {seed}")
    seen: set[str] = set()
    for entity in cycle(world.entities):
        kinds = _COMPANY_KINDS if entity.kind == "company" else _REGULATION_KINDS
        weights = [weight for _, weight in kinds.values()]
        kind = rng.choices(list(kinds), weights)[0]
        text = kinds[kind][0](rng, world, entity)
        if text not in seen:
            seen.add(text)
            yield {"text": text, "source": f"invented/{kind}"}


def genre_documents(world: World, seed: int) -> Iterator[dict[str, str]]:
    """An endless stream of documents of other worlds, none of them naming or valuing as `world`.

    They teach the genre and nothing that an exam about `world` asks. Each world has only a few
    documents, so that reading pays more than remembering. Raises UserError when `world` leaves
    names for fewer than two companies or two regulations.
    """
    companies = min(len(world.companies), MAX_COMPANIES - len(world.companies))
    regulations = min(len(world.regulations), MAX_REGULATIONS - len(world.regulations))
    if min(companies, regulations) < 2:
        raise UserError(
            "genre",
            f"a world of {len(world.companies)} companies, {len(world.regulations)} regulations",
            f"at most {MAX_COMPANIES - 2} and {MAX_REGULATIONS - 2}: others need names, too",
            "Make the world smaller, or ask for no genre documents.",
        )
    rng = random.Random(f"genre {seed}")
    while True:
        other = make_world(rng.getrandbits(32), companies, regulations, avoid=world)
        count = GENRE_DOCUMENTS_PER_ENTITY * len(other.entities)
        yield from islice(documents(other, other.seed), count)
