"""CMA-ES over a vector of parameters, one batch of fitnesses a generation (the `cma` package)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cma
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Evolution:
    """Maximises a fitness that is known only by trying, `population` candidates at a time.

    What it is at any moment follows from its arguments and the fitnesses it was told, so these are all that a file
    has to hold: `Evolution(..., told=evolution.told)` goes on exactly where the first one was.

    Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial"; settings of Ha & Schmidhuber 2018, appendix A.4.

    Args:
        start: `(N,)` the first mean.
        population: P, candidates in a generation.
        sigma: first deviation of the candidates.
        weight_decay: the mean square of a candidate times this is taken off its fitness.
        seed: of the candidates.
        told: `(P,)` fitnesses of every earlier generation.

    Example:
        >>> evolution = Evolution(np.zeros(3), population=8, sigma=0.5, weight_decay=0.0)
        >>> for _ in range(60):
        ...     evolution.tell(-np.square(evolution.ask() - 1.0).sum(1))
        >>> evolution.mean.round(2)
        array([1., 1., 1.])
    """

    def __init__(
        self,
        start: Array,
        population: int = 64,
        sigma: float = 0.1,
        weight_decay: float = 0.01,
        seed: int = 0,
        told: Sequence[Array] = (),
    ) -> None:
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"popsize": population, "verbose": -9, "verb_log": 0, "verb_disp": 0}
        # Its own generator: cma would seed NumPy's global one.
        options |= {"seed": np.nan, "randn": lambda *shape: rng.standard_normal(shape)}
        self._strategy = cma.CMAEvolutionStrategy(start, sigma, options)
        self.weight_decay = weight_decay
        self.told: list[Array] = []
        for fitness in told:
            self.ask()
            self.tell(np.asarray(fitness))

    def ask(self) -> Array:
        """The next generation's candidates `(P, N)`."""
        self._candidates: Array = np.stack(self._strategy.ask())
        return self._candidates

    def tell(self, fitness: Array) -> None:
        """How well the candidates of the last `ask` did, `(P,)`; larger is better."""
        fitness = np.asarray(fitness, np.float64)
        self.told.append(fitness)
        decay = self.weight_decay * np.square(self._candidates).mean(1)
        self._strategy.tell(self._candidates, decay - fitness)

    @property
    def mean(self) -> Array:
        """The middle of the search distribution, `(N,)`: less of a lucky draw than the best candidate."""
        return np.array(self._strategy.mean)

    @property
    def generation(self) -> int:
        """How many generations were told."""
        return len(self.told)

    @property
    def deviation(self) -> float:
        """The overall deviation of the candidates."""
        return float(self._strategy.sigma)
