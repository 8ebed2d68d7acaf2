// Products of a few vectors (product.cuh) with weights in blocks of 32 columns.
#include "product.cuh"

struct Q4_0 : Format {
    static constexpr int BYTES = 18, ALIGNED = 2;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* b = row.bytes + j * BYTES;
        u32 v = spread2(b + 2 + 4 * row.quarter);
        nibbles(out.pairs, v, 8);
        nibbles(out.pairs + 2, v >> 4, 8);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        out.scale[0] = f16_at(row.bytes + j * BYTES);
    }
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
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        scale_and_minimum(row.bytes + j * BYTES, out);
    }
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
        u32 v = spread2(b + 6 + 4 * row.quarter),
            high = (u16_at(b + 2) | u16_at(b + 4) << 16) >> 4 * row.quarter;
        five_bits(out.pairs, v, high, 16);
        five_bits(out.pairs + 2, v >> 4, high >> 16, 16);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        out.scale[0] = f16_at(row.bytes + j * BYTES);
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        const u8* b = row.bytes + (2 * row.quarter + run) * BYTES;
        spread_words<4, 2>(raw.codes, b + 6);
        raw.upper[0] = u16_at(b + 2) | u16_at(b + 4) << 16;
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        five_bits(out.pairs, raw.codes[k % 2 * 2] >> k / 2 * 4, raw.upper[0] >> 8 * k, 16);
        five_bits(out.pairs + 2, raw.codes[k % 2 * 2 + 1] >> k / 2 * 4, raw.upper[0] >> (8 * k + 4),
            16);
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
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        scale_and_minimum(row.bytes + j * BYTES, out);
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        const u8* b = row.bytes + (2 * row.quarter + run) * BYTES;
        spread_words<4, 4>(raw.codes, b + 8);
        raw.upper[0] = u32_at(b + 4);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        five_bits(out.pairs, raw.codes[k % 2 * 2] >> k / 2 * 4, raw.upper[0] >> 8 * k, 0);
        five_bits(out.pairs + 2, raw.codes[k % 2 * 2 + 1] >> k / 2 * 4, raw.upper[0] >> (8 * k + 4),
            0);
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
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        out.scale[0] = f16_at(row.bytes + j * BYTES);
    }
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
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        out.scale[0] = f16_at(row.bytes + j * BYTES);
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        const u8* codes = row.bytes + (2 * row.quarter + run) * BYTES + 2;
        for (int i = 0; i < 8; i++) raw.codes[i] = u16_at(codes + 2 * i);
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        for (int i = 0; i < 4; i++)
            out.pairs[i] = *(const P*)entry(row.table, raw.codes[2 * k + i / 2], i % 2);
    }
};

PRODUCT(product_q4_0, Q4_0)
PRODUCT(product_q4_1, Q4_1)
PRODUCT(product_q5_0, Q5_0)
PRODUCT(product_q5_1, Q5_1)
PRODUCT(product_q8_0, Q8_0)
PRODUCT(product_iq4_nl, IQ4_NL)
