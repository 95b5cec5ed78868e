"""Train, fine-tune and predict."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from edgeopt.data import Split, in_batches
from edgeopt.model.networks import deterministic_algorithms
from edgeopt.schema import require_at_least


@dataclass(frozen=True)
class TrainingRun:
    """A trained model and one row per epoch: epoch, train_loss, train_accuracy, val_accuracy."""

    model: nn.Module
    history: pd.DataFrame


def train_model(
    model: nn.Module,
    train_loader: DataLoader,
    epochs: int,
    learning_rate: float,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Train a copy of ``model`` with Adam and cross-entropy and return it in eval mode.

    Raises
    ------
    ValueError
        When ``epochs`` is negative, ``learning_rate`` is not positive, or there are no images.
    """
    return fit(model, train_loader, epochs=epochs, learning_rate=learning_rate, device=device).model


def fit(
    model: nn.Module,
    train_loader: DataLoader,
    *,
    epochs: int,
    learning_rate: float,
    device: str | torch.device = "cpu",
    val_loader: DataLoader | None = None,
    progress: bool = True,
    cosine: bool = False,
) -> TrainingRun:
    """Train as :func:`train_model` does and keep the per-epoch history.

    Parameters
    ----------
    val_loader : DataLoader, optional
        Scored after every epoch; ``val_accuracy`` is NaN without it.
    cosine : bool
        Anneal the learning rate to zero over all steps (Loshchilov and Hutter, 2017,
        arXiv:1608.03983). Constant when false.
    """
    require_at_least(0, epochs=epochs)
    trained, layout, optimizer = _started(model, train_loader, learning_rate, device=device)
    steps = max(1, epochs * len(train_loader))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    rows = []
    with deterministic_algorithms():
        for epoch in tqdm(
            range(1, epochs + 1), desc="epochs", disable=None if progress else True, leave=False
        ):
            step = scheduler.step if scheduler else None
            loss, accuracy = _train_epoch(trained, train_loader, optimizer, layout, after_step=step)
            val_accuracy = evaluate(trained, val_loader) if val_loader else float("nan")
            rows.append((epoch, loss, accuracy, val_accuracy))
    return _ended(trained, rows)


def fit_while_rising(
    model: nn.Module,
    train_loader: DataLoader,
    *,
    epochs: int,
    learning_rate: float,
    val_loader: DataLoader,
    patience: int | None = None,
) -> TrainingRun:
    """Train while validation accuracy rises, and return the epoch where it was highest.

    What is scored and returned is the running mean of the weights over about two epochs, at a
    constant learning rate: it is as good as weights at the end of an annealing, and there at any
    time (Polyak and Juditsky, 1992, doi:10.1137/0330046).

    Parameters
    ----------
    epochs : int
        Trained at most.
    val_loader : DataLoader
        Scored after every epoch.
    patience : int, optional
        Epochs without a higher accuracy after which training ends; none ends it when omitted.
    """
    require_at_least(1, epochs=epochs)
    trained, layout, optimizer = _started(model, train_loader, learning_rate)
    mean = AveragedModel(
        trained, multi_avg_fn=_running_mean(2 * len(train_loader)), use_buffers=True
    )
    rows, best = [], None
    with deterministic_algorithms():
        for epoch in range(1, epochs + 1):
            step = partial(mean.update_parameters, trained)
            loss, accuracy = _train_epoch(trained, train_loader, optimizer, layout, after_step=step)
            val_accuracy = evaluate(mean.module, val_loader)
            rows.append((epoch, loss, accuracy, val_accuracy))
            if best is None or val_accuracy > best[0]:
                best = (val_accuracy, epoch, copy.deepcopy(mean.module))
            if patience and epoch - best[1] >= patience:
                break
    return _ended(best[2], rows)


def _running_mean(steps: int) -> Callable[..., None]:
    """Update means whose weight falls by e in so many steps, and that begin with equal weights."""

    def update(means: Sequence[Tensor], values: Sequence[Tensor], seen: Tensor | int) -> None:
        share = max(1 / steps, 1 / (int(seen) + 1))
        for mean, value in zip(means, values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)

    return update


def _started(
    model: nn.Module,
    train_loader: DataLoader,
    learning_rate: float,
    *,
    device: str | torch.device = "cpu",
) -> tuple[nn.Module, torch.memory_format, torch.optim.Optimizer]:
    """Copy a model for training, in the layout that suits it, with its optimizer."""
    if not len(train_loader):
        raise ValueError("the training loader holds no images; allowed: 1 or more")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; allowed: above 0")
    trained = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    layout = memory_format(trained, _first_images(train_loader).to(device))
    trained = trained.to(memory_format=layout)
    return trained, layout, torch.optim.Adam(trained.parameters(), lr=learning_rate)


def _first_images(loader: DataLoader) -> Tensor:
    """Return the images of a batch, and leave the order of those to come as it is."""
    generator = getattr(loader, "generator", None) or torch.default_generator
    state = generator.get_state()
    images, _ = next(iter(loader))
    generator.set_state(state)
    return images


def _ended(trained: nn.Module, rows: Sequence[tuple]) -> TrainingRun:
    columns = ["epoch", "train_loss", "train_accuracy", "val_accuracy"]
    trained = trained.to(memory_format=torch.contiguous_format).eval()
    return TrainingRun(trained, pd.DataFrame(rows, columns=columns))


def memory_format(model: nn.Module, images: Tensor) -> torch.memory_format:
    """Layout that a network is trained in: channels last, which is faster, where it is sound.

    A network is not that looks at its activations with ``view``, as many do before their first
    linear layer: it is tried with one of the images [N, C, H, W], and put in eval mode for it.
    oneDNN's AVX2 kernel for the weights' gradient of a strided 1x1 convolution writes past its
    buffer in channels last when the convolution reads fewer than 8 channels (torch 2.13 ends with
    SIGSEGV or a corrupted heap); such networks, common once residual ones are pruned, stay
    contiguous.
    """
    narrow = any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels % 8
        for layer in model.modules()
    )
    sound = not narrow and _takes_channels_last(model, images)
    return torch.channels_last if sound else torch.contiguous_format


@torch.no_grad()
def _takes_channels_last(model: nn.Module, images: Tensor) -> bool:
    try:
        model.eval()(images[:1].to(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


def _train_epoch(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    layout: torch.memory_format,
    *,
    after_step: Callable[[], None] | None,
) -> tuple[float, float]:
    model.train()
    device = next(model.parameters()).device
    seen, loss_sum, correct = 0, 0.0, 0
    for images, labels in loader:
        optimizer.zero_grad(set_to_none=True)
        labels = labels.to(device)
        output = model(images.to(device, memory_format=layout))
        logits = getattr(output, "logits", output)  # Inception's come with auxiliary ones
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        if after_step:
            after_step()
        seen += len(labels)
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
    return loss_sum / seen, correct / seen


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    images: Tensor | Split,
    *,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Logits [N, classes] in float32 of images [N, C, H, W]; the model is put in eval mode.

    A split's images are converted batch by batch, to channels last where the model takes it: two to
    four times as fast in float32.
    """
    floats = (p.dtype for p in model.eval().parameters() if p.is_floating_point())
    dtype, one = next(floats, torch.float32), next(in_batches(images, 1)).to(device)
    faster = dtype == torch.float32 and _takes_channels_last(model, one)
    layout = torch.channels_last if faster else torch.contiguous_format
    batches = (batch.to(device, dtype) for batch in in_batches(images, batch_size))
    logits = [model(batch.to(memory_format=layout)).float().cpu() for batch in batches]
    return torch.cat(logits)


def evaluate(model: nn.Module, loader: DataLoader) -> float:
    """Top-1 accuracy of ``model`` over a loader; raises ``ValueError`` when it is empty."""
    hits = [predict_logits(model, images).argmax(1) == labels.cpu() for images, labels in loader]
    if not hits:
        raise ValueError("the loader holds no images; allowed: 1 or more")
    return torch.cat(hits).double().mean().item()
