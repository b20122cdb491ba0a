"""Gates: what has to be sound before a claim is decided on it. `report.soundness` asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from .sources import Strict

if TYPE_CHECKING:
    from .settings import Experiment

Share = Annotated[float, Field(gt=0, le=1)] | None
Times = Annotated[float, Field(gt=0, le=1e6)] | None


class FeatureGates(Strict):
    """Of features that are learned here; null is off."""

    accuracy: Share = Field(0.8, description="smallest share of held-out images that the classifier gets right")


class TeacherGates(Strict):
    """Of a teacher under each of its conditions; null is off."""

    recognised: Share = Field(
        0.9, description="smallest share of its samples recognised, in units of the classifier's held-out accuracy"
    )
    distance_in_halves: Times = Field(
        10, description="of images, at w = 1: largest Fréchet distance to data, in units of that of the data's halves"
    )
    distance_in_deviations: Times = Field(
        0.5, description="of a mixture: largest distance to data beyond exact draws', in units of the data's deviation"
    )


class StudentGates(Strict):
    """Of a student's samples in one step, or in the fewest that its method begins with; null is off."""

    recognised: Share = Field(
        0.8, description="smallest share recognised, in units of its teacher's, or without one of the classifier's"
    )
    distance_in_halves: Times = Field(
        30,
        description="of images: largest Fréchet distance to its teacher, or without one to data, in units of that of "
        "the data's halves",
    )
    distance_in_deviations: Times = Field(0.5, description="of a mixture: as the teacher's")
    settled: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.5,
        description="of students of pairs: the share of training at which a ratio has to lie on the same side as at "
        "the end; checked if it is one of consistency_training.budgets",
    )


class Gates(Strict):
    """What has to be sound before a claim is decided; else its verdict is `unsound`."""

    features: FeatureGates = Field(FeatureGates(), description="of features that are learned here")
    teacher: TeacherGates = Field(TeacherGates(), description="of the teacher")
    student: StudentGates = Field(StudentGates(), description="of each student")


def asked(experiment: Experiment) -> dict[str, Any]:
    """The gates of an experiment as plain data, with the `deviation` of a mixture; of other data it is None."""
    return experiment.gates.model_dump() | {"deviation": getattr(experiment.data, "deviation", None)}
