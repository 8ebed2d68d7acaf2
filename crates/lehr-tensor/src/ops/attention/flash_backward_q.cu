// The gradients of queries of flash_forward.cu; `flash.cuh` has its parts.
//
// For one tile of queries, summed over tiles of keys (Dao 2023, "FlashAttention-2",
// https://arxiv.org/abs/2307.08691):
//
//   s  = q k^T                      [BQ, N]
//   p  = exp(scale s - lse)         [BQ, N]   the final weights, thanks to the saved lse
//   dp = dout v^T                   [BQ, N]
//   ds = p (dp - delta)             [BQ, N]   delta = sum_e dout out, from attention_stats
//   dq = scale sum over tiles ds k  [BQ, E]
//
// Why backward is two kernels: dq is a sum over keys, dk and dv are sums over queries. A block can
// keep only one kind of sum in its registers. A single kernel, as in FlashAttention-2, adds the
// other kind atomically to global memory, in an order that differs from run to run, and so do the
// bits. Here no sum leaves its block, at the price of computing s and dp twice: 7 products per pair
// of tiles instead of 5.
//
// Keys and values are copied one tile ahead, as in flash_forward.cu.
#include "flash.cuh"

#if LEHR_T != 0

// dq of one block of 64 * MT queries of one head, N keys at a time. Shared memory: queries, dout,
// two tiles of BK keys and values, the intervals and the stats.
template <int W, int MT, int BK, int N>
DEVICE void backward_q(const T* q, const T* k, const T* v, const T* dout, const float* stats, T* dq,
    const Mask& mask, int q_stride, int k_stride, int v_stride, int dq_stride, int tk, int n_heads,
    int n_kv_heads, int width, float scale, int accumulate) {
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

    copy_rows<W, BQ>(q_tile, q + first_token * q_stride + (i64)head * width, q_stride, tq - q0,
        width);
    copy_rows<W, BQ>(dout_tile, dout + (first_token * n_heads + head) * width, n_heads * width,
        tq - q0, width);
    if (threadIdx.x < BQ) {
        // Beyond Tq all inputs are zero, so such queries add nothing.
        int i = threadIdx.x;
        cp_async_8(row_stats + i, stats + 2 * (((i64)b * n_heads + head) * tq + q0 + i),
            i < tq - q0);
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
            copy_rows<W, BK>(k_tiles + other, k + (i64)next * k_stride, k_stride,
                mask.n_keys - next, width);
            copy_rows<W, BK>(v_tiles + other, v + (i64)next * v_stride, v_stride,
                mask.n_keys - next, width);
        }
        cp_async_commit();
        const Bounds mine = scratch[warp];
        if (!mine.reaches(key, BK)) continue;
        const bool edge = !mine.is_full(key, BK);

        // N keys at a time, because p and dp of a whole tile would not fit into the registers.
#pragma unroll 1
        for (int column = 0; column < BK; column += N) {
            const T* k_tile = k_tiles + (stage * BK + column) * W;
            const T* v_tile = v_tiles + (stage * BK + column) * W;
            float p[MT][N / 8][4], dp[MT][N / 8][4];
            clear<MT, N / 8>(p);
            product_by_width<W, MT, N, UNROLL>(p, q_tile + first_row * W, k_tile, by_rows,
                by_chunks);
            clear<MT, N / 8>(dp);
            product_by_width<W, MT, N, UNROLL>(dp, dout_tile + first_row * W, v_tile, by_rows,
                by_chunks);
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float2 stat = row_stats[first_row + 16 * m + 8 * h + group];
#pragma unroll
                    for (int n = 0; n < N / 8; n++) {
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            // stat = (lse in base 2, delta).
                            float weight = exp2_t(p[m][n][2 * h + j] * scale_log2 - stat.x);
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
    write_rows<W, MT>(q_tile + first_row * W, acc, factor, dq, dq_stride, tq - q0 - first_row,
        width, accumulate);
}

// dq [B, Tq, H, E]. With `accumulate` it is added to.
//
// Grid (ceil(Tq / BQ) * H / K, K, B), 128 threads.
//   W                            32      64      96     128     192     256
//   BQ                          128     128     128     128      64      64
//   dynamic shared memory     34896   67664   75856  100432   99408   99408 bytes
#define FLASH_BACKWARD_Q(W, MT, BK, N, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) flash_backward_q_##W( \
        const T* q, const T* k, const T* v, const T* dout, const float* stats, \
            const int* intervals, T* dq, int q_stride, \
        int k_stride, int v_stride, int dq_stride, int tq, int tk, int n_heads, int n_kv_heads, \
            int width, int causal, int window, \
        int n_keys, float scale, int accumulate) { \
        backward_q<W, MT, BK, N>(q, k, v, dout, stats, dq, \
            Mask{intervals, causal, window, n_keys, tq}, q_stride, k_stride, v_stride, dq_stride, \
            tk, n_heads, n_kv_heads, width, scale, accumulate); \
    }
FLASH_BACKWARD_Q(32, 2, 64, 32, 2)
FLASH_BACKWARD_Q(64, 2, 64, 32, 2)
FLASH_BACKWARD_Q(96, 2, 32, 32, 2)
FLASH_BACKWARD_Q(128, 2, 32, 32, 2)
FLASH_BACKWARD_Q(192, 1, 32, 32, 2)
FLASH_BACKWARD_Q(256, 1, 16, 16, 2)

#endif
