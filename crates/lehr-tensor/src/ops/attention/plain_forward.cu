// Attention on ordinary arithmetic units: every T and every width up to 256. For f32 it is the only
// way; flash_forward.cu has tensor cores for the others. `attention.cuh` says what the tensors and
// masks are, `plain.cuh` which rows are fast.
//
// Each kernel is named by its width W and takes E <= W.
#include "plain.cuh"

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
    for (int lane = SIDE / 2; lane > 0; lane >>= 1)
        x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, lane));
    return x;
}
DEVICE float half_warp_sum(float x) {
#pragma unroll
    for (int lane = SIDE / 2; lane > 0; lane >>= 1) x += __shfl_xor_sync(FULL_MASK, x, lane);
    return x;
}

template <int W, int R>
DEVICE void forward(const T* q, const T* k, const T* v, T* out, float* lse, const Mask& mask,
    int q_stride, int k_stride, int v_stride, int tk, int n_heads, int n_kv_heads, int width,
    float scale) {
    const int ROWS = SIDE * R;
    DYNAMIC_SHARED(float, q_tile);
    // First the keys, then the values.
    float* kv_tile = q_tile + ROWS * row_stride<W>();
    float* p_tile = kv_tile + ROWS * row_stride<W>();
    int2* rows = (int2*)(p_tile + ROWS * row_stride<ROWS>());
    Bounds* scratch = (Bounds*)(rows + ROWS);

    int ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    // Heads that share keys are neighbours in the grid. The last queries come first: if the mask is
    // causal, they have the most to do.
    int per_kv = n_heads / n_kv_heads, n_tiles = gridDim.x / per_kv, tq = mask.tq;
    int kv_head = blockIdx.y, head = kv_head * per_kv + blockIdx.x % per_kv, b = blockIdx.z;
    int q0 = (n_tiles - 1 - blockIdx.x / per_kv) * ROWS;
    i64 first_token = (i64)b * tq + q0;
    load_rows<W, ROWS>(q_tile, q + first_token * q_stride + (i64)head * width, q_stride, tq - q0,
        width);
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
            lse[((i64)b * n_heads + head) * tq + q0 + row] = sees_some ? row_max[r] + logf(sum)
                : -INFINITY;
        }
    }
    write_rows<W, R>(acc, factor, out + (first_token * n_heads + head) * width, n_heads * width,
        tq - q0, width, 0);
}

// out = softmax(scale * q k^T + mask) v and, if lse is not null, lse = ln(sum of exp(score)).
//
// Grid (ceil(Tq / ROWS) * H / K, K, B), 256 threads. ROWS, dynamic shared memory:
//   W   32: 64, 36368 bytes    64: 64, 52752    128: 64, 85520    256: 32, 71440
#define ATTENTION_FORWARD(W, R) \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) attention_forward_##W( \
        const T* q, const T* k, const T* v, T* out, float* lse, const int* intervals, \
            int q_stride, int k_stride, int v_stride, int tq, \
        int tk, int n_heads, int n_kv_heads, int width, int causal, int window, int n_keys, \
            float scale) { \
        forward<W, R>(q, k, v, out, lse, Mask(intervals, causal, window, n_keys, tq), q_stride, \
            k_stride, v_stride, tk, n_heads, n_kv_heads, width, scale); \
    }
ATTENTION_FORWARD(32, 4)
ATTENTION_FORWARD(64, 4)
ATTENTION_FORWARD(128, 4)
ATTENTION_FORWARD(256, 2)
