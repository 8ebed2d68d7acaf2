// Rows held in registers: what normalisations over rows share, forward and backward.
//
// Threads of a row. The caller picks the block from the row's width d, with packs = ceil(d /
// LANES), LANES = 16 / sizeof(T), and per_thread = FORWARD_PACKS or BACKWARD_PACKS, t = ceil(packs
// / per_thread):
//   t <= 32: block (x, 256 / x), x = t rounded up to a power of two, at least 8: several rows per
//            block;
//   t > 32:  block (x, 1), x = t rounded up to a multiple of 32, at most the launch bound of the
//            kernel.
// Any block of one of these two forms gives right results. Rows of more than x * per_thread packs,
// or of a width that is no multiple of LANES, take a slower path that reads memory more than once.
#pragma once
#include "common.cuh"

// Packs of 16 bytes of a row that a thread holds. Backward holds two rows (x and dy) and the next
// of each, so fewer.
#define FORWARD_PACKS 4
#define BACKWARD_PACKS 2
// Most shared memory for column sums in the slow path; wider rows keep them in global memory.
#define SHARED_SUMS_MAX (96 << 10)

// The first column of pack p of this thread: neighbouring threads read neighbouring packs.
DEVICE int pack_column(int p) { return (threadIdx.x + p * blockDim.x) * LANES; }

// Reads this thread's packs of a row of width d; nothing if the thread has no row.
template <int N>
DEVICE void load_row(Bits (&v)[N], const T* row, bool valid, int d) {
#pragma unroll
    for (int p = 0; p < N; p++) {
        if (valid && pack_column(p) < d) v[p] = load_bits_once(row + pack_column(p));
    }
}

// What a thread holds of the two rows that backward reads.
struct RowPair {
    Bits x[BACKWARD_PACKS], dy[BACKWARD_PACKS];
};
DEVICE void load_pair(RowPair& part, const T* x, const T* dy, i64 row, int rows, int d) {
    part = {};
    if (row >= rows) return;
#pragma unroll
    for (int p = 0; p < BACKWARD_PACKS; p++) {
        int column = pack_column(p);
        if (column >= d) continue;
        part.x[p] = load_bits_once(x + row * d + column);
        part.dy[p] = load_bits_once(dy + row * d + column);
    }
}

// Writes this thread's column sums to a row of width d.
DEVICE void store_sums(float* row, const float (&sums)[BACKWARD_PACKS][LANES], int d) {
#pragma unroll
    for (int p = 0; p < BACKWARD_PACKS; p++) {
        if (pack_column(p) < d) store_floats<LANES>(row + pack_column(p), sums[p]);
    }
}

// Adds the sums of the block's rows of threads, in order, and writes them to the block's row of
// `partials`. All threads must have passed a barrier since the sums were written.
DEVICE void write_partial(const float* sums, float* partials, int d) {
    for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < d; c += blockDim.x * blockDim.y) {
        float total = 0.0f;
        for (int y = 0; y < (int)blockDim.y; y++) total += sums[y * d + c];
        partials[(i64)blockIdx.x * d + c] = total;
    }
}
