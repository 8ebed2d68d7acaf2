// Channels taken from the previous token. Both kernels: n elements of [B, len, width], heads of
// `head` elements, channels from..to of each head; starts [B, len] i32, not 0 where a text begins.
// Any grid and block of one dimension.
#include "common.cuh"

// y = x, but channels from..to are those of the previous token: of before [B, width] for the first
// of a sequence, if before is not null. At a start they are its own, or 0.
extern "C" __global__ void previous_rows_forward(const T* x, const T* before, const int* starts,
    T* y, i64 n, int len, int width, int head, int from, int to, int own) {
    for (i64 i = thread_index(); i < n; i += n_threads()) {
        i64 token = i / width;
        int k = (int)(i % width), c = k % head, t = (int)(token % len);
        if (c < from || c >= to) y[i] = x[i];
        else if (starts[token] == 0 && t > 0) y[i] = x[i - width];
        else if (starts[token] == 0 && before) y[i] = before[token / len * width + k];
        else y[i] = own ? x[i] : from_f32<T>(0.0f);
    }
}

// dx (+)= the gradient of what an element passed to its own place and to the next token.
extern "C" __global__ void previous_rows_backward(const T* dy, const int* starts, T* dx, i64 n,
    int len, int width, int head, int from, int to, int own, int accumulate) {
    for (i64 i = thread_index(); i < n; i += n_threads()) {
        i64 token = i / width;
        int c = (int)(i % width) % head, t = (int)(token % len);
        float value = 0.0f;
        if (c < from || c >= to) value = to_f32(dy[i]);
        else {
            if (own && (starts[token] != 0 || t == 0)) value = to_f32(dy[i]);
            if (t + 1 < len && starts[token + 1] == 0) value += to_f32(dy[i + width]);
        }
        dx[i] = from_f32<T>(accumulate ? to_f32(dx[i]) + value : value);
    }
}
