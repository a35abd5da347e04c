"""Numbers as text: percentages, differences in percentage points, p-values and intervals.

Tables in the terminal, files, the HTML report and the study's pages all use these formats.
"""

from __future__ import annotations

import math


def format_percent(share: float, sd: float | None = None) -> str:
    """A share of 1 in percent, with its standard deviation where there is one.

    Example:
        >>> format_percent(0.8694), format_percent(0.861, 0.0021)
        ('86.9', '86.1 ± 0.2')
    """
    return f"{100 * share:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


def format_points(share: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, with its sign.

    Example:
        >>> format_points(0.625), format_points(-0.0004), format_points(-0.0004, digits=2)
        ('+62.5', '0.0', '-0.04')
    """
    points = round(100 * share, digits)
    return f"{points:+.{digits}f}" if points else f"{0:.{digits}f}"


def format_points_interval(low: float, high: float) -> str:
    """The interval of a difference of two shares, in percentage points.

    Example:
        >>> format_points_interval(-0.05, 0.125)
        '[-5.0, +12.5]'
    """
    return f"[{format_points(low)}, {format_points(high)}]"


def format_nats(loss: float, sd: float | None = None, *, sign: bool = False) -> str:
    """A log-loss in nats, or a difference of two with its sign.

    Example:
        >>> format_nats(0.6931), format_nats(0.5, 0.02), format_nats(0.0125, sign=True)
        ('0.693', '0.500 ± 0.020', '+0.013')
    """
    text = f"{loss:+.3f}" if sign and round(loss, 3) else f"{abs(loss) if sign else loss:.3f}"
    return text + ("" if sd is None else f" ± {sd:.3f}")


def format_words(words: float, sd: float | None = None, *, sign: bool = False) -> str:
    """A number of words, or a difference of two with its sign.

    Example:
        >>> format_words(48.25), format_words(12.0, 0.5), format_words(-1.26, sign=True)
        ('48.2', '12.0 ± 0.5', '-1.3')
    """
    text = f"{words:+.1f}" if sign and round(words, 1) else f"{abs(words) if sign else words:.1f}"
    return text + ("" if sd is None else f" ± {sd:.1f}")


def score_decimals(largest: float) -> int:
    """Decimals of scores: three, or as many as give the largest of them three digits.

    Probes' scores are between 0 and 1, gradients and learned gates often below 0.01.

    Args:
        largest: The largest absolute score.

    Example:
        >>> score_decimals(0.87), score_decimals(0.0123), score_decimals(0.0)
        (3, 4, 3)
    """
    return max(3, 2 - math.floor(math.log10(largest))) if largest > 0 else 3


def format_p_value(p: float) -> str:
    """A p-value with four decimals below 0.1 and two from there on.

    Example:
        >>> format_p_value(0.000012), format_p_value(0.0213), format_p_value(0.62)
        ('<0.0001', '0.0213', '0.62')
    """
    if p < 0.0001:
        return "<0.0001"
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def format_interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """The interval of a coefficient; `-` where it is not defined, which is None or NaN.

    Example:
        >>> format_interval(-0.754, 0.3451), format_interval(float("nan"), float("nan"))
        ('-0.754 to 0.345', '-')
    """
    if low is None or high is None or not math.isfinite(low):
        return "-"
    return f"{low:.{digits}f} to {high:.{digits}f}"
