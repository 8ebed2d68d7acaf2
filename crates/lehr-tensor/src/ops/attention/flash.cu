// Attention on tensor cores for 16-bit T: tiles of queries and keys with a running softmax, forward and backward.
//
// Dao 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691.
//
//   q [B, Tq, H, E]   k, v [B, Tk, K, E]   out, dout [B, Tq, H, E]   lse [B, H, Tq]   stats [B, H, Tq, 2]
//
// H / K consecutive query heads share a key-value head. Of q, k, v and their gradients a pointer to the first head of the first token
// is given and the number of elements from token to token, so that they may lie packed in one buffer; head h starts at h * E. E is a
// multiple of 8, pointers and strides are multiples of 16 bytes. A kernel exists for each width W = 32, 64, 96, 128, 192, 256; it takes
// E <= W and pads with zeros in shared memory.
//
// What a query sees is an interval [lo, hi) of keys, from `intervals` [B, Tq, 2] if that is not null, otherwise from `causal`, `window`
// (0 = none) and `n_keys`: query i stands at key p = i + n_keys - Tq. n_keys <= Tk is always given; keys from n_keys on are never read.
// An empty interval gives output 0 and lse -inf.
//
// All blocks have 128 threads, 4 warps. A warp owns 16 * MT rows of the result (queries, or keys for dk and dv) and keeps them in
// registers; the other operand comes tile by tile through shared memory, the next tile being copied while this one is at work. Scores
// never leave the registers: the accumulator of one product has the layout of an operand of the next. All sums have a fixed order.
#include "common.cuh"
#include "mma.cuh"

#if LEHR_T != 0

#define THREADS 128
#define N_WARPS 4
#define INT_MAX 0x7fffffff
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

// 2^x; the hardware's approximation, good to 2 units in the last place of f32.
DEVICE float exp2_fast(float x) {
#ifdef LEHR_EMULATED
    return std::exp2(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

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
    DEVICE bool is_full(int first, int n) const { return full_lo <= first && first + n <= full_hi; }
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

// The intervals of a block's queries, those of a warp being 16 * MT neighbours: into `rows` in shared memory, empty ones and those
// beyond Tq as [0, 0). The bounds of each warp go into `scratch`; after a barrier block_bounds() gives those of the block.
template <int MT>
DEVICE void find_rows(const Mask& mask, int b, int q0, int2* rows, Bounds* scratch) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = warp * 16 * MT + lane;
    Bounds bounds = no_bounds();
    if (lane < 16 * MT) {
        int2 seen = make_int2(0, 0);
        if (q0 + row < mask.tq) {
            seen = mask.interval(b, q0 + row);
            if (seen.x >= seen.y) seen = make_int2(0, 0);
            bounds = bounds_of(seen);
        }
        rows[row] = seen;
    }
    bounds = warp_joined(bounds);
    if (lane == 0) scratch[warp] = bounds;
}
DEVICE Bounds block_bounds(const Bounds* scratch) {
    return joined(joined(scratch[0], scratch[1]), joined(scratch[2], scratch[3]));
}

// Which rows the block computes: from `first` on, of head `head` of row b. Kept in shared memory during the loop over tiles, when
// registers are scarce.
struct __align__(16) Place {
    int b, head, first;
};

// ---- Tiles in shared memory ----

// Where 16-byte chunk `chunk` of row `row` lies in a tile of rows of W elements. Chunks change places so that the eight rows that
// ldmatrix reads at once, and the eight threads that copy at once, use all banks.
template <int W>
DEVICE int at(int row, int chunk) {
    int key = W % 64 == 0 ? row & 7 : row >> 1 & 3;
    return row * W + (chunk ^ key) * 8;
}

// Where a lane of ldmatrix reads 16 rows and two chunks, at any multiple of two chunks. `row` and `chunk` (0 or 1) are those of the lane.
// The swizzle repeats after 4 (or 2) steps and is the same in both ways below, so few registers hold it.
template <int W>
struct Lane {
    int base, key;

    DEVICE Lane(int row, int chunk) {
        key = W % 64 == 0 ? row & 7 : row >> 1 & 3;
        base = row * W + (chunk ^ (key & 1)) * 8;
        key = (key & 6) * 8;
    }
    // Of chunks 2 * step and 2 * step + 1, in rows that start at a multiple of 16.
    DEVICE int at_step(int rows, int step) const {
        const int N = W % 64 == 0 ? 4 : 2;
        return base + rows * W + step / N * (16 * N) + (step % N * 16 ^ key);
    }
};
// For A from rows of m, and for B from rows of k (transposed): the matrices are (rows 0-7, chunk 0), (8-15, 0), (0-7, 1), (8-15, 1).
template <int W>
DEVICE Lane<W> lane_by_rows() {
    int lane = threadIdx.x % WARP;
    return Lane<W>(lane % 16, lane / 16);
}
// For B from rows of n: (0-7, 0), (0-7, 1), (8-15, 0), (8-15, 1).
template <int W>
DEVICE Lane<W> lane_by_chunks() {
    int lane = threadIdx.x % WARP;
    return Lane<W>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// Starts to copy the first `n` rows of E elements into a tile of ROWS x W; the rest is zeros. A thread keeps its column within a group
// of 8 (or 4) chunks and its place in the swizzle, so that its addresses differ by constants and multiples of the stride.
template <int W, int ROWS>
DEVICE void copy_rows(T* tile, const T* from, int stride, int n, int width) {
    const int COLUMNS = W % 64 == 0 ? 8 : 4, STEP = THREADS / COLUMNS;
    static_assert(ROWS % STEP == 0 || STEP % ROWS == 0, "whole rounds of copies");
    int row = threadIdx.x / COLUMNS, chunk = threadIdx.x % COLUMNS;
    if (STEP > ROWS && row >= ROWS) return;
    from += (i64)row * stride + chunk * 8;
    tile += at<W>(row, chunk);
    n -= row;
    width -= chunk * 8;
#pragma unroll
    for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++) {
#pragma unroll
        for (int j = 0; j < W / (8 * COLUMNS); j++) {
            bool valid = i * STEP < n && j * 8 * COLUMNS < width;
            cp_async_16(tile + i * STEP * W + j * 8 * COLUMNS, from + (i64)i * STEP * stride + j * 8 * COLUMNS, valid);
        }
    }
}

// c[m][n] += A B^T over the width: rows of both operands are W wide. A starts at the warp's row, B at the first of N columns.
// Unrolled less where the registers do not hold what would be loaded ahead.
template <int W, int MT, int N, int UNROLL = W / 16>
DEVICE void product_by_width(float c[MT][N / 8][4], const T* a_tile, const T* b_tile, const Lane<W>& by_rows, const Lane<W>& by_chunks) {
#pragma unroll UNROLL
    for (int step = 0; step < W / 16; step++) {
        u32 a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) ldmatrix_x4(a[m], a_tile + by_rows.at_step(16 * m, step));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 b[4];
            ldmatrix_x4(b, b_tile + by_chunks.at_step(16 * n, step));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_16816(c[m][2 * n], a[m], b);
                mma_16816(c[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

// acc[m][e] += P B: P, N columns wide, is an accumulator (rounded to T here), B has N rows of W.
template <int W, int MT, int N>
DEVICE void product_by_rows(float acc[MT][W / 8][4], const float p[MT][N / 8][4], const T* b_tile, const Lane<W>& by_rows) {
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        u32 a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* from = p[m][2 * n + i / 2];
                a[m][i] = pack2(from[i % 2 * 2], from[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int e = 0; e < W / 16; e++) {
            u32 b[4];
            ldmatrix_x4_trans(b, b_tile + by_rows.at_step(16 * n, e));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma_16816(acc[m][2 * e], a[m], b);
                mma_16816(acc[m][2 * e + 1], a[m], b + 2);
            }
        }
    }
}

template <int MT, int N>
DEVICE void clear(float c[MT][N][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] = 0.0f;
        }
    }
}

// Writes the warp's rows, row r times factor[r / 16][r / 8 % 2], to `n` rows of E elements; or adds them to what is there. `tile` is
// room for them that only this warp uses: through it, global memory sees whole chunks.
template <int W, int MT>
DEVICE void write_rows(T* tile, const float acc[MT][W / 8][4], const float factor[MT][2], T* to, int stride, int n, int width,
                       int accumulate) {
    const int CHUNKS = W / 8, COPIES = 16 * MT * CHUNKS / WARP;
    int lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    __syncwarp();
    if (accumulate) {
#pragma unroll 4
        for (int i = 0; i < COPIES; i++) {
            int index = lane + i * WARP, row = index / CHUNKS, chunk = index % CHUNKS;
            if (row < n && chunk * 8 < width) store_pack(tile + at<W>(row, chunk), load_pack<T, 8>(to + (i64)row * stride + chunk * 8));
        }
        __syncwarp();
    }
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int e = 0; e < W / 8; e++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32* two = (u32*)(tile + at<W>(16 * m + 8 * h + group, e) + 2 * pair);
                float low = acc[m][e][2 * h] * factor[m][h], high = acc[m][e][2 * h + 1] * factor[m][h];
                if (accumulate) {
                    low += unpack_low(*two);
                    high += unpack_high(*two);
                }
                *two = pack2(low, high);
            }
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < COPIES; i++) {
        int index = lane + i * WARP, row = index / CHUNKS, chunk = index % CHUNKS;
        if (row < n && chunk * 8 < width) store_pack(to + (i64)row * stride + chunk * 8, load_pack<T, 8>(tile + at<W>(row, chunk)));
    }
}

// ---- Forward ----

// The running softmax takes in the scores s of BK keys that start at `key`, and leaves the weights in them. Masked keys get weight 0.
template <int W, int MT, int BK>
DEVICE void softmax_step(float s[MT][BK / 8][4], float acc[MT][W / 8][4], float row_max[MT][2], float row_sum[MT][2], float scale_log2) {
    float safe_max[MT][2];
    bool changed = false;
    float old_max[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = fmaxf(s[m][0][2 * h], s[m][0][2 * h + 1]);
#pragma unroll
            for (int n = 1; n < BK / 8; n++) x = fmaxf(x, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 1));
            x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, 2));
            old_max[m][h] = row_max[m][h];
            row_max[m][h] = fmaxf(x, old_max[m][h]);
            changed |= row_max[m][h] != old_max[m][h];
            // A row that has seen nothing yet must not compute inf - inf.
            safe_max[m][h] = row_max[m][h] == -INFINITY ? 0.0f : row_max[m][h];
        }
    }
    // After a few tiles the maximum rarely changes.
    if (__any_sync(FULL_MASK, changed)) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float factor = exp2_fast((old_max[m][h] - safe_max[m][h]) * scale_log2);
                row_sum[m][h] *= factor;
#pragma unroll
                for (int e = 0; e < W / 8; e++) {
                    acc[m][e][2 * h] *= factor;
                    acc[m][e][2 * h + 1] *= factor;
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float shift = safe_max[m][h] * scale_log2, sum = 0.0f;
#pragma unroll
            for (int n = 0; n < BK / 8; n++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float& x = s[m][n][2 * h + j];
                    x = exp2_fast(x * scale_log2 - shift);
                    sum += x;
                }
            }
            row_sum[m][h] += sum;
        }
    }
}

// One block: 64 * MT queries of one head. Shared memory: the queries, two tiles of BK keys and values, the intervals.
template <int W, int MT, int BK>
DEVICE void forward(const T* q, const T* k, const T* v, T* out, float* lse, const Mask& mask, int q_stride, int k_stride, int v_stride,
                    int tk, int n_heads, int n_kv_heads, int width, float scale) {
    const int BQ = 64 * MT;
    DYNAMIC_SHARED(T, q_tile);
    T* k_tiles = q_tile + BQ * W;
    T* v_tiles = k_tiles + 2 * BK * W;
    int2* rows = (int2*)(v_tiles + 2 * BK * W);
    Bounds* scratch = (Bounds*)(rows + BQ);
    Place* place = (Place*)(scratch + N_WARPS);

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    // Heads that share keys are neighbours in the grid. The last queries come first: if the mask is causal, they have the most to do.
    int per_kv = n_heads / n_kv_heads, n_tiles = gridDim.x / per_kv, tq = mask.tq;
    int kv_head = blockIdx.y, head = kv_head * per_kv + blockIdx.x % per_kv, b = blockIdx.z;
    int q0 = (n_tiles - 1 - blockIdx.x / per_kv) * BQ, first_row = warp * 16 * MT;
    i64 first_token = (i64)b * tq + q0;

    copy_rows<W, BQ>(q_tile, q + first_token * q_stride + (i64)head * width, q_stride, tq - q0, width);
    find_rows<MT>(mask, b, q0, rows, scratch);
    if (threadIdx.x == 0) *place = Place{b, head, q0};
    __syncthreads();
    const Bounds all = block_bounds(scratch);

    k += (i64)b * tk * k_stride + (i64)kv_head * width;
    v += (i64)b * tk * v_stride + (i64)kv_head * width;
    int key = all.reach_lo < all.reach_hi ? all.reach_lo / BK * BK : INT_MAX;
    if (key < all.reach_hi) {
        copy_rows<W, BK>(k_tiles, k + (i64)key * k_stride, k_stride, mask.n_keys - key, width);
        copy_rows<W, BK>(v_tiles, v + (i64)key * v_stride, v_stride, mask.n_keys - key, width);
    }
    cp_async_commit();

    if (scale <= 0.0f) {
        // The running maximum is that of q k, so the sign goes into q.
        cp_async_wait<0>();
        __syncthreads();
        u32* two = (u32*)q_tile;
        for (int i = threadIdx.x; i < BQ * W / 2; i += THREADS) two[i] = scale < 0.0f ? two[i] ^ 0x80008000u : 0;
        scale = scale < 0.0f ? -scale : 1.0f;
    }
    const float scale_log2 = scale * LOG2_E;
    const Lane<W> by_rows = lane_by_rows<W>(), by_chunks = lane_by_chunks<W>();

    float acc[MT][W / 8][4], row_max[MT][2], row_sum[MT][2];
    clear<MT, W / 8>(acc);
#pragma unroll
    for (int m = 0; m < MT; m++) {
        row_max[m][0] = row_max[m][1] = -INFINITY;
        row_sum[m][0] = row_sum[m][1] = 0.0f;
    }

    for (int stage = 0; key < all.reach_hi; key += BK, stage ^= 1) {
        cp_async_wait<0>();
        // This tile is there, and all warps have left the one before.
        __syncthreads();
        int next = key + BK;
        if (next < all.reach_hi) {
            int other = (stage ^ 1) * BK * W;
            copy_rows<W, BK>(k_tiles + other, k + (i64)next * k_stride, k_stride, mask.n_keys - next, width);
            copy_rows<W, BK>(v_tiles + other, v + (i64)next * v_stride, v_stride, mask.n_keys - next, width);
        }
        cp_async_commit();
        // Of this warp; not kept in registers, which are scarce.
        const Bounds mine = scratch[warp];
        if (!mine.reaches(key, BK)) continue;

        float s[MT][BK / 8][4];
        clear<MT, BK / 8>(s);
        product_by_width<W, MT, BK>(s, q_tile + first_row * W, k_tiles + stage * BK * W, by_rows, by_chunks);
        if (!mine.is_full(key, BK)) {
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int2 seen = rows[first_row + 16 * m + 8 * h + group];
                    int from = key + 2 * pair - seen.x;
                    u32 n_seen = (u32)(seen.y - seen.x);
#pragma unroll
                    for (int n = 0; n < BK / 8; n++) {
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            if ((u32)(from + 8 * n + j) >= n_seen) s[m][n][2 * h + j] = -INFINITY;
                        }
                    }
                }
            }
        }
        softmax_step<W, MT, BK>(s, acc, row_max, row_sum, scale_log2);
        product_by_rows<W, MT, BK>(acc, s, v_tiles + stage * BK * W, by_rows);
    }

    cp_async_wait<0>();
    __syncthreads();
    b = place->b;
    head = place->head;
    q0 = place->first;
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = row_sum[m][h];
            sum += __shfl_xor_sync(FULL_MASK, sum, 1);
            sum += __shfl_xor_sync(FULL_MASK, sum, 2);
            int row = first_row + 16 * m + 8 * h + group;
            bool sees_some = rows[row].y > 0;
            factor[m][h] = sees_some ? 1.0f / sum : 0.0f;
            if (lse && pair == 0 && q0 + row < tq) {
                lse[((i64)b * n_heads + head) * tq + q0 + row] = sees_some ? row_max[m][h] * scale + logf(sum) : -INFINITY;
            }
        }
    }
    int stride = n_heads * width;
    out += ((i64)b * tq + q0 + first_row) * stride + (i64)head * width;
    write_rows<W, MT>(q_tile + first_row * W, acc, factor, out, stride, tq - q0 - first_row, width, 0);
}

// out = softmax(scale * q k^T + mask) v and, if lse is not null, lse = ln(sum of exp(score)).
//
// Grid (ceil(Tq / BQ) * H / K, K, B), 128 threads. Queries per block BQ, dynamic shared memory:
//   W   32: 128, 25680 bytes    64: 128, 50256    96: 128, 74832    128: 128, 99408    192: 64, 74320    256: 64, 98896
#define FLASH_FORWARD(W, MT, BK, BLOCKS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                                  \
        flash_forward_##W(const T* q, const T* k, const T* v, T* out, float* lse, const int* intervals, int q_stride, int k_stride, \
                          int v_stride, int tq, int tk, int n_heads, int n_kv_heads, int width, int causal, int window, int n_keys, \
                          float scale) {                                                                                           \
        forward<W, MT, BK>(q, k, v, out, lse, Mask{intervals, causal, window, n_keys, tq}, q_stride, k_stride, v_stride, tk, n_heads, \
                           n_kv_heads, width, scale);                                                                              \
    }
FLASH_FORWARD(32, 2, 64, 3)
FLASH_FORWARD(64, 2, 64, 2)
FLASH_FORWARD(96, 2, 64, 2)
FLASH_FORWARD(128, 2, 64, 2)
FLASH_FORWARD(192, 1, 32, 2)
FLASH_FORWARD(256, 1, 32, 2)

// ---- Backward ----
//
// With p = exp(score - lse) and delta = sum_e dout * out:  ds = p (dout v^T - delta),  dq = scale ds k,  dk = scale ds^T q,
// dv = p^T dout. `stats` holds, per query and head, lse in base 2 and delta (attention_stats in kernel.cu).

// The bounds of queries q0 to q0 + n of row b, from `tile_bounds` (attention_tile_bounds in kernel.cu, for tiles of n queries) if
// intervals are given: [B, ceil(Tq / n), 4]. Computed ones grow with the query, so the first and the last query decide.
DEVICE Bounds tile_bounds_of(const Mask& mask, const int* tile_bounds, int b, int q0, int n) {
    if (mask.intervals) {
        int n_tiles = (mask.tq + n - 1) / n;
        int4 found = *(const int4*)(tile_bounds + 4 * ((i64)b * n_tiles + q0 / n));
        return Bounds{found.x, found.y, found.z, found.w};
    }
    int2 first = mask.interval(b, q0), last = mask.interval(b, min(q0 + n, mask.tq) - 1);
    return Bounds{first.x, last.y, last.x, first.y};
}

// A tile of queries in shared memory.
struct __align__(16) Step {
    Bounds bounds;
    int q0;
};

// dk (if DK) and dv (if DV) of one block of 64 * MT keys of one key-value head, summed over the query heads that share it and the
// tiles of BQ queries that see some of the keys. Scores are computed transposed, keys by queries, N queries at a time. Shared memory:
// keys, values, two tiles of queries and dout and their stats.
template <int W, int MT, int BQ, int N, bool DK, bool DV>
DEVICE void backward_kv(const T* q, const T* k, const T* v, const T* dout, const float* stats, const int* tile_bounds, T* dk, T* dv,
                        const Mask& mask, int q_stride, int k_stride, int v_stride, int dk_stride, int dv_stride, int tk, int n_heads,
                        int n_kv_heads, int width, float scale, int accumulate, int key_tile) {
    const int BK = 64 * MT, UNROLL = W > 64 ? 4 : 2;
    DYNAMIC_SHARED(T, k_tile);
    T* v_tile = k_tile + BK * W;
    T* q_tiles = v_tile + BK * W;
    T* dout_tiles = q_tiles + 2 * BQ * W;
    float* stats_tiles = (float*)(dout_tiles + 2 * BQ * W);
    Step* steps = (Step*)(stats_tiles + 4 * BQ);
    int* reach = (int*)(steps + 2);
    Place* place = (Place*)(reach + 2 * N_WARPS);

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    int per_kv = n_heads / n_kv_heads, kv_head = blockIdx.y, b = blockIdx.z, tq = mask.tq, n_tiles = (tq + BQ - 1) / BQ;
    int k0 = key_tile * BK, first_row = warp * 16 * MT, first_key = k0 + first_row;
    i64 first_token = (i64)b * tk + k0;
    if (threadIdx.x == 0) *place = Place{b, kv_head, k0};
    copy_rows<W, BK>(k_tile, k + first_token * k_stride + (i64)kv_head * width, k_stride, mask.n_keys - k0, width);
    if (DK) copy_rows<W, BK>(v_tile, v + first_token * v_stride + (i64)kv_head * width, v_stride, mask.n_keys - k0, width);
    cp_async_commit();

    // The first tile of queries that sees some of the keys, and one past the last.
    int first = INT_MAX, end = 0;
    for (int t = threadIdx.x; t < n_tiles; t += THREADS) {
        if (tile_bounds_of(mask, tile_bounds, b, t * BQ, BQ).reaches(k0, BK)) {
            first = min(first, t);
            end = max(end, t + 1);
        }
    }
#pragma unroll
    for (int other = 16; other > 0; other >>= 1) {
        first = min(first, __shfl_xor_sync(FULL_MASK, first, other));
        end = max(end, __shfl_xor_sync(FULL_MASK, end, other));
    }
    if (lane == 0) {
        reach[2 * warp] = first;
        reach[2 * warp + 1] = end;
    }
    __syncthreads();
    first = min(min(reach[0], reach[2]), min(reach[4], reach[6]));
    end = max(max(reach[1], reach[3]), max(reach[5], reach[7]));

    const float scale_log2 = scale * LOG2_E;
    const Lane<W> by_rows = lane_by_rows<W>(), by_chunks = lane_by_chunks<W>();
    float dk_acc[MT][W / 8][4], dv_acc[MT][W / 8][4];
    if (DK) clear<MT, W / 8>(dk_acc);
    if (DV) clear<MT, W / 8>(dv_acc);

    // Steps go through the query heads and their tiles. One is at work, if `busy`; the next is being copied, if there is a `next_head`.
    int next_head = kv_head * per_kv, next_tile = first;
    const int head_end = first < end ? next_head + per_kv : next_head;
    bool busy = false;
    for (int stage = 1; busy || next_head < head_end; stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (next_head < head_end) {
            int other = stage ^ 1, q0 = next_tile * BQ;
            if (threadIdx.x == 0) {
                steps[other].bounds = tile_bounds_of(mask, tile_bounds, b, q0, BQ);
                steps[other].q0 = q0;
            }
            i64 token = (i64)b * tq + q0;
            copy_rows<W, BQ>(q_tiles + other * BQ * W, q + token * q_stride + (i64)next_head * width, q_stride, tq - q0, width);
            copy_rows<W, BQ>(dout_tiles + other * BQ * W, dout + (token * n_heads + next_head) * width, n_heads * width, tq - q0, width);
            const float* from = stats + 2 * (((i64)b * n_heads + next_head) * tq + q0);
            if (threadIdx.x < BQ) {
                // Beyond Tq all is zero, so such queries add nothing.
                int i = threadIdx.x;
                cp_async_8(stats_tiles + 2 * (other * BQ + i), from + 2 * i, i < tq - q0);
            }
        }
        cp_async_commit();

        if (busy) {
            const Bounds bounds = steps[stage].bounds;
            if (bounds.reaches(first_key, 16 * MT)) {
                const bool edge = !bounds.is_full(first_key, 16 * MT);
                const T* q_tile = q_tiles + stage * BQ * W;
                const T* dout_tile = dout_tiles + stage * BQ * W;
                const float* stats_tile = stats_tiles + stage * 2 * BQ;
#pragma unroll 1
                for (int column = 0; column < BQ; column += N) {
                    float p[MT][N / 8][4];
                    clear<MT, N / 8>(p);
                    product_by_width<W, MT, N, UNROLL>(p, k_tile + first_row * W, q_tile + column * W, by_rows, by_chunks);
#pragma unroll
                    for (int n = 0; n < N / 8; n++) {
                        float4 two = *(const float4*)(stats_tile + 2 * (column + 8 * n + 2 * pair));
#pragma unroll
                        for (int m = 0; m < MT; m++) {
                            p[m][n][0] = exp2_fast(p[m][n][0] * scale_log2 - two.x);
                            p[m][n][1] = exp2_fast(p[m][n][1] * scale_log2 - two.z);
                            p[m][n][2] = exp2_fast(p[m][n][2] * scale_log2 - two.x);
                            p[m][n][3] = exp2_fast(p[m][n][3] * scale_log2 - two.z);
                        }
                    }
                    if (edge) {
#pragma unroll
                        for (int n = 0; n < N / 8; n++) {
#pragma unroll
                            for (int j = 0; j < 2; j++) {
                                int2 seen = mask.interval(b, min(steps[stage].q0 + column + 8 * n + 2 * pair + j, tq - 1));
                                int from = first_key + group - seen.x;
                                u32 n_seen = (u32)max(seen.y - seen.x, 0);
#pragma unroll
                                for (int m = 0; m < MT; m++) {
                                    if ((u32)(from + 16 * m) >= n_seen) p[m][n][j] = 0.0f;
                                    if ((u32)(from + 16 * m + 8) >= n_seen) p[m][n][2 + j] = 0.0f;
                                }
                            }
                        }
                    }
                    if (DV) product_by_rows<W, MT, N>(dv_acc, p, dout_tile + column * W, by_rows);
                    if (DK) {
                        float dp[MT][N / 8][4];
                        clear<MT, N / 8>(dp);
                        product_by_width<W, MT, N, UNROLL>(dp, v_tile + first_row * W, dout_tile + column * W, by_rows, by_chunks);
#pragma unroll
                        for (int n = 0; n < N / 8; n++) {
                            float4 two = *(const float4*)(stats_tile + 2 * (column + 8 * n + 2 * pair));
#pragma unroll
                            for (int m = 0; m < MT; m++) {
                                p[m][n][0] *= dp[m][n][0] - two.y;
                                p[m][n][1] *= dp[m][n][1] - two.w;
                                p[m][n][2] *= dp[m][n][2] - two.y;
                                p[m][n][3] *= dp[m][n][3] - two.w;
                            }
                        }
                        product_by_rows<W, MT, N>(dk_acc, p, q_tile + column * W, by_rows);
                    }
                }
            }
        }

        busy = next_head < head_end;
        if (busy) {
            do {
                next_tile++;
                if (next_tile == end) {
                    next_tile = first;
                    next_head++;
                }
            } while (next_head < head_end && !tile_bounds_of(mask, tile_bounds, b, next_tile * BQ, BQ).reaches(k0, BK));
        }
    }

    cp_async_wait<0>();
    __syncthreads();
    float factor[MT][2];
    kv_head = place->head;
    first_key = place->first + first_row;
    first_token = (i64)place->b * tk + first_key;
    if (DK && dk) {
#pragma unroll
        for (int m = 0; m < MT; m++) factor[m][0] = factor[m][1] = scale;
        T* to = dk + first_token * dk_stride + (i64)kv_head * width;
        write_rows<W, MT>(k_tile + first_row * W, dk_acc, factor, to, dk_stride, tk - first_key, width, accumulate);
    }
    if (DV && dv) {
#pragma unroll
        for (int m = 0; m < MT; m++) factor[m][0] = factor[m][1] = 1.0f;
        T* to = dv + first_token * dv_stride + (i64)kv_head * width;
        write_rows<W, MT>(k_tile + first_row * W, dv_acc, factor, to, dv_stride, tk - first_key, width, accumulate);
    }
}

// dk and dv [B, Tk, K, E] (each may be null), all Tk keys: 0 for those that nobody sees. With `accumulate` they are added to.
// `tile_bounds` for tiles of BQ queries is needed only if intervals are given. The wide ones compute dk and dv in separate blocks,
// because the registers do not hold both.
//
// Grid (ceil(Tk / BK), K, B), of W = 192 and 256 (2 ceil(Tk / BK), K, B); 128 threads. BK, BQ, dynamic shared memory:
//   W   32: 128, 64, 33904 bytes    64: 128, 64, 66672    96: 64, 64, 74864    128: 64, 64, 99440    192: 64, 32, 98928
//      256: 64, 16, 98672
#define FLASH_BACKWARD_KV(W, MT, BQ, N, SPLIT, BLOCKS)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) flash_backward_kv_##W(                                              \
        const T* q, const T* k, const T* v, const T* dout, const float* stats, const int* intervals, const int* tile_bounds, T* dk,   \
        T* dv, int q_stride, int k_stride, int v_stride, int dk_stride, int dv_stride, int tq, int tk, int n_heads, int n_kv_heads,   \
        int width, int causal, int window, int n_keys, float scale, int accumulate) {                                                 \
        Mask mask{intervals, causal, window, n_keys, tq};                                                                             \
        if (!SPLIT) {                                                                                                                 \
            backward_kv<W, MT, BQ, N, true, !SPLIT>(q, k, v, dout, stats, tile_bounds, dk, dv, mask, q_stride, k_stride, v_stride,    \
                                                    dk_stride, dv_stride, tk, n_heads, n_kv_heads, width, scale, accumulate,          \
                                                    blockIdx.x);                                                                      \
        } else if (blockIdx.x % 2 == 0) {                                                                                             \
            backward_kv<W, MT, BQ, N, true, !SPLIT>(q, k, v, dout, stats, tile_bounds, dk, dv, mask, q_stride, k_stride, v_stride,    \
                                                    dk_stride, dv_stride, tk, n_heads, n_kv_heads, width, scale, accumulate,          \
                                                    blockIdx.x / 2);                                                                  \
        } else {                                                                                                                      \
            backward_kv<W, MT, BQ, N, !SPLIT, true>(q, k, v, dout, stats, tile_bounds, dk, dv, mask, q_stride, k_stride, v_stride,    \
                                                    dk_stride, dv_stride, tk, n_heads, n_kv_heads, width, scale, accumulate,          \
                                                    blockIdx.x / 2);                                                                  \
        }                                                                                                                             \
    }
FLASH_BACKWARD_KV(32, 2, 64, 32, false, 2)
FLASH_BACKWARD_KV(64, 2, 64, 32, false, 2)
FLASH_BACKWARD_KV(96, 1, 64, 32, false, 2)
FLASH_BACKWARD_KV(128, 1, 64, 32, false, 2)
FLASH_BACKWARD_KV(192, 1, 32, 32, true, 2)
FLASH_BACKWARD_KV(256, 1, 16, 16, true, 2)

// dq of one block of 64 * MT queries of one head, N keys at a time. Shared memory: queries, dout, two tiles of BK keys and values, the
// intervals and the stats.
template <int W, int MT, int BK, int N>
DEVICE void backward_q(const T* q, const T* k, const T* v, const T* dout, const float* stats, T* dq, const Mask& mask, int q_stride,
                       int k_stride, int v_stride, int dq_stride, int tk, int n_heads, int n_kv_heads, int width, float scale,
                       int accumulate) {
    const int BQ = 64 * MT, UNROLL = 4;
    DYNAMIC_SHARED(T, q_tile);
    T* dout_tile = q_tile + BQ * W;
    T* k_tiles = dout_tile + BQ * W;
    T* v_tiles = k_tiles + 2 * BK * W;
    int2* rows = (int2*)(v_tiles + 2 * BK * W);
    float2* row_stats = (float2*)(rows + BQ);
    Bounds* scratch = (Bounds*)(row_stats + BQ);
    Place* place = (Place*)(scratch + N_WARPS);

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    int per_kv = n_heads / n_kv_heads, n_tiles = gridDim.x / per_kv, tq = mask.tq;
    int kv_head = blockIdx.y, head = kv_head * per_kv + blockIdx.x % per_kv, b = blockIdx.z;
    int q0 = (n_tiles - 1 - blockIdx.x / per_kv) * BQ, first_row = warp * 16 * MT;
    i64 first_token = (i64)b * tq + q0;

    copy_rows<W, BQ>(q_tile, q + first_token * q_stride + (i64)head * width, q_stride, tq - q0, width);
    copy_rows<W, BQ>(dout_tile, dout + (first_token * n_heads + head) * width, n_heads * width, tq - q0, width);
    if (threadIdx.x < BQ) {
        // Beyond Tq all is zero, and such queries add nothing.
        int i = threadIdx.x;
        cp_async_8(row_stats + i, stats + 2 * (((i64)b * n_heads + head) * tq + q0 + i), i < tq - q0);
    }
    find_rows<MT>(mask, b, q0, rows, scratch);
    if (threadIdx.x == 0) *place = Place{b, head, q0};
    __syncthreads();
    const Bounds all = block_bounds(scratch);

    k += (i64)b * tk * k_stride + (i64)kv_head * width;
    v += (i64)b * tk * v_stride + (i64)kv_head * width;
    int key = all.reach_lo < all.reach_hi ? all.reach_lo / BK * BK : INT_MAX;
    if (key < all.reach_hi) {
        copy_rows<W, BK>(k_tiles, k + (i64)key * k_stride, k_stride, mask.n_keys - key, width);
        copy_rows<W, BK>(v_tiles, v + (i64)key * v_stride, v_stride, mask.n_keys - key, width);
    }
    cp_async_commit();

    const float scale_log2 = scale * LOG2_E;
    const Lane<W> by_rows = lane_by_rows<W>(), by_chunks = lane_by_chunks<W>();
    float acc[MT][W / 8][4];
    clear<MT, W / 8>(acc);

    for (int stage = 0; key < all.reach_hi; key += BK, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();
        int next = key + BK;
        if (next < all.reach_hi) {
            int other = (stage ^ 1) * BK * W;
            copy_rows<W, BK>(k_tiles + other, k + (i64)next * k_stride, k_stride, mask.n_keys - next, width);
            copy_rows<W, BK>(v_tiles + other, v + (i64)next * v_stride, v_stride, mask.n_keys - next, width);
        }
        cp_async_commit();
        const Bounds mine = scratch[warp];
        if (!mine.reaches(key, BK)) continue;
        const bool edge = !mine.is_full(key, BK);

#pragma unroll 1
        for (int column = 0; column < BK; column += N) {
            const T* k_tile = k_tiles + (stage * BK + column) * W;
            const T* v_tile = v_tiles + (stage * BK + column) * W;
            float p[MT][N / 8][4], dp[MT][N / 8][4];
            clear<MT, N / 8>(p);
            product_by_width<W, MT, N, UNROLL>(p, q_tile + first_row * W, k_tile, by_rows, by_chunks);
            clear<MT, N / 8>(dp);
            product_by_width<W, MT, N, UNROLL>(dp, dout_tile + first_row * W, v_tile, by_rows, by_chunks);
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float2 stat = row_stats[first_row + 16 * m + 8 * h + group];
#pragma unroll
                    for (int n = 0; n < N / 8; n++) {
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            float weight = exp2_fast(p[m][n][2 * h + j] * scale_log2 - stat.x);
                            p[m][n][2 * h + j] = weight * (dp[m][n][2 * h + j] - stat.y);
                        }
                    }
                }
            }
            if (edge) {
#pragma unroll
                for (int m = 0; m < MT; m++) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        int2 seen = rows[first_row + 16 * m + 8 * h + group];
                        int from = key + column + 2 * pair - seen.x;
                        u32 n_seen = (u32)(seen.y - seen.x);
#pragma unroll
                        for (int n = 0; n < N / 8; n++) {
#pragma unroll
                            for (int j = 0; j < 2; j++) {
                                if ((u32)(from + 8 * n + j) >= n_seen) p[m][n][2 * h + j] = 0.0f;
                            }
                        }
                    }
                }
            }
            product_by_rows<W, MT, N>(acc, p, k_tile, by_rows);
        }
    }

    cp_async_wait<0>();
    __syncthreads();
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) factor[m][0] = factor[m][1] = scale;
    b = place->b;
    head = place->head;
    q0 = place->first;
    dq += ((i64)b * tq + q0 + first_row) * dq_stride + (i64)head * width;
    write_rows<W, MT>(q_tile + first_row * W, acc, factor, dq, dq_stride, tq - q0 - first_row, width, accumulate);
}

// dq [B, Tq, H, E]. With `accumulate` it is added to.
//
// Grid (ceil(Tq / BQ) * H / K, K, B), 128 threads. BQ, dynamic shared memory:
//   W   32: 128, 34896 bytes    64: 128, 67664    96: 128, 75856    128: 128, 100432    192: 64, 99408    256: 64, 99408
#define FLASH_BACKWARD_Q(W, MT, BK, N, BLOCKS)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) flash_backward_q_##W(                                               \
        const T* q, const T* k, const T* v, const T* dout, const float* stats, const int* intervals, T* dq, int q_stride,             \
        int k_stride, int v_stride, int dq_stride, int tq, int tk, int n_heads, int n_kv_heads, int width, int causal, int window,    \
        int n_keys, float scale, int accumulate) {                                                                                    \
        backward_q<W, MT, BK, N>(q, k, v, dout, stats, dq, Mask{intervals, causal, window, n_keys, tq}, q_stride, k_stride, v_stride, \
                                 dq_stride, tk, n_heads, n_kv_heads, width, scale, accumulate);                                       \
    }
FLASH_BACKWARD_Q(32, 2, 64, 32, 2)
FLASH_BACKWARD_Q(64, 2, 64, 32, 2)
FLASH_BACKWARD_Q(96, 2, 32, 32, 2)
FLASH_BACKWARD_Q(128, 2, 32, 32, 2)
FLASH_BACKWARD_Q(192, 1, 32, 32, 2)
FLASH_BACKWARD_Q(256, 1, 16, 16, 2)

// ---- Decoding ----

// Attention of few queries over a part of the keys, for 16 of the H / K * Tq query rows that share a key-value head: row r is query
// r / (H / K) of head kv_head * H / K + r % (H / K). Each warp takes 16 of the 64 keys of a tile and has a running softmax of its own
// until the end. The result goes where attention_decode_combine of kernel.cu reads it: per row [B, K, H / K * Tq] and part a pair of
// maximum (in base 2) and sum of weights, and after all of those the weighted sums of values.
template <int W, int STAGES>
DEVICE void decode(const T* q, const T* k, const T* v, float* workspace, const Mask& mask, int q_stride, int k_stride, int v_stride,
                   int tk, int n_heads, int n_kv_heads, int width, float scale, int n_splits) {
    const int ROWS = 16, BK = 16 * N_WARPS;
    DYNAMIC_SHARED(T, q_tile);
    T* k_tiles = q_tile + ROWS * W;
    T* v_tiles = k_tiles + STAGES * BK * W;
    int2* rows = (int2*)(v_tiles + STAGES * BK * W);
    float2* warp_stats = (float2*)(rows + ROWS);

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    int per_kv = n_heads / n_kv_heads, n_rows = per_kv * mask.tq, n_chunks = (n_rows + ROWS - 1) / ROWS;
    int split = blockIdx.x, kv_head = blockIdx.y / n_chunks, row0 = blockIdx.y % n_chunks * ROWS, b = blockIdx.z;

    // All blocks of a key-value head cut the same keys into parts.
    int lo = INT_MAX, hi = 0;
    for (int i = 0; i < mask.tq; i++) {
        int2 seen = mask.interval(b, i);
        if (seen.x < seen.y) {
            lo = min(lo, seen.x);
            hi = max(hi, seen.y);
        }
    }
    int n = max(hi - lo, 0), part = ((n + n_splits - 1) / n_splits + BK - 1) / BK * BK;
    int key = n > 0 ? lo + min(split * part, n) : 0, end = n > 0 ? min(key + part, hi) : 0;

    // Keys of other parts are masked.
    int2 seen = make_int2(0, 0);
    if (lane < ROWS && row0 + lane < n_rows) {
        seen = mask.interval(b, (row0 + lane) / per_kv);
        seen = make_int2(max(seen.x, key), min(seen.y, end));
        if (seen.x >= seen.y) seen = make_int2(0, 0);
    }
    if (warp == 0 && lane < ROWS) rows[lane] = seen;
    const Bounds bounds = warp_joined(lane < ROWS && row0 + lane < n_rows ? bounds_of(seen) : no_bounds());

    for (int i = threadIdx.x; i < ROWS * W / 8; i += THREADS) {
        int r = i / (W / 8), chunk = i % (W / 8), row = row0 + r;
        bool valid = row < n_rows && chunk * 8 < width;
        i64 token = (i64)b * mask.tq + (valid ? row / per_kv : 0);
        cp_async_16(q_tile + at<W>(r, chunk), q + token * q_stride + (i64)(kv_head * per_kv + row % per_kv) * width + chunk * 8, valid);
    }
    k += (i64)b * tk * k_stride + (i64)kv_head * width;
    v += (i64)b * tk * v_stride + (i64)kv_head * width;
    if (STAGES == 2 && key < end) {
        copy_rows<W, BK>(k_tiles, k + (i64)key * k_stride, k_stride, end - key, width);
        copy_rows<W, BK>(v_tiles, v + (i64)key * v_stride, v_stride, end - key, width);
    }
    cp_async_commit();
    if (scale <= 0.0f) {
        // The running maximum is that of q k, so the sign goes into q.
        cp_async_wait<0>();
        __syncthreads();
        u32* two = (u32*)q_tile;
        for (int i = threadIdx.x; i < ROWS * W / 2; i += THREADS) two[i] = scale < 0.0f ? two[i] ^ 0x80008000u : 0;
        scale = scale < 0.0f ? -scale : 1.0f;
    }
    const float scale_log2 = scale * LOG2_E;
    const Lane<W> by_rows = lane_by_rows<W>(), by_chunks = lane_by_chunks<W>();

    float acc[1][W / 8][4], row_max[1][2] = {{-INFINITY, -INFINITY}}, row_sum[1][2] = {{0.0f, 0.0f}};
    clear<1, W / 8>(acc);
    for (int stage = 0; key < end; key += BK, stage ^= STAGES - 1) {
        // With one stage, other blocks of the multiprocessor work while this one waits.
        int next = STAGES == 2 ? key + BK : key;
        if (STAGES == 2) cp_async_wait<0>();
        __syncthreads();
        if (next < end) {
            int other = (stage ^ (STAGES - 1)) * BK * W;
            copy_rows<W, BK>(k_tiles + other, k + (i64)next * k_stride, k_stride, end - next, width);
            copy_rows<W, BK>(v_tiles + other, v + (i64)next * v_stride, v_stride, end - next, width);
        }
        cp_async_commit();
        if (STAGES == 1) {
            cp_async_wait<0>();
            __syncthreads();
        }
        int first_key = key + 16 * warp;
        if (!bounds.reaches(first_key, 16)) continue;
        float s[1][2][4];
        clear<1, 2>(s);
        product_by_width<W, 1, 16>(s, q_tile, k_tiles + (stage * BK + 16 * warp) * W, by_rows, by_chunks);
        if (!bounds.is_full(first_key, 16)) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int2 sees = rows[8 * h + group];
                int from = first_key + 2 * pair - sees.x;
                u32 n_seen = (u32)(sees.y - sees.x);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if ((u32)(from + i / 2 * 8 + i % 2) >= n_seen) s[0][i / 2][2 * h + i % 2] = -INFINITY;
                }
            }
        }
        softmax_step<W, 1, 16>(s, acc, row_max, row_sum, scale_log2);
        product_by_rows<W, 1, 16>(acc, s, v_tiles + (stage * BK + 16 * warp) * W, by_rows);
    }

    // The warps' sums into the room of the tiles, [warp, row, W], and from there together.
    cp_async_wait<0>();
    __syncthreads();
    float* sums = (float*)k_tiles;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = row_sum[0][h];
        sum += __shfl_xor_sync(FULL_MASK, sum, 1);
        sum += __shfl_xor_sync(FULL_MASK, sum, 2);
        int row = warp * ROWS + 8 * h + group;
        if (pair == 0) warp_stats[row] = make_float2(row_max[0][h] * scale_log2, sum);
#pragma unroll
        for (int e = 0; e < W / 8; e++) {
            *(float2*)(sums + row * W + 8 * e + 2 * pair) = make_float2(acc[0][e][2 * h], acc[0][e][2 * h + 1]);
        }
    }
    __syncthreads();
    i64 parts = (i64)gridDim.z * n_kv_heads * n_rows * n_splits;
    for (int r = warp; r < ROWS && row0 + r < n_rows; r += N_WARPS) {
        float all_max = -INFINITY, sum = 0.0f, factor[N_WARPS];
#pragma unroll
        for (int w = 0; w < N_WARPS; w++) all_max = fmaxf(all_max, warp_stats[w * ROWS + r].x);
#pragma unroll
        for (int w = 0; w < N_WARPS; w++) {
            factor[w] = exp2_fast(warp_stats[w * ROWS + r].x - (all_max == -INFINITY ? 0.0f : all_max));
            sum += warp_stats[w * ROWS + r].y * factor[w];
        }
        i64 to = ((i64)(b * n_kv_heads + kv_head) * n_rows + row0 + r) * n_splits + split;
        for (int e = lane; e < width; e += WARP) {
            float x = 0.0f;
#pragma unroll
            for (int w = 0; w < N_WARPS; w++) x += sums[(w * ROWS + r) * W + e] * factor[w];
            workspace[2 * parts + to * width + e] = x;
        }
        if (lane == 0) *(float2*)(workspace + 2 * to) = make_float2(all_max, sum);
    }
}

// As attention_decode of kernel.cu, 16 rows at once; better from about 3 rows on. n_keys is read from n_keys_ptr unless that is null.
// workspace: B * H * Tq * n_splits * (E + 2) floats.
//
// Grid (n_splits, K * ceil(H / K * Tq / 16), B), 128 threads. Choose n_splits so that there are about three blocks per multiprocessor,
// with at least 128 keys each. Dynamic shared memory:
//   W   32: 18048 bytes    64: 35456    96: 52864    128: 70272    192: 55936    256: 74368
#define FLASH_DECODE(W, STAGES, BLOCKS)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) flash_decode_##W(                                                  \
        const T* q, const T* k, const T* v, float* workspace, const int* intervals, const int* n_keys_ptr, int q_stride,             \
        int k_stride, int v_stride, int tq, int tk, int n_heads, int n_kv_heads, int width, int causal, int window, int n_keys,      \
        float scale, int n_splits) {                                                                                                 \
        Mask mask(intervals, causal, window, n_keys_ptr ? *n_keys_ptr : n_keys, tq);                                                 \
        decode<W, STAGES>(q, k, v, workspace, mask, q_stride, k_stride, v_stride, tk, n_heads, n_kv_heads, width, scale, n_splits);  \
    }
FLASH_DECODE(32, 2, 4)
FLASH_DECODE(64, 2, 4)
FLASH_DECODE(96, 2, 4)
FLASH_DECODE(128, 2, 3)
FLASH_DECODE(192, 1, 2)
FLASH_DECODE(256, 1, 2)

#endif
