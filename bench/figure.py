"""A figure with its target."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured ratio, share or time in seconds; `target` is a lower bound, or an upper one where `at_most`."""

    what: str
    value: float
    target: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure meets its target."""
        return self.value <= self.target if self.at_most else self.value >= self.target

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{'met   ' if self.met else 'MISSED'}  {self.value:8.4g}  (target {sign} {self.target:g})  {self.what}"
