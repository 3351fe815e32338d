import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.boilerplate import NOTICES, Boilerplate
from data_prep.curation.code_points import Batch
from tests.data_prep.curation.texts import NEWS_EN, NEWS_ZH, NOTE_ZH, REPORT_EN, REPORT_ZH

NOTICE_LINES = [
    ("copyright", "版权所有 © 2024 某某集团有限公司"),
    ("copyright", "京ICP备12345678号-1 京公网安备11010102001234号"),
    ("copyright", "未经授权不得转载，违者必究。"[:6] + "禁止转载"),
    ("copyright", "Copyright © 2024 Example Inc. All Rights Reserved."),
    ("copyright", "(c) 2023 Example Inc."),
    ("credit", "责任编辑：王小明"),
    ("credit", "（责编：李红、张伟）"),
    ("credit", "编辑: 陈晨"),
    ("share", "分享到：微信 微博 QQ空间"),
    ("share", "扫一扫在手机打开当前页"),
    ("share", "点赞 12 收藏 3 转发"),
    ("share", "字号：大 中 小 打印 关闭"),
    ("share", "Share this on Facebook"),
    ("share", "Follow us on Twitter"),
    ("navigation", "上一篇：国资委召开会议"),
    ("navigation", "下一页"),
    ("navigation", "返回顶部"),
    ("navigation", "当前位置：首页 > 新闻中心 > 正文"),
    ("navigation", "首页 > 信息公开"),
    ("navigation", "相关阅读"),
    ("navigation", "Skip to main content"),
    ("navigation", "Home > News"),
    ("read_more", "点击查看更多"),
    ("read_more", "Read More »"),
    ("account", "登录 | 注册"),
    ("account", "Sign in or create an account"),
    ("cookies", "We use cookies to give you the best experience on our site."),
    ("cookies", "Accept all cookies"),
    ("cookies", "本网站使用cookies以改善您的体验"),
    ("disclaimer", "免责声明：以上内容仅供参考，不构成投资建议。"),
    ("disclaimer", "本文仅代表作者个人观点，与本网无关。"),
    ("script", "Please enable JavaScript to view this page."),
]

PROSE_LINES = [
    "公司拥有该软件的版权，并已完成登记。",
    "双方就该作品的版权所有权达成一致，并签订了协议。",
    "未经股东大会批准，公司不得为他人提供担保。",
    "董事会郑重声明：本报告所载资料不存在虚假记载。",
    "下一页的图表显示了各业务板块的收入构成。",
    "下一条高速公路将于明年开工。",
    "关注我们身边的变化，是记者的职责。",
    "她把学习心得分享到了班级群里，同学们很受启发。",
    "登录系统后，申请人可以查询办理进度并下载结果。",
    "总编辑在会上介绍了报社的发展规划。",
    "Copyright law protects original works of authorship.",
    "(c) the Company has not been notified of any claim;",
    "The regulator fined the company for setting cookies without consent.",
    "Bake the cookies until the edges are brown, and let them cool.",
    "The next page of the report describes the method.",
    "Follow the path along the river and turn left at the bridge.",
]


@pytest.mark.parametrize(("kind", "line"), NOTICE_LINES)
@pytest.mark.parametrize("place", ["before", "between", "behind"])
def test_a_notice_goes_and_is_counted(kind, line, place):
    first, *rest = NEWS_ZH.split("\n")
    lines = {
        "before": [line, first, *rest],
        "between": [first, line, *rest],
        "behind": [first, *rest, line],
    }
    edited = Boilerplate().apply("\n".join(lines[place]))
    assert edited.text == NEWS_ZH
    assert edited.counts == {kind: 1}


@pytest.mark.parametrize("line", PROSE_LINES)
def test_a_sentence_about_such_things_stays(line):
    edited = Boilerplate().apply(f"{line}\n{NEWS_ZH}")
    assert edited.text == f"{line}\n{NEWS_ZH}"
    assert not edited.counts


@pytest.mark.parametrize("text", [NEWS_ZH, REPORT_ZH, NOTE_ZH, NEWS_EN, REPORT_EN, ""])
def test_texts_without_notices_are_left_as_they_are(text):
    assert Boilerplate().apply(text).text == text


def test_every_kind_has_an_example():
    assert {kind for kind, _ in NOTICE_LINES} == set(NOTICES)


def test_an_english_page():
    page = (
        "Skip to main content\nHome > Business\n"
        + NEWS_EN
        + "\n\nShare this on Facebook\n\nRead more\n"
        "By continuing you agree that we and our partners may set cookies.\n"
        "Copyright 2024 Example Media. All rights reserved."
    )
    edited = Boilerplate().apply(page)
    assert edited.text == NEWS_EN
    assert edited.counts == {
        "navigation": 2,
        "share": 1,
        "read_more": 1,
        "cookies": 1,
        "copyright": 1,
    }


def test_a_credit_inside_a_line():
    edited = Boilerplate().apply(f"{NEWS_ZH}（责任编辑：王小明）")
    assert edited.text == NEWS_ZH
    assert edited.counts == {"credit": 1}


def test_one_empty_line_stays_where_a_notice_stood():
    assert Boilerplate().apply("甲\n\n返回顶部\n\n乙").text == "甲\n\n乙"
    assert Boilerplate().apply("甲\n\n返回顶部\n\n下一页\n\n乙").text == "甲\n\n乙"


def test_long_lines_stay():
    line = "免责声明：" + "以上内容仅供参考。" * 10
    assert Boilerplate().apply(line).text == ""
    assert Boilerplate(max_line_characters=20).apply(line).text == line


def test_a_page_of_notices_is_dropped():
    rule = Boilerplate()
    notices = "\n".join(line for _, line in NOTICE_LINES)
    page = notices + "\n某公司新闻\n"
    assert rule.reason(page, rule.apply(page).text) == "mostly_boilerplate"
    page = NEWS_ZH + "\n责任编辑：王小明"
    assert rule.reason(page, rule.apply(page).text) is None


LINES = st.sampled_from([line for _, line in NOTICE_LINES] + PROSE_LINES + [""])


@given(st.lists(LINES, max_size=8))
def test_removing_twice_changes_nothing(lines):
    rule = Boilerplate()
    once = rule.apply("\n".join(lines)).text
    assert rule.apply(once).text == once


def test_every_notice_is_in_a_text_that_may_change():
    lines = [line for _, line in NOTICE_LINES]
    assert Boilerplate().may_change(Batch(lines)).all()
    assert Boilerplate().may_change(Batch([f"{NEWS_ZH}（责任编辑：王小明）"])).all()
    assert not Boilerplate().may_change(Batch(["甲乙丙丁", ""])).any()
