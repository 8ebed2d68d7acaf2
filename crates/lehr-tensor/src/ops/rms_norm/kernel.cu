// Root-mean-square normalisation, alone and after a residual addition, and its gradients.
//
// Blocks and grids: see rows.cuh, "threads of a row".
#include "rows.cuh"

template <bool ADD>
DEVICE void forward_rows(const T* x, const T* delta, const float* weight, T* sum, T* y, float* rstd,
    float eps, float offset, int rows, int d) {
    __shared__ float scratch[2][32];
    const bool in_registers = is_packed(d) && d / LANES <= FORWARD_PACKS * (int)blockDim.x;
    int turn = 0;
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += (i64)gridDim.x * blockDim.y, turn ^= 1) {
        // Threads without a row go along: they are needed in the sums.
        const i64 row = first + threadIdx.y, at = row * d;
        const bool valid = row < rows;
        float square = 0.0f;
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
                for (int i = 0; i < LANES; i++) square += element(v[p], i) * element(v[p], i);
            }
            float r = 1.0f / sqrtf(row_sum(square, scratch[turn]) / d + eps);
            if (valid && threadIdx.x == 0 && rstd != nullptr) rstd[row] = r;
#pragma unroll
            for (int p = 0; p < FORWARD_PACKS; p++) {
                int column = pack_column(p);
                if (!valid || column >= d) continue;
                float w[LANES];
                load_floats<LANES>(weight + column, w);
                stay_packed(v[p]);
                PackT out;
#pragma unroll
                for (int i = 0; i < LANES; i++)
                    out.v[i] = from_f32<T>(element(v[p], i) * r * (w[i] + offset));
                store_pack(y + at + column, out);
            }
        } else {
            const int width = valid ? d : 0;
            for (int c = threadIdx.x; c < width; c += blockDim.x) {
                T v = x[at + c];
                if (ADD) sum[at + c] = v = from_f32<T>(to_f32(v) + to_f32(delta[at + c]));
                square += to_f32(v) * to_f32(v);
            }
            float r = 1.0f / sqrtf(row_sum(square, scratch[turn]) / d + eps);
            if (valid && threadIdx.x == 0 && rstd != nullptr) rstd[row] = r;
            // Each thread reads again what it read or wrote itself.
            const T* from = ADD ? sum : x;
            for (int c = threadIdx.x; c < width; c += blockDim.x) {
                y[at + c] = from_f32<T>(to_f32(from[at + c]) * r * (weight[c] + offset));
            }
        }
    }
}

// y = x rstd (weight + offset), rstd = 1 / sqrt(mean(x^2) + eps). x, y [rows, d] T; weight [d] f32;
// rstd [rows] f32, may be null. Block: per_thread = FORWARD_PACKS. Grid: ceil(rows / blockDim.y),
// or less. No dynamic shared memory.
extern "C" __global__ void __launch_bounds__(1024) rms_norm_forward(const T* x, const float* weight,
    T* y, float* rstd, float eps, float offset, int rows, int d) {
    forward_rows<false>(x, nullptr, weight, nullptr, y, rstd, eps, offset, rows, d);
}

// sum = x + delta, rounded to T; normed = rms_norm(sum). `sum` may be x or delta. x, delta, sum,
// normed [rows, d] T; weight [d] f32; rstd [rows] f32, may be null. Launch as rms_norm_forward.
extern "C" __global__ void __launch_bounds__(1024) add_rms_norm_forward(const T* x, const T* delta,
    const float* weight, T* sum, T* normed, float* rstd, float eps, float offset, int rows, int d) {
    forward_rows<true>(x, delta, weight, sum, normed, rstd, eps, offset, rows, d);
}

// What a thread holds of a row.
struct RowPart : RowPair {
    float rstd;
};
DEVICE void load_part(RowPart& part, const T* x, const T* dy, const float* rstd, i64 row, int rows,
    int d) {
    load_pair(part, x, dy, row, rows, d);
    part.rstd = row < rows ? rstd[row] : 0.0f;
}

// Rows that fit in registers: the next row is on its way while one is worked on, and dweight is
// summed in registers.
DEVICE void backward_in_registers(const T* x, const float* weight, const float* rstd, const T* dy,
    const T* base, T* dx, float* partials, float* sums, float offset, int rows, int d) {
    __shared__ float scratch[2][32];
    float dw[BACKWARD_PACKS][LANES] = {};
    const i64 stride = (i64)gridDim.x * blockDim.y;
    i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    RowPart part;
    load_part(part, x, dy, rstd, row, rows, d);
    int turn = 0;
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += stride, row += stride, turn ^= 1) {
        RowPart next;
        load_part(next, x, dy, rstd, row + stride, rows, d);
        Bits added[BACKWARD_PACKS] = {};
        const bool adds = base != nullptr && row < rows;
        float dot = 0.0f;
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
            for (int i = 0; i < LANES; i++)
                dot += element(part.dy[p], i) * (w[i] + offset) * element(part.x[p], i);
        }
        const float r = part.rstd, pull = row_sum(dot, scratch[turn]) * r * r / d;
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
                float xi = element(part.x[p], i), dyi = element(part.dy[p], i);
                dw[p][i] += dyi * (xi * r);
                // `added` is 0 where nothing is to be added.
                out.v[i] = from_f32<T>(element(added[p], i)
                    + r * (dyi * (w[i] + offset) - xi * pull));
            }
            if (dx != nullptr && row < rows) store_pack(dx + row * d + column, out);
        }
        part = next;
    }
    if (partials == nullptr) return;
    float* mine = blockDim.y > 1 ? sums + threadIdx.y * d : partials + (i64)blockIdx.x * d;
    store_sums(mine, dw, d);
    if (blockDim.y == 1) return;
    __syncthreads();
    write_partial(sums, partials, d);
}

// Other rows: N neighbours at once, dweight summed in memory that only this thread touches.
template <int N>
DEVICE void backward_in_memory(const T* x, const float* weight, const float* rstd, const T* dy,
    const T* base, T* dx, float* partials, float* sums, float offset, int rows, int d) {
    __shared__ float scratch[2][32];
    const bool in_shared = blockDim.y > 1 || d * (int)sizeof(float) <= SHARED_SUMS_MAX;
    float* mine = in_shared ? sums + threadIdx.y * d : partials + (i64)blockIdx.x * d;
    const int step = blockDim.x * N;
    if (partials != nullptr) {
        const float zeros[N] = {};
        for (int c = threadIdx.x * N; c < d; c += step) store_floats<N>(mine + c, zeros);
    }
    int turn = 0;
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += (i64)gridDim.x * blockDim.y, turn ^= 1) {
        const i64 row = first + threadIdx.y, at = row * d;
        const int width = row < rows ? d : 0;
        const float r = row < rows ? rstd[row] : 0.0f;
        float dot = 0.0f;
        for (int c = threadIdx.x * N; c < width; c += step) {
            Pack<T, N> xs = load_pack<T, N>(x + at + c), dys = load_pack<T, N>(dy + at + c);
            float w[N];
            load_floats<N>(weight + c, w);
#pragma unroll
            for (int i = 0; i < N; i++) dot += to_f32(dys.v[i]) * (w[i] + offset) * to_f32(xs.v[i]);
        }
        const float pull = row_sum(dot, scratch[turn]) * r * r / d;
        for (int c = threadIdx.x * N; c < width; c += step) {
            Pack<T, N> xs = load_pack<T, N>(x + at + c), dys = load_pack<T, N>(dy + at + c),
                out = {};
            if (base != nullptr) out = load_pack<T, N>(base + at + c);
            float w[N], dw[N] = {};
            load_floats<N>(weight + c, w);
            if (partials != nullptr) load_floats<N>(mine + c, dw);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float xi = to_f32(xs.v[i]), dyi = to_f32(dys.v[i]);
                dw[i] += dyi * (xi * r);
                out.v[i] = from_f32<T>(to_f32(out.v[i]) + r * (dyi * (w[i] + offset) - xi * pull));
            }
            if (partials != nullptr) store_floats<N>(mine + c, dw);
            if (dx != nullptr) store_pack(dx + at + c, out);
        }
    }
    if (partials == nullptr || !in_shared) return;
    __syncthreads();
    write_partial(sums, partials, d);
}

// dx = base + rstd (g - x rstd^2 mean(g x)) with g = dy (weight + offset), and each block's share
// of dweight: partials[block, c] = sum over the block's rows of dy x rstd. x, dy, dx, base [rows,
// d] T; weight [d], rstd [rows], partials [gridDim.x, d] f32. `base` null counts as 0 and may be
// dx: to add to dx, give dx itself; after a residual addition, give the gradient of the sum. dx
// null: only dweight; partials null: only dx. Block: per_thread = BACKWARD_PACKS. Grid: as many
// blocks as the device runs at once, about n_SMs * max(1, min(8, 640 / (blockDim.x blockDim.y))),
// and at most ceil(rows / blockDim.y). Dynamic shared memory: blockDim.y * d * 4 bytes if partials
// is given and either blockDim.y > 1, or the row does not fit in registers (d % LANES != 0 or d > 2
// * LANES * blockDim.x) and that is at most 96 KiB; else 0.
extern "C" __global__ void __launch_bounds__(512) rms_norm_backward(const T* x, const float* weight,
    const float* rstd, const T* dy, const T* base, T* dx, float* partials, float offset, int rows,
    int d) {
    DYNAMIC_SHARED(float, sums);
    if (!is_packed(d)) {
        backward_in_memory<1>(x, weight, rstd, dy, base, dx, partials, sums, offset, rows, d);
    } else if (d / LANES <= BACKWARD_PACKS * (int)blockDim.x) {
        backward_in_registers(x, weight, rstd, dy, base, dx, partials, sums, offset, rows, d);
    } else {
        backward_in_memory<LANES>(x, weight, rstd, dy, base, dx, partials, sums, offset, rows, d);
    }
}

// dweight (+)= the sum of the partials of `n_blocks` blocks, in a fixed order. partials [n_blocks,
// d], dweight [d] f32. Block (32, 32), grid ceil(d / 32).
extern "C" __global__ void __launch_bounds__(1024) rms_norm_sum_partials(const float* partials,
    float* dweight, int n_blocks, int d, int accumulate) {
    sum_rows_of_blocks(partials, dweight, n_blocks, d, accumulate);
}
