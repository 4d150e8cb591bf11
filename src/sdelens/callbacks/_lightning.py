"""The gradient noise of a Lightning Trainer."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from sdelens.callbacks._measurement import Measurement
from sdelens.callbacks._monitor import NoiseMonitor
from sdelens.core import check

__all__ = ["LightningNoise"]


class LightningNoise(Callback):
    """Measure the gradient noise of a Lightning run every n steps, and log it with the Trainer's own loggers.

    The numbers of `NoiseMonitor` go to all of ``trainer.loggers`` (TensorBoard, W&B, CSV); the verdict and the advice
    are in `history`. A step needs two or more micro-batches: with ``accumulate_grad_batches=1`` on one process, halve
    the batch of the data loader and set it to 2, which gives the same gradients.

        Trainer(accumulate_grad_batches=2, callbacks=[LightningNoise(every=50)])

    Args:
        every: optimizer steps between measurements.
        windows: steps that a measurement watches.
        batch_size: number of samples of a micro-batch; by default that of the data loader.
        prefix: what is written before every name.
        groups: groups of parameters in the measured noise, as for `sdelens.torch.watch`.
        options: options of `sdelens.diagnose`.

    Raises:
        ValueError: at the beginning of the training, if there is only one micro-batch per step, the optimization is
            manual, or the batch size is not known.
    """

    def __init__(
        self,
        *,
        every: int = 100,
        windows: int = 20,
        batch_size: int | None = None,
        prefix: str = "noise/",
        groups: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._batch_size = None if batch_size is None else check.at_least("batch_size", batch_size, 1)
        self._monitor: NoiseMonitor | None = None
        self._settings: dict[str, Any] = {"every": every, "windows": windows, "prefix": prefix, "groups": groups}
        self._settings["options"] = options

    @property
    def history(self) -> list[Measurement]:
        """All measurements."""
        return [] if self._monitor is None else self._monitor.history

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the model as its strategy wraps it."""
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__}.automatic_optimization: got False, so that only the module knows where a "
                "step begins and how its losses are scaled; use sdelens.callbacks.NoiseMonitor in training_step."
            )
        if trainer.accumulate_grad_batches < 2 and trainer.world_size < 2:
            raise ValueError(
                "accumulate_grad_batches: got 1, but the noise can only be separated from the gradient if a step has "
                "two or more micro-batches; set it to 2, and halve the batch size of the data loader, which gives the "
                "same gradients."
            )
        size = self._batch_size or getattr(trainer.train_dataloader, "batch_size", None)
        if size is None:
            raise ValueError("batch_size: got None, and the data loader does not tell it; give it to LightningNoise.")

        def scale() -> float:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            return (1.0 if scaler is None else float(scaler.get_scale())) / trainer.accumulate_grad_batches

        def log(numbers: Any, step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(dict(numbers), step=step)

        model, optimizer = trainer.model or pl_module, next(iter(trainer.optimizers), None)
        self._monitor = NoiseMonitor(model, optimizer, batch_size=size, scale=scale, log=log, **self._settings)
        self._monitor.resume(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count a step, if the batch was its last."""
        if self._monitor is not None and trainer.global_step > self._monitor.steps:
            self._monitor.step(trainer.global_step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching, also after an exception."""
        if self._monitor is not None:
            self._monitor.close()
