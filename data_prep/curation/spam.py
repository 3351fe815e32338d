"""Words of the trades that live on spam in Chinese: gambling, sex, forged papers, paid links.

The words are those of the offers, not of the subject: a report on a court case against a gambling
site says 赌博, its advertisement says 首存送彩金. What ordinary words hold (网投 in 互联网投票) is
no such word.
"""

from __future__ import annotations

import re
from collections import Counter

from data_prep.curation.code_points import Batch, Beginnings

TRADES = {
    "gambling": (
        "彩金 首存 返水 时时彩 六合彩 百家乐 老虎机 真人荷官 真人娱乐 在线投注 "
        "线上娱乐 娱乐城 博彩网 电子游艺 棋牌平台 北京赛车 开户送 注册送 存送优惠 "
        "洗码 平特一肖 特码资料 福利彩票平台 体育投注 网投平台 下注平台 捕鱼平台 私彩 "
        "计划群 包赢 时时乐 澳门新葡京 威尼斯人平台 金沙娱乐"
    ),
    "adult": (
        "无码 成人视频 成人电影 一夜情 约炮 裸聊 激情视频 自拍偷拍 国产偷拍 黄色视频 性爱视频 "
        "援交 上门服务 学生妹 丝袜诱惑 情色 三级片 在线观看免费视频 男女激情 性感诱惑"
    ),
    "forgery": (
        "代开发票 开发票加 办证刻章 刻章办证 代办文凭 学历办理 办理毕业证 办假证 代考 真钞 高仿 "
        "办理文凭 证件制作 代开增值税 正规发票代开 淘宝刷单 代写论文 论文代写 考试包过 替考"
    ),
    "promotion": (
        "加微信 加QQ 加扣扣 微信号 躺赚 日赚 月入过万 日入过千 兼职刷单 免费领取 限时秒杀 包邮 "
        "点击领取 财富自由 稳赚不赔 无抵押贷款 秒到账 黑户可贷 快速排名 友情链接交换 SEO优化排名"
    ),
}
TRADE_OF = {word: trade for trade, words in TRADES.items() for word in words.split()}
# Every alternative begins with a plain character, so the engine skips to those by a table.
WORDS = re.compile("|".join(map(re.escape, sorted(TRADE_OF, key=len, reverse=True))))
BEGINNINGS = Beginnings(TRADE_OF)
MIN_DIFFERENT = 3


def spam_reasons(batch: Batch, max_fraction: float) -> list[str | None]:
    """Of each text `spam_` and the trade, when three different words of one take more than
    `max_fraction` of it, or None.
    """
    return [
        _reason(text, max_fraction) if places >= MIN_DIFFERENT else None
        for text, places in zip(batch.texts, BEGINNINGS.count(batch).tolist(), strict=True)
    ]


def _reason(text: str, max_fraction: float) -> str | None:
    found = Counter(WORDS.findall(text))
    if len(found) < MIN_DIFFERENT:
        return None
    for trade in TRADES:
        words = [word for word in found if TRADE_OF[word] == trade]
        characters = sum(len(word) * found[word] for word in words)
        if len(words) >= MIN_DIFFERENT and characters > max_fraction * len(text):
            return f"spam_{trade}"
    return None
