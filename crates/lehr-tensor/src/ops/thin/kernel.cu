// Elementwise functions, transposes, sums. Unless a kernel says
// otherwise: grid and block of one dimension, any grid, at most 256 threads, no shared memory;
// tensors start on 16 bytes.
#include "common.cuh"

// y = f(a, b) for n elements, with `op` 0: a + b, 1: a - b, 2: a b, 3: a / b, and the gradients 4:
// -b a (of a quotient b with respect to the divisor, a = dy / divisor), 5: a (1 - b^2) (of b =
// tanh), 6: a b (1 - b) (of b = sigmoid). y may be a or b.
extern "C" __global__ void __launch_bounds__(256, 4) binary(const T* a, const T* b, T* y, i64 n,
    int op) {
    auto run = [=](auto f) {
        auto step = [=](i64 i, auto a, auto b) {
            auto out = pack_like<T>(a);
            for (int k = 0; k < a.N_ELEMENTS; k++)
                out.v[k] = from_f32<T>(f(to_f32(a.v[k]), to_f32(b.v[k])));
            store_pack(y + i, out);
        };
        elementwise<LANES, 1>(n, step, a, b);
    };
    switch (op) {
        case 0: run([](float a, float b) { return a + b; }); break;
        case 1: run([](float a, float b) { return a - b; }); break;
        case 2: run([](float a, float b) { return a * b; }); break;
        case 3: run([](float a, float b) { return a / b; }); break;
        case 4: run([](float a, float b) { return -b * a; }); break;
        case 5: run([](float a, float b) { return a * (1.0f - b * b); }); break;
        case 6: run([](float a, float b) { return a * b * (1.0f - b); }); break;
    }
}

// y = f(a) for n elements, with `op` 0: factor a, 1: -a, 2: e^a, 3: log a, 4: tanh a, 5: 1 / (1 +
// e^-a). y may be a. Only op 0 uses the factor.
extern "C" __global__ void __launch_bounds__(256, 4) unary(const T* a, T* y, i64 n, int op,
    float factor) {
    auto run = [=](auto f) {
        auto step = [=](i64 i, auto a) {
            auto out = pack_like<T>(a);
            for (int k = 0; k < a.N_ELEMENTS; k++) out.v[k] = from_f32<T>(f(to_f32(a.v[k])));
            store_pack(y + i, out);
        };
        elementwise<LANES, 2>(n, step, a);
    };
    switch (op) {
        case 0: run([=](float a) { return factor * a; }); break;
        case 1: run([](float a) { return -a; }); break;
        case 2: run([](float a) { return expf(a); }); break;
        case 3: run([](float a) { return logf(a); }); break;
        case 4: run([](float a) { return tanhf(a); }); break;
        case 5: run([](float a) { return 1.0f / (1.0f + expf(-a)); }); break;
    }
}

template <class E>
DEVICE void fill_values(E* y, i64 n, E value) {
    const int N = 16 / (int)sizeof(E);
    Pack<E, N> pack;
    for (int k = 0; k < N; k++) pack.v[k] = value;
    i64 n_packs = n / N;
#pragma unroll 1
    for (i64 i = thread_index(); i < n_packs; i += n_threads()) store_pack(y + i * N, pack);
#pragma unroll 1
    for (i64 i = n_packs * N + thread_index(); i < n; i += n_threads()) y[i] = value;
}
// y = *value * factor for n elements: a value that was computed on the device.
extern "C" __global__ void __launch_bounds__(256) fill_from(T* y, i64 n, const float* value,
    float factor) {
    fill_values(y, n, from_f32<T>(*value * factor));
}
// [outer, a, middle, b] -> [outer, b, middle, a]: transposes matrices [a, b], whose rows are
// `middle` rows apart, in tiles of EDGE x EDGE. EDGE is 32 (f32) or 64 (16-bit), so a row of a tile
// takes 128 bytes. Block 256 threads; grid (ceil(b / EDGE), ceil(a / EDGE), outer * middle), the
// last two at most 65535. x and y do not overlap.
#define EDGE (8 * LANES)
extern "C" __global__ void __launch_bounds__(256)
    transpose_tiles(const T* __restrict__ x, T* __restrict__ y, i64 outer, i64 a, i64 middle,
        i64 b) {
    // One more word per row than the tile has, for the path without packs: the elements of a column
    // lie in different banks.
    const int STRIDE = EDGE + 4 / (int)sizeof(T), ROUNDS = EDGE * 8 / 256;
    __shared__ __align__(16) T tile[EDGE * STRIDE];
    int thread = threadIdx.x;
    u32 n_matrices = (u32)(outer * middle), a_tiles = (u32)((a + EDGE - 1) / EDGE);
    i64 b0 = (i64)blockIdx.x * EDGE, from_stride = middle * b, to_stride = middle * a;
    int columns = (int)(b - b0 < EDGE ? b - b0 : EDGE);
    bool packed = a % LANES == 0 && b % LANES == 0;
    for (u32 matrix = blockIdx.z; matrix < n_matrices; matrix += gridDim.z) {
        i64 o = matrix / (u32)middle, m = matrix % (u32)middle;
        for (u32 a_tile = blockIdx.y; a_tile < a_tiles; a_tile += gridDim.y) {
            // Element (i, j) of the tile is from[i * from_stride + j] and to[j * to_stride + i].
            i64 a0 = (i64)a_tile * EDGE;
            const T* from = x + ((o * a + a0) * middle + m) * b + b0;
            T* to = y + ((o * b + b0) * middle + m) * a + a0;
            int rows = (int)(a - a0 < EDGE ? a - a0 : EDGE);
            if (packed) {
                // Pack p of row i lies at p ^ (i / LANES % 8): the 8 lanes that gather 8 packs of
                // one column, LANES rows each, then read from different banks.
                PackT packs[ROUNDS];
#pragma unroll
                for (int r = 0; r < ROUNDS; r++) {
                    int slot = thread + r * 256, i = slot / 8, p = slot % 8;
                    if (i < rows && p * LANES < columns)
                        packs[r] = load_pack<T, LANES>(from + i * from_stride + p * LANES);
                }
#pragma unroll
                for (int r = 0; r < ROUNDS; r++) {
                    int slot = thread + r * 256, i = slot / 8, p = slot % 8;
                    if (i < rows && p * LANES < columns)
                        store_pack(tile + i * EDGE + (p ^ (i / LANES % 8)) * LANES, packs[r]);
                }
                __syncthreads();
#pragma unroll
                for (int r = 0; r < ROUNDS; r++) {
                    int slot = thread + r * 256, j = slot / 8, q = slot % 8;
                    if (j < columns && q * LANES < rows) {
                        PackT out;
                        const T* column = tile + q * LANES * EDGE + (j / LANES ^ q) * LANES
                            + j % LANES;
#pragma unroll
                        for (int k = 0; k < LANES; k++) out.v[k] = column[k * EDGE];
                        store_pack(to + j * to_stride + q * LANES, out);
                    }
                }
            } else {
#pragma unroll 1
                for (int first = thread; first < EDGE * EDGE; first += 4 * 256) {
                    T values[4];
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        int slot = first + r * 256, i = slot / EDGE, j = slot % EDGE;
                        if (i < rows && j < columns) values[r] = from[i * from_stride + j];
                    }
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        int slot = first + r * 256, i = slot / EDGE, j = slot % EDGE;
                        if (i < rows && j < columns) tile[i * STRIDE + j] = values[r];
                    }
                }
                __syncthreads();
#pragma unroll 4
                for (int r = 0; r < EDGE * EDGE / 256; r++) {
                    int slot = thread + r * 256, j = slot / EDGE, i = slot % EDGE;
                    if (i < rows && j < columns) to[j * to_stride + i] = tile[i * STRIDE + j];
                }
            }
            __syncthreads();
        }
    }
}

// Index arithmetic in I, u32 where it suffices: divisions of 64 bits take longer than the memory.
template <int N, class I>
DEVICE void transpose_rows_by(const T* x, T* y, I n_packs, I a, I middle, I b, I row) {
    auto from = [=](i64 i) {
        I rest = (I)i / row, k = (I)i % row, ia = rest % a;
        rest /= a;
        I im = rest % middle;
        rest /= middle;
        I ib = rest % b, o = rest / b;
        return x + (((((i64)o * a + ia) * middle + im) * b + ib) * row + k) * N;
    };
    move_packs<N>(n_packs, from, [=](i64 i) { return y + i * N; });
}
// [outer, a, middle, b, inner] -> [outer, b, middle, a, inner]: moves whole rows of `inner`
// elements, in packs if inner % LANES = 0 (at most 2^32 packs). For inner = 1 use transpose_tiles.
// x and y do not overlap.
extern "C" __global__ void __launch_bounds__(256)
    transpose_rows(const T* x, T* y, i64 outer, i64 a, i64 middle, i64 b, i64 inner) {
    i64 n = outer * a * middle * b * inner;
    if (inner % LANES == 0)
        transpose_rows_by<LANES, u32>(x, y, n / LANES, a, middle, b, inner / LANES);
    else if (n < (i64)1 << 32) transpose_rows_by<1, u32>(x, y, n, a, middle, b, inner);
    else transpose_rows_by<1, u64>(x, y, n, a, middle, b, inner);
}

// partials[block] = the sum of a part of x, n elements. Block 256 threads; a grid of one dimension,
// which decides the order of the sums: for the same bits everywhere it must depend on n alone (best
// min(1024, ceil(n / 8192)) blocks). The elements of a pack are added in f32, all else in f64.
extern "C" __global__ void __launch_bounds__(256, 4) sum_partials(const T* x, double* partials,
    i64 n) {
    __shared__ double scratch[8];
    double sum = 0;
    auto step = [&](i64 i, auto x) {
        float part = to_f32(x.v[0]);
        for (int k = 1; k < x.N_ELEMENTS; k++) part += to_f32(x.v[k]);
        sum += part;
    };
    elementwise<LANES, 4>(n, step, x);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
// *y = (the sum of n partials) / divisor. One block of 256 threads.
extern "C" __global__ void __launch_bounds__(256) sum_finish(const double* partials, int n,
    float* y, double divisor) {
    __shared__ double scratch[8];
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += 256) sum += partials[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *y = (float)(sum / divisor);
}
