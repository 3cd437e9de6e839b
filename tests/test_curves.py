"""Loss curves: every rule has one, what is recorded is what came, the page is whole, what does not train is named."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("sklearn")

import fastgd.cli
from fastgd.bench import curves
from fastgd.bench.curves import ACCURACY, ENTRIES, LOSS_SHARE, Entry, run, untrained
from fastgd.bench.curves_page import COLUMNS, page, picture, table, write
from fastgd.kernels.errors import HyperparameterError
from fastgd.kernels.rules import RULES

NAMES = ("schedulefreesgd", "sgd-nesterov", "sophiag")  # one with a mode for judging, a variant, one with a Hessian
SHORT = dict(epochs=6, search_epochs=3, seeds=2)
STUCK = Entry("gd", {"lr": 1e-15})
CURVE = {"name", "rule", "title", "hyper", "batch_size", "default_lr", "lr", "search", "losses", "median", "loss"}
CURVE |= {"accuracies", "accuracy", "problem"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report():
    return run(NAMES, **SHORT)


@pytest.fixture(scope="module")
def failing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENTRIES, "stuck", STUCK)
        return run(("stuck", "adam"), **SHORT)


def test_every_rule_has_a_curve_and_every_entry_a_rule():
    assert {entry.rule for entry in ENTRIES.values()} == set(RULES) == set(RULES) & set(ENTRIES)
    assert list(ENTRIES) == sorted(ENTRIES)
    for name, entry in ENTRIES.items():
        assert name.split("-")[0] == entry.rule
        assert entry.build().lr > 0


def test_report_has_all_curves(report):
    assert [curve["name"] for curve in report["curves"]] == list(NAMES)
    assert report["steps"] == [*range(0, 131, 10), 138]  # 6 epochs of 23 batches
    assert set(report["machine"]["versions"]) >= {"numpy", "numba", "scikit-learn"}
    assert untrained(report) == []
    for curve in report["curves"]:
        assert set(curve) == CURVE
        assert len(curve["losses"]) == len(curve["accuracies"]) == 2
        for losses, accuracy in zip(curve["losses"], curve["accuracies"], strict=True):
            assert len(losses) == len(report["steps"])
            assert losses[-1] < LOSS_SHARE * losses[0]
            assert ACCURACY < accuracy <= 1
        np.testing.assert_allclose(curve["median"], np.median(curve["losses"], axis=0))
        assert curve["loss"] == curve["median"][-1]


def test_the_learning_rate_is_the_best_of_those_tried(report):
    for curve in report["curves"]:
        tried = dict(map(tuple, curve["search"]))
        finite = {lr: math.inf if loss is None else loss for lr, loss in tried.items()}
        assert curve["lr"] == min(finite, key=finite.get)
        assert curve["default_lr"] in tried
        assert min(tried) < curve["lr"] < max(tried)
        assert list(tried) == sorted(tried)


def test_seeds_start_apart_and_rules_together(report):
    starts = [[losses[0] for losses in curve["losses"]] for curve in report["curves"]]
    assert starts[0] == starts[1] == starts[2]
    assert starts[0][0] != starts[0][1]


def test_a_run_repeats_bit_by_bit(report):
    assert run(NAMES[:1], **SHORT)["curves"][0] == report["curves"][0]


@pytest.mark.parametrize("best", [-6, -1, 0, 3, 6])
def test_search_finds_the_best_over_bumps(best):
    def loss(lr):
        k = 2 * math.log10(lr / 0.01)
        return abs(k - best) + (1.5 if round(k) == best + 2 else 0)

    tried = curves._search(loss, 0.01)
    assert min(tried, key=tried.get) == pytest.approx(0.01 * 10 ** (best / 2), rel=0.02)


def test_search_goes_on_from_what_diverges():
    tried = curves._search(lambda lr: math.inf if lr > 0.005 else -lr, 1.0)
    assert min(tried, key=tried.get) == 0.0032


def test_sophia_is_given_hessians(monkeypatch):
    taken = []
    monkeypatch.setattr(curves.Optimizer, "update_hessian", lambda self: taken.append(self.t))
    curves._train(ENTRIES["sophiag"], 1e-3, 0, *curves.digits(), 1)
    assert taken == [0, 10, 20]


def test_what_diverges_is_a_curve_without_an_end():
    losses, accuracy = curves._train(Entry("gd"), 1e30, 0, *curves.digits(), 2)
    assert math.isfinite(losses[0]) and math.isinf(losses[-1]) and len(losses) == 6
    assert accuracy == 0
    assert "inf with seed 0" in curves._problem([losses], [accuracy])


def test_low_accuracy_is_a_problem():
    assert (
        curves._problem([[2.0, 0.1]], [0.5]) == "50.0% of the validation set are right with seed 0, not more than 85%"
    )
    assert curves._problem([[2.0, 0.1]], [0.9]) is None
    assert curves._problem([[2.0, 0.1], [2.0, math.nan]], [0.9, 0.9]).startswith("the loss went from 2 to nan")


def test_what_cannot_train_is_named(failing):
    (line,) = untrained(failing)
    assert line.startswith("stuck: the loss went from 2.")
    assert failing["curves"][1]["problem"] is None
    assert page(failing).count('<svg viewBox="0 0 184') == 2
    assert "1 of 2 rules train" in page(failing)
    assert picture(failing).count(">does not train<") == 1


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.images, self.addresses, self.rows = [], [], [], 0

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.look(tag, dict(attributes))

    def handle_startendtag(self, tag, attributes):
        self.look(tag, dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def look(self, tag, attributes):
        self.rows += tag == "tr"
        if attributes.get("role") == "img":
            self.images.append(attributes["aria-label"])
        self.addresses += [attributes[name] for name in ("src", "href", "srcset", "data") if name in attributes]


def test_page_is_whole(report):
    text = page(report)
    assert ElementTree.fromstring(text).tag == "html"  # well-formed as XML, too
    found = Page()
    found.feed(text)
    found.close()
    assert found.open == []
    assert found.addresses == [] and "://" not in text and "url(" not in text and "@import" not in text
    assert found.rows == 1 + len(NAMES)
    titles = ("ScheduleFreeSGD, ", "SGD momentum=0.9, nesterov, ", "SophiaG bs=64, ")
    assert len(found.images) == len(NAMES)
    for curve, title, label in zip(report["curves"], titles, found.images, strict=True):
        assert label.startswith(f"{title}learning rate {curve['lr']:g}: the training loss goes from ")
        assert f"validation accuracy {curve['accuracy']:.1%}" in label
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert len(text) < 100_000


def test_panels_have_all_lines_in_the_same_axes(report):
    root = ElementTree.fromstring(picture(report))
    panels = root.findall(f"{SVG}g/{SVG}svg")
    assert len(panels) == len(NAMES)
    ticks = {tuple(t.text for t in panel.iter(f"{SVG}text") if t.get("class") == "tick") for panel in panels}
    assert len(ticks) == 1 and {"1", "0.1", "138 steps"} <= set(*ticks)
    for curve, panel in zip(report["curves"], panels, strict=True):
        lines = [line.get("class") for line in panel.iter(f"{SVG}polyline")]
        assert lines == ["others", "seed", "seed", "median"]
        points = [line.get("points").split() for line in panel.iter(f"{SVG}polyline")]
        assert {len(p) for p in points} == {len(report["steps"])}
        heights = [float(p.split(",")[1]) for p in points[-1]]  # downwards
        np.testing.assert_allclose(
            np.diff(heights) / (heights[-1] - heights[0]),
            np.diff(np.log(curve["median"])) / np.log(curve["median"][-1] / curve["median"][0]),
            atol=0.002,
        )


def test_written_files_agree_with_the_report(report, failing, tmp_path):
    paths = write(report, tmp_path)
    assert [path.name for path in paths] == ["curves.json", "curves.svg", "curves.html"]
    read = json.loads(paths[0].read_text())
    assert read == json.loads(json.dumps(report))
    assert page(read) == paths[2].read_text() and picture(read) == paths[1].read_text()  # drawn from the data alone
    assert all(len(row) == len(COLUMNS) for row in table(failing))
    lost = json.loads(json.dumps(failing))
    lost["curves"][0].update(loss=None, losses=[[2.0, *[None] * 14]] * 2, median=[2.0, *[None] * 14])
    write(lost, tmp_path)  # strictly JSON, and a line that leaves the frame
    assert "not finite" in page(lost)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(names=("adamw", "madam")), "rule must be one of adabelief, .*sgd-nesterov, .*yogi, given 'madam'"),
        (dict(epochs=0), "epochs must be at least 1, given 0"),
        (dict(search_epochs=0), "search_epochs must be at least 1, given 0"),
        (dict(seeds=0), "seeds must be at least 1, given 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(HyperparameterError, match=message):
        run(**arguments)


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fastgd", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        fastgd.cli.main()
    return ended.value.code


def test_command_writes_and_says_what_came(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "made"
    assert command(monkeypatch, "--curves", folder, "--quick", "--rules", "adam, lion") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["rule", "Adam", "Lion", "curves:", "curves:", "curves:"]
    assert {line.removeprefix("curves: ") for line in out[3:]} == {str(path) for path in folder.iterdir()}
    assert [c["name"] for c in json.loads((folder / "curves.json").read_text())["curves"]] == ["adam", "lion"]


def test_command_fails_for_what_does_not_train(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(ENTRIES, "stuck", STUCK)
    assert command(monkeypatch, "--curves", tmp_path, "--quick", "--rules", "stuck") == 1
    err = capsys.readouterr().err.strip()
    assert err.startswith("fastgd: these do not train: stuck: the loss went from 2.")
    assert len(err.splitlines()) == 1
    assert (tmp_path / "curves.html").exists()  # to see why


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--curves", "{}", "--rules", "adamx"), "'adamx'"),
        (("--curves", "{}", "--rules", "adamx"), "schedulefreeadamw"),
        (("--curves", "{}/no/where"), "no directory"),
        (("--curves", "{}", "--sizes", "4k"), "--sizes does not go with --curves"),
        (("--curves", "{}", "--dtypes", "float32"), "--dtypes does not go with --curves"),
        (("--curves", __file__), "must be a directory"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_2(monkeypatch, tmp_path, capsys, arguments, named):
    assert command(monkeypatch, *(a.format(tmp_path) for a in arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and named in err
    assert list(tmp_path.iterdir()) == []


def test_absent_scikit_learn_is_named(tmp_path):
    code = (
        "import sys; sys.modules['sklearn'] = None; sys.argv = ['fastgd', 'bench', '--curves', sys.argv[1]]\n"
        "from fastgd.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'needs sklearn: pip install "fastgd[demo]"' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_every_rule_trains():
    assert untrained(run(epochs=10, search_epochs=5, seeds=1)) == []
