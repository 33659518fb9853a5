"""The kernels of the Triton backend; csrc/philox.h and csrc/combine.h hold the same arithmetic in C++.

A program computes BLOCK elements of one sample. Every product and sum is rounded by itself, which needs
`enable_fp_fusion=False` at every launch, and nothing is left to libdevice but the float64 exp: so the results are the
reference's, bit for bit. Importing this module imports Triton.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
import triton
import triton.language as tl

# Triton decides when a function is decorated, its own library's included, whether it is compiled or interpreted.
INTERPRETED: tl.constexpr = tl.constexpr(not isinstance(tl.philox, triton.runtime.JITFunction))

# Coefficients of a row that are loaded before the noise is made: those of the common launches.
EARLY: tl.constexpr = tl.constexpr(8)


# ----------------------------------------------------------------------------------------------------------------------
# The noise contract
# ----------------------------------------------------------------------------------------------------------------------


@triton.jit
def minus_two_log(u):
    """-2 ln u for float32 u in [2^-33, 1]: u = 2^e (1 + f), -2 ln(1 + f) = f^2 (1 + f Q(f)) - 2 f."""
    bits = u.to(tl.int32, bitcast=True)
    above = bits - 0x3F3504F3  # sqrt(1/2)
    e = (above >> 23).to(tl.float32)
    f = (bits - (above & -0x800000)).to(tl.float32, bitcast=True) - 1.0
    q = f * 0.20887454 - 0.32521993
    q = q * f + 0.3427833
    q = q * f - 0.39782923
    q = q * f + 0.4996272
    q = q * f - 0.66670835
    q = q * f + 1.0
    q = q * (f * f) - (f + f)
    q = q + e * 4.2438888e-4
    return q + e * -1.38671875


@triton.jit
def box_muller(a, b):
    """Two float32 normals of two uint32 words."""
    radius = tl.sqrt_rn(minus_two_log(a.to(tl.float32) * 2.0**-32 + 2.0**-33))
    x = ((b << 2) | 2).to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-31
    z = x * x
    s = z * -3.5579415e-5 + 2.4893708e-3
    s = s * z - 8.074513e-2
    s = (s * z + 0.7853981) * x
    c = z * 3.4905204e-6 - 3.2586334e-4
    c = c * z + 1.5854282e-2
    c = c * z - 0.30842513
    c = c * z + 1.0
    # quadrant 0: (s, c)   1: (c, -s)   2: (-s, -c)   3: (-c, s)
    turned = tl.add(b, 0x20000000, sanitize_overflow=False)
    odd = (turned & 0x40000000) != 0
    sine_sign = turned & 0x80000000
    cosine_sign = (turned ^ (turned << 1)) & 0x80000000
    sine = tl.where(odd, c, s).to(tl.uint32, bitcast=True) ^ sine_sign
    cosine = tl.where(odd, s, c).to(tl.uint32, bitcast=True) ^ cosine_sign
    return radius * sine.to(tl.float32, bitcast=True), radius * cosine.to(tl.float32, bitcast=True)


@triton.jit
def normals(seed, draw, tile, BLOCK: tl.constexpr):
    """The float32 normals of elements BLOCK tile .. BLOCK (tile + 1) - 1 of a sample, in order: one Philox for four."""
    groups = tile.to(tl.uint32) * (BLOCK // 4) + tl.arange(0, BLOCK // 4).to(tl.uint32)
    zero = groups * 0
    a, b, c, d = tl.philox(seed, groups, draw, zero, zero)
    z0, z1 = box_muller(a, b)
    z2, z3 = box_muller(c, d)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [BLOCK])


# ----------------------------------------------------------------------------------------------------------------------
# Tiles and types
# ----------------------------------------------------------------------------------------------------------------------


@triton.jit
def place(elements, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """This program's sample, tile, first element of the sample, lanes, and which of them are inside the sample."""
    tile = tl.program_id(0)
    first = tile.to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    left = tl.multiple_of(tl.minimum(elements - first, BLOCK).to(tl.int32), ALIGN)
    return tl.program_id(1).to(tl.int64), tile, first, lanes, lanes < left


@triton.jit
def widen(x, dtype: tl.constexpr):
    """A value that was read, in the dtype of the arithmetic."""
    if x.dtype == tl.bfloat16:  # by its bits: Triton's interpreter gets subnormals wrong
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def narrow(y, dtype: tl.constexpr):
    """A result in the dtype it is stored in; as in torch, 16-bit types by way of float32."""
    if dtype.primitive_bitwidth == 16:
        y = y.to(tl.float32)
    if dtype == tl.bfloat16 and INTERPRETED:  # Triton's interpreter truncates
        bits = y.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        y = tl.where(y == y, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return y.to(dtype)


@triton.jit
def row_of(table, rows, sample, WIDTH: tl.constexpr):
    """Where the coefficients of a sample are, and the first of them."""
    row = table
    if rows is not None:
        row += tl.load(rows + sample) * WIDTH
    early = ()
    for k in tl.static_range(min(WIDTH, EARLY)):
        early = early + (tl.load(row + k),)
    return row, early


@triton.jit
def coefficient(row, early, k: tl.constexpr):
    """Number k of a row: one that was loaded early, or from the cache now, which saves a register."""
    if k < len(early):
        value = early[k]
    else:
        value = tl.load(row + k)
    return value


@triton.jit
def weighted_sum(row, early, at: tl.constexpr, values):
    """row[at] values[0] + row[at + 1] values[1] + ..., from the left."""
    total = coefficient(row, early, at) * values[0]
    for k in tl.static_range(1, len(values)):
        total = total + coefficient(row, early, at + k) * values[k]
    return total


@triton.jit
def load_columns(
    inputs,
    strides,
    seeds,
    draws,
    elements,
    DRAWS: tl.constexpr,
    dtype: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The columns v_k of a tile: inputs, then normals. The loads come first, to be under way during Philox's rounds."""
    sample, tile, first, lanes, inside = place(elements, ALIGN, BLOCK)
    words = ()
    for j in tl.static_range(len(inputs)):
        start = tl.multiple_of(sample * strides[j] + first, ALIGN)
        words = words + (tl.load(inputs[j] + start + lanes, mask=inside),)
    made = ()
    if DRAWS > 0:
        seed = tl.load(seeds + sample)
        for n in tl.static_range(DRAWS):
            made = made + (normals(seed, draws[n], tile, BLOCK).to(dtype),)
    values = ()
    for j in tl.static_range(len(inputs)):
        values = values + (widen(words[j], dtype),)
    return values + made


@triton.jit
def exponential(x):
    """e^x: in float32 csrc/combine.h's polynomial, in float64 the platform's, whose last bit is its own."""
    if x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        x = tl.where(x > 89.0, 89.0, x)
        x = tl.where(x < -104.0, -104.0, x)
        shifted = x * 1.44269504 + 12582912.0  # 1.5 * 2^23: its low bits are round(x / ln 2)
        n = shifted.to(tl.int32, bitcast=True) - 0x4B400000
        whole = shifted - 12582912.0
        f = x - whole * 0.693359375
        f = f + whole * 2.12194440e-4
        p = f * 1.9875691500e-4 + 1.3981999507e-3
        p = p * f + 8.3334519073e-3
        p = p * f + 4.1665795894e-2
        p = p * f + 1.6666665459e-1
        p = p * f + 5.0000001201e-1
        p = (p * (f * f) + f) + 1.0
        half = n >> 1
        p = p * ((half + 127) << 23).to(tl.float32, bitcast=True)
        y = p * ((n - half + 127) << 23).to(tl.float32, bitcast=True)
    return y


# ----------------------------------------------------------------------------------------------------------------------
# Kernels
# ----------------------------------------------------------------------------------------------------------------------

# Numbers that change from call to call must not lead to another compilation; what matters of them is in ALIGN.
# In a tuple Triton specializes for 1 and for multiples of 16 none the less: the strides, which are those of a shape.
NUMBERS = ["draw0", "draw1", "count", "variance_stride", "elements", "tiles"]


@triton.jit(do_not_specialize=NUMBERS)
def combine_kernel(
    outputs,
    inputs,
    strides,
    table,
    rows,
    seeds,
    draw0,
    draw1,
    variance,
    variance_stride,
    elements,
    DRAWS: tl.constexpr,
    CLIP: tl.constexpr,
    SQUARED: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`fastdiff::combine`: csrc/combine.h says what is in a row of the table and what is done to each element."""
    M: tl.constexpr = len(outputs)
    K: tl.constexpr = len(inputs) + DRAWS
    CLIPPED: tl.constexpr = M * K
    SLOPE: tl.constexpr = CLIPPED + (K + 2 + M if CLIP else 0)
    WIDTH: tl.constexpr = SLOPE + (0 if variance is None else 2 + (2 if SQUARED else 1) * M * K)
    dtype: tl.constexpr = table.dtype.element_ty

    sample, _, first, lanes, inside = place(elements, ALIGN, BLOCK)
    row, early = row_of(table, rows, sample, WIDTH)
    if variance is not None:
        start = tl.multiple_of(sample * variance_stride + first, ALIGN)
        logarithm = tl.load(variance + start + lanes, mask=inside)
    draws = (draw0, draw1)
    values = load_columns(inputs, strides, seeds, draws, elements, DRAWS, dtype, ALIGN, BLOCK)
    if CLIP:
        clipped = weighted_sum(row, early, CLIPPED, values)
        low, high = coefficient(row, early, CLIPPED + K), coefficient(row, early, CLIPPED + K + 1)
        clipped = tl.where(clipped < low, low, tl.where(clipped > high, high, clipped))
    if variance is not None:
        slope, intercept = coefficient(row, early, SLOPE), coefficient(row, early, SLOPE + 1)
        factor = exponential(slope * widen(logarithm, dtype) + intercept)
    start = tl.multiple_of(sample * elements + first, ALIGN)
    for m in tl.static_range(M):
        y = weighted_sum(row, early, m * K, values)
        if CLIP:
            y = y + coefficient(row, early, CLIPPED + K + 2 + m) * clipped
        if variance is not None:
            scaled = weighted_sum(row, early, SLOPE + 2 + m * K, values)
            if SQUARED:
                scaled = scaled + factor * weighted_sum(row, early, SLOPE + 2 + (M + m) * K, values)
            y = y + factor * scaled
        tl.store(outputs[m] + start + lanes, narrow(y, outputs[m].dtype.element_ty), mask=inside)


@triton.jit
def add_up(
    row,
    places,
    inputs,
    strides,
    seeds,
    draws,
    count,
    elements,
    dtype: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The weighted sums whose weights begin at these places of a row; each column is added to all as it comes."""
    J: tl.constexpr = len(inputs)
    sample, tile, first, lanes, inside = place(elements, ALIGN, BLOCK)
    seed = tl.load(seeds + sample)
    if J > 0:
        start = tl.multiple_of(sample * strides[0] + first, ALIGN)
        v = widen(tl.load(inputs[0] + start + lanes, mask=inside), dtype)
    else:
        v = normals(seed, tl.load(draws), tile, BLOCK).to(dtype)
    sums = ()
    for s in tl.static_range(len(places)):
        sums = sums + (tl.load(row + places[s]) * v,)
    for j in tl.static_range(1, J):
        start = tl.multiple_of(sample * strides[j] + first, ALIGN)
        sums = add_column(row, places, j, widen(tl.load(inputs[j] + start + lanes, mask=inside), dtype), sums)
    n = count * 0 + (0 if J > 0 else 1)
    while n < count:
        sums = add_column(row, places, J + n, normals(seed, tl.load(draws + n), tile, BLOCK).to(dtype), sums)
        n += 1
    return sums


@triton.jit
def add_column(row, places, k, v, sums):
    """The sums with column k, which is v."""
    more = ()
    for s in tl.static_range(len(places)):
        more = more + (sums[s] + tl.load(row + places[s] + k) * v,)
    return more


@triton.jit(do_not_specialize=NUMBERS)
def combine_many_kernel(
    outputs,
    inputs,
    strides,
    table,
    rows,
    seeds,
    draws,
    count,
    variance,
    variance_stride,
    elements,
    CLIP: tl.constexpr,
    SQUARED: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`combine_kernel` with `count` draws, whose numbers are in memory: compiled once for all counts."""
    M: tl.constexpr = len(outputs)
    E: tl.constexpr = M + (1 if CLIP else 0)  # number of the first sum behind the learned variance
    dtype: tl.constexpr = table.dtype.element_ty
    K = len(inputs) + count
    slope = M * K + (K + 2 + M if CLIP else 0)
    sample, _, first, lanes, inside = place(elements, ALIGN, BLOCK)
    row = table
    if rows is not None:
        row += tl.load(rows + sample) * (slope + (0 if variance is None else 2 + (2 if SQUARED else 1) * M * K))
    places = ()
    for m in tl.static_range(E):
        places = places + (m * K,)
    if variance is not None:
        for m in tl.static_range(2 * M if SQUARED else M):
            places = places + (slope + 2 + m * K,)
    sums = add_up(row, places, inputs, strides, seeds, draws, count, elements, dtype, ALIGN, BLOCK)
    if CLIP:
        low, high = tl.load(row + E * K), tl.load(row + E * K + 1)
        clipped = tl.where(sums[M] < low, low, tl.where(sums[M] > high, high, sums[M]))
    if variance is not None:
        start = tl.multiple_of(sample * variance_stride + first, ALIGN)
        logarithm = widen(tl.load(variance + start + lanes, mask=inside), dtype)
        factor = exponential(tl.load(row + slope) * logarithm + tl.load(row + slope + 1))
    start = tl.multiple_of(sample * elements + first, ALIGN)
    for m in tl.static_range(M):
        y = sums[m]
        if CLIP:
            y = y + tl.load(row + E * K + 2 + m) * clipped
        if variance is not None:
            scaled = sums[E + m]
            if SQUARED:
                scaled = scaled + factor * sums[E + M + m]
            y = y + factor * scaled
        tl.store(outputs[m] + start + lanes, narrow(y, outputs[m].dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=NUMBERS)
def sum_squares_kernel(
    partial,
    inputs,
    strides,
    table,
    rows,
    seeds,
    draw0,
    draw1,
    elements,
    DRAWS: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of squares of every tile of the one combination of a row: partial [B, tiles], float64."""
    dtype: tl.constexpr = table.dtype.element_ty
    sample, tile, _first, _lanes, inside = place(elements, ALIGN, BLOCK)
    row, early = row_of(table, rows, sample, len(inputs) + DRAWS)
    draws = (draw0, draw1)
    values = load_columns(inputs, strides, seeds, draws, elements, DRAWS, dtype, ALIGN, BLOCK)
    y = tl.where(inside, weighted_sum(row, early, 0, values).to(tl.float64), 0.0)
    tl.store(partial + sample * tl.num_programs(0) + tile, tl.sum(y * y, 0))


@triton.jit(do_not_specialize=NUMBERS)
def sum_squares_many_kernel(
    partial,
    inputs,
    strides,
    table,
    rows,
    seeds,
    draws,
    count,
    elements,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`sum_squares_kernel` with `count` draws, whose numbers are in memory."""
    sample, tile, _first, _lanes, inside = place(elements, ALIGN, BLOCK)
    row = table
    if rows is not None:
        row += tl.load(rows + sample) * (len(inputs) + count)
    (y,) = add_up(row, (0,), inputs, strides, seeds, draws, count, elements, table.dtype.element_ty, ALIGN, BLOCK)
    y = tl.where(inside, y.to(tl.float64), 0.0)
    tl.store(partial + sample * tl.num_programs(0) + tile, tl.sum(y * y, 0))


@triton.jit(do_not_specialize=NUMBERS)
def add_tiles_kernel(sums, partial, tiles, BLOCK: tl.constexpr):
    """sums [B]: the tiles of each sample, added in an order that depends on their number alone."""
    sample = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    first = tiles * 0
    while first < tiles:  # not `for ... in range`: Triton 3.6 cannot interpret it with NumPy 2.4
        at = first + lanes
        total += tl.load(partial + sample * tiles + at, mask=at < tiles, other=0.0)
        first += BLOCK
    tl.store(sums + sample, tl.sum(total, 0))


@triton.jit(do_not_specialize=NUMBERS)
def normal_kernel(out, seeds, draw0, elements, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """`fastdiff::normal`."""
    sample, tile, first, lanes, inside = place(elements, ALIGN, BLOCK)
    z = normals(tl.load(seeds + sample), draw0, tile, BLOCK)
    start = tl.multiple_of(sample * elements + first, ALIGN)
    tl.store(out + start + lanes, narrow(z, out.dtype.element_ty), mask=inside)
