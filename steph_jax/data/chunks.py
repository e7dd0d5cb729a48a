"""How bags are cut into chunks: at most three shapes of groups of them, chosen for a cohort."""

import dataclasses
import itertools

import numpy as np

# The overhead of a chunk, in patches, to be weighed against padding: a merged model computes the
# parameters of the bag once more for every chunk. A group costs a few calls, GROUP_COST of the
# largest group.
CHUNK_COST = 96
GROUP_COST = 1 / 32


@dataclasses.dataclass(frozen=True)
class GroupShapes:
    """Shapes of the groups of a run, those of the longest chunks first.

    Attributes:
        pairs: (chunks per group G, patches per chunk L).
    """

    pairs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        lengths = [length for _, length in self.pairs]
        if not lengths or lengths != sorted(set(lengths), reverse=True) or lengths[-1] < 1:
            raise ValueError(
                f"chunks of groups have distinct lengths, longest first, not {self.pairs}"
            )

    def cut(self, num_patches: int) -> list[tuple[int, int, int]]:
        """The chunks of a bag, in order: (number of the shape, first patch, patches) of each."""
        lengths = np.array([length for _, length in self.pairs])
        counts = _chunk_counts(np.array([num_patches]), lengths)[:, 0]
        chunks, start = [], 0
        for shape, count in enumerate(counts):
            for _ in range(count):
                length = min(int(lengths[shape]), num_patches - start)
                chunks.append((shape, start, length))
                start += length
        return chunks


def _chunk_counts(num_patches: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[shapes, n] chunks of each length for bags of the given sizes.

    As many whole chunks of each length as fit, longest first; the rest goes into one chunk of the
    length whose padding is cheaper than cutting the rest further.
    """
    rest = np.asarray(num_patches, np.int64).copy()
    counts = np.zeros((len(lengths), len(rest)), np.int64)
    for i, length in enumerate(lengths):
        counts[i], rest = rest // length, rest % length
    counts[-1] += rest > 0
    for i in range(len(lengths) - 2, -1, -1):
        finer = counts[i + 1 :].T @ (lengths[i + 1 :] + CHUNK_COST)
        rounded_up = (finer > 0) & (finer >= lengths[i] + CHUNK_COST)
        counts[i] += rounded_up
        counts[i + 1 :, rounded_up] = 0
    return counts


def choose_group_shapes(
    num_patches: np.ndarray, batch_size: int, patches_per_group: int
) -> GroupShapes:
    """The shapes, at most three, that waste least on batches of these bags.

    Waste is counted on random batches: padding, plus the overhead of chunks and groups.

    Args:
        num_patches: [n] patches of the bags.
        batch_size: bags in a batch.
        patches_per_group: size of a group at most, but for one chunk.
    """
    sizes = np.sort(np.asarray(num_patches, np.int64))  # the order of patients changes nothing
    sizes = sizes[sizes > 0]
    if not len(sizes):
        raise ValueError("no bag has any patch")
    rng = np.random.default_rng(0)
    batches = rng.choice(sizes, (64, batch_size))
    longest = int(sizes.max())
    usual = [int(q) for q in np.quantile(sizes, [0.1, 0.5, 0.9])]
    equal_parts = [-(-longest // parts) for parts in range(1, 65)]
    lengths_to_try = {_multiple_of_8(n) if n < longest else n for n in usual}
    lengths_to_try |= set([n for n in equal_parts if n <= patches_per_group][:1])
    lengths_to_try |= {2**i for i in range(5, 20)}
    candidates = sorted(n for n in lengths_to_try if n <= min(longest, patches_per_group))
    best: tuple[float, GroupShapes] | None = None
    for number in (1, 2, 3):
        for combination in itertools.combinations(reversed(candidates), number):
            lengths = np.array(combination)
            counts = _chunk_counts(batches.ravel(), lengths).reshape(number, *batches.shape).sum(2)
            fits = [
                _fit_group(count, int(length), patches_per_group)
                for count, length in zip(counts, lengths, strict=True)
            ]
            cost = sum(c for c, _ in fits)
            if best is None or cost < best[0]:
                pairs = tuple((g, int(n)) for (_, g), n in zip(fits, lengths, strict=True))
                best = cost, GroupShapes(pairs)
    assert best is not None
    return best[1]


def _multiple_of_8(number: int) -> int:
    return -(-number // 8) * 8


def _fit_group(counts: np.ndarray, length: int, patches_per_group: int) -> tuple[float, int]:
    """(mean cost, chunks per group) of the best group size for chunks counted per batch."""
    most = max(1, patches_per_group // length)
    mean = max(1.0, float(counts.mean()))
    sizes = {min(most, max(1, round(mean / parts))) for parts in (0.75, 1, 1.5, 2, 3, 4, 6, 8)}
    fits = []
    for per_group in sorted(sizes | {most if most <= mean else 1}):
        groups = -(-counts // per_group)
        cost = groups * (per_group * (length + CHUNK_COST) + GROUP_COST * patches_per_group)
        fits.append((float(cost.mean()), per_group))
    return min(fits)
