import pytest

from data_prep.curation.code_points import Batch
from data_prep.curation.quality_en import QualityEn
from tests.data_prep.curation.texts import NEWS_EN, REPORT_EN

SENTENCE = "The committee will meet again in March to decide on the budget of the coming year. "
LINKS = """\
Home
About us
The board of directors
Products and services
News and events
Careers with us
Contact
Terms of use
Privacy
Site map
Follow the company
Download our brochure
Partners of the group
Where to buy
Frequently asked questions
The history of our company"""
PROGRAM = """\
The function of this module and that of the next one:
int main(void) {if (ready) {start();} else {stop();} return result;}
void stop(void) {while (running) {wait();} exit(result);} // to be called with care
void start(void) {running = true; for (;;) {step();}} // to be called by the user"""


def reason(text: str, rule: QualityEn | None = None) -> str | None:
    return (rule or QualityEn()).reason(Batch([text]))[0]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(NEWS_EN, id="short news"),
        pytest.param(REPORT_EN, id="annual report"),
        pytest.param("\n".join([NEWS_EN, REPORT_EN] * 300), id="300,000 characters"),
        pytest.param(
            "\n".join(REPORT_EN.split("\n")[:2] * 2 + REPORT_EN.split("\n")[3:]), id="table"
        ),
    ],
)
def test_what_is_wanted_stays(text):
    assert reason(text) is None


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("en_too_short", SENTENCE),
        ("en_word_length", "I am to be in it as we go on up to it or so we do " * 4),
        ("en_word_length", "internationalization counterrevolutionaries " * 20),
        ("en_few_letters", SENTENCE * 2 + "| + = | " * 20),
        (
            "en_no_function_words",
            "Cheap watches online store best price watches discount sale now " * 5,
        ),
        ("en_placeholder_text", SENTENCE * 2 + "Lorem ipsum dolor sit amet. " + SENTENCE),
        ("en_symbols", SENTENCE.replace("e ", "e# ") * 3),
        ("en_program", PROGRAM),
        ("en_bullet_lines", "\n".join(f"- {SENTENCE}" for _ in range(5))),
        ("en_ellipsis_lines", "\n".join(f"{SENTENCE.strip()}.." for _ in range(5))),
        ("en_unfinished_lines", LINKS),
        ("en_short_lines", "\n".join(f"{line}." for line in LINKS.split("\n"))),
    ],
)
def test_what_is_not_wanted_is_dropped_with_its_reason(expected, text):
    assert reason(text) == expected


def test_thresholds_are_fields():
    assert reason(NEWS_EN, QualityEn(min_words=500)) == "en_too_short"
    assert reason(PROGRAM, QualityEn(max_braces=1.0)) is None
