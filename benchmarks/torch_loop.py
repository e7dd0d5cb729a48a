"""A PyTorch program of the published shape, to compare with: one slide at a time.

Written for this comparison from the equations of the paper: for every slide the hypernetworks look
at all its patches, the selected models are merged tensor by tensor in a Python loop, the merged
model encodes the slide, and the loss of one slide is differentiated. Gradients of the slides of a
step accumulate before AdamW moves. Features are in memory; each slide goes to the device when its
turn comes. It computes what `steph_jax` does (tests/test_benchmarks.py holds them against each
other), and takes PyTorch's defaults for everything else.
"""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import workload
from torch import Tensor, nn
from workload import Sizes

DROPOUT = 0.25


def _layer(tree: dict[str, np.ndarray]) -> nn.Linear:
    layer = nn.Linear(*tree["kernel"].shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(tree["kernel"].T))
        layer.bias.copy_(torch.from_numpy(tree["bias"]))
    return layer


def _mlp(tree: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        _layer(tree["hidden"]), nn.ReLU(), nn.Dropout(DROPOUT), _layer(tree["output"])
    )


def _encoder(tree: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The eight tensors that are merged, by name."""
    layers = {"projection": tree["feat_proj"]["layers_0"]} | tree["attention_net"]
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.weight"] = torch.from_numpy(layer["kernel"].T.copy()).to(device)
        tensors[f"{name}.bias"] = torch.from_numpy(layer["bias"]).to(device)
    return tensors


class Steph(nn.Module):
    """STEPH with gated attention, relu weights, learned mixing and a new head."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        super().__init__()
        tree = workload.trainable(sizes)
        self.embedding = _layer(tree["embedding"])
        self.weights = _mlp(tree["weights"])
        self.mixing = _mlp(tree["mixing"])
        self.pred_head = _layer(tree["pred_head"])
        self.top_k = sizes.top_k
        null, target, *sources = (_encoder(m, device) for m in workload.models(sizes))
        self.null = null
        self.target_vector = {name: target[name] - null[name] for name in null}
        self.vectors = [{name: s[name] - null[name] for name in null} for s in sources]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [T] and the weighted regularizers of one slide [N, D]."""
        g = F.relu(self.embedding(x)).mean(dim=0)
        w = F.relu(self.weights(g)).float()
        ratios = 1 / (1 + F.relu(self.mixing(g))).float()
        selection = torch.topk(w, self.top_k).indices.tolist()
        merged = {}
        for name, base in self.null.items():
            tensor = base
            for s in selection:
                mixed = ratios[s] * self.target_vector[name]
                mixed = mixed + (1 - ratios[s]) * self.vectors[s][name]
                tensor = tensor + w[s] * mixed
            merged[name] = tensor

        def linear(name: str, inputs: Tensor) -> Tensor:
            return F.linear(inputs, merged[f"{name}.weight"], merged[f"{name}.bias"])

        def drop(y: Tensor) -> Tensor:
            return F.dropout(y, DROPOUT, self.training)

        h = F.relu(linear("projection", x))
        gate = drop(torch.tanh(linear("attention_a", h)))
        gate = gate * drop(torch.sigmoid(linear("attention_b", h)))
        attention = torch.softmax(linear("attention_c", gate).float(), dim=0)
        z = attention.T.to(h.dtype) @ h
        merge_weight, mix_weight = workload.PENALTIES
        penalty = merge_weight * (torch.logsumexp(w, 0) ** 2 + w[selection].mean())
        penalty = penalty + mix_weight * (ratios[selection] ** 2).mean()
        return self.pred_head(z)[0].float(), penalty


def nll(logits: Tensor, time_bin: int, event: int) -> Tensor:
    """The likelihood of one patient, alpha = 0.5."""
    log_hazard, log_alive = F.logsigmoid(logits), F.logsigmoid(-logits)
    if event:
        return -(log_alive[:time_bin].sum() + log_hazard[time_bin])
    return -0.5 * log_alive[: time_bin + 1].sum()


class TorchLoop:
    """The program over the first batch of a cohort of `workload`.

    Args:
        length: of the cohort.
        dtype: "float32", or "bfloat16" for autocast to it.
        sizes: of the models and the run.
    """

    def __init__(self, length: str, dtype: str, sizes: Sizes) -> None:
        size = workload.batch_size(length, sizes)
        num_patches = workload.cohort(length, sizes)[:size]
        self._patches = int(num_patches.sum())
        self._slides = [torch.from_numpy(x) for x in workload.features(num_patches, sizes)]
        labels = workload.labels(len(workload.cohort(length, sizes)), sizes)
        self._time_bin, self._event = labels["time_bin"].tolist(), labels["event"].tolist()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._autocast = torch.autocast(
            self._device.type, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        self.model = Steph(sizes, self._device).to(self._device)
        parameters = list(self.model.named_parameters())
        decayed = [p for _, p in parameters if p.ndim >= 2]
        vectors = [p for _, p in parameters if p.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": workload.WEIGHT_DECAY},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=workload.LEARNING_RATE,
        )

    def gradients(self) -> float:
        """Accumulates the gradients of one step; returns the loss."""
        self._optimizer.zero_grad()
        total = 0.0
        for i, slide in enumerate(self._slides):
            with self._autocast:
                logits, penalty = self.model(slide.to(self._device, non_blocking=True))
                loss = nll(logits, self._time_bin[i], self._event[i]) + penalty
            loss = loss / len(self._slides)
            loss.backward()
            total += loss.item()
        return total

    def train(self) -> float:
        """Seconds a patch of one step, dropout on."""
        self.model.train()
        began = self._clock()
        self.gradients()
        self._optimizer.step()
        return (self._clock() - began) / self._patches

    @torch.no_grad()
    def outputs(self) -> np.ndarray:
        """Logits [slides, T], dropout off."""
        self.model.eval()
        outputs = []
        for slide in self._slides:
            with self._autocast:
                outputs.append(self.model(slide.to(self._device, non_blocking=True))[0].cpu())
        return torch.stack(outputs).numpy()

    def predict(self) -> float:
        """Seconds a patch of prediction."""
        began = self._clock()
        self.outputs()
        return (self._clock() - began) / self._patches

    def _clock(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
