"""The parts of the page where noise is shared among sites: who must help whom, to learn what."""

from __future__ import annotations

from collections import Counter, defaultdict

from server.audit.facts import Colluders
from server.audit.view import View
from server.audit.wording import nearly


def assumption(view: View) -> str:
    """What the promise rests on, before anything else is said of it."""
    w, masking = view.w, view.facts.contract.masking
    if masking is None:
        return w("sharing.earlier", honest=view.fewest_shares)
    name = "sharing.nobody" if masking.colluders == 0 else "sharing.some"
    return w(
        name, minimum=masking.minimum, colluders=masking.colluders, honest=masking.terms.honest
    )


def collusion(view: View) -> list[str]:
    """How many sites would have to help the server, for the promise to weaken to what."""
    w, rows = view.w, view.findings.collusion
    found = [f"<h3>{w('sharing.collusion_title')}</h3>", view.plain("sharing.collusion_plain")]
    if view.bounded and len(rows) > 1:
        found.append(f"<p><strong>{_in_words(view, rows)}</strong></p>")
    heads = [f"sharing.{name}" for name in ("sites", "shares", "keeps", "guess", "lies", "guess")]
    table = [
        (
            str(one.sites),
            str(one.shares),
            w.epsilon(one.epsilon),
            nearly(one.guess),
            w.epsilon(one.lying),
            nearly(one.lying_guess),
        )
        for one in rows
    ]
    return [*found, view.table(w("sharing.collusion"), heads, table), view.quiet("sharing.lies_if")]


def _in_words(view: View, rows: tuple[Colluders, ...]) -> str:
    """From the first row that the promise does not cover, and of the last one."""
    promised = view.worst.spent or 0.0
    first = next((one for one in rows if (one.lying or 0.0) > promised + 1e-5), rows[-1])
    last = rows[-1]
    return view.w(
        "sharing.weakens",
        first=first.sites,
        keeps=nearly(first.guess),
        lies=nearly(first.lying_guess),
        last=last.sites,
        guess=nearly(max(last.guess, last.lying_guess)),
    )


def certain(view: View) -> list[str]:
    """What each site knows by itself, beside what it knows under the assumption."""
    w, alone = view.w, {one.site: one for one in view.findings.alone}
    rows = []
    for names, one in view.alike:
        own = alone[one.site]
        rows.append((names, w.epsilon(one.spent), w.epsilon(own.epsilon), nearly(own.guess)))
    heads = [f"sharing.{name}" for name in ("site", "assumed", "own", "guess")]
    return [
        f"<h3>{w('sharing.certain_title')}</h3>",
        view.plain("sharing.certain_plain"),
        view.table(w("sharing.certain"), heads, rows),
    ]


def rounds(view: View) -> list[str]:
    """How many sites are in each round's sum; rounds that gave none."""
    w, masking = view.w, view.facts.contract.masking
    if masking is None:
        return []
    reserved = Counter(
        row.round
        for one in view.findings.spending
        for row in one.rounds
        if row.run_id == view.facts.run_id
    )
    summed = {one.round: one.accepted for one in view.facts.rounds}
    kinds: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number in sorted({*reserved, *summed}):
        kinds[reserved[number], summed.get(number, 0)].append(number)
    rows = [
        (spans(numbers), str(charged), str(kept) if kept else w("sharing.lost"))
        for (charged, kept), numbers in kinds.items()
    ]
    heads = [f"sharing.{name}" for name in ("rounds", "charged", "survived")]
    caption = w("sharing.by_round", minimum=masking.minimum)
    lost = sum(not summed.get(number) for number in {*reserved, *summed})
    said = view.plain("sharing.were_lost", count=lost) if lost else view.plain("sharing.none_lost")
    return [said, view.table(caption, heads, rows)]


def spans(numbers: list[int]) -> str:
    """Rounds in rising order as 1-4, 7."""
    found: list[list[int]] = []
    for one in numbers:
        if found and one == found[-1][1] + 1:
            found[-1][1] = one
        else:
            found.append([one, one])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
