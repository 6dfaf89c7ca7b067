"""The report of a shift: one HTML file with its style, charts and pictures inside, which a browser prints or saves as PDF."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from nnet_edge import __version__
from nnet_edge.runtime.history.database import GRID
from nnet_edge.runtime.history.queries import History, Kept, Window, ms_between, utc
from nnet_edge.runtime.texts import text

SHOWN_REJECTS = 24
THUMBNAIL = 240  # pixels of a picture's width
WIDTH, HEIGHT, FOOT, LEFT = 960, 180, 22, 40  # of a chart
TONES = ("#1f5f96", "#c2571a", "#6a4fa3", "#2d7d5a", "#8a6d1d", "#4b5b66")
STYLE = Path(__file__).with_name("report.css")


def shift_report(history: History, window: Window, language: str) -> str:
    """The report as HTML, in a language of `texts.LANGUAGES`."""
    shift = history.shift(window)
    newest = list(history.verdicts(window, "rejects", SHOWN_REJECTS, newest_first=True))
    cameras = [one["camera"] for one in shift["cameras"]]

    def say(key: str, **values: object) -> str:
        return escape(text(language, key, **values))

    labelled = ", ".join(f"{count} {say(label)}" for label, count in shift["labels"]["held"].items())
    latency = shift["latency"]
    figures = [
        ("parts", number(shift["verdicts"]), ""),
        ("rejected", number(shift["rejects"]), ""),
        ("yield", share(shift["yield"]), ""),
        (
            "latency",
            "–" if latency is None else f"{latency['mean_ms']:.1f} / {latency['max_ms']:.0f} ms",
            say("mean_max"),
        ),
        ("labelled_counts", str(sum(shift["labels"]["held"].values())), labelled),
    ]
    if shift["outcomes"]:
        causes = ", ".join(f"{count} {escape(name)}" for name, count in shift["outcomes"].items())
        figures.append(("unanswered", number(sum(shift["outcomes"].values())), causes))
    cells = "".join(
        f"<div><dt>{say(key)}</dt><dd>{value}{f'<small>{more}</small>' if more else ''}</dd></div>"
        for key, value, more in figures
    )
    rows = [
        [escape(one["camera"]), number(one["verdicts"]), number(one["rejects"]), share(one["yield"])]
        for one in shift["cameras"]
    ]
    legend = "".join(
        f'<span><svg viewBox="0 0 10 10" style="width:10px;display:inline-block"><circle cx="5" cy="5" r="5" fill="{tone(n)}"/>'
        f"</svg> {escape(name)}</span>" for n, name in enumerate(cameras)
    )  # fmt: skip
    outages = [
        [escape(str(one["stream"])), escape(str(one["what"])), local(one["since"]),
         local(one["until"]) if one["until"] else say("until_now"), f"{one['took_s']:.0f} s", escape(str(one["reason"] or ""))]
        for one in shift["outages"][:50]
    ]  # fmt: skip
    drift = [
        [escape(str(one["stream"])), local(one["time"]), f"PSI {float(one['facts'].get('psi') or 0):.2f}"]
        for one in shift["drift"][:50]
    ]
    between = say("from_to", since=local(shift["since"]), until=local(shift["until"]))
    head = [say("camera"), say("parts"), say("rejected"), say("yield")]
    parts = [
        section(say("parts_title"), table(head, rows)),
        section(say("rejects_per_hour"), f'{hours_chart(shift, cameras)}<p class="legend">{legend}</p>'),
        section(say("score_time"), f'{scores_chart(shift, cameras)}<p class="legend">{say("score_legend")}</p>'),
        section(say("where_title"), places(shift, say("where_none"), language)),
        section(say("outages"), table([], outages) if outages else say("outages_none")),
        section(say("drift_title"), table([], drift) if drift else say("drift_none")),
        section(say("rejects"), f'<div class="rejects">{"".join(pictures(history, newest, language))}</div>', "many"),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{say('report_title')} {between}</title>\n"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{say("report_title")}</h1><p>{between}</p></header>\n<dl class="figures">{cells}</dl>\n'
        + "\n".join(parts)
        + f"\n<footer>nnet-edge {__version__} · {escape(history.path.name)}</footer>\n</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str, look: str = "") -> str:
    return f'<section class="{look}"><h2>{title}</h2>{body}</section>'


def number(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def tone(place: int) -> str:
    return TONES[place % len(TONES)]


def local(time: str) -> str:
    """The moment by this machine's clock."""
    return datetime.fromtimestamp(ms_between(utc(0), time) // 1000).strftime("%Y-%m-%d %H:%M:%S")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = f"<thead><tr>{''.join(f'<th>{title}</th>' for title in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{titles}<tbody>{body}</tbody></table>"


def marks(since: str, until: str) -> Iterator[str]:
    """Six moments below a chart."""
    span = ms_between(since, until)
    for place in range(6):
        time = local(utc(ms_between(utc(0), since) + span * place // 6))
        yield f'<text x="{LEFT + (WIDTH - LEFT) * place / 6:.0f}" y="{HEIGHT - 6}">{time[5:16]}</text>'


def hours_chart(shift: Mapping[str, Any], cameras: Sequence[str]) -> str:
    """Rejects of each hour, the cameras one above the other."""
    span, stacked, sums = max(1, ms_between(shift["since"], shift["until"])), dict[str, float](), dict[str, int]()
    for one in shift["hours"]:
        sums[one["time"]] = sums.get(one["time"], 0) + one["rejects"]
    top, scale = max([1, *sums.values()]), (WIDTH - LEFT) / span
    bars = []
    for one in shift["hours"]:
        begin = ms_between(shift["since"], one["time"])
        x, end = LEFT + scale * max(begin, 0), LEFT + scale * min(begin + 3_600_000, span)
        tall = (HEIGHT - FOOT - 14) * one["rejects"] / top
        below = stacked.get(one["time"], 0.0)
        stacked[one["time"]] = below + tall
        bars.append(
            f'<rect x="{x + 1:.1f}" y="{HEIGHT - FOOT - below - tall:.1f}" width="{max(1.0, end - x - 2):.1f}"'
            f' height="{tall:.1f}" fill="{tone(cameras.index(one["camera"]))}"><title>{escape(one["camera"])}: {one["rejects"]}'
            "</title></rect>"
        )
    return chart("".join(bars), str(top), shift)


def scores_chart(shift: Mapping[str, Any], cameras: Sequence[str]) -> str:
    """Mean of accepted and largest scores of each camera, divided by the threshold."""
    span = max(1, ms_between(shift["since"], shift["until"]))
    top = min(4.0, max([1.3, *(one["max"] for one in shift["scores"])]))

    def at(one: Mapping[str, Any], score: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT) * max(0, ms_between(shift["since"], one["time"])) / span
        return x, HEIGHT - FOOT - (HEIGHT - FOOT - 8) * min(score / top, 1)

    drawn = []
    for place, camera in enumerate(cameras):
        mine = [one for one in shift["scores"] if one["camera"] == camera]
        points = " ".join("{:.1f},{:.1f}".format(*at(one, one["mean"])) for one in mine if one["mean"] is not None)
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{tone(place)}" stroke-width="2"/>')
        for one in mine:
            x, y = at(one, one["max"])
            look = 'class="top"' if one["max"] > 1 else f'fill="{tone(place)}"'
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" {look}/>')
    _, rule = at({"time": shift["since"]}, 1.0)
    drawn.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH}" y1="{rule:.1f}" y2="{rule:.1f}"/>')
    return chart("".join(drawn), f"{top:.1f}", shift)


def chart(drawn: str, top: str, shift: Mapping[str, Any]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{HEIGHT - FOOT}"'
        f' y2="{HEIGHT - FOOT}"/><text x="0" y="14">{top}</text><text x="0" y="{HEIGHT - FOOT}">0</text>{drawn}'
        f"{''.join(marks(shift['since'], shift['until']))}</svg>"
    )


def places(shift: Mapping[str, Any], none: str, language: str) -> str:
    """Where regions lay, a picture a camera."""
    if not shift["places"]:
        return none
    found = []
    for place in shift["places"]:
        most, high = (
            max(cell["regions"] for cell in place["cells"]),
            100 * (place["height"] or 1) / (place["width"] or 1),
        )
        wide, tall = 100 / GRID, high / GRID
        cells = "".join(
            f'<rect x="{wide * cell["column"]:.2f}" y="{tall * cell["row"]:.2f}" width="{wide:.2f}" height="{tall:.2f}"'
            f' fill="#ff3b30" opacity="{0.2 + 0.8 * cell["regions"] / most:.2f}"/>' for cell in place["cells"]
        )  # fmt: skip
        lines = "<br>".join(
            escape(text(language, "where_line", n=cell["regions"], x=cell["x"], y=cell["y"]))
            for cell in place["cells"][:4]
        )
        found.append(
            f'<figure><svg viewBox="0 0 100 {high:.2f}" role="img">{cells}</svg><figcaption>'
            f"<b>{escape(place['camera'])}</b><br>{lines}</figcaption></figure>"
        )
    return f'<div class="places">{"".join(found)}</div>'


def pictures(history: History, rejects: Sequence[Kept], language: str) -> Iterator[str]:
    """The newest rejects with their pictures and labels."""
    for one in rejects:
        kinds = history.picture_kinds(one.id)
        best = next((kind for kind in ("overlay", "original") if kind in kinds), None)
        data = None if best is None else thumbnail(history.picture(one.id, best) or b"")
        source = "" if data is None else f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        image = f'<img alt="" src="{source}">' if source else ""
        held = one.labels[-1] if one.labels else None
        said = (
            ""
            if held is None
            else f"<br>{escape(held.who)}: {escape(text(language, held.label))} {escape(held.defect or '')}"
        )
        yield (
            f"<figure>{image}<figcaption>{escape(one.stream)} · {local(one.time)} · {one.score / one.threshold:.2f}{said}"
            "</figcaption></figure>"
        )


def thumbnail(data: bytes) -> bytes | None:
    """A small JPEG of the picture; None of one that cannot be read."""
    import cv2
    import numpy as np

    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        return None
    scale = min(1.0, THUMBNAIL / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
