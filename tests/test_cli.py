"""The command as a user types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("typer")


def fastgd_command(*arguments, timeout=240, **environment):
    return subprocess.run(
        [sys.executable, "-m", "fastgd.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("arguments", [(), ("demo",), ("bench",)])
def test_help_loads_nothing_heavy(arguments):
    done = fastgd_command(*arguments, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout
    assert done.stderr == ""
    code = (
        "import sys\nsys.argv = ['fastgd', *sys.argv[1:]]\nfrom fastgd.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'numba', 'matplotlib', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code, *arguments, "--help"], capture_output=True, text=True)
    assert loaded.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_interrupt_is_one_line_and_exit_130(tmp_path):
    command = [sys.executable, "-m", "fastgd.cli", "demo", "--output", str(tmp_path / "curves.png")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "epoch" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fastgd: interrupted"
    assert "Traceback" not in err


def test_version():
    import fastgd

    assert fastgd_command("--version").stdout == f"fastgd {fastgd.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("dmeo",), "dmeo"),
        (("demo", "--fast"), "--fast"),
        (("demo", "extra"), "extra"),
        (("demo", "--seed", "x"), "--seed"),
        (("demo", "--seed", "-1"), "--seed"),
        (("demo", "--output", "curves.gif"), "curves.gif"),
        (("demo", "--output", "nowhere/at/all.png"), "no directory"),
        (("bench", "--rules", "adamx"), "adamx"),
        (("bench", "--sizes", "abc"), "abc"),
        (("bench", "--dtypes", "int8"), "int8"),
        (("bench", "--threads", "0"), "0"),
        (("bench", "--json", "nowhere/at/all.json"), "no directory"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_2(arguments, named):
    done = fastgd_command(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("missing", "extra"), [("typer", "cli"), ("rich", "cli")])
def test_without_the_extra_it_says_what_to_install(missing, extra):
    code = f"import sys; sys.modules[{missing!r}] = None; from fastgd.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f'fastgd: the fastgd command needs {missing}: pip install "fastgd[{extra}]"']


def test_demo_without_its_extra_says_so():
    code = (
        "import sys; sys.modules['sklearn'] = None; sys.argv = ['fastgd', 'demo']; from fastgd.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "fastgd[demo]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("quick", [True, False])
def test_demo(tmp_path, quick):
    picture = tmp_path / "curves.png"
    done = fastgd_command("demo", *(["--quick"] * quick), "--output", str(picture), COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"curves: {picture}" in done.stdout.replace("\n", "")
    accuracies = {
        line.split("│")[1].strip(): float(cell.strip().rstrip("%"))
        for line in done.stdout.splitlines()
        for cell in line.split("│")
        if cell.strip().endswith("%")
    }
    assert set(accuracies) == {"batch", "stochastic", "momentum", "Adam"}
    assert accuracies["momentum"] >= 97
    assert accuracies["Adam"] >= 97
    assert done.stdout.count("adamw") == done.stdout.count("sgd") == (2 if quick else 3)
