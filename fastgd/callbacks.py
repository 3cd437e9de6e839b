"""What a training run records, and what may watch it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from fastgd.checks import checked_choice, checked_number, checked_whole
from fastgd.kernels.errors import HyperparameterError
from fastgd.memory import copy_into, copy_of
from fastgd.optimizer import Optimizer


@dataclass
class History:
    """Record of a training run: plain lists, one entry for each epoch.

    Attributes
    ----------
    loss : list of float
        Mean training loss over the epoch's batches, taken before each step.
    val_loss : list of float
        Loss on the validation data after the epoch; empty without.
    seconds : list of float
        Time from the start of training to the end of the epoch, validation not counted.
    steps : list of int
        Steps taken until the end of the epoch.
    message : str
        Why training ended.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    message: str = ""

    def plot(self) -> Any:
        """Draw loss over epochs.

        Returns
        -------
        matplotlib.figure.Figure
            Not shown; ``.savefig(path)`` writes it.

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError('History.plot needs matplotlib: pip install "fastgd[demo]"') from None
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        epochs = range(1, len(self.loss) + 1)
        axes.plot(epochs, self.loss, label="training")
        if self.val_loss:
            axes.plot(epochs, self.val_loss, label="validation")
            axes.legend()
        axes.set(xlabel="epoch", ylabel="loss")
        if all(x > 0 for x in self.loss + self.val_loss):
            axes.set_yscale("log")
        return figure


@dataclass
class Training:
    """State of a run, as callbacks see it.

    Attributes
    ----------
    optimizer, params, history
        What is trained, and the record so far.
    epoch, epochs : int
        Epochs finished, and planned.
    step, steps : int
        Steps taken in this epoch, and planned for each.
    loss : float
        Loss of the last batch.
    stop : str
        Set it to a reason to end training after this step.
    """

    optimizer: Optimizer
    params: Any
    history: History
    epochs: int
    steps: int
    epoch: int = 0
    step: int = 0
    loss: float = math.nan
    stop: str = ""


class Callback:
    """Watches a run; override what is needed."""

    def on_step(self, training: Training) -> None:
        """Do something after each step."""

    def on_epoch(self, training: Training) -> None:
        """Do something after each epoch, when its losses are recorded."""

    def on_end(self, training: Training) -> None:
        """Do something when training has ended, whatever the reason."""


class EarlyStopping(Callback):
    """Ends training when the loss no longer falls: that on the validation data, or, without, on the training data.

    Parameters
    ----------
    patience : int
        Epochs without improvement after which training ends, >= 0; 0 is as 1.
    min_delta : float
        Smallest fall that counts as improvement, >= 0.
    restore_best : bool
        Put the parameters of the best epoch back when training ends.

    Raises
    ------
    HyperparameterError
        For values out of range.
    """

    def __init__(self, patience: int, min_delta: float = 0.0, restore_best: bool = True) -> None:
        self.patience = checked_whole("patience", patience, 0)
        self.min_delta = checked_number("min_delta", min_delta, 0.0)
        self.restore_best = restore_best
        self.best, self.best_epoch = math.inf, 0
        self._kept: Any = None

    def on_epoch(self, training: Training) -> None:
        """Compare the epoch with the best one."""
        if training.epoch == 1:  # a new run
            self.best, self.best_epoch, self._kept = math.inf, 0, None
        losses = training.history.val_loss or training.history.loss
        if losses[-1] < self.best - self.min_delta:  # never true of NaN
            self.best, self.best_epoch = losses[-1], training.epoch
            if self.restore_best:
                self._kept = copy_of(training.params.flat)
        elif training.epoch - self.best_epoch >= self.patience:
            training.stop = f"early stopping: no fall since epoch {self.best_epoch}"

    def on_end(self, training: Training) -> None:
        """Put the best parameters back."""
        if self._kept is not None:
            copy_into(training.params.flat, self._kept)


class ReduceOnPlateau(Callback):
    """Lowers the learning rate of every group when the loss no longer falls; torch's ReduceLROnPlateau.

    The loss is that on the validation data, or, without, on the training data; it is looked at after each epoch. A
    new run starts with no best loss and no epochs counted; the learning rates stay as they are.

    Parameters
    ----------
    factor : float
        The learning rates are multiplied by this, in [0, 1).
    patience : int
        Epochs without improvement that are let pass, >= 0: the one after these lowers.
    threshold : float
        What an epoch must be better than the best by, >= 0, and below 1 when relative.
    threshold_mode : {"rel", "abs"}
        Whether that is a share of the best loss or a difference.
    cooldown : int
        Epochs after a lowering that are not counted, >= 0.
    min_lr : float
        No learning rate is lowered below this, >= 0.
    eps : float
        A change that is not above this is left out, >= 0.
    mode : {"min", "max"}
        Whether a better loss is a smaller or a larger one. NaN is never better.

    Raises
    ------
    HyperparameterError
        For values out of range, and after an epoch if the learning rate of a group is a schedule.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> params = fastgd.FlatParams({"a": np.ones(1)})
    >>> opt = fastgd.SGD(params, lr=1.0)
    >>> never_better = lambda params, x: 1.0
    >>> history = fastgd.fit(never_better, opt, np.ones(4), epochs=5, callbacks=[ReduceOnPlateau(0.5, patience=1)])
    >>> opt.param_groups[0]["lr"]
    0.25
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        self.factor = checked_number("factor", factor, 0, 1)
        self.patience = checked_whole("patience", patience, 0)
        self.threshold_mode = checked_choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.threshold = checked_number("threshold", threshold, 0, 1 if threshold_mode == "rel" else math.inf)
        self.cooldown = checked_whole("cooldown", cooldown, 0)
        self.min_lr = checked_number("min_lr", min_lr, 0)
        self.eps = checked_number("eps", eps, 0)
        self.mode = checked_choice("mode", mode, ("min", "max"))
        self._restart()

    def _restart(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.bad_epochs = self.cooling = 0

    def on_epoch(self, training: Training) -> None:
        """Compare the epoch with the best one, and lower the learning rates when patience is at its end."""
        groups = training.optimizer.param_groups
        for i, group in enumerate(groups):
            if not isinstance(group.get("lr"), Real):
                raise HyperparameterError(
                    f"group {i}: lr must be a number for ReduceOnPlateau to lower, given {group.get('lr')!r}"
                )
        if training.epoch == 1:  # a new run
            self._restart()
        loss = (training.history.val_loss or training.history.loss)[-1]
        if self._is_better(loss):
            self.best, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad_epochs = 0
        if self.bad_epochs > self.patience:
            for group in groups:
                lower = max(group["lr"] * self.factor, self.min_lr)
                if group["lr"] - lower > self.eps:
                    group["lr"] = lower
            self.cooling, self.bad_epochs = self.cooldown, 0

    def _is_better(self, loss: float) -> bool:
        relative = self.threshold_mode == "rel"
        if self.mode == "min":
            return loss < (self.best * (1 - self.threshold) if relative else self.best - self.threshold)
        return loss > (self.best * (1 + self.threshold) if relative else self.best + self.threshold)


class ProgressBar(Callback):
    """Shows a run on stderr: a live bar on a terminal, else a line for each tenth of the epochs.

    Parameters
    ----------
    title : str
        Written in front.

    Raises
    ------
    ImportError
        Without rich.
    """

    def __init__(self, title: str = "training") -> None:
        try:
            import rich.progress
            from rich.console import Console
        except ImportError:
            raise ImportError('ProgressBar needs rich: pip install "fastgd[cli]"') from None
        self.title = title
        self._live = sys.stderr.isatty()
        columns = (
            rich.progress.TextColumn("{task.description:<24}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("epoch {task.fields[epoch]}/{task.total}  loss {task.fields[loss]:.4f}"),
            rich.progress.TimeElapsedColumn(),
        )
        self._progress = rich.progress.Progress(*columns, console=Console(stderr=True))
        self._task: Any = None

    def on_step(self, training: Training) -> None:
        """Start the bar at the first step, and move it a little at each."""
        if not self._live:
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=training.epochs, epoch=0, loss=training.loss)
        done = training.epoch + training.step / training.steps
        self._progress.update(self._task, completed=done, epoch=training.epoch, loss=training.loss)

    def on_epoch(self, training: Training) -> None:
        """Show the epoch's loss."""
        loss = training.history.loss[-1]
        if self._task is not None:
            self._progress.update(self._task, completed=training.epoch, epoch=training.epoch, loss=loss)
        elif not self._live and training.epoch % max(1, training.epochs // 10) == 0:
            print(f"{self.title}: epoch {training.epoch}/{training.epochs}  loss {loss:.4f}", file=sys.stderr)

    def on_end(self, training: Training) -> None:
        """Leave the bar as it stands."""
        if self._task is not None:
            self._progress.stop()
            self._task = None
