"""The style of a report: light and dark, 320 pixels and wider, paper."""

# The colours of lines, --c0 ..., are those of Okabe and Ito (2008), darkened on white until thin
# lines can be seen, and lightened in the dark. `figures.SERIES` stands for them.
CSS = """\
:root {
  --page: #ffffff; --ink: #1a1c20; --muted: #5c626b; --line: #d9dce1; --soft: #f4f5f7;
  --link: #0059a6;
  --c0: #0072b2; --c1: #c24e00; --c2: #00805d; --c3: #a8487f; --c4: #946600; --c5: #2b8fcc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --ink: #e6e8eb; --muted: #9aa1ab; --line: #363b42; --soft: #1e2126;
    --link: #7db9f2;
    --c0: #5aaee6; --c1: #f08a4b; --c2: #35c197; --c3: #e29ac2; --c4: #e8b23a; --c5: #9bd3f5;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 76rem; padding: 1rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .875em; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 4px;
  padding: .6rem .8rem; overflow-x: auto; }
.lead { font-size: 1.1rem; }
.muted, figcaption, caption { color: var(--muted); font-size: .875rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; padding: 0;
  max-width: none; }
nav a { display: inline-block; padding: .2rem 0; }
.scroll { overflow-x: auto; max-width: 100%; margin: .75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .925rem; }
caption { text-align: left; padding-bottom: .35rem; }
caption span, tr.group span { display: inline-block; position: sticky; left: 0;
  max-width: min(46rem, 100vw - 2.5rem); }
caption span { min-width: min(20rem, 100vw - 2.5rem); }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
thead th { border-bottom: 2px solid var(--muted); vertical-align: bottom; }
tbody th[scope=row] { font-weight: 400; text-align: left; }
.numbers th:first-child:not([colspan]) { position: sticky; left: 0; background: var(--page); }
th:first-child, .words th, .words td { text-align: left; }
.words td { white-space: normal; min-width: 7rem; max-width: 24rem; overflow-wrap: anywhere; }
tr.group th { padding-top: .8rem; white-space: normal; }
.grid { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
figure { margin: .75rem 0; min-width: 0; }
.plot { display: block; width: 100%; height: auto; overflow: visible; color: var(--ink); }
.plot text { font-family: inherit; fill: currentColor; }
.plot image { image-rendering: pixelated; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.examples { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.example { display: flex; gap: .75rem; border: 1px solid var(--line); border-radius: 4px;
  padding: .6rem; margin: 0; align-items: flex-start; }
.example img { width: 5rem; height: auto; flex: none; image-rendering: pixelated; }
.example.smooth img { image-rendering: auto; }
.example figcaption { color: var(--ink); min-width: 0; overflow-wrap: anywhere; }
.votes { color: var(--muted); }
.vote { display: inline-block; margin-right: .75rem; }
@media print {
  :root {
    --page: #ffffff; --ink: #000000; --muted: #444444; --line: #bbbbbb; --soft: #ffffff;
    --link: #000000;
    --c0: #0072b2; --c1: #c24e00; --c2: #00805d; --c3: #a8487f; --c4: #946600; --c5: #2b8fcc;
  }
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, caption, h2 + p { break-after: avoid; }
  figure, .example, tr, pre, p { break-inside: avoid; }
  h2 + p + .grid { break-before: avoid; }
  .scroll { overflow: visible; }
  .scroll * { position: static !important; }
  table { font-size: 8pt; }
  th, td { padding: .15rem .35rem; }
  .grid, .grid.wide { grid-template-columns: repeat(2, 1fr); }
  .examples { grid-template-columns: repeat(3, 1fr); }
  .example { padding: .4rem; gap: .4rem; }
  .example img { width: 3.2rem; }
  .example figcaption { font-size: 8pt; }
  pre { white-space: pre-wrap; }
  .plot, .example img { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
