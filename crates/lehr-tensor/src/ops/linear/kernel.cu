// The bias of a linear map: its addition, and its gradient, the column sums.
//
// A row of w elements is read in packs for every w: `group` = LANES / gcd(w, LANES) rows together
// are whole packs, a row of group * w elements here called long. The last n % group rows are apart.
// Consecutive threads have consecutive packs of the long rows, and a thread stays in its columns.
#include "common.cuh"

// The base-2 logarithm of `group`.
DEVICE int group_shift(int w) {
    int shift = 0;
    while (((i64)w << shift) % LANES != 0) shift++;
    return shift;
}

// sum += rows `row`, row + step, ... of x, whose packs start every `stride` elements; 8 loads
// are under way at once.
DEVICE void add_rows(float sum[LANES], const T* x, i64 row, i64 step, i64 n_rows, i64 stride) {
#pragma unroll 1
    for (; row < n_rows; row += 8 * step) {
        PackT packs[8];
#pragma unroll
        for (int r = 0; r < 8; r++) {
            i64 at = row + r * step;
            if (at < n_rows) {
                packs[r] = load_pack<T, LANES>(x + at * stride);
            } else {
#pragma unroll
                for (int k = 0; k < LANES; k++) packs[r].v[k] = from_f32<T>(0.0f);
            }
        }
#pragma unroll
        for (int r = 0; r < 8; r++) {
#pragma unroll
            for (int k = 0; k < LANES; k++) sum[k] += to_f32(packs[r].v[k]);
        }
    }
}

DEVICE void store_sums(float* to, const float sum[LANES]) {
#pragma unroll
    for (int k = 0; k < LANES; k += 4) {
        Pack<float, 4> pack = {{sum[k], sum[k + 1], sum[k + 2], sum[k + 3]}};
        store_pack(to + k, pack);
    }
}

// First half of the column sums of x [n, w]: partials f32 [n_partials, w], each row the sum of a
// part of the long rows. With n_packs = group * w / LANES packs in a long row:
//   n_packs <= 128: n_partials = group * blocks. A block adds up its 256 / n_packs long rows at a
//                   time.
//   else:           n_partials = group * max(1, blocks * 256 / n_packs). Every long row lane of
//                   n_packs threads has its own partial.
// Block 256 threads, grid of one dimension, whose size decides the order of the
// sums: for the same bits everywhere it must depend on n and w alone. Good: blocks = min(264,
// ceil(n_long_rows / (8 * (256 / n_packs)))) in the first case, else ceil(n_packs * min(ceil(65536
// / n_packs), ceil(n_long_rows / 16)) / 256), where n_long_rows = n / group. If that is 0, there is
// nothing to launch and n_partials = 0. x starts on 16 bytes.
extern "C" __global__ void __launch_bounds__(256, 2) column_sums_partials(const T* x,
    float* partials, i64 n, int w) {
    __shared__ float scratch[LANES * 256];
    int thread = threadIdx.x, shift = group_shift(w);
    i64 stride = (i64)w << shift, n_rows = n >> shift;
    u32 n_packs = (u32)(stride / LANES);
    if (n_packs <= 128) {
        int width = (int)n_packs, lanes = 256 / width, lane = thread / width, pack = thread % width;
        float sum[LANES] = {};
        if (lane < lanes)
            add_rows(sum, x + pack * LANES, (i64)blockIdx.x * lanes + lane, (i64)gridDim.x * lanes,
                n_rows, stride);
#pragma unroll
        for (int k = 0; k < LANES; k++) scratch[k * 256 + thread] = sum[k];
        __syncthreads();
        // The upper half of the lanes is added to the lower half until one is left.
#pragma unroll 1
        while (lanes > 1) {
            int half = (lanes + 1) / 2;
            if (lane < lanes - half) {
#pragma unroll
                for (int k = 0; k < LANES; k++)
                    scratch[k * 256 + thread] += scratch[k * 256 + thread + half * width];
            }
            __syncthreads();
            lanes = half;
        }
        if (lane > 0) return;
#pragma unroll
        for (int k = 0; k < LANES; k++) sum[k] = scratch[k * 256 + thread];
        store_sums(partials + blockIdx.x * stride + pack * LANES, sum);
    } else {
        // A lane of threads for every long row; if the grid is too small for one, threads take
        // several packs.
        u32 index = (u32)thread_index(), threads = (u32)n_threads(), lanes = threads / n_packs,
            lane = index / n_packs;
        u32 step = lanes == 0 ? threads : n_packs;
        if (lanes == 0) lanes = 1;
        if (lane >= lanes) return;
        for (u32 pack = index - lane * n_packs; pack < n_packs; pack += step) {
            float sum[LANES] = {};
            add_rows(sum, x + (i64)pack * LANES, lane, lanes, n_rows, stride);
            store_sums(partials + lane * stride + (i64)pack * LANES, sum);
        }
    }
}

// Second half: out f32 [w] (+)= the sum of the partials [n_partials, w], and of the last n % group
// rows of x [n, w]. Block 256 threads, grid of one dimension: ceil(w / 32) blocks, any number is
// right.
extern "C" __global__ void __launch_bounds__(256)
    column_sums_finish(const float* partials, int n_partials, const T* x, i64 n, int w, float* out,
        int accumulate) {
    __shared__ float scratch[256];
    // Few columns have more threads each.
    int columns = 1;
    while (columns < 32 && columns < w) columns *= 2;
    int thread = threadIdx.x, lanes = 256 / columns, lane = thread / columns;
    i64 tail = n >> group_shift(w) << group_shift(w);
    for (i64 first = (i64)blockIdx.x * columns; first < w; first += (i64)gridDim.x * columns) {
        i64 column = first + thread % columns;
        float sum = 0.0f;
        if (column < w) {
#pragma unroll 8
            for (int row = lane; row < n_partials; row += lanes)
                sum += partials[(i64)row * w + column];
            for (i64 row = tail + lane; row < n; row += lanes) sum += to_f32(x[row * w + column]);
        }
        scratch[thread] = sum;
        __syncthreads();
#pragma unroll 1
        for (int half = 128; half >= columns; half /= 2) {
            if (thread < half) scratch[thread] += scratch[thread + half];
            __syncthreads();
        }
        if (thread < columns && column < w)
            out[column] = accumulate ? out[column] + scratch[thread] : scratch[thread];
        __syncthreads();
    }
}

// y += bias in every row: y [n, w], bias [w]. Block 256 threads, grid of one dimension, any; best
// ceil(n w / (2048 LANES)) blocks and at least ceil(n_packs / 256), n_packs as in
// column_sums_partials. y starts on 16 bytes.
extern "C" __global__ void __launch_bounds__(256, 2) add_bias(T* y, const T* bias, i64 n, int w) {
    int shift = group_shift(w);
    i64 stride = (i64)w << shift, n_rows = n >> shift;
    u32 n_packs = (u32)(stride / LANES);
    u32 thread = (u32)thread_index(), threads = (u32)n_threads(), lanes = threads / n_packs,
        lane = thread / n_packs;
    u32 step = lanes == 0 ? threads : n_packs;
    if (lanes == 0) lanes = 1;
    if (lane < lanes) {
        for (u32 pack = thread - lane * n_packs; pack < n_packs; pack += step) {
            float add[LANES];
            u32 column = pack * LANES % (u32)w;
#pragma unroll
            for (int k = 0; k < LANES; k++) {
                add[k] = to_f32(bias[column]);
                column = column + 1 == (u32)w ? 0 : column + 1;
            }
#pragma unroll 1
            for (i64 row = lane; row < n_rows; row += (i64)4 * lanes) {
                PackT packs[4];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    i64 at = row + (i64)r * lanes;
                    if (at < n_rows)
                        packs[r] = load_pack<T, LANES>(y + at * stride + (i64)pack * LANES);
                }
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    i64 at = row + (i64)r * lanes;
#pragma unroll
                    for (int k = 0; k < LANES; k++)
                        packs[r].v[k] = from_f32<T>(to_f32(packs[r].v[k]) + add[k]);
                    if (at < n_rows) store_pack(y + at * stride + (i64)pack * LANES, packs[r]);
                }
            }
        }
    }
    y += n_rows * stride;
    u32 rest = (u32)(n * w - n_rows * stride);
    for (u32 i = thread; i < rest; i += threads)
        y[i] = from_f32<T>(to_f32(y[i]) + to_f32(bias[i % (u32)w]));
}
