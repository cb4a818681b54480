"""Deferral curves as a picture: an SVG that any browser shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 640, 420, 50
# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")
POINTS = 101


def svg(curves: Mapping[str, Sequence[float]]) -> str:
    """Accuracy over the share of remote calls, one line for each name; each curve has POINTS
    accuracies at even shares from 0 to 1."""
    low = min(min(values) for values in curves.values())
    high = max(max(values) for values in curves.values())
    span = max(high - low, 1e-9)

    def place(i: int, value: float, count: int) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * i / (count - 1)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / span
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, HEIGHT - 12, "share of prompts sent to the (simulated) remote", "middle"),
        _text(MARGIN, MARGIN - 20, "accuracy of the mixture", "start"),
        _text(MARGIN - 6, HEIGHT - MARGIN, f"{low:.2f}", "end"),
        _text(MARGIN - 6, MARGIN + 5, f"{high:.2f}", "end"),
        _text(MARGIN, HEIGHT - MARGIN + 18, "0", "middle"),
        _text(WIDTH - MARGIN, HEIGHT - MARGIN + 18, "1", "middle"),
        f'<path d="M{MARGIN},{MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}" fill="none" '
        'stroke="#888"/>',
    ]
    for row, (name, values) in enumerate(curves.items()):
        colour = COLOURS[row % len(COLOURS)]
        points = " ".join(place(i, value, len(values)) for i, value in enumerate(values))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        at = HEIGHT - MARGIN - 16 * (len(curves) - row)
        parts.append(_text(WIDTH - MARGIN - 4, at, name, "end", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{safe}</text>'
