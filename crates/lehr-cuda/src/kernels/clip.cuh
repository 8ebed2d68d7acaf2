// What the norm of the whole gradient makes of an update: the scale of the gradient, or no update.
#pragma once

#include "common.cuh"

struct Clipped {
    float g_scale;
    int skip;
};
// The gradient is multiplied by grad_scale, and if clip_norm > 0 and norm > clip_norm also by
// clip_norm / norm, where norm = sqrt(*sum_of_squares) * grad_scale. If the sum is not finite,
// nothing is updated. sum_of_squares may be null: no clipping, no check.
DEVICE Clipped clipped(const double* sum_of_squares, float clip_norm, float grad_scale) {
    Clipped c = {grad_scale, 0};
    if (sum_of_squares) {
        double sum = *sum_of_squares, norm = sqrt(sum) * grad_scale;
        // False for NaN, too.
        c.skip = !(sum < INFINITY);
        if (clip_norm > 0.0f && norm > clip_norm)
            c.g_scale = (float)(grad_scale * (clip_norm / norm));
    }
    return c;
}
