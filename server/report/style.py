"""The page's style sheet: light, dark, phone and paper."""

STYLE = """
:root {
  --paper: #fbfbf9; --card: #ffffff; --ink: #1b1f24; --quiet: #5c6670; --grid: #d9dee3;
  --before: #9a6200; --after: #0072b2; --second: #b0418a; --warning: #b3261e;
  --public: #00795c; --good-back: #e6f2ec; --good-edge: #1f7a4d; --bad-back: #fbe9e7;
  --neutral-back: #f0f1f2; --neutral-edge: #8a939c; --amber-back: #fdf0d8; --amber-edge: #9a6200;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1c2024; --ink: #e8eaed; --quiet: #a3adb7; --grid: #343a41;
    --before: #e0a030; --after: #5db5ea; --second: #e08bc4; --warning: #ff8a80;
    --public: #4fc3a1; --good-back: #17291f; --good-edge: #58b98a; --bad-back: #3a1d1b;
    --neutral-back: #23282d; --neutral-edge: #7d8791; --amber-back: #33270f; --amber-edge: #e0a030;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header p { margin: 0; }
h1 { font-size: 2rem; line-height: 1.2; margin: .15rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .6rem; }
section { margin-top: 2.5rem; }
section p { margin: .6rem 0 0; }
.quiet, caption { color: var(--quiet); font-size: .9rem; }
.verdict { border-left: 5px solid; border-radius: 6px; padding: 1rem 1.25rem; margin-top: 1.75rem; }
.verdict h2 { margin: 0; font-size: 1.3rem; }
.verdict p { margin-top: .3rem; }
.good { background: var(--good-back); border-color: var(--good-edge); }
.bad { background: var(--bad-back); border-color: var(--warning); }
.neutral { background: var(--neutral-back); border-color: var(--neutral-edge); }
.amber { background: var(--amber-back); border-color: var(--amber-edge); }
.verdict + .verdict { margin-top: .75rem; }
.bad h2 { color: var(--warning); }
.bad[role="alert"] h2 { font-size: 1.8rem; letter-spacing: .03em; }
.scale { list-style: none; display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem;
  margin: .9rem 0 0; padding: 0; font-size: .85rem; }
.scale li { border-style: solid; border-width: 4px 0 0; padding: .35rem .5rem; background: none;
  color: var(--quiet); }
.scale li[aria-current] { background: var(--card); color: var(--ink); font-weight: 600; }
.verdict .caveats { margin-top: .6rem; }
.warnings h2 { color: var(--warning); }
ul { margin: 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .5rem .75rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--quiet); font-weight: 600; font-size: .85rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
tbody tr { border-top: 1px solid var(--grid); }
thead { border-bottom: 1px solid var(--quiet); }
td small { display: block; color: var(--quiet); font-size: .82rem; white-space: nowrap; }
th small { display: block; color: var(--quiet); font-size: .82rem; font-weight: 400; }
.wordy td:last-child, .wordy th:last-child { text-align: left; overflow-wrap: anywhere; }
.wordy th:first-child { overflow-wrap: anywhere; min-width: 7rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--grid); border-radius: 8px;
  padding: 1rem; }
figure svg { display: block; width: 100%; max-width: 36rem; height: auto; margin: 0 auto; }
.n { white-space: nowrap; }
dl { margin: 0; }
dt { border-top: 1px solid var(--grid); padding-top: .6rem; }
dd { margin: 0 0 .1rem; }
dd + dd { color: var(--quiet); font-size: .9rem; padding-bottom: .6rem; }
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 34rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  th, td { padding: .45rem .3rem; font-size: .95rem; }
  td small { white-space: normal; }
  figure { padding: .5rem; margin: 0 -.5rem; }
}
/* On a phone a row of many columns is a card: its name, and below it each value under its head. */
@media screen and (max-width: 34rem) {
  .many, .many caption, .many tbody, .many th, .many td { display: block; }
  .many thead { display: none; }
  .many tbody tr { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem 1rem;
    padding: .6rem 0; }
  .many tbody th { grid-column: 1 / -1; font-weight: 600; }
  .many tbody th, .many tbody td { padding: 0; text-align: left; overflow-wrap: anywhere; }
  .many td::before, .many tbody th::before { content: attr(data-head); display: block;
    color: var(--quiet); font-size: .82rem; font-weight: 400; }
}
@media print {
  :root {
    --paper: #ffffff; --card: #ffffff; --ink: #000000; --quiet: #444444; --grid: #cccccc;
    --before: #9a6200; --after: #0072b2; --second: #b0418a; --warning: #b3261e;
    --public: #00795c; --good-back: #ffffff; --bad-back: #ffffff;
    --neutral-back: #ffffff; --amber-back: #ffffff; --amber-edge: #9a6200;
  }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  figure, table, .verdict { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
