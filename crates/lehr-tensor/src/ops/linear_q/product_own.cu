// Products of a few vectors (product.cuh) with weights that are floats, or int8, int4 and NF4,
// whose scales lie apart.
#include "product.cuh"

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
        // With another sign bit, nibbles with a sign are eight more than they were. The even column
        // is in the upper half.
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
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        eight(out.pairs, raw.codes[k]);
    }
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
    static DEVICE void pairs(const Raw& raw, const Row& row, int run, int k, Step<P>& out) {
        eight(row.table, raw.codes[k], out);
    }
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
    static constexpr int BLOCK = 1, BYTES = sizeof(E), SEGMENT = 256 / sizeof(E),
        PAD = sizeof(E) == 2 ? 64 : 16;
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
            for (int k = 0; k < N; k += 2)
                out[(i + k) / 2] = make_float2(to_f32(v.v[k]), to_f32(v.v[k + 1]));
        }
    }
    static DEVICE void step(int j, const Row& row, Step<P>& out) {
        pairs((const E*)row.bytes + 32 * j + 8 * row.quarter, out.pairs);
    }
};

PRODUCT(product_f32, Floats<float>)
PRODUCT(product_f16, Floats<f16>)
PRODUCT(product_bf16, Floats<bf16>)
PRODUCT(product_int8, Int8)
PRODUCT(product_int4, Int4)
PRODUCT(product_nf4, Nf4)
