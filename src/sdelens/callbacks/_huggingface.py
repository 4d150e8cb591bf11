"""The gradient noise of a Hugging Face Trainer."""

from typing import Any

from transformers import Trainer, TrainerCallback

from sdelens.callbacks._measurement import Measurement
from sdelens.callbacks._monitor import NoiseMonitor

__all__ = ["HuggingFaceNoise"]


class HuggingFaceNoise(TrainerCallback):
    """Measure the gradient noise of a Trainer every n steps, and log it with the Trainer's own logs.

    The numbers of `NoiseMonitor` go to ``trainer.log``, and so to ``log_history``, TensorBoard, W&B and all else that
    the Trainer reports to; the verdict and the advice are in `history`. A step needs two or more micro-batches: with
    ``gradient_accumulation_steps=1`` on one process, halve ``per_device_train_batch_size`` and set it to 2, which gives
    the same gradients. The samples of the noise scale are rows of a batch, sequences for a language model.

        trainer.add_callback(HuggingFaceNoise(trainer, every=50))

    Args:
        trainer: the Trainer to which the callback is added.
        every: optimizer steps between measurements.
        windows: steps that a measurement watches.
        prefix: what is written before every name.
        groups: groups of parameters in the measured noise, as for `sdelens.torch.watch`.
        options: options of `sdelens.diagnose`.

    Raises:
        ValueError: at the beginning of the training, if there is only one micro-batch per step.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        every: int = 100,
        windows: int = 20,
        prefix: str = "noise/",
        groups: Any = None,
        **options: Any,
    ) -> None:
        self._trainer = trainer
        self._monitor: NoiseMonitor | None = None
        self._settings: dict[str, Any] = {"every": every, "windows": windows, "prefix": prefix, "groups": groups}
        self._settings["options"] = options

    @property
    def history(self) -> list[Measurement]:
        """All measurements."""
        return [] if self._monitor is None else self._monitor.history

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to watch the model as it is wrapped for training."""
        trainer = self._trainer
        if args.gradient_accumulation_steps < 2 and args.world_size < 2:
            raise ValueError(
                "gradient_accumulation_steps: got 1, but the noise can only be separated from the gradient if a step "
                f"has two or more micro-batches; set it to 2, and per_device_train_batch_size from "
                f"{args.per_device_train_batch_size} to half of it, which gives the same gradients."
            )
        self._monitor = NoiseMonitor(
            trainer.model_wrapped,
            trainer.optimizer,
            batch_size=args.train_batch_size,
            scale=self._scale,
            log=lambda numbers, _: trainer.log(dict(numbers)),
            **self._settings,
        )
        self._monitor.resume(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step; a log of the Trainer itself that is due at this step stays due."""
        wanted = control.should_log
        if self._monitor is not None:
            self._monitor.step(state.global_step)
        control.should_log = wanted

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop watching."""
        if self._monitor is not None:
            self._monitor.close()

    def _scale(self) -> float:
        """Factor of the loss: that of mixed precision, divided by the number of micro-batches of this step."""
        accelerator = self._trainer.accelerator
        scaler = getattr(accelerator, "scaler", None)
        factor = float(scaler.get_scale()) if scaler is not None else 1.0
        return factor / (self._trainer.current_gradient_accumulation_steps * accelerator.gradient_accumulation_steps)
