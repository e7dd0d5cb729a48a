"""How the bags of a cohort reach the devices: kept there, or read ahead of their step.

A `Feed` makes the batches of training and evaluation. Where the patches of all bags fit a budget,
they are uploaded once, to every device, and a group of pieces is cut from them there: an epoch then
uploads nothing but numbers of rows. Otherwise the patches of a batch are read from where the bags
are (memory, or a cache that streams them) and uploaded by a thread while the batch before is
computed. All folds of a run share one feed.
"""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from steph_jax.data.bags import Bags
from steph_jax.data.batches import (
    Batch,
    Group,
    Groups,
    Layout,
    Pieces,
    bags_for,
    choose_layout,
    make_batch,
    read_pieces,
    slots_for,
)
from steph_jax.engine.device_cache import ResidentPatches, nbytes
from steph_jax.engine.step import device_mesh

#: The most that the groups of a batch of an evaluation may take on the devices, in bytes. A larger
#: batch is read again for every pass over it, so that a slide may be longer than memory.
HELD_BYTES = 1 << 30


def patches_per_group(platform: str) -> int:
    """Patches that one compiled call takes at most: enough to keep the device busy."""
    return 4096 if platform == "cpu" else 65536


def resident_bytes(device_gb: float, device: jax.Device) -> int:
    """What features may take on a device, from the setting `data.device_gb`.

    Raises:
        ValueError: for less than -1.
    """
    if device_gb >= 0:
        return int(device_gb * 1e9)
    if device_gb != -1:
        raise ValueError(
            f"data.device_gb is 0 or more, or -1 for half of the device; found {device_gb}"
        )
    if device.platform == "cpu":
        return 0
    return int((device.memory_stats() or {}).get("bytes_limit", 0)) // 2


class Feed:
    """Batches of the bags of a cohort, on the devices that share them.

    Args:
        bags: where the patches are.
        layout: shapes of the groups.
        mesh: devices that share every batch.
        batch_size: bags of a training batch.
        resident_bytes: what patches may take on each device; they stay there if all fit.
    """

    def __init__(
        self, bags: Bags, layout: Layout, mesh: Mesh, batch_size: int, resident_bytes: int = 0
    ) -> None:
        self.bags = bags
        self.layout = layout
        self.mesh = mesh
        self.num_slots = slots_for(batch_size, mesh.size)
        self._split = NamedSharding(mesh, P(mesh.axis_names[0]))
        self._resident = None
        if nbytes(bags) <= resident_bytes:
            self._resident = ResidentPatches(bags, layout, mesh)

    @classmethod
    def open(cls, bags: Bags, batch_size: int, device_gb: float = 0.0) -> "Feed":
        """Batches of some bags on all local devices, in groups of the sizes that suit them.

        Args:
            bags: where the patches are.
            batch_size: bags of a training batch.
            device_gb: 10^9 bytes that patches may take on each device; -1 for half of a GPU's.
        """
        mesh = device_mesh()
        device = mesh.devices.flat[0]
        budget = patches_per_group(device.platform)
        layout = choose_layout(bags.num_patches, batch_size, budget)
        return cls(bags, layout, mesh, batch_size, resident_bytes(device_gb, device))

    @property
    def num_bags(self) -> int:
        """Bags of the cohort."""
        return len(self.bags.num_patches)

    @property
    def is_resident(self) -> bool:
        """Whether all patches are on the devices."""
        return self._resident is not None

    def expect(self, order: Sequence[int]) -> None:
        """Says which bags are going to be asked for, in their order (see `cache.Bags`)."""
        if not self.is_resident:
            self.bags.expect(order)

    def batch(self, chosen: Sequence[int], labels: dict[str, np.ndarray]) -> Batch:
        """A batch of some bags; its groups are read as they are asked for.

        Args:
            chosen: numbers of the bags, in the order of the batch.
            labels: arrays [n, ...] over all bags.
        """
        take = self._upload if self._resident is None else self._resident.take
        size = self.mesh.size
        return make_batch(self.bags, self.layout, chosen, labels, self.num_slots, size, take)

    def chunks(self, chosen: Sequence[int], held_bytes: float = float("inf")) -> list[list[int]]:
        """Any bags in batches as large as the devices' slots allow, in their order.

        Args:
            chosen: numbers of the bags.
            held_bytes: what the patches of a batch may take, but for one of a single bag.
        """
        most = bags_for(self.num_slots, self.mesh.size)
        width = self.bags.feature_dim * self.bags.dtype.itemsize
        batches: list[list[int]] = []
        held = 0
        for bag in chosen:
            size = int(self.bags.num_patches[bag]) * width
            if not batches or len(batches[-1]) == most or held + size > held_bytes:
                batches.append([])
                held = 0
            batches[-1].append(bag)
            held += size
        return batches

    def ahead(
        self,
        batches: Iterable[Sequence[int]],
        labels: dict[str, np.ndarray],
        held_bytes: float = float("inf"),
    ) -> "ReadAhead":
        """Batches of some bags, each read and uploaded while the one before is computed.

        Args:
            batches: numbers of the bags of each.
            labels: arrays [n, ...] over all bags.
            held_bytes: batches whose groups take more are not read ahead.
        """
        width = self.bags.feature_dim * self.bags.dtype.itemsize

        def held(batch: Batch) -> Batch:
            groups = cast(Groups, batch.groups)
            if groups.padded_patches * width > held_bytes:
                return batch
            return batch._replace(groups=list(groups))

        # The thread that goes through this generator is the one that reads.
        return ReadAhead((held(self.batch(chosen, labels)) for chosen in batches), depth=1)

    def _upload(self, pieces: Pieces) -> Group:
        return cast(Group, jax.device_put(read_pieces(self.bags, pieces), self._split))


class ReadAhead:
    """Iterates over batches that a thread makes ahead of time.

    Attributes:
        waited: seconds that the consumer has waited for the thread.
    """

    def __init__(self, batches: Iterable[Batch], depth: int) -> None:
        self._batches = batches
        self._depth = depth
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(self._depth)
        stopped = threading.Event()

        def put(item: Batch | BaseException | None) -> bool:
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def read() -> None:
            try:
                for batch in self._batches:
                    if not put(batch):
                        return
                put(None)
            except BaseException as error:  # handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=read, name="read-ahead", daemon=True)
        thread.start()
        try:
            while True:
                began = time.perf_counter()
                item = ready.get()
                self.waited += time.perf_counter() - began
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()
