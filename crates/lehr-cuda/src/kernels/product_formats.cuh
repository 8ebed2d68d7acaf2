// What the formats of product.cuh are made of: pairs of a code's numbers from bits and from tables,
// and the interface `Format`.
#pragma once
#include "mma.cuh"
#include "quant.cuh"

// A pair of a code's numbers, and whether pairs go to tensor cores.
#if LEHR_T == 0
typedef float2 Pair;
#else
typedef u32 Pair;
#endif
template <class P>
struct OnTensorCores {
    static constexpr bool value = false;
};
template <>
struct OnTensorCores<u32> {
    static constexpr bool value = true;
};

// ---- Pairs from bits. A word holds two codes, at bits 0 and 16. ----

// (v & mask) | base, and with ^: one instruction each. From the operators the compiler makes two,
// to keep both constants immediate.
DEVICE u32 and_or(u32 v, u32 mask, u32 base) {
#ifdef LEHR_EMULATED
    return (v & mask) | base;
#else
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(v), "r"(mask), "r"(base));
    return out;
#endif
}
DEVICE u32 and_xor(u32 v, u32 mask, u32 base) {
#ifdef LEHR_EMULATED
    return (v & mask) ^ base;
#else
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(out) : "r"(v), "r"(mask), "r"(base));
    return out;
#endif
}

#if LEHR_T != 0
// The number 128 (bf16) or 1024 (f16), whose last bits count ones: codes of up to 7 bits or-ed to
// it are added to it.
#if LEHR_T == 1
#define MAGIC 0x4300u
#define ONE 0x3f80u
#else
#define MAGIC 0x6400u
#define ONE 0x3c00u
#endif
#define BOTH(x) ((x) * 0x10001u)

// Sums of both halves.
DEVICE u32 add_pairs(u32 a, u32 b) {
#ifdef LEHR_EMULATED
    return pack2(unpack_low(a) + unpack_low(b), unpack_high(a) + unpack_high(b));
#else
    u32 c;
#if LEHR_T == 1
    // There is no addition before sm_90.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(c) : "r"(a), "r"(BOTH(ONE)), "r"(b));
#else
    asm("add.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
#endif
    return c;
#endif
}
// The codes that `mask` leaves of v, and `mask_t` of t (if it is not 0), minus an offset; codes
// below 64.
DEVICE void unsigned_codes(u32& out, u32 v, u32 mask, int offset, u32 t = 0, u32 mask_t = 0) {
    u32 base = mask_t ? and_or(t, mask_t, BOTH(MAGIC)) : BOTH(MAGIC);
    out = add_pairs(and_or(v, mask, base), BOTH(MAGIC + 0x8000u + offset));
}
// Bytes with a sign, at bits 0 to 7 and 16 to 23; others may be anything.
DEVICE void signed_bytes(u32& out, u32 v) {
#if LEHR_T == 1
    // 128 + the low seven bits, minus 128 or, for negative ones, 256.
    out = add_pairs(and_or(v, BOTH(0x7fu), BOTH(0x4300u)), and_or(v, BOTH(0x80u), BOTH(0xc300u)));
#else
    // Bytes from 0 to 255 for −128 to 127.
    out = add_pairs(and_xor(v, BOTH(0xffu), BOTH(0x6480u)), BOTH(0xe480u));
#endif
}
#endif
DEVICE void unsigned_codes(float2& out, u32 v, u32 mask, int offset, u32 t = 0, u32 mask_t = 0) {
    // 2^23, whose last bit counts ones, and 2^7, whose bit 16 does.
    u32 x = mask_t ? and_or(t, mask_t & 0xffffu, 0x4b000000u) : 0x4b000000u;
    u32 y = mask_t ? and_or(t, mask_t & 0xffff0000u, 0x43000000u) : 0x43000000u;
    out.x = __uint_as_float(and_or(v, mask & 0xffffu, x)) - (float)(8388608 + offset);
    out.y = __uint_as_float(and_or(v, mask & 0xffff0000u, y)) - (float)(128 + offset);
}
DEVICE void signed_bytes(float2& out, u32 v) {
    out.x = __uint_as_float(and_xor(v, 0xffu, 0x4b000080u)) - 8388736.0f;
    // 2^15, whose bit 8 counts ones.
    out.y = __uint_as_float(and_xor(v >> 8, 0xff00u, 0x47008000u)) - 32896.0f;
}

// Four bytes, those of even number first: shifts and masks then give pairs of neighbours. From an
// address that is a multiple of 4,
DEVICE u32 spread4(const u8* p) { return __byte_perm(u32_at(p), 0, 0x3120); }
// or of 2.
DEVICE u32 spread2(const u8* p) { return __byte_perm(u16_at(p), u16_at(p + 2), 0x5140); }
// N times four bytes, from an address that is a multiple of 16, 4 or 2. With 2, words are read from
// the multiple of 4 below, one more than N; some may lie past what is needed.
template <int N, int ALIGNED>
DEVICE void spread_words(u32* out, const u8* p) {
    if (ALIGNED == 2) {
        u32 odd = (u32)(u64)p & 2, selector = odd ? 0x5342 : 0x3120, low = u32_at(p - odd);
#pragma unroll
        for (int i = 0; i < N; i++) {
            u32 high = u32_at(p - odd + 4 * i + 4);
            out[i] = __byte_perm(low, high, selector);
            low = high;
        }
    } else if (ALIGNED == 4) {
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = spread4(p + 4 * i);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            Pack<u32, 4> v = load_pack<u32, 4>((const u32*)(p + 4 * i));
#pragma unroll
            for (int k = 0; k < 4; k++) out[i + k] = __byte_perm(v.v[k], 0, 0x3120);
        }
    }
}

// Pairs 0, 1 of four bytes' low nibbles, or, of v >> 4, high nibbles.
template <class P>
DEVICE void nibbles(P* out, u32 v, int offset) {
    unsigned_codes(out[0], v, 0x000f000fu, offset);
    unsigned_codes(out[1], v >> 8, 0x000f000fu, offset);
}
// The same of eight bytes.
template <class P>
DEVICE void nibbles8(P* out, const u32* v, int shift, int offset) {
    nibbles(out, v[0] >> shift, offset);
    nibbles(out + 2, v[1] >> shift, offset);
}
// Four numbers that are four bytes.
template <class P>
DEVICE void byte_pairs(P* out, u32 v) {
    signed_bytes(out[0], v);
    signed_bytes(out[1], v >> 8);
}

// ---- Tables: for each byte its two numbers, a copy for each lane (of half a warp), so that no two
// lanes meet in a bank. ----

#define TABLE_BYTES (256 * 128)
// Entry of byte k of a word.
DEVICE const u8* entry(const u8* table, u32 v, int k) {
    return table + ((k == 0 ? v << 7 : v >> (8 * k - 7)) & 0x7f80u);
}

// NF4: the upper nibble first. IQ4: the lower one.
template <bool NF4>
DEVICE void fill_table(u8* table) {
    for (int b = threadIdx.x; b < 256; b += blockDim.x) {
        float low = NF4 ? NF4_LEVELS[b >> 4] : IQ4_LEVELS[b & 15],
            high = NF4 ? NF4_LEVELS[b & 15] : IQ4_LEVELS[b >> 4];
#if LEHR_T == 0
        float2 value = make_float2(low, high);
#else
        // The levels of NF4 are no numbers of T: a second pair holds the rest.
        u32 pair = pack2(low, high);
        uint2 value = make_uint2(pair, pack2(low - unpack_low(pair), high - unpack_high(pair)));
        if (!NF4) {
            for (int i = 0; i < 32; i++) *(u32*)(table + 128 * b + 4 * ((i + b) % 32)) = pair;
            continue;
        }
#endif
        for (int i = 0; i < 16; i++)
            *(decltype(value)*)(table + 128 * b + 8 * ((i + b) % 16)) = value;
    }
}
// Bytes between two lanes' copies of an entry.
template <bool NF4>
DEVICE int table_offset(int lane) {
    return LEHR_T != 0 && !NF4 ? 4 * lane : 8 * (lane % 16);
}

// ---- Formats: how lane `quarter` decodes step j of a segment of a row. ----

// A row's segment in shared memory.
struct Row {
    const u8* bytes;
    // Of each step, for formats whose scales lie apart.
    const float* scales;
    const u8* table;
    int quarter;
};
// The lane's numbers of a step of a row: scale · (pairs + rest) + minimum, for both halves of 16
// columns.
template <class P>
struct Step {
    P pairs[4];
    P rest[4];
    float scale[2];
    float minimum[2];
};

struct Format {
    // Columns and bytes of a block, and columns of a segment: whole blocks, and 16 bytes or more.
    static constexpr int BLOCK = 32, BYTES = 16, SEGMENT = 256;
    // What the addresses of rows and segments are a multiple of.
    static constexpr int ALIGNED = 16;
    // Rows may start anywhere if their width is odd enough; they are then copied number by number.
    static constexpr bool REALIGN = false;
    static constexpr bool NEAR = false, CROSS = false;
    // Halves of a step have their own scales; there are minima; all scales are 1; there is a rest;
    // scales lie apart.
    static constexpr bool HALVES = false, MINIMA = false, UNIT = false, REST = false,
        SCALES = false;
    // Whether there is a way for one row of x (below): lane p then owns all columns of two runs of
    // 32 of a segment, `run_of`(p, 0 and 1). `load` reads a run, and `pairs` gives eight of its
    // columns: 8 k to 8 k + 7, or 4 k to 4 k + 3 and 16 more (CROSS, not NEAR).
    static constexpr bool DIAGONAL = true;
    static DEVICE int run_of(int lane_quarter, int run) { return 2 * lane_quarter + run; }
    struct Raw {
        u32 codes[8], upper[8];
    };
    // Which table there is: 0 none, 1 IQ4, 2 NF4.
    static constexpr int TABLE = 0;
    // Bytes between rows in shared memory beyond what they take.
    static constexpr int PAD = 0;
    typedef ::Pair P;
};
