"""Names of functions, as types of the configuration's keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from .names import nearest
from .registry import BUILT_INS
from .sources import Strict


def _function(kind: str) -> BeforeValidator:
    """A name from the registry that a model is validated with (`model_validate(…, context=registry)`), by default of a
    built-in function."""

    def check(value: Any, info: ValidationInfo) -> Any:
        allowed = (info.context or BUILT_INS).names(kind)
        if value not in allowed:
            raise ValueError(f"allowed: {', '.join(allowed) or 'none here'}{nearest(str(value), allowed)}")
        return value

    return BeforeValidator(check)


def _pluggable(kind: str) -> Any:
    """Such a name, for which a schema gives examples only: a user's own functions have others."""
    return Annotated[str, _function(kind), Field(json_schema_extra={"examples": BUILT_INS.names(kind)})]


Solver = Annotated[str, _function("solver"), Field(json_schema_extra={"enum": BUILT_INS.names("solver")})]
Objective = _pluggable("objective")
CouplingKind = _pluggable("coupling")
Sampler = _pluggable("sampler")


class _Use(Strict):
    """A function of a file in `plugins`."""

    params: dict[str, Any] = Field({}, description="its keyword-only parameters; the others have their defaults")


class MetricUse(_Use):
    """A metric of a file in `plugins`, and its params."""

    name: Annotated[str, _function("metric")] = Field(description="of a function that is decorated with @metric")


class FigureUse(_Use):
    """A figure of a file in `plugins`, and its params."""

    name: Annotated[str, _function("figure")] = Field(description="of a function that is decorated with @figure")


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


# A name alone stands for a function with its defaults.
OwnMetric = Annotated[MetricUse, BeforeValidator(_by_name, MetricUse | str)]
OwnFigure = Annotated[FigureUse, BeforeValidator(_by_name, FigureUse | str)]
