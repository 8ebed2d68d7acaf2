// Attention of few queries over many keys that lie in pages; `decode.cuh` does it.
#include "decode.cuh"

// As attention_decode of decode.cu, with keys and values in pools [n_pages, 2^page_shift, K, E] of
// pages that all texts share: `table` [B, max_pages] says which pages a text has, `lengths` [B] how
// many keys. The last Tq of them are its queries'; a length of 0 gives output
// 0. workspace: B * H * Tq * n_splits * (E + 2) floats.
//
// Grid (n_splits, K * ceil(H / K * Tq / RC), B), 128 threads. Choose n_splits so that there are
// about two blocks per multiprocessor, with at least 64 keys each.
#define ATTENTION_DECODE_PAGED(W, TEAM, RC) \
    extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 2) \
        attention_decode_paged_##W##_##RC(const T* q, const T* k, const T* v, float* workspace, \
            const int* table, const int* lengths, int max_pages, int page_shift, int q_stride, \
            int k_stride, int v_stride, int tq, int n_heads, int n_kv_heads, int width, \
            int causal, int window, float scale, int n_splits) { \
        Mask mask(0, causal, window, lengths[blockIdx.z], tq); \
        DECODE_BY(W, TEAM, RC, InPages(table, max_pages, page_shift)) \
    }
ATTENTION_DECODE_PAGED(64, 8, 1)
ATTENTION_DECODE_PAGED(64, 8, 2)
ATTENTION_DECODE_PAGED(64, 8, 4)
ATTENTION_DECODE_PAGED(128, 8, 1)
ATTENTION_DECODE_PAGED(128, 8, 2)
ATTENTION_DECODE_PAGED(128, 8, 4)
ATTENTION_DECODE_PAGED(256, 16, 1)
ATTENTION_DECODE_PAGED(256, 16, 2)
ATTENTION_DECODE_PAGED(256, 16, 4)
