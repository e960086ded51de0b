"""A counter-based random generator, the same on every version of NumPy.

Word i of stream `key` is output i of SplitMix64 seeded with `key` (Steele, Lea and Flood, OOPSLA
2014), so any word is reached without those before it.
"""

import math
from enum import IntEnum
from functools import cache

import numpy as np
import numpy.typing as npt

Uint64 = npt.NDArray[np.uint64]
Float64 = npt.NDArray[np.float64]

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1

#: Low bits of a sort key that hold an id; the bits above are random.
ID_BITS = 16
MAX_ID = (1 << ID_BITS) - 1

#: log is interpolated in a table of this many steps of the mantissa, rounded to multiples of
#: 2**-44, so that it depends on neither NumPy's nor the system's last bit. Errors are below 7.5e-9,
#: and below 6.2e-5 of the value.
_LOG_STEPS = 4096
_LOG_UNIT = 2.0**44


class Purpose(IntEnum):
    """What a stream is for: the first word of its path."""

    SELECT = 1
    POPULARITY = 2
    WEIGHT = 3
    MASK = 4
    HOT_TOKENS = 5
    HOT_RANKS = 6
    X = 7
    Y = 8


def stream_key(seed: int, *path: int) -> int:
    """Return the key of the stream at `path`; each step is a word of the stream before it."""
    key = seed & _MASK
    for word in path:
        key = _mix_int((key + _GAMMA * (word + 1)) & _MASK)
    return key


def words(key: int, first: int, num_words: int) -> Uint64:
    """Return words `first` to `first + num_words` of a stream, uint64 `(num_words,)`."""
    return words_at(key, np.arange(first, first + num_words, dtype=np.uint64))


def words_at(key: int, index: Uint64) -> Uint64:
    """Return the words of a stream at `index`, uint64 of the same shape."""
    z = index + np.uint64(1)
    z *= np.uint64(_GAMMA)
    z += np.uint64(key)
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= np.uint64(_MULTIPLIERS[0])
    np.right_shift(z, np.uint64(27), out=shifted)
    z ^= shifted
    z *= np.uint64(_MULTIPLIERS[1])
    np.right_shift(z, np.uint64(31), out=shifted)
    z ^= shifted
    return z


def tagged(random: Uint64, ids: npt.NDArray[np.integer]) -> Uint64:
    """Return sort keys whose low `ID_BITS` are `ids`: none are equal, so no sort breaks ties."""
    keys = random & np.uint64(_MASK - MAX_ID)
    keys |= ids.astype(np.uint64)
    return keys


def ids_of(keys: Uint64) -> npt.NDArray[np.int32]:
    """Return the ids that `tagged` put into `keys`."""
    return (keys & np.uint64(MAX_ID)).astype(np.int32)


def smallest(keys: Uint64, num_kept: int) -> Uint64:
    """Return the `num_kept` smallest keys of each row, ascending, `(num_rows, num_kept)`."""
    kept = np.partition(keys, num_kept - 1, axis=1)[:, :num_kept]
    kept.sort(axis=1)
    return kept


def permutation(key: int, num_items: int) -> npt.NDArray[np.int64]:
    """Return a random order of `range(num_items)`."""
    return np.argsort(words(key, 0, num_items), kind="stable")


def exponentials(random: Uint64) -> Float64:
    """Return an exponential variate of mean 1 for each random word, greater than 0."""
    uniform = (random >> np.uint64(12)).astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52
    mantissa, exponent = np.frexp(uniform)
    mantissa *= 2 * _LOG_STEPS
    step = mantissa.astype(np.int32)
    mantissa -= step
    step -= _LOG_STEPS
    value, slope, log_two = _log_table()
    mantissa *= slope[step]
    mantissa += value[step]
    mantissa -= exponent * log_two
    return mantissa


@cache
def _log_table() -> tuple[Float64, Float64, float]:
    points = [
        -round(math.log((_LOG_STEPS + i) / (2 * _LOG_STEPS)) * _LOG_UNIT) / _LOG_UNIT
        for i in range(_LOG_STEPS + 1)
    ]
    value = np.array(points)
    return value[:-1], np.diff(value), points[0]


def _mix_int(z: int) -> int:
    z = (z ^ z >> 30) * _MULTIPLIERS[0] & _MASK
    z = (z ^ z >> 27) * _MULTIPLIERS[1] & _MASK
    return z ^ z >> 31
