import pytest

from data_prep.curation.code_points import Batch
from data_prep.curation.language import Language, LanguageRule
from tests.data_prep.curation.texts import (
    CELLS_ZH,
    NEWS_EN,
    NEWS_ZH,
    NOTE_ZH,
    REPORT_EN,
    REPORT_ZH,
    SHORT_NEWS_ZH,
    TRADITIONAL_ZH,
)

JAPANESE = (
    "日本銀行は金融政策決定会合で、政策金利を据え置くことを決めた。物価の見通しは変えていない。"
)
KOREAN = "한국은행은 기준금리를 연 3.50%로 유지하기로 결정했다고 밝혔다. 물가 상승률은 둔화되었다."
GERMAN = (
    "Die Zentralbank hat den Leitzins am Donnerstag nicht verändert. Nach Angaben der Bank ist die "
    "Inflation zwar gesunken, die Löhne steigen aber weiter schneller als die Produktivität."
)
FRENCH = (
    "La banque centrale a laissé son taux inchangé jeudi. Selon elle, l'inflation a ralenti "
    "mais les salaires augmentent toujours plus vite que la productivité des entreprises."
)
RUSSIAN = (
    "Центральный банк в четверг сохранил ключевую ставку на прежнем уровне, сообщила пресс-служба."
)
MIXED = "公司采用 Transformer 架构训练大语言模型，并在 GPU 集群上用 Megatron-LM 完成预训练和微调。"


@pytest.mark.parametrize(
    "text", [NEWS_ZH, SHORT_NEWS_ZH, REPORT_ZH, NOTE_ZH, CELLS_ZH, TRADITIONAL_ZH, MIXED]
)
def test_chinese(text):
    verdict = LanguageRule().identify(Batch([text]))[0]
    assert verdict.language is Language.ZH
    assert 0.3 <= verdict.score <= 1
    assert LanguageRule().reason(Batch([text]))[0] is None


@pytest.mark.parametrize("text", [NEWS_EN, REPORT_EN])
def test_english(text):
    verdict = LanguageRule().identify(Batch([text]))[0]
    assert verdict.language is Language.EN
    assert 0.5 <= verdict.score <= 1
    assert LanguageRule().reason(Batch([text]))[0] is None


@pytest.mark.parametrize("text", [JAPANESE, KOREAN, GERMAN, FRENCH, RUSSIAN, "2023 100.00 %", ""])
def test_anything_else_is_dropped(text):
    verdict = LanguageRule().identify(Batch([text]))[0]
    assert verdict.language is Language.OTHER
    assert 0.5 <= verdict.score <= 1
    assert LanguageRule().reason(Batch([text]))[0] == "other_language"


def test_thresholds_decide():
    few_words = LanguageRule(min_function_words=0.9)
    assert few_words.identify(Batch([NEWS_EN]))[0].language is Language.OTHER
    strict = LanguageRule(min_chinese=0.99)
    assert strict.identify(Batch([MIXED]))[0].language is Language.OTHER
