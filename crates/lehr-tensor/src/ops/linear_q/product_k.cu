// Products of a few vectors (product.cuh) with weights in blocks of 256 columns.
#include "product.cuh"

struct Q2_K : Format {
    static constexpr int BLOCK = 256, BYTES = 84, ALIGNED = 4;
    static constexpr bool HALVES = true, MINIMA = true;
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        const u8* codes = row.bytes + 16 + j / 4 * 32 + 4 * row.quarter;
        for (int half = 0; half < 2; half++)
            two_bits(out.pairs + 2 * half, spread4(codes + 16 * half) >> j % 4 * 2);
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
            three_bits(out.pairs + 2 * half, spread2(codes + 16 * half) >> j % 4 * 2,
                spread2(b + 16 * half + 4 * row.quarter) >> j);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        // Scales 2 j and 2 j + 1.
        const u8* b = row.bytes;
        u32 low = u16_at(b + 96 + j % 4 * 2) >> j / 4 * 4,
            high = u16_at(b + 104 + j % 2 * 2) >> j / 2 * 2;
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
        for (int i = 0; i < 2; i++)
            three_bits(out.pairs + 2 * i, raw.codes[2 * k + i], raw.upper[2 * k + i]);
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
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        affine_scales(row.bytes, j, out.scale[0], out.minimum[0]);
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 16>(raw.codes, row.bytes + 16 + 32 * row.quarter);
    }
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
            five(out.pairs + 2 * half, spread4(codes + 16 * half) >> j % 2 * 4,
                spread4(b + 16 + 16 * half) >> j);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        affine_scales(row.bytes, j, out.scale[0], out.minimum[0]);
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 16>(raw.codes, row.bytes + 48 + 32 * row.quarter);
        spread_words<8, 16>(raw.upper, row.bytes + 16);
        for (int i = 0; i < 8; i++) raw.upper[i] >>= 2 * row.quarter + run;
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        for (int i = 0; i < 2; i++)
            five(out.pairs + 2 * i, raw.codes[2 * k + i] >> 4 * run, raw.upper[2 * k + i]);
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
        const u8 *b = row.bytes + 4 * row.quarter, *low = b + j / 4 * 64 + run % 2 * 32,
            *high = b + 128 + j / 4 * 32;
        for (int half = 0; half < 2; half++)
            six(out.pairs + 2 * half, spread2(low + 16 * half) >> run / 2 * 4,
                spread2(high + 16 * half) >> 2 * run);
        scales(j, row, out);
    }
    static DEVICE void scales(int j, const Row& row, Step<P>& out) {
        float d = f16_at(row.bytes + 208);
        u32 both = u16_at(row.bytes + 192 + 2 * j);
        for (int half = 0; half < 2; half++) out.scale[half] = d * (float)(i8)(both >> 8 * half);
    }
    // The runs that share a lane's 32 bytes.
    static DEVICE int run_of(int lane_quarter, int run) {
        return lane_quarter / 2 * 4 + lane_quarter % 2 + 2 * run;
    }
    static DEVICE void load(const Row& row, int run, Raw& raw) {
        spread_words<8, 2>(raw.codes, row.bytes + 32 * row.quarter);
        spread_words<8, 2>(raw.upper, row.bytes + 128 + row.quarter / 2 * 32);
        for (int i = 0; i < 8; i++) raw.upper[i] >>= row.quarter % 2 * 2 + 4 * run;
    }
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        for (int i = 0; i < 2; i++)
            six(out.pairs + 2 * i, raw.codes[2 * k + i] >> 4 * run, raw.upper[2 * k + i]);
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
        for (int i = 0; i < 4; i++)
            raw.codes[i] = u32_at(row.bytes + 8 + 32 * row.quarter + 16 * run + 4 * i);
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

PRODUCT(product_q2_k, Q2_K)
PRODUCT(product_q3_k, Q3_K)
PRODUCT(product_q4_k, Q4_K)
PRODUCT(product_q5_k, Q5_K)
PRODUCT(product_q6_k, Q6_K)
PRODUCT(product_iq4_xs, IQ4_XS)
