"""Fitting V and M: the steps of World Models' stages "vision", "together" and "memory"."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from agents.imagination import matmul_precision
from agents.latents import code_of, latent_replay
from agents.stages import StagedAgent
from wmgym.nets.optim import set_rate
from wmgym.replay import SequenceReplay
from wmgym.worlds.base import SequenceBatch
from wmgym.worlds.mdn_rnn import MDNRNN


class VisionMemoryAgent(StagedAgent):
    """`StagedAgent` whose world is an `MDNRNN`; a subclass has the arguments named below."""

    world: MDNRNN
    vision_batch: int
    vision_decay: float
    together_length: int
    memory_learning_rate: float
    memory_decay: float
    precision: Literal["float32", "bfloat16"]
    _codes: SequenceReplay | None = None

    def _update(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """V and M at once, on the same sequences (`MDNRNN.loss`)."""
        loss = self.world.loss(batch, self.noise)
        self._descend_together(loss.total, "vision", "memory")
        return loss.parts

    def _check_sequences(self) -> None:
        """Raise ValueError before V is fitted, where M could not be."""
        assert self.replay_buffer is not None
        wanted = {"together_length": self.together_updates, "batch_length": self.memory_updates}
        for name in (name for name, updates in wanted.items() if updates):
            length = getattr(self, name)
            if not self.replay_buffer.can_sample(length):
                held = len(self.replay_buffer)
                raise ValueError(
                    f"No environment has given {length} steps yet ({held} of {self.n_envs} together), and M learns "
                    f"from sequences of {name}={length}: collect more, or choose a smaller {name}; all is kept."
                )

    def _vision_step(self) -> None:
        """One update of V on single frames."""
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        batch = self.replay_buffer.sample(self.vision_batch, 1, device=self.device)
        self._set_vision_rate()
        _, terms = self.world.vae.loss({key: value[0] for key, value in batch.observation.items()}, self.noise)
        means = {f"{name}_loss": term.mean() for name, term in terms.items()}
        self._descend_together(torch.stack(list(means.values())).sum(), "vision")
        self._note(means)

    def _together_step(self) -> None:
        """One update of V and M at once, on sequences of frames."""
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        batch = self.replay_buffer.sample(self.batch_size, self.together_length, device=self.device)
        self._set_vision_rate()
        self._set_memory_rate()
        with matmul_precision(self.precision):
            self._note(self._update(batch))

    def _memory_step(self) -> None:
        """One update of M on sequences of V's codes, drawn anew for every batch."""
        codes = self._open_codes()
        batch = codes.sample(self.batch_size, self.batch_length, device=self.device)
        self._codes_state = codes.get_state()
        self._set_memory_rate()
        with matmul_precision(self.precision):
            parts, _ = self.world.memory_loss(code_of(batch).sample(self.noise), batch)
            self._descend_together(torch.stack(list(parts.values())).sum(), "memory")
        self._note(parts)

    def _open_codes(self) -> SequenceReplay:
        if self._codes is None:
            assert self.replay_buffer is not None
            self.policy.set_training_mode(False)
            self._codes = latent_replay(self.world, self.replay_buffer, self._seed_of(0))
            if self._codes_state is not None:  # the stage was interrupted here
                self._codes.set_state(self._codes_state)
        return self._codes

    def _set_vision_rate(self) -> None:
        set_rate(self.optimizers["vision"], self.lr_schedule(1.0) * self.vision_decay**self._progress)

    def _set_memory_rate(self) -> None:
        least = min(1e-5, self.memory_learning_rate)
        rate = least + (self.memory_learning_rate - least) * self.memory_decay**self._progress
        set_rate(self.optimizers["memory"], rate)

    @property
    def _progress(self) -> float:
        """Updates of this stage, as many as it would be in the first iteration: so all end with the same rates."""
        return self._stage_step / self._effort

    def _descend_together(self, loss: Tensor, *names: str) -> None:
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        if "memory" in names:  # the paper clips each number of M's gradient, and V's not at all
            nn.utils.clip_grad_value_(self._part("memory"), 1.0)
        for name in names:
            self.optimizers[name].step()

    def _note(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self._metrics[name].append(value.detach())

    def _part(self, name: str) -> list[nn.Parameter]:
        """The parameters of V ("vision") or M ("memory")."""
        named = self.policy.world.named_parameters()
        return [parameter for key, parameter in named if key.startswith("vae.") == (name == "vision")]
