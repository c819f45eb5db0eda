"""The run's own curves: one value per epoch and name, saved in the checkpoint, drawn beside nnU-Net's progress.png."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping


class Curves:
    """Collects numbers within an epoch and keeps their mean ("seconds" are summed).

    nnU-Net's own logger refuses unknown names and empties its picture when one of its lists is shorter than the others;
    hence a separate object.
    """

    def __init__(self) -> None:
        self.epochs: dict[str, list[float]] = {}
        self._running: dict[str, list[float]] = defaultdict(list)

    def add(self, values: Mapping[str, float]) -> None:
        """Numbers of one iteration. Names may differ from iteration to iteration."""
        for name, value in values.items():
            self._running[name].append(float(value))

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Closes the epoch; returns its numbers. A name that was not seen in an epoch has NaN there."""
        closed = {
            name: math.fsum(v) if name.endswith("seconds") else math.fsum(v) / len(v)
            for name, v in self._running.items()
        }
        for name in self.epochs.keys() | closed.keys():
            series = self.epochs.setdefault(name, [])
            del series[epoch:]
            series.extend([math.nan] * (epoch - len(series)))
            series.append(closed.get(name, math.nan))
        self._running.clear()
        return closed

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self.epochs.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self.epochs = {name: list(values) for name, values in state.items()}

    def plot(self, file: str) -> None:
        """One panel per quantity against the epoch, as a PNG."""
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        if not self.epochs:
            return
        names = sorted(self.epochs)
        with plt.rc_context(matplotlib.rcParamsDefault | {"backend": "agg"}):  # nnU-Net's own picture sets huge fonts
            figure, axes = plt.subplots(len(names), 1, figsize=(9, 1.8 * len(names)), sharex=True, squeeze=False)
            for axis, name in zip(axes[:, 0], names, strict=True):
                axis.plot(range(len(self.epochs[name])), self.epochs[name], marker=".")
                axis.set_ylabel(name.replace("/", "\n"), fontsize=8)
                axis.grid(alpha=0.3)
            axes[-1, 0].set_xlabel("epoch")
            figure.tight_layout()
            figure.savefig(file)
            plt.close(figure)
