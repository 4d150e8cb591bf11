"""Counter-based random numbers: every draw is a function of (seed, stream, path, step, coordinate).

The generator is Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw 2011, *Parallel random numbers: as easy as 1,
2, 3*), which JAX uses too; the tests check that both agree bit for bit. Only the counter is specific to this module:
the key is made from (seed, stream, step, lane) and the counter is (path, coordinate), or (path, pair of coordinates)
for numbers that take one word. Therefore no number depends on how paths are chunked, sharded or ordered, or on how
parameters are split into leaves. With element-wise operations and paths on the last axis, a normal draw takes a quarter
of the time of `jax.random.normal` on a CPU.
"""

import math
import zlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["Stream", "horner", "stream_key", "threefry2x32"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_FEISTEL_ROUNDS = 12
_SORT_UP_TO = 64
Words = tuple[Any, Any]


def threefry2x32(key: Words, counter: Words) -> Words:
    """Two random words for each pair of counter words, by 20 rounds of Threefry-2x32 (uint32, broadcasting)."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = (x1 << rotation) | (x1 >> (32 - rotation))
            x1 = x1 ^ x0
        x0 = x0 + schedule[(i + 1) % 3]
        x1 = x1 + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return x0, x1


_threefry = jax.jit(threefry2x32, inline=True)
"""The same function for use inside jitted functions, traced once for each shape."""


def _words_of(key: Array | Words) -> Words:
    if isinstance(key, tuple):
        return key
    return lax.index_in_dim(key, 0, keepdims=False), lax.index_in_dim(key, 1, keepdims=False)


def stream_key(seed: int, name: str) -> np.ndarray:
    """Key of a named stream: uint32 of shape (2,). Streams of different names or seeds are independent."""
    words = np.array([seed & 0xFFFFFFFF, seed >> 32, zlib.crc32(name.encode()), 0], np.uint32)[:, None]
    return np.concatenate(threefry2x32((words[0], words[1]), (words[2], words[3])))


class Stream(NamedTuple):
    """The random numbers of one step of many paths.

    Attributes:
        key: the stream's key, uint32 of shape (2,), or its two words.
        paths: global indices of the paths, uint32 of shape (P,).
        coordinate: the only coordinate that is drawn, 2p + i as the pair (p, i), with p uint32 of shape () and i = 0
            or 1; None: all. The draws are those of this coordinate among all others, and `size` must be 1.
    """

    key: Array | Words
    paths: Array
    coordinate: tuple[Array, int] | None = None

    def at(self, step: Array | int | np.integer, substep: Array | int | np.integer = 0) -> "Stream":
        """The stream of one step and substep; its draws are independent of all others'."""
        counter = (jnp.asarray(step).astype(jnp.uint32), jnp.asarray(substep).astype(jnp.uint32))
        words = _threefry(_words_of(self.key), counter)
        return self._replace(key=words if isinstance(self.key, tuple) else jnp.stack(words))

    def bits(self, size: int, lane: int | Array = 0) -> Words:
        """Two independent words per coordinate and path: uint32, each of shape (size, P)."""
        key = self._lane_key(lane)
        if self.coordinate is None:
            return _made_once(key, self.paths, size)
        if size != 1:
            raise ValueError(f"size: got {size} for one coordinate; it must be 1.")
        return self._block(key, 2 * self.coordinate[0] + self.coordinate[1])

    def _lane_key(self, lane: int | Array) -> Words:
        return _threefry(_words_of(self.key), (jnp.uint32(lane), jnp.uint32(0x5DE1E45)))

    def _block(self, key: Words, index: Array) -> Words:
        """Both words of one counter per path, each of shape (1, P)."""
        return _threefry(key, (self.paths[None, :], jnp.broadcast_to(index, (1, 1))))

    def words(self, size: int, lane: int | Array = 0) -> Array:
        """One word per coordinate and path, uint32 of shape (size, P): coordinates 2c and 2c + 1 share pair c."""
        if self.coordinate is not None:
            pair, member = self.coordinate  # compilers compute the block of both members of a pair only once
            return self._block(self._lane_key(lane), pair)[member]
        first, second = self.bits(-(-size // 2), lane)
        odd = lax.iota(jnp.uint32, 2)[None, :, None] == 1
        return jnp.where(odd, second[:, None], first[:, None]).reshape(-1, first.shape[-1])[:size]

    def uniform(self, size: int, dtype: jnp.dtype, lane: int | Array = 0) -> Array:
        """Uniform on the open interval (0, 1), shape (size, P): midpoints of 2²³ (float64: 2⁵²) equal cells."""
        if dtype == jnp.float64:
            first, second = self.bits(size, lane)
            word = (first.astype(jnp.uint64) << 20) | (second >> 12).astype(jnp.uint64)
            return (word.astype(jnp.float64) + 0.5) * 2.0**-52
        return _unit(self.words(size, lane)).astype(dtype)

    def uniforms(self, size: int, dtype: jnp.dtype, lane: int | Array = 0) -> tuple[Array, Array]:
        """Two independent uniforms as `uniform`, each of shape (size, P), in float32 at the cost of one."""
        if dtype == jnp.float64:
            return self.uniform(size, dtype, 2 * lane), self.uniform(size, dtype, 2 * lane + 1)
        first, second = self.bits(size, lane)
        return _unit(first).astype(dtype), _unit(second).astype(dtype)

    def integers(self, size: int, below: int, lane: int | Array = 0) -> Array:
        """Uniform on 0, …, below − 1, int32 of shape (size, P); the probabilities differ by at most below/2³²."""
        return (self.words(size, lane) % np.uint32(below)).astype(jnp.int32)

    def permutation(self, positions: Array, below: int) -> Array:
        """Values of one random permutation of 0, …, below − 1 per path at some positions, int32.

        Up to 64 numbers are permuted by sorting as many random words. Larger permutations use an additive Feistel
        network on the pairs (left, right) of a grid of at least `below` cells; values outside 0, …, below − 1 are put
        through it again (Black and Rogaway 2002). Every position then costs the same, and no array of the size of the
        permutation is created.

        Args:
            positions: in 0, …, below − 1, of shape (m,), or (m, P) if they differ by path.
            below: size of the permuted set.

        Returns:
            Shape (m, P).
        """
        wide = positions[:, None] if positions.ndim == 1 else positions
        wide = jnp.broadcast_to(wide, (positions.shape[0], self.paths.shape[0]))
        if below <= _SORT_UP_TO:
            order = jnp.argsort(self.words(below), axis=0).astype(jnp.int32)
            return jnp.take_along_axis(order, wide, axis=0)
        columns = math.isqrt(below - 1) + 1
        rows = -(-below // columns)

        def mixed(half: Array, turn: Array, size: int) -> Array:
            key = _threefry(_words_of(self.key), (turn, jnp.uint32(0xFE15E1)))
            return _threefry(key, (self.paths[None, :], half))[0] % np.uint32(size)

        def once(value: Array) -> Array:
            def turns(i: Array, halves: Words) -> Words:  # a loop, since unrolled it takes a minute to compile
                left, right = halves
                left = (left + mixed(right, 2 * i.astype(jnp.uint32), rows)) % rows
                return left, (right + mixed(left, 2 * i.astype(jnp.uint32) + 1, columns)) % columns

            left, right = lax.fori_loop(0, _FEISTEL_ROUNDS // 2, turns, (value // columns, value % columns))
            return left * columns + right

        def outside(value: Array) -> Array:
            return (value >= below).any()

        value = once(wide.astype(jnp.uint32))
        value = lax.while_loop(outside, lambda value: jnp.where(value >= below, once(value), value), value)
        return value.astype(jnp.int32)

    def signs(self, size: int, dtype: jnp.dtype, lane: int | Array = 0) -> Array:
        """±1 with equal probability, shape (size, P): one bit each, coordinate c is bit c mod 64 of block ⌊c/64⌋."""
        if self.coordinate is not None:
            index = 2 * self.coordinate[0] + self.coordinate[1]
            first, second = self._block(self._lane_key(lane), index // 64)
            return _sign_of(jnp.where(index % 64 < 32, first, second) << (31 - index % 32)).astype(dtype)
        blocks, used = -(-size // 64), 1 if size <= 32 else 2
        words = jnp.stack(self.bits(blocks, lane)[:used], axis=1)
        words = words.reshape(-1, 1, words.shape[-1])
        ones = _sign_of(words << (31 - lax.iota(jnp.uint32, min(size, 32))[None, :, None]))
        return ones.reshape(-1, words.shape[-1])[:size].astype(dtype)

    def normal(self, size: int, dtype: jnp.dtype, lane: int | Array = 0) -> Array:
        """Standard normal, shape (size, P), by inversion; |value| ≤ 5.3 in float32 (probability 1e-7 beyond)."""
        if dtype == jnp.float64:
            uniform = self.uniform(size, dtype, lane)
            return np.sqrt(2.0) * lax.erf_inv(2.0 * uniform - 1.0)
        return _normal_quantile(_unit(self.words(size, lane))).astype(dtype)


_QUANTILE: tuple[float, ...] = (-8.68995598e-10, -2.47065497e-08, -2.01369673e-07, 5.77928063e-07, 2.09570899e-05)
_QUANTILE += (0.000153866218, 0.000188467049, -0.0103334207, -0.319679171, 2.6797657)
"""√2 erf⁻¹(x)/x for 2⁻²² ≤ 1 − x² ≤ 1, a polynomial in log(1 − x²) + 6 log 2."""
_LOG: tuple[float, ...] = (-4.03067875e13, 245521711000.0, -1094034050.0, 5574376.5, -32758.2031, 256.003265)
"""log(1 + 256t)/t for √½ ≤ 1 + 256t ≤ √2; the logarithm has an error of at most 2e-6. All: highest power first."""


@partial(jax.jit, inline=True)
def _normal_quantile(u: Array) -> Array:
    """The standard normal quantile √2 erf⁻¹(x), x = 2u − 1, in float32 for 0 < u < 1.

    Its error is at most 2e-6 of the value and 4 % of the distance to the value of the next u (u has 2²³ values, so that
    this distance is 3e-4 at a value of 4); the variance of all values is exact to 3e-7.

    Giles (2010, *Approximating the erfinv function*) writes erf⁻¹(x) as x times a function of log(1 − x²), and
    approximates it by one polynomial in the centre and another, of a square root, in the tails. Here one polynomial is
    used everywhere, because processors compute both of two branches, and few square roots and divisions at a time; it
    was fitted to errors as stated above, because the distances to the neighbours in the tails are large. As 1 − x² =
    4u(1 − u), its exponent and its mantissa from √½ to √2 are taken from the bits of u(1 − u), a quarter of it; six is
    added to the exponent, so that the argument of the polynomial is centred.
    """
    quarter = u * (1 - u)
    bits = lax.bitcast_convert_type(quarter, jnp.int32)
    exponent = (bits - np.int32(0x3B3504F3)) & np.int32(-(2**23))  # √½/4, less 6 exponents; a multiple of 2²³
    t = lax.bitcast_convert_type(bits - exponent, jnp.float32) - np.float32(2.0**-8)
    log = exponent.astype(jnp.float32) * np.float32(math.log(2) * 2.0**-23) + _polynomial(_LOG, t) * t
    return _polynomial(_QUANTILE, log) * (2 * u - 1)


def _polynomial(coefficients: tuple[float, ...], t: Array) -> Array:
    """A polynomial in float32, highest power first; its even and its odd powers can be summed at the same time."""
    even, odd = (horner(coefficients[::-1][first::2][::-1], t * t) for first in (0, 1))
    return even + odd * t


def horner(coefficients: tuple[float, ...], t: Array) -> Array:
    """A polynomial in float32, highest power first."""
    value = jnp.float32(coefficients[0])
    for a in coefficients[1:]:
        value = np.float32(a) + value * t
    return value


def _made_once(key: Words, paths: Array, size: int) -> Words:
    """Both words of the counters (path, 0), …, (path, size − 1), each of shape (size, P).

    On a CPU, XLA would fuse the generator into the operations that use its words and run it again for each of them. It
    does not fuse across a conditional whose condition is unknown at compile time, and it computes both parts of a
    complex number in one loop.
    """

    def words() -> Words:
        return _threefry(key, (paths[None, :], lax.iota(jnp.uint32, size)[:, None]))

    def on_cpu() -> Words:
        def made() -> Array:
            return lax.complex(*(lax.bitcast_convert_type(word, jnp.float32) for word in words()))

        def never() -> Array:
            return jnp.zeros((size, paths.shape[0]), jnp.complex64)

        both = lax.cond((key[0] | np.uint32(1)) != 0, made, never)
        first, second = (lax.bitcast_convert_type(part, jnp.uint32) for part in (lax.real(both), lax.imag(both)))
        return first, second

    return lax.platform_dependent(cpu=on_cpu, default=words)


def _sign_of(word: Array) -> Array:
    """±1 in float32, the sign of which is the first bit of the word."""
    ones = (word & jnp.uint32(0x80000000)) | jnp.uint32(0x3F800000)
    return lax.bitcast_convert_type(ones, jnp.float32)


def _unit(word: Array) -> Array:
    """Float32 midpoints of 2²³ equal cells of (0, 1) from the top 23 bits."""
    mantissa = (word >> 9) | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1.0 - 2.0**-24)
