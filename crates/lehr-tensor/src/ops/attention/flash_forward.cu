// Attention on tensor cores, forward, for 16-bit T; `flash.cuh` has its parts.
//
// The online softmax (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867; Dao 2023,
// "FlashAttention-2", https://arxiv.org/abs/2307.08691) never holds a whole row of scores, so
// memory is linear in T. Each query has three running values. They start at m = -inf, l = 0, o = 0
// [E], and every tile of keys j updates them:
//
//   s_j = q . k_j
//   m'  = max(m, max_j s_j)
//   p_j = exp(scale (s_j - m'))
//   l   = l exp(scale (m - m')) + sum_j p_j
//   o   = o exp(scale (m - m')) + sum_j p_j v_j
//   m   = m'
//
// After the last tile out = o / l and lse = scale m + ln l. No exponential overflows, because its
// argument is at most 0. Exponentials are in base 2, which is what the hardware computes:
// exp(scale x) = 2^(scale_log2 x) with scale_log2 = scale log2(e).
//
// Keys and values pass through two stages of shared memory. While the tensor cores work on one, the
// next tile is copied into the other (cp.async):
//
//   copy 0 | barrier | copy 1 | barrier | copy 2 | barrier | ...
//          |         | tile 0 |         | tile 1 |         | ...
//
// One barrier per tile is enough. It means both that the tile has arrived and that no warp reads
// the stage which the next copy overwrites.
#include "flash.cuh"

#if LEHR_T != 0

// One block: 64 * MT queries of one head. Shared memory: the queries, two tiles of BK keys and
// values, the intervals.
template <int W, int MT, int BK>
DEVICE void forward(const T* q, const T* k, const T* v, T* out, float* lse, const Mask& mask,
    int q_stride, int k_stride, int v_stride, int tk, int n_heads, int n_kv_heads, int width,
    float scale) {
    const int BQ = 64 * MT;
    DYNAMIC_SHARED(T, q_tile);
    T* k_tiles = q_tile + BQ * W;
    T* v_tiles = k_tiles + 2 * BK * W;
    int2* rows = (int2*)(v_tiles + 2 * BK * W);
    Bounds* scratch = (Bounds*)(rows + BQ);
    Place* place = (Place*)(scratch + N_WARPS);

    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, pair = lane % 4;
    // Heads that share keys are neighbours in the grid. The last queries come first: if the mask is
    // causal, they have the most to do.
    int per_kv = n_heads / n_kv_heads, n_tiles = gridDim.x / per_kv, tq = mask.tq;
    int kv_head = blockIdx.y, head = kv_head * per_kv + blockIdx.x % per_kv, b = blockIdx.z;
    int q0 = (n_tiles - 1 - blockIdx.x / per_kv) * BQ, first_row = warp * 16 * MT;
    i64 first_token = (i64)b * tq + q0;

    copy_rows<W, BQ>(q_tile, q + first_token * q_stride + (i64)head * width, q_stride, tq - q0,
        width);
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
        // The running maximum is that of q k, before the scale, so a negative sign goes into q.
        cp_async_wait<0>();
        __syncthreads();
        u32* two = (u32*)q_tile;
        for (int i = threadIdx.x; i < BQ * W / 2; i += THREADS)
            two[i] = scale < 0.0f ? two[i] ^ 0x80008000u : 0;
        scale = scale < 0.0f ? -scale : 1.0f;
    }
    const float scale_log2 = scale * LOG2_E;
    const Lane<W> by_rows = lane_by_rows<W>(), by_chunks = lane_by_chunks<W>();

    // o, m and l. As in every mma accumulator, a thread holds rows 16 m + 8 h + group (h = 0, 1)
    // and columns 8 e + 2 pair + (0, 1). The four threads of a row have the same m; each has the l
    // of its own columns, and they are added after the loop.
    float acc[MT][W / 8][4], row_max[MT][2], row_sum[MT][2];
    clear<MT, W / 8>(acc);
#pragma unroll
    for (int m = 0; m < MT; m++) {
        row_max[m][0] = row_max[m][1] = -INFINITY;
        row_sum[m][0] = row_sum[m][1] = 0.0f;
    }

    for (int stage = 0; key < all.reach_hi; key += BK, stage ^= 1) {
        cp_async_wait<0>();
        // This tile has arrived, and all warps have finished with the one before.
        __syncthreads();
        int next = key + BK;
        if (next < all.reach_hi) {
            int other = (stage ^ 1) * BK * W;
            copy_rows<W, BK>(k_tiles + other, k + (i64)next * k_stride, k_stride,
                mask.n_keys - next, width);
            copy_rows<W, BK>(v_tiles + other, v + (i64)next * v_stride, v_stride,
                mask.n_keys - next, width);
        }
        cp_async_commit();
        // The bounds of this warp's queries, read each time: registers are scarce.
        const Bounds mine = scratch[warp];
        if (!mine.reaches(key, BK)) continue;

        float s[MT][BK / 8][4];
        clear<MT, BK / 8>(s);
        product_by_width<W, MT, BK>(s, q_tile + first_row * W, k_tiles + stage * BK * W, by_rows,
            by_chunks);
        // Only tiles at an edge of the mask are tested key by key. One unsigned comparison tests
        // both ends of an interval: a key before its start wraps around to a large number.
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

    // The tile of queries becomes the buffer for the output.
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
                lse[((i64)b * n_heads + head) * tq + q0 + row] = sees_some
                    ? row_max[m][h] * scale + logf(sum) : -INFINITY;
            }
        }
    }
    int stride = n_heads * width;
    out += ((i64)b * tq + q0 + first_row) * stride + (i64)head * width;
    write_rows<W, MT>(q_tile + first_row * W, acc, factor, out, stride, tq - q0 - first_row, width,
        0);
}

// out = softmax(scale * q k^T + mask) v and, if lse is not null, lse = ln(sum of exp(score)).
//
// Grid (ceil(Tq / BQ) * H / K, K, B), 128 threads. Wide heads take half the queries and keys per
// tile, so that two blocks still fit into the registers and shared memory of a multiprocessor.
//   W                            32      64      96     128     192     256
//   BQ, queries per block       128     128     128     128      64      64
//   dynamic shared memory     25680   50256   74832   99408   74320   98896 bytes
#define FLASH_FORWARD(W, MT, BK, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
        flash_forward_##W(const T* q, const T* k, const T* v, T* out, float* lse, \
            const int* intervals, int q_stride, int k_stride, int v_stride, int tq, int tk, \
            int n_heads, int n_kv_heads, int width, int causal, int window, int n_keys, \
            float scale) { \
        forward<W, MT, BK>(q, k, v, out, lse, Mask{intervals, causal, window, n_keys, tq}, \
            q_stride, k_stride, v_stride, tk, n_heads, n_kv_heads, width, scale); \
    }
FLASH_FORWARD(32, 2, 64, 3)
FLASH_FORWARD(64, 2, 64, 2)
FLASH_FORWARD(96, 2, 64, 2)
FLASH_FORWARD(128, 2, 64, 2)
FLASH_FORWARD(192, 1, 32, 2)
FLASH_FORWARD(256, 1, 32, 2)

#endif
