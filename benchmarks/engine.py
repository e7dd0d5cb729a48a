"""Our side of the benchmarks: training and prediction as the program runs them, timed."""

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
import workload
from workers import memory
from workload import Sizes

from steph_jax.data import batches, chunks
from steph_jax.data.bags import InMemoryBags
from steph_jax.data.batches import Batch, ChunkGroups
from steph_jax.engine import loader
from steph_jax.engine.loader import DeviceLoader
from steph_jax.engine.placement import device_mesh, replicate
from steph_jax.engine.step import Outputs, gradients
from steph_jax.evaluation import predictions
from steph_jax.evaluation.evaluator import loss_function
from steph_jax.methods.steph import StephModel, freeze
from steph_jax.models import steph, task_vectors
from steph_jax.models.abmil import Architecture, Params
from steph_jax.survival.objectives import Objective
from steph_jax.training.epoch import adamw, initial_state, learning_rates, train_epoch
from steph_jax.training.sections import Precision


@dataclasses.dataclass(frozen=True)
class Pass:
    """One timed pass over a cohort.

    Attributes:
        seconds: wall time.
        slides, patches: seen, without padding.
        seconds_waiting: the part of it that training waited for data, its first batch included.
    """

    seconds: float
    slides: int
    patches: int
    seconds_waiting: float = 0.0


class Compilations:
    """Counts what XLA compiles in this process, by name of the function."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, _: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.counts[str(about.get("fun_name", ""))] += 1

    def of(self, function: str) -> int:
        """How often functions with this in their name were compiled."""
        return sum(n for name, n in self.counts.items() if function in name)


class Engine:
    """A cohort in memory and a STEPH model.

    Args:
        length: as in `workload`.
        dtype: of the operands of products over patches.
        sizes: of the models and the run.
        num_devices: devices that share a batch, each with `workload.batch_size` slides of it.
        first_device: number of the first of them on this machine.

    Attributes:
        method: what is computed.
        loss: of a batch.
        loader: of the cohort; with a device cache where half of the device's memory holds it.
        labels: of the cohort.
        state: parameters and optimizer.
        frozen: the models that are merged.
        compilations: of this process since the engine was made.
    """

    def __init__(
        self, length: str, dtype: str, sizes: Sizes, num_devices: int = 1, first_device: int = 0
    ) -> None:
        self.compilations = Compilations()
        self._num_patches = np.tile(workload.cohort(length, sizes), num_devices)
        size = num_devices * workload.batch_size(length, sizes)
        features_dtype = Precision(dtype).features
        bags = [
            x.astype(features_dtype, copy=False)
            for x in workload.features(self._num_patches, sizes)
        ]
        self.labels = workload.labels(len(bags), sizes)
        self._size = size
        mesh = device_mesh(jax.local_devices()[first_device : first_device + num_devices])
        self._device = mesh.devices.flat[0]
        budget = loader.patches_per_group(self._device.platform)
        self.loader = DeviceLoader(
            InMemoryBags.of(bags, sizes.feature_dim, features_dtype),
            chunks.choose_group_shapes(self._num_patches, size, budget),
            mesh,
            size,
            loader.device_cache_bytes(-1, self._device),
        )
        self.method = _method(sizes, dtype)
        self.loss = loss_function(Objective())
        self.frozen = replicate(mesh, freeze(stored_models(sizes), self.method.options))
        self.optimizer = adamw(
            learning_rates(workload.LEARNING_RATE, 10, 10_000), workload.WEIGHT_DECAY
        )
        self.state = replicate(mesh, initial_state(workload.trainable(sizes), self.optimizer))
        self._step = self._epoch = 0

    def warm_predict(self) -> dict[str, Any]:
        """Compiles prediction; call it before anything trains, for its peak of memory."""
        self.predict()
        order = self.loader.partition(range(self.loader.num_bags))
        return self._report(order, self.compilations.of("pool_chunks"))

    def warm_train(self) -> dict[str, Any]:
        """Compiles training: forwards and backwards, or whole steps of a single group."""
        before = self.compilations.of("pool_chunks")
        self.train()
        both_ways = self.compilations.of("pool_chunks") - before
        return self._report(self._order(0), both_ways // 2 + self.compilations.of("_gradients"))

    def _report(self, order: Sequence[Sequence[int]], compilations: int) -> dict[str, Any]:
        batches = [self.loader.batch(chosen, self.labels) for chosen in order]
        real = sum(int(np.sum(batch.bags.num_patches)) for batch in batches)
        padded = sum(cast(ChunkGroups, batch.groups).padded_patches for batch in batches)
        return {
            "padding_waste": (padded - real) / padded,
            "compilations": compilations,
            "peak_bytes": self.peak_bytes(),
        }

    def peak_bytes(self) -> int:
        """High water of the device's memory, or of this process where the device is the CPU."""
        on_device = self._device.memory_stats()
        return on_device["peak_bytes_in_use"] if on_device else memory()["peak"]

    def compiled(self) -> int:
        """Functions compiled so far in this process, of any kind."""
        return self.compilations.counts.total()

    def imbalance(self) -> float:
        """Patches of the fullest device over their mean, less 1; the mean over the batches."""
        over = []
        for chosen in self._order(0):
            sizes = [int(self._num_patches[i]) for i in chosen]
            shares = batches.assign(sizes, self.loader.mesh.size, self.loader.num_slots)
            loads = [sum(sizes[i] for i in share) for share in shares]
            over.append(max(loads) / np.mean(loads) - 1)
        return float(np.mean(over))

    def about(self) -> dict[str, Any]:
        """The devices, and the versions that matter."""
        cores = f"{os.cpu_count()} CPU cores"
        on_cpu = self._device.platform == "cpu"
        return {
            "platform": self._device.platform,
            "device": cores if on_cpu else self._device.device_kind,
            "features_on_device": self.loader.uses_device_cache,
            "devices": len(jax.local_devices()),
            "jax": jax.__version__,
        }

    def train(self) -> Pass:
        """One epoch of training over the cohort, dropout on."""
        order = self._order(self._epoch)
        self.state, epoch = train_epoch(
            self.method,
            self.loss,
            self.loader.mesh,
            self.optimizer,
            self.state,
            self.frozen,
            self.loader.batches(order, self.labels),
            jax.random.key(0),
            self._step,
        )
        self._step += len(order)
        self._epoch += 1
        return self._pass(epoch.seconds, epoch.seconds_waiting)

    def predict(self) -> Pass:
        """Prediction of the whole cohort."""
        began = time.perf_counter()
        self.outputs()
        return self._pass(time.perf_counter() - began)

    def outputs(self) -> np.ndarray:
        """Logits [slides, T]."""
        logits, _ = predictions.run(
            self.method,
            self.state.trainable,
            self.frozen,
            self.loader,
            range(self.loader.num_bags),
            self.labels,
        )
        return logits

    def gradients(self, batch: Batch) -> tuple[Params, Outputs]:
        """Gradients and outputs of a batch, dropout off."""
        trainable, frozen, mesh = self.state.trainable, self.frozen, self.loader.mesh
        return gradients(self.method, self.loss, mesh, trainable, frozen, batch, None)

    def _pass(self, seconds: float, seconds_waiting: float = 0.0) -> Pass:
        return Pass(seconds, len(self._num_patches), int(self._num_patches.sum()), seconds_waiting)

    def _order(self, epoch: int) -> list[list[int]]:
        return list(batches.epoch_order(range(len(self._num_patches)), self._size, 0, epoch))


def stored_models(sizes: Sizes) -> Params:
    """The models of `workload` as a STEPH model stores them."""
    null, target, *sources = workload.models(sizes)
    return {
        "null": null,
        "target": target,
        "target_task_vector": task_vectors.task_vector(target, null),
        "task_vectors": task_vectors.stack([task_vectors.task_vector(s, null) for s in sources]),
    }


def architecture(sizes: Sizes) -> Architecture:
    """Of all models."""
    return Architecture(sizes.feature_dim, sizes.embed_dim, sizes.attention_dim, sizes.num_bins)


def _method(sizes: Sizes, dtype: str) -> StephModel:
    return StephModel(
        architecture(sizes),
        sizes.num_sources,
        steph.Options(top_k=sizes.top_k),
        *workload.PENALTIES,
        Precision(dtype).operands,
    )
