"""One run's parameters: a flat YAML file, validated as a whole before anything runs."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from edgeopt.data import FOLDER_PREFIX, INTERPOLATIONS, RESIZES, Preprocessing
from edgeopt.decision import Constraints, Gates
from edgeopt.devices import HOST, WHEELS, check_device
from edgeopt.experiments import Schedule, Target
from edgeopt.runtimes import RUNTIMES, registered, runtime_named
from edgeopt.schema import (
    CRITERIA,
    DATASETS,
    REQUESTED_PRECISIONS,
    Positive,
    PositiveFloat,
    Share,
    require_known,
)
from edgeopt.system import check_scheduler, load_yaml, project_root, shortened, usable_cores

Spec = TypeVar("Spec")
DEFAULT = Preprocessing()
PARTS = (Schedule, Target, Gates, Constraints)
Side = Annotated[int, Field(ge=1, le=4096)]  # of an image in pixels, or of a layer in channels
Level = Annotated[float, Field(ge=0, lt=1)]
Numbers = Annotated[tuple[float, ...], Field(min_length=1)]
Trials = Annotated[int, Field(ge=1, le=100_000)]
DEVICES_NOTEBOOK = "07_devices"
NOTEBOOKS = (
    "01_baseline_training",
    "02_pruning",
    "03_quantization",
    "04_sweep",
    "05_hardware_analysis",
    "06_backbone_sweep",
    DEVICES_NOTEBOOK,
)
SEARCH_NOTEBOOK = "08_search"


class ConfigError(ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


class SearchSpec(BaseModel):
    """The parameter ``search``: what is searched for, and how long.

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


_PARAMETERS = {name: part for spec in PARTS for name, part in spec.__pydantic_fields__.items()}
_Parts = create_model("_Parts", **{n: (part.annotation, part) for n, part in _PARAMETERS.items()})


class ExperimentConfig(_Parts):
    """Every parameter of a run, with its default and its allowed range.

    The defaults are those of ``params/quick.yaml``. Beside the parameters below it has the fields
    of the specs in ``PARTS``, with their defaults and ranges; :meth:`part` builds one of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    run: str = Field("quick", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    notebooks: tuple[Literal[*NOTEBOOKS, SEARCH_NOTEBOOK], ...] = Field(NOTEBOOKS, min_length=1)

    dataset: str = "fashion-mnist-20k"
    data_dir: str = "data"
    train_subset: Positive | None = 4000
    calibration_images: Positive | None = None
    val_subset: Positive | None = 1000
    test_subset: Positive | None = 1500
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0,), min_length=1)

    image_size: Side | None = None
    channels: Literal[1, 3] | None = None
    resize: Literal[RESIZES] = DEFAULT.resize
    interpolation: Literal[INTERPOLATIONS] = DEFAULT.interpolation
    mean: float | Numbers | Literal["imagenet"] | None = None
    std: float | Numbers | Literal["imagenet"] | None = None
    class_names: tuple[str, ...] | None = Field(None, min_length=2)
    max_image_pixels: Positive = DEFAULT.max_image_pixels

    models: tuple[str, ...] = Field(("small_cnn",), min_length=1)
    weights: str | None = None
    allow_chance: bool = False
    conv1_channels: Side = 16
    conv2_channels: Side = 32
    pruning_levels: tuple[Level, ...] = Field((0.0, 0.5, 0.7), min_length=1)
    pruning_criteria: tuple[Literal[CRITERIA], ...] = Field(CRITERIA, min_length=1)
    channel_multiple: Side | None = None

    precisions: tuple[Literal[REQUESTED_PRECISIONS], ...] = Field(
        REQUESTED_PRECISIONS, min_length=1
    )
    runtimes: tuple[str, ...] = Field(RUNTIMES, min_length=1)

    devices: tuple[str, ...] = Field((HOST,), min_length=1)
    decide_on: str | None = None
    device_python: str = Field("python3", min_length=1)
    device_wheels: Literal[WHEELS] = "fetch"
    threads: Positive = 1
    benchmark_batch_size: Side = 1
    rounds: Positive = 10
    calls_per_round: Positive = 30

    memory_bandwidth_gbps: PositiveFloat | None = None
    peak_compute_gmacs: PositiveFloat | None = None

    search: SearchSpec | None = None
    scheduler: str | None = None
    max_hours: PositiveFloat = 24.0
    ignore_estimates: bool = False

    max_int8_drop: Share = 0.01
    all_remedies: bool = True

    @field_validator("*", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("runtimes")
    @classmethod
    def _known_runtimes(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(require_known(v, allowed=registered(), what="runtime") for v in values)

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(check_device, values))

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, value: str | None) -> str | None:
        return value if value is None else check_scheduler(value)

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, value: str) -> str:
        if value.startswith(FOLDER_PREFIX) and value != FOLDER_PREFIX:
            return value
        return require_known(value, allowed=(*DATASETS, f"{FOLDER_PREFIX}<path>"), what="dataset")

    @field_validator("mean", "std", mode="wrap")
    @classmethod
    def _numbers_of_channels(cls, value: Any, validated: Callable[[Any], Any]) -> Any:
        try:
            return validated(value)
        except ValidationError:  # says what each kind of value misses
            allowed = "null, one number, one number a channel, or imagenet"
            raise ValueError(f"allowed: {allowed}") from None

    @field_validator("threads")
    @classmethod
    def _cores_there_are(cls, value: int) -> int:
        if value > (cores := usable_cores()):
            raise ValueError(f"this machine lets the run use {cores} cores; allowed: 1 to {cores}")
        return value

    @field_validator(
        *("seeds", "pruning_levels", "precisions", "runtimes", "notebooks", "models", "devices"),
        "memory_budgets_mb",
    )
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"{list(values)} repeats a value; allowed: each value once")
        return values

    @model_validator(mode="after")
    def _agree(self) -> "ExperimentConfig":
        self.part(Gates)
        if "fp32" not in self.precisions:
            raise ValueError(
                f"precisions is {list(self.precisions)}; allowed: a list that holds fp32, which "
                "all others are compared with"
            )
        if self.decides not in self.devices:
            raise ValueError(
                f"decide_on is {self.decide_on!r}; allowed: one of devices, {list(self.devices)}"
            )
        self._check_search()
        if 0.0 not in self.pruning_levels:
            raise ValueError(
                f"pruning_levels is {list(self.pruning_levels)}; allowed: a list that holds 0.0, "
                "the unpruned model that all others are compared with"
            )
        return self

    def _check_search(self) -> None:
        if SEARCH_NOTEBOOK in self.notebooks and self.search is None:
            raise ValueError(f"notebooks hold {SEARCH_NOTEBOOK}, and search is null")
        if self.search is None:
            return
        model, runtime = self.search.model or self.models[0], self.clocked
        require_known(model, allowed=self.models, what="model of the search")
        require_known(runtime, allowed=self.runtimes, what="runtime of the search")
        allowed = runtime_named(runtime).precisions
        require_known(self.search.precision, allowed=allowed, what=f"precision of {runtime}")

    @classmethod
    def from_namespace(cls, names: Mapping[str, Any]) -> "ExperimentConfig":
        """Validate the parameters found among ``names``, a notebook's ``globals()``.

        A notebook declares only the parameters that it uses; the others keep their defaults.
        """
        return cls(**{key: names[key] for key in cls.model_fields if key in names})

    @property
    def decides(self) -> str:
        """Device whose numbers decide: ``decide_on``, or the first."""
        return self.decide_on or self.devices[0]

    @property
    def clocked(self) -> str:
        """Runtime whose clock a search asks: its own, else the first that reads ONNX files."""
        if self.search and self.search.runtime:
            return self.search.runtime
        reads = (name for name in self.runtimes if runtime_named(name).takes_int8_options)
        return next(reads, self.runtimes[0])

    @property
    def data_folder(self) -> Path:
        """Where fetched data and trained networks lie: ``data_dir``, seen from the project."""
        return project_root() / self.data_dir

    def part(self, spec: type[Spec]) -> Spec:
        """Build a dataclass from the parameters that share its fields' names."""
        names = [field.name for field in fields(spec) if field.name in type(self).model_fields]
        return spec(**{name: getattr(self, name) for name in names})

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from error


def load_config(path: str | Path, **overrides: Any) -> ExperimentConfig:
    """Read a flat YAML file into a validated configuration.

    Keys that the file leaves out keep the defaults of :class:`ExperimentConfig`; ``run`` is the
    file's name without its ending. Keyword arguments replace the file's values.

    Raises
    ------
    ConfigError
        Naming each bad key, its value and what is allowed.
    FileNotFoundError
        When there is no such file, naming those that are there.
    """
    path = Path(path)
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise FileNotFoundError(
            f"no parameter file {path}; there are: {', '.join(known) or 'none'}"
        )
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {shortened(error)}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; allowed: key: value lines")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{path}: {shortened(odd)} are not parameter names; quote them")
    if values.setdefault("run", path.stem) != path.stem:
        given = shortened(repr(values["run"]))
        raise ConfigError(f"{path}: run is {given}; allowed: the file's name {path.stem!r}")
    try:
        return ExperimentConfig(**{**values, **overrides})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _explain(error: ValidationError) -> str:
    """One line per bad key: its name, its value, what is allowed."""
    lines = []
    for problem in error.errors():
        if problem["type"] == "too_short" and problem["input"]:
            continue  # pydantic counts an item that was refused for its own reason
        key = ".".join(str(part) for part in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            owner = SearchSpec if key.startswith("search.") else ExperimentConfig
            known = ", ".join(owner.model_fields)
            lines.append(f"unknown parameter {shortened(repr(key))}; allowed: {known}")
        else:
            # A device may have been given with a password, which nothing repeats.
            shown = "" if key == "devices" else f" is {shortened(repr(problem['input']))}"
            given = f"parameter {key}{shown}: " if key else ""
            lines.append(given + shortened(reason, 400))
    return "; ".join(lines)
