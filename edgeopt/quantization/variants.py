"""fp32 model -> fp16 or int8 torch model, and training under simulated int8."""

import copy
import itertools
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from edgeopt.model import layers_as_modules, with_readers
from edgeopt.quantization.inserted import ScaledActivation, float_modules
from edgeopt.schema import require_known
from edgeopt.system import import_extra, known_noise_silenced

if TYPE_CHECKING:
    from torch.ao.quantization import QConfigMapping

TORCH_PRECISIONS = ("fp32", "fp16", "int8")
ENGINES = tuple(name for name in torch.backends.quantized.supported_engines if name != "none")
DEFAULT_ENGINE = "x86" if "x86" in ENGINES else "qnnpack"


class QuantizationError(RuntimeError):
    """A model could not be made what its label says."""


def precision_variant(
    model: nn.Module,
    precision: str,
    calibration_loader: Iterable[tuple[Tensor, Tensor]] | None,
    calibration_batches: int = 10,
) -> tuple[nn.Module, str]:
    """Return the torch variant of ``model`` and the precision of the input that it takes.

    Raises ``ValueError`` when torch has no such precision; the known ones are fp32, fp16, int8.
    """
    require_known(precision, allowed=TORCH_PRECISIONS, what="precision of the torch runtime")
    if precision == "fp16":
        return to_fp16(model), "fp16"
    if precision == "int8":
        return to_int8(model, calibration_loader, calibration_batches), "fp32"
    return copy.deepcopy(model).eval(), "fp32"


def to_fp16(model: nn.Module) -> nn.Module:
    """Return a half-precision copy of ``model``; it takes float16 images."""
    return copy.deepcopy(model).eval().half()


def to_int8(
    model: nn.Module,
    calibration_loader: Iterable[tuple[Tensor, Tensor]] | None,
    calibration_batches: int = 10,
    backend: str = DEFAULT_ENGINE,
    *,
    float_layers: Collection[str] = (),
    reduce_range: bool = True,
) -> nn.Module:
    """Return an int8 copy of ``model``: static post-training quantization of every layer.

    ``float_layers`` names layers that stay in float, and so do those that read them. With
    ``reduce_range`` the activations of x86 engines have 7 bits, as torch's default is: on a CPU
    without VNNI 8 bits saturate.
    Source: https://docs.pytorch.org/docs/stable/quantization.html (FX graph mode).

    Raises
    ------
    ValueError
        When this build of torch lacks the engine ``backend``, the network cannot be traced, or the
        calibration set is empty or of one class.
    QuantizationError
        When a convolution or linear layer stayed in float.
    """
    require_known(backend, allowed=ENGINES, what="quantization backend")
    batches = calibration_images(first_batches(calibration_loader, calibration_batches))
    with known_noise_silenced(), quantized_engine(backend), torch.no_grad():
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        mapping = get_default_qconfig_mapping(backend)
        if not reduce_range:
            _use_full_range(mapping)
        model = layers_as_modules(model, example=batches[0])
        left = with_readers(model, float_layers)
        for name in (*left, *float_modules(model)):
            mapping.set_module_name(name, None)
        whole = PrepareCustomConfig().set_non_traceable_module_classes([ScaledActivation])
        prepared = prepare_fx(model, mapping, (batches[0],), whole)
        for images in batches:
            prepared(images)
        called = {node.target for node in prepared.graph.nodes if node.op == "call_module"}
        quantized = _without_views(convert_fx(prepared))
        _require_quantized(model, quantized, left=left, called=called)
    return quantized


def _without_views(model: fx.GraphModule) -> fx.GraphModule:
    """Reshape where the network has a view, in place: quantized layers write channels last."""
    for node in model.graph.nodes:
        typed = any(isinstance(argument, torch.dtype) for argument in node.args)
        if node.op == "call_method" and node.target == "view" and not typed:
            node.target = "reshape"
    model.recompile()
    return model


def _use_full_range(mapping: "QConfigMapping") -> None:
    """Give activations all 8 bits."""
    from torch.ao.quantization import HistogramObserver

    usual = mapping.global_qconfig
    wide = HistogramObserver.with_args(reduce_range=False)
    mapping.set_global(usual._replace(activation=wide))
    for kind, own in mapping.object_type_qconfigs.items():
        if own.activation is usual.activation:
            mapping.set_object_type(kind, own._replace(activation=wide))


def first_batches(
    loader: Iterable[tuple[Tensor, Tensor]] | None, count: int
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return the first ``count`` batches of a loader; ``ValueError`` for a count below 1."""
    if count < 1:
        raise ValueError(f"calibration_batches is {count}; allowed: 1 or more")
    return tuple(itertools.islice(loader or (), count))


def calibration_images(batches: Iterable[tuple[Tensor, Tensor]] | None) -> tuple[Tensor, ...]:
    """Return the images [B, C, H, W] of calibration batches.

    Raises ``ValueError`` when they hold no image, or images of one class only: the ranges seen
    there would not be those of the task.
    """
    filled = [pair for pair in batches or () if len(pair[0])]
    if not filled:
        raise ValueError("the calibration set holds no images; int8 needs some of every class")
    classes = torch.cat([labels for _, labels in filled]).unique().tolist()
    if len(classes) == 1:
        raise ValueError(
            f"the calibration set holds images of class {classes[0]} only; int8 needs at least "
            "two classes: shuffle it or draw more batches"
        )
    return tuple(images for images, _ in filled)


@contextmanager
def quantized_engine(backend: str | None = None) -> Iterator[None]:
    """Use an engine and torch's int8 kernels inside the block; both global switches are undone.

    The kernels have no deterministic variant: torch raises on them in deterministic mode.
    """
    engine = torch.backends.quantized.engine
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    torch.backends.quantized.engine = backend or engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = engine
        torch.use_deterministic_algorithms(deterministic)


def quantization_aware_train(
    model: nn.Module,
    train_loader: DataLoader,
    *,
    epochs: int,
    learning_rate: float,
    progress: bool = True,
) -> nn.Module:
    """Fine-tune a copy of ``model`` under simulated int8 and return it as an fp32 model.

    PT2E fake quantization as XNNPACK computes (int8, per-channel weights). The weights that come
    back are the trained fp32 ones: exporting them to int8, to any runtime, is what quantizes.
    Source: https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_qat.html

    Raises
    ------
    ValueError
        When ``epochs`` is below 1 or ``learning_rate`` is not positive.
    RuntimeUnavailable
        When ExecuTorch, which owns the quantizer, is not installed.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; allowed: 1 or more")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; allowed: above 0")
    trained = copy.deepcopy(model).train()
    shuffled = train_loader.generator
    order = None if shuffled is None else shuffled.get_state()
    with known_noise_silenced(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of dropout
        simulated = _prepared_for_training(trained, next(iter(train_loader))[0])
        if shuffled is not None:
            shuffled.set_state(order)
        optimizer = torch.optim.Adam(simulated.parameters(), lr=learning_rate)
        for _ in tqdm(
            range(epochs), desc="QAT epochs", disable=None if progress else True, leave=False
        ):
            for images, labels in train_loader:
                optimizer.zero_grad(set_to_none=True)
                outputs = simulated(images)
                logits = getattr(outputs, "logits", outputs)  # beside those of auxiliary heads
                nn.functional.cross_entropy(logits, labels).backward()
                optimizer.step()
    if shuffled is not None:
        shuffled.set_state(order)  # so that a loader trains the next network alike
    state = simulated.state_dict()  # without what the network owns and does not use
    trained.load_state_dict({n: state[n] for n in trained.state_dict() if n in state}, strict=False)
    return trained.eval()


def two_or_more(images: Tensor) -> Tensor:
    """Return images [N, C, H, W], a single one twice: of one torch.export fixes the number."""
    return images if len(images) > 1 else images.repeat(2, 1, 1, 1)


def xnnpack_quantizer(*, qat: bool = False, left: Collection[str] = ()) -> Any:
    """Return the PT2E quantizer of the XNNPACK backend: int8, per-channel weights.

    The modules ``left`` stay in float.
    """
    module = import_extra("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    config = module.get_symmetric_quantization_config(is_per_channel=True, is_qat=qat)
    filters = [module.get_module_name_filter(name) for name in left]
    quantizer = module.XNNPACKQuantizer().set_global(config)
    if not qat:  # batch norms are folded by now, and these patterns trace twelve networks
        patterns = quantizer.SUPPORTED_PATTERNS
        quantizer.SUPPORTED_PATTERNS = [pattern for pattern in patterns if not pattern.is_qat]
    return quantizer.set_filter_function(lambda node: not any(inside(node) for inside in filters))


def _prepared_for_training(model: nn.Module, images: Tensor) -> fx.GraphModule:
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    quantizer = xnnpack_quantizer(qat=True)
    batch = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(model, (two_or_more(images),), dynamic_shapes=batch).module()
    return move_exported_model_to_train(prepare_qat_pt2e(exported, quantizer))


def _require_quantized(
    model: nn.Module, quantized: nn.Module, *, left: Collection[str], called: Collection[str]
) -> None:
    """Raise unless every layer that is ``called``, by itself or inside a module, is int8."""
    from torch.ao.nn.quantized.modules.utils import WeightedQuantizedModule

    made = {
        name
        for name, module in quantized.named_modules()
        if isinstance(module, WeightedQuantizedModule)
    }
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and any(name == whole or name.startswith(f"{whole}.") for whole in called)
    ]
    missing = [name for name in layers if name not in made and name not in left]
    if missing or not layers:
        raise QuantizationError(
            f"{type(model).__name__} is not int8: of {len(layers)} convolution and linear layers "
            f"these stayed in float: {', '.join(missing) or 'none exist'}"
        )
