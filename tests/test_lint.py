"""Each rule finds what breaks it and nothing beside; what only looks so is left in peace."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from common.accounting import PoissonEvent, cross_checked_epsilon
from common.cli import main
from common.errors import InputError
from server.lint.cli import lint
from server.lint.linting import Report, lint_project
from server.lint.reading import read
from server.lint.rules import RULES
from tests.audit_rig import Case as Made
from tests.audit_rig import make_run
from tests.lint_cases import BROKEN, NEAR_MISSES, Case, beside, client
from tests.lint_settings import BROKEN_SETTINGS, NEAR_SETTINGS, SETTINGS


def linted(case: Case, folder: Path) -> Report:
    for name, text in case.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return lint_project(read(folder))


def recorded(changes: dict[str, object], folder: Path) -> Path:
    path = folder / "settings.json"
    path.write_text(json.dumps(SETTINGS | changes), encoding="utf-8")
    return path


def broken(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings}


def test_a_clean_project_and_clean_settings_are_left_in_peace(tmp_path: Path) -> None:
    assert linted(Case(), tmp_path).findings == ()
    assert lint_project(read(recorded({}, tmp_path))).findings == ()


@pytest.mark.parametrize(("rule", "case"), BROKEN)
def test_a_project_that_breaks_one_rule_breaks_just_that(
    rule: str, case: Case, tmp_path: Path
) -> None:
    assert broken(linted(case, tmp_path)) == {rule}


@pytest.mark.parametrize(("rule", "case"), NEAR_MISSES)
def test_what_only_looks_like_a_broken_rule_is_none(rule: str, case: Case, tmp_path: Path) -> None:
    assert linted(case, tmp_path).findings == ()


@pytest.mark.parametrize(("rule", "changes"), BROKEN_SETTINGS)
def test_settings_that_break_one_rule_break_just_that(
    rule: str, changes: dict[str, object], tmp_path: Path
) -> None:
    report = lint_project(read(recorded(changes, tmp_path)))
    assert broken(report) == {rule}
    assert bool(report.errors) == (rule != "framework-noise")


@pytest.mark.parametrize(("rule", "changes"), NEAR_SETTINGS)
def test_settings_that_only_look_wrong_are_left_in_peace(
    rule: str, changes: dict[str, object], tmp_path: Path
) -> None:
    assert lint_project(read(recorded(changes, tmp_path))).findings == ()


def test_every_rule_has_something_that_breaks_it() -> None:
    tested = {rule for rule, _ in (*BROKEN, *BROKEN_SETTINGS)} | {"no-mechanism"}
    assert tested == {rule.id for rule in RULES}
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_a_project_without_a_known_mechanism_is_not_called_clean(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("from flwr.client import NumPyClient\n", encoding="utf-8")
    report = lint_project(read(tmp_path))
    assert broken(report) == {"no-mechanism"} and not report.errors


def test_a_claim_is_held_against_the_recomputed_epsilon(tmp_path: Path) -> None:
    truth = cross_checked_epsilon([PoissonEvent(1.1, 0.02, 100)], 1e-5).epsilon
    for claim, wrong in ((truth - 0.01, True), (round(truth, 2), False), (truth + 1, False)):
        report = lint_project(read(recorded({"epsilon": claim}, tmp_path)))
        assert broken(report) == ({"claim-below-truth"} if wrong else set())


@pytest.mark.parametrize(
    ("seed", "seeded"),
    [
        ("    torch.manual_seed(0)", True),
        ("    torch.manual_seed(context.run_config['seed'])", True),
        ("    torch.manual_seed(secrets.randbits(63))", False),
        ("    with torch.random.fork_rng():\n        torch.manual_seed(0)", False),
    ],
)
def test_a_seed_counts_where_noise_comes_from_the_seeded_generator(
    seed: str, seeded: bool, tmp_path: Path
) -> None:
    plain = ('accountant="prv", secure_mode=True', 'accountant="prv"')
    build = "    model = build(msg)"
    report = linted(Case(((build, f"{seed}\n{build}"), plain)), tmp_path)
    assert broken(report) == {"framework-noise", *(["seeded-noise"] if seeded else [])}


def test_flower_s_local_noise_is_named_with_all_its_faults(tmp_path: Path) -> None:
    text = (
        "from flwr.client.mod import LocalDpMod\nm = LocalDpMod(1.0, 0.5, EPS, 1e-5)\nEPS = 8.0\n"
    )
    report = linted(beside(text), tmp_path)
    found = {finding.rule: finding.what for finding in report.findings}
    assert "one round of 3" in found["flower-local-dp"]
    assert "does not hold at epsilon 8" in found["flower-local-dp"]
    assert found["low-sensitivity"] == "clipping_norm 1 but sensitivity 0.5"


def test_central_training_may_make_its_one_accountant(tmp_path: Path) -> None:
    once = (
        "from opacus import PrivacyEngine\n"
        "def run(model, inner, rows):\n"
        "    engine = PrivacyEngine(secure_mode=True)\n"
        "    model, opt, rows = engine.make_private(module=model, optimizer=inner,\n"
        "        data_loader=rows, noise_multiplier=1.0, max_grad_norm=1.0)\n"
        "    opt.expected_batch_size = 64\n"
        "    return [opt.step() for _ in rows]\n"
    )
    (tmp_path / "run.py").write_text(once, encoding="utf-8")
    assert lint_project(read(tmp_path)).findings == ()
    again = once.replace("    engine =", "    for _ in range(3):\n        engine =")
    (tmp_path / "run.py").write_text(again, encoding="utf-8")
    assert broken(lint_project(read(tmp_path))) == {"fresh-accountant"}


def test_sources_are_read_and_never_run(tmp_path: Path) -> None:
    trap = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nimport project\n"
    before = set(sys.modules)
    linted(Case(beside={"project/__init__.py": trap, "conftest.py": trap}), tmp_path)
    assert not (tmp_path / "ran").exists()
    assert not {name for name in set(sys.modules) - before if name.startswith("project")}


def test_the_code_of_others_and_links_are_left_out(tmp_path: Path) -> None:
    bad = "from flwr.client.mod import secaggplus_mod\nmods = [secaggplus_mod]\n"
    outside = tmp_path / "outside.py"
    outside.write_text(bad, encoding="utf-8")
    folder = tmp_path / "here"
    places = ["env/pyvenv.cfg", "env/lib/a.py", ".hidden/a.py", "tests/a.py", "build/a.py"]
    assert linted(Case(beside=dict.fromkeys(places, bad)), folder).findings == ()
    (folder / "link.py").symlink_to(outside)
    assert lint_project(read(folder)).findings == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "random"}, "sampler: 'random' is not one of"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
        ({"releases": [{"noise_multiplier": 1.0, "sample_rate": 2.0, "steps": 1}]}, "sample_rate"),
        ({"releases": {}}, "expected a list"),
        ({"delta": 2.0}, "delta"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        lint_project(read(recorded(changes, tmp_path)))


@pytest.mark.parametrize("missing", sorted(set(SETTINGS) - {"epsilon", "persons"}))
def test_what_is_not_recorded_is_never_assumed(missing: str, tmp_path: Path) -> None:
    path = recorded({}, tmp_path)
    kept = {name: value for name, value in SETTINGS.items() if name != missing}
    path.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(InputError, match=f"missing key '{missing}'"):
        read(path)


def run(*options: object, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    code = lint.main([str(option) for option in options], standalone_mode=False)
    return code, capsys.readouterr().out


def test_the_command_exits_1_on_errors_alone_and_prints_one_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recorded({"loss_sees": "batch"}, tmp_path)
    code, text = run(path, capsys=capsys)
    assert code == 1 and "error [coupled-loss]" in text and "mend:" in text
    code, text = run(path, "--json", capsys=capsys)
    printed = json.loads(text)
    assert code == 1 and (printed["ok"], printed["errors"]) == (False, 1)
    assert printed["findings"][0]["rule"] == "coupled-loss"
    code, text = run(path, "--json", "--allow", "coupled-loss", capsys=capsys)
    assert code == 0 and json.loads(text)["allowed"] == 1
    code, text = run(recorded({"noise_source": "framework"}, tmp_path), "--json", capsys=capsys)
    assert code == 0 and json.loads(text)["warnings"] == 1
    with pytest.raises(InputError, match="there is no rule 'nonsense'"):
        run(path, "--allow", "nonsense", capsys=capsys)


def test_toml_is_read_as_json_is(tmp_path: Path) -> None:
    lines = [f"{k} = {json.dumps(v)}" for k, v in SETTINGS.items() if not isinstance(v, list)]
    releases = "[[releases]]\nnoise_multiplier = 1.1\nsample_rate = 0.02\nsteps = 100\n"
    path = tmp_path / "settings.toml"
    path.write_text("metrics = []\n" + "\n".join(lines) + "\n" + releases, encoding="utf-8")
    assert lint_project(read(path)).findings == ()


def test_a_byte_order_mark_hides_no_setting_and_no_source(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    path = recorded({"loss_sees": "batch"}, tmp_path)
    path.write_bytes(mark + path.read_bytes())
    assert broken(lint_project(read(path))) == {"coupled-loss"}
    folder = tmp_path / "project"
    folder.mkdir()
    mods = b"from flwr.client.mod import secaggplus_mod\nmods = [secaggplus_mod]\n"
    (folder / "app.py").write_bytes(mark + mods)
    (folder / "pyproject.toml").write_bytes(mark + b"[tool.flwr.app.config]\n")
    assert broken(lint_project(read(folder))) == {"flower-secagg", "no-mechanism"}


def test_a_folder_with_nothing_to_lint_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run nor Python sources"):
        read(tmp_path)


def simulated(people: Path, out: Path, *options: str) -> Path:
    arguments = ["simulate", "--data", str(people), "--backbone", "lenet", "--aligned"]
    arguments += ["--sites", "2", "--rounds", "2", "--out", str(out), "--json", *options]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--cache", str(out.parent / "cache")])
    assert stopped.value.code == 0
    return out


def test_a_private_run_of_ours_is_clean(people_folder: Path, tmp_path: Path) -> None:
    folder = simulated(people_folder, tmp_path / "run", "--epsilon", "4")
    assert lint_project(read(folder)).findings == ()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for site in record["privacy"]["per_site"]:
        site["epsilon"] /= 2
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    report = lint_project(read(folder))
    assert [f.rule for f in report.findings] == ["claim-below-truth"] * 2
    ledger = folder / "sites" / "site-000" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"steps":1', b'"steps":2', 1))
    assert "unreadable" in broken(lint_project(read(folder)))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--no-privacy",), "no-noise"),
        (("--epsilon", "4", "--insecure-seeded-noise"), "seeded-noise"),
    ],
)
def test_a_run_without_a_guarantee_is_found(
    options: tuple[str, ...], rule: str, people_folder: Path, tmp_path: Path
) -> None:
    assert broken(lint_project(read(simulated(people_folder, tmp_path / "run", *options)))) == {
        rule
    }


def test_a_default_is_seen_through_an_alias(tmp_path: Path) -> None:
    case = client("from opacus import PrivacyEngine", "import opacus as op")
    aliased = Case((*case.edits, ("= PrivacyEngine(", "= op.PrivacyEngine("), ('"prv"', '"gdp"')))
    assert broken(linted(aliased, tmp_path)) == {"gdp-accountant"}


def test_every_rule_and_every_setting_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "lint.md").read_text(encoding="utf-8")
    assert [rule.id for rule in RULES if f"| `{rule.id}` |" not in text] == []
    assert [name for name in SETTINGS if f"`{name}`" not in text] == []
    block = text.split("```toml\n")[1].split("```")[0]
    assert tomllib.loads(block) == SETTINGS


def test_a_deployed_sites_state_is_linted_by_its_ledger_and_the_servers_folder_is_not(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", Made(scored=True))
    with pytest.raises(InputError, match="holds no ledger: in a deployment"):
        read(run)
    state = run / "sites" / "site-000"
    assert lint_project(read(state)).findings == ()
    unnoised = make_run(tmp_path / "other", Made(spends=None)) / "sites" / "site-000"
    assert "no-noise" in broken(lint_project(read(unnoised)))
    ledger = state / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"round":2', '"round":8', 1))
    assert broken(lint_project(read(state))) == {"unreadable"}
