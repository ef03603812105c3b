"""A training loop with a budget of time or steps that can be stopped and resumed at any moment."""

import math
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A CPU without bfloat16 arithmetic converts back and forth instead.
BFLOAT16 = DEVICE == "cuda" or any(torch.cpu.get_capabilities().get(name)
                                   for name in ("avx512_bf16", "amx_bf16"))


def autocast():
    """bfloat16 where the machine computes in it, else float32."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=BFLOAT16)


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def load_stage(folder: Path, name: str, modules: dict[str, torch.nn.Module]) -> dict:
    """Put a stage's saved parameters into `modules`; returns the whole state."""
    state = torch.load(folder / f"{name}.pt", map_location=DEVICE, weights_only=True)
    for key, module in modules.items():
        module.load_state_dict(state["modules"][key], strict=False)
    return state


class Run:
    """One stage: state in `folder/name.pt` and log rows every minute.

    It ends after `minutes` of training, or after `limit` steps where these are given.
    """

    def __init__(self, folder: Path, name: str, minutes: float, modules: dict, rates: dict,
                 log: Path, decay: float = 0.0, limit: int | None = None):
        self.folder, self.name, self.log, self.modules = folder, name, log, modules
        self.budget, self.spent, self.step, self.samples = 60 * minutes, 0.0, 0, 0
        self.limit = limit
        self.rates = [rates[key] for key in modules]
        self.parameters: list[torch.nn.Parameter] = []
        self.losses: list[float] = []
        groups = []
        for module in modules.values():  # a part that is named before its whole has its own rate
            new = [p for p in trainable(module).values()
                   if not any(p is other for other in self.parameters)]
            self.parameters += new
            groups.append({"params": new})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=decay, betas=(0.9, 0.98),
                                           fused=True)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / f"{name}.pt").exists():
            state = load_stage(folder, name, modules)
            self.spent, self.step, self.samples = state["spent"], state["step"], state["samples"]
            if not self.finished:
                self.optimizer.load_state_dict(state["optimizer"])

    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        return self.step / self.limit if self.limit else self.spent / self.budget

    @property
    def finished(self) -> bool:
        return self.progress >= 1

    def learn(self, loss: torch.Tensor, samples: int) -> None:
        """One optimizer step on a loss over `samples` images."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.samples += samples

    def save(self) -> None:
        state = dict(spent=self.spent, step=self.step, samples=self.samples,
                     optimizer=self.optimizer.state_dict(),
                     modules={key: trainable(m) for key, m in self.modules.items()})
        partial = self.folder / f"{self.name}.tmp"
        torch.save(state, partial)
        partial.replace(self.folder / f"{self.name}.pt")

    def write(self, values: dict[str, float]) -> None:
        """Append one log row a metric."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        rows = pd.DataFrame(dict(
            stage=self.name, minutes=f"{self.spent / 60:.2f}", step=self.step,
            samples=self.samples, metric=values.keys(),
            value=[f"{value:.4f}" for value in values.values()]))
        rows.to_csv(self.log, mode="a", header=not self.log.exists(), index=False)

    def steps(self, batches, evaluate, warmup: int = 100):
        """Yield batches until the budget is spent; cosine learning rate over it.

        Once a minute, and at the end, the state is saved and what `evaluate()` finds is logged.
        """
        if self.finished:
            return
        last, mark = time.monotonic(), self.spent
        bar = tqdm(total=self.limit or round(self.budget), unit="step" if self.limit else "s",
                   initial=self.step if self.limit else round(self.spent), desc=self.name)
        for batch in batches:
            cosine = (1 + math.cos(math.pi * min(1.0, self.progress))) / 2
            scale = min(1, (self.step + 1) / warmup) * (0.03 + 0.97 * cosine)
            for group, rate in zip(self.optimizer.param_groups, self.rates):
                group["lr"] = rate * scale
            yield batch
            self.step += 1
            now = time.monotonic()
            self.spent, last = self.spent + now - last, now
            bar.update((self.step if self.limit else round(self.spent)) - bar.n)
            if self.spent - mark > 60 or self.finished:
                mark = self.spent
                values = {"loss": sum(self.losses[-50:]) / len(self.losses[-50:]), **evaluate()}
                bar.set_postfix({k: f"{v:.3f}" for k, v in values.items()})
                self.write(values)
                self.save()
                last = time.monotonic()
            if self.finished:
                break
        bar.close()
