import pytest

from data_prep.curation.code_points import Batch
from data_prep.curation.spam import TRADES, WORDS, spam_reasons
from tests.data_prep.curation.texts import COURT_ZH, GAMBLING_ZH, NEWS_ZH

ADULT = "本站提供成人视频在线观看，无码高清，激情视频每日更新，国产偷拍应有尽有。"
FORGERY = "专业代开发票，办证刻章，办理毕业证、学历办理，快速可靠，请来电咨询。"
PROMOTION = "兼职刷单日赚三百，加微信免费领取教程，月入过万不是梦，名额有限。"


@pytest.mark.parametrize(
    ("trade", "text"),
    [
        ("gambling", GAMBLING_ZH),
        ("adult", ADULT),
        ("forgery", FORGERY),
        ("promotion", PROMOTION),
    ],
)
def test_offers_of_a_trade(trade, text):
    assert spam_reasons(Batch([text]), 0.01)[0] == f"spam_{trade}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(NEWS_ZH, id="no word"),
        pytest.param(COURT_ZH, id="about gambling"),
        pytest.param("税务机关查处一起代开发票案，涉案人员办证刻章。", id="two words"),
        pytest.param("首存 无码 办假证 加微信", id="words of four trades"),
        pytest.param(FORGERY + NEWS_ZH * 20, id="few words for its length"),
        pytest.param("返水" * 50, id="one word often"),
    ],
)
def test_texts_that_stay(text):
    assert spam_reasons(Batch([text]), 0.01)[0] is None


def test_ordinary_words_that_hold_the_characters_of_an_offer():
    assert not WORDS.findall(
        "互联网投票系统，资料留存送审，虚假证明，钱包过期，曼彻斯特码，内存送货"
    )


def test_no_word_belongs_to_two_trades():
    words = [word for words in TRADES.values() for word in words.split()]
    assert len(words) == len(set(words))
