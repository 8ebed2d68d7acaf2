// What all kernels of attention share: masks, and where the parts of decoding go.
//
//   q [B, Tq, H, E]   k, v [B, Tk, K, E]   out, dout [B, Tq, H, E]   lse [B, H, Tq]
//   stats [B, H, Tq, 2]
//
// H / K consecutive query heads share a key-value head. Of q, k, v and their gradients a pointer to
// the first head of the first token is given and the number of elements from token to token, so
// that they may lie packed in one buffer; head h starts at h * E.
//
// What a query sees is an interval [lo, hi) of keys, from `intervals` [B, Tq, 2] if that is not
// null, otherwise from `causal`, `window` (0 = none) and `n_keys`: query i stands at key p = i +
// n_keys - Tq. n_keys <= Tk is always given; keys from n_keys on are never read. An empty interval
// gives output 0 and lse -inf. All sums have a fixed order.
//
// Backward, with p = exp(score - lse) and delta = sum_e dout * out:
//   ds = p (dout v^T - delta),  dq = scale ds k,  dk = scale ds^T q,  dv = p^T dout.
// The derivative of the softmax needs sum_j p_j (dout . v_j). That is delta, because sum_j p_j v_j
// is out; so it is known before any key is read. `stats` holds lse in base 2 and delta per query
// and head.
#pragma once
#include "common.cuh"

#define INT_MAX 0x7fffffff
#define LOG2_E 1.4426950408889634f

// 2^x, precise if T is.
DEVICE float exp2_t(float x) {
#if LEHR_T == 0 || defined(LEHR_EMULATED)
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// ---- Masks ----

struct Mask {
    const int* intervals;
    // Without intervals: the query at key p sees keys from p - below to p + above, both counted;
    // "none" is beyond every key.
    int below, above, n_keys, tq;

    DEVICE Mask(const int* intervals, int causal, int window, int n_keys, int tq)
        : intervals(intervals), n_keys(n_keys), tq(tq) {
        const int ALL = 1 << 30;
        below = window > 0 ? min(window - 1, ALL) : ALL;
        above = causal ? 0 : below;
    }
    // The keys [x, y) that query i of row b sees; y <= x if none.
    DEVICE int2 interval(int b, int i) const {
        if (intervals) {
            int2 seen = *(const int2*)(intervals + 2 * ((i64)b * tq + i));
            return make_int2(seen.x, min(seen.y, n_keys));
        }
        int p = i + n_keys - tq;
        // As differences, because p + above may overflow.
        return make_int2(max(0, p - below), above < n_keys - p ? p + above + 1 : n_keys);
    }
};

// What several queries see: some of them keys in [reach_lo, reach_hi), all of them every key of
// [full_lo, full_hi).
struct Bounds {
    int reach_lo, reach_hi, full_lo, full_hi;

    DEVICE bool reaches(int first, int n) const { return reach_lo < first + n && first < reach_hi; }
    DEVICE bool is_full(int first, int n) const { return full_lo <= first && first + n <= full_hi; }
};

DEVICE Bounds bounds_of(int2 seen) {
    if (seen.x < seen.y) return Bounds{seen.x, seen.y, seen.x, seen.y};
    return Bounds{INT_MAX, 0, INT_MAX, 0};
}
// Of no query at all.
DEVICE Bounds no_bounds() { return Bounds{INT_MAX, 0, 0, INT_MAX}; }
DEVICE Bounds joined(Bounds a, Bounds b) {
    return Bounds{min(a.reach_lo, b.reach_lo), max(a.reach_hi, b.reach_hi),
        max(a.full_lo, b.full_lo), min(a.full_hi, b.full_hi)};
}
DEVICE Bounds warp_joined(Bounds a) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) {
        Bounds b;
        b.reach_lo = __shfl_xor_sync(FULL_MASK, a.reach_lo, lane);
        b.reach_hi = __shfl_xor_sync(FULL_MASK, a.reach_hi, lane);
        b.full_lo = __shfl_xor_sync(FULL_MASK, a.full_lo, lane);
        b.full_hi = __shfl_xor_sync(FULL_MASK, a.full_hi, lane);
        a = joined(a, b);
    }
    return a;
}
// The bounds of queries q0 to q0 + n of row b, by one warp.
DEVICE Bounds warp_bounds(const Mask& mask, int b, int q0, int n) {
    Bounds bounds = no_bounds();
    for (int i = threadIdx.x % WARP; i < n && q0 + i < mask.tq; i += WARP)
        bounds = joined(bounds, bounds_of(mask.interval(b, q0 + i)));
    return warp_joined(bounds);
}

// The bounds of queries q0 to q0 + n of row b, from `tile_bounds` [B, ceil(Tq / n), 4]
// (attention_tile_bounds writes it) if intervals are given. Computed ones grow with the query, so
// the first and the last query decide.
DEVICE Bounds tile_bounds_of(const Mask& mask, const int* tile_bounds, int b, int q0, int n) {
    if (mask.intervals) {
        int n_tiles = (mask.tq + n - 1) / n;
        int4 found = *(const int4*)(tile_bounds + 4 * ((i64)b * n_tiles + q0 / n));
        return Bounds{found.x, found.y, found.z, found.w};
    }
    int2 first = mask.interval(b, q0), last = mask.interval(b, min(q0 + n, mask.tq) - 1);
    return Bounds{first.x, last.y, last.x, first.y};
}

// ---- Decoding ----
//
// The keys that a few queries see are cut into `n_splits` parts, which blocks take;
// attention_decode_combine puts them together. The H / K * Tq query rows that share a key-value
// head are counted so: row r is query r / (H / K) of head kv_head * H / K + r % (H / K).

// The keys [x, y) of part `split` of those that the queries of row b see. Parts are of equal
// length, a multiple of n; the last are shorter.
DEVICE int2 part_of(const Mask& mask, int b, int split, int n_splits, int n) {
    int lo = INT_MAX, hi = 0;
    for (int i = 0; i < mask.tq; i++) {
        int2 seen = mask.interval(b, i);
        if (seen.x < seen.y) {
            lo = min(lo, seen.x);
            hi = max(hi, seen.y);
        }
    }
    int n_seen = max(hi - lo, 0), part = ((n_seen + n_splits - 1) / n_splits + n - 1) / n * n;
    if (n_seen == 0) return make_int2(0, 0);
    int first = lo + min(split * part, n_seen);
    return make_int2(first, min(first + part, hi));
}

// Where the keys and values of text b lie: `tk` rows behind those of the text before, ...
struct InOrder {
    int tk;

    DEVICE i64 first(int b) const { return (i64)b * tk; }
    // Row `key` from there on; keys from `end` on are not read.
    DEVICE i64 row(int key, int) const { return key; }
};
// ... or in pages of 2^shift rows of a pool that all texts share: `table` [B, max_pages] has the
// numbers of each text's pages in order.
struct InPages {
    const int* table;
    int shift;

    DEVICE InPages(const int* table, int max_pages, int shift)
        : table(table + (i64)blockIdx.z * max_pages), shift(shift) {}
    DEVICE i64 first(int) const { return 0; }
    // Beyond `end` the table may hold anything.
    DEVICE i64 row(int key, int end) const {
        int page = key < end ? table[key >> shift] : 0;
        return ((i64)page << shift) + (key & ((1 << shift) - 1));
    }
};

// Where the part of a row lies in the workspace of B * H * Tq * n_splits * (E + 2) floats: first
// pairs of maximum (in base 2) and sum of weights, then the weighted sums of values. Rows are
// counted as [B, K, H / K * Tq].
struct Workspace {
    float* stats;
    float* sums;
    int n_splits, width;

    DEVICE Workspace(float* workspace, int n_rows, int n_splits, int width)
        : stats(workspace), n_splits(n_splits), width(width) {
        sums = workspace + 2 * (i64)n_rows * n_splits;
    }
    DEVICE float* sums_of(int row, int split) const {
        return sums + ((i64)row * n_splits + split) * width;
    }
    DEVICE float* stats_of(int row, int split) const {
        return stats + 2 * ((i64)row * n_splits + split);
    }
};
