"""Random words and normals inside a kernel: csrc/core/philox.h and csrc/core/normal.h, operation by operation."""

import triton
import triton.language as tl


@triton.jit
def words(seed, chain, step, index):
    """The four random words of block `index` of a chain's noise."""
    high = ((index >> 32 & 0xFF) << 8) | ((step >> 32 & 0xFF) << 16) | ((chain >> 32 & 0xFF) << 24)
    x, y, z, w = index.to(tl.uint32), step.to(tl.uint32), chain.to(tl.uint32), high.to(tl.uint32)
    return tl.philox_impl(x, y, z, w, seed.to(tl.uint32), (seed >> 32).to(tl.uint32), 10)


@triton.jit
def log(value):
    """Natural logarithm of a positive, normal float."""
    bits = value.to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (bits >> 23).to(tl.float32)
    f = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(tl.full(f.shape, 0.06746647506952286, tl.float32), f, -0.11675654351711273)
    p = tl.fma(p, f, 0.11888160556554794)
    p = tl.fma(p, f, -0.1240558847784996)
    p = tl.fma(p, f, 0.14219552278518677)
    p = tl.fma(p, f, -0.1666799634695053)
    p = tl.fma(p, f, 0.2000211924314499)
    p = tl.fma(p, f, -0.25000008940696716)
    p = tl.fma(p, f, 0.3333331346511841)
    square = f * f
    tail = tl.fma(p, f * square, -0.5 * square)
    return tl.fma(e, 0.693359375, f + tl.fma(e, -2.12194440e-4, tail))


@triton.jit
def sincospi(t):
    """sin(pi t) and cos(pi t) for t in [-1, 1]."""
    shifted = tl.fma(t, 2.0, 12582912.0)  # rounds 2t to the nearest integer, in the low bits of the sum
    quarter = shifted.to(tl.int32, bitcast=True)
    s = tl.fma(shifted - 12582912.0, -0.5, t)
    square = s * s
    sine_tail = tl.fma(square, -0.5894187688827515, 2.549805164337158)
    sine_tail = tl.fma(sine_tail, square, -5.167708873748779) * square
    sine = tl.fma(s, 3.1415927410125732, tl.fma(s, sine_tail, s * -8.742278e-8))
    cosine_tail = tl.fma(square, 0.2312864363193512, -1.335036277770996)
    cosine_tail = tl.fma(cosine_tail, square, 4.058706760406494)
    cosine_tail = tl.fma(cosine_tail, square, -4.934802055358887)
    cosine = tl.fma(cosine_tail, square, 1.0)
    odd = (quarter & 1) == 1
    sine_bits = tl.where(odd, cosine, sine).to(tl.int32, bitcast=True) ^ ((quarter & 2) << 30)
    cosine_bits = tl.where(odd, sine, cosine).to(tl.int32, bitcast=True) ^ (((quarter + 1) & 2) << 30)
    return sine_bits.to(tl.float32, bitcast=True), cosine_bits.to(tl.float32, bitcast=True)


@triton.jit
def normal_pair(radius_word, angle_word):
    """Two standard normals from two words."""
    uniform = tl.fma((radius_word >> 1).to(tl.int32, bitcast=True).to(tl.float32), 1.0 / 2147483648, 0.5 / 2147483648)
    radius = tl.sqrt_rn(-2.0 * log(uniform))
    sine, cosine = sincospi(angle_word.to(tl.int32, bitcast=True).to(tl.float32) * (1.0 / 2147483648))
    return radius * cosine, radius * sine


@triton.jit
def normals(seed, chain, step, first, COUNT: tl.constexpr):
    """The normals `[COUNT]` of a chain's parameters from `first` on, a multiple of 4."""
    x, y, z, w = words(seed, chain, step, first // 4 + tl.arange(0, COUNT // 4))
    a, b = normal_pair(x, y)
    c, d = normal_pair(z, w)
    return tl.join(tl.join(a, c), tl.join(b, d)).reshape([COUNT])
