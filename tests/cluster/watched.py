"""An engine under the suite's eyes and ours: what every run of a check came to."""

from __future__ import annotations

from gradbase.cluster.testing import Engine, Result, Trial


class Watched:
    """Runs trials as `engine` does, and keeps them with their results."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.mortal = engine.mortal
        self.ended: list[tuple[Trial, Result]] = []

    def run(self, trial: Trial) -> Result:
        result = self._engine.run(trial)
        self.ended.append((trial, result))
        return result

    @property
    def all_died_as_planned(self) -> bool:
        """There were runs, each ended with values and notes, and in each as many were killed as its trial says."""
        return bool(self.ended) and all(
            result.digest and result.history and result.killed == sum(len(death.who) for death in trial.deaths)
            for trial, result in self.ended
        )
