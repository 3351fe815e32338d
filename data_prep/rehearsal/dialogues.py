"""General Chinese dialogues on finance, law, business and policy for SFT stage 1.

Three kinds: definitions, sums with their working, and questions on a given passage whose names
and numbers are drawn anew each time, so that the answer can only come from the passage.
Nothing here names anything of the world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from data_prep.rehearsal.exam import Dialogue, dialogue
from data_prep.rehearsal.glossary import TERMS
from data_prep.rehearsal.world import GIVEN, SURNAMES

_DEFINITION_FRAMES = (
    "什么是{term}？",
    "请解释一下{term}。",
    "{term}是什么意思？",
    "在{field}领域，{term}指什么？",
    "请用一句话说明{term}的含义。",
    "怎样理解{term}？",
    "{term}的定义是什么？",
    "学习{field}时常说的{term}是什么？",
)
_SHOPS = ("星光", "和平", "长青", "东方", "明天", "新华", "三友", "四季", "安心", "远大")
_TRADES = ("商店", "公司", "工厂", "书店", "农场", "饭店")
_GOODS = ("纸张", "水泥", "木材", "大米", "布料", "钢管", "电线", "玻璃")
_ROLES = ("会计", "律师", "经理", "主任", "采购员", "审计员", "工程师", "秘书")
_DEPARTMENTS = ("财务处", "法务处", "销售处", "采购处", "人事处", "信息处")


def _person(rng: random.Random) -> str:
    return rng.choice(SURNAMES) + rng.choice(GIVEN)


def _firm(rng: random.Random) -> str:
    return rng.choice(_SHOPS) + rng.choice(_TRADES)


def _definition(rng: random.Random) -> Dialogue:
    field = rng.choice(sorted(TERMS))
    term = rng.choice(sorted(TERMS[field]))
    question = rng.choice(_DEFINITION_FRAMES).format(term=term, field=field)
    return dialogue(question, f"{term}是指{TERMS[field][term]}。")


def _profit(rng: random.Random) -> Dialogue:
    firm, cost, profit = _firm(rng), rng.randrange(10, 500), rng.randrange(1, 200)
    income = cost + profit
    question = rng.choice(
        (
            f"{firm}收入{income}万元，成本{cost}万元，利润是多少？",
            f"已知{firm}的收入为{income}万元，成本为{cost}万元，请计算利润。",
        )
    )
    return dialogue(
        question, f"利润等于收入减去成本，{income}-{cost}={profit}，利润是{profit}万元。"
    )


def _total(rng: random.Random) -> Dialogue:
    firm, first, second = _firm(rng), rng.randrange(10, 300), rng.randrange(10, 300)
    return dialogue(
        f"{firm}上半年收入{first}万元，下半年收入{second}万元，全年收入是多少？",
        f"全年收入等于两个半年之和，{first}+{second}={first + second}，"
        f"全年收入是{first + second}万元。",
    )


def _budget(rng: random.Random) -> Dialogue:
    department, left, spent = rng.choice(_DEPARTMENTS), rng.randrange(1, 90), rng.randrange(5, 90)
    return dialogue(
        f"{department}预算{left + spent}万元，已经支出{spent}万元，还剩多少？",
        f"余额等于预算减去支出，{left + spent}-{spent}={left}，还剩{left}万元。",
    )


def _price(rng: random.Random) -> Dialogue:
    goods, count, price = rng.choice(_GOODS), rng.randrange(2, 10), rng.randrange(2, 50)
    return dialogue(
        f"{_firm(rng)}购买{count}吨{goods}，每吨{price}元，一共多少钱？",
        f"总价等于数量乘以单价，{count}*{price}={count * price}，一共{count * price}元。",
    )


def _tax(rng: random.Random) -> Dialogue:
    hundreds, rate = rng.randrange(1, 10), rng.choice((3, 5, 6, 9, 13))
    return dialogue(
        f"{_firm(rng)}应税收入{hundreds}00万元，税率{rate}%，应纳税额是多少？",
        f"税额等于收入乘以税率，{hundreds}00*{rate}%={hundreds * rate}，"
        f"应纳税额是{hundreds * rate}万元。",
    )


_Pairs = list[tuple[str, str]]


def _contract_passage(rng: random.Random) -> tuple[str, _Pairs]:
    buyer, seller = (shop + rng.choice(_TRADES) for shop in rng.sample(_SHOPS, 2))
    goods, price, days = rng.choice(_GOODS), rng.randrange(10, 900), rng.randrange(3, 60)
    passage = (
        f"{buyer}向{seller}购买{goods}，合同价款{price}万元，"
        f"{seller}应当在{days}天内交货。逾期交货的，应当支付违约金。"
    )
    return passage, [
        ("买方是谁？", f"买方是{buyer}。"),
        ("卖方是谁？", f"卖方是{seller}。"),
        ("合同价款是多少？", f"合同价款是{price}万元。"),
        ("应当在多少天内交货？", f"应当在{days}天内交货。"),
        ("购买的货物是什么？", f"购买的货物是{goods}。"),
    ]


def _staff_passage(rng: random.Random) -> tuple[str, _Pairs]:
    firm, (first, second) = _firm(rng), rng.sample(_ROLES, 2)
    one, two = _person(rng), _person(rng)
    while two == one:
        two = _person(rng)
    department = rng.choice(_DEPARTMENTS)
    passage = (
        f"{firm}召开会议，{first}{one}介绍了工作情况，{second}{two}提出了建议。"
        f"会议决定由{department}负责落实。"
    )
    return passage, [
        (f"{first}是谁？", f"{first}是{one}。"),
        (f"{second}是谁？", f"{second}是{two}。"),
        ("哪个部门负责落实？", f"{department}负责落实。"),
        ("哪家单位召开会议？", f"{firm}召开会议。"),
    ]


def _loan_passage(rng: random.Random) -> tuple[str, _Pairs]:
    firm, money = _firm(rng), rng.randrange(10, 900)
    years, rate = rng.randrange(1, 10), rng.randrange(2, 9)
    person = _person(rng)
    passage = (
        f"{firm}向银行借款{money}万元，期限{years}年，年利率{rate}%，"
        f"由{person}提供担保。借款用于购买设备。"
    )
    return passage, [
        ("借款金额是多少？", f"借款金额是{money}万元。"),
        ("借款期限是多久？", f"借款期限是{years}年。"),
        ("年利率是多少？", f"年利率是{rate}%。"),
        ("谁提供担保？", f"{person}提供担保。"),
    ]


def _policy_passage(rng: random.Random) -> tuple[str, _Pairs]:
    subsidy, days = rng.randrange(2, 90), rng.randrange(5, 40)
    department, person = rng.choice(_DEPARTMENTS), _person(rng)
    passage = (
        f"按照通知，符合条件的企业可以申请补贴，最高{subsidy}万元。"
        f"申请交给{department}，联系人为{person}，{days}天内答复。"
    )
    return passage, [
        ("补贴最高是多少？", f"补贴最高是{subsidy}万元。"),
        ("申请交给哪个部门？", f"申请交给{department}。"),
        ("联系人是谁？", f"联系人是{person}。"),
        ("多少天内答复？", f"{days}天内答复。"),
    ]


_SUMS = (_profit, _profit, _total, _budget, _price, _tax)
_PASSAGES = (_contract_passage, _staff_passage, _loan_passage, _policy_passage)
TWO_TURN_SHARE = 0.3


def _sum(rng: random.Random) -> Dialogue:
    return rng.choice(_SUMS)(rng)


def _reading(rng: random.Random) -> Dialogue:
    passage, pairs = rng.choice(_PASSAGES)(rng)
    (question, reply), (further, further_reply) = rng.sample(pairs, 2)
    opening = rng.choice(
        (
            f"阅读材料并回答问题。材料：{passage}问题：{question}",
            f"{passage}根据以上内容，{question}",
            f"问题：{question}材料：{passage}",
        )
    )
    if rng.random() < TWO_TURN_SHARE:
        return dialogue(opening, reply, further, further_reply)
    return dialogue(opening, reply)


_KINDS: tuple[tuple[Callable[[random.Random], Dialogue], int], ...] = (
    (_definition, 1),
    (_sum, 1),
    (_reading, 2),
)


def dialogues(seed: int) -> Iterator[Dialogue]:
    """An endless stream of distinct dialogues; a quarter definitions, a quarter sums, half reading.

    Once all definitions have occurred, only sums and reading go on.
    """
    rng = random.Random(f"dialogues {seed}")
    seen: set[str] = set()
    while True:
        writers, weights = zip(*_KINDS, strict=True)
        made = rng.choices(writers, weights)[0](rng)
        key = made["messages"][0]["content"]
        if key not in seen:
            seen.add(key)
            yield made
