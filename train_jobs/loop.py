"""The training loop, to be read top to bottom: batch, forward, loss, backward, step, report.

Knows nothing of Ray: the same function runs in this process, under torchrun, and in a Ray Train worker. Whatever
workers must agree on (is the loss finite, is this the best epoch, do we stop) follows from numbers summed over all of
them, so no worker ever waits for one that went another way.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.errors import TrainingFailed
from train_jobs import datasets, optim
from train_jobs.averaging import Averager, copied
from train_jobs.config import TrainConfig
from train_jobs.models.layers import batch_norms
from train_jobs.parallel.hooks import Traffic
from train_jobs.parallel.shards import batches, mirrored, seed_noise
from train_jobs.parallel.workers import Workers
from train_jobs.tasks import Batch, Findings, Part, Parts, Phase, Task
from train_jobs.tasks.classify import Classify
from train_jobs.transfer import Thaw, load_weights

_REPORT_S, _REPORT_STEPS = 2.0, 50
"""Progress is told, and a wish to stop heard, after so long or so many steps."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
State = dict[str, Any]


class Diverged(TrainingFailed):
    """The loss is no longer finite: on every worker alike, and again after any restart, so nothing is restarted."""


@dataclass(frozen=True)
class Progress:
    """Where a run is. Rates in samples/s over all workers, times in s.

    Within an epoch `metrics` is empty; at its end it holds the validation part's, and each phase's loss.
    """

    epoch: int
    epochs: int
    samples_per_s: float
    loss: float
    metrics: dict[str, float]
    time_left_s: float


@dataclass
class TrainResult:
    """The final model in eval mode, one Progress per epoch, and what the test part says; rank 0 alone asks that."""

    model: nn.Module
    task: Task
    history: list[Progress] = field(default_factory=list)
    resumed_from_epoch: int = 0
    stopped: bool = False
    """Asked to stop before the end: the checkpoint is where the run goes on."""
    findings: Findings | None = None
    traffic: Traffic = field(default_factory=Traffic)


@dataclass
class _Clock:
    """Samples done since the start, or the resumption, and what that says of the time left."""

    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def progress(self, epoch: int, epochs: int, loss: float, metrics: dict[str, float] | None = None) -> Progress:
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        return Progress(epoch + 1, epochs, rate, loss, metrics or {}, (self.total - self.done) / max(rate, 1e-9))


@dataclass
class _Pulse:
    """Every how many steps the workers meet to tell of progress: about `_REPORT_S` apart, and the same on all."""

    every: int = 1
    count: int = 0
    started: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        self.count += 1
        return self.count >= self.every

    def met(self, workers: Workers) -> None:
        """Agree on the number of steps till the next meeting."""
        now = time.monotonic()
        mean_s = float(workers.total(torch.tensor([now - self.started], dtype=torch.float64))[0]) / workers.size
        self.every = max(1, min(_REPORT_STEPS, int(_REPORT_S * self.count / max(mean_s, 1e-9))))
        self.count, self.started = 0, now


class _Stepper:
    """One phase: its loss on all workers, its optimizer, its learning rate."""

    def __init__(self, config: TrainConfig, phase: Phase, workers: Workers, thaw: Thaw, steps_per_epoch: int,
                 traffic: Traffic, device: torch.device) -> None:  # fmt: skip
        self._config, self._phase, self._workers, self._traffic, self._device = config, phase, workers, traffic, device
        self.name = phase.name
        self.optimizer = optim.optimizer(config, phase, thaw)
        self.schedule = optim.schedule(config, self.optimizer, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.connect()

    def connect(self) -> None:
        """(Re)join the other workers; they must know which parameters have gradients."""
        loss = torch.compile(self._phase.loss) if self._config.compile else self._phase.loss
        hook = self._config.comm_hook if self._config.comm_hook.kind != "none" else None
        self._loss = self._workers.data_parallel(loss, hook, self._traffic)  # type: ignore[arg-type]

    def step(self, batch: Batch) -> None:
        """Forward, backward and optimizer step on this worker's share of a global batch."""
        config = self._config
        # DDP averages over workers; this makes it the gradient of the mean over the global batch, also where the
        # last batch is dealt out unevenly or leaves a worker without a sample.
        share = self._workers.size / batch.whole
        self.optimizer.zero_grad(set_to_none=True)
        pieces = _pieces(batch, config)
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            with contextlib.ExitStack() as stack:
                if not last and isinstance(self._loss, DistributedDataParallel):
                    stack.enter_context(self._loss.no_sync())  # gradients travel once, with the last piece
                if config.precision in _AUTOCAST:
                    stack.enter_context(torch.autocast(self._device.type, _AUTOCAST[config.precision]))
                loss = self._loss(piece)
                scaled = loss * share
                if config.l1 and last:
                    scaled = scaled + config.l1 * optim.l1_penalty(self._phase.loss)
                self.scaler.scale(scaled).backward()
            self.loss_sum += loss.detach()
        if config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._phase.loss.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()

    def state(self) -> State:
        return {
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(), "extra": _extra(self._phase.loss),
        }  # fmt: skip

    def resume(self, state: State) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in self.optimizer.state.items():
            for name, tensor in kept.items():
                # Fused steps walk memory in order: a moment must lie as its weight does (channels last, say).
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        with torch.no_grad():
            own = dict(self._phase.loss.named_parameters())
            for name, tensor in state["extra"].items():
                own[name].copy_(tensor)


def _extra(loss: nn.Module) -> dict[str, Tensor]:
    """Parameters of the loss itself, beside the model's: weights of several losses, a projection onto a teacher's."""
    return {name: p.detach() for name, p in loss.named_parameters() if not name.startswith("model.")}


def _pieces(batch: Batch, config: TrainConfig) -> list[Batch]:
    """A worker's share in as many pieces on every worker, some of them perhaps empty."""
    count = config.accumulate
    if config.full_batch:
        count = max(count, math.ceil(batch.whole / config.batch_size))
    if count == 1:
        return [batch]
    parts = zip(batch.x.tensor_split(count), batch.y.tensor_split(count), batch.rows.tensor_split(count), strict=True)
    return [Batch(x, y, rows, batch.whole, batch.step, batch.seed) for x, y, rows in parts]


def device_of(config: TrainConfig) -> torch.device:
    """Where this worker computes. Raises TrainingFailed if it is told to use a GPU and has none."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise TrainingFailed("device=cuda: torch sees no NVIDIA GPU here; set device=auto, or train where one is")
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def _placed(parts: Parts, device: torch.device, dtype: torch.dtype) -> Parts:
    """All samples where they are computed on: our sets are small. Pictures stay bytes, floats get the run's dtype."""

    def put(tensor: Tensor) -> Tensor:
        if device.type == "cpu" and (not tensor.is_floating_point() or tensor.dtype == dtype):
            return tensor  # a view of overlapping windows stays one
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return Parts(*(Part(put(part.x), put(part.y)) for part in (parts.train, parts.validation, parts.test)))


def train(
    config: TrainConfig,
    dataset: Any,
    *,
    resume: State | None = None,
    runs_dir: Path | None = None,
    on_state: Callable[[Progress, State], None] = lambda progress, state: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train to the end, or on from `resume`; `dataset` is what config.task.load returned.

    `on_state` gets the state to checkpoint after each epoch (and each `checkpoint_steps`), on every rank; its tensors
    are the living ones, so copy them before returning. `should_stop`, asked now and then on every rank, ends the run
    early with a checkpoint. Raises Diverged if the loss is no longer finite (checkpoints written before stay as they
    are), ConfigError if the data set is not the config's or `resume` is of another run.
    """
    datasets.require(dataset, config.dataset)
    workers = Workers.of_this_process()
    device = device_of(config)
    dtype = torch.float64 if config.precision == "fp64" else torch.float32
    torch.manual_seed(config.seed)
    task: Task = config.task.build(config, dataset, runs_dir=runs_dir)
    task.parts = _placed(task.parts, device, dtype)
    model = task.model
    if config.transfer is not None and resume is None:
        classes_of = config.dataset if isinstance(task, Classify) else None
        load_weights(model, config.transfer, runs_dir=runs_dir, classes_of=classes_of)
    for phase in task.phases:
        phase.loss.to(device, dtype)
        phase.loss.to(memory_format=torch.channels_last)  # 1.7 times as fast on a CPU: pooling is, above all
    model.to(device, dtype)

    samples = len(task.parts.train)
    batch_size = samples if config.full_batch else config.batch_size
    steps_per_epoch = math.ceil(samples / batch_size)
    thaw = Thaw(model, config.transfer)
    traffic = Traffic()
    steppers = [_Stepper(config, phase, workers, thaw, steps_per_epoch, traffic, device) for phase in task.phases]
    averager = Averager(config)
    history: list[Progress] = []
    best: State = {"weights": copied(model.state_dict()), "value": task.metric.worst, "epoch": -1}
    first = skip = 0
    if resume is not None:
        config.require_same_run(resume["config"], where="this checkpoint's run")
        model.load_state_dict(resume["weights"])
        for stepper in steppers:
            stepper.resume(resume["phases"][stepper.name])
            if workers.rank == 0:
                stepper.loss_sum += resume["loss_sums"][stepper.name]
        history = [Progress(**row) for row in resume["history"]]
        averager.state, best, first, skip = resume["average"], resume["best"], resume["epoch"], resume["step"]

    def state_at(epoch: int, step: int, losses: dict[str, float]) -> State:
        return {
            "config": config.model_dump(mode="json"), "epoch": epoch, "step": step, "weights": model.state_dict(),
            "phases": {stepper.name: stepper.state() for stepper in steppers}, "loss_sums": losses,
            "history": [asdict(row) for row in history], "best": best, "average": averager.state,
        }  # fmt: skip

    def sums_of_losses(epoch: int) -> dict[str, float]:
        total = workers.total(torch.stack([stepper.loss_sum for stepper in steppers]).cpu())
        losses = {stepper.name: float(value) for stepper, value in zip(steppers, total, strict=True)}
        if not all(map(math.isfinite, losses.values())):
            what = ", ".join(f"{value} ({name})" if len(losses) > 1 else str(value) for name, value in losses.items())
            raise Diverged(
                f"loss is {what} in epoch {epoch + 1}; lower lr={config.lr} (--set lr=...), or set clip_norm, in a run "
                "of another name; the last checkpoint is intact"
            )
        return losses

    pulse = _Pulse()
    clock = _Clock(total=(config.epochs - first) * samples - min(skip * batch_size, samples))
    result = TrainResult(model, task, history, first, traffic=traffic)
    for epoch in range(first, config.epochs):
        if config.patience is not None and epoch - best["epoch"] > config.patience:
            break
        chosen = mirrored(samples, epoch=epoch, seed=config.seed) if config.flip else None
        deal = batches(samples, batch_size, epoch=epoch, seed=config.seed, rank=workers.rank, world_size=workers.size,
                       skip=skip)  # fmt: skip
        model.train()
        if thaw.apply(model, epoch):
            for stepper in steppers:
                stepper.connect()
        done = min(skip * batch_size, samples)
        for number, (index, whole) in enumerate(deal, start=skip):
            step = epoch * steps_per_epoch + number
            seed_noise(step=step, seed=config.seed, rank=workers.rank)
            batch = _batch(task.parts.train, index, chosen, whole, step, workers, config)
            with _statistics_kept(model, whole // workers.size):
                for stepper in steppers:
                    stepper.step(batch)
            clock.done += whole
            done += whole
            if pulse.due() and done < samples:
                pulse.met(workers)
                losses = sums_of_losses(epoch)
                on_progress(clock.progress(epoch, config.epochs, losses[steppers[0].name] / done))
                if workers.any(should_stop()):
                    on_state(clock.progress(epoch, config.epochs, math.nan), state_at(epoch, number + 1, losses))
                    result.stopped = True
                    return result
            if done < samples and config.checkpoint_steps and (number + 1) % config.checkpoint_steps == 0:
                losses = sums_of_losses(epoch)
                on_state(clock.progress(epoch, config.epochs, math.nan), state_at(epoch, number + 1, losses))

        skip = 0
        losses = sums_of_losses(epoch)
        for stepper in steppers:
            stepper.loss_sum.zero_()
        metrics = _validated(task, model, workers)
        if len(steppers) > 1:
            metrics |= {f"{name}_loss": value / samples for name, value in losses.items()}
        progress = clock.progress(epoch, config.epochs, losses[steppers[0].name] / samples, metrics)
        history.append(progress)
        averager.epoch_done(model, epoch)
        if task.metric.better(metrics[task.metric.name], best["value"]):
            best = {"weights": copied(model.state_dict()), "value": metrics[task.metric.name], "epoch": epoch}
        on_progress(progress)
        on_state(progress, state_at(epoch + 1, 0, dict.fromkeys(losses, 0.0)))
        if epoch + 1 < config.epochs and workers.any(should_stop()):
            result.stopped = True
            return result

    made = averager.final(model, lambda: config.task.build(config, dataset, runs_dir=runs_dir).model, task.parts.train)
    if made is None:
        model.load_state_dict(best["weights"])
    result.model = (made or model).to(device, dtype).to(memory_format=torch.contiguous_format).eval()
    if workers.rank == 0:
        with torch.inference_mode():
            result.findings = task.findings(result.model)
    return result


def _batch(
    part: Part, index: Tensor, chosen: Tensor | None, whole: int, step: int, workers: Workers, config: TrainConfig
) -> Batch:
    x, y = part.x[index], part.y[index]
    if chosen is not None:
        x = torch.where(chosen[index].to(x.device).view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
    rows = torch.arange(whole)[workers.rank :: workers.size]
    return Batch(x, y, rows, whole, step, config.seed)


@contextlib.contextmanager
def _statistics_kept(model: nn.Module, share: int) -> Any:
    """Batch normalisation has no statistics of one sample: for such a batch it uses those that it has."""
    training = [layer for layer in batch_norms(model) if layer.training] if share < 2 else []
    for layer in training:
        layer.eval()
    yield
    for layer in training:
        layer.train()


@torch.inference_mode()
def _validated(task: Task, model: nn.Module, workers: Workers) -> dict[str, float]:
    model.eval()
    return task.metrics(workers.total(task.sums(model, task.parts.validation.share(workers.rank, workers.size)).cpu()))
