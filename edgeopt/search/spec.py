"""The parameter ``search``: what is searched for, and how long."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.schema import Positive, PositiveFloat

Trials = Annotated[int, Field(ge=1, le=100_000)]


class SearchSpec(BaseModel):
    """What is searched for, and how long.

    Attributes
    ----------
    runtime : str, optional
        Where latency counts; when omitted the run's first that reads ONNX files, else its first.
    precision : str
        With ``int8`` layers may compute in float, where the runtime can.
    model : str, optional
        The network, the first of the run when omitted.
    channels : dict, optional
        Widths of every group of layers to begin with, the unpruned network's among them; four
        evenly spread ones when omitted.
    trials, one_epoch, finalists : int
        Networks that are judged by importance, that are trained for an epoch, and that are trained
        to the end.
    max_weights_mb : float, optional
        MiB of weights that a network may hold.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    runtime: str | None = None
    precision: Literal["fp32", "int8"] = "fp32"
    model: str | None = None
    channels: dict[str, list[Positive]] | None = None
    trials: Trials = 400
    one_epoch: Trials = 12
    finalists: Trials = 6
    max_weights_mb: PositiveFloat | None = None
    seed: Annotated[int, Field(ge=0)] = 0
