"""What was measured: samples, and how medians and ratios come of them."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Self

from benchmarks.scale import Scale

BASELINE = "docs_manager"


@dataclass(frozen=True)
class Sample:
    """One server's turn at one row."""

    row: str
    server: str
    round: int
    values: dict[str, float]


@dataclass
class Results:
    """All samples of a run, with where and at which scale they were taken."""

    machine: dict[str, str]
    scale: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def of(cls, machine: dict[str, str], scale: Scale) -> Self:
        """Return results without samples."""
        return cls(machine, json.loads(json.dumps(asdict(scale))))

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what `save` wrote."""
        data = json.loads(file.read_text())
        return cls(data["machine"], data["scale"], [Sample(**sample) for sample in data["samples"]])

    def save(self, file: Path) -> None:
        """Write everything as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def has(self, row: str, server: str) -> bool:
        """Return whether this was measured."""
        return any(True for _ in self._of(row, server))

    def values(self, row: str, server: str, name: str) -> list[float]:
        """Return one value per round."""
        return [sample.values[name] for sample in self._of(row, server) if name in sample.values]

    def median(self, row: str, server: str, name: str) -> float:
        """Return the median over the rounds; infinite for a latency of which there is none, since nothing arrived."""
        return median(self.values(row, server, name) or [inf])

    def spread(self, row: str, server: str, name: str) -> float:
        """Return how far the rounds lie apart, as a share of their median."""
        values = self.values(row, server, name)
        return (max(values) - min(values)) / median(values) if median(values) else 0.0

    def ratio(self, row: str, server: str, name: str, baseline: str = BASELINE) -> float | None:
        """Return the median of the ratios to the baseline, each within one round; None if nothing can be compared."""
        base = {sample.round: sample.values[name] for sample in self._of(row, baseline) if sample.values.get(name)}
        ratios = [
            sample.values[name] / base[sample.round]
            for sample in self._of(row, server)
            if sample.round in base and name in sample.values
        ]
        return median(ratios) if ratios else None

    def _of(self, row: str, server: str) -> Iterator[Sample]:
        return (sample for sample in self.samples if (sample.row, sample.server) == (row, server))
