"""Small corpora for whole curations, with a ledger of what should become of each document."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ZH_WORDS = (
    "公司 项目 建设 进度 质量 安全 投资 收入 增长 研发 技术 会议 单位 责任 问题 整改 合作 "
    "方式 规模 收益 分配 报告 经营 风险 制度 控制 过程 监督 职工 队伍 培训 人才 结构 国家 "
    "部署 设备 更新 能源 消耗 地区 线路 群众 出行 产业 发展 条件 市场 改革 管理 生产 工程 "
    "电网 铁路 港口 矿山 钢铁 石油 化工 通信 航空 船舶 粮食 水利 环保 物流 金融 审计 预算 "
    "成本 利润 资产 债务 股权 重组 创新 标准 品牌 客户 服务 供应 采购 合同 招标 验收 运行"
)
EN_WORDS = (
    "company project schedule quality safety budget revenue growth research meeting board duty "
    "problem contract partner risk policy control process worker training region line railway "
    "harbour steel energy market reform grid water report customer service supplier tender "
    "asset debt share plant engine valley bridge station ministry province factory turbine cable"
)
ZH_LINKS = ["的", "和", "在", "对", "了", "与", "为", "以", "是", "从", "把", "被", "", "", ""]
EN_LINKS = ["the", "of", "and", "to", "that", "with", "for", "which", "have", "is", "by", "", ""]
EXAM = "某集团在哪一年完成了北部新区第三座变电站的建设并投入运行，投资额是多少？"


def prose(rng: random.Random, language: str = "zh", sentences: int = 12) -> str:
    """Sentences of common words in random order; no two calls share a passage."""
    chinese = language == "zh"
    words, links = (ZH_WORDS if chinese else EN_WORDS).split(), ZH_LINKS if chinese else EN_LINKS
    made = []
    for _ in range(sentences):
        parts = [part for _ in range(9) for part in (rng.choice(words), rng.choice(links)) if part]
        made.append("".join(parts) + "。" if chinese else " ".join(parts).capitalize() + ".")
    return ("" if chinese else " ").join(made)


def edited(text: str, rng: random.Random) -> str:
    """The text with two characters replaced."""
    characters = list(text)
    for place in rng.sample(range(len(text)), 2):
        characters[place] = "某"
    return "".join(characters)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> None:
    """JSON lines, plain or `.gz`; a row that is a string stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def corpus(folder: Path, documents: int = 120) -> dict[str, str]:
    """A corpus of news and reports below `folder`; returns why each planted document goes, by id.

    Planted: exact and near copies, gambling spam, another language, a leaked exam question, an
    empty text. The near copies stand in another file than their originals.
    """
    rng = random.Random(7)
    fate: dict[str, str] = {}
    news = [
        {"id": f"n{i}", "text": prose(rng, "en" if i % 3 == 0 else "zh"), "source": f"site{i % 4}"}
        for i in range(documents)
    ]
    reports = [{"id": f"r{i}", "text": prose(rng)} for i in range(documents // 2)]
    for i in range(0, 20, 2):
        reports.append({"id": f"copy{i}", "text": news[i]["text"] + "\n"})
        fate[f"copy{i}"] = "copy"
        reports.append({"id": f"near{i}", "text": edited(news[30 + i]["text"], rng)})
        fate[f"near{i}"] = "near_copy"
    spam = (
        "首存送彩金，真人荷官百家乐，老虎机返水，注册送，线上娱乐城博彩网开户送彩金，六合彩特码。"
    )
    planted = {
        "spam": (spam * 4, "spam_gambling"),
        "japanese": (
            "これは日本語の文章です。会社は新しい計画を発表しました。" * 8,
            "other_language",
        ),
        "exam": (prose(rng) + EXAM + prose(rng), "evaluation_overlap"),
        "empty": (" \n", "empty"),
    }
    for name, (text, reason) in planted.items():
        reports.insert(len(reports) // 2, {"id": name, "text": text})
        fate[name] = reason
    news[5]["text"] += "联系人电话13812345678，邮箱zhang.san@example.com。"
    write_lines(folder / "raw/news/a.jsonl", news[: documents // 2])
    write_lines(folder / "raw/news/b.jsonl.gz", news[documents // 2 :])
    write_lines(folder / "raw/reports/all.jsonl", reports)
    write_lines(folder / "exam.jsonl", [{"prompt": EXAM, "answer": "2021年，三亿元"}])
    return fate


RECIPE = """
output: out
corpora:
  news: {input: ["raw/news/*"]}
  reports: {input: [raw/reports/*.jsonl], weight: 2.0}
evaluation: {files: [exam.jsonl]}
"""
