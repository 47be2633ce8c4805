"""What the audit page adds to the style sheet of run reports: cards, budgets, paper."""

from server.report.style import STYLE as REPORT_STYLE

STYLE = (
    REPORT_STYLE
    + """
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
.note { border-left: 4px solid var(--before); padding-left: .8rem; margin-top: 1rem; }
.scroll { margin-top: 1rem; }
.refs { color: var(--quiet); font-size: .82rem; margin: -.35rem 0 .8rem; }
.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1rem; margin: 1rem 0; }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: 8px;
  padding: 1rem 1.1rem; }
.card h3 { margin: 0 0 .4rem; color: var(--quiet); font-size: .9rem; }
.card p { margin: 0 0 .6rem; }
.odds { display: flex; height: 1.6rem; border: 1px solid var(--quiet); border-radius: 4px;
  overflow: hidden; font-size: .8rem; line-height: 1.6rem; text-align: center; }
.coin { background: var(--grid); }
.more { background: var(--after); color: var(--card); }
.beside { padding-left: .3rem; }
.budget { margin-top: .5rem; }
.bar { height: .7rem; border: 1px solid var(--quiet); border-radius: 4px; overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--after); }
.exact { border-left: 3px solid var(--grid); padding-left: 1rem; margin-top: 1.2rem; }
.exact h3 { margin-top: 0; color: var(--quiet); }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0;
  margin: .6rem 0 0; justify-content: center; font-size: .9rem; }
figure .key svg { display: inline; width: 28px; margin: 0; vertical-align: middle; }
.dense th, .dense td { font-size: .85rem; padding: .25rem .5rem; }
.second-wordy td:nth-child(2), .second-wordy th:nth-child(2) { text-align: left; }
#consent th, #consent td { font-size: .9rem; padding: .4rem .45rem; }
#consent tbody th, #consent td:nth-child(2) { white-space: nowrap; }
#consent code { overflow-wrap: normal; word-break: normal; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.wordy td:last-child { min-width: 12rem; }
:lang(zh) body { font-family: system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
  "Source Han Sans SC", sans-serif; }
@media (max-width: 44rem) { .cards { grid-template-columns: 1fr; } }
@media screen and (max-width: 34rem) {
  .exact { padding-left: .6rem; }
  #consent .many th, #consent .many td { padding: 0; white-space: normal; }
}
@page { size: A4; margin: 18mm 16mm 20mm;
  @bottom-right { content: counter(page) " / " counter(pages); font-size: 9pt; color: #444444; }
  @bottom-left { content: string(run); font-size: 9pt; color: #444444; } }
@media print {
  h1 { string-set: run content(); font-size: 20pt; }
  html { font-size: 10pt; }
  body { font-size: 10pt; }
  section { margin-top: 8mm; }
  .card, .exact { break-inside: avoid; }
  figure { text-align: center; }
  figure svg { display: inline-block; width: 84mm; }
  /* A table may go on overleaf, never with one row alone on either side. */
  .scroll { overflow: visible; }
  table, .exact:has(table) { break-inside: auto; }
  tr { break-inside: avoid; }
  tbody tr:first-child, tbody tr:nth-last-child(2) { break-after: avoid; }
  h2, h3, caption, .refs { break-after: avoid; }
}
"""
)
