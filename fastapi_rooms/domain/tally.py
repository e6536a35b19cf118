"""How many there are of each."""


class Tally:
    """Counts by name; what there is none of is not kept."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __getitem__(self, name: str) -> int:
        return self._counts.get(name, 0)

    def add(self, name: str) -> None:
        """Count one more."""
        self._counts[name] = self[name] + 1

    def drop(self, name: str) -> None:
        """Count one less; it has been added before."""
        left = self._counts[name] - 1
        if left:
            self._counts[name] = left
        else:
            del self._counts[name]
