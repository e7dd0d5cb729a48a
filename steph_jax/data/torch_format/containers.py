"""Limits of the containers that a pickle builds: their depth, their size, the keys of dicts."""

from steph_jax.data.torch_format.placeholders import Malformed, Unbuilt, UnknownGlobal

#: Nesting of containers beyond which a pickle is refused.
MAX_DEPTH = 64
#: Values in the result, each counted as often as it is reached.
MAX_VALUES = 5_000_000
#: Characters of a key of a dict. Comparing equal keys takes time in proportion.
MAX_KEY_LENGTH = 4096
#: Integers from 0 up to this are cheap as keys, however many there are: too few of them collide in
#: a hash table of their number.
SMALL_INT = 2**24
#: Keys of a file that are neither text nor small integers. Python hashes numbers by a public rule,
#: so that a file may choose keys that all collide; each is then compared with all before it.
MAX_OTHER_KEYS = 4096


class KeyCheck:
    """Checks the keys of the dicts and the members of the sets of a file."""

    def __init__(self) -> None:
        self._other_keys = 0

    def check(self, key: object) -> object:
        """The key, if it is safe and cheap to hash and to compare.

        Raises:
            Malformed: it is not, or there are too many that may be made to collide.
        """
        if isinstance(key, str) and len(key) > MAX_KEY_LENGTH:
            raise Malformed(f"a dict with a key of {len(key)} characters")
        if isinstance(key, tuple):
            is_cheap = len(key) <= 16 and all(map(_is_scalar, key))
        else:
            is_cheap = _is_scalar(key) or isinstance(key, UnknownGlobal)
        if not is_cheap:
            raise Malformed(f"a dict with a key of type {type(key).__name__}")
        if not isinstance(key, str) and not (type(key) is int and 0 <= key < SMALL_INT):
            self._other_keys += 1
            if self._other_keys > MAX_OTHER_KEYS:
                raise Malformed(
                    f"more than {MAX_OTHER_KEYS} dict keys that are neither text nor integers "
                    f"from 0 to {SMALL_INT - 1}"
                )
        return key


def _is_scalar(key: object) -> bool:
    """Whether `key` is None, a number or a text that is quickly hashed and compared."""
    if isinstance(key, str):
        return len(key) <= MAX_KEY_LENGTH
    return key is None or isinstance(key, (int, float))


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set)) else []


def check_result(root: object) -> None:
    """Checks that a result is a finite tree of finished values: not too deep, large or cyclic.

    Raises:
        Malformed: it is not.
    """
    totals: dict[int, int] = {}  # by id: values below, itself included
    heights: dict[int, int] = {}
    path = [(root, _children(root))]
    on_path = {id(root)}
    while path:
        value, remaining = path[-1]
        if isinstance(value, Unbuilt):
            raise Malformed("an array whose content is missing")
        if not remaining:
            path.pop()
            on_path.discard(id(value))
            children = _children(value)
            heights[id(value)] = 1 + max((heights.get(id(c), 0) for c in children), default=0)
            totals[id(value)] = 1 + sum(totals.get(id(c), 1) for c in children)
            if totals[id(value)] > MAX_VALUES:
                raise Malformed(f"more than {MAX_VALUES} values, most of them repetitions")
            continue
        child = remaining.pop()
        if not isinstance(child, (dict, list, tuple, set, Unbuilt)):
            continue
        if id(child) in on_path:
            raise Malformed("a container that holds itself")
        if len(path) + 1 + heights.get(id(child), 0) > MAX_DEPTH:
            raise Malformed(f"containers nested more than {MAX_DEPTH} deep")
        if id(child) not in totals:
            on_path.add(id(child))
            path.append((child, _children(child)))
