// Layer normalisation, alone and after a residual addition, and its gradients.
//
// Blocks and grids: see rows.cuh, "threads of a row".
#include "rows.cuh"

// The mean is known before the deviations from it are squared: rows far from 0 keep their digits.
template <bool ADD>
DEVICE void forward_rows(const T* x, const T* delta, const float* weight, const float* bias, T* sum,
    T* y, float* mean, float* rstd, float eps, int rows, int d) {
    __shared__ float scratch[2][32];
    const bool in_registers = is_packed(d) && d / LANES <= FORWARD_PACKS * (int)blockDim.x;
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += (i64)gridDim.x * blockDim.y) {
        // Threads without a row go along: they are needed in the sums.
        const i64 row = first + threadIdx.y, at = row * d;
        const bool valid = row < rows;
        float total = 0.0f, square = 0.0f;
        if (in_registers) {
            Bits v[FORWARD_PACKS] = {}, added[FORWARD_PACKS] = {};
            load_row(v, x + at, valid, d);
            if (ADD) load_row(added, delta + at, valid, d);
#pragma unroll
            for (int p = 0; p < FORWARD_PACKS; p++) {
                int column = pack_column(p);
                if (ADD) {
                    v[p] = add_rounded(v[p], added[p]);
                    if (valid && column < d) *(Bits*)(sum + at + column) = v[p];
                }
#pragma unroll
                for (int i = 0; i < LANES; i++) total += element(v[p], i);
            }
            const float m = row_sum(total, scratch[0]) / d;
#pragma unroll
            for (int p = 0; p < FORWARD_PACKS; p++) {
                int column = pack_column(p);
                if (column >= d) continue;
                stay_packed(v[p]);
#pragma unroll
                for (int i = 0; i < LANES; i++) {
                    float difference = element(v[p], i) - m;
                    square += difference * difference;
                }
            }
            const float r = 1.0f / sqrtf(row_sum(square, scratch[1]) / d + eps);
            if (valid && threadIdx.x == 0) {
                if (mean != nullptr) mean[row] = m;
                if (rstd != nullptr) rstd[row] = r;
            }
#pragma unroll
            for (int p = 0; p < FORWARD_PACKS; p++) {
                int column = pack_column(p);
                if (!valid || column >= d) continue;
                float w[LANES], b[LANES] = {};
                load_floats<LANES>(weight + column, w);
                if (bias != nullptr) load_floats<LANES>(bias + column, b);
                stay_packed(v[p]);
                PackT out;
#pragma unroll
                for (int i = 0; i < LANES; i++)
                    out.v[i] = from_f32<T>((element(v[p], i) - m) * r * w[i] + b[i]);
                store_pack(y + at + column, out);
            }
        } else {
            const int width = valid ? d : 0;
            for (int c = threadIdx.x; c < width; c += blockDim.x) {
                T v = x[at + c];
                if (ADD) sum[at + c] = v = from_f32<T>(to_f32(v) + to_f32(delta[at + c]));
                total += to_f32(v);
            }
            const float m = row_sum(total, scratch[0]) / d;
            // Each thread reads again what it read or wrote itself.
            const T* from = ADD ? sum : x;
            for (int c = threadIdx.x; c < width; c += blockDim.x) {
                float difference = to_f32(from[at + c]) - m;
                square += difference * difference;
            }
            const float r = 1.0f / sqrtf(row_sum(square, scratch[1]) / d + eps);
            if (valid && threadIdx.x == 0) {
                if (mean != nullptr) mean[row] = m;
                if (rstd != nullptr) rstd[row] = r;
            }
            for (int c = threadIdx.x; c < width; c += blockDim.x) {
                float b = bias != nullptr ? bias[c] : 0.0f;
                y[at + c] = from_f32<T>((to_f32(from[at + c]) - m) * r * weight[c] + b);
            }
        }
    }
}

// y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(mean((x - mean)^2) + eps). x, y [rows, d] T;
// weight, bias [d] f32, bias may be null; mean, rstd [rows] f32, either may be null. Block:
// per_thread = FORWARD_PACKS. Grid: ceil(rows / blockDim.y), or less. No dynamic shared memory.
extern "C" __global__ void __launch_bounds__(896) layer_norm_forward(const T* x,
    const float* weight, const float* bias, T* y, float* mean, float* rstd, float eps, int rows,
    int d) {
    forward_rows<false>(x, nullptr, weight, bias, nullptr, y, mean, rstd, eps, rows, d);
}

// sum = x + delta, rounded to T; normed = layer_norm(sum). `sum` may be x or delta.
// x, delta, sum, normed [rows, d] T; the rest and the launch as layer_norm_forward.
extern "C" __global__ void __launch_bounds__(896) add_layer_norm_forward(const T* x, const T* delta,
    const float* weight, const float* bias, T* sum, T* normed, float* mean, float* rstd, float eps,
    int rows, int d) {
    forward_rows<true>(x, delta, weight, bias, sum, normed, mean, rstd, eps, rows, d);
}

// row_sum of two numbers at once; `scratch` holds 64 floats.
DEVICE void row_sums(float& a, float& b, float* scratch) {
    int lane = min((int)blockDim.x, WARP) / 2;
    for (; lane > 0; lane >>= 1) {
        a += __shfl_xor_sync(FULL_MASK, a, lane);
        b += __shfl_xor_sync(FULL_MASK, b, lane);
    }
    if (blockDim.x <= WARP) return;
    lane = threadIdx.x % WARP;
    if (lane == 0) {
        scratch[threadIdx.x / WARP] = a;
        scratch[32 + threadIdx.x / WARP] = b;
    }
    __syncthreads();
    const bool valid = lane < (int)blockDim.x / WARP;
    a = warp_sum(valid ? scratch[lane] : 0.0f);
    b = warp_sum(valid ? scratch[32 + lane] : 0.0f);
}

// What a thread holds of a row.
struct RowPart : RowPair {
    float mean, rstd;
};
DEVICE void load_part(RowPart& part, const T* x, const T* dy, const float* mean, const float* rstd,
    i64 row, int rows, int d) {
    load_pair(part, x, dy, row, rows, d);
    part.mean = row < rows ? mean[row] : 0.0f;
    part.rstd = row < rows ? rstd[row] : 0.0f;
}

// Rows that fit in registers: the next row is on its way while one is worked on, and dweight and
// dbias are summed in registers.
DEVICE void backward_in_registers(const T* x, const float* weight, const float* mean,
    const float* rstd, const T* dy, const T* base, T* dx, float* weight_partials,
    float* bias_partials, float* sums, int rows, int d) {
    __shared__ float scratch[2][64];
    float dw[BACKWARD_PACKS][LANES] = {}, db[BACKWARD_PACKS][LANES] = {};
    const i64 stride = (i64)gridDim.x * blockDim.y;
    i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    RowPart part;
    load_part(part, x, dy, mean, rstd, row, rows, d);
    int turn = 0;
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += stride, row += stride, turn ^= 1) {
        RowPart next;
        load_part(next, x, dy, mean, rstd, row + stride, rows, d);
        Bits added[BACKWARD_PACKS] = {};
        const bool adds = base != nullptr && row < rows;
        const float m = part.mean, r = part.rstd;
        float shift = 0.0f, pull = 0.0f;
#pragma unroll
        for (int p = 0; p < BACKWARD_PACKS; p++) {
            int column = pack_column(p);
            if (adds && column < d) added[p] = load_bits_once(base + row * d + column);
        }
#pragma unroll
        for (int p = 0; p < BACKWARD_PACKS; p++) {
            int column = pack_column(p);
            float w[LANES] = {};
            if (column < d) load_floats<LANES>(weight + column, w);
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                float g = element(part.dy[p], i) * w[i];
                shift += g;
                pull += g * ((element(part.x[p], i) - m) * r);
            }
        }
        row_sums(shift, pull, scratch[turn]);
        shift /= d;
        pull /= d;
#pragma unroll
        for (int p = 0; p < BACKWARD_PACKS; p++) {
            int column = pack_column(p);
            if (column >= d) continue;
            stay_packed(part.x[p]);
            stay_packed(part.dy[p]);
            float w[LANES];
            load_floats<LANES>(weight + column, w);
            PackT out;
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                float x_hat = (element(part.x[p], i) - m) * r, dyi = element(part.dy[p], i);
                dw[p][i] += dyi * x_hat;
                db[p][i] += dyi;
                // `added` is 0 where nothing is to be added.
                out.v[i] = from_f32<T>(element(added[p], i)
                    + r * (dyi * w[i] - shift - x_hat * pull));
            }
            if (dx != nullptr && row < rows) store_pack(dx + row * d + column, out);
        }
        part = next;
    }
    const bool several = blockDim.y > 1;
    if (weight_partials != nullptr) {
        float* mine = several ? sums + threadIdx.y * d : weight_partials + (i64)blockIdx.x * d;
        store_sums(mine, dw, d);
    }
    if (bias_partials != nullptr) {
        float* mine = several ? sums + (blockDim.y + threadIdx.y) * d
            : bias_partials + (i64)blockIdx.x * d;
        store_sums(mine, db, d);
    }
    if (!several) return;
    __syncthreads();
    if (weight_partials != nullptr) write_partial(sums, weight_partials, d);
    if (bias_partials != nullptr) write_partial(sums + blockDim.y * d, bias_partials, d);
}

// Other rows: N neighbours at once, dweight and dbias summed in memory that only this thread
// touches.
template <int N>
DEVICE void backward_in_memory(const T* x, const float* weight, const float* mean,
    const float* rstd, const T* dy, const T* base, T* dx, float* weight_partials,
    float* bias_partials, float* sums, int rows, int d) {
    __shared__ float scratch[2][64];
    const bool in_shared = blockDim.y > 1 || d * 2 * (int)sizeof(float) <= SHARED_SUMS_MAX;
    float* dw = weight_partials == nullptr ? nullptr : in_shared ? sums + threadIdx.y * d
        : weight_partials + (i64)blockIdx.x * d;
    float* db = bias_partials == nullptr ? nullptr
                : in_shared              ? sums + (blockDim.y + threadIdx.y) * d
                                         : bias_partials + (i64)blockIdx.x * d;
    const int step = blockDim.x * N;
    const float zeros[N] = {};
    for (int c = threadIdx.x * N; c < d; c += step) {
        if (dw != nullptr) store_floats<N>(dw + c, zeros);
        if (db != nullptr) store_floats<N>(db + c, zeros);
    }
    int turn = 0;
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += (i64)gridDim.x * blockDim.y, turn ^= 1) {
        const i64 row = first + threadIdx.y, at = row * d;
        const int width = row < rows ? d : 0;
        const float m = row < rows ? mean[row] : 0.0f, r = row < rows ? rstd[row] : 0.0f;
        float shift = 0.0f, pull = 0.0f;
        for (int c = threadIdx.x * N; c < width; c += step) {
            Pack<T, N> xs = load_pack<T, N>(x + at + c), dys = load_pack<T, N>(dy + at + c);
            float w[N];
            load_floats<N>(weight + c, w);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float g = to_f32(dys.v[i]) * w[i];
                shift += g;
                pull += g * ((to_f32(xs.v[i]) - m) * r);
            }
        }
        row_sums(shift, pull, scratch[turn]);
        shift /= d;
        pull /= d;
        for (int c = threadIdx.x * N; c < width; c += step) {
            Pack<T, N> xs = load_pack<T, N>(x + at + c), dys = load_pack<T, N>(dy + at + c),
                out = {};
            if (base != nullptr) out = load_pack<T, N>(base + at + c);
            float w[N], w_sum[N] = {}, b_sum[N] = {};
            load_floats<N>(weight + c, w);
            if (dw != nullptr) load_floats<N>(dw + c, w_sum);
            if (db != nullptr) load_floats<N>(db + c, b_sum);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float x_hat = (to_f32(xs.v[i]) - m) * r, dyi = to_f32(dys.v[i]);
                w_sum[i] += dyi * x_hat;
                b_sum[i] += dyi;
                out.v[i] = from_f32<T>(to_f32(out.v[i]) + r * (dyi * w[i] - shift - x_hat * pull));
            }
            if (dw != nullptr) store_floats<N>(dw + c, w_sum);
            if (db != nullptr) store_floats<N>(db + c, b_sum);
            if (dx != nullptr) store_pack(dx + at + c, out);
        }
    }
    if (!in_shared) return;
    __syncthreads();
    if (weight_partials != nullptr) write_partial(sums, weight_partials, d);
    if (bias_partials != nullptr) write_partial(sums + blockDim.y * d, bias_partials, d);
}

// dx = base + rstd (g - mean(g) - x_hat mean(g x_hat)) with g = dy weight and x_hat = (x - mean)
// rstd, and each block's share of dweight and dbias: weight_partials[block, c] = sum over the
// block's rows of dy x_hat, bias_partials[block, c] = sum of dy. x, dy, dx, base [rows, d] T;
// weight [d], mean, rstd [rows], partials [gridDim.x, d] f32. `base` null counts as 0 and may be
// dx: to add to dx, give dx itself; after a residual addition, give the gradient of the sum. What
// is not wanted (dx, partials) is null. Block: per_thread = BACKWARD_PACKS. Grid: as many blocks as
// the device runs at once, about n_SMs * max(1, min(8, 512 / (blockDim.x blockDim.y))), and at most
// ceil(rows / blockDim.y). Dynamic shared memory: 2 * blockDim.y * d * 4 bytes if any partials are
// given and either blockDim.y > 1, or the row does not fit in registers (d % LANES != 0 or d > 2 *
// LANES * blockDim.x) and that is at most 96 KiB; else 0.
extern "C" __global__ void __launch_bounds__(512) layer_norm_backward(const T* x,
    const float* weight, const float* mean, const float* rstd, const T* dy, const T* base, T* dx,
    float* weight_partials, float* bias_partials, int rows, int d) {
    DYNAMIC_SHARED(float, sums);
    if (!is_packed(d)) {
        backward_in_memory<1>(x, weight, mean, rstd, dy, base, dx, weight_partials, bias_partials,
            sums, rows, d);
    } else if (d / LANES <= BACKWARD_PACKS * (int)blockDim.x) {
        backward_in_registers(x, weight, mean, rstd, dy, base, dx, weight_partials, bias_partials,
            sums, rows, d);
    } else {
        backward_in_memory<LANES>(x, weight, mean, rstd, dy, base, dx, weight_partials,
            bias_partials, sums, rows, d);
    }
}

// out (+)= the sum of the partials of `n_blocks` blocks, in a fixed order. partials [n_blocks, d],
// out [d] f32. Block (32, 32), grid ceil(d / 32).
extern "C" __global__ void __launch_bounds__(1024) layer_norm_sum_partials(const float* partials,
    float* out, int n_blocks, int d, int accumulate) {
    sum_rows_of_blocks(partials, out, n_blocks, d, accumulate);
}
