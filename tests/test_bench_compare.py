"""Changes are told from noise: planted ones are found, a slower machine is none, and what is no report is refused."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastgd.bench import compare
from fastgd.bench.compare import ReportError
from fastgd.bench.report import markdown
from fastgd.kernels.errors import FastGDError

RESULTS = Path(__file__).parent.parent / "bench" / "results"
EVERY = ("roof", "fastgd-numba", "numpy-inplace")
SECONDS = dict(zip(EVERY, (1e-3, 2e-3, 8e-3), strict=True))
CASES = (("adamw", "small", 2), ("adamw-tail", "tail", 2), ("adamw", "cold", 2), ("adamw", "threads-1", 1))


def row_of(rule, regime, threads, peer):
    seconds = SECONDS[peer]
    share = None if regime == "cold" else SECONDS["roof"] / seconds
    row = dict(rule=rule, n=1000, dtype="float32", regime=regime, threads=threads, peer=peer, seconds=seconds)
    row |= dict(iqr=0.01 * seconds, gbps=1.0, roof_share=share, max_ulp=None if peer == "roof" else 2.0, skipped=None)
    return row


@pytest.fixture
def quiet():
    """A report, as from a machine without noise."""
    machine = dict(cpu="CPU", cores=2, simd="avx2", threads=2, threading_layer="omp", versions={"numpy": "2.0"})
    peers = {"cold": EVERY[1:]}
    rows = [row_of(*case, peer) for case in CASES for peer in peers.get(case[1], EVERY)]
    return dict(schema=1, machine=machine, warnings=[], ulp_limit=64, rows=rows)


def planted(report, peers=("fastgd-numba",), times=1.0, **changes):
    """Give the report with other figures in the rows of some peers."""
    made = copy.deepcopy(report)
    for row in made["rows"]:
        if row["peer"] in peers:
            row.update(seconds=row["seconds"] * times, **changes)
    return made


EVERY = ("roof", "fastgd-numba", "numpy-inplace")


def verdicts(before, now, peer="fastgd-numba"):
    return [change.verdict for change in compare.compare(before, now).changes if change.key[-1] == peer]


def test_the_same_report_is_alike(quiet):
    found = compare.compare(quiet, quiet)
    assert found.changed() == [] and found.failures(0.0) == []
    assert found.summary() == "8 rows compared: 8 alike"


@pytest.mark.parametrize(("times", "verdict"), [(1.5, "slower"), (1 / 1.5, "faster"), (1.01, "alike"), (0.99, "alike")])
def test_a_planted_change_is_found(quiet, times, verdict):
    now = planted(quiet, times=times)
    assert verdicts(quiet, now) == [verdict] * 4
    assert verdicts(quiet, now, "numpy-inplace") == ["alike"] * 4
    failed = compare.compare(quiet, now).failures(0.1)
    assert [c.key[-1] for c in failed] == ["fastgd-numba"] * (4 if verdict == "slower" else 0)


def test_the_threshold_is_a_share(quiet):
    now = planted(quiet, times=1.3)
    assert len(compare.compare(quiet, now).failures(0.25)) == 4
    assert compare.compare(quiet, now).failures(0.35) == []


def test_a_slower_machine_is_no_change_where_there_is_a_roof(quiet):
    now = planted(quiet, EVERY, 1.5)
    assert verdicts(quiet, now) == ["alike", "alike", "slower", "alike"]  # a cold start has none


def test_a_disturbed_roof_is_no_change(quiet):
    assert verdicts(quiet, planted(quiet, ("roof",), 0.5)) == ["alike"] * 4


def test_what_counts_is_the_lesser_of_both_changes(quiet):
    now = planted(planted(quiet, times=2.0), ("roof",), 1.6)
    change = next(c for c in compare.compare(quiet, now).changes if c.key[-1] == "fastgd-numba")
    assert change.least[0] == pytest.approx(1.25)
    assert change.verdict == "slower" and change.fails(0.2) and not change.fails(0.3)


@pytest.mark.parametrize("noisy", ["before", "now"])
def test_a_change_within_the_spread_is_alike(quiet, noisy):
    before, now = copy.deepcopy(quiet), planted(quiet, times=1.5)
    for row in {"before": before, "now": now}[noisy]["rows"]:
        row["iqr"] = 0.6 * row["seconds"]
    assert verdicts(before, now) == ["alike"] * 4


def test_a_peer_that_changed_is_shown_and_fails_nothing(quiet):
    found = compare.compare(quiet, planted(quiet, ("numpy-inplace",), 3.0))
    assert {(c.key[-1], c.verdict) for c in found.changed()} == {("numpy-inplace", "slower")}
    assert found.failures(0.1) == []


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (dict(max_ulp=1e6), "broken"),
        (dict(skipped="RuntimeError: no"), "broken"),
        (dict(skipped="not installed: No module named 'numba'"), "gone"),
    ],
)
def test_no_result_or_a_wrong_one_fails(quiet, changes, verdict):
    now = planted(quiet, **changes)
    assert verdicts(quiet, now) == [verdict] * 4
    assert len(compare.compare(quiet, now).failures(1e9)) == 4
    assert verdicts(now, quiet) == ["mended"] * 4
    assert compare.compare(now, quiet).failures(0.0) == []
    assert all(len(row) == len(compare.COLUMNS) for row in compare.compare(quiet, now).table())


def test_what_makes_reports_less_comparable_is_noted(quiet):
    now = copy.deepcopy(quiet)
    now["machine"] |= {"cpu": "Other CPU", "versions": quiet["machine"]["versions"] | {"numpy": "9.9"}}
    now["warnings"] = ["the machine was busy"]
    del now["rows"][-1]
    notes = compare.compare(quiet, now).notes
    assert f"another machine or setting: cpu was {quiet['machine']['cpu']}, is Other CPU" in notes
    assert any("numpy" in note and note.endswith("9.9 now") for note in notes)
    assert "of the new report: the machine was busy" in notes
    assert "1 rows are only in the old report, such as adamw float32 1000 (threads-1, 1 thread) numpy-inplace" in notes


def test_reports_without_a_common_row_are_refused(quiet):
    now = copy.deepcopy(quiet)
    for row in now["rows"]:
        row["n"] = 77
    with pytest.raises(ReportError, match=r"no row in common: adamw float32 1000 .* in the old one, adamw float32 77"):
        compare.compare(quiet, now)


def test_the_cases_of_a_report_can_be_measured_again(quiet):
    found, notes = compare.points(quiet, 2)
    assert [(p.case.name, p.regime, p.threads, p.peers) for p in found] == [
        ("adamw", "small", 2, EVERY),
        ("adamw-tail", "tail", 2, EVERY),
        ("adamw", "cold", 2, EVERY[1:]),
        ("adamw", "threads-1", 1, EVERY),
    ]
    assert notes == []


def test_cases_that_cannot_be_measured_again_are_named(quiet):
    other = copy.deepcopy(quiet)
    other["rows"][0]["rule"] = "madam"
    found, (note,) = compare.points(other, 1)
    assert [p.regime for p in found] == ["threads-1"]
    assert "madam float32 1000 (small, 2 threads)" in note
    for row in other["rows"]:
        row["threads"] = 9
    with pytest.raises(ReportError, match="nothing in the report can be measured here on 1 threads"):
        compare.points(other, 1)


@pytest.mark.parametrize("name", [p.stem for p in sorted(RESULTS.glob("*.json")) if '"rows"' in p.read_text()])
def test_kept_reports_are_read_shown_and_laid_out(name):
    old = compare.load(RESULTS / f"{name}.json")
    assert compare.compare(old, old).changed() == []
    assert compare.points(old, 2)[0]
    assert markdown(old).startswith("# fastgd bench")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a report as JSON, given a file that is none"),
        ("[1]", "must be a report: a JSON object with schema, machine and rows"),
        ("{}", "must be a report: a JSON object with schema, machine and rows"),
        ('{"schema": 2}', "must be a report of schema 1, given schema 2"),
        ('{"schema": 1, "machine": {}, "rows": []}', "with a machine and at least one row"),
        ('{"schema": 1, "machine": {}, "rows": [{"rule": "gd"}]}', "row 0 must have .*, given one without n"),
        ('{"schema": 1, "machine": {}, "rows": [7]}', "row 0 must have .*, given one without rule"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text, message):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=message) as error:
        compare.load(path)
    assert str(path) in str(error.value) and isinstance(error.value, FastGDError)


def test_a_row_without_a_time_is_refused(quiet, tmp_path):
    path = written(planted(quiet, ("roof",), iqr=None), tmp_path / "old.json")
    with pytest.raises(ReportError, match=r"row 0 must have positive seconds and an iqr, .* given 0\.001 and None"):
        compare.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"no report .*nowhere\.json: No such file"):
        compare.load(tmp_path / "nowhere.json")


# ---- the command ---------------------------------------------------------------------------------------------------


def fastgd_bench(*arguments):
    pytest.importorskip("typer")
    command = [sys.executable, "-m", "fastgd.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def written(report, path):
    path.write_text(json.dumps(report))
    return path


def test_command_compares_two_files_and_exits_1_past_the_threshold(quiet, tmp_path):
    old, new = written(quiet, tmp_path / "old.json"), written(planted(quiet, times=1.5), tmp_path / "new.json")
    done = fastgd_bench("--compare", old, new)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("slower") == 5 and "+50.0%" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("fastgd is worse in 4, by more than 10%")
    assert fastgd_bench("--compare", old, new, "--threshold", 60).returncode == 0
    done = fastgd_bench("--compare", old, old)
    assert (done.returncode, done.stdout) == (0, "8 rows compared: 8 alike\n")


def test_command_measures_the_cases_of_a_file_again(quiet, tmp_path):
    rows = [row for row in quiet["rows"] if row["regime"] == "small"]
    old = written(planted(quiet | {"rows": rows}, EVERY[1:], 1e-6, iqr=0.0), tmp_path / "old.json")
    done = fastgd_bench("--compare", old, "--rounds", 3, "--json", tmp_path / "now.json")
    assert done.returncode == 1, done.stderr
    assert "fastgd-numba" in done.stdout and "slower" in done.stdout
    now = json.loads((tmp_path / "now.json").read_text())
    assert [row["peer"] for row in now["rows"]] == [row["peer"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--compare", "nowhere.json"), "no report nowhere.json"),
        (("--compare", RESULTS / "step.md"), "must be a report as JSON"),
        (("--compare", RESULTS / "step.json", RESULTS / "muon.json"), "no row in common"),
        (("--compare", RESULTS / "step.json", RESULTS / "step.json", "--rounds", "3"), "--rounds does not go with"),
        (("--compare", RESULTS / "step.json", "--rules", "sgd"), "--rules does not go with --compare"),
        (("--compare", RESULTS / "step.json", "--threshold", "-1"), "--threshold must be a percentage from 0"),
        (("--compare", RESULTS / "step.json", "--threshold", "nan"), "--threshold must be a percentage from 0"),
        (("--threshold", "5"), "--threshold needs --compare"),
        ((RESULTS / "step.json",), "NEW.json needs --compare"),
        (("--report", "nowhere/at/all"), "no directory"),
        (("--report", __file__), "must be a directory"),
        (("--report", "made", "--sizes", "4k"), "--sizes does not go with --report"),
        (("--report", "made", "--rules", "nadam"), "given 'nadam'"),
        (("--report", "made", "--rounds", "0"), "rounds must be at least 1, given 0"),
    ],
)
def test_command_refuses_in_one_line_before_it_measures(arguments, named):
    done = fastgd_bench(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr, done.stderr
