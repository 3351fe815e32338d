"""The invented facts that the domain documents tell and the exam asks about.

A world is a handful of companies and regulations with one value for every attribute. Names and
values are drawn from common characters, so that each character is one token, and are distinct,
so that a value identifies its owner. All of it is fiction.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from itertools import product

from megatron_soaes.errors import UserError

NOTICE = "【虚构】"
"""Stands at the head of every generated document: the companies and rules do not exist."""

YEAR = 2024
"""The reporting year of every annual figure."""

ASKED_COMPANY_ATTRIBUTES = 4
ASKED_REGULATION_ATTRIBUTES = 3


@dataclass(frozen=True)
class Attribute:
    """`noun` names the attribute in documents and questions, `asks` is its question word."""

    key: str
    noun: str
    asks: str


COMPANY_ATTRIBUTES = (
    Attribute("chairman", "董事长", "是谁"),
    Attribute("manager", "总经理", "是谁"),
    Attribute("city", "总部所在地", "是哪里"),
    Attribute("founded", "成立年份", "是哪一年"),
    Attribute("business", "主营业务", "是什么"),
    Attribute("employees", "职工人数", "是多少"),
    Attribute("revenue", "营业收入", "是多少"),
    Attribute("cost", "营业成本", "是多少"),
    Attribute("profit", "利润总额", "是多少"),
    Attribute("research", "研发投入", "是多少"),
    Attribute("debt_ratio", "资产负债率", "是多少"),
)
REGULATION_ATTRIBUTES = (
    Attribute("issuer", "发布机关", "是哪家"),
    Attribute("effective", "施行日期", "是哪一天"),
    Attribute("threshold", "审批限额", "是多少"),
    Attribute("deadline", "审批时限", "是多久"),
    Attribute("department", "归口部门", "是哪个"),
    Attribute("retention", "档案保存期限", "是多久"),
)

_BUSINESS = {
    "电力": "水力发电",
    "钢铁": "特种钢材",
    "港口": "集装箱装卸",
    "航运": "远洋运输",
    "建设": "桥梁工程",
    "粮食": "粮食储备",
    "水务": "城市供水",
    "机械": "重型机床",
    "化工": "化学肥料",
    "交通": "高速公路",
    "通信": "卫星通信",
    "农业": "良种培育",
    "林业": "人工造林",
    "医药": "中药生产",
    "汽车": "电动客车",
    "铁路": "铁路货运",
    "电子": "液晶面板",
    "旅游": "景区开发",
    "出版": "教材出版",
    "食品": "乳品加工",
}
_RULES = (
    *("采购管理", "投资监督", "担保管理", "薪酬管理", "审计监督", "资产评估"),
    *("信息公开", "安全生产", "合同管理", "职工培训", "工程招标", "科研经费"),
)
_DEPARTMENTS = (
    *("审计部", "财务部", "法务部", "规划部", "人事部", "资产部"),
    *("安全部", "科技部", "市场部", "工程部", "党群部", "信息部"),
)
_PLACES = ["".join(pair) for pair in product("东南西北云星月风金玉", "江河湖海山川林原石泉")]
_CITIES = ["".join(pair) + "市" for pair in product("光明文华春秋和正", "城川原岭台门")]
_FOUNDED = [f"{year}年" for year in range(1949, 2000)]
_EMPLOYEES = [f"{hundreds}00人" for hundreds in range(12, 100)]
_DEBT_RATIOS = [f"{percent}%" for percent in range(41, 71)]
_EFFECTIVE = [f"{year}年{month}月1日" for year in range(2015, 2024) for month in range(1, 13)]
_THRESHOLDS = [f"{amount}万元" for amount in range(100, 1000, 50)]
_DEADLINES = [f"{days}个工作日" for days in range(5, 31)]
_RETENTIONS = [f"{years}年" for years in range(5, 31)]
SURNAMES = "王李张刘陈杨赵黄周吴徐孙马朱胡林郭何高罗"
GIVEN = "明华文平安国建东海江春红光中正立新成志永和清"

MAX_COMPANIES = len(_BUSINESS)
MAX_REGULATIONS = len(_RULES)


@dataclass(frozen=True)
class Entity:
    """A company or a regulation: `facts` maps attribute keys to values as they are written."""

    name: str
    kind: str
    facts: dict[str, str]

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        return COMPANY_ATTRIBUTES if self.kind == "company" else REGULATION_ATTRIBUTES


@dataclass(frozen=True)
class Fact:
    """One fact and its exam split.

    A: asked about in training; B: never asked, though its owner's other attributes are;
    C: its owner is never asked about.
    """

    entity: str
    attribute: Attribute
    value: str
    split: str


@dataclass(frozen=True)
class World:
    seed: int
    companies: tuple[Entity, ...]
    regulations: tuple[Entity, ...]
    facts: tuple[Fact, ...]

    @property
    def entities(self) -> tuple[Entity, ...]:
        return self.companies + self.regulations

    def asked(self) -> list[Fact]:
        """The facts that training may ask about (split A)."""
        return [fact for fact in self.facts if fact.split == "A"]

    def to_json(self) -> dict[str, object]:
        return {"notice": "Everything in this world is invented.", **asdict(self)}


def make_world(
    seed: int, companies: int = 10, regulations: int = 5, avoid: World | None = None
) -> World:
    """Draw a world; with `avoid`, one that shares no name and no value with that one.

    Raises UserError when more entities are asked for than there are names.
    """
    taken = _taken(avoid) if avoid is not None else set()
    for where, count, names in (
        ("companies", companies, _free(_BUSINESS.values(), taken)),
        ("regulations", regulations, _free(map(_title, _RULES), taken)),
    ):
        if not 2 <= count <= len(names):
            raise UserError(
                where, str(count), f"a number from 2 to {len(names)}", f"Change the option {where}."
            )
    rng = random.Random(f"world {seed}")
    places = rng.sample(_free(_PLACES, {name[:2] for name in taken}), companies + regulations)
    made_companies = _companies(rng, places[:companies], taken)
    made_regulations = _regulations(rng, places[companies:], taken)
    facts = (
        *_split(rng, made_companies, ASKED_COMPANY_ATTRIBUTES),
        *_split(rng, made_regulations, ASKED_REGULATION_ATTRIBUTES),
    )
    return World(seed, made_companies, made_regulations, facts)


def _taken(world: World) -> set[str]:
    """Every name and value of a world; names of companies and issuers begin with their place."""
    return {text for entity in world.entities for text in (entity.name, *entity.facts.values())}


def _free(pool: Iterable[str], taken: Collection[str]) -> list[str]:
    return [text for text in pool if text not in taken]


def _title(topic: str) -> str:
    return f"《{topic}办法》"


def _companies(rng: random.Random, places: list[str], taken: set[str]) -> tuple[Entity, ...]:
    count = len(places)
    people = _distinct_people(rng, 2 * count, taken)
    cities = rng.sample(_free(_CITIES, taken), count)
    years = rng.sample(_free(_FOUNDED, taken), count)
    employees = rng.sample(_free(_EMPLOYEES, taken), count)
    debt_ratios = rng.sample(_free(_DEBT_RATIOS, taken), count)
    money = _distinct_money(rng, count, taken)
    made = []
    industries = [name for name in sorted(_BUSINESS) if _BUSINESS[name] not in taken]
    for i, industry in enumerate(rng.sample(industries, count)):
        revenue, cost, profit, research = money[i]
        facts = {
            "chairman": people[2 * i],
            "manager": people[2 * i + 1],
            "city": cities[i],
            "founded": years[i],
            "business": _BUSINESS[industry],
            "employees": employees[i],
            "revenue": f"{revenue}亿元",
            "cost": f"{cost}亿元",
            "profit": f"{profit}亿元",
            "research": f"{research}亿元",
            "debt_ratio": debt_ratios[i],
        }
        made.append(Entity(f"{places[i]}{industry}集团", "company", facts))
    return tuple(made)


def _distinct_people(rng: random.Random, count: int, taken: set[str]) -> list[str]:
    """Names of three characters that differ pairwise in their given names, too."""
    pool = _free(("".join(pair) for pair in product(GIVEN, GIVEN)), {name[1:] for name in taken})
    return [rng.choice(SURNAMES) + name for name in rng.sample(pool, count)]


def _distinct_money(
    rng: random.Random, count: int, taken: set[str]
) -> list[tuple[int, int, int, int]]:
    """(revenue, cost, profit, research), 10^8 yuan, all distinct; profit = revenue - cost."""
    used = {int(text.removesuffix("亿元")) for text in taken if text.endswith("亿元")}
    rows: list[tuple[int, int, int, int]] = []
    while len(rows) < count:
        revenue = rng.randrange(120, 1000)
        profit = rng.randrange(6, max(8, revenue // 5))
        research = rng.randrange(2, max(4, revenue // 10))
        row = (revenue, revenue - profit, profit, research)
        if len(set(row) - used) == len(row):
            used.update(row)
            rows.append(row)
    return rows


def _regulations(rng: random.Random, places: list[str], taken: set[str]) -> tuple[Entity, ...]:
    count = len(places)
    titles = rng.sample(_free(map(_title, _RULES), taken), count)
    departments = rng.sample(_free(_DEPARTMENTS, taken), count)
    thresholds = rng.sample(_free(_THRESHOLDS, taken), count)
    deadlines = rng.sample(_free(_DEADLINES, taken), count)
    retentions = rng.sample(_free(_RETENTIONS, taken), count)
    months = rng.sample(_free(_EFFECTIVE, taken), count)
    made = []
    for i, title in enumerate(titles):
        facts = {
            "issuer": f"{places[i]}省国资委",
            "effective": months[i],
            "threshold": thresholds[i],
            "deadline": deadlines[i],
            "department": departments[i],
            "retention": retentions[i],
        }
        made.append(Entity(title, "regulation", facts))
    return tuple(made)


def _split(rng: random.Random, entities: Iterable[Entity], asked: int) -> list[Fact]:
    """The last entity is never asked about; of each other, `asked` attributes are, in turn.

    Taking turns lets questions about every attribute occur in training.
    """
    *known, hidden = entities
    keys = [attribute.key for attribute in hidden.attributes]
    rng.shuffle(keys)
    facts = []
    for i, entity in enumerate(known):
        in_training = {keys[(i * asked + j) % len(keys)] for j in range(asked)}
        facts += [
            Fact(entity.name, a, entity.facts[a.key], "A" if a.key in in_training else "B")
            for a in entity.attributes
        ]
    facts += [Fact(hidden.name, a, hidden.facts[a.key], "C") for a in hidden.attributes]
    return facts
