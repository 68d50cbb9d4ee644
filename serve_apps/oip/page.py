"""GET /v2/docs: a page for people, which reads the OpenAPI description beside it and lets every request be tried.

One file that needs nothing else, made of what stands here. Its content security policy lets it ask its own server only,
and run no script but its own, known by its hash; what a model is called is text to it and never markup.
"""

from __future__ import annotations

import base64
import hashlib

from serve_apps.oip.page_script import SCRIPT

_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--surface:#fff;--raised:#eef1f5;--ink:#16202b;--muted:#56626f;
--line:#d9dfe6;--accent:#0a5fa8;--good:#0a6b4b;--bad:#a8231b;
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
@media (prefers-color-scheme:dark){:root{--page:#0e1318;--surface:#161d24;--raised:#1f2831;--ink:#e9eef3;
--muted:#9eabb8;--line:#2c3742;--accent:#74b9f5;--good:#4fcf9f;--bad:#ff8f84}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:400 1rem/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.6rem;margin:0 0 .25rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .6rem}
h3{font-size:.95rem;margin:1.1rem 0 .4rem}p{margin:.4rem 0}.muted{color:var(--muted)}
code,pre,textarea{font:.85rem/1.45 var(--mono)}
pre{background:var(--raised);border-radius:6px;padding:.7rem .8rem;margin:.4rem 0;overflow:auto;max-height:24rem}
table{border-collapse:collapse;width:100%;font-size:.92rem}.scroll{overflow-x:auto}
th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--muted);font-weight:500}
details{background:var(--surface);border:1px solid var(--line);border-radius:8px;margin:.5rem 0}
summary{cursor:pointer;padding:.6rem .8rem;display:flex;gap:.8rem;align-items:baseline;flex-wrap:wrap}
summary code{overflow-wrap:anywhere}summary .muted{margin-left:auto}
.body{padding:0 .8rem .9rem;border-top:1px solid var(--line)}
.verb{font:600 .75rem var(--mono);min-width:3rem;color:var(--accent)}.verb.post{color:var(--good)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:4px}
form{display:grid;grid-template-columns:minmax(0,1fr);gap:.6rem;margin-top:.4rem}label{display:grid;gap:.2rem;font-size:.9rem}
input,select,textarea{font:inherit;color:inherit;background:var(--page);border:1px solid var(--line);border-radius:6px;
padding:.35rem .5rem;width:100%;min-width:0}
textarea{min-height:9rem;resize:vertical;font:.85rem/1.45 var(--mono)}
.fields{display:grid;gap:.6rem;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr))}
button{font:600 .95rem system-ui,sans-serif;justify-self:start;background:var(--accent);color:var(--surface);border:0;
border-radius:6px;padding:.5rem 1.1rem;cursor:pointer}button:disabled{opacity:.6;cursor:default}
output{display:block;min-width:0}.status{font-weight:600}.ok{color:var(--good)}.no{color:var(--bad)}
[hidden]{display:none!important}
"""
_BODY = """
<main>
<h1 id="title">Open Inference Protocol v2</h1>
<p class="muted" id="about">The description is being read.</p>
<div id="model"></div>
<div id="operations"></div>
<noscript><p>A script reads <a href="openapi.json">openapi.json</a> here; without it, read that.</p></noscript>
</main>
"""


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = (
    f"default-src 'none'; script-src '{_hash(SCRIPT)}'; style-src '{_hash(_STYLE)}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Its Content-Security-Policy."""
PAGE = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Open Inference Protocol v2</title>'
    f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>{_BODY}<script>{SCRIPT}</script>'
    "</body></html>\n"
).encode()
