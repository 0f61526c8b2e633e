"""The report's plots as inline SVG: text stays text, colours follow the page (light, dark, print), nothing points outside.

Colours are Okabe and Ito's, told apart by colour-blind readers; wherever two groups meet, a second mark (dash, shape, fill)
tells them apart too. matplotlib is used through its objects alone, so no backend or global state of the user is touched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import IO, Any

import numpy as np

from entropy_chains.errors import InputError, MissingExtraError
from entropy_chains.files import write_file
from entropy_chains.offline.table import Array

COLOURS = {
    "--ink": "#1f2328",
    "--muted": "#59636f",
    "--line": "#d0d7df",
    "--paper": "#fffffe",
    "--blue": "#0072b2",
    "--orange": "#d55e00",
    "--green": "#009e73",
    "--purple": "#a8508a",
}
"""Names of the page's CSS colours, and the value that stands for each while matplotlib draws."""

INK, MUTED, LINE, PAPER, BLUE, ORANGE, GREEN, PURPLE = COLOURS.values()

MOST_DOTS = 1500
"""Dots of a scatter plot at most; above it a seeded part of the runs is drawn."""

STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a signal may be named "$x$"
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}


def drawn(name: str, alt: str, size: tuple[float, float], draw: Any) -> str:
    """A plot as an ``<svg>`` element.

    Args:
        name: makes the ids inside it unique on the page.
        alt: what the plot shows, in words.
        size: width and height in inches.
        draw: is given the axes to draw on.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    out = io.StringIO()
    _draw(out, "svg", size, draw, transparent=True, **{"svg.hashsalt": name})
    return _inline(out.getvalue(), name, alt)


def _draw(out: IO[Any], form: str, size: tuple[float, float], draw: Any, *, transparent: bool, **style: Any) -> None:
    """Draw on new axes and write the figure to an open file; ``form``: ``svg`` or ``png``."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    with mpl.rc_context({**STYLE, **style}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        figure.savefig(out, format=form, dpi=150, transparent=transparent, metadata={"Date": None} if form == "svg" else None)


def _inline(svg: str, name: str, alt: str) -> str:
    """The file as an element of a page: no prolog, no metadata, no namespaces, page colours, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, value in COLOURS.items():
        svg = svg.replace(value, f"var({variable})")
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1).strip()


def part_of(count: int, most: int, seed: int = 0) -> Array:
    """Indices of at most ``most`` of ``count`` things, a seeded draw in ascending order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def accuracy_against_tokens(
    curve: Array, fixed: Array, marks: Sequence[tuple[str, float, float]], policy_point: dict[str, Any] | None, judged: str
) -> str:
    """Accuracy against mean tokens a question.

    Args:
        curve: (tokens, accuracy) over thresholds, [points, 2]; accuracy is a fraction.
        fixed: (tokens, accuracy) of stopping after step 1, 2, …, [steps, 2].
        marks: ``full`` and ``oracle`` with their tokens and accuracy.
        policy_point: the policy's ``tokens``, ``accuracy``, ``tokens_error`` and ``accuracy_error`` (low, high distances), or None.
        judged: what the vertical axis counts.
    """

    def draw(axes: Any) -> None:
        axes.plot(curve[:, 0], 100 * curve[:, 1], color=BLUE, label="entropy rule, all thresholds", zorder=3)
        axes.plot(
            fixed[:, 0], 100 * fixed[:, 1], color=MUTED, marker="o", markersize=5, linestyle=":",
            label="fixed number of steps", zorder=2,
        )  # fmt: skip
        for number, (x, y) in enumerate(100 * fixed[:12] / (100, 1), 1):
            axes.annotate(str(number), (x, y), xytext=(0, -13), textcoords="offset points", ha="center", fontsize=8, color=MUTED)
        for name, x, y in marks:
            shape, colour = ("s", INK) if name == "full" else ("*", PURPLE)
            text = "full reasoning" if name == "full" else "oracle: where the final answer is first given"
            axes.plot([x], [100 * y], shape, color=colour, markersize=8 if name == "full" else 13, label=text, zorder=4)
        if policy_point:
            axes.errorbar(
                policy_point["tokens"], 100 * policy_point["accuracy"],
                xerr=policy_point["tokens_error"], yerr=100 * np.asarray(policy_point["accuracy_error"]),
                fmt="D", color=ORANGE, markersize=8, capsize=4, linewidth=1.6, label="this policy, 95 % intervals", zorder=5,
            )  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens a question (mean)")
        axes.set_ylabel(f"{judged} (%)")
        axes.figure.legend(loc="outside right center")

    alt = (
        f"{judged} against mean tokens a question: the entropy rule over all thresholds, stopping after a fixed number of steps, "
        "full reasoning, the oracle" + (", and this policy with 95 % intervals." if policy_point else ".")
    )
    return drawn("tradeoff", alt, (13.0, 4.6), draw)


def right_and_wrong(right: Array, wrong: Array, threshold: float | None, label: str, names: tuple[str, str]) -> str:
    """Histograms of a signal at step 1, each group's as shares of the group; a logarithmic axis where it spans two decades."""
    both = np.concatenate([right, wrong])
    positive = both[both > 0]
    logarithmic = len(positive) > 0 and float(np.quantile(positive, 0.98) / np.quantile(positive, 0.02)) > 100
    if logarithmic:
        floor = float(positive.min())
        edges = np.geomspace(floor, max(float(both.max()), floor * 1.01), 31)
        right, wrong = np.maximum(right, floor), np.maximum(wrong, floor)
    else:
        edges = np.linspace(min(0.0, float(both.min())), max(float(both.max()), 1e-9), 31)

    def draw(axes: Any) -> None:
        groups = ((right, BLUE, "-", 0.25, names[0]), (wrong, ORANGE, "--", 0.25, names[1]))
        for values, colour, dash, alpha, name in groups:
            if len(values):
                shares = 100 * np.histogram(values, edges)[0] / len(values)
                axes.stairs(shares, edges, fill=True, color=colour, alpha=alpha)
                axes.stairs(shares, edges, color=colour, linestyle=dash, linewidth=1.8, label=f"{name} (n = {len(values):,})")
        if threshold is not None and threshold > (0 if logarithmic else -np.inf):
            axes.axvline(threshold, color=INK, linewidth=1.4, linestyle="-.", label=f"threshold {threshold:.3g}: stop to the left")
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")  # powers of ten would need mathematical typesetting, which is off
            axes.xaxis.set_minor_formatter("")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label + (", logarithmic; zeros at the left edge" if logarithmic else ""))
        axes.set_ylabel("share of the group (%)")
        axes.figure.legend(loc="outside upper left", ncols=2)

    alt = f"Histograms of {label}: {len(right)} answers {names[0]}, {len(wrong)} {names[1]}"
    return drawn("signal", alt + (f", with the threshold {threshold:.3g}." if threshold is not None else "."), (6.2, 3.7), draw)


def stops(counts: Sequence[int], full: int) -> str:
    """How many runs stopped after each step, and how many ran in full; a last step where none can stop is left out."""
    counts = counts[:-1] if len(counts) > 1 and not counts[-1] else counts
    labels = [*(str(i) for i in range(1, len(counts) + 1)), "in full"]
    values = np.array([*counts, full], dtype=float)
    total = max(1.0, float(values.sum()))

    def draw(axes: Any) -> None:
        places = np.arange(len(values))
        bars = axes.bar(
            places, 100 * values / total, color=[BLUE] * len(counts) + [PAPER], edgecolor=[BLUE] * len(counts) + [MUTED]
        )
        if len(values) <= 16:
            axes.bar_label(bars, [f"{int(v):,}" if v else "" for v in values], color=MUTED, fontsize=9, padding=2)
        axes.margins(y=0.1)
        skip = -(-len(values) // 16)
        axes.set_xticks([*places[:-1:skip], places[-1]], [*labels[:-1:skip], labels[-1]])
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("stopped after step")
        axes.set_ylabel("questions (%)")

    text = ", ".join(f"{int(v)} after step {n}" for n, v in zip(labels[:-1], values[:-1], strict=True) if v) or "none early"
    return drawn("stops", f"Where runs stopped: {text}, {full} in full.", (6.2, 3.7), draw)


def durations(full: dict[str, Any], stopped: dict[str, Any], kind: str) -> str:
    """Seconds a question, two rows: a box from p50 to p95, mean ± standard deviation.

    Args:
        full: ``mean``, ``p50``, ``p95``, ``std`` in seconds.
        stopped: the same with stopping.
        kind: how the seconds were come by, for the axis.
    """

    def draw(axes: Any) -> None:
        for place, (row, colour, hatch) in enumerate(((stopped, BLUE, None), (full, MUTED, "///"))):
            axes.barh(place, row["p95"] - row["p50"], left=row["p50"], height=0.5, color=PAPER, edgecolor=colour, hatch=hatch)
            axes.plot([row["p50"]] * 2, [place - 0.25, place + 0.25], color=colour, linewidth=3)
            spread = row.get("std") or 0.0
            axes.errorbar(
                row["mean"], place, xerr=[[min(spread, row["mean"])], [spread]], fmt="o", color=INK, capsize=4, linewidth=1.4
            )
            text = f"median {row['p50']:.3g} s, p95 {row['p95']:.3g} s, mean {row['mean']:.3g} s"
            axes.annotate(text, (0, place + 0.36), xytext=(4, 0), textcoords="offset points", fontsize=9, color=MUTED)
        axes.set_yticks([0, 1], ["stopping", "full"])
        axes.set_ylim(-0.5, 1.7)
        axes.set_xlim(0, 1.04 * max(max(r["p95"], r["mean"] + (r.get("std") or 0.0)) for r in (full, stopped)) or 1.0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"seconds a question ({kind})")

    alt = "Latency: " + "; ".join(
        f"{name} median {row['p50']:.3g} s, 95th percentile {row['p95']:.3g} s, mean {row['mean']:.3g} s"
        for name, row in (("in full", full), ("with stopping", stopped))
    )
    return drawn("latency", alt + ".", (6.2, 3.7), draw)


def tokens_a_question(full: Array, stopped: Array, lost: Array, gained: Array, names: tuple[str, str]) -> str:
    """Each question's tokens with stopping against in full; arrays over runs. ``names`` of what is gained and lost."""
    part = part_of(len(full), MOST_DOTS)
    full, stopped, lost, gained = full[part], stopped[part], lost[part], gained[part]

    def draw(axes: Any) -> None:
        top = float(max(full.max(), stopped.max(), 1)) * 1.04
        axes.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle="--", label="nothing saved")
        plain = ~(lost | gained)
        axes.scatter(full[plain], stopped[plain], s=13, color=BLUE, alpha=0.45, linewidths=0, label="neither")
        for chosen, shape, colour, name in (
            (gained, "^", GREEN, names[0]),
            (lost, "x", ORANGE, names[1]),
        ):
            if chosen.any():
                axes.scatter(full[chosen], stopped[chosen], s=34, marker=shape, color=colour, linewidths=1.6, label=name)
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_xlabel("tokens in full")
        axes.set_ylabel("tokens with stopping")
        axes.figure.legend(loc="outside upper left", ncols=2)

    alt = (
        f"Tokens of {len(full)} questions with stopping against in full: {int((stopped < full).sum())} lie below the diagonal "
        f"(saved); {int(lost.sum())} {names[1]}, {int(gained.sum())} {names[0]}."
    )
    return drawn("tokens", alt, (6.2, 4.0), draw)


HOW = {
    "certified": ("o", BLUE),
    "published": ("D", ORANGE),
    "none": ("s", INK),
    "hindsight": ("*", PURPLE),
}
"""Mark and colour of a compared rule, by how its parameter was set."""


def figure_format(path: Path) -> str:
    """``png`` or ``svg``, from a file's name. Raises InputError for any other."""
    form = path.suffix.lower().removeprefix(".")
    if form not in ("png", "svg"):
        raise InputError(f"the plot's file is {str(path)!r}; its name must end in .png or .svg")
    return form


def grouped_places(
    places: Sequence[tuple[float, float]], apart: tuple[float, float]
) -> list[tuple[tuple[float, float], list[int]]]:
    """Places from left to right whose labels have room, each with the indices of those too near to it for one of their own."""
    groups: list[tuple[tuple[float, float], list[int]]] = []
    for n in sorted(range(len(places)), key=lambda n: places[n]):
        x, y = places[n]
        near = (held for at, held in groups if abs(at[0] - x) < apart[0] and abs(at[1] - y) < apart[1])
        held = next(near, None)
        if held is None:
            groups.append((places[n], [n]))
        else:
            held.append(n)
    return [(at, sorted(held)) for at, held in groups]


def saved_against_change(path: Path, form: str, figures: Mapping[str, Any]) -> None:
    """Accuracy change against tokens saved of compared rules, with the Pareto front; ``figures``: the object of ``compare --json``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    gold = figures["labels"] == "gold"
    rules = [r for r in figures["rules"] if r["applicable"]]
    places = [(100 * r["tokens_saved"], 100 * (r["accuracy_change"] if gold else -r["lost_share"])) for r in rules]

    def draw(axes: Any) -> None:
        front = sorted({place for place, r in zip(places, rules, strict=True) if r["pareto"]})
        axes.plot(*zip(*front, strict=True), color=MUTED, linestyle="--", linewidth=1.2, zorder=2)
        for n, ((x, y), r) in enumerate(zip(places, rules, strict=True), 1):
            shape, colour = HOW[r["method"]]
            for bounds, flat in ((r["tokens_saved_interval"], True), (r["accuracy_change_interval"], False)):
                if bounds:
                    ends, held = [100 * b for b in bounds], [y, y] if flat else [x, x]
                    axes.plot(*((ends, held) if flat else (held, ends)), color=colour, alpha=0.22, linewidth=1.2, zorder=2)
            inside = colour if r["within_max_loss"] else PAPER
            label = f"{n}  {r['rule']}" + ("" if r["method"] in ("none", "hindsight") else f" ({r['method']})")
            size = 12 if shape == "*" else 7
            axes.plot([x], [y], shape, color=colour, markerfacecolor=inside, markersize=size, label=label, zorder=4)
        apart = (0.02 * np.ptp(axes.get_xlim()), 0.04 * np.ptp(axes.get_ylim()))
        for n, (place, numbers) in enumerate(
            grouped_places(places, apart)
        ):  # above and below in turn, so that neighbours stay legible
            at = (5, 6) if n % 2 else (5, -13)
            text = ", ".join(str(i + 1) for i in numbers)
            axes.annotate(text, place, xytext=at, textcoords="offset points", fontsize=9, color=INK, zorder=5)
        axes.set_xlabel("tokens saved (%), probes paid")
        axes.set_ylabel("change of accuracy (points)" if gold else "runs with another answer (%, negative)")
        limit = f"{100 * figures['max_loss']:.3g} %"
        title = f"dashed: nothing beats these; hollow: lost more than {limit} of the runs; lines: 95 % intervals"
        axes.set_title(title, fontsize=9.5, color=MUTED)
        axes.figure.legend(loc="outside right center")

    drawn = io.BytesIO()
    _draw(drawn, form, (11.0, 5.6), draw, transparent=False)
    write_file(path, drawn.getvalue())
