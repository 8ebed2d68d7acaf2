// Products of a few vectors with a weight in a stored form, for generation: y = x Wᵀ + bias, n = 1 to 8 rows of x.
//
// A block makes 16 rows of W, that is 16 columns of y. Rows are cut into segments of columns, which its warps take in turn. A warp
// copies its next two segments to shared memory while it works on one (cp.async, so that bytes under way take no registers), each
// byte of W once, with 16 bytes per copy. Then lane 4 g + p decodes a quarter p of rows g and g + 8, 32 columns ("a step") at a time.
//
// With 16-bit activations codes become small integers in T, exactly, and tensor cores multiply them with x: products are exact and
// sums are f32; the scales of a block then multiply its sum, in f32. So x is never rounded, and two to eight rows cost the same; one
// row has its own way (DiagonalSums), which costs less.
// With f32 activations, and for weights that are floats of another type than T, the same lanes multiply and add in f32.
//
// Lane p of a row owns eight columns of a step, in one of two ways (NEAR): 8 p to 8 p + 7, or 4 p to 4 p + 3 and 16 + 4 p to
// 16 + 4 p + 3. It holds them as four pairs: neighbours, or (CROSS) number i of the first four and number i of the last four.
// Tensor cores sum over columns, so any order of them will do that is the same in W and x.
#include "mma.cuh"
#include "quant.cuh"

#define ROWS 16
#define TOKENS 8
// Segments of a warp in shared memory: one being worked on, the others under way.
#define STAGES 2

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

// (v & mask) | base, and with ^: one instruction each. From the operators the compiler makes two, to keep both constants immediate.
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
// The number 128 (bf16) or 1024 (f16), whose last bits count ones: codes of up to 7 bits or-ed to it are added to it.
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
// The codes that `mask` leaves of v, and `mask_t` of t (if it is not 0), minus an offset; codes below 64.
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

// Four bytes, those of even number first: shifts and masks then give pairs of neighbours. From an address that is a multiple of 4,
DEVICE u32 spread4(const u8* p) { return __byte_perm(u32_at(p), 0, 0x3120); }
// or of 2.
DEVICE u32 spread2(const u8* p) { return __byte_perm(u16_at(p), u16_at(p + 2), 0x5140); }
// N times four bytes, from an address that is a multiple of 16, 4 or 2. With 2, words are read from the multiple of 4 below, one more
// than N; some may lie past what is needed.
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

// ---- Tables: for each byte its two numbers, a copy for each lane (of half a warp), so that no two lanes meet in a bank. ----

#define TABLE_BYTES (256 * 128)
// Entry of byte k of a word.
DEVICE const u8* entry(const u8* table, u32 v, int k) { return table + ((k == 0 ? v << 7 : v >> (8 * k - 7)) & 0x7f80u); }

// NF4: the upper nibble first. IQ4: the lower one.
template <bool NF4>
DEVICE void fill_table(u8* table) {
    for (int b = threadIdx.x; b < 256; b += blockDim.x) {
        float low = NF4 ? NF4_LEVELS[b >> 4] : IQ4_LEVELS[b & 15], high = NF4 ? NF4_LEVELS[b & 15] : IQ4_LEVELS[b >> 4];
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
        for (int i = 0; i < 16; i++) *(decltype(value)*)(table + 128 * b + 8 * ((i + b) % 16)) = value;
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
// The lane's numbers of a step of a row: scale · (pairs + rest) + minimum, for both halves of 16 columns.
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
    // Halves of a step have their own scales; there are minima; all scales are 1; there is a rest; scales lie apart.
    static constexpr bool HALVES = false, MINIMA = false, UNIT = false, REST = false, SCALES = false;
    // Whether there is a way for one row of x (below): lane p then owns all columns of two runs of 32 of a segment, `run_of`(p, 0 and
    // 1). `load` reads a run, and `pairs` gives eight of its columns: 8 k to 8 k + 7, or 4 k to 4 k + 3 and 16 more (CROSS, not NEAR).
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

struct Q4_0 : Format {
    static constexpr int BYTES = 18, ALIGNED = 2;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* b = row.bytes + j * BYTES;
        u32 v = spread2(b + 2 + 4 * row.quarter);
        nibbles(out.pairs, v, 8);
        nibbles(out.pairs + 2, v >> 4, 8);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { out.scale[0] = f16_at(row.bytes + j * BYTES); }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<4, 2>(raw.codes, row.bytes + (2 * row.quarter + run) * BYTES + 2);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        nibbles8(out.pairs, raw.codes + k % 2 * 2, k / 2 * 4, 8);
    }
};
// Scale and minimum of a block that begins with them.
template <class P>
DEVICE void scale_and_minimum(const u8* b, Step<P>& out) {
    u32 dm = u32_at(b);
    out.scale[0] = to_f32(f16{(u16)dm});
    out.minimum[0] = to_f32(f16{(u16)(dm >> 16)});
}
struct Q4_1 : Format {
    static constexpr int BYTES = 20, ALIGNED = 4;
    static constexpr bool MINIMA = true;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* b = row.bytes + j * BYTES;
        u32 v = spread4(b + 4 + 4 * row.quarter);
        nibbles(out.pairs, v, 0);
        nibbles(out.pairs + 2, v >> 4, 0);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { scale_and_minimum(row.bytes + j * BYTES, out); }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<4, 4>(raw.codes, row.bytes + (2 * row.quarter + run) * BYTES + 4);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        nibbles8(out.pairs, raw.codes + k % 2 * 2, k / 2 * 4, 0);
    }
};
// Pairs of nibbles with their fifth bits: bits 0 to 3 of `high` belong to bytes 0 to 3.
template <class P>
DEVICE void five_bits(P* out, u32 v, u32 high, int offset) {
    // Bit i to bits i + 4 and i + 19.
    u32 z = (high & 15u) * 0x00080010u;
    unsigned_codes(out[0], v, 0x000f000fu, offset, z, 0x00100010u);
    unsigned_codes(out[1], v >> 8, 0x000f000fu, offset, z >> 2, 0x00100010u);
}
struct Q5_0 : Format {
    static constexpr int BYTES = 22, ALIGNED = 2;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* b = row.bytes + j * BYTES;
        u32 v = spread2(b + 6 + 4 * row.quarter), high = (u16_at(b + 2) | u16_at(b + 4) << 16) >> 4 * row.quarter;
        five_bits(out.pairs, v, high, 16);
        five_bits(out.pairs + 2, v >> 4, high >> 16, 16);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { out.scale[0] = f16_at(row.bytes + j * BYTES); }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        const u8* b = row.bytes + (2 * row.quarter + run) * BYTES;
        spread_words<4, 2>(raw.codes, b + 6);
        raw.upper[0] = u16_at(b + 2) | u16_at(b + 4) << 16;
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        five_bits(out.pairs, raw.codes[k % 2 * 2] >> k / 2 * 4, raw.upper[0] >> 8 * k, 16);
        five_bits(out.pairs + 2, raw.codes[k % 2 * 2 + 1] >> k / 2 * 4, raw.upper[0] >> (8 * k + 4), 16);
    }
};
struct Q5_1 : Format {
    static constexpr int BYTES = 24, ALIGNED = 4;
    static constexpr bool MINIMA = true;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* b = row.bytes + j * BYTES;
        u32 v = spread4(b + 8 + 4 * row.quarter), high = u32_at(b + 4) >> 4 * row.quarter;
        five_bits(out.pairs, v, high, 0);
        five_bits(out.pairs + 2, v >> 4, high >> 16, 0);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { scale_and_minimum(row.bytes + j * BYTES, out); }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        const u8* b = row.bytes + (2 * row.quarter + run) * BYTES;
        spread_words<4, 4>(raw.codes, b + 8);
        raw.upper[0] = u32_at(b + 4);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        five_bits(out.pairs, raw.codes[k % 2 * 2] >> k / 2 * 4, raw.upper[0] >> 8 * k, 0);
        five_bits(out.pairs + 2, raw.codes[k % 2 * 2 + 1] >> k / 2 * 4, raw.upper[0] >> (8 * k + 4), 0);
    }
};
struct Q8_0 : Format {
    static constexpr int BYTES = 34, ALIGNED = 2;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* b = row.bytes + j * BYTES;
        byte_pairs(out.pairs, spread2(b + 2 + 4 * row.quarter));
        byte_pairs(out.pairs + 2, spread2(b + 18 + 4 * row.quarter));
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { out.scale[0] = f16_at(row.bytes + j * BYTES); }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 2>(raw.codes, row.bytes + (2 * row.quarter + run) * BYTES + 2);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        byte_pairs(out.pairs, raw.codes[2 * k]);
        byte_pairs(out.pairs + 2, raw.codes[2 * k + 1]);
    }
};
struct IQ4_NL : Format {
    static constexpr int BYTES = 18, ALIGNED = 2, TABLE = 1;
    static constexpr bool CROSS = true;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8 *b = row.bytes + j * BYTES, *codes = b + 2 + 4 * row.quarter;
        u32 v = u16_at(codes), u = u16_at(codes + 2);
        out.pairs[0] = *(const P*)entry(row.table, v, 0);
        out.pairs[1] = *(const P*)entry(row.table, v, 1);
        out.pairs[2] = *(const P*)entry(row.table, u, 0);
        out.pairs[3] = *(const P*)entry(row.table, u, 1);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { out.scale[0] = f16_at(row.bytes + j * BYTES); }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        const u8* codes = row.bytes + (2 * row.quarter + run) * BYTES + 2;
        for (int i = 0; i < 8; i++) raw.codes[i] = u16_at(codes + 2 * i);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        for (int i = 0; i < 4; i++) out.pairs[i] = *(const P*)entry(row.table, raw.codes[2 * k + i / 2], i % 2);
    }
};
struct IQ4_XS : Format {
    static constexpr int BLOCK = 256, BYTES = 136, ALIGNED = 4, TABLE = 1;
    static constexpr bool CROSS = true;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* b = row.bytes;
        u32 v = u32_at(b + 8 + 16 * j + 4 * row.quarter);
        for (int k = 0; k < 4; k++) out.pairs[k] = *(const P*)entry(row.table, v, k);
        scales(j, row, out);
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        for (int i = 0; i < 4; i++) raw.codes[i] = u32_at(row.bytes + 8 + 32 * row.quarter + 16 * run + 4 * i);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        for (int i = 0; i < 4; i++) out.pairs[i] = *(const P*)entry(row.table, raw.codes[k], i);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        u32 head = u32_at(row.bytes), low = u32_at(row.bytes + 4);
        int code = (int)((low >> 4 * j & 15) | (head >> (16 + 2 * j) & 3) << 4);
        out.scale[0] = to_f32(f16{(u16)head}) * (float)(code - 32);
    }
};
struct Q2_K : Format {
    static constexpr int BLOCK = 256, BYTES = 84, ALIGNED = 4;
    static constexpr bool HALVES = true, MINIMA = true;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* codes = row.bytes + 16 + j / 4 * 32 + 4 * row.quarter;
        for (int half = 0; half < 2; half++) two_bits(out.pairs + 2 * half, spread4(codes + 16 * half) >> j % 4 * 2);
        scales(j, row, out);
    }
    static DEVICE void two_bits(P* out, u32 v) {
        unsigned_codes(out[0], v, 0x00030003u, 0);
        unsigned_codes(out[1], v >> 8, 0x00030003u, 0);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        u32 de = u32_at(row.bytes + 80), both = u16_at(row.bytes + 2 * j);
        float d = to_f32(f16{(u16)de}), e = -to_f32(f16{(u16)(de >> 16)});
        for (int half = 0; half < 2; half++) {
            out.scale[half] = d * (float)(both >> 8 * half & 15);
            out.minimum[half] = e * (float)(both >> (8 * half + 4) & 15);
        }
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 4>(raw.codes, row.bytes + 16 + row.quarter / 2 * 32);
        for (int i = 0; i < 8; i++) raw.codes[i] >>= row.quarter % 2 * 4 + 2 * run;
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        two_bits(out.pairs, raw.codes[2 * k]);
        two_bits(out.pairs + 2, raw.codes[2 * k + 1]);
    }
};
struct Q3_K : Format {
    static constexpr int BLOCK = 256, BYTES = 110, ALIGNED = 2;
    static constexpr bool HALVES = true;
    // Bits 0 and 1 of codes in v, and bit 2 in t.
    static DEVICE void three_bits(P* out, u32 v, u32 t) {
        unsigned_codes(out[0], v, 0x00030003u, 4, t << 2, 0x00040004u);
        unsigned_codes(out[1], v >> 8, 0x00030003u, 4, t >> 6, 0x00040004u);
    }
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8 *b = row.bytes, *codes = b + 32 + j / 4 * 32 + 4 * row.quarter;
        for (int half = 0; half < 2; half++)
            three_bits(out.pairs + 2 * half, spread2(codes + 16 * half) >> j % 4 * 2, spread2(b + 16 * half + 4 * row.quarter) >> j);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        // Scales 2 j and 2 j + 1.
        const u8* b = row.bytes;
        u32 low = u16_at(b + 96 + j % 4 * 2) >> j / 4 * 4, high = u16_at(b + 104 + j % 2 * 2) >> j / 2 * 2;
        float d = f16_at(b + 108);
        for (int half = 0; half < 2; half++) {
            int code = (int)((low >> 8 * half & 15) | (high >> 8 * half & 3) << 4);
            out.scale[half] = d * (float)(code - 32);
        }
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 2>(raw.codes, row.bytes + 32 + row.quarter / 2 * 32);
        spread_words<8, 2>(raw.upper, row.bytes);
        for (int i = 0; i < 8; i++) {
            raw.codes[i] >>= row.quarter % 2 * 4 + 2 * run;
            raw.upper[i] >>= 2 * row.quarter + run;
        }
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        for (int i = 0; i < 2; i++) three_bits(out.pairs + 2 * i, raw.codes[2 * k + i], raw.upper[2 * k + i]);
    }
};
// The scale and minimum of step j of Q4_K and Q5_K.
DEVICE void affine_scales(const u8* b, int j, float& scale, float& minimum) {
    u32 de = u32_at(b), words[3] = {u32_at(b + 4), u32_at(b + 8), u32_at(b + 12)};
    scale = to_f32(f16{(u16)de}) * (float)six_bits(words, j, 0);
    minimum = -to_f32(f16{(u16)(de >> 16)}) * (float)six_bits(words, j, 1);
}
struct Q4_K : Format {
    static constexpr int BLOCK = 256, BYTES = 144;
    static constexpr bool MINIMA = true;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* codes = row.bytes + 16 + j / 2 * 32 + 4 * row.quarter;
        nibbles(out.pairs, spread4(codes) >> j % 2 * 4, 0);
        nibbles(out.pairs + 2, spread4(codes + 16) >> j % 2 * 4, 0);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { affine_scales(row.bytes, j, out.scale[0], out.minimum[0]); }
    static DEVICE void load(const Row& row, int run, Raw& raw) { spread_words<8, 16>(raw.codes, row.bytes + 16 + 32 * row.quarter); }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        nibbles8(out.pairs, raw.codes + 2 * k, 4 * run, 0);
    }
};
struct Q5_K : Format {
    static constexpr int BLOCK = 256, BYTES = 176;
    static constexpr bool MINIMA = true;
    // Bits 0 to 3 of codes in v, and bit 4 in t.
    static DEVICE void five(P* out, u32 v, u32 t) {
        unsigned_codes(out[0], v, 0x000f000fu, 0, t << 4, 0x00100010u);
        unsigned_codes(out[1], v >> 8, 0x000f000fu, 0, t >> 4, 0x00100010u);
    }
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8 *b = row.bytes + 4 * row.quarter, *codes = b + 48 + j / 2 * 32;
        for (int half = 0; half < 2; half++)
            five(out.pairs + 2 * half, spread4(codes + 16 * half) >> j % 2 * 4, spread4(b + 16 + 16 * half) >> j);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { affine_scales(row.bytes, j, out.scale[0], out.minimum[0]); }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 16>(raw.codes, row.bytes + 48 + 32 * row.quarter);
        spread_words<8, 16>(raw.upper, row.bytes + 16);
        for (int i = 0; i < 8; i++) raw.upper[i] >>= 2 * row.quarter + run;
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        for (int i = 0; i < 2; i++) five(out.pairs + 2 * i, raw.codes[2 * k + i] >> 4 * run, raw.upper[2 * k + i]);
    }
};
struct Q6_K : Format {
    static constexpr int BLOCK = 256, BYTES = 210, ALIGNED = 2;
    static constexpr bool HALVES = true;
    // Bits 0 to 3 of codes in v, 4 and 5 in t.
    static DEVICE void six(P* out, u32 v, u32 t) {
        unsigned_codes(out[0], v, 0x000f000fu, 32, t << 4, 0x00300030u);
        unsigned_codes(out[1], v >> 8, 0x000f000fu, 32, t >> 4, 0x00300030u);
    }
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        // Runs 0 and 1 of 32 numbers are the low nibbles of 64 bytes, 2 and 3 the high ones.
        int run = j % 4;
        const u8 *b = row.bytes + 4 * row.quarter, *low = b + j / 4 * 64 + run % 2 * 32, *high = b + 128 + j / 4 * 32;
        for (int half = 0; half < 2; half++)
            six(out.pairs + 2 * half, spread2(low + 16 * half) >> run / 2 * 4, spread2(high + 16 * half) >> 2 * run);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        float d = f16_at(row.bytes + 208);
        u32 both = u16_at(row.bytes + 192 + 2 * j);
        for (int half = 0; half < 2; half++) out.scale[half] = d * (float)(i8)(both >> 8 * half);
    }
    // The runs that share a lane's 32 bytes.
    static DEVICE int run_of(int lane_quarter, int run) { return lane_quarter / 2 * 4 + lane_quarter % 2 + 2 * run; }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 2>(raw.codes, row.bytes + 32 * row.quarter);
        spread_words<8, 2>(raw.upper, row.bytes + 128 + row.quarter / 2 * 32);
        for (int i = 0; i < 8; i++) raw.upper[i] >>= row.quarter % 2 * 2 + 4 * run;
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        for (int i = 0; i < 2; i++) six(out.pairs + 2 * i, raw.codes[2 * k + i] >> 4 * run, raw.upper[2 * k + i]);
    }
};
struct Int8 : Format {
    static constexpr int BLOCK = 1, BYTES = 1;
    static constexpr bool REALIGN = true, SCALES = true;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* codes = row.bytes + 32 * j + 4 * row.quarter;
        byte_pairs(out.pairs, spread4(codes));
        byte_pairs(out.pairs + 2, spread4(codes + 16));
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { out.scale[0] = row.scales[j]; }
    // Such that packs of two rows and four lanes lie in different banks.
    static DEVICE int run_of(int lane_quarter, int run) { return lane_quarter + 4 * run; }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 16>(raw.codes, row.bytes + 32 * row.quarter + 128 * run);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        byte_pairs(out.pairs, raw.codes[2 * k]);
        byte_pairs(out.pairs + 2, raw.codes[2 * k + 1]);
    }
};
// Four words of a run of 32 numbers, two in a byte.
DEVICE void load_run(const Row& row, int run, u32* out) {
    Pack<u32, 4> v = load_pack<u32, 4>((const u32*)(row.bytes + 32 * row.quarter + 16 * run));
    for (int i = 0; i < 4; i++) out[i] = v.v[i];
}
struct Int4 : Format {
    static constexpr int BLOCK = 2, BYTES = 1;
    static constexpr bool REALIGN = true, SCALES = true, NEAR = true, CROSS = true;
    static DEVICE void eight(P* out, u32 v) {
        // With another sign bit, nibbles with a sign are eight more than they were. The even column is in the upper half.
        v ^= 0x88888888u;
        unsigned_codes(out[0], v >> 4, 0x000f000fu, 8);
        unsigned_codes(out[1], v, 0x000f000fu, 8);
        unsigned_codes(out[2], v >> 12, 0x000f000fu, 8);
        unsigned_codes(out[3], v >> 8, 0x000f000fu, 8);
    }
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        eight(out.pairs, u32_at(row.bytes + 16 * j + 4 * row.quarter));
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { out.scale[0] = row.scales[j]; }
    static DEVICE void load(const Row& row, int run, Raw& raw) { load_run(row, run, raw.codes); }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) { eight(out.pairs, raw.codes[k]); }
};
DEVICE void look_up(const u8* entry, float2& pair, float2& rest) { pair = *(const float2*)entry; }
DEVICE void look_up(const u8* entry, u32& pair, u32& rest) {
    uint2 both = *(const uint2*)entry;
    pair = both.x;
    rest = both.y;
}
struct Nf4 : Format {
    static constexpr int BLOCK = 2, BYTES = 1, TABLE = 2;
    static constexpr bool SCALES = true, NEAR = true, REST = true;
    static DEVICE void eight(const u8* table, u32 v, Step<P>& out) {
        for (int i = 0; i < 4; i++) look_up(entry(table, v, i), out.pairs[i], out.rest[i]);
    }
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        eight(row.table, u32_at(row.bytes + 16 * j + 4 * row.quarter), out);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) { out.scale[0] = row.scales[j]; }
    static DEVICE void load(const Row& row, int run, Raw& raw) { load_run(row, run, raw.codes); }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) { eight(row.table, raw.codes[k], out); }
};
// Floats of type E: as they are if that is T, else in f32.
template <class E>
struct PairOf {
    typedef float2 P;
};
#if LEHR_T != 0
template <>
struct PairOf<T> {
    typedef u32 P;
};
#endif
template <class E>
struct Floats : Format {
    static constexpr int BLOCK = 1, BYTES = sizeof(E), SEGMENT = 256 / sizeof(E), PAD = sizeof(E) == 2 ? 64 : 16;
    static constexpr bool REALIGN = true, NEAR = true, UNIT = true, DIAGONAL = false;
    typedef typename PairOf<E>::P P;
    static DEVICE void pairs(const E* p, u32* out) {
        Pack<u32, 4> v = load_pack<u32, 4>((const u32*)p);
        for (int i = 0; i < 4; i++) out[i] = v.v[i];
    }
    static DEVICE void pairs(const E* p, float2* out) {
        constexpr int N = 16 / sizeof(E);
        for (int i = 0; i < 8; i += N) {
            Pack<E, N> v = load_pack<E, N>(p + i);
            for (int k = 0; k < N; k += 2) out[(i + k) / 2] = make_float2(to_f32(v.v[k]), to_f32(v.v[k + 1]));
        }
    }
    static DEVICE void step(int j, const Row& row, Step<P>& out) { pairs((const E*)row.bytes + 32 * j + 8 * row.quarter, out.pairs); }
};

// ---- Shared memory of a warp's segment: 16 rows, then x, then scales. ----

template <class F>
struct Layout {
    static constexpr int BYTES = F::SEGMENT / F::BLOCK * F::BYTES;
    // Copies of 16 bytes that hold a row's segment wherever it starts.
    static constexpr int COPIES = (BYTES + 16 - F::ALIGNED + 15) / 16;
    // An odd multiple of 16 puts the words of eight rows in different banks, and one of 64 those of packs.
    static constexpr int STRIDE = F::PAD ? COPIES * 16 + F::PAD : 16 * (COPIES | 1);
    static constexpr int X_STRIDE = F::SEGMENT * (int)sizeof(T) + (F::NEAR ? 64 : 32);
    static constexpr int SCALES = F::SCALES ? ROWS * (F::SEGMENT / 32) * 4 : 0;
    static DEVICE int bytes(int n) { return ROWS * STRIDE + n * X_STRIDE + SCALES; }
};

// Copies N bytes without waiting; of 4 through the first-level cache.
template <int N>
DEVICE void copy(void* to, const void* from) {
#ifdef LEHR_EMULATED
    emu::copy_later(to, from, N, N);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    if (N == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
#endif
}
// Copies 16 bytes through the first-level cache, for what other warps read too.
DEVICE void copy_cached(void* to, const void* from) {
#ifdef LEHR_EMULATED
    emu::copy_later(to, from, 16, 16);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#endif
}
// Copies the first `n` of N bytes and writes zeros for the others; n may be negative or above N.
template <int N>
DEVICE void copy_part(void* to, const void* from, int n) {
    n = min(max(n, 0), N);
#ifdef LEHR_EMULATED
    emu::copy_later(to, from, n, N);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    if (N == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(n) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from), "r"(n) : "memory");
#endif
}

// Copies segments of 16 rows of W, and of x, to shared memory; zeros stand for what lies outside. Lane 4 g + p copies packs of 16
// bytes p, p + 4, .. of rows g and g + 8: 64 neighbouring bytes of a row at a time.
template <class F>
struct Copier {
    typedef Layout<F> L;
    static constexpr int STEPS = F::SEGMENT / 32;
    const u8* w;
    const float* scales;
    const T* x;
    int lane, first_row, n, rows, cols, row_bytes, row_scales, group_shift;

    DEVICE Copier(const u8* w, const float* scales, const T* x, int n, int rows, int cols, int row_bytes, int group)
        : w(w), scales(scales), x(x), n(n), rows(rows), cols(cols), row_bytes(row_bytes) {
        lane = threadIdx.x % WARP;
        first_row = blockIdx.x * ROWS;
        // Groups are a power of two, or a whole row.
        bool by_row = group >= cols;
        row_scales = by_row || !F::SCALES ? 1 : cols / group;
        group_shift = by_row ? 31 : __popc((u32)group - 1);
        this->w += (i64)(first_row + lane / 4) * row_bytes;
        this->scales += (i64)(first_row + lane / 8) * row_scales;
    }
    // Where in shared memory a row's segment starts: copies start on 16 bytes, rows need not.
    DEVICE int phase(int row, int segment) const {
        return F::ALIGNED == 16 ? 0 : (int)(((u32)row * (u32)row_bytes + (u32)segment * (u32)L::BYTES) & 15);
    }
    DEVICE void weights(u8* to, int segment) const {
        int start = segment * L::BYTES, left = row_bytes - start;
        if (F::REALIGN && row_bytes % 16 != 0) {
            const u8* from = w - (i64)(lane / 4) * row_bytes + start;
            for (int r = 0; r < ROWS; r++, from += row_bytes) {
                int valid = first_row + r < rows ? left : 0;
                for (int i = lane; i < L::BYTES; i += WARP) to[r * L::STRIDE + i] = i < valid ? from[i] : (u8)0;
            }
            return;
        }
        // With another row to follow, what is read past the end of these is in memory.
        if (left >= L::BYTES && first_row + ROWS < rows) two_rows<true>(to, start, left);
        else two_rows<false>(to, start, left);
    }
    template <bool INSIDE>
    DEVICE void two_rows(u8* to, int start, int left) const {
        to += lane / 4 * L::STRIDE + lane % 4 * 16;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u8* from = w + (half ? (i64)8 * row_bytes : 0) + start;
            int at = F::ALIGNED == 16 ? 0 : (int)((u64)from & 15), skip = lane % 4 * 16 - at;
            from += skip;
            int end = INSIDE || first_row + lane / 4 + 8 * half < rows ? min(left, L::BYTES) - skip : 0;
#pragma unroll
            for (int i = 0; i < L::COPIES; i += 4) {
                if (i + 4 > L::COPIES && lane % 4 >= L::COPIES - i) break;
                if (INSIDE) copy<16>(to + half * 8 * L::STRIDE + 16 * i, from + 16 * i);
                else copy_part<16>(to + half * 8 * L::STRIDE + 16 * i, from + 16 * i, end - 16 * i);
            }
        }
    }
    DEVICE void activations(u8* to, int segment) const {
        int first = segment * F::SEGMENT, left = cols - first;
        const T* from = x + first;
        if (!is_packed(cols)) {
            for (int t = 0; t < n; t++, from += cols, to += L::X_STRIDE)
                for (int c = lane; c < F::SEGMENT; c += WARP) ((T*)to)[c] = c < left ? from[c] : from_f32<T>(0.0f);
            return;
        }
        from += lane * LANES;
        to += 16 * lane;
        if (left >= F::SEGMENT) {
            for (int t = 0; t < n; t++, from += cols, to += L::X_STRIDE)
                for_packs([&](int i) { copy_cached(to + 16 * i, from + i * LANES); });
        } else {
            for (int t = 0; t < n; t++, from += cols, to += L::X_STRIDE)
                for_packs([&](int i) { copy_part<16>(to + 16 * i, from + i * LANES, (left - (lane + i) * LANES) * (int)sizeof(T)); });
        }
    }
    // The packs of a row of x that this lane copies.
    template <class Copy>
    DEVICE void for_packs(const Copy& copy) const {
        constexpr int N = F::SEGMENT / LANES;
#pragma unroll
        for (int i = 0; i < N; i += WARP)
            if (i + WARP <= N || lane < N - i) copy(i);
    }
    // Eight steps of four rows at a time.
    DEVICE void scales_of_steps(float* to, int segment) const {
        int column = segment * F::SEGMENT + lane % 8 * 32;
        const float* from = scales + (column >> group_shift);
#pragma unroll
        for (int i = 0; i < ROWS; i += 4) {
            bool valid = column < cols && first_row + lane / 8 + i < rows;
            copy_part<4>(to + 8 * i + lane, from, valid ? 4 : 0);
            from += 4 * row_scales;
        }
    }
    DEVICE void start(u8* to, int segment) const {
        weights(to, segment);
        activations(to + ROWS * L::STRIDE, segment);
        if constexpr (F::SCALES) {
            static_assert(STEPS == 8, "a lane for each step of four rows");
            scales_of_steps((float*)(to + ROWS * L::STRIDE + n * L::X_STRIDE), segment);
        }
    }
};

// ---- Sums. ----

#if LEHR_T != 0
// Pairs of neighbours to pairs of numbers four apart.
DEVICE void cross(u32 b[4]) {
    u32 a0 = b[0], a1 = b[1], a2 = b[2], a3 = b[3];
    b[0] = __byte_perm(a0, a2, 0x5410), b[1] = __byte_perm(a0, a2, 0x7632);
    b[2] = __byte_perm(a1, a3, 0x5410), b[3] = __byte_perm(a1, a3, 0x7632);
}

// Sums of rows g and g + 8 of W and rows 2 p and 2 p + 1 of x.
template <class F>
struct TensorSums {
    float sums[4];
    DEVICE void clear() {
        for (int i = 0; i < 4; i++) sums[i] = 0.0f;
    }
    static DEVICE const u8* x_of_lane(const u8* x, int n) {
        // Sums of rows of x that do not exist are never looked at.
        int lane = threadIdx.x % WARP;
        return x + min(lane / 4, n - 1) * Layout<F>::X_STRIDE + lane % 4 * (F::NEAR ? 16 : 8);
    }
    static DEVICE void load_x(const u8* x, int j, u32 b[4]) {
        if (F::NEAR) {
            Pack<u32, 4> v = load_pack<u32, 4>((const u32*)(x + 64 * j));
            for (int i = 0; i < 4; i++) b[i] = v.v[i];
        } else {
            Pack<u32, 2> v = load_pack<u32, 2>((const u32*)(x + 64 * j)), u = load_pack<u32, 2>((const u32*)(x + 64 * j + 32));
            b[0] = v.v[0], b[1] = v.v[1], b[2] = u.v[0], b[3] = u.v[1];
        }
        if (F::CROSS) cross(b);
    }
    // c += half `half` of the step.
    static DEVICE void multiply(float c[4], const u32* low, const u32* high, const u32 b[4], int half) {
        u32 a[4] = {low[2 * half], high[2 * half], low[2 * half + 1], high[2 * half + 1]};
        mma_16816(c, a, b + 2 * half);
    }
    static DEVICE void sum_x(float c[4], const u32 b[4], int half) {
        u32 ones[4] = {BOTH(ONE), BOTH(ONE), BOTH(ONE), BOTH(ONE)};
        mma_16816(c, ones, b + 2 * half);
    }
    DEVICE void add(const float c[4], float low, float high) {
        sums[0] += low * c[0], sums[1] += low * c[1], sums[2] += high * c[2], sums[3] += high * c[3];
    }
    DEVICE void step(int j, const u8* x, int n, const Step<u32>& low, const Step<u32>& high) {
        u32 b[4];
        load_x(x, j, b);
        if (F::UNIT) {
            multiply(sums, low.pairs, high.pairs, b, 0);
            multiply(sums, low.pairs, high.pairs, b, 1);
            return;
        }
#pragma unroll
        for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
            float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (F::REST) {
                // Pairs and rests come as neighbours and stay so, as two rows of one product.
                float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    multiply(c, low.pairs, low.rest, b, i);
                    multiply(d, high.pairs, high.rest, b, i);
                }
                c[0] += c[2], c[1] += c[3], c[2] = d[0] + d[2], c[3] = d[1] + d[3];
            } else {
                multiply(c, low.pairs, high.pairs, b, half);
                if (!F::HALVES) multiply(c, low.pairs, high.pairs, b, 1);
            }
            add(c, low.scale[half], high.scale[half]);
            if (F::MINIMA) {
                float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                sum_x(s, b, half);
                if (!F::HALVES) sum_x(s, b, 1);
                add(s, low.minimum[half], high.minimum[half]);
            }
        }
    }
    DEVICE void segment(const Row& low, const Row& high, const u8* x, const u8* zeros, int n) {
        const u8* x_lane = x_of_lane(x, n);
#pragma unroll
        for (int j = 0; j < F::SEGMENT / 32; j++) {
            Step<u32> a, b;
            F::step(j, low, a);
            F::step(j, high, b);
            step(j, x_lane, n, a, b);
        }
    }
    // Writes the sums of the warp to `out`, [ROWS, TOKENS].
    DEVICE void store(float* out, int n) {
        int lane = threadIdx.x % WARP, row = lane / 4, token = lane % 4 * 2;
        for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * TOKENS + token + i % 2] = sums[i];
    }
};

// Sums of rows g and g + 8 of W and the one row of x, in part: lanes of a row share them.
//
// With one row of x, seven of a tensor core's eight columns are idle. So column t is given x of run t of 32 columns of a segment, and
// zeros elsewhere: the product of the whole segment is then the sums of its eight runs, each in a column of its own, and a lane
// scales two of them rather than eight. As lane p owns runs of its own, four lanes' part of that factor is x and all else zeros.
template <class F>
struct DiagonalSums {
    float sums[2];
    DEVICE void clear() { sums[0] = sums[1] = 0.0f; }
    static DEVICE void multiply(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, const u32* b) {
        u32 a[4] = {a0, a1, a2, a3};
        mma_16816(c, a, b);
    }
    static DEVICE void load_x(const u8* x, int k, u32 b[4]) {
        if (F::CROSS && !F::NEAR) {
            Pack<u32, 2> v = load_pack<u32, 2>((const u32*)(x + 8 * k)), u = load_pack<u32, 2>((const u32*)(x + 32 + 8 * k));
            b[0] = v.v[0], b[1] = v.v[1], b[2] = u.v[0], b[3] = u.v[1];
        } else {
            Pack<u32, 4> v = load_pack<u32, 4>((const u32*)(x + 16 * k));
            for (int i = 0; i < 4; i++) b[i] = v.v[i];
        }
        if (F::CROSS) cross(b);
    }
    DEVICE void segment(const Row& low, const Row& high, const u8* x, const u8* zeros, int n) {
        int lane = threadIdx.x % WARP, column = lane / 4, p = lane % 4;
        // Sums of codes, and of x; of both halves of runs if they have scales of their own. With rests: of low and high rows.
        float c[2][4], s[2][4];
        for (int i = 0; i < 8; i++) c[i / 4][i % 4] = s[i / 4][i % 4] = 0.0f;
#pragma unroll
        for (int run = 0; run < 2; run++) {
            // Zeros in banks where no other lane reads x at the same time.
            const u8* none = zeros + (((u32)(u64)x - (u32)(u64)zeros + (run ? 0 : 64)) & 127);
            const u8* x_run = column == F::run_of(p, run) ? x + 64 * column : none;
            typename F::Raw low_raw, high_raw;
            F::load(low, run, low_raw);
            F::load(high, run, high_raw);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u32 b[4];
                load_x(x_run, k, b);
                Step<u32> l, h;
                F::pairs(low_raw, low, run, k, l);
                F::pairs(high_raw, high, run, k, h);
                constexpr int SPLIT = F::HALVES ? 2 : 4;
                if (F::REST) {
                    // Pairs and rests come as neighbours and stay so, as two rows of one product.
                    multiply(c[0], l.pairs[0], l.rest[0], l.pairs[1], l.rest[1], b);
                    multiply(c[0], l.pairs[2], l.rest[2], l.pairs[3], l.rest[3], b + 2);
                    multiply(c[1], h.pairs[0], h.rest[0], h.pairs[1], h.rest[1], b);
                    multiply(c[1], h.pairs[2], h.rest[2], h.pairs[3], h.rest[3], b + 2);
                } else {
                    multiply(c[k / SPLIT], l.pairs[0], h.pairs[0], l.pairs[1], h.pairs[1], b);
                    multiply(c[k / SPLIT], l.pairs[2], h.pairs[2], l.pairs[3], h.pairs[3], b + 2);
                }
                if (F::MINIMA) {
                    multiply(s[k / SPLIT], BOTH(ONE), BOTH(ONE), BOTH(ONE), BOTH(ONE), b);
                    multiply(s[k / SPLIT], BOTH(ONE), BOTH(ONE), BOTH(ONE), BOTH(ONE), b + 2);
                }
            }
        }
        if (F::REST) {
            for (int i = 0; i < 2; i++) c[0][i] += c[0][i + 2], c[0][i + 2] = c[1][i] + c[1][i + 2];
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            Step<u32> l, h;
            F::scales(2 * p + i, low, l);
            F::scales(2 * p + i, high, h);
#pragma unroll
            for (int half = 0; half < (F::HALVES ? 2 : 1); half++) {
                sums[0] += l.scale[half] * c[half][i];
                sums[1] += h.scale[half] * c[half][i + 2];
                if (F::MINIMA) {
                    sums[0] += l.minimum[half] * s[half][i];
                    sums[1] += h.minimum[half] * s[half][i];
                }
            }
        }
    }
    DEVICE void store(float* out, int n) {
        int lane = threadIdx.x % WARP;
        for (int i = 0; i < 2; i++) {
            float sum = sums[i];
            sum += __shfl_xor_sync(FULL_MASK, sum, 1);
            sum += __shfl_xor_sync(FULL_MASK, sum, 2);
            if (lane % 4 == 0) out[(lane / 4 + 8 * i) * TOKENS] = sum;
        }
    }
};
#endif

// Sums of quarter p of rows g and g + 8 of W, all rows of x.
template <class F>
struct FloatSums {
    float sums[2][TOKENS];
    DEVICE void clear() {
        for (int i = 0; i < 2 * TOKENS; i++) sums[i / TOKENS][i % TOKENS] = 0.0f;
    }
    static DEVICE const u8* x_of_lane(const u8* x, int n) {
        return x + threadIdx.x % 4 * (int)sizeof(T) * (F::NEAR ? 8 : 4);
    }
    // Eight numbers, as the pairs of W hold them.
    static DEVICE void load_x(const T* x, float v[8]) {
        constexpr int N = F::NEAR && sizeof(T) == 2 ? 8 : 4;
        float u[8];
        for (int i = 0; i < 8; i += N) {
            Pack<T, N> pack = load_pack<T, N>(F::NEAR ? x + i : x + 4 * i);
            for (int k = 0; k < N; k++) u[i + k] = to_f32(pack.v[k]);
        }
        for (int i = 0; i < 8; i++) v[i] = F::CROSS ? u[i / 2 + i % 2 * 4] : u[i];
    }
    static DEVICE float dot(const float2* pairs, const float* v, int n_pairs) {
        float sum = 0.0f;
        for (int i = 0; i < n_pairs; i++) {
            sum += pairs[i].x * v[2 * i];
            sum += pairs[i].y * v[2 * i + 1];
        }
        return sum;
    }
    DEVICE void step(int j, const u8* x, int n, const Step<float2>& low, const Step<float2>& high) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (t >= n) break;
            float v[8];
            load_x((const T*)(x + t * Layout<F>::X_STRIDE) + 32 * j, v);
            constexpr int HALVES = F::HALVES ? 2 : 1, N = F::HALVES ? 2 : 4;
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                float a = dot(low.pairs + N * half, v + 2 * N * half, N), b = dot(high.pairs + N * half, v + 2 * N * half, N);
                sums[0][t] += F::UNIT ? a : low.scale[half] * a;
                sums[1][t] += F::UNIT ? b : high.scale[half] * b;
                if (F::MINIMA) {
                    float s = 0.0f;
                    for (int i = 0; i < 2 * N; i++) s += v[2 * N * half + i];
                    sums[0][t] += low.minimum[half] * s;
                    sums[1][t] += high.minimum[half] * s;
                }
            }
        }
    }
    DEVICE void segment(const Row& low, const Row& high, const u8* x, const u8* zeros, int n) {
        const u8* x_lane = x_of_lane(x, n);
#pragma unroll
        for (int j = 0; j < F::SEGMENT / 32; j++) {
            Step<float2> a, b;
            F::step(j, low, a);
            F::step(j, high, b);
            step(j, x_lane, n, a, b);
        }
    }
    DEVICE void store(float* out, int n) {
        int lane = threadIdx.x % WARP;
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (t >= n) break;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float sum = sums[i][t];
                sum += __shfl_xor_sync(FULL_MASK, sum, 1);
                sum += __shfl_xor_sync(FULL_MASK, sum, 2);
                if (lane % 4 == 0) out[(lane / 4 + 8 * i) * TOKENS + t] = sum;
            }
        }
    }
};

// Bytes of zeros in shared memory: 64, wherever they start in 128.
#define ZEROS 256

// Sums all segments of this warp, of which the first STAGES are under way, and writes the sums to `out`, [ROWS, TOKENS].
template <class F, class Sums>
DEVICE void sum_segments(const Copier<F>& copier, u8* stages, float* all_partial, const u8* zeros, const u8* table, int n_segments) {
    typedef Layout<F> L;
    constexpr int STEPS = F::SEGMENT / 32;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, n_warps = blockDim.x / WARP, n = copier.n, stage_bytes = L::bytes(n);
    int low = lane / 4, high = low + 8, slot = 0;
    Sums sums;
    sums.clear();
    for (int segment = warp; segment < n_segments; segment += n_warps) {
        cp_async_wait<STAGES - 1>();
        __syncwarp();
        u8* at = stages + slot * stage_bytes;
        const u8* x = at + ROWS * L::STRIDE;
        const float* scales = (const float*)(x + n * L::X_STRIDE);
        int low_phase = copier.phase(copier.first_row + low, segment), high_phase = copier.phase(copier.first_row + high, segment);
        Row low_row = {at + low * L::STRIDE + low_phase, scales + low * STEPS, table, lane % 4};
        Row high_row = {at + high * L::STRIDE + high_phase, scales + high * STEPS, table, lane % 4};
        sums.segment(low_row, high_row, x, zeros, n);
        __syncwarp();
        int next = segment + STAGES * n_warps;
        if (next < n_segments) copier.start(at, next);
        cp_async_commit();
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    // The sums take the place of the segments.
    __syncthreads();
    sums.store(all_partial + warp * ROWS * TOKENS, n);
}

template <class F>
DEVICE void product(const u8* w, const float* scales, const T* x, const T* bias, T* y, int n, int rows, int cols, int row_bytes,
                    int group) {
    DYNAMIC_SHARED(u8, shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, n_warps = blockDim.x / WARP;
    int first_row = blockIdx.x * ROWS, n_segments = (cols + F::SEGMENT - 1) / F::SEGMENT, stage_bytes = Layout<F>::bytes(n);
    Copier<F> copier(w, scales, x, n, rows, cols, row_bytes, group);
    u8 *zeros = shared + (F::TABLE ? TABLE_BYTES : 0), *stages = zeros + ZEROS, *mine = stages + warp * STAGES * stage_bytes;
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) {
        int segment = warp + i * n_warps;
        if (segment < n_segments) copier.start(mine + i * stage_bytes, segment);
        cp_async_commit();
    }
    for (int i = threadIdx.x; i < ZEROS / 4; i += blockDim.x) ((u32*)zeros)[i] = 0;
    const u8* table = shared + table_offset<F::TABLE == 2>(lane);
    if (F::TABLE) fill_table<F::TABLE == 2>(shared);
    __syncthreads();

    float* partial = (float*)stages;
    if constexpr (OnTensorCores<typename F::P>::value) {
#if LEHR_T != 0
        if constexpr (F::DIAGONAL) {
            if (n == 1) sum_segments<F, DiagonalSums<F>>(copier, mine, partial, zeros, table, n_segments);
            else sum_segments<F, TensorSums<F>>(copier, mine, partial, zeros, table, n_segments);
        } else {
            sum_segments<F, TensorSums<F>>(copier, mine, partial, zeros, table, n_segments);
        }
#endif
    } else {
        sum_segments<F, FloatSums<F>>(copier, mine, partial, zeros, table, n_segments);
    }
    __syncthreads();
    // The sums of all warps, in order.
    for (int i = threadIdx.x; i < ROWS * n; i += blockDim.x) {
        int r = i % ROWS, t = i / ROWS, row = first_row + r;
        if (row >= rows) continue;
        float sum = bias ? to_f32(bias[row]) : 0.0f;
        for (int k = 0; k < n_warps; k++) sum += partial[(k * ROWS + r) * TOKENS + t];
        y[(i64)t * rows + row] = from_f32<T>(sum);
    }
}

// y[n, rows] = x[n, cols] Wᵀ + bias[rows] for n = 1 to 8; `bias` may be null. `w` is [rows, row_bytes] and starts on 16 bytes;
// `scales` is [rows, cols / group] for int8, int4 and nf4 and else not looked at; `group` is `cols` where a row has one scale.
// Grid: ⌈rows / 16⌉. Block: 32 · warps, at most 256: 256 unless shared memory is short or a row has fewer segments than warps.
// Shared memory: table + 256 + 2 · warps · (16 · stride + n · (segment · sizeof(T) + pad) + scales) bytes, where
//            f32  f16, bf16  q4_0  q4_1  q5_0  q5_1  q8_0  q2_k  q3_k  q4_k  q5_k  q6_k  iq4_nl  iq4_xs  int8  int4   nf4
//  segment    64        128   256   256   256   256   256   256   256   256   256   256     256     256   256   256   256
//  stride    272        320   176   176   208   208   304   112   144   144   176   240     176     176   272   144   144
//  pad        64         64    32    32    32    32    32    32    32    32    32    32      32      32    32    64    64
//  scales      0          0     0     0     0     0     0     0     0     0     0     0       0       0   512   512   512
//  table       0          0     0     0     0     0     0     0     0     0     0     0   32768   32768     0     0 32768
#define PRODUCT(name, F)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256, 3)                                                                                \
        name(const u8* w, const float* scales, const T* x, const T* bias, T* y, int n, int rows, int cols, int row_bytes, int group) { \
        product<F>(w, scales, x, bias, y, n, rows, cols, row_bytes, group);                                                            \
    }
PRODUCT(product_f32, Floats<float>)
PRODUCT(product_f16, Floats<f16>)
PRODUCT(product_bf16, Floats<bf16>)
PRODUCT(product_q4_0, Q4_0)
PRODUCT(product_q4_1, Q4_1)
PRODUCT(product_q5_0, Q5_0)
PRODUCT(product_q5_1, Q5_1)
PRODUCT(product_q8_0, Q8_0)
PRODUCT(product_q2_k, Q2_K)
PRODUCT(product_q3_k, Q3_K)
PRODUCT(product_q4_k, Q4_K)
PRODUCT(product_q5_k, Q5_K)
PRODUCT(product_q6_k, Q6_K)
PRODUCT(product_iq4_nl, IQ4_NL)
PRODUCT(product_iq4_xs, IQ4_XS)
PRODUCT(product_int8, Int8)
PRODUCT(product_int4, Int4)
PRODUCT(product_nf4, Nf4)
