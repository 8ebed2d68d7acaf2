// Keys and values in pages: new ones are written, texts grow.
#include "common.cuh"

template <int N>
DEVICE void copy_row(const T* from, T* to, int width) {
    for (int i = threadIdx.x; i < width / N; i += blockDim.x)
        store_pack(to + i * N, load_pack<T, N>(from + i * N));
}
// Writes k and v [B, T, width] over the last T tokens of each text in the pools [n_pages, 2^shift,
// width]: token i of text b is row i % 2^shift of page table[b, i / 2^shift], and lengths[b] tokens
// are there, the new ones among them. `table` is [B, max_pages]. Rows of a text that would be
// before its first token are left out.
//
// Grid (any, 2), best a block for each of the n = B * T rows; the second dimension is k or v. Block
// whole warps, best 128 threads.
extern "C" __global__ void __launch_bounds__(256)
    write_pages(const T* k, const T* v, T* k_pool, T* v_pool, const int* table, const int* lengths,
        int max_pages, int shift, int t, int n, int width) {
    const T* from = blockIdx.y ? v : k;
    T* pool = blockIdx.y ? v_pool : k_pool;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        int b = i / t, token = lengths[b] - t + i % t;
        if (token < 0) continue;
        int page = table[(i64)b * max_pages + (token >> shift)];
        i64 row = ((i64)page << shift) + (token & ((1 << shift) - 1));
        if (is_packed(width)) copy_row<LANES>(from + (i64)i * width, pool + row * width, width);
        else copy_row<1>(from + (i64)i * width, pool + row * width, width);
    }
}

// The inverse: row i of k and v [B, T, width] is token i of text b, from its page; zeros behind the
// last token of a text, because attention multiplies masked values by 0. The arguments are those of
// write_pages.
//
// Grid (any, 2), best a block for each of the n = B * T rows; the second dimension is k or v. Block
// whole warps, best 128 threads.
extern "C" __global__ void __launch_bounds__(256)
    gather_pages(const T* k_pool, const T* v_pool, T* k, T* v, const int* table,
        const int* lengths, int max_pages, int shift, int t, int n, int width) {
    const T* pool = blockIdx.y ? v_pool : k_pool;
    T* to = blockIdx.y ? v : k;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        int b = i / t, token = i % t;
        T* row_to = to + (i64)i * width;
        if (token >= lengths[b]) {
            for (int j = threadIdx.x; j < width; j += blockDim.x) row_to[j] = from_f32<T>(0.0f);
            continue;
        }
        int page = table[(i64)b * max_pages + (token >> shift)];
        i64 row = ((i64)page << shift) + (token & ((1 << shift) - 1));
        if (is_packed(width)) copy_row<LANES>(pool + row * width, row_to, width);
        else copy_row<1>(pool + row * width, row_to, width);
    }
}

// Adds 1 to the position and the length of each text whose length is not 0. One block.
extern "C" __global__ void advance_texts(int* positions, int* lengths, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        if (lengths[i] == 0) continue;
        positions[i] += 1;
        lengths[i] += 1;
    }
}
