// The gradients of plain_forward.cu, by the formulas of `attention.cuh`. Each kernel is named by
// its width W and takes E <= W.
#include "plain.cuh"

template <int W, int R>
DEVICE void backward_q(const T* q, const T* k, const T* v, const T* dout, const float* stats, T* dq,
    const Mask& mask, int q_stride, int k_stride, int v_stride, int dq_stride, int tk, int n_heads,
    int n_kv_heads, int width, float scale, int accumulate) {
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
    load_rows<W, ROWS>(q_tile, q + first_token * q_stride + (i64)head * width, q_stride, tq - q0,
        width);
    load_rows<W, ROWS>(dout_tile, dout + (first_token * n_heads + head) * width, n_heads * width,
        tq - q0, width);
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
    write_rows<W, R>(acc, factor, dq + first_token * dq_stride + (i64)head * width, dq_stride,
        tq - q0, width, accumulate);
}

// dq [B, Tq, H, E], overwritten or, with `accumulate`, added to.
//
// Grid (ceil(Tq / ROWS) * H / K, K, B), 256 threads. ROWS, dynamic shared memory:
//   W   32: 64, 54800 bytes    64: 64, 87568    128: 32, 72464    256: 16, 67984
#define ATTENTION_BACKWARD_Q(W, R) \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) attention_backward_q_##W( \
        const T* q, const T* k, const T* v, const T* dout, const float* stats, \
            const int* intervals, T* dq, int q_stride, \
        int k_stride, int v_stride, int dq_stride, int tq, int tk, int n_heads, int n_kv_heads, \
            int width, int causal, int window, \
        int n_keys, float scale, int accumulate) { \
        backward_q<W, R>(q, k, v, dout, stats, dq, Mask(intervals, causal, window, n_keys, tq), \
            q_stride, k_stride, v_stride, dq_stride, tk, n_heads, n_kv_heads, width, scale, \
            accumulate); \
    }
ATTENTION_BACKWARD_Q(32, 4)
ATTENTION_BACKWARD_Q(64, 4)
ATTENTION_BACKWARD_Q(128, 2)
ATTENTION_BACKWARD_Q(256, 1)

template <int W, int R>
DEVICE void backward_kv(const T* q, const T* k, const T* v, const T* dout, const float* stats,
    const int* tile_bounds, T* dk, T* dv, const Mask& mask, int q_stride, int k_stride,
    int v_stride, int dk_stride, int dv_stride, int tk, int n_heads, int n_kv_heads, int width,
    float scale, int accumulate) {
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
    load_rows<W, ROWS>(k_tile, k + first_token * k_stride + (i64)kv_head * width, k_stride,
        mask.n_keys - k0, width);
    load_rows<W, ROWS>(v_tile, v + first_token * v_stride + (i64)kv_head * width, v_stride,
        mask.n_keys - k0, width);

    float dk_acc[R][Columns<W>::N], dv_acc[R][Columns<W>::N];
    clear<R, Columns<W>::N>(dk_acc);
    clear<R, Columns<W>::N>(dv_acc);
    const float scale_log2 = scale * LOG2_E;
    for (int head = kv_head * per_kv; head < (kv_head + 1) * per_kv; head++) {
        for (int q0 = 0; q0 < tq; q0 += ROWS) {
            if (!tile_bounds_of(mask, tile_bounds, b, q0, ROWS).reaches(k0, ROWS)) continue;
            __syncthreads();
            i64 token = (i64)b * tq + q0;
            load_rows<W, ROWS>(q_tile, q + token * q_stride + (i64)head * width, q_stride, tq - q0,
                width);
            load_rows<W, ROWS>(dout_tile, dout + (token * n_heads + head) * width, n_heads * width,
                tq - q0, width);
            for (int i = threadIdx.x; i < ROWS; i += BLOCK_THREADS) {
                bool valid = q0 + i < tq;
                columns[i] = valid ? mask.interval(b, q0 + i) : make_int2(0, 0);
                float2 stat = make_float2(0.0f, 0.0f);
                if (valid)
                    stat = *(const float2*)(stats + 2 * (((i64)b * n_heads + head) * tq + q0 + i));
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
        write_rows<W, R>(dk_acc, factor, dk + first_token * dk_stride + (i64)kv_head * width,
            dk_stride, tk - k0, width, accumulate);
    }
    if (dv) {
#pragma unroll
        for (int r = 0; r < R; r++) factor[r] = 1.0f;
        write_rows<W, R>(dv_acc, factor, dv + first_token * dv_stride + (i64)kv_head * width,
            dv_stride, tk - k0, width, accumulate);
    }
}

// dk and dv [B, Tk, K, E] (each may be null), all Tk keys: 0 for those that nobody sees.
// Overwritten or, with `accumulate`, added to. `tile_bounds` for tiles of ROWS queries is needed
// only if intervals are given.
//
// Grid (ceil(Tk / ROWS), K, B), 256 threads. ROWS, dynamic shared memory:
//   W   32: 64, 55296 bytes    64: 64, 88064    128: 32, 72704    256: 16, 68096
#define ATTENTION_BACKWARD_KV(W, R) \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) attention_backward_kv_##W( \
        const T* q, const T* k, const T* v, const T* dout, const float* stats, \
            const int* intervals, const int* tile_bounds, T* dk, \
        T* dv, int q_stride, int k_stride, int v_stride, int dk_stride, int dv_stride, int tq, \
            int tk, int n_heads, int n_kv_heads, \
        int width, int causal, int window, int n_keys, float scale, int accumulate) { \
        backward_kv<W, R>(q, k, v, dout, stats, tile_bounds, dk, dv, \
            Mask(intervals, causal, window, n_keys, tq), q_stride, k_stride, v_stride, dk_stride, \
            dv_stride, tk, n_heads, n_kv_heads, width, scale, accumulate); \
    }
ATTENTION_BACKWARD_KV(32, 4)
ATTENTION_BACKWARD_KV(64, 4)
ATTENTION_BACKWARD_KV(128, 2)
ATTENTION_BACKWARD_KV(256, 1)
