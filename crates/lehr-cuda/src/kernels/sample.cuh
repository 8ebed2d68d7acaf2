// What the kernels that choose tokens know of a row of logits: penalties, weights, bins, the order
// of candidates. The algorithm is written down in inplace/sample/kernel.cu.
#pragma once
#include "best.cuh"
#include "common.cuh"

#define BINS 2048
// Bins to a power of e: beyond 2^-46 all is one bin, whose weights are 0.
#define BINS_PER_E 64.0f
#define UNIT 1099511627776.0f

// In Rust: Settings::bytes.
struct Settings {
    float temperature, top_p, min_p, repetition, frequency, presence;
    u32 top_k, unused;
    u64 seed;
};
// Of a row. In Rust: SUMS_WORDS.
struct Sums {
    u64 weights[BINS];
    u32 counts[BINS];
    // The weights of at least min_p.
    u64 likely;
    u64 n_nan;
};
// How many candidates, and the sum of their weights.
struct Sum {
    u32 count;
    u64 weight;
};
DEVICE Sum operator+(Sum a, Sum b) { return {a.count + b.count, a.weight + b.weight}; }
DEVICE bool reaches(Sum sum, Sum target) {
    return (sum.count >= target.count) | (sum.weight >= target.weight);
}

DEVICE bool is_greedy(const Settings& s) { return s.temperature == 0.0f || s.top_k == 1; }

// What the logits of a row become.
struct Row {
    const T* logits;
    // The row's first element.
    i64 at;
    // Of each id twice how often it was generated, and 1 if it is in the prompt. Null without
    // penalties.
    const u32* seen;
    float repetition, frequency, presence;
    // Of the largest logit, once it is known.
    float top, temperature, bins_per_logit;
};
DEVICE Row row_of(const T* logits, int row, int stride, int n, const Settings& s, const u32* seen,
    float top) {
    bool has_penalty = s.repetition != 1.0f || s.frequency != 0.0f || s.presence != 0.0f;
    // Not infinite: 0 times that is NaN.
    float bins_per_logit = fminf(BINS_PER_E / s.temperature, 1e30f);
    return {logits,      (i64)row * stride, has_penalty ? seen + (i64)row * n : nullptr,
            s.repetition, s.frequency,      s.presence,
            top,          s.temperature,    bins_per_logit};
}
// The logit of an id after penalties, each operation rounded as on the CPU.
DEVICE float penalized(const Row& row, float l, int id) {
    if (!row.seen) return l;
    u32 seen = row.seen[id];
    if (seen && row.repetition != 1.0f)
        l = l > 0.0f ? l / row.repetition : __fmul_rn(l, row.repetition);
    if (seen > 1)
        l = __fsub_rn(l, __fadd_rn(__fmul_rn(row.frequency, (float)(seen / 2)), row.presence));
    return l;
}
// f(id, logit) for `length` ids of a row from `start` on, by the threads of this block, which load
// packs of N.
template <int N, int UNROLL, class F>
DEVICE void each_logit(const Row& row, int start, int length, const F& f) {
    if (length <= 0) return;
    // The first pack begins on 16 bytes: rows may start anywhere.
    i64 at = row.at + start;
    int head = (int)((LANES - at % LANES) % LANES);
    if (head > length) head = length;
    const T* p = row.logits + at;
    if ((int)threadIdx.x < head)
        f(start + (int)threadIdx.x,
            penalized(row, to_f32(p[threadIdx.x]), start + (int)threadIdx.x));
    auto step = [&](i64 i, auto pack) {
        int first = start + head + (int)i;
        for (int k = 0; k < pack.N_ELEMENTS; k++)
            f(first + k, penalized(row, to_f32(pack.v[k]), first + k));
    };
    elementwise_by<N, UNROLL>(threadIdx.x, blockDim.x, length - head, step, p + head);
}
// The same for the part of a row that is this block's.
template <int UNROLL, class F>
DEVICE void each_logit_of_part(const Row& row, int n, const F& f) {
    int part = (n - 1) / (int)gridDim.x + 1, start = (int)blockIdx.x * part;
    each_logit<LANES, UNROLL>(row, start, min(part, n - start), f);
}

DEVICE float weight_of(const Row& row, float l) {
    return expf(__fsub_rn(l, row.top) / row.temperature);
}
// NaN becomes 0.
DEVICE u64 to_units(float weight) { return weight >= 0.0f ? (u64)(weight * UNIT) : 0; }
// It never rises where the logit rises.
DEVICE int bin_of(const Row& row, float l) {
    return (int)fminf(__fmul_rn(__fsub_rn(row.top, l), row.bins_per_logit), (float)(BINS - 1));
}
// A number that rises along the order of candidates, and back. The bits of floats, with those of
// the negative ones inverted, rise with the float.
DEVICE u64 rank_of(float l, int id) {
    u32 bits = __float_as_uint(l);
    u32 rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)~rising << 32 | (u32)id;
}
DEVICE float logit_of(u64 rank) {
    u32 rising = ~(u32)(rank >> 32);
    return __uint_as_float(rising >> 31 ? rising & 0x7fffffffu : ~rising);
}
// Adds to a sum in two halves: shared memory adds no 64 bits at once.
DEVICE void add_in_halves(u32* low, u32* high, u64 x) {
    u32 x_low = (u32)x, before = atomicAdd(low, x_low);
    u32 x_high = (u32)(x >> 32) + (before + x_low < before ? 1u : 0u);
    if (x_high) atomicAdd(high, x_high);
}

// The best of the parts of a row, at most 64, the same for every thread; every warp looks for
// itself.
DEVICE Best best_of_parts(const Best* bests, int n_parts) {
    int lane = threadIdx.x % WARP;
    Best best = {-INFINITY, NO_INDEX};
    if (lane < n_parts) best = bests[lane];
    if (lane + WARP < n_parts)
        take_better(best, bests[lane + WARP].value, bests[lane + WARP].index);
#pragma unroll
    for (int other = 16; other > 0; other >>= 1) {
        float value = __shfl_xor_sync(FULL_MASK, best.value, other);
        int index = __shfl_xor_sync(FULL_MASK, best.index, other);
        take_better(best, value, index);
    }
    if (best.index == NO_INDEX) best.index = 0;
    return best;
}
