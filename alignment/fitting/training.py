"""Settings of the training loop."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from annotated_types import Interval

from alignment.bounds import out_of_bounds
from alignment.errors import TrainingError
from alignment.names import did_you_mean
from alignment.value_kinds import kind_named

LOSSES = ("infonce", "siglip", "hinge")
# The lowest temperature, as in CLIP (Radford et al. 2021): below, training becomes unstable.
COLDEST = 0.01


@dataclass(frozen=True, slots=True)
class Training:
    """How heads and learned metrics are trained.

    Attributes:
        loss: `infonce`, `siglip` or `hinge`; see `alignment.fitting.losses`.
        batch: groups of a batch, each with one image and one text; all of a batch are told from each other.
        epochs: passes over the groups, at most.
        patience: epochs without a better validation after which training ends.
        learning_rate, weight_decay: of AdamW; the rate rises over the first steps and falls as a cosine.
        warm_up: share of the steps in which it rises.
        clip: longest gradient.
        temperature: that scores are divided by at the start, in units of cosine; it is learned with the rest.
        margin: of the hinge, in units of cosine.
        semi_hard: share of the epochs in which the hinge takes semi-hard negatives, before the hardest.
        late_recall: share of the epochs, the last ones, that train on the smooth Recall@k instead.
        structure: weight of the STRUCTURE regulariser, which rises over the first steps as the rate does.
        dropout: share of numbers that a head sets to zero; see each head.
        mix: pairs are mixed with shares from Beta(mix, mix), the same for image and text; 0: they are not.
        validation: share of the groups that the training is validated on.
        validation_groups: at most so many of them.
    """

    loss: str = "infonce"
    batch: Annotated[int, Interval(ge=2, le=1 << 20)] = 512
    epochs: Annotated[int, Interval(ge=0, le=1 << 20)] = 40
    patience: Annotated[int, Interval(ge=1, le=1 << 20)] = 6
    learning_rate: Annotated[float, Interval(ge=0, le=1e30)] = 1e-3
    weight_decay: Annotated[float, Interval(ge=0, le=1e3)] = 0.01
    warm_up: Annotated[float, Interval(ge=0, le=1)] = 0.05
    clip: Annotated[float, Interval(ge=1e-9, le=1e9)] = 1.0
    temperature: Annotated[float, Interval(ge=COLDEST, le=1e3)] = 0.05
    margin: Annotated[float, Interval(ge=0, le=2)] = 0.2
    semi_hard: Annotated[float, Interval(ge=0, le=1)] = 0.3
    late_recall: Annotated[float, Interval(ge=0, le=1)] = 0.0
    structure: Annotated[float, Interval(ge=0, le=1e6)] = 0.0
    dropout: Annotated[float, Interval(ge=0, le=0.99)] = 0.0
    mix: Annotated[float, Interval(ge=0, le=1e3)] = 0.0
    validation: Annotated[float, Interval(ge=0, le=0.9)] = 0.15
    validation_groups: Annotated[int, Interval(ge=1, le=1 << 30)] = 2_000

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise TrainingError(f"training: expected loss to be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for wrong in out_of_bounds(self):
            raise TrainingError(f"training: {wrong}")

    def with_values(self, given: Mapping[str, Any]) -> "Training":
        """Replace some values; texts are read as the types of the fields.

        Raises:
            TrainingError: there is no such field, or not with such a value.
        """
        types = {field.name: type(getattr(self, field.name)) for field in fields(self)}
        values = {}
        for name, value in given.items():
            if name not in types:
                raise TrainingError(
                    f"training has no setting {name!r}{did_you_mean(name, types)}; it has {', '.join(types)}"
                )
            try:
                values[name] = types[name](value)
            except (ValueError, TypeError, OverflowError):
                kind = kind_named(types[name])
                raise TrainingError(f"training: expected {name} to be {kind}, got {value!r}") from None
        return replace(self, **values)
