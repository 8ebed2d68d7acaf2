// Attention on ordinary arithmetic units: every T and every width up to 256, forward, backward and decoding. For f32 it is the only way;
// flash.cu has tensor cores for the others.
//
//   q [B, Tq, H, E]   k, v [B, Tk, K, E]   out, dout [B, Tq, H, E]   lse [B, H, Tq]   stats [B, H, Tq, 2]
//
// H / K consecutive query heads share a key-value head. Of q, k, v and their gradients a pointer to the first head of the first token
// is given and the number of elements from token to token, so that they may lie packed in one buffer; head h starts at h * E. Rows of
// whole packs are moved by 16 bytes, which needs pointers and strides that are multiples of that.
//
// What a query sees is an interval [lo, hi) of keys, from `intervals` [B, Tq, 2] if that is not null, otherwise from `causal`, `window`
// (0 = none) and `n_keys`: query i stands at key p = i + n_keys - Tq. n_keys <= Tk is always given; keys from n_keys on are never read.
// An empty interval gives output 0 and lse -inf.
//
// A kernel exists for widths W = 32, 64, 128 and 256 (decoding: from 64); it takes E <= W and pads with zeros. All sums have a fixed
// order.
#include "common.cuh"

#define INT_MAX 0x7fffffff
#define LOG2_E 1.4426950408889634f

// ---- Masks ----

struct Mask {
    const int* intervals;
    // Without intervals: the query at key p sees keys from p - below to p + above, both counted; "none" is beyond every key.
    int below, above, n_keys, tq;

    DEVICE Mask(const int* intervals, int causal, int window, int n_keys, int tq) : intervals(intervals), n_keys(n_keys), tq(tq) {
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

// What several queries see: some of them keys in [reach_lo, reach_hi), all of them every key of [full_lo, full_hi).
struct Bounds {
    int reach_lo, reach_hi, full_lo, full_hi;

    DEVICE bool reaches(int first, int n) const { return reach_lo < first + n && first < reach_hi; }
};

DEVICE Bounds bounds_of(int2 seen) {
    if (seen.x < seen.y) return Bounds{seen.x, seen.y, seen.x, seen.y};
    return Bounds{INT_MAX, 0, INT_MAX, 0};
}
// Of no query at all.
DEVICE Bounds no_bounds() { return Bounds{INT_MAX, 0, 0, INT_MAX}; }
DEVICE Bounds joined(Bounds a, Bounds b) {
    return Bounds{min(a.reach_lo, b.reach_lo), max(a.reach_hi, b.reach_hi), max(a.full_lo, b.full_lo), min(a.full_hi, b.full_hi)};
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
    for (int i = threadIdx.x % WARP; i < n && q0 + i < mask.tq; i += WARP) bounds = joined(bounds, bounds_of(mask.interval(b, q0 + i)));
    return warp_joined(bounds);
}

// bounds [B, ceil(Tq / n), 4]: what each tile of n queries sees, for backward over keys with `intervals` given: two numbers around all
// keys that some query sees, two around those that all see.
//
// Grid (ceil(Tq / n), B), 32 threads.
extern "C" __global__ void attention_tile_bounds(const int* intervals, int* bounds, int tq, int n_keys, int n) {
    int tile = blockIdx.x, b = blockIdx.y;
    Bounds found = warp_bounds(Mask(intervals, 0, 0, n_keys, tq), b, tile * n, n);
    int4* to = (int4*)(bounds + 4 * ((i64)b * gridDim.x + tile));
    if (threadIdx.x == 0) *to = make_int4(found.reach_lo, found.reach_hi, found.full_lo, found.full_hi);
}

// As written by that, or computed without intervals: both ends then grow with the query, so the first and the last decide.
DEVICE Bounds tile_bounds_of(const Mask& mask, const int* tile_bounds, int b, int q0, int n) {
    if (mask.intervals) {
        int n_tiles = (mask.tq + n - 1) / n;
        int4 found = *(const int4*)(tile_bounds + 4 * ((i64)b * n_tiles + q0 / n));
        return Bounds{found.x, found.y, found.z, found.w};
    }
    int2 first = mask.interval(b, q0), last = mask.interval(b, min(q0 + n, mask.tq) - 1);
    return Bounds{first.x, last.y, last.x, first.y};
}

// ---- Preparation of backward ----

// stats[b, h, i] = (lse[b, h, i] in base 2, delta = sum_e out[b, i, h, e] * dout[b, i, h, e]); lse of a query that sees nothing becomes
// +inf, so that exp2(score - lse) is 0. n_rows = B * Tq * H. Eight threads per row.
//
// Any grid (about n_rows / 32 blocks), 256 threads.
extern "C" __global__ void __launch_bounds__(256)
    attention_stats(const T* out, const T* dout, const float* lse, float* stats, int n_rows, int tq, int n_heads, int width) {
    const int TEAM = 8;
    int member = threadIdx.x % TEAM;
    const bool packed = is_packed(width);
    // All threads of a warp go through the loop equally often, because they exchange sums.
    for (i64 first = thread_index() / WARP * (WARP / TEAM); first < n_rows; first += n_threads() / TEAM) {
        i64 row = first + threadIdx.x % WARP / TEAM;
        float delta = 0.0f;
        if (row < n_rows) {
            const T* x = out + row * width;
            const T* y = dout + row * width;
            if (packed) {
#pragma unroll 2
                for (int e = member * LANES; e < width; e += TEAM * LANES) {
                    PackT a = load_pack<T, LANES>(x + e), b = load_pack<T, LANES>(y + e);
#pragma unroll
                    for (int i = 0; i < LANES; i++) delta += to_f32(a.v[i]) * to_f32(b.v[i]);
                }
            } else {
                for (int e = member; e < width; e += TEAM) delta += to_f32(x[e]) * to_f32(y[e]);
            }
        }
#pragma unroll
        for (int other = TEAM / 2; other > 0; other >>= 1) delta += __shfl_xor_sync(FULL_MASK, delta, other);
        if (row < n_rows && member == 0) {
            int head = (u32)row % (u32)n_heads, token = (u32)row / (u32)n_heads;
            i64 at = ((i64)(token / tq) * n_heads + head) * tq + token % tq;
            float x = lse[at];
            *(float2*)(stats + 2 * at) = make_float2(x == -INFINITY ? INFINITY : x * LOG2_E, delta);
        }
    }
}

// ---- Tiles ----
//
// A block is 16 x 16 threads and works on tiles of 16 * R rows, which lie in shared memory as floats. In a product of two tiles over
// the width, thread (ty, tx) has rows ty * R + r of the first and rows tx + 16 * c of the second; those of one ty are half a warp.

#define SIDE 16
#define BLOCK_THREADS (SIDE * SIDE)

// Floats from row to row: the four more let 8 threads read 16 bytes each of 8 rows without bank conflicts.
template <int W>
DEVICE constexpr int row_stride() { return W + 4; }

// The first n rows of E elements into a tile of ROWS x W; the rest is zeros.
template <int W, int ROWS>
DEVICE void load_rows(float* tile, const T* from, int stride, int n, int width) {
    const int S = row_stride<W>();
    if (is_packed(width) && is_packed(stride)) {
        const int PACKS = W / LANES;
        for (int i = threadIdx.x; i < ROWS * PACKS; i += BLOCK_THREADS) {
            int row = i / PACKS, e = i % PACKS * LANES;
            PackT x;
            if (row < n && e < width) {
                x = load_pack<T, LANES>(from + (i64)row * stride + e);
            } else {
#pragma unroll
                for (int j = 0; j < LANES; j++) x.v[j] = from_f32<T>(0.0f);
            }
#pragma unroll
            for (int j = 0; j < LANES; j += 4) {
                float4* to = (float4*)(tile + row * S + e + j);
                *to = make_float4(to_f32(x.v[j]), to_f32(x.v[j + 1]), to_f32(x.v[j + 2]), to_f32(x.v[j + 3]));
            }
        }
    } else {
        for (int i = threadIdx.x; i < ROWS * W; i += BLOCK_THREADS) {
            int row = i / W, e = i % W;
            tile[row * S + e] = row < n && e < width ? to_f32(from[(i64)row * stride + e]) : 0.0f;
        }
    }
}

// s[r][c] = the product over the width of the thread's rows of a and b.
template <int W, int R>
DEVICE void product_by_width(float s[R][R], const float* a, const float* b, int width) {
    const int S = row_stride<W>();
    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    a += ty * R * S;
    b += tx * S;
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int c = 0; c < R; c++) s[r][c] = 0.0f;
    }
#pragma unroll 1
    for (int e = 0; e < width; e += 4) {
        float4 x[R], y[R];
#pragma unroll
        for (int r = 0; r < R; r++) x[r] = *(const float4*)(a + r * S + e);
#pragma unroll
        for (int c = 0; c < R; c++) y[c] = *(const float4*)(b + c * SIDE * S + e);
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int c = 0; c < R; c++) s[r][c] += x[r].x * y[c].x + x[r].y * y[c].y + x[r].z * y[c].z + x[r].w * y[c].w;
        }
    }
}

// The columns of a thread in a result of W columns: V neighbours from tx * V, then 16 * V further on, and so on.
template <int W>
struct Columns {
    static const int N = W / SIDE, V = N < 4 ? N : 4;
};

// s, the thread's part of a tile of 16 R x 16 R, to shared memory. Only the half warp of the same rows reads it, after __syncwarp().
template <int R>
DEVICE void store_part(float* tile, const float s[R][R]) {
    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int c = 0; c < R; c++) tile[(ty * R + r) * row_stride<SIDE * R>() + tx + SIDE * c] = s[r][c];
    }
}

// acc += P B, with the tile P of store_part() and 16 R rows of B.
template <int W, int R>
DEVICE void product_by_rows(float acc[R][Columns<W>::N], const float* p, const float* b) {
    const int S = row_stride<W>(), P = row_stride<SIDE * R>(), V = Columns<W>::V, GROUPS = Columns<W>::N / V;
    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    p += ty * R * P;
    b += tx * V;
#pragma unroll 2
    for (int j = 0; j < SIDE * R; j += 4) {
        float x[R][4];
#pragma unroll
        for (int r = 0; r < R; r++) {
            float4 four = *(const float4*)(p + r * P + j);
            x[r][0] = four.x, x[r][1] = four.y, x[r][2] = four.z, x[r][3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                Pack<float, V> y = load_pack<float, V>(b + (j + i) * S + g * SIDE * V);
#pragma unroll
                for (int r = 0; r < R; r++) {
#pragma unroll
                    for (int e = 0; e < V; e++) acc[r][g * V + e] += x[r][i] * y.v[e];
                }
            }
        }
    }
}

// The thread's rows of acc, row r times factor[r], to `n` rows of E elements, or added to them.
template <int W, int R>
DEVICE void write_rows(const float acc[R][Columns<W>::N], const float factor[R], T* to, int stride, int n, int width, int accumulate) {
    const int V = Columns<W>::V, GROUPS = Columns<W>::N / V;
    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    const bool whole = width % V == 0 && stride % V == 0;
#pragma unroll
    for (int r = 0; r < R; r++) {
        int row = ty * R + r;
        if (row >= n) continue;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            int e = tx * V + g * SIDE * V;
            T* at = to + (i64)row * stride + e;
            if (whole && e < width) {
                Pack<T, V> x;
                if (accumulate) x = load_pack<T, V>(at);
#pragma unroll
                for (int j = 0; j < V; j++) x.v[j] = from_f32<T>(acc[r][g * V + j] * factor[r] + (accumulate ? to_f32(x.v[j]) : 0.0f));
                store_pack(at, x);
            } else {
#pragma unroll
                for (int j = 0; j < V; j++) {
                    if (e + j < width) at[j] = from_f32<T>(acc[r][g * V + j] * factor[r] + (accumulate ? to_f32(at[j]) : 0.0f));
                }
            }
        }
    }
}

template <int R, int N>
DEVICE void clear(float c[R][N]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int n = 0; n < N; n++) c[r][n] = 0.0f;
    }
}

// The intervals of the block's queries into `rows`, empty ones and those beyond Tq as [0, 0), and their bounds into `all`. Barriers
// are the caller's.
template <int ROWS>
DEVICE void find_rows(const Mask& mask, int b, int q0, int2* rows, Bounds* all) {
    for (int i = threadIdx.x; i < ROWS; i += BLOCK_THREADS) {
        int2 seen = q0 + i < mask.tq ? mask.interval(b, q0 + i) : make_int2(0, 0);
        rows[i] = seen.x < seen.y ? seen : make_int2(0, 0);
    }
    if (threadIdx.x < WARP) {
        Bounds bounds = warp_bounds(mask, b, q0, ROWS);
        if (threadIdx.x == 0) *all = bounds;
    }
}

// e^x, precise if T is.
DEVICE float exp_t(float x) {
#if LEHR_T == 0
    return expf(x);
#else
    return __expf(x);
#endif
}
DEVICE float half_warp_max(float x) {
#pragma unroll
    for (int lane = SIDE / 2; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, lane));
    return x;
}
DEVICE float half_warp_sum(float x) {
#pragma unroll
    for (int lane = SIDE / 2; lane > 0; lane >>= 1) x += __shfl_xor_sync(FULL_MASK, x, lane);
    return x;
}

// ---- Forward ----

template <int W, int R>
DEVICE void forward(const T* q, const T* k, const T* v, T* out, float* lse, const Mask& mask, int q_stride, int k_stride, int v_stride,
                    int tk, int n_heads, int n_kv_heads, int width, float scale) {
    const int ROWS = SIDE * R;
    DYNAMIC_SHARED(float, q_tile);
    // First the keys, then the values.
    float* kv_tile = q_tile + ROWS * row_stride<W>();
    float* p_tile = kv_tile + ROWS * row_stride<W>();
    int2* rows = (int2*)(p_tile + ROWS * row_stride<ROWS>());
    Bounds* scratch = (Bounds*)(rows + ROWS);

    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    // Heads that share keys are neighbours in the grid. The last queries come first: if the mask is causal, they have the most to do.
    int per_kv = n_heads / n_kv_heads, n_tiles = gridDim.x / per_kv, tq = mask.tq;
    int kv_head = blockIdx.y, head = kv_head * per_kv + blockIdx.x % per_kv, b = blockIdx.z;
    int q0 = (n_tiles - 1 - blockIdx.x / per_kv) * ROWS;
    i64 first_token = (i64)b * tq + q0;
    load_rows<W, ROWS>(q_tile, q + first_token * q_stride + (i64)head * width, q_stride, tq - q0, width);
    find_rows<ROWS>(mask, b, q0, rows, scratch);
    __syncthreads();
    const Bounds all = *scratch;
    k += (i64)b * tk * k_stride + (i64)kv_head * width;
    v += (i64)b * tk * v_stride + (i64)kv_head * width;

    float acc[R][Columns<W>::N], row_max[R], row_sum[R];
    clear<R, Columns<W>::N>(acc);
#pragma unroll
    for (int r = 0; r < R; r++) {
        row_max[r] = -INFINITY;
        row_sum[r] = 0.0f;
    }
    for (int key = all.reach_lo; key < all.reach_hi; key += ROWS) {
        __syncthreads();
        load_rows<W, ROWS>(kv_tile, k + (i64)key * k_stride, k_stride, mask.n_keys - key, width);
        __syncthreads();
        float s[R][R];
        product_by_width<W, R>(s, q_tile, kv_tile, width);
#pragma unroll
        for (int r = 0; r < R; r++) {
            int2 seen = rows[ty * R + r];
            float old_max = row_max[r], x = -INFINITY;
#pragma unroll
            for (int c = 0; c < R; c++) {
                int at = key + tx + SIDE * c;
                s[r][c] = seen.x <= at && at < seen.y ? s[r][c] * scale : -INFINITY;
                x = fmaxf(x, s[r][c]);
            }
            row_max[r] = fmaxf(old_max, half_warp_max(x));
            // A row that has seen nothing yet must not compute inf - inf.
            float safe_max = row_max[r] == -INFINITY ? 0.0f : row_max[r];
            float factor = exp_t(old_max - safe_max);
            row_sum[r] *= factor;
#pragma unroll
            for (int c = 0; c < R; c++) {
                s[r][c] = exp_t(s[r][c] - safe_max);
                row_sum[r] += s[r][c];
            }
#pragma unroll
            for (int e = 0; e < Columns<W>::N; e++) acc[r][e] *= factor;
        }
        store_part<R>(p_tile, s);
        // All have read the keys.
        __syncthreads();
        load_rows<W, ROWS>(kv_tile, v + (i64)key * v_stride, v_stride, mask.n_keys - key, width);
        __syncthreads();
        product_by_rows<W, R>(acc, p_tile, kv_tile);
    }

    float factor[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        float sum = half_warp_sum(row_sum[r]);
        int row = ty * R + r;
        bool sees_some = rows[row].y > 0;
        factor[r] = sees_some ? 1.0f / sum : 0.0f;
        if (lse && tx == 0 && q0 + row < tq) {
            lse[((i64)b * n_heads + head) * tq + q0 + row] = sees_some ? row_max[r] + logf(sum) : -INFINITY;
        }
    }
    write_rows<W, R>(acc, factor, out + (first_token * n_heads + head) * width, n_heads * width, tq - q0, width, 0);
}

// out = softmax(scale * q k^T + mask) v and, if lse is not null, lse = ln(sum of exp(score)).
//
// Grid (ceil(Tq / ROWS) * H / K, K, B), 256 threads. ROWS, dynamic shared memory:
//   W   32: 64, 36368 bytes    64: 64, 52752    128: 64, 85520    256: 32, 71440
#define ATTENTION_FORWARD(W, R)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) attention_forward_##W(                                              \
        const T* q, const T* k, const T* v, T* out, float* lse, const int* intervals, int q_stride, int k_stride, int v_stride, int tq, \
        int tk, int n_heads, int n_kv_heads, int width, int causal, int window, int n_keys, float scale) {                             \
        forward<W, R>(q, k, v, out, lse, Mask(intervals, causal, window, n_keys, tq), q_stride, k_stride, v_stride, tk, n_heads,       \
                      n_kv_heads, width, scale);                                                                                       \
    }
ATTENTION_FORWARD(32, 4)
ATTENTION_FORWARD(64, 4)
ATTENTION_FORWARD(128, 4)
ATTENTION_FORWARD(256, 2)

// ---- Backward ----
//
// With p = exp(score - lse) and delta = sum_e dout * out:  ds = p (dout v^T - delta),  dq = scale ds k,  dk = scale ds^T q,
// dv = p^T dout.

template <int W, int R>
DEVICE void backward_q(const T* q, const T* k, const T* v, const T* dout, const float* stats, T* dq, const Mask& mask, int q_stride,
                       int k_stride, int v_stride, int dq_stride, int tk, int n_heads, int n_kv_heads, int width, float scale,
                       int accumulate) {
    const int ROWS = SIDE * R, TILE = ROWS * row_stride<W>();
    DYNAMIC_SHARED(float, q_tile);
    float* dout_tile = q_tile + TILE;
    float* k_tile = dout_tile + TILE;
    float* v_tile = k_tile + TILE;
    float* p_tile = v_tile + TILE;
    int2* rows = (int2*)(p_tile + ROWS * row_stride<ROWS>());
    Bounds* scratch = (Bounds*)(rows + ROWS);

    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    int per_kv = n_heads / n_kv_heads, n_tiles = gridDim.x / per_kv, tq = mask.tq;
    int kv_head = blockIdx.y, head = kv_head * per_kv + blockIdx.x % per_kv, b = blockIdx.z;
    int q0 = (n_tiles - 1 - blockIdx.x / per_kv) * ROWS;
    i64 first_token = (i64)b * tq + q0;
    load_rows<W, ROWS>(q_tile, q + first_token * q_stride + (i64)head * width, q_stride, tq - q0, width);
    load_rows<W, ROWS>(dout_tile, dout + (first_token * n_heads + head) * width, n_heads * width, tq - q0, width);
    find_rows<ROWS>(mask, b, q0, rows, scratch);
    __syncthreads();
    const Bounds all = *scratch;
    k += (i64)b * tk * k_stride + (i64)kv_head * width;
    v += (i64)b * tk * v_stride + (i64)kv_head * width;

    float acc[R][Columns<W>::N];
    clear<R, Columns<W>::N>(acc);
    float2 stat[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        int i = q0 + ty * R + r;
        stat[r] = make_float2(0.0f, 0.0f);
        if (i < tq) stat[r] = *(const float2*)(stats + 2 * (((i64)b * n_heads + head) * tq + i));
    }
    const float scale_log2 = scale * LOG2_E;
    for (int key = all.reach_lo; key < all.reach_hi; key += ROWS) {
        __syncthreads();
        load_rows<W, ROWS>(k_tile, k + (i64)key * k_stride, k_stride, mask.n_keys - key, width);
        load_rows<W, ROWS>(v_tile, v + (i64)key * v_stride, v_stride, mask.n_keys - key, width);
        __syncthreads();
        float s[R][R], dp[R][R];
        product_by_width<W, R>(s, q_tile, k_tile, width);
        product_by_width<W, R>(dp, dout_tile, v_tile, width);
#pragma unroll
        for (int r = 0; r < R; r++) {
            int2 seen = rows[ty * R + r];
#pragma unroll
            for (int c = 0; c < R; c++) {
                int at = key + tx + SIDE * c;
                float ds = exp2f(s[r][c] * scale_log2 - stat[r].x) * (dp[r][c] - stat[r].y);
                s[r][c] = seen.x <= at && at < seen.y ? ds : 0.0f;
            }
        }
        store_part<R>(p_tile, s);
        __syncwarp();
        product_by_rows<W, R>(acc, p_tile, k_tile);
    }
    float factor[R];
#pragma unroll
    for (int r = 0; r < R; r++) factor[r] = scale;
    write_rows<W, R>(acc, factor, dq + first_token * dq_stride + (i64)head * width, dq_stride, tq - q0, width, accumulate);
}

// dq [B, Tq, H, E], overwritten or, with `accumulate`, added to.
//
// Grid (ceil(Tq / ROWS) * H / K, K, B), 256 threads. ROWS, dynamic shared memory:
//   W   32: 64, 54800 bytes    64: 64, 87568    128: 32, 72464    256: 16, 67984
#define ATTENTION_BACKWARD_Q(W, R)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) attention_backward_q_##W(                                          \
        const T* q, const T* k, const T* v, const T* dout, const float* stats, const int* intervals, T* dq, int q_stride,             \
        int k_stride, int v_stride, int dq_stride, int tq, int tk, int n_heads, int n_kv_heads, int width, int causal, int window,    \
        int n_keys, float scale, int accumulate) {                                                                                    \
        backward_q<W, R>(q, k, v, dout, stats, dq, Mask(intervals, causal, window, n_keys, tq), q_stride, k_stride, v_stride,         \
                         dq_stride, tk, n_heads, n_kv_heads, width, scale, accumulate);                                               \
    }
ATTENTION_BACKWARD_Q(32, 4)
ATTENTION_BACKWARD_Q(64, 4)
ATTENTION_BACKWARD_Q(128, 2)
ATTENTION_BACKWARD_Q(256, 1)

template <int W, int R>
DEVICE void backward_kv(const T* q, const T* k, const T* v, const T* dout, const float* stats, const int* tile_bounds, T* dk, T* dv,
                        const Mask& mask, int q_stride, int k_stride, int v_stride, int dk_stride, int dv_stride, int tk, int n_heads,
                        int n_kv_heads, int width, float scale, int accumulate) {
    const int ROWS = SIDE * R, TILE = ROWS * row_stride<W>();
    DYNAMIC_SHARED(float, k_tile);
    float* v_tile = k_tile + TILE;
    float* q_tile = v_tile + TILE;
    float* dout_tile = q_tile + TILE;
    // p, then ds; keys by queries.
    float* p_tile = dout_tile + TILE;
    int2* columns = (int2*)(p_tile + ROWS * row_stride<ROWS>());
    float2* column_stats = (float2*)(columns + ROWS);

    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    int per_kv = n_heads / n_kv_heads, kv_head = blockIdx.y, b = blockIdx.z, tq = mask.tq;
    int k0 = blockIdx.x * ROWS;
    i64 first_token = (i64)b * tk + k0;
    load_rows<W, ROWS>(k_tile, k + first_token * k_stride + (i64)kv_head * width, k_stride, mask.n_keys - k0, width);
    load_rows<W, ROWS>(v_tile, v + first_token * v_stride + (i64)kv_head * width, v_stride, mask.n_keys - k0, width);

    float dk_acc[R][Columns<W>::N], dv_acc[R][Columns<W>::N];
    clear<R, Columns<W>::N>(dk_acc);
    clear<R, Columns<W>::N>(dv_acc);
    const float scale_log2 = scale * LOG2_E;
    for (int head = kv_head * per_kv; head < (kv_head + 1) * per_kv; head++) {
        for (int q0 = 0; q0 < tq; q0 += ROWS) {
            if (!tile_bounds_of(mask, tile_bounds, b, q0, ROWS).reaches(k0, ROWS)) continue;
            __syncthreads();
            i64 token = (i64)b * tq + q0;
            load_rows<W, ROWS>(q_tile, q + token * q_stride + (i64)head * width, q_stride, tq - q0, width);
            load_rows<W, ROWS>(dout_tile, dout + (token * n_heads + head) * width, n_heads * width, tq - q0, width);
            for (int i = threadIdx.x; i < ROWS; i += BLOCK_THREADS) {
                bool valid = q0 + i < tq;
                columns[i] = valid ? mask.interval(b, q0 + i) : make_int2(0, 0);
                float2 stat = make_float2(0.0f, 0.0f);
                if (valid) stat = *(const float2*)(stats + 2 * (((i64)b * n_heads + head) * tq + q0 + i));
                column_stats[i] = stat;
            }
            __syncthreads();
            float s[R][R], dp[R][R];
            product_by_width<W, R>(s, k_tile, q_tile, width);
            product_by_width<W, R>(dp, v_tile, dout_tile, width);
#pragma unroll
            for (int c = 0; c < R; c++) {
                int2 seen = columns[tx + SIDE * c];
                float2 stat = column_stats[tx + SIDE * c];
#pragma unroll
                for (int r = 0; r < R; r++) {
                    int at = k0 + ty * R + r;
                    bool sees = seen.x <= at && at < seen.y;
                    s[r][c] = sees ? exp2f(s[r][c] * scale_log2 - stat.x) : 0.0f;
                    dp[r][c] = sees ? s[r][c] * (dp[r][c] - stat.y) : 0.0f;
                }
            }
            store_part<R>(p_tile, s);
            __syncwarp();
            product_by_rows<W, R>(dv_acc, p_tile, dout_tile);
            __syncwarp();
            store_part<R>(p_tile, dp);
            __syncwarp();
            product_by_rows<W, R>(dk_acc, p_tile, q_tile);
        }
    }
    float factor[R];
    if (dk) {
#pragma unroll
        for (int r = 0; r < R; r++) factor[r] = scale;
        write_rows<W, R>(dk_acc, factor, dk + first_token * dk_stride + (i64)kv_head * width, dk_stride, tk - k0, width, accumulate);
    }
    if (dv) {
#pragma unroll
        for (int r = 0; r < R; r++) factor[r] = 1.0f;
        write_rows<W, R>(dv_acc, factor, dv + first_token * dv_stride + (i64)kv_head * width, dv_stride, tk - k0, width, accumulate);
    }
}

// dk and dv [B, Tk, K, E] (each may be null), all Tk keys: 0 for those that nobody sees. Overwritten or, with `accumulate`, added to.
// `tile_bounds` for tiles of ROWS queries is needed only if intervals are given.
//
// Grid (ceil(Tk / ROWS), K, B), 256 threads. ROWS, dynamic shared memory:
//   W   32: 64, 55296 bytes    64: 64, 88064    128: 32, 72704    256: 16, 68096
#define ATTENTION_BACKWARD_KV(W, R)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) attention_backward_kv_##W(                                         \
        const T* q, const T* k, const T* v, const T* dout, const float* stats, const int* intervals, const int* tile_bounds, T* dk,   \
        T* dv, int q_stride, int k_stride, int v_stride, int dk_stride, int dv_stride, int tq, int tk, int n_heads, int n_kv_heads,   \
        int width, int causal, int window, int n_keys, float scale, int accumulate) {                                                 \
        backward_kv<W, R>(q, k, v, dout, stats, tile_bounds, dk, dv, Mask(intervals, causal, window, n_keys, tq), q_stride, k_stride, \
                          v_stride, dk_stride, dv_stride, tk, n_heads, n_kv_heads, width, scale, accumulate);                         \
    }
ATTENTION_BACKWARD_KV(32, 4)
ATTENTION_BACKWARD_KV(64, 4)
ATTENTION_BACKWARD_KV(128, 2)
ATTENTION_BACKWARD_KV(256, 1)

// ---- Decoding ----
//
// Few queries (Tq <= 8) over many keys are bound by the reading of keys and values. The keys that the queries see are cut into
// `n_splits` parts of equal length; a block computes the running softmax over one of them, for up to RC of the H / K * Tq query rows
// that share the key-value head; row r is query r / (H / K) of head kv_head * H / K + r % (H / K). attention_decode_combine puts the
// parts together.

#define DECODE_THREADS 128
#define DECODE_WARPS (DECODE_THREADS / WARP)

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

// Where the part of a row lies in the workspace of B * H * Tq * n_splits * (E + 2) floats: first pairs of maximum (in base 2) and sum of
// weights, then the weighted sums of values. Rows are counted as [B, K, H / K * Tq].
struct Workspace {
    float* stats;
    float* sums;
    int n_splits, width;

    DEVICE Workspace(float* workspace, int n_rows, int n_splits, int width) : stats(workspace), n_splits(n_splits), width(width) {
        sums = workspace + 2 * (i64)n_rows * n_splits;
    }
    DEVICE float* sums_of(int row, int split) const { return sums + ((i64)row * n_splits + split) * width; }
    DEVICE float* stats_of(int row, int split) const { return stats + 2 * ((i64)row * n_splits + split); }
};

// 16 bytes of a row of E elements, not yet taken apart, so that nothing waits for them; zeros if not valid or beyond E.
template <bool PACKED>
DEVICE uint4 load_part(const T* row, int e, int width, bool valid) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (PACKED) {
        if (valid && e < width) x = *(const uint4*)(row + e);
        return x;
    }
    T part[LANES];
#pragma unroll
    for (int j = 0; j < LANES; j++) part[j] = valid && e + j < width ? row[e + j] : from_f32<T>(0.0f);
#if LEHR_T == 0
    return make_uint4(__float_as_uint(part[0]), __float_as_uint(part[1]), __float_as_uint(part[2]), __float_as_uint(part[3]));
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

// TEAM lanes share a key; each holds W / TEAM elements of it, in packs TEAM * LANES apart. A team takes U keys at once, and has a
// softmax of its own until the end.
template <int W, int TEAM, int RC, bool PACKED>
DEVICE void decode(DecodeScratch<W, RC>& scratch, const T* q, const T* k, const T* v, float* workspace, const Mask& mask, int q_stride,
                   int k_stride, int v_stride, int tk, int n_heads, int n_kv_heads, int width, float scale, int n_splits) {
    const int N = W / TEAM, PACKS = N / LANES, TEAMS = WARP / TEAM, KEYS = DECODE_WARPS * TEAMS;
    // 256 bytes under way per thread, or half of that where the registers are full.
    const int U = (sizeof(T) == 2 && N * RC == 64 ? 64 : 128) / (N * (int)sizeof(T));

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, member = lane % TEAM, team = warp * TEAMS + lane / TEAM;
    int per_kv = n_heads / n_kv_heads, n_rows = per_kv * mask.tq, n_chunks = (n_rows + RC - 1) / RC;
    int split = blockIdx.x, kv_head = blockIdx.y / n_chunks, row0 = blockIdx.y % n_chunks * RC, b = blockIdx.z;

    // All blocks of a key-value head cut the same keys.
    int lo = INT_MAX, hi = 0;
    for (int i = 0; i < mask.tq; i++) {
        int2 seen = mask.interval(b, i);
        if (seen.x < seen.y) {
            lo = min(lo, seen.x);
            hi = max(hi, seen.y);
        }
    }
    int n = max(hi - lo, 0), part = ((n + n_splits - 1) / n_splits + KEYS - 1) / KEYS * KEYS;
    int first = n > 0 ? lo + min(split * part, n) : 0, end = n > 0 ? min(first + part, hi) : 0;

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
    k += (i64)b * tk * k_stride + (i64)kv_head * width;
    v += (i64)b * tk * v_stride + (i64)kv_head * width;

    // All teams of a warp go through the loop equally often.
    for (int base = first; base < end; base += KEYS * U) {
        uint4 keys[U][PACKS], values[U][PACKS];
#pragma unroll
        for (int u = 0; u < U; u++) {
            int key = base + u * KEYS + team;
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                keys[u][p] = load_part<PACKED>(k + (i64)key * k_stride, (member + p * TEAM) * LANES, width, key < end);
            }
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
            int key = base + u * KEYS + team;
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                values[u][p] = load_part<PACKED>(v + (i64)key * v_stride, (member + p * TEAM) * LANES, width, key < end);
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
                for (int other = TEAM / 2; other > 0; other >>= 1) s[u][r] += __shfl_xor_sync(FULL_MASK, s[u][r], other);
                if (key < seen[r].x || key >= min(seen[r].y, end)) s[u][r] = -INFINITY;
            }
        }
#pragma unroll
        for (int r = 0; r < RC; r++) {
            float new_max = row_max[r];
#pragma unroll
            for (int u = 0; u < U; u++) new_max = fmaxf(new_max, s[u][r]);
            float safe_max = new_max == -INFINITY ? 0.0f : new_max, factor = exp2_t(row_max[r] - safe_max);
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
            float new_max = fmaxf(row_max[r], other_max), safe_max = new_max == -INFINITY ? 0.0f : new_max;
            float mine = exp2_t(row_max[r] - safe_max), others = exp2_t(other_max - safe_max);
            row_max[r] = new_max;
            row_sum[r] = row_sum[r] * mine + other_sum * others;
#pragma unroll
            for (int e = 0; e < N; e++) acc[r][e] = acc[r][e] * mine + __shfl_xor_sync(FULL_MASK, acc[r][e], other) * others;
        }
        if (lane < TEAM) {
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
#pragma unroll
                for (int j = 0; j < LANES; j++) scratch.sums[warp][r][(member + p * TEAM) * LANES + j] = acc[r][p * LANES + j];
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

// The parts of attention for Tq <= 8 queries, RC = 1, 2 or 4 rows at once. n_keys is read from n_keys_ptr unless that is null, so that a
// recorded launch serves a growing cache; the queries stand at its end as ever. workspace: B * H * Tq * n_splits * (E + 2) floats.
//
// Grid (n_splits, K * ceil(H / K * Tq / RC), B), 128 threads. Choose n_splits so that there are about two blocks per multiprocessor,
// with at least 64 keys each.
#define ATTENTION_DECODE(W, TEAM, RC)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 2) attention_decode_##W##_##RC(                                      \
        const T* q, const T* k, const T* v, float* workspace, const int* intervals, const int* n_keys_ptr, int q_stride,              \
        int k_stride, int v_stride, int tq, int tk, int n_heads, int n_kv_heads, int width, int causal, int window, int n_keys,       \
        float scale, int n_splits) {                                                                                                  \
        Mask mask(intervals, causal, window, n_keys_ptr ? *n_keys_ptr : n_keys, tq);                                                  \
        __shared__ DecodeScratch<W, RC> scratch;                                                                                      \
        if (is_packed(width) && is_packed(q_stride) && is_packed(k_stride) && is_packed(v_stride)) {                                  \
            decode<W, TEAM, RC, true>(scratch, q, k, v, workspace, mask, q_stride, k_stride, v_stride, tk, n_heads, n_kv_heads,       \
                                      width, scale, n_splits);                                                                        \
        } else {                                                                                                                      \
            decode<W, TEAM, RC, false>(scratch, q, k, v, workspace, mask, q_stride, k_stride, v_stride, tk, n_heads, n_kv_heads,      \
                                       width, scale, n_splits);                                                                       \
        }                                                                                                                             \
    }
ATTENTION_DECODE(64, 8, 1)
ATTENTION_DECODE(64, 8, 2)
ATTENTION_DECODE(64, 8, 4)
ATTENTION_DECODE(128, 8, 1)
ATTENTION_DECODE(128, 8, 2)
ATTENTION_DECODE(128, 8, 4)
ATTENTION_DECODE(256, 16, 1)
ATTENTION_DECODE(256, 16, 2)
ATTENTION_DECODE(256, 16, 4)

// out [B, Tq, H, E] from the parts, which are added in their order.
//
// Grid (H / K * Tq, K, B), 64 or 128 threads.
extern "C" __global__ void attention_decode_combine(const float* workspace, T* out, int tq, int n_heads, int n_kv_heads, int width,
                                                    int n_splits) {
    int per_kv = n_heads / n_kv_heads, n_rows = per_kv * tq, row_in_head = blockIdx.x, kv_head = blockIdx.y, b = blockIdx.z;
    int row = (b * n_kv_heads + kv_head) * n_rows + row_in_head;
    Workspace from((float*)workspace, gridDim.z * n_kv_heads * n_rows, n_splits, width);
    float all_max = -INFINITY, sum = 0.0f;
    for (int split = 0; split < n_splits; split++) all_max = fmaxf(all_max, from.stats_of(row, split)[0]);
    if (all_max == -INFINITY) all_max = 0.0f;
    for (int split = 0; split < n_splits; split++) {
        float2 stats = *(const float2*)from.stats_of(row, split);
        sum += stats.y * exp2_t(stats.x - all_max);
    }
    // A row that sees nothing has only sums of 0.
    float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    int i = row_in_head / per_kv, head = kv_head * per_kv + row_in_head % per_kv;
    T* to = out + (((i64)b * tq + i) * n_heads + head) * width;
    for (int e = threadIdx.x; e < width; e += blockDim.x) {
        float x = 0.0f;
#pragma unroll 4
        for (int split = 0; split < n_splits; split++) x += from.sums_of(row, split)[e] * exp2_t(from.stats_of(row, split)[0] - all_max);
        to[e] = from_f32<T>(x * factor);
    }
}
