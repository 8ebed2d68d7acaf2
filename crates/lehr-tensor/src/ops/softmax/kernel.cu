// Softmax along the last dimension.
//
// Threads of a row. The caller picks the block from the row's width d: t = ceil(ceil(d / LANES) /
// 4), LANES = 16 / sizeof(T):
//   t <= 32: block (x, 256 / x), x = t rounded up to a power of two, at least 8: several rows per
//            block;
//   t > 32:  block (x, 1), x = t rounded up to a multiple of 32, at most 1024.
// Any block of one of these two forms gives right results; rows of more than 4 x packs,
// or of a width that is no multiple of LANES, are read twice. Grid: ceil(rows / blockDim.y), or
// less. No dynamic shared memory.
#include "common.cuh"

#define PACKS 4

// Reads rows twice: the maximum and the sum in one pass, which rescales the sum when the maximum
// grows (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867).
template <int N>
DEVICE void forward_in_memory(const T* x, T* y, int rows, int d) {
    __shared__ float scratch[2][32];
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += (i64)gridDim.x * blockDim.y) {
        const i64 at = (first + threadIdx.y) * d;
        const int width = first + threadIdx.y < rows ? d : 0, step = blockDim.x * N;
        // -FLT_MAX, not -infinity: e^(-infinity + infinity) would be NaN.
        float max = -3.402823466e38f, sum = 0.0f;
#pragma unroll 2
        for (int c = threadIdx.x * N; c < width; c += step) {
            Pack<T, N> v = load_pack<T, N>(x + at + c);
            float peak = to_f32(v.v[0]);
#pragma unroll
            for (int i = 1; i < N; i++) peak = fmaxf(peak, to_f32(v.v[i]));
            if (peak > max) {
                sum *= exp_for_t(max - peak);
                max = peak;
            }
#pragma unroll
            for (int i = 0; i < N; i++) sum += exp_for_t(to_f32(v.v[i]) - max);
        }
        const float top = row_max(max, scratch[0]);
        const float scale = 1.0f / row_sum(sum * exp_for_t(max - top), scratch[1]);
#pragma unroll 2
        for (int c = threadIdx.x * N; c < width; c += step) {
            Pack<T, N> v = load_pack<T, N>(x + at + c);
#pragma unroll
            for (int i = 0; i < N; i++)
                v.v[i] = from_f32<T>(exp_for_t(to_f32(v.v[i]) - top) * scale);
            store_pack(y + at + c, v);
        }
    }
}

DEVICE void forward_in_registers(const T* x, T* y, int rows, int d) {
    __shared__ float scratch[2][32];
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += (i64)gridDim.x * blockDim.y) {
        // Threads without a row go along: they are needed in the sums.
        const i64 at = (first + threadIdx.y) * d;
        const int width = first + threadIdx.y < rows ? d : 0;
        Bits v[PACKS] = {};
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int column = (threadIdx.x + p * blockDim.x) * LANES;
            if (column < width) v[p] = load_bits_once(x + at + column);
        }
        float max = -3.402823466e38f, sum = 0.0f;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int column = (threadIdx.x + p * blockDim.x) * LANES;
            if (column >= width) continue;
#pragma unroll
            for (int i = 0; i < LANES; i++) max = fmaxf(max, element(v[p], i));
        }
        max = row_max(max, scratch[0]);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int column = (threadIdx.x + p * blockDim.x) * LANES;
            if (column >= width) continue;
            stay_packed(v[p]);
#pragma unroll
            for (int i = 0; i < LANES; i++) sum += exp_for_t(element(v[p], i) - max);
        }
        const float scale = 1.0f / row_sum(sum, scratch[1]);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int column = (threadIdx.x + p * blockDim.x) * LANES;
            if (column >= width) continue;
            // The exponential again: to keep it would take a register for each element.
            stay_packed(v[p]);
            PackT out;
#pragma unroll
            for (int i = 0; i < LANES; i++)
                out.v[i] = from_f32<T>(exp_for_t(element(v[p], i) - max) * scale);
            store_pack(y + at + column, out);
        }
    }
}

// y = e^(x - max) / sum of e^(x - max), row by row. x, y [rows, d] T; y may be x.
extern "C" __global__ void __launch_bounds__(1024) softmax_forward(const T* x, T* y, int rows,
    int d) {
    if (!is_packed(d)) forward_in_memory<1>(x, y, rows, d);
    else if (d / LANES <= PACKS * (int)blockDim.x) forward_in_registers(x, y, rows, d);
    else forward_in_memory<LANES>(x, y, rows, d);
}

template <int N>
DEVICE void backward_in_memory(const T* y, const T* dy, T* dx, int rows, int d, int accumulate) {
    __shared__ float scratch[2][32];
    int turn = 0;
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += (i64)gridDim.x * blockDim.y, turn ^= 1) {
        const i64 at = (first + threadIdx.y) * d;
        const int width = first + threadIdx.y < rows ? d : 0, step = blockDim.x * N;
        float dot = 0.0f;
#pragma unroll 2
        for (int c = threadIdx.x * N; c < width; c += step) {
            Pack<T, N> ys = load_pack<T, N>(y + at + c), dys = load_pack<T, N>(dy + at + c);
#pragma unroll
            for (int i = 0; i < N; i++) dot += to_f32(ys.v[i]) * to_f32(dys.v[i]);
        }
        dot = row_sum(dot, scratch[turn]);
        for (int c = threadIdx.x * N; c < width; c += step) {
            Pack<T, N> ys = load_pack<T, N>(y + at + c), dys = load_pack<T, N>(dy + at + c),
                out = {};
            if (accumulate) out = load_pack<T, N>(dx + at + c);
#pragma unroll
            for (int i = 0; i < N; i++) {
                out.v[i] = from_f32<T>(to_f32(out.v[i])
                    + to_f32(ys.v[i]) * (to_f32(dys.v[i]) - dot));
            }
            store_pack(dx + at + c, out);
        }
    }
}

DEVICE void backward_in_registers(const T* y, const T* dy, T* dx, int rows, int d, int accumulate) {
    __shared__ float scratch[2][32];
    int turn = 0;
    for (i64 first = (i64)blockIdx.x * blockDim.y; first < rows;
        first += (i64)gridDim.x * blockDim.y, turn ^= 1) {
        const i64 at = (first + threadIdx.y) * d;
        const int width = first + threadIdx.y < rows ? d : 0;
        Bits ys[PACKS] = {}, dys[PACKS] = {};
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int column = (threadIdx.x + p * blockDim.x) * LANES;
            if (column >= width) continue;
            ys[p] = load_bits_once(y + at + column);
            dys[p] = load_bits_once(dy + at + column);
        }
        float dot = 0.0f;
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
#pragma unroll
            for (int i = 0; i < LANES; i++) dot += element(ys[p], i) * element(dys[p], i);
        }
        dot = row_sum(dot, scratch[turn]);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int column = (threadIdx.x + p * blockDim.x) * LANES;
            if (column >= width) continue;
            stay_packed(ys[p]);
            stay_packed(dys[p]);
            Bits added = {};
            if (accumulate) added = load_bits_once(dx + at + column);
            PackT out;
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                out.v[i] = from_f32<T>(element(added, i)
                    + element(ys[p], i) * (element(dys[p], i) - dot));
            }
            store_pack(dx + at + column, out);
        }
    }
}

// dx (+)= y (dy - sum of dy y), row by row. y, dy, dx [rows, d] T; dx may be dy.
extern "C" __global__ void __launch_bounds__(1024) softmax_backward(const T* y, const T* dy, T* dx,
    int rows, int d, int accumulate) {
    if (!is_packed(d)) backward_in_memory<1>(y, dy, dx, rows, d, accumulate);
    else if (d / LANES <= PACKS * (int)blockDim.x)
        backward_in_registers(y, dy, dx, rows, d, accumulate);
    else backward_in_memory<LANES>(y, dy, dx, rows, d, accumulate);
}
