"""The noise contract once more, in NumPy integers and float64: written from DESIGN's words, not from the library."""

from __future__ import annotations

import numpy as np

MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10: counter uint64 [n, 4] of 32-bit words, two key words -> uint64 [n, 4]."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k = [np.uint64(key[0]), np.uint64(key[1])]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> SHIFT) ^ c[1] ^ k[0], p1 & MASK, (p0 >> SHIFT) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + np.uint64(0x9E3779B9)) & MASK, (k[1] + np.uint64(0xBB67AE85)) & MASK]
    return np.stack(c, axis=1)


def words(seed: int, draw: int, groups: int, first: int = 0) -> np.ndarray:
    """The words of blocks first .. first + groups - 1 of a draw: uint64 [groups, 4]."""
    counter = np.zeros((groups, 4), dtype=np.uint64)
    counter[:, 0] = np.arange(first, first + groups, dtype=np.uint64)
    counter[:, 1] = draw
    seed %= 2**64
    return philox(counter, (seed % 2**32, seed >> 32))


def normals_float64(seed: int, draw: int, n: int) -> np.ndarray:
    """The normals of the contract's formula: u rounded to float32 as it says, everything after it in float64."""
    w = words(seed, draw, (n + 3) // 4)
    out = np.empty((len(w), 4))
    for pair in (0, 2):
        a, b = w[:, pair], w[:, pair + 1]
        u = (a.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)).astype(np.float64)
        turns = (b.astype(np.float64) + 0.5) * 2.0**-32
        r = np.sqrt(-2.0 * np.log(u))
        out[:, pair], out[:, pair + 1] = r * np.sin(2 * np.pi * turns), r * np.cos(2 * np.pi * turns)
    return out.reshape(-1)[:n]


def normals_float32(seed: int, draw: int, n: int, first: int = 0) -> np.ndarray:
    """The library's bits from block `first` on: its polynomials in NumPy float32, rounded after every operation."""
    f = np.float32
    w = words(seed, draw, (n + 3) // 4, first)
    out = np.empty((len(w), 4), dtype=f)
    for pair in (0, 2):
        a, b = w[:, pair], w[:, pair + 1].astype(np.uint32)
        u = a.astype(f) * f(2.0**-32) + f(2.0**-33)
        bits = u.view(np.uint32)
        above = bits - np.uint32(0x3F3504F3)
        e = (above.view(np.int32) >> 23).astype(f)
        x = (bits - (above & np.uint32(0xFF800000))).view(f) - f(1)
        q = np.full_like(x, f(0.20887454))
        for c in (-0.32521993, 0.3427833, -0.39782923, 0.4996272, -0.66670835, 1.0):
            q = q * x + f(c)
        r = np.sqrt((q * (x * x) - (x + x)) + e * f(4.2438888e-4) + e * f(-1.38671875))
        t = ((b << np.uint32(2)) | np.uint32(2)).view(np.int32).astype(f) * f(2.0**-31)
        z = t * t
        s, c4 = np.full_like(z, f(-3.5579415e-5)), np.full_like(z, f(3.4905204e-6))
        for c in (2.4893708e-3, -8.074513e-2, 0.7853981):
            s = s * z + f(c)
        s = s * t
        for c in (-3.2586334e-4, 1.5854282e-2, -0.30842513, 1.0):
            c4 = c4 * z + f(c)
        quadrant = ((b + np.uint32(1 << 29)) >> np.uint32(30)).astype(int)
        out[:, pair] = r * np.choose(quadrant, [s, c4, -s, -c4])
        out[:, pair + 1] = r * np.choose(quadrant, [c4, -s, -c4, s])
    return out.reshape(-1)[:n]
