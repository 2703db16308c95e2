"""CSS of the page and of standalone drawings.

The colours of the series are distinguishable with colour vision deficiency, on light and on dark.
"""

PALETTE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --soft: #5b6570; --rule: #d9dee3;
  --panel: #f5f7f9;
  --c0: #0072b2; --c1: #e69f00; --c2: #009e73; --c3: #b04a8f; --c4: #d55e00; --c5: #56b4e9;
  --bad: #b3261e; --good: #00704f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e6e9ec; --soft: #9aa5b0; --rule: #30363c; --panel: #1c2024;
    --c0: #56b4e9; --c1: #f0b840; --c2: #2cc295; --c3: #e78ac3; --c4: #ff8a4c; --c5: #a8b4ff;
    --bad: #ff8a80; --good: #4ddcab; }
}
"""
"""Colours for light and dark."""

DRAWING = """
svg { display: block; width: 100%; height: auto; font: 12.5px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .muted { fill: var(--soft); font-size: 11.5px; }
svg .value { font-size: 12px; }
.s0 { fill: var(--c0); } .s1 { fill: var(--c1); } .s2 { fill: var(--c2); } .s3 { fill: var(--c3); }
.s4 { fill: var(--c4); } .s5 { fill: var(--c5); } .faint { fill: var(--rule); }
.line { fill: none; stroke-width: 2; }
.line.s0 { stroke: var(--c0); } .line.s1 { stroke: var(--c1); } .line.s2 { stroke: var(--c2); }
.line.s3 { stroke: var(--c3); } .line.s4 { stroke: var(--c4); } .line.s5 { stroke: var(--c5); }
.grid { stroke: var(--rule); }
.floor { stroke: var(--soft); stroke-dasharray: 4 4; } .whisker { stroke: var(--ink); stroke-width: 1.5; }
"""
"""Shapes and texts of drawings."""

_PAGE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 4px; }
h3 { font-size: 15px; margin: 0 0 2px; }
p { margin: 4px 0 12px; } .note { color: var(--soft); }
blockquote { margin: 12px 0; padding: 10px 14px; background: var(--panel); border-left: 3px solid var(--c0);
  white-space: pre-wrap; max-height: 12em; overflow: auto; }
.failed { color: var(--bad); } .unavailable { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
td { vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th[title], td[title] { cursor: help; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
th[scope=row] { font-weight: 600; }
.badge { display: inline-block; margin-left: 8px; padding: 0 7px; border-radius: 9px; font-size: 11.5px;
  font-weight: 500; }
.exact { color: var(--good); border: 1px solid var(--good); }
.noisy { color: var(--soft); border: 1px solid var(--rule); }
.columns { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
article { background: var(--panel); border-radius: 8px; padding: 12px 14px; min-width: 0; }
pre { margin: 0; font: 12.5px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: var(--c1); color: #14171a; border-radius: 3px; padding: 0 2px; }
.after { color: var(--soft); }
details { border-bottom: 1px solid var(--rule); padding: 7px 0; }
summary { cursor: pointer; font-weight: 600; }
details .wide { margin: 10px 0; }
dl { display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 4px 18px; font-size: 13.5px; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
"""

_PHONE = """
@media (max-width: 640px) {
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 8px; } svg { min-width: 640px; }
}
"""

STYLE = PALETTE + _PAGE + DRAWING + _PHONE
"""The style sheet of the whole page."""
