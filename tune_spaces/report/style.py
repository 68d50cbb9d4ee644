"""The page's looks: colours for light and dark declared once, as CSS properties that text and plots both read.

Series colours follow Okabe and Ito's palette for colour-blind readers ("Color Universal Design", 2008), darkened on
white and lightened on black until each stands out from its background by 3:1 (WCAG 2.2, 1.4.11); text by 4.5:1.
"""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#f6f7f9", "surface": "#ffffff", "raised": "#eef1f5", "ink": "#16202b", "muted": "#56626f",
    "line": "#d9dfe6", "grid": "#e6eaef", "accent": "#0a5fa8", "good": "#0a6b4b", "bad": "#a8231b", "unsure": "#7a5200",
    "good-soft": "#e2f3ec", "bad-soft": "#fbe9e7", "unsure-soft": "#fbf1dc",
    "c0": "#0072b2", "c1": "#c75300", "c2": "#007f5b", "c3": "#a8487f", "c4": "#806400", "c5": "#2a86c2",
    "c6": "#5f6a76", "c7": "#7a3e1d",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "page": "#0e1318", "surface": "#161d24", "raised": "#1f2831", "ink": "#e9eef3", "muted": "#9eabb8",
    "line": "#2c3742", "grid": "#26303a", "accent": "#74b9f5", "good": "#4fcf9f", "bad": "#ff8f84", "unsure": "#f2bf5b",
    "good-soft": "#12312a", "bad-soft": "#3a1d1c", "unsure-soft": "#362a13",
    "c0": "#4ea8e6", "c1": "#f58a3f", "c2": "#2fc498", "c3": "#e59ac7", "c4": "#f0e06a", "c5": "#a5dbff",
    "c6": "#aab4be", "c7": "#d19a74",
}  # fmt: skip
SERIES = 8
"""How many colours there are for variants; one more begins again, and its name in the hover tells it apart."""
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace'


def series(number: int) -> str:
    """The colour of the series of that number, as plots and CSS name it."""
    return f"var(--c{number % SERIES})"


def css() -> str:
    """The whole style sheet."""
    light, dark = _properties(LIGHT), _properties(DARK)
    return f"""
:root{{color-scheme:light;--font:{FONT};--mono:{MONO};{light}}}
@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}
:root[data-theme=dark]{{color-scheme:dark;{dark}}}
{_RULES}"""


def _properties(colours: Mapping[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in colours.items())


_RULES = """
*{box-sizing:border-box}
html{scroll-padding-top:4rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:400 1rem/1.55 var(--font)}
.wide{max-width:74rem;margin:0 auto;padding:0 1.25rem}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:4px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;z-index:9;background:var(--surface);padding:.4rem}
.bar{position:sticky;top:0;z-index:5;background:var(--surface);border-bottom:1px solid var(--line)}
.bar .wide{display:flex;align-items:center;gap:1.25rem;height:3.25rem}
.brand{font-weight:700;letter-spacing:.01em;display:flex;align-items:center;gap:.5rem}
.brand svg{width:1.25rem;height:1.25rem;color:var(--accent)}
nav{flex:1;min-width:0;overflow-x:auto;scrollbar-width:none;display:flex;gap:1.1rem;font-size:.9rem;padding:.25rem}
nav a{color:var(--muted);text-decoration:none;white-space:nowrap}nav a:hover{color:var(--ink)}
button{font:inherit;color:inherit;cursor:pointer;background:var(--surface);border:1px solid var(--line);
 border-radius:999px;padding:.25rem .8rem;font-size:.875rem}
button:hover{border-color:var(--muted)}
h1{font-size:1rem;font-weight:600;margin:2rem 0 .25rem;overflow-wrap:anywhere}
.when{margin:0;color:var(--muted);font-size:.9rem;overflow-wrap:anywhere}
h2{font-size:1.5rem;line-height:1.25;margin:0 0 .5rem;letter-spacing:-.01em}
#answer h2{font-size:clamp(1.9rem,4.5vw,2.6rem)}
h3{font-size:1rem;margin:1.75rem 0 .5rem}
section{margin:1.25rem 0;padding:1.75rem;background:var(--surface);border:1px solid var(--line);border-radius:14px}
p,li,h2,h3,summary,figcaption{overflow-wrap:anywhere}
th,td{overflow-wrap:break-word}
section>p,figcaption,.note{color:var(--muted);max-width:68ch;margin:.25rem 0 1rem}
.said{font-size:1.2rem;line-height:1.5;color:var(--ink)!important;max-width:60ch!important;overflow-wrap:anywhere}
.badge{display:inline-block;border-radius:999px;padding:.05rem .6rem;font-size:.85rem;font-weight:600;
 white-space:nowrap}
.said .badge{font-size:1rem;vertical-align:.1em;margin-right:.15rem}
.badge.holds{color:var(--good);background:var(--good-soft)}.badge.fails{color:var(--bad);background:var(--bad-soft)}
.badge.unclear{color:var(--unsure);background:var(--unsure-soft)}
.tag{display:inline-block;border:1px solid var(--line);border-radius:6px;padding:0 .4rem;font-size:.8rem;
 color:var(--muted)}.chosen .tag:first-of-type{color:var(--accent);border-color:var(--accent)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.9rem;margin:1.25rem 0}
.tile{background:var(--raised);border-radius:12px;padding:1rem 1.1rem;min-width:0;display:flex;flex-direction:column}
.tile .label{font-size:.85rem;color:var(--muted);flex:1;margin-bottom:.35rem}
.tile .figure{font-size:1.75rem;font-weight:650;line-height:1.2;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tile .figure small{font-size:.95rem;font-weight:500;letter-spacing:0}
.tile .was{font-size:.85rem;color:var(--muted)}
.scroll{overflow-x:auto;margin:.75rem 0 1rem}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.25rem 0 .5rem}
th,td{padding:.5rem .75rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0}th:last-child,td:last-child{padding-right:0}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--muted);font-weight:500;white-space:nowrap}tbody th{font-weight:500}
table.words td{text-align:left}table.words thead th{text-align:left}
table.words td,table.words th{overflow-wrap:anywhere}table.words tbody th{width:34%}
table.checks td:last-child{width:7rem;text-align:right}
table.long td{white-space:nowrap}table.long td:last-child{white-space:normal;min-width:8rem}
table.outcomes tbody th{min-width:13rem}table.trials :is(th,td):nth-child(-n+3){text-align:left}
tr.mark>*{background:var(--raised)}
.after{font-weight:650}
.aside{border-left:3px solid var(--unsure);padding:.1rem 0 .1rem 1rem;margin:1.25rem 0 0}
.aside h3{margin:.1rem 0 .25rem}.aside ul{margin:.25rem 0;padding-left:1.1rem}
.aside li{margin:.2rem 0;max-width:68ch}
figure{margin:1rem 0}
.chart{width:100%;height:27rem}.chart.low{height:22rem}
.chips{display:flex;flex-wrap:wrap;gap:.4rem;align-items:center;margin:.5rem 0}
.chips>span{color:var(--muted);font-size:.85rem;margin-right:.2rem}
.chip{display:inline-flex;align-items:center;gap:.4rem;max-width:100%;overflow-wrap:anywhere;text-align:left}
.chip i{flex:none;width:.7rem;height:.7rem;border-radius:50%;background:var(--swatch)}
.chip b{font-weight:400;color:var(--muted)}
.chip[aria-pressed=false]{opacity:.55;text-decoration:line-through}
.still{display:inline-flex;align-items:center;gap:.4rem;font-size:.875rem;margin-right:.8rem;color:var(--muted)}
.still i{width:.7rem;height:.7rem;border-radius:50%;background:var(--swatch)}
details{margin:.75rem 0}summary{cursor:pointer;color:var(--accent);font-size:.95rem}
.tree,.tree ul{list-style:none;margin:0;padding:0}
.tree ul{padding-left:1.5rem}
.tree li{position:relative;padding-top:.75rem}
.tree ul>li::before{content:"";position:absolute;left:-.9rem;top:0;bottom:0;border-left:1px solid var(--muted)}
.tree ul>li:last-child::before{bottom:auto;height:1.75rem}
.tree ul>li::after{content:"";position:absolute;left:-.9rem;top:1.75rem;width:.9rem;border-top:1px solid var(--muted)}
.node{border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem;min-width:0}
.node.chosen{border-color:var(--accent);box-shadow:0 0 0 1px var(--accent)}
.node header{display:flex;flex-wrap:wrap;gap:.35rem .6rem;align-items:baseline;overflow-wrap:anywhere}
.node .made{color:var(--muted);font-size:.85rem;overflow-wrap:anywhere}
.runs{display:grid;grid-template-columns:minmax(6rem,1fr) 12rem 14rem 10rem 6rem;gap:.1rem .9rem;font-size:.88rem;
 align-items:center;margin-top:.4rem;font-variant-numeric:tabular-nums}
.runs>*{min-width:0}
.runs svg{width:100%;height:1.3rem;display:block}.runs .badge{justify-self:end}
.zero{stroke:var(--muted)}.floor{stroke:var(--bad);stroke-dasharray:3 2}
.whisker{stroke:var(--ink);stroke-width:2}.dot{fill:var(--ink)}
.command{display:flex;gap:.75rem;align-items:center;background:var(--raised);border-radius:10px;padding:.7rem .9rem;
 margin:.5rem 0}
.command pre{flex:1;min-width:0;margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:.88rem/1.5 var(--mono)}
code{font-family:var(--mono);font-size:.9em;overflow-wrap:anywhere}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:0 2.5rem}
.columns>*{min-width:0}
footer{color:var(--muted);font-size:.85rem;padding:1rem 0 3rem}
@media (max-width:60rem){.runs{grid-template-columns:1fr auto;border-bottom:1px solid var(--line);padding-bottom:.5rem}
 .runs:last-child{border:0;padding:0}.runs>.wide-only{grid-column:1/-1}.runs>.badge{grid-row:1;grid-column:2}}
@media (max-width:40rem){.wide{padding:0 .75rem}section{padding:1.1rem .9rem;border-radius:10px}
 .bar .wide{gap:.75rem}.tiles{grid-template-columns:1fr 1fr;gap:.6rem}.tile{padding:.75rem .8rem}
 .tile .figure{font-size:1.35rem}.tree ul{padding-left:1rem}.tree ul>li::before,.tree ul>li::after{left:-.6rem}
 .tree ul>li::after{width:.6rem}.chart{height:24rem}th,td{padding:.45rem .4rem}
 thead th{white-space:normal}tbody th:first-child{min-width:7.5rem}}
@media print{.bar,button{display:none}section{break-inside:avoid;border:0}}
@media (prefers-reduced-motion:no-preference){html{scroll-behavior:smooth}}
"""
