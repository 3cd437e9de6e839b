"""The command `fastgd demo`: real data, four methods of gradient descent, then a benchmark against NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fastgd.callbacks import History

HIDDEN = 128


@dataclass
class Method:
    """One way to train: an optimizer by name, its hyperparameters, and how the data are cut."""

    title: str
    optimizer: str
    hyper: dict[str, float]
    batch_size: int | None
    epochs: int
    quick_epochs: int

    @property
    def settings(self) -> str:
        """How it is set, for the table."""
        batch = "all" if self.batch_size is None else str(self.batch_size)
        return f"{batch} a step, " + ", ".join(f"{k} {v:g}" for k, v in self.hyper.items())


METHODS = (
    Method("batch", "GD", {"lr": 0.5}, None, 300, 100),
    Method("stochastic", "SGD", {"lr": 0.01}, 1, 15, 3),
    Method("momentum", "SGD", {"lr": 0.1, "momentum": 0.9}, 32, 40, 20),
    Method("Adam", "Adam", {"lr": 0.003}, 32, 40, 20),
)


@dataclass
class Trained:
    """What came of one method."""

    method: Method
    history: History
    accuracy: float


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer epochs and sizes: done in 20 seconds.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the split and the order of the data.")] = 0,
    output: Annotated[Path, typer.Option(help="Where to write the picture of the curves, a PNG.")] = Path(
        "fastgd-demo.png"
    ),
) -> None:
    """Train a small network on handwritten digits by four methods, then measure steps against NumPy."""
    if output.suffix.lower() != ".png":
        raise typer.BadParameter(f"--output must be a .png file, given {output}")
    if output.is_dir():
        raise typer.BadParameter(f"--output must be a file, given the directory {output}")
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"--output: no directory {output.absolute().parent} to write {output.name} into")
    try:
        import matplotlib  # noqa: F401
        import sklearn.datasets  # noqa: F401
    except ImportError as error:
        raise ImportError(f'fastgd demo needs {error.name}: pip install "fastgd[demo]"') from None
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

    # A second BLAS thread gains nothing on matmuls this small, and where another process has its core each batch waits
    # for it: 104 ms measured, for 1.8.
    with threadpool_limits(1, user_api="blas"):
        trained = _train_all(quick, seed)
    _show_training(trained)
    _draw(trained, output)
    print(f"curves: {output}")
    _show_throughput((4096, 1 << 20) if quick else (4096, 1 << 20, 1 << 24), rounds=3 if quick else 5)


def _train_all(quick: bool, seed: int) -> list[Trained]:
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    import fastgd
    from fastgd.fit import fit

    x, y = load_digits(return_X_y=True)  # 1797 pictures of 8 x 8 pixels, each 0 to 16
    x = (x / 16).astype(np.float32)
    parts = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    x_train, x_test, y_train, y_test = parts
    net = fastgd.nn.MLP((64, HIDDEN, 10))
    trained = []
    for method in METHODS:
        getattr(fastgd, method.optimizer)(net.init(seed), **method.hyper).step()  # compiled: not part of the time
        params = net.init(seed)
        optimizer = getattr(fastgd, method.optimizer)(params, **method.hyper)
        history = fit(
            net.loss_and_grad,
            optimizer,
            (x_train, y_train),
            batch_size=method.batch_size,
            epochs=method.quick_epochs if quick else method.epochs,
            validation=(x_test, y_test),
            seed=seed,
            callbacks=[fastgd.ProgressBar(method.title)],
        )
        trained.append(Trained(method, history, net.accuracy(params, x_test, y_test)))
    return trained


def _show_training(trained: list[Trained]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("method", "settings", title=f"Digits: 1437 to train, 360 to test on; network 64-{HIDDEN}-10")
    for name in ("steps", "loss", "test loss", "accuracy", "seconds"):
        table.add_column(name, justify="right")
    for t in trained:
        h = t.history
        figures = (
            f"{h.steps[-1]}",
            f"{h.loss[-1]:.4f}",
            f"{h.val_loss[-1]:.4f}",
            f"{t.accuracy:.1%}",
            f"{h.seconds[-1]:.2f}",
        )
        table.add_row(t.method.title, t.method.settings, *figures)
    console.print(table)


def _draw(trained: list[Trained], output: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    by_epoch, by_time = figure.subplots(1, 2, sharey=True)
    for t in trained:
        h = t.history
        epochs = range(1, len(h.val_loss) + 1)
        by_epoch.plot(epochs, h.val_loss)
        by_time.plot(h.seconds, h.val_loss)
    by_epoch.set(xlabel="passes over the data", ylabel="loss on test data", xscale="log", yscale="log")
    by_time.set(xlabel="seconds of training", xscale="log")
    for axes in (by_epoch, by_time):
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
    labels = [f"{t.method.title}: {t.method.settings}; {t.accuracy:.1%} right" for t in trained]
    figure.legend(by_epoch.lines, labels, loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    figure.suptitle("Four methods of gradient descent on handwritten digits")
    figure.savefig(output, dpi=130)


def _show_throughput(sizes: tuple[int, ...], rounds: int) -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn
    from rich.table import Table

    from fastgd.bench.report import size_text, time_text
    from fastgd.bench.run import throughput

    console = Console(highlight=False)
    table = Table("rule", "elements", title="One step, float32: time, and how many times longer NumPy takes")
    for name in ("fastgd", "GB/s", "NumPy in place", "NumPy textbook"):
        table.add_column(name, justify="right")
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("measuring")
        for rule in ("adamw", "sgd"):
            rows = throughput(rule, sizes, rounds, lambda text, done, total: bar.update(task, description=text))
            for size in sizes:
                peers: dict[str, dict[str, Any]] = {r["peer"]: r for r in rows if r["n"] == size}
                own = peers["fastgd-numba"]
                ratios = (peers[p]["seconds"] / own["seconds"] for p in ("numpy-inplace", "numpy-textbook"))
                table.add_row(
                    rule,
                    size_text(size),
                    time_text(own["seconds"]),
                    f"{own['gbps']:.1f}",
                    *(f"{r:.1f} x" for r in ratios),
                )
    console.print(table)
