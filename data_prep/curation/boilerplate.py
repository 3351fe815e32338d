"""Lines that belong to a page and not to its text: notices, menus, share buttons, credits.

A line goes only when it is short and, as a whole, has the form of such a line: 公司拥有该软件的版权
is a sentence about copyright, 版权所有 © 2024 is a notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.curation.code_points import Batch, Beginnings
from data_prep.curation.edits import Edited
from data_prep.curation.lines import Mask


@dataclass(frozen=True)
class Notice:
    """One kind of line: words of which each such line has one, and the form of the whole line."""

    words: str
    """Separated by blanks; an underscore stands for a blank. Matched in lower case, Capitalised,
    In Title Case and in UPPER CASE."""
    form: str


NOTICES = {
    "copyright": Notice(
        "© (c) copyright rights_reserved 版权所有 版权归 未经 icp备 icp证 公网安备 经营许可",
        r"(?:©|\(c\) ?(?:19|20)\d\d|copyright\s?(?:©|\(c\)|:|by\b|(?:19|20)\d\d)).*"
        r"|.{0,60}(?:all rights reserved|版权所有(?![权人者])|版权归.{1,20}所有"
        r"|未经.{0,12}(?:授权|许可|允许|同意).{0,16}(?:转载|复制|禁止)).{0,80}"
        r"|.{0,40}(?:ICP[备证]|公网安备|网络文化经营许可|增值电信业务经营许可).{0,60}",
    ),
    "credit": Notice(
        "责编 编辑: 编辑： 编辑_ 校对: 校对： 审核: 审核： 编委",
        r"[(（\[【]?\s?(?:责任编辑|责编|本文编辑|网页编辑|文字编辑|编辑|校对|审核|值班编委)"
        r"\s?[:：].{1,30}",
    ),
    "share": Notice(
        "分享 扫一扫 扫码 长按识别 关注我们 关注微信 点赞 收藏 转发 打印 字号 "
        "share_ tweet_ follow_us like_us pin_it email_this",
        r"分享[到至]\s?(?:[:：].{0,40}|(?:微信|微博|朋友圈|QQ|新浪|腾讯).{0,40})?"
        r"|(?:一键分享|(?:微信)?扫一扫|扫码关注|长按识别|关注我们的?(?:$|[:：微公])|关注微信公众号).{0,40}"
        r"|(?:点赞|收藏|转发|评论|分享|举报|打印|字号|关闭)[\s\d|·:：()（）大中小]*"
        r"(?:(?:点赞|收藏|转发|评论|分享|举报|打印|字号|关闭)[\s\d|·:：()（）大中小]*)+"
        r"|(?:share (?:this|on|via)|tweet this|follow us|like us on|pin it|email this).{0,60}",
    ),
    "navigation": Notice(
        "上一篇 上一页 上一条 下一篇 下一页 下一条 返回 位置 首页 home_ skip_to back_to_top next_ "
        "previous_ related_ 相关 热门 猜你喜欢 推荐阅读",
        r"(?:[上下]一[篇页条]|(?:您?的?当前|您所在的?)位置)(?:(?:\s?[:：>]| ).{0,60})?"
        r"|返回(?:顶部|首页|列表|上页)\W{0,4}"
        r"|(?:首页|home)\s?[>»›|/·-].{0,60}"
        r"|(?:skip to (?:main )?(?:content|navigation)|back to top|next (?:page|post|article)"
        r"|previous (?:page|post|article)|related (?:posts|articles))\b.{0,20}"
        r"|(?:相关(?:阅读|文章|新闻|链接|推荐)|热门(?:推荐|文章)|猜你喜欢|推荐阅读)\s?[:：]?",
    ),
    "read_more": Notice(
        "阅读全文 查看更多 展开全文 点击查看 点击阅读 "
        "read_more continue_reading load_more show_more click_here",
        r".{0,30}(?:阅读全文|查看更多|展开全文|点击(?:查看|阅读)(?:全文|更多|原文|详情))\W{0,4}"
        r"|(?:read more|continue reading|load more|show more|click here(?: to .{0,30})?)\W{0,4}",
    ),
    "account": Notice(
        "登录 注册 忘记密码 sign_in sign_up log_in register forgot subscribe_to subscribe_now",
        r"(?:用户|免费)?(?:登录|注册|忘记密码)(?:[\s|/·]*(?:登录|注册|忘记密码|找回密码|退出))*\W{0,3}"
        r"|(?:sign in|log in|sign up|register|subscribe (?:to our|now)|forgot (?:your )?password)"
        r"(?:(?: or| to|,|\s?[|/]).{0,40})?\W{0,3}",
    ),
    "cookies": Notice(
        "cookie",
        r"(?:(?:we|(?:this|our) (?:web ?)?site)\b|by (?:using|continuing|clicking)\b)"
        r".{0,80}\bcookies?\b.{0,160}"
        r"|(?:accept|reject|manage|allow)(?: all)? cookies.{0,30}"
        r"|(?:我们|本网?站).{0,12}(?:使用|通过)\s?cookies?.{0,80}",
    ),
    "disclaimer": Notice(
        "声明: 声明： 仅代表作者 不代表本",
        r"[(（]?(?:免责声明|特别声明|郑重声明|版权声明)\s?[:：].{0,160}"
        r"|.{0,60}(?:仅代表作者(?:本人|个人)?的?观点|不代表本[网站]的?(?:观点|立场)).{0,60}",
    ),
    "script": Notice(
        "javascript JavaScript",
        r".{0,60}(?:enable|requires?|turn on|启用|开启).{0,20}javascript.{0,60}",
    ),
}
FORMS = {kind: re.compile(notice.form, re.IGNORECASE) for kind, notice in NOTICES.items()}
KIND_OF_WORD = {
    spelt: kind
    for kind, notice in NOTICES.items()
    for word in notice.words.split()
    for spelt in (
        word.replace("_", " "),
        word.replace("_", " ").capitalize(),
        word.replace("_", " ").title(),
        word.replace("_", " ").upper(),
    )
}
# Every alternative begins with a plain character, so the engine skips to those by a table.
WORDS = re.compile("|".join(map(re.escape, sorted(KIND_OF_WORD, key=len, reverse=True))))
BEGINNINGS = Beginnings(KIND_OF_WORD)
INLINE_CREDIT = re.compile(
    r"[(（【\[](?:责任编辑|责编|本文编辑|网页编辑|文字编辑|编辑)\s?[:：][^()（）【】\[\]\n]{1,24}[)）】\]]"
)


@dataclass(frozen=True)
class Boilerplate:
    """Removes notices line by line; says when too little of a text is left."""

    max_line_characters: int = 200
    """Longer lines are prose and stay."""
    min_remaining: float = 0.3
    """Least share of a text's characters that has to be left."""

    def may_change(self, batch: Batch) -> Mask:
        """Texts that `apply` may change; the others it would leave as they are. bool [texts]."""
        mask = np.array([_has_credit(text) for text in batch.texts], dtype=np.bool_)
        places = BEGINNINGS.places(batch)
        lines = np.searchsorted(batch.line_ends, places)
        starts, ends = batch.line_starts[lines], batch.line_ends[lines]
        owners = np.searchsorted(batch.starts, places, side="right") - 1
        spans = np.stack([starts, ends, places]) - batch.starts[owners]
        short = ends - starts <= self.max_line_characters
        for owner, (start, end, place) in zip(
            owners[short].tolist(), spans[:, short].T.tolist(), strict=True
        ):
            text = batch.texts[owner]
            word = None if mask[owner] else WORDS.match(text, place)
            mask[owner] |= word is not None and _is_notice(KIND_OF_WORD[word[0]], text[start:end])
        return mask

    def apply(self, text: str) -> Edited:
        """The text without notices. `counts`: lines removed, by kind (the keys of `NOTICES`), and
        credits in brackets inside a line as `credit`.
        """
        counts: dict[str, int] = {}
        kept: list[str] = []
        position = 0
        for start, end, kind in self._notices(text):
            kept.append(text[position:start])
            # Of the empty lines before and behind a notice one stays.
            between = text.endswith("\n\n", 0, start) and text.startswith("\n\n", end)
            position = end + 2 if between else end + 1
            counts[kind] = counts.get(kind, 0) + 1
        kept.append(text[position:])
        if counts:
            text = "".join(kept).strip("\n")
        if "编" in text:
            text, credits = INLINE_CREDIT.subn("", text)
            if credits:
                counts["credit"] = counts.get("credit", 0) + credits
        return Edited(text, counts)

    def reason(self, before: str, after: str) -> str | None:
        """`mostly_boilerplate` when too little of the text `before` is left `after`."""
        return "mostly_boilerplate" if len(after) < self.min_remaining * len(before) else None

    def _notices(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where lines to remove start and end, and their kind."""
        removed = 0
        for match in WORDS.finditer(text):
            if match.start() < removed:
                continue
            start = text.rfind("\n", 0, match.start()) + 1
            end = text.find("\n", match.end())
            end = len(text) if end < 0 else end
            kind = KIND_OF_WORD[match[0]]
            if end - start <= self.max_line_characters and _is_notice(kind, text[start:end]):
                removed = end
                yield start, end, kind


def _is_notice(kind: str, line: str) -> bool:
    return FORMS[kind].fullmatch(line.strip()) is not None


def _has_credit(text: str) -> bool:
    return "编" in text and INLINE_CREDIT.search(text) is not None
