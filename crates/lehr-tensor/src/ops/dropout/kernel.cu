// The masked, scaled copy that is both forward and backward. All kernels here: grid and block of
// one dimension, any grid, at most 256 threads; tensors start on 16 bytes; no shared memory.
#include "common.cuh"

// The random words of the N elements from number i on: element i has word i % 4 of block i / 4. N
// is 1 or a multiple of 4, and then so is i.
template <int N>
DEVICE void random_words(u64 seed, u64 stream, i64 i, u32 words[N]) {
    if constexpr (N % 4 == 0) {
        for (int k = 0; k < N; k += 4) philox(seed, stream, (u64)(i + k) / 4, words + k);
    } else {
        u32 block[4];
        philox(seed, stream, (u64)i / 4, block);
        u32 low = i % 2 ? block[1] : block[0], high = i % 2 ? block[3] : block[2];
        words[0] = i % 4 < 2 ? low : high;
    }
}

// y (+)= scale x where the element's random word has `word >> 8 >= threshold`, else 0, for n
// elements: threshold = ceil(2^24 p), scale = 1 / (1 - p). y may be x.
extern "C" __global__ void __launch_bounds__(256, 4)
    dropout(const T* x, T* y, i64 n, u64 seed, u64 stream, int threshold, float scale,
        int accumulate) {
    if (accumulate) {
        auto step = [=](i64 i, auto x, auto old) {
            auto out = pack_like<T>(x);
            u32 words[decltype(x)::N_ELEMENTS];
            random_words<decltype(x)::N_ELEMENTS>(seed, stream, i, words);
            for (int k = 0; k < x.N_ELEMENTS; k++) {
                float value = words[k] >> 8 >= (u32)threshold ? to_f32(x.v[k]) * scale : 0.0f;
                out.v[k] = from_f32<T>(to_f32(old.v[k]) + value);
            }
            store_pack(y + i, out);
        };
        elementwise<LANES, 1>(n, step, x, (const T*)y);
    } else {
        auto step = [=](i64 i, auto x) {
            auto out = pack_like<T>(x);
            u32 words[decltype(x)::N_ELEMENTS];
            random_words<decltype(x)::N_ELEMENTS>(seed, stream, i, words);
            for (int k = 0; k < x.N_ELEMENTS; k++) {
                out.v[k] = from_f32<T>(words[k] >> 8 >= (u32)threshold ? to_f32(x.v[k]) * scale
                    : 0.0f);
            }
            store_pack(y + i, out);
        };
        elementwise<LANES, 2>(n, step, x);
    }
}
