// Attention of few queries (Tq <= 8) over many keys, on ordinary arithmetic units, bound by the
// reading of keys and values. `attention.cuh` says what the tensors and masks are.
//
// A block computes the running softmax over a part of the keys, for up to RC of the query rows that
// share the key-value head. attention_decode_combine (decode.cu) puts the parts together, also
// those of flash_decode.cu.
//
// Each kernel is named by its width W and RC, and takes E <= W. Rows of whole packs are moved by 16
// bytes, which needs pointers and strides that are multiples of that.
#pragma once
#include "attention.cuh"

#define DECODE_THREADS 128
#define DECODE_WARPS (DECODE_THREADS / WARP)

// 16 bytes of a row of E elements, not yet taken apart, so that nothing waits for them; zeros if
// not valid or beyond E.
template <bool PACKED>
DEVICE uint4 load_part(const T* row, int e, int width, bool valid) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (PACKED) {
        if (valid && e < width) x = *(const uint4*)(row + e);
        return x;
    }
    T part[LANES];
#pragma unroll
    for (int j = 0; j < LANES; j++)
        part[j] = valid && e + j < width ? row[e + j] : from_f32<T>(0.0f);
#if LEHR_T == 0
    return make_uint4(__float_as_uint(part[0]), __float_as_uint(part[1]), __float_as_uint(part[2]),
        __float_as_uint(part[3]));
#else
    u32 two[4];
#pragma unroll
    for (int i = 0; i < 4; i++) two[i] = (u32)part[2 * i].bits | (u32)part[2 * i + 1].bits << 16;
    return make_uint4(two[0], two[1], two[2], two[3]);
#endif
}
DEVICE void take_apart(uint4 x, float y[LANES]) {
    const u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if LEHR_T == 0
        y[i] = __uint_as_float(words[i]);
#else
        y[2 * i] = to_f32(T{(u16)words[i]});
        y[2 * i + 1] = to_f32(T{(u16)(words[i] >> 16)});
#endif
    }
}

template <int W, int RC>
struct DecodeScratch {
    float sums[DECODE_WARPS][RC][W];
    float2 stats[DECODE_WARPS][RC];
};

// TEAM lanes share a key; each holds W / TEAM elements of it, in packs TEAM * LANES apart. A team
// takes U keys at once, and has a softmax of its own until the end.
template <int W, int TEAM, int RC, bool PACKED, class Place>
DEVICE void decode(DecodeScratch<W, RC>& scratch, const T* q, const T* k, const T* v,
    float* workspace, const Mask& mask, int q_stride, int k_stride, int v_stride, Place place,
    int n_heads, int n_kv_heads, int width, float scale, int n_splits) {
    const int N = W / TEAM, PACKS = N / LANES, TEAMS = WARP / TEAM, KEYS = DECODE_WARPS * TEAMS;
    // 256 bytes under way per thread, or half of that where the registers are full.
    const int U = (sizeof(T) == 2 && N * RC == 64 ? 64 : 128) / (N * (int)sizeof(T));

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, member = lane % TEAM,
        team = warp * TEAMS + lane / TEAM;
    int per_kv = n_heads / n_kv_heads, n_rows = per_kv * mask.tq, n_chunks = (n_rows + RC - 1) / RC;
    int split = blockIdx.x, kv_head = blockIdx.y / n_chunks, row0 = blockIdx.y % n_chunks * RC,
        b = blockIdx.z;

    const int2 part = part_of(mask, b, split, n_splits, KEYS);
    const int first = part.x, end = part.y;

    float qs[RC][N], acc[RC][N], row_max[RC], row_sum[RC];
    int2 seen[RC];
#pragma unroll
    for (int r = 0; r < RC; r++) {
        int row = row0 + r;
        const bool valid = row < n_rows;
        int i = valid ? row / per_kv : 0, head = kv_head * per_kv + (valid ? row % per_kv : 0);
        seen[r] = valid ? mask.interval(b, i) : make_int2(0, 0);
        const T* from = q + ((i64)b * mask.tq + i) * q_stride + (i64)head * width;
        row_max[r] = -INFINITY;
        row_sum[r] = 0.0f;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            float x[LANES];
            take_apart(load_part<PACKED>(from, (member + p * TEAM) * LANES, width, valid), x);
#pragma unroll
            for (int j = 0; j < LANES; j++) {
                qs[r][p * LANES + j] = x[j] * (scale * LOG2_E);
                acc[r][p * LANES + j] = 0.0f;
            }
        }
    }
    k += place.first(b) * k_stride + (i64)kv_head * width;
    v += place.first(b) * v_stride + (i64)kv_head * width;

    // All teams of a warp go through the loop equally often.
    for (int base = first; base < end; base += KEYS * U) {
        uint4 keys[U][PACKS], values[U][PACKS];
#pragma unroll
        for (int u = 0; u < U; u++) {
            int key = base + u * KEYS + team;
            const T* from = k + place.row(key, end) * k_stride;
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                keys[u][p] = load_part<PACKED>(from, (member + p * TEAM) * LANES, width, key < end);
            }
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
            int key = base + u * KEYS + team;
            const T* from = v + place.row(key, end) * v_stride;
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                values[u][p] = load_part<PACKED>(from, (member + p * TEAM) * LANES, width,
                    key < end);
            }
        }
        float s[U][RC];
#pragma unroll
        for (int u = 0; u < U; u++) {
            int key = base + u * KEYS + team;
#pragma unroll
            for (int r = 0; r < RC; r++) s[u][r] = 0.0f;
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                float x[LANES];
                take_apart(keys[u][p], x);
#pragma unroll
                for (int j = 0; j < LANES; j++) {
#pragma unroll
                    for (int r = 0; r < RC; r++) s[u][r] += qs[r][p * LANES + j] * x[j];
                }
            }
#pragma unroll
            for (int r = 0; r < RC; r++) {
#pragma unroll
                for (int other = TEAM / 2; other > 0; other >>= 1)
                    s[u][r] += __shfl_xor_sync(FULL_MASK, s[u][r], other);
                if (key < seen[r].x || key >= min(seen[r].y, end)) s[u][r] = -INFINITY;
            }
        }
#pragma unroll
        for (int r = 0; r < RC; r++) {
            float new_max = row_max[r];
#pragma unroll
            for (int u = 0; u < U; u++) new_max = fmaxf(new_max, s[u][r]);
            float safe_max = new_max == -INFINITY ? 0.0f : new_max,
                factor = exp2_t(row_max[r] - safe_max);
            row_max[r] = new_max;
            row_sum[r] *= factor;
#pragma unroll
            for (int e = 0; e < N; e++) acc[r][e] *= factor;
#pragma unroll
            for (int u = 0; u < U; u++) {
                s[u][r] = exp2_t(s[u][r] - safe_max);
                row_sum[r] += s[u][r];
            }
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                float x[LANES];
                take_apart(values[u][p], x);
#pragma unroll
                for (int j = 0; j < LANES; j++) {
#pragma unroll
                    for (int r = 0; r < RC; r++) acc[r][p * LANES + j] += s[u][r] * x[j];
                }
            }
        }
    }

    // The teams of a warp together, then the warps.
#pragma unroll
    for (int r = 0; r < RC; r++) {
#pragma unroll
        for (int other = TEAM; other < WARP; other <<= 1) {
            float other_max = __shfl_xor_sync(FULL_MASK, row_max[r], other);
            float other_sum = __shfl_xor_sync(FULL_MASK, row_sum[r], other);
            float new_max = fmaxf(row_max[r], other_max),
                safe_max = new_max == -INFINITY ? 0.0f : new_max;
            float mine = exp2_t(row_max[r] - safe_max), others = exp2_t(other_max - safe_max);
            row_max[r] = new_max;
            row_sum[r] = row_sum[r] * mine + other_sum * others;
#pragma unroll
            for (int e = 0; e < N; e++)
                acc[r][e] = acc[r][e] * mine
                    + __shfl_xor_sync(FULL_MASK, acc[r][e], other) * others;
        }
        if (lane < TEAM) {
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
#pragma unroll
                for (int j = 0; j < LANES; j++)
                    scratch.sums[warp][r][(member + p * TEAM) * LANES + j] = acc[r][p * LANES + j];
            }
            if (member == 0) scratch.stats[warp][r] = make_float2(row_max[r], row_sum[r]);
        }
    }
    __syncthreads();
    Workspace to(workspace, gridDim.z * n_kv_heads * n_rows, n_splits, width);
    for (int r = 0; r < RC && row0 + r < n_rows; r++) {
        float all_max = -INFINITY, sum = 0.0f, factor[DECODE_WARPS];
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) all_max = fmaxf(all_max, scratch.stats[w][r].x);
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            factor[w] = exp2_t(scratch.stats[w][r].x - (all_max == -INFINITY ? 0.0f : all_max));
            sum += scratch.stats[w][r].y * factor[w];
        }
        int row = (b * n_kv_heads + kv_head) * n_rows + row0 + r;
        for (int e = threadIdx.x; e < width; e += DECODE_THREADS) {
            float x = 0.0f;
#pragma unroll
            for (int w = 0; w < DECODE_WARPS; w++) x += scratch.sums[w][r][e] * factor[w];
            to.sums_of(row, split)[e] = x;
        }
        if (threadIdx.x == 0) *(float2*)to.stats_of(row, split) = make_float2(all_max, sum);
    }
}

// The body of a kernel whose keys and values lie as PLACE says.
#define DECODE_BY(W, TEAM, RC, PLACE) \
    __shared__ DecodeScratch<W, RC> scratch; \
    if (is_packed(width) && is_packed(q_stride) && is_packed(k_stride) && is_packed(v_stride)) { \
        decode<W, TEAM, RC, true>(scratch, q, k, v, workspace, mask, q_stride, k_stride, v_stride, \
            PLACE, n_heads, n_kv_heads, width, scale, n_splits); \
    } else { \
        decode<W, TEAM, RC, false>(scratch, q, k, v, workspace, mask, q_stride, k_stride, \
            v_stride, PLACE, n_heads, n_kv_heads, width, scale, n_splits); \
    }
