// Picking rows of a table, and the gradient of the table: sums of rows in the order of their
// positions.
#include "common.cuh"

// y[i] = table[ids[i]].
// table [V, d], y [n, d] T; ids [n] i32, each in 0..V. Table and y may be any T: this copies bits.
// Block (x, y), x threads to a row: about d / (4 LANES), x * y = 256. Grid: ceil(n / y), or less.
extern "C" __global__ void embedding_gather(const T* table, const int* ids, T* y, int n, int d) {
    for (i64 i = (i64)blockIdx.x * blockDim.y + threadIdx.y; i < n;
        i += (i64)gridDim.x * blockDim.y) {
        copy_row(y + i * d, table + (i64)ids[i] * d, d);
    }
}

// The gradient of the table comes in two steps. The host sorts the positions 0..n stably by their
// id (a counting sort), so that the places of one id are a run of neighbours in `order`, rising,
// and cuts runs into segments:
//   order           i32 [n]               positions, sorted stably by id
//   segment_starts  i32 [n_segments + 1]  segment s is order[segment_starts[s] ..
//                                         segment_starts[s + 1]], never empty; the last is n
//   segment_target  i32 [n_segments]      id >= 0: the segment is the whole run of this id;
//                                         -1 - w: its sum goes to row w of `work`
//   long_ids        i32 [n_long]          the ids whose runs have several segments, each once
//   long_starts     i32 [n_long + 1]      rows long_starts[j] .. long_starts[j + 1] of `work` are
//                                         the segments of long_ids[j] in order
// A run of up to 64 positions is one segment. Longer runs are cut into segments of max(64, about
// sqrt(length)) positions, the last one shorter, so no thread adds very many rows. `work` is f32
// [long_starts[n_long], d]. For example, ids 5 2 5 and segments of one position: order 1 0 2,
// segment_starts 0 1 2 3, segment_target 2 -1 -2, long_ids 5,
// long_starts 0 2.

// Rows on their way at once.
#define ROWS_AHEAD 4

// Adds elements column.. column + N of rows from..to of `order` in order.
template <int N>
DEVICE void sum_segment(const T* dy, const int* order, int from, int to, int d, int column,
    float sum[N]) {
    for (int i = from; i < to; i += ROWS_AHEAD) {
        Pack<T, N> rows[ROWS_AHEAD];
#pragma unroll
        for (int k = 0; k < ROWS_AHEAD; k++) {
            if (i + k < to) rows[k] = load_pack<T, N>(dy + (i64)order[i + k] * d + column);
        }
#pragma unroll
        for (int k = 0; k < ROWS_AHEAD; k++) {
            if (i + k >= to) break;
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += to_f32(rows[k].v[j]);
        }
    }
}

template <int N>
DEVICE void add_segments(const T* dy, const int* order, const int* segment_starts,
    const int* segment_target, float* dtable, float* work, int n_segments, int d, int accumulate) {
    for (i64 s = (i64)blockIdx.x * blockDim.y + threadIdx.y; s < n_segments;
        s += (i64)gridDim.x * blockDim.y) {
        const int from = segment_starts[s], to = segment_starts[s + 1], target = segment_target[s];
        const bool adds = accumulate && target >= 0;
        float* out = target >= 0 ? dtable + (i64)target * d : work + (i64)(-1 - target) * d;
        for (int c = (blockIdx.y * blockDim.x + threadIdx.x) * N; c < d;
            c += gridDim.y * blockDim.x * N) {
            float sum[N] = {};
            if (adds) load_floats<N>(out + c, sum);
            sum_segment<N>(dy, order, from, to, d, c, sum);
            store_floats<N>(out + c, sum);
        }
    }
}

// Step 1: dtable[id] (+)= sum of dy[i] over the places i of each id with one segment, and work[w] =
// the sum of each other segment. dy [n, d] T, dtable [V, d] f32. With accumulate = 0 rows of ids
// that occur are overwritten; the caller sets the others to 0. Block (x, y): x threads to a row,
// about d / LANES and at most 256, x * y = 256. Grid: (ceil(n_segments / y), ceil(d / (LANES x))),
// or less.
extern "C" __global__ void embedding_add_segments(const T* dy, const int* order,
    const int* segment_starts, const int* segment_target, float* dtable, float* work,
    int n_segments, int d, int accumulate) {
    if (is_packed(d)) {
        add_segments<LANES>(dy, order, segment_starts, segment_target, dtable, work, n_segments, d,
            accumulate);
    } else {
        add_segments<1>(dy, order, segment_starts, segment_target, dtable, work, n_segments, d,
            accumulate);
    }
}

// Step 2, if n_long > 0: dtable[long_ids[j]] (+)= the sum of its rows of `work`, in order.
// Block 128 threads, one column each. Grid: (n_long, ceil(d / 128)), or less.
extern "C" __global__ void embedding_add_long(const float* work, const int* long_ids,
    const int* long_starts, float* dtable, int n_long, int d, int accumulate) {
    for (int j = blockIdx.x; j < n_long; j += gridDim.x) {
        const int from = long_starts[j], to = long_starts[j + 1];
        float* out = dtable + (i64)long_ids[j] * d;
        for (int c = blockIdx.y * blockDim.x + threadIdx.x; c < d; c += gridDim.y * blockDim.x) {
            float sum = accumulate ? out[c] : 0.0f;
#pragma unroll 8
            for (int w = from; w < to; w++) sum += work[(i64)w * d + c];
            out[c] = sum;
        }
    }
}
