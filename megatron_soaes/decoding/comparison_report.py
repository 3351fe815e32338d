"""A comparison for people: a table, a few sentences, and a plot."""

from __future__ import annotations

from html import escape
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_soaes.decoding.comparison import Comparison, LengthResult
from megatron_soaes.files import write_json, write_text

WIDTH, HEIGHT, MARGIN = 640, 360, 48
REPORT_WIDTH = 110
CAUTION = (
    "A small model's speedup is mostly arithmetic of how long its operations take to dispatch, and "
    "templated text flatters acceptance: for a real pair, predict from the acceptance measured on "
    "its own text and from its own cost ratio, by the formula of the ideal."
)


def write_comparison(found: Comparison, out: Path) -> Path:
    """Write the JSON and, beside it, the plot, whose path is returned."""
    plot = out.with_suffix(".svg")
    write_text(plot, plot_svg(found))
    write_json(out, found.as_json())
    return plot


def print_comparison(found: Comparison, console: Console) -> None:
    """Speed and acceptance by draft length, then what follows from them."""
    speed = Table(
        "draft length", "ms a token", "speedup", "95 % interval", "ideal", "expected",
        "break-even", "same text", title=_title(found),
    )  # fmt: skip
    speed.add_row("plain", f"{1000 * found.plain_seconds_per_token:.2f}", "1.00")
    if found.exact:
        seconds = found.plain_seconds_per_token_in_mode
        ratio = found.plain_seconds_per_token / seconds
        speed.add_row("plain, exact", f"{1000 * seconds:.2f}", f"{ratio:.2f}")
    acceptance = Table(
        "draft length", "acceptance rate", "of judged", "length without bonus", "with bonus",
        "accepted at place 1, 2, ...",
    )  # fmt: skip
    for one in found.lengths:
        speed.add_row(*_speed(one))
        acceptance.add_row(*_acceptance(one))
    console.print(speed)
    console.print(acceptance)
    for sentence in sentences(found):
        console.print(sentence, markup=False)


def comparison_text(found: Comparison) -> str:
    """What `print_comparison` shows, as plain text with tables of `REPORT_WIDTH` columns."""
    out = StringIO()
    print_comparison(found, Console(file=out, width=REPORT_WIDTH, highlight=False))
    return out.getvalue()


def _title(found: Comparison) -> str:
    mode = "exact mode" if found.exact else "fast mode"
    choice = "greedy" if found.sampling.greedy else f"temperature {found.sampling.temperature:g}"
    return (
        f"{found.prompts} prompts, {found.rows} at a time, {found.repeats} repeats, {choice}, "
        f"{mode}, target {found.target_dtype}, draft {found.draft_dtype}"
    )


def _name(one: LengthResult) -> str:
    return f"adaptive {one.draft_length}" if one.adaptive else str(one.draft_length)


def _speed(one: LengthResult) -> list[str]:
    even, same = one.break_even_acceptance, one.identity
    return [
        _name(one),
        f"{1000 * one.seconds_per_token:.2f}",
        f"{one.speedup.value:.2f}",
        f"{one.speedup.low:.2f} - {one.speedup.high:.2f}",
        _number(one.ideal_speedup, 2),
        _number(one.expected_speedup, 2),
        "never" if even is None else f"{even:.3f}",
        "sampled" if same is None else f"{same.equal} of {same.prompts}",
    ]


def _acceptance(one: LengthResult) -> list[str]:
    seen = one.acceptance
    drafted = bool(seen.by_position)
    return [
        _name(one),
        _number(seen.acceptance_rate if drafted else None, 3),
        _number(seen.acceptance_of_judged if drafted else None, 3),
        f"{seen.acceptance_length_without_bonus:.2f}",
        f"{seen.acceptance_length_with_bonus:.2f}",
        " ".join(f"{share:.2f}" for share in seen.by_position),
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def sentences(found: Comparison) -> list[str]:
    """Costs, where the ideal speedup stays, what is the same, and the recommendation."""
    costs = found.costs
    lines = [
        f"One pass: target {1000 * costs.target[0]:.2f} ms, draft {1000 * costs.draft:.2f} ms; "
        f"cost ratio {costs.cost_ratio:.3f}. Judging {costs.longest + 1} tokens: "
        f"{costs.target[-1] / costs.target[0]:.2f} passes.",
        _time(found),
        CAUTION,
    ]
    for one in found.lengths:
        if one.identity is not None and one.identity.equal_logits is not None:
            lines.append(
                f"Draft length {_name(one)}: logits bitwise those of plain decoding for "
                f"{one.identity.equal_logits} of {one.identity.prompts} prompts."
            )
        for split in () if one.identity is None else one.identity.divergences:
            state = "a near tie" if split.is_near_tie else "NOT explained by rounding"
            lines.append(
                f"Draft length {_name(one)}, prompt {split.prompt}: differs from plain decoding at "
                f"new token {split.position}, gap {split.gap:.3g} (bound {split.bound:.3g}): "
                f"{state}."
            )
    advice = found.recommendation
    lines.append(f"Recommendation: {'go' if advice.go else 'no-go'}. {advice.reason}.")
    return lines


def _time(found: Comparison) -> str:
    best, time = found.fastest, found.fastest.time
    plain = " over plain decoding in exact mode" if found.exact else ""
    return (
        f"Draft length {best.draft_length}: the ideal is {best.ideal_speedup:.2f}x{plain}, reached "
        f"{best.share_of_ideal:.0%}: drafting takes {time.drafting:.0%} of the time, judging "
        f"{time.judging:.0%}, the rest {time.rest:.0%}."
    )


def plot_svg(found: Comparison) -> str:
    """Measured speedup with its interval, and the ideal one, by draft length.

    Both over plain decoding in the same mode: the ideal is that of the mode's own passes.
    """
    fixed = [one for one in found.lengths if not one.adaptive]
    measured = [(one.draft_length, one.speedup_in_mode) for one in fixed]
    ideal = [(one.draft_length, one.ideal_speedup or 0.0) for one in fixed]
    top = max(1.5, *(one.high for _, one in measured), *(value for _, value in ideal)) * 1.05
    last = max(one.draft_length for one in fixed)
    plain = "plain decoding in exact mode" if found.exact else "plain decoding"

    def at(length: float, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * length / (last + 1)
        return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top

    def line(points: list[tuple[float, float]], style: str) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline points="{path}" fill="none" {style}/>'

    def text(x: float, y: float, words: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(words)}</text>'

    parts = [
        line([at(0, top), at(0, 0), at(last + 1, 0)], 'stroke="black"'),
        line([at(0, 1), at(last + 1, 1)], 'stroke="grey" stroke-dasharray="2 4"'),
        line(
            [at(length, value) for length, value in ideal],
            'stroke="grey" stroke-dasharray="6 4"',
        ),
        line([at(length, one.value) for length, one in measured], 'stroke="#0b63b0"'),
        text(WIDTH / 2, HEIGHT - 8, "draft length"),
        text(WIDTH / 2, 20, f"speedup over {plain}: measured (95 %), ideal (dashed)"),
    ]
    for length, one in measured:
        low, high = at(length, one.low), at(length, one.high)
        parts.append(line([low, high], 'stroke="#0b63b0" stroke-width="3"'))
        parts.append(text(low[0], HEIGHT - MARGIN + 18, str(length)))
    step = 0.5 if top < 4 else 1.0
    for number in range(int(top / step) + 1):
        x, y = at(0, number * step)
        parts.append(text(x - 20, y + 4, f"{number * step:g}"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="13">\n<rect width="100%" height="100%" '
        f'fill="white"/>\n{body}\n</svg>\n'
    )
