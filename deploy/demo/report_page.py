"""report.html: the demonstration's report as one page that needs nothing from outside.

Takes the values of report.json and returns HTML. Everything that is not written here is escaped:
prompts and answers are other people's text. Measures nothing.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from deploy.demo.report_plots import learning_plot, stalls_plot, timeline_plot, win_rate_plot
from deploy.demo.report_words import headline, shown, summary_rows

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #d5d9de; --ground: #fbfbfa;
  --card: #ffffff; --soft: #5b636d; --one: #1f6feb; --two: #c2570c; --good: #18794e;
  --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --faint: #363c44;
  --ground: #14171a; --card: #1c2024; --soft: #9aa4af; --one: #6cb0ff; --two: #f0a35e;
  --good: #5fd39a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
h1 { font-size: clamp(1.25rem, 4.5vw, 1.9rem); line-height: 1.25; margin: .5rem 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft { color: var(--soft); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem;
  margin: 1.1rem 0; }
.tile, .plot, .sample { background: var(--card); border: 1px solid var(--faint);
  border-radius: .5rem; padding: .7rem .8rem; min-width: 0; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; }
.tile span { color: var(--soft); font-size: .82rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: .8rem; align-items: start; }
.plot h3 { margin: 0 0 .3rem; font-size: .95rem; }
.plot svg { display: block; width: 100%; height: auto; font-family: inherit; }
.plot svg text { font-family: inherit !important; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--faint);
  vertical-align: top; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); width: 45%; }
.sample { margin: 0 0 .8rem; }
.sample > p { font-weight: 600; margin: 0 0 .5rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr));
  gap: .4rem 1.4rem; }
.pair p { margin: .1rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .95rem; }
.tag { color: var(--soft); font-size: .8rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    body = [
        _head(report),
        _tiles(report),
        _plots(report),
        _section("Figures", _table(_rows(report))),
        _section("Samples, drawn at random", _samples(report)),
        _section("How it was measured", _method(report)),
        _section("What the gate saw", _table(_gate_rows(report))),
    ]
    title = f"InstructLoop demonstration: {report['judge']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    return (
        f"<h1>{_text(headline(report))}</h1>"
        '<p class="soft">One turn of the loop on one machine: answers were ranked by simulated '
        "raters with a known taste, a reward model was trained on the rankings, the policy by "
        f"PPO-ptx on the reward model. Seed {_text(report['seed'])}.</p>"
    )


def _tiles(report: Mapping[str, Any]) -> str:
    rate, stall = report["win_rate"], report["longest_stall_seconds"]
    low, high = rate["interval"]
    tiles = [
        (f"{rate['value']:.1%}", f"win rate, {low:.1%} to {high:.1%}"),
        (shown(report["kl_per_token"], ".3f"), "KL a token, in nats"),
        (shown(report["pretraining_loss_change"], "+.4f"), "pretraining loss, nats a token"),
        (f"{report['failed_requests']} of {report['requests']}", "requests failed meanwhile"),
        (shown(stall, ".2f", " s"), "longest stall at the swap"),
        (f"{report['seconds'] / 60:.1f} min", "from start to report"),
    ]
    shown_tiles = (
        f'<div class="tile"><b>{_text(value)}</b><span>{_text(name)}</span></div>'
        for value, name in tiles
    )
    return f'<div class="tiles">{"".join(shown_tiles)}</div>'


def _plots(report: Mapping[str, Any]) -> str:
    plots = [
        ("Win rate on unseen prompts", win_rate_plot(report)),
        ("Waits around the swap", stalls_plot(report["gaps"], report["first_chunks"])),
        ("Learning", learning_plot(report["iterations"])),
        ("Time", timeline_plot(report["phase_seconds"], report["stage_seconds"])),
    ]
    drawn = (f'<div class="plot"><h3>{_text(name)}</h3>{svg}</div>' for name, svg in plots if svg)
    return f'<div class="plots">{"".join(drawn)}</div>'


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = f"{report['first_version']} → {report['new_version']}"
    return [("first version → new version", versions), *summary_rows(report)]


def _samples(report: Mapping[str, Any]) -> str:
    chosen = (report["answers"][i] for i in report["samples"])
    return "".join(_sample(report, answer) for answer in chosen)


def _sample(report: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    sides = [(report["first_version"], "first"), (report["new_version"], "new")]
    pair = "".join(
        f'<div><span class="tag">{_text(f"{name} ({side})")} · {_verdict(answer, side)}</span>'
        f"<p>{_text(answer[side]['text']) or '<i>no text</i>'}"
        f"{'' if answer[side]['finished'] else ' <span class=tag>[cut off]</span>'}</p></div>"
        for name, side in sides
    )
    return (
        f'<div class="sample"><p>{_text(answer["prompt"])}</p><div class="pair">{pair}</div></div>'
    )


def _verdict(answer: Mapping[str, Any], side: str) -> str:
    """The score of one side, and whether that side has the higher one."""
    other = answer["new" if side == "first" else "first"]
    score = answer[side]["score"]
    shown_score = f"score {score:.3g}"
    if answer[side]["broken"]:
        return f'{shown_score} · <span class="bad">broken, lost</span>'
    if other["broken"] or score > other["score"]:
        return f'{shown_score} · <span class="good">preferred</span>'
    return shown_score if score < other["score"] else f"{shown_score} · tie"


def _method(report: Mapping[str, Any]) -> str:
    said = report["collected"]
    ended = said["ended"] / said["answers"] if said["answers"] else 0.0
    return _paragraphs(
        f"Both versions answered the same {report['win_rate']['n']} prompts of "
        f"{report['win_rate']['users']} users, sampled at temperature 1. No template, topic or "
        "user of these prompts occurs in training, in the choice of checkpoints or in the vote "
        f"of the gate. The raters' own judge `{report['judge']}` scored each answer; equal scores "
        "count one half; a broken answer (empty, looping, not made of words) of the new version "
        "counts as lost, one of the first version as lost to any that is not broken. The intervals "
        "are 95 % bootstrap intervals over users and cover the choice of prompts, not of seeds.",
        f"The raters saw {said['answers']} answers to {said['prompts']} prompts, "
        f"{ended:.0%} of which ended by themselves, and gave {said['rankings']} rankings that may "
        f"train ({said['pairs']} pairs, {said['tied_pairs']} more tied) and "
        f"{said['heldout_rankings']} that only test.",
        "Samples are drawn with the seed, not chosen. All answers are in report.json.",
    )


def _gate_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    gate = report["gate"]
    reasons = [str(reason) for reason in gate.get("reasons", [])]
    rows = [("outcome of the round", str(report["outcome"])), ("reason", str(report["reason"]))]
    rows += [("gate", "; ".join(reasons) or "no remarks")] if gate else []
    rate = report["card_figures"].get("win_rate_vs_parent")
    if isinstance(rate, Mapping) and "interval" in rate:
        low, high = rate["interval"]
        said = f"{rate['value']:.1%}, {low:.1%} to {high:.1%}"
        rows.append(("win rate over the parent by held-out votes", said))
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    lines = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(lines)}</table>"


def _section(title: str, body: str) -> str:
    return f"<h2>{_text(title)}</h2>{body}"


def _paragraphs(*texts: str) -> str:
    return "".join(f"<p>{_text(text)}</p>" for text in texts)


def _text(value: object) -> str:
    return escape(str(value), quote=True)
