"""timm's own training step, on the same model and the same batches.

It is a step of timm's `train.py` with the settings that timm recommends for a GPU
(``--amp --channels-last``, and ``--model-ema`` because our recipe averages weights),
built from timm's public parts.

Source:
    pytorch-image-models, train.py, `train_one_epoch`.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.loss import BinaryCrossEntropy  # noqa: TID251 - a peer
from timm.optim import create_optimizer_v2  # noqa: TID251 - a peer
from timm.utils import ModelEmaV3, NativeScaler  # noqa: TID251 - a peer
from torch import nn

from ichfast.loading.batch import Batch
from ichfast.models.precision import Amp
from ichfast.training.config import Phase


class TimmTrainer:
    """Trains like timm's `train.py`.

    Args:
        model: On its device, channels-last.
        phase: Gives the optimizer's settings.
        amp: Number format of the step.
        ema_decay: Decay of the averaged weights.
    """

    def __init__(
        self, model: nn.Module, phase: Phase, amp: Amp, *, ema_decay: float
    ) -> None:
        self._model = model
        self._amp = amp
        self._optimizer = create_optimizer_v2(
            model,
            opt="adamw",
            lr=phase.lr,
            weight_decay=phase.weight_decay,
            betas=phase.betas,
            eps=phase.eps,
        )
        self._scaler = NativeScaler() if amp.needs_scaler else None
        self._ema = ModelEmaV3(model, decay=ema_decay)
        self._loss = BinaryCrossEntropy()
        self._num_updates = 0

    def run_epoch(self, batches: Sequence[Batch]) -> int:
        """Train on batches that are on the device; returns the number of slices."""
        self._model.train()
        self._optimizer.zero_grad()
        for batch in batches:
            with self._amp.autocast():
                logits_BK = self._model(batch.images_BCHW.to(self._amp.dtype))
                loss = self._loss(logits_BK, batch.targets_BK)
            if self._scaler is not None:
                self._scaler(loss, self._optimizer)
            else:
                loss.backward()
                self._optimizer.step()
            self._num_updates += 1
            self._ema.update(self._model, step=self._num_updates)
            self._optimizer.zero_grad()
        return sum(batch.num_slices for batch in batches)
