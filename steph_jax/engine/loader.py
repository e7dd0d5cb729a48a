"""How the bags of a cohort reach the devices: from a cache there, or prefetched for every step.

A `DeviceLoader` makes the batches of training and evaluation. Where the patches of all bags fit
into the device cache, they are uploaded once, to every device or a part to each, and groups of
chunks are cut from them there: an epoch then uploads nothing but indices of rows. Otherwise a
thread reads the patches of a batch from memory or files (`data.cache`) and uploads them while the
devices compute the batch before. All folds of a run share one loader.
"""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from steph_jax import hosts
from steph_jax.data.bags import BagReader
from steph_jax.data.batches import (
    Batch,
    ChunkGroup,
    ChunkGroups,
    ChunkPlan,
    assign,
    bags_for,
    make_batch,
    read_chunks,
    slots_for,
)
from steph_jax.data.chunks import GroupShapes, choose_group_shapes
from steph_jax.engine.device_cache import DeviceCache, nbytes, part_nbytes
from steph_jax.engine.placement import device_mesh, own_part, split_own

#: The most that the groups of a batch of an evaluation may take on the devices, in bytes. Those of
#: a larger batch are read again in every pass over it: a bag may be longer than memory.
MAX_BATCH_BYTES = 1 << 30


def patches_per_group(platform: str) -> int:
    """The most patches of a group of chunks: enough to keep the device busy."""
    return 4096 if platform == "cpu" else 65536


def device_cache_bytes(device_gb: float, device: jax.Device) -> int:
    """The size of the device cache in bytes, from the setting `data.device_gb`.

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


class DeviceLoader:
    """Batches of the bags of a cohort, on the devices that share them.

    Args:
        bags: where the patches are.
        group_shapes: how bags are cut into chunks.
        mesh: devices that share every batch.
        batch_size: bags of a training batch.
        device_cache_bytes: of each device, on every host; used if the patches of all bags fit, or
            else if a part of them on each device does.
    """

    def __init__(
        self,
        bags: BagReader,
        group_shapes: GroupShapes,
        mesh: Mesh,
        batch_size: int,
        device_cache_bytes: int = 0,
    ) -> None:
        self.bags = bags
        self.group_shapes = group_shapes
        self.mesh = mesh
        self.num_slots = slots_for(batch_size, mesh.size)
        self._device_cache = None
        part = part_nbytes(bags, group_shapes, mesh.size)
        if all(hosts.of_all(nbytes(bags) <= device_cache_bytes)):
            self._device_cache = DeviceCache(bags, group_shapes, mesh)
        elif mesh.size > 1 and all(hosts.of_all(part <= device_cache_bytes)):
            self._device_cache = DeviceCache(bags, group_shapes, mesh, is_split=True)

    @classmethod
    def open(cls, bags: BagReader, batch_size: int, device_gb: float = 0.0) -> "DeviceLoader":
        """A loader to all devices, with the shapes of groups that suit the bags.

        Args:
            bags: where the patches are.
            batch_size: bags of a training batch.
            device_gb: 10^9 bytes of device cache; -1 for half of a GPU's memory.
        """
        mesh = device_mesh()
        device = mesh.local_devices[0]
        budget = patches_per_group(device.platform)
        group_shapes = choose_group_shapes(bags.num_patches, batch_size, budget)
        return cls(bags, group_shapes, mesh, batch_size, device_cache_bytes(device_gb, device))

    @property
    def num_bags(self) -> int:
        """Bags of the cohort."""
        return len(self.bags.num_patches)

    @property
    def uses_device_cache(self) -> bool:
        """Whether the patches of all bags stay on the devices."""
        return self._device_cache is not None

    def announce(self, order: Iterable[Sequence[int]]) -> None:
        """Announces the next batches, whose bags of this host will be read (see `BagReader`)."""
        if not self.uses_device_cache:
            self.bags.announce([bag for indices in order for bag in self._own(indices)])

    def _own(self, indices: Sequence[int]) -> list[int]:
        """The bags of a batch that go to devices of this host, in the batch's order."""
        if not self.mesh.is_multi_process:
            return list(indices)
        sizes = [int(self.bags.num_patches[i]) for i in indices]
        shares = assign(sizes, self.mesh.size, self.num_slots)
        positions = [i for share in shares[own_part(self.mesh, self.mesh.size)] for i in share]
        return [indices[i] for i in sorted(positions)]

    def batch(self, indices: Sequence[int], labels: dict[str, np.ndarray]) -> Batch:
        """A batch of some bags, each of whose groups is read when it is indexed.

        Args:
            indices: numbers of the bags, in the order of the batch.
            labels: arrays [n, ...] over all bags.
        """
        make_group = self._upload if self._device_cache is None else self._device_cache.group
        return make_batch(
            self.bags,
            self.group_shapes,
            indices,
            labels,
            self.num_slots,
            self.mesh.size,
            make_group,
        )

    def partition(self, indices: Sequence[int], max_bytes: float = float("inf")) -> list[list[int]]:
        """Any number of bags in batches as large as the devices' slots allow, in order.

        Args:
            indices: numbers of the bags.
            max_bytes: the most that the patches of a batch may take; a single bag may be larger.
        """
        max_bags = bags_for(self.num_slots, self.mesh.size)
        row_bytes = self.bags.feature_dim * self.bags.dtype.itemsize
        parts: list[list[int]] = []
        total = 0
        for bag in indices:
            size = int(self.bags.num_patches[bag]) * row_bytes
            if not parts or len(parts[-1]) == max_bags or total + size > max_bytes:
                parts.append([])
                total = 0
            parts[-1].append(bag)
            total += size
        return parts

    def batches(
        self,
        order: Iterable[Sequence[int]],
        labels: dict[str, np.ndarray],
        max_bytes: float = float("inf"),
    ) -> "Prefetcher":
        """Batches of some bags, each read and uploaded while the one before is computed.

        Args:
            order: numbers of the bags of each batch.
            labels: arrays [n, ...] over all bags.
            max_bytes: batches whose groups take more are not prefetched.
        """
        row_bytes = self.bags.feature_dim * self.bags.dtype.itemsize

        def with_groups(batch: Batch) -> Batch:
            groups = cast(ChunkGroups, batch.groups)
            # Devices exchange what a split cache has of a group, in the order of one thread.
            is_exchanged = self._device_cache is not None and self._device_cache.is_split
            if is_exchanged or groups.padded_patches * row_bytes > max_bytes:
                return batch
            return batch._replace(groups=list(groups))

        # The prefetcher's thread iterates over this generator, so it is the one that reads.
        return Prefetcher((with_groups(self.batch(indices, labels)) for indices in order), depth=1)

    def _upload(self, plan: ChunkPlan) -> ChunkGroup:
        own = plan.rows(own_part(self.mesh, len(plan.bag)))
        return cast(ChunkGroup, split_own(self.mesh, read_chunks(self.bags, own)))


class Prefetcher:
    """Iterates over batches that a thread makes ahead of time.

    Attributes:
        seconds_waiting: how long the consumer has waited for the thread.
    """

    def __init__(self, batches: Iterable[Batch], depth: int) -> None:
        self._batches = batches
        self._depth = depth
        self.seconds_waiting = 0.0

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
            except BaseException as error:  # raised by the consumer
                put(error)

        thread = threading.Thread(target=read, name="prefetch", daemon=True)
        thread.start()
        try:
            while True:
                began = time.perf_counter()
                item = ready.get()
                self.seconds_waiting += time.perf_counter() - began
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()
