// Muon's passes over matrices of one shape; the products between them are the library's.
//
// A part is the matrix [rows, cols] of one linear map within a stored matrix: `Place` says where.
// Parts of one launch share a place except for their first output, and grid.y counts them. Their
// matrices x lie one after another.
#include "clip.cuh"
#include "common.cuh"

// The operands of products.
#if LEHR_T == 0
typedef float Factor;
#else
typedef bf16 Factor;
#endif

// In Rust: #[repr(C)] struct { param: u64, grad: u64, momentum: u64, second: u64, shadow: u64,
// first: i64 }, 48 bytes.
struct MuonPart {
    float* param;
    const float* grad;
    float* momentum;
    // Of the part alone.
    float* second;
    // The compute copy of the parameter, or null.
    T* shadow;
    // The first output.
    i64 first;
};

// Where element (i, j) of a part is stored. Outputs are rows (is_out_in) or columns; output o is
// stored output first + o / len * stride + o % len.
struct Place {
    int cols, width, len, stride, is_out_in;
    i64 first;
};
DEVICE i64 stored_at(const Place& place, i64 i) {
    i64 row = i / place.cols, col = i % place.cols, output = place.is_out_in ? row : col;
    output = place.first + output / place.len * place.stride + output % place.len;
    return place.is_out_in ? output * place.width + col : row * place.width + output;
}

// The momentum takes the gradient in: m <- m + (g - m) (1 - mu); x = g + mu (m - g), if x is not
// null. g is clipped as in AdamW. Grid (any, parts), block 256.
extern "C" __global__ void __launch_bounds__(256)
    muon_gather(const MuonPart* parts, int rows, int cols, int width, int len, int stride,
        int is_out_in, float mu, const double* sum_of_squares, float clip_norm, float grad_scale,
        float* x) {
    __shared__ Clipped shared_clipped;
    if (threadIdx.x == 0) shared_clipped = clipped(sum_of_squares, clip_norm, grad_scale);
    __syncthreads();
    MuonPart part = parts[blockIdx.y];
    Place place = {cols, width, len, stride, is_out_in, part.first};
    i64 n = (i64)rows * cols;
    if (x) x += blockIdx.y * n;
    for (i64 i = thread_index(); i < n; i += n_threads()) {
        if (shared_clipped.skip) {
            // Nothing reads it, but it should be a number.
            if (x) x[i] = 0.0f;
            continue;
        }
        i64 at = stored_at(place, i);
        float g = __fmul_rn(part.grad[at], shared_clipped.g_scale), old = part.momentum[at];
        float m = fmaf(__fsub_rn(g, old), 1.0f - mu, old);
        part.momentum[at] = m;
        if (x) x[i] = fmaf(__fsub_rn(m, g), mu, g);
    }
}

// sums[part, i] = the sum of squares of row i of x [parts, rows, cols]. Grid (any, parts), block
// 256: a warp per row.
extern "C" __global__ void __launch_bounds__(256)
    muon_row_squares(const float* x, int rows, int cols, float* sums) {
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    x += blockIdx.y * ((i64)rows * cols);
    for (int row = blockIdx.x * warps + threadIdx.x / WARP; row < rows; row += gridDim.x * warps) {
        float sum = 0.0f;
        for (int j = lane; j < cols; j += WARP) {
            float v = x[(i64)row * cols + j];
            sum = fmaf(v, v, sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) sums[(i64)blockIdx.y * rows + row] = sum;
    }
}

// sums[part, j] = the sum of squares of column j. Grid (any, parts), block 256: 32 columns at a
// time.
extern "C" __global__ void __launch_bounds__(256)
    muon_column_squares(const float* x, int rows, int cols, float* sums) {
    __shared__ float parts[8][33];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x += blockIdx.y * ((i64)rows * cols);
    for (int first = blockIdx.x * WARP; first < cols; first += gridDim.x * WARP) {
        int col = first + lane;
        float sum = 0.0f;
        for (int row = warp; row < rows && col < cols; row += 8) {
            float v = x[(i64)row * cols + col];
            sum = fmaf(v, v, sum);
        }
        parts[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && col < cols) {
            float total = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) total += parts[i][lane];
            sums[(i64)blockIdx.y * cols + col] = total;
        }
        __syncthreads();
    }
}

// The sum of f(i) over i < n, the same in every thread. Block 256.
template <class F>
DEVICE double sum_of(int n, const F& f) {
    __shared__ double scratch[8];
    __shared__ double total;
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += f(i);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) total = sum;
    __syncthreads();
    sum = total;
    __syncthreads();
    return sum;
}

#define EPS 1e-6
#define MOMENT_MIN 1e-10

// factors[part, i], which give n outputs with these sums of squares the same norm, and the whole a
// norm below 1. Grid (1, parts), block 256.
extern "C" __global__ void __launch_bounds__(256)
    muon_equalize(const float* squares, int n, float* factors) {
    squares += (i64)blockIdx.y * n;
    factors += (i64)blockIdx.y * n;
    double mean = sqrt(sum_of(n, [&](int i) { return (double)squares[i]; }) / n);
    auto factor = [&](int i) { return mean / fmax(sqrt((double)squares[i]), EPS); };
    double after = sum_of(n, [&](int i) { return factor(i) * factor(i) * squares[i]; });
    double shrink = 1.0 / (sqrt(after) * 1.01 + EPS);
    for (int i = threadIdx.x; i < n; i += blockDim.x) factors[i] = (float)(factor(i) * shrink);
}

// The moments take the squares in, n sums over n_each elements; factors divide by their roots and
// restore the norm of an orthogonal matrix. Nothing changes where the gradient is not finite. Grid
// (1, parts), block 256.
extern "C" __global__ void __launch_bounds__(256)
    muon_normalize(const MuonPart* parts, const float* squares, int n, int n_each, float beta2,
        const double* sum_of_squares, float* factors) {
    if (clipped(sum_of_squares, 0.0f, 1.0f).skip) return;
    squares += (i64)blockIdx.y * n;
    factors += (i64)blockIdx.y * n;
    float* second = parts[blockIdx.y].second;
    double norm = sqrt((double)(n < n_each ? n : n_each));
    double snap = norm / fmax(sqrt(sum_of(n, [&](int i) { return (double)squares[i]; })), EPS);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float square = (float)(squares[i] * snap * snap / n_each), old = second[i];
        second[i] = __fadd_rn(old, __fmul_rn(__fsub_rn(square, old), 1.0f - beta2));
    }
    __syncthreads();
    auto root = [&](int i) { return 1.0 / sqrt(fmax((double)second[i], MOMENT_MIN)); };
    double before = sum_of(n, [&](int i) { return squares[i] * snap * snap; });
    double after = sum_of(n, [&](int i) { return squares[i] * snap * snap * root(i) * root(i); });
    double keep = snap * sqrt(before) / fmax(sqrt(after), MOMENT_MIN);
    for (int i = threadIdx.x; i < n; i += blockDim.x) factors[i] = (float)(root(i) * keep);
}

// y = x * factors, rounded to the operands of products; a factor for each row or for each column.
// Grid (any, parts), block 256.
extern "C" __global__ void __launch_bounds__(256)
    muon_scale(const float* x, int rows, int cols, const float* factors, int by_row, Factor* y) {
    i64 n = (i64)rows * cols, base = blockIdx.y * n;
    factors += blockIdx.y * (i64)(by_row ? rows : cols);
    for (i64 i = thread_index(); i < n; i += n_threads())
        y[base + i] = from_f32<Factor>(x[base + i] * factors[by_row ? i / cols : i % cols]);
}

// p = a I + b gram + c squared for n matrices [side, side], rounded.
extern "C" __global__ void __launch_bounds__(256)
    muon_polynomial(const Factor* gram, const float* squared, i64 n, int side, float a, float b,
        float c, Factor* p) {
    for (i64 i = thread_index(); i < n * side * side; i += n_threads()) {
        float value = b * to_f32(gram[i]) + c * squared[i];
        if (i / side % side == i % side) value += a;
        p[i] = from_f32<Factor>(value);
    }
}

// p <- p - lr x - lr decay p, where x is times its factors; if `cautious`, only weights decay that
// x moves towards 0. Nothing changes where the gradient is not finite. Grid (any, parts), block
// 256.
extern "C" __global__ void __launch_bounds__(256)
    muon_apply(const MuonPart* parts, int rows, int cols, int width, int len, int stride,
        int is_out_in, const float* x, const float* factors, int by_row, float lr, float decay,
        int cautious, const double* sum_of_squares) {
    if (clipped(sum_of_squares, 0.0f, 1.0f).skip) return;
    MuonPart part = parts[blockIdx.y];
    Place place = {cols, width, len, stride, is_out_in, part.first};
    i64 n = (i64)rows * cols;
    x += blockIdx.y * n;
    factors += blockIdx.y * (i64)(by_row ? rows : cols);
    float shrunk = __fsub_rn(1.0f, __fmul_rn(lr, decay));
    for (i64 i = thread_index(); i < n; i += n_threads()) {
        i64 at = stored_at(place, i);
        float step = __fmul_rn(x[i], factors[by_row ? i / cols : i % cols]), p = part.param[at];
        float keep = cautious && __fmul_rn(step, p) < 0.0f ? 1.0f : shrunk;
        p = fmaf(-lr, step, __fmul_rn(p, keep));
        part.param[at] = p;
        if (part.shadow) part.shadow[at] = from_f32<T>(p);
    }
}
